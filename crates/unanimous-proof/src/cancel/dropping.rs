//! Futures that are dropped after a number of polls, and an environment whose tasks end so.
//!
//! Must not know what they do.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use unanimous::env::{BoxFuture, Env, NoRuntime};

/// More polls than any future of the level needs.
pub(super) const MOST_POLLS: usize = 5_000;

/// Polls this often that are not waited for; then time passes, for what waits for it.
const BREATHLESS: usize = 100;

/// Polls a future so often at most, woken or not, and drops it. The other tasks take a step in between. Its output, if it was ready before.
pub(super) async fn eager<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for poll in 0..polls {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(output);
        }
        if poll < BREATHLESS {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    None
}

/// An environment whose tasks are polled so often in all, and are then dropped where they stand: a runtime that ends in the middle.
pub(super) struct Mortal {
    inner: Arc<dyn Env>,
    left: Arc<AtomicUsize>,
}

impl Mortal {
    pub(super) fn new(inner: Arc<dyn Env>, polls: usize) -> Self {
        Self { inner, left: Arc::new(AtomicUsize::new(polls)) }
    }

    /// Whether no task is polled any more.
    pub(super) fn is_dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    /// How many polls there are from now on.
    pub(super) fn set(&self, polls: usize) {
        self.left.store(polls, Ordering::SeqCst);
    }
}

/// A task, until it is dropped.
struct Task {
    task: Option<BoxFuture<'static, ()>>,
    left: Arc<AtomicUsize>,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let fewer = |left: usize| left.checked_sub(1);
        if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_err() {
            self.task = None;
        }
        match &mut self.task {
            Some(task) => task.as_mut().poll(context),
            None => Poll::Ready(()),
        }
    }
}

impl Env for Mortal {
    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }

    fn wall_clock(&self) -> u64 {
        self.inner.wall_clock()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.inner.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        if self.is_dead() {
            return Err(NoRuntime);
        }
        self.inner.spawn(Box::pin(Task { task: Some(task), left: self.left.clone() }))
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        self.inner.blocking(job)
    }

    fn random(&self) -> u64 {
        self.inner.random()
    }
}
