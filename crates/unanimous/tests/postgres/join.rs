//! Connections that are brought to a transaction: an application's own, and those that a connection string names.

use std::error::Error;
use std::sync::Arc;

use unanimous::log::MemoryLog;
use unanimous::postgres::tokio_postgres::Client;
use unanimous::postgres::{JoinPostgres, Postgres, PostgresBranch, PostgresError, PostgresOptions};
use unanimous::{Cause, CommitError, JoinError, TransactionManager, Tx};
use unanimous_testing::postgres::{Cluster, Database};

use super::listener::Listener;
use super::{Pair, connect, prepared, values};
use crate::support::{aborted, eventually};

/// The adapter's own error behind a join that was refused.
#[track_caller]
fn why<T>(refused: Result<T, JoinError>) -> PostgresError {
    match refused {
        Err(JoinError::Store { source, .. }) => *source.into_source().downcast().unwrap(),
        Err(other) => panic!("the store's error was expected: {other:?}"),
        Ok(_) => panic!("it was not refused"),
    }
}

async fn insert(branch: &PostgresBranch, v: &str) {
    branch.execute("insert into t (v) values ($1)", &[&v]).await.unwrap();
}

async fn pid(client: &Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
}

async fn client(database: &Database<'_>) -> Arc<Client> {
    Arc::new(connect(&database.url()).await)
}

/// Fails where the connection is inside of a transaction.
async fn is_free(client: &Client) {
    client.batch_execute("begin; insert into t (v) values ('own'); rollback").await.unwrap();
    let error = client.batch_execute("savepoint s").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25P01");
}

#[tokio::test]
async fn a_connection_of_the_applications_takes_part() {
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    let client = client(&pair.orders).await;
    for (n, committed) in [("1", true), ("2", false)] {
        let tx = manager.begin();
        insert(&tx.join_client(client.clone()).await.unwrap(), n).await;
        let again = tx.join_client(client.clone()).await.unwrap();
        assert_eq!(pid(&again).await, pid(&client).await, "joined again, it is the same connection");
        drop(again);
        let by_name = tx.join(&orders).await.unwrap();
        assert_eq!(pid(&by_name).await, pid(&client).await, "it is the resource's branch");
        drop(by_name);
        insert(&tx.join(&billing).await.unwrap(), n).await;
        if committed {
            tx.commit().await.unwrap();
        } else {
            tx.abort().await;
        }
        is_free(&client).await;
    }
    assert_eq!(pair.values(), ["1", "1"]);
    assert_eq!(prepared(&pair.orders), "");
}

#[tokio::test]
async fn a_connection_inside_a_transaction_is_refused_and_stays_as_it_is() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let client = client(&pair.orders).await;
    for (sql, failing) in [("begin; insert into t (v) values ('own')", false), ("begin; select 1/0", true)] {
        assert_eq!(client.batch_execute(sql).await.is_err(), failing);
        let tx = manager.begin();
        let refused = why(tx.join_client(client.clone()).await);
        assert!(matches!(refused, PostgresError::InTransaction), "{sql}: {refused:?}");
        let refused = why(tx.join_client_volatile("other", client.clone()).await);
        assert!(matches!(refused, PostgresError::InTransaction), "{sql}: {refused:?}");
        tx.commit().await.unwrap();
        client.batch_execute("commit").await.unwrap();
    }
    assert_eq!(pair.values()[0], "own", "what it had begun was its own to end");
}

#[tokio::test]
async fn a_connection_to_elsewhere_is_refused_and_says_what_to_do() {
    let (pair, stranger) = (Pair::new(), Pair::new());
    let (manager, orders, _) = pair.open().await;
    let tx = manager.begin();
    for refused in
        [why(tx.join_client(client(&stranger.orders).await).await), why(tx.join_url(&stranger.orders.url()).await)]
    {
        assert!(matches!(refused, PostgresError::NotRegistered { .. }), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains("register it") && text.contains("join_client_volatile"), "{text}");
    }
    // Of the right database, but of another role, who could not finish what the resource prepares.
    let role = format!("{}_other", pair.orders.name());
    pair.orders.psql(&format!("create role {role} login")).unwrap();
    let url = pair.orders.url_as(&role);
    let other = Arc::new(connect(&url).await);
    for refused in [why(tx.join_client(other.clone()).await), why(tx.join_url(&url).await)] {
        assert!(matches!(refused, PostgresError::OtherRole { .. }), "{refused:?}");
    }
    assert!(other.batch_execute("savepoint s").await.is_err(), "it is outside of any transaction again");
    // Two connections of one store in one transaction.
    drop(tx.join(&orders).await.unwrap());
    let url = pair.orders.url();
    let refused = [why(tx.join_client(client(&pair.orders).await).await), why(tx.join_url(&url).await)];
    for refused in refused {
        assert!(matches!(refused, PostgresError::OtherConnection), "{refused:?}");
    }
    let source = tx.join_url("no url").await.unwrap_err();
    assert!(format!("{:?}", source.source()).contains("Config"), "{source:?}");
    tx.abort().await;
}

