//! [`Transaction`], the owner that ends a transaction, and [`Tx`], the handle that is shared.
//!
//! Must not know the protocol: it gathers branches and hands them to the driver.

use std::future::Future;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use unanimous_core::{Branch, Outcome, ResourceManager, TransactionId};

use crate::error::{CommitError, JoinError};

/// How a transaction begins.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Aborted when commit has not started by then.
    pub time_limit: Option<Duration>,
    /// Names of branches that may take part beside others that write although they are volatile or one-phase (rule 10).
    pub allow: Vec<String>,
}

/// The owner of a transaction. Not `Clone`; ends it. Dropped without an end, it is aborted in the background, with a warning.
#[derive(Debug)]
pub struct Transaction {
    tx: Tx,
}

impl Transaction {
    /// Commits. Starts at the call, detached: dropping the future changes nothing.
    pub fn commit(self) -> Commit {
        todo!()
    }

    /// Gives the transaction up; returns when its branches are rolled back, or after `phase_two_wait`.
    pub async fn abort(self) {
        todo!()
    }

    /// A handle to share.
    pub fn handle(&self) -> Tx {
        self.tx.clone()
    }
}

impl Deref for Transaction {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

/// A commit under way; its future may be dropped or forgotten.
#[derive(Debug)]
#[must_use = "the outcome is known only to those who wait for it"]
pub struct Commit {
    _todo: (),
}

impl Future for Commit {
    type Output = Result<Committed, CommitError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        todo!()
    }
}

/// The transaction has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The transaction.
    pub id: TransactionId,
    /// Branches that had not confirmed within `phase_two_wait`; they are committed in the background.
    pub pending: usize,
}

/// A handle of a transaction: joins, dooms, annotates, but does not end it.
#[derive(Clone, Debug)]
pub struct Tx {
    shared: Arc<()>,
}

impl Tx {
    /// The transaction's id.
    pub fn id(&self) -> TransactionId {
        todo!()
    }

    /// Joins a registered resource: its branch begins, or is given again where it had joined before.
    pub async fn join<'t, R: ResourceManager>(&'t self, resource: &R) -> Result<Joined<'t, R::Branch>, JoinError> {
        self.join_with(resource, R::Options::default()).await
    }

    /// The same, with the resource's own options; they count where the branch begins now.
    pub async fn join_with<'t, R: ResourceManager>(
        &'t self,
        _resource: &R,
        _options: R::Options,
    ) -> Result<Joined<'t, R::Branch>, JoinError> {
        todo!()
    }

    /// Joins a branch that no registered resource stands behind: volatile or one-phase.
    pub fn join_branch<B: Branch>(&self, _name: &str, _branch: B) -> Result<Joined<'_, B>, JoinError> {
        todo!()
    }

    /// From now on it can only be aborted.
    pub fn doom(&self) {
        todo!()
    }

    /// Whether it was doomed.
    pub fn is_doomed(&self) -> bool {
        todo!()
    }

    /// Adds a line to the transaction's note.
    pub fn note(&self, _text: &str) {
        todo!()
    }

    /// Sets the user on whose behalf it runs.
    pub fn set_user(&self, _user: &str) {
        todo!()
    }

    /// Lets the branch of this name take part beside others that write although it is volatile or one-phase (rule 10).
    pub fn allow(&self, _name: &str) {
        todo!()
    }

    /// Called once when the transaction has ended, however it did.
    pub fn after_end(&self, _callback: impl FnOnce(Outcome) + Send + 'static) {
        todo!()
    }
}

/// A branch in use. Commit with one of these outstanding aborts with "in use".
#[derive(Debug)]
pub struct Joined<'t, B: Branch> {
    branch: Arc<B>,
    _tx: PhantomData<&'t Tx>,
}

impl<B: Branch> Deref for Joined<'_, B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.branch
    }
}
