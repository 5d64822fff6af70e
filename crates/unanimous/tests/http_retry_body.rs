//! The body of a request that is run again: what each attempt sees of it, how much of it is read ahead, and for how long.

#![allow(clippy::unwrap_used)]

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http::{HeaderMap, HeaderValue, Request};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};
use unanimous::BoxError;
use unanimous::http::{AdmissionLayer, Attempt, RequestBody, RetryLayer, Retryable, attempt};

use crate::http_retry::{app, created, request, retry};
use crate::http_support::{Answer, World, answer};

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

/// Three clients that send a byte and then nothing: none keeps its place for longer than the bound, and their requests begin nothing.
#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_in_time_gives_its_place_up() {
    let world = World::new().await;
    let slow = || {
        let body = futures_util::stream::iter([Ok::<_, BoxError>(Bytes::from_static(b"t"))]);
        Body::from_stream(futures_util::StreamExt::chain(body, futures_util::stream::pending()))
    };
    let app = app(&world, |_, _| created());
    for (layer, seconds) in [(RetryLayer::new(), 30), (RetryLayer::new().max_body_time(Duration::from_secs(7)), 7)] {
        let app = app.clone().layer(layer).layer(AdmissionLayer::new(1).wait(Duration::from_secs(3600)));
        let began = Instant::now();
        let slow = tokio::spawn(app.clone().oneshot(Request::post("/orders").body(slow()).unwrap()));
        world.journal.add("sent");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(app.oneshot(request("tea")).await.unwrap().status(), 201);
        assert_eq!(began.elapsed().as_secs(), seconds);
        let response = slow.await.unwrap().unwrap();
        assert_eq!(response.status(), 408);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("#request-body-too-slow\""), "{body:?}");
    }
    assert_eq!(world.journal.of("attempt"), ["1 tea"; 2]);
}

/// The bound is on what is read ahead: the rest of a longer body is the handler's, however slow.
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_long_body_may_take_its_time() {
    let slowly = |pieces: [&'static str; 3]| {
        let pieces = futures_util::stream::iter(pieces);
        Body::from_stream(futures_util::StreamExt::then(pieces, async |piece| {
            sleep(Duration::from_secs(20)).await;
            Ok::<_, BoxError>(piece)
        }))
    };
    let world = World::new().await;
    let app = app(&world, |_, _| created()).layer(retry().max_body(4));
    for (pieces, status) in [(["one", "two", "three"], 408), (["longer", "two", "three"], 201)] {
        let request = Request::post("/orders").body(slowly(pieces)).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{pieces:?}");
    }
    assert_eq!(world.journal.of("attempt"), ["1 last longertwothree"]);
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
