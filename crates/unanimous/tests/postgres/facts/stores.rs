//! What the adapter promises of its connections: recovery has its own, nothing of a transaction reaches the next one.

use std::time::Duration;

use unanimous::postgres::tokio_postgres::Config;
use unanimous::postgres::{Postgres, PostgresError};
use unanimous::{BranchId, DeciderId, TransactionManager};
use unanimous_testing::memory::{Journal, JournalLog};

use super::{PATIENCE, Place, Two, none, said, state, why};

/// A store with few connections, whose waits end late.
fn small(name: &str, place: &Place, connections: usize) -> Postgres {
    let config: Config = place.database.url().parse().unwrap();
    Postgres::builder(name, config).max_connections(connections).lock_timeout(PATIENCE).build()
}

/// All connections of the pool wait for a lock of a branch that is prepared and has lost its own connection.
#[tokio::test]
async fn an_empty_pool_does_not_stop_phase_two() {
    let two = Two::new().await;
    assert_eq!(two.a.raw.says("insert into t values ('0')").await, none());
    let (a, b) = (small("a", &two.a, 3), two.b.store("b"));
    let log = JournalLog::new(two.log(), &Journal::default());
    let builder = TransactionManager::builder(log.clone()).resource(a.clone()).resource(b.clone());
    let manager = builder.build().await.unwrap();
    let tx = manager.begin();
    let branch = tx.join(&a).await.unwrap();
    branch.batch_execute("update t set v = v || '1'").await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    drop(branch);
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    let hold = log.hold();
    let commit = tx.commit();
    hold.reached().await;
    assert_eq!(two.b.raw.value(&format!("select pg_terminate_backend({pid}, 5000)")).await, "t");
    let waiters = waiters(&two, &manager, &a, 2).await;
    hold.release();
    assert_eq!(commit.await.unwrap().pending, 0);
    for waiter in waiters {
        super::within(waiter).await.unwrap();
    }
    assert_eq!(two.a.rows().await, ["01.."]);
}

/// The same with a branch that an earlier run has left.
#[tokio::test]
async fn an_empty_pool_does_not_stop_recovery() {
    let two = Two::new().await;
    assert_eq!(two.a.raw.says("insert into t values ('0')").await, none());
    let (a, b) = (small("a", &two.a, 2), two.b.store("b"));
    let owner = two.manager(&a, &b).await.owner();
    let manager = two.manager(&a, &b).await;
    let gid = BranchId { transaction: owner.transaction(1), decider: DeciderId::Log, number: 0 };
    let work = format!("begin; update t set v = v || '1'; prepare transaction '{gid}'");
    assert_eq!(two.a.raw.says(&work).await, none());
    let waiters = waiters(&two, &manager, &a, 2).await;
    assert_eq!(manager.recover().await, []);
    for waiter in waiters {
        super::within(waiter).await.unwrap();
    }
    assert_eq!(two.a.rows().await, ["0.."]);
}

/// Transactions that each have a connection of the store, and wait for a row's lock.
async fn waiters(
    two: &Two,
    manager: &TransactionManager,
    store: &Postgres,
    count: usize,
) -> Vec<tokio::task::JoinHandle<()>> {
    let one = || {
        let (manager, store) = (manager.clone(), store.clone());
        tokio::spawn(async move {
            let tx = manager.begin();
            tx.join(&store).await.unwrap().batch_execute("update t set v = v || '.'").await.unwrap();
            tx.commit().await.unwrap();
        })
    };
    let waiters: Vec<_> = (0..count).map(|_| one()).collect();
    let waiting =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    two.a.raw.until(waiting, &[&count.to_string()]).await;
    waiters
}

/// A join that waits for a connection is told so in time.
#[tokio::test]
async fn a_join_waits_for_a_connection_within_its_limit() {
    let two = Two::new().await;
    let config: Config = two.a.database.url().parse().unwrap();
    let a = Postgres::builder("a", config).max_connections(1).pool_timeout(Duration::from_millis(50)).build();
    let manager = two.manager(&a, &two.b.store("b")).await;
    let (one, other) = (manager.begin(), manager.begin());
    // To connect takes its time too.
    super::within(async { while one.join(&a).await.is_err() {} }).await;
    let error = other.join(&a).await.unwrap_err();
    assert!(matches!(why(&error), PostgresError::Pool(_)), "{error:?}");
    one.commit().await.unwrap();
    // It comes back when it is cleaned.
    super::within(async { while other.join(&a).await.is_err() {} }).await;
    other.abort().await;
}

