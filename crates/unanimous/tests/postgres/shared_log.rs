//! The decision log of several processes in one database: one at a time decides for a node, and what it has answered stays so, whoever
//! is killed, slow or taken over in between (rules 1, 3, 4, 11 and 12).

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use unanimous::log::LogError;
use unanimous::postgres::tokio_postgres::{Client, Config};
use unanimous::postgres::{Postgres, PostgresError, PostgresLog};
use unanimous::{
    Branch, BranchContext, BranchId, BuildError, DecideError, Decider, DeciderId, DecisionLog, DecisionRecord,
    HoldReason, Incarnation, Known, LogId, Note, Owner, Participant, ResourceManager, TransactionId,
    TransactionManager,
};
use unanimous_testing::postgres::{Cluster, Database};

use super::decisions::{client, until};
use super::{Pair, TABLE, prepared};
use crate::support::ended;

fn database() -> Database<'static> {
    Cluster::shared().database().unwrap()
}

async fn open(database: &Database<'_>, node: &str) -> PostgresLog {
    PostgresLog::open(&database.url(), node).await.unwrap()
}

fn record(transaction: TransactionId) -> DecisionRecord {
    // Not in the order of their numbers.
    let participants = [(300, "räksmörgås", None), (0, "it's \\", Some("peer"))].map(|(number, resource, store)| {
        Participant { number, resource: resource.to_owned(), store: store.map(|store: &str| store.parse().unwrap()) }
    });
    let note = Note::new("by 'nobody'");
    DecisionRecord { transaction, participants: participants.to_vec(), decided_at: 1_700_000_000_000_001, note }
}

fn sorted(mut record: DecisionRecord) -> DecisionRecord {
    record.participants.sort();
    record
}

async fn decide(log: &PostgresLog, sequence: u64) -> Result<(), DecideError> {
    ended(log.decide(record(log.owner().transaction(sequence)))).await
}

async fn known(log: &PostgresLog, transaction: TransactionId) -> Known {
    ended(log.lookup(transaction)).await.unwrap()
}

fn cause<'a>(error: &'a (dyn Error + 'static)) -> &'a PostgresError {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return error;
        }
        next = error.source();
    }
    panic!("no error of PostgreSQL in {error:?}")
}

fn taken_over(result: Result<(), DecideError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, DecideError::Refused(_)), "{error:?}");
    assert!(matches!(cause(&error), PostgresError::TakenOver { .. }), "{error:?}");
}

fn rows(database: &Database<'_>) -> String {
    let sql = "select coalesce(string_agg(split_part(transaction_id, '.', 4) || ' ' || outcome || \
        case when finished_at is null then '' else ' finished' end, ', ' order by transaction_id), '') from unanimous.decision";
    database.psql(sql).unwrap()
}

