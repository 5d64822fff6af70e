//! [`RetryLayer`]: runs a request again whose transaction was aborted by a conflict.
//!
//! It goes by what the response says of its end ([`Ended`], [`Retryable`](super::Retryable)). Must not know transactions, nor why one was aborted.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::UPGRADE;
use http::request::Parts;
use http::{Extensions, Method, Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;
use unanimous_core::{Outcome, TransactionId};

use super::ended::{Ended, is_retryable};
use super::layer::RequestHook;
use super::problem::REQUEST_BODY_TOO_SLOW;
use super::request::is_active;
use super::retry_body::RequestBody;
use crate::env::{BoxFuture, Env, TokioEnv, within};
use crate::inner::jitter;

/// Which run of its request a handler is in: [`attempt`] finds it in the request's extensions, axum's handlers extract it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Whether this is surely the last one. Where it is not, the budget may still make it the last.
    pub last: bool,
}

impl Attempt {
    /// That of a request that nobody repeats.
    pub(crate) const ONLY: Self = Self { number: 1, last: true };
}

/// Which run of its request the one with these extensions is; none where no [`RetryLayer`] is around it.
pub fn attempt(extensions: &Extensions) -> Option<Attempt> {
    extensions.get().copied()
}

/// Runs a request again whose transaction was aborted by a conflict: one that its handler met and said so ([`Failed`](super::Failed),
/// [`Retryable`](super::Retryable)), or one of prepare or commit. It goes outside of the [`TransactionLayer`](super::TransactionLayer), so that each
/// attempt has a transaction of its own.
///
#[cfg_attr(feature = "axum", doc = "```")]
#[cfg_attr(not(feature = "axum"), doc = "```text")]
/// # use axum::{Router, routing::post};
/// # use unanimous::http::{Attempt, Failed, RetryLayer, TransactionLayer, default_commit_veto};
/// # use unanimous::{TransactionManager, Tx, log::MemoryLog};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), unanimous::BoxError> {
/// # let manager = TransactionManager::builder(MemoryLog::new()).build().await?;
/// async fn order(tx: Tx, attempt: Attempt) -> Result<String, Failed> {
///     // ... tx.join(&shop.orders).await?.execute("update ...", &[]).await?;
///     Ok(format!("stored at attempt {}", attempt.number))
/// }
///
/// let app: Router = Router::new()
///     .route("/orders", post(order))
///     .layer(TransactionLayer::new(manager).commit_veto(default_commit_veto))
///     // What is added last is outermost.
///     .layer(RetryLayer::new().attempts(10));
/// # Ok(())
/// # }
/// ```
///
/// | the attempt's response | |
/// | --- | --- |
/// | its transaction was aborted by a conflict, or the handler marked it [`Retryable`](super::Retryable) | the request is run again |
/// | no transaction had begun, and the handler marked it | the request is run again |
/// | committed; aborted for another reason; of an unknown outcome | goes out |
/// | none: an error of the service, a panic, a client that went away | the same |
///
/// When no attempt or no time is left the last response goes out as it is: the 409 of a conflict, or the handler's own.
///
/// The request's head is cloned for each attempt, its extensions too. Its body is read ahead, trailers included, before the first attempt,
/// up to [`max_body`](Self::max_body); a longer one, and one that breaks off, is handed on with nothing lost and tried once. So is a
/// request for an upgrade (`CONNECT`, or one with an `Upgrade` header that names more than `h2c`), since its connection can't be had twice.
/// The log has each such choice at `debug`.
///
/// Applied twice, the inner one steps aside, unless the outer one leaves the request out.
///
/// What a handler does beside its transaction (a mail that it sends) is done in each attempt: let it do such things in
/// [`after_commit`](crate::Tx::after_commit).
///
/// Within the layer a request's body is a [`RequestBody<B>`], which axum's routers take as any other. Put what wants the server's own type
/// (`axum::middleware::from_fn`) into an `.layer(...)` of its own.
///
/// Cancel safety: dropped at any time, no further attempt begins; what is under way ends as without this layer.
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct RetryLayer {
    config: Config,
}

