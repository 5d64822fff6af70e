//! What clients are told: JSON for programs, the page for browsers.
//!
//! Handlers answer in JSON only; [`for_browsers`] turns that into the page where the Accept header asks for HTML.
//! Must not show what a store said: that goes to the server's own log.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse as _, Response};
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use unanimous::http::TRANSACTION_HEADER;
use unanimous::{CommitError, Outcome, TransactionId};

use super::desk::Desk;
use super::order::Entered;
use super::page::{Kind, Told};

/// Longer than any JSON that [`for_browsers`] has to look into.
const MAX_ANSWER: usize = 64 * 1024;

/// 201: the order is committed in all stores.
pub(crate) fn placed(id: i64, transaction: TransactionId) -> Response {
    let mut response = with_json(StatusCode::CREATED, &json!({"id": id, "transaction": transaction.to_string()}));
    let location = HeaderValue::try_from(format!("/receipts/{id}")).expect("a number and plain letters");
    response.headers_mut().insert(LOCATION, location);
    response
}

/// The request is refused as it stands: nothing was written for it.
pub(crate) fn refused(status: StatusCode, error: impl ToString) -> Response {
    with_json(status, &json!({"error": error.to_string()}))
}

/// The transaction is aborted, or will be before this answer goes out.
pub(crate) fn aborted(status: StatusCode, error: impl ToString, transaction: Option<TransactionId>) -> Response {
    let mut body = json!({"error": error.to_string(), "outcome": "aborted"});
    if let Some(transaction) = transaction {
        body["transaction"] = Value::String(transaction.to_string());
    }
    with_json(status, &body)
}

/// A line of JSON, so that a terminal's prompt begins on its own.
fn with_json(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

/// What the layer answers when a commit did not succeed.
pub(crate) fn commit_failed(error: &CommitError) -> Response {
    let id = error.id();
    match error {
        CommitError::Unknown { .. } => {
            let text = "nobody can say yet whether the order was committed; look at the orders before you repeat it";
            let body = json!({"error": text, "outcome": "unknown", "transaction": id.to_string()});
            let mut response = with_json(StatusCode::INTERNAL_SERVER_ERROR, &body);
            let id = HeaderValue::try_from(id.to_string()).expect("an id has digits, letters and dots only");
            response.headers_mut().insert(TRANSACTION_HEADER, id);
            response
        }
        CommitError::Aborted { .. } if error.is_retryable() => {
            aborted(StatusCode::CONFLICT, "another order was in the way; nothing is stored, try again", Some(id))
        }
        CommitError::Aborted { .. } => {
            let text = "a store voted no, or could not be asked; nothing is stored";
            aborted(StatusCode::SERVICE_UNAVAILABLE, text, Some(id))
        }
    }
}

/// Another transaction held a store for too long.
pub(crate) fn busy(transaction: TransactionId) -> Response {
    let text = "the stores are busy; nothing is stored, try again";
    let mut response = aborted(StatusCode::SERVICE_UNAVAILABLE, text, Some(transaction));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// A store can't be used: it is down, or just coming up.
pub(crate) fn unavailable(transaction: TransactionId) -> Response {
    let text = "a store can't be used now; nothing is stored, try again later";
    let mut response = aborted(StatusCode::SERVICE_UNAVAILABLE, text, Some(transaction));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// The page, which needs nothing but its own style.
pub(crate) fn html(status: StatusCode, page: String) -> Response {
    let policy =
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    (status, [(CONTENT_SECURITY_POLICY, policy)], Html(page)).into_response()
}

/// Where a handler leaves its transaction's id for the case that it panics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Began(Arc<Mutex<Option<TransactionId>>>);

impl Began {
    /// Names the request's transaction, the last one where it is tried again.
    pub(crate) fn set(&self, id: TransactionId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    fn last(&self) -> Option<TransactionId> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers for a handler that panics. The transaction layer is within this one: it has aborted when the panic comes here.
pub(crate) async fn caught(mut request: Request, next: Next) -> Response {
    let began = Began::default();
    request.extensions_mut().insert(began.clone());
    // What the handler held is gone with it; what is shared is guarded by the manager and the stores themselves.
    match std::panic::AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            let text = "the handler panicked; nothing is stored";
            aborted(StatusCode::INTERNAL_SERVER_ERROR, text, began.last())
        }
    }
}

/// Turns the JSON answer to a posted form into a redirect to the page, or into the page with what went wrong on top.
pub(crate) async fn for_browsers(State(desk): State<Desk>, request: Request, next: Next) -> Response {
    let browser = request.method() == Method::POST && wants_html(request.headers());
    let response = next.run(request).await;
    if !browser {
        return response;
    }
    let status = response.status();
    let entered = response.extensions().get::<Entered>().cloned().unwrap_or_default();
    let body = to_bytes(response.into_body(), MAX_ANSWER).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if let (StatusCode::CREATED, Some(id)) = (status, body["id"].as_i64()) {
        return (StatusCode::SEE_OTHER, [(LOCATION, format!("/?placed={id}"))], Body::empty()).into_response();
    }
    let told = Told {
        kind: match body["outcome"].as_str() {
            Some("aborted") => Kind::Ended(Outcome::Aborted),
            Some("unknown") => Kind::Ended(Outcome::Unknown),
            _ => Kind::Refused,
        },
        message: body["error"].as_str().or(body["detail"].as_str()).unwrap_or("the request failed").to_owned(),
        transaction: body["transaction"].as_str().map(str::to_owned),
        receipt: None,
    };
    match desk.page(&entered, |_| Some(told)).await {
        Ok(page) => html(status, page),
        Err(error) => error.into_answer(),
    }
}

/// Whether a browser asks.
pub(crate) fn wants_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_known_by_what_they_accept() {
        let wants =
            |accept: &'static str| wants_html(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]));
        assert!(wants("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(wants("application/json, Text/HTML;q=0.1"));
        assert!(!wants("*/*"));
        assert!(!wants("application/json"));
        assert!(!wants_html(&HeaderMap::new()));
    }
}
