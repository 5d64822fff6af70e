//! Each way a request can end, with a plain tower service and bodies that are strings: what the stores are told, in which order,
//! and what goes out when.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use http::{Extensions, Request, Response};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use unanimous::http::{NoTransaction, TransactionLayer, after_end, default_commit_veto, transaction};
use unanimous::{BranchError, Capability, CommitError, Options, Outcome};

use crate::http_support::{ABORTED, Answer, BoxFuture, COMMITTED, Remark, Step, World, answer, handler, post};

#[tokio::test]
async fn commits_and_lets_the_answer_out_last() {
    let world = World::new().await;
    world.a.hold(Step::Prepare);
    let service =
        TransactionLayer::new(world.manager.clone()).layer(service_fn(handler(&world, async |_| answer(201))));
    let journal = world.journal.clone();
    let request = tokio::spawn(async move {
        let response = service.oneshot(post("/orders")).await.unwrap();
        journal.add("answer");
        response
    });
    world.a.reached(Step::Prepare).await;
    // One thread runs all of this: an answer that did not wait would be out by now.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!world.journal.entries().contains(&"answer".to_owned()), "the answer is out before the outcome is known");
    world.a.release(Step::Prepare);
    let response = request.await.unwrap();
    assert_eq!((response.status().as_u16(), response.body().as_str()), (201, "the handler's own"));
    world.assert_ended(&COMMITTED, Outcome::Committed);
    for (first, second) in [
        ("worked", "a flush"),
        ("worked", "b flush"),
        ("a prepare", "b commit"),
        ("b prepare", "a commit"),
        ("a commit", "answer"),
        ("b commit", "answer"),
        ("end committed", "answer"),
    ] {
        world.journal.assert_before(first, second);
    }
}

#[tokio::test]
async fn a_handler_that_fails_aborts_and_its_error_goes_out() {
    let world = World::new().await;
    let service = TransactionLayer::new(world.manager.clone())
        .layer(service_fn(handler(&world, async |_| -> Answer { Err("out of paper".into()) })));
    let error = service.oneshot(post("/orders")).await.unwrap_err();
    world.journal.add("answer");
    assert_eq!(error.to_string(), "out of paper");
    world.assert_ended(&ABORTED, Outcome::Aborted);
    world.assert_cause("the request's handler failed");
    world.journal.assert_before("a rollback", "answer");
    world.journal.assert_before("end aborted", "answer");
}

#[tokio::test]
async fn a_handler_that_panics_aborts_and_the_panic_goes_on() {
    let world = World::new().await;
    let service = TransactionLayer::new(world.manager.clone())
        .layer(service_fn(handler(&world, async |_| -> Answer { panic!("out of ink") })));
    let journal = world.journal.clone();
    let request = tokio::spawn(async move {
        let _out = Remark(journal, "panic out");
        service.oneshot(post("/orders")).await
    });
    let panic = request.await.unwrap_err().into_panic();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "out of ink");
    world.assert_ended(&ABORTED, Outcome::Aborted);
    world.assert_cause("the request's handler failed");
    world.journal.assert_before("a rollback", "panic out");
    world.journal.assert_before("end aborted", "panic out");
}

#[tokio::test]
async fn a_service_that_panics_in_call_aborts_as_well() {
    let world = World::new().await;
    let journal = world.journal.clone();
    let inner = service_fn(move |request: Request<String>| -> BoxFuture<Answer> {
        let ended = journal.clone();
        after_end(request.extensions(), move |outcome| ended.add(format_args!("end {outcome}"))).unwrap();
        panic!("before there was a future")
    });
    let service = TransactionLayer::new(world.manager.clone()).layer(inner);
    let panic = tokio::spawn(service.oneshot(post("/orders"))).await.unwrap_err().into_panic();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "before there was a future");
    assert_eq!(world.journal.entries(), ["end aborted"]);
}

#[tokio::test]
async fn a_doomed_transaction_aborts_and_the_handlers_answer_goes_out() {
    let world = World::new().await;
    let service = TransactionLayer::new(world.manager.clone()).layer(service_fn(handler(&world, async |tx| {
        tx.doom();
        answer(200)
    })));
    let response = service.oneshot(post("/orders")).await.unwrap();
    world.journal.add("answer");
    assert_eq!((response.status().as_u16(), response.body().as_str()), (200, "the handler's own"));
    world.assert_ended(&ABORTED, Outcome::Aborted);
    world.assert_cause("it was doomed, which leaves nothing but an abort; begin another");
    world.journal.assert_before("end aborted", "answer");
}

