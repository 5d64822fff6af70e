//! Idempotency keys in PostgreSQL where something goes wrong: a crash between the phases, snapshots that are too old, rows that nobody reads any more.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use http::{HeaderMap, StatusCode};
use unanimous::http::{Found, IdempotencyLayer, KeyStore, Lifetime, RequestKey, StoredResponse, TransactionLayer};
use unanimous::log::{FileLog, MemoryLog};
use unanimous::postgres::{IsolationLevel, Postgres, PostgresError, PostgresKeys, PostgresOptions};
use unanimous::{BoxError, Capability, TransactionManager, Tx};
use unanimous_testing::postgres::Cluster;
use unanimous_testing::proxy::postgres::{Act, Direction, Proxy, Said, Spot, error};

use crate::http_idempotency_support::{
    Counter, OnPostgres, PATIENCE, Place, Reply, Server, World, order_with, routes, serve,
};
use crate::http_support::{Journal, Step, Store};

const LIFETIME: Lifetime = Lifetime { now: 1_000, expires_at: 2_000 };

fn key(key: &str) -> RequestKey {
    RequestKey::new("alice", key)
}

fn stored(body: &'static str) -> StoredResponse {
    StoredResponse {
        fingerprint: [7; 32],
        transaction: "1.2.3.4".to_owned(),
        status: StatusCode::CREATED,
        headers: HeaderMap::new(),
        body: Bytes::from_static(body.as_bytes()),
    }
}

async fn serializable(tx: &Tx, store: &Postgres) {
    let options = PostgresOptions::new().isolation(IsolationLevel::Serializable);
    // Something is read, so that there is a snapshot.
    tx.join_with(store, options).await.unwrap().query_one("select count(*) from t", &[]).await.unwrap();
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what} did not come"));
}

#[tokio::test]
async fn a_key_in_another_transaction_is_in_flight_until_that_has_ended() {
    let place = OnPostgres::new();
    let (one, first_manager) = place.manager().await;
    let (other, second_manager) = place.manager().await;
    for isolation in [IsolationLevel::ReadCommitted, IsolationLevel::Serializable] {
        let options = || PostgresOptions::new().isolation(isolation);
        let (one, other) = (one.keys().options(options()), other.keys().options(options()));
        let key = key(&format!("{isolation:?}"));
        let first = first_manager.begin();
        assert_eq!(one.begin(&first, &key, LIFETIME).await.unwrap(), Found::New);
        let second = second_manager.begin();
        assert_eq!(other.begin(&second, &key, LIFETIME).await.unwrap(), Found::InFlight);
        second.abort().await;
        first.abort().await;
        // What aborts leaves nothing.
        let first = first_manager.begin();
        assert_eq!(one.begin(&first, &key, LIFETIME).await.unwrap(), Found::New);
        one.keep(&first, &key, &stored("tea"), LIFETIME).await.unwrap();
        let id = first.id().to_string();
        first.commit().await.unwrap();
        let second = second_manager.begin();
        let response = StoredResponse { transaction: id, ..stored("tea") };
        assert_eq!(other.begin(&second, &key, LIFETIME).await.unwrap(), Found::Stored(response));
        second.commit().await.unwrap();
    }
}

