//! A transaction that begins when it is first asked for: what the HTTP layer puts around a handler.
//!
//! Must not know HTTP, nor who asks.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::transaction::{Transaction, Tx};

/// How a lazy transaction begins; what else its users want to know of it may stand beside it.
pub(crate) trait Begin: Send + Sync {
    /// What it takes to begin, let go where nothing begins.
    type Means: Send;

    /// Begins it, at most once, without telling the synchronizers: the slot does. Called under a lock: it must not ask for the current
    /// transaction, and must not block.
    fn begin(&self, means: Self::Means) -> Transaction;
}

/// A transaction that begins when it is first asked for, and is ended by whoever holds its [`LazyOwner`].
pub(crate) struct LazyTransaction<B: Begin> {
    state: Mutex<State<B::Means>>,
    begin: B,
}

/// The same, whatever begins it.
pub(crate) trait Lazy: Send + Sync {
    /// The transaction, begun now if it was not; none after its end.
    fn tx(&self) -> Option<Tx>;

    /// The transaction, if it has begun.
    fn begun(&self) -> Option<Tx>;
}

enum State<M> {
    Untouched(M),
    Begun(Transaction),
    Ended,
}

impl<M> State<M> {
    fn tx(&self) -> Option<Tx> {
        match self {
            State::Begun(transaction) => Some(transaction.handle()),
            State::Untouched(_) | State::Ended => None,
        }
    }
}

impl<B: Begin> LazyTransaction<B> {
    /// A slot for one transaction.
    pub(crate) fn lazily(begin: B, means: B::Means) -> LazyOwner<B> {
        LazyOwner(Arc::new(Self { state: Mutex::new(State::Untouched(means)), begin }))
    }

    /// What begins it.
    pub(crate) fn beginner(&self) -> &B {
        &self.begin
    }

    /// Whether the transaction has begun or still may.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(&*lock(&self.state), State::Ended)
    }
}

impl<B: Begin> Lazy for LazyTransaction<B> {
    fn tx(&self) -> Option<Tx> {
        let mut state = lock(&self.state);
        let untouched = matches!(&*state, State::Untouched(_));
        if untouched {
            // Ended meanwhile: a begin that panics leaves a slot that gives nothing, not one that is half begun.
            if let State::Untouched(means) = std::mem::replace(&mut *state, State::Ended) {
                *state = State::Begun(self.begin.begin(means));
            }
        }
        let tx = state.tx();
        drop(state);
        if let (true, Some(tx)) = (untouched, &tx) {
            // Outside of the lock: synchronizers may ask for the current transaction.
            tx.announce();
        }
        tx
    }

    fn begun(&self) -> Option<Tx> {
        lock(&self.state).tx()
    }
}

impl<B: Begin> fmt::Debug for LazyTransaction<B> {
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
pub(crate) struct LazyOwner<B: Begin>(Arc<LazyTransaction<B>>);

impl<B: Begin> LazyOwner<B> {
    /// The slot, to be shared.
    pub(crate) fn slot(&self) -> &Arc<LazyTransaction<B>> {
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

impl<B: Begin> Drop for LazyOwner<B> {
    fn drop(&mut self) {
        // Taken out first and dropped after: an abort in the background must not start under the lock.
        drop(self.take());
    }
}
