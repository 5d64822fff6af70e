//! A pool that the application made: what it hands out, what it gets back, and what does not depend on it.

use std::time::Duration;

use unanimous::log::MemoryLog;
use unanimous::postgres::deadpool_postgres::{Manager, Pool, Runtime};
use unanimous::postgres::tokio_postgres::{Config, NoTls};
use unanimous::postgres::{Postgres, PostgresError, PostgresOptions};
use unanimous::{
    Branch, BranchContext, BranchId, DeciderId, DecisionLog, JoinError, Options, ResourceManager, TransactionManager,
};
use unanimous_testing::postgres::Database;

use super::{Pair, prepared, values};
use crate::support::aborted;

fn pool(database: &Database<'_>, size: usize) -> Pool {
    let manager = Manager::new(database.url().parse().unwrap(), NoTls);
    Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1).build().unwrap()
}

async fn manager(store: &Postgres) -> TransactionManager {
    TransactionManager::builder(MemoryLog::new()).resource(store.clone()).build().await.unwrap()
}

async fn pid(client: &unanimous::postgres::tokio_postgres::Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
}

/// The pool itself does not notice: it gives such a connection to whoever asks next.
#[tokio::test]
async fn a_connection_left_inside_a_transaction_is_refused_and_discarded() {
    let pair = Pair::new();
    let pool = pool(&pair.orders, 1);
    let store = Postgres::new("orders", pool.clone());
    let manager = manager(&store).await;
    for left in ["begin; insert into t (v) values ('left')", "begin; insert into t (v) values ('left'); select 1/0"] {
        let object = pool.get().await.unwrap();
        let was = pid(&object).await;
        let _ = object.batch_execute(left).await;
        drop(object);
        let tx = manager.begin();
        let Err(JoinError::Store { source, .. }) = tx.join(&store).await else { panic!("it was not refused: {left}") };
        let why: PostgresError = *source.into_source().downcast().unwrap();
        assert!(matches!(why, PostgresError::InTransaction), "{left}: {why:?}");
        assert_eq!(pool.status().size, 0, "it is in the pool no more");
        let branch = tx.join(&store).await.unwrap();
        assert_ne!(pid(&branch).await, was, "the next one is another");
        branch.batch_execute("insert into t (v) values ('ours') on conflict do nothing").await.unwrap();
        drop(branch);
        tx.commit().await.unwrap();
    }
    assert_eq!(values(&pair.orders), "ours", "what was left was not committed by us");
}

/// The commit has its answer to itself: what is sent behind it and fails, by a cancel say, says nothing of it.
#[tokio::test]
async fn what_fails_behind_a_commit_without_a_vote_is_not_the_commits_failure() {
    use unanimous_testing::proxy::{Act, Proxy};
    let pair = Pair::new();
    let proxy = Proxy::start(pair.orders.cluster().port()).unwrap();
    let port = format!("port={}", pair.orders.cluster().port());
    let url = pair.orders.url().replace(&port, &format!("port={}", proxy.port()));
    let through = Pool::builder(Manager::new(url.parse().unwrap(), NoTls)).max_size(1).runtime(Runtime::Tokio1);
    let store = Postgres::new("orders", through.build().unwrap());
    let manager = manager(&store).await;
    // The session is parked behind the branch's end.
    let fails = proxy.on("BEGIN READ ONLY", Act::Replace("SELECT 1/0     ".into()));
    let tx = manager.begin();
    tx.join(&store).await.unwrap().batch_execute("insert into t (v) values ('a')").await.unwrap();
    tx.commit().await.unwrap();
    assert!(fails.met());
    assert_eq!(values(&pair.orders), "a");
}

/// A refused commit is rolled back on its session, which goes on: ending it could end another client's, behind a pooler.
#[tokio::test]
async fn a_commit_without_a_vote_that_is_refused_keeps_its_connection() {
    let pair = Pair::new();
    let store = Postgres::new("orders", pool(&pair.orders, 1));
    let manager = manager(&store).await;
    let mut pids = Vec::new();
    for _ in 0..3 {
        let tx = manager.begin();
        let branch = tx.join_with(&store, PostgresOptions::new().writes()).await.unwrap();
        pids.push(pid(&branch).await);
        branch.batch_execute("insert into t (v) values ('a'); select 1/0").await.unwrap_err();
        drop(branch);
        aborted(tx.commit().await);
    }
    assert_eq!(pids, [pids[0]; 3]);
    assert_eq!(values(&pair.orders), "");
}

