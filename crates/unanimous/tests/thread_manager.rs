//! The thread's current transaction: who has one, what a second begin does, and what each misuse is told.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use unanimous::log::FileLog;
use unanimous::thread::{Background, StateError, ThreadError, ThreadManager, ThreadTx};
use unanimous::{
    BoxError, BranchError, Cause, CommitError, JoinError, Outcome, RunError, Synchronizer, TransactionManager, Tx,
};

use crate::support::{Call, Deadlock, Fault, LONG, World, aborted as aborted_commit};
use crate::thread_support::{Plain, aborted, here};

fn one() -> (Plain, crate::support::MemoryStore) {
    let mut world = World::new();
    let a = world.two_phase("a");
    (Plain::over(&[&a], world), a)
}

/// The same stores under a manager that refuses a second begin.
fn explicit(plain: &Plain) -> ThreadManager {
    ThreadManager::explicit(plain.manager.manager().clone())
}

/// By default a second begin aborts the old transaction, on this thread; the new one is the current one.
#[test]
fn a_second_begin_aborts_the_old_one() {
    let (plain, a) = one();
    assert!(!plain.manager.is_explicit());
    let old = plain.wrote(&[&a]);
    let new = plain.manager.begin().unwrap();
    assert_eq!(plain.acts(), ["a.rollback"]);
    assert_eq!(plain.world.journal.threads(), [here()]);
    assert_ne!(old.id(), new.id());
    assert_eq!(plain.manager.get().unwrap().id(), new.id());
    assert!(!old.is_active());
    assert!(matches!(old.join(&a), Err(JoinError::NotActive { .. })));
    new.join(&a).unwrap().put("new").unwrap();
    plain.manager.commit().unwrap();
    assert_eq!(a.keys(), ["new"]);
}

/// An explicit manager refuses it, says so, and the first goes on.
#[test]
fn an_explicit_manager_refuses_a_second_begin() {
    let (plain, a) = one();
    let manager = explicit(&plain);
    assert!(manager.is_explicit());
    let first = manager.begin().unwrap();
    first.join(&a).unwrap().put("row").unwrap();
    let error = manager.begin().unwrap_err();
    assert_eq!(error, StateError::AlreadyInTransaction { id: first.id() });
    assert!(error.to_string().contains("already in the transaction"), "{error}");
    assert!(matches!(manager.run(3, |_tx| Ok(())), Err(RunError::State { source }) if source == error));
    assert_eq!(manager.get().unwrap().id(), first.id());
    manager.commit().unwrap();
    assert_eq!(a.keys(), ["row"]);
    manager.begin().unwrap();
    manager.abort().unwrap();
}

/// Nothing begins by itself: whatever needs a transaction says that there is none, whether the manager is explicit or not.
#[test]
fn without_a_transaction_each_operation_says_so() {
    let (plain, _a) = one();
    for manager in [&plain.manager, &explicit(&plain)] {
        let none = Some(StateError::NoTransaction);
        assert_eq!(manager.get().err(), none);
        assert_eq!(manager.abort().err(), none);
        assert_eq!(manager.doom().err(), none);
        assert_eq!(manager.is_doomed().err(), none);
        assert!(matches!(manager.commit(), Err(ThreadError::State(StateError::NoTransaction))));
        assert!(matches!(manager.savepoint(), Err(ThreadError::State(StateError::NoTransaction))));
        assert!(matches!(manager.savepoint_optimistic(), Err(ThreadError::State(StateError::NoTransaction))));
        let error = manager.commit().unwrap_err();
        assert!(error.to_string().contains("no transaction; begin one"), "{error}");
        assert!(!error.is_retryable());
    }
}

/// Each thread has its own; managers too.
#[test]
fn a_transaction_is_its_own_threads_and_managers() {
    let (plain, a) = one();
    let mine = plain.wrote(&[&a]);
    let manager = &plain.manager;
    thread::scope(|threads| {
        let other = threads.spawn(|| {
            assert_eq!(manager.get().unwrap_err(), StateError::NoTransaction);
            assert!(matches!(manager.commit(), Err(ThreadError::State(StateError::NoTransaction))));
            let theirs = explicit(&plain).begin().unwrap();
            let theirs = [theirs.id(), manager.begin().unwrap().id()];
            manager.abort().unwrap();
            theirs
        });
        assert!(!other.join().unwrap().contains(&mine.id()));
    });
    assert_eq!(explicit(&plain).get().unwrap_err(), StateError::NoTransaction);
    assert_eq!(manager.clone().get().unwrap().id(), mine.id(), "clones are the same manager");
    manager.commit().unwrap();
    assert_eq!(a.keys(), ["row"]);
}

