//! After the decision there is only commit (rule 7): a branch that fails is repeated while the others are committed; the caller
//! waits `phase_two_wait` at most and hears how many are pending; recovery finishes those, and forgets the decision.

use std::time::Duration;

use tokio::time::Instant;
use unanimous::{Transaction, TransactionManager};

use crate::support::{Call, Fault, MemoryStore, World, ended, eventually};

async fn both_wrote(manager: &TransactionManager, stores: [&MemoryStore; 2]) -> Transaction {
    let tx = manager.begin();
    for store in stores {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    tx
}

/// It fails, loses its answer before and after its work, and panics: it is repeated until OK, and the other one is not kept waiting.
#[tokio::test(start_paused = true)]
async fn a_failing_commit_is_repeated_until_it_is_confirmed() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &b]).await;
    world.journal.clear();
    for fault in [Fault::Refused, Fault::Conflict, Fault::Lost, Fault::Panic, Fault::LostDone] {
        a.fail(Call::Commit, fault);
    }
    let began = Instant::now();
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(
        world.journal.acts()[4..],
        [
            "log.decide! [a b]",
            "a.commit!",
            "a.commit: refused",
            "b.commit!",
            "a.commit!",
            "a.commit: conflict",
            "a.commit!",
            "a.commit: lost",
            "a.commit!",
            "a.commit: panic",
            "a.commit!",
            "a.commit: lost, done",
            "a.commit!",
            "log.forget",
        ]
    );
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
}

/// It fails for longer than the caller waits: pending 1, the decision is kept, recovery commits the branch through the store's own
/// connection and forgets the decision.
#[tokio::test(start_paused = true)]
async fn what_is_pending_after_the_wait_is_finished_by_recovery() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &b]).await;
    world.journal.clear();
    a.fail_always(Call::Commit, Fault::Lost);
    a.fail(Call::RecoveredCommit, Fault::Refused);
    a.fail(Call::RecoveredCommit, Fault::Panic);
    let began = Instant::now();
    let committed = ended(tx.commit()).await.unwrap();
    assert_eq!(committed.pending, 1);
    assert_eq!(began.elapsed().as_secs(), 5);
    assert_eq!(b.keys(), ["row"], "the other one is committed");
    assert_eq!(world.disk.unfinished(), [committed.id], "the decision is kept until the branch is confirmed");
    world.journal.until("log.forget").await;
    let acts: Vec<_> = world.journal.acts().into_iter().skip(5).filter(|line| !line.starts_with("a.commit")).collect();
    assert_eq!(
        acts,
        [
            "b.commit!",
            "a.recovered-commit!",
            "a.recovered-commit: refused",
            "a.recovered-commit!",
            "a.recovered-commit: panic",
            "a.recovered-commit!",
            "log.forget"
        ]
    );
    assert_eq!(a.keys(), ["row"]);
    assert!(world.disk.unfinished().is_empty());
    eventually("nothing is in doubt", || manager.in_doubt().is_empty()).await;
}

/// A commit that never answers: the same, though its call never comes back.
#[tokio::test(start_paused = true)]
async fn a_hanging_commit_is_finished_by_recovery() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (builder, _log) = world.builder();
    let manager = builder.phase_two_wait(Duration::from_secs(2)).build().await.unwrap();
    let tx = both_wrote(&manager, [&a, &b]).await;
    world.journal.clear();
    let hold = a.hold_always(Call::Commit);
    let began = Instant::now();
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 1);
    assert_eq!(began.elapsed().as_secs(), 2, "the builder's phase_two_wait");
    world.journal.until("log.forget").await;
    assert_eq!(
        world.journal.acts()[4..],
        ["log.decide! [a b]", "a.commit!", "b.commit!", "a.recovered-commit!", "log.forget"]
    );
    assert_eq!(a.keys(), ["row"]);
    // The late answer changes nothing any more.
    hold.release();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.journal.count("log.forget"), 1);
    assert_eq!(a.keys(), ["row"]);
}

/// Both fail: pending 2, one decision, forgotten when the last one is confirmed and not before.
#[tokio::test(start_paused = true)]
async fn the_decision_is_kept_until_the_last_branch_is_confirmed() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &b]).await;
    for store in [&a, &b] {
        store.fail_always(Call::Commit, Fault::Refused);
        store.fail_always(Call::RecoveredCommit, Fault::Refused);
    }
    let committed = ended(tx.commit()).await.unwrap();
    assert_eq!(committed.pending, 2);
    a.heal(Call::RecoveredCommit);
    eventually("recovery commits the first", || a.keys() == ["row"]).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.disk.unfinished(), [committed.id]);
    assert_eq!(manager.in_doubt().len(), 1, "{:?}", manager.in_doubt());
    assert_eq!(manager.in_doubt()[0].resource, "b");
    b.heal(Call::RecoveredCommit);
    world.journal.until("log.forget").await;
    assert_eq!(b.keys(), ["row"]);
}

/// The process dies with branches pending: the next start commits them.
#[tokio::test(start_paused = true)]
async fn what_is_pending_at_a_crash_is_committed_by_the_next_start() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &b]).await;
    for call in [Call::Commit, Call::RecoveredCommit] {
        a.fail_always(call, Fault::Lost);
    }
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 1);
    drop(manager);
    a.heal(Call::RecoveredCommit);
    let (builder, _log) = world.builder();
    world.journal.clear();
    let _manager = builder.build().await.unwrap();
    assert_eq!(world.journal.acts(), ["a.recovered-commit!", "log.forget"]);
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
}
