//! Every future of a branch, dropped at every poll: a runtime that ends, which counts as a crash.
//!
//! What was dropped may still happen, in a thread or at the server; it must not tear anything when it does.
//!
//! Must not know how an adapter waits.

use unanimous::{Branch, BranchContext, BranchId, Capability, Known, ResourceManager, SavepointId};

use super::case::{Case, Checked, Stage, Stop, ensure, eventually, must, polled};
use super::{BranchOf, Subject, carrier, savepoints};

/// More than any call needs that is not endless.
const MOST_POLLS: usize = 1000;

fn endless(call: &str) -> Checked {
    Err(Stop::Broken(format!("{call} did not end within {MOST_POLLS} polls")))
}

/// Who finishes what was dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Branch,
    Recovery,
}

pub(super) async fn begin<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for polls in 0..MOST_POLLS {
        let (id, key) = (case.id(), case.key());
        let context = BranchContext::new(id.transaction);
        let begun = polled(polls, resource.begin(&context, Default::default())).await;
        if let Some(begun) = begun {
            return must("rollback", must("begin", begun)?.rollback().await);
        }
        case.lists(&resource, []).await?;
        case.writes_again(&resource, &key).await?;
    }
    endless("begin")
}

pub(super) async fn flush<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for polls in 0..MOST_POLLS {
        for by in [By::Branch, By::Recovery] {
            let (id, key) = (case.id(), case.key());
            let branch = case.branch(&resource, Stage::Written, &id, &key).await?;
            let flushed = polled(polls, branch.flush()).await;
            given_up(&case, &resource, branch, by, &id, &key).await?;
            if let Some(flushed) = flushed {
                must("flush", flushed)?;
                return Ok(());
            }
        }
    }
    endless("flush")
}

pub(super) async fn rollback<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let last = if resource.capability().can_prepare() { Stage::Prepared } else { Stage::Flushed };
    for stage in [Stage::Written, last] {
        at_each_poll_of_rollback(&case, &resource, stage).await?;
    }
    Ok(())
}

async fn at_each_poll_of_rollback<S: Subject>(case: &Case<S>, resource: &S::Resource, stage: Stage) -> Checked {
    for polls in 0..MOST_POLLS {
        for by in [By::Branch, By::Recovery] {
            let (id, key) = (case.id(), case.key());
            let branch = case.branch(resource, stage, &id, &key).await?;
            let rolled_back = polled(polls, branch.rollback()).await;
            given_up(case, resource, branch, by, &id, &key).await?;
            if let Some(rolled_back) = rolled_back {
                return must("rollback", rolled_back);
            }
        }
    }
    endless("rollback")
}

pub(super) async fn prepare<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for polls in 0..MOST_POLLS {
        for by in [By::Branch, By::Recovery] {
            let (id, key) = (case.id(), case.key());
            let branch = case.branch(&resource, Stage::Flushed, &id, &key).await?;
            let prepared = polled(polls, branch.prepare(&id)).await;
            given_up(&case, &resource, branch, by, &id, &key).await?;
            if let Some(prepared) = prepared {
                return must("prepare", prepared);
            }
        }
    }
    endless("prepare")
}

/// Rolled back by the branch or, where that is dropped, by recovery; nothing is left.
async fn given_up<S: Subject>(
    case: &Case<S>,
    resource: &S::Resource,
    branch: BranchOf<S>,
    by: By,
    id: &BranchId,
    key: &str,
) -> Checked {
    case.is_absent(key).await?;
    if by == By::Recovery {
        drop(branch);
        return case.recovers_and_writes_again(&case.open().await?, key).await;
    }
    let mut last = None;
    eventually!(format!("rollback to be Ok ({last:?} before)"), {
        match branch.rollback().await {
            Ok(()) => Some(()),
            Err(error) => {
                last = Some(error);
                None
            }
        }
    });
    // Only this one: a prepare that was dropped with its branch before may land late, and is the next listing's (rule 8).
    let listed = case.listed(resource).await?;
    ensure!(!listed.contains(id), "in_doubt lists {id}, which its branch has rolled back");
    case.is_absent(key).await?;
    case.writes_again(resource, key).await
}

pub(super) async fn commit<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let two_phase = resource.capability() == Capability::TwoPhase;
    for polls in 0..MOST_POLLS {
        // Nobody could finish a volatile branch but itself.
        for by in [By::Branch, By::Recovery].into_iter().filter(|&by| two_phase || by == By::Branch) {
            let (id, key) = (case.id(), case.key());
            let branch = case.branch(&resource, Stage::Prepared, &id, &key).await?;
            let committed = polled(polls, branch.commit()).await;
            match by {
                By::Branch => eventually!("commit to be Ok", branch.commit().await.ok()),
                By::Recovery => {
                    drop(branch);
                    recovers_to_commit(&case, &id).await?;
                }
            }
            case.is_there(&key).await?;
            case.lists(&resource, []).await?;
            if let Some(committed) = committed {
                return must("commit", committed);
            }
        }
    }
    endless("commit")
}

