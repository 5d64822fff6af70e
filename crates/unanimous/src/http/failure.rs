//! The response to a commit that did not succeed.
//!
//! Must not show a client what a store said: internal error text belongs in the log, and the layer puts it there.

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::error::CommitError;

/// The header that carries a transaction's id where its outcome is unknown.
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
/// | has an unknown outcome | 500 | must not be repeated blindly; its id is in the header [`TRANSACTION_HEADER`] and in the document |
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultOnCommitFailure;

impl<B: From<String>> OnCommitFailure<B> for DefaultOnCommitFailure {
    fn response(&self, error: &CommitError) -> Response<B> {
        let id = error.id();
        let (status, kind, title, detail) = match error {
            CommitError::Unknown { .. } => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "commit-unknown",
                "It is not known yet whether the changes were stored",
                "The changes may have been stored. Look before you repeat the request; \
                 the id names the transaction to those who run this service.",
            ),
            CommitError::Aborted { .. } if error.is_retryable() => (
                StatusCode::CONFLICT,
                "commit-conflict",
                "Another request changed the same data at the same time",
                "Nothing was stored. The request may be repeated.",
            ),
            CommitError::Aborted { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "commit-aborted",
                "The changes could not be stored",
                "Nothing was stored. The request may be repeated later.",
            ),
        };
        let unknown = matches!(error, CommitError::Unknown { .. });
        // No text here needs escaping in JSON: an id has digits, letters and dots only.
        let transaction = if unknown { format!(r#","transaction":"{id}""#) } else { String::new() };
        let body = format!(
            r#"{{"type":"https://docs.rs/unanimous/latest/unanimous/http/index.html#{kind}","title":"{title}","status":{},"detail":"{detail}"{transaction}}}"#,
            status.as_u16()
        );
        let mut response = Response::new(B::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if unknown {
            let id = HeaderValue::try_from(id.to_string()).expect("an id has digits, letters and dots only");
            headers.insert(TRANSACTION_HEADER, id);
        }
        response
    }
}
