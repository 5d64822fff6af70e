//! Savepoints of a transaction: what is undone, which stay valid, who leaves, and what a failure leaves.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use unanimous::{
    Branch, BranchError, BranchId, Cause, CommitError, JoinError, Options, Outcome, SavepointError, SavepointId,
    Transaction, TransactionManager, Tx,
};

use crate::support::{Call, Journal, World, aborted, eventually};

/// What can be told to go wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goes {
    Conflict,
    Panic,
    Never,
}

/// A list in memory with savepoints; clones share what was committed and the faults.
#[derive(Clone)]
struct Slate {
    name: &'static str,
    savepoints: bool,
    journal: Journal,
    committed: Arc<Mutex<Vec<String>>>,
    /// The next call of this name goes so.
    fault: Arc<Mutex<Option<(&'static str, Goes)>>>,
}

struct SlateBranch {
    slate: Slate,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    values: Vec<String>,
    saved: Vec<(SavepointId, Vec<String>)>,
    ended: bool,
}

impl Slate {
    fn new(world: &World, name: &'static str, savepoints: bool) -> Self {
        let journal = world.journal.clone();
        Self { name, savepoints, journal, committed: Arc::default(), fault: Arc::default() }
    }

    fn join<'t>(&self, tx: &'t Tx) -> Result<unanimous::Joined<'t, SlateBranch>, JoinError> {
        tx.allow(self.name);
        tx.join_branch(self.name, SlateBranch { slate: self.clone(), state: Mutex::default() })
    }

    fn fail(&self, call: &'static str, goes: Goes) {
        *self.fault.lock().unwrap() = Some((call, goes));
    }

    fn committed(&self) -> Vec<String> {
        self.committed.lock().unwrap().clone()
    }

    async fn called(&self, call: &'static str, line: String) -> Result<(), BranchError> {
        self.journal.act(format!("{}.{line}", self.name));
        let goes = self.fault.lock().unwrap().take_if(|(failing, _)| *failing == call);
        match goes {
            None => Ok(()),
            Some((_, Goes::Conflict)) => Err(BranchError::conflict(format!("{}: {line}", self.name))),
            Some((_, Goes::Panic)) => panic!("{}: {line}", self.name),
            Some((_, Goes::Never)) => std::future::pending().await,
        }
    }
}

impl SlateBranch {
    fn add(&self, value: &str) -> Result<(), &'static str> {
        let mut state = self.state.lock().unwrap();
        if state.ended {
            return Err("the branch has ended");
        }
        state.values.push(value.to_owned());
        Ok(())
    }
}

impl Branch for SlateBranch {
    async fn prepare(&self, _id: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        let mut state = self.state.lock().unwrap();
        state.ended = true;
        self.slate.committed.lock().unwrap().append(&mut state.values);
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        self.state.lock().unwrap().ended = true;
        self.slate.called("rollback", "rollback".to_owned()).await
    }

    fn has_savepoints(&self) -> bool {
        self.slate.savepoints
    }

    async fn savepoint(&self, id: SavepointId) -> Result<(), BranchError> {
        self.slate.called("savepoint", format!("savepoint {id}")).await?;
        let mut state = self.state.lock().unwrap();
        let values = state.values.clone();
        state.saved.push((id, values));
        Ok(())
    }

    async fn rollback_to(&self, id: SavepointId) -> Result<(), BranchError> {
        self.slate.called("rollback_to", format!("rollback-to {id}")).await?;
        let mut state = self.state.lock().unwrap();
        state.saved.retain(|(saved, _)| *saved <= id);
        state.values =
            state.saved.last().filter(|(saved, _)| *saved == id).expect("a savepoint of this number").1.clone();
        Ok(())
    }
}

/// The failed savepoint that a commit was refused for.
#[track_caller]
fn failed_savepoint(error: &CommitError) -> &SavepointError {
    match cause(error) {
        Cause::Savepoint(error) => error,
        other => panic!("a failed savepoint was expected, and it was {other:?}"),
    }
}

