//! A transaction that begins when it is first asked for: what the HTTP layer puts around a handler.
//!
//! Must not know HTTP, nor who asks.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::transaction::{Transaction, Tx};

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
