//! The keys that this process is executing requests for, so that a repeat is answered at once, whatever the store.
//!
//! Must not know requests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use unanimous_core::TransactionId;

use super::key::RequestKey;
use crate::sync::lock;
use crate::transaction::Tx;

/// Shared by all services of a layer.
#[derive(Clone, Default)]
pub(super) struct InFlight(Arc<Mutex<BTreeMap<RequestKey, TransactionId>>>);

impl InFlight {
    /// Takes a key until the transaction has ended, whoever goes away meanwhile; or tells which other transaction has it.
    pub(super) fn enter(&self, key: &RequestKey, tx: &Tx) -> Result<(), TransactionId> {
        {
            let mut keys = lock(&self.0);
            if let Some(holder) = keys.get(key) {
                return Err(*holder);
            }
            keys.insert(key.clone(), tx.id());
        }
        // Outside of the lock: where the transaction has ended already, this is called at once.
        let (keys, key, id) = (self.clone(), key.clone(), tx.id());
        tx.after_end(move |_| keys.leave(&key, id));
        Ok(())
    }

    /// Gives a key back that this transaction has; nothing else.
    pub(super) fn leave(&self, key: &RequestKey, id: TransactionId) {
        let mut keys = lock(&self.0);
        if keys.get(key) == Some(&id) {
            keys.remove(key);
        }
    }
}