fn cause(error: &CommitError) -> &Cause {
    match error {
        CommitError::Aborted { source, .. } | CommitError::Unknown { source, .. } => source,
    }
}

async fn begun(world: &World) -> (TransactionManager, Transaction) {
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    (manager, tx)
}

/// What was done since is undone in every branch, in the order of joining; what was done before and afterwards is committed.
#[tokio::test(start_paused = true)]
async fn a_rollback_undoes_what_was_done_since_in_every_branch() {
    let world = World::new();
    let (b, a) = (Slate::new(&world, "b", true), Slate::new(&world, "a", true));
    let (_manager, tx) = begun(&world).await;
    b.join(&tx).unwrap().add("before").unwrap();
    let guard = a.join(&tx).unwrap();
    guard.add("before").unwrap();
    let savepoint = tx.savepoint().await.unwrap();
    guard.add("undone").unwrap();
    savepoint.rollback().await.unwrap();
    guard.add("after").unwrap();
    drop(guard);
    assert_eq!(world.journal.acts(), ["b.savepoint 1", "a.savepoint 1", "b.rollback-to 1", "a.rollback-to 1"]);
    tx.commit().await.unwrap();
    assert_eq!(a.committed(), ["before", "after"]);
    assert_eq!(b.committed(), ["before"]);
}

/// Nested: rolling back the outer one takes the inner ones with it, and it can be rolled back again; an inner one leaves the outer.
#[tokio::test(start_paused = true)]
async fn rolling_back_invalidates_later_savepoints_only() {
    let world = World::new();
    let a = Slate::new(&world, "a", true);
    let (_manager, tx) = begun(&world).await;
    let guard = a.join(&tx).unwrap();
    let outer = tx.savepoint().await.unwrap();
    guard.add("1").unwrap();
    let inner = tx.savepoint().await.unwrap();
    guard.add("2").unwrap();
    inner.rollback().await.unwrap();
    guard.add("3").unwrap();
    let innermost = tx.savepoint().await.unwrap();
    assert!(outer.is_valid() && inner.is_valid() && innermost.is_valid());
    inner.rollback().await.unwrap();
    assert!(outer.is_valid() && inner.is_valid() && !innermost.is_valid());
    guard.add("4").unwrap();
    outer.rollback().await.unwrap();
    assert!(outer.is_valid() && !inner.is_valid());
    for gone in [&inner, &innermost] {
        let error = gone.rollback().await.unwrap_err();
        assert!(matches!(error, SavepointError::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains("make another one"), "{error}");
    }
    guard.add("5").unwrap();
    outer.rollback().await.unwrap();
    guard.add("6").unwrap();
    drop(guard);
    let later = tx.savepoint().await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(a.committed(), ["6"]);
    // Numbers are not used twice.
    assert_eq!(world.journal.count("a.savepoint 4"), 1);
    for ended in [outer, later] {
        assert!(!ended.is_valid());
        let error = ended.rollback().await.unwrap_err();
        assert!(matches!(error, SavepointError::NotActive { .. }), "{error:?}");
    }
}

/// A branch that has joined since is rolled back and leaves: its guard is dead, it is not committed, and it can join anew.
#[tokio::test(start_paused = true)]
async fn a_branch_that_joined_since_leaves() {
    let mut world = World::new();
    let store = world.two_phase("store");
    let (a, without) = (Slate::new(&world, "a", true), Slate::new(&world, "without", false));
    let (manager, tx) = begun(&world).await;
    a.join(&tx).unwrap().add("a's").unwrap();
    let savepoint = tx.savepoint().await.unwrap();
    let registered = tx.join(&store).await.unwrap();
    registered.put("undone").unwrap();
    let young = without.join(&tx).unwrap();
    young.add("undone").unwrap();
    world.journal.clear();
    savepoint.rollback().await.unwrap();
    assert_eq!(world.journal.acts(), ["a.rollback-to 1", "store.rollback", "without.rollback"]);
    assert!(registered.put("dead").is_err() && young.add("dead").is_err());
    drop((registered, young));
    // Rolled back again, there is nobody left to leave.
    world.journal.clear();
    savepoint.rollback().await.unwrap();
    assert_eq!(world.journal.acts(), ["a.rollback-to 1"]);
    tx.join(&store).await.unwrap().put("anew").unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.keys(), ["anew"]);
    assert_eq!(a.committed(), ["a's"]);
    assert!(without.committed().is_empty());

    // All may leave; nothing is left open then.
    let tx = manager.begin();
    let savepoint = tx.savepoint().await.unwrap();
    tx.join(&store).await.unwrap().put("undone").unwrap();
    savepoint.rollback().await.unwrap();
    assert!(!tx.has_branches());
    manager.shutdown(Duration::from_secs(1)).await.expect("a transaction that all have left keeps nothing open");
    tx.abort().await;
    assert_eq!(store.keys(), ["anew"]);
}

