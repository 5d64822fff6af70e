//! The decision row: with the work or not at all, asked for with a final answer, kept to the horizon (rules 3, 4, 8,
//! 11).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use unanimous::env::{BoxFuture, Env, NoRuntime, TokioEnv};
use unanimous::sqlite::{DecisionError, EndError, Sqlite};
use unanimous::{
    Branch, DecisionRecord, FailureKind, HoldReason, Incarnation, Known, LogId, Owner, ResourceManager, StoreError,
    TransactionId,
};

use crate::support::warnings::Warnings;

use super::{Place, begin, insert, owner, poll_once, record, source, strings, within};

/// A transaction that wrote its number and carried its decision.
async fn carried(store: &Sqlite, sequence: u64) -> DecisionRecord {
    carried_by(store, owner(), sequence).await
}

async fn carried_by(store: &Sqlite, owner: Owner, sequence: u64) -> DecisionRecord {
    let branch = begin(store, sequence).await;
    insert(&branch, &sequence.to_string()).await;
    within(branch.flush()).await.unwrap();
    let record = record(owner.transaction(sequence));
    within(branch.commit_carrying(&record)).await.unwrap();
    record
}

async fn decision(store: &Sqlite, transaction: TransactionId) -> Known {
    within(store.decision(transaction, owner())).await.unwrap()
}

fn rows(place: &Place) -> Vec<String> {
    strings(
        &place.stranger(),
        "SELECT transaction_id || ' ' || outcome || iif(finished_at IS NULL, '', ' finished') FROM unanimous_decision
         ORDER BY transaction_id",
    )
}