#[derive(Clone)]
struct Config {
    attempts: u32,
    budget: Duration,
    first: Duration,
    most: Duration,
    max_body: usize,
    max_body_time: Duration,
    when: Option<RequestHook<bool>>,
    env: Arc<dyn Env>,
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl RetryLayer {
    /// A layer that runs a request at most 5 times, within 30 s, with waits from 10 ms to 1 s, and bodies of at most 64 KiB that arrive
    /// within 30 s.
    pub fn new() -> Self {
        Self {
            config: Config {
                attempts: 5,
                budget: Duration::from_secs(30),
                first: Duration::from_millis(10),
                most: Duration::from_secs(1),
                max_body: 64 * 1024,
                max_body_time: Duration::from_secs(30),
                when: None,
                env: TokioEnv::shared(),
            },
        }
    }

    /// How often a request is run at most, the first time included; 5 by default, at least 1.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.config.attempts = attempts.max(1);
        self
    }

    /// The time for all attempts and the waits between them, counted from the first one's begin; 30 s by default. No attempt begins after it; one
    /// that has begun is not cut (that is [`TransactionLayer::time_limit`](super::TransactionLayer::time_limit)'s, for each attempt).
    pub fn budget(mut self, budget: Duration) -> Self {
        self.config.budget = budget;
        self
    }

    /// The wait before the second attempt, and the longest one; 10 ms and 1 s by default. It doubles with each attempt, and is a random time
    /// between half and all of that, so that those who met don't meet again.
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        self.config.first = first;
        self.config.most = most;
        self
    }

    /// How many bytes of a body are kept in memory to be given to each attempt; 65,536 by default. A request with a longer one is tried once.
    ///
    /// The body is read before the handler sees the request, and counts for no time limit inside of this layer but
    /// [`max_body_time`](Self::max_body_time).
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.config.max_body = bytes;
        self
    }

    /// How long the reading of a body may take in all; 30 s by default. Then the answer is 408
    /// [`request-body-too-slow`](super#request-body-too-slow), and nothing has begun: a client that sends slowly must not hold a place of an
    /// [`AdmissionLayer`](super::AdmissionLayer) for as long as it likes.
    ///
    /// It bounds what this layer reads: all of a body, or so much of a longer one as shows that it is too long to be kept. What follows is the
    /// handler's to read, as is a body that announces its length and is too long; that counts for
    /// [`TransactionLayer::time_limit`](super::TransactionLayer::time_limit).
    pub fn max_body_time(mut self, time: Duration) -> Self {
        self.config.max_body_time = time;
        self
    }

    /// Repeats only requests of which `when` says true, by their method or path; all by default. The others have the [`Attempt`] 1, the last.
    pub fn when(mut self, when: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.config.when = Some(Arc::new(when));
        self
    }

    /// Replaces clock, waits and randomness; [`TokioEnv`] by default.
    pub fn env(mut self, env: Arc<dyn Env>) -> Self {
        self.config.env = env;
        self
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = RetryService<S>;

    fn layer(&self, inner: S) -> RetryService<S> {
        RetryService { inner, config: Arc::new(self.config.clone()) }
    }
}

impl fmt::Debug for RetryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer")
            .field("attempts", &self.attempts)
            .field("budget", &self.budget)
            .field("backoff", &(self.first..=self.most))
            .field("max_body", &self.max_body)
            .field("max_body_time", &self.max_body_time)
            .field("when", &self.when.is_some())
            .finish_non_exhaustive()
    }
}

/// A service that runs a request again whose transaction was aborted by a conflict; [`RetryLayer`] makes it.
#[derive(Clone, Debug)]
pub struct RetryService<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S, B, R> Service<Request<B>> for RetryService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Send,
    R: From<String> + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = RetryFuture<Response<R>, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let another = self.inner.clone();
        // The one that was ready.
        let ready = std::mem::replace(&mut self.inner, another);
        RetryFuture { run: Box::pin(run(ready, self.config.clone(), request)) }
    }
}

/// The response of a [`RetryService`]: the last attempt's.
#[must_use = "futures do nothing unless polled"]
pub struct RetryFuture<R, E> {
    run: BoxFuture<'static, Result<R, E>>,
}

impl<R, E> Future for RetryFuture<R, E> {
    type Output = Result<R, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.run.as_mut().poll(cx)
    }
}

impl<R, E> fmt::Debug for RetryFuture<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RetryFuture")
    }
}

