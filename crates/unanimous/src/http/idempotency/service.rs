//! [`IdempotencyService`]: one request with a key, from its header to its response.
//!
//! ```text
//! read the body ── key in flight here? ── store.begin ─┬─ in flight ──── 409
//!                                                      ├─ other request ─ 422
//!                                                      ├─ stored ──────── the response again
//!                                                      └─ new ── handler ── collect ── store.keep ── the response
//! ```
//!
//! From `store.begin` on, whatever does not come to the end of the last line dooms the transaction: work never commits without its key.
//!
//! Must not know how a transaction ends, nor what a store keeps.

use std::error::Error;
use std::future::Ready;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::Either;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower_service::Service;
use unanimous_core::BoxError;

use super::key::{RequestKey, fingerprint, key_of};
use super::layer::IdempotencyLayer;
use super::problems::{self, answer, answer_after};
use super::stored::StoredResponse;
use super::{Found, KeyStore, REPLAYED_HEADER};
use crate::env::{BoxFuture, within};
use crate::error::chain;
use crate::http::ended::{AbortTransaction, Replay, Retryable, Unnamed, aborts};
use crate::http::failed::is_temporary;
use crate::http::failure::CONFLICT;
use crate::http::problem::{NO_TRANSACTION, Problem, id_value};
use crate::http::request::{Slot, transaction};
use crate::transaction::Tx;

/// How long a client is asked to wait for a request that is worked on, in seconds.
const IN_FLIGHT_WAIT: u64 = 1;

/// The same where the store is down.
const UNAVAILABLE_WAIT: u64 = 5;

/// In the extensions of a request that is under a key already: a layer further in steps aside.
#[derive(Clone, Copy, Debug)]
struct Applied;

/// A service that executes requests with a key once; [`IdempotencyLayer`] makes it.
#[derive(Clone, Debug)]
pub struct IdempotencyService<S, K> {
    inner: S,
    // Shared: servers clone a service for each connection, routers for each request.
    layer: Arc<IdempotencyLayer<K>>,
}

impl<S, K> IdempotencyService<S, K> {
    pub(super) fn new(inner: S, layer: IdempotencyLayer<K>) -> Self {
        Self { inner, layer: Arc::new(layer) }
    }
}

type Answer<B, E> = Result<Response<B>, E>;

impl<S, K, ReqBody, ResBody> Service<Request<ReqBody>> for IdempotencyService<S, K>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send,
    K: KeyStore,
    ReqBody: Body<Data = Bytes> + From<Bytes> + Send + 'static,
    ReqBody::Error: Into<BoxError>,
    ResBody: Body + From<Bytes> + Send + 'static,
    ResBody::Data: Send,
    ResBody::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future =
        Either<S::Future, Either<Ready<Answer<ResBody, S::Error>>, BoxFuture<'static, Answer<ResBody, S::Error>>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let at_once = |problem| Either::Right(Either::Left(std::future::ready(Ok(answer(problem)))));
        let left_out = parts.extensions.get::<Applied>().is_some() || !(self.layer.when)(&parts);
        let key = if left_out { Ok(None) } else { key_of(&parts.headers) };
        match key {
            Ok(None) if left_out || !self.layer.required => {
                Either::Left(self.inner.call(Request::from_parts(parts, body)))
            }
            Ok(None) => at_once(problems::MISSING),
            Err(_malformed) => at_once(problems::MALFORMED),
            Ok(Some(key)) => {
                // The clone has not been asked whether it is ready; the one that has is used.
                let clone = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, clone);
                let layer = self.layer.clone();
                Either::Right(Either::Right(Box::pin(handle(inner, layer, parts, body, key))))
            }
        }
    }
}

