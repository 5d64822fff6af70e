//! `run`: conflicts in the work, in prepare and in commit repeat it after waits that grow, as often as it may; an unknown outcome
//! never, other errors not. The work's handle is the current transaction meanwhile.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use unanimous::{BoxError, BranchError, CommitError, JoinError, RunError, Transaction, TransactionManager, Tx};

use crate::support::{Call, Deadlock, Fault, MemoryStore, World, ended};

/// The work of most tests: one row in each store.
async fn write(tx: Tx, stores: Vec<MemoryStore>) -> Result<u32, BoxError> {
    for store in &stores {
        tx.join(store).await?.put("row")?;
    }
    Ok(42)
}

/// A conflict anywhere is repeated as a new transaction, and the value of the attempt that committed is given.
#[tokio::test(start_paused = true)]
async fn a_conflict_anywhere_is_repeated() {
    for call in [Call::Begin, Call::Flush, Call::Prepare] {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        let (manager, _log) = world.start().await;
        b.fail(call, Fault::Conflict);
        b.fail(call, Fault::Conflict);
        let ids = Mutex::new(Vec::new());
        let value = manager.run(3, |tx| {
            ids.lock().unwrap().push(tx.id().sequence);
            write(tx, vec![a.clone(), b.clone()])
        });
        assert_eq!(value.await.unwrap(), 42);
        assert_eq!(*ids.lock().unwrap(), [1, 2, 3], "{call:?}: each attempt is a transaction of its own");
        assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    }
}

/// The only writer's conflict at its commit too.
#[tokio::test(start_paused = true)]
async fn a_conflict_at_commit_is_repeated() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    a.fail(Call::CommitOnePhase, Fault::Conflict);
    manager.run(2, |tx| write(tx, vec![a.clone()])).await.unwrap();
    let acts: Vec<_> = world.journal.acts().into_iter().filter(|line| line.contains("one-phase")).collect();
    assert_eq!(acts, ["a.commit-one-phase!", "a.commit-one-phase: conflict", "a.commit-one-phase!"]);
}

/// An error of the work that a joined branch knows as its store's conflict; one that nobody knows is not repeated.
#[tokio::test(start_paused = true)]
async fn the_works_own_error_is_repeated_when_a_branch_recognizes_it() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let attempts = AtomicU32::new(0);
    manager
        .run(3, async |tx: Tx| {
            tx.join(&a).await?.put("row")?;
            if attempts.fetch_add(1, Ordering::SeqCst) == 0 { Err(BoxError::from(Deadlock)) } else { Ok(()) }
        })
        .await
        .unwrap();
    assert_eq!(attempts.load(Ordering::SeqCst), 2);

    let attempts = AtomicU32::new(0);
    let failed = manager.run(3, async |tx: Tx| {
        tx.join(&a).await?.put("other")?;
        attempts.fetch_add(1, Ordering::SeqCst);
        Err::<(), _>(BoxError::from("no such item"))
    });
    let error = failed.await.unwrap_err();
    assert!(
        matches!(&error, RunError::Work { attempts: 1, source } if source.to_string() == "no such item"),
        "{error:?}"
    );
    assert_eq!(attempts.load(Ordering::SeqCst), 1);
    assert_eq!(a.keys(), ["row"], "the failed work is rolled back");
}

/// Attempts are bounded, at least one is made, and the last error is given with their number.
#[tokio::test(start_paused = true)]
async fn attempts_are_bounded() {
    for (attempts, made) in [(0, 1), (1, 1), (4, 4)] {
        let mut world = World::new();
        let a = world.two_phase("a");
        let (manager, _log) = world.start().await;
        a.fail_always(Call::Flush, Fault::Conflict);
        let error = manager.run(attempts, |tx| write(tx, vec![a.clone()])).await.unwrap_err();
        match error {
            RunError::Commit { attempts, source } => {
                assert_eq!(attempts, made);
                assert!(source.is_retryable());
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(world.journal.count("a.flush"), made as usize);
    }
}

/// The waits between attempts double from 20 ms on, each between half and all of that; none before the first or after the last.
#[tokio::test(start_paused = true)]
async fn waits_between_attempts_grow() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    a.fail_always(Call::Flush, Fault::Conflict);
    let starts = Mutex::new(vec![]);
    let began = Instant::now();
    let failed = manager.run(12, |tx| {
        starts.lock().unwrap().push(began.elapsed());
        write(tx, vec![a.clone()])
    });
    failed.await.unwrap_err();
    let ended = began.elapsed();
    let starts = starts.into_inner().unwrap();
    assert_eq!(starts.len(), 12);
    assert_eq!(starts[0], Duration::ZERO);
    assert_eq!(ended, starts[11], "no wait after the last");
    for (i, pair) in starts.windows(2).enumerate() {
        let wait = pair[1] - pair[0];
        let full = Duration::from_millis(20 << i).min(Duration::from_secs(5));
        // tokio's timer counts in milliseconds.
        assert!(wait >= full / 2 && wait <= full + Duration::from_millis(1), "wait {i}: {wait:?} of {full:?}");
    }
}

/// Other errors are not repeated: a refusal in prepare, a doomed transaction, a join that can't succeed.
#[tokio::test(start_paused = true)]
async fn other_errors_are_not_repeated() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let outside = MemoryStore::new("x", unanimous::Capability::TwoPhase, &world.journal);
    let (manager, _log) = world.start().await;
    b.fail(Call::Prepare, Fault::Refused);
    let error = manager.run(5, |tx| write(tx, vec![a.clone(), b.clone()])).await.unwrap_err();
    assert!(matches!(&error, RunError::Commit { attempts: 1, source: CommitError::Aborted { .. } }), "{error:?}");
    let doomed = manager.run(5, async |tx: Tx| {
        tx.join(&a).await?.put("row")?;
        tx.doom();
        Ok(())
    });
    let error = doomed.await.unwrap_err();
    assert!(matches!(&error, RunError::Commit { attempts: 1, .. }), "{error:?}");
    let error = manager.run(5, |tx| write(tx, vec![outside.clone()])).await.unwrap_err();
    let RunError::Work { attempts: 1, source } = &error else { panic!("{error:?}") };
    assert!(matches!(source.downcast_ref(), Some(JoinError::NotRegistered { .. })));
    assert!(a.keys().is_empty());
}

