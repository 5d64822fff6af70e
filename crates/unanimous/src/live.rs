//! The live table (rule 5): transactions that a driver of this process works on, and that might still be decided Commit.
//!
//! Recovery never touches them. Must not know branches, deciders or time.

use std::collections::BTreeSet;
use std::sync::Mutex;

use unanimous_core::TransactionId;

use crate::sync::lock;

#[derive(Debug, Default)]
pub(crate) struct Live {
    transactions: Mutex<BTreeSet<TransactionId>>,
}

impl Live {
    pub(crate) fn enter(&self, id: TransactionId) {
        lock(&self.transactions).insert(id);
    }

    pub(crate) fn leave(&self, id: TransactionId) {
        lock(&self.transactions).remove(&id);
    }

    pub(crate) fn contains(&self, id: TransactionId) -> bool {
        lock(&self.transactions).contains(&id)
    }

    /// The table as it is at this moment.
    pub(crate) fn snapshot(&self) -> BTreeSet<TransactionId> {
        lock(&self.transactions).clone()
    }
}
