//! The promise: content into `stage/`, a manifest that claims the paths into `prepared/`.
//!
//! Must not know how a promise is kept.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;

use rustix::fs::{Access, AtFlags, Mode};
use rustix::io::Errno;
use unanimous_core::BranchId;

use super::error::FilesError;
use super::folder::{Folder, IfMissing, Locked, PREPARED, STAGE, Stamp, Way, lock_now};
use super::manifest::{Action, Content, Manifest, Operation, State};
use super::path::RelPath;

/// What a transaction wants of a file.
#[derive(Debug)]
pub(super) enum Pending {
    /// It must not exist, and will have this content.
    Create(Vec<u8>),
    /// It may exist, and will have this content.
    Replace(Vec<u8>),
    /// It must exist, and will not.
    Delete,
}

impl Pending {
    pub(super) fn content(&self) -> Option<&[u8]> {
        match self {
            Pending::Create(bytes) | Pending::Replace(bytes) => Some(bytes),
            Pending::Delete => None,
        }
    }
}

/// What a transaction has done so far in one folder.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) pending: BTreeMap<RelPath, Pending>,
    /// What the files were when they were read first.
    pub(super) seen: BTreeMap<RelPath, Option<Stamp>>,
}

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Failed {
    /// Certainly not done, and never will be.
    No(FilesError),
    /// It may be done, and survive or not.
    Unsure(FilesError),
}

impl Failed {
    /// Of a call that gives, moves or takes a name: these errors mean that it was not done, others (EIO) don't say.
    pub(super) fn from_name_change(error: FilesError) -> Self {
        let definite = match &error {
            FilesError::Io { source, .. } => source.raw_os_error().map(Errno::from_raw_os_error).is_some_and(|errno| {
                matches!(
                    errno,
                    Errno::EXIST
                        | Errno::NOENT
                        | Errno::ACCESS
                        | Errno::PERM
                        | Errno::ROFS
                        | Errno::NOSPC
                        | Errno::DQUOT
                        | Errno::MLINK
                        | Errno::ISDIR
                        | Errno::NOTDIR
                        | Errno::XDEV
                        | Errno::NAMETOOLONG
                )
            }),
            _ => true,
        };
        if definite { Failed::No(error) } else { Failed::Unsure(error) }
    }
}

/// Content in `stage/`, kept from being swept by the lock on its still empty or not yet renamed manifest.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) manifest: Manifest,
    /// Locked as long as it is open: also as the manifest that it becomes.
    pub(super) live: File,
}

/// The manifest's name in `stage/`.
pub(super) fn live_name(token: &str) -> String {
    format!("{token}.manifest")
}

impl Staged {
    /// Writes the content of all operations, and makes it durable.
    pub(super) fn write(
        folder: &Folder,
        work: &Work,
        branch: &BranchId,
        state: State,
        token: String,
    ) -> Result<Self, FilesError> {
        let name = live_name(&token);
        let path = folder.own_path(STAGE, &name);
        let live = {
            // Who sweeps holds this lock, and so never sees a stage that is not locked yet.
            let _lock = folder.lock()?;
            let live = folder.acts.create("create the stage of the branch", &folder.stage, &name, &path)?;
            match lock_now(&live) {
                Ok(true) => live,
                Ok(false) => return Err(FilesError::Busy { file: path }),
                Err(source) => return Err(FilesError::Io { doing: "lock", path, source }),
            }
        };
        let operations = work
            .pending
            .iter()
            .map(|(path, pending)| Operation {
                path: path.clone(),
                action: match pending {
                    Pending::Create(bytes) => Action::Create(Content::of(bytes)),
                    Pending::Replace(bytes) => Action::Replace(Content::of(bytes)),
                    Pending::Delete => Action::Delete,
                },
            })
            .collect();
        let manifest = Manifest { branch: branch.clone(), store: folder.id.clone(), state, stage: token, operations };
        let staged = Self { manifest, live };
        match staged.write_content(folder, work) {
            Ok(()) => Ok(staged),
            Err(error) => {
                discard(folder, &staged.manifest);
                Err(error)
            }
        }
    }

