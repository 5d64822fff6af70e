//! Early acknowledgement with real databases and a log in files: the process is killed between the answer and the record, and the next one
//! commits what was acknowledged. A test starts itself again as a child, which an environment variable tells what to do.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use unanimous::log::FileLog;
use unanimous::postgres::{Postgres, PostgresError};
use unanimous::{
    BoxError, BranchId, DecideError, Decider, DeciderId, DecisionLog, DecisionRecord, Incarnation, Known, KnownOutcome,
    LogId, Owner, ResourceManager, Roster, StoreError, StoreTag, TransactionId, TransactionManager,
};
use unanimous_testing::postgres::Cluster;
use unanimous_testing::process::Program;

use super::decisions::until;
use super::{Pair, TABLE, connect, prepared};

const CHILD: &str = "UNANIMOUS_TEST_EARLY_CHILD";
const PATIENCE: Duration = Duration::from_secs(60);

/// A log in files to which no decision comes.
struct Unreached(FileLog);

impl Decider for Unreached {
    async fn lookup(&self, transaction: TransactionId) -> Result<Known, StoreError> {
        self.0.lookup(transaction).await
    }

    async fn unfinished(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        self.0.unfinished().await
    }

    fn forget(&self, transaction: TransactionId) {
        self.0.forget(transaction);
    }
}

impl DecisionLog for Unreached {
    fn owner(&self) -> Owner {
        self.0.owner()
    }

    fn take(&self) -> bool {
        self.0.take()
    }

    fn ready(&self) -> Result<(), BoxError> {
        self.0.ready()
    }

    async fn decide(&self, _: DecisionRecord) -> Result<(), DecideError> {
        std::future::pending().await
    }

    fn records_aborts(&self) -> bool {
        true
    }

