//! SQLite databases as resources of a transaction.
//!
//! ```no_run
//! use unanimous::sqlite::Sqlite;
//! use unanimous::{DecisionLog, TransactionManager};
//!
//! # async fn example(log: impl DecisionLog) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let orders = Sqlite::builder("orders", "./orders.db")
//!     .init(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL)"))
//!     .open()
//!     .await?;
//! let manager = TransactionManager::builder(log).resource(orders.clone()).build().await?;
//!
//! let tx = manager.begin();
//! let branch = tx.join(&orders).await?;
//! branch.execute("INSERT INTO orders (item) VALUES (?1)", ("a lamp",)).await?;
//! let count: i64 = branch.query_row("SELECT count(*) FROM orders", (), |row| row.get(0)).await?;
//! drop(branch);
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! SQLite can't prepare, so a branch here is a [carrier](Capability::Carrier): where others take part, they prepare
//! first, and this branch commits its work and the transaction's decision in one SQLite transaction. A transaction can
//! have one such branch. Alone, it commits in one phase.
//!
//! The first open adds four tables to the database, their names beginning with `unanimous_` (the first idempotency key that is kept adds one
//! more). They are for reading, in the `sqlite3` shell too:
//!
//! ```sql
//! select transaction_id, outcome, datetime(decided_at / 1000000, 'unixepoch'), finished_at is not null
//!   from unanimous_decision order by decided_at desc limit 20;
//! ```
//!
//! - Journal mode WAL and `synchronous = FULL` on every connection: a commit that was answered is on the disk.
//! - Writing transactions are `BEGIN IMMEDIATE` and queue up in order within the process; between processes SQLite's
//!   own lock rules, which is not fair. Both waits together are bounded by the [lock
//!   timeout](SqliteBuilder::lock_timeout).
//! - Readers ([`SqliteOptions::read_only`]) wait for nobody.
//! - The application's work can't end the transaction behind our back: see [`Broken`].
//! - The file is recognised by an identity within and by its inode. While it is missing or another file is in its
//!   place, nothing is begun, committed or said about the past.
//!
//! # Work on the connection
//!
//! [`SqliteBranch::call`] sends a closure to the thread that owns the connection. This runs as it stands, with the
//! traits that the manager uses:
//!
//! ```
//! use unanimous::sqlite::Sqlite;
//! use unanimous::{Branch, BranchContext, BranchId, DeciderId, Incarnation, LogId, Owner, ResourceManager, Work};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("orders.db");
//! let orders = Sqlite::open("orders", &path).await?;
//! # let transaction = Owner { log: LogId(1), incarnation: Incarnation::new(1, 1) }.transaction(1);
//! let branch = orders.begin(&BranchContext::new(transaction), Default::default()).await?;
//! let id = branch
//!     .call(|conn| {
//!         conn.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL)")?;
//!         conn.execute("INSERT INTO orders (item) VALUES (?1)", ["a lamp"])?;
//!         Ok(conn.last_insert_rowid())
//!     })
//!     .await?;
//! assert_eq!(id, 1);
//! assert_eq!(branch.flush().await?, Work::Wrote);
//! branch.commit_one_phase(&BranchId { transaction, decider: DeciderId::Log, number: 0 }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Must not know the manager, the log, or any other adapter.

mod branch;
mod connection;
mod error;
mod file;
mod guard;
#[cfg(feature = "http")]
mod keys;
mod rows;
mod savepoint;
mod session;
mod store;
mod worker;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use branch::{SqliteBranch, SqliteOptions};
pub use error::{BeginError, Broken, DecisionError, EndError, Ended, FileChanged, Holder, OpenError, SqliteError};
#[cfg(feature = "http")]
pub use keys::SqliteKeys;
/// The SQLite driver, whose connection the application's work is given.
pub use rusqlite;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use unanimous_core::{
    BranchContext, BranchError, BranchId, Capability, DecisionRecord, Known, Owner, ResourceManager, StoreError,
    StoreId, TransactionId,
};

