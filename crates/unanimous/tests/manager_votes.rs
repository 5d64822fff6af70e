//! Before the decision any no aborts the whole: whoever says it, at whatever call. A conflict is worth repeating, a refusal is not,
//! a vote that was lost is a no too, and the branch that may be prepared nevertheless is rolled back until it is certainly gone.

use std::time::Duration;

use unanimous::{Cause, CommitError, FailureKind};

use crate::support::{Call, Fault, MemoryStore, World, aborted, ended};

/// The branch that the error names, and what it had said.
fn said(error: &CommitError) -> (&str, FailureKind) {
    match error {
        CommitError::Aborted { source: Cause::Branch { resource, source }, .. } => (resource, source.kind()),
        other => panic!("a branch was to be named, and it is {other:?}"),
    }
}

/// A kind of no, with what the caller must hear.
fn noes() -> [(Fault, FailureKind, &'static str); 4] {
    [
        (Fault::Conflict, FailureKind::Conflict, "conflict"),
        (Fault::Refused, FailureKind::Refused, "refused"),
        (Fault::Lost, FailureKind::Lost, "lost"),
        (Fault::Panic, FailureKind::Lost, "panic"),
    ]
}

fn nothing_is_left(stores: &[&MemoryStore]) {
    for store in stores {
        assert!(store.keys().is_empty(), "rows are left: {:?}", store.keys());
        assert!(store.prepared().is_empty(), "a branch is left: {:?}", store.prepared());
    }
}

/// Every kind of no at flush: nobody is prepared, all roll back, only a conflict is retryable.
#[tokio::test(start_paused = true)]
async fn a_no_at_flush_aborts_before_anybody_prepares() {
    for (fault, kind, word) in noes() {
        let mut world = World::new();
        let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        for store in [&a, &b, &c] {
            tx.join(store).await.unwrap().put("row").unwrap();
        }
        world.journal.clear();
        b.fail(Call::Flush, fault);
        let error = aborted(ended(tx.commit()).await);
        assert_eq!(said(&error), ("b", kind));
        assert_eq!(error.is_retryable(), kind == FailureKind::Conflict);
        let failed = format!("b.flush: {word}");
        assert_eq!(
            world.journal.acts(),
            ["a.flush", "b.flush", &failed, "c.flush", "a.rollback", "b.rollback", "c.rollback"]
        );
        nothing_is_left(&[&a, &b, &c]);
    }
}

/// Every kind of no at prepare: those who have prepared roll back, in order; no decision is written.
#[tokio::test(start_paused = true)]
async fn a_no_at_prepare_rolls_back_those_who_prepared() {
    for (fault, kind, word) in noes() {
        let mut world = World::new();
        let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        for store in [&a, &b, &c] {
            tx.join(store).await.unwrap().put("row").unwrap();
        }
        world.journal.clear();
        c.fail(Call::Prepare, fault);
        let error = aborted(ended(tx.commit()).await);
        assert_eq!(said(&error), ("c", kind));
        assert_eq!(error.is_retryable(), kind == FailureKind::Conflict);
        let failed = format!("c.prepare: {word}");
        assert_eq!(
            world.journal.acts()[3..],
            ["a.prepare!", "b.prepare!", "c.prepare!", &failed, "a.rollback", "b.rollback", "c.rollback"]
        );
        nothing_is_left(&[&a, &b, &c]);
        assert!(world.disk.unfinished().is_empty());
    }
}

/// A prepare that is still out when another says no is waited for, and rolled back when it comes.
#[tokio::test(start_paused = true)]
async fn a_prepare_that_is_out_is_rolled_back_when_it_comes() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    world.journal.clear();
    let hold = a.hold(Call::Prepare);
    b.fail(Call::Prepare, Fault::Refused);
    let commit = tx.commit();
    hold.reached().await;
    world.journal.until("b.rollback").await;
    hold.release();
    aborted(ended(commit).await);
    assert_eq!(
        world.journal.acts()[2..],
        ["a.prepare!", "b.prepare!", "b.prepare: refused", "b.rollback", "a.rollback"]
    );
    nothing_is_left(&[&a, &b]);
}

/// A definite no of the only writer's one-phase commit: aborted, it and nobody else is rolled back.
#[tokio::test(start_paused = true)]
async fn a_definite_no_of_a_one_phase_commit_aborts() {
    for (fault, kind, word) in noes().into_iter().take(2) {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        tx.join(&a).await.unwrap();
        tx.join(&b).await.unwrap().put("row").unwrap();
        world.journal.clear();
        b.fail(Call::CommitOnePhase, fault);
        let error = aborted(ended(tx.commit()).await);
        assert_eq!(said(&error), ("b", kind));
        assert_eq!(error.is_retryable(), kind == FailureKind::Conflict);
        let failed = format!("b.commit-one-phase: {word}");
        assert_eq!(
            world.journal.acts()[2..],
            ["a.commit-one-phase", "b.commit-one-phase!", &failed, "b.rollback"],
            "the reader has ended already"
        );
        nothing_is_left(&[&a, &b]);
    }
}

