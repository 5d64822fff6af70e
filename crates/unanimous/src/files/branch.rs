//! [`FilesBranch`]: what a transaction does in a folder, in memory until it prepares.
//!
//! Must not know how files are changed: it decides what is asked for, and in which state.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use unanimous_core as core;
use unanimous_core::{Branch, BranchError, BranchId, Capability, SavepointId, StoreId, TransactionId};

use super::Inner;
use super::error::FilesError;
use super::finish::{self, Trust};
use super::manifest::State as Promise;
use super::one_phase;
use super::path::RelPath;
use super::prepare::{Failed, Pending, Staged, Work, look};
use crate::error::sources;
use crate::sync::lock;

/// The part of a transaction in one folder of files.
///
/// Nothing is written before the transaction prepares: contents are kept in memory until then. What one transaction asks for is seen by
/// its own [`read`](Self::read) and [`exists`](Self::exists) at once, and by everybody else, file by file, when it commits.
///
/// # Cancel safety
///
/// An operation whose future is dropped after its first poll may or may not have been noted in the transaction; it is noted whole or
/// not at all, and never outside of it.
///
/// # Errors
///
/// Every operation fails with [`FilesError::Path`] where the path can't be used, with [`FilesError::NotAFile`] and
/// [`FilesError::OtherFileSystem`] for what is on the way, with [`FilesError::Gone`] and [`FilesError::Replaced`] where the folder is not
/// what it was, and with [`FilesError::Ended`] once the branch prepares or ends. A failed operation leaves the transaction as it was.
pub struct FilesBranch {
    inner: Arc<Inner>,
    transaction: TransactionId,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    work: Work,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Active,
    /// A manifest is there, or may be.
    Promised(BranchId, Promised),
    Committed,
    /// Given up, or failed: nothing is or will be there.
    Over(&'static str),
    /// A one-phase commit of one file whose answer was lost.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promised {
    Surely,
    Perhaps,
}

impl fmt::Debug for FilesBranch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesBranch")
            .field("name", &self.inner.name)
            .field("root", &self.inner.root)
            .field("transaction", &self.transaction)
            .finish_non_exhaustive()
    }
}

impl FilesBranch {
    pub(super) fn new(inner: Arc<Inner>, transaction: TransactionId) -> Self {
        Self { inner, transaction, state: Arc::default() }
    }

    /// Creates a file that must not exist; folders that are missing on its way are made at prepare, and stay if the transaction aborts.
    ///
    /// # Errors
    ///
    /// [`FilesError::Exists`] if it exists now, in this transaction or outside; looked at again when it prepares, for good.
    pub async fn create(&self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>) -> Result<(), FilesError> {
        let bytes = Arc::new(bytes.into());
        self.on_path(path.as_ref(), move |inner, work, path| {
            work.refuse_folder_of_own(&path)?;
            let there = look(&inner.folder()?, &path)?.is_some();
            let pending = match work.pending.get(&path) {
                Some(Pending::Delete) => Pending::Replace(bytes),
                None if !there => Pending::Create(bytes),
                _ => return Err(FilesError::Exists { path: path.to_string() }),
            };
            work.pending.insert(path, pending);
            Ok(())
        })
        .await
    }

    /// Creates a file, or replaces its content. Its permission bits stay; its owner becomes the process's user.
    pub async fn replace(&self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>) -> Result<(), FilesError> {
        let bytes = Arc::new(bytes.into());
        self.on_path(path.as_ref(), move |inner, work, path| {
            work.refuse_folder_of_own(&path)?;
            look(&inner.folder()?, &path)?;
            let pending = match work.pending.get(&path) {
                Some(Pending::Create(_)) => Pending::Create(bytes),
                _ => Pending::Replace(bytes),
            };
            work.pending.insert(path, pending);
            Ok(())
        })
        .await
    }

    /// Deletes a file. One that this transaction has created is as if it never was.
    ///
    /// # Errors
    ///
    /// [`FilesError::Missing`] if it does not exist now, in this transaction or outside; looked at again when it prepares, for good.
    pub async fn delete(&self, path: impl AsRef<Path>) -> Result<(), FilesError> {
        self.on_path(path.as_ref(), |inner, work, path| {
            work.refuse_folder_of_own(&path)?;
            let there = look(&inner.folder()?, &path)?.is_some();
            match work.pending.get(&path) {
                Some(Pending::Create(_)) => {
                    work.pending.remove(&path);
                }
                // It was to be created or overwritten, and there is nothing to overwrite.
                Some(Pending::Replace(_)) if !there => {
                    work.pending.remove(&path);
                }
                Some(Pending::Delete) => return Err(FilesError::Missing { path: path.to_string() }),
                None if !there => return Err(FilesError::Missing { path: path.to_string() }),
                _ => {
                    work.pending.insert(path, Pending::Delete);
                }
            }
            Ok(())
        })
        .await
    }