use self::connection::{Init, Opener};
use self::guard::Life;
use self::store::{Control, Finished, Store};
use self::worker::{Lease, Pool, Waits};
use crate::env::{Env, TokioEnv, within};

/// How many connections wait for their next branch at most.
const IDLE_CONNECTIONS: usize = 8;

/// How many reading branches may be open at once; each has a thread and a connection.
const MOST_READERS: usize = 64;

/// The longest that SQLite can count in milliseconds is 24 days.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 24 * 60 * 60);

/// A SQLite database that takes part in transactions. Cheap to clone; all clones are one store.
///
/// When the last handle is dropped, its connections are closed as their branches end.
#[derive(Clone)]
pub struct Sqlite {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    control: Control,
    /// One permit: SQLite has one writer at a time, and its own way of waiting is unfair.
    writers: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    closed: AtomicBool,
}

/// Opens a [`Sqlite`].
#[must_use = "nothing is opened before `open`"]
pub struct SqliteBuilder {
    name: String,
    path: PathBuf,
    lock_timeout: Duration,
    horizon: Duration,
    must_exist: bool,
    init: Option<Init>,
    env: Option<Arc<dyn Env>>,
}

impl SqliteBuilder {
    /// How long a branch waits for other writing transactions, and a commit or recovery for a busy database. 5 s by
    /// default, 24 days at most.
    pub fn lock_timeout(self, timeout: Duration) -> Self {
        Self { lock_timeout: timeout.min(LONGEST_WAIT), ..self }
    }

    /// How long a decision is kept after its last branch was confirmed (rule 11). 24 hours by default; a decision takes
    /// about 450 bytes. A branch of an older transaction that turns up prepared, out of a restored backup say, is held
    /// and reported.
    ///
    /// It is this process's log's: where several share the database, each deletes its own decisions by its own horizon, and
    /// those of a log that never comes back stay.
    pub fn horizon(self, horizon: Duration) -> Self {
        Self { horizon, ..self }
    }

    /// Opening fails where the file is not there, instead of creating it: for a folder that might not be mounted.
    pub fn must_exist(self) -> Self {
        Self { must_exist: true, ..self }
    }

    /// Run on each new connection, before it is used: pragmas, functions, migrations. The first one runs within
    /// [`open`](Self::open). It must be idempotent, also beside another process that does the same; must end the
    /// transactions that it begins; and must attach nothing. `journal_mode`, `synchronous`, the hooks and the
    /// authorizer are set after it and win.
    pub fn init(self, init: impl Fn(&Connection) -> rusqlite::Result<()> + Send + Sync + 'static) -> Self {
        Self { init: Some(Arc::new(init)), ..self }
    }

    /// Replaces clock and randomness.
    pub fn env(self, env: Arc<dyn Env>) -> Self {
        Self { env: Some(env), ..self }
    }

    /// Opens the database; creates the file and our tables on first use. The folder must be there.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. A database that was open before in this process and is gone or another now is not created
    /// again.
    pub async fn open(self) -> Result<Sqlite, OpenError> {
        let Self { name, path, lock_timeout, horizon, must_exist, init, env } = self;
        let env = env.unwrap_or_else(TokioEnv::shared);
        let opener = Opener { path: file::resolve(&path)?, must_exist, lock_timeout, init, env };
        let (control, (file, identity)) = Control::open(opener.clone(), &name).await?;
        let store = Store {
            name,
            opener,
            file,
            identity,
            horizon,
            finished: Finished::default(),
            pool: Pool::new(IDLE_CONNECTIONS),
        };
        Ok(Sqlite {
            inner: Arc::new(Inner {
                store: Arc::new(store),
                control,
                writers: Arc::new(Semaphore::new(1)),
                readers: Arc::new(Semaphore::new(MOST_READERS)),
                closed: AtomicBool::new(false),
            }),
        })
    }
}