    async fn recorded(&self, transaction: TransactionId) -> Result<Option<Known>, StoreError> {
        self.0.recorded(transaction).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

/// Commits one transaction after the other as `value N`, and says what was answered; where the log is not reached only the first one.
async fn child(told: &str) {
    let [log, orders, billing, reached] = told.split('|').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let [orders, billing] = [("orders", orders), ("billing", billing)].map(|(name, url)| Postgres::from_url(name, url));
    let (orders, billing) = (orders.unwrap(), billing.unwrap());
    let log = FileLog::open(log).await.unwrap();
    let builder = match reached {
        "reached" => TransactionManager::builder(log),
        _ => TransactionManager::builder(Unreached(log)),
    };
    let builder = builder.resource(orders.clone()).resource(billing.clone());
    let manager = builder.early_acknowledgement(true).build().await.unwrap();
    for n in 1.. {
        let tx = manager.begin();
        let id = tx.id();
        for store in [&orders, &billing] {
            tx.join(store).await.unwrap().execute("insert into t (v) values ($1)", &[&format!("{id}")]).await.unwrap();
        }
        assert_eq!(tx.commit().await.unwrap().pending, 2);
        println!("answered: {id}.");
        if reached != "reached" {
            assert_eq!(n, 1);
            std::future::pending::<()>().await;
        }
    }
}

fn start(test: &str, log: &Path, pair: &Pair, reached: &str) -> Program {
    let told = format!("{}|{}|{}|{reached}", log.display(), pair.orders.url(), pair.billing.url());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, told);
    Program::start(&mut command).unwrap()
}

fn answered(line: &str) -> Option<TransactionId> {
    line.split_once("answered: ")?.1.strip_suffix('.')?.parse().ok()
}

async fn recover(log: &Path, pair: &Pair) -> TransactionManager {
    let (orders, billing) = pair.stores();
    let log = FileLog::options().lock_wait(PATIENCE).open(log).await.unwrap();
    TransactionManager::builder(log).resource(orders).resource(billing).build().await.unwrap()
}

/// kill -9 between the answer and the record: both are prepared, each lists both, and the next start records and commits them.
#[tokio::test]
async fn killed_between_the_answer_and_the_record() {
    if let Ok(told) = std::env::var(CHILD) {
        return child(&told).await;
    }
    let (pair, folder) = (Pair::new(), tempfile::tempdir().unwrap());
    let test = "postgres::early::killed_between_the_answer_and_the_record";
    let mut process = start(test, folder.path(), &pair, "never");
    let id = process.wait_for_line(PATIENCE, answered).unwrap();
    process.kill().unwrap();
    let (orders, billing) = (prepared(&pair.orders), prepared(&pair.billing));
    assert_eq!(pair.values(), ["", ""]);
    let list = orders.split(':').nth(2).and_then(|branch| branch.rsplit_once('.')).unwrap().0;
    assert!(list.starts_with("log.0") && billing.contains(list), "{orders} {billing}");
    let view = unanimous::log::read(folder.path()).unwrap();
    assert_eq!(view.history().recorded(id), None, "nothing is recorded");
    drop(view);
    let manager = recover(folder.path(), &pair).await;
    assert_eq!(pair.values(), [id.to_string(), id.to_string()]);
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
    assert_eq!(manager.outcome(id).await, KnownOutcome::Committed);
    assert_eq!(manager.in_doubt(), []);
    manager.shutdown(PATIENCE).await.unwrap();
}

/// kill -9 at any moment of transactions that follow one another: what was answered is there, in both, and nothing is in one only.
#[tokio::test]
async fn killed_while_it_answers() {
    if let Ok(told) = std::env::var(CHILD) {
        return child(&told).await;
    }
    let (pair, folder) = (Pair::new(), tempfile::tempdir().unwrap());
    for round in 0..6 {
        let mut process = start("postgres::early::killed_while_it_answers", folder.path(), &pair, "reached");
        let wanted = 1 + 3 * round;
        let last = |line: &str| answered(line).filter(|id| id.sequence >= wanted);
        let id = process.wait_for_line(PATIENCE, last).unwrap();
        process.kill().unwrap();
        let manager = recover(folder.path(), &pair).await;
        // What its sessions were told may still land, and is ended then.
        manager.recover().await;
        let [orders, billing] = pair.values();
        assert!(orders.split(' ').any(|value| value == id.to_string()), "{id} was answered: {orders}");
        assert_eq!(orders, billing, "round {round}");
        manager.shutdown(PATIENCE).await.unwrap();
    }
}

/// The price: an operator who rolls a branch back before the record is there loses the transaction, and recovery rolls back the rest.
#[tokio::test]
async fn an_operators_rollback_before_the_record_loses_it() {
    if let Ok(told) = std::env::var(CHILD) {
        return child(&told).await;
    }
    let (pair, folder) = (Pair::new(), tempfile::tempdir().unwrap());
    let test = "postgres::early::an_operators_rollback_before_the_record_loses_it";
    let mut process = start(test, folder.path(), &pair, "never");
    let id = process.wait_for_line(PATIENCE, answered).unwrap();
    process.kill().unwrap();
    pair.billing.psql(&format!("rollback prepared '{}'", prepared(&pair.billing))).unwrap();
    let manager = recover(folder.path(), &pair).await;
    assert_eq!(pair.values(), ["", ""]);
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
    assert_eq!(manager.outcome(id).await, KnownOutcome::Aborted);
    let view = unanimous::log::read(folder.path()).unwrap();
    assert_eq!(view.history().recorded(id), Some(Known::Abort));
    manager.shutdown(PATIENCE).await.unwrap();
}

/// A PREPARE that waits for a replica is listed already. No conclusion comes from that before the replica has it, nor from a wait that was canceled.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_that_no_replica_has_confirmed_is_not_concluded_from() {
    let mut cluster = Cluster::start().unwrap();
    cluster.create_database("orders").unwrap();
    cluster.psql("orders", TABLE).unwrap();
    // Recovery's own setting is a weaker one than the prepare's.
    let url = format!("{} options='-c synchronous_commit=local'", cluster.url("orders"));
    let store = Postgres::from_url("orders", &url).unwrap();
    let owner = Owner { log: LogId(7), incarnation: Incarnation { counter: 3, nonce: 11 } };
    let roster = Roster::new([(0, StoreTag::of(&store.identity().await.unwrap()))]).unwrap();
    let id = BranchId { transaction: owner.transaction(1), decider: DeciderId::Together(roster), number: 0 };
    cluster.set("synchronous_standby_names", "nobody").unwrap();
    let session = connect(&cluster.url("orders")).await;
    let waiting = "select pid from pg_stat_activity where wait_event = 'SyncRep'";
    let watch = connect(&cluster.url("postgres")).await;
    let waits = async |count: usize| watch.query(waiting, &[]).await.unwrap().len() == count;
    // The setting reaches each session when it is next told something.
    let set = async || session.simple_query("show synchronous_standby_names").await;
    until("the setting", async || format!("{:?}", set().await.unwrap()).contains("nobody")).await;
    let gid = id.to_string();
    let preparing = tokio::spawn(async move {
        let sql = format!("begin; insert into t (v) values ('row'); prepare transaction '{gid}'");
        session.batch_execute(&sql).await
    });
    until("the prepare waits", async || waits(1).await).await;
    assert_eq!(store.in_doubt().await.unwrap(), std::slice::from_ref(&id), "it is listed");
    let listing = |store: Postgres| tokio::spawn(async move { store.durably_in_doubt().unwrap().await });
    let list = listing(store.clone());
    until("its list waits too", async || waits(2).await).await;
    let cancel = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep' and query like '%emit_message%'";
    assert_eq!(watch.query(cancel, &[]).await.unwrap().len(), 1);
    let error = list.await.unwrap().unwrap_err();
    let source = error.source().and_then(|source| source.downcast_ref());
    assert!(matches!(source, Some(PostgresError::NotReplicated(_))), "{error:?}");
    let list = listing(store.clone());
    until("its list waits again", async || waits(2).await).await;
    list.abort();
    assert!(list.await.unwrap_err().is_cancelled());
    let list = listing(store.clone());
    let second = "select count(*) from pg_stat_activity where query like '%emit_message%' and pid <> pg_backend_pid() and state <> 'idle'";
    until("it waits in place of the one that was given up", async || {
        waits(2).await && watch.query_one(second, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    cluster.set("synchronous_standby_names", "").unwrap();
    assert_eq!(list.await.unwrap().unwrap(), std::slice::from_ref(&id));
    preparing.await.unwrap().unwrap();
    store.rollback(&id).await.unwrap();
    assert_eq!(store.durably_in_doubt().unwrap().await.unwrap(), []);
}
