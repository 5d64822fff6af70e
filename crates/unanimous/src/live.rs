//! The live table (rule 5): transactions that a driver of this process works on, and that might still be decided Commit; recovery
//! never touches them. And those of which this process knows more than any decider: that they were aborted, or must be held.
//! Must not know branches, deciders or time.

use std::collections::BTreeMap;
use std::sync::Mutex;

use unanimous_core::TransactionId;

use crate::sync::lock;

/// Why a transaction is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// A driver works on it.
    Driven,
    /// It was aborted here, and not all of its branches are known to be rolled back: recovery need not ask anybody.
    Aborted,
    /// Its outcome is unknown, and nobody in this process may find out (rule 12): it stays here until the process ends.
    Held,
}

#[derive(Debug, Default)]
pub(crate) struct Live {
    transactions: Mutex<BTreeMap<TransactionId, Stage>>,
}

impl Live {
    pub(crate) fn enter(&self, id: TransactionId) {
        lock(&self.transactions).insert(id, Stage::Driven);
    }

    pub(crate) fn hold(&self, id: TransactionId) {
        lock(&self.transactions).insert(id, Stage::Held);
    }

    pub(crate) fn abort(&self, id: TransactionId) {
        lock(&self.transactions).insert(id, Stage::Aborted);
    }

    pub(crate) fn leave(&self, id: TransactionId) {
        lock(&self.transactions).remove(&id);
    }

    pub(crate) fn contains(&self, id: TransactionId) -> bool {
        lock(&self.transactions).contains_key(&id)
    }

    pub(crate) fn stage(&self, id: TransactionId) -> Option<Stage> {
        lock(&self.transactions).get(&id).copied()
    }

    /// The table as it is at this moment.
    pub(crate) fn snapshot(&self) -> BTreeMap<TransactionId, Stage> {
        lock(&self.transactions).clone()
    }
}
