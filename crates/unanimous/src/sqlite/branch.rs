//! [`SqliteBranch`]: the part of a transaction in a SQLite database, and the application's way to it.
//!
//! Must not know threads' insides: it sends jobs and hears answers.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use rusqlite::{Connection, Params, Row};
use tokio::sync::oneshot;
use unanimous_core::{Branch, BranchError, BranchId, Capability, DecisionRecord, SavepointId, TransactionId, Work};

use super::error::{self, EndError, Ended, SqliteError};
use super::guard::Life;
use super::session::Session;
use super::worker::Job;

/// What a join may ask for. By default: a writing transaction (`BEGIN IMMEDIATE`), with the store's own lock timeout.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SqliteOptions {
    pub(super) read_only: bool,
    pub(super) lock_timeout: Option<Duration>,
}

impl SqliteOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// A transaction that only reads: a snapshot of the database from its first statement on (`BEGIN DEFERRED` with
    /// `query_only`). It waits for no writer and holds none up. Statements that write fail.
    #[must_use]
    pub fn read_only() -> Self {
        Self { read_only: true, ..Self::default() }
    }

    /// How long to wait until other writing transactions are out of the way, and for the commit if it finds the
    /// database busy.
    #[must_use]
    pub fn lock_timeout(self, timeout: Duration) -> Self {
        Self { lock_timeout: Some(timeout), ..self }
    }
}

/// A branch of a transaction in a SQLite database. Its connection lives on a thread of its own, and work is sent there.
///
/// # Cancel safety
///
/// Dropping the future of [`call`](Self::call) and its like does not stop the work, once it was polled: what is called
/// later, and the commit, wait behind it. If the work then fails with nobody there to see it, the branch can only be
/// rolled back.
///
/// # Drop
///
/// A branch that is dropped without an end is rolled back by its thread; work that is running is interrupted.
pub struct SqliteBranch {
    pub(super) jobs: Sender<Job>,
    pub(super) life: Arc<Life>,
    pub(super) store: Arc<str>,
    pub(super) transaction: TransactionId,
    pub(super) read_only: bool,
}

impl SqliteBranch {
    /// Runs work on the branch's connection, on its thread, within the transaction.
    ///
    /// The work may run any statements but those that begin or end transactions, attach databases, change how durable a
    /// commit is, or change this library's tables. `SAVEPOINT`, `RELEASE` and `ROLLBACK TO` are its own. It must leave
    /// the connection's commit hook, rollback hook and authorizer alone. What it writes with incremental blob I/O alone
    /// goes unnoticed by [`flush`](Branch::flush): change a row beside it.
    ///
    /// An error of the work is returned as [`SqliteError::Sql`], and the transaction goes on: what the work did before
    /// the error is part of it. For an error type of your own, return your `Result` as the value: `Ok(Err(mine))`.
    ///
    /// # Errors
    ///
    /// See [`SqliteError`]; [`SqliteError::Broken`] where the branch can only be rolled back, [`SqliteError::Ended`]
    /// where it has ended.
    ///
    /// # Panics
    ///
    /// Never; a panic of the work breaks the branch and is returned as an error.
    ///
    /// # Cancel safety
    ///
    /// See the [type](Self#cancel-safety).
    pub async fn call<T, F>(&self, work: F) -> Result<T, SqliteError>
    where
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.work(move |session| session.run(work)).await
    }

    /// The same for this library's own work, which may change its tables.
    #[cfg(feature = "http")]
    pub(super) async fn call_own<T, F>(&self, work: F) -> Result<T, SqliteError>
    where
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.work(move |session| session.run_own(work)).await
    }

    async fn work<T, F>(&self, work: F) -> Result<T, SqliteError>
    where
        F: FnOnce(&mut Session<'_>) -> Result<T, SqliteError> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, hear) = oneshot::channel();
        let job = Job::Work(Box::new(move |session: &mut Session<'_>| {
            if let Err(Err(error)) = reply.send(work(session)) {
                session.unseen(&error);
            }
        }));
        if self.jobs.send(job).is_err() {
            return Err(self.gone());
        }
        hear.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Runs one statement; gives the number of rows that it changed. Parameters are tuples or arrays of owned values.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn execute<P>(&self, sql: &str, params: P) -> Result<usize, SqliteError>
    where
        P: Params + Send + 'static,
    {
        let sql = sql.to_owned();
        self.call(move |conn| conn.execute(&sql, params)).await
    }

    /// Runs several statements, separated by semicolons, without parameters.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn execute_batch(&self, sql: &str) -> Result<(), SqliteError> {
        let sql = sql.to_owned();
        self.call(move |conn| conn.execute_batch(&sql)).await
    }

    /// Runs a query and maps its first row.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call); no row is [`rusqlite::Error::QueryReturnedNoRows`].
    pub async fn query_row<T, P, F>(&self, sql: &str, params: P, map: F) -> Result<T, SqliteError>
    where
        P: Params + Send + 'static,
        F: FnOnce(&Row<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let sql = sql.to_owned();
        self.call(move |conn| conn.query_row(&sql, params, map)).await
    }

    /// Runs a query and maps all its rows.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn query<T, P, F>(&self, sql: &str, params: P, map: F) -> Result<Vec<T>, SqliteError>
    where
        P: Params + Send + 'static,
        F: FnMut(&Row<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let sql = sql.to_owned();
        self.call(move |conn| conn.prepare(&sql)?.query_map(params, map)?.collect()).await
    }

    /// Whether the branch was joined [read-only](SqliteOptions::read_only).
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn ended(&self) -> Option<Ended> {
        self.life.ended()
    }

    fn gone(&self) -> SqliteError {
        SqliteError::Ended { how: self.ended().unwrap_or(Ended::RolledBack) }
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, BranchError>>) -> Job) -> Result<T, BranchError> {
        let (reply, hear) = oneshot::channel();
        if self.jobs.send(job(reply)).is_ok()
            && let Ok(result) = hear.await
        {
            return result;
        }
        Err(BranchError::refused(self.gone()))
    }

    async fn end(&self, record: Option<DecisionRecord>) -> Result<(), BranchError> {
        let (reply, hear) = oneshot::channel();
        if self.jobs.send(Job::Commit(record, reply)).is_ok()
            && let Ok(result) = hear.await
        {
            return result;
        }
        match self.ended() {
            Some(how @ (Ended::RolledBack | Ended::Committing)) => {
                Err(BranchError::refused(SqliteError::Ended { how }))
            }
            Some(Ended::Committed) => Ok(()),
            Some(Ended::Unknown) | None => Err(BranchError::lost(EndError::ThreadEnded)),
        }
    }
}

