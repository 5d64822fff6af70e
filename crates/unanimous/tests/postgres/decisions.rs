//! A database that carries decisions: the row comes with the work or not at all, is asked with a final answer, and is kept to the horizon
//! (rules 1, 3, 4 and 11).

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use unanimous::log::FileLog;
use unanimous::postgres::tokio_postgres::{self, Config, NoTls};
use unanimous::postgres::{Postgres, PostgresBranch, PostgresError, schema_sql};
use unanimous::{
    Branch, BranchContext, BranchError, BranchId, DeciderId, DecisionLog, DecisionRecord, Doubt, FailureKind,
    HoldReason, Incarnation, Known, LogId, Note, Owner, Participant, ResourceManager, StoreId, TransactionId,
    TransactionManager, Work,
};
use unanimous_testing::postgres::{Cluster, Database};

use super::{Pair, TABLE, prepared, values};
use crate::support::aborted;

const OWNER: Owner = Owner { log: LogId(7), incarnation: Incarnation { counter: 3, nonce: 11 } };

/// The log's next run.
const LATER: Owner = Owner { log: LogId(7), incarnation: Incarnation { counter: 4, nonce: 12 } };

fn database() -> Database<'static> {
    let database = Cluster::shared().database().unwrap();
    database.psql(TABLE).unwrap();
    database
}

fn carrier(database: &Database<'_>) -> Postgres {
    Postgres::builder("orders", config(database)).carrier().lock_timeout(Duration::from_millis(300)).build()
}

fn config(database: &Database<'_>) -> Config {
    database.url().parse().unwrap()
}

fn record(transaction: TransactionId) -> DecisionRecord {
    let participant = |number, resource: &str, store: Option<&str>| Participant {
        number,
        resource: resource.to_owned(),
        store: store.map(|store| store.parse().unwrap()),
    };
    DecisionRecord {
        transaction,
        participants: vec![participant(0, "it's \\ räksmörgås", Some("peer")), participant(12, "volatile", None)],
        decided_at: 1_700_000_000_000_001,
        note: Note::new("by 'räksmörgås': two\nlines"),
    }
}

/// A branch that has written the sequence's number, and flushed.
async fn wrote(store: &Postgres, transaction: TransactionId) -> PostgresBranch {
    let branch = store.begin(&BranchContext::new(transaction), Default::default()).await.unwrap();
    branch.execute("insert into t (v) values ($1)", &[&transaction.sequence.to_string()]).await.unwrap();
    assert_eq!(branch.flush().await.unwrap(), Work::Wrote);
    branch
}

async fn carried(store: &Postgres, transaction: TransactionId) -> DecisionRecord {
    let record = record(transaction);
    wrote(store, transaction).await.commit_carrying(&record).await.unwrap();
    record
}

async fn decision(store: &Postgres, transaction: TransactionId, owner: Owner) -> Known {
    store.decision(transaction, owner).await.unwrap()
}

fn rows(database: &Database<'_>) -> String {
    let sql = "select coalesce(string_agg(split_part(transaction_id, '.', 4) || ' ' || outcome || \
        case when finished_at is null then '' else ' finished' end, ', ' order by transaction_id), '') from unanimous.decision";
    database.psql(sql).unwrap()
}

fn cause<E: Error + 'static>(error: &E) -> &PostgresError {
    error.source().and_then(|source| source.downcast_ref()).unwrap()
}

pub(super) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..1500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain for {what}");
}

pub(super) async fn client(database: &Database<'_>) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&database.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn the_row_comes_with_the_work_and_is_told_to_later_runs() {
    let database = database();
    let store = carrier(&database);
    let record = carried(&store, OWNER.transaction(1)).await;
    assert_eq!(values(&database), "1");
    assert_eq!(rows(&database), "1 commit");
    assert_eq!(decision(&store, record.transaction, OWNER).await, Known::Commit(record.clone()));
    assert_eq!(store.unfinished(LATER).await.unwrap(), std::slice::from_ref(&record));
    // By a store that is not named a carrier any more, too.
    let plain = Postgres::from_url("orders", &database.url()).unwrap();
    assert_eq!(plain.identity().await.unwrap(), store.identity().await.unwrap());
    assert_eq!(decision(&plain, record.transaction, LATER).await, Known::Commit(record.clone()));
    assert_eq!(plain.unfinished(LATER).await.unwrap(), [record]);
}

