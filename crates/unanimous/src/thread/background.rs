//! The thread behind plain threads: it keeps the time and runs recovery, and no transaction's branches.
//!
//! Must not know transactions.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder as Runtime, EnterGuard, Handle};
use tokio::sync::oneshot;

use crate::env::{BoxFuture, Env, NoRuntime, TokioEnv};
use crate::inline;
use crate::manager::{BuildError, Builder, TransactionManager};

/// A thread for what goes on beside transactions where the application has no tokio runtime: timers, recovery, the log's own work.
///
/// Cheap to clone. The thread ends with the last clone and the last manager that was [built](Self::build) with it; what else was opened
/// with it must not be used any longer then.
#[derive(Clone)]
pub struct Background {
    env: Arc<BackgroundEnv>,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").finish_non_exhaustive()
    }
}

impl Background {
    /// Starts the thread. After a fork the child needs one of its own, and logs and stores that are opened with it; what blocks in them has
    /// threads that belong to it.
    ///
    /// # Errors
    ///
    /// When the system gives no thread, or no timer.
    pub fn start() -> io::Result<Self> {
        let runtime = Runtime::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("unanimous background".into()).spawn(move || {
            // Only dropped, never sent to.
            let _ = runtime.block_on(stopped);
        })?;
        let inside = handle.enter();
        let tokio = TokioEnv::apart();
        drop(inside);
        let running = Running { handle, stop: Some(stop), thread: Some(thread) };
        Ok(Self { env: Arc::new(BackgroundEnv { tokio, running }) })
    }

    /// Runs a future that opens something to its end on this thread: a store, or a log, with this thread's timers.
    ///
    /// What was opened so needs no runtime later. For a transaction's work there is [`wait`](super::wait).
    ///
    /// # Panics
    ///
    /// When the future does.
    pub fn open<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        inline::wait(poll_fn(|cx| {
            let _entered = self.enter();
            future.as_mut().poll(cx)
        }))
    }

    /// While the guard is there, this thread is within the background's tokio runtime: for stores that need one themselves, as PostgreSQL's
    /// driver does. Their connections are then served in the background; what is waited for is still polled here.
    ///
    /// Guards that overlap are dropped in the reverse order.
    pub fn enter(&self) -> Entered<'_> {
        Entered { _inside: self.env.running.handle.enter() }
    }

    /// Builds a manager whose recovery runs here; it keeps this thread.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn build(&self, builder: Builder) -> Result<TransactionManager, BuildError> {
        self.open(builder.env(self.env()).build())
    }

    /// Clock, timers and randomness, for what takes an [`Env`]; it keeps this thread.
    pub fn env(&self) -> Arc<dyn Env> {
        self.env.clone()
    }
}

/// This thread is within the background's runtime.
#[must_use = "it ends where it is dropped"]
pub struct Entered<'b> {
    _inside: EnterGuard<'b>,
}

impl fmt::Debug for Entered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").finish_non_exhaustive()
    }
}

struct BackgroundEnv {
    tokio: TokioEnv,
    running: Running,
}

impl Env for BackgroundEnv {
    fn monotonic(&self) -> Duration {
        self.tokio.monotonic()
    }

    fn wall_clock(&self) -> u64 {
        self.tokio.wall_clock()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.tokio.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        self.tokio.spawn(task)
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        self.tokio.blocking(job)
    }

    fn random(&self) -> u64 {
        self.tokio.random()
    }
}

struct Running {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return };
        // Recovery may be the last that held the manager, and a thread can't wait for its own end.
        if thread.thread().id() != std::thread::current().id() {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}
