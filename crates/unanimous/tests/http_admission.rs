//! The admission layer: so many requests at once, so many that wait, in order, so long, and 503 for the rest; clients that go away
//! give their place up; a shutdown refuses at once.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};
use unanimous::http::{AdmissionLayer, TransactionLayer};

use crate::http_support::{Answer, World, answer, handler, post};
use crate::support::warnings::Warnings;
use crate::support::{ended, eventually};

/// A handler that says that it works, and works until it is let go.
struct Handler {
    begun: mpsc::UnboundedReceiver<String>,
    begin: mpsc::UnboundedSender<String>,
    go: Arc<Semaphore>,
}

impl Handler {
    fn new() -> Self {
        let (begin, begun) = mpsc::unbounded_channel();
        Self { begun, begin, go: Arc::new(Semaphore::new(0)) }
    }

    fn service(
        &self,
    ) -> impl Service<Request<String>, Response = Response<String>, Error = Infallible, Future: Send> + Clone + Send + 'static
    {
        let (begin, go) = (self.begin.clone(), self.go.clone());
        tower::service_fn(move |request: Request<String>| {
            let (begin, go) = (begin.clone(), go.clone());
            async move {
                let path = request.uri().path().to_owned();
                begin.send(path.clone()).unwrap();
                go.acquire().await.unwrap().forget();
                Ok(Response::new(path))
            }
        })
    }

    fn let_one_go(&self) {
        self.go.add_permits(1);
    }

    /// The next one that works.
    async fn next(&mut self) -> String {
        tokio::time::timeout(Duration::from_secs(60), self.begun.recv()).await.expect("nobody works").unwrap()
    }

    #[track_caller]
    fn assert_nobody_works(&mut self) {
        assert!(self.begun.try_recv().is_err());
    }
}

/// A client's request in a task of its own, polled once before this returns.
async fn send<S>(service: &S, path: &str) -> JoinHandle<Response<String>>
where
    S: Service<Request<String>, Response = Response<String>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    let (service, request) = (service.clone(), post(path));
    let sent = tokio::spawn(async move { service.oneshot(request).await.unwrap() });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    sent
}

fn refused(response: &Response<String>, kind: &str, retry_after: &str) {
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], retry_after);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(response.body().contains(&format!("#{kind}\"")), "{}", response.body());
}

