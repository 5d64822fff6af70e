//! The log in files: opening it, and what its handles do.
//!
//! Must not know bytes, nor the steps from one segment to the next.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use unanimous_core::log::{Damage, History, Record, Tail};
use unanimous_core::{
    BoxError, DecideError, Decider, Decision, DecisionLog, DecisionRecord, HoldReason, Incarnation, Known, LogId,
    Owner, StoreError, TransactionId,
};

use super::answer::answered;
use super::error::{LogError, OpenError};
use super::segments::{self, Segments};
use super::state::{Limits, Phase, State};
use super::writer::Shared;
use crate::env::disk::{Disk, Folder, OsDisk};
use crate::env::{Env, NoRuntime, TokioEnv};

/// The smallest `max_size`: three segments of 16 KiB.
pub(super) const LEAST_MAX_SIZE: u64 = 3 * 16 * 1024;
/// The greatest `max_size`: three segments of 1 GiB, which are read and held in memory.
pub(super) const GREATEST_MAX_SIZE: u64 = 3 << 30;

const DEFAULT_MAX_SIZE: u64 = 48 << 20;
const DEFAULT_HORIZON: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const DEFAULT_LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// How a [`FileLog`] is opened.
#[derive(Clone)]
#[must_use]
pub struct FileLogOptions {
    max_size: u64,
    horizon: Duration,
    lock_wait: Duration,
    believe_single_copies: bool,
    restored: bool,
    env: Option<Arc<dyn Env>>,
    disk: Arc<dyn Disk>,
}

impl Default for FileLogOptions {
    fn default() -> Self {
        Self {
            max_size: DEFAULT_MAX_SIZE,
            horizon: DEFAULT_HORIZON,
            lock_wait: DEFAULT_LOCK_WAIT,
            believe_single_copies: false,
            restored: false,
            env: None,
            disk: Arc::new(OsDisk),
        }
    }
}

impl FileLogOptions {
    /// The space on the disk that the log takes at most, in bytes; 48 MiB by default, 48 KiB at least, 3 GiB at most.
    ///
    /// A third is one segment: one is written, one is in reserve, and the third is there while the one goes over into the other. Half of
    /// a segment is for what must be repeated in each: unfinished decisions (new work is refused when they take a quarter of a segment,
    /// which are some 40,000 with two participants by default), and of the finished ones the newest that fit. It is held in memory too.
    pub fn max_size(self, bytes: u64) -> Self {
        Self { max_size: bytes, ..self }
    }

    /// How long a decision is kept after every branch was confirmed, if there is space; 7 days by default.
    ///
    /// A failover or a restored store can bring a branch back as prepared. Within the horizon recovery finishes it; beyond it the
    /// branch is held and reported, as is any other of about that age. So take the age of the oldest backup or replica that a store might
    /// be brought back from.
    pub fn horizon(self, horizon: Duration) -> Self {
        Self { horizon, ..self }
    }

    /// How long to wait for another owner to let go before the log counts as held; 1 s by default, so that a start may overlap
    /// with the end of the process before it.
    pub fn lock_wait(self, wait: Duration) -> Self {
        Self { lock_wait: wait, ..self }
    }

    /// Opens a log in which a frame that was synced has one damaged copy, if the other one is whole: nothing is lost in it, and
    /// opening writes everything anew. Off by default, since a disk that loses bits should be seen by a person first.
    pub fn believe_single_copies(self, believe: bool) -> Self {
        Self { believe_single_copies: believe, ..self }
    }

    /// Says that the log was restored from a backup or copied: decisions made after the backup are not in it, so that nothing is
    /// presumed of any transaction begun before this opening (rule 4). Decisions that it holds are still found, but for those of its last write:
    /// they may have been copied before they were durable, and undone by a later start of the original ([`Opened::unproven`]).
    ///
    /// For one opening. A log that was restored and is opened without it presumes abort for what the backup did not see: **it
    /// undoes commits**. Nothing in the files can show that it was restored.
    pub fn restored_from_backup(self, restored: bool) -> Self {
        Self { restored, ..self }
    }

