//! [`CommitAfterBodyLayer`]: a response's body is made before its transaction ends.
//!
//! The body is collected within the handler's future, so that whatever makes it is a part of the work: it has the current transaction, it
//! may join, and its failure aborts.
//!
//! Must not know how the transaction ends: it looks for what the layer left in the request, and dooms.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use unanimous_core::BoxError;

use super::ended::{Ended, is_retryable};
use super::failed::Failed;
use super::problem::Problem;
use super::request::{Head, Slot, is_active};
use crate::env::{BoxFuture, Env, TokioEnv, within};
use crate::lazy::{Lazy, LazyTransaction};

/// A layer that holds a response back until its body has been made, within 1 MiB and 30 s.
pub fn commit_after_body() -> CommitAfterBodyLayer {
    CommitAfterBodyLayer::new()
}

/// Collects the response's body before the transaction ends, so that what makes it takes part in the transaction. It goes inside of a
/// [`TransactionLayer`](super::TransactionLayer), directly around the handlers that it is for:
///
/// ```
/// # use unanimous::http::{HeldBody, TransactionLayer, commit_after_body};
/// # use http_body_util::Full;
/// # async fn example(manager: unanimous::TransactionManager) {
/// # let handler = tower::service_fn(async |_: http::Request<String>| Ok::<_, std::convert::Infallible>(http::Response::new(Full::<bytes::Bytes>::default())));
/// let service = tower::ServiceBuilder::new()
///     .layer(TransactionLayer::new(manager))
///     .layer(commit_after_body().max_bytes(64 << 10))
///     .service(handler);
/// # let _ = tower::ServiceExt::<http::Request<String>>::oneshot(service, http::Request::default());
/// # }
/// ```
///
/// An error in the body dooms the transaction, and goes out as a handler's [`Failed`] does: a conflict is repeated by a
/// [`RetryLayer`](super::RetryLayer) further out. So does a body beyond one of the bounds, as a problem document of the kind
/// [`response-too-large`](super#response-too-large) or [`response-too-slow`](super#response-too-slow). A panic in the body goes on as a handler's.
/// Trailers are kept.
///
/// Outside of the `TransactionLayer` it could hold back nothing: it passes responses on, and says so in the log.
///
/// Passed on as they are: responses to requests without an active transaction, to HEAD, and those that switch protocols (101, CONNECT).
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct CommitAfterBodyLayer {
    max_bytes: usize,
    max_time: Duration,
    env: Arc<dyn Env>,
}

impl Default for CommitAfterBodyLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl CommitAfterBodyLayer {
    /// The default bounds: 1 MiB, 30 s.
    pub fn new() -> Self {
        Self { max_bytes: 1 << 20, max_time: Duration::from_secs(30), env: TokioEnv::shared() }
    }

    /// The most bytes of data that a body may have; 1 MiB by default. So much memory may be held by each request. Trailers don't count.
    pub fn max_bytes(self, bytes: usize) -> Self {
        Self { max_bytes: bytes, ..self }
    }

    /// How long the body may take from the response's head to its end; 30 s by default. The stores' locks are held for so long.
    pub fn max_time(self, time: Duration) -> Self {
        Self { max_time: time, ..self }
    }

    /// Replaces the clock; [`TokioEnv`] by default.
    pub fn env(self, env: Arc<dyn Env>) -> Self {
        Self { env, ..self }
    }
}

impl fmt::Debug for CommitAfterBodyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitAfterBodyLayer")
            .field("max_bytes", &self.max_bytes)
            .field("max_time", &self.max_time)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for CommitAfterBodyLayer {
    type Service = CommitAfterBody<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CommitAfterBody { inner, layer: self.clone() }
    }
}

/// A service that answers when the body has been made; [`CommitAfterBodyLayer`] makes it.
#[derive(Clone, Debug)]
pub struct CommitAfterBody<S> {
    inner: S,
    layer: CommitAfterBodyLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for CommitAfterBody<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    ResBody: Body<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<HeldBody<ResBody>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let slot = match is_active(request.extensions()) {
            true => request.extensions().get::<Slot>().map(|slot| slot.0.clone()),
            false => None,
        };
        let layer = self.layer.clone();
        let responding = self.inner.call(request);
        Box::pin(async move {
            let (head, body) = responding.await?.into_parts();
            if slot.is_none() && head.extensions.get::<Ended>().is_some() {
                tracing::error!(
                    "a CommitAfterBodyLayer is outside of a TransactionLayer, which has committed before the body; \
                     put it inside (axum: add it before the TransactionLayer)"
                );
            }
            let switches = head.status == StatusCode::SWITCHING_PROTOCOLS
                || (method == Method::CONNECT && head.status.is_success());
            let Some(slot) = slot.filter(|_| method != Method::HEAD && !switches) else {
                return Ok(Response::from_parts(head, HeldBody { body: Either::Passed { body } }));
            };
            Ok(match layer.hold(body).await {
                Ok(held) => Response::from_parts(head, HeldBody { body: held }),
                Err(not_held) => not_held.answer(&slot, &method, uri.path()),
            })
        })
    }
}

