//! What tokio-postgres and deadpool-postgres do with a transaction that nobody ends, or that ends in another way than they think.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use unanimous::postgres::deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use unanimous::postgres::tokio_postgres::NoTls;
use unanimous::postgres::{Postgres, PostgresError, PostgresOptions};
use unanimous::{JoinError, TransactionManager};

use super::{Place, Two, none, said, sqlstate, state, why};
use crate::support::aborted;

fn pool(place: &Place, recycling_method: RecyclingMethod) -> Pool {
    let config = ManagerConfig { recycling_method };
    let manager = Manager::from_config(place.database.url().parse().unwrap(), NoTls, config);
    Pool::builder(manager).max_size(1).build().unwrap()
}

/// The driver hides whether a connection is inside a transaction; a savepoint tells.
#[tokio::test]
async fn a_savepoint_outside_of_a_transaction_fails_with_25p01() {
    let place = Place::new().await;
    let raw = place.raw().await;
    assert_eq!(raw.says("savepoint s").await, state("25P01"));
    assert_eq!(raw.says("begin").await, none());
    assert_eq!(raw.says("savepoint s").await, none());
    assert_eq!(raw.says("select 1/0").await, state("22012"));
    assert_eq!(raw.says("savepoint s").await, state("25P02"));
}

/// COMMIT included.
#[tokio::test]
async fn a_query_that_was_polled_once_and_dropped_still_runs() {
    let place = Place::new().await;
    let raw = place.raw().await;
    assert_eq!(raw.says("begin; insert into t values ('a')").await, none());
    {
        let mut commit = pin!(raw.client.batch_execute("commit"));
        assert!(commit.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    // What is asked next is answered behind it.
    assert_eq!(raw.says("savepoint s").await, state("25P01"));
    assert_eq!(place.rows().await, ["a"]);
}

#[tokio::test]
async fn a_query_that_was_never_polled_does_not_run() {
    let place = Place::new().await;
    let raw = place.raw().await;
    assert_eq!(raw.says("begin; insert into t values ('a')").await, none());
    drop(raw.client.batch_execute("commit"));
    assert_eq!(raw.says("savepoint s").await, none(), "it is inside its transaction");
    assert_eq!(place.rows().await, [""; 0]);
}

/// `Transaction::commit` sends COMMIT outside of any transaction, and `drop` a ROLLBACK; both say Ok.
#[tokio::test]
async fn the_drivers_transaction_says_ok_after_a_prepare() {
    let place = Place::new().await;
    let gid = place.database.name();
    let mut raw = place.raw().await;
    for end in ["commit", "rollback"] {
        let transaction = raw.client.transaction().await.unwrap();
        transaction.batch_execute("insert into t values ('a')").await.unwrap();
        transaction.batch_execute(&format!("prepare transaction '{gid}'")).await.unwrap();
        if end == "commit" {
            transaction.commit().await.unwrap()
        } else {
            transaction.rollback().await.unwrap()
        }
        assert_eq!(raw.warnings(), ["25P01"], "{end}");
        assert_eq!((raw.prepared().await, place.rows().await), (vec![gid.to_owned()], vec![]), "{end}");
        assert_eq!(raw.says(&format!("rollback prepared '{gid}'")).await, none());
    }
}

#[tokio::test]
async fn an_open_transaction_survives_deadpools_recycling() {
    let place = Place::new().await;
    for method in [RecyclingMethod::Fast, RecyclingMethod::Verified, RecyclingMethod::Clean] {
        let pool = pool(&place, method.clone());
        pool.get().await.unwrap().batch_execute("begin; insert into t values ('a')").await.unwrap();
        let next = pool.get().await.unwrap();
        // Clean has even been run inside of it.
        assert_eq!(said(next.simple_query("savepoint s").await), none(), "{method:?}");
        drop(Object::take(next));
    }
    assert_eq!(place.rows().await, [""; 0]);
}

#[tokio::test]
async fn a_sessions_state_is_cleaned_by_deadpools_clean_only() {
    let place = Place::new().await;
    for method in [RecyclingMethod::Fast, RecyclingMethod::Verified, RecyclingMethod::Clean] {
        let pool = pool(&place, method.clone());
        let leave = "set search_path = nowhere; select pg_advisory_lock(7); create temporary table x (v text)";
        pool.get().await.unwrap().batch_execute(leave).await.unwrap();
        let next = pool.get().await.unwrap();
        let look = "select current_setting('search_path') = 'nowhere', \
            (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), \
            (select count(*) from pg_class where relname = 'x')";
        let found = said(next.simple_query(look).await).unwrap();
        let expected = if matches!(method, RecyclingMethod::Clean) { "f|0|0" } else { "t|1|1" };
        assert_eq!(found, [expected], "{method:?}");
        drop(Object::take(next));
    }
}

/// A connection that may be inside a transaction does not go back to the application's pool.
#[tokio::test]
async fn a_connection_that_may_be_inside_a_transaction_leaves_its_pool() {
    let place = Place::new().await;
    let pool = pool(&place, RecyclingMethod::Fast);
    let two = Two { a: Place::new().await, b: Place::new().await, log: super::disk() };
    let a = Postgres::new("a", pool.clone());
    let manager = TransactionManager::builder(two.log()).resource(a.clone()).build().await.unwrap();
    let pid =
        async || pool.get().await.unwrap().query_one("select pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    let first = pid().await;

    // It ended in order: given back.
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(pid().await, first);

    // Its commit was never answered: the trigger holds it, and the store's limit passes.
    let gate = place.slow().await;
    let config = Postgres::builder("a", pool.clone()).vote_timeout(std::time::Duration::from_millis(200)).build();
    let manager = TransactionManager::builder(two.log()).resource(config.clone()).build().await.unwrap();
    let tx = manager.begin();
    tx.join(&config).await.unwrap().batch_execute("insert into slow values ('late')").await.unwrap();
    crate::support::unknown(tx.commit().await);
    assert_ne!(pid().await, first, "another connection");
    gate.open().await;

    // Somebody left a transaction open: refused, and taken out.
    pool.get().await.unwrap().batch_execute("begin").await.unwrap();
    let left = pid().await;
    let tx = manager.begin();
    let error = tx.join(&config).await.unwrap_err();
    assert!(
        matches!(error, JoinError::Store { .. }) && matches!(why(&error), PostgresError::InTransaction),
        "{error:?}"
    );
    assert_ne!(pid().await, left);
    assert_eq!(said(pool.get().await.unwrap().simple_query("savepoint s").await), state("25P01"));
}

/// The application's own client is probed too.
#[tokio::test]
async fn a_client_that_is_inside_a_transaction_is_refused() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let raw = two.a.raw().await;
    let client = Arc::new(raw.client);
    for left in ["begin", "begin; select 1/0"] {
        let _ = client.batch_execute(left).await;
        let tx = manager.begin();
        let error = tx.join_with(&a, PostgresOptions::new().client(client.clone())).await.unwrap_err();
        assert!(matches!(why(&error), PostgresError::InTransaction), "{error:?}");
        // It is as it was.
        let probe = said(client.simple_query("savepoint s").await);
        assert_eq!(probe, if left == "begin" { none() } else { state("25P02") });
        client.batch_execute("rollback").await.unwrap();
    }
}

/// What was sent behind a BEGIN that failed runs by itself; our sessions read only by default, so that it can't write.
#[tokio::test]
async fn a_statement_behind_a_begin_that_failed_cannot_write() {
    use unanimous_testing::proxy::Act;
    let two = Two::new().await;
    let (proxy, url) = two.a.proxy();
    let (a, b) = (Postgres::from_url("a", &url).unwrap(), two.b.store("b"));
    let manager = two.manager(&a, &b).await;
    // As a cancel request that comes late would do it.
    let rule = proxy.on("BEGIN READ WRITE", Act::Replace("BEGIN READ WRONG".into()));
    let tx = manager.begin();
    let branch = tx.join(&a).await.unwrap();
    let refused = branch.execute("insert into t values ('a')", &[]).await.unwrap_err();
    assert_eq!((super::code(&refused).as_str(), rule.met()), ("25006", true));
    drop(branch);
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    let error = aborted(tx.commit().await);
    assert_eq!(sqlstate(&error), "42601", "the vote has BEGIN's own error");
    two.is_empty().await;
    // The connection was not given back.
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.commit().await.unwrap();
}

/// A branch whose guard is polled once and dropped has still done it, and knows: nothing is lost, nothing runs outside.
#[tokio::test]
async fn work_that_was_polled_once_and_dropped_is_part_of_the_branch() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    for (end, expected) in [("abort", vec![]), ("commit", vec!["a"])] {
        let tx = manager.begin();
        let branch = tx.join(&a).await.unwrap();
        {
            let mut insert = pin!(branch.batch_execute("insert into t values ('a')"));
            let polled = insert.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Pending));
        }
        drop(branch);
        if end == "abort" {
            tx.abort().await
        } else {
            assert_eq!(tx.commit().await.unwrap().pending, 0)
        }
        assert_eq!(two.a.rows().await, expected, "{end}");
    }
}
