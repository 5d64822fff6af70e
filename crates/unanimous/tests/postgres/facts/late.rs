//! A PREPARE that is on its way when its client goes away lands later, behind everybody's back; and what fences it.

use std::time::Duration;

use unanimous::postgres::{Postgres, PostgresError};
use unanimous::{Cause, CommitError, Options};
use unanimous_testing::memory::{Fault, Journal, JournalLog};
use unanimous_testing::proxy::Act;

use super::{PATIENCE, Place, Raw, Two, none, state, why};
use crate::support::aborted;

/// Sends a slow PREPARE through a proxy that is cut; gives the session's process.
async fn leave_preparing(place: &Place, url: impl Fn(&str) -> String, gid: &str) -> i32 {
    let (proxy, through) = place.proxy();
    let raw = Raw::open(&url(&through)).await;
    assert_eq!(raw.says("begin; insert into slow values ('late')").await, none());
    let cut = proxy.on("prepare transaction", Act::Cut);
    assert_eq!(raw.says(&format!("prepare transaction '{gid}'")).await, state("closed"));
    assert!(cut.met());
    place.raw.until_waiting(raw.pid).await;
    raw.pid
}

/// The client is gone, nothing is listed and nothing can be rolled back; and then it is there.
#[tokio::test]
async fn a_prepare_lands_after_its_client_is_gone() {
    let place = Place::new().await;
    let gate = place.slow().await;
    let gid = place.database.name();
    leave_preparing(&place, str::to_owned, gid).await;
    assert_eq!(place.raw.prepared().await, [""; 0]);
    assert_eq!(place.raw.says(&format!("rollback prepared '{gid}'")).await, state("42704"));
    gate.open().await;
    place.raw.until("select gid from pg_prepared_xacts where database = current_database()", &[gid]).await;
    assert_eq!(place.raw.says(&format!("rollback prepared '{gid}'")).await, none());
}

/// `pg_terminate_backend` with a time to wait; a role may do it to its own sessions.
#[tokio::test]
async fn ending_its_session_fences_a_late_prepare() {
    let place = Place::new().await;
    let gate = place.slow().await;
    let role = format!("app_{}", place.database.name());
    place
        .raw
        .says(&format!("create role {role} login; grant all on all tables in schema public to {role}"))
        .await
        .unwrap();
    let gid = place.database.name();
    let pid = leave_preparing(&place, |url| url.replace("user=postgres", &format!("user={role}")), gid).await;
    let same = Raw::open(&place.database.url_as(&role)).await;
    assert_eq!(same.value(&format!("select pg_terminate_backend({pid}, 5000)")).await, "t");
    assert_eq!(place.raw.says(&format!("select pid from pg_stat_activity where pid = {pid}")).await, none());
    gate.open().await;
    // Who could have prepared it is gone.
    assert_eq!(place.raw.prepared().await, [""; 0]);
    assert_eq!(place.raw.says("select v from slow").await, none());
}

/// The vote's connection is cut while it runs: its session is ended before anything is concluded.
#[tokio::test]
async fn a_vote_that_is_cut_off_is_fenced() {
    let two = Two::new().await;
    let gate = two.b.slow().await;
    let (proxy, url) = two.b.proxy();
    let (a, b) = (two.a.store("a"), Postgres::from_url("b", &url).unwrap());
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    let branch = tx.join(&b).await.unwrap();
    branch.batch_execute("insert into slow values ('late')").await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    drop(branch);
    let cut = proxy.on("PREPARE TRANSACTION", Act::Cut);
    let error = aborted(tx.commit().await);
    assert!(cut.met() && matches!(why(&error), PostgresError::Postgres { .. }), "{error:?}");
    assert_eq!(two.b.raw.says(&format!("select pid from pg_stat_activity where pid = {pid}")).await, none());
    gate.open().await;
    assert_eq!(two.b.raw.says("select v from slow").await, none());
    two.is_empty().await;
}

