//! The threads: each owns a connection and serves one branch after another.
//!
//! A branch is lent a thread: a [`Lease`] with the receiving end of the branch's own channel. What ends the branch ends the
//! channel, so that nothing that is sent later can run, not even in another branch's transaction; and a branch whose handle is
//! dropped closes the channel from the other side, which rolls it back. The permit to write travels with the lease and is given
//! up by the thread, when the transaction has really ended.
//!
//! Must not know the manager or an async runtime.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, TransactionState};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use unanimous_core::{BranchError, DecisionRecord, SavepointId, Work};

use super::connection::Patience;
use super::error::{BeginError, Broken, EndError, Ended, Holder, OpenError, SqliteError, is_busy};
use super::guard::{Guard, Life};
use super::rows::{self, Carried};
use super::savepoint::Saved;
use super::store::Store;

/// The application's work, with its answer wrapped up.
pub(super) type WorkJob = Box<dyn for<'c> FnOnce(&mut Session<'c>) + Send>;

/// What a branch sends to its thread.
pub(super) enum Job {
    /// Run this.
    Work(WorkJob),
    /// What the branch has done so far.
    Flush(oneshot::Sender<Result<Work, BranchError>>),
    /// Remember this moment.
    Savepoint(SavepointId, oneshot::Sender<Result<(), BranchError>>),
    /// Undo what was done since.
    RollbackTo(SavepointId, oneshot::Sender<Result<(), BranchError>>),
    /// Commit, with the decision's row where there is one. Ends the branch, however it goes.
    Commit(Option<DecisionRecord>, oneshot::Sender<Result<(), BranchError>>),
    /// Roll back. Ends the branch.
    Rollback(oneshot::Sender<()>),
}

/// A thread that waits for its next branch. Dropped, the thread ends and its connection is closed.
pub(super) struct Idle(Sender<Lease>);

/// How long a branch may wait for others' locks.
#[derive(Clone, Copy)]
pub(super) struct Waits {
    /// The begin: what the queue of this process has left of the lock timeout.
    pub(super) begin: Duration,
    /// The commit.
    pub(super) commit: Duration,
}

/// A branch, for the thread.
pub(super) struct Lease {
    pub(super) jobs: Receiver<Job>,
    pub(super) life: Arc<Life>,
    pub(super) read_only: bool,
    pub(super) wait: Waits,
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) begun: oneshot::Sender<Result<(), BeginError>>,
    /// The thread's own handle, put back into the pool afterwards. It is in the lease, since a thread that held its own sender
    /// for good would never see that nobody else does.
    thread: Option<Idle>,
}

impl Lease {
    pub(super) fn new(
        life: Arc<Life>,
        read_only: bool,
        wait: Waits,
        permit: OwnedSemaphorePermit,
    ) -> (Self, Sender<Job>, oneshot::Receiver<Result<(), BeginError>>) {
        let (send, jobs) = channel();
        let (begun, hear) = oneshot::channel();
        (Self { jobs, life, read_only, wait, permit, begun, thread: None }, send, hear)
    }
}

/// The threads that wait, a bounded number of them.
pub(super) struct Pool {
    /// None once the store is closed.
    idle: Mutex<Option<Vec<Idle>>>,
    most: usize,
}

impl Pool {
    pub(super) fn new(most: usize) -> Self {
        Self { idle: Mutex::new(Some(Vec::new())), most }
    }

    /// Gives a branch to a thread that waits, or to a new one.
    ///
    /// # Errors
    ///
    /// When no thread could be started.
    pub(super) fn lend(&self, store: &Arc<Store>, mut lease: Lease) -> io::Result<()> {
        while let Some(thread) = self.take() {
            let sender = thread.0.clone();
            lease.thread = Some(thread);
            match sender.send(lease) {
                Ok(()) => return Ok(()),
                // It has died meanwhile.
                Err(back) => lease = back.0,
            }
        }
        let (sender, leases) = channel();
        lease.thread = Some(Idle(sender.clone()));
        let store = Arc::clone(store);
        std::thread::Builder::new().name(format!("sqlite {}", store.name)).spawn(move || serve_all(&store, &leases))?;
        // The thread has the receiver until it has served this one.
        sender.send(lease).map_err(|_| io::Error::other("the thread ended at once"))
    }

    fn take(&self) -> Option<Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.pop()
    }

    fn put(&self, thread: Idle) {
        if let Some(idle) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
            && idle.len() < self.most
        {
            idle.push(thread);
        }
    }

    /// Lets the waiting threads go, and those that are busy when they are done.
    pub(super) fn close(&self) {
        // Taken out first: threads must not be dropped under the lock that they return by.
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(idle);
    }
}

