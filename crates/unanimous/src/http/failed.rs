//! [`Failed`]: an error of a handler, which knows whether repeating the request may help, and how to be answered.
//!
//! Must not show a client what an error says: that belongs in the log. Must not know any store.

use std::error::Error;
use std::fmt;

use http::{Response, StatusCode};
use unanimous_core::{BoxError, BranchError, FailureKind, TransactionId};

use super::ended::{AbortTransaction, Named, Retryable};
use super::failure::{ABORTED, CONFLICT, UNKNOWN};
use super::problem::Problem;
use crate::error::{CommitError, JoinError, RunError, chain, is_conflict, is_unknown, sources};

/// An error of a handler: any error turns into it by `?`, and it turns into a response.
///
#[cfg_attr(all(feature = "axum", feature = "files"), doc = "```")]
#[cfg_attr(not(all(feature = "axum", feature = "files")), doc = "```text")]
/// use axum::extract::State;
/// use unanimous::Tx;
/// use unanimous::files::Files;
/// use unanimous::http::Failed;
///
/// async fn order(tx: Tx, State(orders): State<Files>, item: String) -> Result<&'static str, Failed> {
///     let pieces: u32 = item.parse()?;
///     tx.join(&orders).await?.create("7", format!("{pieces} pieces")).await?;
///     Ok("stored")
/// }
/// # let _: axum::Router<Files> = axum::Router::new().route("/orders", axum::routing::post(order));
/// ```
///
/// At the conversion it asks the [current](crate::current) transaction whether the error is a [conflict](crate::Tx::is_retryable): its
/// branches know their stores' errors, also where those are sources of others. So convert in the handler, not later.
///
/// | the error | the response | the transaction |
/// | --- | --- | --- |
/// | is a conflict of the request's transaction | 409 `commit-conflict`, marked [`Retryable`] | aborts; a [`RetryLayer`](super::RetryLayer) repeats the request |
/// | is a conflict of another transaction (a [`RunError`] or a [`CommitError`] says so), or none of the request's has begun | 409 `commit-conflict`: what the handler has committed elsewhere must not be done again | aborts |
/// | a store can't be reached, or has no connection in time; the manager shuts down; a time limit has passed | 503 `store-unavailable` | aborts |
/// | is another commit's, which was aborted otherwise | 503 `commit-aborted` | aborts |
/// | is another commit's, whose outcome is unknown | 500 `commit-unknown`; document and header name that other transaction | aborts |
/// | is any other one | 500 `handler-failed` | aborts |
///
/// It aborts whatever a veto would say, and also where there is none ([`AbortTransaction`]). The error with its sources goes into the log
/// when the response is made, with the transaction's id: a conflict at `debug`, a 503 at `warn`, the others at `error`.
///
/// For a request that is wrong (404, 422) answer with a status of its own; this is for work that failed.
///
/// It is no [`Error`] itself, or it could not be converted from all of them.
pub struct Failed {
    // On the heap, since handlers return it in results.
    inner: Box<Inner>,
}

struct Inner {
    error: BoxError,
    kind: Kind,
    /// The request's transaction, if it had begun.
    id: Option<TransactionId>,
    /// Whether the response asks for a repetition.
    repeat: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Conflict,
    Unavailable,
    /// Another transaction's commit: the request's own comes after the handler.
    Aborted,
    Unknown(TransactionId),
    Other,
}

impl<E: Into<BoxError>> From<E> for Failed {
    fn from(error: E) -> Self {
        let error = error.into();
        let tx = crate::current::begun();
        let conflict = match &tx {
            Some(tx) => tx.is_retryable(&*error),
            None => is_conflict(&*error) && !is_unknown(&*error),
        };
        let kind = if conflict { Kind::Conflict } else { Kind::of(&*error) };
        // A handler that has had transactions of its own may have committed some, which a repetition would do again.
        let repeat = conflict && tx.is_some() && !is_anothers(&*error);
        Self::new(error, kind, tx.map(|tx| tx.id()), repeat)
    }
}

impl Failed {
    /// An error for which the handler knows that repeating the request may help, whatever its store says: it is answered as a conflict in the
    /// current transaction, and repeated, also where no transaction has begun. Never where it tells of an unknown outcome.
    ///
    /// Mind what the handler may have committed in other transactions: that is done again.
    pub fn retryable(error: impl Into<BoxError>) -> Self {
        let error = error.into();
        if is_unknown(&*error) {
            return Self::from(error);
        }
        let id = crate::current::begun().map(|tx| tx.id());
        Self::new(error, Kind::Conflict, id, true)
    }

    fn new(error: BoxError, kind: Kind, id: Option<TransactionId>, repeat: bool) -> Self {
        Self { inner: Box::new(Inner { error, kind, id, repeat }) }
    }