/// No answer within the store's own limit is a no, and fenced in the same way: `statement_timeout` would not have ended it.
#[tokio::test]
async fn a_vote_without_an_answer_in_time_is_fenced() {
    let two = Two::new().await;
    let gate = two.b.slow().await;
    let a = two.a.store("a");
    let config: unanimous::postgres::tokio_postgres::Config = two.b.database.url().parse().unwrap();
    let b = Postgres::builder("b", config).vote_timeout(Duration::from_millis(300)).lock_timeout(PATIENCE).build();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    let branch = tx.join(&b).await.unwrap();
    branch.batch_execute("insert into slow values ('late')").await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    drop(branch);
    let error = aborted(tx.commit().await);
    assert!(matches!(why(&error), PostgresError::NoAnswer { .. }), "{error:?}");
    assert_eq!(two.b.raw.says(&format!("select pid from pg_stat_activity where pid = {pid}")).await, none());
    gate.open().await;
    assert_eq!(two.b.raw.says("select v from slow").await, none());
    two.is_empty().await;
}

/// Fencing needs a connection, and there is none: the branch is recovery's, and its decision is Abort, whenever the vote lands.
#[tokio::test]
async fn a_vote_that_lands_after_all_is_rolled_back_by_recovery() {
    let two = Two::new().await;
    let gate = two.b.slow().await;
    let (a, b) = two.stores();
    let owner = two.manager(&a, &b).await.owner();
    // An earlier run's vote, on its way when that run was killed.
    let gid = unanimous::BranchId { transaction: owner.transaction(1), decider: unanimous::DeciderId::Log, number: 1 };
    leave_preparing(&two.b, str::to_owned, &gid.to_string()).await;
    let manager = two.manager(&a, &b).await;
    assert_eq!(manager.recover().await, [], "nothing is to be seen of it");
    gate.open().await;
    two.b.raw.until("select count(*) from pg_prepared_xacts where database = current_database()", &["1"]).await;
    assert_eq!(manager.recover().await, []);
    two.is_empty().await;
}

/// The answer is lost although it is prepared: not a yes, and rolled back.
#[tokio::test]
async fn a_vote_whose_answer_is_lost_is_rolled_back() {
    let two = Two::new().await;
    let (proxy, url) = two.b.proxy();
    let (a, b) = (two.a.store("a"), Postgres::from_url("b", &url).unwrap());
    let manager = two.manager(&a, &b).await;
    for act in [Act::LoseAnswer, Act::LoseQuestion] {
        let tx = manager.begin();
        tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
        tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
        let rule = proxy.on("PREPARE TRANSACTION", act);
        aborted(tx.commit().await);
        assert!(rule.met());
        two.is_empty().await;
    }
}

/// Once commit has started nobody who goes away stops it: here in the middle of a vote, as when an HTTP client resets its connection.
#[tokio::test]
async fn a_commit_that_is_dropped_while_a_vote_runs_is_finished() {
    let two = Two::new().await;
    let gate = two.b.slow().await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    let branch = tx.join(&b).await.unwrap();
    branch.batch_execute("insert into slow values ('late')").await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    drop(branch);
    let commit = tx.commit();
    two.b.raw.until_waiting(pid).await;
    drop(commit);
    gate.open().await;
    two.b.raw.until("select v from slow", &["late"]).await;
    two.a.raw.until("select v from t", &["a"]).await;
    two.b.raw.until("select count(*) from pg_prepared_xacts where database = current_database()", &["0"]).await;
}

/// The time limit passes while a vote runs, which says yes after that: too late.
#[tokio::test]
async fn a_time_limit_that_passes_during_a_vote_aborts_all() {
    let two = Two::new().await;
    let gate = two.b.slow().await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let limit = Duration::from_secs(1);
    let tx = manager.begin_with(Options::default().time_limit(limit));
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into slow values ('late')").await.unwrap();
    let commit = tx.commit();
    tokio::time::sleep(limit).await;
    gate.open().await;
    let error = aborted(commit.await);
    assert!(matches!(error, CommitError::Aborted { source: Cause::TimeLimit, .. }), "{error:?}");
    assert_eq!(two.b.raw.says("select v from slow").await, none());
    two.is_empty().await;
}

/// The log refuses after all have prepared: nothing stays prepared.
#[tokio::test]
async fn a_decision_that_is_refused_leaves_nothing_prepared() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let log = JournalLog::new(two.log(), &Journal::default());
    let manager = unanimous::TransactionManager::builder(log.clone())
        .resource(a.clone())
        .resource(b.clone())
        .build()
        .await
        .unwrap();
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    log.fail(Fault::Refused);
    aborted(tx.commit().await);
    two.is_empty().await;
}
