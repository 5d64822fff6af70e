//! Requests with a key where the handler or the store of keys fails: what a client is told, and whether waiting helps.

#![allow(clippy::unwrap_used)]

use axum::Router;
use axum::routing::post;
use http::StatusCode;
use unanimous::http::{IdempotencyLayer, TransactionLayer};
use unanimous::log::MemoryLog;
use unanimous::postgres::{Postgres, PostgresKeys};
use unanimous::{TransactionManager, Tx};
use unanimous_testing::postgres::Cluster;

use crate::http_idempotency_support::{OnPostgres, Place, Server, order_with, serve};

/// A handler that sends one statement, and answers a failed one with 422.
async fn shop(manager: &TransactionManager, store: &Postgres, keys: PostgresKeys, sql: &'static str) -> Server {
    let store = store.clone();
    let handler = move |tx: Tx| async move {
        let failed = tx.join(&store).await.unwrap().batch_execute(sql).await.is_err();
        if failed { (StatusCode::UNPROCESSABLE_ENTITY, "no such account") } else { (StatusCode::CREATED, "done") }
    };
    let app = Router::new().route("/orders", post(handler)).layer(IdempotencyLayer::new(keys));
    serve(app.layer(TransactionLayer::new(manager.clone()))).await
}

/// In PostgreSQL a failed statement fails its transaction, so that nothing can be kept in it (25P02). "Repeat it later" would be for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handlers_answer_to_its_failed_statement_goes_out_and_is_not_kept() {
    let place = OnPostgres::new();
    let (place, manager) = place.manager().await;
    let twice = "insert into t (id, v) values (1, 'tea'), (1, 'tea')";
    let server = shop(&manager, &place.store, place.keys(), twice).await;
    for _ in 0..2 {
        let reply = order_with(&server, "k", "tea").await;
        assert_eq!((reply.status, &*reply.body, reply.replayed()), (422, &b"no such account"[..], false));
    }
    assert_eq!((place.kept(), place.orders().len()), (0, 0));
    let server = shop(&manager, &place.store, place.keys(), "insert into t (v) values ('tea')").await;
    assert_eq!(order_with(&server, "k", "tea").await.status, 201, "the key is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_time_can_not_cure_is_no_invitation_to_wait() {
    let place = OnPostgres::new();
    let (place, manager) = place.manager().await;
    let delete = "delete from unanimous.idempotency_key where key = 'k'";
    let gone = shop(&manager, &place.store, place.keys(), delete).await;
    order_with(&gone, "first", "tea").await;
    place
        .database()
        .psql("insert into unanimous.idempotency_key (scope, key, transaction_id, expires_at) values ('', 'damaged', '', 9e18)")
        .unwrap();
    let stranger = Postgres::from_url("stranger", &place.database().url()).unwrap();
    let unregistered = shop(&manager, &place.store, PostgresKeys::new(&stranger), "").await;
    let role = format!("{}_nobody", place.database().name());
    place.database().psql(&format!("create role {role} login")).unwrap();
    let nobody = Postgres::from_url("nobody", &place.database().url_as(&role)).unwrap();
    let may_not = TransactionManager::builder(MemoryLog::new()).resource(nobody.clone()).build().await.unwrap();
    let may_not = shop(&may_not, &nobody, PostgresKeys::new(&nobody), "").await;
    for (what, server, key) in [
        ("no right to the table", &may_not, "k"),
        ("not registered", &unregistered, "k"),
        ("a row without a response", &gone, "damaged"),
        ("a row that the work deletes", &gone, "k"),
    ] {
        let reply = order_with(server, key, "tea").await;
        reply.assert_problem(500, "idempotency-key-failed");
        assert_eq!(reply.header("retry-after"), None, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_down_is_worth_waiting_for() {
    let mut cluster = Cluster::start().unwrap();
    cluster.create_database("orders").unwrap();
    let store = Postgres::from_url("orders", &cluster.url("orders")).unwrap();
    let manager = TransactionManager::builder(MemoryLog::new()).resource(store.clone()).build().await.unwrap();
    let server = shop(&manager, &store, PostgresKeys::new(&store), "").await;
    cluster.kill().unwrap();
    let reply = order_with(&server, "k", "tea").await;
    reply.assert_problem(503, "idempotency-key-unavailable");
    assert_eq!(reply.header("retry-after"), Some("5"));
}
