//! What a commit and an abort give their caller: futures that tell the outcome, and change nothing when they are dropped (rule 6).
//!
//! Must not know how the outcome comes about.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use unanimous_core::TransactionId;

use crate::error::{Cause, CommitError};

/// What the caller of a commit is answered.
pub(crate) type Answered = Result<Committed, CommitError>;

/// The way to the caller of a commit, who may have gone away.
pub(crate) type Reply = oneshot::Sender<Answered>;

enum Answer {
    Ready(Option<Answered>),
    Waiting(oneshot::Receiver<Answered>),
}

/// A commit under way. Dropping it changes nothing; awaiting it gives the outcome.
#[must_use = "the outcome is known only to those who wait for it"]
pub struct Commit {
    id: TransactionId,
    answer: Answer,
}

impl Commit {
    /// One that is answered through a channel.
    pub(crate) fn waiting(id: TransactionId) -> (Reply, Self) {
        let (reply, answer) = oneshot::channel();
        (reply, Self { id, answer: Answer::Waiting(answer) })
    }

    pub(crate) fn ready(result: Answered) -> Self {
        let id = match &result {
            Ok(committed) => committed.id,
            Err(error) => error.id(),
        };
        Self { id, answer: Answer::Ready(Some(result)) }
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Future for Commit {
    type Output = Result<Committed, CommitError>;

    /// # Panics
    ///
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id;
        match &mut self.answer {
            Answer::Ready(result) => Poll::Ready(result.take().expect("a commit is not polled after it was ready")),
            Answer::Waiting(receiver) => Pin::new(receiver).poll(cx).map(|answer| {
                // The driver answers before it ends; it was dropped with its runtime.
                answer.unwrap_or_else(|_| Err(CommitError::Unknown { id, source: Cause::Interrupted }))
            }),
        }
    }
}

/// An abort under way. Dropping it changes nothing.
#[derive(Debug)]
#[must_use = "await it to know that the branches are rolled back"]
pub struct Abort {
    commit: Option<Commit>,
}

impl Abort {
    /// None where something else has ended the transaction.
    pub(crate) fn new(commit: Option<Commit>) -> Self {
        Self { commit }
    }
}

impl Future for Abort {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.commit {
            None => Poll::Ready(()),
            Some(commit) => Pin::new(commit).poll(cx).map(|_aborted| ()),
        }
    }
}

/// The transaction has committed: the decision is durable, and every branch has committed or will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The transaction.
    pub id: TransactionId,
    /// Branches that had not confirmed within `phase_two_wait`; they are committed in the background, or after a restart. All that wrote,
    /// where it was [acknowledged early](crate::Builder::early_acknowledgement).
    pub pending: usize,
}

impl Committed {
    pub(crate) fn new(id: TransactionId, pending: usize) -> Self {
        Self { id, pending }
    }
}
