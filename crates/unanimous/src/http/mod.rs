//! A transaction for each request: a [`TransactionLayer`] around any tower service commits when the handler has answered, and lets
//! the answer out when the outcome is known.
//!
#![cfg_attr(all(feature = "axum", feature = "files"), doc = "```")]
#![cfg_attr(not(all(feature = "axum", feature = "files")), doc = "```text")]
//! use axum::extract::{Path, State};
//! use axum::http::StatusCode;
//! use axum::{Router, routing::put};
//! use unanimous::files::Files;
//! use unanimous::http::{TransactionLayer, default_commit_veto};
//! use unanimous::{BoxError, TransactionManager, Tx, log::MemoryLog};
//!
//! #[derive(Clone)]
//! struct Shop {
//!     orders: Files,
//!     receipts: Files,
//! }
//!
//! // The extractor gives the request's transaction, begun now. The handler joins stores; it neither commits nor aborts.
//! async fn order(tx: Tx, State(shop): State<Shop>, Path(id): Path<String>, item: String) -> Result<StatusCode, StatusCode> {
//!     store(&tx, &shop, &id, &item).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
//!     if item.is_empty() {
//!         return Err(StatusCode::UNPROCESSABLE_ENTITY); // vetoed: nothing is stored
//!     }
//!     Ok(StatusCode::CREATED) // goes out when both folders have it
//! }
//!
//! async fn store(tx: &Tx, shop: &Shop, id: &str, item: &str) -> Result<(), BoxError> {
//!     tx.join(&shop.orders).await?.create(id, item).await?;
//!     tx.join(&shop.receipts).await?.create(id, format!("1 {item}")).await?;
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # let data = tempfile::tempdir()?;
//! # let data = data.path();
//! let shop = Shop {
//!     orders: Files::open("orders", data.join("orders")).await?,
//!     receipts: Files::open("receipts", data.join("receipts")).await?,
//! };
//! let manager = TransactionManager::builder(MemoryLog::new())
//!     .resource(shop.orders.clone())
//!     .resource(shop.receipts.clone())
//!     .build()
//!     .await?;
//! let app = Router::new()
//!     .route("/orders/{id}", put(order))
//!     .with_state(shop)
//!     // An error in axum is a response like any other: without a veto, a 422 commits.
//!     .layer(TransactionLayer::new(manager).commit_veto(default_commit_veto));
//! # use axum::{body::Body, http::Request};
//! # use tower::ServiceExt;
//! # for (id, item, status) in [("7", "tea", 201), ("8", "", 422), ("7", "rum", 500)] {
//! #     let request = Request::put(format!("/orders/{id}")).body(Body::from(item))?;
//! #     assert_eq!(app.clone().oneshot(request).await?.status(), status, "{id} {item}");
//! # }
//! # assert_eq!(std::fs::read_to_string(data.join("orders/7"))?, "tea");
//! # assert_eq!(std::fs::read_to_string(data.join("receipts/7"))?, "1 tea");
//! # assert!(!data.join("orders/8").exists() && !data.join("receipts/8").exists());
//! # Ok(())
//! # }
//! ```
//!
//! Without axum, [`transaction`] finds the transaction in the request's extensions, and [`current`](crate::current) finds it in the
//! handler's task.
//!
//! # How a request ends
//!
//! | the handler | the transaction | what goes out |
//! | --- | --- | --- |
//! | asked for no transaction | never began | the handler's answer |
//! | answered | commits | the handler's answer, once the outcome is committed |
//! | answered, and the commit failed | aborted, or unknown | the answer of [`DefaultOnCommitFailure`], or your own |
//! | answered, after it had doomed the transaction | aborts | the handler's answer |
//! | answered, and its answer is marked [`AbortTransaction`] or [`Retryable`] | aborts | the handler's answer |
//! | answered, and the [veto](TransactionLayer::commit_veto) said so | aborts | the handler's answer |
//! | answered, and the veto returned an error | aborts | as for a commit that was aborted |
//! | answered [`Failed`] | aborts | a problem document |
//! | returned the service's error | aborts | the error |
//! | panicked, or the veto did | aborts | the panic, as it was |
//! | was still at work when the layer's [time limit](TransactionLayer::time_limit) passed | aborts | as for a commit that was aborted |
//! | was dropped: the client went away, or a time limit outside passed | aborts in the background | nothing |
//! | was done, and was dropped while it commits | commits all the same (rule 6) | nothing |
//!
//! A transaction that is past its own time limit can't commit, so it counts as a commit that failed. Around it, a [`RetryLayer`] lets out the
//! answer of the last attempt only.
//!
//! The layer begins lazily: a request that never asks for its transaction, like a 404, costs a few allocations and no id.
//! It can be applied twice, say around a router and around what is nested in it: the inner one steps aside.
//!
//! # Where to put it
//!
//! This module's layers, from the outside in: [`AdmissionLayer`], [`RetryLayer`], [`TransactionLayer`], [`IdempotencyLayer`],
//! [`CommitAfterBodyLayer`], the handler. Each may be left out. One on the wrong side of the [`TransactionLayer`] says so in the log.
//!
//! Outside of it: what answers instead of the handler or gives up waiting (time limits, panics into responses, authentication), tracing, and whatever
//! changes an answer's body. A time limit outside is safe in every phase: it can only hide the
//! answer, never tear the transaction.
//! Inside of it: what is part of the work. A layer inside that catches panics or turns errors into responses hides them from this
//! one; the transaction then commits unless it is doomed or vetoed.
//!
//! # What it does not cover
//!
//! - **A body that streams**, but for a [`CommitAfterBodyLayer`], which holds it back within bounds. The head and the body go out when the outcome is known, so a body that is made while it is sent
//!   (a stream, server-sent events, a websocket after its 101) runs when the transaction has ended: joining is refused, and an error in it
//!   undoes nothing. Collect before you answer, or begin a transaction of your own in the stream.
//! - **Spawned tasks.** They may take a [`Tx`](crate::Tx) along, but nobody waits for them; one that still uses a branch when the
//!   handler answers makes the commit abort.
//! - **The client's knowledge.** A client that lost its connection doesn't know whether its request committed. Let it name its
//!   requests if it must: [`IdempotencyLayer`]. One that was told a transaction's id, as with an unknown outcome, asks an [`OutcomeService`].
//! - **What a handler does beside its transaction**: other transactions that it commits, calls of other services. An abort does not undo it, and a
//!   repetition does it again; a conflict of another transaction repeats nothing by itself.
//!
//! # Commits that failed
//!
//! By default the answer is a problem document (RFC 9457) that shows nothing of what the stores said; that is in the log. Its `type`
//! is one of these three:
//!
//! ## Commit conflict
//!
//! 409. Nothing was stored: another transaction was in the way. The request may be repeated.
//!
//! ## Commit aborted
//!
//! 503. Nothing was stored. The request may be repeated later.
//!
//! ## Commit unknown
//!
//! 500. It is not known yet whether the changes were stored. The request must not be repeated before somebody has looked; the
//! transaction's id is in the document's member `transaction`, as well as in the header. Recovery finds the outcome out.
//!
//! # Handlers that failed
//!
//! A handler that returns [`Failed`] is answered so too, with a conflict's 409 where it met one, or with one of these:
//!
//! ## Store unavailable
//!
//! 503. A store could not be reached or had no connection in time, or the service shuts down. The request may be repeated later.
//!
//! ## Handler failed
//!
//! 500. The fault is the service's; what it was is in its log.
//!
//! ## No transaction
//!
//! 500. The handler, or an [`IdempotencyLayer`], wants a transaction, and no [`TransactionLayer`] around it gives the request one; what to do about
//! it is in the log.
//!
//! # Requests with a key
//!
//! What an [`IdempotencyLayer`] answers by itself: the kinds of its problem documents. None of them has changed anything.
//!
//! ## Idempotency-key missing
//!
//! 400. The request needs an `Idempotency-Key`, and has none.
//!
//! ## Idempotency-key malformed
//!
//! 400. The key is not one of 1 to 255 visible ASCII characters, or there are two.
//!
//! ## Idempotency-key in flight
//!
//! 409. A request with this key is being worked on, or in doubt after a crash. Repeated later, the request gets its response.
//!
//! ## Idempotency-key reused
//!
//! 422. The key was used for another request.
//!
//! ## Idempotency-key unavailable
//!
//! 503. The key could not be looked up, or the response not be kept. The request may be repeated later.
//!
//! ## Idempotency-key failed
//!
//! 500. The key can't be looked up, or the response not be kept, and waiting does not help; what it was is in the service's log.
//!
//! ## Request-body too large
//!
//! 413. The body of a request with a key is read whole, within a bound.
//!
//! ## Request-body too slow
//!
//! 408, also of [`RetryLayer`]: the body that is read ahead did not arrive in time. Nothing was begun; the request may be repeated.
//!
//! ## Request-body broken
//!
//! 400. The body ended before its end.
//!
//! ## Response not kept
//!
//! 500. The response can't be kept for the request's key: it is too large, a stream, or broke off.
//!
//! # Responses of the other layers
//!
//! Problem documents too; their `type` is one of these:
//!
//! ## Overloaded
//!
//! 503, of [`AdmissionLayer`]: too many requests at once. Nothing was begun; the request may be repeated after the seconds in `Retry-After`.
//!
//! ## Shutting down
//!
//! 503, of [`AdmissionLayer`]: the manager's shutdown has begun. Nothing was begun; another process may serve the request.
//!
//! ## Response too large
//!
//! 500, of [`CommitAfterBodyLayer`]: the response's body has more bytes than are held back. Nothing was stored.
//!
//! ## Response too slow
//!
//! 503, of [`CommitAfterBodyLayer`]: the response's body took longer than is waited for. Nothing was stored; the request may be repeated later.
//!
//! ## Outcome not known
//!
//! 404, of [`OutcomeService`]: nobody here can say how this transaction ended. It may have committed.
//!
//! ## Not an id
//!
//! 400, of [`OutcomeService`]: the path's last segment is not the id of a transaction.
//!
//! ## Not allowed
//!
//! 405, of [`OutcomeService`] and [`ReadinessService`]: only GET and HEAD.
//!
//! # What this module must not know
//!
//! Any store, the protocol, the log, and how a server reads requests: it sees a manager, a request's head, a response's head, and
//! an error of commit.

