//! One function for each thing that can be asked for.
//!
//! Must not know how a transaction ends: the layer sees to that, by the answer.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, body::Bytes};
use serde::Deserialize;
use unanimous::http::{Attempt, Retryable};
use unanimous::{Outcome, Tx};

use super::answer::{Began, aborted, html, placed, refused, wants_html};
use super::desk::{Desk, DeskError};
use super::order::{Entered, Fail, Invalid, NewOrder};
use super::page::{Kind, Told};

/// How many orders `GET /orders` gives when it is not told.
const DEFAULT_LIMIT: u64 = 100;
/// The header that the commit veto looks at.
const X_TM: HeaderName = HeaderName::from_static("x-tm");

/// `POST /orders`: writes to all stores, and fails then where that was asked for.
pub(crate) async fn place(
    State(desk): State<Desk>,
    Extension(began): Extension<Began>,
    tx: Tx,
    attempt: Attempt,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let new = match parse(&headers, &body) {
        Ok(new) => new,
        Err((status, message)) => {
            let mut response = refused(status, message);
            // For a browser's page, which shows what was entered again.
            response.extensions_mut().insert(Entered::from_form(&body));
            return response;
        }
    };
    let id = tx.id();
    began.set(id);
    tx.set_user(&new.customer);
    if attempt.number > 1 {
        tx.note(&format!("attempt {}", attempt.number));
    }
    if let Some(fail) = new.fail {
        tx.note(&format!("fail={}", fail.name()));
    }
    let order = match desk.place(&tx, &new).await {
        Ok(order) => order,
        Err(error) => {
            if error.is_retryable() {
                tx.note("another order was in the way");
            }
            return error.into_answer();
        }
    };
    // From here on all stores hold what was written, and none has committed it.
    match new.fail {
        None => placed(order.id, id),
        Some(Fail::Error) => aborted(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the handler failed, as it was asked to; nothing is stored",
            Some(id),
        ),
        Some(Fail::Veto) => {
            let text = "the response carried X-Tm: abort, as it was asked to; nothing is stored";
            let mut response = aborted(StatusCode::CONFLICT, text, Some(id));
            response.headers_mut().insert(X_TM, HeaderValue::from_static("abort"));
            response
        }
        Some(Fail::Panic) => {
            tracing::warn!(transaction = %id, "the handler panics, as it was asked to");
            // A panic like any other, but for the hook: a backtrace of what was asked for helps nobody.
            std::panic::resume_unwind(Box::new("fail=panic"))
        }
        Some(Fail::Doom) => {
            tx.doom();
            let text = "the handler doomed the transaction, as it was asked to; nothing is stored";
            aborted(StatusCode::CONFLICT, text, Some(id))
        }
        // The answer is that of a good order: it is the commit that fails.
        Some(Fail::Vote) => match desk.spoil(&tx).await {
            Ok(()) => placed(order.id, id),
            Err(error) => error.into_answer(),
        },
    }
}

/// The parameters of `GET /orders`.
#[derive(Deserialize)]
pub(crate) struct Listing {
    limit: Option<String>,
}