/// The sessions that have a node's lock.
async fn holders(client: &Client) -> Vec<i32> {
    let sql = "select pid from pg_locks where locktype = 'advisory' and granted and pid <> pg_backend_pid() \
        and database = (select oid from pg_database where datname = current_database())";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// From now on each commit of a decision stops at this gate: an advisory lock.
const GATE: &str = "create function gate() returns trigger language plpgsql as \
    $$ begin perform pg_advisory_xact_lock_shared(1); return null; end $$; \
    create constraint trigger gate after insert on unanimous.decision deferrable initially deferred \
    for each row when (new.outcome = 'commit') execute function gate()";

async fn at_the_gate(client: &Client) -> Vec<i32> {
    let sql = "select pid from pg_locks where locktype = 'advisory' and not granted \
        and database = (select oid from pg_database where datname = current_database())";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn what_is_decided_is_told_to_the_next_run_and_the_rest_is_aborted() {
    let database = database();
    let log = open(&database, "a").await;
    let first = log.owner();
    decide(&log, 1).await.unwrap();
    decide(&log, 1).await.unwrap();
    let decided = sorted(record(first.transaction(1)));
    assert_eq!(known(&log, first.transaction(1)).await, Known::Commit(decided.clone()));
    assert_eq!(log.unfinished().await.unwrap(), std::slice::from_ref(&decided));
    log.close().await;
    let next = open(&database, "a").await;
    assert_eq!((next.owner().log, next.owner().incarnation.counter), (first.log, first.incarnation.counter + 1));
    assert_eq!(known(&next, first.transaction(1)).await, Known::Commit(decided.clone()));
    assert_eq!(known(&next, first.transaction(2)).await, Known::Abort);
    assert_eq!(next.unfinished().await.unwrap(), [decided]);
    // Nothing is presumed of what is another's.
    let of = |log, counter, nonce| Owner { log, incarnation: Incarnation { counter, nonce } }.transaction(9);
    let nonce = first.incarnation.nonce;
    for (transaction, reason) in [
        (of(LogId(8), 1, nonce), HoldReason::ForeignLog),
        (of(first.log, 9, nonce), HoldReason::ForeignIncarnation),
        (of(first.log, 2, nonce), HoldReason::ForeignIncarnation),
        (of(first.log, 1, nonce ^ 1), HoldReason::ForeignIncarnation),
        (of(first.log, 0, nonce), HoldReason::BeyondHorizon),
    ] {
        assert_eq!(known(&next, transaction).await, Known::Hold(reason), "{transaction}");
    }
    assert_eq!(rows(&database), "1 commit, 2 abort finished");
    // Another node's log is another.
    assert_ne!(open(&database, "b").await.owner().log, first.log);
}

#[tokio::test]
async fn what_can_not_be_decided_is_refused() {
    let database = database();
    let log = open(&database, "a").await;
    decide(&log, 1).await.unwrap();
    let refused = |error: DecideError| match error {
        DecideError::Refused(source) => source.downcast::<LogError>().unwrap(),
        other => panic!("{other:?}"),
    };
    let other = DecisionRecord { participants: Vec::new(), ..record(log.owner().transaction(1)) };
    let twice = log.decide(other).await.unwrap_err();
    assert!(matches!(twice, DecideError::Unknown(_)), "{twice:?}");
    let foreign = Owner { log: LogId(8), ..log.owner() }.transaction(1);
    let error = refused(log.decide(record(foreign)).await.unwrap_err());
    assert!(matches!(*error, LogError::NotOwned(_)), "{error:?}");
    // What was asked for is fenced.
    assert_eq!(known(&log, log.owner().transaction(2)).await, Known::Abort);
    let error = refused(decide(&log, 2).await.unwrap_err());
    assert!(matches!(cause(&*error), PostgresError::Fenced), "{error:?}");
    let mut unwritable = record(log.owner().transaction(3));
    unwritable.participants[0].resource = "a\0b".to_owned();
    let error = refused(log.decide(unwritable).await.unwrap_err());
    assert!(matches!(cause(&*error), PostgresError::Unwritable(_)), "{error:?}");
    // One that the server refuses takes no other with it.
    let mut twice_zero = record(log.owner().transaction(4));
    twice_zero.participants[0].number = 0;
    let all = futures_util::future::join(log.decide(twice_zero), decide(&log, 5)).await;
    assert_eq!(cause(&*refused(all.0.unwrap_err())).code().unwrap().code(), "23505");
    all.1.unwrap();
    let nothing = DecisionRecord { participants: Vec::new(), ..record(log.owner().transaction(6)) };
    log.decide(nothing.clone()).await.unwrap();
    assert_eq!(known(&log, nothing.transaction).await, Known::Commit(nothing));
    assert!(log.take() && !log.clone().take());
    let error = TransactionManager::builder(log.clone()).build().await.unwrap_err();
    assert!(matches!(error, BuildError::LogInUse));
    log.ready().unwrap();
    log.close().await;
    let error = refused(decide(&log, 7).await.unwrap_err());
    assert!(matches!(*error, LogError::Closed), "{error:?}");
    assert!(log.ready().is_err() && log.lookup(foreign).await.is_err() && log.unfinished().await.is_err());
    assert_eq!(rows(&database), "1 commit, 2 abort finished, 5 commit, 6 commit");
}

#[tokio::test]
async fn a_node_is_one_process_at_a_time() {
    let database = database();
    let log = open(&database, "a").await;
    let again = || {
        let config: Config = database.url().parse().unwrap();
        PostgresLog::builder(config, "a").lock_wait(Duration::from_millis(100)).open()
    };
    let error = again().await.unwrap_err();
    assert!(
        matches!(&error, PostgresError::NodeHeld { node, by } if node == "a" && by.contains("127.0.0.1")),
        "{error:?}"
    );
    decide(&log, 1).await.unwrap();
    // Given up by its last clone, or by closing it.
    drop(log);
    let log = open(&database, "a").await;
    log.close().await;
    again().await.unwrap();
    for name in ["", "a\0b", &"a".repeat(256)] {
        let error = PostgresLog::open(&database.url(), name).await.unwrap_err();
        assert!(matches!(error, PostgresError::NodeName(_)), "{error:?}");
    }
}

/// The lock is not what fences: it can be lost, and the counter can't.
#[tokio::test]
async fn a_second_start_that_finds_no_lock_fences_the_first() {
    let database = database();
    let first = open(&database, "a").await;
    decide(&first, 1).await.unwrap();
    let client = client(&database).await;
    let [pid] = holders(&client).await[..] else { panic!("one session has the lock") };
    client.execute("select pg_terminate_backend($1, 5000)", &[&pid]).await.unwrap();
    let second = open(&database, "a").await;
    taken_over(decide(&first, 2).await);
    assert!(first.ready().is_err() && first.unfinished().await.is_err());
    taken_over(decide(&first, 3).await);
    assert_eq!(known(&second, first.owner().transaction(2)).await, Known::Abort);
    decide(&second, 1).await.unwrap();
    assert_eq!(second.unfinished().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_node_that_is_taken_over_presumes_nothing_any_more() {
    let database = database();
    let old = open(&database, "a").await;
    decide(&old, 1).await.unwrap();
    let new = PostgresLog::take_over(&database.url(), "a").await.unwrap();
    assert_eq!(new.owner().log, old.owner().log);
    // What is there is true, whoever asks. What is not there is the new one's to say.
    assert!(matches!(known(&old, old.owner().transaction(1)).await, Known::Commit(_)));
    let error = old.lookup(old.owner().transaction(2)).await.unwrap_err();
    assert!(matches!(cause(&error), PostgresError::TakenOver { .. }), "{error:?}");
    taken_over(decide(&old, 2).await);
    assert_eq!(rows(&database), "1 commit");
    assert_eq!(known(&new, old.owner().transaction(2)).await, Known::Abort);
    // The node itself comes back when that one has ended.
    new.close().await;
    drop(old);
    assert_eq!(open(&database, "a").await.owner().incarnation.counter, 3);
}

/// What is unfinished is all there when the log is taken over.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_waits_for_a_decision_that_is_being_written() {
    let database = database();
    let old = open(&database, "a").await;
    let client = client(&database).await;
    client.batch_execute(&format!("{GATE}; select pg_advisory_lock(1)")).await.unwrap();
    let deciding = old.decide(record(old.owner().transaction(1)));
    until("the writer to come to the gate", async || at_the_gate(&client).await.len() == 1).await;
    let url = database.url();
    let taking = tokio::spawn(async move { PostgresLog::take_over(&url, "a").await });
    let blocked = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%FOR UPDATE%' \
        and datname = current_database())";
    until("the take-over to wait", async || client.query_one(blocked, &[]).await.unwrap().get::<_, bool>(0)).await;
    client.batch_execute("select pg_advisory_unlock(1)").await.unwrap();
    deciding.await.unwrap();
    let new = ended(taking).await.unwrap().unwrap();
    assert_eq!(new.unfinished().await.unwrap(), [sorted(record(old.owner().transaction(1)))]);
}

/// An owner that is slow while it is taken over: each of its decisions is refused, or seen by the new one; never both, never neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_meets_a_take_over_is_refused_or_seen() {
    let database = database();
    let mut log = open(&database, "a").await;
    // Commits take up to 4 ms, and are in the way of the take-over.
    database
        .psql(
            "create function slow() returns trigger language plpgsql as \
             $$ begin perform pg_sleep(random() * 0.004); return null; end $$; \
             create constraint trigger slow after insert on unanimous.decision deferrable initially deferred \
             for each row execute function slow()",
        )
        .unwrap();
    let mut answers = BTreeMap::new();
    for _ in 0..25 {
        let deciders: Vec<_> = (0..4)
            .map(|first| {
                let log = log.clone();
                tokio::spawn(async move {
                    let mut decided = Vec::new();
                    for sequence in (first..).step_by(4).map(|sequence| sequence + 1) {
                        let result = decide(&log, sequence).await;
                        let over = result.is_err();
                        decided.push((log.owner().transaction(sequence), result));
                        if over {
                            return decided;
                        }
                    }
                    unreachable!("it is taken over")
                })
            })
            .collect();
        until("a decision", async || log.unfinished().await.is_ok_and(|all| !all.is_empty())).await;
        let new = PostgresLog::take_over(&database.url(), "a").await.unwrap();
        // Asked at once, while the old one is still at it.
        let next: Vec<_> = (1..=40).map(|sequence| log.owner().transaction(sequence)).collect();
        let mut told = BTreeMap::new();
        for transaction in next {
            told.insert(transaction, known(&new, transaction).await);
        }
        for decider in deciders {
            for (transaction, result) in ended(decider).await.unwrap() {
                let known = known(&new, transaction).await;
                assert!(told.get(&transaction).is_none_or(|told| *told == known), "{transaction} was told twice");
                match (&result, &known) {
                    (Ok(()), Known::Commit(_)) | (Err(DecideError::Refused(_)), Known::Abort) => {}
                    other => panic!("{transaction}: {other:?}"),
                }
                *answers.entry(result.is_ok()).or_insert(0) += 1;
            }
        }
        log = new;
    }
    assert!(answers[&true] > 25 && answers[&false] >= 25, "{answers:?}");
}

/// The session is ended while the commit is under way: the decision is tried again, and is durable in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_ended_in_its_commit_is_no_answer() {
    let database = database();
    let log = open(&database, "a").await;
    let client = client(&database).await;
    client.batch_execute(&format!("{GATE}; select pg_advisory_lock(1)")).await.unwrap();
    let transaction = log.owner().transaction(1);
    let deciding = tokio::spawn({
        let log = log.clone();
        async move { decide(&log, 1).await }
    });
    for _ in 0..3 {
        until("the writer to come to the gate", async || at_the_gate(&client).await.len() == 1).await;
        let pid = at_the_gate(&client).await[0];
        client.execute("select pg_terminate_backend($1, 5000)", &[&pid]).await.unwrap();
        assert_eq!(rows(&database), "");
    }
    assert!(!deciding.is_finished());
    // Who asks waits for it.
    let asking = tokio::spawn({
        let log = log.clone();
        async move { known(&log, transaction).await }
    });
    until("the writer to come to the gate", async || at_the_gate(&client).await.len() == 1).await;
    client.batch_execute("select pg_advisory_unlock(1)").await.unwrap();
    deciding.await.unwrap().unwrap();
    assert_eq!(asking.await.unwrap(), Known::Commit(sorted(record(transaction))));
    assert_eq!(rows(&database), "1 commit");
    // It has the node's lock again.
    assert_eq!(holders(&client).await.len(), 1);
    log.ready().unwrap();
}

/// What waits while one is written is written together.
#[tokio::test(flavor = "multi_thread")]
async fn decisions_that_wait_share_a_transaction() {
    let database = database();
    let log = open(&database, "a").await;
    let client = client(&database).await;
    client.batch_execute(&format!("{GATE}; select pg_advisory_lock(1)")).await.unwrap();
    // Queued at the call.
    let queue = |sequence| log.decide(record(log.owner().transaction(sequence)));
    let first = queue(1);
    until("the first to come to the gate", async || at_the_gate(&client).await.len() == 1).await;
    let others: Vec<_> = (2..=20).map(queue).collect();
    client.batch_execute("select pg_advisory_unlock(1)").await.unwrap();
    first.await.unwrap();
    for other in others {
        other.await.unwrap();
    }
    let sql = "select count(distinct xmin::text) from unanimous.decision where outcome = 'commit'";
    assert_eq!(database.psql(sql).unwrap(), "2");
}

/// A commit that no replica has confirmed, with a warning or without an answer, is not durable yet: it is written again until it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_no_replica_has_confirmed_is_written_again() {
    let mut cluster = Cluster::start().unwrap();
    cluster.create_database("log").unwrap();
    let log = PostgresLog::open(&cluster.url("log"), "a").await.unwrap();
    decide(&log, 1).await.unwrap();
    cluster.set("synchronous_standby_names", "nobody").unwrap();
    let (admin, connection) = super::tokio_postgres::connect(&cluster.url("postgres"), super::NoTls).await.unwrap();
    tokio::spawn(connection);
    let deciding = tokio::spawn({
        let log = log.clone();
        async move { decide(&log, 2).await }
    });
    let waiting = "select pid from pg_stat_activity where wait_event = 'SyncRep'";
    let mut seen = Vec::new();
    for end in ["pg_terminate_backend(pid, 5000)", "pg_cancel_backend(pid)", "pg_cancel_backend(pid)"] {
        until("the writer to wait for a replica", async || !admin.query(waiting, &[]).await.unwrap().is_empty()).await;
        seen.push(
            cluster
                .psql("log", "select outcome, asked from unanimous.decision where transaction_id like '%.2'")
                .unwrap(),
        );
        let sql = format!("select {end} from pg_stat_activity where wait_event = 'SyncRep'");
        admin.batch_execute(&sql).await.unwrap();
    }
    assert_eq!(seen, ["", "commit|0", "commit|1"], "visible, and not told");
    assert!(!deciding.is_finished());
    cluster.set("synchronous_standby_names", "").unwrap();
    ended(deciding).await.unwrap().unwrap();
    assert_eq!(cluster.psql("log", "select count(*) from unanimous.participant").unwrap(), "4");
}

