//! Hooks: before and after commit and abort, in order, with what they may do and what their failures change.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use unanimous::{
    BoxError, BranchError, Capability, Cause, CommitError, HookError, JoinError, Options, Transaction,
    TransactionManager, Tx,
};

use crate::support::warnings::Warnings;
use crate::support::{Call, Deadlock, Fault, Journal, MemoryStore, World, aborted, eventually, unknown};

fn cause(error: &CommitError) -> &Cause {
    match error {
        CommitError::Aborted { source, .. } | CommitError::Unknown { source, .. } => source,
    }
}

async fn put(tx: &Tx, store: &MemoryStore, key: &str) -> Result<(), BoxError> {
    Ok(tx.join(store).await?.put(key)?)
}

/// One hook of each kind, which journal themselves, under this name.
fn journaled(tx: &Tx, journal: &Journal, name: &'static str) {
    let add = |word: &'static str| {
        let journal = journal.clone();
        async move |_tx: Tx| {
            journal.act(format!("{word} {name}"));
            Ok(())
        }
    };
    tx.before_commit(add("before-commit")).unwrap();
    tx.before_abort(add("before-abort")).unwrap();
    tx.after_abort(add("after-abort")).unwrap();
    let journal = journal.clone();
    tx.after_commit(async move |_tx, outcome| {
        journal.act(format!("after-commit {name} {outcome}"));
        Ok(())
    })
    .unwrap();
}

async fn with_two_hooks(manager: &TransactionManager, world: &World, stores: &[&MemoryStore]) -> Transaction {
    let tx = manager.begin();
    journaled(&tx, &world.journal, "1");
    for store in stores {
        put(&tx, store, "row").await.unwrap();
    }
    journaled(&tx, &world.journal, "2");
    world.journal.clear();
    tx
}

/// In order, around the commit and before the caller is answered; abort hooks stay out of it.
#[tokio::test(start_paused = true)]
async fn hooks_run_in_order_around_a_commit() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = with_two_hooks(&manager, &world, &[&a]).await;
    let journal = world.journal.clone();
    tx.after_end(move |outcome| journal.act(format!("after-end {outcome}")));
    tx.commit().await.unwrap();
    assert_eq!(
        world.journal.acts(),
        [
            "before-commit 1",
            "before-commit 2",
            "a.flush",
            "a.commit-one-phase!",
            "after-commit 1 committed",
            "after-commit 2 committed",
            "after-end committed",
        ]
    );
}

/// A before-commit hook works, joins and adds hooks, which run behind the others; its transaction is the current one.
#[tokio::test(start_paused = true)]
async fn a_before_commit_hook_works_joins_and_adds_hooks() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    put(&tx, &a, "row").await.unwrap();
    let (first, second) = (a.clone(), b.clone());
    let journal = world.journal.clone();
    tx.before_commit(async move |tx| {
        assert_eq!(unanimous::current().map(|current| current.id()), Some(tx.id()));
        put(&tx, &first, "hook's").await?;
        tx.before_commit(async move |tx| {
            journal.act("added");
            put(&tx, &second, "added hook's").await
        })?;
        Ok(())
    })
    .unwrap();
    journaled(&tx, &world.journal, "last");
    world.journal.clear();
    tx.commit().await.unwrap();
    assert_eq!(world.journal.acts()[..5], ["before-commit last", "added", "b.begin", "a.flush", "b.flush"]);
    assert_eq!(a.keys(), ["hook's", "row"]);
    assert_eq!(b.keys(), ["added hook's"]);
}

/// Also where nothing has joined before, or nothing joins at all.
#[tokio::test(start_paused = true)]
async fn hooks_run_without_branches() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    journaled(&tx, &world.journal, "1");
    tx.commit().await.unwrap();
    assert_eq!(world.journal.acts(), ["before-commit 1", "after-commit 1 committed"]);
    world.journal.clear();

    let tx = manager.begin();
    journaled(&tx, &world.journal, "1");
    tx.abort().await;
    assert_eq!(world.journal.acts(), ["before-abort 1", "after-abort 1"]);

    let tx = manager.begin();
    let first = a.clone();
    tx.before_commit(async move |tx| put(&tx, &first, "hook's").await).unwrap();
    tx.commit().await.unwrap();
    assert_eq!(a.keys(), ["hook's"]);
}

