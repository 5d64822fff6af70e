//! A transaction from its begin to its end: who may join, what ends it, what its owner is told, and what is called afterwards.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use unanimous::{BuildError, Capability, Cause, CommitError, JoinError, Options, Outcome, TransactionManager};

use crate::support::warnings::Warnings;
use crate::support::{Call, Fault, JournalLog, MemoryStore, World, aborted, ended, eventually};

fn cause(error: &CommitError) -> &Cause {
    match error {
        CommitError::Aborted { source, .. } | CommitError::Unknown { source, .. } => source,
    }
}

/// Dropped without an end: aborted in the background, with a warning that names it.
#[tokio::test(start_paused = true)]
async fn a_dropped_transaction_is_aborted_with_a_warning_that_names_it() {
    let warnings = Warnings::collect();
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let id = tx.id().to_string();
    tx.join(&a).await.unwrap().put("row").unwrap();
    world.journal.clear();
    drop(tx);
    world.journal.until("a.rollback").await;
    assert_eq!(world.journal.acts(), ["a.rollback"]);
    assert_eq!(warnings.with(&[&id, "dropped without commit or abort"]).len(), 1);
    // One that nothing joined is no news.
    let idle = manager.begin();
    let id = idle.id().to_string();
    drop(idle);
    assert!(warnings.with(&[&id]).is_empty());
}

/// Doomed by a handle: it goes on, and commit aborts, whatever its branches did.
#[tokio::test(start_paused = true)]
async fn a_doomed_transaction_aborts_at_commit() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let handle = tx.handle();
    tx.join(&a).await.unwrap().put("row").unwrap();
    handle.doom();
    assert!(handle.is_doomed() && handle.is_active());
    tx.join(&a).await.unwrap().put("more").unwrap();
    world.journal.clear();
    let error = aborted(ended(tx.commit()).await);
    assert!(matches!(cause(&error), Cause::Doomed));
    assert!(!error.is_retryable());
    assert_eq!(world.journal.acts(), ["a.rollback"]);
    assert!(!handle.is_active());
}

/// A guard that is in use when commit is called: nobody is flushed, all roll back, the number of guards is said.
#[tokio::test(start_paused = true)]
async fn a_commit_with_a_guard_in_use_aborts() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let handle = tx.handle();
    let guard = handle.join(&a).await.unwrap();
    guard.put("row").unwrap();
    let second = handle.join(&b).await.unwrap();
    world.journal.clear();
    let error = aborted(ended(tx.commit()).await);
    assert!(matches!(cause(&error), Cause::InUse { guards: 2 }), "{error:?}");
    assert_eq!(world.journal.acts(), ["a.rollback", "b.rollback"]);
    assert!(guard.put("late").is_err(), "the guard is dead");
    drop((guard, second));
    assert!(a.keys().is_empty());
}

/// A join that is under way counts as a guard too; what it begins is rolled back when it comes.
#[tokio::test(start_paused = true)]
async fn a_join_that_comes_after_the_end_is_rolled_back() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    let hold = b.hold(Call::Begin);
    let joining = tokio::spawn({
        let (handle, b) = (tx.handle(), b.clone());
        async move { handle.join(&b).await.map(|_| ()) }
    });
    hold.reached().await;
    world.journal.clear();
    let error = aborted(ended(tx.commit()).await);
    assert!(matches!(cause(&error), Cause::InUse { guards: 1 }), "{error:?}");
    hold.release();
    assert!(matches!(joining.await.unwrap(), Err(JoinError::NotActive { .. })));
    world.journal.until("b.rollback").await;
    assert_eq!(world.journal.acts(), ["a.rollback", "b.rollback"]);
}

/// After the end nothing joins any more, however it ended.
#[tokio::test(start_paused = true)]
async fn nothing_joins_after_the_end() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    for commits in [true, false] {
        let tx = manager.begin();
        let (id, handle) = (tx.id(), tx.handle());
        handle.join(&a).await.unwrap().put("row").unwrap();
        if commits {
            ended(tx.commit()).await.unwrap();
        } else {
            ended(tx.abort()).await;
        }
        for store in [&a, &b] {
            let refused = handle.join(store).await.map(|_| ()).unwrap_err();
            assert!(matches!(&refused, JoinError::NotActive { id: named, .. } if *named == id), "{refused:?}");
            assert!(!refused.is_retryable());
        }
        let volatile = MemoryStore::new("v", Capability::Volatile, &world.journal);
        assert!(matches!(handle.join_branch("v", volatile.branch()), Err(JoinError::NotActive { .. })));
    }
}

