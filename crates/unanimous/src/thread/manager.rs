//! [`ThreadManager`]: begin, commit and abort of the calling thread's transaction.
//!
//! Must not know the protocol, nor what a branch does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use unanimous_core::{BoxError, TransactionId};

use super::error::{StateError, ThreadError};
use super::handle::{ThreadSavepoint, ThreadTx};
use crate::commit::Committed;
use crate::current;
use crate::error::{CommitError, RunError, chain};
use crate::inline::wait;
use crate::manager::{TransactionManager, Undrained};
use crate::recovery::InDoubt;
use crate::synchronizer::Synchronizer;
use crate::transaction::{Home, Options, Transaction, Tx};

/// What a thread has of one manager.
enum Slot {
    Open(Transaction),
    /// Its commit or abort runs on this thread, further up.
    Ending(Tx),
    /// Its commit has failed; why.
    Failed(Tx, String),
}

impl Slot {
    fn tx(&self) -> &Tx {
        match self {
            Slot::Open(transaction) => transaction,
            Slot::Ending(tx) | Slot::Failed(tx, _) => tx,
        }
    }
}

thread_local! {
    /// By the manager's key.
    static SLOTS: RefCell<BTreeMap<u64, Slot>> = const { RefCell::new(BTreeMap::new()) };
}

static NEXT_KEY: AtomicU64 = AtomicU64::new(0);

/// Begins and ends transactions of plain threads: each thread has at most one, its current one. Cheap to clone; clones are the same.
///
/// See the [module](super) for what runs where. It must not be used within async tasks, where it would block the runtime's threads.
///
/// A thread that ends with an open transaction aborts it, with a warning. Until then a thread's transaction keeps the manager and its log,
/// also one whose commit has failed: commit or abort before the last handle goes.
#[derive(Clone)]
pub struct ThreadManager {
    manager: TransactionManager,
    key: u64,
    explicit: bool,
}

impl fmt::Debug for ThreadManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadManager")
            .field("owner", &self.manager.owner())
            .field("explicit", &self.explicit)
            .finish_non_exhaustive()
    }
}

impl ThreadManager {
    /// A manager whose [`begin`](Self::begin) aborts the transaction that the thread is in.
    ///
    /// The transactions are `manager`'s, which [`Background::build`](super::Background::build) has built, or a runtime that goes on
    /// elsewhere.
    pub fn new(manager: TransactionManager) -> Self {
        Self { manager, key: NEXT_KEY.fetch_add(1, Ordering::Relaxed), explicit: false }
    }

    /// A manager whose [`begin`](Self::begin) refuses where the thread is in a transaction already.
    pub fn explicit(manager: TransactionManager) -> Self {
        Self { explicit: true, ..Self::new(manager) }
    }

    /// Whether a second begin is refused.
    pub fn is_explicit(&self) -> bool {
        self.explicit
    }

    /// Begins this thread's transaction. One that it is in is aborted before, or refused by an [explicit](Self::explicit) manager.
    ///
    /// # Errors
    ///
    /// [`StateError::AlreadyInTransaction`], and [`StateError::Ending`] from within a commit or abort.
    ///
    /// # Panics
    ///
    /// As [`TransactionManager::begin`].
    pub fn begin(&self) -> Result<ThreadTx, StateError> {
        self.begin_with(Options::default())
    }

    /// The same with options.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin).
    ///
    /// # Panics
    ///
    /// As [`begin`](Self::begin).
    pub fn begin_with(&self, options: Options) -> Result<ThreadTx, StateError> {
        match self.state() {
            None => {}
            Some((State::Ending, id)) => return Err(StateError::Ending { id }),
            Some((_, id)) if self.explicit => return Err(StateError::AlreadyInTransaction { id }),
            Some(_) => self.abort()?,
        }
        let transaction = self.manager.begin_unannounced(options, Home::Thread);
        let tx = transaction.handle();
        put(self.key, Slot::Open(transaction));
        // The synchronizers are told when it is the current one.
        tx.announce();
        Ok(ThreadTx::new(tx))
    }

