//! [`ThreadTx`], the handle of a thread's transaction, and its savepoints: what waits, waits here on the calling thread.
//!
//! Must not know how a transaction begins or ends.

use std::fmt;
use std::ops::Deref;

use unanimous_core::{BoxError, Outcome, ResourceManager};

use crate::error::{HookError, JoinError, SavepointError};
use crate::inline::wait;
use crate::savepoint::Savepoint;
use crate::transaction::{Joined, Tx};

/// A handle of a thread's transaction. It can do all that [`Tx`] can: what is asynchronous there waits here, and hooks are plain functions.
///
/// It can be sent to another thread, and what is joined there is part of the same transaction; but it is the current one of its own
/// thread only, which also ends it.
#[derive(Clone)]
pub struct ThreadTx {
    tx: Tx,
}

impl fmt::Debug for ThreadTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadTx").field("id", &self.tx.id()).finish_non_exhaustive()
    }
}

impl Deref for ThreadTx {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

impl ThreadTx {
    pub(super) fn new(tx: Tx) -> Self {
        Self { tx }
    }

    /// As [`Tx::join`], waiting. What the branch itself does asynchronously is given to [`wait`](super::wait).
    ///
    /// # Errors
    ///
    /// As [`Tx::join`].
    pub fn join<R: ResourceManager>(&self, resource: &R) -> Result<Joined<'_, R::Branch>, JoinError> {
        wait(self.tx.join(resource))
    }

    /// As [`Tx::join_with`], waiting.
    ///
    /// # Errors
    ///
    /// As [`Tx::join`].
    pub fn join_with<R: ResourceManager>(
        &self,
        resource: &R,
        options: R::Options,
    ) -> Result<Joined<'_, R::Branch>, JoinError> {
        wait(self.tx.join_with(resource, options))
    }

    /// As [`Tx::savepoint`], waiting.
    ///
    /// # Errors
    ///
    /// As [`Tx::savepoint`].
    pub fn savepoint(&self) -> Result<ThreadSavepoint, SavepointError> {
        wait(self.tx.savepoint()).map(ThreadSavepoint)
    }

    /// As [`Tx::savepoint_optimistic`], waiting.
    ///
    /// # Errors
    ///
    /// As [`Tx::savepoint_optimistic`].
    pub fn savepoint_optimistic(&self) -> Result<ThreadSavepoint, SavepointError> {
        wait(self.tx.savepoint_optimistic()).map(ThreadSavepoint)
    }

    /// As [`Tx::before_commit`], with a function that runs on the thread that commits.
    ///
    /// # Errors
    ///
    /// As [`Tx::before_commit`].
    pub fn before_commit<F>(&self, hook: F) -> Result<(), HookError>
    where
        F: FnOnce(ThreadTx) -> Result<(), BoxError> + Send + 'static,
    {
        self.tx.before_commit(|tx| async move { hook(ThreadTx::new(tx)) })
    }

    /// As [`Tx::after_commit`], with a function that runs on the thread that commits. It is waited for to its end.
    ///
    /// # Errors
    ///
    /// As [`Tx::after_commit`].
    pub fn after_commit<F>(&self, hook: F) -> Result<(), HookError>
    where
        F: FnOnce(ThreadTx, Outcome) -> Result<(), BoxError> + Send + 'static,
    {
        self.tx.after_commit(|tx, outcome| async move { hook(ThreadTx::new(tx), outcome) })
    }

    /// As [`Tx::before_abort`], with a function that runs on the thread that aborts. It is waited for to its end.
    ///
    /// # Errors
    ///
    /// As [`Tx::before_abort`].
    pub fn before_abort<F>(&self, hook: F) -> Result<(), HookError>
    where
        F: FnOnce(ThreadTx) -> Result<(), BoxError> + Send + 'static,
    {
        self.tx.before_abort(|tx| async move { hook(ThreadTx::new(tx)) })
    }

    /// As [`Tx::after_abort`], with a function that runs on the thread that aborts. It is waited for to its end.
    ///
    /// # Errors
    ///
    /// As [`Tx::after_abort`].
    pub fn after_abort<F>(&self, hook: F) -> Result<(), HookError>
    where
        F: FnOnce(ThreadTx) -> Result<(), BoxError> + Send + 'static,
    {
        self.tx.after_abort(|tx| async move { hook(ThreadTx::new(tx)) })
    }
}

/// A [`Savepoint`] of a thread's transaction: its rollback waits.
#[derive(Debug)]
#[must_use = "a savepoint is made to be rolled back to"]
pub struct ThreadSavepoint(Savepoint);

impl ThreadSavepoint {
    /// As [`Savepoint::rollback`], waiting.
    ///
    /// # Errors
    ///
    /// As [`Savepoint::rollback`].
    pub fn rollback(&self) -> Result<(), SavepointError> {
        wait(self.0.rollback())
    }

    /// As [`Savepoint::is_valid`].
    pub fn is_valid(&self) -> bool {
        self.0.is_valid()
    }
}