/// A resource whose server was down when the manager was built is found all the same.
#[tokio::test]
async fn a_resource_that_was_not_reached_before_is_found() {
    let pair = Pair::new();
    let billing = Postgres::from_url("billing", &pair.billing.url()).unwrap();
    let mut cluster = Cluster::start().unwrap();
    cluster.psql("postgres", super::TABLE).unwrap();
    let url = cluster.url("postgres");
    cluster.stop_fast().unwrap();
    let orders = Postgres::from_url("orders", &url).unwrap();
    let manager =
        TransactionManager::builder(MemoryLog::new()).resource(orders).resource(billing).build().await.unwrap();
    let tx = manager.begin();
    insert(&tx.join_client(client(&pair.billing).await).await.unwrap(), "b").await;
    assert!(matches!(why(tx.join_url(&url).await), PostgresError::Connect(_)));
    cluster.restart().unwrap();
    insert(&tx.join_url(&url).await.unwrap(), "a").await;
    tx.commit().await.unwrap();
    assert_eq!(values(&pair.billing), "b");
    assert_eq!(cluster.psql("postgres", "select v from t").unwrap(), "a");
}

#[tokio::test]
async fn a_connection_string_opens_one_connection_in_a_transaction_and_keeps_it_for_the_next() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let (orders, billing) = (pair.orders.url(), pair.billing.url());
    let mut pids = Vec::new();
    for n in ["1", "2"] {
        let tx = manager.begin();
        let branch = tx.join_url(&orders).await.unwrap();
        insert(&branch, n).await;
        let again = tx.join_url(&orders).await.unwrap();
        assert_eq!(pid(&branch).await, pid(&again).await, "the same string, the same connection");
        pids.push(pid(&branch).await);
        drop((branch, again));
        insert(&tx.join_url(&billing).await.unwrap(), n).await;
        tx.commit().await.unwrap();
    }
    assert_eq!(pids[0], pids[1], "given back to the string's pool");
    let (one, two) = (manager.begin(), manager.begin());
    let (first, second) = (one.join_url(&orders).await.unwrap(), two.join_url(&orders).await.unwrap());
    assert_ne!(pid(&first).await, pid(&second).await, "two transactions have two");
    let changed = format!("{orders} application_name=changed");
    let refused = why(one.join_url(&changed).await);
    assert!(matches!(refused, PostgresError::OtherConnection), "{refused:?}");
    drop((first, second));
    one.abort().await;
    two.abort().await;
    assert_eq!(pair.values(), ["1 2", "1 2"]);
}

#[tokio::test]
async fn a_connection_string_that_is_to_be_closed_is_closed_at_the_end() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let url = pair.orders.url();
    for committed in [true, false] {
        let tx = manager.begin();
        let branch = tx.join_url_with(&url, PostgresOptions::new().close_at_end()).await.unwrap();
        branch.batch_execute("insert into t (v) values ('a') on conflict do nothing").await.unwrap();
        let pid = pid(&branch).await;
        drop(branch);
        if committed {
            tx.commit().await.unwrap();
        } else {
            tx.abort().await;
        }
        let there = format!("select count(*) from pg_stat_activity where pid = {pid}");
        eventually("the connection is closed", || pair.orders.psql(&there).unwrap() == "0").await;
    }
}

