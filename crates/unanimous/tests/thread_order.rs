//! The end of a plain thread's transaction: one branch at a time, in order, on that thread; what fails there, and what is left to others.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use unanimous::thread::{StateError, wait};
use unanimous::{
    Branch, BranchError, BranchId, Capability, Cause, CommitError, JoinError, Options, Outcome, SavepointError,
    Synchronizer, Tx, Work,
};

use crate::support::{Call, Fault, Journal, LONG, MemoryStore, World};
use crate::thread_support::{Plain, Seen, Witness, aborted, here};

/// Longer than the commits that fail here are waited for.
const SHORT: Duration = Duration::from_millis(150);

/// Three stores whose keys are not in the order of their names, nor of joining: c comes first, then a, then b.
fn three(world: &mut World) -> [MemoryStore; 3] {
    [("a", "2"), ("b", "3"), ("c", "1")].map(|(name, key)| world.two_phase(name).sorted(key))
}

/// One at a time: while one flushes, votes or commits, nobody behind it was called. All of it on the thread that commits.
#[test]
fn branches_are_called_one_at_a_time_in_the_order_of_their_keys() {
    let mut world = World::new();
    let stores @ [a, b, c] = &three(&mut world);
    let plain = Plain::over(&stores.each_ref(), world);
    let expected = [
        "c.flush",
        "a.flush",
        "b.flush",
        "c.prepare!",
        "a.prepare!",
        "b.prepare!",
        "log.decide! [c a b]",
        "c.commit!",
        "a.commit!",
        "b.commit!",
        "log.forget",
    ];
    for (store, call, so_far) in [(c, Call::Flush, 1), (a, Call::Flush, 2), (a, Call::Prepare, 5), (c, Call::Commit, 8)]
    {
        plain.wrote(&[a, b, c]);
        let hold = store.hold(call);
        let (committed, acts) = plain.held(&hold, || plain.manager.commit());
        assert_eq!(acts, expected[..so_far], "while {call:?} is held");
        assert_eq!(committed.unwrap().pending, 0);
        assert_eq!(plain.acts(), expected);
        assert!(plain.world.journal.threads().iter().all(|thread| *thread == here()), "a call ran elsewhere");
    }
    assert_eq!([a.keys(), b.keys(), c.keys()], [["row"], ["row"], ["row"]]);
    assert!(plain.world.disk.unfinished().is_empty());
}

/// A no: who comes after it is not asked, and all roll back in order.
#[test]
fn after_a_no_nobody_else_is_asked_and_all_roll_back_in_order() {
    let cases = [
        (Call::Flush, ["c.flush", "a.flush", "a.flush: refused"].as_slice()),
        (Call::Prepare, &["c.flush", "a.flush", "b.flush", "c.prepare!", "a.prepare!", "a.prepare: refused"]),
    ];
    for (call, asked) in cases {
        let mut world = World::new();
        let stores @ [a, b, c] = &three(&mut world);
        let plain = Plain::over(&stores.each_ref(), world);
        plain.wrote(&[a, b, c]);
        a.fail(call, Fault::Refused);
        let error = aborted(plain.manager.commit());
        assert!(matches!(error.cause(), Cause::Branch { resource, .. } if resource == "a"), "{error:?}");
        let rolled_back = ["c.rollback", "a.rollback", "b.rollback"];
        assert_eq!(plain.acts(), [asked, &rolled_back].concat());
        assert!(plain.world.journal.threads().iter().all(|thread| *thread == here()));
        assert_eq!([a.prepared(), b.prepared(), c.prepared()], [[], [], []]);
    }
}

/// A reader that can't end beside writers is a no as well; the writers behind it are not asked.
#[test]
fn a_reader_that_fails_is_a_no() {
    let mut world = World::new();
    let stores @ [a, b, c] = &three(&mut world);
    let plain = Plain::over(&stores.each_ref(), world);
    let tx = plain.wrote(&[a, b]);
    tx.join(c).unwrap();
    plain.world.journal.clear();
    c.fail(Call::CommitOnePhase, Fault::Conflict);
    assert!(aborted(plain.manager.commit()).is_retryable());
    let expected = ["c.flush", "a.flush", "b.flush", "c.commit-one-phase", "c.commit-one-phase: conflict"];
    assert_eq!(plain.acts(), [expected.as_slice(), &["c.rollback", "a.rollback", "b.rollback"]].concat());
}