async fn handle<S, K, ReqBody, ResBody>(
    mut inner: S,
    layer: Arc<IdempotencyLayer<K>>,
    mut parts: Parts,
    body: ReqBody,
    key: String,
) -> Answer<ResBody, S::Error>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    K: KeyStore,
    ReqBody: Body<Data = Bytes> + From<Bytes>,
    ReqBody::Error: Into<BoxError>,
    ResBody: Body + From<Bytes>,
    ResBody::Error: Into<BoxError>,
{
    let slot = parts.extensions.get::<Slot>().filter(|slot| slot.0.is_open());
    let Some(slot) = slot.map(|slot| slot.0.clone()) else {
        return Ok(no_transaction(&parts));
    };
    let (uri, name) = (&slot.beginner().uri, &slot.beginner().transaction_header);
    // Before the transaction begins: a slow client must not hold a connection of a store.
    let read = within(&*layer.env, layer.max_request_time, read(body, layer.max_request_body)).await;
    let body = match read.unwrap_or(Err(problems::TOO_SLOW)) {
        Ok(body) => body,
        Err(problem) => return Ok(answer(problem)),
    };
    let Ok(tx) = transaction(&parts.extensions) else { return Ok(no_transaction(&parts)) };
    let fingerprint = fingerprint(&parts, uri, &body, layer.more(&parts).as_deref());
    let key = layer.key(&parts, &tx, key);
    if let Err(holder) = layer.in_flight.enter(&key, &tx) {
        return Ok(in_flight(name.as_ref().map(|name| (name, id_value(holder)))));
    }
    let kept = OrDoom { tx: &tx, kept: false };
    let lifetime = layer.lifetime(tx.shared.manager.env.wall_clock());
    match layer.store.begin(&tx, &key, lifetime).await {
        Ok(Found::New) => {}
        Ok(found) => {
            kept.kept();
            // Not to be waited for by the next repeat: nothing is executed here.
            layer.in_flight.leave(&key, tx.id());
            return Ok(known(found, &fingerprint, name.as_ref()));
        }
        Err(error) => return Ok(refused(&tx, &key, &error)),
    }
    parts.extensions.insert(Applied);
    let response = inner.call(Request::from_parts(parts, ReqBody::from(body))).await?;
    if tx.is_doomed() || aborts(&response) {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let body = match collect(&head, body, layer.max_response_body).await {
        Ok(body) => body,
        Err(why) => {
            tracing::error!(transaction = %tx.id(), key = key.key(), why,
                "the response to a request with an Idempotency-Key can't be kept; its transaction is aborted");
            return Ok(answer(problems::NOT_KEPT));
        }
    };
    let headers = layer.kept(&head.headers);
    let stored = StoredResponse {
        fingerprint,
        transaction: tx.id().to_string(),
        status: head.status,
        headers,
        body: body.clone(),
    };
    let kept_by_store = layer.store.keep(&tx, &key, &stored, lifetime).await;
    let mut response = Response::from_parts(head, ResBody::from(body));
    match kept_by_store {
        Ok(()) => kept.kept(),
        Err(error) if is_failure(&response) && !tx.is_retryable(&*error) && !is_temporary(&*error) => {
            // The transaction was broken by what the handler tells of itself: its answer is the better one, and no repeat mends it.
            tracing::debug!(transaction = %tx.id(), key = key.key(), "a failure is not kept: {}", chain(&*error));
            response.extensions_mut().insert(AbortTransaction);
        }
        Err(error) => return Ok(refused(&tx, &key, &error)),
    }
    Ok(response)
}

fn is_failure<B>(response: &Response<B>) -> bool {
    response.status().is_client_error() || response.status().is_server_error()
}

/// Dooms the transaction when it is dropped before the response was kept: after an error, a panic, an answer that can't be kept.
struct OrDoom<'t> {
    tx: &'t Tx,
    kept: bool,
}

impl OrDoom<'_> {
    /// There is nothing to keep, or it was kept.
    fn kept(mut self) {
        self.kept = true;
    }
}

impl Drop for OrDoom<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.tx.doom();
        }
    }
}

/// The whole body of a request.
async fn read<B>(body: B, most: usize) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let most_as_hint = u64::try_from(most).unwrap_or(u64::MAX);
    if body.size_hint().lower() > most_as_hint {
        return Err(problems::TOO_LARGE);
    }
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(problems::TOO_LARGE),
        Err(error) => {
            tracing::debug!(%error, "the body of a request with an Idempotency-Key broke off");
            Err(problems::BROKEN)
        }
    }
}

