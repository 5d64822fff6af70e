//! The layer's time limit on a real PostgreSQL server, over a real socket: a statement that hangs holds nothing after the answer.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::post;
use unanimous::http::{Failed, TransactionLayer};
use unanimous::log::MemoryLog;
use unanimous::postgres::{Postgres, tokio_postgres};
use unanimous::{TransactionManager, Tx};

use crate::http_conflicts::{Client, database, serve};

#[tokio::test]
async fn a_statement_that_hangs_is_given_up_and_its_locks_are_free() {
    let database = database("create table t (v text); insert into t values ('one')");
    let config = database.url().parse::<tokio_postgres::Config>().unwrap();
    // One connection: what the first request does not give back, the second one does not get.
    let store = Postgres::builder("t", config).max_connections(1).build();
    let manager = TransactionManager::builder(MemoryLog::new()).resource(store.clone()).build().await.unwrap();
    let change = async move |tx: Tx, Path(value): Path<String>| -> Result<&'static str, Failed> {
        let branch = tx.join(&store).await?;
        branch.execute("update t set v = $1", &[&value]).await?;
        if value == "hangs" {
            branch.batch_execute("select pg_sleep(3600)").await?;
        }
        Ok("changed")
    };
    let layer = TransactionLayer::new(manager);
    let limited = layer.clone().time_limit(Duration::from_millis(300));
    let app = Router::new()
        .route("/limited/{value}", post(change.clone()).layer(limited))
        .route("/{value}", post(change).layer(layer));
    let (address, server) = serve(app).await;
    let mut client = Client::new(address).await;
    let (status, body) = client.post("/limited/hangs").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("#commit-aborted"), "{body}");
    // When the client has the answer nothing is left of it: neither its change, nor its session, nor its lock.
    assert_eq!(database.psql("select v from t").unwrap(), "one");
    let busy = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() \
                and query like '%pg_sleep%' and state = 'active'";
    assert_eq!(database.psql(busy).unwrap(), "0");
    database.psql("set lock_timeout = '1s'; update t set v = 'two'").unwrap();
    // On the same connection the client goes on.
    assert_eq!(client.post("/three").await, (200, "changed".to_owned()));
    assert_eq!(database.psql("select v from t").unwrap(), "three");
    server.abort();
}
