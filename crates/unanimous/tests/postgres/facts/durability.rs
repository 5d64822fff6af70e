//! What a killed, stopped or restarted server keeps
//! (<https://www.postgresql.org/docs/current/runtime-config-wal.html>, `synchronous_commit`; `pg_ctl`'s modes).
//!
//! One server, which the tests kill in turn.

use std::sync::OnceLock;

use rustix::process::Signal;
use tokio::sync::{Mutex, MutexGuard};
use unanimous::log::MemoryLog;
use unanimous::postgres::Postgres;
use unanimous::{
    Branch as _, BranchContext, BranchId, DeciderId, DecisionLog as _, Doubt, ResourceManager as _, TransactionManager,
};
use unanimous_testing::memory::{Journal, JournalLog};
use unanimous_testing::postgres::Cluster;
use unanimous_testing::proxy::{Act, Proxy};

use super::{Place, Raw, none, state};
use crate::support::warnings::Warnings;

/// What was not forced does not reach the disk by itself: its writer looks every ten seconds, and nothing else writes.
async fn server() -> MutexGuard<'static, Cluster> {
    static SERVER: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let server = SERVER.get_or_init(|| {
        let settings = [("wal_writer_delay", "10s"), ("autovacuum", "off"), ("fsync", "off")];
        let builder = settings.iter().fold(Cluster::builder(), |builder, (name, value)| builder.setting(name, value));
        Mutex::new(builder.start().unwrap())
    });
    let mut server = server.lock().await;
    if server.pid().is_none() {
        // A test that failed has left it so.
        server.restart().unwrap();
    }
    server
}

/// A fresh database with a table `t (v text)`: its connection string.
fn database(server: &Cluster) -> String {
    let database = server.database().unwrap();
    database.psql("create table t (v text)").unwrap();
    database.url()
}