/// The whole body of a response, or why it can't be kept.
async fn collect<B>(head: &http::response::Parts, body: B, most: usize) -> Result<Bytes, String>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err("it is an upgrade; leave its route out (IdempotencyLayer::when)".to_owned());
    }
    if is_event_stream(&head.headers) {
        return Err("it is a stream of events; leave its route out (IdempotencyLayer::when)".to_owned());
    }
    match Limited::new(body, most).collect().await {
        Ok(collected) if collected.trailers().is_some() => Err("it has trailers".to_owned()),
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(format!("its body has more than {most} bytes (IdempotencyLayer::max_response_body)"))
        }
        Err(error) => {
            let error: &(dyn Error + 'static) = &*error;
            Err(format!("its body broke off: {}", chain(error)))
        }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let content_type = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    content_type.get(..EVENTS.len()).is_some_and(|start| start.eq_ignore_ascii_case(EVENTS))
}

/// The answer to a request whose key is not new.
fn known<B: From<Bytes>>(found: Found, fingerprint: &[u8; 32], name: Option<&HeaderName>) -> Response<B> {
    match found {
        Found::Stored(stored) if stored.fingerprint == *fingerprint => {
            let mut response = Response::new(B::from(stored.body));
            *response.status_mut() = stored.status;
            response.extensions_mut().insert(Replay);
            let headers = response.headers_mut();
            *headers = stored.headers;
            headers.insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
            if let (Some(name), Ok(id)) = (name, HeaderValue::try_from(stored.transaction)) {
                headers.insert(name, id);
            }
            response
        }
        Found::Stored(_) => {
            let mut response = answer(problems::OTHER_REQUEST);
            response.extensions_mut().insert(Unnamed);
            response
        }
        Found::InFlight | Found::New => in_flight(None),
    }
}

/// The answer while a request with the same key is worked on. Its own transaction commits, and has done nothing: its id would tell a client that
/// asks for the outcome that its request is done. The one that has the key is named, where it is known.
fn in_flight<B: From<Bytes>>(holder: Option<(&HeaderName, HeaderValue)>) -> Response<B> {
    let mut response = answer_after(problems::IN_FLIGHT, IN_FLIGHT_WAIT);
    response.extensions_mut().insert(Unnamed);
    if let Some((name, id)) = holder {
        response.headers_mut().insert(name, id);
    }
    response
}

/// The store could not look the key up, or not keep it.
fn refused<B: From<Bytes>>(tx: &Tx, key: &RequestKey, error: &BoxError) -> Response<B> {
    let error: &(dyn Error + 'static) = &**error;
    let (id, reason) = (tx.id(), chain(error));
    if tx.is_retryable(error) {
        tracing::info!(transaction = %id, key = key.key(), "a conflict over an Idempotency-Key: {reason}");
        let mut response = answer_after(CONFLICT, IN_FLIGHT_WAIT);
        response.extensions_mut().insert(Retryable);
        response
    } else if is_temporary(error) {
        tracing::warn!(transaction = %id, key = key.key(), "an Idempotency-Key could not be looked up or kept: {reason}");
        answer_after(problems::UNAVAILABLE, UNAVAILABLE_WAIT)
    } else {
        tracing::error!(transaction = %id, key = key.key(), "an Idempotency-Key can't be looked up or kept: {reason}");
        answer(problems::FAILED)
    }
}

fn no_transaction<B: From<Bytes>>(parts: &Parts) -> Response<B> {
    tracing::error!(method = %parts.method, path = parts.uri.path(),
        "a request with an Idempotency-Key runs in no transaction, and is refused; put the IdempotencyLayer inside of a TransactionLayer \
         (axum: add `.layer(TransactionLayer::new(manager))` after it), and look whether that one's `activate` leaves this request out");
    answer(NO_TRANSACTION)
}
