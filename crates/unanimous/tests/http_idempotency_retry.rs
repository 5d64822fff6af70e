//! Requests with a key that conflict, behind a layer that repeats them: each is executed to its commit once, and repeats get that response.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{Request, Response};
use axum::middleware::{Next, from_fn};
use axum::routing::post;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use tokio::sync::Barrier;
use tower::{ServiceBuilder, ServiceExt};
use unanimous::http::{
    CommitAfterBodyLayer, Failed, IdempotencyLayer, RequestBody, RetryLayer, TransactionLayer, transaction,
};
use unanimous::postgres::{IsolationLevel, Postgres, PostgresOptions};
use unanimous::{BoxError, Tx};

use crate::http_idempotency_support::{OnPostgres, Place, World, order_with, serve};

/// Adds to a row that all requests add to.
async fn add(tx: &Tx, store: &Postgres) -> Result<String, Failed> {
    let branch = tx.join(store).await?;
    let sum: String = branch.query_one("update t set v = (v::int + 1)::text returning v", &[]).await?.get(0);
    Ok(sum)
}

fn serializable() -> OnPostgres {
    let mut place = OnPostgres::new();
    place.options = PostgresOptions::new().isolation(IsolationLevel::Serializable);
    place.database().psql("insert into t (v) values ('0')").unwrap();
    place
}

fn retry() -> RetryLayer {
    RetryLayer::new().attempts(1_000).backoff(Duration::from_millis(1), Duration::from_millis(50))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicting_requests_are_repeated_and_each_is_counted_once() {
    let world = World::new(&serializable()).await;
    let store = world.place.store.clone();
    let app = Router::new()
        .route("/orders", post(async move |tx: Tx| add(&tx, &store).await))
        .layer(world.layer())
        .layer(world.transactions())
        .layer(retry());
    let server = serve(app).await;
    let client = async |client: usize| {
        let mut sums = Vec::new();
        for request in 0..5 {
            let key = format!("{client}-{request}");
            let first = order_with(&server, &key, "").await;
            let again = order_with(&server, &key, "").await;
            assert_eq!((first.status, first.replayed()), (200, false), "{}", String::from_utf8_lossy(&first.body));
            assert_eq!((again.status, again.replayed(), &again.body), (200, true, &first.body));
            sums.push(String::from_utf8(first.body).unwrap().parse::<u32>().unwrap());
        }
        sums
    };
    let mut sums: Vec<_> = join_all((0..8).map(client)).await.concat();
    sums.sort();
    assert_eq!(sums, (1..=40).collect::<Vec<_>>(), "each has counted once, and was told its own sum");
    assert_eq!(world.place.orders(), ["40"]);
}

/// Two requests in two processes, each of which has read before the other one's key was there: one is executed, and the other one, when its conflict
/// is repeated, gets the response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_whose_snapshot_is_too_old_is_repeated_and_gets_the_response() {
    let place = serializable();
    let read = Arc::new(Barrier::new(2));
    let mut servers = Vec::new();
    for _ in 0..2 {
        let world = World::new(&place).await;
        let (store, options) = (world.place.store.clone(), world.place.options.clone());
        let snapshot = {
            let (store, read, met) = (store.clone(), read.clone(), Arc::new(AtomicBool::new(false)));
            from_fn(move |tx: Tx, request: axum::extract::Request, next: Next| {
                let (store, options, read, met) = (store.clone(), options.clone(), read.clone(), met.clone());
                async move {
                    let joined = tx.join_with(&store, options).await.unwrap();
                    joined.query_one("select count(*) from t", &[]).await.unwrap();
                    drop(joined);
                    if !met.swap(true, Ordering::SeqCst) {
                        read.wait().await;
                    }
                    next.run(request).await
                }
            })
        };
        let app = Router::new()
            .route("/orders", post(async move |tx: Tx| add(&tx, &store).await))
            .layer(IdempotencyLayer::new(world.place.keys()))
            .layer(snapshot)
            .layer(TransactionLayer::new(world.manager.clone()))
            .layer(retry());
        servers.push(serve(app).await);
    }
    let until_answered = async |server| {
        loop {
            let reply = order_with(server, "k", "").await;
            if reply.status != 409 {
                return reply;
            }
        }
    };
    let (one, other) = tokio::join!(until_answered(&servers[0]), until_answered(&servers[1]));
    assert_eq!((one.status, &one.body), (200, &other.body));
    assert_eq!(place.orders(), ["1"]);
    assert!(one.replayed() != other.replayed(), "one of them is the first");
}

/// All layers around one service of tower, without a router in between: their bodies fit.
#[tokio::test]
async fn all_layers_compose() {
    let world = World::new(&OnPostgres::new()).await;
    let place = world.place.clone();
    let service = ServiceBuilder::new()
        .layer(retry())
        .layer(world.transactions())
        .layer(world.layer())
        .layer(CommitAfterBodyLayer::new())
        .service_fn(move |request: Request<RequestBody<Full<Bytes>>>| {
            let place = place.clone();
            async move {
                let tx = transaction(request.extensions())?;
                let body = request.into_body().collect().await?.to_bytes();
                place.insert(&tx, std::str::from_utf8(&body)?).await;
                Ok::<_, BoxError>(Response::new(Full::new(body)))
            }
        });
    for replayed in [false, true] {
        let request = Request::post("/orders").header("idempotency-key", "k").body(Full::from("tea")).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers().contains_key("idempotent-replayed"), replayed);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "tea");
    }
    assert_eq!(world.place.orders(), ["tea"]);
}
