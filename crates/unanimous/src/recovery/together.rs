//! What follows for transactions whose ids list their participants, and of which the log has no record: it is recorded before any of their branches
//! is touched (`docs/protocol.md`, "Early acknowledgement").
//!
//! Must not know how branches are ended; what follows is the pure plan's ([`conclude`]).

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use unanimous_core::recovery::{Ask, Conclusion, conclude, whom_to_ask};
use unanimous_core::xid::{Roster, StoreTag};
use unanimous_core::{
    BranchId, Decision, DecisionRecord, HoldReason, Note, Participant, StoreError, StoreId, TransactionId,
};

use super::{Durably, Listed, Pass, list};
use crate::live::Stage;
use crate::sync::lock;

/// Concludes and records for all of them; gives those for which nothing follows now, and why.
pub(super) async fn conclude_all(
    inner: &Pass<'_>,
    listed: &Listed,
    live: &BTreeMap<TransactionId, Stage>,
) -> BTreeMap<TransactionId, HoldReason> {
    let open = unrecorded(inner, listed, live).await;
    let mut undecided = BTreeMap::new();
    if open.is_empty() {
        return undecided;
    }
    // The lists of before may have missed a prepare of a transaction that was live then, and was acknowledged since; and they may hold one that
    // no replica has confirmed, which can still be lost.
    let mut silent = Vec::new();
    let again = list(inner, Durably::Yes, &mut silent).await;
    for doubt in silent {
        tracing::warn!(resource = %doubt.resource, "what it lists is not certain to stay, so that nothing is concluded from it: {}", doubt.why);
    }
    let prepared = again.into_iter().map(|(store, (_, branches))| (store, branches.into_iter().collect()));
    let prepared: BTreeMap<StoreId, BTreeSet<BranchId>> = prepared.collect();
    // At the same time, so that the log forces them together.
    let recorded = join_all(open.iter().map(|(branch, roster)| record(inner, branch, roster, &prepared))).await;
    for ((branch, _), result) in open.iter().zip(recorded) {
        if let Err(reason) = result {
            undecided.insert(branch.transaction, reason);
        }
    }
    undecided
}

/// One branch of each such transaction, with its list: of those that are listed, and of those that their driver has left.
async fn unrecorded(
    inner: &Pass<'_>,
    listed: &Listed,
    live: &BTreeMap<TransactionId, Stage>,
) -> Vec<(BranchId, Roster)> {
    let mut open = BTreeMap::new();
    // Left by a driver that has ended: whatever the table of before says, it is not live.
    let left: Vec<BranchId> = lock(&inner.recovery.left).values().cloned().collect();
    for branch in listed.values().flat_map(|(_, branches)| branches).chain(&left) {
        if let Ask::Together(roster) = whom_to_ask(branch, inner.owner)
            && !live.contains_key(&branch.transaction)
            && !open.contains_key(&branch.transaction)
        {
            match inner.within(None, inner.log.recorded(branch.transaction)).await {
                Ok(None) => drop(open.insert(branch.transaction, (branch.clone(), roster.clone()))),
                Ok(Some(_)) => drop(lock(&inner.recovery.left).remove(&branch.transaction)),
                Err(error) => {
                    tracing::warn!(transaction = %branch.transaction, error = &error as &(dyn std::error::Error + 'static),
                        "the log can't say whether it is recorded; the next pass asks again");
                }
            }
        }
    }
    open.into_values().collect()
}

async fn record(
    inner: &Pass<'_>,
    branch: &BranchId,
    roster: &Roster,
    prepared: &BTreeMap<StoreId, BTreeSet<BranchId>>,
) -> Result<(), HoldReason> {
    // A record lists its participants by their stores' identities: without each of them nobody could tell when it is finished.
    let participants = roster.iter().map(|(number, tag)| participant(inner, number, tag));
    let participants = participants.collect::<Result<Vec<_>, _>>()?;
    let store = |tag| {
        participants
            .iter()
            .filter_map(|participant| participant.store.as_ref())
            .find(|store| StoreTag::of(store) == tag)
    };
    let conclusion = conclude(branch, roster, |tag| prepared.get(store(tag)?));
    let decided_at = inner.env.wall_clock();
    let record = DecisionRecord { transaction: branch.transaction, participants, decided_at, note: Note::default() };
    let decision = match conclusion {
        Conclusion::Commit => Decision::Commit,
        Conclusion::Abort => Decision::Abort,
        Conclusion::Wait(tag) => return Err(HoldReason::Unlisted(tag)),
    };
    tracing::info!(transaction = %branch.transaction, %decision, "recovery records what all participants list");
    let recording = async { inner.log.conclude(record, decision).await.map_err(StoreError::new) };
    let recorded = inner.within(None, recording).await;
    if recorded.is_ok() {
        lock(&inner.recovery.left).remove(&branch.transaction);
    }
    recorded.map_err(|error| {
        tracing::warn!(transaction = %branch.transaction, error = &error as &(dyn std::error::Error + 'static),
            "the log did not record what follows for a transaction that may have been acknowledged");
        HoldReason::NotRecorded
    })
}

/// The participant that has this tag: the only registered store that has it.
fn participant(inner: &Pass<'_>, number: u16, tag: StoreTag) -> Result<Participant, HoldReason> {
    let mut stores = inner.resources.values().filter_map(|registered| Some((registered, registered.known_identity()?)));
    let found =
        stores.find(|(_, store)| StoreTag::of(store) == tag).filter(|(_, store)| inner.is_told_by_its_tag(store));
    let (registered, store) = found.ok_or(HoldReason::Unlisted(tag))?;
    Ok(Participant { number, resource: registered.name.clone(), store: Some(store.clone()) })
}
