//! Which of the server's time limits end what, and when (<https://www.postgresql.org/docs/current/runtime-config-client.html>).

use std::time::Duration;

use tokio::sync::Barrier;
use unanimous::TransactionManager;
use unanimous::postgres::{Postgres, PostgresOptions};
use unanimous_testing::memory::{Journal, JournalLog};

use super::{PATIENCE, Place, Two, none, sqlstate, state};
use crate::support::aborted;

/// Its deferred work sleeps four times the limit.
#[tokio::test]
async fn statement_timeout_does_not_end_what_prepare_does() {
    let place = Place::new().await;
    place
        .raw
        .says(
            "create function nap() returns trigger language plpgsql as 'begin perform pg_sleep(0.2); return null; end'; \
             create constraint trigger nap after insert on t deferrable initially deferred for each row execute function nap()",
        )
        .await
        .unwrap();
    let raw = place.raw().await;
    let gid = place.database.name();
    assert_eq!(raw.says("set statement_timeout = 50").await, none());
    assert_eq!(raw.says("select pg_sleep(0.2)").await, state("57014"), "a statement is ended");
    assert_eq!(raw.says("begin; insert into t values ('a')").await, none());
    assert_eq!(raw.says(&format!("prepare transaction '{gid}'")).await, none());
    assert_eq!(raw.prepared().await, [gid]);
    assert_eq!(raw.says(&format!("rollback prepared '{gid}'")).await, none());
}

#[tokio::test]
async fn idle_in_transaction_session_timeout_ends_a_session_before_prepare_and_not_after_25p03() {
    let place = Place::new().await;
    let gid = place.database.name();
    let (mut before, after) = (place.raw().await, place.raw().await);
    for raw in [&before, &after] {
        assert_eq!(raw.says("set idle_in_transaction_session_timeout = 50").await, none());
        assert_eq!(raw.says("begin; insert into t values ('a')").await, none());
        if raw.pid == after.pid {
            assert_eq!(raw.says(&format!("prepare transaction '{gid}'")).await, none());
        }
    }
    assert_eq!(before.ended().await, "25P03");
    // It has been idle for longer by now than the other was when it ended.
    assert_eq!(after.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!(place.rows().await, ["a"]);
}

#[tokio::test]
async fn idle_session_timeout_can_end_a_session_between_the_phases_57p05() {
    let place = Place::new().await;
    let gid = place.database.name();
    let mut raw = place.raw().await;
    assert_eq!(raw.says("set idle_session_timeout = 50").await, none());
    assert_eq!(raw.says(&format!("begin; insert into t values ('a'); prepare transaction '{gid}'")).await, none());
    assert_eq!(raw.ended().await, "57P05");
    assert_eq!(place.raw.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!(place.rows().await, ["a"]);
}

/// The branch is gone with its session, and the vote says so.
#[tokio::test]
async fn a_branch_that_was_idle_for_too_long_aborts_all() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    let branch = tx.join(&b).await.unwrap();
    let work = "insert into t values ('b'); set idle_in_transaction_session_timeout = 50";
    branch.batch_execute(work).await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    drop(branch);
    two.b.raw.until(&format!("select count(*) from pg_stat_activity where pid = {pid}"), &["0"]).await;
    aborted(tx.commit().await);
    two.is_empty().await;
    // The next one has another connection.
    let tx = manager.begin();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    tx.commit().await.unwrap();
}

/// It is finished on a connection of recovery's.
#[tokio::test]
async fn a_session_that_is_ended_between_the_phases_delays_nothing() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let log = JournalLog::new(two.log(), &Journal::default());
    let builder = TransactionManager::builder(log.clone()).resource(a.clone()).resource(b.clone());
    let manager = builder.build().await.unwrap();
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    let branch = tx.join(&b).await.unwrap();
    branch.batch_execute("insert into t values ('b'); set idle_session_timeout = 50").await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    drop(branch);
    let hold = log.hold();
    let commit = tx.commit();
    hold.reached().await;
    two.b.raw.until(&format!("select count(*) from pg_stat_activity where pid = {pid}"), &["0"]).await;
    hold.release();
    assert_eq!(commit.await.unwrap().pending, 0);
    assert_eq!(two.rows().await, [["a"], ["b"]]);
}

/// Each holds what the other wants, in another database: neither server sees a deadlock, and the limit that every join has ends it.
#[tokio::test]
async fn a_deadlock_over_two_databases_ends_by_lock_timeout() {
    let two = Two::new().await;
    for place in [&two.a, &two.b] {
        assert_eq!(place.raw.says("insert into t values ('0')").await, none());
    }
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let options = |timeout| PostgresOptions::new().lock_timeout(timeout);
    let (update, met) = ("update t set v = v || '.'", Barrier::new(2));
    let patient = async {
        let tx = manager.begin();
        tx.join_with(&a, options(PATIENCE)).await.unwrap().batch_execute(update).await.unwrap();
        met.wait().await;
        tx.join_with(&b, options(PATIENCE)).await.unwrap().batch_execute(update).await.unwrap();
        tx.commit().await.unwrap()
    };
    let hasty = async {
        let tx = manager.begin();
        tx.join_with(&b, options(PATIENCE)).await.unwrap().batch_execute(update).await.unwrap();
        met.wait().await;
        let short = options(Duration::from_millis(100));
        let refused = tx.join_with(&a, short).await.unwrap().batch_execute(update).await.unwrap_err();
        assert!(tx.is_retryable(&refused));
        tx.abort().await;
        refused
    };
    let (_, refused) = tokio::join!(patient, hasty);
    assert_eq!(super::code(&refused), "55P03");
    assert_eq!(two.rows().await, [["0."], ["0."]]);
}

/// There is always such a limit: the store's, where the join does not say.
#[tokio::test]
async fn a_join_has_the_stores_lock_timeout() {
    let place = Place::new().await;
    let config: unanimous::postgres::tokio_postgres::Config = place.database.url().parse().unwrap();
    let holder = place.raw().await;
    assert_eq!(holder.says("begin; lock t in access exclusive mode").await, none());
    let two = Two { a: place, b: Place::new().await, log: super::disk() };
    let a = Postgres::builder("a", config).lock_timeout(Duration::from_millis(50)).build();
    let manager = two.manager(&a, &two.b.store("b")).await;
    let tx = manager.begin();
    let error = tx.join(&a).await.unwrap().batch_execute("select * from t").await.unwrap_err();
    assert_eq!(super::code(&error), "55P03");
    let error = aborted(tx.commit().await);
    assert_eq!(sqlstate(&error), "none", "the work has failed");
    // The default is five seconds.
    let tx = manager.begin();
    let branch = tx.join(&two.b.store("b")).await.unwrap();
    assert_eq!(super::said(branch.simple_query("show lock_timeout").await), Ok(vec!["5s".into()]));
    drop(branch);
    tx.abort().await;
}
