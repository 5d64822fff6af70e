//! [`TransactionService`]: gives each request its slot, and the response's future what it needs to end the transaction.
//!
//! Must not know how a transaction ends.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::admission::Place;
use super::annotations::Said;
use super::failure::OnCommitFailure;
use super::future::{Exchange, ResponseFuture};
use super::layer::TransactionLayer;
use super::request::{Head, Slot, is_active};
use crate::lazy::{Begin, LazyTransaction};
use crate::transaction::{Home, Options, Transaction};

/// A service that runs each request in a transaction; [`TransactionLayer`] makes it.
#[derive(Clone, Debug)]
pub struct TransactionService<S, F> {
    inner: S,
    // Shared: servers clone a service for each connection, routers for each request.
    layer: Arc<TransactionLayer<F>>,
}

impl<S, F> TransactionService<S, F> {
    pub(crate) fn new(inner: S, layer: TransactionLayer<F>) -> Self {
        Self { inner, layer: Arc::new(layer) }
    }
}

/// What a request's transaction begins with.
pub(crate) struct Means {
    options: Options,
    said: Said,
    /// A commit goes on without its client, and so must the place that it takes.
    place: Option<Arc<Place>>,
}

impl Begin for Head {
    type Means = Means;

    fn begin(&self, Means { options, said, place }: Means) -> Transaction {
        let transaction = self.manager.begin_unannounced(options, Home::Runtime);
        said.on(&transaction, &self.method, &self.uri);
        if let Some(place) = place {
            transaction.after_end(move |_| drop(place));
        }
        transaction
    }
}

impl<S, F, ReqBody, ResBody> Service<Request<ReqBody>> for TransactionService<S, F>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    F: OnCommitFailure<ResBody>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let layer = &self.layer;
        // A slot that is open belongs to a layer further out, which will end the transaction: this one steps aside.
        let left_out =
            is_active(&parts.extensions) || layer.activate.as_ref().is_some_and(|activate| !activate(&parts));
        if left_out {
            return ResponseFuture::aside(self.inner.call(Request::from_parts(parts, body)));
        }
        let options = layer.options.as_ref().map(|options| options(&parts)).unwrap_or_default();
        let limit = layer.time_limit.as_ref().and_then(|limit| limit(&parts));
        let head = Head {
            manager: layer.manager.clone(),
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            transaction_header: layer.transaction_header.clone(),
        };
        let means = Means { options, said: Said::of(&parts, layer), place: Place::of(&parts.extensions) };
        let owner = LazyTransaction::lazily(head, means);
        parts.extensions.insert(Slot(owner.slot().clone()));
        let exchange = Exchange::new(layer.clone(), owner);
        let inner = &mut self.inner;
        ResponseFuture::begin(exchange, limit, || inner.call(Request::from_parts(parts, body)))
    }
}
