//! Synchronizers: who is told of the boundaries of all transactions of a manager, without being asked for.
//!
//! Must not know the protocol, nor what a synchronizer does.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use unanimous_core::Outcome;

use crate::current;
use crate::hooks::message;
use crate::manager::TransactionManager;
use crate::sync::lock;
use crate::transaction::Tx;

/// Is told of the boundaries of every transaction of a manager that it is registered with: for caches, connections and the like that
/// live longer than a transaction. For a single transaction see its [hooks](crate::Tx#hooks).
///
/// Its methods are called in the order of registration, outside of any lock, and must not block. A panic is reported, and the others
/// are called all the same.
pub trait Synchronizer: Send + Sync + 'static {
    /// A transaction has begun; it is the [`current`](crate::current()) one meanwhile. One that an HTTP layer begins lazily is
    /// noted before, by the task that asks for it first.
    fn new_transaction(&self, tx: &Tx) {
        let _ = tx;
    }

    /// The transaction is about to be committed or aborted, after its before-hooks and where they run: nothing was asked of its
    /// branches yet. It is the current one, and may be doomed here. What is joined here, without awaiting, is part of it, and the
    /// before-commit hooks that are added run.
    ///
    /// A panic aborts a commit, as a failing hook does.
    fn before_completion(&self, tx: &Tx) {
        let _ = tx;
    }

    /// The transaction has ended so: before its after-commit hooks, or after its after-abort hooks. Nothing can be joined any more.
    fn after_completion(&self, tx: &Tx, outcome: Outcome) {
        let _ = (tx, outcome);
    }
}

/// The synchronizers of one manager.
#[derive(Default)]
pub(crate) struct Synchronizers {
    list: Mutex<Vec<Weak<dyn Synchronizer>>>,
    /// How many are in the list, so that transactions need no lock where there are none.
    count: AtomicUsize,
}

impl Synchronizers {
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Weak<dyn Synchronizer>>)) {
        let mut list = lock(&self.list);
        change(&mut list);
        self.count.store(list.len(), Ordering::Release);
    }

    /// Those that are still there.
    fn alive(&self) -> Vec<Arc<dyn Synchronizer>> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut alive = Vec::new();
        self.change(|list| {
            list.retain(|weak| {
                alive.extend(weak.upgrade());
                weak.strong_count() > 0
            });
        });
        alive
    }

    pub(crate) fn new_transaction(&self, tx: &Tx) {
        for synchronizer in self.alive() {
            announce(&*synchronizer, tx);
        }
    }

    /// Gives the message of the first that panicked.
    pub(crate) fn before_completion(&self, tx: &Tx) -> Result<(), SynchronizerPanicked> {
        let mut result = Ok(());
        for synchronizer in self.alive() {
            let call = || current::within(tx.clone(), || synchronizer.before_completion(tx));
            if let Err(panicked) = called(tx, "before_completion", call) {
                result = result.and(Err(panicked));
            }
        }
        result
    }

    pub(crate) fn after_completion(&self, tx: &Tx, outcome: Outcome) {
        for synchronizer in self.alive() {
            // Reported; the transaction has ended.
            let _ = called(tx, "after_completion", || synchronizer.after_completion(tx, outcome));
        }
    }
}

fn announce(synchronizer: &dyn Synchronizer, tx: &Tx) {
    // Reported; the transaction has begun all the same.
    let _ = called(tx, "new_transaction", || current::within(tx.clone(), || synchronizer.new_transaction(tx)));
}

fn called(tx: &Tx, method: &'static str, call: impl FnOnce()) -> Result<(), SynchronizerPanicked> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let panicked = SynchronizerPanicked { method, message: message(&*panic) };
        tracing::error!(transaction = %tx.id(), error = &panicked as &(dyn std::error::Error + 'static), "a synchronizer panicked");
        panicked
    })
}

/// A synchronizer's panic.
#[derive(Debug)]
pub(crate) struct SynchronizerPanicked {
    method: &'static str,
    message: String,
}

impl fmt::Display for SynchronizerPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a synchronizer panicked in {}: {}", self.method, self.message)
    }
}

impl std::error::Error for SynchronizerPanicked {}

impl TransactionManager {
    /// Tells a synchronizer of the boundaries of all transactions from now on, those that have begun included. It is held weakly: it
    /// leaves when its last owner drops it. Registered twice, it is called once.
    ///
    /// Where the caller runs in an active transaction of this manager (see [`current`](crate::current())), its
    /// [`new_transaction`](Synchronizer::new_transaction) is called with that one.
    pub fn register_synchronizer<S: Synchronizer>(&self, synchronizer: &Arc<S>) {
        let mut is_new = false;
        self.inner.synchronizers.change(|list| {
            is_new = !list.iter().any(|other| is_same(other, synchronizer));
            if is_new {
                let weak: Weak<S> = Arc::downgrade(synchronizer);
                list.push(weak);
            }
        });
        if let (true, Some(tx)) = (is_new, current::begun())
            && Arc::ptr_eq(&tx.shared.manager, &self.inner)
            && tx.is_active()
        {
            announce(&**synchronizer, &tx);
        }
    }

    /// Tells it no more. Nothing happens where it is not registered.
    pub fn unregister_synchronizer<S: Synchronizer>(&self, synchronizer: &Arc<S>) {
        self.inner.synchronizers.change(|list| list.retain(|other| !is_same(other, synchronizer)));
    }

    /// Forgets all synchronizers.
    pub fn clear_synchronizers(&self) {
        self.inner.synchronizers.change(Vec::clear);
    }

    /// Whether any synchronizer is registered and alive.
    pub fn has_synchronizers(&self) -> bool {
        !self.inner.synchronizers.alive().is_empty()
    }
}

/// By address: a weak handle keeps its place in memory from being used again.
fn is_same<S: Synchronizer>(weak: &Weak<dyn Synchronizer>, synchronizer: &Arc<S>) -> bool {
    std::ptr::addr_eq(weak.as_ptr(), Arc::as_ptr(synchronizer))
}
