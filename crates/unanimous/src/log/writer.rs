//! The job that writes: takes what waits, makes it durable with one sync, answers, and looks again.
//!
//! There is one such job at a time. Who comes while it syncs waits for the next round, which takes all who came: group commit
//! without a delay for who comes alone. Where the one who comes first waits on a thread of its own, that thread writes the first round, and a
//! thread of the log's those behind it.
//!
//! Must not know what a decision means.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use super::error::{LogError, Poison};
use super::segments::{RotateError, Segments};
use super::state::{Answers, Batch, State};
use crate::env::Env;
use crate::inline;
use crate::sync::lock;

/// How long an end waits for a decision that would take it along. Nothing depends on it but how much a restart asks again.
const FLUSH_DELAY: Duration = Duration::from_millis(200);
/// This many ends are written without waiting any longer.
const FLUSH_COUNT: usize = 1024;
/// How often a full disk is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What the handles of one log and its writer share.
pub(super) struct Shared {
    pub(super) env: Arc<dyn Env>,
    state: Mutex<State>,
}

impl Shared {
    pub(super) fn new(env: Arc<dyn Env>, state: State) -> Arc<Self> {
        Arc::new(Self { env, state: Mutex::new(state) })
    }

    /// A panic under the lock is one of the writer, whose guard poisons the log; the data are whole enough for that.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Starts the writer if none runs.
    pub(super) fn start(self: &Arc<Self>) {
        if let Some(job) = self.job() {
            job.run_elsewhere();
        }
    }

    /// The same for somebody who waits for it from here on.
    pub(super) fn start_and_wait(self: &Arc<Self>) {
        if let Some(job) = self.job() {
            let _ = inline::lend(&self.env, Box::new(move || job.run(Rounds::One)));
        }
    }

    fn job(self: &Arc<Self>) -> Option<Job> {
        let runs = std::mem::replace(&mut self.lock().running, true);
        (!runs).then(|| Job::new(self))
    }

    /// Sees to it that what is finished will be written, soon or with what comes before that.
    pub(super) fn flush_soon(self: &Arc<Self>) {
        let (many, timer) = {
            let mut state = self.lock();
            (state.finishing() >= FLUSH_COUNT, std::mem::replace(&mut state.timer, true))
        };
        if many {
            self.start();
        }
        if !timer {
            self.set_timer(FLUSH_DELAY);
        }
    }

    fn set_timer(self: &Arc<Self>, delay: Duration) {
        let (env, shared) = (self.env.clone(), Arc::downgrade(self));
        let timer = Box::pin(async move {
            // Begun within the task: an end may be told from a thread outside of the runtime, which has no timers.
            env.sleep(delay).await;
            // A log that was dropped meanwhile has nothing to flush; one whose end is not known is asked again after a restart.
            if let Some(shared) = Weak::upgrade(&shared) {
                let work = {
                    let mut state = shared.lock();
                    state.timer = false;
                    state.has_work()
                };
                if work {
                    shared.start();
                }
            }
        });
        if self.env.spawn(timer).is_err() {
            self.lock().timer = false;
        }
    }

    /// Tries for a reserve again, if the last try was long ago.
    pub(super) fn retry_reserve(self: &Arc<Self>) {
        let now = self.env.monotonic();
        let due = {
            let state = self.lock();
            state.no_reserve.is_some() && now.saturating_sub(state.tried_reserve) >= RETRY_DELAY
        };
        if due {
            self.start();
        }
    }
}

/// How much a job writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounds {
    /// What waits; another job goes on with what has come meanwhile, and with the reserve, for which nobody should wait.
    One,
    /// Until nothing waits any more.
    All,
}

/// How far a job came; its guard ends what it did not.
enum Stage {
    Waiting,
    Running,
    Stopped,
}

/// Why a batch was not written.
enum WriteError {
    /// The segment for it could not be begun: nothing of the batch was written.
    Begin(RotateError),
    /// Nobody knows.
    Append(Poison),
}

struct Job {
    shared: Arc<Shared>,
    stage: Stage,
}

impl Drop for Job {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let answers = match self.stage {
            Stage::Stopped => return,
            Stage::Waiting => {
                let answers = state.give_up(&LogError::NoRuntime, false);
                state.stop(None, answers)
            }
            Stage::Running => {
                let answers = state.poison(Poison::new("the log's writer panicked", None), true);
                state.stop(None, answers)
            }
        };
        drop(state);
        answers.send();
    }
}