/// Waits until a new connection is refused with this code.
async fn until_refused(url: &str, code: &str) {
    super::within(async {
        while Raw::try_open(url).await.err().is_none_or(|error| super::code(&error) != code) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// PREPARE and COMMIT PREPARED force, whatever the setting says; a plain COMMIT does not.
#[tokio::test]
async fn with_synchronous_commit_off_a_kill_loses_plain_commits_and_nothing_prepared() {
    let mut server = server().await;
    let url = database(&server);
    let raw = Raw::open(&url).await;
    assert_eq!(raw.says("set synchronous_commit = off").await, none());
    assert_eq!(raw.says("begin; insert into t values ('prepared'); prepare transaction 'x'").await, none());
    assert_eq!(raw.says("begin; insert into t values ('committed'); prepare transaction 'y'").await, none());
    assert_eq!(raw.says("commit prepared 'y'").await, none());
    assert_eq!(raw.says("insert into t values ('plain')").await, none());
    server.kill().unwrap();
    server.restart().unwrap();
    let raw = Raw::open(&url).await;
    assert_eq!(raw.prepared().await, ["x"]);
    assert_eq!(raw.says("commit prepared 'x'").await, none());
    assert_eq!(raw.says("select v from t order by v").await, Ok(vec!["committed".into(), "prepared".into()]));
}

/// So a one-phase commit sets `synchronous_commit` for itself.
#[tokio::test]
async fn a_one_phase_commit_survives_a_kill_although_synchronous_commit_is_off() {
    let mut server = server().await;
    let url = format!("{} options='-c synchronous_commit=off'", database(&server));
    let store = Postgres::from_url("store", &url).unwrap();
    let manager = TransactionManager::builder(super::disk().open()).resource(store.clone()).build().await.unwrap();
    let tx = manager.begin();
    let branch = tx.join(&store).await.unwrap();
    branch.batch_execute("insert into t values ('a')").await.unwrap();
    assert_eq!(super::said(branch.simple_query("show synchronous_commit").await), Ok(vec!["off".into()]));
    drop(branch);
    tx.commit().await.unwrap();
    server.kill().unwrap();
    server.restart().unwrap();
    assert_eq!(Raw::open(&url).await.says("select v from t").await, Ok(vec!["a".into()]));
}

/// Why a number is not asked for after a one-phase commit: what was not forced is forgotten, its number is given again, and the answer
/// is another transaction's.
#[tokio::test]
async fn after_a_crash_a_transactions_number_is_given_again() {
    let mut server = server().await;
    let url = database(&server);
    let raw = Raw::open(&url).await;
    assert_eq!(raw.says("set synchronous_commit = off; checkpoint").await, none());
    assert_eq!(raw.says("begin; insert into t values ('lost')").await, none());
    let number = raw.value("select pg_current_xact_id()").await;
    assert_eq!(raw.says("commit").await, none());
    server.kill().unwrap();
    server.restart().unwrap();
    let raw = Raw::open(&url).await;
    assert_eq!(raw.says("begin; insert into t values ('another')").await, none());
    assert_eq!(raw.value("select pg_current_xact_id()").await, number);
    assert_eq!(raw.says("commit").await, none());
    assert_eq!(raw.value(&format!("select pg_xact_status('{number}')")).await, "committed");
    assert_eq!(raw.says("select v from t").await, Ok(vec!["another".into()]));
}

/// A vote that was lost: its number may be another's by the time that it is rolled back, and what that one did is nobody's heuristic.
#[tokio::test]
async fn the_number_of_what_was_never_prepared_is_not_asked_for() {
    let mut server = server().await;
    let url = database(&server);
    let proxy = Proxy::start(server.port()).unwrap();
    let behind = url.replace(&format!("port={}", server.port()), &format!("port={}", proxy.port()));
    let store = Postgres::from_url("store", &behind).unwrap();
    let raw = Raw::open(&url).await;
    assert_eq!(raw.says("set synchronous_commit = off; checkpoint").await, none());
    let id = BranchId { transaction: MemoryLog::new().owner().transaction(1), decider: DeciderId::Log, number: 0 };
    let branch = store.begin(&BranchContext::new(id.transaction), Default::default()).await.unwrap();
    branch.batch_execute("insert into t values ('lost')").await.unwrap();
    branch.flush().await.unwrap();
    let number: String = branch.query_one("select pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    let lost = proxy.on("PREPARE TRANSACTION", Act::LoseQuestion);
    branch.prepare(&id).await.unwrap_err();
    assert!(lost.met());
    server.kill().unwrap();
    server.restart().unwrap();
    let raw = Raw::open(&url).await;
    assert_eq!(raw.says("begin; insert into t values ('another')").await, none());
    assert_eq!(raw.value("select pg_current_xact_id()").await, number);
    assert_eq!(raw.says("commit").await, none());
    let warnings = Warnings::collect();
    super::within(async { while branch.rollback().await.is_err() {} }).await;
    assert_eq!(warnings.with(&["ERROR"]), Vec::<String>::new());
    assert_eq!(raw.says("select v from t").await, Ok(vec!["another".into()]));
}

#[tokio::test]
async fn after_kill_9_prepared_branches_and_their_locks_are_there() {
    let mut server = server().await;
    let url = database(&server);
    let mut raw = Raw::open(&url).await;
    assert_eq!(raw.says("insert into t values ('a')").await, none());
    assert_eq!(raw.says("begin; update t set v = 'b'; prepare transaction 'x'").await, none());
    server.kill().unwrap();
    // A session that notices that its server is gone says so.
    let ended = raw.ended().await;
    assert!(["closed", "57P01"].contains(&ended.as_str()), "{ended}");
    // Nobody listens: no code, and no answer.
    let refused = Raw::try_open(&url).await.unwrap_err();
    assert!(super::code(&refused) == "closed" && format!("{refused:?}").contains("ConnectionRefused"), "{refused:?}");
    server.restart().unwrap();
    let raw = Raw::open(&url).await;
    assert_eq!(raw.prepared().await, ["x"]);
    assert_eq!(raw.says("set lock_timeout = 50").await, none());
    assert_eq!(raw.says("update t set v = 'c'").await, state("55P03"));
    assert_eq!(raw.says("commit prepared 'x'").await, none());
    assert_eq!(raw.says("select v from t").await, Ok(vec!["b".into()]));
}

/// With a warning, which is no answer to anything, and may not arrive: the session doesn't wait for it.
#[tokio::test]
async fn an_immediate_stop_warns_its_clients_with_57p01() {
    let mut server = server().await;
    let url = database(&server);
    super::within(async {
        loop {
            let mut raw = Raw::open(&url).await;
            server.stop_immediate().unwrap();
            let ended = raw.ended().await;
            server.restart().unwrap();
            if warned(&ended, raw.warnings(), "57P01") {
                return;
            }
        }
    })
    .await;
}

/// The connection was closed. Whether a warning came before that, which can only be this one.
fn warned(ended: &str, warnings: Vec<String>, code: &str) -> bool {
    assert_eq!(ended, "closed");
    assert!(warnings.is_empty() || warnings == [code], "{warnings:?}");
    !warnings.is_empty()
}

/// All sessions of the server end when one is killed; what is prepared stays.
#[tokio::test]
async fn a_session_that_is_killed_ends_the_others_with_57p02() {
    let server = server().await;
    let url = database(&server);
    let prepare = "begin; insert into t values ('a'); prepare transaction 'x'";
    assert_eq!(Raw::open(&url).await.says(prepare).await, none());
    super::within(async {
        loop {
            let (killed, mut other) = (Raw::open(&url).await, Raw::open(&url).await);
            let id = rustix::process::Pid::from_raw(killed.pid).unwrap();
            rustix::process::kill_process(id, Signal::KILL).unwrap();
            let ended = other.ended().await;
            // The server starts its processes anew, and refuses (57P03) until it has recovered.
            let raw = loop {
                match Raw::try_open(&url).await {
                    Ok(raw) => break raw,
                    Err(error) => assert!(["57P03", "closed"].contains(&super::code(&error).as_str()), "{error:?}"),
                }
            };
            assert_eq!(raw.prepared().await, ["x"]);
            if warned(&ended, other.warnings(), "57P02") {
                assert_eq!(raw.says("commit prepared 'x'").await, none());
                assert_eq!(raw.says("select v from t").await, Ok(vec!["a".into()]));
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn in_a_smart_shutdown_who_is_there_may_finish_and_others_get_57p03() {
    let mut server = server().await;
    let url = database(&server);
    let raw = Raw::open(&url).await;
    assert_eq!(raw.says("begin; insert into t values ('a'); prepare transaction 'x'").await, none());
    server.signal(Signal::TERM).unwrap();
    until_refused(&url, "57P03").await;
    assert_eq!(raw.says("commit prepared 'x'").await, none());
    assert_eq!(raw.says("select v from t").await, Ok(vec!["a".into()]));
    drop(raw);
    server.restart().unwrap();
}

/// The branch's own connection prepares and commits, when no new ones are taken.
#[tokio::test]
async fn a_commit_goes_through_a_smart_shutdown() {
    let mut server = server().await;
    let (url, other) = (database(&server), Place::new().await);
    let (a, b) = (Postgres::from_url("a", &url).unwrap(), other.store("b"));
    let log = JournalLog::new(super::disk().open(), &Journal::default());
    let builder = TransactionManager::builder(log.clone()).resource(a.clone()).resource(b.clone());
    let manager = builder.build().await.unwrap();
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    let hold = log.hold();
    let commit = tx.commit();
    hold.reached().await;
    server.signal(Signal::TERM).unwrap();
    until_refused(&url, "57P03").await;
    hold.release();
    assert_eq!(commit.await.unwrap().pending, 0);
    assert_eq!(other.rows().await, ["b"]);
    drop((manager, a));
    server.restart().unwrap();
    assert_eq!(Raw::open(&url).await.says("select v from t").await, Ok(vec!["a".into()]));
}

/// The server is killed between the phases: the caller is told what is pending, and it is finished when the server is back.
#[tokio::test]
async fn a_server_that_is_killed_between_the_phases_is_finished_when_it_is_back() {
    let mut server = server().await;
    let (url, other) = (database(&server), Place::new().await);
    let (a, b) = (Postgres::from_url("a", &url).unwrap(), other.store("b"));
    let log = JournalLog::new(super::disk().open(), &Journal::default());
    let builder = TransactionManager::builder(log.clone()).resource(a.clone()).resource(b.clone());
    let manager = builder.phase_two_wait(std::time::Duration::from_millis(200)).build().await.unwrap();
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    let hold = log.hold();
    let commit = tx.commit();
    hold.reached().await;
    server.kill().unwrap();
    hold.release();
    assert_eq!(commit.await.unwrap().pending, 1);
    assert_eq!(other.rows().await, ["b"]);
    server.restart().unwrap();
    let raw = Raw::open(&url).await;
    raw.until("select v from t", &["a"]).await;
    assert_eq!(raw.prepared().await, [""; 0]);
}

/// Neither the start nor transactions that don't use it; what it has prepared is finished when it is back.
#[tokio::test]
async fn a_server_that_is_down_at_the_start_stops_nobody() {
    let mut server = server().await;
    let (url, other) = (database(&server), Place::new().await);
    let (a, b) = (Postgres::from_url("a", &url).unwrap(), other.store("b"));
    let disk = super::disk();
    let owner = {
        let builder = TransactionManager::builder(disk.open()).resource(a.clone()).resource(b.clone());
        builder.build().await.unwrap().owner()
    };
    let decider = unanimous::DeciderId::Log;
    let gid = unanimous::BranchId { transaction: owner.transaction(1), decider, number: 0 };
    let work = format!("begin; insert into t values ('orphan'); prepare transaction '{gid}'");
    assert_eq!(Raw::open(&url).await.says(&work).await, none());
    server.stop_fast().unwrap();

    // The next run has not met the server before.
    let (a, b) = (Postgres::from_url("a", &url).unwrap(), other.store("b"));
    let builder = TransactionManager::builder(disk.open()).resource(a.clone()).resource(b.clone());
    let manager = builder.build().await.unwrap();
    assert!(matches!(manager.in_doubt()[..], [ref doubt] if matches!(doubt.why, Doubt::Unreachable(_))));
    let tx = manager.begin();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    assert!(tx.join(&a).await.is_err());
    tx.commit().await.unwrap();
    assert_eq!(other.rows().await, ["b"]);

    server.restart().unwrap();
    let raw = Raw::open(&url).await;
    raw.until("select count(*) from pg_prepared_xacts where database = current_database()", &["0"]).await;
    assert_eq!(raw.says("select v from t").await, none(), "it was never decided");
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('c')").await.unwrap();
    assert_eq!(tx.commit().await.unwrap().pending, 0);
}

/// The branches need their slots.
#[tokio::test]
async fn with_branches_present_a_server_does_not_start_without_slots() {
    let folder = tempfile::tempdir().unwrap();
    let builder = |slots| {
        let builder = Cluster::builder().folder(folder.path()).setting("fsync", "off");
        builder.setting("max_prepared_transactions", slots)
    };
    let server = builder(1).start().unwrap();
    server.psql("postgres", "begin; prepare transaction 'x'").unwrap();
    drop(server);
    let error = builder(0).start().unwrap_err();
    assert!(error.to_string().contains("maximum number of prepared transactions reached"), "{error}");
    let server = builder(1).start().unwrap();
    assert_eq!(server.psql("postgres", "select gid from pg_prepared_xacts").unwrap(), "x");
    server.psql("postgres", "rollback prepared 'x'").unwrap();
}