/// `GET /orders`: a JSON array, newest first.
pub(crate) async fn orders(
    State(desk): State<Desk>,
    tx: Tx,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Response {
    let limit = listing.ok().and_then(|Query(listing)| limit(listing.limit.as_deref()));
    let Some(limit) = limit else {
        let text = "limit: must be a whole number, given once, such as /orders?limit=100";
        return refused(StatusCode::BAD_REQUEST, text);
    };
    match desk.orders_json(&tx, limit).await {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => error.into_answer(),
    }
}

/// `GET /receipts/<id>`: the receipt's file as it is.
pub(crate) async fn receipt(State(desk): State<Desk>, id: Result<Path<String>, PathRejection>) -> Response {
    let not_there =
        || refused(StatusCode::NOT_FOUND, "there is no such receipt; its number is that of a committed order");
    // Only the name that the receipt has: not /receipts/01, and no bytes that are no text.
    let number = |id: String| id.parse::<i64>().ok().filter(|number| *number >= 0 && number.to_string() == id);
    let Some(id) = id.ok().and_then(|Path(id)| number(id)) else { return not_there() };
    match desk.receipt(id).await {
        Ok(Some(receipt)) => ([(CONTENT_TYPE, "application/json")], receipt).into_response(),
        Ok(None) => not_there(),
        Err(error) => error.into_answer(),
    }
}

/// The parameters of `GET /`.
#[derive(Deserialize)]
pub(crate) struct Look {
    placed: Option<i64>,
}

/// `GET /`: the page. A browser is sent here with the number of the order that it has just placed.
pub(crate) async fn look(State(desk): State<Desk>, look: Result<Query<Look>, QueryRejection>) -> Response {
    let placed = look.ok().and_then(|Query(look)| look.placed);
    let nothing = Entered::default();
    let page = desk.page(&nothing, |orders| {
        let order = orders.iter().find(|order| Some(order.id) == placed)?;
        Some(Told {
            kind: Kind::Ended(Outcome::Committed),
            message: format!("Order {} is in all stores.", order.id),
            transaction: Some(order.transaction.clone()),
            receipt: Some(order.id),
        })
    });
    match page.await {
        Ok(page) => html(StatusCode::OK, page),
        Err(error) => error.into_answer(),
    }
}

/// Whatever else is asked for: JSON, or the page for a browser.
pub(crate) async fn nothing_here(State(desk): State<Desk>, headers: HeaderMap) -> Response {
    let message = "there is nothing here; there are /, /orders, /receipts/<id>, /transactions/<id> and /ready";
    if !wants_html(&headers) {
        return refused(StatusCode::NOT_FOUND, message);
    }
    let told = Told { kind: Kind::NotFound, message: message.into(), transaction: None, receipt: None };
    match desk.page(&Entered::default(), |_| Some(told)).await {
        Ok(page) => html(StatusCode::NOT_FOUND, page),
        Err(error) => error.into_answer(),
    }
}

/// A path that is there, and another method.
pub(crate) async fn not_this_way() -> Response {
    refused(StatusCode::METHOD_NOT_ALLOWED, "this can't be asked for with that method")
}

/// All digits are a number, however large: there is no upper bound. None: it is no number.
fn limit(text: Option<&str>) -> Option<u64> {
    let Some(text) = text else { return Some(DEFAULT_LIMIT) };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn parse(headers: &HeaderMap, body: &Bytes) -> Result<NewOrder, (StatusCode, String)> {
    let kind = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let order = match essence.as_deref() {
        Some("application/json") => NewOrder::from_json(body),
        Some("application/x-www-form-urlencoded") => NewOrder::from_form(body),
        other => {
            let known = "an order is sent as application/json or as application/x-www-form-urlencoded";
            let sent = other.map_or("without a content type".into(), |other| format!("as {other:?}"));
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("{known}, not {sent}")));
        }
    };
    order.map_err(|invalid: Invalid| {
        let status = if invalid.is_syntax() { StatusCode::BAD_REQUEST } else { StatusCode::UNPROCESSABLE_ENTITY };
        (status, invalid.to_string())
    })
}

impl DeskError {
    /// The answer to a request that a store could not serve; the reason goes to the server's own log.
    pub(crate) fn into_answer(self) -> Response {
        let id = self.transaction();
        if self.is_retryable() {
            tracing::warn!(transaction = %id, error = self.chain(), "an order was in the way of another");
            let mut response = super::answer::busy(id);
            response.extensions_mut().insert(Retryable);
            return response;
        }
        if self.is_unavailable() {
            tracing::warn!(transaction = %id, error = self.chain(), "a store can't be used now");
            return super::answer::unavailable(id);
        }
        tracing::error!(transaction = %id, error = self.chain(), "a store failed");
        aborted(StatusCode::INTERNAL_SERVER_ERROR, "a store failed; nothing is stored", Some(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert_eq!(limit(None), Some(100));
        assert_eq!(limit(Some("0")), Some(0));
        assert_eq!(limit(Some("250000")), Some(250_000));
        assert_eq!(limit(Some("99999999999999999999999999")), Some(u64::MAX));
        for wrong in ["", "-1", "+1", "1.5", "ten", " 1"] {
            assert_eq!(limit(Some(wrong)), None, "{wrong:?}");
        }
    }

    #[test]
    fn content_types() {
        let parsed = |kind: Option<&'static str>, body: &'static str| {
            let headers = kind.map(|kind| (CONTENT_TYPE, HeaderValue::from_static(kind)));
            parse(&HeaderMap::from_iter(headers), &Bytes::from_static(body.as_bytes()))
                .map_err(|(status, _)| status.as_u16())
        };
        let json = r#"{"customer": "A", "item": "t", "quantity": 1}"#;
        let form = "customer=A&item=t&quantity=1";
        assert!(parsed(Some("application/json"), json).is_ok());
        assert!(parsed(Some("Application/JSON; charset=utf-8"), json).is_ok());
        assert!(parsed(Some("application/x-www-form-urlencoded;charset=UTF-8"), form).is_ok());
        assert_eq!(parsed(None, json), Err(415));
        assert_eq!(parsed(Some("text/plain"), json), Err(415));
        assert_eq!(parsed(Some("application/json"), form), Err(400));
        assert_eq!(parsed(Some("application/x-www-form-urlencoded"), json), Err(400));
        assert_eq!(parsed(Some("application/json"), "{}"), Err(422));
        assert_eq!(parsed(Some("application/x-www-form-urlencoded"), "customer=A"), Err(422));
    }
}
