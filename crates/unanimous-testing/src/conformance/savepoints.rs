//! The duties of a branch that says that it has savepoints.
//!
//! Must not know the manager.

use unanimous::{Branch, BranchId, Capability, ResourceManager, SavepointId, Work};

use super::case::{Case, Checked, Stop, ensure, must};
use super::{BranchOf, Subject, carrier};

/// Leaves a check out where branches have no savepoints.
pub(super) async fn needed<B: Branch>(branch: &B) -> Checked {
    if branch.has_savepoints() {
        return Ok(());
    }
    must("rollback", branch.rollback().await)?;
    Err(Stop::LeftOut("its branches say that they have no savepoints"))
}

/// A branch in which nothing was done yet.
async fn begun<S: Subject>(case: &Case<S>, resource: &S::Resource, id: &BranchId) -> Checked<BranchOf<S>> {
    let branch = case.begin(resource, id).await?;
    needed(&branch).await?;
    Ok(branch)
}

async fn write<S: Subject>(case: &Case<S>, branch: &BranchOf<S>, key: &str) -> Checked {
    must(&format!("writing {key}"), case.subject.write(branch, key).await)
}

/// As the manager does, which leaves numbers out where the branch was not there yet.
async fn savepoint<B: Branch>(branch: &B, number: u64) -> Checked {
    must(&format!("savepoint {number}"), branch.savepoint(SavepointId(number)).await)
}

async fn rollback_to<B: Branch>(branch: &B, number: u64) -> Checked {
    must(&format!("rollback_to {number}"), branch.rollback_to(SavepointId(number)).await)
}

/// By which calls a branch commits.
#[derive(Clone, Copy, Debug)]
enum By {
    OnePhase,
    Prepare,
    Recovery,
    Carrying,
}

fn ways(capability: Capability) -> &'static [By] {
    match capability {
        Capability::TwoPhase => &[By::OnePhase, By::Prepare, By::Recovery],
        Capability::Carrier => &[By::OnePhase, By::Carrying],
        Capability::Volatile => &[By::OnePhase, By::Prepare],
        Capability::OnePhase => &[By::OnePhase],
    }
}

/// Flushes and commits; then exactly the kept keys are there, and nothing holds the others.
async fn commits<S: Subject>(
    case: &Case<S>,
    resource: &S::Resource,
    branch: BranchOf<S>,
    (id, by): (&BranchId, By),
    kept: &[&str],
    undone: &[&str],
) -> Checked {
    let work = must("flush", branch.flush().await)?;
    ensure!(work == Work::Wrote || kept.is_empty(), "flush says {work:?}, and {kept:?} was written and not undone");
    match by {
        By::OnePhase => must("commit_one_phase", branch.commit_one_phase(id).await)?,
        By::Carrying => must("commit_carrying", branch.commit_carrying(&carrier::record(id.transaction)).await)?,
        By::Prepare | By::Recovery => {
            must("prepare", branch.prepare(id).await)?;
            match by {
                By::Recovery => must("commit by id", case.open().await?.commit(id).await)?,
                _ => must("commit", branch.commit().await)?,
            }
        }
    }
    drop(branch);
    for key in kept {
        case.is_there(key).await?;
    }
    for key in undone {
        case.is_absent(key).await?;
        case.writes_again(resource, key).await?;
    }
    Ok(())
}

pub(super) async fn what_came_after_is_undone<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for &by in ways(resource.capability()) {
        let (id, [before, undone, after]) = (case.id(), [case.key(), case.key(), case.key()]);
        let branch = begun(&case, &resource, &id).await?;
        write(&case, &branch, &before).await?;
        savepoint(&branch, 2).await?;
        write(&case, &branch, &undone).await?;
        rollback_to(&branch, 2).await?;
        write(&case, &branch, &after).await?;
        for key in [&before, &undone, &after] {
            case.is_absent(key).await?;
        }
        commits(&case, &resource, branch, (&id, by), &[&before, &after], &[&undone]).await?;
    }
    Ok(())
}

pub(super) async fn what_was_undone_can_be_done_again<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, [before, again]) = (case.id(), [case.key(), case.key()]);
    let branch = begun(&case, &resource, &id).await?;
    write(&case, &branch, &before).await?;
    savepoint(&branch, 1).await?;
    for _ in 0..2 {
        write(&case, &branch, &again).await?;
        rollback_to(&branch, 1).await?;
    }
    write(&case, &branch, &again).await?;
    commits(&case, &resource, branch, (&id, By::OnePhase), &[&before, &again], &[]).await
}

pub(super) async fn it_can_be_rolled_back_to_again<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, [before, first, second, after]) = (case.id(), [case.key(), case.key(), case.key(), case.key()]);
    let branch = begun(&case, &resource, &id).await?;
    write(&case, &branch, &before).await?;
    savepoint(&branch, 5).await?;
    for undone in [&first, &second] {
        write(&case, &branch, undone).await?;
        rollback_to(&branch, 5).await?;
    }
    // Nothing was done since.
    rollback_to(&branch, 5).await?;
    write(&case, &branch, &after).await?;
    commits(&case, &resource, branch, (&id, By::OnePhase), &[&before, &after], &[&first, &second]).await
}

