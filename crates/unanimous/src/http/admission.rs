//! [`AdmissionLayer`]: a bound on the requests that are worked on at once, and on those that wait for it.
//!
//! Must not know transactions: of a manager it asks only whether it is shutting down.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::request::Parts;
use http::{Extensions, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_layer::Layer;
use tower_service::Service;

use super::layer::RequestHook;
use super::problem::Problem;
use super::request::is_active;
use crate::env::{BoxFuture, Env, TokioEnv, within};
use crate::manager::TransactionManager;

/// Lets a number of requests be worked on at once, lets some more wait for their turn, in order, and answers the rest at once with 503 and
/// `Retry-After`, instead of a pile that ends in time limits everywhere. The outermost layer: what it refuses has cost next to nothing.
///
/// ```
/// # use std::time::Duration;
/// # use unanimous::http::AdmissionLayer;
/// # fn example(manager: &unanimous::TransactionManager) -> AdmissionLayer {
/// AdmissionLayer::new(64)                     // as many as there are connections to the databases, or some more
///     .queue(256)
///     .wait(Duration::from_secs(2))
///     .when(|request| !request.uri.path().starts_with("/health"))
///     .drain(manager)
/// # }
/// ```
///
/// A request has its place from its call until its response's head is there, so that the transaction's end is included, and a body that streams
/// afterwards is not. A client that goes away gives its place in the queue up at once, and one at work as soon as its transaction, if one has
/// begun, has ended: a [`TransactionLayer`](super::TransactionLayer) holds the place through the commit, or the abort, that goes on without the
/// client. So there are never more transactions of requests than places. All services that one layer makes, and their clones, share the
/// places: a clone of a layer is the same layer.
///
/// A client that sends its body slowly has its place meanwhile. What reads the body bounds that: a [`RetryLayer`](super::RetryLayer) by its
/// `max_body_time`, a handler by [`TransactionLayer::time_limit`](super::TransactionLayer::time_limit).
///
/// What is refused is a problem document of the kind [`overloaded`](super#overloaded) or [`shutting-down`](super#shutting-down).
///
/// Beside it stays the store's own bound, on the connections that branches have and on how long a join waits for one
/// (`PostgresBuilder::max_connections` and `pool_timeout`). A join that waits too long fails with a `JoinError`, and how that is
/// answered is the handler's choice: 503 is right. There is no bound on how many wait for a connection but this layer's: with as many
/// requests at once as connections nobody waits for one at all, where each request joins each store once.
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct AdmissionLayer {
    gate: Arc<Gate>,
    queue: usize,
    wait: Duration,
    retry_after: u64,
    when: Option<RequestHook<bool>>,
    drain: Option<TransactionManager>,
    env: Arc<dyn Env>,
}

struct Gate {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl AdmissionLayer {
    /// At most `at_once` requests are worked on (at least one). By default eight times as many wait for their turn, 5 s at most.
    ///
    /// # Panics
    ///
    /// Where `at_once` is more than 2^61 - 1.
    pub fn new(at_once: usize) -> Self {
        let at_once = at_once.max(1);
        Self {
            gate: Arc::new(Gate { places: Arc::new(Semaphore::new(at_once)), waiting: AtomicUsize::new(0) }),
            queue: at_once.saturating_mul(8),
            wait: Duration::from_secs(5),
            retry_after: 1,
            when: None,
            drain: None,
            env: TokioEnv::shared(),
        }
    }

    /// How many requests may wait for their turn; eight times those at once by default. 0 lets none wait.
    pub fn queue(self, most: usize) -> Self {
        Self { queue: most, ..self }
    }

    /// How long a request waits for its turn; 5 s by default.
    pub fn wait(self, most: Duration) -> Self {
        Self { wait: most, ..self }
    }

    /// What `Retry-After` says to those that are refused, in seconds; 1 by default.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: seconds, ..self }
    }

    /// Counts, and refuses, only the requests of which `when` says true: leave out what must answer under load, as readiness and outcomes.
    pub fn when(self, when: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        Self { when: Some(Arc::new(when)), ..self }
    }

    /// Refuses new requests, and those that wait, from the moment when this manager's [`shutdown`](TransactionManager::shutdown) begins.
    ///
    /// Of those that are being worked on, the ones that have joined a store are finished; the others are refused their first join, which
    /// [`Failed`](super::Failed) answers with 503. So end the server first (axum's `with_graceful_shutdown`), and call `shutdown` when it has ended:
    /// then all of them are finished. This is for who comes all the same, as on connections that a server without such an end keeps open.
    pub fn drain(self, manager: &TransactionManager) -> Self {
        Self { drain: Some(manager.clone()), ..self }
    }

    /// Replaces the clock; [`TokioEnv`] by default.
    pub fn env(self, env: Arc<dyn Env>) -> Self {
        Self { env, ..self }
    }

    fn is_draining(&self) -> bool {
        self.drain.as_ref().is_some_and(|manager| manager.inner.is_closing())
    }

    /// A place at once, a turn to wait for, or none.
    fn enter(&self) -> Entry {
        if self.is_draining() {
            return Entry::Refused(SHUTTING_DOWN);
        }
        // A place that is given back goes to the one who waits longest, so that there is none to take while somebody waits.
        if let Ok(place) = self.gate.places.clone().try_acquire_owned() {
            return Entry::Permit(place);
        }
        let waiting = self.gate.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting < self.queue).then_some(waiting + 1)
        });
        match waiting {
            Ok(_) => Entry::Turn(Box::pin(self.clone().turn(Waits(self.gate.clone())))),
            Err(_) => Entry::Refused(OVERLOADED),
        }
    }

    async fn turn(self, _waits: Waits) -> Result<OwnedSemaphorePermit, Problem> {
        let turn = within(&*self.env, self.wait, self.gate.places.clone().acquire_owned()).await;
        let place = turn.ok_or(OVERLOADED)?.expect("the places are never closed");
        if self.is_draining() { Err(SHUTTING_DOWN) } else { Ok(place) }
    }
}