/// A panic is a lost answer: the branch may be prepared, and is rolled back with the others. The thread goes on.
#[test]
fn a_panic_in_a_branch_aborts_and_the_thread_goes_on() {
    let mut world = World::new();
    let stores @ [a, b, c] = &three(&mut world);
    let plain = Plain::over(&stores.each_ref(), world);
    plain.wrote(&[a, b, c]);
    a.fail(Call::Prepare, Fault::Panic);
    aborted(plain.manager.commit());
    let voted = ["c.flush", "a.flush", "b.flush", "c.prepare!", "a.prepare!", "a.prepare: panic"];
    assert_eq!(plain.acts(), [voted.as_slice(), &["c.rollback", "a.rollback", "b.rollback"]].concat());
    plain.manager.abort().unwrap();
    plain.wrote(&[a, b, c]);
    plain.manager.commit().unwrap();
    assert_eq!([a.keys(), b.keys(), c.keys()], [["row"], ["row"], ["row"]]);
    assert_eq!(plain.manager.recover(), [], "nothing was left live or prepared");
}

/// A commit of phase two that fails: the others commit meanwhile, then it is tried again, on the same thread.
#[test]
fn a_commit_that_fails_once_is_tried_again_on_the_thread() {
    let mut world = World::new();
    let stores @ [a, b, c] = &three(&mut world);
    let plain = Plain::over(&stores.each_ref(), world);
    plain.wrote(&[a, b, c]);
    c.fail(Call::Commit, Fault::Lost);
    assert_eq!(plain.manager.commit().unwrap().pending, 0);
    let phase_two = ["c.commit!", "c.commit: lost", "a.commit!", "b.commit!", "c.commit!", "log.forget"];
    assert_eq!(plain.acts()[7..], phase_two);
    assert!(plain.world.journal.threads().iter().all(|thread| *thread == here()));
    assert_eq!(c.keys(), ["row"]);
}

/// One that fails longer than the caller waits is committed, pending, and recovery's.
#[test]
fn a_commit_that_fails_for_long_is_left_to_recovery() {
    let mut world = World::new();
    let stores @ [a, b, c] = &three(&mut world);
    let plain = Plain::with(&stores.each_ref(), world, |builder| builder.phase_two_wait(SHORT));
    plain.wrote(&[a, b, c]);
    a.fail_always(Call::Commit, Fault::Lost);
    a.fail_always(Call::RecoveredCommit, Fault::Lost);
    assert_eq!(plain.manager.commit().unwrap().pending, 1);
    assert_eq!([a.keys(), b.keys(), c.keys()], [vec![], vec!["row".to_owned()], vec!["row".to_owned()]]);
    plain.until("a.recovered-commit: lost");
    assert!(plain.manager.begin().is_ok(), "the thread goes on");
    a.heal(Call::RecoveredCommit);
    plain.manager.recover();
    assert_eq!(a.keys(), ["row"]);
    assert_eq!(plain.manager.recover(), []);
    let mut journal = plain.acts().into_iter().zip(plain.world.journal.threads());
    assert!(
        journal.all(|(act, thread)| !act.starts_with("a.commit") || thread == here()),
        "a branch was called elsewhere"
    );
}

/// One that hangs keeps the caller no longer either. Those behind it are recovery's too, and are not called any more.
#[test]
fn a_commit_that_hangs_leaves_those_behind_it_to_recovery() {
    let mut world = World::new();
    let stores @ [a, b, c] = &three(&mut world);
    let plain = Plain::with(&stores.each_ref(), world, |builder| builder.phase_two_wait(SHORT));
    plain.wrote(&[a, b, c]);
    let hangs = a.hold(Call::Commit);
    assert_eq!(plain.manager.commit().unwrap().pending, 2);
    assert_eq!(c.keys(), ["row"]);
    plain.until("b.recovered-commit!");
    hangs.release();
    plain.until_kept(a, "row");
    plain.manager.shutdown(Duration::from_secs(30)).unwrap();
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    assert_eq!(plain.world.journal.count("b.commit!"), 0, "{:?}", plain.acts());
}

/// Once the caller was answered, who hangs keeps nobody else from being finished (rule 7), also not those that recovery can't finish.
#[test]
fn a_commit_that_hangs_does_not_keep_a_volatile_one_behind_it_waiting() {
    let mut world = World::new();
    let (a, v) = (world.two_phase("a"), world.store("v", Capability::Volatile));
    let plain = Plain::with(&[&a, &v], world, |builder| builder.phase_two_wait(SHORT));
    plain.wrote(&[&a, &v]).allow("v");
    let hangs = a.hold(Call::Commit);
    assert_eq!(plain.manager.commit().unwrap().pending, 2);
    plain.until("v.commit!");
    hangs.release();
    // Recovery's, unless it commits by itself now; a shutdown would leave it to the next start.
    plain.until_kept(&a, "row");
    plain.manager.shutdown(Duration::from_secs(30)).unwrap();
    assert_eq!([a.keys(), v.keys()], [["row"], ["row"]]);
}

