//! Requests that are run again: which ones and which not, how often, and for how long.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post as on_post;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use unanimous::http::{
    AdmissionLayer, Attempt, Failed, RequestBody, RetryLayer, Retryable, TransactionLayer, attempt, default_commit_veto,
};
use unanimous::{BoxError, BranchError, Capability, Tx};

use crate::http_support::{Answer, BoxFuture, Journal, Step, Store, World, answer, post, work};
use crate::support::warnings::Warnings;
use crate::support::{ended, eventually};

/// Waits that nobody has to wait for.
pub(crate) fn retry() -> RetryLayer {
    RetryLayer::new().attempts(3).backoff(Duration::from_millis(1), Duration::from_millis(2))
}

/// What one attempt does.
type Deed = fn(Attempt, &Tx) -> Result<Response, Failed>;

type Stores = (Store, Store, Journal, Deed);

/// Works in both stores, and then does the deed.
async fn order(
    attempt: Attempt,
    tx: Tx,
    State((a, b, journal, deed)): State<Stores>,
    body: Bytes,
) -> Result<Response, Failed> {
    let last = if attempt.last { " last" } else { "" };
    journal.add(format_args!("attempt {}{last} {}", attempt.number, String::from_utf8_lossy(&body)));
    tx.join(&a).await?;
    tx.join(&b).await?;
    let ended = journal.clone();
    tx.after_end(move |outcome| ended.add(format_args!("end {outcome}")));
    deed(attempt, &tx)
}

pub(crate) fn app(world: &World, deed: Deed) -> Router {
    Router::new()
        .route("/orders", on_post(order))
        .with_state((world.a.clone(), world.b.clone(), world.journal.clone(), deed))
        .layer(TransactionLayer::new(world.manager.clone()).commit_veto(default_commit_veto))
}

pub(crate) fn request(body: &'static str) -> Request<Body> {
    Request::post("/orders").body(Body::from(body)).unwrap()
}

pub(crate) fn created() -> Result<Response, Failed> {
    Ok((StatusCode::CREATED, "the handler's own").into_response())
}

const ALL: [&str; 3] = ["1 tea", "2 tea", "3 last tea"];
const ONCE: [&str; 1] = ["1 tea"];