pub(super) async fn they_nest<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    // Rolled back to the inner one: what is between the two stays. To the outer one: it goes.
    for (to, between_stays) in [(4, true), (3, false)] {
        let (id, [before, between, inner, after]) = (case.id(), [case.key(), case.key(), case.key(), case.key()]);
        let branch = begun(&case, &resource, &id).await?;
        write(&case, &branch, &before).await?;
        savepoint(&branch, 3).await?;
        write(&case, &branch, &between).await?;
        savepoint(&branch, 4).await?;
        write(&case, &branch, &inner).await?;
        rollback_to(&branch, to).await?;
        write(&case, &branch, &after).await?;
        let (kept, undone) = match between_stays {
            true => (vec![&*before, &*between, &*after], vec![&*inner]),
            false => (vec![&*before, &*after], vec![&*between, &*inner]),
        };
        commits(&case, &resource, branch, (&id, By::OnePhase), &kept, &undone).await?;
    }
    // The inner one first, and then the outer one.
    let (id, keys) = (case.id(), [case.key(), case.key(), case.key(), case.key()]);
    let branch = begun(&case, &resource, &id).await?;
    savepoint(&branch, 1).await?;
    write(&case, &branch, &keys[0]).await?;
    savepoint(&branch, 2).await?;
    write(&case, &branch, &keys[1]).await?;
    rollback_to(&branch, 2).await?;
    write(&case, &branch, &keys[2]).await?;
    rollback_to(&branch, 1).await?;
    write(&case, &branch, &keys[3]).await?;
    commits(&case, &resource, branch, (&id, By::OnePhase), &[&keys[3]], &[&keys[0], &keys[1], &keys[2]]).await
}

pub(super) async fn later_ones_are_forgotten<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, [kept, undone]) = (case.id(), [case.key(), case.key()]);
    let branch = begun(&case, &resource, &id).await?;
    savepoint(&branch, 1).await?;
    write(&case, &branch, &undone).await?;
    savepoint(&branch, 2).await?;
    rollback_to(&branch, 1).await?;
    // A later number is another savepoint, whatever was forgotten in between.
    write(&case, &branch, &kept).await?;
    savepoint(&branch, 3).await?;
    write(&case, &branch, &undone).await?;
    rollback_to(&branch, 3).await?;
    commits(&case, &resource, branch, (&id, By::OnePhase), &[&kept], &[&undone]).await?;

    let (id, key) = (case.id(), case.key());
    let branch = begun(&case, &resource, &id).await?;
    savepoint(&branch, 1).await?;
    write(&case, &branch, &key).await?;
    savepoint(&branch, 2).await?;
    rollback_to(&branch, 1).await?;
    let again = branch.rollback_to(SavepointId(2)).await;
    ensure!(again.is_err(), "rollback_to 2 was Ok, and 2 was made after 1, which was rolled back to");
    // That fails the transaction.
    must("rollback", branch.rollback().await)?;
    drop(branch);
    case.is_absent(&key).await?;
    case.writes_again(&resource, &key).await
}

pub(super) async fn one_that_is_never_used_changes_nothing<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for &by in ways(resource.capability()) {
        let (id, keys) = (case.id(), [case.key(), case.key(), case.key()]);
        let branch = begun(&case, &resource, &id).await?;
        write(&case, &branch, &keys[0]).await?;
        for (number, key) in [(1, &keys[1]), (2, &keys[2])] {
            savepoint(&branch, number).await?;
            write(&case, &branch, key).await?;
        }
        for key in &keys {
            case.is_absent(key).await?;
        }
        commits(&case, &resource, branch, (&id, by), &[&keys[0], &keys[1], &keys[2]], &[]).await?;
    }
    let (id, keys) = (case.id(), [case.key(), case.key()]);
    let branch = begun(&case, &resource, &id).await?;
    write(&case, &branch, &keys[0]).await?;
    savepoint(&branch, 1).await?;
    write(&case, &branch, &keys[1]).await?;
    must("rollback after a savepoint", branch.rollback().await)?;
    drop(branch);
    for key in &keys {
        case.is_absent(key).await?;
        case.writes_again(&resource, key).await?;
    }
    Ok(())
}

pub(super) async fn all_undone_is_nothing<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for &by in ways(resource.capability()) {
        let (id, undone) = (case.id(), case.key());
        let branch = begun(&case, &resource, &id).await?;
        savepoint(&branch, 1).await?;
        write(&case, &branch, &undone).await?;
        rollback_to(&branch, 1).await?;
        commits(&case, &resource, branch, (&id, by), &[], &[&undone]).await?;
        case.lists(&resource, []).await?;
    }
    Ok(())
}
