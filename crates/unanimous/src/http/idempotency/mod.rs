//! Requests that are repeated and executed once: the `Idempotency-Key` header, with the first response stored in the request's own
//! transaction ([`IdempotencyLayer`]).
//!
//! After the IETF's draft `draft-ietf-httpapi-idempotency-key-header`. The key's row commits with the work or not at all, in a
//! [`KeyStore`] that takes part in the transaction, so that neither a crash nor another process can come between them.
//!
//! Must not know any store, nor how a transaction ends.

mod in_flight;
mod key;
mod layer;
mod problems;
mod service;
mod stored;

use std::future::Future;

use unanimous_core::BoxError;

pub use self::key::RequestKey;
pub use self::layer::IdempotencyLayer;
pub use self::service::IdempotencyService;
pub use self::stored::{DamagedHeaders, StoredResponse};
use crate::transaction::Tx;

/// The header that names a request: `Idempotency-Key`.
pub const KEY_HEADER: http::HeaderName = http::HeaderName::from_static("idempotency-key");

/// The header of a response that was given before: `idempotent-replayed: true`.
pub const REPLAYED_HEADER: http::HeaderName = http::HeaderName::from_static("idempotent-replayed");

/// Where keys and their first responses are kept: a store that takes part in the request's transaction.
/// `postgres::PostgresKeys` and `sqlite::SqliteKeys` are two.
///
/// What it must promise:
///
/// - What it writes is written in `tx`, by [joining](Tx::join) it: visible to others when the transaction has committed, and only then.
/// - Of two transactions that are given [`Found::New`] for one key, at most one can commit. Whether it lets the second one wait, tells it
///   [`Found::InFlight`], or lets its `keep` or commit fail with a conflict, is the store's choice; it must not hang.
/// - What it gives as [`Found::Stored`] lasts when `tx` has committed: where the process has not
///   [seen it commit](StoredResponse::was_seen_to_commit), it is written again.
/// - A transaction in doubt (prepared, its decision not known) counts as in flight.
///
/// Cancel safety: a future that is dropped may have written or not; the layer lets the transaction abort then.
pub trait KeyStore: Clone + Send + Sync + 'static {
    /// Looks a key up, and claims it where it is new. Before the handler is called.
    ///
    /// A row that has [expired](Lifetime::has_expired) is as none.
    ///
    /// # Errors
    ///
    /// When the store can't be joined or asked. One that [`Tx::is_retryable`] recognizes is answered as a conflict.
    fn begin(
        &self,
        tx: &Tx,
        key: &RequestKey,
        lifetime: Lifetime,
    ) -> impl Future<Output = Result<Found, BoxError>> + Send;

    /// Keeps the response of a request whose key was [`Found::New`] in this transaction. After the handler has answered.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin). The transaction is aborted then.
    fn keep(
        &self,
        tx: &Tx,
        key: &RequestKey,
        response: &StoredResponse,
        lifetime: Lifetime,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// What a [`KeyStore`] knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing: the request is to be executed.
    New,
    /// A request with this key has committed, with this response.
    Stored(StoredResponse),
    /// A request with this key is being executed, or is in doubt.
    InFlight,
}

/// The time of a request, and when its key expires: microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Now, by the clock of the process that has the request.
    pub now: u64,
    /// When the key may be forgotten.
    pub expires_at: u64,
}

impl Lifetime {
    /// Whether a row that says that it expires then has expired.
    pub fn has_expired(self, expires_at: u64) -> bool {
        expires_at <= self.now
    }
}