    /// Replaces clock, spawning and randomness; those of the current tokio runtime by default.
    pub fn env(self, env: Arc<dyn Env>) -> Self {
        Self { env: Some(env), ..self }
    }

    /// Replaces the disk.
    pub fn disk(self, disk: Arc<dyn Disk>) -> Self {
        Self { disk, ..self }
    }

    /// Opens the log in this folder, or begins a new one where there is none.
    ///
    /// What was read is durable when this returns, and so is the new incarnation (rules 3 and 4): it was all written into a new
    /// segment.
    ///
    /// Cancel safety: dropping the future gives the folder's lock up; a new incarnation may have been written, which is harmless.
    ///
    /// # Errors
    ///
    /// When another process holds it, when what was synced is damaged, or the disk fails. Nothing is lost then.
    pub async fn open(self, path: impl AsRef<Path>) -> Result<FileLog, OpenError> {
        let path = path.as_ref().to_owned();
        let Self { max_size, .. } = self;
        if !(LEAST_MAX_SIZE..=GREATEST_MAX_SIZE).contains(&max_size) {
            return Err(OpenError::MaxSize { max_size });
        }
        let env = self.env.clone().unwrap_or_else(TokioEnv::shared);
        let folder = lock(&env, &self.disk, &path, self.lock_wait).await?;
        let opening = Opening { options: self, env: env.clone(), path, folder };
        blocking(&*env, move || opening.run()).await?
    }
}

impl fmt::Debug for FileLogOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileLogOptions")
            .field("max_size", &self.max_size)
            .field("horizon", &self.horizon)
            .field("lock_wait", &self.lock_wait)
            .field("believe_single_copies", &self.believe_single_copies)
            .field("restored_from_backup", &self.restored)
            .finish_non_exhaustive()
    }
}

/// Runs a job that blocks, and waits for it.
async fn blocking<T: Send + 'static>(env: &dyn Env, job: impl FnOnce() -> T + Send + 'static) -> Result<T, OpenError> {
    let (sender, receiver) = oneshot::channel();
    env.blocking(Box::new(move || {
        // Nobody listens any more when the opening was cancelled.
        let _ = sender.send(job());
    }))
    .map_err(OpenError::NoRuntime)?;
    receiver.await.map_err(|_| OpenError::NoRuntime(NoRuntime))
}

async fn lock(
    env: &Arc<dyn Env>,
    disk: &Arc<dyn Disk>,
    path: &Path,
    wait: Duration,
) -> Result<Box<dyn Folder>, OpenError> {
    let begun = env.monotonic();
    loop {
        let (disk, own) = (disk.clone(), path.to_owned());
        let folder = blocking(&**env, move || {
            let failed = |what| {
                let path = own.clone();
                move |source| OpenError::Io { path, what, source }
            };
            let folder = disk.open_folder(&own, true).map_err(failed("open"))?;
            let locked = folder.try_lock().map_err(failed("lock"))?;
            // Who held it may have put another folder in its place while this one waited.
            let current = locked && folder.is_current().map_err(failed("look at"))?;
            Ok(current.then_some(folder))
        });
        if let Some(folder) = folder.await?? {
            return Ok(folder);
        }
        if env.monotonic().saturating_sub(begun) >= wait {
            return Err(OpenError::Held { path: path.to_owned() });
        }
        env.sleep(LOCK_RETRY).await;
    }
}

/// An opening that has the lock.
struct Opening {
    options: FileLogOptions,
    env: Arc<dyn Env>,
    path: PathBuf,
    folder: Box<dyn Folder>,
}

