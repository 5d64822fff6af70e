//! Standbys, synchronous replication and what a failover loses
//! (<https://www.postgresql.org/docs/current/warm-standby.html>; `synchronous_standby_names`).

use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use unanimous::TransactionManager;
use unanimous::postgres::{Postgres, PostgresError};
use unanimous_testing::postgres::Cluster;
use unanimous_testing::proxy::Proxy;

use super::{Raw, Two, none, state, why};
use crate::support::{aborted, unknown};

/// A primary and its standby, for one test at a time.
struct Replicated {
    primary: Cluster,
    standby: Cluster,
    /// Waits for a replica that isn't there, as long as the server does.
    probe: Option<JoinHandle<()>>,
}

/// A fresh database with a table `t (v text)`.
struct Place {
    /// Connection strings.
    primary: String,
    standby: String,
    /// Is nobody else's.
    gid: String,
}

impl Replicated {
    fn start() -> Self {
        let primary = Cluster::builder().setting("fsync", "off").start().unwrap();
        let standby = primary.replica("standby").start().unwrap();
        Self { primary, standby, probe: None }
    }

    async fn database(&self) -> Place {
        let database = self.primary.database().unwrap();
        database.psql("create table t (v text)").unwrap();
        self.caught_up().await;
        let standby = self.standby.url(database.name());
        Place { primary: database.url(), standby, gid: database.name().to_owned() }
    }

    /// Waits until the standby has all that the primary has.
    async fn caught_up(&self) {
        let at = self.primary.psql("postgres", "select pg_current_wal_lsn()").unwrap();
        let standby = Raw::open(&self.standby.url("postgres")).await;
        standby.until(&format!("select pg_last_wal_replay_lsn() >= '{at}'"), &["t"]).await;
    }

    /// From here on every commit waits for a replica that isn't there.
    async fn wait_for_nobody(&mut self) {
        self.primary.set("synchronous_standby_names", "nobody").unwrap();
        // Sessions see the setting before the process does that puts it in force: it is when a write waits.
        let watch = Raw::open(&self.primary.url("postgres")).await;
        let waits = async |pid| {
            watch.says(&format!("select from pg_stat_activity where pid = {pid} and wait_event = 'SyncRep'")).await
        };
        loop {
            let raw = Raw::open(&self.primary.url("postgres")).await;
            let pid = raw.pid;
            let probe =
                tokio::spawn(
                    async move { drop(raw.says("create table if not exists probe (); drop table probe").await) },
                );
            while !probe.is_finished() {
                if waits(pid).await.unwrap().len() == 1 {
                    self.probe = Some(probe);
                    return;
                }
            }
        }
    }

    /// Nobody is waited for any more.
    async fn wait_no_more(&mut self) {
        self.primary.set("synchronous_standby_names", "").unwrap();
        if let Some(probe) = self.probe.take() {
            // One that was waited for too long by a test that failed has panicked.
            let _ = super::within(probe).await;
        }
    }
}

async fn replicated() -> MutexGuard<'static, Replicated> {
    static SERVERS: OnceLock<Mutex<Replicated>> = OnceLock::new();
    let mut servers = SERVERS.get_or_init(|| Mutex::new(Replicated::start())).lock().await;
    // A test that failed may have left it.
    servers.wait_no_more().await;
    servers
}

/// The session waits for a replica.
async fn until_it_waits(watch: &Raw, pid: i32) {
    watch.until(&format!("select wait_event from pg_stat_activity where pid = {pid}"), &["SyncRep"]).await;
}

/// It has them, and can't show them: whether it is a standby must be asked first.
#[tokio::test]
async fn a_standby_lists_no_prepared_branches_although_there_are_some() {
    let servers = replicated().await;
    let Place { primary: url, standby: standby_url, gid } = servers.database().await;
    let (primary, standby) = (Raw::open(&url).await, Raw::open(&standby_url).await);
    assert_eq!(primary.says(&format!("begin; insert into t values ('a'); prepare transaction '{gid}'")).await, none());
    servers.caught_up().await;
    assert_eq!((primary.prepared().await, standby.prepared().await), (vec![gid.clone()], vec![]));
    assert_eq!(standby.value("select pg_is_in_recovery()").await, "t");
    assert_eq!(primary.says(&format!("rollback prepared '{gid}'")).await, none());
}