impl fmt::Debug for SqliteBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBuilder").field("name", &self.name).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Sqlite {
    /// Opens the database at `path` with the defaults, under the name that the manager knows it by: stable over
    /// restarts.
    ///
    /// # Errors
    ///
    /// As [`SqliteBuilder::open`].
    pub async fn open(name: impl Into<String>, path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::builder(name, path).open().await
    }

    /// A builder for other than the defaults.
    pub fn builder(name: impl Into<String>, path: impl AsRef<Path>) -> SqliteBuilder {
        SqliteBuilder {
            name: name.into(),
            path: path.as_ref().to_owned(),
            lock_timeout: Duration::from_secs(5),
            horizon: Duration::from_secs(24 * 60 * 60),
            must_exist: false,
            init: None,
            env: None,
        }
    }

    /// The file, as an absolute path.
    pub fn path(&self) -> &Path {
        self.inner.store.file.path()
    }

    /// Begins nothing more, and writes down which decisions are finished. Branches that are open go on to their end.
    /// Dropping the last handle does the same, but without waiting for a lock, so that some decisions may be listed
    /// once more after the next start.
    ///
    /// # Errors
    ///
    /// When the finished decisions could not be written; nothing is lost by it.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.inner.closed.store(true, Ordering::SeqCst);
        self.inner.store.pool.close();
        self.control(|store, conn, wait| store.write_finished(conn, wait)).await
    }

    /// Lets the control thread do something with what it needs for it.
    async fn control<T, F>(&self, request: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Store, &Connection, Duration) -> Result<T, DecisionError> + Send + 'static,
    {
        let store = Arc::clone(&self.inner.store);
        let request = move |conn: &Connection| request(&store, conn, store.opener.lock_timeout);
        self.inner.control.ask(request).await.map_err(StoreError::new)
    }

    /// The same with the permit to write: in the queue with this process's own writers, which would starve a poll for
    /// the lock.
    async fn control_writing<T, F>(&self, request: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Store, &Connection, Duration) -> Result<T, DecisionError> + Send + 'static,
    {
        let bound = self.inner.store.opener.lock_timeout;
        let (permit, left) = self
            .permit(&self.inner.writers, bound)
            .await
            .map_err(|waited| StoreError::new(DecisionError::Busy { waited }))?;
        self.control(move |store, conn, _| {
            // It travels along: the request runs to its end although nobody may wait for it any more.
            let _permit = permit;
            request(store, conn, left)
        })
        .await
    }

    /// Waits for a permit. Gives it with what is left of the bound, or how long it was waited for in vain.
    async fn permit(
        &self,
        semaphore: &Arc<Semaphore>,
        bound: Duration,
    ) -> Result<(OwnedSemaphorePermit, Duration), Duration> {
        let env = &self.inner.store.opener.env;
        let began = env.monotonic();
        let waited = || env.monotonic().saturating_sub(began);
        if let Ok(permit) = Arc::clone(semaphore).try_acquire_owned() {
            return Ok((permit, bound));
        }
        match within(&**env, bound, Arc::clone(semaphore).acquire_owned()).await {
            Some(permit) => {
                let permit = permit.expect("these semaphores are never closed");
                Ok((permit, bound.saturating_sub(waited())))
            }
            None => Err(waited()),
        }
    }

    async fn begin_branch(&self, context: &BranchContext, options: SqliteOptions) -> Result<SqliteBranch, BeginError> {
        let Inner { store, writers, readers, closed, .. } = &*self.inner;
        let wait = options.lock_timeout.map_or(store.opener.lock_timeout, |timeout| timeout.min(LONGEST_WAIT));
        let (semaphore, by) =
            if options.read_only { (readers, Holder::Readers) } else { (writers, Holder::ThisProcess) };
        let (permit, left) =
            self.permit(semaphore, wait).await.map_err(|waited| BeginError::LockTimeout { waited, by })?;
        if closed.load(Ordering::SeqCst) {
            return Err(BeginError::Closed);
        }
        let life = Arc::new(Life::default());
        let (lease, jobs, begun) =
            Lease::new(Arc::clone(&life), options.read_only, Waits { begin: left, commit: wait }, permit);
        // From here on a dropped future drops the branch, which gives everything back.
        let branch = SqliteBranch {
            jobs,
            life,
            store: store.name.as_str().into(),
            transaction: context.transaction,
            read_only: options.read_only,
        };
        store.pool.lend(store, lease).map_err(|error| BeginError::Open(OpenError::Thread(error)))?;
        match begun.await {
            Ok(Ok(())) => Ok(branch),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(BeginError::ThreadEnded),
        }
    }
}

