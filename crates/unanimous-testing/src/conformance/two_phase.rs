//! The duties of a store whose prepared branches survive.
//!
//! Must not know the manager.

use std::time::Duration;

use unanimous::{
    Branch, BranchContext, BranchId, DeciderId, Incarnation, LogId, Owner, ResourceManager, StoreId, TransactionId,
};

use super::Subject;
use super::case::{Case, Checked, PATIENCE, Stage, ensure, eventually, must};

/// The shortest and the longest id, one that a store decides, and several that begin alike.
fn ids<S: Subject>(case: &Case<S>) -> Vec<BranchId> {
    let short = case.id();
    let at = |sequence| TransactionId { sequence, ..short.transaction };
    let longest_owner = Owner {
        log: LogId(u128::MAX - short.transaction.log.0 / 2),
        incarnation: Incarnation::new(u32::MAX, u64::MAX),
    };
    let longest_store: StoreId = "z".repeat(StoreId::MAX_LENGTH).parse().expect("40 letters are an identity");
    vec![
        short.clone(),
        BranchId { number: 1, ..short.clone() },
        BranchId { number: 10, ..short.clone() },
        BranchId { transaction: at(1_000), ..short.clone() },
        BranchId {
            transaction: at(10_000),
            decider: DeciderId::Store("1".parse().expect("a digit is an identity")),
            number: 1,
        },
        BranchId {
            transaction: longest_owner.transaction(MAX_SEQUENCE),
            decider: DeciderId::Store(longest_store),
            number: u16::MAX,
        },
    ]
}

/// 15 digits: the longest sequence number.
const MAX_SEQUENCE: u64 = 999_999_999_999_999;

pub(super) async fn a_prepared_branch_is_listed_by_its_id<S: Subject>(case: Case<S>) -> Checked {
    for id in ids(&case) {
        let resource = case.open().await?;
        let key = case.key();
        let branch = case.branch(&resource, Stage::Prepared, &id, &key).await?;
        case.lists(&resource, [&id]).await?;
        let beside = case.open().await?;
        case.lists(&beside, [&id]).await?;
        drop((branch, resource, beside));
        let restarted = case.open().await?;
        case.lists(&restarted, [&id]).await?;
        case.is_absent(&key).await?;
        must("rollback by id", restarted.rollback(&id).await)?;
        case.lists(&restarted, []).await?;
    }
    Ok(())
}

pub(super) async fn what_has_not_prepared_is_not_listed<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for stage in [Stage::Begun, Stage::Written, Stage::Flushed] {
        let (id, key) = (case.id(), case.key());
        let branch = case.branch(&resource, stage, &id, &key).await?;
        case.lists(&resource, []).await?;
        case.lists(&case.open().await?, []).await?;
        // Listing must not have taken it for something that a dead process left.
        must("commit_one_phase", branch.commit_one_phase(&id).await)?;
        if stage != Stage::Begun {
            case.is_there(&key).await?;
        }
    }
    Ok(())
}

pub(super) async fn recovery_commits_by_the_id_alone<S: Subject>(case: Case<S>) -> Checked {
    let (id, key) = (case.id(), case.key());
    drop(case.branch(&case.open().await?, Stage::Prepared, &id, &key).await?);
    let restarted = case.open().await?;
    for time in ["once", "twice"] {
        must(&format!("commit by id {time}"), restarted.commit(&id).await)?;
        case.is_there(&key).await?;
        case.lists(&restarted, []).await?;
    }
    case.lists(&case.open().await?, []).await?;
    case.is_there(&key).await
}

pub(super) async fn recovery_rolls_back_by_the_id_alone<S: Subject>(case: Case<S>) -> Checked {
    let (id, key) = (case.id(), case.key());
    drop(case.branch(&case.open().await?, Stage::Prepared, &id, &key).await?);
    let restarted = case.open().await?;
    for time in ["once", "twice"] {
        must(&format!("rollback by id {time}"), restarted.rollback(&id).await)?;
        case.is_absent(&key).await?;
        case.lists(&restarted, []).await?;
    }
    case.writes_again(&restarted, &key).await
}

pub(super) async fn branch_and_recovery_may_both_finish<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    for commit in [true, false] {
        for branch_first in [true, false] {
            let (id, key) = (case.id(), case.key());
            let branch = case.branch(&resource, Stage::Prepared, &id, &key).await?;
            let recovery = case.open().await?;
            for by_branch in [branch_first, !branch_first] {
                let (who, done) = match (by_branch, commit) {
                    (true, true) => ("the branch's commit", branch.commit().await),
                    (true, false) => ("the branch's rollback", branch.rollback().await),
                    (false, true) => ("the resource's commit", recovery.commit(&id).await),
                    (false, false) => ("the resource's rollback", recovery.rollback(&id).await),
                };
                must(
                    &format!("{who}, {}", if by_branch == branch_first { "first," } else { "after the other," }),
                    done,
                )?;
                ensure!(case.looks(&key).await? == commit, "after {who}, that {key} is there is {}", !commit);
                case.lists(&recovery, []).await?;
            }
        }
    }
    Ok(())
}