/// A snapshot from before the first request's commit: the second one must not be executed, and not miss the row.
#[tokio::test]
async fn a_snapshot_that_is_too_old_is_a_conflict_before_any_work() {
    let place = OnPostgres::new();
    let (place, manager) = place.manager().await;
    let keys = place.keys();
    let second = manager.begin();
    serializable(&second, &place.store).await;
    let first = manager.begin();
    assert_eq!(keys.begin(&first, &key("k"), LIFETIME).await.unwrap(), Found::New);
    keys.keep(&first, &key("k"), &stored("tea"), LIFETIME).await.unwrap();
    first.commit().await.unwrap();
    let conflict = keys.begin(&second, &key("k"), LIFETIME).await.unwrap_err();
    let error: &(dyn std::error::Error + 'static) = &*conflict;
    assert!(second.is_retryable(error), "{conflict:?}");
    second.abort().await;
}

/// Under SERIALIZABLE a look for a row that is not there would make each of two keys conflict with the other, and a look for one's own row each
/// with those that come later; the last one commits first, so that it would have to be one of the others that fails.
#[tokio::test]
async fn different_keys_do_not_conflict_under_serializable() {
    let place = OnPostgres::new();
    let (place, manager) = place.manager().await;
    let keys = place.keys();
    let begin = async |tx: &Tx, name: &str| {
        assert_eq!(keys.begin(tx, &key(name), LIFETIME).await.unwrap(), Found::New);
    };
    let keep = async |tx: &Tx, name: &str| keys.keep(tx, &key(name), &stored("tea"), LIFETIME).await.unwrap();
    for one_after_another in [true, false] {
        let name = |n: usize| format!("{n} {one_after_another}");
        let transactions: Vec<_> = (0..4).map(|_| manager.begin()).collect();
        for tx in &transactions {
            serializable(tx, &place.store).await;
        }
        for (n, tx) in transactions.iter().enumerate() {
            begin(tx, &name(n)).await;
            if one_after_another {
                keep(tx, &name(n)).await;
            }
        }
        for (n, tx) in transactions.into_iter().enumerate().rev() {
            if !one_after_another {
                keep(&tx, &name(n)).await;
            }
            tx.commit().await.unwrap();
        }
    }
    assert_eq!(place.kept(), 8);
}

#[tokio::test]
async fn a_row_that_has_expired_is_replaced() {
    let place = OnPostgres::new();
    let (place, manager) = place.manager().await;
    for isolation in [IsolationLevel::ReadCommitted, IsolationLevel::Serializable] {
        let keys = place.keys().options(PostgresOptions::new().isolation(isolation));
        let key = key(&format!("{isolation:?}"));
        let execute = async |lifetime, body| -> Result<Found, BoxError> {
            let tx = manager.begin();
            let found = keys.begin(&tx, &key, lifetime).await?;
            if found == Found::New {
                keys.keep(&tx, &key, &stored(body), lifetime).await?;
            }
            tx.commit().await?;
            Ok(found)
        };
        let body = |found: Found| match found {
            Found::Stored(stored) => String::from_utf8(stored.body.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        let at = |now| Lifetime { now, expires_at: now + 10 };
        assert_eq!(execute(at(10), "tea").await.unwrap(), Found::New);
        assert_eq!(body(execute(at(19), "rum").await.unwrap()), "tea");
        assert_eq!(execute(at(20), "rum").await.unwrap(), Found::New);
        assert_eq!(body(execute(at(29), "gin").await.unwrap()), "rum");
        // The row that has expired stays where its replacement aborts.
        let tx = manager.begin();
        assert_eq!(keys.begin(&tx, &key, at(30)).await.unwrap(), Found::New);
        tx.abort().await;
        assert_eq!(body(execute(at(29), "gin").await.unwrap()), "rum");
    }
}

#[tokio::test]
async fn rows_that_have_expired_are_swept_some_at_a_time() {
    let place = OnPostgres::new();
    let (place, manager) = place.manager().await;
    let keys = place.keys();
    let keep = async |name: &str, now| {
        let tx = manager.begin();
        let lifetime = Lifetime { now, expires_at: now + 1_000 };
        keys.begin(&tx, &key(name), lifetime).await.unwrap();
        keys.keep(&tx, &key(name), &stored("tea"), lifetime).await.unwrap();
        tx.commit().await.unwrap();
    };
    keep("first", 5).await;
    let more = "insert into unanimous.idempotency_key (scope, key, transaction_id, expires_at) \
                select 'bob', n, '', n from generate_series(1, 1300) n";
    place.database().psql(more).unwrap();
    let left = || {
        place.database().psql("select string_agg(key, ' ' order by expires_at) from unanimous.idempotency_key where expires_at > 1290").unwrap()
    };
    // One that another request is about to replace is left to it, and holds up nobody.
    let tx = manager.begin();
    assert_eq!(
        keys.begin(&tx, &RequestKey::new("bob", "7"), Lifetime { now: 20_000_000, expires_at: 30_000_000 })
            .await
            .unwrap(),
        Found::New
    );
    let now = 20_000_000;
    keep("second", now).await;
    until("the sweep", || place.kept() == 2).await;
    assert_eq!(left(), "second");
    tx.abort().await;
    keep("third", now + 1).await;
    assert_eq!(place.kept(), 3, "it has been looked for a moment ago");
    keep("fourth", now + 10_000_000).await;
    until("the next sweep", || place.kept() == 1).await;
    assert_eq!(left(), "fourth");
}

#[tokio::test]
async fn a_role_that_may_not_make_the_table_is_told_what_to_run() {
    let database = Cluster::shared().database().unwrap();
    let role = format!("{}_app", database.name());
    database.psql(&format!("create role {role} login")).unwrap();
    let store = Postgres::from_url("orders", &database.url_as(&role)).unwrap();
    let manager = TransactionManager::builder(MemoryLog::new()).resource(store.clone()).build().await.unwrap();
    let keys = PostgresKeys::new(&store);
    let tx = manager.begin();
    let refused = keys.begin(&tx, &key("k"), LIFETIME).await.unwrap_err();
    assert!(format!("{refused:?}").contains("NoSchema"), "{refused:?}");
    tx.abort().await;
    let refused = keys.ready().await.unwrap_err();
    assert!(matches!(refused, PostgresError::NoSchema(_)), "{refused:?}");
    database.psql(&unanimous::postgres::schema_sql(None)).unwrap();
    let refused = keys.ready().await.unwrap_err();
    assert!(matches!(refused, PostgresError::NoSchema(_)), "there, but not for this role: {refused:?}");
    database.psql(&unanimous::postgres::schema_sql(Some(&role))).unwrap();
    keys.ready().await.unwrap();
    let tx = manager.begin();
    assert_eq!(keys.begin(&tx, &key("k"), LIFETIME).await.unwrap(), Found::New);
    keys.keep(&tx, &key("k"), &stored("tea"), LIFETIME).await.unwrap();
    tx.commit().await.unwrap();
    // Gone behind our back.
    database.psql("drop table unanimous.idempotency_key").unwrap();
    let tx = manager.begin();
    let refused = keys.begin(&tx, &key("k"), LIFETIME).await.unwrap_err();
    let source = refused.source().and_then(|source| source.downcast_ref::<PostgresError>());
    assert!(matches!(source, Some(PostgresError::NoSchema(_))), "{refused:?}");
    tx.abort().await;
}

const CHILD: &str = "UNANIMOUS_TEST_IDEMPOTENCY_CHILD";
const STEP: &str = "UNANIMOUS_TEST_IDEMPOTENCY_STEP";
const URL: &str = "UNANIMOUS_TEST_IDEMPOTENCY_URL";

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

/// A shop whose handlers work in a second store too, so that the database has to prepare.
async fn shop(place: &OnPostgres, manager: &TransactionManager, other: &Store) -> (Server, Counter) {
    let counter = Counter::new();
    let other = other.clone();
    let app = routes(place, &counter)
        .layer(from_fn(move |tx: Tx, request: Request, next: Next| {
            let other = other.clone();
            async move {
                drop(tx.join(&other).await.unwrap());
                next.run(request).await
            }
        }))
        .layer(IdempotencyLayer::new(place.keys()))
        .layer(TransactionLayer::new(manager.clone()));
    (serve(app).await, counter)
}

/// The process that dies: between the votes and the decision, or between that and phase two.
async fn die(folder: &Path) {
    let database = std::env::var(URL).unwrap();
    let place = OnPostgres::at(&database);
    let other = Store::new("a", Capability::TwoPhase, &Journal::new());
    let log = FileLog::open(folder).await.unwrap();
    let manager =
        TransactionManager::builder(log).resource(place.store.clone()).resource(other.clone()).build().await.unwrap();
    let decided = std::env::var(STEP).unwrap() == "decided";
    if decided {
        // The first in the order of the branches: nothing was sent to the database yet.
        other.on(Step::Commit, || std::process::abort());
    } else {
        other.hold(Step::Prepare);
    }
    let (server, _) = shop(&place, &manager, &other).await;
    let order = order_with(&server, "k", "tea");
    if decided {
        order.await;
    } else {
        let voted = async {
            while place.store.prepared().await.unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            reply = order => panic!("it was answered: {reply:?}"),
            () = voted => {}
        }
        std::process::abort();
    }
    unreachable!("it has died");
}

/// A first request whose process dies when its branch is prepared: its key is in flight for everybody, also after the server was killed
/// and started again, until recovery has ended the branch; then a repeat gets its response if it was committed, and is executed if not.
fn in_doubt(step: &str, test: &str) {
    if let Some(folder) = std::env::var_os(CHILD) {
        return run(die(Path::new(&folder)));
    }
    let mut cluster = Cluster::start().unwrap();
    cluster.create_database("orders").unwrap();
    cluster.psql("orders", "create table t (id bigserial primary key, v text)").unwrap();
    let psql = |cluster: &Cluster, sql: &str| cluster.psql("orders", sql).unwrap();
    let url = cluster.url("orders");
    let folder = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, folder.path())
        .env(STEP, step)
        .env(URL, &url)
        .output()
        .unwrap();
    assert!(!child.status.success(), "it should have died");
    let count = "select count(*) from pg_prepared_xacts";
    assert_eq!(psql(&cluster, count), "1", "{}", String::from_utf8_lossy(&child.stderr));
    assert_eq!(psql(&cluster, "select count(*) from t"), "0");
    run(async {
        // A process with a log of its own, which has no say.
        let place = OnPostgres::at(&url);
        let other = Store::new("a", Capability::TwoPhase, &Journal::new());
        let open = async |builder: unanimous::Builder| {
            builder.resource(place.store.clone()).resource(other.clone()).build().await.unwrap()
        };
        let bystander = open(TransactionManager::builder(MemoryLog::new())).await;
        let (server, counter) = shop(&place, &bystander, &other).await;
        for killed in [false, true] {
            if killed {
                cluster.kill().unwrap();
                cluster.restart().unwrap();
            }
            let reply = until_up(&server).await;
            reply.assert_problem(409, "idempotency-key-in-flight");
            assert_eq!(reply.header("unanimous-transaction"), None, "the one that has the key is not known here");
            assert_eq!(counter.executed(), Vec::<String>::new());
        }
        let recovered = open(TransactionManager::builder(FileLog::open(folder.path()).await.unwrap())).await;
        until("the end of the branch", || psql(&cluster, count) == "0").await;
        let decided = step == "decided";
        assert_eq!(psql(&cluster, "select count(*) from t"), if decided { "1" } else { "0" });
        let reply = order_with(&server, "k", "tea").await;
        assert_eq!((reply.status, reply.replayed()), (201, decided));
        assert_eq!(reply.body, "1: tea\u{fc}\0".as_bytes());
        assert_eq!(counter.executed().len(), usize::from(!decided));
        assert_eq!(psql(&cluster, "select count(*) from t"), "1");
        drop(recovered);
    });
}

/// The connections that were there before the server was killed fail once.
async fn until_up(server: &Server) -> Reply {
    let answered = async {
        loop {
            let reply = order_with(server, "k", "tea").await;
            if reply.status != 503 {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("the server is up again")
}

#[test]
fn a_request_that_died_undecided_is_in_flight_until_it_is_aborted_and_then_executed() {
    let test =
        "http_idempotency_doubt::a_request_that_died_undecided_is_in_flight_until_it_is_aborted_and_then_executed";
    in_doubt("voted", test);
}

#[test]
fn a_request_that_died_decided_is_in_flight_until_it_is_committed_and_then_replayed() {
    let test =
        "http_idempotency_doubt::a_request_that_died_decided_is_in_flight_until_it_is_committed_and_then_replayed";
    in_doubt("decided", test);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_serializable_many_requests_execute_once_each() {
    let mut place = OnPostgres::new();
    place.options = PostgresOptions::new().isolation(IsolationLevel::Serializable);
    let world = World::new(&place).await;
    let server = world.serve().await;
    let bodies: Vec<String> = (0..32).map(|n| format!("order {}", n / 2)).collect();
    let until_answered = async |body: &str| {
        loop {
            let reply = order_with(&server, &body.replace(' ', "-"), body).await;
            if reply.status != 409 {
                return reply;
            }
        }
    };
    let replies = futures_util::future::join_all(bodies.iter().map(|body| until_answered(body))).await;
    for pair in replies.chunks(2) {
        assert_eq!((pair[0].status, &pair[0].body), (201, &pair[1].body));
        assert_eq!([pair[0].replayed(), pair[1].replayed()].iter().filter(|&&replayed| replayed).count(), 1);
    }
    let mut orders = place.orders();
    orders.sort();
    let mut expected: Vec<_> = bodies.iter().step_by(2).cloned().collect();
    expected.sort();
    assert_eq!(orders, expected);
}

/// The client is told that nobody knows; it repeats its request, and is answered when somebody does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_unknown_outcome_a_repeat_finds_out() {
    let fatal = Said { translated: "FATAL", severity: "FATAL", code: "53100", text: "full", routine: "mdextend" };
    for (act, committed) in [
        (Act::Cut(Spot::Before), Some(false)),
        (Act::Cut(Spot::Behind), None),
        (Act::Answer(error(&fatal)), Some(true)),
        (Act::Detach, None),
    ] {
        let named = format!("{act:?}").chars().take(12).collect::<String>();
        let direct = OnPostgres::new();
        let port = direct.database().cluster().port();
        let proxy = Proxy::start(port).unwrap();
        let url = direct.database().url().replace(&format!("port={port}"), &format!("port={}", proxy.port()));
        let place = OnPostgres::at(&url);
        let manager =
            TransactionManager::builder(MemoryLog::new()).resource(place.store.clone()).build().await.unwrap();
        let counter = Counter::new();
        let app = routes(&place, &counter)
            .layer(IdempotencyLayer::new(place.keys()))
            .layer(TransactionLayer::new(manager.clone()));
        let server = serve(app).await;
        // What ends a branch in one phase, and nothing else.
        let rule = proxy.on(Direction::ToServer, "EXECUTE unanimous_guard", act);
        let first = order_with(&server, "k", "tea").await;
        first.assert_problem(500, "commit-unknown");
        assert!(rule.met(), "{named}");
        rule.release();
        let answered = async {
            loop {
                let reply = order_with(&server, "k", "tea").await;
                if ![409, 503].contains(&reply.status) {
                    return reply;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let reply = tokio::time::timeout(PATIENCE, answered).await.expect("it is found out");
        assert_eq!(reply.status, 201, "{named}");
        if let Some(committed) = committed {
            assert_eq!(reply.replayed(), committed, "{named}");
        }
        assert_eq!(counter.executed().len(), if reply.replayed() { 1 } else { 2 }, "{named}");
        assert_eq!(direct.orders(), ["tea"], "{named}");
    }
}