    fn write_content(&self, folder: &Folder, work: &Work) -> Result<(), FilesError> {
        let mut files = Vec::new();
        for (place, (target, pending)) in work.pending.iter().enumerate() {
            let Some(bytes) = pending.content() else { continue };
            let name = self.manifest.staged(place);
            let path = folder.own_path(STAGE, &name);
            let file = folder.acts.create("create the new content", &folder.stage, &name, &path)?;
            if let (Pending::Replace(_), Some((_, mode))) = (pending, look(folder, target)?) {
                let mode = Mode::from_raw_mode(mode as _);
                folder
                    .acts
                    .act("keep the permissions of the old content in", &path, || rustix::fs::fchmod(&file, mode))?;
            }
            folder.acts.write("write the new content", &file, bytes, &path)?;
            files.push((file, path));
        }
        // All are written before the first is waited for, so that the disk can take them together.
        for (file, path) in &files {
            folder.acts.sync("sync the new content", file, path)?;
        }
        Ok(())
    }

    /// Makes the promise: the manifest, whole and durable, in `prepared/`. Gives back the locked manifest.
    pub(super) fn claim(self, folder: &Folder, work: &Work) -> Result<Self, Failed> {
        match self.rename_manifest(folder, work) {
            Ok(()) => {}
            Err(Failed::No(error)) => {
                discard(folder, &self.manifest);
                return Err(Failed::No(error));
            }
            Err(unsure) => return Err(unsure),
        }
        let path = folder.own_path(PREPARED, "");
        folder.acts.sync("sync the folder of manifests", &folder.prepared, &path).map_err(Failed::Unsure)?;
        Ok(self)
    }

    fn rename_manifest(&self, folder: &Folder, work: &Work) -> Result<(), Failed> {
        let _lock = self.write_manifest(folder, work).map_err(Failed::No)?;
        let (live, name) =
            (live_name(&self.manifest.stage), Manifest::file_name(&self.manifest.branch, self.manifest.state));
        let path = folder.own_path(PREPARED, &name);
        let (from, to) = ((&folder.stage, live.as_str()), (&folder.prepared, name.as_str()));
        folder.acts.rename("claim the paths by", from, to, &path).map_err(Failed::from_name_change)
    }

    /// Everything before the manifest's rename; gives back the folder's lock.
    fn write_manifest<'f>(&self, folder: &'f Folder, work: &Work) -> Result<Locked<'f>, FilesError> {
        let manifest = &self.manifest;
        let live = live_name(&manifest.stage);
        let path = folder.own_path(STAGE, &live);
        folder.acts.write("write the manifest", &self.live, manifest.encode().as_bytes(), &path)?;
        folder.acts.sync("sync the manifest", &self.live, &path)?;
        // Before the rename: who sees the manifest after a power failure finds all content.
        folder.acts.sync("sync the stage", &folder.stage, &folder.own_path(STAGE, ""))?;
        let lock = folder.lock()?;
        refuse_claimed(folder, work, Some(&manifest.branch))?;
        for (path, pending) in &work.pending {
            check(folder, work, path, pending)?;
        }
        Ok(lock)
    }
}

/// The manifests in `prepared/`, all of them.
///
/// One that can't be read makes all of it fail: its branch may be in doubt, its paths may be claimed, and nobody can know which.
pub(super) fn manifests(folder: &Folder) -> Result<Vec<Manifest>, FilesError> {
    let mut manifests = Vec::new();
    for name in folder.list(&folder.prepared, PREPARED)? {
        // One that has gone since belongs to a branch that has ended.
        manifests.extend(manifest(folder, &name)?);
    }
    Ok(manifests)
}

/// One manifest, checked against its own name and its folder; none where it is not there.
pub(super) fn manifest(folder: &Folder, name: &str) -> Result<Option<Manifest>, FilesError> {
    let damaged = |why: String| FilesError::Damaged { file: folder.own_path(PREPARED, name), why };
    let Some((branch, state)) = Manifest::parse_name(name) else {
        return Err(damaged("its name is not that of a manifest".to_owned()));
    };
    let Some(bytes) = folder.read_own(&folder.prepared, PREPARED, name)? else { return Ok(None) };
    let manifest = Manifest::decode(&bytes).map_err(damaged)?;
    if manifest.branch != branch || manifest.state != state {
        return Err(damaged("it is not the one that its name says; somebody renamed it".to_owned()));
    }
    if manifest.store != folder.id {
        return Err(damaged(format!("it was copied from another store, {}", manifest.store)));
    }
    Ok(Some(manifest))
}

