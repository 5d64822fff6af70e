//! axum's extractor: a handler that takes a [`Tx`] runs in its request's transaction.
//!
//! Must not know the layer: it looks for what the layer left in the request.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::request::{NoTransaction, transaction};
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

/// A 500: it is the service's fault. What to do about it is in the log, and in [`NoTransaction`]'s text.
impl IntoResponse for NoTransaction {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, "This request should run in a transaction, and has none.").into_response()
    }
}
