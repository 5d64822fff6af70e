//! The manager's end: what is committing is drained, what is new is refused, the log is given up; at the deadline too, but never
//! while a carrier's commit could still decide. And the end of a runtime in the middle of a commit, which counts as a crash.

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::time::Instant;
use unanimous::{Cause, CommitError, DecisionLog, JoinError, Outcome, Transaction, TransactionManager};

use crate::support::{Call, LONG, MemoryStore, World, aborted, ended, eventually};

const DEADLINE: Duration = Duration::from_secs(30);

async fn both_wrote(manager: &TransactionManager, stores: [&MemoryStore; 2]) -> Transaction {
    let tx = manager.begin();
    for store in stores {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    tx
}

/// It waits for what is committing, refuses the first join of others, and closes the log last.
#[tokio::test(start_paused = true)]
async fn a_shutdown_drains_what_is_committing() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &b]).await;
    let before = manager.begin();
    world.journal.clear();
    let hold = b.hold(Call::Prepare);
    let commit = tx.commit();
    hold.reached().await;
    let stopping = tokio::spawn({
        let manager = manager.clone();
        async move { manager.shutdown(DEADLINE).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    for refused in [&before, &manager.begin()] {
        let error = refused.join(&a).await.map(|_| ()).unwrap_err();
        assert!(matches!(&error, JoinError::NotActive { why, .. } if why.contains("shutting down")), "{error:?}");
    }
    assert_eq!(world.journal.count("log.close"), 0);
    hold.release();
    assert_eq!(ended(commit).await.unwrap().pending, 0);
    stopping.await.unwrap().unwrap();
    let acts = world.journal.acts();
    assert_eq!(acts[acts.len() - 4..], ["a.commit!", "b.commit!", "log.forget", "log.close"]);
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    assert!(log.ready().is_err());
}

/// What has joined something may go on to its end, and join more.
#[tokio::test(start_paused = true)]
async fn what_has_joined_goes_on_while_it_shuts_down() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    let stopping = tokio::spawn({
        let manager = manager.clone();
        async move { manager.shutdown(DEADLINE).await }
    });
    tokio::task::yield_now().await;
    tx.join(&b).await.unwrap().put("row").unwrap();
    ended(tx.commit()).await.unwrap();
    stopping.await.unwrap().unwrap();
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
}

/// A first join that is under way when the shutdown begins is refused when it comes, and rolled back: it is not left out.
#[tokio::test(start_paused = true)]
async fn a_first_join_that_meets_the_shutdown_is_refused() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let hold = a.hold(Call::Begin);
    let joining = tokio::spawn({
        let (handle, a) = (tx.handle(), a.clone());
        async move { handle.join(&a).await.map(|_| ()) }
    });
    hold.reached().await;
    manager.shutdown(DEADLINE).await.unwrap();
    hold.release();
    assert!(matches!(joining.await.unwrap(), Err(JoinError::NotActive { .. })));
    world.journal.until("a.rollback").await;
}

/// The deadline passes first: the number of those that had not ended is said, the log is given up, and what is not decided aborts;
/// nothing is prepared for it any more.
#[tokio::test(start_paused = true)]
async fn at_the_deadline_the_log_is_given_up_all_the_same() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let several = both_wrote(&manager, [&a, &b]).await;
    let carried = both_wrote(&manager, [&a, &c]).await;
    let alone = manager.begin();
    alone.join(&a).await.unwrap().put("alone").unwrap();
    world.journal.clear();
    let began = Instant::now();
    let undrained = manager.shutdown(DEADLINE).await.unwrap_err();
    assert_eq!(undrained.transactions, 3);
    assert_eq!(began.elapsed(), DEADLINE);
    assert_eq!(world.journal.acts(), ["log.close"]);
    world.journal.clear();
    for tx in [several, carried, alone] {
        let error = aborted(ended(tx.commit()).await);
        assert!(matches!(&error, CommitError::Aborted { source: Cause::ShuttingDown, .. }), "{error:?}");
    }
    assert_eq!(world.journal.acts(), ["a.rollback", "b.rollback", "a.rollback", "c.rollback", "a.rollback"]);
}

/// Recovery ends with the shutdown, also in the middle of a pass: nobody asks in the name of a log that is given up.
#[tokio::test(start_paused = true)]
async fn recovery_ends_before_the_log_is_given_up() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    let hold = b.hold(Call::List);
    let id = unanimous::BranchId {
        transaction: log.owner().transaction(999),
        decider: unanimous::DeciderId::Log,
        number: 0,
    };
    a.plant(&id, "row");
    let recovering = tokio::spawn({
        let manager = manager.clone();
        async move { manager.recover().await }
    });
    hold.reached().await;
    manager.shutdown(DEADLINE).await.unwrap();
    hold.release();
    recovering.await.unwrap();
    manager.recover().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.journal.acts(), ["log.close"]);
    assert_eq!(a.prepared().len(), 1);
}