/// A handle works on another thread too: what it joins there is part of the transaction, which its own thread ends.
#[test]
fn a_handle_joins_on_another_thread() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let plain = Plain::over(&[&a, &b], world);
    let tx = plain.wrote(&[&a]);
    thread::scope(|threads| {
        threads.spawn(|| tx.join(&b).unwrap().put("theirs").unwrap());
    });
    plain.manager.commit().unwrap();
    assert_eq!([a.keys(), b.keys()], [["row"], ["theirs"]]);
    let acts = plain.acts().into_iter().zip(plain.world.journal.threads());
    let elsewhere: Vec<_> = acts.filter(|(_, thread)| *thread != here()).map(|(act, _)| act).collect();
    assert_eq!(elsewhere, ["b.begin"]);
}

/// A doomed one is not committed, and stays, to be aborted.
#[test]
fn a_doomed_transaction_stays_until_it_is_aborted() {
    let (plain, a) = one();
    let tx = plain.wrote(&[&a]);
    assert!(!plain.manager.is_doomed().unwrap());
    plain.manager.doom().unwrap();
    assert!(plain.manager.is_doomed().unwrap());
    for _ in 0..2 {
        let error = plain.manager.commit().unwrap_err();
        assert!(matches!(&error, ThreadError::State(StateError::Doomed { id }) if *id == tx.id()), "{error:?}");
        assert!(error.to_string().contains("abort it and begin another"), "{error}");
    }
    assert!(plain.acts().is_empty());
    tx.join(&a).unwrap().put("still").unwrap();
    plain.manager.abort().unwrap();
    assert_eq!(plain.acts(), ["a.rollback"]);
    assert_eq!(plain.manager.get().unwrap_err(), StateError::NoTransaction);
}

/// A commit that failed leaves its transaction behind, which refuses everything until it is aborted.
#[test]
fn a_failed_transaction_refuses_work_until_it_is_aborted() {
    let (plain, a) = one();
    let manager = explicit(&plain);
    let tx = manager.begin().unwrap();
    tx.join(&a).unwrap().put("row").unwrap();
    a.fail(Call::CommitOnePhase, Fault::Refused);
    aborted(manager.commit());
    assert_eq!(manager.get().unwrap().id(), tx.id());
    assert!(matches!(tx.join(&a), Err(JoinError::NotActive { .. })));
    let error = manager.commit().unwrap_err();
    let ThreadError::State(StateError::Failed { id, why }) = &error else { panic!("{error:?}") };
    assert_eq!(*id, tx.id());
    assert!(why.contains("a: commit-one-phase: refused"), "{why}");
    assert!(error.to_string().contains("abort it and begin another"), "{error}");
    assert_eq!(manager.begin().unwrap_err(), StateError::AlreadyInTransaction { id: tx.id() });
    plain.world.journal.clear();
    manager.abort().unwrap();
    assert!(plain.acts().is_empty(), "it was rolled back by the commit: {:?}", plain.acts());
    assert_eq!(manager.get().unwrap_err(), StateError::NoTransaction);

    // Where a second begin aborts, one is enough.
    plain.wrote(&[&a]);
    a.fail(Call::CommitOnePhase, Fault::Lost);
    let error = plain.manager.commit().unwrap_err();
    assert!(matches!(&error, ThreadError::Commit(CommitError::Unknown { .. })), "{error:?}");
    assert!(!error.is_retryable());
    assert!(matches!(plain.manager.commit(), Err(ThreadError::State(StateError::Failed { .. }))));
    plain.manager.begin().unwrap();
    plain.manager.commit().unwrap();
}

