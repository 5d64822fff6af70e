//! Idempotency keys where something around them is wrong: the order of the layers, a store that fails.

#![allow(clippy::unwrap_used)]

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use tower::{ServiceBuilder, ServiceExt};
use unanimous::http::{
    Found, IdempotencyLayer, KeyStore, Lifetime, RequestKey, Retryable, StoredResponse, TransactionLayer,
};
use unanimous::{BoxError, BranchError, Outcome, Tx};

use crate::http_support::{ABORTED, Journal, Store, World, work};
use crate::support::warnings::Warnings;

/// A store of keys in a journaling store, which keeps nothing, and fails where it is told to.
#[derive(Clone)]
struct Keys {
    store: Store,
    journal: Journal,
    fail: Arc<Mutex<Option<(&'static str, bool)>>>,
}

impl Keys {
    fn new(world: &World) -> Self {
        Self { store: world.a.clone(), journal: world.journal.clone(), fail: Arc::default() }
    }

    async fn step(&self, name: &str, tx: &Tx, key: &RequestKey) -> Result<(), BoxError> {
        tx.join(&self.store).await?;
        self.journal.add(format_args!("keys {name} {} of {:?}", key.key(), key.scope()));
        match *self.fail.lock().unwrap() {
            Some((step, true)) if step == name => Err(BranchError::conflict("secret").into()),
            Some((step, false)) if step == name => Err(BranchError::lost("secret").into()),
            _ => Ok(()),
        }
    }
}

impl KeyStore for Keys {
    async fn begin(&self, tx: &Tx, key: &RequestKey, _: Lifetime) -> Result<Found, BoxError> {
        self.step("begin", tx, key).await?;
        Ok(Found::New)
    }

