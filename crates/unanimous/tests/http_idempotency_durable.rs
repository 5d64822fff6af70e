//! What a repeat is told lasts: a row that is visible may not be on the disk, nor on a replica (rules 3 and 9).

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use unanimous::TransactionManager;
use unanimous::http::{IdempotencyLayer, TransactionLayer};
use unanimous::log::MemoryLog;
use unanimous::postgres::tokio_postgres::{self, NoTls};
use unanimous_testing::postgres::Cluster;

use crate::http_idempotency_support::{
    Counter, OnPostgres, OnSqlite, PATIENCE, Place, Server, World, order_with, routes, serve,
};

async fn process(url: &str, counter: &Counter) -> Server {
    let place = OnPostgres::at(url);
    let manager = TransactionManager::builder(MemoryLog::new()).resource(place.store.clone()).build().await.unwrap();
    serve(routes(&place, counter).layer(IdempotencyLayer::new(place.keys())).layer(TransactionLayer::new(manager)))
        .await
}

/// The first request's backend is terminated while its commit waits for a replica that isn't there: its row is visible, and would be gone after
/// a failover. No repeat is told that it is done before it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_no_replica_has_is_not_given_again() {
    let mut cluster = Cluster::start().unwrap();
    cluster.create_database("orders").unwrap();
    cluster.psql("orders", "create table t (id bigserial primary key, v text)").unwrap();
    let (url, counter) = (cluster.url("orders"), Counter::new());
    let servers = [process(&url, &counter).await, process(&url, &counter).await];
    assert_eq!(order_with(&servers[0], "before", "tea").await.status, 201);
    cluster.set("synchronous_standby_names", "nobody").unwrap();
    let (terminator, connection) = tokio_postgres::connect(&cluster.url("postgres"), NoTls).await.unwrap();
    tokio::spawn(connection);
    let terminating = tokio::spawn(async move {
        loop {
            let sql = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'";
            terminator.batch_execute(sql).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // Until the setting is in force.
    let first = async {
        for number in 0.. {
            let key = format!("key-{number}");
            let reply = order_with(&servers[0], &key, "rum").await;
            if reply.status != 201 {
                return (key, reply);
            }
        }
        unreachable!("it ends at its time limit")
    };
    let (key, reply) = tokio::time::timeout(PATIENCE, first).await.expect("the setting comes into force");
    reply.assert_problem(500, "commit-unknown");
    let executed = counter.executed().len();
    let row = format!("select count(*) from unanimous.idempotency_key where key = '{key}' and status = 201");
    assert_eq!(cluster.psql("orders", &row).unwrap(), "1", "it is visible");
    for server in &servers {
        order_with(server, &key, "rum").await.assert_problem(500, "commit-unknown");
    }
    terminating.abort();
    cluster.set("synchronous_standby_names", "").unwrap();
    for server in &servers {
        let reply = order_with(server, &key, "rum").await;
        assert_eq!((reply.status, reply.replayed()), (201, true));
    }
    assert_eq!(counter.executed().len(), executed, "nothing was executed again");
}

/// As a killed process leaves it: in the page cache. What this process has seen commit costs no write; nobody vetoes the others'.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_of_another_process_is_synced_before_it_is_given_again() {
    let place = OnSqlite::new().await;
    let synced = || place.strings("SELECT CAST(asked AS TEXT) FROM unanimous_identity")[0].parse::<u64>().unwrap();
    let first = World::new(&place).await;
    let server = first.serve().await;
    assert_eq!(order_with(&server, "k", "tea").await.status, 201);
    let before = synced();
    assert!(order_with(&server, "k", "tea").await.replayed());
    assert_eq!(synced(), before, "it was seen to commit here");
    let second = World::new(&place).await;
    let app = second.routes().layer(second.layer());
    let server = serve(app.layer(second.transactions().commit_veto(|_| true))).await;
    for times in 1..=2 {
        let reply = order_with(&server, "k", "tea").await;
        assert_eq!((reply.status, reply.replayed()), (201, true));
        assert_eq!(synced(), before + times);
    }
    assert_eq!(place.orders(), ["tea"]);
}