async fn recovers_to_commit<S: Subject>(case: &Case<S>, id: &BranchId) -> Checked {
    let resource = case.open().await?;
    eventually!("recovery to commit the branch", {
        let listed = case.listed(&resource).await?;
        ensure!(listed.iter().all(|listed| listed == id), "in_doubt lists {listed:?}, and {id} is the only branch");
        if listed.contains(id) {
            // Whatever it answers, the list says whether it is done (rule 8).
            let _ = resource.commit(id).await;
        }
        listed.is_empty().then_some(())
    });
    Ok(())
}

pub(super) async fn savepoint<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for polls in 0..MOST_POLLS {
        let (id, [before, undone, after]) = (case.id(), [case.key(), case.key(), case.key()]);
        let branch = case.branch(&resource, Stage::Written, &id, &before).await?;
        savepoints::needed(&branch).await?;
        must("savepoint", branch.savepoint(SavepointId(1)).await)?;
        must("writing", case.subject.write(&branch, &undone).await)?;
        let saved = polled(polls, branch.savepoint(SavepointId(2))).await;
        must("writing after a savepoint that was dropped", case.subject.write(&branch, &case.key()).await)?;
        must("rollback_to an earlier one", branch.rollback_to(SavepointId(1)).await)?;
        must("writing", case.subject.write(&branch, &after).await)?;
        must("flush", branch.flush().await)?;
        must("commit_one_phase", branch.commit_one_phase(&id).await)?;
        for key in [&before, &after] {
            case.is_there(key).await?;
        }
        case.is_absent(&undone).await?;
        if let Some(saved) = saved {
            return must("savepoint", saved);
        }
    }
    endless("savepoint")
}

pub(super) async fn rollback_to<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for polls in 0..MOST_POLLS {
        for by in [By::Branch, By::Recovery] {
            let (id, key) = (case.id(), case.key());
            let branch = case.branch(&resource, Stage::Written, &id, &key).await?;
            savepoints::needed(&branch).await?;
            must("savepoint", branch.savepoint(SavepointId(1)).await)?;
            must("writing", case.subject.write(&branch, &case.key()).await)?;
            let undone = polled(polls, branch.rollback_to(SavepointId(1))).await;
            given_up(&case, &resource, branch, by, &id, &key).await?;
            if let Some(undone) = undone {
                return must("rollback_to", undone);
            }
        }
    }
    endless("rollback_to")
}

pub(super) async fn commit_one_phase<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for polls in 0..MOST_POLLS {
        let (id, keys) = (case.id(), [case.key(), case.key()]);
        let branch = case.branch(&resource, Stage::Written, &id, &keys[0]).await?;
        must("writing a second time", case.subject.write(&branch, &keys[1]).await)?;
        must("flush", branch.flush().await)?;
        let committed = polled(polls, branch.commit_one_phase(&id)).await;
        drop(branch);
        let restarted = case.open().await?;
        case.recovers_to_nothing(&restarted).await?;
        case.writes_again(&restarted, &case.key()).await?;
        // It may land while the two are looked at.
        let there = eventually!("both or none of what one branch wrote to be there", {
            case.recovers_to_nothing(&restarted).await?;
            let there = [case.looks(&keys[0]).await?, case.looks(&keys[1]).await?];
            (there[0] == there[1]).then_some(there[0])
        });
        if let Some(committed) = committed {
            must("commit_one_phase", committed)?;
            ensure!(there, "commit_one_phase was Ok, and {} is not there", keys[0]);
            return Ok(());
        }
    }
    endless("commit_one_phase")
}

pub(super) async fn commit_carrying<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for polls in 0..MOST_POLLS {
        let (id, key) = (case.id(), case.key());
        let record = carrier::record(id.transaction);
        let branch = case.branch(&resource, Stage::Flushed, &id, &key).await?;
        let committed = polled(polls, branch.commit_carrying(&record)).await;
        drop(branch);
        let restarted = case.open().await?;
        // It may be asked while the commit is still out; an error presumes nothing.
        let known = eventually!("the decision to be told", restarted.decision(id.transaction, case.owner).await.ok());
        ensure!(matches!(known, Known::Commit(_) | Known::Abort), "decision says {known:?}");
        let decided = carrier::says(&known, &record);
        for when in ["then", "after another transaction"] {
            let there = case.looks(&key).await?;
            ensure!(there == decided, "decision says {known:?}, and that {key} is there is {there}, {when}");
            let again = must("decision", restarted.decision(id.transaction, case.owner).await)?;
            ensure!(again == known, "decision said {known:?}, and {again:?} {when}");
            case.writes_again(&restarted, &case.key()).await?;
        }
        if let Some(committed) = committed {
            must("commit_carrying", committed)?;
            ensure!(decided, "commit_carrying was Ok, and the decision is {known:?}");
            return Ok(());
        }
    }
    endless("commit_carrying")
}
