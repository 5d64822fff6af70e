//! axum's extractors: a handler that takes a [`Tx`] runs in its request's transaction; one that takes an [`Attempt`] knows which run it is.
//!
//! Must not know the layers: it looks for what they left in the request.

use std::convert::Infallible;

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::problem::NO_TRANSACTION;
use super::request::{NoTransaction, transaction};
use super::retry::{Attempt, attempt};
use crate::transaction::Tx;

/// Begins the request's transaction if it had not begun.
impl<S: Send + Sync> FromRequestParts<S> for Tx {
    type Rejection = NoTransaction;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, NoTransaction> {
        transaction(&parts.extensions).inspect_err(|error| {
            tracing::error!(method = %parts.method, path = parts.uri.path(), "{error}");
        })
    }
}

/// None where no layer is active on the request.
impl<S: Send + Sync> OptionalFromRequestParts<S> for Tx {
    type Rejection = NoTransaction;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, NoTransaction> {
        match transaction(&parts.extensions) {
            Ok(tx) => Ok(Some(tx)),
            Err(NoTransaction::Inactive) => Ok(None),
            Err(error @ NoTransaction::Ended) => Err(error),
        }
    }
}

/// The first and last one where no [`RetryLayer`](super::RetryLayer) is around the handler.
impl<S: Send + Sync> FromRequestParts<S> for Attempt {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(attempt(&parts.extensions).unwrap_or(Attempt::ONLY))
    }
}

/// A 500, as a problem document: it is the service's fault. What to do about it is in the log, and in [`NoTransaction`]'s text.
impl IntoResponse for NoTransaction {
    fn into_response(self) -> Response {
        NO_TRANSACTION.response::<Body>()
    }
}