impl Opening {
    fn run(self) -> Result<FileLog, OpenError> {
        let Self { options, env, path, folder } = self;
        let limits = Limits { segment: (options.max_size / 3) & !7, horizon: options.horizon };
        let loaded = segments::load(&*folder, &path, options.believe_single_copies, options.restored)?;
        let mut opened = Opened::default();
        let (mut history, after) = match loaded {
            Some(loaded) => {
                opened.created = false;
                opened.tail = loaded.tail;
                opened.single_copy = loaded.single;
                opened.repaired = loaded.repaired;
                opened.unproven = loaded.unproven;
                (loaded.history, loaded.header.segment)
            }
            None => (History::new(segments::new_log_id(|| env.random())), 0),
        };
        if options.restored {
            history.presume_nothing();
        }
        let now = env.wall_clock();
        let counter = history.next_counter().ok_or_else(|| OpenError::CountersUsedUp { path: path.clone() })?;
        let incarnation = Incarnation::new(counter, env.random());
        history.apply(Record::Incarnation { incarnation, started_at: now }).expect("the next counter follows");
        history.retain(now, limits.horizon, limits.checkpoint());
        let owner = Owner { log: history.log(), incarnation };
        let (bytes, count) = history.checkpoint();
        let segments = Segments::begin(folder, path.clone(), limits.segment, owner, after, (&bytes, count), now)?;
        opened.report(&path, owner);
        let shared = Shared::new(env, State::new(limits, owner, history, segments));
        // The reserve is taken by the writer, so that there is one place that can fail to.
        shared.start();
        Ok(FileLog { handle: Arc::new(Handle { shared, taken: AtomicBool::new(false), path, owner, opened }) })
    }
}

/// What an opening found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Opened {
    /// There was no log; it was created.
    pub created: bool,
    /// A write that had not been confirmed when the process before ended; it was cut. Nobody was told of what it held.
    pub tail: Option<Tail>,
    /// The last frame had one good copy only, and was believed; where the bad one was.
    pub single_copy: Option<u64>,
    /// Damaged copies of older frames, believed on request.
    pub repaired: Vec<Damage>,
    /// Decisions of a [restored](FileLogOptions::restored_from_backup) log that are not believed, since they are its last write: it may have
    /// been copied before it was durable.
    pub unproven: Vec<TransactionId>,
}

impl Default for Opened {
    fn default() -> Self {
        Self { created: true, tail: None, single_copy: None, repaired: Vec::new(), unproven: Vec::new() }
    }
}

impl Opened {
    fn report(&self, path: &Path, owner: Owner) {
        let (log, incarnation) = (owner.log, owner.incarnation);
        tracing::info!(path = %path.display(), %log, %incarnation, created = self.created, "opened the decision log");
        if let Some(Tail { offset, length }) = self.tail {
            tracing::warn!(path = %path.display(), offset, length, "cut an unfinished write off the decision log");
        }
        if let Some(offset) = self.single_copy {
            tracing::warn!(path = %path.display(), offset, "the decision log's last frame had one good copy; believed, and written anew");
        }
        for transaction in &self.unproven {
            tracing::warn!(path = %path.display(), %transaction,
                "the decision about it is the restored log's last write, and is not believed: it may have been copied before it was durable");
        }
        for damage in &self.repaired {
            tracing::warn!(path = %path.display(), %damage, "believed a single copy, and wrote it anew");
        }
    }
}

/// A decision log in a folder of files, owned by one process.
///
/// Cheap to clone. [`close`](DecisionLog::close) it when done; when the last clone is dropped instead, the folder's lock is given up
/// once a write under way has ended, and ends of transactions that were not written yet are asked for again after the next start.
#[derive(Clone)]
pub struct FileLog {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    /// Whether a manager has it.
    taken: AtomicBool,
    path: PathBuf,
    owner: Owner,
    opened: Opened,
}

