//! A folder of files as a store: files appear, change and go with the transaction, all of them or none, whatever crashes.
//!
//! ```
//! use unanimous::files::Files;
//! use unanimous::log::FileLog;
//! use unanimous::{BoxError, TransactionManager};
//!
//! # async fn example(data: &std::path::Path) -> Result<(), BoxError> {
//! let receipts = Files::open("receipts", data.join("receipts")).await?;
//! let log = FileLog::open(data.join("decisions")).await?;
//! let manager = TransactionManager::builder(log).resource(receipts.clone()).build().await?;
//! # std::fs::create_dir(data.join("receipts/2024"))?;
//! # std::fs::write(data.join("receipts/2024/6.json"), "")?;
//!
//! let tx = manager.begin();
//! let files = tx.join(&receipts).await?;
//! files.create("2024/7.json", r#"{"item": "tea"}"#).await?; // must not exist
//! files.replace("last", "7").await?; // may exist
//! files.delete("2024/6.json").await?; // must exist
//! assert_eq!(files.read("last").await?.as_deref(), Some(&b"7"[..]));
//! assert!(!data.join("receipts/last").exists()); // others see it after the commit
//! drop(files);
//! tx.commit().await?;
//! assert_eq!(std::fs::read_to_string(data.join("receipts/last"))?, "7");
//! # Ok(())
//! # }
//! # let data = tempfile::tempdir()?;
//! # tokio::runtime::Runtime::new()?.block_on(example(data.path()))?;
//! # Ok::<(), unanimous::BoxError>(())
//! ```
//!
//! # What is promised
//!
//! - A file has its old content or its new content, never a part of one.
//! - A branch that has prepared holds its paths, across threads and processes, until its phase two has ended. Another transaction that
//!   wants one of them, a folder of them or a file below them is refused with a conflict, which is worth repeating it for.
//! - A file that was read and is then written has not been changed by another transaction in between.
//! - What something outside of any transaction has put in the way after the promise is never overwritten by a `create`; the branch is
//!   held, and the error says what to do.
//!
//! What is not: **readers see several files change one after the other**, in the order of their paths, since no file system changes
//! several names at once. Contents are kept in memory until the transaction prepares. Folders that were made on a file's way stay when
//! the transaction aborts. A replaced file keeps its permission bits, but not its owner, other hard links or extended attributes. On a
//! file system that ignores case, two spellings of one name are not seen as one path.
//!
//! Nor is a vote proof against everything: **a sticky folder in which the file is another user's, and an immutable or append-only file or
//! folder, pass the vote and fail in phase two**. The branch then stays in doubt, with its paths claimed, and is completed
//! once the operating system lets it.
//!
//! The file system must be local, with hard links, `flock` and folders that can be synced (ext4, xfs, btrfs, zfs, APFS and others);
//! the root and everything below must be on one of them, behind one mount. All processes that use the folder must be able to
//! write its own folder.
//!
//! # Layout
//!
//! ```text
//! ROOT/2024/7.json                      the application's files
//! ROOT/.unanimous/identity              "unanimous files 1", and the store's identity
//! ROOT/.unanimous/lock                  flock, held for moments while claims are looked at and made
//! ROOT/.unanimous/stage/TOKEN.manifest  a manifest that is being written; locked by the process that writes it
//! ROOT/.unanimous/stage/TOKEN.0         new content of operation 0, or the old file that it took away
//! ROOT/.unanimous/prepared/BRANCH.prepared   a promise and a claim: in doubt until its decider says
//! ROOT/.unanimous/prepared/BRANCH.decided    a one-phase commit of several files: decided, completed by whoever comes
//! ```
//!
//! # Crashes
//!
//! | when | what is found | what happens |
//! | --- | --- | --- |
//! | before or while staging | files in `stage/`, nobody holds their manifest's lock | removed by the next listing |
//! | after the manifest's rename into `prepared/` | all content, one manifest | listed as in doubt; commit or rollback by its decider |
//! | in the middle of commit | some operations done | the rest is done: a staged file that is there is used, one that is gone must have become its target (SHA-256), anything else is reported |
//! | after commit, before the manifest is gone | all operations done | seen to be done; the manifest goes |
//! | in the middle of rollback | the manifest is gone, or is not | content without a manifest is removed; or it is rolled back again |
//! | in a one-phase commit of one file | its old or its new content | nothing to do |
//! | in a one-phase commit of several | no `decided` manifest, or one | nothing happened; or it is forced again and completed; where it can't be, it is listed as in doubt until it can |
//!
//! A manifest that can't be read may be a promise, and may claim any path: nothing is listed, prepared or removed in the folder
//! until it is repaired; only branches that are prepared can be finished. Byte for byte, and each crash step by step:
//! `docs/files-layout.md`.
//!
//! Must not know the manager, the log or other stores.

mod acts;
mod branch;
#[cfg(test)]
mod crash_tests;
mod error;
mod finish;
mod folder;
mod identity;
mod manifest;
mod one_phase;
mod path;
mod prepare;
#[cfg(test)]
mod script;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::oneshot;
use unanimous_core::{BranchContext, BranchError, BranchId, Capability, ResourceManager, StoreError, StoreId};

pub use self::branch::FilesBranch;
pub use self::error::FilesError;

use self::acts::Acts;
use self::finish::Trust;
use self::folder::Folder;
use crate::env::{Env, TokioEnv};