impl ResourceManager for Sqlite {
    type Branch = SqliteBranch;
    type Options = SqliteOptions;

    fn name(&self) -> &str {
        &self.inner.store.name
    }

    fn capability(&self) -> Capability {
        Capability::Carrier
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        self.control(|store, conn, _| store.read_identity(conn)).await
    }

    /// # Cancel safety
    ///
    /// A future that is dropped gives up its place in the queue, or the branch that was just begun.
    async fn begin(&self, context: &BranchContext, options: SqliteOptions) -> Result<SqliteBranch, BranchError> {
        self.begin_branch(context, options).await.map_err(|error| {
            if error::is_retryable(&error) { BranchError::conflict(error) } else { BranchError::refused(error) }
        })
    }

    /// Always empty, since SQLite can't prepare; but not while the file is missing or another, since then nothing is
    /// known.
    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        self.control(|store, conn, _| store.read_identity(conn)).await.map(|_| Vec::new())
    }

    /// # Errors
    ///
    /// Always refused: no branch here is ever in doubt.
    async fn commit(&self, _id: &BranchId) -> Result<(), BranchError> {
        Err(BranchError::refused(EndError::NeverPrepared))
    }

    /// # Errors
    ///
    /// Always refused: no branch here is ever in doubt.
    async fn rollback(&self, _id: &BranchId) -> Result<(), BranchError> {
        Err(BranchError::refused(EndError::NeverPrepared))
    }

    /// Waits for writing branches of this process that are open, at most for the lock timeout: one of them may be about
    /// to commit the very row that is asked for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop the fence once the lock is there.
    async fn decision(&self, transaction: TransactionId, owner: Owner) -> Result<Known, StoreError> {
        self.control_writing(move |store, conn, wait| store.decision(conn, transaction, owner, wait)).await
    }

    /// A look without a lock first: without a row nothing is written, and nobody waits for a writer.
    async fn decided(&self, transaction: TransactionId, _owner: Owner) -> Result<Option<Known>, StoreError> {
        if !self.control(move |store, conn, _| store.has_decision(conn, transaction)).await? {
            return Ok(None);
        }
        self.control_writing(move |store, conn, wait| store.decided(conn, transaction, wait)).await
    }

    async fn unfinished(&self, owner: Owner) -> Result<Vec<DecisionRecord>, StoreError> {
        // A look without a lock first: mostly there is nothing, and then nothing needs to be forced.
        if !self.control(move |store, conn, _| store.has_unfinished(conn, owner)).await? {
            return Ok(Vec::new());
        }
        let rows::Unfinished { records, damaged } =
            self.control_writing(move |store, conn, wait| store.unfinished(conn, owner, wait)).await?;
        for error in damaged {
            // The error names the row. It stays, and is reported by each pass until somebody has restored it.
            tracing::error!(store = %self.inner.store.name, %error, "one decision can't be finished; the others are");
        }
        Ok(records)
    }

    /// Written with the next commit that carries a decision, with [`Sqlite::close`], or when the last handle is
    /// dropped.
    fn forget(&self, transaction: TransactionId) {
        self.inner.store.finished.add(transaction);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.store.pool.close();
        let store = Arc::clone(&self.store);
        self.control.tell(move |conn| {
            if let Err(error) = store.write_finished(conn, Duration::ZERO) {
                tracing::debug!(store = %store.name, %error, "finished decisions were not written and will be listed again");
            }
        });
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite")
            .field("name", &self.inner.store.name)
            .field("path", &self.inner.store.file.path())
            .field("identity", &self.inner.store.identity)
            .finish_non_exhaustive()
    }
}
