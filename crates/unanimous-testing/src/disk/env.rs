//! A world in which a log's work is done at once.
//!
//! Must not know the disk.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use unanimous::env::{BoxFuture, Env, NoRuntime};

use crate::memory::lock;
use crate::rng::Rng;

/// A world in which a job that blocks is done at once, on the caller's thread, and spawned tasks wait until they are
/// [run](TestEnv::run_tasks); sleeping makes it later, and takes no time.
pub struct TestEnv {
    now: Arc<Mutex<Duration>>,
    random: Mutex<Rng>,
    tasks: Mutex<Vec<BoxFuture<'static, ()>>>,
    no_runtime: AtomicBool,
}

impl TestEnv {
    /// A world at its beginning. Two with different seeds draw different numbers.
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            now: Arc::default(),
            random: Mutex::new(Rng::new(seed)),
            tasks: Mutex::default(),
            no_runtime: AtomicBool::new(false),
        })
    }

    /// Makes it so much later.
    pub fn advance(&self, time: Duration) {
        *lock(&self.now) += time;
    }

    /// Runs what was spawned so far to its end.
    pub async fn run_tasks(&self) {
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        for task in tasks {
            task.await;
        }
    }

    /// As if the runtime had ended: jobs and tasks are dropped.
    pub fn end_runtime(&self) {
        self.no_runtime.store(true, Ordering::SeqCst);
    }

    fn ended(&self) -> Result<(), NoRuntime> {
        if self.no_runtime.load(Ordering::SeqCst) { Err(NoRuntime) } else { Ok(()) }
    }
}

impl fmt::Debug for TestEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestEnv").field("now", &self.monotonic()).finish_non_exhaustive()
    }
}

impl Env for TestEnv {
    fn monotonic(&self) -> Duration {
        *lock(&self.now)
    }

    fn wall_clock(&self) -> u64 {
        1_700_000_000_000_000 + self.monotonic().as_micros() as u64
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let now = self.now.clone();
        Box::pin(async move { *lock(&now) += duration })
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        self.ended()?;
        lock(&self.tasks).push(task);
        Ok(())
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        self.ended()?;
        job();
        Ok(())
    }

    fn random(&self) -> u64 {
        lock(&self.random).next()
    }
}
