//! What a request has of its transaction while it lasts: when it begins, who finds it, who is left out, what is noted on it.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use http::{Extensions, Request, Response};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use unanimous::http::{NoTransaction, TransactionLayer, after_end, default_commit_veto, is_active, transaction};
use unanimous::{BranchError, Capability, Options, Outcome};

use crate::http_support::{Answer, COMMITTED, Step, World, answer, handler, post};

#[tokio::test]
async fn a_request_that_asks_for_nothing_begins_nothing() {
    let world = World::new().await;
    let before = world.manager.begin();
    let service = TransactionLayer::new(world.manager.clone()).layer(service_fn(async |request: Request<String>| {
        assert!(is_active(request.extensions()));
        answer(404)
    }));
    for _ in 0..3 {
        let response = service.clone().oneshot(post("/missing")).await.unwrap();
        assert_eq!((response.status().as_u16(), response.body().as_str()), (404, "the handler's own"));
    }
    let after = world.manager.begin();
    assert_eq!(after.id().sequence, before.id().sequence + 1, "the requests have begun transactions");
    assert_eq!(world.journal.entries(), Vec::<String>::new());
    before.abort().await;
    after.abort().await;
}

#[tokio::test]
async fn applied_twice_the_inner_one_steps_aside() {
    let world = World::new().await;
    let asked = |name: &'static str| {
        let journal = world.journal.clone();
        move |context: &unanimous::http::VetoContext<'_>| {
            journal.add(format_args!("veto {name}"));
            default_commit_veto(context)
        }
    };
    let layer = |name| TransactionLayer::new(world.manager.clone()).commit_veto(asked(name));
    let between = service_fn({
        let inner = layer("inner").layer(service_fn(handler(&world, async |_| answer(200))));
        let journal = world.journal.clone();
        move |request: Request<String>| {
            let (inner, journal) = (inner.clone(), journal.clone());
            async move {
                let tx = transaction(request.extensions()).unwrap();
                let response = inner.oneshot(request).await;
                journal.add("between");
                assert!(!tx.is_doomed());
                response
            }
        }
    });
    let response = layer("outer").layer(between).oneshot(post("/orders")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(world.journal.of("veto"), ["outer"]);
    world.assert_ended(&COMMITTED, Outcome::Committed);
    world.journal.assert_before("between", "a flush");
}