#[tokio::test]
async fn work_that_fails_leaves_no_row() {
    let database = database();
    database.psql("create table child (v text references t (v) deferrable initially deferred)").unwrap();
    let store = carrier(&database);
    let transaction = OWNER.transaction(1);
    let branch = wrote(&store, transaction).await;
    branch.batch_execute("insert into child values ('nobody')").await.unwrap();
    let error = branch.commit_carrying(&record(transaction)).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Refused);
    assert_eq!(cause(&error).code().unwrap().code(), "23503");
    branch.rollback().await.unwrap();
    // The work's failure, and a transaction that is not ours any more, are noticed in the same message.
    for (sql, sequence) in [("select 1/0", 2), ("commit; begin", 3)] {
        let transaction = OWNER.transaction(sequence);
        let branch = wrote(&store, transaction).await;
        let _ = branch.batch_execute(sql).await;
        let error = branch.commit_carrying(&record(transaction)).await.unwrap_err();
        assert!(matches!(cause(&error), PostgresError::WorkFailed | PostgresError::WorkEnded), "{error:?}");
        branch.rollback().await.unwrap();
    }
    assert_eq!((rows(&database).as_str(), values(&database).as_str()), ("", "3"));
}

#[tokio::test]
async fn a_late_carrier_meets_the_fence() {
    let database = database();
    let store = carrier(&database);
    let transaction = OWNER.transaction(1);
    let late = wrote(&store, transaction).await;
    assert_eq!(decision(&store, transaction, OWNER).await, Known::Abort);
    let error = late.commit_carrying(&record(transaction)).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Refused);
    assert!(matches!(cause(&error), PostgresError::Fenced), "{error:?}");
    late.rollback().await.unwrap();
    assert_eq!((rows(&database).as_str(), values(&database).as_str()), ("1 abort finished", ""));
    assert_eq!(decision(&store, transaction, LATER).await, Known::Abort);
}

/// A second commit of the same transaction finds a row that says commit: that is no refusal.
#[tokio::test]
async fn a_row_in_the_way_that_says_commit_is_not_taken_for_a_fence() {
    let database = database();
    let store = carrier(&database);
    let record = carried(&store, OWNER.transaction(1)).await;
    let again = store.begin(&BranchContext::new(record.transaction), Default::default()).await.unwrap();
    again.batch_execute("insert into t (v) values ('again')").await.unwrap();
    let error = again.commit_carrying(&record).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Lost, "{error:?}");
    again.rollback().await.unwrap();
    assert_eq!(values(&database), "1");
}

/// Its commit has begun (a deferred trigger takes long): the question waits for it, at most for the lock timeout, and presumes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn asking_waits_for_a_carrier_that_is_about_to_commit() {
    let database = database();
    database
        .psql(
            "create function slow() returns trigger language plpgsql as \
             $$ begin perform pg_advisory_xact_lock(1); return null; end $$; \
             create constraint trigger slow after insert on t deferrable initially deferred for each row execute function slow()",
        )
        .unwrap();
    let store = carrier(&database);
    let gate = client(&database).await;
    gate.batch_execute("select pg_advisory_lock(1)").await.unwrap();
    let transaction = OWNER.transaction(1);
    let branch = wrote(&store, transaction).await;
    branch.batch_execute("set local lock_timeout = 0").await.unwrap();
    let carrying = tokio::spawn(async move { branch.commit_carrying(&record(transaction)).await });
    let waits = "select exists (select from pg_locks where locktype = 'advisory' and not granted \
        and database = (select oid from pg_database where datname = current_database()))";
    until("the trigger to wait", async || gate.query_one(waits, &[]).await.unwrap().get::<_, bool>(0)).await;

    let error = store.decision(transaction, OWNER).await.unwrap_err();
    assert_eq!(cause(&error).code().unwrap().code(), "55P03");
    let patient = Postgres::builder("orders", config(&database)).carrier().build();
    let asked = tokio::spawn(async move { patient.decision(transaction, OWNER).await.unwrap() });
    let blocked = "select exists (select from pg_locks where locktype = 'transactionid' and not granted)";
    until("the question to wait", async || gate.query_one(blocked, &[]).await.unwrap().get::<_, bool>(0)).await;
    gate.batch_execute("select pg_advisory_unlock(1)").await.unwrap();
    carrying.await.unwrap().unwrap();
    assert_eq!(asked.await.unwrap(), Known::Commit(record(transaction)));
}

