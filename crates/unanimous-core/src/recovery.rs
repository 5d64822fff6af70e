//! Recovery's plan: what follows for a branch that a store lists as in doubt, and when a decision is finished.
//!
//! The order in which a pass must look (rule 5), since each look is a moment of its own:
//!
//! 1. the unfinished decisions of transactions that are not live,
//! 2. the stores' lists of prepared branches,
//! 3. the live table,
//! 4. for each listed branch that is not live, its decider's answer.
//!
//! 5. where the log has no record of a transaction whose ids list its participants, these stores' lists again ([`conclude`]).
//!
//! A branch that is listed (2) and not live (3) can't be decided Commit after (4) was asked, but by recovery itself in (5). A decision that was there at (1), of a
//! transaction that no driver works on, and whose branches are absent at (2), is finished.
//!
//! Must not know how stores and deciders are asked.

use std::collections::BTreeSet;

use crate::decider::{DecisionRecord, HoldReason, Known};
use crate::xid::{BranchId, DeciderId, Owner, Roster, StoreId, StoreTag};

/// Whom to ask about a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask<'b> {
    /// This manager's own log.
    Log,
    /// The store that carries the decision.
    Store(&'b StoreId),
    /// This manager's own log for what is *recorded*; where it has no record nothing is presumed, and these participants are
    /// [listed again](conclude).
    Together(&'b Roster),
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
        DeciderId::Together(roster) => Ask::Together(roster),
    }
}

/// What follows for a transaction whose ids list its participants, and of which the log has no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// All of them are prepared, so that its application may have been told "committed": force a Commit record, and then commit.
    Commit,
    /// One of them is not, so that nobody was told so, and nobody will: force an Abort record, and then roll back.
    Abort,
    /// None is known to be missing, and this one's list can't be had: nothing follows yet.
    Wait(StoreTag),
}

/// What follows from lists of the participants that were read **after** the transaction was seen not to be live, and the log to have no record: by
/// then its own driver tells nobody anything any more, and an earlier list may have missed a prepare that came after it. And they are
/// [durable](crate::ResourceManager::durably_in_doubt): a branch that is listed and can still be lost was not acknowledged, and does not count as prepared.
///
/// `prepared` gives the list of the store with this tag; none where it can't be had, or more than one store has the tag.
pub fn conclude<'l>(
    branch: &BranchId,
    roster: &Roster,
    prepared: impl Fn(StoreTag) -> Option<&'l BTreeSet<BranchId>>,
) -> Conclusion {
    let mut waits = None;
    for (number, tag) in roster.iter() {
        match prepared(tag) {
            Some(list) if list.contains(&BranchId { number, ..branch.clone() }) => {}
            Some(_) => return Conclusion::Abort,
            None => waits = waits.or(Some(tag)),
        }
    }
    waits.map_or(Conclusion::Commit, Conclusion::Wait)
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
/// A Commit that doesn't list the branch is somebody else's: a reused id or a store under another name. It is held; but one whose own id lists the
/// participants, and not itself, had only read, and was in the middle of ending so.
pub fn verdict(branch: &BranchId, known: &Known) -> Verdict {
    match known {
        Known::Commit(_)
            if let DeciderId::Together(roster) = &branch.decider
                && !roster.lists(branch.number) =>
        {
            Verdict::Rollback
        }
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