/// Joined twice it is the same branch; also by two tasks that meet in the middle of the first join.
#[tokio::test(start_paused = true)]
async fn a_second_join_gives_the_same_branch() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let handle = tx.handle();
    handle.join(&a).await.unwrap().put("first").unwrap();
    handle.join(&a).await.unwrap().put("second").unwrap();
    assert_eq!(world.journal.count("a.begin"), 1);

    let hold = b.hold(Call::Begin);
    let joins = ["third", "fourth"].map(|key| {
        let (handle, b) = (handle.clone(), b.clone());
        tokio::spawn(async move { handle.join(&b).await.unwrap().put(key).unwrap() })
    });
    hold.reached().await;
    hold.release();
    for join in joins {
        join.await.unwrap();
    }
    assert_eq!(world.journal.count("b.begin"), 1);
    ended(tx.commit()).await.unwrap();
    assert_eq!(a.keys(), ["first", "second"]);
    assert_eq!(b.keys(), ["fourth", "third"]);
}

/// A join that fails leaves the transaction as it was; the next one may succeed.
#[tokio::test(start_paused = true)]
async fn a_join_that_fails_can_be_repeated() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    a.fail(Call::Begin, Fault::Conflict);
    a.fail(Call::Begin, Fault::Refused);
    let conflict = tx.join(&a).await.map(|_| ()).unwrap_err();
    assert!(conflict.is_retryable(), "{conflict:?}");
    let refused = tx.join(&a).await.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, JoinError::Store { resource, .. } if resource == "a"), "{refused:?}");
    assert!(!refused.is_retryable());
    tx.join(&b).await.unwrap().put("row").unwrap();
    tx.join(&a).await.unwrap().put("row").unwrap();
    ended(tx.commit()).await.unwrap();
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
}

/// Two that can't prepare: the second is refused when it joins, both are named, and the transaction goes on without it.
#[tokio::test(start_paused = true)]
async fn a_second_branch_that_cannot_prepare_is_refused_by_name() {
    let mut world = World::new();
    let (c, d) = (world.carrier("c"), world.carrier("d"));
    let one = MemoryStore::new("one", Capability::OnePhase, &world.journal);
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&c).await.unwrap().put("row").unwrap();
    world.journal.clear();
    let both = |error: JoinError, refused: &str| {
        let text = error.to_string();
        assert!(matches!(error, JoinError::SecondUnprepared { .. }), "{error:?}");
        assert!(text.contains("\"c\"") && text.contains(&format!("{refused:?}")), "{text}");
    };
    both(tx.join(&d).await.map(|_| ()).unwrap_err(), "d");
    both(tx.join_branch("one", one.branch()).map(|_| ()).unwrap_err(), "one");
    assert!(world.journal.acts().is_empty(), "nothing of it began: {:?}", world.journal.acts());
    ended(tx.commit()).await.unwrap();
    assert_eq!(c.keys(), ["row"]);
}

/// The same where the two meet: one's begin is under way when the other joins. The later one is refused, and what it began is
/// rolled back.
#[tokio::test(start_paused = true)]
async fn two_that_cannot_prepare_and_join_at_the_same_time() {
    let mut world = World::new();
    let c = world.carrier("c");
    let one = MemoryStore::new("one", Capability::OnePhase, &world.journal);
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let hold = c.hold(Call::Begin);
    let joining = tokio::spawn({
        let (handle, c) = (tx.handle(), c.clone());
        async move { handle.join(&c).await.map(|_| ()) }
    });
    hold.reached().await;
    tx.join_branch("one", one.branch()).unwrap().put("row").unwrap();
    hold.release();
    let refused = joining.await.unwrap().unwrap_err();
    assert!(matches!(&refused, JoinError::SecondUnprepared { joined, refused } if joined == "one" && refused == "c"));
    world.journal.until("c.rollback").await;
    ended(tx.commit()).await.unwrap();
    assert_eq!(one.keys(), ["row"]);
}