impl Branch for SqliteBranch {
    fn capability(&self) -> Capability {
        Capability::Carrier
    }

    fn sort_key(&self) -> String {
        format!("sqlite:{}", self.store)
    }

    /// [`Work::ReadOnly`] when no row was changed and no statement was compiled that could change anything else (DDL,
    /// `PRAGMA user_version = ...`). From then on the application's work is refused: a vote must stay true.
    async fn flush(&self) -> Result<Work, BranchError> {
        self.ask(Job::Flush).await
    }

    /// # Errors
    ///
    /// Always refused: SQLite can't prepare.
    async fn prepare(&self, _id: &BranchId) -> Result<(), BranchError> {
        Err(BranchError::refused(EndError::NeverPrepared))
    }

    /// # Errors
    ///
    /// Always refused: SQLite can't prepare, so there is no phase two.
    async fn commit(&self) -> Result<(), BranchError> {
        Err(BranchError::refused(EndError::NeverPrepared))
    }

    /// Waits for work that is running, after it has interrupted it. Work that is not within SQLite (a loop in Rust) is
    /// waited for as long as it takes.
    ///
    /// # Errors
    ///
    /// Refused where the branch has committed. Where the outcome of its commit is unknown there is nothing left to roll
    /// back, and that is Ok.
    async fn rollback(&self) -> Result<(), BranchError> {
        self.life.stop();
        let (reply, hear) = oneshot::channel();
        if self.jobs.send(Job::Rollback(reply)).is_ok() && hear.await.is_ok() {
            return Ok(());
        }
        match self.ended() {
            Some(how @ (Ended::Committed | Ended::Committing)) => Err(BranchError::refused(SqliteError::Ended { how })),
            Some(Ended::RolledBack | Ended::Unknown) => Ok(()),
            None => Err(BranchError::lost(EndError::ThreadEnded)),
        }
    }

    /// COMMIT. Whatever fails, the transaction is not open any more afterwards.
    ///
    /// # Errors
    ///
    /// Conflict when the database was busy for the whole lock timeout. Refused when SQLite said no (a deferred foreign
    /// key), when the branch is [broken](super::Broken), and when the file was replaced. Lost after an I/O error.
    async fn commit_one_phase(&self, _id: &BranchId) -> Result<(), BranchError> {
        self.end(None).await
    }

    /// Inserts the decision's row and commits, in the one transaction.
    ///
    /// # Errors
    ///
    /// As [`commit_one_phase`](Self::commit_one_phase); refused also when the transaction was fenced.
    async fn commit_carrying(&self, record: &DecisionRecord) -> Result<(), BranchError> {
        self.end(Some(record.clone())).await
    }

    fn has_savepoints(&self) -> bool {
        true
    }

    /// SQLite's own `SAVEPOINT`. The work's own savepoints may be around it or inside of it.
    ///
    /// # Errors
    ///
    /// Refused where the branch is broken, flushed or has ended.
    async fn savepoint(&self, id: SavepointId) -> Result<(), BranchError> {
        self.ask(|reply| Job::Savepoint(id, reply)).await
    }

    /// # Errors
    ///
    /// As [`savepoint`](Self::savepoint), and where the work has taken the savepoint away: the branch is
    /// [broken](super::Broken::SavepointFailed) then.
    async fn rollback_to(&self, id: SavepointId) -> Result<(), BranchError> {
        self.ask(|reply| Job::RollbackTo(id, reply)).await
    }

    fn is_retryable(&self, error: &(dyn Error + 'static)) -> bool {
        error::is_retryable(error)
    }
}

impl Drop for SqliteBranch {
    fn drop(&mut self) {
        // The channel closes with this handle, and the thread rolls back; work that runs must not keep it from doing
        // so.
        self.life.stop();
    }
}

impl fmt::Debug for SqliteBranch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBranch")
            .field("store", &self.store)
            .field("transaction", &self.transaction)
            .field("read_only", &self.read_only)
            .field("ended", &self.ended())
            .finish_non_exhaustive()
    }
}
