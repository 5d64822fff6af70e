//! Ids of a transaction and its branches, known before the transaction begins.
//!
//! Must not know branches, nor any store.

use std::sync::{Arc, Weak};

use unanimous_core::{BranchId, DeciderId, Outcome, TransactionId};

use crate::inner::Inner;
use crate::manager::TransactionManager;
use crate::transaction::{Home, Options, Transaction};

/// The id of a transaction that begins when it is committed: for front ends whose drivers must be told a branch's id when its work begins.
///
/// Nothing may be prepared under such an id before the transaction has begun and asks the branch for its vote: until then recovery does
/// not know that it is used (rule 5).
///
/// Does not keep its manager, nor its log, alive. Dropped, the transaction counts as aborted.
#[derive(Debug)]
pub struct Reserved {
    manager: Weak<Inner>,
    id: TransactionId,
    branches: u16,
    begun: bool,
}

/// Reserves the id of a transaction that is [begun](Reserved::begin) later.
///
/// # Panics
///
/// As [`TransactionManager::begin`].
pub fn reserve(manager: &TransactionManager) -> Reserved {
    let inner = &manager.inner;
    Reserved { manager: Arc::downgrade(inner), id: inner.next_transaction(), branches: 0, begun: false }
}

impl Reserved {
    /// The transaction's id.
    pub fn id(&self) -> TransactionId {
        self.id
    }

    /// The id of another branch, decided in the log, for [`join_foreign_as`](crate::Tx::join_foreign_as). None where all 65535 are given out.
    pub fn branch(&mut self) -> Option<BranchId> {
        self.branch_decided_by(DeciderId::Log)
    }

    /// The same where this one is expected to decide: the store that is a carrier. Who decides is known when the branches are flushed; where it
    /// is another one, the branch is asked to prepare under another id, of the same number.
    pub fn branch_decided_by(&mut self, decider: DeciderId) -> Option<BranchId> {
        let number = self.branches;
        self.branches = number.checked_add(1)?;
        Some(BranchId { transaction: self.id, decider, number })
    }

    /// Begins the transaction, as [`begin`](super::begin) does; its time limit counts from now. None where the id is not this manager's.
    pub fn begin(mut self, manager: &TransactionManager, options: Options) -> Option<Transaction> {
        if !std::ptr::eq(self.manager.as_ptr(), Arc::as_ptr(&manager.inner)) {
            return None;
        }
        self.begun = true;
        let transaction = Transaction::new(manager.inner.clone(), self.id, options, Home::Thread);
        transaction.announce();
        Some(transaction)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.begun
            && let Some(manager) = self.manager.upgrade()
        {
            manager.outcomes.ended(self.id.sequence, Outcome::Aborted);
        }
    }
}