#[tokio::test]
async fn only_the_owner_of_the_log_may_presume_and_only_of_runs_that_are_known() {
    let database = database();
    let store = carrier(&database);
    carried(&store, OWNER.transaction(1)).await;
    let of =
        |log, counter, nonce| Owner { log: LogId(log), incarnation: Incarnation { counter, nonce } }.transaction(9);
    for (transaction, reason) in [
        (of(8, 3, 11), HoldReason::ForeignLog),
        // A run to come, and another with the asker's counter.
        (of(7, 5, 11), HoldReason::ForeignIncarnation),
        (of(7, 4, 1), HoldReason::ForeignIncarnation),
        // Another with a known one's counter.
        (of(7, 3, 1), HoldReason::ForeignIncarnation),
        // From before the first that is known.
        (of(7, 2, 1), HoldReason::BeyondHorizon),
    ] {
        assert_eq!(decision(&store, transaction, LATER).await, Known::Hold(reason), "{transaction}");
    }
    assert_eq!(rows(&database), "1 commit", "nothing was fenced");
    assert_eq!(decision(&store, of(7, 3, 11), LATER).await, Known::Abort);
}

/// Nobody drops the schema on purpose; what was decided there is lost with it, and nothing is presumed.
#[tokio::test]
async fn decisions_that_were_dropped_are_not_taken_for_aborts() {
    let database = database();
    let store = carrier(&database);
    let transaction = carried(&store, OWNER.transaction(1)).await.transaction;
    database.psql("drop schema unanimous cascade").unwrap();
    let error = store.decision(transaction, OWNER).await.unwrap_err();
    assert!(matches!(cause(&error), PostgresError::NoSchema(_)), "{error:?}");
    // The next run makes the tables again.
    let next = carrier(&database);
    wrote(&next, LATER.transaction(2)).await.rollback().await.unwrap();
    assert!(matches!(decision(&next, transaction, LATER).await, Known::Hold(_)));
    assert_eq!(decision(&next, LATER.transaction(2), LATER).await, Known::Abort);
}

#[tokio::test]
async fn rows_are_kept_to_the_horizon_and_nothing_is_presumed_beyond_it() {
    let database = database();
    let store = Postgres::builder("orders", config(&database)).carrier().horizon(Duration::ZERO).build();
    let long = carrier(&database);
    for sequence in [2, 3, 5] {
        carried(&store, OWNER.transaction(sequence)).await;
    }
    assert_eq!(decision(&store, OWNER.transaction(4), OWNER).await, Known::Abort);
    // Marked, and kept.
    assert_eq!(long.unfinished(OWNER).await.unwrap().len(), 3);
    long.forget(OWNER.transaction(2));
    until("the mark", async || rows(&database) == "2 commit finished, 3 commit, 4 abort finished, 5 commit").await;
    assert_eq!(long.unfinished(OWNER).await.unwrap().len(), 2);
    // Let go, with a floor; the fence stays as long as its run may still be about to commit.
    store.forget(OWNER.transaction(3));
    until("the end of two", async || rows(&database) == "4 abort finished, 5 commit").await;
    assert_eq!(database.psql("select count(distinct transaction_id) from unanimous.participant").unwrap(), "1");
    for (sequence, known) in [
        (1, Known::Hold(HoldReason::BeyondHorizon)),
        (2, Known::Hold(HoldReason::BeyondHorizon)),
        (3, Known::Hold(HoldReason::BeyondHorizon)),
        (4, Known::Abort),
        (5, Known::Commit(record(OWNER.transaction(5)))),
        (6, Known::Abort),
    ] {
        assert_eq!(decision(&store, OWNER.transaction(sequence), OWNER).await, known, "{sequence}");
    }
    // The next run lets its predecessor's fences go, and then the predecessor.
    let next = Postgres::builder("orders", config(&database)).carrier().horizon(Duration::ZERO).build();
    carried(&next, LATER.transaction(1)).await;
    next.unfinished(LATER).await.unwrap();
    next.forget(OWNER.transaction(5));
    until("the end of the run", async || rows(&database) == "1 commit").await;
    assert_eq!(database.psql("select counter from unanimous.incarnation").unwrap(), "4");
    assert_eq!(database.psql("select count(*) from unanimous.floor").unwrap(), "0");
    assert_eq!(decision(&next, OWNER.transaction(5), LATER).await, Known::Hold(HoldReason::BeyondHorizon));
}