    /// This thread's transaction, also while it ends, and when its commit has failed, until it is aborted. None begins by itself.
    ///
    /// # Errors
    ///
    /// [`StateError::NoTransaction`].
    pub fn get(&self) -> Result<ThreadTx, StateError> {
        let tx = SLOTS.with_borrow(|slots| slots.get(&self.key).map(|slot| slot.tx().clone()));
        tx.map(ThreadTx::new).ok_or(StateError::NoTransaction)
    }

    /// Commits this thread's transaction, on this thread. Where it fails the transaction is rolled back or unknown, and stays the current
    /// one, to be aborted, as with the ancestor.
    ///
    /// # Errors
    ///
    /// [`ThreadError::Commit`] as [`Transaction::commit`]. [`ThreadError::State`], where nothing was done: there is none, it is doomed (only
    /// an abort is left), its commit has failed before, or it is ending.
    pub fn commit(&self) -> Result<Committed, ThreadError> {
        let tx = self.get()?;
        let id = tx.id();
        if tx.is_doomed() && self.is_open(id) {
            return Err(StateError::Doomed { id }.into());
        }
        let (transaction, ending) = self.take()?;
        let committed = ending_commit(transaction);
        drop(ending);
        committed.map_err(|error| {
            put(self.key, Slot::Failed((*tx).clone(), chain(&error)));
            ThreadError::Commit(error)
        })
    }

    /// Gives this thread's transaction up, and rolls it back on this thread. One whose commit has failed is only taken leave of.
    ///
    /// # Errors
    ///
    /// [`StateError::NoTransaction`], and [`StateError::Ending`] from within a commit or abort.
    pub fn abort(&self) -> Result<(), StateError> {
        if let Some((State::Failed, _)) = self.state() {
            remove(self.key);
            return Ok(());
        }
        let (transaction, _ending) = self.take()?;
        wait(async move { transaction.abort().await });
        Ok(())
    }

