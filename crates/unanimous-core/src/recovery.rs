//! Recovery's plan: what follows for a branch that a store lists as in doubt, and when a decision is finished.
//!
//! The order in which a pass must look (rule 5), since each look is a moment of its own:
//!
//! 1. the unfinished decisions of transactions that are not live,
//! 2. the stores' lists of prepared branches,
//! 3. the live table,
//! 4. for each listed branch that is not live, its decider's answer.
//!
//! A branch that is listed (2) and not live (3) can't be decided Commit after (4) was asked. A decision that was there at (1), of a
//! transaction that no driver works on, and whose branches are absent at (2), is finished.
//!
//! Must not know how stores and deciders are asked.

use std::collections::BTreeSet;

use crate::decider::{DecisionRecord, HoldReason, Known};
use crate::xid::{BranchId, DeciderId, Owner, StoreId};

/// Whom to ask about a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask<'b> {
    /// This manager's own log.
    Log,
    /// The store that carries the decision.
    Store(&'b StoreId),
    /// Nobody here: it is held.
    Nobody(HoldReason),
}

/// Rule 2: the decider that the id names, and no other; and only for transactions of the log whose lock is held here.
pub fn whom_to_ask(branch: &BranchId, owner: Owner) -> Ask<'_> {
    if branch.transaction.log != owner.log {
        return Ask::Nobody(HoldReason::ForeignLog);
    }
    match &branch.decider {
        DeciderId::Log => Ask::Log,
        DeciderId::Store(store) => Ask::Store(store),
    }
}

/// What to do with a branch that is not live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Commit it.
    Commit,
    /// Roll it back.
    Rollback,
    /// Leave it, and say why.
    Hold(HoldReason),
}

/// What follows from the decider's answer.
///
/// A Commit that doesn't list the branch is somebody else's: a reused id or a store under another name. It is held.
pub fn verdict(branch: &BranchId, known: &Known) -> Verdict {
    match known {
        Known::Commit(record) if record.participants.iter().any(|listed| listed.number == branch.number) => {
            Verdict::Commit
        }
        Known::Commit(_) => Verdict::Hold(HoldReason::NotListed),
        Known::Abort => Verdict::Rollback,
        Known::Hold(reason) => Verdict::Hold(reason.clone()),
    }
}

/// What is known of a store after a pass: absent means that it could not be asked.
pub trait Lists {
    /// The branches of `store` that are still prepared after the pass, or none where its list was not to be had.
    fn still_prepared(&self, store: &StoreId) -> Option<&BTreeSet<BranchId>>;
}

/// Whether every participant of a decision is confirmed: by its absence from an authoritative list (rule 8).
///
/// A volatile participant, which has no store, died with its process; nobody waits for it.
pub fn is_finished(record: &DecisionRecord, lists: &impl Lists) -> bool {
    record.participants.iter().filter_map(|participant| Some((participant.number, participant.store.as_ref()?))).all(
        |(number, store)| {
            lists.still_prepared(store).is_some_and(|prepared| {
                !prepared.iter().any(|branch| branch.transaction == record.transaction && branch.number == number)
            })
        },
    )
}