/// A request, and how often it is run. Panics and errors of the service are below.
#[tokio::test]
async fn what_is_repeated_and_what_is_not() {
    type Case = (&'static str, Capability, fn(&World), Deed, &'static [&'static str], u16);
    let cases: [Case; 14] = [
        ("done", Capability::TwoPhase, |_| {}, |_, _| created(), &ONCE, 201),
        (
            "a conflict that the handler met",
            Capability::TwoPhase,
            |_| {},
            |_, _| Err(BranchError::conflict("secret").into()),
            &ALL,
            409,
        ),
        (
            "a conflict at its end",
            Capability::TwoPhase,
            |_| {},
            |attempt, _| if attempt.number == 2 { created() } else { Err(BranchError::conflict("secret").into()) },
            &["1 tea", "2 tea"],
            201,
        ),
        (
            "a failure that the handler calls worth it",
            Capability::TwoPhase,
            |_| {},
            |_, _| Err(Failed::retryable("the other service was not ready")),
            &ALL,
            409,
        ),
        (
            "another failure of the handler",
            Capability::TwoPhase,
            |_| {},
            |_, _| Err(BranchError::refused("secret").into()),
            &ONCE,
            500,
        ),
        (
            "a store that is lost",
            Capability::TwoPhase,
            |_| {},
            |_, _| Err(BranchError::lost("secret").into()),
            &ONCE,
            503,
        ),
        (
            "the handler's own response, marked",
            Capability::TwoPhase,
            |_| {},
            |_, _| {
                let mut response = StatusCode::IM_A_TEAPOT.into_response();
                response.extensions_mut().insert(Retryable);
                Ok(response)
            },
            &ALL,
            418,
        ),
        (
            "the handler's own response, not marked",
            Capability::TwoPhase,
            |_| {},
            |_, _| Ok(StatusCode::CONFLICT.into_response()),
            &ONCE,
            409,
        ),
        (
            "doomed",
            Capability::TwoPhase,
            |_| {},
            |_, tx| {
                tx.doom();
                created()
            },
            &ONCE,
            201,
        ),
        (
            "a conflict at the vote",
            Capability::TwoPhase,
            |world| world.b.fail(Step::Prepare, || BranchError::conflict("secret")),
            |_, _| created(),
            &ALL,
            409,
        ),
        (
            "a no at the vote",
            Capability::TwoPhase,
            |world| world.b.fail(Step::Prepare, || BranchError::refused("secret")),
            |_, _| created(),
            &ONCE,
            503,
        ),
        (
            "a conflict in the commit that decides",
            Capability::OnePhase,
            |world| world.b.fail(Step::CommitOnePhase, || BranchError::conflict("secret")),
            |_, tx| {
                tx.allow("b");
                created()
            },
            &ALL,
            409,
        ),
        (
            "an unknown outcome",
            Capability::OnePhase,
            |world| world.b.fail(Step::CommitOnePhase, || BranchError::lost("secret")),
            |_, tx| {
                tx.allow("b");
                created()
            },
            &ONCE,
            500,
        ),
        (
            "an error that says both a conflict and an unknown outcome",
            Capability::TwoPhase,
            |_| {},
            |_, tx| {
                let source =
                    unanimous::Cause::Branch { resource: "x".to_owned(), source: BranchError::conflict("secret") };
                Err(unanimous::CommitError::Unknown { id: tx.id(), source }.into())
            },
            &ONCE,
            500,
        ),
    ];
    for (name, capability, prepare, deed, attempts, status) in cases {
        let world = World::with(capability).await;
        prepare(&world);
        let response = app(&world, deed).layer(retry()).oneshot(request("tea")).await.unwrap();
        assert_eq!(world.journal.of("attempt"), attempts, "{name}");
        assert_eq!(response.status(), status, "{name}");
        // Each attempt has ended before the next one begins.
        let steps: Vec<_> = world.journal.entries();
        let steps: Vec<_> = steps.iter().filter_map(|entry| entry.split(' ').next()).collect();
        let in_turn: Vec<_> = steps.into_iter().filter(|word| ["attempt", "end"].contains(word)).collect();
        assert_eq!(in_turn, ["attempt", "end"].repeat(attempts.len()), "{name}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!String::from_utf8_lossy(&body).contains("secret"), "{name}: {body:?}");
    }
}

/// A handler that runs transactions of its own beside the request's: the first one has committed when the second one meets its conflict.
#[tokio::test]
async fn another_transactions_conflict_repeats_nothing_that_has_committed() {
    let world = World::new().await;
    let (manager, a) = (world.manager.clone(), world.a.clone());
    let app: Router = Router::new()
        .route(
            "/orders",
            on_post(async move |_tx: Tx| -> Result<(), Failed> {
                manager.run(1, async |tx| tx.join(&a).await.map(drop).map_err(BoxError::from)).await?;
                manager.run(1, async |_| Err::<(), _>(BranchError::conflict("the second one").into())).await?;
                Ok(())
            }),
        )
        .layer(TransactionLayer::new(world.manager.clone()))
        .layer(retry());
    assert_eq!(app.oneshot(request("tea")).await.unwrap().status(), 409);
    assert_eq!(world.a.calls(), ["begin", "flush", "commit_one_phase"]);
}

#[tokio::test]
async fn over_a_socket_the_client_sees_the_last_attempt_only() {
    let world = World::new().await;
    let deed: Deed =
        |attempt, _| if attempt.last { created() } else { Err(BranchError::conflict("another order").into()) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app(&world, deed).layer(retry());
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = "POST /orders HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                   1\r\nt\r\n2\r\nea\r\n0\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    server.abort();
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    assert!(answer.ends_with("the handler's own"), "{answer}");
    assert_eq!(world.journal.of("attempt"), ALL);
    assert_eq!(world.journal.of("end"), ["aborted", "aborted", "committed"]);
}

/// A client that resets its connection during the wait after an attempt, in the handler of the second one, and in that one's commit: no other
/// attempt begins, what is under way ends as without the layer, and the next client is served.
#[tokio::test]
async fn over_a_socket_nothing_begins_for_a_client_that_reset() {
    type Case = (&'static str, &'static [&'static str], &'static [&'static str]);
    let cases: [Case; 3] = [
        ("wait", &["1"], &["aborted"]),
        ("handler", &["1", "2"], &["aborted", "aborted"]),
        ("commit", &["1", "2"], &["aborted", "committed"]),
    ];
    for (stage, attempts, ends) in cases {
        let world = World::new().await;
        let (a, b, journal) = (world.a.clone(), world.b.clone(), world.journal.clone());
        let handle = async move |attempt: Attempt, tx: Tx, body: Bytes| -> Result<StatusCode, Failed> {
            if body == "well" {
                return Ok(StatusCode::OK);
            }
            work(&tx, &a, &b, &journal).await?;
            journal.add(format_args!("attempt {}", attempt.number));
            match (attempt.number, stage) {
                (1, _) => Err(BranchError::conflict("another order").into()),
                (_, "handler") => std::future::pending().await,
                _ => Ok(StatusCode::CREATED),
            }
        };
        if stage == "commit" {
            world.a.hold(Step::Prepare);
        }
        let wait = if stage == "wait" { Duration::from_secs(3600) } else { MS };
        let places = AdmissionLayer::new(1).queue(0);
        let app = Router::new()
            .route("/orders", on_post(handle))
            .layer(TransactionLayer::new(world.manager.clone()))
            .layer(RetryLayer::new().backoff(wait, wait).budget(Duration::from_secs(7200)))
            .layer(places.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let send = async |body: &str| {
            let mut client = TcpStream::connect(address).await.unwrap();
            // Dropped, it resets.
            client.set_zero_linger().unwrap();
            let head = "POST /orders HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: ";
            client.write_all(format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
            client
        };
        let client = send("reset").await;
        match stage {
            "wait" => world.journal.until("end aborted").await,
            "handler" => world.journal.until("attempt 2").await,
            _ => world.a.reached(Step::Prepare).await,
        }
        drop(client);
        if stage == "commit" {
            // Long enough for the server to see it; the place is the commit's until that has ended.
            world.a.release(Step::Prepare);
        }
        eventually("the request has left its place", || format!("{places:?}").contains("free: 1")).await;
        let mut answer = String::new();
        ended(send("well").await.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{stage}: {answer}");
        server.abort();
        assert_eq!(world.journal.of("attempt"), attempts, "{stage}");
        assert_eq!(world.journal.of("end"), ends, "{stage}");
    }
}

/// A plain service that counts its runs.
fn counted<Fut>(
    runs: Arc<AtomicU32>,
    deed: impl Fn(Request<RequestBody<String>>) -> Fut + Clone,
) -> impl Service<
    Request<RequestBody<String>>,
    Response = http::Response<String>,
    Error = BoxError,
    Future = BoxFuture<Answer>,
> + Clone
where
    Fut: Future<Output = Answer> + Send + 'static,
{
    service_fn(move |request| -> BoxFuture<Answer> {
        runs.fetch_add(1, Ordering::Relaxed);
        Box::pin(deed(request))
    })
}

#[tokio::test]
async fn a_panic_and_an_error_of_the_service_go_out() {
    let world = World::new().await;
    let runs = Arc::<AtomicU32>::default();
    let layers = || ServiceBuilder::new().layer(retry()).layer(TransactionLayer::new(world.manager.clone()));
    let fails =
        layers().service(counted(runs.clone(), async |_| Err(BranchError::conflict("a conflict, even").into())));
    assert!(fails.oneshot(post("/")).await.unwrap_err().is::<BranchError>());
    assert_eq!(runs.swap(0, Ordering::Relaxed), 1);
    let panics = layers().service(counted(runs.clone(), async |_| panic!("out of ink")));
    assert!(tokio::spawn(panics.oneshot(post("/"))).await.unwrap_err().is_panic());
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_marked_response_of_a_handler_without_a_transaction_is_repeated() {
    let world = World::new().await;
    let runs = Arc::<AtomicU32>::default();
    let service = ServiceBuilder::new().layer(retry()).layer(TransactionLayer::new(world.manager.clone())).service(
        counted(runs.clone(), async |_| {
            let mut response = answer(503)?;
            response.extensions_mut().insert(Retryable);
            Answer::Ok(response)
        }),
    );
    assert_eq!(service.oneshot(post("/")).await.unwrap().status(), 503);
    assert_eq!(runs.load(Ordering::Relaxed), 3);
}

/// When each attempt began, where each one takes so long and asks for another.
async fn times(layer: RetryLayer, work: Duration) -> Vec<(Duration, Attempt)> {
    let began = Instant::now();
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let all = seen.clone();
    let service = layer.layer(service_fn(move |request: Request<RequestBody<String>>| {
        let seen = seen.clone();
        async move {
            seen.lock().unwrap().push((began.elapsed(), attempt(request.extensions()).unwrap()));
            sleep(work).await;
            let mut response = answer(409)?;
            response.extensions_mut().insert(Retryable);
            Answer::Ok(response)
        }
    }));
    assert_eq!(service.oneshot(post("/")).await.unwrap().status(), 409);
    Arc::into_inner(all).unwrap().into_inner().unwrap()
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn waits_double_up_to_the_longest_and_are_never_shorter_than_half() {
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let times = times(RetryLayer::new().attempts(6).backoff(100 * MS, 400 * MS), Duration::ZERO).await;
        assert_eq!(times.len(), 6);
        for (pair, full) in times.windows(2).zip([100, 200, 400, 400, 400]) {
            let wait = pair[1].0 - pair[0].0;
            // The clock counts whole milliseconds, upwards.
            assert!((full * MS / 2..=full * MS + MS).contains(&wait), "{wait:?} of {full} ms");
            waits.insert(wait);
        }
    }
    assert!(waits.len() > 20, "no jitter: {waits:?}");
}

#[tokio::test(start_paused = true)]
async fn no_attempt_begins_after_the_budget() {
    let layer = || RetryLayer::new().attempts(1000).budget(1000 * MS).backoff(100 * MS, 100 * MS);
    let began = Instant::now();
    let all = times(layer(), 100 * MS).await;
    // Each takes from 150 to 200 ms with its wait.
    assert!((5..=7).contains(&all.len()), "{all:?}");
    assert!(all.iter().all(|(at, _)| *at <= 1001 * MS), "{all:?}");
    // It does not wait for what can't begin.
    assert!(began.elapsed() <= all.last().unwrap().0 + 101 * MS);
    // One that can't be followed by another knows it; with the time spent before it, not with what it takes itself.
    for (at, attempt) in &all {
        assert_eq!(attempt.last, *at > 950 * MS, "{at:?} of {all:?}");
    }
    // One that takes longer than the budget is not cut, and not repeated.
    let began = Instant::now();
    assert_eq!(times(layer(), 5000 * MS).await.len(), 1);
    assert_eq!(began.elapsed(), 5000 * MS);
    // Without a budget there is one attempt.
    let all = times(layer().budget(Duration::ZERO), Duration::ZERO).await;
    assert_eq!(all.iter().map(|(_, attempt)| (attempt.number, attempt.last)).collect::<Vec<_>>(), [(1, true)]);
}

#[tokio::test(start_paused = true)]
async fn by_default_there_are_five_attempts() {
    let all = times(RetryLayer::new(), 2 * MS).await;
    let last: Vec<_> = all.iter().map(|(_, attempt)| attempt.last).collect();
    assert_eq!(last, [false, false, false, false, true]);
    assert_eq!(times(RetryLayer::new().attempts(0), MS).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_while_it_waits_is_left_alone() {
    let world = World::new().await;
    let deed: Deed = |_, _| Err(BranchError::conflict("another").into());
    let app = app(&world, deed).layer(RetryLayer::new().backoff(Duration::from_secs(9), Duration::from_secs(9)));
    let waiting = tokio::spawn(app.oneshot(request("tea")));
    world.journal.until("end aborted").await;
    sleep(Duration::from_secs(1)).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.journal.of("attempt"), ONCE);
}

#[tokio::test]
async fn what_is_left_out_is_run_once_and_knows_it() {
    let world = World::new().await;
    let deed: Deed = |_, _| Err(BranchError::conflict("another").into());
    let only = ["1 last tea"];
    // By the layer's own choice.
    let left_out = app(&world, deed).layer(retry().when(|parts| parts.method == "PUT"));
    assert_eq!(left_out.oneshot(request("tea")).await.unwrap().status(), 409);
    assert_eq!(world.journal.of("attempt"), only);
    // One attempt is all there is.
    assert_eq!(app(&world, deed).layer(retry().attempts(1)).oneshot(request("tea")).await.unwrap().status(), 409);
    assert_eq!(world.journal.of("attempt"), only.repeat(2));
    // No layer.
    assert_eq!(app(&world, deed).oneshot(request("tea")).await.unwrap().status(), 409);
    assert_eq!(world.journal.of("attempt"), only.repeat(3));
    // An upgrade: its connection can't be had twice.
    for (runs, protocols) in [(4, "websocket"), (5, "h2c, websocket")] {
        let mut upgrade = request("tea");
        upgrade.headers_mut().insert("upgrade", HeaderValue::from_static(protocols));
        assert_eq!(app(&world, deed).layer(retry()).oneshot(upgrade).await.unwrap().status(), 409);
        assert_eq!(world.journal.of("attempt"), only.repeat(runs), "{protocols}");
    }
}

/// As clients offer it with any request, and servers that don't take it go on in HTTP/1.1.
#[tokio::test]
async fn a_request_that_offers_http_2_is_repeated_all_the_same() {
    for offer in ["h2c", "H2C", " h2c , "] {
        let world = World::new().await;
        let deed: Deed = |_, _| Err(BranchError::conflict("another").into());
        let mut request = request("tea");
        request.headers_mut().insert("upgrade", HeaderValue::from_static(offer));
        app(&world, deed).layer(retry()).oneshot(request).await.unwrap();
        assert_eq!(world.journal.of("attempt"), ALL, "{offer:?}");
    }
}

/// A route repeats its own requests, others' don't.
#[tokio::test]
async fn it_can_be_put_around_one_route() {
    let world = World::new().await;
    let deed: Deed = |_, _| Err(BranchError::conflict("another").into());
    let state: Stores = (world.a.clone(), world.b.clone(), world.journal.clone(), deed);
    let transaction = || TransactionLayer::new(world.manager.clone());
    let app = Router::new()
        .route("/orders", on_post(order).layer((retry(), transaction())))
        .route("/once", on_post(order).layer(transaction()))
        .with_state(state);
    app.clone().oneshot(request("tea")).await.unwrap();
    assert_eq!(world.journal.of("attempt"), ALL);
    app.oneshot(Request::post("/once").body(Body::from("rum")).unwrap()).await.unwrap();
    assert_eq!(world.journal.of("attempt")[3..], ["1 last rum"]);
}

#[tokio::test]
async fn applied_twice_the_inner_one_steps_aside_unless_the_outer_one_leaves_it_out() {
    let world = World::new().await;
    let deed: Deed = |_, _| Err(BranchError::conflict("another").into());
    let twice = app(&world, deed).layer(retry().attempts(7)).layer(retry());
    assert_eq!(twice.oneshot(request("tea")).await.unwrap().status(), 409);
    assert_eq!(world.journal.of("attempt"), ALL);
    let left_out = app(&world, deed).layer(retry()).layer(retry().attempts(7).when(|_| false));
    assert_eq!(left_out.oneshot(request("tea")).await.unwrap().status(), 409);
    assert_eq!(world.journal.of("attempt"), ALL.repeat(2));
}

/// Also where the inner one leaves the request out, or stands in the wrong place.
#[tokio::test]
async fn an_inner_layer_that_steps_aside_leaves_the_attempt_as_it_is() {
    let world = World::new().await;
    let deed: Deed = |_, _| Err(BranchError::conflict("another").into());
    let state: Stores = (world.a.clone(), world.b.clone(), world.journal.clone(), deed);
    let transaction = || TransactionLayer::new(world.manager.clone());
    for inner in [retry().when(|_| false), retry()] {
        let app = Router::new().route("/orders", on_post(order).layer(inner)).with_state(state.clone());
        app.layer(transaction()).layer(retry()).oneshot(request("tea")).await.unwrap();
    }
    assert_eq!(world.journal.of("attempt"), ALL.repeat(2));
}

/// Within a transaction nothing can be repeated: the request is run once, and the log says what to do.
#[tokio::test]
async fn inside_of_the_transaction_layer_it_steps_aside_and_says_so() {
    let world = World::new().await;
    let warnings = Warnings::collect();
    let runs = Arc::<AtomicU32>::default();
    let service = ServiceBuilder::new().layer(TransactionLayer::new(world.manager.clone())).layer(retry()).service(
        counted(runs.clone(), async |request| {
            let only = attempt(request.extensions()).unwrap();
            assert_eq!((only.number, only.last), (1, true));
            let mut response = answer(409)?;
            response.extensions_mut().insert(Retryable);
            Answer::Ok(response)
        }),
    );
    assert_eq!(service.oneshot(post("/")).await.unwrap().status(), 409);
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    assert_eq!(warnings.with(&["ERROR", "a RetryLayer is inside of a TransactionLayer", "put it outside"]).len(), 1);
}

/// A service that may be called only by the very value that was found ready, once each time.
#[derive(Default)]
struct Strict {
    ready: bool,
    runs: Arc<AtomicU32>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { ready: false, runs: self.runs.clone() }
    }
}

impl Service<Request<RequestBody<String>>> for Strict {
    type Response = http::Response<String>;
    type Error = BoxError;
    type Future = std::future::Ready<Answer>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<RequestBody<String>>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been ready");
        self.runs.fetch_add(1, Ordering::Relaxed);
        let mut response = http::Response::new(String::new());
        response.extensions_mut().insert(Retryable);
        std::future::ready(Ok(response))
    }
}

#[tokio::test]
async fn each_attempt_calls_a_service_that_was_ready() {
    let strict = Strict::default();
    let runs = strict.runs.clone();
    let mut service = retry().layer(strict);
    for all in [3, 6] {
        service.ready().await.unwrap().call(post("/")).await.unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), all);
    }
}