/// Failing or panicking, a before-commit hook aborts all: nobody is flushed, the hooks behind it don't run, its error is the source.
#[tokio::test(start_paused = true)]
async fn a_failing_before_commit_hook_aborts() {
    for panics in [false, true] {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        put(&tx, &a, "row").await.unwrap();
        let joins = b.clone();
        tx.before_commit(async move |tx| {
            put(&tx, &joins, "row").await?;
            assert!(!panics, "the hook panics");
            Err("the hook fails".into())
        })
        .unwrap();
        journaled(&tx, &world.journal, "1");
        world.journal.clear();
        let error = aborted(tx.commit().await);
        let Cause::Hook { source, retryable: false } = cause(&error) else { panic!("{error:?}") };
        let says = if panics { "it panicked: the hook panics" } else { "the hook fails" };
        assert_eq!(source.to_string(), says);
        assert!(!error.is_retryable());
        assert_eq!(
            world.journal.acts(),
            ["b.begin", "before-abort 1", "a.rollback", "b.rollback", "after-abort 1"],
            "panics: {panics}"
        );
        assert!(a.keys().is_empty() && b.keys().is_empty());
    }
}

/// A conflict in a before-commit hook makes the transaction worth repeating: by its kind, or since any of the branches knows it.
#[tokio::test(start_paused = true)]
async fn a_conflict_in_a_before_commit_hook_is_repeated() {
    for recognized in [false, true] {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        let (manager, _log) = world.start().await;
        let attempts = Arc::new(Mutex::new(0));
        let value = manager.run(3, |tx: Tx| {
            let (a, b, attempts) = (a.clone(), b.clone(), attempts.clone());
            async move {
                put(&tx, &a, "row").await?;
                put(&tx, &b, "row").await?;
                tx.before_commit(async move |_tx| {
                    let mut attempts = attempts.lock().unwrap();
                    *attempts += 1;
                    match *attempts {
                        1 if recognized => Err(Deadlock.into()),
                        1 => Err(BranchError::conflict("a conflict").into()),
                        _ => Ok(()),
                    }
                })?;
                Ok(7)
            }
        });
        assert_eq!(value.await.unwrap(), 7);
        assert_eq!(*attempts.lock().unwrap(), 2);
        assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    }
}

/// A hook that dooms: aborted, and the hooks behind it don't run.
#[tokio::test(start_paused = true)]
async fn a_before_commit_hook_may_doom() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    put(&tx, &a, "row").await.unwrap();
    tx.before_commit(async move |tx| {
        tx.doom();
        Ok(())
    })
    .unwrap();
    journaled(&tx, &world.journal, "1");
    world.journal.clear();
    let error = aborted(tx.commit().await);
    assert!(matches!(cause(&error), Cause::Doomed), "{error:?}");
    assert_eq!(world.journal.acts(), ["before-abort 1", "a.rollback", "after-abort 1"]);
}

/// Guards are counted after the hooks: one that is given back meanwhile is no harm, one that a hook has left about is.
#[tokio::test(start_paused = true)]
async fn guards_are_counted_after_the_hooks() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    for leaves in [false, true] {
        let tx = manager.begin();
        let (release, released) = oneshot::channel::<()>();
        let (joined, is_joined) = oneshot::channel();
        let worker = tokio::spawn({
            let (tx, a) = (tx.handle(), a.clone());
            async move {
                let guard = tx.join(&a).await.unwrap();
                guard.put("worker's").unwrap();
                joined.send(()).unwrap();
                released.await.unwrap();
                drop(guard);
            }
        });
        is_joined.await.unwrap();
        let mut release = Some(release);
        let mut worker = Some(worker);
        let (now, later) =
            if leaves { (None, (release.take(), worker.take())) } else { (release.take(), (None, None)) };
        let ends = worker.take();
        tx.before_commit(async move |_tx| {
            if let (Some(release), Some(worker)) = (now, ends) {
                release.send(()).unwrap();
                worker.await.unwrap();
            }
            Ok(())
        })
        .unwrap();
        if leaves {
            let error = aborted(tx.commit().await);
            assert!(matches!(cause(&error), Cause::InUse { guards: 1 }), "{error:?}");
        } else {
            tx.commit().await.unwrap();
        }
        assert_eq!(a.keys(), ["worker's"]);
        if let (Some(release), Some(worker)) = later {
            release.send(()).unwrap();
            worker.await.unwrap();
        }
    }
}