    /// A file's content, as this transaction would leave it; none where there is no file. All of it in memory.
    ///
    /// A file that the transaction has read and then writes must not have been changed by another meanwhile: prepare refuses it with a
    /// conflict otherwise, so that no update is lost. Files that are read only are not watched, and several files are not one
    /// snapshot.
    pub async fn read(&self, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>, FilesError> {
        self.on_path(path.as_ref(), |inner, work, path| {
            if let Some(pending) = work.pending.get(&path) {
                return Ok(pending.content().map(<[u8]>::to_vec));
            }
            let found = inner.folder()?.read(&path)?;
            work.seen.entry(path).or_insert(found.as_ref().map(|(_, stamp)| *stamp));
            Ok(found.map(|(bytes, _)| bytes))
        })
        .await
    }

    /// Whether there is a file, as this transaction would leave it. As [`read`](Self::read) otherwise.
    pub async fn exists(&self, path: impl AsRef<Path>) -> Result<bool, FilesError> {
        self.on_path(path.as_ref(), |inner, work, path| {
            if let Some(pending) = work.pending.get(&path) {
                return Ok(pending.content().is_some());
            }
            let found = look(&inner.folder()?, &path)?;
            work.seen.entry(path).or_insert(found.map(|(stamp, _)| stamp));
            Ok(found.is_some())
        })
        .await
    }

    /// Runs an operation on an active branch, where it may block.
    async fn on_path<T: Send + 'static>(
        &self,
        path: &Path,
        job: impl FnOnce(&Inner, &mut Work, RelPath) -> Result<T, FilesError> + Send + 'static,
    ) -> Result<T, FilesError> {
        let path = RelPath::new(path)?;
        self.job(move |inner, state| {
            state.active()?;
            job(inner, &mut state.work, path)
        })
        .await
        .and_then(|result| result)
    }

    /// Runs a job that may block, after all others of this branch that were begun: a dropped prepare ends before a rollback begins.
    async fn job<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Inner, &mut State) -> T + Send + 'static,
    ) -> Result<T, FilesError> {
        let state = Arc::clone(&self.state);
        let inner = Arc::clone(&self.inner);
        self.inner
            .blocking(move || {
                // A panic in a job leaves the phase that it had set before it began.
                let mut state = lock(&state);
                job(&inner, &mut state)
            })
            .await
    }
}

impl Work {
    /// A file of this transaction can't be a folder of another one of it.
    fn refuse_folder_of_own(&self, path: &RelPath) -> Result<(), FilesError> {
        match self.pending.keys().find(|other| *other != path && other.collides(path)) {
            Some(_) => Err(FilesError::Path {
                path: path.to_string(),
                why: "another file of the same transaction has it as a folder, or is a folder of it",
            }),
            None => Ok(()),
        }
    }
}

impl State {
    fn active(&self) -> Result<(), FilesError> {
        let why = match &self.phase {
            Phase::Active => return Ok(()),
            Phase::Promised(..) => "it has prepared, and its transaction decides",
            Phase::Committed => "it has committed",
            Phase::Over(why) => why,
            Phase::Lost => "its commit's answer was lost",
        };
        Err(FilesError::Ended { why })
    }
}

/// What an operation gives whose job did not run to its end.
fn flat(result: Result<Result<(), BranchError>, FilesError>) -> Result<(), BranchError> {
    result.map_err(FilesError::into_branch).and_then(|result| result)
}

impl Branch for FilesBranch {
    fn capability(&self) -> Capability {
        Capability::TwoPhase
    }

    fn sort_key(&self) -> String {
        format!("files:{}", self.inner.name)
    }

    async fn flush(&self) -> Result<core::Work, BranchError> {
        self.job(|_, state| {
            state.active()?;
            Ok(if state.work.pending.is_empty() { core::Work::ReadOnly } else { core::Work::Wrote })
        })
        .await
        .and_then(|result| result)
        .map_err(FilesError::into_branch)
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        let id = id.clone();
        let token = self.inner.token();
        let done = self.job(move |inner, state| {
            state.active().map_err(FilesError::into_branch)?;
            // Should the job panic, a manifest may be there.
            state.phase = Phase::Promised(id.clone(), Promised::Perhaps);
            let done = inner.folder().map_err(Failed::No).and_then(|folder| {
                Staged::write(&folder, &state.work, &id, Promise::Prepared, token)
                    .map_err(Failed::No)?
                    .claim(&folder, &state.work)
            });
            match done {
                Ok(_locked) => {
                    state.phase = Phase::Promised(id, Promised::Surely);
                    // Everything that phase two needs is in the manifest.
                    state.work = Work::default();
                    Ok(())
                }
                Err(Failed::No(error)) => {
                    state.phase = Phase::Over("it refused to prepare");
                    Err(error.into_branch())
                }
                Err(Failed::Unsure(error)) => Err(BranchError::lost(error)),
            }
        });
        flat(done.await)
    }

