//! The cases of psycopg2transaction's own test module, by their names there.

use std::sync::Arc;

use unanimous::postgres::{JoinPostgres, PostgresOptions, tokio_postgres};
use unanimous::{Branch, BranchError, BranchId, Cause, CommitError, Tx, Work, current};
use unanimous_testing::postgres::Database;

use super::listener::Listener;
use super::{Pair, connect, prepared, values};
use crate::support::{aborted, eventually};

/// A data manager that says no: at once, or when the database's branch is prepared.
struct Bad {
    early: bool,
    orders: Database<'static>,
}

impl Branch for Bad {
    async fn flush(&self) -> Result<Work, BranchError> {
        if self.early { Err(BranchError::refused("heck no")) } else { Ok(Work::Wrote) }
    }

    async fn prepare(&self, _id: &BranchId) -> Result<(), BranchError> {
        eventually("the database's branch is prepared", || !prepared(&self.orders).is_empty()).await;
        Err(BranchError::refused("heck no"))
    }

    async fn commit(&self) -> Result<(), BranchError> {
        unreachable!("it never voted yes")
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        Ok(())
    }
}

async fn insert(tx: &Tx, client: &Arc<tokio_postgres::Client>) {
    tx.join_client(client.clone()).await.unwrap();
    // Through the connection itself, as there.
    client.batch_execute("insert into t (v) values ('1')").await.unwrap();
}

/// How many rows the same connection sees.
async fn count(client: &tokio_postgres::Client) -> i64 {
    client.query_one("select count(*) from t", &[]).await.unwrap().get(0)
}

/// `test_normal`: in the current transaction.
#[tokio::test]
async fn normal() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let client = Arc::new(connect(&pair.orders.url()).await);
    let ran = manager.run(1, |_tx| {
        let client = client.clone();
        async move {
            insert(&current().unwrap(), &client).await;
            Ok(())
        }
    });
    ran.await.unwrap();
    assert_eq!(values(&pair.orders), "1");
}

/// `test_non_threaded_tm`: in a transaction of a manager of one's own.
#[tokio::test]
async fn own_manager() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let client = Arc::new(connect(&pair.orders.url()).await);
    let tx = manager.begin();
    insert(&tx, &client).await;
    assert_eq!(values(&pair.orders), "");
    tx.commit().await.unwrap();
    assert_eq!(values(&pair.orders), "1");
}

/// `test_abort_before_prepare`
#[tokio::test]
async fn abort_before_prepare() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let client = Arc::new(connect(&pair.orders.url()).await);
    let tx = manager.begin();
    insert(&tx, &client).await;
    assert_eq!(count(&client).await, 1);
    tx.abort().await;
    assert_eq!(count(&client).await, 0);
}

async fn abort_by_a_bad_one(early: bool) {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let client = Arc::new(connect(&pair.orders.url()).await);
    let tx = manager.begin();
    insert(&tx, &client).await;
    tx.allow("bad");
    drop(tx.join_branch("bad", Bad { early, orders: pair.orders.clone() }).unwrap());
    match aborted(tx.commit().await) {
        CommitError::Aborted { source: Cause::Branch { resource, source, .. }, .. } => {
            assert_eq!((resource.as_str(), format!("{source:?}").contains("heck no")), ("bad", true), "{source:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(count(&client).await, 0);
    assert_eq!(prepared(&pair.orders), "");
}

/// `test_abort_after_prepare`
#[tokio::test]
async fn abort_after_prepare() {
    abort_by_a_bad_one(false).await;
}

/// `test_abort_before_begin`
#[tokio::test]
async fn abort_before_begin() {
    abort_by_a_bad_one(true).await;
}

/// `test_connection_management`
#[tokio::test]
async fn connection_management() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let url = pair.orders.url();
    for committed in [true, false] {
        let tx = manager.begin();
        let branch = tx.join_url_with(&url, PostgresOptions::new().close_at_end()).await.unwrap();
        branch.batch_execute("insert into t (v) values (pg_backend_pid())").await.unwrap();
        let again = tx.join_url(&url).await.unwrap();
        assert!(std::ptr::eq::<tokio_postgres::Client>(&**branch, &**again), "it is the same connection");
        let pid: i32 = again.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        drop((branch, again));
        if committed {
            tx.commit().await.unwrap();
            assert_eq!(values(&pair.orders), pid.to_string());
        } else {
            tx.abort().await;
        }
        let open = format!("select count(*) from pg_stat_activity where pid = {pid}");
        eventually("the connection is closed", || pair.orders.psql(&open).unwrap() == "0").await;
    }
}

/// `test_connection_notify`; asked for twice, there it is a set.
#[tokio::test]
async fn connection_notify() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let url = pair.orders.url();
    let mut listener = Listener::new(&url, &["jobs"]).await;
    let tx = manager.begin();
    let branch = tx.join_url_with(&url, PostgresOptions::new().notify("jobs")).await.unwrap();
    branch.batch_execute("insert into t (v) values ('1')").await.unwrap();
    drop(branch);
    tx.join_url(&url).await.unwrap().notify("jobs").unwrap();
    tx.commit().await.unwrap();
    assert_eq!(listener.heard().await, [("jobs".to_owned(), String::new())]);
}