/// A volatile branch that fails for long is nobody else's: it is tried again on a thread of its own until it commits (rule 7).
#[test]
fn a_volatile_commit_that_fails_for_long_is_tried_again_elsewhere() {
    let mut world = World::new();
    let (a, v) = (world.two_phase("a"), world.store("v", Capability::Volatile));
    let plain = Plain::with(&[&a, &v], world, |builder| builder.phase_two_wait(SHORT));
    plain.wrote(&[&a, &v]).allow("v");
    v.fail_always(Call::Commit, Fault::Refused);
    assert_eq!(plain.manager.commit().unwrap().pending, 1);
    v.heal(Call::Commit);
    plain.manager.shutdown(Duration::from_secs(30)).unwrap();
    assert_eq!([a.keys(), v.keys()], [["row"], ["row"]]);
    let last = plain.acts().iter().rposition(|act| act == "v.commit!").unwrap();
    assert_ne!(plain.world.journal.threads()[last], here());
}

/// The log's refusal rolls back in order; an unknown decision holds all, and says so.
#[test]
fn what_the_log_says_is_heard() {
    for (fault, acts) in [
        (Fault::Refused, ["c.rollback", "a.rollback", "b.rollback"].as_slice()),
        (Fault::Lost, ["log.decide: lost"].as_slice()),
    ] {
        let mut world = World::new();
        let stores @ [a, b, c] = &three(&mut world);
        let background = unanimous::thread::Background::start().unwrap();
        let log = crate::support::JournalLog::new(world.disk.open(), &world.journal);
        let builder = unanimous::TransactionManager::builder(log.clone());
        let builder = stores.iter().fold(builder, |builder, store| builder.resource(store.clone()));
        let manager = unanimous::thread::ThreadManager::new(background.build(builder).unwrap());
        let plain = Plain { world, background, manager };
        plain.wrote(&[a, b, c]);
        log.fail(fault.clone());
        let error = plain.manager.commit().unwrap_err();
        let unanimous::thread::ThreadError::Commit(error) = error else { panic!("{error:?}") };
        assert_eq!(matches!(error, CommitError::Unknown { .. }), matches!(fault, Fault::Lost), "{error:?}");
        let after = plain.acts().iter().position(|act| act.starts_with("log.decide!")).unwrap() + 1;
        let said: Vec<_> = plain.acts()[after..].iter().filter(|act| !act.contains("refused")).cloned().collect();
        assert_eq!(said, acts);
    }
}

/// A branch whose flush blocks its thread.
struct Slow(Duration);

impl Branch for Slow {
    fn sort_key(&self) -> String {
        "2".into()
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        thread::sleep(self.0);
        Ok(Work::Wrote)
    }

    async fn prepare(&self, _id: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        Ok(())
    }
}

/// A limit that passes while a branch blocks the thread is noticed before the next one is asked.
#[test]
fn a_time_limit_is_noticed_between_branches_that_block() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a").sorted("1"), world.two_phase("b").sorted("3"));
    let plain = Plain::over(&[&a, &b], world);
    let tx = plain.manager.begin_with(Options::default().time_limit(SHORT)).unwrap();
    tx.join(&a).unwrap().put("row").unwrap();
    tx.join_branch("slow", Slow(SHORT * 2)).unwrap();
    tx.join(&b).unwrap().put("row").unwrap();
    plain.world.journal.clear();
    let error = aborted(plain.manager.commit());
    assert!(matches!(error.cause(), Cause::TimeLimit), "{error:?}");
    assert_eq!(plain.acts(), ["a.flush", "a.rollback", "b.rollback"]);
}

/// A limit that has passed is noticed by whoever uses the transaction next, and its commit rolls back.
#[test]
fn a_time_limit_that_passed_is_noticed_at_the_next_use() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let plain = Plain::over(&[&a], world);
    let tx = plain.manager.begin_with(Options::default().time_limit(SHORT)).unwrap();
    tx.join(&a).unwrap().put("row").unwrap();
    plain.world.journal.clear();
    let began = Instant::now();
    while tx.is_active() {
        assert!(began.elapsed() < LONG, "it never noticed");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(plain.acts().is_empty(), "nobody rolls back behind the thread's back: {:?}", plain.acts());
    assert!(matches!(tx.join(&a), Err(JoinError::NotActive { why, .. }) if why.contains("time limit")));
    assert!(matches!(tx.savepoint(), Err(SavepointError::NotActive { why, .. }) if why.contains("time limit")));
    assert!(matches!(aborted(plain.manager.commit()).cause(), Cause::TimeLimit));
    assert_eq!(plain.acts(), ["a.rollback"]);
    assert_eq!(plain.world.journal.threads(), [here()]);
}

/// Journals what it is told.
struct Told(Journal);