#[tokio::test(start_paused = true)]
async fn so_many_at_once_then_a_queue_in_order_then_503() {
    let mut handler = Handler::new();
    let layer = AdmissionLayer::new(2).queue(2).retry_after(7);
    // Each route's own service, of one layer: they share the places.
    let (one, two) = (layer.layer(handler.service()), layer.layer(handler.service()));
    let working = [send(&one, "/1").await, send(&two, "/2").await];
    assert_eq!([handler.next().await, handler.next().await], ["/1", "/2"]);
    let waiting = [send(&two, "/3").await, send(&one, "/4").await];
    handler.assert_nobody_works();

    refused(&ended(send(&one, "/5").await).await.unwrap(), "overloaded", "7");
    refused(&ended(send(&two, "/6").await).await.unwrap(), "overloaded", "7");
    handler.assert_nobody_works();

    handler.let_one_go();
    assert_eq!(handler.next().await, "/3", "who waits longest is next");
    handler.assert_nobody_works();
    // A place in the queue is free again.
    let last = send(&one, "/7").await;
    for expected in ["/4", "/7"] {
        handler.let_one_go();
        assert_eq!(handler.next().await, expected);
    }
    handler.go.add_permits(2);
    for (sent, path) in working.into_iter().chain(waiting).chain([last]).zip(["/1", "/2", "/3", "/4", "/7"]) {
        assert_eq!(ended(sent).await.unwrap().body(), path);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_is_refused_and_leaves_the_queue() {
    let mut handler = Handler::new();
    let service = AdmissionLayer::new(1).queue(1).wait(Duration::from_secs(3)).layer(handler.service());
    let working = send(&service, "/1").await;
    handler.next().await;
    let began = Instant::now();
    let waiting = send(&service, "/2").await;
    refused(&ended(waiting).await.unwrap(), "overloaded", "1");
    assert_eq!(began.elapsed().as_secs(), 3);
    let next = send(&service, "/3").await;
    handler.let_one_go();
    assert_eq!(ended(working).await.unwrap().body(), "/1");
    assert_eq!(handler.next().await, "/3");
    handler.let_one_go();
    assert_eq!(ended(next).await.unwrap().body(), "/3");
}

/// hyper drops the future of a client that is gone, in the queue and at work.
#[tokio::test(start_paused = true)]
async fn clients_that_go_away_give_their_places_up() {
    let mut handler = Handler::new();
    let service = AdmissionLayer::new(1).queue(1).layer(handler.service());
    let working = send(&service, "/1").await;
    handler.next().await;
    let waiting = send(&service, "/2").await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    let waiting = send(&service, "/3").await;
    handler.assert_nobody_works();
    working.abort();
    assert_eq!(handler.next().await, "/3", "the place of the one who worked");
    // One that was given its turn, and goes away before it was polled again.
    let unlucky = send(&service, "/4").await;
    handler.let_one_go();
    assert_eq!(ended(waiting).await.unwrap().body(), "/3");
    unlucky.abort();
    let last = send(&service, "/5").await;
    handler.go.add_permits(2);
    assert_eq!(ended(last).await.unwrap().body(), "/5");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_or_fails_gives_its_place_back() {
    let service = AdmissionLayer::new(1).queue(0).layer(tower::service_fn(async |request: Request<String>| {
        assert_ne!(request.uri().path(), "/panic", "asked for");
        Err::<Response<String>, _>("no")
    }));
    let panicking = service.clone();
    let panicked = tokio::spawn(async move { panicking.oneshot(post("/panic")).await }).await;
    assert!(panicked.unwrap_err().is_panic());
    for _ in 0..2 {
        assert_eq!(service.clone().oneshot(post("/")).await.unwrap_err(), "no");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_out_is_never_refused_nor_counted() {
    let mut handler = Handler::new();
    let layer = AdmissionLayer::new(1).queue(0).when(|request| request.uri.path() != "/health");
    let service = layer.layer(handler.service());
    let health = send(&service, "/health").await;
    let working = send(&service, "/1").await;
    assert_eq!([handler.next().await, handler.next().await], ["/health", "/1"]);
    let again = send(&service, "/health").await;
    assert_eq!(handler.next().await, "/health");
    refused(&ended(send(&service, "/2").await).await.unwrap(), "overloaded", "1");
    handler.go.add_permits(3);
    for sent in [health, working, again] {
        assert_eq!(ended(sent).await.unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn inside_of_the_transaction_it_says_so() {
    let world = World::new().await;
    let warnings = Warnings::collect();
    let handler = Handler::new();
    handler.let_one_go();
    let wrong = TransactionLayer::new(world.manager.clone()).layer(AdmissionLayer::new(1).layer(handler.service()));
    assert_eq!(ended(wrong.oneshot(post("/1"))).await.unwrap().body(), "/1");
    assert_eq!(warnings.with(&["AdmissionLayer is inside of a TransactionLayer"]).len(), 1);
}

/// From the moment when the shutdown begins: new ones and those that wait are refused, those at work are finished.
#[tokio::test(start_paused = true)]
async fn a_shutdown_refuses_at_once_and_lets_work_end() {
    let world = World::new().await;
    let (hold, held) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let layer = AdmissionLayer::new(1).queue(8).drain(&world.manager);
    let service =
        layer.layer(TransactionLayer::new(world.manager.clone()).layer(tower::service_fn(handler(&world, {
            let (hold, held) = (hold.clone(), held.clone());
            move |_tx| {
                let (hold, held) = (hold.clone(), held.clone());
                async move {
                    held.add_permits(1);
                    hold.acquire().await.unwrap().forget();
                    answer(201)
                }
            }
        }))));
    let send = |path: &'static str| -> JoinHandle<Answer> { tokio::spawn(service.clone().oneshot(post(path))) };
    let working = send("/1");
    ended(held.acquire()).await.unwrap().forget();
    let waiting = send("/2");
    eventually("the second one waits", || format!("{layer:?}").contains("waiting: 1")).await;
    let closing = tokio::spawn({
        let manager = world.manager.clone();
        async move { manager.shutdown(Duration::from_secs(60)).await }
    });
    eventually("the shutdown begins", || world.manager.readiness().closing).await;
    refused(&ended(send("/3")).await.unwrap().unwrap(), "shutting-down", "1");
    hold.add_permits(1);
    assert_eq!(ended(working).await.unwrap().unwrap().status(), 201, "it is finished");
    refused(&ended(waiting).await.unwrap().unwrap(), "shutting-down", "1");
    closing.await.unwrap().unwrap();
    assert_eq!(world.journal.of("end"), ["committed"]);
}