#[tokio::test]
async fn activate_leaves_requests_out() {
    let world = World::new().await;
    let layer =
        TransactionLayer::new(world.manager.clone()).activate(|parts| !parts.uri.path().starts_with("/static/"));
    let service = layer.layer(service_fn({
        let journal = world.journal.clone();
        move |request: Request<String>| {
            let journal = journal.clone();
            async move {
                let extensions = request.extensions();
                let (path, active, tx) = (request.uri().path(), is_active(extensions), transaction(extensions));
                let current = unanimous::current().map(|tx| tx.id());
                assert_eq!(current, tx.as_ref().ok().map(|tx| tx.id()));
                journal.add(format_args!("{path} {active} {:?}", tx.map(|_| "a transaction")));
                answer(200)
            }
        }
    }));
    service.clone().oneshot(post("/orders")).await.unwrap();
    service.oneshot(post("/static/logo")).await.unwrap();
    assert_eq!(world.journal.entries(), [r#"/orders true Ok("a transaction")"#, "/static/logo false Err(Inactive)"]);
}

#[tokio::test]
async fn what_outlives_the_handler_is_outside_of_the_transaction() {
    let world = World::new().await;
    let kept: Arc<Mutex<Option<Extensions>>> = Arc::default();
    for begun in [false, true] {
        let service = TransactionLayer::new(world.manager.clone()).layer(service_fn({
            let kept = kept.clone();
            move |request: Request<String>| {
                *kept.lock().unwrap() = Some(request.extensions().clone());
                async move {
                    assert!(is_active(request.extensions()));
                    if begun {
                        transaction(request.extensions()).unwrap();
                    }
                    answer(200)
                }
            }
        }));
        service.oneshot(post("/stream")).await.unwrap();
        let extensions = kept.lock().unwrap().take().unwrap();
        assert!(!is_active(&extensions));
        assert_eq!(transaction(&extensions).map(|_| ()), Err(NoTransaction::Ended));
        let journal = world.journal.clone();
        assert_eq!(after_end(&extensions, move |_| journal.add("called")), Err(NoTransaction::Ended));
    }
    assert_eq!(world.journal.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn outside_of_the_layer_nothing_is_active() {
    let extensions = Extensions::new();
    assert!(!is_active(&extensions));
    assert_eq!(transaction(&extensions).map(|_| ()), Err(NoTransaction::Inactive));
    assert!(unanimous::current().is_none());
}

#[tokio::test]
async fn callbacks_after_the_end_run_once_in_order_of_registration() {
    for (outcome, calls) in [
        (Outcome::Committed, &["begin", "flush", "prepare", "commit"][..]),
        (Outcome::Aborted, &["begin", "flush", "rollback"]),
    ] {
        let world = World::new().await;
        if outcome == Outcome::Aborted {
            world.a.fail(Step::Flush, || BranchError::refused("no"));
            world.b.fail(Step::Flush, || BranchError::refused("no"));
        }
        let callback = |name: &'static str| {
            let journal = world.journal.clone();
            move |outcome: Outcome| journal.add(format_args!("{name} {outcome}"))
        };
        let (first, third) = (callback("first"), callback("third"));
        let hooks = Arc::new(Mutex::new(vec![first, third]));
        let service = ServiceBuilder::new()
            .layer(TransactionLayer::new(world.manager.clone()))
            .map_request({
                let hooks = hooks.clone();
                move |request: Request<String>| {
                    after_end(request.extensions(), hooks.lock().unwrap().remove(0)).unwrap();
                    request
                }
            })
            .service(service_fn(handler(&world, move |tx| {
                let third = hooks.lock().unwrap().remove(0);
                async move {
                    tx.after_end(third);
                    answer(200)
                }
            })));
        service.oneshot(post("/orders")).await.unwrap();
        world.assert_ended(calls, outcome);
        let ends: Vec<String> =
            world.journal.entries().into_iter().filter(|e| e.ends_with(&format!(" {outcome}"))).collect();
        assert_eq!(ends, ["first", "end", "third"].map(|name| format!("{name} {outcome}")));
        world.journal.assert_before(&format!("a {}", calls.last().unwrap()), &ends[0]);
        world.journal.assert_before(&format!("b {}", calls.last().unwrap()), &ends[0]);
    }
}

#[tokio::test]
async fn path_and_user_are_noted() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone())
        .user(|parts| parts.headers.get("x-user").and_then(|user| user.to_str().ok()).map(str::to_owned));
    let service = layer.layer(service_fn(handler(&world, async |tx| {
        tx.note("a parcel");
        answer(200)
    })));
    let mut request = post("/orders/7?token=secret");
    request.headers_mut().insert("x-user", "ada".parse().unwrap());
    service.clone().oneshot(request).await.unwrap();
    service.oneshot(post("/orders/8")).await.unwrap();
    assert_eq!(
        world.journal.of("report"),
        [r#"committed "POST /orders/7\na parcel" "ada""#, r#"committed "POST /orders/8\na parcel" """#,]
    );
}

#[tokio::test]
async fn options_are_handed_to_the_transaction() {
    // A volatile branch beside another that writes needs an opt-in by name (rule 10).
    for allow in [false, true] {
        let world = World::with(Capability::Volatile).await;
        let layer = TransactionLayer::new(world.manager.clone()).options(move |parts| {
            assert_eq!(parts.uri.path(), "/orders");
            if allow { Options::default().allow("b") } else { Options::default() }
        });
        let service = layer.layer(service_fn(handler(&world, async |_| answer(200))));
        let response = service.oneshot(post("/orders")).await.unwrap();
        if allow {
            assert_eq!(response.status(), 200);
            world.assert_ended(&COMMITTED, Outcome::Committed);
        } else {
            assert_eq!(response.status(), 503);
            assert_eq!(world.journal.of("end"), ["aborted"]);
            assert!(
                !world.journal.entries().iter().any(|entry| entry.ends_with(" commit")),
                "{:?}",
                world.journal.entries()
            );
        }
    }
}

#[tokio::test]
async fn the_current_transaction_is_the_requests_and_begins_lazily() {
    let world = World::new().await;
    let (a, b, journal) = (world.a.clone(), world.b.clone(), world.journal.clone());
    let service = TransactionLayer::new(world.manager.clone()).layer(service_fn(move |request: Request<String>| {
        let (a, b, journal) = (a.clone(), b.clone(), journal.clone());
        async move {
            let tx = unanimous::current().unwrap();
            tokio::task::yield_now().await;
            assert_eq!(unanimous::current().unwrap().id(), tx.id());
            assert_eq!(transaction(request.extensions()).unwrap().id(), tx.id());
            let spawned = tokio::spawn(async { unanimous::current().is_some() });
            assert!(!spawned.await.unwrap(), "nobody waits for a spawned task, so it must not inherit the transaction");
            crate::http_support::work(&tx, &a, &b, &journal).await.unwrap();
            answer(200)
        }
    }));
    let response = service.oneshot(post("/orders")).await.unwrap();
    assert!(unanimous::current().is_none());
    assert_eq!(response.status(), 200);
    world.assert_ended(&COMMITTED, Outcome::Committed);
}

#[tokio::test]
async fn a_scope_inside_of_a_request_counts() {
    let world = World::new().await;
    let manager = world.manager.clone();
    let service = TransactionLayer::new(world.manager.clone()).layer(service_fn(move |_: Request<String>| {
        let manager = manager.clone();
        async move {
            let other = manager.begin();
            let outer = unanimous::current().unwrap().id();
            let inner = unanimous::scope(other.handle(), async { unanimous::current().unwrap().id() }).await;
            assert_eq!(inner, other.id());
            assert_ne!(inner, outer);
            assert_eq!(unanimous::current().unwrap().id(), outer);
            other.abort().await;
            answer(200)
        }
    }));
    assert_eq!(service.oneshot(post("/orders")).await.unwrap().status(), 200);
}

/// A service that may be called only by the very value that was found ready, as tower's contract has it; a clone is not ready.
#[derive(Default)]
struct Strict {
    ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { ready: false }
    }
}

impl Service<Request<String>> for Strict {
    type Response = Response<String>;
    type Error = unanimous::BoxError;
    type Future = std::future::Ready<Answer>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<String>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been ready");
        std::future::ready(answer(200))
    }
}

