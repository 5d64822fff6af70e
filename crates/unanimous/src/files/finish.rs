//! The end of a promise: kept or given back, from its manifest alone, any number of times, by whoever comes.
//!
//! Must not know how the promise was made, nor who decided.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use unanimous_core::BranchId;

use super::error::FilesError;
use super::folder::{Folder, IfMissing, PREPARED, STAGE, Target, Way, lock_now, open_file, target};
use super::manifest::{Action, Content, Manifest, State};
use super::path::RelPath;
use super::prepare::{discard, live_name, manifest, manifests, sweep};

/// Whether staged content is read and compared before it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// This process has written it.
    Own,
    /// It was found.
    Found,
}

/// Commits a prepared branch. One that is not there has ended.
pub(super) fn commit(folder: &Folder, branch: &BranchId, trust: Trust) -> Result<(), FilesError> {
    let name = Manifest::file_name(branch, State::Prepared);
    if let Some(lock) = folder.lock_manifest(&name, true)? {
        let Some(manifest) = manifest(folder, &name)? else { return confirm_absence(folder) };
        return keep(folder, &manifest, lock, trust);
    }
    let name = Manifest::file_name(branch, State::Decided);
    if let Some(lock) = folder.lock_manifest(&name, true)? {
        let Some(manifest) = manifest(folder, &name)? else { return confirm_absence(folder) };
        return force_and_keep(folder, &manifest, lock);
    }
    confirm_absence(folder)
}

/// Gives a prepared branch back. One that is not there has ended.
///
/// The manifest goes first, durably, and the content after it: a crash in between leaves dead content, which is swept. The other
/// way round it would leave a promise that could not be kept.
pub(super) fn rollback(folder: &Folder, branch: &BranchId) -> Result<(), FilesError> {
    let name = Manifest::file_name(branch, State::Prepared);
    let Some(lock) = folder.lock_manifest(&name, true)? else {
        return match manifest(folder, &Manifest::file_name(branch, State::Decided))? {
            Some(_) => Err(refuse_rollback(folder, branch)),
            None => confirm_absence(folder),
        };
    };
    let Some(manifest) = manifest(folder, &name)? else { return confirm_absence(folder) };
    remove_manifest(folder, &name)?;
    discard(folder, &manifest);
    drop(lock);
    Ok(())
}

/// The refusal to give back what is decided. Whoever comes completes it; this is also how its refusal can say what stands in the way.
fn refuse_rollback(folder: &Folder, branch: &BranchId) -> FilesError {
    FilesError::Decided { branch: Box::new(branch.clone()), why: complete(folder, branch).err().map(Box::new) }
}

/// The branches that are not at their end: those that wait for a decision, and those that are decided and can't be completed now.
/// What can be is completed first, leftovers of the dead are removed.
pub(super) fn in_doubt(folder: &Folder) -> Result<Vec<BranchId>, FilesError> {
    let mut listed = Vec::new();
    for Manifest { branch, state, .. } in manifests(folder)? {
        if state == State::Decided {
            match complete(folder, &branch) {
                Ok(true) => {
                    tracing::info!(%branch, "completed a one-phase commit that had been interrupted");
                    continue;
                }
                // It has ended, or somebody alive is at it.
                Ok(false) => continue,
                // It was acknowledged and is not done: it must be seen until it is, and must not hide the others.
                Err(error) => {
                    tracing::warn!(%branch, error = &error as &dyn Error, "a one-phase commit can't be completed now");
                }
            }
        }
        listed.push(branch);
    }
    match sweep(folder) {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "removed staged files of processes that have died"),
        Err(error) => {
            tracing::warn!(error = &error as &dyn Error, "staged files of dead processes can't be removed now")
        }
    }
    // Who isn't listed has ended, and is forgotten by its decider (rule 8): its manifest, which somebody may have removed and died before
    // the sync, must not come back. After the look, not before it, so that nothing goes in between. Costs next to nothing where
    // nothing has changed.
    confirm_absence(folder)?;
    Ok(listed)
}

