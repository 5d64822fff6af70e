//! Clients that go away, and time limits outside of the layer, at each phase of a request. hyper drops the request's future then;
//! the stores must agree all the same.
//!
//! | dropped while | the stores are told | outcome |
//! | --- | --- | --- |
//! | the handler works | rollback | aborted |
//! | a branch prepares | the commit's calls to their end | committed |
//! | a branch commits | the commit's calls to their end | committed |
//!
//! Nothing here depends on how long anything takes: a branch waits at its step until the test has seen that the future was dropped.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::error_handling::HandleErrorLayer;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tower::{ServiceBuilder, ServiceExt};
use unanimous::http::TransactionLayer;
use unanimous::{BoxError, Outcome, Tx};

use crate::http_support::{ABORTED, COMMITTED, Journal, Step, Store, World, work};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handler,
    Prepare,
    PhaseTwo,
}

const STAGES: [Stage; 3] = [Stage::Handler, Stage::Prepare, Stage::PhaseTwo];

impl Stage {
    /// Where the store `a` waits.
    fn step(self) -> Option<Step> {
        match self {
            Stage::Handler => None,
            Stage::Prepare => Some(Step::Prepare),
            Stage::PhaseTwo => Some(Step::Commit),
        }
    }

    fn reached(self) -> &'static str {
        match self {
            Stage::Handler => "worked",
            Stage::Prepare => "a prepare",
            Stage::PhaseTwo => "a commit",
        }
    }
}

/// Writes into the journal when a response's future is dropped before it was ready.
struct Watched<F> {
    future: Pin<Box<F>>,
    dropped: Option<Journal>,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let polled = self.future.as_mut().poll(cx);
        if polled.is_ready() {
            self.dropped = None;
        }
        polled
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        if let Some(journal) = self.dropped.take() {
            journal.add("dropped");
        }
    }
}

async fn order(tx: Tx, State((a, b, journal, stage)): State<(Store, Store, Journal, Stage)>) -> StatusCode {
    work(&tx, &a, &b, &journal).await.unwrap();
    if stage == Stage::Handler {
        std::future::pending::<()>().await;
    }
    StatusCode::CREATED
}

/// The service in which one request gets stuck in this stage.
fn stuck(world: &World, stage: Stage) -> Router {
    if let Some(step) = stage.step() {
        world.a.hold(step);
    }
    let journal = world.journal.clone();
    Router::new()
        .route("/orders", post(order))
        .with_state((world.a.clone(), world.b.clone(), world.journal.clone(), stage))
        .layer(TransactionLayer::new(world.manager.clone()))
        .layer(axum::middleware::from_fn(move |request: Request, next: axum::middleware::Next| Watched {
            future: Box::pin(next.run(request)),
            dropped: Some(journal.clone()),
        }))
}

/// Lets the stuck branch go on, and asserts how it all ended.
async fn assert_end(world: &World, stage: Stage) {
    if let Some(step) = stage.step() {
        assert!(!world.journal.entries().iter().any(|entry| entry.starts_with("end ")), "ended while a branch waits");
        world.a.release(step);
    }
    if stage == Stage::Handler {
        world.journal.until("end aborted").await;
        world.assert_ended(&ABORTED, Outcome::Aborted);
    } else {
        world.journal.until("end committed").await;
        world.assert_ended(&COMMITTED, Outcome::Committed);
        world.journal.assert_before("a prepare", "b commit");
        world.journal.assert_before("b prepare", "a commit");
    }
    // Nothing of it is left for recovery to find.
    assert!(world.manager.recover().await.is_empty());
    assert_eq!(world.journal.of("end").len(), 1);
}

#[derive(Clone, Copy, Debug)]
enum GoAway {
    /// Closes the connection.
    Fin,
    /// Resets it: SO_LINGER of 0.
    Rst,
}

async fn client_goes_away(stage: Stage, how: GoAway) {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = stuck(&world, stage);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });

    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    world.journal.until(stage.reached()).await;
    if let GoAway::Rst = how {
        client.set_zero_linger().unwrap();
    }
    drop(client);
    world.journal.until("dropped").await;

    assert_end(&world, stage).await;
    server.abort();
}

#[tokio::test]
async fn a_client_that_closes_while_the_handler_works() {
    client_goes_away(Stage::Handler, GoAway::Fin).await;
}

#[tokio::test]
async fn a_client_that_resets_while_the_handler_works() {
    client_goes_away(Stage::Handler, GoAway::Rst).await;
}

#[tokio::test]
async fn a_client_that_closes_while_a_branch_prepares() {
    client_goes_away(Stage::Prepare, GoAway::Fin).await;
}

#[tokio::test]
async fn a_client_that_resets_while_a_branch_prepares() {
    client_goes_away(Stage::Prepare, GoAway::Rst).await;
}

#[tokio::test]
async fn a_client_that_closes_in_phase_two() {
    client_goes_away(Stage::PhaseTwo, GoAway::Fin).await;
}

#[tokio::test]
async fn a_client_that_resets_in_phase_two() {
    client_goes_away(Stage::PhaseTwo, GoAway::Rst).await;
}

/// tower's own time limit, outside of the layer. The clock stands still while anything can run, so that the limit passes exactly
/// when all waits for the stuck branch.
#[tokio::test(start_paused = true)]
async fn a_time_limit_outside_of_the_layer_in_each_phase() {
    for stage in STAGES {
        let world = World::new().await;
        let app = stuck(&world, stage).layer(
            ServiceBuilder::new()
                .layer(HandleErrorLayer::new(async |_: BoxError| StatusCode::REQUEST_TIMEOUT))
                .timeout(Duration::from_secs(1)),
        );
        let request = Request::builder().method("POST").uri("/orders").body(Body::empty()).unwrap();
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 408, "{stage:?}");
        world.journal.assert_before(stage.reached(), "dropped");
        assert_end(&world, stage).await;
    }
}
