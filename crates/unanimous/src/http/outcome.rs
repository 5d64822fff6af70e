//! [`OutcomeService`]: a transaction's outcome, to whoever has its id.
//!
//! Must not know where it is mounted, nor how an outcome is found out.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tower_service::Service;
use unanimous_core::TransactionId;

use super::problem::{Problem, json, not_a_read, without_body};
use crate::env::BoxFuture;
use crate::manager::TransactionManager;
use crate::outcomes::KnownOutcome;

/// Answers `GET .../ID` with what can be said of the transaction with this id: the path's last segment. A client that lost its connection, or was
/// answered with `#commit-unknown`, can find out.
///
/// ```text
/// {"transaction": "...", "outcome": "committed" | "aborted" | "in doubt"}
/// ```
///
/// | known | status | |
/// | --- | --- | --- |
/// | committed, aborted | 200 | final |
/// | in doubt | 200, with `Retry-After` | ask again |
/// | not known | 404, a problem document of the kind [`outcome-not-known`](super#outcome-not-known) | it may have committed |
/// | what is no id | 400, [`not-an-id`](super#not-an-id) | |
///
/// What is not known is said in [`TransactionManager::outcome`]. Only GET and HEAD; others get 405 with `Allow`.
///
/// An id is no secret, and the numbers in it follow each other: whoever has one can ask for others. They learn a word each, and how
/// many transactions there are. Mount it where that may be known, or put what authenticates around it. Asking costs a look at the log, and,
/// for ids of which this process knows nothing, a query in each registered store that keeps decisions; by two at a time, and who finds them busy is told that it is
/// in doubt. A client that never saw the id can't ask: that is what an `Idempotency-Key` is for ([`IdempotencyLayer`](super::IdempotencyLayer)).
///
/// For axum: `route_service("/transactions/{id}", OutcomeService::new(manager))`. Leave it outside of the
/// [`TransactionLayer`](super::TransactionLayer), or not, as it joins nothing.
///
/// The body of its responses is `Full<Bytes>`, or any other `B` that a `String` can be made into: `OutcomeService::<axum::body::Body>::with_body(manager)`.
pub struct OutcomeService<B = Full<Bytes>> {
    manager: TransactionManager,
    body: PhantomData<fn() -> B>,
}

impl OutcomeService {
    /// Answers for this manager.
    pub fn new(manager: TransactionManager) -> Self {
        Self::with_body(manager)
    }
}

impl<B> OutcomeService<B> {
    /// The same, with another type of body.
    pub fn with_body(manager: TransactionManager) -> Self {
        Self { manager, body: PhantomData }
    }
}

impl<B> Clone for OutcomeService<B> {
    fn clone(&self) -> Self {
        Self::with_body(self.manager.clone())
    }
}

impl<B> fmt::Debug for OutcomeService<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutcomeService").field("manager", &self.manager).finish()
    }
}

impl<B, ReqBody> Service<Request<ReqBody>> for OutcomeService<B>
where
    B: From<String> + 'static,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let manager = self.manager.clone();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        Box::pin(async move {
            let response = match not_a_read(&method) {
                None => answer(&manager, &path).await,
                Some(refused) => refused,
            };
            Ok(without_body(&method, response).map(B::from))
        })
    }
}

async fn answer(manager: &TransactionManager, path: &str) -> Response<String> {
    let id = path.rsplit('/').next().unwrap_or_default();
    // Digits, letters and dots: an id never needs to be unescaped.
    let Ok(id) = id.parse::<TransactionId>() else { return NOT_AN_ID.response() };
    let outcome = manager.outcome(id).await;
    if outcome == KnownOutcome::NotKnown {
        return NOT_KNOWN.response_of(id);
    }
    let mut response = json(StatusCode::OK, format!(r#"{{"transaction":"{id}","outcome":"{outcome}"}}"#));
    if let KnownOutcome::InDoubt(why) = outcome {
        tracing::debug!(transaction = %id, "in doubt: {why}");
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(1));
    }

    response
}

const NOT_KNOWN: Problem = Problem {
    status: StatusCode::NOT_FOUND,
    kind: "outcome-not-known",
    title: "The outcome of this transaction is not known here",
    detail: "It was never begun here, or ended too long ago, or before a restart, and left no record. It may have committed: look for what it should have stored.",
};

const NOT_AN_ID: Problem = Problem {
    status: StatusCode::BAD_REQUEST,
    kind: "not-an-id",
    title: "This is not the id of a transaction",
    detail: "An id is LOG.COUNTER.NONCE.SEQUENCE, as the header unanimous-transaction has it.",
};