async fn run<S, B, R>(mut service: S, config: Arc<Config>, request: Request<B>) -> Result<Response<R>, S::Error>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>>,
    B: Body<Data = Bytes> + Unpin,
    R: From<String>,
{
    let (mut parts, body) = request.into_parts();
    let body = if config.may_repeat(&parts) {
        let reading = RequestBody::read(body, config.max_body);
        let Some(read) = within(&*config.env, config.max_body_time, reading).await else {
            tracing::debug!(limit = ?config.max_body_time, "a request's body did not arrive in time");
            return Ok(REQUEST_BODY_TOO_SLOW.response());
        };
        read.inspect_err(|_| {
            let (method, path) = (&parts.method, parts.uri.path());
            tracing::debug!(%method, path, most = config.max_body, "tried once: the body is too long to be kept, or broke off");
        })
    } else {
        Err(RequestBody::untouched(body))
    };
    let whole = match body {
        Ok(whole) => whole,
        Err(body) => {
            parts.extensions.get_or_insert(Attempt::ONLY);
            return service.call(Request::from_parts(parts, body)).await;
        }
    };
    let began = config.env.monotonic();
    let mut number = 1;
    loop {
        let spent = config.env.monotonic().saturating_sub(began);
        let mut parts = parts.clone();
        parts.extensions.insert(Attempt { number, last: config.is_last(number, spent) });
        let response = service.call(Request::from_parts(parts, whole.body())).await?;
        let Some(why) = wants_another(&response) else { return Ok(response) };
        let wait = jitter(&*config.env, config.most_wait(number));
        let spent = config.env.monotonic().saturating_sub(began);
        if number >= config.attempts || spent.saturating_add(wait) > config.budget {
            tracing::debug!(
                transaction = why.id.map(tracing::field::display),
                attempt = number,
                ?spent,
                "not repeated any more"
            );
            return Ok(response);
        }
        // Its body may be a stream that holds on to something.
        drop(response);
        tracing::debug!(
            transaction = why.id.map(tracing::field::display),
            attempt = number,
            ?wait,
            "aborted; the request is repeated"
        );
        config.env.sleep(wait).await;
        poll_fn(|cx| service.poll_ready(cx)).await?;
        number += 1;
    }
}

/// What a request is repeated for.
struct Why {
    /// None where none had begun.
    id: Option<TransactionId>,
}

/// Whether its connection is to become another one. Not where HTTP/2 alone is offered (RFC 7540, 3.2; clients do with any request, servers go on
/// in HTTP/1.1).
fn wants_upgrade(parts: &Parts) -> bool {
    let protocols =
        parts.headers.get_all(UPGRADE).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let mut other = protocols.map(<[u8]>::trim_ascii).filter(|protocol| !protocol.eq_ignore_ascii_case(b"h2c"));
    parts.method == Method::CONNECT || other.any(|protocol| !protocol.is_empty())
}

/// Never for an unknown outcome (rule 9).
fn wants_another<R>(response: &Response<R>) -> Option<Why> {
    match response.extensions().get::<Ended>() {
        Some(ended) => (ended.outcome == Outcome::Aborted && ended.retryable).then_some(Why { id: Some(ended.id) }),
        None => is_retryable(response).then_some(Why { id: None }),
    }
}

impl Config {
    fn may_repeat(&self, parts: &Parts) -> bool {
        if is_active(&parts.extensions) {
            tracing::error!(
                "a RetryLayer is inside of a TransactionLayer, where it can repeat nothing; \
                 put it outside (axum: add it after the TransactionLayer)"
            );
            return false;
        }
        // A layer further out repeats it already; two would multiply.
        let repeated = attempt(&parts.extensions).is_some_and(|attempt| attempt != Attempt::ONLY);
        if self.attempts == 1 || repeated || self.when.as_ref().is_some_and(|when| !when(parts)) {
            return false;
        }
        let upgrade = wants_upgrade(parts);
        if upgrade {
            tracing::debug!(method = %parts.method, path = parts.uri.path(), "tried once: the request wants another protocol");
        }
        !upgrade
    }

    /// The longest wait after this attempt.
    fn most_wait(&self, number: u32) -> Duration {
        self.first.saturating_mul(1 << (number - 1).min(31)).min(self.most)
    }

    /// Whether no attempt can follow this one.
    fn is_last(&self, number: u32, spent: Duration) -> bool {
        number >= self.attempts || spent.saturating_add(self.most_wait(number) / 2) > self.budget
    }
}
