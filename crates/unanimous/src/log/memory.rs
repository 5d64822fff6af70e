//! A log that forgets with its process.
//!
//! Must not know files.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use unanimous_core::log::{History, Record};
use unanimous_core::{
    BoxError, DecideError, Decider, Decision, DecisionLog, DecisionRecord, Incarnation, Known, Owner, StoreError,
    TransactionId,
};

use super::error::LogError;
use super::segments::new_log_id;
use crate::env::{Env, TokioEnv};
use crate::sync::lock;

/// The bytes that finished decisions may take, roughly.
const SPACE: usize = 8 << 20;
/// The bytes that unfinished ones may take.
const MOST: usize = 64 << 20;
const HORIZON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A decision log in memory: for tests, and for transactions whose stores all forget with the process too.
///
/// Everything holds that a [`FileLog`](super::FileLog) promises, **except that decisions don't survive the process.** Each one has an
/// identity of its own, so that after a restart nothing is presumed of a branch that a store still lists as prepared: its log is gone for
/// ever, and a person must decide. So don't use it beside stores that survive a crash.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct MemoryLog {
    env: Arc<dyn Env>,
    owner: Owner,
    state: Arc<Mutex<State>>,
}

struct State {
    history: History,
    closed: bool,
    /// Whether a manager has it.
    taken: bool,
}

impl std::fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryLog").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryLog {
    /// A log with a random identity.
    pub fn new() -> Self {
        Self::with_env(TokioEnv::shared())
    }

    /// The same with another clock and randomness.
    pub fn with_env(env: Arc<dyn Env>) -> Self {
        let mut history = History::new(new_log_id(|| env.random()));
        let incarnation = Incarnation::new(1, env.random());
        history
            .apply(Record::Incarnation { incarnation, started_at: env.wall_clock() })
            .expect("the first incarnation follows nothing");
        let owner = Owner { log: history.log(), incarnation };
        Self { env, owner, state: Arc::new(Mutex::new(State { history, closed: false, taken: false })) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The history changes after it has been checked, so that a panic leaves it whole.
        lock(&self.state)
    }

    fn write(&self, record: DecisionRecord, decision: Decision) -> Result<(), DecideError> {
        let refused = |error: LogError| DecideError::Refused(error.into());
        let mut state = self.lock();
        let transaction = record.transaction;
        match (decision, state.history.recorded(transaction)) {
            (Decision::Commit, Some(Known::Commit(known))) if known.decides_as(&record) => return Ok(()),
            (Decision::Abort, Some(Known::Abort)) => return Ok(()),
            (_, Some(Known::Commit(_) | Known::Abort)) => {
                return Err(DecideError::Unknown(LogError::DecidedTwice(transaction).into()));
            }
            (_, Some(Known::Hold(_)) | None) => {}
        }
        state.ready().map_err(refused)?;
        if transaction.owner() != self.owner {
            return Err(refused(LogError::NotOwned(transaction)));
        }
        unanimous_core::log::record::check(&record).map_err(|error| refused(LogError::Unwritable(error)))?;
        let record = match decision {
            Decision::Commit => Record::Commit(record),
            Decision::Abort => Record::Abort(record),
        };
        state.history.apply(record).expect("just checked");
        Ok(())
    }
}

impl State {
    fn ready(&self) -> Result<(), LogError> {
        let unfinished = self.history.unfinished_bytes();
        if self.closed {
            Err(LogError::Closed)
        } else if unfinished >= MOST {
            Err(LogError::Full { unfinished, most: MOST })
        } else {
            Ok(())
        }
    }

    fn open(&self) -> Result<&History, StoreError> {
        if self.closed { Err(StoreError::new(LogError::Closed)) } else { Ok(&self.history) }
    }
}

impl Decider for MemoryLog {
    async fn lookup(&self, transaction: TransactionId) -> Result<Known, StoreError> {
        Ok(self.lock().open()?.lookup(transaction))
    }

    async fn unfinished(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        Ok(self.lock().open()?.unfinished().cloned().collect())
    }

    fn forget(&self, transaction: TransactionId) {
        let now = self.env.wall_clock();
        let history = &mut self.lock().history;
        history.apply(Record::Finished { transaction, at: now }).expect("an end contradicts nothing");
        // Letting go takes time in proportion to what goes, so that it may be looked at each time.
        history.retain(now, HORIZON, SPACE + history.unfinished_bytes());
    }
}

impl DecisionLog for MemoryLog {
    fn owner(&self) -> Owner {
        self.owner
    }

    fn take(&self) -> bool {
        !std::mem::replace(&mut self.lock().taken, true)
    }

    fn ready(&self) -> Result<(), BoxError> {
        Ok(self.lock().ready()?)
    }

    /// Decided at the call, not at the first poll.
    fn decide(&self, record: DecisionRecord) -> impl Future<Output = Result<(), DecideError>> + Send {
        let decided = self.write(record, Decision::Commit);
        async move { decided }
    }

    fn records_aborts(&self) -> bool {
        true
    }

    /// Decided at the call, not at the first poll.
    fn conclude(
        &self,
        record: DecisionRecord,
        decision: Decision,
    ) -> impl Future<Output = Result<(), DecideError>> + Send {
        let decided = self.write(record, decision);
        async move { decided }
    }

    async fn recorded(&self, transaction: TransactionId) -> Result<Option<Known>, StoreError> {
        Ok(self.lock().open()?.recorded(transaction))
    }

    async fn unfinished_aborts(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        Ok(self.lock().open()?.unfinished_aborts().cloned().collect())
    }

    async fn close(&self) {
        self.lock().closed = true;
    }
}
