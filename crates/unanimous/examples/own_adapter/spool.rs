//! A store of our own: a spool of batches. What a transaction puts into it becomes one file of lines when the transaction commits,
//! for some other program to pick up; no batch appears half, or for a transaction that did not commit.
//!
//! `docs/writing-an-adapter.md` builds it step by step.
//!
//! ```text
//! ROOT/identity           the store's identity
//! ROOT/staging/BRANCH     a batch that is being written; worth nothing
//! ROOT/prepared/BRANCH    a promise: a whole batch, waiting for the decision
//! ROOT/done/BRANCH        a batch that committed
//! ```
//!
//! Must not know the manager, the log or other stores.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use unanimous::env::{Env as _, TokioEnv};
use unanimous::{
    Branch, BranchContext, BranchError, BranchId, Capability, ResourceManager, SavepointId, StoreError, StoreId, Work,
};

/// Why the spool could not do something.
#[derive(Debug)]
pub enum SpoolError {
    /// The transaction of this branch votes or has ended.
    Ended,
    /// There is no such savepoint, or not any more.
    NoSavepoint { id: SavepointId },
    /// The folder is not the spool that it was: unmounted, removed or another one.
    Gone { root: PathBuf },
    /// A file in `prepared` whose name is no branch's id; whoever put it there must take it away.
    Stranger { path: PathBuf },
    /// The file system failed.
    Io { path: PathBuf, source: io::Error },
    /// The runtime ended before the work was done.
    Stopped,
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpoolError::Ended => f.write_str("the transaction votes or has ended; use another"),
            SpoolError::NoSavepoint { id } => write!(f, "there is no savepoint {id} (any more); abort the transaction"),
            SpoolError::Gone { root } => {
                write!(f, "{} is not the spool that it was; is it mounted?", root.display())
            }
            SpoolError::Stranger { path } => write!(f, "{} is no branch; take it away", path.display()),
            SpoolError::Io { path, .. } => write!(f, "{} can't be used", path.display()),
            SpoolError::Stopped => f.write_str("the runtime ended before the spool had done its work"),
        }
    }
}

impl std::error::Error for SpoolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SpoolError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Says which path it was.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, SpoolError> {
    result.map_err(|source| SpoolError::Io { path: path.to_owned(), source })
}

/// A name that was made, changed or removed in a folder is on the disk only when the folder is synced.
fn sync_folder(path: &Path) -> Result<(), SpoolError> {
    at(path, File::open(path).and_then(|folder| folder.sync_all()))
}

/// The folder itself. Every function here blocks.
#[derive(Debug)]
struct Folder {
    root: PathBuf,
    identity: StoreId,
}

impl Folder {
    fn open(root: &Path) -> Result<Self, SpoolError> {
        for folder in ["staging", "prepared", "done"] {
            at(root, fs::create_dir_all(root.join(folder)))?;
        }
        let path = root.join("identity");
        if !at(&path, path.try_exists())? {
            let env = TokioEnv::current();
            let random = u128::from(env.random()) << 64 | u128::from(env.random());
            let identity = StoreId::from_random(random).to_string();
            // Written aside and linked: two processes that meet here end up with one identity.
            let draft = root.join(format!("identity.{identity}"));
            at(&draft, fs::write(&draft, &identity))?;
            at(&draft, File::open(&draft).and_then(|file| file.sync_all()))?;
            match fs::hard_link(&draft, &path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => at(&path, Err(error))?,
                _ => at(&draft, fs::remove_file(&draft))?,
            }
            sync_folder(root)?;
        }
        let identity = Self::read_identity(root)?;
        Ok(Self { root: root.to_owned(), identity })
    }

    fn read_identity(root: &Path) -> Result<StoreId, SpoolError> {
        let gone = || SpoolError::Gone { root: root.to_owned() };
        fs::read_to_string(root.join("identity")).map_err(|_| gone())?.parse().map_err(|_| gone())
    }

    /// An empty folder where a disk is not mounted must not pass for an empty spool.
    fn check(&self) -> Result<(), SpoolError> {
        match Self::read_identity(&self.root)? == self.identity {
            true => Ok(()),
            false => Err(SpoolError::Gone { root: self.root.clone() }),
        }
    }