#[tokio::test]
async fn calls_only_the_service_that_was_ready() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).activate(|parts| parts.uri.path() != "/left-out");
    let mut service = layer.layer(Strict::default());
    for path in ["/orders", "/left-out", "/orders"] {
        let response = service.ready().await.unwrap().call(post(path)).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[test]
fn the_requests_span_crosses_into_the_detached_commit() {
    use tracing_subscriber::layer::SubscriberExt;

    // One thread, so that its default subscriber sees the detached task too.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let spans: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    struct Seen(Arc<Mutex<Vec<&'static str>>>);
    impl<S> tracing_subscriber::Layer<S> for Seen
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        fn on_event(&self, event: &tracing::Event<'_>, context: tracing_subscriber::layer::Context<'_, S>) {
            if event.metadata().target() == "http_test" {
                // The transaction's own span is within.
                let span = context.event_span(event).and_then(|span| span.scope().from_root().next());
                self.0.lock().unwrap().push(span.map_or("none", |span| span.metadata().name()));
            }
        }
    }
    let subscriber = tracing_subscriber::registry().with(Seen(spans.clone()));
    tracing::subscriber::with_default(subscriber, || {
        runtime.block_on(async {
            let world = World::new().await;
            for step in [Step::Prepare, Step::Commit, Step::Rollback] {
                world.a.on(step, || tracing::info!(target: "http_test", "a step of a branch"));
            }
            // The call comes in within the span; where the future is polled or dropped has nothing to do with it.
            let mut service =
                TransactionLayer::new(world.manager.clone()).layer(service_fn(handler(&world, async |_| answer(200))));
            let span = tracing::info_span!("the request");
            let future = span.in_scope(|| service.call(post("/orders")));
            assert_eq!(future.await.unwrap().status(), 200);
            world.assert_ended(&COMMITTED, Outcome::Committed);

            let never = handler(&world, async |_| std::future::pending::<Answer>().await);
            let mut service = TransactionLayer::new(world.manager.clone()).layer(service_fn(never));
            let span = tracing::info_span!("the dropped request");
            let mut future = Box::pin(span.in_scope(|| service.call(post("/orders"))));
            assert!(future.as_mut().now_or_never().is_none());
            drop(future);
            world.journal.until("end aborted").await;
        });
    });
    assert_eq!(*spans.lock().unwrap(), ["the request", "the request", "the dropped request"]);
}