/// A branch without savepoints: refused at once, with the names of all such branches, and the transaction goes on.
#[tokio::test(start_paused = true)]
async fn a_branch_without_savepoints_is_refused_at_once() {
    let mut world = World::new();
    let store = world.two_phase("store");
    store.set_savepoints(false);
    let (a, without) = (Slate::new(&world, "a", true), Slate::new(&world, "without", false));
    let (_manager, tx) = begun(&world).await;
    a.join(&tx).unwrap().add("a's").unwrap();
    without.join(&tx).unwrap().add("its").unwrap();
    tx.join(&store).await.unwrap();
    world.journal.clear();
    let error = tx.savepoint().await.unwrap_err();
    assert!(
        matches!(&error, SavepointError::Unsupported { resources } if resources == &["without", "store"]),
        "{error:?}"
    );
    assert!(world.journal.acts().is_empty(), "nobody was asked");
    tx.commit().await.unwrap();
    assert_eq!(a.committed(), ["a's"]);
}

/// Optimistic: it is made, and only its rollback is refused, before anything is undone; then only abort is left.
#[tokio::test(start_paused = true)]
async fn an_optimistic_savepoint_fails_at_its_rollback_only() {
    let world = World::new();
    let (a, without) = (Slate::new(&world, "a", true), Slate::new(&world, "without", false));
    let (manager, tx) = begun(&world).await;
    for slate in [&a, &without] {
        slate.join(&tx).unwrap().add("row").unwrap();
    }
    let _unused = tx.savepoint_optimistic().await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!([a.committed(), without.committed()], [["row"], ["row"]]);

    let tx = manager.begin();
    for slate in [&a, &without] {
        slate.join(&tx).unwrap().add("lost").unwrap();
    }
    let savepoint = tx.savepoint_optimistic().await.unwrap();
    world.journal.clear();
    let error = savepoint.rollback().await.unwrap_err();
    assert!(matches!(&error, SavepointError::Unsupported { resources } if resources == &["without"]), "{error:?}");
    assert!(world.journal.acts().is_empty(), "nothing was undone");
    let error = aborted(tx.commit().await);
    assert!(matches!(failed_savepoint(&error), SavepointError::Unsupported { .. }), "{error:?}");
    assert_eq!([a.committed(), without.committed()], [["row"], ["row"]]);
}

