//! The duties of a branch of any kind, and of those that can prepare.
//!
//! Must not know the manager.

use unanimous::{Branch, BranchContext, FailureKind, ResourceManager, Work};

use super::Subject;
use super::case::{Case, Checked, Stage, Stop, ensure, must};

pub(super) async fn the_store_keeps_its_identity<S: Subject>(case: Case<S>) -> Checked {
    let first = case.open().await?;
    let identity = must("identity", first.identity().await)?;
    ensure!(!first.name().is_empty() && first.name().len() <= 255, "the name {:?} is not 1 to 255 bytes", first.name());
    let name = first.name().to_owned();
    case.writes_again(&first, &case.key()).await?;
    for (when, resource) in [
        ("beside the first handle", case.open().await?),
        ("after a restart", {
            drop(first);
            case.open().await?
        }),
    ] {
        let again = must("identity", resource.identity().await)?;
        ensure!(again == identity, "{when} the identity is {again}, and was {identity}");
        ensure!(resource.name() == name, "{when} the name is {:?}, and was {name:?}", resource.name());
    }
    let elsewhere = Case::new(case.subject.clone()).await?;
    let other = must("identity", elsewhere.open().await?.identity().await)?;
    ensure!(other != identity, "another store has the same identity, {identity}");
    Ok(())
}

pub(super) async fn a_branch_can_what_its_resource_says<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let branch = case.begin(&resource, &case.id()).await?;
    let (of_resource, of_branch) = (resource.capability(), branch.capability());
    ensure!(of_resource == of_branch, "the resource says {of_resource:?}, and its branch {of_branch:?}");
    must("rollback", branch.rollback().await)
}

pub(super) async fn what_only_read_says_so<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for read in [false, true] {
        let id = case.id();
        let branch = case.begin(&resource, &id).await?;
        if read {
            must("Subject::read", case.subject.read(&branch).await)?;
        }
        let work = must("flush", branch.flush().await)?;
        ensure!(
            work == Work::ReadOnly,
            "flush says {work:?}, and the branch {}",
            if read { "read" } else { "did nothing" }
        );
        must("commit_one_phase of a branch that wrote nothing", branch.commit_one_phase(&id).await)?;
        case.lists(&resource, []).await?;
    }
    Ok(())
}

pub(super) async fn what_wrote_says_so_and_is_not_seen<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let branch = case.branch(&resource, Stage::Written, &id, &key).await?;
    case.is_absent(&key).await?;
    let work = must("flush", branch.flush().await)?;
    ensure!(work == Work::Wrote, "flush says {work:?}");
    case.is_absent(&key).await?;
    case.lists(&resource, []).await?;
    must("rollback", branch.rollback().await)?;
    case.is_absent(&key).await
}

pub(super) async fn rollback_leaves_nothing<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for stage in [Stage::Begun, Stage::Written, Stage::Flushed] {
        let (id, key) = (case.id(), case.key());
        let branch = case.branch(&resource, stage, &id, &key).await?;
        for time in ["once", "twice"] {
            must(&format!("rollback {time}, {stage:?},"), branch.rollback().await)?;
            case.is_absent(&key).await?;
            case.lists(&resource, []).await?;
        }
        case.writes_again(&resource, &key).await?;
        drop(branch);
        case.is_there(&key).await?;
    }
    Ok(())
}

/// By which call a branch ends.
#[derive(Clone, Copy, Debug)]
enum Call {
    Rollback,
    OnePhase,
    Prepared { commit: bool },
}

