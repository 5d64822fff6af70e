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