/// A request's place, given back when nobody holds it any more: its response's future, and its transaction, which may outlive that.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    /// That of a layer further out.
    _outer: Option<Arc<Place>>,
}

/// In a request's extensions. Weak, since what a handler keeps of its request, for a body that streams, must not keep the place.
#[derive(Clone)]
struct Held(Weak<Place>);

impl Place {
    /// That of the request with these extensions, while it has one.
    pub(crate) fn of(extensions: &Extensions) -> Option<Arc<Self>> {
        extensions.get::<Held>()?.0.upgrade()
    }

    fn give<B>(permit: OwnedSemaphorePermit, request: &mut Request<B>) -> Arc<Self> {
        let place = Arc::new(Self { _permit: permit, _outer: Self::of(request.extensions()) });
        request.extensions_mut().insert(Held(Arc::downgrade(&place)));
        place
    }
}

/// One who waits; also where the waiting is given up.
struct Waits(Arc<Gate>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

enum Entry {
    Permit(OwnedSemaphorePermit),
    Turn(BoxFuture<'static, Result<OwnedSemaphorePermit, Problem>>),
    Refused(Problem),
}

impl fmt::Debug for AdmissionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionLayer")
            .field("free", &self.gate.places.available_permits())
            .field("waiting", &self.gate.waiting.load(Ordering::Relaxed))
            .field("queue", &self.queue)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Admission { inner, layer: self.clone() }
    }
}

/// A service that works on a number of requests at once; [`AdmissionLayer`] makes it.
#[derive(Clone, Debug)]
pub struct Admission<S> {
    inner: S,
    layer: AdmissionLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Admission<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: From<String>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = AdmissionFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (parts, body) = request.into_parts();
        if is_active(&parts.extensions) {
            tracing::error!(
                "an AdmissionLayer is inside of a TransactionLayer, where a request gives its place up before it commits; \
                 put it outside (axum: add it after the TransactionLayer)"
            );
        }
        let left_out = self.layer.when.as_ref().is_some_and(|when| !when(&parts));
        let mut request = Request::from_parts(parts, body);
        let state = match left_out {
            true => State::Working { response: self.inner.call(request), place: None },
            false => match self.layer.enter() {
                Entry::Permit(permit) => {
                    let place = Some(Place::give(permit, &mut request));
                    State::Working { response: self.inner.call(request), place }
                }
                Entry::Turn(turn) => {
                    // The one that is ready goes along with the request, and leaves a clone that is not.
                    let next = self.inner.clone();
                    let inner = std::mem::replace(&mut self.inner, next);
                    State::Waiting { turn, call: Some((inner, request)) }
                }
                Entry::Refused(problem) => State::Refused { problem },
            },
        };
        AdmissionFuture { state, retry_after: self.layer.retry_after }
    }
}

pin_project! {
    /// The response of an [`Admission`]. Dropping it gives the request's place up, in the queue at once, at work when its transaction has ended.
    #[must_use = "futures do nothing unless polled"]
    pub struct AdmissionFuture<S, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, ReqBody, S::Future>,
        retry_after: u64,
    }
}

pin_project! {
    #[project = Projected]
    enum State<S, ReqBody, Fut> {
        Waiting {
            turn: BoxFuture<'static, Result<OwnedSemaphorePermit, Problem>>,
            call: Option<(S, Request<ReqBody>)>,
        },
        // The response is dropped before the place is given back, as fields are dropped in their order.
        Working { #[pin] response: Fut, place: Option<Arc<Place>> },
        Refused { problem: Problem },
    }
}

impl<S, ReqBody, ResBody> Future for AdmissionFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<String>,
{
    type Output = Result<Response<ResBody>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                Projected::Working { response, place } => {
                    let response = ready!(response.poll(cx));
                    place.take();
                    return Poll::Ready(response);
                }
                Projected::Refused { problem } => {
                    return Poll::Ready(Ok(problem.response_after(*this.retry_after)));
                }
                Projected::Waiting { turn, call } => match ready!(turn.as_mut().poll(cx)) {
                    Ok(permit) => {
                        let (mut inner, mut request) = call.take().expect("there is one call for each turn");
                        let place = Some(Place::give(permit, &mut request));
                        State::Working { response: inner.call(request), place }
                    }
                    Err(problem) => State::Refused { problem },
                },
            };
            this.state.set(next);
        }
    }
}

impl<S: Service<Request<ReqBody>>, ReqBody> fmt::Debug for AdmissionFuture<S, ReqBody> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.state {
            State::Waiting { .. } => "AdmissionFuture(waiting)",
            State::Working { .. } => "AdmissionFuture(working)",
            State::Refused { .. } => "AdmissionFuture(refused)",
        })
    }
}

const OVERLOADED: Problem = Problem {
    status: StatusCode::SERVICE_UNAVAILABLE,
    kind: "overloaded",
    title: "The service has more requests than it can work on",
    detail: "Nothing was begun. The request may be repeated later.",
};

const SHUTTING_DOWN: Problem = Problem {
    status: StatusCode::SERVICE_UNAVAILABLE,
    kind: "shutting-down",
    title: "The service is shutting down",
    detail: "Nothing was begun. The request may be repeated later.",
};
