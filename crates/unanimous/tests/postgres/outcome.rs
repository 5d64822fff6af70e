//! What can be said of a transaction by its id, with real databases and a log in files, over a restart: what the log decided, what a carrier's
//! row says, what recovery rolled back, and what nobody knows any more.

use std::path::Path;
use std::time::Duration;

use unanimous::KnownOutcome::{Aborted, Committed, InDoubt, NotKnown};
use unanimous::log::{FileLog, MemoryLog};
use unanimous::postgres::{Postgres, PostgresLog, tokio_postgres};
use unanimous::{
    Incarnation, KnownOutcome, LogId, Owner, ResourceManager, Transaction, TransactionId, TransactionManager, Waiting,
};
use unanimous_testing::postgres::Cluster;

use super::Pair;

/// How long a test waits for what must happen before it fails.
const PATIENCE: Duration = Duration::from_secs(60);

async fn open(log: &Path, orders: &Postgres, billing: &Postgres) -> TransactionManager {
    let log = FileLog::open(log).await.unwrap();
    TransactionManager::builder(log).resource(orders.clone()).resource(billing.clone()).build().await.unwrap()
}

async fn wrote(manager: &TransactionManager, stores: &[&Postgres]) -> Transaction {
    let tx = manager.begin();
    for store in stores {
        let value = format!("{} {}", tx.id(), store.name());
        tx.join(*store).await.unwrap().execute("insert into t (v) values ($1)", &[&value]).await.unwrap();
    }
    tx
}

fn stores(pair: &Pair, carrier: bool) -> (Postgres, Postgres) {
    let (orders, billing) = pair.stores();
    if !carrier {
        return (orders, billing);
    }
    let config: tokio_postgres::Config = pair.billing.url().parse().unwrap();
    (orders, Postgres::builder("billing", config).carrier().build())
}

/// In a runtime of its own, which ends as a killed process would: nobody is left to finish anything.
fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let value = runtime.block_on(work);
        runtime.shutdown_background();
        value
    })
    .join()
    .unwrap()
}

/// The ids that a first run leaves, and what a second one says of them.
struct Left {
    log: TransactionId,
    one_phase: TransactionId,
    refused: TransactionId,
    prepared: TransactionId,
}

fn first_run(log: &Path, pair: &Pair, carrier: bool) -> Left {
    let (orders, billing) = stores(pair, carrier);
    let log = log.to_owned();
    run(async move {
        let manager = open(&log, &orders, &billing).await;
        let tx = wrote(&manager, &[&orders, &billing]).await;
        let both = tx.id();
        tx.commit().await.unwrap();
        let tx = wrote(&manager, &[&orders]).await;
        let one_phase = tx.id();
        tx.commit().await.unwrap();
        let tx = wrote(&manager, &[&orders, &billing]).await;
        let refused = tx.id();
        tx.doom();
        tx.commit().await.unwrap_err();
        let tx = wrote(&manager, &[&orders, &billing]).await;
        let prepared = tx.id();
        for (id, known) in [(both, Committed), (one_phase, Committed), (refused, Aborted)] {
            assert_eq!(manager.outcome(id).await, known);
        }
        assert_eq!(manager.outcome(prepared).await, InDoubt(Waiting::End));
        Left { log: both, one_phase, refused, prepared }
    })
}

fn second_run(log: &Path, pair: &Pair, carrier: bool, ids: Vec<TransactionId>) -> Vec<KnownOutcome> {
    let (orders, billing) = stores(pair, carrier);
    let log = log.to_owned();
    run(async move {
        let manager = open(&log, &orders, &billing).await;
        let mut known = Vec::new();
        for id in ids {
            known.push(manager.outcome(id).await);
        }
        known
    })
}

#[test]
fn over_a_restart_with_a_log_in_files() {
    for carrier in [false, true] {
        let pair = Pair::new();
        let log = tempfile::tempdir().unwrap();
        let left = first_run(log.path(), &pair, carrier);
        // As a crash between its vote and the decision leaves it.
        let gid = format!("u1:{}:log.0", left.prepared);
        pair.orders
            .psql(&format!("begin; insert into t (v) values ('in doubt'); prepare transaction '{gid}'"))
            .unwrap();
        let ids = vec![left.log, left.one_phase, left.refused, left.prepared];
        // One writer leaves no record, and neither does an abort: nothing is guessed of either.
        let expected = [Committed, NotKnown, NotKnown, Aborted];
        assert_eq!(second_run(log.path(), &pair, carrier, ids.clone()), expected, "carrier: {carrier}");
        assert_eq!(super::prepared(&pair.orders), "");
        // What recovery found is not kept over another restart; the decision is.
        assert_eq!(second_run(log.path(), &pair, carrier, ids)[..2], [Committed, NotKnown], "carrier: {carrier}");
        if carrier {
            let rows = pair.billing.psql("select string_agg(outcome, ' ') from unanimous.decision").unwrap();
            assert_eq!(rows, "commit", "asking wrote a row");
        }
    }
}

