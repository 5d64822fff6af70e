//! [`IdempotencyLayer`]: what an application configures.
//!
//! Must not know how a request is driven.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, LINK, LOCATION, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};
use tower_layer::Layer;

use super::in_flight::InFlight;
use super::key::RequestKey;
use super::service::IdempotencyService;
use super::{KeyStore, Lifetime};
use crate::env::{Env, TokioEnv};
use crate::http::layer::RequestHook;
use crate::transaction::Tx;

/// The headers that are kept where nothing else is said.
const KEPT: [HeaderName; 9] =
    [CONTENT_TYPE, CONTENT_LANGUAGE, CONTENT_ENCODING, LOCATION, ETAG, LAST_MODIFIED, CACHE_CONTROL, LINK, VARY];

/// The shortest time for which a response is kept.
const SHORTEST: Duration = Duration::from_secs(60);

/// Executes a request that carries an `Idempotency-Key` once, however often it is sent: the key and the first response are stored in
/// the request's own transaction, and a repeat gets that response again, also after a crash and from another process.
///
/// It goes *inside* of [`TransactionLayer`](crate::http::TransactionLayer), around the handler:
///
/// ```no_run
/// # #[cfg(all(feature = "sqlite", feature = "axum"))]
/// # fn example(manager: unanimous::TransactionManager, orders: unanimous::sqlite::Sqlite, app: axum::Router) -> axum::Router {
/// use unanimous::http::{IdempotencyLayer, TransactionLayer};
/// use unanimous::sqlite::SqliteKeys;
///
/// let user = |parts: &http::request::Parts| Some(parts.headers.get("x-user")?.to_str().ok()?.to_owned());
/// app.layer(IdempotencyLayer::new(SqliteKeys::new(&orders)))
///     // axum: what is added last is outermost.
///     .layer(TransactionLayer::new(manager).user(user))
/// # }
/// ```
///
/// # Whose keys
///
/// **A key is unique for a user, not for the world: nobody may get another's response.** The user is the transaction's
/// ([`TransactionLayer::user`](crate::http::TransactionLayer::user)) as it is before the handler is called, or what [`scope`](Self::scope)
/// says. Where neither is set **all clients share one scope**, and whoever knows another's key and request gets its response: set one of them
/// wherever responses differ by user. What authenticates must be outside of this layer.
///
/// # What a request with a key gets
///
/// | the key | the answer |
/// | --- | --- |
/// | is new | the handler's, kept in the transaction |
/// | has a response, and the request is the same | that response: its status, its kept headers, its body, and `idempotent-replayed: true` |
/// | has a response to another request | 422, without a transaction's id |
/// | is being worked on, or in doubt after a crash | 409, with `Retry-After`; it names the transaction that has the key where this process runs it, else none |
/// | can't be read, or there are two | 400 |
/// | is missing, and [required](Self::required) | 400 |
/// | can't be looked up or kept | 503; 409 after a conflict, marked [`Retryable`](crate::http::Retryable) for a layer that repeats it; 500 where waiting does not help |
/// | is new, and the handler's 4xx or 5xx can't be kept (a statement has failed, and the transaction with it) | the handler's; the transaction aborts, and nothing is kept |
///
/// Request and response have bodies that can be made of [`Bytes`](bytes::Bytes): axum's, `http_body_util::Full`, those of the other layers here. One that can't, such as
/// hyper's `Incoming`, is put into one that can further out.
///
/// The same request has the same method, path, query, `Content-Type` and body; path and query as they came to the
/// [`TransactionLayer`](crate::http::TransactionLayer), whatever a nested router strips of them. The host is not among it: where it tells tenants
/// apart, it belongs into the [`scope`](Self::scope). The request is read whole before the handler
/// is called ([`max_request_body`](Self::max_request_body), [`max_request_time`](Self::max_request_time)); its trailers are dropped.
///
/// What aborts keeps nothing, whatever the reason (a veto, a doom, an error, a panic, a conflict), and a repeat is executed anew. What
/// commits is kept, **whatever its status, 5xx included**: ask for a veto if an error is to be tried again.
///
/// # What can't be kept
///
/// A response whose body is larger than [`max_response_body`](Self::max_response_body), has trailers or breaks off, server-sent events
/// (`text/event-stream`), and an upgrade (101): the transaction aborts, and the client gets a 500. Leave such routes out
/// ([`when`](Self::when)).
#[derive(Clone)]
#[must_use = "a layer does nothing until it is put around a service"]
pub struct IdempotencyLayer<K> {
    pub(super) store: K,
    pub(super) when: RequestHook<bool>,
    pub(super) required: bool,
    pub(super) scope: Option<RequestHook<String>>,
    pub(super) max_request_body: usize,
    pub(super) max_request_time: Duration,
    pub(super) max_response_body: usize,
    pub(super) keep_for: Duration,
    pub(super) kept: Vec<HeaderName>,
    more: Option<RequestHook<String>>,
    pub(super) in_flight: InFlight,
    pub(super) env: Arc<dyn Env>,
}