/// A savepoint or rollback that fails or panics fails the transaction: everything but the abort is refused, with what to do.
#[tokio::test(start_paused = true)]
async fn a_failing_savepoint_leaves_nothing_but_an_abort() {
    for (call, goes) in [
        ("savepoint", Goes::Conflict),
        ("rollback_to", Goes::Conflict),
        ("rollback_to", Goes::Panic),
        ("rollback", Goes::Conflict),
    ] {
        let mut world = World::new();
        let store = world.two_phase("store");
        let (a, b) = (Slate::new(&world, "a", true), Slate::new(&world, "b", true));
        let (_manager, tx) = begun(&world).await;
        a.join(&tx).unwrap().add("row").unwrap();
        let earlier = tx.savepoint().await.unwrap();
        b.join(&tx).unwrap().add("row").unwrap();
        let failing = if call == "rollback" { &b } else { &a };
        failing.fail(call, goes);
        let error = match call {
            "savepoint" => tx.savepoint().await.unwrap_err(),
            _ => earlier.rollback().await.unwrap_err(),
        };
        assert!(
            matches!(&error, SavepointError::Store { resource, .. } if resource == failing.name),
            "{call}: {error:?}"
        );
        assert_eq!(error.is_retryable(), goes == Goes::Conflict);
        assert!(!earlier.is_valid());
        for refused in [earlier.rollback().await.unwrap_err(), tx.savepoint().await.unwrap_err()] {
            assert!(matches!(refused, SavepointError::Failed { .. }), "{refused:?}");
            assert!(refused.to_string().contains("abort it and begin another"), "{refused}");
        }
        let refused = [tx.join(&store).await.map(|_| ()).unwrap_err(), a.join(&tx).map(|_| ()).unwrap_err()];
        for refused in refused {
            assert!(matches!(refused, JoinError::Failed { .. }), "{refused:?}");
            assert!(refused.to_string().contains("abort it and begin another"), "{refused}");
        }
        let (ended, end) = tokio::sync::oneshot::channel();
        tx.after_abort(async move |_tx| {
            ended.send(()).unwrap();
            Ok(())
        })
        .unwrap();
        world.journal.clear();
        let error = aborted(tx.commit().await);
        assert!(matches!(failed_savepoint(&error), SavepointError::Store { .. }), "{error:?}");
        assert_eq!(error.is_retryable(), goes == Goes::Conflict, "a conflict is worth repeating the transaction for");
        assert_eq!(world.journal.acts(), ["a.rollback", "b.rollback"], "{call}");
        end.await.expect("it was given up");
        assert!(a.committed().is_empty() && b.committed().is_empty());
    }
}