/// Rule 3: a row that is seen may not be on the disk, or on a replica, yet.
#[tokio::test]
async fn every_answer_is_written_again() {
    let database = database();
    let store = carrier(&database);
    let transaction = carried(&store, OWNER.transaction(1)).await.transaction;
    let writes = || {
        let sql = "select (select asked from unanimous.decision) + (select asked from unanimous.format)";
        database.psql(sql).unwrap().parse::<u32>().unwrap()
    };
    let before = writes();
    decision(&store, transaction, OWNER).await;
    assert_eq!(writes(), before + 1);
    store.unfinished(OWNER).await.unwrap();
    assert_eq!(writes(), before + 2);
    // The commits wait for the disk, whatever the database's setting is.
    database.psql(&format!("alter database {} set synchronous_commit = off", database.name())).unwrap();
    database
        .psql(
            "create table seen (v text); create function see() returns trigger language plpgsql as \
             $$ begin insert into seen values (current_setting('synchronous_commit')); return new; end $$; \
             create trigger see before insert or update on unanimous.decision for each row execute function see()",
        )
        .unwrap();
    let store = carrier(&database);
    let transaction = OWNER.transaction(2);
    carried(&store, transaction).await;
    decision(&store, transaction, OWNER).await;
    decision(&store, OWNER.transaction(3), OWNER).await;
    // The carrier's insert, and for each question an insert that may find a row, and an update.
    assert_eq!(database.psql("select string_agg(distinct v, ' '), count(*) from seen").unwrap(), "on|5");
}

/// A commit that no replica confirmed is visible all the same. It is neither believed nor told.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_replica_has_confirmed_is_not_told() {
    let mut cluster = Cluster::start().unwrap();
    cluster.create_database("orders").unwrap();
    cluster.psql("orders", TABLE).unwrap();
    let store = Postgres::builder("orders", cluster.url("orders").parse::<Config>().unwrap()).carrier().build();
    let transaction = OWNER.transaction(1);
    let branch = wrote(&store, transaction).await;
    cluster.set("synchronous_standby_names", "nobody").unwrap();
    let admin = cluster.url("postgres");
    let (canceler, connection) = tokio_postgres::connect(&admin, NoTls).await.unwrap();
    tokio::spawn(connection);
    let canceling = tokio::spawn(async move {
        loop {
            let sql = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'";
            canceler.batch_execute(sql).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // The setting reaches each session when it is next told something.
    until("the setting", async || {
        branch
            .simple_query("show synchronous_standby_names")
            .await
            .is_ok_and(|shown| format!("{shown:?}").contains("nobody"))
    })
    .await;
    let error = branch.commit_carrying(&record(transaction)).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Lost, "{error:?}");
    assert_eq!(cluster.psql("orders", "select outcome from unanimous.decision").unwrap(), "commit");
    let error = store.decision(transaction, OWNER).await.unwrap_err();
    assert!(matches!(cause(&error), PostgresError::NotReplicated(_)), "{error:?}");
    let error = store.unfinished(OWNER).await.unwrap_err();
    assert!(matches!(cause(&error), PostgresError::NotReplicated(_)), "{error:?}");
    canceling.abort();
    cluster.set("synchronous_standby_names", "").unwrap();
    until("the replicas to be forgotten", async || store.decision(transaction, OWNER).await.is_ok()).await;
    assert_eq!(decision(&store, transaction, OWNER).await, Known::Commit(record(transaction)));
}

/// An asynchronous replica is promoted that never got the last decision. Its absence says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_may_have_lost_rows_presumes_nothing() {
    let mut primary = Cluster::start().unwrap();
    primary.create_database("orders").unwrap();
    primary.psql("orders", TABLE).unwrap();
    let mut replica = primary.replica("late").start().unwrap();
    let store_of = |cluster: &Cluster| {
        Postgres::builder("orders", cluster.url("orders").parse::<Config>().unwrap()).carrier().build()
    };
    let store = store_of(&primary);
    let kept = carried(&store, OWNER.transaction(1)).await;
    let caught_up =
        || replica.psql("orders", "select count(*) from unanimous.decision").is_ok_and(|count| count == "1");
    until("the replica", async || caught_up()).await;
    replica.stop_fast().unwrap();
    let lost = carried(&store, OWNER.transaction(2)).await;
    primary.stop_immediate().unwrap();
    replica.restart().unwrap();
    replica.promote().unwrap();

    let promoted = store_of(&replica);
    assert_eq!(decision(&promoted, kept.transaction, LATER).await, Known::Commit(kept));
    let known = decision(&promoted, lost.transaction, LATER).await;
    assert_eq!(known, Known::Hold(HoldReason::ForeignIncarnation));
    // Nor may the run that was before begin anything new there.
    let context = BranchContext::new(OWNER.transaction(3));
    let error = promoted.begin(&context, Default::default()).await.unwrap_err();
    assert!(matches!(cause(&error), PostgresError::Promoted { .. }), "{error:?}");
    carried(&promoted, LATER.transaction(3)).await;
}

