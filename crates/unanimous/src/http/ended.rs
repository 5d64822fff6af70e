//! What the layers tell each other by a response's extensions: how its transaction ended, and what its handler wants.
//!
//! Must not know who asks, nor who answers.

use http::Response;
use unanimous_core::{Outcome, TransactionId};

use crate::error::CommitError;

/// How a request's transaction ended: in the extensions of every response whose transaction had begun, for what is further out than the
/// [`TransactionLayer`](super::TransactionLayer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ended {
    /// The transaction.
    pub id: TransactionId,
    /// Committed, aborted, or unknown.
    pub outcome: Outcome,
    /// Whether repeating the request may help: its transaction was aborted by a conflict, or its handler has said so
    /// ([`Retryable`]). Never where the outcome is not aborted.
    pub retryable: bool,
}

impl Ended {
    pub(crate) fn committed(id: TransactionId) -> Self {
        Self { id, outcome: Outcome::Committed, retryable: false }
    }

    pub(crate) fn aborted(id: TransactionId, retryable: bool) -> Self {
        Self { id, outcome: Outcome::Aborted, retryable }
    }

    pub(crate) fn failed(error: &CommitError) -> Self {
        let outcome = match error {
            CommitError::Aborted { .. } => Outcome::Aborted,
            CommitError::Unknown { .. } => Outcome::Unknown,
        };
        Self { id: error.id(), outcome, retryable: error.is_retryable() }
    }
}

/// What a handler puts into its response's extensions to say: abort, and repeat me.
///
/// The transaction is aborted, whatever a veto would say, and a [`RetryLayer`](super::RetryLayer) further out runs the request again.
/// Where there is none, or no attempt is left, the response goes out as it is.
///
/// [`Failed`](super::Failed) sets it by itself. It is for handlers that answer a conflict with a response of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retryable;

/// What a handler puts into its response's extensions to say: abort, whatever a veto would say. The response goes out as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AbortTransaction;

/// In the extensions of a response that tells of another transaction's unknown outcome: that one is named by the header, since whoever asks
/// how it ended must not learn that the request's own one was aborted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named(pub(crate) TransactionId);

/// What a layer further in puts into the extensions of a response that another transaction has made: what this one writes makes sure that it is
/// true. It goes out when this one has committed, which nothing vetoes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay;

/// What a layer further in puts into the extensions of its own answer to a request of which this transaction did nothing: the id is not told,
/// since it would be taken for that of the request's work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unnamed;

/// Whether the response must not tell its transaction's id.
pub(crate) fn is_unnamed<B>(response: &Response<B>) -> bool {
    response.extensions().get::<Unnamed>().is_some()
}

/// Whether the response may only go out behind a commit.
pub(crate) fn is_replay<B>(response: &Response<B>) -> bool {
    response.extensions().get::<Replay>().is_some()
}

/// Whether the response says that it wants to be repeated.
pub(crate) fn is_retryable<B>(response: &Response<B>) -> bool {
    response.extensions().get::<Retryable>().is_some()
}

/// Whether the response says that its transaction must not commit.
pub(crate) fn aborts<B>(response: &Response<B>) -> bool {
    is_retryable(response) || response.extensions().get::<AbortTransaction>().is_some()
}
