//! All the layers around one handler, in their order: each does its part, and none is in another's way.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::routing::post;
use tower::ServiceExt;
use unanimous::http::{
    AdmissionLayer, Attempt, Ended, Failed, IdempotencyLayer, RetryLayer, TransactionLayer, commit_after_body,
    default_commit_veto,
};
use unanimous::log::MemoryLog;
use unanimous::sqlite::{Sqlite, SqliteKeys};
use unanimous::{BranchError, TransactionManager, Tx};

struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
    ended: Option<Ended>,
}

async fn ask(app: &Router, key: &str) -> Answered {
    let request = Request::post("/orders").header("idempotency-key", key).body(Body::from("tea")).unwrap();
    let (parts, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap();
    Answered { status: parts.status, headers: parts.headers, body, ended: parts.extensions.get().copied() }
}

/// A request with a key meets a conflict, is run again, and its response, a stream, is kept for the next one with that key.
#[tokio::test]
async fn a_keyed_request_that_meets_a_conflict_is_done_once_and_answered_twice() {
    for one_service in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let orders = Sqlite::builder("orders", folder.path().join("orders.db"))
            .init(|conn| conn.execute_batch("create table if not exists t (v text)"))
            .open()
            .await
            .unwrap();
        let manager = TransactionManager::builder(MemoryLog::new()).resource(orders.clone()).build().await.unwrap();
        let runs = Arc::<AtomicU32>::default();
        let order = {
            let (orders, runs) = (orders.clone(), runs.clone());
            async move |tx: Tx, attempt: Attempt, item: String| -> Result<(StatusCode, Body), Failed> {
                runs.fetch_add(1, Ordering::Relaxed);
                tx.join(&orders).await?.execute("insert into t values (?1)", (item,)).await?;
                if attempt.number == 1 {
                    return Err(BranchError::conflict("another was first").into());
                }
                let stream = futures_util::stream::iter(["stored at attempt ".to_owned(), attempt.number.to_string()]);
                let stream = futures_util::StreamExt::map(stream, Ok::<_, std::convert::Infallible>);
                Ok((StatusCode::CREATED, Body::from_stream(stream)))
            }
        };
        let admission = AdmissionLayer::new(8);
        let retry = RetryLayer::new().backoff(Duration::from_millis(1), Duration::from_millis(1));
        let transaction = TransactionLayer::new(manager.clone()).commit_veto(default_commit_veto);
        let keys = IdempotencyLayer::new(SqliteKeys::new(&orders));
        let app: Router = if one_service {
            // One stack around one route: each layer gets the body type of the one outside of it.
            Router::new()
                .route("/orders", post(order).layer((admission, retry, transaction, keys, commit_after_body())))
        } else {
            Router::new()
                .route("/orders", post(order))
                .layer(commit_after_body())
                .layer(keys)
                .layer(transaction)
                .layer(retry)
                .layer(admission)
        };
        let first = ask(&app, "one").await;
        assert_eq!((first.status, &*first.body), (StatusCode::CREATED, "stored at attempt 2"), "{one_service}");
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        let id = first.headers["unanimous-transaction"].clone();
        assert_eq!(id, first.ended.unwrap().id.to_string());
        let again = ask(&app, "one").await;
        assert_eq!((again.status, &*again.body), (StatusCode::CREATED, "stored at attempt 2"), "{one_service}");
        assert_eq!(runs.load(Ordering::Relaxed), 2, "run again");
        // The header names the transaction that did the work, what the layers tell each other the one that looked the key up.
        assert_eq!(again.headers["unanimous-transaction"], id);
        assert_ne!(again.ended.unwrap().id.to_string(), id.to_str().unwrap());
        let tx = manager.begin();
        let stored: String = tx
            .join(&orders)
            .await
            .unwrap()
            .query_row("select group_concat(v) from t", (), |row| row.get(0))
            .await
            .unwrap();
        assert_eq!(stored, "tea");
        tx.abort().await;
    }
}