#[tokio::test]
async fn a_role_that_may_not_make_the_tables_is_told_what_to_do() {
    let database = database();
    let role = format!("poor_{}", database.name());
    database.psql(&format!("create role {role} login; grant all on t, t_id_seq to {role}")).unwrap();
    let url = database.url_as(&role);
    let open = || Postgres::builder("orders", url.parse::<Config>().unwrap()).carrier().build();
    let begin =
        async |store: &Postgres| store.begin(&BranchContext::new(OWNER.transaction(1)), Default::default()).await;
    let refused = |error: &BranchError| {
        assert!(matches!(cause(error), PostgresError::NoSchema(_)), "{error:?}");
        assert!(cause(error).to_string().contains("unanimous sql postgres --role"), "{}", cause(error));
    };
    refused(&begin(&open()).await.unwrap_err());
    assert!(matches!(open().check().await.unwrap_err(), PostgresError::NoSchema(_)));
    // Made, but not for this role; as a store of two phases it needs none of it.
    database.psql(&schema_sql(None)).unwrap();
    refused(&begin(&open()).await.unwrap_err());
    let plain = Postgres::from_url("orders", &url).unwrap();
    assert_eq!(plain.unfinished(OWNER).await.unwrap(), []);
    // Run twice, and for the role.
    database.psql(&schema_sql(Some(&role))).unwrap();
    let store = open();
    store.check().await.unwrap();
    let record = carried(&store, OWNER.transaction(1)).await;
    assert_eq!(decision(&store, record.transaction, OWNER).await, Known::Commit(record));
    assert_eq!(decision(&store, OWNER.transaction(2), OWNER).await, Known::Abort);
    store.forget(OWNER.transaction(1));
    until("the mark", async || rows(&database) == "1 commit finished, 2 abort finished").await;
}

#[tokio::test]
async fn tables_of_another_version_are_left_alone() {
    let database = database();
    database.psql(&schema_sql(None)).unwrap();
    database.psql("update unanimous.format set version = 2").unwrap();
    let error = carrier(&database).check().await.unwrap_err();
    assert!(matches!(&error, PostgresError::OtherTables { version } if version == "2"), "{error:?}");
}

#[tokio::test]
async fn many_that_need_the_tables_at_once_make_them_once() {
    let database = database();
    let stores: Vec<_> = (0..8).map(|_| carrier(&database)).collect();
    let checks = stores.iter().map(Postgres::check);
    for checked in futures_util::future::join_all(checks).await {
        checked.unwrap();
    }
    assert_eq!(database.psql("select version from unanimous.format").unwrap(), "1");
}

/// A row that can't be read is left for an operator; the others are finished.
#[tokio::test]
async fn a_damaged_row_keeps_nobody_else_waiting() {
    let database = database();
    let store = carrier(&database);
    let (bad, good) = (OWNER.transaction(1), carried(&store, OWNER.transaction(2)).await);
    carried(&store, bad).await;
    database.psql(&format!("update unanimous.participant set store = 'NO' where transaction_id = '{bad}'")).unwrap();
    assert_eq!(store.unfinished(OWNER).await.unwrap(), std::slice::from_ref(&good));
    let error = store.decision(bad, OWNER).await.unwrap_err();
    assert!(matches!(cause(&error), PostgresError::Damaged(_)), "{error:?}");
    assert_eq!(decision(&store, good.transaction, OWNER).await, Known::Commit(good));
}