pub(super) async fn nothing_works_after_the_end<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let mut ends = vec![Call::Rollback, Call::OnePhase];
    if resource.capability().can_prepare() {
        ends.extend([Call::Prepared { commit: true }, Call::Prepared { commit: false }]);
    }
    for end in ends {
        let (id, key, late) = (case.id(), case.key(), case.key());
        let branch = case.branch(&resource, Stage::Flushed, &id, &key).await?;
        match end {
            Call::Rollback => must("rollback", branch.rollback().await)?,
            Call::OnePhase => must("commit_one_phase", branch.commit_one_phase(&id).await)?,
            Call::Prepared { commit } => {
                must("prepare", branch.prepare(&id).await)?;
                match commit {
                    true => must("commit", branch.commit().await)?,
                    false => must("rollback", branch.rollback().await)?,
                }
            }
        }
        let worked = case.subject.write(&branch, &late).await;
        case.is_absent(&late).await?;
        ensure!(worked.is_err(), "after {end:?}, work through the branch was Ok");
        drop(branch);
        case.is_absent(&late).await?;
        case.writes_again(&resource, &late).await?;
    }
    Ok(())
}

pub(super) async fn a_dropped_branch_leaves_nothing<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for stage in [Stage::Begun, Stage::Written, Stage::Flushed] {
        let (id, key) = (case.id(), case.key());
        drop(case.branch(&resource, stage, &id, &key).await?);
        case.is_absent(&key).await?;
        case.lists(&resource, []).await?;
        case.writes_again(&resource, &key).await?;
    }
    Ok(())
}

pub(super) async fn a_branch_alone_commits_in_one_phase<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let branch = case.branch(&resource, Stage::Flushed, &id, &key).await?;
    must("commit_one_phase", branch.commit_one_phase(&id).await)?;
    case.is_there(&key).await?;
    case.lists(&resource, []).await?;
    drop((branch, resource));
    case.lists(&case.open().await?, []).await?;
    case.is_there(&key).await
}

pub(super) async fn a_no_leaves_nothing<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let mut votes = vec![false];
    if resource.capability().can_prepare() {
        votes.push(true);
    }
    for vote in votes {
        let (id, key) = (case.id(), case.key());
        let branch = must("begin", resource.begin(&BranchContext::new(id.transaction), Default::default()).await)?;
        if !must("Subject::write_in_vain", case.subject.write_in_vain(&case.place, &branch, &key).await)? {
            must("rollback", branch.rollback().await)?;
            return Err(Stop::LeftOut("Subject::write_in_vain knows no work that can't be committed"));
        }
        // A branch may say no as soon as it is flushed.
        let answer = match branch.flush().await {
            Ok(_) if vote => branch.prepare(&id).await,
            Ok(_) => branch.commit_one_phase(&id).await,
            Err(error) => Err(error),
        };
        let call = if vote { "prepare" } else { "commit_one_phase" };
        let Err(error) = answer else {
            return Err(Stop::Broken(format!("{call} of what can't be committed was Ok: the vote lies")));
        };
        ensure!(
            error.kind() != FailureKind::Lost,
            "{call} of what can't be committed is called lost, and is a definite no"
        );
        case.lists(&resource, []).await?;
        must("rollback after a no", branch.rollback().await)?;
        case.lists(&resource, []).await?;
        drop(branch);
        case.writes_again(&resource, &case.key()).await?;
    }
    Ok(())
}

pub(super) async fn a_prepared_branch_commits<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let branch = case.branch(&resource, Stage::Prepared, &id, &key).await?;
    case.is_absent(&key).await?;
    for time in ["once", "twice"] {
        must(&format!("commit {time}"), branch.commit().await)?;
        case.is_there(&key).await?;
        case.lists(&resource, []).await?;
    }
    drop((branch, resource));
    case.lists(&case.open().await?, []).await?;
    case.is_there(&key).await
}

pub(super) async fn a_prepared_branch_rolls_back<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let branch = case.branch(&resource, Stage::Prepared, &id, &key).await?;
    for time in ["once", "twice"] {
        must(&format!("rollback {time}"), branch.rollback().await)?;
        case.is_absent(&key).await?;
        case.lists(&resource, []).await?;
    }
    case.writes_again(&resource, &key).await
}
