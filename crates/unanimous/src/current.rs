//! The current transaction of a task. Must not know who set it.

use std::future::Future;

use crate::transaction::Tx;

tokio::task_local! {
    static CURRENT: Tx;
}

/// The current task's transaction: the one that an HTTP layer, [`run`](crate::TransactionManager::run) or [`scope`] runs it in.
pub fn current() -> Option<Tx> {
    CURRENT.try_with(Tx::clone).ok()
}

/// Runs a future with `tx` as its [`current`] transaction.
pub async fn scope<F: Future>(tx: Tx, future: F) -> F::Output {
    CURRENT.scope(tx, future).await
}
