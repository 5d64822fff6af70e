//! Responses whose body is made before the transaction ends: a body that joins, fails, panics, is too large or too slow; trailers, lengths
//! and what is passed on untouched; by streams that are polled piece by piece, and over a socket.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http::{HeaderMap, HeaderValue};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, Service, ServiceExt};
use unanimous::http::{
    CommitAfterBodyLayer, HeldBody, RetryLayer, TransactionLayer, commit_after_body, is_active, transaction,
};
use unanimous::{BoxError, BranchError, CommitError, Outcome, Tx};

use crate::http_support::{ABORTED, COMMITTED, Journal, Remark, Store, World, post, work};
use crate::support::warnings::Warnings;

type Piece = Result<Frame<Bytes>, BoxError>;
type Stores = (Store, Store, Journal);

fn data(text: &str) -> Piece {
    Ok(Frame::data(Bytes::from(text.to_owned())))
}

fn stores(world: &World) -> Stores {
    (world.a.clone(), world.b.clone(), world.journal.clone())
}

/// A service whose handler does nothing but answer, and whose body is what `body` makes of the transaction's handle.
fn service<S, F>(
    world: &World,
    layer: CommitAfterBodyLayer,
    body: F,
) -> impl Service<Request<String>, Response = Response<HeldBody<StreamBody<S>>>, Error = Infallible, Future: Send>
+ Clone
+ use<S, F>
where
    S: Stream<Item = Piece> + Send + 'static,
    F: Fn(Stores) -> S + Clone + Send + Sync + 'static,
{
    let stores = stores(world);
    let handler = tower::service_fn(move |_: Request<String>| {
        let body = StreamBody::new(body(stores.clone()));
        stores.2.add("answered");
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    // Without a veto: it is the layer itself that lets a failed body abort.
    TransactionLayer::new(world.manager.clone()).layer(layer.layer(handler))
}

/// The body that went out: its data, and its trailers.
async fn received<B>(response: Response<B>) -> (StatusCode, String, Option<HeaderMap>)
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (head, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned();
    (head.status, String::from_utf8(collected.to_bytes().to_vec()).unwrap(), trailers)
}

fn problem((status, text, _): &(StatusCode, String, Option<HeaderMap>), expected: u16, kind: &str) {
    assert_eq!(status.as_u16(), expected, "{text}");
    assert!(text.contains(&format!("#{kind}\"")), "{text}");
}

/// The stream begins the transaction, joins, and has given everything back before the commit begins.
#[tokio::test]
async fn the_body_is_a_part_of_the_work() {
    let world = World::new().await;
    let service = service(&world, commit_after_body(), |(a, b, journal)| {
        stream::iter(["one ", "two ", "three"]).then(move |text| {
            let (a, b, journal) = (a.clone(), b.clone(), journal.clone());
            async move {
                let tx = unanimous::current().expect("the body is made in the transaction");
                assert!(tx.is_active());
                if text == "one " {
                    work(&tx, &a, &b, &journal).await?;
                }
                let _guard = tx.join(&a).await?;
                tokio::task::yield_now().await;
                journal.add(format_args!("made {text}"));
                let _dropped = Remark(journal, "piece dropped");
                data(text)
            }
        })
    });
    let response = service.oneshot(post("/")).await.unwrap();
    world.assert_ended(&COMMITTED, Outcome::Committed);
    world.journal.assert_before("answered", "made one ");
    world.journal.assert_before("made three", "a flush");
    assert_eq!(response.body().size_hint().exact(), Some(13));
    assert_eq!(received(response).await, (StatusCode::OK, "one two three".to_owned(), None));
}

/// What the stream holds of the transaction until it is dropped doesn't keep the commit from starting.
#[tokio::test]
async fn the_stream_is_dropped_before_the_commit_begins() {
    let world = World::new().await;
    let stores = stores(&world);
    let handler = tower::service_fn(move |request: Request<String>| {
        let (a, b, journal) = stores.clone();
        async move {
            let tx = transaction(request.extensions()).unwrap();
            work(&tx, &a, &b, &journal).await.unwrap();
            let held = Remark(journal, "stream dropped");
            let body = stream::once(async { data("text") }).inspect(move |_| {
                let _ = &held;
            });
            Ok::<_, Infallible>(Response::new(StreamBody::new(body)))
        }
    });
    let service = TransactionLayer::new(world.manager.clone()).layer(commit_after_body().layer(handler));
    let response = service.oneshot(post("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    world.journal.assert_before("stream dropped", "a flush");
    world.assert_ended(&COMMITTED, Outcome::Committed);
}

fn works_then<S>(
    rest: impl Fn() -> S + Clone + Send + Sync + 'static,
) -> impl Fn(Stores) -> futures_util::stream::BoxStream<'static, Piece> + Clone + Send + Sync
where
    S: Stream<Item = Piece> + Send + 'static,
{
    move |(a, b, journal)| {
        let first = stream::once(async move {
            work(&unanimous::current().unwrap(), &a, &b, &journal).await?;
            data("first ")
        });
        first.chain(rest()).boxed()
    }
}

#[tokio::test]
async fn an_error_in_the_body_aborts() {
    let world = World::new().await;
    let body = works_then(|| stream::iter([Err("the printer is on fire".into()), data("never")]));
    let response = service(&world, commit_after_body(), body).oneshot(post("/")).await.unwrap();
    world.assert_ended(&ABORTED, Outcome::Aborted);
    world.assert_cause("it was doomed, which leaves nothing but an abort; begin another");
    let received = received(response).await;
    problem(&received, 500, "handler-failed");
    assert!(!received.1.contains("printer"), "internals are told: {}", received.1);
}

/// A conflict that the body meets is repeated like a handler's.
#[tokio::test]
async fn a_conflict_in_the_body_is_run_again() {
    let world = World::new().await;
    let runs = Arc::new(AtomicU32::new(0));
    let body = works_then(move || {
        let first = runs.fetch_add(1, Ordering::Relaxed) == 0;
        stream::once(async move {
            if first { Err(BranchError::conflict("somebody was first").into()) } else { data("second") }
        })
    });
    let service = RetryLayer::new().layer(Bodiless(service(&world, commit_after_body(), body)));
    let response = service.oneshot(Request::new(Full::<Bytes>::default())).await.unwrap();
    assert_eq!(received(response).await.1, "first second");
    assert_eq!(world.journal.of("end"), ["aborted", "committed"]);
}

/// A service for requests of any body, which it does not look at.
#[derive(Clone)]
struct Bodiless<S>(S);

impl<S: Service<Request<String>>, B> Service<Request<B>> for Bodiless<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        self.0.call(request.map(|_| String::new()))
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_aborts() {
    for (most, fits) in [(10, false), (11, true)] {
        let world = World::new().await;
        let body = works_then(|| stream::iter([data("large")]));
        let layer = commit_after_body().max_bytes(most);
        let response = service(&world, layer, body).oneshot(post("/")).await.unwrap();
        let received = received(response).await;
        if fits {
            assert_eq!(received.1, "first large");
            world.assert_ended(&COMMITTED, Outcome::Committed);
        } else {
            problem(&received, 500, "response-too-large");
            world.assert_ended(&ABORTED, Outcome::Aborted);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_takes_too_long_aborts() {
    for (seconds, fits) in [(9, true), (11, false)] {
        let world = World::new().await;
        let body = works_then(move || {
            stream::once(async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                data("late")
            })
        });
        let layer = commit_after_body().max_time(Duration::from_secs(10));
        let response = service(&world, layer, body).oneshot(post("/")).await.unwrap();
        let retry = response.headers().get("retry-after").cloned();
        let received = received(response).await;
        if fits {
            assert_eq!(received.1, "first late");
            world.assert_ended(&COMMITTED, Outcome::Committed);
        } else {
            problem(&received, 503, "response-too-slow");
            assert_eq!(retry, Some(HeaderValue::from_static("5")));
            world.assert_ended(&ABORTED, Outcome::Aborted);
        }
    }
}

#[tokio::test]
async fn a_panic_in_the_body_aborts_and_goes_on() {
    let world = World::new().await;
    let body = works_then(|| stream::once(async { panic!("out of paper") }));
    let sent = service(&world, commit_after_body(), body).oneshot(post("/"));
    let panic = tokio::spawn(async move { sent.await.map(drop) }).await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref(), Some(&"out of paper"));
    world.assert_ended(&ABORTED, Outcome::Aborted);
}

/// A client that goes away while the body is made: aborted, as in the handler.
#[tokio::test]
async fn a_request_that_is_dropped_while_its_body_is_made_aborts() {
    let world = World::new().await;
    let body = works_then(stream::pending);
    let sent = tokio::spawn(service(&world, commit_after_body(), body).oneshot(post("/")));
    world.journal.until("worked").await;
    sent.abort();
    world.journal.until("end aborted").await;
    world.assert_ended(&ABORTED, Outcome::Aborted);
}

#[tokio::test]
async fn trailers_are_kept() {
    let world = World::new().await;
    let sent = HeaderMap::from_iter([("checksum".parse().unwrap(), HeaderValue::from_static("42"))]);
    let trailers = sent.clone();
    let body = works_then(move || stream::iter([data("text"), Ok(Frame::trailers(trailers.clone()))]));
    let response = service(&world, commit_after_body(), body).oneshot(post("/")).await.unwrap();
    assert_eq!(response.body().size_hint().exact(), None, "HTTP/1.1 has no trailers beside a length");
    assert_eq!(received(response).await, (StatusCode::OK, "first text".to_owned(), Some(sent)));
    world.assert_ended(&COMMITTED, Outcome::Committed);
}

/// HEAD, an upgrade, and requests without a transaction: the body is not touched, and streams when the transaction has ended.
#[tokio::test]
async fn what_is_passed_on_untouched() {
    async fn answer(request: Request<String>) -> Result<Response<StreamBody<impl Stream<Item = Piece>>>, Infallible> {
        let body = stream::once(async { panic!("the body is made although it was to be passed on") });
        let switches = request.uri().path() == "/switch";
        let status = if switches { StatusCode::SWITCHING_PROTOCOLS } else { StatusCode::OK };
        if is_active(request.extensions()) {
            transaction(request.extensions()).unwrap();
        }
        let mut response = Response::new(StreamBody::new(body));
        *response.status_mut() = status;
        Ok(response)
    }
    let world = World::new().await;
    let inner = commit_after_body().layer(tower::service_fn(answer));
    let within =
        TransactionLayer::new(world.manager.clone()).activate(|parts| parts.uri.path() != "/out").layer(inner.clone());
    for (method, path) in [("HEAD", "/"), ("GET", "/switch"), ("CONNECT", "/"), ("GET", "/out")] {
        let request = Request::builder().method(method).uri(path).body(String::new()).unwrap();
        let response = within.clone().oneshot(request).await.unwrap();
        assert!(!response.body().is_end_stream(), "{method} {path}");
    }
    inner.oneshot(post("/")).await.unwrap();
}

#[tokio::test]
async fn outside_of_the_transaction_it_says_so() {
    let world = World::new().await;
    let warnings = Warnings::collect();
    let handler = tower::service_fn(|request: Request<String>| {
        if request.uri().path() == "/begins" {
            transaction(request.extensions()).unwrap();
        }
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("text").map_err(BoxError::from).boxed_unsync())) }
    });
    let render = |_: &CommitError| Response::new(Full::<Bytes>::default().map_err(BoxError::from).boxed_unsync());
    let within = TransactionLayer::new(world.manager.clone()).on_commit_failure(render).layer(handler);
    let wrong = commit_after_body().layer(within);
    let text = &["CommitAfterBodyLayer is outside of a TransactionLayer"];
    for (path, said) in [("/", 0), ("/begins", 1)] {
        assert_eq!(received(wrong.clone().oneshot(post(path)).await.unwrap()).await.1, "text");
        assert_eq!(warnings.with(text).len(), said, "{path}");
    }
}

/// axum's bodies, with the default answers of the outer layers; what a client sees on its socket.
#[tokio::test]
async fn over_a_socket_with_axum() {
    async fn list(tx: Tx, State((a, b, journal)): State<Stores>) -> Response<Body> {
        let pieces = stream::iter(0..3).then(move |number| {
            let (tx, a, b, journal) = (tx.clone(), a.clone(), b.clone(), journal.clone());
            async move {
                if number == 0 {
                    work(&tx, &a, &b, &journal).await?;
                }
                Ok::<_, BoxError>(format!("{number},"))
            }
        });
        let mut response = Response::new(Body::from_stream(pieces));
        response.headers_mut().insert("x-kept", HeaderValue::from_static("yes"));
        response
    }
    async fn checked(State((a, b, journal)): State<Stores>, tx: Tx) -> Response<Body> {
        work(&tx, &a, &b, &journal).await.unwrap();
        let trailers = HeaderMap::from_iter([("checksum".parse().unwrap(), HeaderValue::from_static("42"))]);
        let frames = stream::iter([data("text"), Ok(Frame::trailers(trailers))]);
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        response.headers_mut().insert("trailer", HeaderValue::from_static("checksum"));
        response
    }
    for (path, expected) in [
        ("/list", ["content-length: 6\r\n", "x-kept: yes\r\n", "\r\n\r\n0,1,2,"]),
        ("/checked", ["transfer-encoding: chunked\r\n", "\r\n4\r\ntext\r\n0\r\n", "checksum: 42\r\n"]),
    ] {
        let world = World::new().await;
        let app = Router::new()
            .route("/list", get(list))
            .route("/checked", get(checked))
            .with_state(stores(&world))
            .layer(commit_after_body())
            .layer(TransactionLayer::new(world.manager.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let mut client = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        for part in expected {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
        world.assert_ended(&COMMITTED, Outcome::Committed);
        server.abort();
    }
}

/// Beside a plain stream, whose error undoes nothing: why the layer is there.
#[tokio::test]
async fn without_it_the_stream_is_outside() {
    let world = World::new().await;
    let stores = Arc::new(stores(&world));
    let handler = tower::service_fn(move |request: Request<String>| {
        let stores = stores.clone();
        async move {
            let tx = transaction(request.extensions()).unwrap();
            work(&tx, &stores.0, &stores.1, &stores.2).await.unwrap();
            let body = stream::once(async move {
                assert!(unanimous::current().is_none() && !tx.is_active());
                Err::<Frame<Bytes>, BoxError>("too late".into())
            });
            Ok::<_, Infallible>(Response::new(PlainBody(StreamBody::new(body.boxed()))))
        }
    });
    let service = TransactionLayer::new(world.manager.clone()).layer(handler);
    let response = service.oneshot(post("/")).await.unwrap();
    world.assert_ended(&COMMITTED, Outcome::Committed);
    let PlainBody(body) = response.into_body();
    assert_eq!(BodyExt::collect(body).await.unwrap_err().to_string(), "too late");
}

/// A body that an answer to a failed commit could be made into.
struct PlainBody(StreamBody<futures_util::stream::BoxStream<'static, Piece>>);

impl From<String> for PlainBody {
    fn from(text: String) -> Self {
        Self(StreamBody::new(stream::once(async move { data(&text) }).boxed()))
    }
}