/// As the ancestor: `join(dsn, notify=...)`.
#[tokio::test]
async fn what_joined_by_a_connection_string_notifies() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let mut listener = Listener::new(&pair.orders.url(), &["jobs", "news"]).await;
    let tx = manager.begin();
    let (orders, billing) = (pair.orders.url(), pair.billing.url());
    drop(tx.join_url_with(&orders, PostgresOptions::new().notify("jobs")).await.unwrap());
    insert(&tx.join_url(&billing).await.unwrap(), "b").await;
    tx.join_url(&orders).await.unwrap().notify("news").unwrap();
    tx.commit().await.unwrap();
    assert_eq!(listener.heard().await.into_iter().map(|(channel, _)| channel).collect::<Vec<_>>(), ["jobs", "news"]);
}

/// Joins two databases of which the manager knows nothing, and does work in both.
async fn volatile(tx: &Tx, client: &Arc<Client>, url: &str) {
    for _ in 0..2 {
        let branch = tx.join_client_volatile("a client", client.clone()).await.unwrap();
        assert_eq!(pid(&branch).await, pid(client).await);
    }
    insert(&tx.join_client_volatile("a client", client.clone()).await.unwrap(), "a").await;
    let first = pid(&tx.join_url_volatile("a string", url).await.unwrap()).await;
    let branch = tx.join_url_volatile("a string", url).await.unwrap();
    assert_eq!(pid(&branch).await, first);
    insert(&branch, "b").await;
}

#[tokio::test]
async fn a_database_that_is_not_registered_takes_part_as_volatile_where_that_is_allowed() {
    let pair = Pair::new();
    let manager = TransactionManager::builder(MemoryLog::new()).build().await.unwrap();
    let (client, url) = (client(&pair.orders).await, pair.billing.url());
    let tx = manager.begin();
    volatile(&tx, &client, &url).await;
    let error = aborted(tx.commit().await);
    assert!(matches!(error, CommitError::Aborted { source: Cause::NotAllowed { .. }, .. }), "{error:?}");
    assert_eq!(pair.values(), ["", ""]);
    is_free(&client).await;

    let tx = manager.begin();
    tx.allow("a client");
    tx.allow("a string");
    volatile(&tx, &client, &url).await;
    tx.commit().await.unwrap();
    assert_eq!(pair.values(), ["a", "b"]);
    is_free(&client).await;
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
    let ours = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    eventually("the string's connections are closed", || pair.billing.psql(ours).unwrap() == "0").await;
}

#[tokio::test]
async fn a_volatile_branch_needs_a_name_of_its_own() {
    let pair = Pair::new();
    let (manager, _, _) = pair.open().await;
    let (one, two) = (client(&pair.orders).await, client(&pair.orders).await);
    let tx = manager.begin();
    for refused in [
        tx.join_client_volatile("orders", one.clone()).await.unwrap_err(),
        tx.join_url_volatile("orders", &pair.orders.url()).await.unwrap_err(),
    ] {
        assert!(matches!(refused, JoinError::Duplicate { .. }), "a registered resource has it: {refused:?}");
    }
    drop(tx.join_client_volatile("mine", one.clone()).await.unwrap());
    let refused = why(tx.join_client_volatile("mine", two).await);
    assert!(matches!(refused, PostgresError::OtherConnection), "{refused:?}");
    let refused = why(tx.join_url_volatile("mine", &pair.orders.url()).await);
    assert!(matches!(refused, PostgresError::OtherConnection), "{refused:?}");
    tx.abort().await;
    is_free(&one).await;
}

/// Nothing else leads to its database, so that it can't be ended by another connection.
#[tokio::test]
async fn a_volatile_connection_is_free_again_however_its_branch_ends() {
    let pair = Pair::new();
    let manager = TransactionManager::builder(MemoryLog::new()).build().await.unwrap();
    let client = client(&pair.orders).await;
    let tx = manager.begin();
    let handle = tx.handle();
    let guard = handle.join_client_volatile("mine", client.clone()).await.unwrap();
    insert(&guard, "a").await;
    let error = aborted(tx.commit().await);
    assert!(matches!(error, CommitError::Aborted { source: Cause::InUse { .. }, .. }), "{error:?}");
    drop(guard);
    is_free(&client).await;
    let tx = manager.begin();
    insert(&tx.join_client_volatile("mine", client.clone()).await.unwrap(), "b").await;
    drop(tx);
    eventually("it was dropped, and aborted in the background", || {
        pair.orders.psql("select count(*) from pg_stat_activity where state like 'idle in transaction%' and datname = current_database()").unwrap() == "0"
    })
    .await;
    is_free(&client).await;
    assert_eq!(pair.values()[0], "");
}