/// After-commit hooks get the outcome, also where it is not a success; no abort hook runs where the branches were asked.
#[tokio::test(start_paused = true)]
async fn after_commit_hooks_get_the_outcome() {
    let mut world = World::new();
    let (a, last) = (world.two_phase("a"), world.store("last", Capability::OnePhase));
    let (manager, _log) = world.start().await;
    let tx = with_two_hooks(&manager, &world, &[&a]).await;
    a.fail(Call::CommitOnePhase, Fault::Refused);
    aborted(tx.commit().await);
    let acts = world.journal.acts();
    assert_eq!(acts[..3], ["before-commit 1", "before-commit 2", "a.flush"]);
    assert_eq!(acts[acts.len() - 2..], ["after-commit 1 aborted", "after-commit 2 aborted"]);
    assert!(!acts.iter().any(|line| line.contains("abort ")), "{acts:?}");

    let tx = with_two_hooks(&manager, &world, &[&last]).await;
    last.fail(Call::CommitOnePhase, Fault::Lost);
    unknown(tx.commit().await);
    let acts = world.journal.acts();
    assert_eq!(acts[acts.len() - 2..], ["after-commit 1 unknown", "after-commit 2 unknown"]);
}

/// A failing or panicking after-hook is reported and changes nothing; those that it had added run.
#[tokio::test(start_paused = true)]
async fn failing_after_hooks_are_reported_and_change_nothing() {
    let warnings = Warnings::collect();
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let id = tx.id().to_string();
    put(&tx, &a, "row").await.unwrap();
    let journal = world.journal.clone();
    tx.after_commit(async move |tx, _| {
        tx.after_commit(async move |_tx, outcome| {
            journal.act(format!("added {outcome}"));
            panic!("the second fails")
        })?;
        Err("the first fails".into())
    })
    .unwrap();
    journaled(&tx, &world.journal, "last");
    tx.commit().await.unwrap();
    let acts = world.journal.acts();
    assert_eq!(acts[acts.len() - 2..], ["after-commit last committed", "added committed"]);
    assert_eq!(a.keys(), ["row"]);
    for text in ["the first fails", "the second fails"] {
        assert_eq!(warnings.with(&["ERROR", &id, "after-commit", text]).len(), 1, "{text}");
    }
}

/// What an after-hook tries to do to the branches is refused, so nothing is left to clean up: no branch begins, none is called.
#[tokio::test(start_paused = true)]
async fn an_after_hook_cannot_join() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    for commits in [true, false] {
        let tx = manager.begin();
        put(&tx, &a, "row").await.unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tries = {
            let (a, b, seen) = (a.clone(), b.clone(), seen.clone());
            move |tx: Tx| async move {
                assert!(!tx.is_active());
                for store in [&a, &b] {
                    let error = tx.join(store).await.map(|_| ()).unwrap_err();
                    seen.lock().unwrap().push(error);
                }
                seen.lock().unwrap().push(tx.join_branch("own", b.branch()).map(|_| ()).unwrap_err());
                Ok(())
            }
        };
        if commits {
            tx.after_commit(move |tx, _| tries(tx)).unwrap();
            tx.commit().await.unwrap();
        } else {
            tx.after_abort(tries).unwrap();
            tx.abort().await;
        }
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 3);
        assert!(matches!(seen[..2], [JoinError::NotActive { .. }, JoinError::NotActive { .. }]), "{seen:?}");
        assert_eq!(world.journal.count("b.begin"), 0);
    }
    manager.shutdown(Duration::from_secs(1)).await.expect("nothing is open");
    assert_eq!(a.keys(), ["row"]);
}

