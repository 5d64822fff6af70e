//! The response to a commit that did not succeed.
//!
//! Must not show a client what a store said: internal error text belongs in the log, and the layer puts it there.

use http::{HeaderName, Response, StatusCode};

use super::problem::Problem;
use crate::error::CommitError;

/// The header that tells the id of a request's transaction, by default: on every response whose transaction had begun. See
/// [`TransactionLayer::transaction_header`](super::TransactionLayer::transaction_header).
pub const TRANSACTION_HEADER: HeaderName = HeaderName::from_static("unanimous-transaction");

/// Makes the response to a commit that failed. Implemented for closures; see
/// [`TransactionLayer::on_commit_failure`](super::TransactionLayer::on_commit_failure).
pub trait OnCommitFailure<B> {
    /// The response that goes out instead of the handler's, which is dropped. The outcome stands whatever this does, panic
    /// included.
    fn response(&self, error: &CommitError) -> Response<B>;
}

impl<F, B> OnCommitFailure<B> for F
where
    F: Fn(&CommitError) -> Response<B>,
{
    fn response(&self, error: &CommitError) -> Response<B> {
        self(error)
    }
}

/// Answers with a problem document (RFC 9457), and with nothing of what the stores said:
///
/// | the commit | status | |
/// | --- | --- | --- |
/// | was aborted by a conflict | 409 | repeating the request may help |
/// | was aborted otherwise | 503 | nothing was stored |
/// | has an unknown outcome | 500 | must not be repeated blindly; its id is in the document |
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultOnCommitFailure;

impl<B: From<String>> OnCommitFailure<B> for DefaultOnCommitFailure {
    fn response(&self, error: &CommitError) -> Response<B> {
        match error {
            CommitError::Unknown { id, .. } => UNKNOWN.response_of(*id),
            CommitError::Aborted { .. } if error.is_retryable() => CONFLICT.response_after(1),
            CommitError::Aborted { .. } => ABORTED.response_after(5),
        }
    }
}

pub(crate) const UNKNOWN: Problem = Problem {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    kind: "commit-unknown",
    title: "It is not known yet whether the changes were stored",
    detail: "The changes may have been stored. Look before you repeat the request; \
             the id names the transaction to those who run this service.",
};

pub(crate) const CONFLICT: Problem = Problem {
    status: StatusCode::CONFLICT,
    kind: "commit-conflict",
    title: "Another request changed the same data at the same time",
    detail: "Nothing was stored. The request may be repeated.",
};

pub(crate) const ABORTED: Problem = Problem {
    status: StatusCode::SERVICE_UNAVAILABLE,
    kind: "commit-aborted",
    title: "The changes could not be stored",
    detail: "Nothing was stored. The request may be repeated later.",
};