pub(super) async fn nothing_follows_from_an_id_that_is_not_prepared<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (never, prepared, other) = (case.id(), case.id(), case.key());
    let branch = case.branch(&resource, Stage::Prepared, &prepared, &other).await?;
    // What they answer is the adapter's choice (rule 8); what they do is not.
    let _ = resource.commit(&never).await;
    let _ = resource.rollback(&never).await;
    case.lists(&resource, [&prepared]).await?;
    case.is_absent(&other).await?;
    must("commit", branch.commit().await)?;
    let _ = resource.rollback(&prepared).await;
    case.is_there(&other).await?;
    case.lists(&resource, []).await?;

    let (id, key) = (case.id(), case.key());
    let branch = case.branch(&resource, Stage::Prepared, &id, &key).await?;
    must("rollback", branch.rollback().await)?;
    let _ = resource.commit(&id).await;
    case.is_absent(&key).await?;
    case.lists(&resource, []).await
}

pub(super) async fn transactions_are_apart<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let mut prepared = Vec::new();
    for id in ids(&case) {
        let key = case.key();
        case.branch(&resource, Stage::Prepared, &id, &key).await?;
        prepared.push((id, key));
    }
    let restarted = case.open().await?;
    while !prepared.is_empty() {
        case.lists(&restarted, prepared.iter().map(|(id, _)| id)).await?;
        let (id, key) = prepared.remove(0);
        let commit = prepared.len() % 2 == 0;
        match commit {
            true => must("commit by id", restarted.commit(&id).await)?,
            false => must("rollback by id", restarted.rollback(&id).await)?,
        }
        ensure!(case.looks(&key).await? == commit, "after {id} was finished, that {key} is there is {}", !commit);
        for (other, key) in &prepared {
            ensure!(!case.looks(key).await?, "finishing {id} has committed {key} of {other}");
        }
    }
    case.lists(&restarted, []).await
}

/// How long something is tried that may have to wait for what this check holds.
const WHILE_HELD: Duration = Duration::from_secs(1);

pub(super) async fn a_promise_holds<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let (id, key) = (case.id(), case.key());
    let branch = case.branch(&resource, Stage::Prepared, &id, &key).await?;
    // Refused, waiting for the first, or committed: the other's affair.
    let _ = tokio::time::timeout(WHILE_HELD, async {
        let other = case.id();
        let branch = resource.begin(&BranchContext::new(other.transaction), Default::default()).await.ok()?;
        case.subject.write(&branch, &key).await.ok()?;
        branch.flush().await.ok()?;
        branch.commit_one_phase(&other).await.ok()
    })
    .await;
    let mut error = None;
    eventually!(format!("commit of what has prepared to be Ok; it failed with {error:?}"), {
        match branch.commit().await {
            Ok(()) => Some(()),
            Err(failed) => {
                error = Some(failed);
                None
            }
        }
    });
    case.is_there(&key).await?;
    case.lists(&resource, []).await
}

/// More than any pool of connections that was made for a test.
const MOST_BRANCHES: usize = 64;

pub(super) async fn recovery_does_not_wait_for_branches<S: Subject>(case: Case<S>) -> Checked {
    let resource = case.open().await?;
    let prepared = [(case.id(), case.key()), (case.id(), case.key())];
    for (id, key) in &prepared {
        drop(case.branch(&resource, Stage::Prepared, id, key).await?);
    }
    let mut open = Vec::new();
    while open.len() < MOST_BRANCHES {
        let context = BranchContext::new(case.transaction());
        match tokio::time::timeout(WHILE_HELD, resource.begin(&context, Default::default())).await {
            Ok(Ok(branch)) => open.push(branch),
            // No more are to be had: what this check needs.
            Ok(Err(_)) | Err(_) => break,
        }
    }
    let finished = tokio::time::timeout(PATIENCE, async {
        must("identity", resource.identity().await)?;
        case.lists(&resource, prepared.iter().map(|(id, _)| id)).await?;
        must("commit by id", resource.commit(&prepared[0].0).await)?;
        must("rollback by id", resource.rollback(&prepared[1].0).await)?;
        case.lists(&resource, []).await
    });
    match finished.await {
        Ok(finished) => finished?,
        Err(elapsed) => must(&format!("recovery beside {} branches that are open", open.len()), Err(elapsed))?,
    }
    case.is_there(&prepared[0].1).await?;
    case.is_absent(&prepared[1].1).await
}