    /// The error that it was made from.
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.inner.error
    }

    /// Whether it is a conflict, so that repeating the request may help.
    pub fn is_retryable(&self) -> bool {
        self.inner.kind == Kind::Conflict
    }

    /// The response: a problem document (RFC 9457) that shows nothing of the error, which goes into the log.
    pub fn response<B: From<String>>(&self) -> Response<B> {
        self.log();
        let mut response = match self.inner.kind {
            Kind::Conflict if is_anothers(&*self.inner.error) => Problem { detail: LOOK_FIRST, ..CONFLICT }.response(),
            Kind::Conflict => CONFLICT.response_after(1),
            Kind::Unavailable => UNAVAILABLE.response_after(5),
            Kind::Aborted => Problem { detail: LOOK_FIRST, ..ABORTED }.response(),
            Kind::Unknown(id) => UNKNOWN.response_of(id),
            Kind::Other => FAILED.response(),
        };
        let extensions = response.extensions_mut();
        extensions.insert(AbortTransaction);
        if let Kind::Unknown(id) = self.inner.kind {
            extensions.insert(Named(id));
        }
        if self.inner.repeat {
            extensions.insert(Retryable);
        }
        response
    }

    fn log(&self) {
        let (transaction, error) = (self.inner.id.map(tracing::field::display), chain(&*self.inner.error));
        match self.inner.kind {
            Kind::Conflict => tracing::debug!(transaction, "a handler met a conflict: {error}"),
            Kind::Unavailable | Kind::Aborted => tracing::warn!(transaction, "a handler failed: {error}"),
            Kind::Unknown(_) | Kind::Other => tracing::error!(transaction, "a handler failed: {error}"),
        }
    }
}

/// Whether it tells of another transaction than the request's, whose commit is the layer's and comes after the handler.
fn is_anothers(error: &(dyn Error + 'static)) -> bool {
    sources(error).any(|error| error.is::<RunError>() || error.is::<CommitError>())
}

/// Whether time can cure what this error tells of: it is answered with 503 then, and with 500 where it can't.
pub(crate) fn is_temporary(error: &(dyn Error + 'static)) -> bool {
    matches!(Kind::of(error), Kind::Unavailable | Kind::Aborted)
}

impl Kind {
    /// Of an error that is no conflict: the first one that says something counts.
    fn of(error: &(dyn Error + 'static)) -> Self {
        let said = |error: &(dyn Error + 'static)| {
            if let Some(commit) = error.downcast_ref::<CommitError>() {
                return Some(match commit {
                    CommitError::Aborted { .. } => Kind::Aborted,
                    CommitError::Unknown { id, .. } => Kind::Unknown(*id),
                });
            }
            let unavailable = match error.downcast_ref::<JoinError>() {
                Some(join) => join.is_temporary(),
                None => error.downcast_ref::<BranchError>().is_some_and(|branch| branch.kind() == FailureKind::Lost),
            };
            unavailable.then_some(Kind::Unavailable)
        };
        sources(error).find_map(said).unwrap_or(Kind::Other)
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failed")
            .field("kind", &self.inner.kind)
            .field("error", &self.inner.error)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner.error, f)
    }
}

/// Where the handler has had transactions of its own: some of them may have committed.
const LOOK_FIRST: &str =
    "One of the request's transactions stored nothing. Others may have. Look before you repeat the request.";

const UNAVAILABLE: Problem = Problem {
    status: StatusCode::SERVICE_UNAVAILABLE,
    kind: "store-unavailable",
    title: "A store that is needed can't be used now",
    detail: "The request may be repeated later.",
};

const FAILED: Problem = Problem {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    kind: "handler-failed",
    title: "The request could not be handled",
    detail: "The fault is the service's, where it was written down.",
};

#[cfg(feature = "axum")]
mod responses {
    use axum_core::body::Body;
    use axum_core::response::{IntoResponse, Response};

    use super::Failed;
    use crate::error::{CommitError, JoinError, RunError};

    impl IntoResponse for Failed {
        fn into_response(self) -> Response {
            self.response::<Body>()
        }
    }

    /// As a [`Failed`] that was made from it.
    impl IntoResponse for JoinError {
        fn into_response(self) -> Response {
            Failed::from(self).into_response()
        }
    }

    /// As a [`Failed`] that was made from it.
    impl IntoResponse for CommitError {
        fn into_response(self) -> Response {
            Failed::from(self).into_response()
        }
    }

    /// As a [`Failed`] that was made from it.
    impl IntoResponse for RunError {
        fn into_response(self) -> Response {
            Failed::from(self).into_response()
        }
    }
}