fn cause(error: StoreError) -> DecisionError {
    let error: Box<dyn std::error::Error> = Box::new(error);
    let text = format!("{error:?}");
    // The store's error gives its source by reference only.
    let source = error.source().and_then(|source| source.downcast_ref::<DecisionError>()).expect(&text);
    match source {
        DecisionError::Busy { waited } => DecisionError::Busy { waited: *waited },
        DecisionError::Damaged { transaction, what } => {
            DecisionError::Damaged { transaction: transaction.clone(), what: what.clone() }
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_row_is_committed_with_the_work_and_survives_a_restart() {
    let place = Place::new();
    let store = place.open().await;
    let record = carried(&store, 1).await;
    assert_eq!(place.values(), ["1"]);
    assert_eq!(rows(&place), [format!("{} commit", record.transaction)]);
    assert_eq!(decision(&store, record.transaction).await, Known::Commit(record.clone()));
    drop(store);
    let store = place.open().await;
    assert_eq!(decision(&store, record.transaction).await, Known::Commit(record.clone()));
    // Asked by a later incarnation of its log too.
    let later = Owner { incarnation: Incarnation::new(9, 1), ..owner() };
    assert_eq!(within(store.decision(record.transaction, later)).await.unwrap(), Known::Commit(record));
}

#[tokio::test]
async fn an_operator_can_read_the_rows() {
    let place = Place::new();
    let store = place.open().await;
    let transaction = carried(&store, 1).await.transaction;
    let stranger = place.stranger();
    let decided = strings(
        &stranger,
        "select transaction_id || ' ' || outcome || ' ' || datetime(decided_at / 1000000, 'unixepoch') from unanimous_decision",
    );
    assert_eq!(decided, [format!("{transaction} commit 2023-11-14 22:13:20")]);
    let listed = strings(
        &stranger,
        "select number || ' ' || resource || ' ' || ifnull(store, '-') from unanimous_participant order by number",
    );
    assert_eq!(listed, ["0 work work-store", "1 a mailer, volatile -", "300 räksmörgås 0-9"]);
}

#[tokio::test]
async fn a_carrier_that_comes_after_the_fence_is_refused() {
    let place = Place::new();
    let store = place.open().await;
    let transaction = owner().transaction(1);
    assert_eq!(decision(&store, transaction).await, Known::Abort);
    let late = begin(&store, 1).await;
    insert(&late, "late").await;
    within(late.flush()).await.unwrap();
    let error: EndError = source(within(late.commit_carrying(&record(transaction))).await, FailureKind::Refused);
    assert!(matches!(error, EndError::Fenced { transaction: fenced } if fenced == transaction), "{error:?}");
    within(late.rollback()).await.unwrap();
    assert_eq!(place.values(), [""; 0]);
    assert_eq!(rows(&place), [format!("{transaction} abort finished")]);
    // The answer stays what it was.
    assert_eq!(decision(&store, transaction).await, Known::Abort);
}

#[tokio::test]
async fn asking_waits_for_a_carrier_that_may_be_about_to_commit() {
    let place = Place::new();
    let store = place.open().await;
    let transaction = owner().transaction(1);
    let carrier = begin(&store, 1).await;
    insert(&carrier, "1").await;
    within(carrier.flush()).await.unwrap();
    let mut asked = Box::pin(store.decision(transaction, owner()));
    assert!(poll_once(&mut asked).await.is_pending());
    let record = record(transaction);
    within(carrier.commit_carrying(&record)).await.unwrap();
    assert_eq!(within(asked).await.unwrap(), Known::Commit(record));
}

#[tokio::test]
async fn asking_gives_up_after_the_lock_timeout_and_fences_nothing() {
    let place = Place::new();
    let store = place.open_with(Duration::from_millis(50)).await;
    let transaction = owner().transaction(1);
    let carrier = begin(&store, 1).await;
    insert(&carrier, "1").await;
    let error = within(store.decision(transaction, owner())).await.unwrap_err();
    assert!(matches!(cause(error), DecisionError::Busy { .. }));
    // The same with the lock in another process's hands.
    within(carrier.rollback()).await.unwrap();
    let stranger = place.stranger();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = within(store.decision(transaction, owner())).await.unwrap_err();
    assert!(matches!(cause(error), DecisionError::Busy { .. }));
    stranger.execute_batch("ROLLBACK").unwrap();
    assert_eq!(rows(&place), [""; 0]);
}

#[tokio::test]
async fn only_the_owner_of_the_log_may_presume() {
    let place = Place::new();
    let store = place.open().await;
    let own = owner().incarnation;
    let of = |log, incarnation| Owner { log, incarnation }.transaction(5);
    let cases = [
        (of(LogId(8), own), HoldReason::ForeignLog),
        (of(LogId(8), Incarnation::new(1, 1)), HoldReason::ForeignLog),
        (of(owner().log, Incarnation::new(own.counter + 1, own.nonce)), HoldReason::ForeignIncarnation),
        (of(owner().log, Incarnation::new(own.counter, own.nonce + 1)), HoldReason::ForeignIncarnation),
    ];
    for (transaction, reason) in cases {
        assert_eq!(decision(&store, transaction).await, Known::Hold(reason), "{transaction}");
    }
    assert_eq!(rows(&place), [""; 0]);
    // Earlier incarnations are dead, since their log's lock is ours now.
    let earlier = of(owner().log, Incarnation::new(own.counter - 1, 3));
    assert_eq!(decision(&store, earlier).await, Known::Abort);
    assert_eq!(rows(&place), [format!("{earlier} abort finished")]);
}

/// Rule 3: a row that was found can sit in the page cache only, so each answer is a write of its own, with its sync.
#[tokio::test]
async fn every_answer_is_written_again() {
    let place = Place::new();
    let store = place.open().await;
    let committed = carried(&store, 1).await;
    let asked =
        || strings(&place.stranger(), "SELECT cast(asked AS TEXT) FROM unanimous_decision ORDER BY transaction_id");
    assert_eq!(asked(), ["0"]);
    decision(&store, committed.transaction).await;
    decision(&store, committed.transaction).await;
    decision(&store, owner().transaction(2)).await;
    assert_eq!(asked(), ["2", "1"]);
    // Listing what is unfinished, too.
    let identity = || strings(&place.stranger(), "SELECT cast(asked AS TEXT) FROM unanimous_identity");
    assert_eq!(identity(), ["0"]);
    within(store.unfinished(owner())).await.unwrap();
    assert_eq!(identity(), ["1"]);
}

#[tokio::test]
async fn unfinished_decisions_are_listed_until_they_are_forgotten() {
    let place = Place::new();
    let store = place.open().await;
    let first = carried(&store, 9).await;
    let second = carried(&store, 10).await;
    // Another log's, and a fence: not ours to finish, and nothing to finish.
    carried_by(&store, Owner { log: LogId(8), ..owner() }, 11).await;
    decision(&store, owner().transaction(12)).await;
    let mut listed = within(store.unfinished(owner())).await.unwrap();
    listed.sort_by_key(|record| record.transaction.sequence);
    assert_eq!(listed, [first.clone(), second.clone()]);

    store.forget(first.transaction);
    assert_eq!(within(store.unfinished(owner())).await.unwrap(), std::slice::from_ref(&second));
    // Written with the next decision that is carried.
    assert!(!rows(&place).contains(&format!("{} commit finished", first.transaction)));
    carried(&store, 13).await;
    assert!(rows(&place).contains(&format!("{} commit finished", first.transaction)));
    // A forgotten one still says what it was, up to the horizon.
    assert_eq!(decision(&store, first.transaction).await, Known::Commit(first));

    // Written when the store is closed.
    store.forget(second.transaction);
    within(store.close()).await.unwrap();
    assert!(rows(&place).contains(&format!("{} commit finished", second.transaction)));
    let refused = super::begin_with(&store, 14, Default::default()).await;
    assert_eq!(refused.err().unwrap().kind(), FailureKind::Refused);
}

#[tokio::test]
async fn what_is_forgotten_is_written_when_the_last_handle_goes() {
    let place = Place::new();
    let store = place.open().await;
    let record = carried(&store, 1).await;
    store.forget(record.transaction);
    drop(store);
    let finished = [format!("{} commit finished", record.transaction)];
    within(async {
        while rows(&place) != finished {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_forgotten_stays_so_when_the_commit_that_took_it_along_fails() {
    let place = Place::new();
    let store = place.open().await;
    let record = carried(&store, 1).await;
    store.forget(record.transaction);
    let failing = begin(&store, 2).await;
    failing
        .execute_batch(
            "CREATE TABLE child (parent INTEGER REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED); INSERT INTO child VALUES (99)",
        )
        .await
        .unwrap();
    within(failing.flush()).await.unwrap();
    assert!(within(failing.commit_carrying(&super::record(owner().transaction(2)))).await.is_err());
    assert_eq!(rows(&place), [format!("{} commit", record.transaction)]);
    assert_eq!(within(store.unfinished(owner())).await.unwrap(), []);
    carried(&store, 3).await;
    assert!(rows(&place).contains(&format!("{} commit finished", record.transaction)));
}

/// A clock that is set by hand.
struct SetClock {
    real: TokioEnv,
    now: AtomicU64,
}

impl Env for SetClock {
    fn monotonic(&self) -> Duration {
        self.real.monotonic()
    }
    fn wall_clock(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.real.sleep(duration)
    }
    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        self.real.spawn(task)
    }
    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        self.real.blocking(job)
    }
    fn random(&self) -> u64 {
        self.real.random()
    }
}

#[tokio::test]
async fn rows_are_kept_to_the_horizon_and_nothing_is_presumed_beyond_it() {
    const HOUR: u64 = 3_600_000_000;
    let clock = Arc::new(SetClock { real: TokioEnv::current(), now: AtomicU64::new(100 * HOUR) });
    let place = Place::new();
    let store = Sqlite::builder("work", place.path())
        .horizon(Duration::from_secs(3600))
        .env(clock.clone())
        .init(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v)"))
        .open()
        .await
        .unwrap();
    let earlier = Owner { incarnation: Incarnation::new(1, 4), ..owner() };
    let unfinished = carried(&store, 4).await;
    let finished = carried(&store, 5).await;
    let old_fence = earlier.transaction(3);
    let own_fence = owner().transaction(3);
    assert_eq!(decision(&store, old_fence).await, Known::Abort);
    assert_eq!(decision(&store, own_fence).await, Known::Abort);
    store.forget(finished.transaction);
    carried(&store, 6).await;

    // Within the horizon, and exactly at it by a microsecond less.
    clock.now.fetch_add(HOUR - 1, Ordering::SeqCst);
    carried(&store, 7).await;
    assert_eq!(decision(&store, finished.transaction).await, Known::Commit(finished.clone()));

    clock.now.fetch_add(1, Ordering::SeqCst);
    carried(&store, 8).await;
    let transaction = |sequence| owner().transaction(sequence);
    assert_eq!(
        rows(&place),
        [
            format!("{own_fence} abort finished"),
            format!("{} commit", transaction(4)),
            format!("{} commit", transaction(6)),
            format!("{} commit", transaction(7)),
            format!("{} commit", transaction(8)),
        ]
    );
    let participants = strings(&place.stranger(), "SELECT DISTINCT transaction_id FROM unanimous_participant");
    assert!(!participants.contains(&finished.transaction.to_string()), "{participants:?}");
    // What is gone, and what was begun before it, is beyond the horizon, and no row is made of it.
    let held = Known::Hold(HoldReason::BeyondHorizon);
    assert_eq!(decision(&store, finished.transaction).await, held);
    assert_eq!(decision(&store, transaction(2)).await, held);
    assert_eq!(decision(&store, old_fence).await, held);
    assert_eq!(decision(&store, earlier.transaction(2)).await, held);
    assert_eq!(rows(&place).len(), 5);
    // What is there is known still, below the floor or not; above it, and for other incarnations, no row means abort.
    assert_eq!(decision(&store, unfinished.transaction).await, Known::Commit(unfinished));
    assert_eq!(decision(&store, own_fence).await, Known::Abort);
    assert_eq!(decision(&store, transaction(9)).await, Known::Abort);
    assert_eq!(decision(&store, earlier.transaction(4)).await, Known::Abort);
    let other = Owner { incarnation: Incarnation::new(1, 5), ..owner() };
    assert_eq!(decision(&store, other.transaction(1)).await, Known::Abort);

    // A floor only rises: 8 is gone, then 4, which began before it.
    store.forget(transaction(8));
    carried(&store, 20).await;
    clock.now.fetch_add(HOUR, Ordering::SeqCst);
    store.forget(transaction(4));
    carried(&store, 21).await;
    clock.now.fetch_add(HOUR, Ordering::SeqCst);
    carried(&store, 22).await;
    for gone in [2, 4, 8] {
        assert_eq!(decision(&store, transaction(gone)).await, held, "{gone}");
    }
}

/// Two applications with logs of their own share a database; the one with the short horizon commits.
#[tokio::test]
async fn a_log_expires_its_own_rows_only() {
    const HOUR: u64 = 3_600_000_000;
    let clock = Arc::new(SetClock { real: TokioEnv::current(), now: AtomicU64::new(100 * HOUR) });
    let place = Place::new();
    let open = async |horizon| {
        Sqlite::builder("work", place.path())
            .horizon(Duration::from_micros(horizon))
            .env(clock.clone())
            .init(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v)"))
            .open()
            .await
            .unwrap()
    };
    let (long, short) = (open(24 * HOUR).await, open(HOUR).await);
    let other = Owner { log: LogId(8), ..owner() };
    let theirs = carried_by(&long, other, 1).await;
    let mine = carried(&short, 1).await;
    for (store, record) in [(&long, &theirs), (&short, &mine)] {
        store.forget(record.transaction);
    }
    let theirs_later = carried_by(&long, other, 2).await;
    let mine_later = carried(&short, 2).await;

    clock.now.fetch_add(2 * HOUR, Ordering::SeqCst);
    let mine_last = carried(&short, 3).await;
    assert_eq!(
        rows(&place),
        [
            format!("{} commit", mine_later.transaction),
            format!("{} commit", mine_last.transaction),
            format!("{} commit finished", theirs.transaction),
            format!("{} commit", theirs_later.transaction),
        ]
    );
    // No floor of theirs was raised either: what they have not heard of can still be presumed.
    assert_eq!(strings(&place.stranger(), "SELECT log FROM unanimous_floor"), [owner().log.to_string()]);
    assert_eq!(within(long.decision(theirs.transaction, other)).await.unwrap(), Known::Commit(theirs.clone()));

    // By its own horizon it goes.
    clock.now.fetch_add(24 * HOUR, Ordering::SeqCst);
    carried_by(&long, other, 3).await;
    let held = Known::Hold(HoldReason::BeyondHorizon);
    assert_eq!(within(long.decision(theirs.transaction, other)).await.unwrap(), held);
}

#[tokio::test]
async fn a_damaged_row_is_reported_and_keeps_no_other_from_being_finished() {
    let place = Place::new();
    let store = place.open().await;
    let mut whole = vec![carried(&store, 1).await];
    let damages = [
        (2, "UPDATE unanimous_participant SET store = 'NOT AN ID' WHERE number = 0 AND transaction_id = ?1"),
        (3, "UPDATE unanimous_participant SET number = 'x' WHERE number = 0 AND transaction_id = ?1"),
        (4, "UPDATE unanimous_decision SET decided_at = 'then' WHERE transaction_id = ?1"),
        (5, "UPDATE unanimous_decision SET transaction_id = x'ff05' WHERE transaction_id = ?1"),
        (6, "UPDATE unanimous_decision SET transaction_id = 'what' WHERE transaction_id = ?1"),
        (7, "UPDATE unanimous_decision SET transaction_id = cast(x'ff07' AS TEXT) WHERE transaction_id = ?1"),
    ];
    let mut damaged = Vec::new();
    for (sequence, sql) in damages {
        damaged.push(carried(&store, sequence).await.transaction);
        assert_eq!(place.stranger().execute(sql, [damaged.last().unwrap().to_string()]).unwrap(), 1, "{sql}");
    }
    whole.push(carried(&store, 8).await);

    let errors = Warnings::collect();
    let mut listed = within(store.unfinished(owner())).await.unwrap();
    listed.sort_by_key(|record| record.transaction.sequence);
    assert_eq!(listed, whole);
    let named = damaged[..3].iter().map(ToString::to_string);
    for names in named.chain(["'FF05'", "what", "'FF07'"].map(str::to_owned)) {
        let told = errors.with(&["ERROR", "the decision row of", &names, "is damaged"]);
        assert_eq!(told.len(), 1, "{names}: {told:?}");
    }
    drop(errors);
    // Whoever needs one of them is not told a guess.
    for transaction in &damaged[..3] {
        let error = within(store.decision(*transaction, owner())).await.unwrap_err();
        assert!(matches!(cause(error), DecisionError::Damaged { .. }), "{transaction}");
    }
    // The damaged ones alone are no reason to forget that they are there.
    for record in whole {
        store.forget(record.transaction);
    }
    assert_eq!(within(store.unfinished(owner())).await.unwrap(), []);
    assert_eq!(strings(&place.stranger(), "SELECT outcome FROM unanimous_decision WHERE finished_at IS NULL").len(), 8);
}

#[tokio::test]
async fn a_second_commit_row_of_one_transaction_is_not_taken_for_a_no() {
    let place = Place::new();
    let store = place.open().await;
    let first = carried(&store, 1).await;
    let again = begin(&store, 1).await;
    insert(&again, "twice").await;
    within(again.flush()).await.unwrap();
    let error: EndError = source(within(again.commit_carrying(&first)).await, FailureKind::Lost);
    assert!(matches!(error, EndError::Repeated { .. }), "{error:?}");
    assert_eq!(decision(&store, first.transaction).await, Known::Commit(first));
    assert_eq!(place.values(), ["1"]);
}