/// A guard in use keeps the commit from starting, as everywhere.
#[test]
fn a_guard_in_use_aborts_the_commit() {
    let (plain, a) = one();
    let tx = plain.manager.begin().unwrap();
    let guard = tx.join(&a).unwrap();
    guard.put("row").unwrap();
    assert!(matches!(aborted(plain.manager.commit()).cause(), Cause::InUse { guards: 1 }));
    drop(guard);
    assert!(a.keys().is_empty());
}

/// A conflict in the work or the commit repeats the whole transaction; other errors don't, nor does an unknown outcome.
#[test]
fn run_repeats_conflicts_only() {
    let (plain, a) = one();
    let attempts = AtomicUsize::new(0);
    let work = |tx: &ThreadTx| -> Result<usize, BoxError> {
        let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
        assert_eq!(unanimous::current().map(|tx| tx.id()), Some(tx.id()));
        assert_eq!(plain.manager.get()?.id(), tx.id());
        tx.join(&a)?.put("row")?;
        if attempt == 1 { Err(Deadlock.into()) } else { Ok(attempt) }
    };
    a.fail(Call::CommitOnePhase, Fault::Conflict);
    assert_eq!(plain.manager.run(5, work).unwrap(), 3);
    assert_eq!(a.keys(), ["row"]);
    let kinds = ["rollback", "commit-one-phase"].map(|kind| {
        plain.acts().iter().filter(|act| act.ends_with(kind) || act.ends_with(&format!("{kind}!"))).count()
    });
    assert_eq!(kinds, [2, 2]);
    assert!(plain.world.journal.threads().iter().all(|thread| *thread == here()));

    attempts.store(1, Ordering::SeqCst);
    a.fail_always(Call::CommitOnePhase, Fault::Conflict);
    let error = plain.manager.run(2, work).unwrap_err();
    assert!(matches!(&error, RunError::Commit { attempts: 2, source } if source.is_retryable()), "{error:?}");
    a.heal(Call::CommitOnePhase);

    a.fail(Call::CommitOnePhase, Fault::Lost);
    let error = plain.manager.run(5, work).unwrap_err();
    assert!(matches!(&error, RunError::Commit { attempts: 1, source: CommitError::Unknown { .. } }), "{error:?}");

    let error = plain.manager.run(5, |_tx| Err::<(), _>("no".into())).unwrap_err();
    assert!(matches!(&error, RunError::Work { attempts: 1, source } if source.to_string() == "no"), "{error:?}");
    let error = plain.manager.run(5, |_tx| Ok(plain.manager.doom()?)).unwrap_err();
    let RunError::Commit { attempts: 1, source } = error else { panic!("{error:?}") };
    assert!(matches!(aborted_commit(Err::<(), _>(source)).cause(), Cause::Doomed));
    assert_eq!(plain.manager.get().unwrap_err(), StateError::NoTransaction, "it has ended, whatever happened");
}

/// Work that panics is rolled back on its thread, and the panic goes on.
#[test]
fn run_aborts_where_the_work_panics() {
    let (plain, a) = one();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let done = plain.manager.run(3, |tx| -> Result<(), BoxError> {
            tx.join(&a)?.put("row")?;
            plain.world.journal.clear();
            panic!("the work panics")
        });
        done.unwrap()
    }));
    assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"the work panics"));
    assert_eq!(plain.acts(), ["a.rollback"]);
    assert_eq!(plain.world.journal.threads(), [here()]);
    assert_eq!(plain.manager.get().unwrap_err(), StateError::NoTransaction);
}

/// Work that ends its transaction by itself is not repeated: it may have committed.
#[test]
fn work_that_ends_its_own_transaction_is_not_repeated() {
    let (plain, a) = one();
    let ends = |fails: bool| {
        let (manager, a) = (plain.manager.clone(), a.clone());
        move |tx: &ThreadTx| {
            tx.join(&a)?.put("row")?;
            manager.commit()?;
            if fails { Err(BranchError::conflict("too late").into()) } else { Ok(()) }
        }
    };
    let error = plain.manager.run(5, ends(false)).unwrap_err();
    assert!(matches!(error, RunError::State { source: StateError::NoTransaction }), "{error:?}");
    let error = plain.manager.run(5, ends(true)).unwrap_err();
    assert!(matches!(error, RunError::Work { attempts: 1, .. }), "{error:?}");
    assert_eq!(plain.world.journal.count("a.commit-one-phase!"), 2);
}