mod admission;
mod after_body;
mod annotations;
mod ended;
#[cfg(feature = "axum")]
mod extract;
mod failed;
mod failure;
mod future;
mod idempotency;
mod layer;
mod outcome;
mod problem;
mod readiness;
mod request;
mod retry;
mod retry_body;
mod service;
mod veto;

pub use admission::{Admission, AdmissionFuture, AdmissionLayer};
pub use after_body::{CommitAfterBody, CommitAfterBodyLayer, HeldBody, commit_after_body};
pub use ended::{AbortTransaction, Ended, Retryable};
pub use failed::Failed;
pub use failure::{DefaultOnCommitFailure, OnCommitFailure, TRANSACTION_HEADER};
pub use future::ResponseFuture;
pub use idempotency::{
    DamagedHeaders, Found, IdempotencyLayer, IdempotencyService, KEY_HEADER, KeyStore, Lifetime, REPLAYED_HEADER,
    RequestKey, StoredResponse,
};
pub use layer::TransactionLayer;
pub use outcome::OutcomeService;
pub use readiness::ReadinessService;
pub use request::{NoTransaction, after_end, is_active, transaction};
pub use retry::{Attempt, RetryFuture, RetryLayer, RetryService, attempt};
pub use retry_body::RequestBody;
pub use service::TransactionService;
pub use veto::{VetoContext, default_commit_veto};
