//! What a request carries: the slot of its transaction, and the functions that find it there.
//!
//! Must not know who put the slot there, nor who ends it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use http::{Extensions, HeaderName, Method, Uri};
use unanimous_core::Outcome;

use crate::lazy::{Lazy, LazyTransaction};
use crate::manager::TransactionManager;
use crate::transaction::Tx;

/// The request extension.
#[derive(Clone, Debug)]
pub(crate) struct Slot(pub(crate) Arc<LazyTransaction<Head>>);

/// The request as it came in, for the transaction's begin and end, and for the layers further in. It lives beside the slot, so that it is
/// copied once for all of them.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) manager: TransactionManager,
    pub(crate) method: Method,
    /// Before any router has stripped what it has matched.
    pub(crate) uri: Uri,
    /// The header that names the transaction.
    pub(crate) transaction_header: Option<HeaderName>,
}

/// Whether a [`TransactionLayer`](super::TransactionLayer) will end a transaction for the request with these extensions: true from
/// the layer until the end, also when nothing has begun yet; false where the layer is missing or leaves the request out.
pub fn is_active(extensions: &Extensions) -> bool {
    extensions.get::<Slot>().is_some_and(|slot| slot.0.is_open())
}

/// The transaction of the request with these extensions, begun now if it was not. axum's handlers extract [`Tx`] instead.
///
/// # Errors
///
/// When no layer is active on the request, or when the transaction has ended.
pub fn transaction(extensions: &Extensions) -> Result<Tx, NoTransaction> {
    let slot = extensions.get::<Slot>().ok_or(NoTransaction::Inactive)?;
    slot.0.tx().ok_or(NoTransaction::Ended)
}

/// Calls `callback` once when the request's transaction has ended: after the commit, after the abort, and when the commit failed;
/// the outcome says which. Begins the transaction, so that there is an end. The same as [`Tx::after_end`].
///
/// # Errors
///
/// As for [`transaction`]; the callback is dropped then, and not called.
pub fn after_end(
    extensions: &Extensions,
    callback: impl FnOnce(Outcome) + Send + 'static,
) -> Result<(), NoTransaction> {
    transaction(extensions)?.after_end(callback);
    Ok(())
}

/// A request that has no transaction to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoTransaction {
    /// No layer is around the service, or it leaves this request out.
    Inactive,
    /// The handler has returned: what still runs (a streamed body, a spawned task) is outside of the transaction.
    Ended,
}

impl fmt::Display for NoTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoTransaction::Inactive => {
                "the request runs in no transaction; put `TransactionLayer::new(manager)` around the service \
                 (axum: `.layer(...)` after the route), and look whether its `activate` leaves this request out"
            }
            NoTransaction::Ended => {
                "the request's transaction has ended with its handler; \
                 what streams or is spawned begins a transaction of its own with the manager"
            }
        })
    }
}

impl Error for NoTransaction {}