    /// Dooms this thread's transaction: it can only be aborted from now on.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn doom(&self) -> Result<(), StateError> {
        self.get().map(|tx| tx.doom())
    }

    /// Whether this thread's transaction is doomed.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn is_doomed(&self) -> Result<bool, StateError> {
        self.get().map(|tx| tx.is_doomed())
    }

    /// A savepoint of this thread's transaction, as [`Tx::savepoint`].
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get) and [`Tx::savepoint`].
    pub fn savepoint(&self) -> Result<ThreadSavepoint, ThreadError> {
        Ok(self.get()?.savepoint()?)
    }

    /// The same, as [`Tx::savepoint_optimistic`].
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get) and [`Tx::savepoint_optimistic`].
    pub fn savepoint_optimistic(&self) -> Result<ThreadSavepoint, ThreadError> {
        Ok(self.get()?.savepoint_optimistic()?)
    }

    /// Runs work in a transaction and commits it, as [`TransactionManager::run`]: a conflict in the work or in the commit repeats it, after
    /// a wait that grows, at most `attempts` times in all (at least once). An unknown outcome is never repeated.
    ///
    /// It begins as [`begin`](Self::begin) does. The transaction is also the [`current`](crate::current()) one while the work runs.
    /// Whatever happens it has ended afterwards.
    ///
    /// # Errors
    ///
    /// [`RunError`]: the begin's, the work's or the commit's.
    ///
    /// # Panics
    ///
    /// When the work does, after an abort.
    pub fn run<T, F>(&self, attempts: u32, mut work: F) -> Result<T, RunError>
    where
        F: FnMut(&ThreadTx) -> Result<T, BoxError>,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let tx = self.begin().map_err(|source| RunError::State { source })?;
            let failed = match self.work(&tx, &mut work) {
                Ok(value) => {
                    if !self.is_open(tx.id()) {
                        return Err(RunError::State { source: StateError::NoTransaction });
                    }
                    let (transaction, _ending) = self.take().map_err(|source| RunError::State { source })?;
                    match ending_commit(transaction) {
                        Ok(_) => return Ok(value),
                        Err(source) if attempt < attempts && source.is_retryable() => None,
                        Err(source) => Some(RunError::Commit { attempts: attempt, source }),
                    }
                }
                Err(source) => {
                    // What the work has ended by itself is not repeated: it may have committed.
                    let open = self.is_open(tx.id());
                    let retry = open && attempt < attempts && tx.is_retryable(&*source);
                    if open {
                        self.abort().map_err(|source| RunError::State { source })?;
                    }
                    (!retry).then_some(RunError::Work { attempts: attempt, source })
                }
            };
            match failed {
                Some(error) => return Err(error),
                None => wait(self.manager.inner.env.sleep(self.manager.inner.retry_wait(attempt))),
            }
        }
    }

    /// Aborts where the work unwinds.
    fn work<T>(&self, tx: &ThreadTx, work: &mut impl FnMut(&ThreadTx) -> Result<T, BoxError>) -> Result<T, BoxError> {
        let mut unwinding = Unwinding { manager: self, id: Some(tx.id()) };
        let done = current::within((**tx).clone(), || work(tx));
        unwinding.id = None;
        done
    }

    /// As [`TransactionManager::register_synchronizer`]: it is told of the transactions of all threads. Where this thread is in a transaction,
    /// it is told of that one's begin.
    pub fn register_synchronizer<S: Synchronizer>(&self, synchronizer: &Arc<S>) {
        match self.get() {
            Ok(tx) => current::within((*tx).clone(), || self.manager.register_synchronizer(synchronizer)),
            Err(_) => self.manager.register_synchronizer(synchronizer),
        }
    }

    /// The manager whose transactions these are: its synchronizers, its recovery, its owner.
    pub fn manager(&self) -> &TransactionManager {
        &self.manager
    }

    /// As [`TransactionManager::recover`], waiting: one pass of recovery, now.
    pub fn recover(&self) -> Vec<InDoubt> {
        wait(self.manager.recover())
    }

    /// As [`TransactionManager::shutdown`], waiting. End this thread's transaction before: it is waited for in vain.
    ///
    /// # Errors
    ///
    /// As [`TransactionManager::shutdown`].
    pub fn shutdown(&self, deadline: Duration) -> Result<(), Undrained> {
        wait(self.manager.shutdown(deadline))
    }

    fn state(&self) -> Option<(State, TransactionId)> {
        SLOTS.with_borrow(|slots| {
            let slot = slots.get(&self.key)?;
            let state = match slot {
                Slot::Open(_) => State::Open,
                Slot::Ending(_) => State::Ending,
                Slot::Failed(..) => State::Failed,
            };
            Some((state, slot.tx().id()))
        })
    }

    fn is_open(&self, id: TransactionId) -> bool {
        self.state() == Some((State::Open, id))
    }

    /// Takes the open transaction, to end it. It stays the current one until the guard is dropped.
    fn take(&self) -> Result<(Transaction, Ending), StateError> {
        SLOTS.with_borrow_mut(|slots| {
            let slot = slots.get_mut(&self.key).ok_or(StateError::NoTransaction)?;
            let tx = slot.tx().clone();
            match std::mem::replace(slot, Slot::Ending(tx.clone())) {
                Slot::Open(transaction) => Ok((transaction, Ending { key: self.key })),
                other => {
                    let error = match &other {
                        Slot::Failed(_, why) => StateError::Failed { id: tx.id(), why: why.clone() },
                        _ => StateError::Ending { id: tx.id() },
                    };
                    *slot = other;
                    Err(error)
                }
            }
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ending,
    Failed,
}

/// While it is there the thread's transaction is ending; then the thread has none.
struct Ending {
    key: u64,
}

impl Drop for Ending {
    fn drop(&mut self) {
        remove(self.key);
    }
}

/// Aborts the transaction of a work that panics.
struct Unwinding<'m> {
    manager: &'m ThreadManager,
    id: Option<TransactionId>,
}

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        if self.id.is_some_and(|id| self.manager.is_open(id)) {
            // It is open, so it can be aborted.
            let _ = self.manager.abort();
        }
    }
}

/// The call of commit is made within the wait, so that all of it runs on this thread.
fn ending_commit(transaction: Transaction) -> Result<Committed, CommitError> {
    wait(async move { transaction.commit().await })
}

/// What was there is dropped when the slots can be used again.
fn put(key: u64, slot: Slot) {
    drop(SLOTS.with_borrow_mut(|slots| slots.insert(key, slot)));
}

fn remove(key: u64) {
    drop(SLOTS.with_borrow_mut(|slots| slots.remove(&key)));
}
