//! The transaction that a task runs in: what [`current`] gives, and who sets it.
//!
//! It belongs to the task's future, not to the thread: a future that is scoped carries it over every await, and what it spawns
//! does not inherit it, since nobody would wait for a spawned task before committing.
//!
//! Must not know HTTP, the protocol, or how a transaction begins and ends: it holds what it is given.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::transaction::{Transaction, Tx};

tokio::task_local! {
    static CURRENT: Current;
}

#[derive(Clone)]
enum Current {
    Begun(Tx),
    Lazy(Arc<LazyTransaction>),
}

/// The current task's transaction: the one that [`scope`], [`TransactionManager::run`](crate::TransactionManager::run) or an HTTP
/// layer runs it in. Where the transaction begins lazily, this begins it.
///
/// None outside of any of them, in a task that was spawned from within, and after the transaction's end.
pub fn current() -> Option<Tx> {
    CURRENT
        .try_with(|current| match current {
            Current::Begun(tx) => Some(tx.clone()),
            Current::Lazy(lazy) => lazy.tx(),
        })
        .ok()
        .flatten()
}

/// Runs `future` with `tx` as its [`current`] transaction. Scopes nest; the inner one counts.
///
/// Ends nothing: whoever owns the transaction does. Dropping the future drops what runs in it.
pub async fn scope<F: Future>(tx: Tx, future: F) -> F::Output {
    CURRENT.scope(Current::Begun(tx), future).await
}

/// A transaction that begins when it is first asked for, and is ended by whoever holds its [`LazyOwner`].
pub(crate) struct LazyTransaction {
    state: Mutex<State>,
}

enum State {
    Untouched(Box<dyn FnOnce() -> Transaction + Send>),
    Begun(Transaction),
    Ended,
}

impl LazyTransaction {
    /// A slot whose transaction `begin` begins, at most once. `begin` is called under a lock: it must not ask for the current
    /// transaction, and must not block.
    pub(crate) fn lazily(begin: impl FnOnce() -> Transaction + Send + 'static) -> LazyOwner {
        LazyOwner(Arc::new(Self { state: Mutex::new(State::Untouched(Box::new(begin))) }))
    }

    /// The transaction, begun now if it was not; none after its end.
    pub(crate) fn tx(&self) -> Option<Tx> {
        let mut state = lock(&self.state);
        if let State::Untouched(_) = &*state {
            // Ended meanwhile: a begin that panics leaves a slot that gives nothing, not one that is half begun.
            if let State::Untouched(begin) = std::mem::replace(&mut *state, State::Ended) {
                *state = State::Begun(begin());
            }
        }
        match &*state {
            State::Begun(transaction) => Some(transaction.handle()),
            State::Untouched(_) | State::Ended => None,
        }
    }

    /// Whether the transaction has begun or still may.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(&*lock(&self.state), State::Ended)
    }

    /// Runs `poll` with this as the current transaction.
    pub(crate) fn enter<R>(self: &Arc<Self>, poll: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(Current::Lazy(self.clone()), poll)
    }
}

impl fmt::Debug for LazyTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &*lock(&self.state) {
            State::Untouched(_) => "LazyTransaction(untouched)",
            State::Begun(_) => "LazyTransaction(begun)",
            State::Ended => "LazyTransaction(ended)",
        })
    }
}

/// The one who ends a lazy transaction. Dropped, it ends the slot, and the transaction with it if it had begun: aborted, as every
/// [`Transaction`] that is dropped, however many handles are still around.
#[derive(Debug)]
pub(crate) struct LazyOwner(Arc<LazyTransaction>);

impl LazyOwner {
    /// The slot, to be shared.
    pub(crate) fn slot(&self) -> &Arc<LazyTransaction> {
        &self.0
    }

    /// Closes the slot and gives the transaction out, if it had begun: nobody can begin it any more.
    pub(crate) fn take(&self) -> Option<Transaction> {
        match std::mem::replace(&mut *lock(&self.0.state), State::Ended) {
            State::Begun(transaction) => Some(transaction),
            State::Untouched(_) | State::Ended => None,
        }
    }
}

impl Drop for LazyOwner {
    fn drop(&mut self) {
        // Taken out first and dropped after: an abort in the background must not start under the lock.
        drop(self.take());
    }
}