/// A folder of files. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct Files {
    inner: Arc<Inner>,
}

/// What all clones and branches share.
struct Inner {
    name: String,
    root: PathBuf,
    create: bool,
    env: Arc<dyn Env>,
    acts: Acts,
    /// What the folder was when it was seen first. From then on it can be gone or back, but never be made again.
    known: OnceLock<StoreId>,
    /// See [`Folder::lock`].
    gate: Arc<Mutex<()>>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("name", &self.inner.name)
            .field("root", &self.inner.root)
            .field("identity", &self.inner.known.get())
            .finish_non_exhaustive()
    }
}

impl Files {
    /// A folder, which is looked at when it is used first: for applications that start while the folder may be down.
    ///
    /// `name` is the resource's name, at most 255 bytes. A `root` that is missing is made, and a folder that is no store yet becomes
    /// one, with what is in it. A relative `root` is resolved now.
    pub fn new(name: impl Into<String>, root: impl AsRef<Path>) -> Self {
        Self::build(name.into(), root.as_ref(), true, Acts::default())
    }

    /// The same, looked at now: made a store where it is none; interrupted one-phase commits are completed, and
    /// what dead processes have left behind is removed.
    ///
    /// # Errors
    ///
    /// When the folder can't be used, with the reason; call it from within a tokio runtime, or within
    /// [`Background::open`](crate::thread::Background::open).
    pub async fn open(name: impl Into<String>, root: impl AsRef<Path>) -> Result<Self, FilesError> {
        Self::new(name, root).opened().await
    }

    /// The same, for a folder that must be a store already, such as one on a disk that may not be mounted: never made.
    ///
    /// # Errors
    ///
    /// [`FilesError::Gone`] where it is no store, and otherwise as [`open`](Self::open).
    pub async fn open_existing(name: impl Into<String>, root: impl AsRef<Path>) -> Result<Self, FilesError> {
        Self::build(name.into(), root.as_ref(), false, Acts::default()).opened().await
    }

    /// Replaces randomness and the runtime that blocking work runs on. Call it before the folder is used.
    #[must_use]
    pub fn with_env(self, env: Arc<dyn Env>) -> Self {
        let inner = &self.inner;
        let known = inner.known.clone();
        let (name, root, acts) = (inner.name.clone(), inner.root.clone(), inner.acts.clone());
        Self { inner: Arc::new(Inner { name, root, create: inner.create, env, acts, known, gate: Arc::default() }) }
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    fn build(name: String, root: &Path, create: bool, acts: Acts) -> Self {
        // Without a current folder the path stays relative, and the first use says what is wrong.
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        let known = OnceLock::new();
        Self {
            inner: Arc::new(Inner { name, root, create, env: TokioEnv::shared(), acts, known, gate: Arc::default() }),
        }
    }

    async fn opened(self) -> Result<Self, FilesError> {
        let inner = Arc::clone(&self.inner);
        self.inner.blocking(move || finish::in_doubt(&inner.folder()?)).await.and_then(|listed| listed)?;
        Ok(self)
    }
}

impl Inner {
    /// Opens the folder, which must be what it was.
    fn folder(&self) -> Result<Folder, FilesError> {
        let create = (self.create && self.known.get().is_none()).then(|| self.random_id());
        let folder = Folder::open(&self.root, create, &self.acts, &self.gate)?;
        let known = self.known.get_or_init(|| folder.id.clone());
        if *known != folder.id {
            return Err(FilesError::Replaced { root: self.root.clone(), known: known.clone(), found: folder.id });
        }
        Ok(folder)
    }

    /// Runs a job that blocks (every sync does) where it does not hold up the runtime. It runs to its end if it has begun,
    /// whoever waits for it.
    async fn blocking<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, FilesError> {
        let (answer, done) = oneshot::channel();
        let job = move || {
            // Nobody waits any more: what was done stays done.
            let _ = answer.send(job());
        };
        self.env.blocking(Box::new(job)).map_err(|_| FilesError::Stopped)?;
        done.await.map_err(|_| FilesError::Stopped)
    }

    async fn on_folder<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&Folder) -> Result<T, FilesError> + Send + 'static,
    ) -> Result<T, FilesError> {
        let inner = Arc::clone(self);
        self.blocking(move || job(&inner.folder()?)).await.and_then(|result| result)
    }
}

impl ResourceManager for Files {
    type Branch = FilesBranch;
    type Options = ();

    fn name(&self) -> &str {
        &self.inner.name
    }

    fn capability(&self) -> Capability {
        Capability::TwoPhase
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        self.inner.on_folder(|folder| Ok(folder.id.clone())).await.map_err(StoreError::new)
    }

    async fn begin(&self, context: &BranchContext, _options: ()) -> Result<FilesBranch, BranchError> {
        Ok(FilesBranch::new(Arc::clone(&self.inner), context.transaction))
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        self.inner.on_folder(finish::in_doubt).await.map_err(StoreError::new)
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        let id = id.clone();
        self.inner
            .on_folder(move |folder| finish::commit(folder, &id, Trust::Found))
            .await
            .map_err(FilesError::into_phase_two)
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        let id = id.clone();
        self.inner.on_folder(move |folder| finish::rollback(folder, &id)).await.map_err(FilesError::into_phase_two)
    }
}
