//! A vote can lie (PostgreSQL, <https://www.postgresql.org/docs/current/sql-prepare-transaction.html>): its Ok says little, and the
//! guard that is in the same message says the rest.

use unanimous::postgres::PostgresError;

use super::{Place, Two, none, psql, sqlstate, state, why};
use crate::support::aborted;

/// The guard, as the adapter sends it.
const MARK: &str = "select 1/(coalesce(current_setting('unanimous.branch', true), '') = 'x')::int";

/// The tag says ROLLBACK, which the driver drops: Ok, and nothing is prepared.
#[tokio::test]
async fn a_failed_transactions_prepare_is_answered_rollback_and_no_error() {
    let place = Place::new().await;
    let raw = place.raw().await;
    assert_eq!(raw.says("begin").await, none());
    assert_eq!(raw.says("select 1/0").await, state("22012"));
    assert_eq!(raw.says("prepare transaction 'x'").await, none());
    assert_eq!((raw.prepared().await, raw.warnings()), Default::default());
    let tags = psql(&place.database.url(), "begin; select 1/0; prepare transaction 'x'");
    assert_eq!(tags, "BEGIN\nROLLBACK\nERROR:  division by zero\n");
}

#[tokio::test]
async fn a_failed_transactions_commit_is_answered_rollback_and_no_error() {
    let place = Place::new().await;
    let raw = place.raw().await;
    assert_eq!(raw.says("begin; insert into t values ('a')").await, none());
    assert_eq!(raw.says("select 1/0").await, state("22012"));
    assert_eq!(raw.says("commit").await, none());
    assert_eq!((place.rows().await, raw.warnings()), Default::default());
    let tags = psql(&place.database.url(), "begin; select 1/0; commit");
    assert_eq!(tags, "BEGIN\nROLLBACK\nERROR:  division by zero\n");
}

#[tokio::test]
async fn a_prepare_outside_of_a_transaction_is_answered_and_prepares_nothing() {
    let place = Place::new().await;
    let raw = place.raw().await;
    assert_eq!(raw.says("prepare transaction 'x'").await, none());
    assert_eq!(raw.warnings(), ["25P01"]);
    assert_eq!(raw.prepared().await, [""; 0]);
}

/// The message is an implicit transaction, whatever it was meant to be a part of.
#[tokio::test]
async fn a_prepare_in_a_message_of_several_statements_prepares_them_without_a_begin() {
    let place = Place::new().await;
    let raw = place.raw().await;
    let gid = place.database.name();
    assert_eq!(raw.says(&format!("insert into t values ('a'); prepare transaction '{gid}'")).await, none());
    assert_eq!(raw.warnings(), ["25P01"]);
    assert_eq!(raw.prepared().await, [gid]);
    assert_eq!(raw.says(&format!("rollback prepared '{gid}'")).await, none());
}

#[tokio::test]
async fn the_guard_fails_in_a_failed_transaction_with_25p02() {
    let place = Place::new().await;
    let raw = place.raw().await;
    assert_eq!(raw.says("begin; set local unanimous.branch = 'x'").await, none());
    assert_eq!(raw.says("select 1/0").await, state("22012"));
    assert_eq!(raw.says(&format!("{MARK}; prepare transaction 'x'")).await, state("25P02"));
    assert_eq!(place.raw.prepared().await, [""; 0]);
}

#[tokio::test]
async fn the_guard_fails_where_the_work_ended_its_transaction_with_22012() {
    let place = Place::new().await;
    for ending in
        ["commit", "rollback", "commit and chain", "rollback; begin", "commit; begin; insert into t values ('b')"]
    {
        let raw = place.raw().await;
        assert_eq!(raw.says("begin; set local unanimous.branch = 'x'").await, none());
        assert_eq!(raw.says(ending).await, none());
        assert_eq!(raw.says(&format!("{MARK}; prepare transaction 'x'")).await, state("22012"), "{ending}");
        assert_eq!(place.raw.prepared().await, [""; 0], "{ending}");
    }
}