/// Abort hooks run around the rollback: at an abort, a drop, the commit of a doomed one, a time limit.
#[tokio::test(start_paused = true)]
async fn abort_hooks_run_however_a_transaction_is_given_up() {
    let expected = ["before-abort 1", "before-abort 2", "a.rollback", "after-abort 1", "after-abort 2"];
    for how in ["abort", "drop", "doom", "time limit"] {
        let mut world = World::new();
        let a = world.two_phase("a");
        let (builder, _log) = world.builder();
        let manager = builder.time_limit(Duration::from_secs(60)).build().await.unwrap();
        let tx = with_two_hooks(&manager, &world, &[&a]).await;
        match how {
            "abort" => tx.abort().await,
            "drop" => drop(tx),
            "doom" => {
                tx.doom();
                assert!(matches!(cause(&aborted(tx.commit().await)), Cause::Doomed));
            }
            _ => {
                world.journal.until("after-abort 2").await;
                assert!(matches!(cause(&aborted(tx.commit().await)), Cause::TimeLimit));
            }
        }
        world.journal.until("after-abort 2").await;
        assert_eq!(world.journal.acts(), expected, "{how}");
    }
}

/// A failing before-abort hook is reported, and the rest goes on; it may add hooks and read the branches.
#[tokio::test(start_paused = true)]
async fn failing_abort_hooks_are_reported_and_change_nothing() {
    let warnings = Warnings::collect();
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    put(&tx, &a, "row").await.unwrap();
    let first = a.clone();
    let journal = world.journal.clone();
    tx.before_abort(async move |tx| {
        put(&tx, &first, "for nothing").await?;
        tx.before_abort(async move |_tx| {
            journal.act("added");
            Ok(())
        })?;
        Err("it fails before".into())
    })
    .unwrap();
    tx.after_abort(async |_tx| panic!("it fails after")).unwrap();
    journaled(&tx, &world.journal, "1");
    world.journal.clear();
    tx.abort().await;
    assert_eq!(world.journal.acts(), ["before-abort 1", "added", "a.rollback", "after-abort 1"]);
    assert_eq!(warnings.with(&["ERROR", "before-abort", "it fails before"]).len(), 1);
    assert_eq!(warnings.with(&["ERROR", "after-abort", "it fails after"]).len(), 1);
    assert!(a.keys().is_empty());
}

/// A hook whose moment is over is refused; one that is accepted runs.
#[tokio::test(start_paused = true)]
async fn a_hook_that_comes_too_late_is_refused() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let handle = tx.handle();
    put(&tx, &a, "row").await.unwrap();
    let hold = a.hold(Call::CommitOnePhase);
    let commit = tx.commit();
    hold.reached().await;
    let late = handle.before_commit(async |_| Ok(())).unwrap_err();
    assert_eq!((late.id, late.hook), (handle.id(), "before-commit"));
    assert!(late.to_string().contains("register it before commit or abort is called"));
    assert!(handle.before_abort(async |_| Ok(())).is_err());
    let journal = world.journal.clone();
    handle
        .after_commit(async move |_tx, outcome| {
            journal.act(format!("after {outcome}"));
            Ok(())
        })
        .expect("its moment is still to come");
    // Accepted hooks run, so what comes when the last one has run is refused.
    let (tried, is_refused) = oneshot::channel();
    let after = handle.clone();
    handle.after_end(move |_| tried.send(after.after_commit(async |_, _| Ok(())).is_err()).unwrap());
    hold.release();
    commit.await.unwrap();
    assert_eq!(world.journal.count("after committed"), 1);
    assert!(is_refused.await.unwrap());
    let refused: Vec<HookError> =
        [handle.after_commit(async |_, _| Ok(())).unwrap_err(), handle.after_abort(async |_| Ok(())).unwrap_err()]
            .into();
    assert_eq!(refused.iter().map(|error| error.hook).collect::<Vec<_>>(), ["after-commit", "after-abort"]);
}

