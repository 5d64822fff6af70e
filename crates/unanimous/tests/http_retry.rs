//! Requests that are run again: which ones and which not, with which body, how often, and for how long.

#![allow(clippy::unwrap_used)]

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post as on_post;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use unanimous::http::{
    Attempt, Failed, RequestBody, RetryLayer, Retryable, TransactionLayer, attempt, default_commit_veto,
};
use unanimous::{BoxError, BranchError, Capability, Tx};

use crate::http_support::{Answer, BoxFuture, Journal, Step, Store, World, answer, post};
use crate::support::warnings::Warnings;

/// Waits that nobody has to wait for.
fn retry() -> RetryLayer {
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

fn app(world: &World, deed: Deed) -> Router {
    Router::new()
        .route("/orders", on_post(order))
        .with_state((world.a.clone(), world.b.clone(), world.journal.clone(), deed))
        .layer(TransactionLayer::new(world.manager.clone()).commit_veto(default_commit_veto))
}

fn request(body: &'static str) -> Request<Body> {
    Request::post("/orders").body(Body::from(body)).unwrap()
}

fn created() -> Result<Response, Failed> {
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

/// What a service has seen of a body: its frames, as text.
async fn frames<B>(mut body: B) -> Vec<String>
where
    B: http_body::Body<Data = Bytes, Error = &'static str> + Unpin,
{
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        seen.push(match frame {
            Err(error) => format!("error {error}"),
            Ok(frame) => match frame.into_data() {
                Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
                Err(frame) => format!("trailers {:?}", frame.into_trailers().unwrap()["x-sum"]),
            },
        });
    }
    seen
}

type Part = Result<Frame<Bytes>, &'static str>;

fn data(text: &'static str) -> Part {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn trailers() -> Part {
    Ok(Frame::trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("42"))])))
}

/// A body with no length.
type Stream = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Part>>>;

/// What each attempt of a request with this body has seen of it, where every attempt asks for another.
async fn attempts_of<B>(body: B, most: usize) -> Vec<(Attempt, Vec<String>)>
where
    B: http_body::Body<Data = Bytes, Error = &'static str> + Send + Unpin + 'static,
{
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let all = seen.clone();
    let service = retry().attempts(2).max_body(most).layer(service_fn(move |request: Request<RequestBody<B>>| {
        let seen = seen.clone();
        async move {
            let attempt = attempt(request.extensions()).unwrap();
            let frames = frames(request.into_body()).await;
            seen.lock().unwrap().push((attempt, frames));
            let mut response = answer(409)?;
            response.extensions_mut().insert(Retryable);
            Answer::Ok(response)
        }
    }));
    service.oneshot(Request::new(body)).await.unwrap();
    Arc::into_inner(all).unwrap().into_inner().unwrap()
}

#[tokio::test]
async fn each_attempt_gets_the_whole_body() {
    let body = |parts: Vec<Part>| -> Stream { StreamBody::new(futures_util::stream::iter(parts)) };
    type Case = (&'static str, Vec<Part>, &'static [&'static [&'static str]]);
    let cases: Vec<Case> = vec![
        ("none", vec![], &[&[], &[]]),
        ("of the bound", vec![data("abc"), data("de")], &[&["abcde"], &["abcde"]]),
        ("with trailers", vec![data("abc"), trailers()], &[&["abc", "trailers \"42\""], &["abc", "trailers \"42\""]]),
        ("trailers alone", vec![trailers()], &[&["trailers \"42\""], &["trailers \"42\""]]),
        // Longer ones are tried once, and lose nothing.
        (
            "a byte longer",
            vec![data("abc"), data("def"), data("g"), trailers()],
            &[&["abcdef", "g", "trailers \"42\""]],
        ),
        ("longer at once", vec![data("abcdef")], &[&["abcdef"]]),
        // What breaks off does so in its place.
        ("broken", vec![data("abc"), Err("reset")], &[&["abc", "error reset"]]),
        ("broken at once", vec![Err("reset")], &[&["error reset"]]),
    ];
    for (name, parts, expected) in cases {
        let seen = attempts_of(body(parts), 5).await;
        let numbers: Vec<_> = seen.iter().map(|(attempt, _)| (attempt.number, attempt.last)).collect();
        let frames: Vec<_> = seen.into_iter().map(|(_, frames)| frames).collect();
        assert_eq!(frames, expected, "{name}");
        // Tried once, it is the last one from the beginning.
        let twice: &[_] = &[(1, false), (2, true)];
        assert_eq!(numbers, if expected.len() == 2 { twice } else { &[(1, true)] }, "{name}");
    }
}

/// A body that says how long it is, and fails the test when it is read before the service does it.
struct Announced {
    length: u64,
    handled: Arc<AtomicU32>,
}

impl http_body::Body for Announced {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        assert_eq!(self.handled.load(Ordering::Relaxed), 1, "read ahead although it is too long");
        Poll::Ready(None)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.length)
    }
}

#[tokio::test]
async fn a_body_that_announces_too_much_is_not_read_ahead() {
    let handled = Arc::<AtomicU32>::default();
    let seen = handled.clone();
    let service = RetryLayer::new().layer(service_fn(move |request: Request<RequestBody<Announced>>| {
        let seen = seen.clone();
        async move {
            assert_eq!(seen.fetch_add(1, Ordering::Relaxed), 0);
            // 64 KiB are the default.
            assert_eq!(request.body().size_hint().exact(), Some(65_537));
            request.into_body().collect().await.unwrap();
            let mut response = answer(409)?;
            response.extensions_mut().insert(Retryable);
            Answer::Ok(response)
        }
    }));
    service.oneshot(Request::new(Announced { length: 65_537, handled })).await.unwrap();
}

#[tokio::test]
async fn lengths_are_told() {
    let sizes = Arc::<Mutex<Vec<_>>>::default();
    let seen = sizes.clone();
    let service = retry().max_body(5).layer(service_fn(move |request: Request<RequestBody<String>>| {
        seen.lock().unwrap().push((request.body().size_hint().exact(), request.body().is_end_stream()));
        std::future::ready(answer(200))
    }));
    for body in ["", "abcde", "abcdef"] {
        service.clone().oneshot(Request::new(body.to_owned())).await.unwrap();
    }
    assert_eq!(*sizes.lock().unwrap(), [(Some(0), true), (Some(5), false), (Some(6), false)]);
    let mut bytes = RequestBody::<String>::from(Bytes::from_static(b"replaced"));
    assert_eq!(bytes.size_hint().exact(), Some(8));
    assert_eq!(bytes.frame().await.unwrap().unwrap().into_data().unwrap(), "replaced");
    assert!(bytes.is_end_stream());
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
    let mut upgrade = request("tea");
    upgrade.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    assert_eq!(app(&world, deed).layer(retry()).oneshot(upgrade).await.unwrap().status(), 409);
    assert_eq!(world.journal.of("attempt"), only.repeat(4));
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