    async fn commit(&self) -> Result<(), BranchError> {
        let done = self.job(|inner, state| {
            let id = match &state.phase {
                Phase::Promised(id, Promised::Surely) => id,
                Phase::Committed => return Ok(()),
                _ => return Err(BranchError::refused(FilesError::Ended { why: "it has not prepared" })),
            };
            inner
                .folder()
                .and_then(|folder| finish::commit(&folder, id, Trust::Own))
                .map_err(FilesError::into_phase_two)?;
            state.phase = Phase::Committed;
            Ok(())
        });
        flat(done.await)
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        let done = self.job(|inner, state| {
            match &state.phase {
                Phase::Active | Phase::Over(_) => {}
                Phase::Promised(id, _) => inner
                    .folder()
                    .and_then(|folder| finish::rollback(&folder, id))
                    .map_err(FilesError::into_phase_two)?,
                Phase::Committed => return Err(BranchError::refused(FilesError::Ended { why: "it has committed" })),
                Phase::Lost => {
                    return Err(BranchError::refused(FilesError::Ended { why: "its commit's answer was lost" }));
                }
            }
            state.phase = Phase::Over("it was rolled back");
            state.work = Work::default();
            Ok(())
        });
        flat(done.await)
    }

    async fn commit_one_phase(&self, id: &BranchId) -> Result<(), BranchError> {
        let id = id.clone();
        let token = self.inner.token();
        let done = self.job(move |inner, state| {
            state.active().map_err(FilesError::into_branch)?;
            if state.work.pending.is_empty() {
                state.phase = Phase::Committed;
                return Ok(());
            }
            let manifests = state.work.pending.len() > 1;
            state.phase = Phase::Lost;
            let done = inner
                .folder()
                .map_err(Failed::No)
                .and_then(|folder| one_phase::commit(&folder, &state.work, &id, token));
            match done {
                Ok(()) => {
                    state.phase = Phase::Committed;
                    state.work = Work::default();
                    Ok(())
                }
                Err(Failed::No(error)) => {
                    state.phase = Phase::Over("its commit was refused");
                    Err(error.into_branch())
                }
                Err(Failed::Unsure(error)) => {
                    if manifests {
                        state.phase = Phase::Promised(id, Promised::Perhaps);
                    }
                    Err(BranchError::lost(error))
                }
            }
        });
        flat(done.await)
    }

    fn has_savepoints(&self) -> bool {
        true
    }

    /// Nothing is written before prepare, so this remembers what is pending; contents are not copied.
    ///
    /// # Errors
    ///
    /// Refused once the branch prepares or ends.
    async fn savepoint(&self, id: SavepointId) -> Result<(), BranchError> {
        let done = self.job(move |_, state| {
            state.active()?;
            let pending = state.work.pending.clone();
            state.work.saved.push((id, pending));
            Ok(())
        });
        done.await.and_then(|result| result).map_err(FilesError::into_branch)
    }

    /// A file that was read since and is written later must still not have been changed by another meanwhile.
    ///
    /// # Errors
    ///
    /// As [`savepoint`](Self::savepoint); refused for a savepoint that was not made.
    async fn rollback_to(&self, id: SavepointId) -> Result<(), BranchError> {
        let done = self.job(move |_, state| {
            state.active()?;
            let work = &mut state.work;
            let saved = work.saved.iter().position(|(other, _)| *other == id).ok_or(FilesError::NoSavepoint { id })?;
            work.saved.truncate(saved + 1);
            work.pending = work.saved[saved].1.clone();
            Ok(())
        });
        done.await.and_then(|result| result).map_err(FilesError::into_branch)
    }

    fn is_retryable(&self, error: &(dyn Error + 'static)) -> bool {
        let mut files = sources(error).filter_map(|error| error.downcast_ref::<FilesError>());
        files.next().is_some_and(FilesError::is_retryable)
    }
}

impl Inner {
    /// What the names of a branch's staged files begin with: never the same twice.
    fn token(&self) -> String {
        self.random_id().to_string()
    }

    pub(super) fn random_id(&self) -> StoreId {
        let random = || u128::from(self.env.random());
        StoreId::from_random(random() << 64 | random())
    }
}

#[cfg(test)]
impl FilesBranch {
    /// Stages without making a promise.
    pub(super) fn stage_for_test(&self, folder: &super::folder::Folder, id: &BranchId) -> Staged {
        let state = self.state.lock().unwrap();
        Staged::write(folder, &state.work, id, Promise::Prepared, self.inner.token()).unwrap()
    }
}
