//! A real SQLite file that another program has locked: the request is run again.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use tower::ServiceExt;
use unanimous::http::{Attempt, Failed, RetryLayer, TransactionLayer};
use unanimous::log::MemoryLog;
use unanimous::sqlite::{Sqlite, rusqlite};
use unanimous::{TransactionManager, Tx};

#[tokio::test]
async fn a_database_that_is_busy_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("orders.db");
    let orders = Sqlite::builder("orders", &path)
        .lock_timeout(Duration::from_millis(20))
        .init(|conn| conn.execute_batch("create table if not exists t (v integer)"))
        .open()
        .await
        .unwrap();
    let manager = TransactionManager::builder(MemoryLog::new()).resource(orders.clone()).build().await.unwrap();
    // Another program writes, until the second attempt begins.
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("begin immediate; insert into t values (1)").unwrap();
    let other = Arc::new(Mutex::new(Some(other)));
    let attempts = Arc::<Mutex<Vec<u32>>>::default();
    let handler = {
        let (orders, attempts) = (orders.clone(), attempts.clone());
        async move |attempt: Attempt, tx: Tx| -> Result<StatusCode, Failed> {
            attempts.lock().unwrap().push(attempt.number);
            if attempt.number == 2
                && let Some(other) = other.lock().unwrap().take()
            {
                other.execute_batch("commit")?;
            }
            tx.join(&orders).await?.execute("insert into t values (2)", ()).await?;
            Ok(StatusCode::CREATED)
        }
    };
    let app: Router =
        Router::new().route("/orders", post(handler).layer((RetryLayer::new(), TransactionLayer::new(manager))));

    let response = app.oneshot(Request::post("/orders").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(*attempts.lock().unwrap(), [1, 2]);
    let sum: i64 = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("select group_concat(v, '') from t", (), |row| row.get::<_, String>(0))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(sum, 12);
}