/// The server dies with a decision in its hands, and comes back: the decision is durable in the end. What was not sent is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_is_waited_for_by_what_was_sent() {
    let mut cluster = Cluster::start().unwrap();
    cluster.create_database("log").unwrap();
    let log = PostgresLog::open(&cluster.url("log"), "a").await.unwrap();
    decide(&log, 1).await.unwrap();
    let (client, connection) = super::tokio_postgres::connect(&cluster.url("log"), super::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(&format!("{GATE}; select pg_advisory_lock(1)")).await.unwrap();
    let sent = tokio::spawn({
        let log = log.clone();
        async move { decide(&log, 2).await }
    });
    until("the writer to come to the gate", async || at_the_gate(&client).await.len() == 1).await;
    cluster.kill().unwrap();
    until("the log to notice", async || log.ready().is_err()).await;
    assert!(log.lookup(log.owner().transaction(9)).await.is_err());
    assert!(!sent.is_finished());
    cluster.restart().unwrap();
    ended(sent).await.unwrap().unwrap();
    assert!(matches!(known(&log, log.owner().transaction(2)).await, Known::Commit(_)));
    log.ready().unwrap();
    cluster.stop_fast().unwrap();
    // Sent into a connection that has ended, it can't be told from one that was written.
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { decide(&log, 3).await }
    });
    until("the log to notice", async || log.ready().is_err()).await;
    cluster.restart().unwrap();
    let result = ended(waiting).await.unwrap();
    let there = matches!(known(&log, log.owner().transaction(3)).await, Known::Commit(_));
    assert_eq!(there, result.is_ok(), "{result:?}");
    until("the log to come back", async || log.ready().is_ok()).await;
    decide(&log, 4).await.unwrap();
}