/// Nobody has ended it, as where its task was dropped: what it had begun is not the next user's to commit.
#[tokio::test]
async fn a_branch_that_is_dropped_without_an_end_leaves_no_transaction_in_its_pool() {
    let pair = Pair::new();
    let config: Config = pair.orders.url().parse().unwrap();
    let own = Postgres::builder("orders", config).max_connections(1).build();
    let owner = MemoryLog::new().owner();
    for (store, sequence) in [(own, 1), (Postgres::new("orders", pool(&pair.orders, 1)), 3)] {
        let begin = async |sequence, value: &str| {
            let transaction = owner.transaction(sequence);
            let branch = store.begin(&BranchContext::new(transaction), PostgresOptions::new()).await.unwrap();
            branch.batch_execute(&format!("insert into t (v) values ('{value}')")).await.unwrap();
            (branch, BranchId { transaction, decider: DeciderId::Log, number: 0 })
        };
        drop(begin(sequence, &format!("dropped{sequence}")).await);
        let (branch, id) = begin(sequence + 1, &format!("next{sequence}")).await;
        branch.flush().await.unwrap();
        branch.commit_one_phase(&id).await.unwrap();
    }
    assert_eq!(values(&pair.orders), "next1 next3");
}

/// Over commits and aborts, on a pool of either kind.
#[tokio::test]
async fn a_statement_is_prepared_once_for_each_connection() {
    const INSERT: &str = "insert into t (v) values ($1)";
    let pair = Pair::new();
    let config: Config = pair.orders.url().parse().unwrap();
    let own = Postgres::builder("orders", config).max_connections(1).build();
    for (store, name) in [(own, "own"), (Postgres::new("orders", pool(&pair.orders, 1)), "pool")] {
        let manager = manager(&store).await;
        for round in 0..3 {
            let tx = manager.begin();
            let branch = tx.join(&store).await.unwrap();
            let insert = branch.prepare_cached(INSERT).await.unwrap();
            branch.execute(&insert, &[&format!("{name}{round}")]).await.unwrap();
            let kept = "select count(*) from pg_prepared_statements where statement = $1";
            assert_eq!(branch.query_one(kept, &[&INSERT]).await.unwrap().get::<_, i64>(0), 1);
            drop(branch);
            match round {
                0 => tx.abort().await,
                _ => drop(tx.commit().await.unwrap()),
            }
        }
    }
    assert_eq!(values(&pair.orders), "own1 own2 pool1 pool2");
}

/// What our sessions keep for the vote is gone then: no vote, and the next transaction gets a session that has it.
#[tokio::test]
async fn work_that_deallocates_all_aborts_and_spoils_its_session() {
    let pair = Pair::new();
    let config: Config = pair.orders.url().parse().unwrap();
    let store = Postgres::builder("orders", config).max_connections(1).build();
    let manager = manager(&store).await;
    let tx = manager.begin();
    let branch = tx.join(&store).await.unwrap();
    branch.batch_execute("insert into t (v) values ('lost'); deallocate all").await.unwrap();
    let was = pid(&branch).await;
    drop(branch);
    aborted(tx.commit().await);
    let tx = manager.begin();
    let branch = tx.join(&store).await.unwrap();
    branch.batch_execute("insert into t (v) values ('next')").await.unwrap();
    assert_ne!(pid(&branch).await, was);
    drop(branch);
    tx.commit().await.unwrap();
    assert_eq!(values(&pair.orders), "next");
}

/// It comes back outside of any transaction, or not at all.
#[tokio::test]
async fn what_comes_back_to_the_pool_is_outside_of_any_transaction() {
    let pair = Pair::new();
    let pool = pool(&pair.orders, 1);
    let store = Postgres::new("orders", pool.clone());
    let manager = manager(&store).await;
    let outside = async || {
        let object = pool.get().await.unwrap();
        let error = object.batch_execute("savepoint s").await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "25P01");
        pid(&object).await
    };
    let first = outside().await;
    for ending in ["commit", "abort", "failed"] {
        let tx = manager.begin();
        let branch = tx.join(&store).await.unwrap();
        branch.execute("insert into t (v) values ($1)", &[&ending]).await.unwrap();
        if ending == "failed" {
            branch.batch_execute("select 1/0").await.unwrap_err();
        }
        drop(branch);
        match ending {
            "abort" => tx.abort().await,
            "commit" => drop(tx.commit().await.unwrap()),
            _ => drop(aborted(tx.commit().await)),
        }
        assert_eq!(outside().await, first, "{ending}: it is the same connection, given back");
    }
    // A guard that outlives its transaction: the connection is closed, and the server's session ended.
    let tx = manager.begin_with(Options::default().time_limit(Duration::from_millis(300)));
    let handle = tx.handle();
    let branch = handle.join(&store).await.unwrap();
    branch.batch_execute("insert into t (v) values ('late'); select pg_sleep(60)").await.unwrap_err();
    aborted(tx.commit().await);
    drop(branch);
    assert_ne!(outside().await, first, "another one has its place");
    // Closed where that is asked for.
    let second = outside().await;
    let tx = manager.begin();
    drop(tx.join_with(&store, PostgresOptions::new().close_at_end()).await.unwrap());
    tx.commit().await.unwrap();
    assert_ne!(outside().await, second);
    assert_eq!(values(&pair.orders), "commit");
}