/// A definite no of the carrier: it could not commit, so the others roll back.
#[tokio::test(start_paused = true)]
async fn a_definite_no_of_the_carrier_aborts() {
    for (fault, kind, word) in noes().into_iter().take(2) {
        let mut world = World::new();
        let (a, c) = (world.two_phase("a"), world.carrier("c"));
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        for store in [&a, &c] {
            tx.join(store).await.unwrap().put("row").unwrap();
        }
        world.journal.clear();
        c.fail(Call::CommitCarrying, fault);
        let error = aborted(ended(tx.commit()).await);
        assert_eq!(said(&error), ("c", kind));
        assert_eq!(error.is_retryable(), kind == FailureKind::Conflict);
        let failed = format!("c.commit-carrying [a]: {word}");
        assert_eq!(
            world.journal.acts()[2..],
            ["a.prepare!", "c.commit-carrying! [a]", &failed, "a.rollback", "c.rollback"]
        );
        nothing_is_left(&[&a, &c]);
    }
}

/// A lost one-phase commit: nobody knows, nobody is touched, and it is never retryable.
#[tokio::test(start_paused = true)]
async fn a_lost_one_phase_commit_is_unknown() {
    for fault in [Fault::Lost, Fault::LostDone, Fault::Panic] {
        let mut world = World::new();
        let a = world.two_phase("a");
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        tx.join(&a).await.unwrap().put("row").unwrap();
        world.journal.clear();
        a.fail(Call::CommitOnePhase, fault);
        let error = crate::support::unknown(ended(tx.commit()).await);
        assert!(!error.is_retryable());
        assert_eq!(world.journal.acts()[..2], ["a.flush", "a.commit-one-phase!"]);
        assert_eq!(world.journal.acts().len(), 3, "nothing follows the loss: {:?}", world.journal.acts());
    }
}

/// The vote was lost and the store did prepare: the rollback reaches the prepared branch.
#[tokio::test(start_paused = true)]
async fn a_vote_that_was_lost_after_it_prepared_is_rolled_back() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    a.fail(Call::Prepare, Fault::LostDone);
    let error = aborted(ended(tx.commit()).await);
    assert_eq!(said(&error), ("a", FailureKind::Lost));
    nothing_is_left(&[&a, &b]);
}

/// A prepare lands after its rollback said OK (traps, 2): the listing finds it, by itself, and it is rolled back.
#[tokio::test(start_paused = true)]
async fn a_prepare_that_lands_late_is_found_by_the_listing() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    a.fail(Call::Prepare, Fault::Late);
    aborted(ended(tx.commit()).await);
    assert!(a.prepared().is_empty());
    world.journal.clear();
    a.land();
    assert_eq!(a.prepared().len(), 1, "it landed");
    // Nobody calls for recovery: listing goes on for the manager's life (rule 8), every 60 s by default.
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(world.journal.acts(), ["a.recovered-rollback"]);
    nothing_is_left(&[&a, &b]);
}

/// The same when even the rollback failed: the caller hears of the abort after `phase_two_wait`, recovery does the rest.
#[tokio::test(start_paused = true)]
async fn a_rollback_that_keeps_failing_is_left_to_recovery() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    world.journal.clear();
    a.fail(Call::Prepare, Fault::LostDone);
    a.fail_always(Call::Rollback, Fault::Lost);
    a.fail(Call::RecoveredRollback, Fault::Lost);
    let began = tokio::time::Instant::now();
    aborted(ended(tx.commit()).await);
    assert_eq!(began.elapsed().as_secs(), 5, "it was repeated for phase_two_wait");
    assert!(world.journal.count("a.rollback") > 3, "{:?}", world.journal.acts());
    assert_eq!(world.journal.count("b.rollback"), 1, "the other one rolled back meanwhile");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let acts: Vec<_> = world.journal.acts().into_iter().filter(|line| line.contains("recovered")).collect();
    assert_eq!(acts, ["a.recovered-rollback", "a.recovered-rollback: lost", "a.recovered-rollback"]);
    nothing_is_left(&[&a, &b]);
}

/// A rollback that panics is repeated as one that fails, where the branch may be prepared.
#[tokio::test(start_paused = true)]
async fn a_rollback_that_panics_is_repeated() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    world.journal.clear();
    b.fail(Call::Prepare, Fault::Refused);
    a.fail(Call::Rollback, Fault::Panic);
    aborted(ended(tx.commit()).await);
    assert_eq!(
        world.journal.acts()[4..],
        ["b.prepare: refused", "a.rollback", "a.rollback: panic", "b.rollback", "a.rollback"]
    );
    nothing_is_left(&[&a, &b]);
}

/// A rollback that fails and was never prepared is not repeated: it ends with its session.
#[tokio::test(start_paused = true)]
async fn a_rollback_of_an_unprepared_branch_is_not_repeated() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    world.journal.clear();
    a.fail_always(Call::Rollback, Fault::Refused);
    ended(tx.abort()).await;
    assert_eq!(world.journal.acts(), ["a.rollback", "a.rollback: refused"]);
}
