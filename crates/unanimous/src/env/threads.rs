//! Threads for jobs that block (syncs of the log, a store's files), apart from the runtime's own pool.
//!
//! Rule 14: the runtime's blocking threads are the application's, and may all be taken by those who wait for a commit, which would
//! then wait for a thread that none of them gives back. So there is no bound either: each job is one that a transaction waits for,
//! and there are as many of them as there are transactions at work.
//!
//! Must not know what the jobs do.

use std::collections::VecDeque;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use crate::sync::lock;

type Job = Box<dyn FnOnce() + Send>;

/// How long a thread waits for another job before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Threads that are kept a while for the next job.
#[derive(Default)]
pub(super) struct Threads {
    state: Mutex<State>,
    work: Condvar,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Threads that wait and were not promised a job yet.
    idle: usize,
}

static SHARED: LazyLock<Arc<Threads>> = LazyLock::new(Arc::default);

impl Threads {
    /// Those of the process.
    pub(super) fn shared() -> Arc<Self> {
        SHARED.clone()
    }

    /// Runs a job on a thread of its own or on one that is idle. A panic of the job ends the job only.
    ///
    /// # Errors
    ///
    /// When the system gives no thread; the job was dropped then.
    pub(super) fn run(self: &Arc<Self>, job: Job) -> std::io::Result<()> {
        let mut state = lock(&self.state);
        if state.idle > 0 {
            state.idle -= 1;
            state.jobs.push_back(job);
            self.work.notify_one();
            return Ok(());
        }
        drop(state);
        let threads = self.clone();
        std::thread::Builder::new().name("unanimous".into()).spawn(move || threads.serve(job)).map(drop)
    }

    fn serve(&self, mut job: Job) {
        loop {
            // Whoever waits for the job learns of its panic by what the job dropped.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(job));
            let mut state = lock(&self.state);
            state.idle += 1;
            let wait = self.work.wait_timeout_while(state, IDLE, |state| state.jobs.is_empty());
            let (mut state, _) = wait.unwrap_or_else(PoisonError::into_inner);
            match state.jobs.pop_front() {
                Some(next) => job = next,
                None => {
                    state.idle -= 1;
                    return;
                }
            }
        }
    }
}