/// Nodes that share a log's tables: each tells of the others what they decided, and nothing else.
#[tokio::test]
async fn another_nodes_decision_in_a_shared_log() {
    let pair = Pair::new();
    let (orders, billing) = pair.stores();
    let url = pair.orders.url();
    let one = PostgresLog::open(&url, "one").await.unwrap();
    let two = PostgresLog::open(&url, "two").await.unwrap();
    let one =
        TransactionManager::builder(one).resource(orders.clone()).resource(billing.clone()).build().await.unwrap();
    let two =
        TransactionManager::builder(two).resource(orders.clone()).resource(billing.clone()).build().await.unwrap();
    let tx = wrote(&one, &[&orders, &billing]).await;
    let decided = tx.id();
    assert_eq!(two.outcome(decided).await, NotKnown, "it is under way elsewhere");
    tx.commit().await.unwrap();
    assert_eq!(two.outcome(decided).await, Committed);
    let tx = wrote(&one, &[&orders]).await;
    let one_phase = tx.id();
    tx.commit().await.unwrap();
    assert_eq!((one.outcome(one_phase).await, two.outcome(one_phase).await), (Committed, NotKnown));
    let rows = pair.orders.psql("select count(*) from unanimous.decision").unwrap();
    assert_eq!(rows, "1", "asking wrote a row");
}

/// Whoever asks for ids that somebody made up has two of the store's connections at most: the others work, and so do recovery and phase two
/// (rule 14). What can't be is told without a look, and what was found is read once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_leave_the_store_its_connections() {
    let cluster = Cluster::builder().setting("max_connections", 20).start().unwrap();
    let url = |name: &str| {
        cluster.create_database(name).unwrap();
        cluster.psql(name, "create table t (id bigserial primary key, v text)").unwrap();
        cluster.url(name)
    };
    let orders = Postgres::from_url("orders", &url("orders")).unwrap();
    let config: tokio_postgres::Config = url("billing").parse().unwrap();
    let billing = Postgres::builder("billing", config).carrier().lock_timeout(PATIENCE).build();
    let builder = TransactionManager::builder(MemoryLog::new()).store_wait(PATIENCE);
    let manager = builder.resource(orders.clone()).resource(billing.clone()).build().await.unwrap();
    wrote(&manager, &[&orders, &billing]).await.commit().await.unwrap();
    let (mut blocker, connection) =
        tokio_postgres::connect(&cluster.url("billing"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let blocking = blocker.transaction().await.unwrap();
    blocking.batch_execute("lock table unanimous.decision").await.unwrap();
    let owner = manager.owner();
    let earlier =
        Owner { incarnation: Incarnation::new(owner.incarnation.counter, owner.incarnation.nonce ^ 1), ..owner };
    let mut asking = tokio::task::JoinSet::new();
    for sequence in 1..=150 {
        let (manager, id) = (manager.clone(), earlier.transaction(sequence));
        asking.spawn(async move { manager.outcome(id).await });
    }
    for _ in 0..148 {
        let known = tokio::time::timeout(PATIENCE, asking.join_next()).await.expect("an answer").unwrap().unwrap();
        assert_eq!(known, InDoubt(Waiting::Decider(Some("billing".to_owned()))));
    }
    // Others wait too: what marks the first transaction as finished.
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = 'billing' \
                   and query like '%WHERE d.transaction_id = %'";
    let two = async {
        loop {
            let lookups: u64 = cluster.psql("postgres", waiting).unwrap().parse().unwrap();
            assert!(lookups <= 2, "{lookups} at the same time");
            if lookups == 2 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, two).await.expect("two ask the store");
    wrote(&manager, &[&billing]).await.commit().await.unwrap();
    let later = Incarnation::new(owner.incarnation.counter + 1, 1);
    for stranger in [Owner { log: LogId(7), ..owner }, Owner { incarnation: later, ..owner }] {
        assert_eq!(manager.outcome(stranger.transaction(1)).await, NotKnown, "nobody was asked");
    }
    blocking.rollback().await.unwrap();
    while let Some(known) = asking.join_next().await {
        assert!(matches!(known.unwrap(), NotKnown | InDoubt(_)));
    }
    let row = earlier.transaction(151);
    let sql = format!(
        "insert into unanimous.decision (transaction_id, decider, log, counter, outcome, decided_at, finished_at) \
         values ('{row}', 'carrier', '{}', 1, 'abort', 1, 1)",
        owner.log
    );
    blocker.batch_execute(&sql).await.unwrap();
    let forced = || cluster.psql("billing", "select asked from unanimous.format").unwrap().parse::<u64>().unwrap();
    let before = forced();
    for _ in 0..3 {
        assert_eq!(manager.outcome(row).await, Aborted);
    }
    assert_eq!(forced(), before + 1, "it is read once");
}
