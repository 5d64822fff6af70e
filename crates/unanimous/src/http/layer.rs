//! [`TransactionLayer`]: what an application configures.
//!
//! Must not know how a request is driven.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, Response};
use tower_layer::Layer;
use unanimous_core::BoxError;

use super::failure::{DefaultOnCommitFailure, TRANSACTION_HEADER};
use super::service::TransactionService;
use super::veto::{Veto, VetoContext};
use crate::error::CommitError;
use crate::manager::TransactionManager;
use crate::transaction::Options;

/// What a layer asks of a request's head.
pub(crate) type RequestHook<T> = Arc<dyn Fn(&Parts) -> T + Send + Sync>;

/// Runs each request in a transaction. See the [module](super).
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct TransactionLayer<F = DefaultOnCommitFailure> {
    pub(crate) manager: TransactionManager,
    pub(crate) veto: Option<Arc<Veto>>,
    pub(crate) activate: Option<RequestHook<bool>>,
    pub(crate) user: Option<RequestHook<Option<String>>>,
    pub(crate) route: Option<RequestHook<Option<String>>>,
    pub(crate) trace_id: Option<RequestHook<Option<String>>>,
    pub(crate) options: Option<RequestHook<Options>>,
    pub(crate) time_limit: Option<RequestHook<Option<Duration>>>,
    pub(crate) transaction_header: Option<HeaderName>,
    pub(crate) on_commit_failure: F,
}

impl TransactionLayer {
    /// A layer that begins its transactions with `manager`, on every request, and vetoes nothing.
    pub const fn new(manager: TransactionManager) -> Self {
        Self {
            manager,
            veto: None,
            activate: None,
            user: None,
            route: None,
            trace_id: None,
            options: None,
            time_limit: None,
            transaction_header: Some(TRANSACTION_HEADER),
            on_commit_failure: DefaultOnCommitFailure,
        }
    }
}

