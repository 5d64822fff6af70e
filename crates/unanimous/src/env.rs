//! Clock, spawning and randomness behind one small trait, so that a simulator can run the manager with all of them under its control.
//!
//! Nothing else in this crate asks the operating system or the runtime for any of these; the log's disk is [`disk`].
//! Must not know transactions.

pub mod disk;
mod threads;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use self::threads::Threads;

/// A future on the heap, as a trait object's method gives it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the manager needs from the world around it.
pub trait Env: Send + Sync + 'static {
    /// Time since some fixed point; never goes back.
    fn monotonic(&self) -> Duration;

    /// Microseconds since 1970, UTC; may jump. For people and for horizons, never for order.
    fn wall_clock(&self) -> u64;

    /// Waits.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// Runs a task to its end, whoever is dropped meanwhile.
    ///
    /// # Errors
    ///
    /// When there is no runtime any more to run it; the task was dropped then.
    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime>;

    /// Runs a job that blocks its thread (a sync of a file), on a thread that nobody can hold who waits for the job (rule 14).
    ///
    /// # Errors
    ///
    /// When there is no runtime, or no thread to be had; the job was dropped then.
    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime>;

    /// 64 random bits, unpredictable enough that two machines never share them.
    fn random(&self) -> u64;
}

/// What the future gives, where it does within the limit; otherwise it is dropped, before this returns.
pub(crate) async fn within<T>(env: &dyn Env, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = future => Some(done),
        () = env.sleep(limit) => None,
    }
}

/// There is no runtime (any more) that could run a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRuntime;

impl fmt::Display for NoRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no tokio runtime here that could run the task; call this from within one, or on a plain thread within `thread::Background::open`")
    }
}

impl std::error::Error for NoRuntime {}

/// The real world: tokio's timer and tasks, the operating system's clock and randomness.
#[derive(Clone, Debug)]
pub struct TokioEnv {
    start: Instant,
    runtime: Option<tokio::runtime::Handle>,
    threads: Arc<Threads>,
}

impl TokioEnv {
    /// The environment of the current tokio runtime, if there is one: what it spawns later runs there, also when it is called from
    /// a thread outside.
    pub fn current() -> Self {
        let runtime = tokio::runtime::Handle::try_current().ok();
        Self { start: Instant::now(), runtime, threads: Threads::shared() }
    }

    /// The same, with threads that nobody else uses. A forked process has none of its parent's threads, which the shared ones would not
    /// notice.
    pub(crate) fn apart() -> Self {
        Self { threads: Arc::default(), ..Self::current() }
    }

    /// The same, shared.
    pub fn shared() -> Arc<dyn Env> {
        Arc::new(Self::current())
    }

    fn handle(&self) -> Result<tokio::runtime::Handle, NoRuntime> {
        match &self.runtime {
            Some(handle) => Ok(handle.clone()),
            None => tokio::runtime::Handle::try_current().map_err(|_| NoRuntime),
        }
    }
}

impl Env for TokioEnv {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_clock(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        // On a thread outside of any runtime its own is entered; within one, that one polls it.
        let _inside = match (tokio::runtime::Handle::try_current(), &self.runtime) {
            (Err(_), Some(runtime)) => Some(runtime.enter()),
            (Err(_), None) => return Box::pin(async move { tokio::time::sleep(duration).await }),
            (Ok(_), _) => None,
        };
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        drop(self.handle()?.spawn(task));
        Ok(())
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        // Refused outside of a runtime: who waits for the job is a future.
        self.handle()?;
        self.threads.run(job).map_err(|error| {
            tracing::error!(%error, "the system gives no thread for a job that blocks");
            NoRuntime
        })
    }

    fn random(&self) -> u64 {
        // The operating system's source fails only where there is none, and without it no id could be trusted.
        getrandom::u64().expect("the operating system gives random numbers")
    }
}
