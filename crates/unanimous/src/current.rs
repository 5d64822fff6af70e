//! The transaction that a task runs in: what [`current`] gives, and who sets it.
//!
//! It belongs to the task's future, not to the thread: a future that is scoped carries it over every await, and what it spawns
//! does not inherit it, since nobody would wait for a spawned task before committing.
//!
//! Must not know HTTP, the protocol, or how a transaction begins and ends: it holds what it is given.

use std::future::Future;
#[cfg(feature = "http")]
use std::sync::Arc;

#[cfg(feature = "http")]
use crate::lazy::Lazy;
use crate::transaction::Tx;

tokio::task_local! {
    static CURRENT: Current;
}

#[derive(Clone)]
enum Current {
    Begun(Tx),
    #[cfg(feature = "http")]
    Lazy(Arc<dyn Lazy>),
}

/// The current task's transaction: the one that [`scope`], [`TransactionManager::run`](crate::TransactionManager::run) or an HTTP
/// layer runs it in. Where the transaction begins lazily, this begins it.
///
/// A [thread's manager](crate::thread::ThreadManager::get) is asked itself for what it has begun.
///
/// None outside of any of them, and in a task that was spawned from within. Within a [`scope`] that goes on after the transaction's end
/// it is the ended one, which [`is_active`](Tx::is_active) tells; a request's layer gives it up at the end.
pub fn current() -> Option<Tx> {
    // Out of the task's storage first: a transaction that begins here tells the synchronizers, who have a current one too.
    match CURRENT.try_with(Clone::clone).ok()? {
        Current::Begun(tx) => Some(tx),
        #[cfg(feature = "http")]
        Current::Lazy(lazy) => lazy.tx(),
    }
}

/// Runs `future` with `tx` as its [`current`] transaction. Scopes nest; the inner one counts.
///
/// Ends nothing: whoever owns the transaction does. Dropping the future drops what runs in it.
pub async fn scope<F: Future>(tx: Tx, future: F) -> F::Output {
    CURRENT.scope(Current::Begun(tx), future).await
}

/// Runs something with `tx` as the current transaction.
pub(crate) fn within<R>(tx: Tx, piece: impl FnOnce() -> R) -> R {
    CURRENT.sync_scope(Current::Begun(tx), piece)
}

/// The current transaction, if it has begun.
pub(crate) fn begun() -> Option<Tx> {
    match CURRENT.try_with(Clone::clone).ok()? {
        Current::Begun(tx) => Some(tx),
        #[cfg(feature = "http")]
        Current::Lazy(lazy) => lazy.begun(),
    }
}

/// Runs a piece of a future with a transaction that begins lazily as the current one.
#[cfg(feature = "http")]
pub(crate) fn enter<R>(lazy: Arc<dyn Lazy>, piece: impl FnOnce() -> R) -> R {
    CURRENT.sync_scope(Current::Lazy(lazy), piece)
}
