//! [`TransactionManager`] and its builder: begin, run, current, recovery, shutdown.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use unanimous_core::{BoxError, Capability, DecisionLog, Outcome, ResourceManager, TransactionId};

use crate::env::Env;
use crate::error::RunError;
use crate::transaction::{Options, Transaction, Tx};

/// Builds a [`TransactionManager`].
pub struct Builder {}

impl Builder {
    /// Registers a store.
    #[must_use]
    pub fn resource<R: ResourceManager>(self, _resource: R) -> Self {
        todo!()
    }
    /// Replaces clock, spawning and randomness.
    #[must_use]
    pub fn env(self, _env: Arc<dyn Env>) -> Self {
        todo!()
    }
    /// How long a caller waits for phase two; 5 s by default.
    #[must_use]
    pub fn phase_two_wait(self, _wait: Duration) -> Self {
        todo!()
    }
    /// Time limit of transactions that have none of their own; none by default.
    #[must_use]
    pub fn time_limit(self, _limit: Duration) -> Self {
        todo!()
    }
    /// Called for each transaction that has ended and had joined something. Must return soon.
    #[must_use]
    pub fn observer(self, _observer: impl Fn(&Report) + Send + Sync + 'static) -> Self {
        todo!()
    }
    /// Recovers what can be recovered now, and starts the background recovery.
    pub async fn build(self) -> Result<TransactionManager, BuildError> {
        todo!()
    }
}

/// Why a manager could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// Two resources of one name.
    DuplicateName(String),
    /// One store under two names.
    SameStore(String, String),
    /// No runtime.
    NoRuntime,
}
impl std::fmt::Display for BuildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
impl std::error::Error for BuildError {}

/// How a transaction ended, for pages, metrics and logs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The transaction.
    pub id: TransactionId,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not commit.
    pub cause: Option<String>,
    /// Its branches in the order of joining.
    pub branches: Vec<BranchReport>,
    /// The note's lines.
    pub note: String,
    /// The user.
    pub user: String,
    /// When it began, microseconds since 1970, UTC.
    pub began_at: u64,
    /// From begin to the outcome.
    pub took: Duration,
}

/// How a branch ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BranchReport {
    /// The resource's or branch's name.
    pub resource: String,
    /// What it could promise.
    pub capability: Capability,
    /// "committed", "committed, carrying the decision", "read only", "rolled back", "pending", "unknown"
    pub end: &'static str,
}

/// What is in doubt here, and why.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InDoubt {
    /// The resource's name.
    pub resource: String,
    /// The branch, where the store could be asked.
    pub branch: Option<unanimous_core::BranchId>,
    /// Why it is held.
    pub why: String,
}

/// Begins transactions over registered stores, and recovers them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TransactionManager {}

impl TransactionManager {
    /// A builder over a decision log.
    pub fn builder(_log: impl DecisionLog) -> Builder {
        todo!()
    }
    /// Begins a transaction. Infallible; costs next to nothing until something joins.
    pub fn begin(&self) -> Transaction {
        todo!()
    }
    /// The same with options.
    pub fn begin_with(&self, _options: Options) -> Transaction {
        todo!()
    }
    /// Runs work in a transaction and commits it; repeats it on conflicts, at most `attempts` times.
    pub async fn run<T, F, Fut>(&self, _attempts: u32, _work: F) -> Result<T, RunError>
    where
        F: FnMut(Tx) -> Fut + Send,
        Fut: Future<Output = Result<T, BoxError>> + Send,
        T: Send,
    {
        todo!()
    }
    /// Runs `future` with `tx` as its [`current`] transaction.
    pub async fn scope<F: Future>(_tx: Tx, _future: F) -> F::Output {
        todo!()
    }
    /// One pass of recovery over all stores, now.
    pub async fn recover(&self) -> Vec<InDoubt> {
        todo!()
    }
    /// What the last pass of recovery left in doubt, and why.
    pub fn in_doubt(&self) -> Vec<InDoubt> {
        todo!()
    }
    /// Refuses new work, waits for commits under way, stops recovery, closes the log. Err: how many were still under way.
    pub async fn shutdown(&self, _deadline: Duration) -> Result<(), usize> {
        todo!()
    }
}

/// The current task's transaction: the one that an HTTP layer, `run` or `scope` runs it in.
pub fn current() -> Option<Tx> {
    todo!()
}