    fn path(&self, folder: &str, id: &BranchId) -> PathBuf {
        self.root.join(folder).join(id.to_string())
    }

    /// Writes the batch where nobody looks, and syncs it.
    fn stage(&self, id: &BranchId, lines: &[String]) -> Result<(), SpoolError> {
        self.check()?;
        let path = self.path("staging", id);
        let written = File::create(&path).and_then(|mut file| {
            for line in lines {
                writeln!(file, "{line}")?;
            }
            file.sync_all()
        });
        at(&path, written)
    }

    /// From the rename on it is a promise, and with the sync it is one that lasts.
    fn promise(&self, id: &BranchId) -> Result<(), SpoolError> {
        let path = self.path("prepared", id);
        at(&path, fs::rename(self.path("staging", id), &path))?;
        sync_folder(&self.root.join("prepared"))
    }

    fn commit(&self, id: &BranchId) -> Result<(), SpoolError> {
        self.check()?;
        let path = self.path("done", id);
        match fs::rename(self.path("prepared", id), &path) {
            // Done before, by a call whose answer was lost; perhaps already picked up.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            renamed => at(&path, renamed)?,
        }
        // First where it appears: after a crash in between it is in both rather than in none.
        sync_folder(&self.root.join("done"))?;
        sync_folder(&self.root.join("prepared"))
    }

    fn rollback(&self, id: &BranchId) -> Result<(), SpoolError> {
        self.check()?;
        for folder in ["prepared", "staging"] {
            let path = self.path(folder, id);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => at(&path, removed)?,
            }
        }
        sync_folder(&self.root.join("prepared"))
    }

    fn in_doubt(&self) -> Result<Vec<BranchId>, SpoolError> {
        self.check()?;
        // A branch that is not listed is finished for good: what a killed process has renamed must be on the disk before we say so.
        for folder in ["done", "prepared"] {
            sync_folder(&self.root.join(folder))?;
        }
        let prepared = self.root.join("prepared");
        let mut listed = Vec::new();
        for entry in at(&prepared, fs::read_dir(&prepared))? {
            let entry = at(&prepared, entry)?;
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            listed.push(id.ok_or_else(|| SpoolError::Stranger { path: entry.path() })?);
        }
        Ok(listed)
    }
}

/// Runs what blocks where it holds up nobody. Once begun it runs to its end, whoever waits for it.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    tokio::task::spawn_blocking(job).await.unwrap_or(Err(SpoolError::Stopped))
}

/// A spool. Cheap to clone; clones are the same store.
#[derive(Clone, Debug)]
pub struct Spool {
    name: String,
    folder: Arc<Folder>,
}

impl Spool {
    /// Opens the spool in this folder, which is made where it is missing.
    pub async fn open(name: &str, root: impl Into<PathBuf>) -> Result<Self, SpoolError> {
        let root = root.into();
        let folder = blocking(move || Folder::open(&root)).await?;
        Ok(Self { name: name.to_owned(), folder: Arc::new(folder) })
    }
}

impl ResourceManager for Spool {
    type Branch = Batch;
    type Options = ();

    fn name(&self) -> &str {
        &self.name
    }

    fn capability(&self) -> Capability {
        Capability::TwoPhase
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        let folder = self.folder.clone();
        let checked = blocking(move || folder.check().map(|()| folder.identity.clone()));
        checked.await.map_err(StoreError::new)
    }

    async fn begin(&self, _context: &BranchContext, (): ()) -> Result<Batch, BranchError> {
        Ok(Batch { folder: self.folder.clone(), state: Arc::new(Mutex::new(State::Open(Draft::default()))) })
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        let folder = self.folder.clone();
        blocking(move || folder.in_doubt()).await.map_err(StoreError::new)
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        let (folder, id) = (self.folder.clone(), id.clone());
        blocking(move || folder.commit(&id)).await.map_err(BranchError::refused)
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        let (folder, id) = (self.folder.clone(), id.clone());
        blocking(move || folder.rollback(&id)).await.map_err(BranchError::refused)
    }
}