impl FileLog {
    /// Opens the log in this folder with the default options; see [`FileLogOptions::open`].
    ///
    /// # Errors
    ///
    /// As [`FileLogOptions::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<FileLog, OpenError> {
        Self::options().open(path).await
    }

    /// The default options.
    pub fn options() -> FileLogOptions {
        FileLogOptions::default()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.handle.path
    }

    /// The log's identity.
    pub fn id(&self) -> LogId {
        self.handle.owner.log
    }

    /// What the opening found.
    pub fn opened(&self) -> &Opened {
        &self.handle.opened
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T, StoreError> {
        let state = self.shared().lock();
        match &state.phase {
            Phase::Open | Phase::Closing => Ok(read(&state)),
            Phase::Closed => Err(StoreError::new(LogError::Closed)),
            Phase::Poisoned(poison) => Err(StoreError::new(LogError::Poisoned(poison.clone()))),
        }
    }

    fn write(
        &self,
        record: DecisionRecord,
        decision: Decision,
        concluded: bool,
    ) -> impl Future<Output = Result<(), DecideError>> + Send + use<> {
        let queued = self.shared().lock().queue(record, decision, concluded);
        if queued.is_ok() {
            // A conclusion is recovery's, within a limit of time that must be heard.
            match concluded {
                true => self.shared().start(),
                false => self.shared().start_and_wait(),
            }
        }
        answered(queued)
    }
}

impl fmt::Debug for FileLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileLog")
            .field("path", &self.handle.path)
            .field("log", &self.handle.owner.log)
            .field("incarnation", &self.handle.owner.incarnation)
            .finish_non_exhaustive()
    }
}

impl Decider for FileLog {
    async fn lookup(&self, transaction: TransactionId) -> Result<Known, StoreError> {
        Ok(self.recorded(transaction).await?.unwrap_or(Known::Abort))
    }

    async fn unfinished(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        self.read(State::unfinished)
    }

    fn forget(&self, transaction: TransactionId) {
        let now = self.shared().env.wall_clock();
        let noted = self.shared().lock().finish(transaction, now);
        if noted {
            self.shared().flush_soon();
        }
    }
}

impl DecisionLog for FileLog {
    fn owner(&self) -> Owner {
        self.handle.owner
    }

    fn take(&self) -> bool {
        !self.handle.taken.swap(true, Ordering::AcqRel)
    }

    fn ready(&self) -> Result<(), BoxError> {
        let ready = self.shared().lock().ready();
        if matches!(ready, Err(LogError::NoReserve(_))) {
            self.shared().retry_reserve();
        }
        Ok(ready?)
    }

    /// Queued at the call, not at the first poll. Within [`wait`](crate::thread::wait) it may be written at the call too, which blocks then.
    fn decide(&self, record: DecisionRecord) -> impl Future<Output = Result<(), DecideError>> + Send {
        self.write(record, Decision::Commit, false)
    }

    fn records_aborts(&self) -> bool {
        true
    }

    /// Queued at the call, not at the first poll.
    fn conclude(
        &self,
        record: DecisionRecord,
        decision: Decision,
    ) -> impl Future<Output = Result<(), DecideError>> + Send {
        self.write(record, decision, true)
    }

    async fn recorded(&self, transaction: TransactionId) -> Result<Option<Known>, StoreError> {
        loop {
            let ended = {
                let mut state = self.shared().lock();
                match &state.phase {
                    Phase::Closed => return Err(StoreError::new(LogError::Closed)),
                    Phase::Poisoned(_) => return Ok(Some(Known::Hold(HoldReason::Poisoned))),
                    Phase::Open | Phase::Closing => {}
                }
                match state.wait(transaction) {
                    Some(ended) => ended,
                    None => return Ok(state.history.recorded(transaction)),
                }
            };
            // However it ended, the state knows more now.
            let _ = ended.await;
        }
    }

    async fn unfinished_aborts(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        self.read(State::unfinished_aborts)
    }

    /// Begun at the call, not at the first poll.
    fn close(&self) -> impl Future<Output = ()> + Send {
        let closed = self.shared().lock().close();
        self.shared().start();
        async move {
            // A sender that is gone has given the log up too.
            let _ = closed.await;
        }
    }
}