/// A thread that ends within its transaction: it is rolled back, by another.
#[test]
fn a_thread_that_ends_aborts_its_transaction() {
    let (plain, a) = one();
    let outcome = thread::scope(|threads| {
        let (say, hear) = std::sync::mpsc::channel();
        threads.spawn(|| {
            let tx = plain.wrote(&[&a]);
            tx.after_end(move |outcome| say.send(outcome).unwrap());
        });
        hear.recv_timeout(Duration::from_secs(60))
    });
    assert_eq!(outcome, Ok(Outcome::Aborted));
    assert_eq!(plain.acts(), ["a.rollback"]);
    assert_eq!(plain.manager.recover(), []);
}

/// Counts the begins it is told of, each of the transaction that is its thread's.
struct Begins(AtomicUsize, ThreadManager);

impl Synchronizer for Begins {
    fn new_transaction(&self, tx: &Tx) {
        assert_eq!(self.1.get().map(|tx| tx.id()), Ok(tx.id()));
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Who registers within this thread's transaction is told of it at once; a transaction of another thread is told too.
#[test]
fn a_synchronizer_is_told_of_the_threads_transaction() {
    let (plain, _a) = one();
    plain.manager.begin().unwrap();
    let begins = Arc::new(Begins(AtomicUsize::new(0), plain.manager.clone()));
    plain.manager.register_synchronizer(&begins);
    assert_eq!(begins.0.load(Ordering::SeqCst), 1);
    let manager = &plain.manager;
    thread::scope(|threads| {
        threads.spawn(|| manager.begin().unwrap());
    });
    assert_eq!(begins.0.load(Ordering::SeqCst), 2);
    assert!(plain.manager.manager().has_synchronizers());
}

/// A join on another thread that comes too late is rolled back there.
#[test]
fn a_join_that_comes_too_late_is_rolled_back_where_it_joined() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let plain = Plain::over(&[&a, &b], world);
    let tx = plain.wrote(&[&a]);
    let hold = b.hold(Call::Begin);
    thread::scope(|threads| {
        let late = threads.spawn(|| {
            assert!(matches!(tx.join(&b), Err(JoinError::NotActive { .. })));
            here()
        });
        plain.background.open(hold.reached());
        aborted(plain.manager.commit());
        hold.release();
        let late = late.join().unwrap();
        assert_eq!(plain.acts(), ["b.begin", "a.rollback", "b.rollback"]);
        assert_eq!(plain.world.journal.threads(), [late, here(), late]);
    });
}

/// The thread behind it is there as long as a manager that was built with it, and has ended, with all that ran there, when the last is
/// dropped; the log is free then.
#[test]
fn the_background_ends_with_the_last_that_needs_it() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    for _ in 0..3 {
        let background = Background::start()?;
        let log = background.open(FileLog::open(folder.path()))?;
        let manager = ThreadManager::new(background.build(TransactionManager::builder(log))?);
        let (alive, started) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        let (in_it, starts) = (alive.clone(), started.clone());
        background.env().spawn(Box::pin(async move {
            starts.store(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
            drop(in_it);
        }))?;
        drop(background);
        while started.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        manager.begin()?;
        manager.commit()?;
        manager.shutdown(Duration::from_secs(60))?;
        assert_eq!(Arc::strong_count(&alive), 2, "it ended while a manager needed it");
        drop(manager);
        // Recovery may hold the manager for a moment longer.
        let began = Instant::now();
        while Arc::strong_count(&alive) > 1 {
            assert!(began.elapsed() < LONG, "its thread goes on");
            thread::yield_now();
        }
    }
    Ok(())
}

/// The transactions of a runtime's manager run on plain threads as well.
#[tokio::test]
async fn a_runtimes_manager_has_plain_threads_too() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let threads = ThreadManager::new(manager.clone());
    let (one, other) = (a.clone(), b.clone());
    let thread = thread::spawn(move || {
        threads
            .run(1, |tx| {
                tx.join(&one)?.put("row")?;
                tx.join(&other)?.put("row")?;
                Ok(())
            })
            .unwrap();
        here()
    });
    let thread = tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    assert!(world.journal.threads().iter().all(|other| *other == thread));
}
