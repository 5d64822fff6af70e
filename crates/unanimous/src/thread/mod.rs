//! Transactions of plain threads: each thread has its current one, and everything of it runs on that thread, without a runtime.
//!
#![cfg_attr(all(feature = "sqlite", feature = "files"), doc = include_str!("../docs/thread.md"))]
//!
//! # What runs where
//!
//! | | |
//! | --- | --- |
//! | branches: joins, work, flush, votes, commit, rollback, savepoints | on the thread that waits for them, one at a time, in the order of [`Branch::sort_key`](crate::Branch::sort_key), then of the name |
//! | hooks, synchronizers, `after_end`, the observer | on the thread that commits or aborts |
//! | a decision's write, where the log is not writing already | on the thread that commits |
//! | recovery, timers, the log's other writes, threads that a store has of its own | on the [`Background`]'s thread and on theirs |
//! | what is not finished when the thread was answered | on a thread of its own |
//!
//! All branches flush in order, then all vote in order, then the decision is forced, then all commit in order. After a no, those that were
//! not asked yet are not asked, and all roll back in order.
//!
//! A commit waits for phase two at most `phase_two_wait`, and tries again meanwhile. Branches that can be recovered are left to recovery
//! then; a volatile one that still fails is tried again on a thread of its own, since nobody else could finish it. An after-hook that is late goes on
//! there too, and a transaction is aborted there whose own thread has ended. Nothing can interrupt a branch that blocks its thread: all waits
//! end behind it.
//!
//! A time limit is looked at whenever the transaction is used, at its commit at the latest, and between its branches then. A thread that
//! forgets its transaction keeps its locks: nobody aborts it from elsewhere.
//!
//! A store over a tokio driver (PostgreSQL's) needs a runtime where it is called: [`Background::enter`] gives it, on each thread that uses it.
//!
//! Must not know the protocol, nor any store.

mod background;
mod error;
mod handle;
mod manager;
mod reserved;

pub use self::background::{Background, Entered};
pub use self::error::{StateError, ThreadError};
pub use self::handle::{ThreadSavepoint, ThreadTx};
pub use self::manager::ThreadManager;
pub use self::reserved::{Reserved, reserve};
pub use crate::inline::{Park, wait, wait_around};
use crate::manager::TransactionManager;
use crate::transaction::{Home, Options, Transaction};

/// Begins a transaction that lives as those of a [`ThreadManager`], and is no thread's current one: for front ends that keep their own
/// account of what is current. A thread may have several.
///
/// Its branches are called on the thread that waits for its end, where the call is made within that wait:
/// `wait(async move { transaction.commit().await })`.
///
/// # Panics
///
/// As [`TransactionManager::begin`].
pub fn begin(manager: &TransactionManager, options: Options) -> Transaction {
    let transaction = manager.begin_unannounced(options, Home::Thread);
    transaction.announce();
    transaction
}