impl Job {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), stage: Stage::Waiting }
    }

    /// To the end, on a thread of the log's. Where there is no runtime the job is dropped, now or later, and its guard answers those who wait.
    fn run_elsewhere(self) {
        let env = self.shared.env.clone();
        let _ = env.blocking(Box::new(move || self.run(Rounds::All)));
    }

    fn run(mut self, rounds: Rounds) {
        self.stage = Stage::Running;
        let segments = self.shared.lock().segments.take();
        let (answers, goes_on) = match segments {
            Some(segments) => self.write_all(segments, rounds),
            None => (self.shared.lock().stop(None, Answers::default()), false),
        };
        self.stage = Stage::Stopped;
        answers.send();
        if goes_on {
            Job::new(&self.shared).run_elsewhere();
        }
    }

    /// Whom to answer, and whether another job must go on: then it counts as running, and its segments are there.
    fn write_all(&self, mut segments: Segments, rounds: Rounds) -> (Answers, bool) {
        loop {
            if rounds == Rounds::All {
                self.reserve(&mut segments);
            }
            let batch = {
                let mut state = self.shared.lock();
                let batch = if state.is_urgent(FLUSH_COUNT) { state.batch() } else { None };
                match batch {
                    Some(batch) => batch,
                    None => return (state.stop(Some(segments), Answers::default()), false),
                }
            };
            match self.write(&mut segments, &batch) {
                Ok(()) => {
                    let mut state = self.shared.lock();
                    let answers = state.written(&batch);
                    if rounds == Rounds::One && (state.is_urgent(FLUSH_COUNT) || !segments.has_reserve()) {
                        state.segments = Some(segments);
                        return (answers, true);
                    }
                    drop(state);
                    answers.send();
                }
                Err(WriteError::Begin(RotateError::NoReserve(error))) => {
                    tracing::warn!(%error, "no space for the decision log's next segment; refusing decisions");
                    let error = Arc::new(error);
                    let mut state = self.shared.lock();
                    state.no_reserve = Some(error.clone());
                    let answers = state.give_up(&LogError::NoReserve(error), false);
                    let retry = state.has_work() && !std::mem::replace(&mut state.timer, true);
                    let answers = state.stop(Some(segments), answers);
                    drop(state);
                    if retry {
                        self.shared.set_timer(RETRY_DELAY);
                    }
                    return (answers, false);
                }
                Err(WriteError::Begin(RotateError::Failed(poison))) => {
                    return (self.poison(segments, poison, false), false);
                }
                Err(WriteError::Append(poison)) => return (self.poison(segments, poison, true), false),
            }
        }
    }

    fn poison(&self, segments: Segments, poison: Poison, tried: bool) -> Answers {
        let source = std::error::Error::source(&poison).map(ToString::to_string);
        tracing::error!(error = %poison, source, "the decision log is poisoned");
        let mut state = self.shared.lock();
        let answers = state.poison(poison, tried);
        state.stop(Some(segments), answers)
    }

    /// Keeps the next segment's space in reserve; without it new work is refused, while the current segment takes what it can.
    fn reserve(&self, segments: &mut Segments) {
        let now = self.shared.env.monotonic();
        {
            let state = self.shared.lock();
            let tried = state.no_reserve.is_some() && now.saturating_sub(state.tried_reserve) < RETRY_DELAY;
            if segments.has_reserve() || tried || state.usable().is_err() {
                return;
            }
        }
        let taken = segments.ensure_reserve();
        let mut state = self.shared.lock();
        state.tried_reserve = now;
        state.no_reserve = taken.err().map(Arc::new);
    }

    fn write(&self, segments: &mut Segments, batch: &Batch) -> Result<(), WriteError> {
        if !segments.has_room(batch.bytes.len()) {
            let now = self.shared.env.wall_clock();
            let (bytes, count) = {
                let mut state = self.shared.lock();
                let limits = state.limits;
                let retained = state.history.retain(now, limits.horizon, limits.checkpoint());
                tracing::debug!(?retained, "the decision log begins a new segment");
                state.history.checkpoint()
            };
            segments.rotate((&bytes, count), now).map_err(WriteError::Begin)?;
        }
        segments.append(&batch.bytes, batch.count).map_err(WriteError::Append)
    }
}
