//! The threads: each owns a connection and serves one branch after another.
//!
//! A branch is lent a thread: a [`Lease`] with the receiving end of the branch's own channel. What ends the branch ends
//! the channel, so that nothing that is sent later can run, not even in another branch's transaction; and a branch
//! whose handle is dropped closes the channel from the other side, which rolls it back. The permit to write travels
//! with the lease and is given up by the thread, when the transaction has really ended.
//!
//! Must not know the manager or an async runtime.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use unanimous_core::{BranchError, DecisionRecord, SavepointId, Work};

use super::error::{BeginError, Ended, OpenError};
use super::guard::{Guard, Life};
use super::session::{Session, WorkJob};
use super::store::Store;
use crate::sync::lock;

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
    /// The thread's own handle, put back into the pool afterwards. It is in the lease, since a thread that held its own
    /// sender for good would never see that nobody else does.
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
        lock(&self.idle).as_mut()?.pop()
    }

    fn put(&self, thread: Idle) {
        if let Some(idle) = lock(&self.idle).as_mut()
            && idle.len() < self.most
        {
            idle.push(thread);
        }
    }

    /// Lets the waiting threads go, and those that are busy when they are done.
    pub(super) fn close(&self) {
        // Taken out first: threads must not be dropped under the lock that they return by.
        let idle = lock(&self.idle).take();
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
            attend(&mut session, &jobs)
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

/// Does what the branch asks for until it has ended.
fn attend(session: &mut Session<'_>, jobs: &Receiver<Job>) -> (Ended, Answer) {
    loop {
        match jobs.recv() {
            Ok(Job::Work(work)) => session.work(work),
            Ok(Job::Flush(reply)) => drop(reply.send(session.flush())),
            Ok(Job::Savepoint(id, reply)) => drop(reply.send(session.savepoint(id))),
            Ok(Job::RollbackTo(id, reply)) => drop(reply.send(session.rollback_to(id))),
            Ok(Job::Commit(record, reply)) => {
                let (how, result) = session.commit(record.as_ref());
                return (how, Box::new(move || drop(reply.send(result))));
            }
            Ok(Job::Rollback(reply)) => {
                session.roll_back();
                return (Ended::RolledBack, Box::new(move || reply.send(()).unwrap_or(())));
            }
            // Dropped without an end.
            Err(_) => {
                session.roll_back();
                return (Ended::RolledBack, Box::new(|| ()));
            }
        }
    }
}

/// Should the thread die, nothing is left to be rolled back: its connection is closed. The first end counts, so this is
/// only heard then.
struct LastWord(Arc<Life>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.end(Ended::Unknown);
    }
}