#[tokio::test]
async fn on_a_standby_nothing_can_be_prepared_or_finished_25006() {
    let servers = replicated().await;
    let Place { primary: url, standby: standby_url, gid } = servers.database().await;
    let (primary, standby) = (Raw::open(&url).await, Raw::open(&standby_url).await);
    assert_eq!(primary.says(&format!("begin; insert into t values ('a'); prepare transaction '{gid}'")).await, none());
    servers.caught_up().await;
    for statement in [&format!("commit prepared '{gid}'"), &format!("rollback prepared '{gid}'")] {
        assert_eq!(standby.says(statement).await, state("25006"));
    }
    assert_eq!(standby.says("begin").await, none());
    assert_eq!(standby.says("prepare transaction 'y'").await, state("25006"));
    assert_eq!(primary.says(&format!("rollback prepared '{gid}'")).await, none());
}

/// Also where the name led to the primary before: its list would be taken for "nothing is prepared".
#[tokio::test]
async fn a_standby_is_refused_and_confirms_nothing() {
    let servers = replicated().await;
    let Place { primary: url, standby: standby_url, .. } = servers.database().await;
    let store = Postgres::from_url("store", &standby_url).unwrap();
    for refused in [store.check().await.unwrap_err(), store.prepared().await.unwrap_err()] {
        assert!(matches!(refused, PostgresError::Standby), "{refused:?}");
        assert!(refused.to_string().contains("connect to the primary"), "{refused}");
    }
    let other = super::Place::new().await;
    let proxy = Proxy::start(servers.primary.port()).unwrap();
    let through = url.replace(&format!("port={}", servers.primary.port()), &format!("port={}", proxy.port()));
    let (a, b) = (Postgres::from_url("a", &through).unwrap(), other.store("b"));
    let disk = super::disk();
    let manager =
        TransactionManager::builder(disk.open()).resource(a.clone()).resource(b.clone()).build().await.unwrap();
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.commit().await.unwrap();
    proxy.lead_to(servers.standby.port());
    proxy.cut();
    // A connection that was cut is noticed first.
    super::within(async { while !format!("{:?}", manager.recover().await).contains("standby") {} }).await;
    let tx = manager.begin();
    let error = tx.join(&a).await.unwrap_err();
    assert!(matches!(why(&error), PostgresError::Standby), "{error:?}");
}

/// A cancel ends the wait for the replica and nothing else: prepared or committed it is, with a warning and no error. The statement's
/// time limit does not even do that, in PREPARE and COMMIT.
#[tokio::test]
async fn a_cancel_during_the_wait_for_a_replica_is_a_success_with_a_warning() {
    let mut servers = replicated().await;
    let Place { primary: url, gid, .. } = servers.database().await;
    let (raw, watch) = (Raw::open(&url).await, Raw::open(&url).await);
    for (end, listed) in [(format!("prepare transaction '{gid}'"), vec![gid.as_str()]), ("commit".to_owned(), vec![])] {
        servers.wait_for_nobody().await;
        assert_eq!(raw.says("begin; insert into t values ('a'); set local statement_timeout = 50").await, none());
        let pid = raw.pid;
        let (said, ()) = tokio::join!(raw.says(&end), async {
            until_it_waits(&watch, pid).await;
            let long = "clock_timestamp() - query_start > '200 ms'";
            watch.until(&format!("select {long} from pg_stat_activity where pid = {pid}"), &["t"]).await;
            until_it_waits(&watch, pid).await;
            assert_eq!(watch.value(&format!("select pg_cancel_backend({pid})")).await, "t");
        });
        assert_eq!((said, raw.warnings()), (none(), vec!["01000".to_owned()]), "{end}");
        assert_eq!(watch.prepared().await, listed, "{end}");
        servers.wait_no_more().await;
        if !listed.is_empty() {
            assert_eq!(watch.says(&format!("rollback prepared '{gid}'")).await, none());
        }
    }
    assert_eq!(watch.says("select v from t").await, Ok(vec!["a".into()]));
}