#[tokio::test]
async fn finished_decisions_are_kept_to_the_horizon() {
    let database = database();
    let config: Config = database.url().parse().unwrap();
    let log = open(&database, "a").await;
    for sequence in 1..=3 {
        decide(&log, sequence).await.unwrap();
    }
    log.forget(log.owner().transaction(1));
    assert_eq!(log.unfinished().await.unwrap().len(), 2);
    until("the mark", async || rows(&database) == "1 commit finished, 2 commit, 3 commit").await;
    // Written at the close, too.
    log.forget(log.owner().transaction(3));
    log.close().await;
    assert_eq!(rows(&database), "1 commit finished, 2 commit, 3 commit finished");
    let first = log.owner();
    let log = PostgresLog::builder(config, "a").horizon(Duration::ZERO).open().await.unwrap();
    decide(&log, 1).await.unwrap();
    log.forget(log.owner().transaction(1));
    until("the end of those", async || rows(&database) == "2 commit").await;
    assert_eq!(known(&log, first.transaction(3)).await, Known::Hold(HoldReason::BeyondHorizon));
    assert!(matches!(known(&log, first.transaction(2)).await, Known::Commit(_)));
    assert_eq!(known(&log, first.transaction(4)).await, Known::Abort);
}

#[test]
fn a_runtime_that_ends_leaves_nobody_waiting() {
    let database = database();
    let writing = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let asking = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = writing.block_on(open(&database, "a"));
    let gate = asking.block_on(client(&database));
    asking.block_on(gate.batch_execute(&format!("{GATE}; select pg_advisory_lock(1)"))).unwrap();
    let [sent, queued] = [1, 2].map(|sequence| {
        let deciding = log.decide(record(log.owner().transaction(sequence)));
        asking.block_on(until("the writer to come to the gate", async || at_the_gate(&gate).await.len() == 1));
        deciding
    });
    drop(writing);
    let sent = asking.block_on(ended(sent)).unwrap_err();
    assert!(matches!(sent, DecideError::Unknown(_)), "{sent:?}");
    let queued = asking.block_on(ended(queued)).unwrap_err();
    assert!(matches!(queued, DecideError::Refused(_)), "{queued:?}");
    asking.block_on(async {
        assert!(matches!(decide(&log, 3).await.unwrap_err(), DecideError::Refused(_)));
        ended(log.close()).await;
    });
}

