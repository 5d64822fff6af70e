//! [`TransactionLayer`]: what an application configures.
//!
//! Must not know how a request is driven.

use std::fmt;
use std::sync::Arc;

use http::Response;
use http::request::Parts;
use tower_layer::Layer;
use unanimous_core::BoxError;

use super::failure::DefaultOnCommitFailure;
use super::service::TransactionService;
use super::veto::{Veto, VetoContext};
use crate::error::CommitError;
use crate::manager::TransactionManager;
use crate::transaction::Options;

type RequestHook<T> = Option<Arc<dyn Fn(&Parts) -> T + Send + Sync>>;

/// Runs each request in a transaction. See the [module](super).
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct TransactionLayer<F = DefaultOnCommitFailure> {
    pub(crate) manager: TransactionManager,
    pub(crate) veto: Option<Arc<Veto>>,
    pub(crate) activate: RequestHook<bool>,
    pub(crate) user: RequestHook<Option<String>>,
    pub(crate) options: RequestHook<Options>,
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
            options: None,
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
            options: self.options,
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
            .field("options", &self.options.is_some())
            .finish_non_exhaustive()
    }
}