fn serve_all(store: &Arc<Store>, leases: &Receiver<Lease>) {
    let mut open: Option<(Connection, Guard)> = None;
    while let Ok(lease) = leases.recv() {
        let (conn, guard) = match &mut open {
            Some(open) => open,
            None => match connect(store) {
                Ok(opened) => open.insert(opened),
                Err(error) => {
                    let Lease { life, permit, begun, .. } = lease;
                    life.end(Ended::RolledBack);
                    drop(permit);
                    drop(begun.send(Err(error)));
                    return;
                }
            },
        };
        if !serve(store, conn, guard, lease) {
            return;
        }
    }
}

fn connect(store: &Store) -> Result<(Connection, Guard), BeginError> {
    let conn = store.opener.open_next(&store.file, &store.identity).map_err(|error| match error {
        OpenError::Changed(changed) => BeginError::Changed(changed),
        other => BeginError::Open(other),
    })?;
    let guard = Guard::install(&conn).map_err(BeginError::Sqlite)?;
    Ok((conn, guard))
}

/// The answer that is owed when a branch has ended: given last, so that whoever hears it finds the lock free.
type Answer = Box<dyn FnOnce()>;

/// Serves one branch. False: the connection must not be used again.
fn serve(store: &Arc<Store>, conn: &Connection, guard: &Guard, lease: Lease) -> bool {
    let Lease { jobs, life, read_only, wait, permit, begun, thread } = lease;
    let _last = LastWord(Arc::clone(&life));
    let mut session = Session::new(store, conn, guard, Arc::clone(&life), read_only, wait);
    let (how, answer): (Ended, Answer) = match session.begin() {
        Err(error) => (Ended::RolledBack, Box::new(move || drop(begun.send(Err(error))))),
        Ok(()) => {
            // Nobody there to hear it: then the channel is closed too.
            drop(begun.send(Ok(())));
            session.serve(&jobs)
        }
    };
    let usable = session.leave();
    life.end(how);
    // What is still in the channel is not run: its answers are dropped with it.
    drop(jobs);
    drop(permit);
    if usable && let Some(thread) = thread {
        store.pool.put(thread);
    }
    answer();
    usable
}

/// Should the thread die, nothing is left to be rolled back: its connection is closed. The first end counts, so this is only heard then.
struct LastWord(Arc<Life>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.end(Ended::Unknown);
    }
}

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
    fn new(
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

    fn begin(&mut self) -> Result<(), BeginError> {
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

    /// Does what the branch asks for until it has ended.
    fn serve(&mut self, jobs: &Receiver<Job>) -> (Ended, Answer) {
        loop {
            match jobs.recv() {
                Ok(Job::Work(work)) => self.work(work),
                Ok(Job::Flush(reply)) => drop(reply.send(self.flush())),
                Ok(Job::Savepoint(id, reply)) => drop(reply.send(self.savepoint(id))),
                Ok(Job::RollbackTo(id, reply)) => drop(reply.send(self.rollback_to(id))),
                Ok(Job::Commit(record, reply)) => {
                    let (how, result) = self.commit(record.as_ref());
                    return (how, Box::new(move || drop(reply.send(result))));
                }
                Ok(Job::Rollback(reply)) => {
                    self.roll_back();
                    return (Ended::RolledBack, Box::new(move || reply.send(()).unwrap_or(())));
                }
                // Dropped without an end.
                Err(_) => {
                    self.roll_back();
                    return (Ended::RolledBack, Box::new(|| ()));
                }
            }
        }
    }

    /// A value that nobody waits for any more is dropped here, by code of the application's: its panic must not end the thread.
    fn work(&mut self, work: WorkJob) {
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

    fn flush(&mut self) -> Result<Work, BranchError> {
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

    fn commit(&mut self, record: Option<&DecisionRecord>) -> (Ended, Result<(), BranchError>) {
        let result = self.try_commit(record);
        match &result {
            Ok(()) => (Ended::Committed, result),
            Err(error) if error.kind() == unanimous_core::FailureKind::Lost => {
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
            // SQLite says that it rolled back; but the frames of the commit may be in the log, unsynced, and a crash brings them back.
            Err(source) if self.conn.is_autocommit() => Err(BranchError::lost(EndError::Unknown(source))),
            Err(source) if is_busy(&source) => {
                Err(BranchError::conflict(EndError::Busy { waited: patience.waited(), source }))
            }
            Err(source) => Err(BranchError::refused(EndError::Refused(source))),
        }
    }

    /// Puts the decision's row into the transaction, with what else is due. Gives what was marked as finished.
    fn carry(&mut self, record: &DecisionRecord) -> Result<Vec<unanimous_core::TransactionId>, BranchError> {
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

    fn roll_back(&mut self) {
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
    fn leave(&mut self) -> bool {
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