/// A process hangs with one transaction decided and one not; another machine takes its node over and finishes both.
#[tokio::test]
async fn a_second_manager_recovers_what_a_dead_node_left() {
    let pair = Pair::new();
    let database = database();
    let billing = Postgres::from_url("billing", &pair.billing.url()).unwrap();
    let store = billing.identity().await.unwrap();
    let dead = open(&database, "web-1").await;
    for sequence in [1, 2] {
        let transaction = dead.owner().transaction(sequence);
        let branch = billing.begin(&BranchContext::new(transaction), Default::default()).await.unwrap();
        branch.execute("insert into t (v) values ($1)", &[&sequence.to_string()]).await.unwrap();
        branch.flush().await.unwrap();
        branch.prepare(&BranchId { transaction, decider: DeciderId::Log, number: 0 }).await.unwrap();
    }
    let participants = vec![Participant { number: 0, resource: "billing".to_owned(), store: Some(store) }];
    let first = dead.owner().transaction(1);
    dead.decide(DecisionRecord { participants, ..record(first) }).await.unwrap();

    let other =
        TransactionManager::builder(open(&database, "web-2").await).resource(billing.clone()).build().await.unwrap();
    assert!(!other.in_doubt().is_empty() && !prepared(&pair.billing).is_empty(), "another node's are held");
    let log = PostgresLog::take_over(&database.url(), "web-1").await.unwrap();
    let manager = TransactionManager::builder(log).resource(billing.clone()).build().await.unwrap();
    assert_eq!(manager.in_doubt(), []);
    assert_eq!((pair.values()[1].as_str(), prepared(&pair.billing).as_str()), ("1", ""));
    // The row that recovery has fenced it with, and then the node's own.
    let fenced = decide(&dead, 2).await.unwrap_err();
    assert!(matches!(cause(&fenced), PostgresError::Fenced), "{fenced:?}");
    taken_over(decide(&dead, 3).await);
    until("the mark", async || rows(&database).contains("1 commit finished")).await;
    ended(manager.shutdown(Duration::from_secs(5))).await.unwrap();
    drop(dead);
    // It has nothing to do when it comes back.
    let back = TransactionManager::builder(open(&database, "web-1").await).resource(billing).build().await.unwrap();
    assert_eq!(back.in_doubt(), []);
}

#[tokio::test]
async fn a_log_beside_the_work_of_a_carrier_keeps_its_own_rows() {
    let database = database();
    database.psql(TABLE).unwrap();
    let log = open(&database, "a").await;
    let owner = log.owner();
    let config: Config = database.url().parse().unwrap();
    let store = Postgres::builder("orders", config).carrier().build();
    let carried = sorted(record(owner.transaction(2)));
    decide(&log, 1).await.unwrap();
    let branch = store.begin(&BranchContext::new(carried.transaction), Default::default()).await.unwrap();
    branch.batch_execute("insert into t (v) values ('a')").await.unwrap();
    branch.commit_carrying(&carried).await.unwrap();
    assert_eq!(log.unfinished().await.unwrap(), [sorted(record(owner.transaction(1)))]);
    assert_eq!(store.unfinished(owner).await.unwrap(), [carried]);
}