impl<K: KeyStore> IdempotencyLayer<K> {
    /// A layer that keeps keys in `store`, for POST and PATCH.
    pub fn new(store: K) -> Self {
        Self {
            store,
            when: by_method(vec![Method::POST, Method::PATCH]),
            required: false,
            scope: None,
            max_request_body: 1 << 20,
            max_request_time: Duration::from_secs(30),
            max_response_body: 1 << 20,
            keep_for: Duration::from_secs(24 * 60 * 60),
            kept: KEPT.to_vec(),
            more: None,
            in_flight: InFlight::default(),
            env: TokioEnv::shared(),
        }
    }

    /// Looks for a key on requests with one of these methods, instead of POST and PATCH. Others pass through.
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        Self { when: by_method(methods.into_iter().collect()), ..self }
    }

    /// Looks for a key on requests of which `when` says true, instead of those with certain methods. Others pass through.
    pub fn when(self, when: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        Self { when: Arc::new(when), ..self }
    }

    /// Answers a request that should have a key and has none with 400.
    pub fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// Whose a request's key is, instead of the transaction's user: a tenant, an account, the host where one application serves several. Nobody gets the response of a request in another
    /// scope.
    pub fn scope(self, scope: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        Self { scope: Some(Arc::new(scope)), ..self }
    }

    /// How large the body of a request with a key may be; 1 MiB by default. A larger one is answered with 413, and nothing is done.
    pub fn max_request_body(self, bytes: usize) -> Self {
        Self { max_request_body: bytes, ..self }
    }

    /// How long the body of a request with a key may take to come; 30 s by default. A slower one is answered with 408, and nothing is done.
    pub fn max_request_time(self, time: Duration) -> Self {
        Self { max_request_time: time, ..self }
    }

    /// How large the body of a response may be that is kept; 1 MiB by default. A larger one aborts the transaction, with a 500.
    pub fn max_response_body(self, bytes: usize) -> Self {
        Self { max_response_body: bytes, ..self }
    }

    /// How long a response is kept, in whole microseconds from the request's arrival on; 24 h by default, at least a minute. Then the key is new
    /// again, by the clock of the process that sees it.
    ///
    /// It must be longer than clients repeat, and than a transaction may stay in doubt: one that is committed by recovery later than that has
    /// expired already, and its repeat is executed again.
    ///
    /// # Panics
    ///
    /// For less than a minute: the key would be no key.
    pub fn keep_for(self, time: Duration) -> Self {
        assert!(
            time >= SHORTEST,
            "an Idempotency-Key is kept for a minute at least, not for {time:?}: repeats come later"
        );
        Self { keep_for: time, ..self }
    }

    /// Keeps this header of responses too. By default: `Content-Type`, `Content-Language`, `Content-Encoding`, `Location`, `ETag`,
    /// `Last-Modified`, `Cache-Control`, `Link`, `Vary`. Never keep what is for one connection only, and think twice about `Set-Cookie`.
    pub fn keep_header(mut self, name: HeaderName) -> Self {
        self.kept.push(name);
        self
    }

    /// What else makes a request the same one: a header that changes what is done, such as the version of an interface. A repeat for which it
    /// says something else is another request, 422. Let it say the same of the same request in every version of the application.
    pub fn fingerprint(self, fingerprint: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        Self { more: Some(Arc::new(fingerprint)), ..self }
    }
}

impl<K> IdempotencyLayer<K> {
    pub(super) fn key(&self, parts: &Parts, tx: &Tx, key: String) -> RequestKey {
        RequestKey::new(self.scope.as_ref().map_or_else(|| tx.user(), |scope| scope(parts)), key)
    }

    /// What else makes a request the same one.
    pub(super) fn more(&self, parts: &Parts) -> Option<String> {
        self.more.as_ref().map(|more| more(parts))
    }

    /// The headers that are kept of these.
    pub(super) fn kept(&self, headers: &HeaderMap) -> HeaderMap {
        headers
            .iter()
            .filter(|(name, _)| self.kept.contains(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    pub(super) fn lifetime(&self, now: u64) -> Lifetime {
        let keep_for = u64::try_from(self.keep_for.as_micros()).unwrap_or(u64::MAX);
        Lifetime { now, expires_at: now.saturating_add(keep_for) }
    }
}

fn by_method(methods: Vec<Method>) -> RequestHook<bool> {
    Arc::new(move |parts| methods.contains(&parts.method))
}

impl<S, K: KeyStore> Layer<S> for IdempotencyLayer<K> {
    type Service = IdempotencyService<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService::new(inner, self.clone())
    }
}

impl<K> fmt::Debug for IdempotencyLayer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("required", &self.required)
            .field("scope", &self.scope.is_some())
            .field("max_request_body", &self.max_request_body)
            .field("max_request_time", &self.max_request_time)
            .field("max_response_body", &self.max_response_body)
            .field("keep_for", &self.keep_for)
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}