/// The transaction's time limit bounds a before-commit hook that hangs: it is dropped, and all are rolled back.
#[tokio::test(start_paused = true)]
async fn the_time_limit_bounds_a_before_commit_hook() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin_with(Options::default().time_limit(Duration::from_secs(3)));
    put(&tx, &a, "row").await.unwrap();
    tx.before_commit(async |_tx| std::future::pending().await).unwrap();
    let began = Instant::now();
    world.journal.clear();
    let error = aborted(tx.commit().await);
    assert!(matches!(cause(&error), Cause::TimeLimit), "{error:?}");
    assert_eq!(began.elapsed().as_secs(), 3);
    assert_eq!(world.journal.acts(), ["a.rollback"]);
}

/// Hooks that hang hold up neither the rollback nor the answer for longer than `phase_two_wait`; after-hooks go on to their end.
#[tokio::test(start_paused = true)]
async fn hanging_hooks_hold_up_rollback_and_answer_no_longer_than_the_wait() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (builder, _log) = world.builder();
    let manager = builder.phase_two_wait(Duration::from_secs(2)).build().await.unwrap();
    let tx = manager.begin();
    put(&tx, &a, "row").await.unwrap();
    tx.before_abort(async |_tx| std::future::pending().await).unwrap();
    let began = Instant::now();
    world.journal.clear();
    tx.abort().await;
    assert_eq!(began.elapsed().as_secs(), 2);
    assert_eq!(world.journal.acts(), ["a.rollback"]);

    let tx = manager.begin();
    put(&tx, &a, "row").await.unwrap();
    let journal = world.journal.clone();
    tx.after_commit(async move |_, _| {
        tokio::time::sleep(Duration::from_secs(10)).await;
        journal.act("after-commit, late");
        Ok(())
    })
    .unwrap();
    let began = Instant::now();
    tx.commit().await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 2);
    assert_eq!(world.journal.count("after-commit, late"), 0);
    manager.shutdown(Duration::from_secs(60)).await.expect("a shutdown waits for the hooks");
    assert_eq!(world.journal.count("after-commit, late"), 1);
}

/// The commit starts at the call, hooks included, and its future changes nothing when it is dropped.
#[tokio::test(start_paused = true)]
async fn hooks_run_although_the_commit_is_dropped() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = with_two_hooks(&manager, &world, &[&a]).await;
    drop(tx.commit());
    world.journal.until("after-commit 2 committed").await;
    assert_eq!(
        world.journal.acts(),
        [
            "before-commit 1",
            "before-commit 2",
            "a.flush",
            "a.commit-one-phase!",
            "after-commit 1 committed",
            "after-commit 2 committed"
        ]
    );
    eventually("the row is there", || a.keys() == ["row"]).await;
}

/// The runtime ends while a hook runs: before the commit it is surely aborted, after it the outcome is the one that it was.
#[test]
fn the_end_of_the_runtime_in_a_hook_is_answered() {
    for before in [true, false] {
        let mut world = World::new();
        let a = world.two_phase("a");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (manager, commit) = runtime.block_on(async {
            let (manager, _log) = world.start().await;
            let tx = manager.begin();
            put(&tx, &a, "row").await.unwrap();
            let (reached, is_reached) = oneshot::channel();
            if before {
                tx.before_commit(async move |_tx| {
                    reached.send(()).unwrap();
                    std::future::pending().await
                })
                .unwrap();
            } else {
                tx.after_commit(async move |_tx, _| {
                    reached.send(()).unwrap();
                    std::future::pending().await
                })
                .unwrap();
            }
            let commit = tx.commit();
            is_reached.await.unwrap();
            (manager, commit)
        });
        runtime.shutdown_timeout(Duration::from_secs(30));
        let result = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(commit);
        if before {
            assert!(matches!(cause(&aborted(result)), Cause::Interrupted));
            assert!(a.keys().is_empty());
        } else {
            result.unwrap();
            assert_eq!(a.keys(), ["row"]);
        }
        drop(manager);
    }
}