/// Refuses paths that other branches have claimed. Call it with the folder's lock held.
pub(super) fn refuse_claimed(folder: &Folder, work: &Work, branch: Option<&BranchId>) -> Result<(), FilesError> {
    for claim in manifests(folder)? {
        if Some(&claim.branch) == branch {
            return Err(FilesError::Ended { why: "a branch of this id is prepared already" });
        }
        for held in &claim.operations {
            if let Some(path) = work.pending.keys().find(|path| path.collides(&held.path)) {
                return Err(FilesError::Claimed {
                    path: path.to_string(),
                    held: held.path.to_string(),
                    by: Box::new(claim.branch),
                });
            }
        }
    }
    Ok(())
}

/// Checks that an operation can be done as far as anybody can know, makes the folders on its way, and opens them. Call it with the
/// folder's lock held and its path unclaimed: no other transaction can change the answer then.
pub(super) fn check(folder: &Folder, work: &Work, path: &RelPath, pending: &Pending) -> Result<Way, FilesError> {
    let if_missing = if pending.content().is_some() { IfMissing::Make } else { IfMissing::Stop };
    let changed = |now: Option<Stamp>| work.seen.get(path).is_some_and(|seen| *seen != now);
    let Some(way) = folder.walk(path, if_missing)? else {
        let path = path.to_string();
        return Err(if changed(None) { FilesError::Changed { path } } else { FilesError::Missing { path } });
    };
    let now = folder.look(way.folder(), path)?;
    // First of all: who has looked before it wrote finds something else when it looks again.
    if changed(now.map(|(stamp, _)| stamp)) {
        return Err(FilesError::Changed { path: path.to_string() });
    }
    match (pending, now) {
        (Pending::Create(_), Some(_)) => return Err(FilesError::Exists { path: path.to_string() }),
        (Pending::Delete, None) => return Err(FilesError::Missing { path: path.to_string() }),
        _ => {}
    }
    // Phase two must not be the first to hear of a folder that can't be written.
    rustix::fs::accessat(way.folder(), ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(|error| {
        FilesError::Io { doing: "write into the folder of", path: folder.user_path(path), source: error.into() }
    })?;
    Ok(way)
}

/// What is at a path; none where a folder on the way is missing too.
pub(super) fn look(folder: &Folder, path: &RelPath) -> Result<Option<(Stamp, u32)>, FilesError> {
    match folder.walk(path, IfMissing::Stop)? {
        Some(way) => folder.look(way.folder(), path),
        None => Ok(None),
    }
}

/// Removes what a branch has left in `stage/`, as far as possible: what stays is swept later.
pub(super) fn discard(folder: &Folder, manifest: &Manifest) {
    let places = (0..manifest.operations.len()).map(|place| manifest.staged(place));
    // The locked manifest last: without it the rest would look dead to who sweeps, which is harmless, but this keeps one order.
    for name in places.chain([live_name(&manifest.stage)]) {
        let path = folder.own_path(STAGE, &name);
        if let Err(error) = folder.acts.unlink("remove", &folder.stage, &name, &path) {
            tracing::debug!(error = &error as &dyn Error, "a staged file stays until the next sweep");
            return;
        }
    }
}

/// Removes from `stage/` what belongs to no promise and no living process. Gives back how many files went.
///
/// # Errors
///
/// A damaged manifest, whose content nobody could tell from leftovers: nothing is removed.
pub(super) fn sweep(folder: &Folder) -> Result<usize, FilesError> {
    // Whoever begins a stage, or makes it a promise, holds this lock: what is seen here is whole.
    let _lock = folder.lock()?;
    let promised: Vec<String> = manifests(folder)?.into_iter().map(|manifest| manifest.stage).collect();
    let mut dead: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in folder.list(&folder.stage, STAGE)? {
        let token = name.split('.').next().unwrap_or_default();
        if super::manifest::is_token(token) && !promised.iter().any(|promised| promised == token) {
            dead.entry(token.to_owned()).or_default().push(name);
        }
    }
    let mut removed = 0;
    for (token, names) in dead {
        if folder.is_staged_alive(&live_name(&token))? {
            continue;
        }
        if removed == 0 {
            // The end of a branch may be seen before it is durable, and must not come back without its content.
            let path = folder.own_path(PREPARED, "");
            folder.acts.sync("sync the folder of manifests", &folder.prepared, &path)?;
        }
        for name in names {
            folder.acts.unlink("remove", &folder.stage, &name, &folder.own_path(STAGE, &name))?;
            removed += 1;
        }
    }
    Ok(removed)
}