#[tokio::test]
async fn the_guard_lets_pass_what_is_right() {
    let place = Place::new().await;
    let gid = place.database.name();
    let raw = place.raw().await;
    assert_eq!(raw.says("begin; set local unanimous.branch = 'x'; insert into t values ('a')").await, none());
    assert_eq!(raw.says(&format!("{MARK}; prepare transaction '{gid}'")).await, Ok(vec!["1".into()]));
    assert_eq!((raw.prepared().await, raw.warnings()), (vec![gid.to_owned()], vec![]));
    assert_eq!(raw.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!(place.rows().await, ["a"]);
}

/// The same guard is in front of a commit in one phase.
#[tokio::test]
async fn work_that_failed_alone_is_not_reported_as_committed() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    let branch = tx.join(&a).await.unwrap();
    branch.batch_execute("insert into t values ('a')").await.unwrap();
    branch.batch_execute("select 1/0").await.unwrap_err();
    drop(branch);
    let error = aborted(tx.commit().await);
    assert!(matches!(why(&error), PostgresError::WorkFailed), "{error:?}");
    two.is_empty().await;
}

#[tokio::test]
async fn work_that_ended_its_own_transaction_is_not_reported_as_committed() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    for ending in ["rollback", "rollback; begin read write; insert into t values ('b')", "rollback and chain"] {
        let tx = manager.begin();
        let branch = tx.join(&a).await.unwrap();
        branch.batch_execute("insert into t values ('a')").await.unwrap();
        branch.batch_execute(ending).await.unwrap();
        drop(branch);
        let error = aborted(tx.commit().await);
        assert!(matches!(why(&error), PostgresError::WorkEnded), "{ending}: {error:?}");
    }
    two.is_empty().await;
}

/// Flush sees most of it; a failure between flush and vote is the guard's alone to see. Here nothing but the guard stands between.
#[tokio::test]
async fn a_vote_whose_transaction_failed_after_the_flush_is_a_no() {
    use unanimous::{Branch, BranchContext, BranchId, DeciderId, DecisionLog, FailureKind, ResourceManager};
    let place = Place::new().await;
    let store = place.store("a");
    let transaction = unanimous::log::MemoryLog::new().owner().transaction(1);
    let id = BranchId { transaction, decider: DeciderId::Log, number: 0 };
    for ending in ["select 1/0", "rollback", "commit", "commit and chain"] {
        let branch = store.begin(&BranchContext::new(transaction), Default::default()).await.unwrap();
        branch.batch_execute("insert into t values ('a')").await.unwrap();
        branch.flush().await.unwrap();
        let _ = branch.batch_execute(ending).await;
        for one_phase in [false, true] {
            let vote = if one_phase { branch.commit_one_phase(&id).await } else { branch.prepare(&id).await };
            let error = vote.unwrap_err();
            assert_eq!(error.kind(), FailureKind::Refused, "{ending}");
            assert!(matches!(why(&error), PostgresError::WorkFailed | PostgresError::WorkEnded), "{ending}: {error:?}");
        }
        branch.rollback().await.unwrap();
        assert_eq!(place.raw.prepared().await, [""; 0], "{ending}");
    }
}

/// A deferred constraint that fails, and a serialization failure, come as errors of PREPARE: honest.
#[tokio::test]
async fn what_fails_in_the_vote_itself_is_an_error_of_it() {
    let two = Two::new().await;
    two.b.failing("23514").await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into failing values ('b')").await.unwrap();
    let error = aborted(tx.commit().await);
    assert_eq!(sqlstate(&error), "23514");
    assert!(!error.is_retryable());
    two.is_empty().await;
}

/// The vote is one message: as many questions and answers as a bare PREPARE TRANSACTION has.
#[tokio::test]
async fn the_guard_costs_no_round_trip() {
    use unanimous_testing::proxy::Act;
    let place = Place::new().await;
    let (proxy, url) = place.proxy();
    // One piece from the client has both; of two messages that are waited for one by one, none has.
    let rule = proxy.on("'); PREPARE TRANSACTION '", Act::Replace("'); PREPARE TRANSACTION '".into()));
    let two = Two { a: place, b: Place::new().await, log: super::disk() };
    let (a, b) = (unanimous::postgres::Postgres::from_url("a", &url).unwrap(), two.b.store("b"));
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    tx.commit().await.unwrap();
    assert!(rule.met());
    assert_eq!(two.rows().await, [["a"], ["b"]]);
}
