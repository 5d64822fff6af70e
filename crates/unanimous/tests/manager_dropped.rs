//! Dropping a future changes nothing (rule 6): the commit starts at the call and runs detached to its end, whether its future is
//! never polled, or dropped after any number of polls; an abort likewise. A join that is dropped has joined or not.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use crate::support::{Call, World, ended, eventually};

/// Polls a future at most this often, each time when it could have gone on, and drops it. Whether it was ready.
async fn dropped_after<F: Future>(polls: usize, future: F) -> bool {
    let mut future = pin!(future);
    for _ in 0..polls {
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return true;
        }
        // The detached tasks take one step.
        tokio::task::yield_now().await;
    }
    false
}

/// Every number of polls, up to the first at which the commit is ready by itself. Each store answers at its own later step, so that
/// the polls in between meet every stage.
#[tokio::test(start_paused = true)]
async fn a_commit_that_is_dropped_at_any_poll_is_finished() {
    let mut polls = 0;
    loop {
        let mut world = World::new();
        let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.carrier("c"));
        for store in [&a, &b, &c] {
            store.set_slow(3);
        }
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        for store in [&a, &b, &c] {
            tx.join(store).await.unwrap().put("row").unwrap();
        }
        world.journal.clear();
        let ready = dropped_after(polls, tx.commit()).await;
        world.journal.until("c.forget").await;
        assert_eq!(
            world.journal.acts(),
            [
                "a.flush",
                "b.flush",
                "c.flush",
                "a.prepare!",
                "b.prepare!",
                "c.commit-carrying! [a b]",
                "a.commit!",
                "b.commit!",
                "c.forget"
            ],
            "dropped after {polls} polls"
        );
        assert_eq!([a.keys(), b.keys(), c.keys()], [["row"], ["row"], ["row"]]);
        if ready {
            break;
        }
        polls += 1;
    }
    assert!(polls > 10, "the polls are to meet every stage, and there were only {polls}");
}

/// The same for an abort.
#[tokio::test(start_paused = true)]
async fn an_abort_that_is_dropped_at_any_poll_is_finished() {
    let mut polls = 0;
    loop {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        for store in [&a, &b] {
            store.set_slow(3);
        }
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        let handle = tx.handle();
        for store in [&a, &b] {
            tx.join(store).await.unwrap().put("row").unwrap();
        }
        world.journal.clear();
        let (ended, end) = tokio::sync::oneshot::channel();
        handle.after_end(move |outcome| ended.send(outcome).unwrap());
        let ready = dropped_after(polls, tx.abort()).await;
        assert_eq!(end.await.unwrap(), unanimous::Outcome::Aborted);
        assert_eq!(world.journal.acts(), ["a.rollback", "b.rollback"], "dropped after {polls} polls");
        if ready {
            break;
        }
        polls += 1;
    }
    assert!(polls > 2, "the polls are to meet every stage, and there were only {polls}");
}

/// It starts at the call: the future is not even polled once, and its calls are made.
#[tokio::test(start_paused = true)]
async fn a_commit_starts_at_the_call() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    let commit = tx.commit();
    eventually("the row is committed", || a.keys() == ["row"]).await;
    assert!(ended(commit).await.is_ok(), "and the answer is kept");
}

/// A join dropped at any poll: it has joined or not, the transaction goes on, and another join begins a branch where none is there.
#[tokio::test(start_paused = true)]
async fn a_join_that_is_dropped_leaves_the_transaction_usable() {
    let mut polls = 0;
    loop {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        a.set_slow(3);
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        let ready = dropped_after(polls, tx.join(&a)).await;
        tx.join(&b).await.unwrap().put("row").unwrap();
        tx.join(&a).await.unwrap().put("row").unwrap();
        let begun = world.journal.count("a.begin");
        assert_eq!(begun, if ready || polls == 0 { 1 } else { 2 }, "dropped after {polls} polls");
        ended(tx.commit()).await.unwrap();
        assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
        if ready {
            break;
        }
        polls += 1;
    }
    assert!(polls > 2, "the polls are to meet every stage, and there were only {polls}");
}

/// A join that hangs and is dropped does not keep others from joining, nor the commit from starting.
#[tokio::test(start_paused = true)]
async fn a_join_that_hangs_and_is_dropped_frees_its_place() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let _hold = a.hold(Call::Begin);
    assert!(!dropped_after(3, tx.join(&a)).await);
    tx.join(&b).await.unwrap().put("row").unwrap();
    ended(tx.commit()).await.unwrap();
    assert_eq!(b.keys(), ["row"]);
}