/// Completes a decided branch, unless somebody alive is at it. Says whether it did.
pub(super) fn complete(folder: &Folder, branch: &BranchId) -> Result<bool, FilesError> {
    let name = Manifest::file_name(branch, State::Decided);
    let lock = match folder.lock_manifest(&name, false) {
        Ok(Some(lock)) => lock,
        Ok(None) | Err(FilesError::Busy { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    let Some(manifest) = manifest(folder, &name)? else { return Ok(false) };
    force_and_keep(folder, &manifest, lock).map(|()| true)
}

/// Makes a decision that was read durable before it is acted upon (rule 3): its folder's entry may be in the page cache only, after
/// a crash before the sync, or after a sync that failed. A new file and a new entry are real writes.
fn force_and_keep(folder: &Folder, manifest: &Manifest, lock: File) -> Result<(), FilesError> {
    let name = Manifest::file_name(&manifest.branch, State::Decided);
    let live = live_name(&manifest.stage);
    let path = folder.own_path(STAGE, &live);
    folder.acts.unlink("remove", &folder.stage, &live, &path)?;
    let again = folder.acts.create("write the decision again as", &folder.stage, &live, &path)?;
    match lock_now(&again) {
        Ok(true) => {}
        Ok(false) => return Err(FilesError::Busy { file: path }),
        Err(source) => return Err(FilesError::Io { doing: "lock", path, source }),
    }
    folder.acts.write("write the decision again as", &again, manifest.encode().as_bytes(), &path)?;
    folder.acts.sync("sync the decision", &again, &path)?;
    {
        // So that nobody lists the folder while the name changes hands.
        let _lock = folder.lock()?;
        let path = folder.own_path(PREPARED, &name);
        folder.acts.rename(
            "put the decision in the place of",
            (&folder.stage, &live),
            (&folder.prepared, &name),
            &path,
        )?;
    }
    folder.acts.sync("sync the folder of manifests", &folder.prepared, &folder.own_path(PREPARED, ""))?;
    drop(lock);
    keep(folder, manifest, again, Trust::Found)
}

/// Does what a manifest promises, and removes it. `lock` is the lock on it.
pub(super) fn keep(folder: &Folder, manifest: &Manifest, lock: File, trust: Trust) -> Result<(), FilesError> {
    let mut touched: BTreeMap<PathBuf, File> = BTreeMap::new();
    for place in 0..manifest.operations.len() {
        let way = apply(folder, manifest, place, trust)?;
        touched.extend(way.into_iter().flat_map(Way::into_folders));
    }
    // The folders above as well: another transaction may have made them, and died before it synced them.
    for (path, file) in touched.iter().rev() {
        folder.acts.sync("sync the folder", file, path)?;
    }
    // Only now: as long as the manifest is there it can be done again.
    remove_manifest(folder, &Manifest::file_name(&manifest.branch, manifest.state))?;
    drop(lock);
    discard(folder, manifest);
    Ok(())
}

/// Removes a manifest durably. It must not come back after its end was confirmed: its decision may be forgotten by then, and what it
/// would do again may undo a later transaction.
fn remove_manifest(folder: &Folder, name: &str) -> Result<(), FilesError> {
    let path = folder.own_path(PREPARED, name);
    folder.acts.unlink("remove the manifest", &folder.prepared, name, &path)?;
    folder.acts.sync("sync the folder of manifests", &folder.prepared, &folder.own_path(PREPARED, ""))
}

/// A manifest that is not there may have been removed by somebody who died before the removal was durable.
fn confirm_absence(folder: &Folder) -> Result<(), FilesError> {
    folder.acts.sync("sync the folder of manifests", &folder.prepared, &folder.own_path(PREPARED, ""))
}

/// Does one operation, or sees that it is done. Gives back the folders that must be synced.
fn apply(folder: &Folder, manifest: &Manifest, place: usize, trust: Trust) -> Result<Option<Way>, FilesError> {
    let operation = &manifest.operations[place];
    let path = &operation.path;
    let staged = manifest.staged(place);
    let staged_path = folder.own_path(STAGE, &staged);
    let user_path = folder.user_path(path);
    let torn = |why| FilesError::Torn {
        path: path.to_string(),
        branch: Box::new(manifest.branch.clone()),
        staged: staged_path.clone(),
        why,
    };
    let at_stage = target(&folder.stage, &staged, &staged_path)?;
    let content = match &operation.action {
        Action::Create(content) | Action::Replace(content) => content,
        Action::Delete => {
            let Some(way) = folder.walk(path, IfMissing::Stop)? else { return Ok(None) };
            // The old file goes to the stage instead of being removed: if it is there, this was done, and whatever has the name
            // now was put there afterwards.
            if at_stage == Target::Missing && folder.look(way.folder(), path)?.is_some() {
                let from = (way.folder(), path.name());
                folder.acts.rename("take away", from, (&folder.stage, &staged), &user_path)?;
            }
            return Ok(Some(way));
        }
    };
    // Somebody may have removed a folder since the promise.
    let way = folder.walk(path, IfMissing::Make)?.ok_or_else(|| torn("its folder can't be made"))?;
    let Target::File(stamp, _) = at_stage else {
        // A rename took it: done, if what it became is still there.
        return match is_content(folder, &way, path, content)? {
            true => Ok(Some(way)),
            false => Err(torn("the prepared content is gone, and the file has not become it")),
        };
    };
    let right = stamp.length() == content.length
        && (trust == Trust::Own || hash(&folder.stage, &staged).is_ok_and(|hash| hash == content.hash));
    if !right {
        return Err(torn("the prepared content is not what was promised"));
    }
    let (from, to) = ((&folder.stage, staged.as_str()), (way.folder(), path.name()));
    match operation.action {
        Action::Replace(_) => {
            folder.look(way.folder(), path)?;
            folder.acts.rename("put the new content in the place of", from, to, &user_path)?;
        }
        _ => match target(way.folder(), path.name(), &user_path)? {
            Target::File(now, _) if now.is_same_file(&stamp) => {}
            Target::File(..) if is_content(folder, &way, path, content)? => {}
            Target::Missing => match folder.acts.link("create", from, to, &user_path) {
                Err(FilesError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(created_by_other(manifest, path));
                }
                other => other?,
            },
            _ => return Err(created_by_other(manifest, path)),
        },
    }
    Ok(Some(way))
}

fn created_by_other(manifest: &Manifest, path: &RelPath) -> FilesError {
    FilesError::CreatedByOther { path: path.to_string(), branch: Box::new(manifest.branch.clone()) }
}

/// Whether a file has exactly this content.
fn is_content(folder: &Folder, way: &Way, path: &RelPath, content: &Content) -> Result<bool, FilesError> {
    match target(way.folder(), path.name(), &folder.user_path(path))? {
        Target::File(stamp, _) if stamp.length() == content.length => hash(way.folder(), path.name())
            .map(|hash| hash == content.hash)
            .map_err(|source| FilesError::Io { doing: "read", path: folder.user_path(path), source }),
        _ => Ok(false),
    }
}

fn hash(folder: &File, name: &str) -> io::Result<[u8; 32]> {
    let mut file = open_file(folder, name)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match io::Read::read(&mut file, &mut buffer) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(length) => hasher.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