/// Whoever waits for the pool may hold what recovery and phase two would free (rule 14).
#[tokio::test]
async fn recovery_does_not_wait_for_the_pool() {
    let pair = Pair::new();
    let pool = pool(&pair.orders, 1);
    let store = Postgres::new("orders", pool.clone());
    let owner = MemoryLog::new().owner();
    let id = BranchId { transaction: owner.transaction(1), decider: DeciderId::Log, number: 0 };
    let branch = store.begin(&BranchContext::new(id.transaction), PostgresOptions::new()).await.unwrap();
    branch.batch_execute("insert into t (v) values ('a')").await.unwrap();
    Branch::flush(&branch).await.unwrap();
    Branch::prepare(&branch, &id).await.unwrap();
    drop(branch);
    let held = pool.get().await.unwrap();
    assert_eq!(pool.status().available, 0);
    assert_eq!(store.in_doubt().await.unwrap(), std::slice::from_ref(&id));
    ResourceManager::commit(&store, &id).await.unwrap();
    assert_eq!((prepared(&pair.orders), values(&pair.orders)), (String::new(), "a".to_owned()));
    drop(held);
}

#[tokio::test]
async fn a_pool_that_is_empty_or_closed_is_told_so() {
    let pair = Pair::new();
    let pool = pool(&pair.orders, 1);
    let store = Postgres::builder("orders", pool.clone()).pool_timeout(Duration::from_millis(100)).build();
    let manager = manager(&store).await;
    let held = pool.get().await.unwrap();
    for _ in 0..2 {
        let tx = manager.begin();
        let Err(JoinError::Store { source, .. }) = tx.join(&store).await else { panic!("it was not refused") };
        let why: PostgresError = *source.into_source().downcast().unwrap();
        assert!(matches!(why, PostgresError::Pool(_)), "{why:?}");
        tx.abort().await;
        pool.close();
    }
    drop(held);
}

/// The pool is empty for longer than a join waits: 503 with Retry-After. With the admission layer nobody gets so far: who waits, waits in front
/// of the transaction.
#[cfg(feature = "axum")]
#[tokio::test]
async fn a_request_that_finds_no_connection_is_answered_with_503() {
    use axum::Router;
    use axum::body::Body;
    use axum::http::Request;
    use axum::routing::post;
    use tower::ServiceExt;
    use unanimous::Tx;
    use unanimous::http::{AdmissionLayer, TransactionLayer};

    let pair = Pair::new();
    let store = Postgres::builder("orders", pair.orders.url().parse::<Config>().unwrap())
        .max_connections(1)
        .pool_timeout(Duration::from_millis(200))
        .build();
    let manager = manager(&store).await;
    let held = manager.begin();
    held.join(&store).await.unwrap().batch_execute("select 1").await.unwrap();

    let joined = store.clone();
    let order = async move |tx: Tx| -> Result<(), JoinError> {
        tx.join(&joined).await?.batch_execute("select 1").await.unwrap();
        Ok(())
    };
    let app = Router::new().route("/", post(order)).layer(TransactionLayer::new(manager.clone()));
    let request = || Request::builder().method("POST").uri("/").body(Body::empty()).unwrap();
    let response = app.clone().oneshot(request()).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].as_bytes()), (503, &b"5"[..]));

    held.abort().await;
    let admitting = app.layer(AdmissionLayer::new(1).queue(15).wait(Duration::from_secs(60)));
    let clients = (0..16).map(|_| tokio::spawn(admitting.clone().oneshot(request())));
    for client in clients.collect::<Vec<_>>() {
        assert_eq!(client.await.unwrap().unwrap().status(), 200, "its turn came before it asked for a connection");
    }
}
