//! The duties of a store whose commit carries the decision as a row.
//!
//! Must not know the manager.

use unanimous::{
    Branch, BranchId, DecisionRecord, FailureKind, HoldReason, Incarnation, Known, LogId, Note, Owner, Participant,
    ResourceManager, TransactionId,
};

use super::case::{Case, Checked, Stage, Stop, ensure, eventually, must};
use super::{BranchOf, Subject};

/// A decision that lists a two-phase and a volatile participant.
pub(super) fn record(transaction: TransactionId) -> DecisionRecord {
    let participant = |number, resource: &str, store: Option<&str>| Participant {
        number,
        resource: resource.to_owned(),
        store: store.map(|store| store.parse().expect("letters and - are an identity")),
    };
    DecisionRecord {
        transaction,
        participants: vec![
            participant(0, "peer", Some("peer-store")),
            participant(300, "a räksmörgås, volatile", None),
        ],
        decided_at: 1_700_000_000_000_001,
        note: Note::new("by / räksmörgås: two\nlines"),
    }
}

/// A branch that has written `key` and is flushed.
async fn flushed<S: Subject>(case: &Case<S>, resource: &S::Resource, id: &BranchId, key: &str) -> Checked<BranchOf<S>> {
    case.branch(resource, Stage::Flushed, id, key).await
}

/// The note is for people, and need not be kept.
pub(super) fn says(known: &Known, record: &DecisionRecord) -> bool {
    matches!(known, Known::Commit(known) if known.decides_as(record))
}

fn lists(listed: &[DecisionRecord], records: &[DecisionRecord]) -> bool {
    listed.len() == records.len() && listed.iter().zip(records).all(|(listed, record)| listed.decides_as(record))
}

async fn decision<S: Subject>(resource: &S::Resource, transaction: TransactionId, owner: Owner) -> Checked<Known> {
    must("decision", resource.decision(transaction, owner).await)
}

pub(super) async fn the_decision_comes_with_the_work<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let record = record(id.transaction);
    let branch = flushed(&case, &resource, &id, &key).await?;
    must("commit_carrying", branch.commit_carrying(&record).await)?;
    case.is_there(&key).await?;
    drop(branch);
    let again = case.open().await?;
    for (handle, resource) in [("the same handle", &resource), ("another handle", &again)] {
        let known = decision::<S>(resource, id.transaction, case.owner).await?;
        ensure!(says(&known, &record), "{handle} says {known:?} of a decision to commit {record:?}");
    }
    Ok(())
}

pub(super) async fn a_fence_keeps_the_late_one_out<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let known = decision::<S>(&resource, id.transaction, case.owner).await?;
    ensure!(known == Known::Abort, "without a row, decision says {known:?}");
    let branch = flushed(&case, &resource, &id, &key).await?;
    let Err(error) = branch.commit_carrying(&record(id.transaction)).await else {
        return Err(Stop::Broken("a carrier that was fenced says that it has committed".to_owned()));
    };
    ensure!(error.kind() != FailureKind::Lost, "a carrier that was fenced says lost, and its refusal is definite");
    must("rollback", branch.rollback().await)?;
    case.is_absent(&key).await?;
    drop(branch);
    for resource in [resource, case.open().await?] {
        let known = decision::<S>(&resource, id.transaction, case.owner).await?;
        ensure!(known == Known::Abort, "once Abort, decision says {known:?} later");
    }
    case.is_absent(&key).await
}

pub(super) async fn rolled_back_it_decides_nothing<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let branch = flushed(&case, &resource, &id, &key).await?;
    must("rollback", branch.rollback().await)?;
    drop(branch);
    let known = decision::<S>(&resource, id.transaction, case.owner).await?;
    ensure!(known == Known::Abort, "after a rollback, decision says {known:?}");
    case.is_absent(&key).await
}

pub(super) async fn another_log_is_not_answered_for<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let (mine, stranger) = (case.owner, Owner { log: LogId(!case.owner.log.0), ..case.owner });
    let known = decision::<S>(&resource, id.transaction, stranger).await?;
    ensure!(
        matches!(known, Known::Hold(HoldReason::ForeignLog)),
        "another log's owner is told {known:?}, not that it is foreign"
    );
    // The stranger's question must not have fenced it.
    let record = record(id.transaction);
    let branch = flushed(&case, &resource, &id, &key).await?;
    must("commit_carrying after a stranger has asked", branch.commit_carrying(&record).await)?;
    drop(branch);
    let listed = must("unfinished", resource.unfinished(stranger).await)?;
    ensure!(listed.is_empty(), "unfinished gives the stranger {listed:?}");
    // A later incarnation of the same log is not a stranger.
    let later = Owner { incarnation: Incarnation::new(mine.incarnation.counter + 1, 3), ..mine };
    let listed = must("unfinished", resource.unfinished(later).await)?;
    ensure!(lists(&listed, std::slice::from_ref(&record)), "unfinished gives the log's next incarnation {listed:?}");
    let known = decision::<S>(&resource, id.transaction, later).await?;
    ensure!(says(&known, &record), "the log's next incarnation is told {known:?}");
    Ok(())
}

/// A store that leaves `decided` out says nothing, which is allowed.
pub(super) async fn who_only_asks_changes_nothing<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let stranger = Owner { log: LogId(!case.owner.log.0), ..case.owner };
    let record = record(id.transaction);
    for owner in [case.owner, stranger] {
        let known = must("decided", resource.decided(id.transaction, owner).await)?;
        ensure!(known.is_none(), "without a row, decided says {known:?}");
    }
    // It must not have fenced it.
    let branch = flushed(&case, &resource, &id, &key).await?;
    must("commit_carrying after somebody has asked", branch.commit_carrying(&record).await)?;
    drop(branch);
    for owner in [case.owner, stranger] {
        let known = must("decided", resource.decided(id.transaction, owner).await)?;
        ensure!(known.as_ref().is_none_or(|known| says(known, &record)), "decided says {known:?} of {record:?}");
    }
    let fenced = case.id();
    decision::<S>(&resource, fenced.transaction, case.owner).await?;
    let known = must("decided", resource.decided(fenced.transaction, case.owner).await)?;
    ensure!(matches!(known, None | Some(Known::Abort)), "decided says {known:?} of what was fenced");
    Ok(())
}

pub(super) async fn what_is_forgotten_is_not_listed<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let mut records = Vec::new();
    for _ in 0..2 {
        let (id, key) = (case.id(), case.key());
        let record = record(id.transaction);
        let branch = flushed(&case, &resource, &id, &key).await?;
        must("commit_carrying", branch.commit_carrying(&record).await)?;
        records.push(record);
    }
    let again = case.open().await?;
    for resource in [&resource, &again] {
        let mut listed = must("unfinished", resource.unfinished(case.owner).await)?;
        listed.sort();
        ensure!(lists(&listed, &records), "unfinished gives {listed:?}, and not {records:?}");
    }
    resource.forget(records[0].transaction);
    // It is not forced, and may be done in the background.
    eventually!("unfinished to leave out what was forgotten", {
        let listed = must("unfinished", resource.unfinished(case.owner).await)?;
        let kept = listed.iter().any(|listed| listed.decides_as(&records[1]));
        ensure!(kept, "unfinished gives {listed:?}, without what was not forgotten");
        lists(&listed, &records[1..]).then_some(())
    });
    let known = decision::<S>(&resource, records[0].transaction, case.owner).await?;
    ensure!(says(&known, &records[0]), "decision says {known:?} of what was forgotten");
    Ok(())
}