/// A rollback that is dropped before its end fails the transaction: nobody knows what it has undone. A savepoint that is dropped is none.
#[tokio::test(start_paused = true)]
async fn a_rollback_that_is_dropped_fails_the_transaction() {
    let world = World::new();
    let (a, b) = (Slate::new(&world, "a", true), Slate::new(&world, "b", true));
    let (manager, tx) = begun(&world).await;
    for slate in [&a, &b] {
        slate.join(&tx).unwrap().add("row").unwrap();
    }
    b.fail("savepoint", Goes::Never);
    {
        let mut hangs = pin!(tx.savepoint());
        assert!(hangs.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let savepoint = tx.savepoint().await.unwrap();
    b.fail("rollback_to", Goes::Never);
    {
        let mut hangs = pin!(savepoint.rollback());
        assert!(hangs.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    assert!(!savepoint.is_valid());
    let error = aborted(tx.commit().await);
    assert!(matches!(failed_savepoint(&error), SavepointError::Interrupted), "{error:?}");
    assert!(a.committed().is_empty() && b.committed().is_empty());

    // One that was not polled has changed nothing.
    let tx = manager.begin();
    a.join(&tx).unwrap().add("row").unwrap();
    let savepoint = tx.savepoint().await.unwrap();
    drop(savepoint.rollback());
    tx.commit().await.unwrap();
    assert_eq!(a.committed(), ["row"]);
}

/// A commit that starts while a savepoint is being rolled back aborts, as with any guard in use.
#[tokio::test(start_paused = true)]
async fn a_commit_meets_no_rollback_under_way() {
    let world = World::new();
    let a = Slate::new(&world, "a", true);
    let (_manager, tx) = begun(&world).await;
    a.join(&tx).unwrap().add("row").unwrap();
    let savepoint = tx.savepoint().await.unwrap();
    a.fail("rollback_to", Goes::Never);
    let rolling = tokio::spawn(async move { savepoint.rollback().await });
    world.journal.until("a.rollback-to 1").await;
    let error = aborted(tx.commit().await);
    assert!(matches!(cause(&error), Cause::InUse { guards: 1 }), "{error:?}");
    rolling.abort();
    assert!(a.committed().is_empty());
}

/// The time limit passes while a branch hangs in a rollback: all are rolled back all the same.
#[tokio::test(start_paused = true)]
async fn the_time_limit_ends_a_transaction_that_rolls_back() {
    let world = World::new();
    let a = Slate::new(&world, "a", true);
    let (manager, _log) = world.start().await;
    let tx = manager.begin_with(Options::default().time_limit(Duration::from_secs(1)));
    a.join(&tx).unwrap().add("row").unwrap();
    let savepoint = tx.savepoint().await.unwrap();
    a.fail("rollback_to", Goes::Never);
    let rolling = tokio::spawn(async move { savepoint.rollback().await });
    world.journal.until("a.rollback").await;
    rolling.abort();
    assert!(matches!(cause(&aborted(tx.commit().await)), Cause::TimeLimit));
    manager.shutdown(Duration::from_secs(1)).await.expect("nothing is open");
}

/// A join that is under way and a savepoint wait for each other, so that a branch is on one side of it.
#[tokio::test(start_paused = true)]
async fn a_savepoint_waits_for_a_join() {
    let mut world = World::new();
    let store = world.two_phase("store");
    store.set_savepoints(false);
    let (_manager, tx) = begun(&world).await;
    let hold = store.hold(Call::Begin);
    let joining = tokio::spawn({
        let (tx, store) = (tx.handle(), store.clone());
        async move { tx.join(&store).await.map(|_| ()) }
    });
    hold.reached().await;
    let making = tokio::spawn({
        let tx = tx.handle();
        async move { tx.savepoint().await.map(|_| ()) }
    });
    tokio::task::yield_now().await;
    assert!(!making.is_finished());
    hold.release();
    joining.await.unwrap().unwrap();
    let error = making.await.unwrap().unwrap_err();
    assert!(matches!(&error, SavepointError::Unsupported { resources } if resources == &["store"]), "{error:?}");
    tx.abort().await;
}

/// Hooks may use savepoints; savepoints call no hooks and take none back; a doomed transaction has them too.
#[tokio::test(start_paused = true)]
async fn savepoints_and_hooks_leave_each_other_alone() {
    let world = World::new();
    let a = Slate::new(&world, "a", true);
    let (manager, tx) = begun(&world).await;
    a.join(&tx).unwrap().add("row").unwrap();
    let savepoint = tx.savepoint().await.unwrap();
    let (slate, journal) = (a.clone(), world.journal.clone());
    tx.before_commit(async move |tx| {
        journal.act("hook");
        let savepoint = tx.savepoint().await?;
        slate.join(&tx).map(|_| ()).expect_err("it is there already");
        savepoint.rollback().await?;
        Ok(())
    })
    .unwrap();
    savepoint.rollback().await.unwrap();
    assert_eq!(world.journal.count("hook"), 0);
    tx.commit().await.unwrap();
    assert_eq!(world.journal.count("hook"), 1);
    assert_eq!(world.journal.count("a.rollback-to 2"), 1);
    assert_eq!(a.committed(), ["row"]);

    let tx = manager.begin();
    a.join(&tx).unwrap().add("more").unwrap();
    tx.doom();
    tx.savepoint().await.unwrap().rollback().await.unwrap();
    let (ended, end) = tokio::sync::oneshot::channel();
    tx.after_end(move |outcome| ended.send(outcome).unwrap());
    drop(tx);
    assert_eq!(end.await.unwrap(), Outcome::Aborted);
    eventually("it is rolled back", || world.journal.count("a.rollback") == 1).await;
}