/// Settings, locks, temporary tables, listeners, prepared cursors: none of it reaches the next branch on the same connection.
#[tokio::test]
async fn nothing_of_a_session_reaches_the_next_branch() {
    let two = Two::new().await;
    let config: Config = two.a.database.url().parse().unwrap();
    let a = Postgres::builder("a", config).max_connections(1).build();
    let manager = two.manager(&a, &two.b.store("b")).await;
    let leave = "set search_path = nowhere; set session characteristics as transaction isolation level serializable; \
        set default_transaction_read_only = off; set role pg_monitor; reset role; set lock_timeout = 7; listen x; \
        create temporary table left_over (v text); declare c cursor with hold for select 1; \
        select pg_advisory_lock(7)";
    let look = "select pg_backend_pid(), current_setting('search_path') = 'nowhere', \
        current_setting('transaction_isolation'), current_setting('default_transaction_read_only'), \
        current_setting('lock_timeout'), current_user = session_user, \
        (select count(*) from pg_listening_channels()), (select count(*) from pg_class where relname = 'left_over'), \
        (select count(*) from pg_cursors where name = 'c'), \
        (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";
    let mut pid = None;
    for end in ["commit", "abort", "look"] {
        let tx = manager.begin();
        let branch = tx.join(&a).await.unwrap();
        let seen = said(branch.simple_query(look).await).unwrap().remove(0);
        let (session, seen) = seen.split_once('|').unwrap();
        assert_eq!(*pid.get_or_insert(session.to_owned()), session, "the connection is used again");
        assert_eq!(seen, "f|read committed|on|5s|t|0|0|0|0", "before {end}");
        if end != "look" {
            branch.batch_execute(leave).await.unwrap();
        }
        drop(branch);
        if end == "commit" { assert_eq!(tx.commit().await.unwrap().pending, 0) } else { tx.abort().await }
    }
}

/// The time limit passes while a statement runs: the session ends, with its locks, and the connection is not given back.
#[tokio::test]
async fn a_session_whose_guard_outlives_its_transaction_ends_with_its_locks() {
    let two = Two::new().await;
    let config: Config = two.a.database.url().parse().unwrap();
    let a = Postgres::builder("a", config).max_connections(1).build();
    let manager = two.manager(&a, &two.b.store("b")).await;
    let gate = two.a.slow().await;
    let tx = manager.begin_with(unanimous::Options::default().time_limit(Duration::from_millis(300)));
    let handle = tx.handle();
    let branch = handle.join(&a).await.unwrap();
    branch.batch_execute("insert into t values ('a'); select pg_advisory_lock(9)").await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    // Waits for the gate's lock, which stays.
    let cut = super::within(branch.batch_execute("set local lock_timeout = 0; select pg_advisory_lock(1)")).await;
    assert!(cut.is_err());
    two.a.raw.until(&format!("select count(*) from pg_stat_activity where pid = {pid}"), &["0"]).await;
    assert_eq!(two.a.raw.value("select pg_try_advisory_lock(9)").await, "t");
    assert_eq!(super::code(&branch.batch_execute("select 1").await.unwrap_err()), "closed");
    drop(branch);
    drop(tx);
    // The only place in the pool is free, and has another session.
    let tx = manager.begin();
    let branch = super::within(tx.join(&a)).await.unwrap();
    assert_ne!(branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0), pid);
    drop(branch);
    tx.abort().await;
    assert_eq!(two.a.rows().await, [""; 0]);
    gate.open().await;
}

/// A name that leads to another database than it did is refused, by joins and by recovery.
#[tokio::test]
async fn a_connection_that_leads_elsewhere_is_refused() {
    let two = Two::new().await;
    let a = two.a.store("a");
    let manager = two.manager(&a, &two.b.store("b")).await;
    let client = std::sync::Arc::new(two.b.raw().await.client);
    let tx = manager.begin();
    let options = unanimous::postgres::PostgresOptions::new().client(client.clone());
    let error = tx.join_with(&a, options).await.unwrap_err();
    assert!(matches!(why(&error), PostgresError::OtherStore { .. }), "{error:?}");
    assert_eq!(said(client.simple_query("savepoint s").await), state("25P01"), "it is the application's again");
    // Another role could not finish what it prepares.
    let role = format!("app_{}", two.a.database.name());
    assert_eq!(two.a.raw.says(&format!("create role {role} login")).await, none());
    let client = std::sync::Arc::new(super::Raw::open(&two.a.database.url_as(&role)).await.client);
    let options = unanimous::postgres::PostgresOptions::new().client(client);
    let error = tx.join_with(&a, options).await.unwrap_err();
    assert!(matches!(why(&error), PostgresError::OtherRole { .. }), "{error:?}");
    tx.abort().await;
}