/// What a process leaves that dies with both branches prepared or decided; the next start finishes it.
#[tokio::test]
async fn the_next_start_finishes_what_a_carrier_decided() {
    let pair = Pair::new();
    let folder = tempfile::tempdir().unwrap();
    let log = FileLog::open(folder.path()).await.unwrap();
    let billing = Postgres::from_url("billing", &pair.billing.url()).unwrap();
    let orders = carrier(&pair.orders);
    let decider = DeciderId::Store(orders.identity().await.unwrap());
    let store: StoreId = billing.identity().await.unwrap();
    for (sequence, decided) in [(1, true), (2, false)] {
        let transaction = log.owner().transaction(sequence);
        let work = wrote(&orders, transaction).await;
        let other = wrote(&billing, transaction).await;
        other.prepare(&BranchId { transaction, decider: decider.clone(), number: 1 }).await.unwrap();
        if decided {
            let participants =
                vec![Participant { number: 1, resource: "billing".to_owned(), store: Some(store.clone()) }];
            work.commit_carrying(&DecisionRecord { transaction, participants, decided_at: 1, note: Note::default() })
                .await
                .unwrap();
        }
    }
    log.close().await;
    drop((log, billing));
    // Named a carrier or not: it decided, and is asked.
    let log = FileLog::open(folder.path()).await.unwrap();
    let orders = Postgres::from_url("orders", &pair.orders.url()).unwrap();
    let billing = Postgres::from_url("billing", &pair.billing.url()).unwrap();
    let manager = TransactionManager::builder(log).resource(orders).resource(billing).build().await.unwrap();
    assert_eq!(manager.in_doubt(), []);
    assert_eq!(pair.values(), ["1", "1"]);
    assert_eq!(prepared(&pair.billing), "");
    until("the mark", async || rows(&pair.orders) == "1 commit finished, 2 abort finished").await;
}

/// A decider that can't be asked yet keeps its own branches waiting.
#[tokio::test]
async fn a_carrier_that_was_never_reached_may_be_the_decider() {
    let pair = Pair::new();
    let folder = tempfile::tempdir().unwrap();
    let log = FileLog::open(folder.path()).await.unwrap();
    let (orders, billing) = (carrier(&pair.orders), Postgres::from_url("billing", &pair.billing.url()).unwrap());
    let transaction = log.owner().transaction(1);
    let id = BranchId { transaction, decider: DeciderId::Store(orders.identity().await.unwrap()), number: 1 };
    wrote(&billing, transaction).await.prepare(&id).await.unwrap();
    log.close().await;
    let log = FileLog::open(folder.path()).await.unwrap();
    let nowhere = Postgres::from_url("orders", "host=127.0.0.1 port=1 user=nobody dbname=none").unwrap();
    let manager = TransactionManager::builder(log).resource(nowhere).resource(billing).build().await.unwrap();
    let doubts = manager.in_doubt();
    let held = Doubt::Held(HoldReason::Unreachable);
    assert!(doubts.iter().any(|doubt| doubt.resource == "billing" && doubt.why == held), "{doubts:?}");
    assert_eq!(prepared(&pair.billing), id.to_string());
    pair.billing.psql(&format!("rollback prepared '{id}'")).unwrap();
}

#[tokio::test]
async fn two_databases_of_which_one_carries() {
    let pair = Pair::new();
    let orders = carrier(&pair.orders);
    let billing = Postgres::from_url("billing", &pair.billing.url()).unwrap();
    let log = unanimous::log::MemoryLog::new();
    let manager =
        TransactionManager::builder(log).resource(orders.clone()).resource(billing.clone()).build().await.unwrap();
    let write = async |tx: &unanimous::Transaction, v: &str| {
        for store in [&orders, &billing] {
            tx.join(store).await.unwrap().execute("insert into t (v) values ($1)", &[&v]).await.unwrap();
        }
    };
    let tx = manager.begin();
    write(&tx, "a").await;
    tx.commit().await.unwrap();
    assert_eq!(pair.values(), ["a", "a"]);
    until("the mark", async || rows(&pair.orders) == "1 commit finished").await;
    let sql = "select resource || ' ' || (store like 'pg-%') from unanimous.participant";
    assert_eq!(pair.orders.psql(sql).unwrap(), "billing true");
    // The other one's vote is a no.
    pair.billing.psql("create table child (v text references t (v) deferrable initially deferred)").unwrap();
    let tx = manager.begin();
    write(&tx, "b").await;
    tx.join(&billing).await.unwrap().batch_execute("insert into child values ('nobody')").await.unwrap();
    aborted(tx.commit().await);
    assert_eq!(pair.values(), ["a", "a"]);
    assert_eq!(prepared(&pair.billing), "");
    assert_eq!(rows(&pair.orders), "1 commit finished");
}
