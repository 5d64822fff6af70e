//! Commits of a branch that was not prepared: the only one that wrote.
//!
//! One file needs no promise: the rename, link or removal of its name is the commit. Several files need one, and its manifest is the
//! decision at the same time: once it is in `prepared/` as `decided`, whoever comes completes it.
//!
//! Must not know other stores.

use std::error::Error;

use unanimous_core::BranchId;

use super::finish::{Trust, keep};
use super::folder::{Folder, Way};
use super::manifest::State;
use super::prepare::{Failed, Pending, Staged, Work, check, discard, refuse_claimed};

/// Commits. `Unsure` means that nobody knows; a decision that is durable but not completed is a commit.
pub(super) fn commit(folder: &Folder, work: &Work, branch: &BranchId, token: String) -> Result<(), Failed> {
    match work.pending.len() {
        0 => Ok(()),
        1 => commit_one_file(folder, work, branch, token),
        _ => {
            let staged = Staged::write(folder, work, branch, State::Decided, token).map_err(Failed::No)?;
            let Staged { manifest, live } = staged.claim(folder, work)?;
            if let Err(error) = keep(folder, &manifest, live, Trust::Own) {
                // The decision is durable. Its paths stay claimed until it is completed, by the next listing that can; until then every
                // listing reports it.
                tracing::warn!(branch = %branch, error = &error as &dyn Error, "committed, but not completed yet; it is tried again");
            }
            Ok(())
        }
    }
}

fn commit_one_file(folder: &Folder, work: &Work, branch: &BranchId, token: String) -> Result<(), Failed> {
    let staged = match work.pending.values().next() {
        Some(Pending::Delete) => None,
        _ => Some(Staged::write(folder, work, branch, State::Decided, token).map_err(Failed::No)?),
    };
    let done = change_name(folder, work, staged.as_ref());
    let result = match done {
        Err(failed) => Err(failed),
        Ok(way) => {
            // As in phase two: the folders above as well.
            let mut folders: Vec<_> = way.into_folders().collect();
            folders.reverse();
            folders
                .iter()
                .try_for_each(|(path, file)| folder.acts.sync("sync the folder", file, path))
                .map_err(Failed::Unsure)
        }
    };
    if let Some(staged) = staged {
        discard(folder, &staged.manifest);
    }
    result
}

/// The commit of a single file, excluded against claims and other such commits by the folder's lock.
fn change_name(folder: &Folder, work: &Work, staged: Option<&Staged>) -> Result<Way, Failed> {
    let (path, pending) = work.pending.first_key_value().expect("there is one operation");
    let at = folder.user_path(path);
    let _lock = folder.lock().map_err(Failed::No)?;
    refuse_claimed(folder, work, None).map_err(Failed::No)?;
    let way = check(folder, work, path, pending).map_err(Failed::No)?;
    let name = staged.map(|staged| staged.manifest.staged(0)).unwrap_or_default();
    let (from, to) = ((&folder.stage, name.as_str()), (way.folder(), path.name()));
    match pending {
        Pending::Create(_) => folder.acts.link("create", from, to, &at),
        Pending::Replace(_) => folder.acts.rename("put the new content in the place of", from, to, &at),
        Pending::Delete => folder.acts.unlink("delete", to.0, to.1, &at),
    }
    .map_err(Failed::from_name_change)?;
    Ok(way)
}
