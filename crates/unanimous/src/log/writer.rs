//! The job that writes: takes what waits, makes it durable with one sync, answers, and looks again.
//!
//! A plain thread that waits for its decision writes the first round itself, so that one that is alone pays for its sync and for no
//! change of threads; whatever is left then is a job's.
//!
//! There is one such job at a time. Who comes while it syncs waits for the next round, which takes all who came: group commit
//! without a delay for who comes alone.
//!
//! Must not know what a decision means.

use std::ops::ControlFlow;
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
        if self.claim() {
            self.start_job();
        }
    }

    /// The same for who waits for what is queued: on this thread, where it may block.
    pub(super) fn start_and_wait(self: &Arc<Self>) {
        if !inline::may_block() {
            self.start();
        } else if self.claim() {
            self.job().run_once();
        }
    }

    /// Whether no writer ran; whoever is told so is it.
    fn claim(&self) -> bool {
        !std::mem::replace(&mut self.lock().running, true)
    }

    fn job(self: &Arc<Self>) -> Job {
        Job { shared: self.clone(), stage: Stage::Waiting }
    }

    fn start_job(self: &Arc<Self>) {
        let job = self.job();
        // Where there is no runtime the job is dropped, now or later, and its guard answers those who wait.
        let _ = self.env.blocking(Box::new(move || job.run()));
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
    fn run(mut self) {
        self.stage = Stage::Running;
        let segments = self.shared.lock().segments.take();
        let answers = match segments {
            Some(segments) => self.write_all(segments),
            None => self.shared.lock().stop(None, Answers::default()),
        };
        self.stage = Stage::Stopped;
        answers.send();
    }

    /// One round, and what is left to a job.
    fn run_once(mut self) {
        self.stage = Stage::Running;
        let segments = self.shared.lock().segments.take();
        let round = match segments {
            Some(segments) => self.round(segments),
            None => ControlFlow::Break(self.shared.lock().stop(None, Answers::default())),
        };
        let answers = match round {
            ControlFlow::Break(answers) => answers,
            ControlFlow::Continue(segments) => {
                let mut state = self.shared.lock();
                // The reserve is a job's too: nobody should wait for it.
                if state.has_work() || !segments.has_reserve() {
                    state.segments = Some(segments);
                    drop(state);
                    self.stage = Stage::Stopped;
                    return self.shared.start_job();
                }
                state.stop(Some(segments), Answers::default())
            }
        };
        self.stage = Stage::Stopped;
        answers.send();
    }

    /// Writes until nothing waits any more.
    fn write_all(&self, mut segments: Segments) -> Answers {
        loop {
            self.reserve(&mut segments);
            segments = match self.round(segments) {
                ControlFlow::Continue(segments) => segments,
                ControlFlow::Break(answers) => return answers,
            }
        }
    }

    /// Makes what waits durable, as much as one sync takes. It ends where nothing waits any more, or nothing can be written.
    fn round(&self, mut segments: Segments) -> ControlFlow<Answers, Segments> {
        let batch = {
            let mut state = self.shared.lock();
            match state.batch() {
                Some(batch) => batch,
                None => return ControlFlow::Break(state.stop(Some(segments), Answers::default())),
            }
        };
        match self.write(&mut segments, &batch) {
            Ok(()) => {
                let answers = self.shared.lock().written(&batch);
                answers.send();
                ControlFlow::Continue(segments)
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
                ControlFlow::Break(answers)
            }
            Err(WriteError::Begin(RotateError::Failed(poison))) => {
                ControlFlow::Break(self.poison(segments, poison, false))
            }
            Err(WriteError::Append(poison)) => ControlFlow::Break(self.poison(segments, poison, true)),
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