impl Synchronizer for Told {
    fn new_transaction(&self, _tx: &Tx) {
        self.0.act("new-transaction");
    }

    fn before_completion(&self, _tx: &Tx) {
        self.0.act("before-completion");
    }

    fn after_completion(&self, _tx: &Tx, outcome: Outcome) {
        self.0.act(format!("after-completion {outcome}"));
    }
}

/// Hooks and synchronizers are called where the branches are, in the ancestors' order; a hook works, and joins, as plain code does.
#[test]
fn hooks_and_synchronizers_run_on_the_thread_in_order() {
    let mut world = World::new();
    let stores @ [a, b, _c] = &three(&mut world);
    let plain = Plain::over(&stores.each_ref(), world);
    let told = Arc::new(Told(plain.world.journal.clone()));
    plain.manager.register_synchronizer(&told);
    for commits in [true, false] {
        plain.world.journal.clear();
        let tx = plain.manager.begin().unwrap();
        tx.join(a).unwrap().put("row").unwrap();
        let journal = plain.world.journal.clone();
        let act = move |text: &str| {
            let (journal, text) = (journal.clone(), text.to_owned());
            move || journal.act(text)
        };
        let (one, two, three, four) =
            (act("before-commit"), act("after-commit"), act("before-abort"), act("after-abort"));
        let (manager, joins) = (plain.manager.clone(), b.clone());
        tx.before_commit(move |tx| {
            one();
            assert_eq!(manager.get()?.id(), tx.id(), "it is the thread's transaction while it ends");
            assert_eq!(manager.begin().unwrap_err(), StateError::Ending { id: tx.id() });
            assert_eq!(manager.abort().unwrap_err(), StateError::Ending { id: tx.id() });
            tx.join(&joins)?.put("hook's")?;
            Ok(())
        })
        .unwrap();
        let after = move |_tx, outcome| {
            two();
            assert_eq!(outcome, Outcome::Committed);
            Ok(())
        };
        tx.after_commit(after).unwrap();
        tx.before_abort(move |_tx| {
            three();
            Ok(())
        })
        .unwrap();
        tx.after_abort(move |_tx| {
            four();
            Ok(())
        })
        .unwrap();
        let journal = plain.world.journal.clone();
        tx.after_end(move |outcome| journal.act(format!("after-end {outcome}")));
        let expected: &[&str] = if commits {
            plain.manager.commit().unwrap();
            &[
                "new-transaction",
                "a.begin",
                "before-commit",
                "b.begin",
                "before-completion",
                "a.flush",
                "b.flush",
                "a.prepare!",
                "b.prepare!",
                "log.decide! [a b]",
                "a.commit!",
                "b.commit!",
                "log.forget",
                "after-completion committed",
                "after-commit",
                "after-end committed",
            ]
        } else {
            plain.manager.abort().unwrap();
            &[
                "new-transaction",
                "a.begin",
                "before-abort",
                "before-completion",
                "a.rollback",
                "after-abort",
                "after-completion aborted",
                "after-end aborted",
            ]
        };
        assert_eq!(plain.acts(), expected);
        assert!(plain.world.journal.threads().iter().all(|thread| *thread == here()));
    }
}

/// No call of a branch finds a runtime, nor another thread than the one that waits for it.
#[test]
fn branches_see_the_callers_thread_and_no_runtime() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let plain = Plain::over(&[&a], world);
    let seen = Seen::default();
    for commits in [true, false] {
        let tx = plain.wrote(&[&a]);
        tx.allow("witness");
        tx.join_branch("witness", Witness { seen: seen.clone() }).unwrap();
        if commits {
            plain.manager.commit().unwrap();
        } else {
            plain.manager.abort().unwrap();
        }
    }
    let expected = ["flush", "prepare", "commit", "rollback"].map(|call| (call, here(), false));
    assert_eq!(*seen.lock().unwrap(), expected);
}

/// What is spawned by a future that is waited for within another one's task is that one's, not the outer one's.
#[test]
fn waits_nest() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let plain = Plain::over(&[&a, &b], world);
    let other = unanimous::thread::ThreadManager::new(plain.manager.manager().clone());
    let tx = plain.wrote(&[&a]);
    let inner = b.clone();
    tx.before_commit(move |_tx| {
        let tx = other.begin()?;
        tx.join(&inner)?.put("inner")?;
        other.commit()?;
        wait(async { Ok(()) })
    })
    .unwrap();
    plain.manager.commit().unwrap();
    let expected = ["b.begin", "b.flush", "b.commit-one-phase!", "a.flush", "a.commit-one-phase!"];
    assert_eq!(plain.acts(), expected);
    assert!(plain.world.journal.threads().iter().all(|thread| *thread == here()));
}