/// An unknown outcome is never repeated: not the own commit's, and not one of another transaction that the work reports, although
/// a branch would call its source retryable.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_never_repeated() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    a.fail(Call::CommitOnePhase, Fault::LostDone);
    let error = manager.run(5, |tx| write(tx, vec![a.clone()])).await.unwrap_err();
    assert!(matches!(&error, RunError::Commit { attempts: 1, source: CommitError::Unknown { .. } }), "{error:?}");
    assert_eq!(world.journal.count("a.flush"), 1);

    world.journal.clear();
    let attempts = AtomicU32::new(0);
    let nested = manager.run(5, async |tx: Tx| {
        attempts.fetch_add(1, Ordering::SeqCst);
        b.set_retries_everything(true);
        tx.join(&b).await?.put("outer")?;
        let inner = manager.begin();
        inner.join(&a).await?.put("inner")?;
        a.fail(Call::CommitOnePhase, Fault::Lost);
        ended(inner.commit()).await?;
        Ok(())
    });
    let error = nested.await.unwrap_err();
    assert!(matches!(&error, RunError::Work { attempts: 1, .. }), "{error:?}");
    assert_eq!(attempts.load(Ordering::SeqCst), 1);
}

/// A conflict deep among the sources of the work's error counts.
#[tokio::test(start_paused = true)]
async fn a_conflict_among_the_sources_counts() {
    #[derive(Debug)]
    struct Wrapped(BranchError);
    impl std::fmt::Display for Wrapped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the order could not be placed")
        }
    }
    impl std::error::Error for Wrapped {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    let (manager, _log) = World::new().start().await;
    let attempts = AtomicU32::new(0);
    let failed = manager.run(3, async |_tx: Tx| {
        attempts.fetch_add(1, Ordering::SeqCst);
        Err::<(), _>(BoxError::from(Wrapped(BranchError::conflict("locked"))))
    });
    failed.await.unwrap_err();
    assert_eq!(attempts.load(Ordering::SeqCst), 3);
}

/// The work's transaction is the current one inside, also of what it awaits, and none is outside.
#[tokio::test(start_paused = true)]
async fn the_transaction_is_the_current_one_while_the_work_runs() {
    let (manager, _log) = World::new().start().await;
    assert!(unanimous::current().is_none());
    manager
        .run(1, async |tx: Tx| {
            tokio::task::yield_now().await;
            assert_eq!(unanimous::current().map(|current| current.id()), Some(tx.id()));
            Ok(())
        })
        .await
        .unwrap();
    assert!(unanimous::current().is_none());
}

/// A panic of the work goes to the caller, and its transaction is aborted.
#[tokio::test(start_paused = true)]
async fn a_panic_of_the_work_aborts() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let panicking = tokio::spawn({
        let (manager, a) = (manager.clone(), a.clone());
        async move {
            let work = async |tx: Tx| -> Result<(), BoxError> {
                tx.join(&a).await?.put("row")?;
                panic!("the work panics")
            };
            manager.run(3, work).await
        }
    });
    assert!(panicking.await.unwrap_err().is_panic());
    world.journal.until("a.rollback").await;
    assert_eq!(world.journal.count("a.begin"), 1);
    assert!(a.keys().is_empty());
}

fn is_send<T: Send>(value: T) -> T {
    value
}

/// What a handler awaits can be spawned: run, join, commit and abort are Send, closures and async closures alike.
#[tokio::test(start_paused = true)]
async fn what_a_handler_awaits_is_send() {
    fn spawned(future: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        tokio::spawn(is_send(future))
    }
    fn is_static<T: Send + Sync + 'static>() {}
    is_static::<TransactionManager>();
    is_static::<Tx>();
    is_static::<Transaction>();
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let (first, second) = (manager.clone(), manager.clone());
    let done = Arc::new(AtomicU32::new(0));
    let (stores, counted) = (vec![a.clone(), b.clone()], done.clone());
    spawned(async move {
        first.run(2, |tx: Tx| write(tx, stores.clone())).await.unwrap();
        counted.fetch_add(1, Ordering::SeqCst);
    })
    .await
    .unwrap();
    let (one, other, counted) = (a.clone(), b.clone(), done.clone());
    spawned(async move {
        let tx = second.begin();
        // A guard is held over an await.
        let guard = tx.join(&one).await.unwrap();
        tokio::task::yield_now().await;
        guard.put("spawned").unwrap();
        tx.join_with(&other, ()).await.unwrap();
        drop(guard);
        ended(tx.commit()).await.unwrap();
        ended(second.begin().abort()).await;
        counted.fetch_add(1, Ordering::SeqCst);
    })
    .await
    .unwrap();
    assert_eq!(done.load(Ordering::SeqCst), 2);
    assert_eq!(a.keys(), ["row", "spawned"]);
}
