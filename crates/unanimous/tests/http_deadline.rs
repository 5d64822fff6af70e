//! The layer's own time limit, at each phase of a request. The clock stands still while anything can run, so that a limit passes exactly
//! when all waits.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use http::Request;
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};
use unanimous::http::{Ended, TransactionLayer, transaction};
use unanimous::{Capability, Outcome};

use crate::http_support::{ABORTED, Answer, COMMITTED, Remark, Step, World, answer, handler, post};
use crate::support::ended;

const LIMIT: Duration = Duration::from_secs(3);

fn assert_503(response: &http::Response<String>) -> Ended {
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(response.headers().contains_key("retry-after"));
    assert!(response.body().contains("#commit-aborted"), "{}", response.body());
    let ended = *response.extensions().get::<Ended>().unwrap();
    assert_eq!((ended.outcome, ended.retryable), (Outcome::Aborted, false));
    assert_eq!(response.headers()["unanimous-transaction"], ended.id.to_string());
    ended
}

#[tokio::test(start_paused = true)]
async fn while_the_handler_works_it_is_dropped_and_the_transaction_aborts() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).time_limit(LIMIT);
    let (a, journal) = (world.a.clone(), world.journal.clone());
    let service = layer.layer(service_fn(handler(&world, move |tx| {
        let (a, journal) = (a.clone(), journal.clone());
        async move {
            let _dropped = Remark(journal, "handler dropped");
            // In use when the limit passes: the handler's future is dropped first, and the guard with it.
            let _guard = tx.join(&a).await?;
            sleep(LIMIT * 100).await;
            answer(201)
        }
    })));
    let began = Instant::now();
    let response = service.oneshot(post("/orders")).await.unwrap();
    world.journal.add("answer");
    assert_eq!(began.elapsed().as_secs(), LIMIT.as_secs());
    assert_503(&response);
    world.assert_ended(&ABORTED, Outcome::Aborted);
    world.assert_cause("its time limit passed");
    world.journal.assert_before("handler dropped", "a rollback");
    world.journal.assert_before("a rollback", "answer");
    world.journal.assert_before("b rollback", "answer");
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_transaction_has_not_begun_is_answered_likewise() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).time_limit(LIMIT);
    let service = layer.layer(service_fn(async |request: Request<String>| {
        sleep(LIMIT * 100).await;
        transaction(request.extensions()).unwrap();
        answer(201)
    }));
    let response = service.oneshot(post("/orders")).await.unwrap();
    assert_503(&response);
    assert_eq!(world.journal.entries(), Vec::<String>::new());
}

/// What a client sees on its socket when the limit passes in the handler, and while its body is half sent. The connection of the first one goes on.
#[tokio::test]
async fn over_a_socket() {
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone());
    let a = world.a.clone();
    let hangs = async move |request: axum::extract::Request| {
        transaction(request.extensions()).unwrap().join(&a).await.unwrap();
        std::future::pending::<&str>().await
    };
    let app = axum::Router::new()
        .route("/hangs", post(hangs))
        .route("/reads", post(async |body: String| body))
        .route("/well", get(async || "well"))
        .layer(layer.time_limit_for(|request| (request.uri.path() != "/well").then_some(Duration::from_millis(50))));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let ask = async |pieces: [&str; 2]| {
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(pieces[0].as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        let _ = client.write_all(pieces[1].as_bytes()).await;
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        String::from_utf8([&answer[..], &rest].concat()).unwrap()
    };
    let next = "GET /well HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answers = ended(ask(["POST /hangs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", next])).await;
    assert_eq!(world.a.calls(), ABORTED);
    assert!(answers.contains("HTTP/1.1 200 OK\r\n") && answers.ends_with("well"), "{answers}");
    let half = ended(ask(["POST /reads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf", ""])).await;
    for answer in [answers, half] {
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("\r\nunanimous-transaction: ") && answer.contains("#commit-aborted"), "{answer}");
    }
    server.abort();
}

/// A request may have a limit of its own, or none.
#[tokio::test(start_paused = true)]
async fn each_request_may_have_its_own_limit() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).time_limit(LIMIT * 50);
    let layer = layer.time_limit_for(|request| match request.uri.path() {
        "/poll" => None,
        "/upload" => Some(LIMIT * 10),
        _ => Some(LIMIT),
    });
    let service = layer.layer(service_fn(async |_: Request<String>| {
        sleep(LIMIT * 100).await;
        answer(200)
    }));
    for (path, status, limits) in [("/poll", 200, 100), ("/upload", 503, 10), ("/orders", 503, 1)] {
        let began = Instant::now();
        assert_eq!(service.clone().oneshot(post(path)).await.unwrap().status(), status, "{path}");
        assert_eq!(began.elapsed().as_secs(), LIMIT.as_secs() * limits, "{path}");
    }
}

/// The limit passes many times over while a branch prepares, or commits: neither is cut.
#[tokio::test(start_paused = true)]
async fn a_commit_that_has_begun_is_never_cut() {
    for step in [Step::Flush, Step::Prepare, Step::Commit] {
        let world = World::new().await;
        world.a.hold(step);
        let layer = TransactionLayer::new(world.manager.clone()).time_limit(LIMIT);
        let service = layer.layer(service_fn(handler(&world, async |_| answer(201))));
        let request = tokio::spawn(service.oneshot(post("/orders")));
        world.a.reached(step).await;
        sleep(LIMIT + LIMIT / 2).await;
        assert!(!request.is_finished(), "answered in the middle of {step:?}");
        world.a.release(step);
        let response = request.await.unwrap().unwrap();
        assert_eq!(response.status(), 201, "{step:?}");
        world.assert_ended(&COMMITTED, Outcome::Committed);
    }
}

/// The limit passes while the abort of a vetoed transaction waits: the handler's answer goes out all the same.
#[tokio::test(start_paused = true)]
async fn an_abort_that_has_begun_is_never_cut() {
    let world = World::with(Capability::TwoPhase).await;
    world.a.hold(Step::Rollback);
    let layer = TransactionLayer::new(world.manager.clone()).time_limit(LIMIT).commit_veto(|_| true);
    let service = layer.layer(service_fn(handler(&world, async |_| answer(422))));
    let request = tokio::spawn(service.oneshot(post("/orders")));
    world.a.reached(Step::Rollback).await;
    sleep(LIMIT + LIMIT / 2).await;
    world.a.release(Step::Rollback);
    assert_eq!(request.await.unwrap().unwrap().status(), 422);
    world.assert_ended(&ABORTED, Outcome::Aborted);
}

/// A handler that is ready when the limit passes has answered.
#[tokio::test(start_paused = true)]
async fn an_answer_in_time_goes_out() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).time_limit(LIMIT);
    let service = layer.layer(service_fn(handler(&world, async |_| -> Answer {
        sleep(LIMIT).await;
        answer(201)
    })));
    assert_eq!(service.oneshot(post("/orders")).await.unwrap().status(), 201);
    world.assert_ended(&COMMITTED, Outcome::Committed);
}