/// A carrier's commit is out at the deadline. The log's next owner would presume abort for the others, so the log stays locked; when
/// the carrier answers, all is as it says.
#[tokio::test(start_paused = true)]
async fn the_log_is_kept_while_a_carrier_could_still_decide() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &c]).await;
    let hold = c.hold(Call::CommitCarrying);
    let commit = tx.commit();
    hold.reached().await;
    assert_eq!(manager.shutdown(DEADLINE).await.unwrap_err().transactions, 1);
    assert_eq!(world.journal.count("log.close"), 0);
    hold.release();
    ended(commit).await.unwrap();
    assert_eq!([a.keys(), c.keys()], [["row"], ["row"]]);
}

/// The same carrier has not begun to commit at the deadline: it does not begin any more.
#[tokio::test(start_paused = true)]
async fn no_carrier_decides_after_the_log_was_given_up() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &c]).await;
    let hold = a.hold(Call::Prepare);
    let commit = tx.commit();
    hold.reached().await;
    manager.shutdown(DEADLINE).await.unwrap_err();
    assert_eq!(world.journal.count("log.close"), 1);
    world.journal.clear();
    hold.release();
    aborted(ended(commit).await);
    assert_eq!(world.journal.acts(), ["a.rollback", "c.rollback"]);
    assert!(a.prepared().is_empty() && c.keys().is_empty());
}

/// When the last handle is dropped the background ends with it, and the manager is gone.
#[tokio::test(start_paused = true)]
async fn a_manager_that_is_dropped_ends_its_background() {
    let mut world = World::new();
    world.two_phase("a");
    let (manager, _log) = world.start().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(world.journal.count("a.list") >= 1);
    drop(manager);
    world.journal.clear();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(world.journal.all().is_empty(), "{:?}", world.journal.all());
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// The runtime ends at each stage of a commit. Its caller, in another runtime, hears what can be said; recovery, called there,
/// finds the transaction not live any more, and finishes it.
#[test]
fn a_runtime_that_ends_in_the_middle_of_a_commit_counts_as_a_crash() {
    let callers = runtime();
    for (stage, outcome, rows) in [
        ("prepare", Outcome::Aborted, 0),
        ("decide", Outcome::Unknown, 0),
        ("phase two", Outcome::Committed, 1),
        ("carrier", Outcome::Unknown, 0),
    ] {
        let mut world = World::new();
        let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.carrier("c"));
        let dying = runtime();
        let reported = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let (manager, log) = dying.block_on(async {
            let (builder, log) = world.builder();
            let reported = reported.clone();
            let builder = builder.observer(move |report| reported.lock().unwrap().push(report.outcome));
            (builder.build().await.unwrap(), log)
        });
        let (commit, hold) = callers.block_on(async {
            let other = if stage == "carrier" { &c } else { &b };
            let tx = both_wrote(&manager, [&a, other]).await;
            let hold = match stage {
                "prepare" => b.hold(Call::Prepare),
                "decide" => log.hold(),
                "phase two" => b.hold(Call::Commit),
                _ => c.hold(Call::CommitCarrying),
            };
            let commit = tx.commit();
            hold.reached().await;
            if stage == "phase two" {
                eventually("a has committed", || a.keys() == ["row"]).await;
            } else {
                eventually("a has prepared", || a.prepared().len() == 1).await;
            }
            (commit, hold)
        });
        dying.shutdown_background();
        callers.block_on(async {
            let result = tokio::time::timeout(LONG, commit).await.expect("the caller is answered");
            match (&result, outcome) {
                (Ok(committed), Outcome::Committed) => assert_eq!(committed.pending, 1),
                (Err(CommitError::Aborted { source: Cause::Interrupted, .. }), Outcome::Aborted) => {}
                (Err(CommitError::Unknown { source: Cause::Interrupted, .. }), Outcome::Unknown) => {}
                _ => panic!("{stage}: {result:?}"),
            }
            assert_eq!(*reported.lock().unwrap(), [outcome], "{stage}");
            hold.release();
            let doubts = manager.recover().await;
            assert!(doubts.is_empty(), "{stage}: {doubts:?}");
            for store in [&a, &b, &c] {
                assert!(store.prepared().is_empty(), "{stage}: a branch is left");
            }
            let other = if stage == "carrier" { &c } else { &b };
            assert_eq!((a.keys().len(), other.keys().len()), (rows, rows), "{stage}");
            assert!(world.disk.unfinished().is_empty());
        });
    }
}

/// A runtime that is gone when commit is called: surely aborted, and said so; nothing was begun.
#[test]
fn a_commit_without_a_runtime_is_aborted() {
    let callers = runtime();
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let dying = runtime();
    let manager = dying.block_on(async { world.builder().0.build().await.unwrap() });
    callers.block_on(async {
        let tx = both_wrote(&manager, [&a, &b]).await;
        dying.shutdown_background();
        world.journal.clear();
        let called = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let note = called.clone();
        tx.after_end(move |outcome| note.lock().unwrap().push(outcome));
        aborted(ended(tx.commit()).await);
        assert_eq!(*called.lock().unwrap(), [Outcome::Aborted]);
        assert!(world.journal.acts().is_empty(), "{:?}", world.journal.acts());
        manager.shutdown(DEADLINE).await.unwrap();
    });
}
