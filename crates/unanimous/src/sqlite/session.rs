//! One branch on its thread: from BEGIN to its end, with a look at each step whether the transaction is still the one
//! that was begun.
//!
//! Must not know channels, the pool or who else waits.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, TransactionState};
use unanimous_core::{BranchError, DecisionRecord, FailureKind, TransactionId, Work};

use super::connection::Patience;
use super::error::{BeginError, Broken, EndError, Ended, Holder, SqliteError, is_busy};
use super::guard::{Guard, Life};
use super::rows::{self, Carried};
use super::savepoint::Saved;
use super::store::Store;
use super::worker::Waits;

/// The application's work, with its answer wrapped up.
pub(super) type WorkJob = Box<dyn for<'c> FnOnce(&mut Session<'c>) + Send>;

/// One branch on its thread.
pub(super) struct Session<'c> {
    store: &'c Store,
    pub(super) conn: &'c Connection,
    guard: &'c Guard,
    life: Arc<Life>,
    read_only: bool,
    wait: Waits,
    /// What counts as done although it is not among the changes since.
    work_before: Work,
    changes_before: u64,
    flushed: Option<Work>,
    pub(super) saved: Vec<Saved>,
    pub(super) broken: Option<Broken>,
    /// The connection is not to be used by another branch.
    discard: bool,
}

impl<'c> Session<'c> {
    pub(super) fn new(
        store: &'c Store,
        conn: &'c Connection,
        guard: &'c Guard,
        life: Arc<Life>,
        read_only: bool,
        wait: Waits,
    ) -> Self {
        guard.begin(Arc::clone(&life));
        Self {
            store,
            conn,
            guard,
            life,
            read_only,
            wait,
            work_before: Work::ReadOnly,
            changes_before: 0,
            flushed: None,
            saved: Vec::new(),
            broken: None,
            discard: false,
        }
    }

    pub(super) fn begin(&mut self) -> Result<(), BeginError> {
        self.store.file.check().map_err(BeginError::Changed)?;
        let patience = Patience::new(&*self.store.opener.env, self.wait.begin);
        let begun = self.conn.busy_timeout(Duration::ZERO).and_then(|()| {
            let sql = if self.read_only { "PRAGMA query_only = ON; BEGIN" } else { "BEGIN IMMEDIATE" };
            patience.until_unlocked(|| self.life.is_stopped(), || self.conn.execute_batch(sql))
        });
        if let Err(source) = begun.and_then(|()| self.conn.busy_timeout(self.store.opener.lock_timeout)) {
            self.roll_back();
            return Err(if is_busy(&source) {
                BeginError::LockTimeout { waited: patience.waited(), by: Holder::Elsewhere }
            } else {
                self.discard = true;
                BeginError::Sqlite(source)
            });
        }
        // Again: the wait for the lock can have been long.
        if let Err(changed) = self.store.file.check() {
            self.roll_back();
            return Err(BeginError::Changed(changed));
        }
        self.changes_before = self.conn.total_changes();
        Ok(())
    }