/// There the wait is within the statement.
#[tokio::test]
async fn statement_timeout_ends_the_wait_of_commit_prepared_which_is_a_success_with_a_warning() {
    let mut servers = replicated().await;
    let Place { primary: url, gid, .. } = servers.database().await;
    let raw = Raw::open(&url).await;
    assert_eq!(raw.says(&format!("begin; insert into t values ('a'); prepare transaction '{gid}'")).await, none());
    servers.wait_for_nobody().await;
    assert_eq!(raw.says("set statement_timeout = 500").await, none());
    assert_eq!(raw.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!((raw.warnings(), raw.prepared().await), (vec!["01000".to_owned()], vec![]));
    assert_eq!(raw.says("select v from t").await, Ok(vec!["a".into()]));
    servers.wait_no_more().await;
}

/// The client knows nothing, and the branch is listed, on no replica.
#[tokio::test]
async fn a_session_that_is_ended_during_the_wait_for_a_replica_has_prepared() {
    let mut servers = replicated().await;
    let Place { primary: url, gid, .. } = servers.database().await;
    let (raw, watch) = (Raw::open(&url).await, Raw::open(&url).await);
    servers.wait_for_nobody().await;
    assert_eq!(raw.says("begin; insert into t values ('a')").await, none());
    let pid = raw.pid;
    let prepare = format!("prepare transaction '{gid}'");
    let (said, ()) = tokio::join!(raw.says(&prepare), async {
        until_it_waits(&watch, pid).await;
        assert_eq!(watch.value(&format!("select pg_terminate_backend({pid}, 5000)")).await, "t");
    });
    // The server has nobody to tell any more.
    assert_eq!(said, state("closed"));
    assert_eq!(watch.prepared().await, [gid.as_str()]);
    servers.wait_no_more().await;
    assert_eq!(watch.says(&format!("rollback prepared '{gid}'")).await, none());
}

/// While another session finishes it; here that one waits for a replica.
#[tokio::test]
async fn what_is_being_finished_is_busy_55000() {
    let mut servers = replicated().await;
    let Place { primary: url, gid, .. } = servers.database().await;
    let (raw, watch) = (Raw::open(&url).await, Raw::open(&url).await);
    assert_eq!(raw.says(&format!("begin; insert into t values ('a'); prepare transaction '{gid}'")).await, none());
    servers.wait_for_nobody().await;
    let pid = raw.pid;
    let commit = format!("commit prepared '{gid}'");
    let (said, ()) = tokio::join!(raw.says(&commit), async {
        until_it_waits(&watch, pid).await;
        assert_eq!(watch.prepared().await, [gid.as_str()], "it is listed, although its rows are committed");
        for end in ["commit", "rollback"] {
            assert_eq!(watch.says(&format!("{end} prepared '{gid}'")).await, state("55000"));
        }
        servers.wait_no_more().await;
    });
    assert_eq!(said, none());
    assert_eq!(watch.says("select v from t").await, Ok(vec!["a".into()]));
}

/// A vote that no replica has is none: a failover would lose it.
#[tokio::test]
async fn a_vote_with_a_warning_is_not_a_vote() {
    let mut servers = replicated().await;
    let Place { primary: url, .. } = servers.database().await;
    let watch = Raw::open(&url).await;
    let other = super::Place::new().await;
    let (a, b) = (Postgres::from_url("a", &url).unwrap(), other.store("b"));
    let manager = TransactionManager::builder(super::disk().open()).resource(a.clone()).resource(b.clone());
    let manager = manager.build().await.unwrap();
    let tx = manager.begin();
    let branch = tx.join(&a).await.unwrap();
    branch.batch_execute("insert into t values ('a')").await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    drop(branch);
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    servers.wait_for_nobody().await;
    let commit = tx.commit();
    until_it_waits(&watch, pid).await;
    assert_eq!(watch.value(&format!("select pg_cancel_backend({pid})")).await, "t");
    // Fenced: its session goes, and then it is rolled back, which waits for a replica as well.
    watch.until(&format!("select count(*) from pg_stat_activity where pid = {pid}"), &["0"]).await;
    servers.wait_no_more().await;
    let error = aborted(commit.await);
    assert!(matches!(why(&error), PostgresError::NotReplicated(_)), "{error:?}");
    watch.until("select count(*) from pg_prepared_xacts where database = current_database()", &["0"]).await;
    assert_eq!((watch.says("select v from t").await, other.rows().await), (none(), vec![]));
}

/// It is visible and on no replica: neither committed nor aborted can be said.
#[tokio::test]
async fn a_one_phase_commit_with_a_warning_is_unknown() {
    let mut servers = replicated().await;
    let Place { primary: url, .. } = servers.database().await;
    let watch = Raw::open(&url).await;
    let store = Postgres::from_url("store", &url).unwrap();
    let manager = TransactionManager::builder(super::disk().open()).resource(store.clone()).build().await.unwrap();
    let tx = manager.begin();
    let branch = tx.join(&store).await.unwrap();
    branch.batch_execute("insert into t values ('a')").await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    drop(branch);
    servers.wait_for_nobody().await;
    let commit = tx.commit();
    until_it_waits(&watch, pid).await;
    assert_eq!(watch.value(&format!("select pg_cancel_backend({pid})")).await, "t");
    let error = unknown(commit.await);
    assert!(matches!(why(&error), PostgresError::NotReplicated(_)), "{error:?}");
    assert_eq!(watch.says("select v from t").await, Ok(vec!["a".into()]));
    servers.wait_no_more().await;
}

/// Its warnings can't be seen through a pool that the application made, so that such a pool is refused there.
#[tokio::test]
async fn a_pool_whose_warnings_are_unseen_is_refused_where_replication_is_synchronous() {
    use unanimous::postgres::deadpool_postgres::{Manager, Pool};
    let mut servers = replicated().await;
    let Place { primary: url, .. } = servers.database().await;
    servers.primary.set("synchronous_standby_names", "standby").unwrap();
    let manager = Manager::new(url.parse().unwrap(), unanimous::postgres::tokio_postgres::NoTls);
    let store = Postgres::new("store", Pool::builder(manager).max_size(1).build().unwrap());
    let error = store.check().await.unwrap_err();
    assert!(matches!(error, PostgresError::WarningsUnseen), "{error:?}");
    Postgres::from_url("store", &url).unwrap().check().await.unwrap();
    servers.wait_no_more().await;
}

/// Asynchronous replication can lose what was acknowledged, and bring back what was finished. The decision is kept for that, and
/// recovery finishes it again.
#[tokio::test]
async fn after_an_asynchronous_failover_a_prepare_is_gone_and_a_committed_one_is_prepared_again() {
    let mut servers = Replicated::start();
    let Place { primary: url, standby: standby_url, .. } = servers.database().await;
    let two = Two { a: super::Place::new().await, b: super::Place::new().await, log: super::disk() };
    let proxy = Proxy::start(servers.primary.port()).unwrap();
    let through = url.replace(&format!("port={}", servers.primary.port()), &format!("port={}", proxy.port()));
    let (a, b) = (Postgres::from_url("a", &through).unwrap(), two.b.store("b"));
    let log = unanimous_testing::memory::JournalLog::new(two.log(), &Default::default());
    let builder = TransactionManager::builder(log.clone()).resource(a.clone()).resource(b.clone());
    let manager = builder.recovery_interval(Duration::from_secs(3600)).build().await.unwrap();
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    let hold = log.hold();
    let commit = tx.commit();
    hold.reached().await;
    // The standby has the prepare, and not what comes after it.
    servers.caught_up().await;
    servers.standby.stop_fast().unwrap();
    hold.release();
    assert_eq!(commit.await.unwrap().pending, 0);
    assert_eq!(
        Raw::open(&url).await.says("begin; insert into t values ('x'); prepare transaction 'lost'").await,
        none()
    );
    servers.primary.kill().unwrap();
    servers.standby.restart().unwrap();
    servers.standby.promote().unwrap();

    let raw = Raw::open(&standby_url).await;
    let prepared = raw.prepared().await;
    assert!(matches!(&prepared[..], [gid] if gid.starts_with("u1:")), "the committed one only: {prepared:?}");
    assert_eq!(raw.says("select v from t").await, none());
    // The store's address leads to the new primary.
    proxy.lead_to(servers.standby.port());
    proxy.cut();
    super::within(async { while !manager.recover().await.is_empty() {} }).await;
    assert_eq!(manager.recover().await, []);
    assert_eq!(raw.prepared().await, [""; 0]);
    assert_eq!(raw.says("select v from t").await, Ok(vec!["a".into()]));
    assert_eq!(two.b.rows().await, ["b"]);
}
