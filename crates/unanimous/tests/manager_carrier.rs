//! The carrier's own commit is the decision. Where its answer is lost, its decision row is asked; where that can't be asked within
//! `phase_two_wait`, the outcome is unknown, the others stay prepared, and recovery goes on asking.

use std::time::Duration;

use tokio::time::Instant;
use unanimous::{Doubt, HoldReason, Options, Transaction, TransactionManager};

use crate::support::{Call, Fault, MemoryStore, World, aborted, ended, eventually, unknown};

async fn both_wrote(manager: &TransactionManager, stores: [&MemoryStore; 2]) -> Transaction {
    let tx = manager.begin();
    for store in stores {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    tx
}

/// Lost before it was done: the row is not there, a fence keeps it from coming late, all roll back.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_without_a_row_is_fenced_and_aborted() {
    for (fault, word) in [(Fault::Lost, "lost"), (Fault::Panic, "panic")] {
        let mut world = World::new();
        let (a, c) = (world.two_phase("a"), world.carrier("c"));
        let (manager, _log) = world.start().await;
        let tx = both_wrote(&manager, [&a, &c]).await;
        world.journal.clear();
        c.fail(Call::CommitCarrying, fault);
        assert!(!aborted(ended(tx.commit()).await).is_retryable());
        let failed = format!("c.commit-carrying [a]: {word}");
        assert_eq!(
            world.journal.acts()[2..],
            ["a.prepare!", "c.commit-carrying! [a]", &failed, "c.fence!", "a.rollback", "c.rollback"]
        );
        assert!(a.prepared().is_empty() && a.keys().is_empty() && c.keys().is_empty());
    }
}

/// Lost after it was done: the row says so, and the caller hears "committed".
#[tokio::test(start_paused = true)]
async fn a_lost_answer_with_a_row_is_committed() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &c]).await;
    world.journal.clear();
    c.fail(Call::CommitCarrying, Fault::LostDone);
    // The first question is lost too.
    c.fail(Call::Decision, Fault::Lost);
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 0);
    assert_eq!(
        world.journal.all()[2..],
        [
            "a.prepare!",
            "c.commit-carrying! [a]",
            "c.commit-carrying [a]: lost, done",
            "c.identity",
            "c.decision",
            "c.identity",
            "c.decision",
            "a.commit!",
            "c.forget"
        ]
    );
    assert_eq!([a.keys(), c.keys()], [["row"], ["row"]]);
}

/// It can't be asked: unknown after the wait, nothing is touched; when it can be asked again, recovery finishes either way.
#[tokio::test(start_paused = true)]
async fn a_carrier_that_cannot_be_asked_is_unknown_and_finished_later() {
    for (fault, committed) in [(Fault::Lost, false), (Fault::LostDone, true)] {
        let mut world = World::new();
        let (a, c) = (world.two_phase("a"), world.carrier("c"));
        let (manager, _log) = world.start().await;
        let tx = both_wrote(&manager, [&a, &c]).await;
        world.journal.clear();
        c.fail(Call::CommitCarrying, fault);
        c.fail_always(Call::Decision, Fault::Lost);
        let began = Instant::now();
        unknown(ended(tx.commit()).await);
        assert_eq!(began.elapsed().as_secs(), 5);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(world.journal.acts().len(), 5, "nothing follows the loss: {:?}", world.journal.acts());
        assert_eq!(a.prepared().len(), 1);
        let doubts = manager.in_doubt();
        assert!(
            doubts.iter().any(|doubt| doubt.resource == "a" && doubt.why == Doubt::Held(HoldReason::Unreachable)),
            "{doubts:?}"
        );
        world.journal.clear();
        c.heal(Call::Decision);
        eventually("recovery finishes the branch", || a.prepared().is_empty()).await;
        let expected = match committed {
            true => ["a.recovered-commit!", "c.forget"],
            false => ["c.fence!", "a.recovered-rollback"],
        };
        assert_eq!(world.journal.acts(), expected);
        let rows = if committed { 1 } else { 0 };
        assert_eq!((a.keys().len(), c.keys().len()), (rows, rows));
    }
}

/// The question itself never comes back: it is given up after `store_wait`, so that recovery can take over.
#[tokio::test(start_paused = true)]
async fn a_carrier_that_hangs_when_asked_is_unknown_and_finished_later() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &c]).await;
    c.fail(Call::CommitCarrying, Fault::LostDone);
    // Only this question hangs; a later one would be answered.
    let _hold = c.hold(Call::Decision);
    let began = Instant::now();
    let result = ended(tx.commit()).await;
    assert_eq!(began.elapsed().as_secs(), 5);
    unknown(result);
    eventually("the branch is committed", || a.keys() == ["row"]).await;
    assert_eq!(c.keys(), ["row"]);
}

/// Another store behind the carrier's name is not believed: its missing row says nothing.
#[tokio::test(start_paused = true)]
async fn another_store_under_the_carriers_name_is_not_asked() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &c]).await;
    world.journal.clear();
    c.fail(Call::CommitCarrying, Fault::Lost);
    c.set_identity("another");
    unknown(ended(tx.commit()).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.journal.count("c.fence!"), 0, "{:?}", world.journal.acts());
    assert_eq!(a.prepared().len(), 1);
}

/// A carrier alone that carries its own row: a lost answer is asked for, and right both ways.
#[tokio::test(start_paused = true)]
async fn a_carrier_alone_with_ask_single_knows_its_outcome() {
    for (fault, committed) in [(Fault::Lost, false), (Fault::LostDone, true)] {
        let mut world = World::new();
        let c = world.carrier("c");
        let (manager, _log) = world.start().await;
        let tx = manager.begin_with(Options::default().ask_single());
        tx.join(&c).await.unwrap().put("row").unwrap();
        c.fail(Call::CommitCarrying, fault);
        let result = ended(tx.commit()).await;
        if committed {
            result.unwrap();
            assert_eq!(c.keys(), ["row"]);
        } else {
            aborted(result);
            assert!(c.keys().is_empty());
        }
    }
}

/// The process dies after the carrier committed, before anybody else did: the next start reads the row and commits them.
#[tokio::test(start_paused = true)]
async fn a_crash_after_the_carrier_committed_is_finished_by_the_row() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &c]).await;
    for call in [Call::Commit, Call::RecoveredCommit] {
        a.fail_always(call, Fault::Lost);
    }
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 1);
    drop(manager);
    a.heal(Call::RecoveredCommit);
    let (builder, _log) = world.builder();
    world.journal.clear();
    let _manager = builder.build().await.unwrap();
    assert_eq!(world.journal.acts(), ["a.recovered-commit!", "c.forget"]);
    assert_eq!([a.keys(), c.keys()], [["row"], ["row"]]);
}