/// The part of a transaction in a spool: lines, kept in memory until it prepares.
#[derive(Debug)]
pub struct Batch {
    folder: Arc<Folder>,
    state: Arc<Mutex<State>>,
}

/// What was put so far.
#[derive(Debug, Default)]
struct Draft {
    lines: Vec<String>,
    /// How many lines there were at each savepoint, in their order.
    saved: Vec<(SavepointId, usize)>,
}

#[derive(Debug)]
enum State {
    Open(Draft),
    /// There is a promise under this id, or there may be.
    Promised(BranchId),
    Ended,
}

impl Batch {
    /// Adds a line to the batch.
    pub fn put(&self, line: impl Into<String>) -> Result<(), SpoolError> {
        match &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Open(draft) => {
                draft.lines.push(line.into());
                Ok(())
            }
            State::Promised(_) | State::Ended => Err(SpoolError::Ended),
        }
    }

    /// Runs a job on the state. Jobs of one branch run one after another, also those that nobody waits for any more.
    async fn job(
        &self,
        job: impl FnOnce(&Folder, &mut State) -> Result<(), BranchError> + Send + 'static,
    ) -> Result<(), BranchError> {
        let (folder, state) = (self.folder.clone(), self.state.clone());
        let done = blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(job(&folder, &mut state))
        });
        done.await.map_err(BranchError::lost)?
    }
}

impl Branch for Batch {
    fn capability(&self) -> Capability {
        Capability::TwoPhase
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Open(draft) if draft.lines.is_empty() => Ok(Work::ReadOnly),
            State::Open(_) => Ok(Work::Wrote),
            State::Promised(_) | State::Ended => Err(BranchError::refused(SpoolError::Ended)),
        }
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        let id = id.clone();
        self.job(move |folder, state| {
            let State::Open(draft) = state else { return Err(BranchError::refused(SpoolError::Ended)) };
            let lines = std::mem::take(&mut draft.lines);
            // From here on rollback has something to remove.
            *state = State::Promised(id.clone());
            folder.stage(&id, &lines).map_err(BranchError::refused)?;
            // The rename may have happened: nobody knows what the disk has.
            folder.promise(&id).map_err(BranchError::lost)
        })
        .await
    }

    async fn commit(&self) -> Result<(), BranchError> {
        self.job(|folder, state| match state {
            State::Promised(id) => {
                folder.commit(id).map_err(BranchError::refused)?;
                *state = State::Ended;
                Ok(())
            }
            State::Ended => Ok(()),
            State::Open(_) => Err(BranchError::refused("it has not prepared")),
        })
        .await
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        self.job(|folder, state| {
            if let State::Promised(id) = state {
                folder.rollback(id).map_err(BranchError::refused)?;
            }
            *state = State::Ended;
            Ok(())
        })
        .await
    }

    async fn commit_one_phase(&self, id: &BranchId) -> Result<(), BranchError> {
        if self.flush().await? == Work::ReadOnly {
            return self.rollback().await;
        }
        self.prepare(id).await?;
        // Between the two calls it is in doubt, and recovery would roll it back: not committed is only certain after that.
        self.commit().await.map_err(|error| error.with_kind(unanimous::FailureKind::Lost))
    }

    fn has_savepoints(&self) -> bool {
        true
    }

    async fn savepoint(&self, id: SavepointId) -> Result<(), BranchError> {
        match &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Open(Draft { lines, saved }) => {
                saved.push((id, lines.len()));
                Ok(())
            }
            State::Promised(_) | State::Ended => Err(BranchError::refused(SpoolError::Ended)),
        }
    }

    async fn rollback_to(&self, id: SavepointId) -> Result<(), BranchError> {
        match &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Open(Draft { lines, saved }) => {
                // Those that were made later are forgotten, this one stays.
                saved.retain(|(known, _)| *known <= id);
                match saved.last() {
                    Some(&(known, length)) if known == id => lines.truncate(length),
                    _ => return Err(BranchError::refused(SpoolError::NoSavepoint { id })),
                }
                Ok(())
            }
            State::Promised(_) | State::Ended => Err(BranchError::refused(SpoolError::Ended)),
        }
    }
}