/// The same for a name: a branch of that name joined while the resource's began.
#[tokio::test(start_paused = true)]
async fn two_of_one_name_that_join_at_the_same_time() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let volatile = MemoryStore::new("a", Capability::Volatile, &world.journal);
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let hold = a.hold(Call::Begin);
    let joining = tokio::spawn({
        let (handle, a) = (tx.handle(), a.clone());
        async move { handle.join(&a).await.map(|_| ()) }
    });
    hold.reached().await;
    tx.join_branch("a", volatile.branch()).unwrap().put("row").unwrap();
    hold.release();
    assert!(matches!(joining.await.unwrap(), Err(JoinError::Duplicate { resource }) if resource == "a"));
    ended(tx.commit()).await.unwrap();
    assert_eq!((a.keys().len(), volatile.keys().len()), (0, 1));
}

/// What is not registered can't be joined; nor a branch under a name that is taken, nor one that claims to be recoverable.
#[tokio::test(start_paused = true)]
async fn a_join_of_what_the_manager_does_not_know_is_refused() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let outside = MemoryStore::new("x", Capability::TwoPhase, &world.journal);
    let volatile = MemoryStore::new("v", Capability::Volatile, &world.journal);
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let refused = tx.join(&outside).await.map(|_| ()).unwrap_err();
    assert!(matches!(&refused, JoinError::NotRegistered { resource } if resource == "x"), "{refused:?}");
    let refused = tx.join_branch("x", outside.branch()).map(|_| ()).unwrap_err();
    assert!(matches!(&refused, JoinError::Unrecoverable { resource } if resource == "x"), "{refused:?}");
    tx.join_branch("v", volatile.branch()).unwrap();
    let refused = tx.join_branch("v", volatile.branch()).map(|_| ()).unwrap_err();
    assert!(matches!(&refused, JoinError::Duplicate { resource } if resource == "v"), "{refused:?}");
    tx.join(&a).await.unwrap();
    ended(tx.commit()).await.unwrap();
}

/// A name stands for one store, and a store has one name.
#[tokio::test(start_paused = true)]
async fn names_and_stores_are_registered_once() {
    let world = World::new();
    let a = MemoryStore::new("a", Capability::TwoPhase, &world.journal);
    let other = MemoryStore::new("a", Capability::TwoPhase, &world.journal);
    let builder = || TransactionManager::builder(JournalLog::new(world.disk.open(), &world.journal));
    let twice = builder().resource(a.clone()).resource(other).build().await.unwrap_err();
    assert!(matches!(&twice, BuildError::DuplicateName { name } if name == "a"), "{twice:?}");
    let renamed = builder().resource(a.clone()).resource(a.named("b")).build().await.unwrap_err();
    assert!(
        matches!(&renamed, BuildError::SameStore { names, store } if *names == ["a", "b"] && *store == a.identity_now()),
        "{renamed:?}"
    );
}

/// A store that was down when the manager was built can be joined once it is back: its identity is read then, since it is part of
/// the decision.
#[tokio::test(start_paused = true)]
async fn a_store_that_was_down_at_start_is_joined_when_it_is_back() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    b.set_down(true);
    let (builder, _log) = world.builder();
    let manager = builder.recovery_interval(Duration::from_secs(86_400)).build().await.unwrap();
    b.set_down(false);
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
        store.fail_always(Call::Commit, Fault::Lost);
        store.fail_always(Call::RecoveredCommit, Fault::Lost);
    }
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 2);
    let stores: Vec<_> = world.disk.records().into_iter().flat_map(|record| record.participants).collect();
    let stores: Vec<_> = stores.into_iter().map(|participant| participant.store).collect();
    assert_eq!(stores, [Some(a.identity_now()), Some(b.identity_now())]);
}

/// The time limit passes before commit: aborted in the background at that moment; joins and commit say so.
#[tokio::test(start_paused = true)]
async fn a_time_limit_that_passes_before_commit_aborts_at_once() {
    let warnings = Warnings::collect();
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin_with(Options::default().time_limit(Duration::from_secs(30)));
    let handle = tx.handle();
    tokio::time::sleep(Duration::from_secs(10)).await;
    // It counts from begin, not from the first join.
    tx.join(&a).await.unwrap().put("row").unwrap();
    world.journal.clear();
    tokio::time::sleep(Duration::from_secs(19)).await;
    assert!(world.journal.acts().is_empty() && handle.is_active());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.journal.acts(), ["a.rollback"]);
    assert!(!handle.is_doomed() && !handle.is_active());
    assert!(
        matches!(handle.join(&a).await.map(|_| ()), Err(JoinError::NotActive { why, .. }) if why.contains("time limit"))
    );
    assert_eq!(warnings.with(&[&tx.id().to_string(), "time limit"]).len(), 1);
    let error = aborted(ended(tx.commit()).await);
    assert!(matches!(cause(&error), Cause::TimeLimit));
    assert_eq!(world.journal.acts(), ["a.rollback"], "commit does nothing more");
}