/// Runs one request whose commit fails, and gives the response.
async fn failing<F>(world: &World, layer: TransactionLayer<F>) -> Response<String>
where
    F: unanimous::http::OnCommitFailure<String> + Clone,
{
    let service = layer.layer(service_fn(handler(world, async |_| -> Answer {
        Ok(Response::builder().status(201).header("x-order", "7").body("created".to_owned()).unwrap())
    })));
    let response = service.oneshot(post("/orders")).await.unwrap();
    world.journal.add("answer");
    assert!(response.headers().get("x-order").is_none(), "the handler's head got out");
    assert!(!response.body().contains("password"), "internals in {}", response.body());
    response
}

fn assert_problem(response: &Response<String>, status: u16, kind: &str) {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let body = response.body();
    assert!(body.contains(&format!(r#""status":{status},"#)), "{body}");
    assert!(body.contains(&format!("#{kind}\"")), "{body}");
}

#[tokio::test]
async fn a_commit_that_was_refused_is_503() {
    let world = World::new().await;
    world.b.fail(Step::Flush, || BranchError::refused("constraint on password violated"));
    let response = failing(&world, TransactionLayer::new(world.manager.clone())).await;
    assert_problem(&response, 503, "commit-aborted");
    assert_eq!(world.b.calls(), ["begin", "flush", "rollback"]);
    assert_eq!(world.a.calls(), ["begin", "flush", "rollback"]);
    assert_eq!(world.journal.of("end"), ["aborted"]);
    world.journal.assert_before("end aborted", "answer");
}

#[tokio::test]
async fn a_conflict_at_the_vote_is_409() {
    let world = World::new().await;
    // The other has voted yes by then, so that its calls are always the same.
    let a = world.a.clone();
    world.b.hold(Step::Prepare);
    world.b.fail(Step::Prepare, || BranchError::conflict("password row was changed"));
    let b = world.b.clone();
    let voted = tokio::spawn(async move {
        a.reached(Step::Prepare).await;
        b.reached(Step::Prepare).await;
        b.release(Step::Prepare);
    });
    let response = failing(&world, TransactionLayer::new(world.manager.clone())).await;
    voted.await.unwrap();
    assert_problem(&response, 409, "commit-conflict");
    assert_eq!(world.a.calls(), ["begin", "flush", "prepare", "rollback"]);
    assert_eq!(world.b.calls(), ["begin", "flush", "prepare", "rollback"]);
    assert_eq!(world.journal.of("end"), ["aborted"]);
    world.journal.assert_before("a rollback", "answer");
    world.journal.assert_before("end aborted", "answer");
}

/// A handler that works in the second store only.
fn only_b(world: &World) -> impl Service<Request<String>, Response = Response<String>, Error = unanimous::BoxError> {
    let (b, journal) = (world.b.clone(), world.journal.clone());
    service_fn(move |request: Request<String>| {
        let (b, ended) = (b.clone(), journal.clone());
        async move {
            let tx = transaction(request.extensions())?;
            tx.join(&b).await?;
            tx.after_end(move |outcome| ended.add(format_args!("end {outcome}")));
            answer(201)
        }
    })
}

#[tokio::test]
async fn an_unknown_outcome_is_a_500_of_its_own_kind_with_the_id() {
    let world = World::with(Capability::OnePhase).await;
    world.b.fail(Step::CommitOnePhase, || BranchError::lost("connection of user with password closed"));
    let id = Arc::new(Mutex::new(None));
    let inner = only_b(&world);
    let seen = id.clone();
    let service = ServiceBuilder::new()
        .layer(TransactionLayer::new(world.manager.clone()))
        .map_request(move |request: Request<String>| {
            *seen.lock().unwrap() = Some(transaction(request.extensions()).unwrap().id());
            request
        })
        .service(inner);
    let response = service.oneshot(post("/orders")).await.unwrap();
    world.journal.add("answer");
    let id = id.lock().unwrap().unwrap().to_string();
    assert_problem(&response, 500, "commit-unknown");
    assert_eq!(response.headers()["unanimous-transaction"], id);
    assert!(response.body().contains(&format!(r#""transaction":"{id}""#)), "{}", response.body());
    assert!(!response.body().contains("password"), "internals in {}", response.body());
    assert_eq!(world.b.calls(), ["begin", "flush", "commit_one_phase"]);
    assert_eq!(world.a.calls(), Vec::<String>::new());
    assert_eq!(world.journal.of("end"), ["unknown"]);
    world.journal.assert_before("end unknown", "answer");
}

#[tokio::test]
async fn the_answer_to_a_failed_commit_can_be_replaced() {
    let world = World::new().await;
    world.b.fail(Step::Flush, || BranchError::conflict("changed"));
    let layer = TransactionLayer::new(world.manager.clone()).on_commit_failure(|error: &CommitError| {
        let text = format!("ours: retryable {}", error.is_retryable());
        Response::builder().status(418).body(text).unwrap()
    });
    let response = failing(&world, layer).await;
    assert_eq!((response.status().as_u16(), response.body().as_str()), (418, "ours: retryable true"));

    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone())
        .try_commit_veto(|_| Err("no rules"))
        .on_commit_failure(|error: &CommitError| Response::new(format!("ours: {error}")));
    let body = failing(&world, layer).await.into_body();
    assert!(body.starts_with("ours: the transaction ") && body.ends_with(" was aborted"), "{body}");
    world.assert_ended(&ABORTED, Outcome::Aborted);
}

#[tokio::test]
async fn dropped_before_it_was_polled_it_aborts_whoever_keeps_the_request() {
    let world = World::new().await;
    let kept: Arc<Mutex<Option<Extensions>>> = Arc::default();
    let (journal, keep) = (world.journal.clone(), kept.clone());
    let inner = service_fn(move |request: Request<String>| -> BoxFuture<Answer> {
        let ended = journal.clone();
        after_end(request.extensions(), move |outcome| ended.add(format_args!("end {outcome}"))).unwrap();
        *keep.lock().unwrap() = Some(request.extensions().clone());
        Box::pin(async { answer(200) })
    });
    let mut service = TransactionLayer::new(world.manager.clone()).layer(inner);
    let response = service.ready().await.unwrap().call(post("/orders"));
    drop(response);
    world.journal.until("end aborted").await;
    assert_eq!(world.journal.entries(), ["end aborted"]);
    let kept = kept.lock().unwrap().take().unwrap();
    assert_eq!(transaction(&kept).map(|_| ()), Err(NoTransaction::Ended));
}

/// The clock stands still while anything can run: the limit passes while the handler sleeps.
#[tokio::test(start_paused = true)]
async fn past_its_time_limit_the_handlers_answer_does_not_go_out() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone())
        .options(|_| Options::default().time_limit(Duration::from_secs(1)))
        .commit_veto(default_commit_veto);
    let service = layer.layer(service_fn(handler(&world, async |_| {
        tokio::time::sleep(Duration::from_secs(60)).await;
        answer(201)
    })));
    let response = service.oneshot(post("/orders")).await.unwrap();
    assert_problem(&response, 503, "commit-aborted");
    world.assert_ended(&ABORTED, Outcome::Aborted);
}

#[tokio::test]
async fn a_branch_that_a_spawned_task_still_uses_makes_the_commit_abort() {
    let world = World::new().await;
    let (b, journal) = (world.b.clone(), world.journal.clone());
    let (done, wait) = tokio::sync::watch::channel(false);
    let service = TransactionLayer::new(world.manager.clone()).layer(service_fn(handler(&world, move |tx| {
        let (b, journal, mut wait) = (b.clone(), journal.clone(), wait.clone());
        async move {
            tokio::spawn({
                let journal = journal.clone();
                async move {
                    let guard = tx.join(&b).await.unwrap();
                    journal.add("in use");
                    wait.wait_for(|&done| done).await.unwrap();
                    drop(guard);
                }
            });
            journal.until("in use").await;
            answer(201)
        }
    })));
    let response = service.oneshot(post("/orders")).await.unwrap();
    assert_problem(&response, 503, "commit-aborted");
    world.assert_ended(&ABORTED, Outcome::Aborted);
    done.send(true).unwrap();
}

/// Ready at once, with a branch still in use inside.
struct Holding {
    _guard: unanimous::Joined<'static, crate::http_support::StoreBranch>,
}

impl Future for Holding {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Answer> {
        Poll::Ready(answer(200))
    }
}

#[tokio::test]
async fn what_the_handlers_future_holds_is_given_back_before_the_commit() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone());
    let mut service = layer.layer(service_fn({
        let b = world.b.clone();
        move |request: Request<String>| {
            // Leaked, so that a future can keep a guard that borrows it.
            let tx: &'static unanimous::Tx = Box::leak(Box::new(transaction(request.extensions()).unwrap()));
            let guard = tx.join(&b).now_or_never().unwrap().unwrap();
            Holding { _guard: guard }
        }
    }));
    let response = service.ready().await.unwrap().call(post("/orders")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(world.b.calls(), ["begin", "flush", "commit_one_phase"]);
}