    /// A value that nobody waits for any more is dropped here, by code of the application's: its panic must not end the
    /// thread.
    pub(super) fn work(&mut self, work: WorkJob) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            self.discard = true;
            self.broken.get_or_insert(Broken::Panicked { message: panic_message(&*panic) });
        }
    }

    /// Runs the application's work, and looks at what it left of the transaction.
    pub(super) fn run<T>(&mut self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, SqliteError> {
        if let Some(why) = &self.broken {
            return Err(SqliteError::Broken { why: why.clone(), source: None });
        }
        if self.flushed.is_some() {
            return Err(SqliteError::Ended { how: Ended::Committing });
        }
        self.guard.enter(self.conn).map_err(|how| SqliteError::Ended { how })?;
        // The connection is looked at below and discarded, so nothing that a panic left halfway is used again.
        let done = catch_unwind(AssertUnwindSafe(|| work(self.conn)));
        let verdict = self.guard.leave();
        self.broken = match &done {
            Err(panic) => Some(Broken::Panicked { message: panic_message(&**panic) }),
            Ok(_) => verdict.broken.or_else(|| self.conn.is_autocommit().then_some(Broken::RolledBack)),
        };
        if self.life.is_stopped() {
            return Err(SqliteError::Ended { how: Ended::RolledBack });
        }
        match (done, self.broken.clone()) {
            (Err(_), why) => {
                self.discard = true;
                Err(SqliteError::Broken { why: why.expect("a panic breaks the branch, above"), source: None })
            }
            (Ok(result), Some(why)) => Err(SqliteError::Broken { why, source: result.err() }),
            (Ok(Ok(value)), None) => Ok(value),
            (Ok(Err(source)), None) => Err(match verdict.forbidden {
                Some(what) => SqliteError::Forbidden { what, source },
                None => SqliteError::Sql(source),
            }),
        }
    }

    /// Nobody heard that the work failed: a commit would make durable what nobody knows the extent of.
    pub(super) fn unseen(&mut self, error: &SqliteError) {
        if !matches!(error, SqliteError::Ended { .. }) {
            self.broken.get_or_insert(Broken::UnseenFailure { message: error.to_string() });
        }
    }

    /// Runs our own work, of which the guard needs to know nothing.
    #[cfg(feature = "http")]
    pub(super) fn run_own<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SqliteError> {
        if self.life.is_stopped() {
            return Err(SqliteError::Ended { how: Ended::RolledBack });
        }
        if self.flushed.is_some() {
            return Err(SqliteError::Ended { how: Ended::Committing });
        }
        // What ended the transaction since, be it an error of our own, is found by the next look.
        if self.broken.is_none() && self.conn.is_autocommit() {
            self.broken = Some(Broken::RolledBack);
        }
        match &self.broken {
            Some(why) => Err(SqliteError::Broken { why: why.clone(), source: None }),
            None => work(self.conn).map_err(SqliteError::Sql),
        }
    }

    pub(super) fn flush(&mut self) -> Result<Work, BranchError> {
        self.check()?;
        let work = self.work_so_far();
        self.flushed = Some(work);
        Ok(work)
    }

    pub(super) fn work_so_far(&self) -> Work {
        let changed = self.work_before == Work::Wrote
            || self.conn.total_changes() != self.changes_before
            || self.guard.changed_otherwise();
        if changed && !self.read_only { Work::Wrote } else { Work::ReadOnly }
    }

    /// What was done since the branch had done `work` has been undone.
    pub(super) fn continue_from(&mut self, work: Work) {
        self.work_before = work;
        self.changes_before = self.conn.total_changes();
    }

    pub(super) fn check_not_flushed(&self) -> Result<(), BranchError> {
        match self.flushed {
            None => Ok(()),
            Some(_) => Err(BranchError::refused(SqliteError::Ended { how: Ended::Committing })),
        }
    }

    /// Whether the transaction is the one that was begun, and can be committed.
    pub(super) fn check(&mut self) -> Result<(), BranchError> {
        if self.life.is_stopped() {
            return Err(BranchError::refused(SqliteError::Ended { how: Ended::RolledBack }));
        }
        if self.broken.is_none() && self.conn.is_autocommit() {
            self.broken = Some(Broken::RolledBack);
        }
        match &self.broken {
            Some(why) => Err(BranchError::refused(SqliteError::Broken { why: why.clone(), source: None })),
            None => Ok(()),
        }
    }

    pub(super) fn commit(&mut self, record: Option<&DecisionRecord>) -> (Ended, Result<(), BranchError>) {
        let result = self.try_commit(record);
        match &result {
            Ok(()) => (Ended::Committed, result),
            Err(error) if error.kind() == FailureKind::Lost => {
                self.discard = true;
                self.roll_back();
                (Ended::Unknown, result)
            }
            // Rolled back at once: what was refused must not commit later, whoever forgets to roll it back.
            Err(_) => {
                self.roll_back();
                (Ended::RolledBack, result)
            }
        }
    }

    fn try_commit(&mut self, record: Option<&DecisionRecord>) -> Result<(), BranchError> {
        self.check()?;
        self.store.file.check().map_err(|changed| BranchError::refused(EndError::Changed(changed)))?;
        let finished = match record {
            Some(record) => self.carry(record)?,
            None => Vec::new(),
        };
        let patience = Patience::new(&*self.store.opener.env, self.wait.commit);
        let committed = patience.until_unlocked(
            || false,
            || {
                let result = self.conn.execute_batch("COMMIT");
                // Busy with the transaction gone would not be worth a repetition: there is nothing left to commit.
                match result {
                    Err(error) if is_busy(&error) && self.conn.is_autocommit() => Ok(Err(error)),
                    Err(error) => Err(error),
                    Ok(()) => Ok(Ok(())),
                }
            },
        );
        match committed.and_then(|inner| inner) {
            Ok(()) => {
                self.store.finished.written(&finished);
                Ok(())
            }
            // SQLite says that it rolled back; but the frames of the commit may be in the log, unsynced, and a crash
            // brings them back.
            Err(source) if self.conn.is_autocommit() => Err(BranchError::lost(EndError::Unknown(source))),
            Err(source) if is_busy(&source) => {
                Err(BranchError::conflict(EndError::Busy { waited: patience.waited(), source }))
            }
            Err(source) => Err(BranchError::refused(EndError::Refused(source))),
        }
    }

    /// Puts the decision's row into the transaction, with what else is due. Gives what was marked as finished.
    fn carry(&mut self, record: &DecisionRecord) -> Result<Vec<TransactionId>, BranchError> {
        let transaction = record.transaction;
        let refused = |source: rusqlite::Error| {
            if is_busy(&source) {
                BranchError::conflict(EndError::Refused(source))
            } else {
                BranchError::refused(EndError::Refused(source))
            }
        };
        match rows::carry(self.conn, record).map_err(refused)? {
            Carried::Inserted => {}
            Carried::Fenced => return Err(BranchError::refused(EndError::Fenced { transaction })),
            // The row and its commit are there, whatever became of this branch: the row has to be asked.
            Carried::Repeated => return Err(BranchError::lost(EndError::Repeated { transaction })),
        }
        let now = self.store.opener.env.wall_clock();
        let finished = self.store.finished.list();
        rows::finish(self.conn, &finished, now).map_err(refused)?;
        rows::expire(self.conn, transaction.owner(), now.saturating_sub(self.store.horizon_micros()))
            .map_err(refused)?;
        Ok(finished)
    }

    pub(super) fn roll_back(&mut self) {
        if self.conn.is_autocommit() {
            return;
        }
        if let Err(error) = self.conn.execute_batch("ROLLBACK") {
            // Closing the connection rolls back as well.
            tracing::debug!(store = %self.store.name, %error, "a rollback failed; its connection is closed instead");
            self.discard = true;
        }
    }

    /// After the end: whether the connection is as good as new.
    pub(super) fn leave(&mut self) -> bool {
        if self.read_only && self.conn.execute_batch("PRAGMA query_only = OFF").is_err() {
            self.discard = true;
        }
        !self.discard
            && self.guard.is_unaltered()
            && self.conn.is_autocommit()
            && !self.conn.is_busy()
            && matches!(self.conn.transaction_state::<&str>(None), Ok(TransactionState::None))
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}