/// It passes while a vote is out: aborted; the vote that comes afterwards is rolled back.
#[tokio::test(start_paused = true)]
async fn a_time_limit_that_passes_during_prepare_aborts() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (builder, _log) = world.builder();
    let manager = builder.time_limit(Duration::from_secs(30)).build().await.unwrap();
    let began = Instant::now();
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    world.journal.clear();
    let hold = b.hold(Call::Prepare);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let error = aborted(ended(tx.commit()).await);
    assert!(matches!(cause(&error), Cause::TimeLimit), "{error:?}");
    assert!(!error.is_retryable());
    assert_eq!(began.elapsed().as_secs(), 35, "the limit, and phase_two_wait for the vote that is out");
    assert_eq!(world.journal.acts(), ["a.flush", "b.flush", "a.prepare!", "b.prepare!", "a.rollback"]);
    hold.release();
    world.journal.until("b.rollback").await;
    assert!(a.prepared().is_empty());
    eventually("the late vote is rolled back", || b.prepared().is_empty()).await;
}

/// Once the decision is on its way the limit changes nothing.
#[tokio::test(start_paused = true)]
async fn a_time_limit_that_passes_after_the_votes_changes_nothing() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    let tx = manager.begin_with(Options::default().time_limit(Duration::from_secs(30)));
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    let hold = log.hold();
    let commit = tx.commit();
    hold.reached().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    hold.release();
    ended(commit).await.unwrap();
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
}

/// The callbacks after the end: once each, in order, with the outcome; a panic stops neither the others nor the answer; one that is
/// registered afterwards is called at once.
#[tokio::test(start_paused = true)]
async fn after_end_is_called_once_in_order_with_the_outcome() {
    let warnings = Warnings::collect();
    for (fault, outcome) in
        [(None, Outcome::Committed), (Some(Fault::Refused), Outcome::Aborted), (Some(Fault::Lost), Outcome::Unknown)]
    {
        let mut world = World::new();
        let a = world.two_phase("a");
        let (manager, _log) = world.start().await;
        let called = Arc::<Mutex<Vec<String>>>::default();
        let note = |word: &'static str| {
            let called = called.clone();
            move |outcome: Outcome| called.lock().unwrap().push(format!("{word} {outcome}"))
        };
        let tx = manager.begin();
        let handle = tx.handle();
        tx.join(&a).await.unwrap().put("row").unwrap();
        if let Some(fault) = fault {
            a.fail(Call::CommitOnePhase, fault);
        }
        tx.after_end(note("first"));
        tx.after_end(|_| panic!("a callback panics"));
        tx.after_end({
            let (handle, inner, third) = (handle.clone(), note("from the second"), note("second"));
            move |outcome| {
                third(outcome);
                handle.after_end(inner);
            }
        });
        let result = ended(tx.commit()).await;
        assert_eq!(result.is_ok(), outcome == Outcome::Committed);
        handle.after_end(note("late"));
        let expected = ["first", "second", "from the second", "late"].map(|word| format!("{word} {outcome}"));
        assert_eq!(*called.lock().unwrap(), expected);
    }
    assert_eq!(warnings.with(&["an after-end callback panicked"]).len(), 3);
}

/// Without branches too: committed, aborted, dropped.
#[tokio::test(start_paused = true)]
async fn after_end_is_called_for_a_transaction_without_branches() {
    let world = World::new();
    let (manager, _log) = world.start().await;
    let called = Arc::<Mutex<Vec<Outcome>>>::default();
    let begin = || {
        let (tx, called) = (manager.begin(), called.clone());
        tx.after_end(move |outcome| called.lock().unwrap().push(outcome));
        tx
    };
    ended(begin().commit()).await.unwrap();
    ended(begin().abort()).await;
    drop(begin());
    assert_eq!(*called.lock().unwrap(), [Outcome::Committed, Outcome::Aborted, Outcome::Aborted]);
}