impl<F> TransactionLayer<F> {
    /// Aborts instead of committing where `veto` says true of the response;
    /// [`default_commit_veto`](super::default_commit_veto) is one. The response goes out either way.
    ///
    /// Asked once, when the handler has returned a response, its transaction had begun and was not doomed.
    /// A veto that panics aborts, and the panic goes on.
    pub fn commit_veto(self, veto: impl Fn(&VetoContext<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.try_commit_veto(move |context| Ok::<_, BoxError>(veto(context)))
    }

    /// A [veto](Self::commit_veto) that can fail. Its error aborts and is logged, and the answer is that of a commit that failed: an
    /// aborted one, 503 by default, since the handler's answer may promise what nobody could confirm.
    pub fn try_commit_veto<V, E>(mut self, veto: V) -> Self
    where
        V: Fn(&VetoContext<'_>) -> Result<bool, E> + Send + Sync + 'static,
        E: Into<BoxError>,
    {
        self.veto = Some(Arc::new(move |context: &VetoContext<'_>| veto(context).map_err(Into::into)));
        self
    }

    /// Leaves out the requests of which `activate` says false: no transaction, and the extractor refuses.
    pub fn activate(mut self, activate: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.activate = Some(Arc::new(activate));
        self
    }

    /// Finds the user on whose behalf the request runs, to be set on its transaction. Called for every request that is not left out, before the handler:
    /// keep it cheap, and let what authenticates run outside of this layer. A handler that knows better calls
    /// [`Tx::set_user`](crate::Tx::set_user).
    pub fn user(mut self, user: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.user = Some(Arc::new(user));
        self
    }

    /// Finds the route that the request matched, to be noted instead of its path, so that all requests of one route are found together.
    /// Called as [`user`](Self::user) is. With axum:
    ///
    /// ```text
    /// .route(|parts| parts.extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned()))
    /// ```
    pub fn route(mut self, route: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.route = Some(Arc::new(route));
        self
    }

    /// Finds the id of the trace that the request is a part of, to be noted on its transaction. Called as [`user`](Self::user) is.
    ///
    /// By default it is that of the `traceparent` header ([Trace Context](https://www.w3.org/TR/trace-context/), section 3.2), where that
    /// is well-formed.
    pub fn trace_id(mut self, trace_id: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.trace_id = Some(Arc::new(trace_id));
        self
    }

    /// How long a request may take until its commit begins, counted from its arrival at this layer; no limit by default.
    ///
    /// When it passes, the handler is dropped, the transaction is aborted, and the answer is that of a commit that was aborted, 503 by
    /// default. A transaction that had not begun begins then, only to be aborted, so that the answer has an id. A commit that has
    /// begun is never cut: nobody could say then how it ended. Reading the request's body counts, where the handler does it.
    ///
    /// A handler that blocks its thread is not interrupted. The [options'](Self::options) limit is another one: it counts from the
    /// transaction's begin to its decision, and leaves the handler running.
    pub fn time_limit(self, limit: Duration) -> Self {
        self.time_limit_for(move |_| Some(limit))
    }

    /// The same, where each request has its own [time limit](Self::time_limit), or none: a long poll, an upload. Called as
    /// [`user`](Self::user) is; of this and `time_limit` the later call counts.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # fn example(layer: unanimous::http::TransactionLayer) -> unanimous::http::TransactionLayer {
    /// layer.time_limit_for(|request| (request.uri.path() != "/poll").then_some(Duration::from_secs(10)))
    /// # }
    /// ```
    pub fn time_limit_for(mut self, limit: impl Fn(&Parts) -> Option<Duration> + Send + Sync + 'static) -> Self {
        self.time_limit = Some(Arc::new(limit));
        self
    }

    /// Names the header that tells a transaction's id, instead of [`TRANSACTION_HEADER`]. It is on every response whose transaction had
    /// begun, however that ended; a response that has it already keeps its own. One that tells of another transaction's unknown outcome
    /// ([`Failed`](super::Failed)) names that one.
    pub fn transaction_header(mut self, name: HeaderName) -> Self {
        self.transaction_header = Some(name);
        self
    }

    /// Tells no client a transaction's id, but for the document of an [unknown](super#commit-unknown) outcome.
    pub fn no_transaction_header(mut self) -> Self {
        self.transaction_header = None;
        self
    }

    /// How the transactions begin: a time limit, what may take part. Called as [`user`](Self::user) is; the time limit counts
    /// from the moment when the transaction begins.
    pub fn options(mut self, options: impl Fn(&Parts) -> Options + Send + Sync + 'static) -> Self {
        self.options = Some(Arc::new(options));
        self
    }

    /// Makes the response where the commit failed, instead of [`DefaultOnCommitFailure`]. It replaces the handler's response.
    ///
    /// Where the outcome is unknown ([`CommitError::Unknown`]), don't let the response invite to a repetition.
    pub fn on_commit_failure<G, B>(self, render: G) -> TransactionLayer<G>
    where
        G: Fn(&CommitError) -> Response<B>,
    {
        TransactionLayer {
            manager: self.manager,
            veto: self.veto,
            activate: self.activate,
            user: self.user,
            route: self.route,
            trace_id: self.trace_id,
            options: self.options,
            time_limit: self.time_limit,
            transaction_header: self.transaction_header,
            on_commit_failure: render,
        }
    }
}

impl<S, F: Clone> Layer<S> for TransactionLayer<F> {
    type Service = TransactionService<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        TransactionService::new(inner, self.clone())
    }
}

impl<F> fmt::Debug for TransactionLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionLayer")
            .field("veto", &self.veto.is_some())
            .field("activate", &self.activate.is_some())
            .field("user", &self.user.is_some())
            .field("route", &self.route.is_some())
            .field("trace_id", &self.trace_id.is_some())
            .field("options", &self.options.is_some())
            .field("time_limit", &self.time_limit.is_some())
            .field("transaction_header", &self.transaction_header)
            .finish_non_exhaustive()
    }
}
