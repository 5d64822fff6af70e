//! What is known of each transaction by who sees everything: what its client was told, and what each store did.
//!
//! Must not know what follows from it; the checks do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use unanimous::{Decision, Outcome, TransactionId};

#[derive(Default)]
pub(super) struct Ledger {
    pub(super) transactions: BTreeMap<TransactionId, Entry>,
    /// For each process: when its log was restored, and so lost what was after the backup.
    pub(super) log_restores: BTreeMap<usize, Duration>,
    /// Lives whose disk failed, or whose runtime ended: they may not know what became of what they were doing.
    pub(super) troubled: BTreeSet<(usize, u32)>,
}

/// One transaction.
pub(super) struct Entry {
    pub(super) process: usize,
    pub(super) life: u32,
    pub(super) began: Duration,
    /// The stores in which it had written when commit was called, by their index.
    pub(super) wrote: Option<BTreeSet<usize>>,
    /// Its volatile branch, if it has one.
    pub(super) volatile: Option<Volatile>,
    /// What its client heard.
    pub(super) told: Option<Outcome>,
    /// With so many branches pending.
    pub(super) pending: usize,
    /// What the manager's observer heard.
    pub(super) reported: Option<Outcome>,
    pub(super) stores: BTreeMap<usize, AtStore>,
    /// Something happened after which nobody may know the outcome.
    pub(super) may_be_unknown: bool,
    /// A store committed what the log had decided.
    pub(super) by_log: bool,
    /// What its decider has answered.
    pub(super) looked_up: Option<Decision>,
    pub(super) record: Option<unanimous::DecisionRecord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Volatile {
    Open,
    Prepared,
    Committed,
    RolledBack,
}

/// What a store did with a transaction's branch.
#[derive(Clone, Debug, Default)]
pub(super) struct AtStore {
    /// Its work is committed there now.
    pub(super) committed: bool,
    /// It is prepared there now.
    pub(super) prepared: bool,
    /// How often its work was committed.
    pub(super) commits: u32,
    /// A prepared branch was rolled back by a manager.
    pub(super) rolled_back: bool,
    /// What an operator did.
    pub(super) operator: Option<Decision>,
    /// Its work was lost when the store was restored from a backup.
    pub(super) lost: bool,
    /// It came back as prepared when the store was restored.
    pub(super) came_back: bool,
    /// A heuristic was reported.
    pub(super) reported: bool,
}

impl Ledger {
    pub(super) fn begin(&mut self, id: TransactionId, process: usize, life: u32, now: Duration) -> bool {
        let entry = Entry {
            process,
            life,
            began: now,
            wrote: None,
            volatile: None,
            told: None,
            pending: 0,
            reported: None,
            stores: BTreeMap::new(),
            may_be_unknown: false,
            by_log: false,
            looked_up: None,
            record: None,
        };
        self.transactions.insert(id, entry).is_none()
    }

    pub(super) fn entry(&mut self, id: TransactionId) -> Option<&mut Entry> {
        self.transactions.get_mut(&id)
    }

    /// What happens to a transaction in a store.
    pub(super) fn at(&mut self, id: TransactionId, store: usize) -> Option<&mut AtStore> {
        Some(self.transactions.get_mut(&id)?.stores.entry(store).or_default())
    }

    pub(super) fn may_be_unknown(&mut self, id: TransactionId) {
        if let Some(entry) = self.entry(id) {
            entry.may_be_unknown = true;
        }
    }
}