impl CommitAfterBodyLayer {
    /// The whole body. It is dropped before this returns, so that nothing of it uses a branch when the transaction ends.
    async fn hold<B>(&self, body: B) -> Result<Either<B>, NotHeld>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let collecting = Limited::new(body, self.max_bytes).collect();
        let collected = within(&*self.env, self.max_time, collecting).await;
        let collected = collected.ok_or(NotHeld::TooSlow(self.max_time))?;
        let collected = collected.map_err(|error| match error.is::<LengthLimitError>() {
            true => NotHeld::TooLarge(self.max_bytes),
            false => NotHeld::Body(error),
        })?;
        let trailers = collected.trailers().cloned();
        Ok(Either::Held { data: collected.to_bytes(), trailers })
    }
}

/// Why a body is not there.
enum NotHeld {
    Body(BoxError),
    TooLarge(usize),
    TooSlow(Duration),
}

impl fmt::Display for NotHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotHeld::Body(error) => write!(f, "the response's body failed: {}", crate::error::chain(&**error)),
            NotHeld::TooLarge(bytes) => write!(
                f,
                "the response's body has more than {bytes} bytes; raise `max_bytes` of the layer `CommitAfterBodyLayer`, or stream it in \
                 a transaction of its own"
            ),
            NotHeld::TooSlow(time) => write!(
                f,
                "the response's body was not made within {time:?}; raise `max_time` of the layer `CommitAfterBodyLayer`, or stream it in \
                 a transaction of its own"
            ),
        }
    }
}

impl NotHeld {
    fn answer<B>(self, slot: &LazyTransaction<Head>, method: &Method, path: &str) -> Response<HeldBody<B>> {
        let why = self.to_string();
        // A conflict is asked for while the branches are there.
        let response: Response<HeldBody<B>> = match self {
            NotHeld::Body(error) => Failed::from(error).response(),
            NotHeld::TooLarge(_) => TOO_LARGE.response(),
            NotHeld::TooSlow(_) => TOO_SLOW.response_after(5),
        };
        if is_retryable(&response) {
            // Every day's: it is repeated, or the client is told.
            tracing::debug!(%method, path, "{why}; the transaction is aborted");
        } else {
            tracing::error!(%method, path, "{why}; the transaction is aborted");
        }
        if let Some(tx) = slot.begun() {
            tx.doom();
        }
        response
    }
}

const TOO_LARGE: Problem = Problem {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    kind: "response-too-large",
    title: "The response is larger than this service holds back",
    detail: "Nothing was stored. Ask for less at once.",
};

const TOO_SLOW: Problem = Problem {
    status: StatusCode::SERVICE_UNAVAILABLE,
    kind: "response-too-slow",
    title: "The response took longer than this service waits for it",
    detail: "Nothing was stored. The request may be repeated later.",
};

pin_project! {
    /// The body of a response that was held back: there in whole, or the handler's own where it was passed on.
    ///
    /// Its size is exact where there are no trailers, so that a server sends `Content-Length`. (With trailers it is not, since HTTP/1.1 sends trailers in
    /// chunks only, and only where the handler announces them in a `Trailer` header.)
    #[derive(Debug)]
    pub struct HeldBody<B> {
        #[pin]
        body: Either<B>,
    }
}

pin_project! {
    #[project = EitherProjected]
    #[derive(Debug)]
    enum Either<B> {
        Held { data: Bytes, trailers: Option<HeaderMap> },
        Passed { #[pin] body: B },
    }
}

impl<B> From<Bytes> for HeldBody<B> {
    fn from(data: Bytes) -> Self {
        Self { body: Either::Held { data, trailers: None } }
    }
}

impl<B> From<String> for HeldBody<B> {
    fn from(data: String) -> Self {
        Self::from(Bytes::from(data))
    }
}

impl<B: Body<Data = Bytes>> Body for HeldBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().body.project() {
            EitherProjected::Passed { body } => body.poll_frame(cx),
            EitherProjected::Held { data, .. } if !data.is_empty() => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(data)))))
            }
            EitherProjected::Held { trailers, .. } => {
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Either::Passed { body } => body.is_end_stream(),
            Either::Held { data, trailers } => data.is_empty() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Either::Passed { body } => body.size_hint(),
            Either::Held { data, trailers: None } => SizeHint::with_exact(data.len() as u64),
            Either::Held { data, trailers: Some(_) } => {
                let mut hint = SizeHint::new();
                hint.set_lower(data.len() as u64);
                hint
            }
        }
    }
}