    async fn keep(&self, tx: &Tx, key: &RequestKey, _: &StoredResponse, _: Lifetime) -> Result<(), BoxError> {
        self.step("keep", tx, key).await
    }
}

fn routes(world: &World) -> Router {
    let (a, b, journal) = (world.a.clone(), world.b.clone(), world.journal.clone());
    let order = async move |tx: Tx| {
        work(&tx, &a, &b, &journal).await.unwrap();
        (StatusCode::CREATED, "ordered")
    };
    Router::new().route("/orders", post(order))
}

async fn order(app: Router) -> Response {
    let request = Request::post("/orders").header("idempotency-key", "k").body(Body::empty()).unwrap();
    app.oneshot(request).await.unwrap()
}

async fn text(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn outside_of_the_transaction_layer_nothing_is_executed_and_the_log_says_what_to_do() {
    let warnings = Warnings::collect();
    let world = World::new().await;
    let transactions = TransactionLayer::new(world.manager.clone());
    let layer = || IdempotencyLayer::new(Keys::new(&world));
    for app in [
        routes(&world).layer(transactions.clone()).layer(layer()),
        routes(&world).layer(layer()).layer(transactions.clone().activate(|_| false)),
        routes(&world).layer(layer()),
    ] {
        let response = order(app).await;
        assert_eq!(response.status(), 500);
        let text = text(response).await;
        assert!(text.contains("#no-transaction\""), "{text}");
    }
    assert_eq!(world.journal.entries(), Vec::<String>::new());
    let errors = warnings.with(&["ERROR"]);
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert_eq!(warnings.with(&["put the IdempotencyLayer inside of a TransactionLayer"]), errors);
}

#[tokio::test]
async fn the_key_is_claimed_before_the_handler_and_kept_behind_it() {
    let world = World::new().await;
    let app = routes(&world)
        .layer(IdempotencyLayer::new(Keys::new(&world)))
        .layer(TransactionLayer::new(world.manager.clone()).user(|_| Some("alice".to_owned())));
    assert_eq!(order(app).await.status(), 201);
    world.journal.assert_before("keys begin k of \"alice\"", "worked");
    world.journal.assert_before("worked", "keys keep k of \"alice\"");
    world.journal.assert_before("keys keep k of \"alice\"", "a flush");
    assert_eq!(world.journal.of("end"), ["committed"]);
}

/// Also with a layer in between that makes a response of what failed: the work never commits without its key.
#[tokio::test]
async fn a_store_of_keys_that_fails_aborts() {
    for (step, conflict) in [("begin", true), ("begin", false), ("keep", true), ("keep", false)] {
        let world = World::new().await;
        let keys = Keys::new(&world);
        *keys.fail.lock().unwrap() = Some((step, conflict));
        let app = routes(&world).layer(IdempotencyLayer::new(keys)).layer(TransactionLayer::new(world.manager.clone()));
        let response = order(app).await;
        let expected = if conflict { (409, true) } else { (503, false) };
        let retryable = response.extensions().get::<Retryable>().is_some();
        assert_eq!((response.status().as_u16(), retryable), expected, "{step}");
        assert!(response.headers().contains_key("retry-after"));
        let kind = if conflict { "#commit-conflict\"" } else { "#idempotency-key-unavailable\"" };
        let text = text(response).await;
        assert!(text.contains(kind) && !text.contains("secret"), "{text}");
        assert_eq!(world.a.calls(), ABORTED, "{step}");
        if step == "keep" {
            world.assert_ended(&ABORTED, Outcome::Aborted);
        }
    }
}

#[tokio::test]
async fn what_a_handler_does_not_answer_never_commits() {
    async fn swallow(request: Request<Body>, next: Router) -> Response {
        let called = AssertUnwindSafe(next.oneshot(request)).catch_unwind().await;
        called.map_or_else(|_panic| StatusCode::IM_A_TEAPOT.into_response(), Result::unwrap)
    }

    let world = World::new().await;
    let (a, b, journal) = (world.a.clone(), world.b.clone(), world.journal.clone());
    let fall_over = async move |tx: Tx| -> StatusCode {
        work(&tx, &a, &b, &journal).await.unwrap();
        panic!("out of ink")
    };
    let inner = Router::new().route("/orders", post(fall_over)).layer(IdempotencyLayer::new(Keys::new(&world)));
    let app = Router::new()
        .fallback(move |request: Request<Body>| swallow(request, inner.clone()))
        .layer(TransactionLayer::new(world.manager.clone()));
    assert_eq!(order(app).await.status(), 418);
    world.assert_ended(&ABORTED, Outcome::Aborted);
}

#[tokio::test]
async fn a_handler_that_wants_to_be_repeated_keeps_nothing() {
    let world = World::new().await;
    let (a, b, journal) = (world.a.clone(), world.b.clone(), world.journal.clone());
    let busy = async move |tx: Tx| {
        work(&tx, &a, &b, &journal).await.unwrap();
        let mut response = StatusCode::CONFLICT.into_response();
        response.extensions_mut().insert(Retryable);
        response
    };
    let app = Router::new()
        .route("/orders", post(busy))
        .layer(IdempotencyLayer::new(Keys::new(&world)))
        .layer(TransactionLayer::new(world.manager.clone()));
    assert_eq!(order(app).await.status(), 409);
    assert_eq!(world.journal.of("keys"), ["begin k of \"\""]);
    world.assert_ended(&ABORTED, Outcome::Aborted);
}

#[tokio::test]
async fn a_response_that_can_not_be_given_again_aborts() {
    let upgrade = || StatusCode::SWITCHING_PROTOCOLS.into_response();
    let events = || ([("content-type", "Text/Event-Stream; charset=utf-8")], "data: 1\n\n").into_response();
    let trailers = || {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let body = Full::from("whole").with_trailers(std::future::ready(Some(Ok(trailers))));
        Response::new(Body::new(body))
    };
    for answer in [upgrade as fn() -> Response, events, trailers] {
        let world = World::new().await;
        let (a, b, journal) = (world.a.clone(), world.b.clone(), world.journal.clone());
        let handler = async move |tx: Tx| {
            work(&tx, &a, &b, &journal).await.unwrap();
            answer()
        };
        let app = Router::new()
            .route("/orders", post(handler))
            .layer(IdempotencyLayer::new(Keys::new(&world)))
            .layer(TransactionLayer::new(world.manager.clone()));
        let response = order(app).await;
        assert_eq!(response.status(), 500);
        let text = text(response).await;
        assert!(text.contains("#response-not-kept\""), "{text}");
        assert_eq!(world.journal.of("keys"), ["begin k of \"\""]);
        world.assert_ended(&ABORTED, Outcome::Aborted);
    }
}

/// A plain tower service, whose bodies are not axum's.
#[tokio::test]
async fn a_service_of_tower_with_bodies_of_its_own() {
    let world = World::new().await;
    let service = ServiceBuilder::new()
        .layer(TransactionLayer::new(world.manager.clone()))
        .layer(IdempotencyLayer::new(Keys::new(&world)))
        .service_fn(async |request: Request<Full<Bytes>>| {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, BoxError>(Response::new(Full::new(body)))
        });
    let request = Request::post("/orders").header("idempotency-key", "k").body(Full::from("tea")).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "tea");
    assert_eq!(world.journal.of("keys"), ["begin k of \"\"", "keep k of \"\""]);
}
