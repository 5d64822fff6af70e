//! [`TransactionManager`] and its builder: begin, run, recover, shut down.
//!
//! Must not know what a branch does, nor the protocol's steps.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use unanimous_core::{BoxError, DecisionLog, Owner, ResourceManager, StoreId, TransactionId};

use crate::current::scope;
use crate::dispatch::{DynLog, Registered};
use crate::env::{Env, TokioEnv};
use crate::error::RunError;
use crate::inner::{Inner, Observer, RecoveryObserver};
use crate::live::Live;
use crate::outcomes::{self, KnownOutcome, Outcomes};
use crate::recovery::{self, InDoubt, Recovered, Recovery};
use crate::report::Report;
use crate::sync::Gauge;
use crate::synchronizer::Synchronizers;
use crate::transaction::{Home, Options, Transaction, Tx};

/// How long a shutdown waits for the log to close, and for recovery to leave it.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Builds a [`TransactionManager`].
#[must_use]
pub struct Builder {
    env: Arc<dyn Env>,
    log: Arc<dyn DynLog>,
    resources: Vec<Registered>,
    phase_two_wait: Duration,
    time_limit: Option<Duration>,
    early: bool,
    store_wait: Duration,
    recovery_interval: Duration,
    remember_outcomes: usize,
    observer: Option<Observer>,
    recovery_observer: Option<RecoveryObserver>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("owner", &self.log.owner()).finish_non_exhaustive()
    }
}

impl Builder {
    /// Registers a store under its own name, so that it can be joined and recovered.
    pub fn resource<R: ResourceManager>(mut self, resource: R) -> Self {
        self.resources.push(Registered::new(resource));
        self
    }

    /// Replaces clock, spawning and randomness; [`TokioEnv`] by default.
    pub fn env(mut self, env: Arc<dyn Env>) -> Self {
        self.env = env;
        self
    }

    /// How long a caller waits for branches to confirm after the decision; 5 s by default. Then commit says how many are pending. The
    /// decision itself is waited for without a limit: nothing true could be said before it.
    pub fn phase_two_wait(mut self, wait: Duration) -> Self {
        self.phase_two_wait = wait;
        self
    }

    /// The time limit of transactions that have none of their own, from begin to the decision; none by default.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Answers a commit when all stores that wrote have prepared, before the decision is in the log and before any of them has committed: after
    /// one forced write instead of two. Off by default.
    ///
    /// For transactions in which two to four branches wrote (fewer where more than ten have joined), all of them two-phase and registered; not on
    /// [threads](crate::thread); and only where every two-phase branch, also one that only read, is in a store that can [make certain of what it
    /// lists](crate::ResourceManager::durably_in_doubt), as PostgreSQL can and folders of files can't. Others take the ordinary path. Once it is answered, a crash does not undo it: that all branches are prepared, and
    /// each one's id lists all others, is the commitment, and recovery records it (`docs/protocol.md`, "Early acknowledgement").
    ///
    /// The price, until the decision is recorded, which is one forced write later and, after a crash, at the next start:
    ///
    /// - A store that is down keeps the branches in the other stores prepared, with their locks, until it is back: without its list nobody can
    ///   tell whether the transaction was acknowledged. The same for one that is not registered any more.
    /// - An operator who rolls a branch back, a failover to a replica that lacks it, and a store restored from a backup lose a transaction
    ///   that was acknowledged. One who commits a branch by hand tears it: recovery finds that branch missing, and rolls back the others. So finish
    ///   nothing by hand.
    ///
    /// And always: who reads right after the answer may not see yet what was written, [`Committed::pending`](crate::Committed::pending) counts all
    /// branches that wrote, after-hooks run at the answer, a request that is
    /// repeated with its `Idempotency-Key` right after the answer is told that the first one is still in progress until its branches have committed, and an abort for another reason than a branch's own refusal costs a forced write. A
    /// process that ends should [shut down](TransactionManager::shutdown) first, which waits for the rest.
    pub fn early_acknowledgement(mut self, early: bool) -> Self {
        self.early = early;
        self
    }

    /// How long one pass of recovery waits for one call of one store; 10 s by default. Other stores don't wait for it.
    pub fn store_wait(mut self, wait: Duration) -> Self {
        self.store_wait = wait;
        self
    }

    /// How often the stores' in-doubt branches are listed although nothing is known to be in doubt; 60 s by default. Listing goes
    /// on for the manager's life, since a prepare can land late (rule 8).
    pub fn recovery_interval(mut self, interval: Duration) -> Self {
        self.recovery_interval = interval;
        self
    }

    /// How many transactions' ends are remembered for [`outcome`](TransactionManager::outcome), rounded up to a multiple of 1,024, and at
    /// least that; 65,536 by default. Each takes 8 bytes once it is used. At a thousand transactions a second the default covers a
    /// minute; those that a log or a carrier decided are known longer, up to its horizon.
    pub fn remember_outcomes(mut self, most: usize) -> Self {
        self.remember_outcomes = most;
        self
    }

    /// Called for each transaction that had joined something, when its outcome is known, where it ends: on the driver's task, or
    /// on its thread. Must not block.
    pub fn observer(mut self, observer: impl Fn(&Report) + Send + Sync + 'static) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Called for each branch that recovery has finished, at the start and later. Must not block.
    pub fn recovery_observer(mut self, observer: impl Fn(&Recovered) + Send + Sync + 'static) -> Self {
        self.recovery_observer = Some(Box::new(observer));
        self
    }

    /// Recovers what can be recovered now, and goes on with the rest in the background. A store that is down stops nobody (rule 13).
    ///
    /// # Errors
    ///
    /// [`BuildError`]: a log that another manager has, two resources of one name, one store under two names, no runtime.
    pub async fn build(self) -> Result<TransactionManager, BuildError> {
        if self.early && !self.log.records_aborts() {
            return Err(BuildError::NoEarlyAcknowledgement);
        }
        if !self.log.take() {
            return Err(BuildError::LogInUse);
        }
        let mut resources = BTreeMap::new();
        for resource in self.resources {
            let name = resource.name.clone();
            if resources.insert(name.clone(), Arc::new(resource)).is_some() {
                return Err(BuildError::DuplicateName { name });
            }
        }
        let inner = Arc::new(Inner {
            owner: self.log.owner(),
            env: self.env,
            log: self.log,
            resources,
            live: Live::default(),
            recovery: Recovery::new(self.recovery_interval),
            outcomes: Outcomes::new(self.remember_outcomes),
            open: Gauge::new(),
            phase_two_wait: self.phase_two_wait,
            time_limit: self.time_limit,
            early: self.early,
            store_wait: self.store_wait,
            observer: self.observer,
            recovery_observer: self.recovery_observer,
            synchronizers: Synchronizers::default(),
            sequence: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            deciding: Gauge::new(),
        });
        recovery::pass(&inner).await;
        let mut stores: BTreeMap<&StoreId, &str> = BTreeMap::new();
        for (name, registered) in &inner.resources {
            let Some(store) = registered.known_identity() else { continue };
            if let Some(other) = stores.insert(store, name) {
                return Err(BuildError::SameStore { names: [other.to_owned(), name.clone()], store: store.clone() });
            }
        }
        recovery::start(&inner).map_err(|_| BuildError::NoRuntime)?;
        Ok(TransactionManager { inner })
    }
}

/// Why a manager could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// Two resources have the same name.
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Two names stand for one store.
    SameStore {
        /// The names.
        names: [String; 2],
        /// The store's identity.
        store: StoreId,
    },
    /// There is no tokio runtime to run recovery.
    NoRuntime,
    /// The log is, or was, another manager's; a clone of it is the same log.
    LogInUse,
    /// The log can't record what [early acknowledgement](Builder::early_acknowledgement) needs.
    NoEarlyAcknowledgement,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::DuplicateName { name } => {
                write!(f, "two resources are named {name:?}; give each a name of its own, and keep it over restarts")
            }
            BuildError::SameStore { names: [one, other], store } => {
                write!(f, "{one:?} and {other:?} are the same store, {store}; register it once")
            }
            BuildError::LogInUse => f.write_str(
                "the decision log is or was another manager's: clone that manager to share it, or open the log again to begin anew",
            ),
            BuildError::NoEarlyAcknowledgement => f.write_str(
                "this decision log records no aborts, which early acknowledgement needs: use a log that one process owns (`FileLog`), or leave the option out",
            ),
            BuildError::NoRuntime => f.write_str("there is no tokio runtime to run recovery; build from within one, or with `thread::Background::build`"),
        }
    }
}

impl std::error::Error for BuildError {}

/// Begins transactions over registered stores, commits them in all or in none, and recovers them. Cheap to clone.
///
/// When the last clone and the last transaction are dropped, its background work ends and the log is given up;
/// [`shutdown`](Self::shutdown) does it in order.
#[derive(Clone)]
pub struct TransactionManager {
    pub(crate) inner: Arc<Inner>,
}

impl fmt::Debug for TransactionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionManager").field("owner", &self.inner.owner).finish_non_exhaustive()
    }
}

impl TransactionManager {
    /// A builder over the decision log that this process owns.
    pub fn builder(log: impl DecisionLog) -> Builder {
        Builder {
            env: TokioEnv::shared(),
            log: Arc::new(log),
            resources: Vec::new(),
            phase_two_wait: Duration::from_secs(5),
            time_limit: None,
            early: false,
            store_wait: Duration::from_secs(10),
            recovery_interval: Duration::from_secs(60),
            remember_outcomes: 65_536,
            observer: None,
            recovery_observer: None,
        }
    }

    /// Begins a transaction. Costs next to nothing until something joins.
    ///
    /// # Panics
    ///
    /// After 10^15 - 1 transactions of one incarnation; restart the process within 31 years at a million a second.
    pub fn begin(&self) -> Transaction {
        self.begin_with(Options::default())
    }

    /// The same with options.
    ///
    /// # Panics
    ///
    /// As [`begin`](Self::begin).
    pub fn begin_with(&self, options: Options) -> Transaction {
        let transaction = self.begin_unannounced(options, Home::Runtime);
        transaction.announce();
        transaction
    }

    /// The same, for who tells the synchronizers later.
    pub(crate) fn begin_unannounced(&self, options: Options, home: Home) -> Transaction {
        Transaction::new(self.inner.clone(), self.inner.next_transaction(), options, home)
    }

    /// Runs work in a transaction and commits it. A conflict in the work, in prepare or in commit repeats it, after a wait that
    /// grows, at most `attempts` times in all (at least once). An unknown outcome is never repeated.
    ///
    /// The work gets a handle: it can doom the transaction, but not end it. It is the [`current`](crate::current) transaction
    /// while it runs.
    ///
    /// Cancel safety: dropped during the work, the transaction is aborted; dropped during the commit, it is finished.
    ///
    /// # Errors
    ///
    /// [`RunError`]: the work's or the commit's.
    pub async fn run<T, F, Fut>(&self, attempts: u32, mut work: F) -> Result<T, RunError>
    where
        F: FnMut(Tx) -> Fut + Send,
        Fut: Future<Output = Result<T, BoxError>> + Send,
        T: Send,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let transaction = self.begin();
            let tx = transaction.handle();
            let failed = match scope(tx.clone(), work(tx)).await {
                Ok(value) => match transaction.commit().await {
                    Ok(_) => return Ok(value),
                    Err(source) if attempt < attempts && source.is_retryable() => None,
                    Err(source) => Some(RunError::Commit { attempts: attempt, source }),
                },
                Err(source) => {
                    let retry = attempt < attempts && transaction.is_retryable(&*source);
                    transaction.abort().await;
                    (!retry).then_some(RunError::Work { attempts: attempt, source })
                }
            };
            match failed {
                Some(error) => return Err(error),
                None => self.inner.env.sleep(self.inner.retry_wait(attempt)).await,
            }
        }
    }

    /// One pass of recovery over all stores, now; returns what it left in doubt.
    pub async fn recover(&self) -> Vec<InDoubt> {
        recovery::pass(&self.inner).await;
        self.in_doubt()
    }

    /// What the last pass of recovery left in doubt, and why.
    pub fn in_doubt(&self) -> Vec<InDoubt> {
        self.inner.recovery.in_doubt()
    }

    /// What can be said of a transaction's outcome, by its id: for a client that lost its connection, or a worker that found an old id.
    ///
    /// This process remembers how its last transactions ended ([`Builder::remember_outcomes`]) and what its recovery found. Of older ones, and
    /// of those of former runs, only records tell: of the log, and of the carriers that are registered. A transaction with a single writer
    /// leaves no record (unless [`Options::ask_single`] asked for one), nor does an aborted one in a log, so that after a restart
    /// [`NotKnown`](KnownOutcome::NotKnown) means neither. Nothing is guessed (rule 9), and nothing is written for an id that somebody made up.
    ///
    /// A record that was found is remembered, so that it is read once. The log and each store are asked by two at a time: who finds them busy for 250 ms is
    /// told [`Waiting::Decider`](crate::Waiting::Decider), so that those who ask can't take the connections that recovery needs (rule 14).
    ///
    /// Takes at most twice the builder's `store_wait`, and half a second. Dropping the future changes nothing.
    pub async fn outcome(&self, id: TransactionId) -> KnownOutcome {
        outcomes::outcome(&self.inner, id).await
    }

    /// Whether new work is taken, and what a person should look at.
    pub fn readiness(&self) -> Readiness {
        let doubts = self.inner.recovery.in_doubt();
        let mut unreachable: Vec<_> =
            doubts.iter().filter(|doubt| doubt.is_unreachable()).map(|doubt| doubt.resource.clone()).collect();
        unreachable.dedup();
        Readiness {
            closing: self.inner.is_closing(),
            log: self.inner.log.ready().err().map(|error| crate::error::chain(&*error)),
            in_doubt: doubts.iter().filter(|doubt| doubt.transaction.is_some()).count(),
            unreachable,
        }
    }

    /// Whose transactions these are: the log and its incarnation.
    pub fn owner(&self) -> Owner {
        self.inner.owner
    }

    /// Refuses new work, which is also a transaction's first join; waits until what has joined something has ended, stops recovery and gives the log up. Takes at most the
    /// deadline and a second more, also where a disk or a store hangs.
    ///
    /// So let what brings the work, such as a server, come to its own end before: it would meet refusals in the middle of what it does.
    ///
    /// # Errors
    ///
    /// [`Undrained`] when the deadline passed first. The log is given up all the same: what is not decided by then aborts, what is
    /// decided is finished by the next start, which with [early acknowledgement](crate::Builder::early_acknowledgement) also commits what it finds
    /// prepared in all of its participants. Only where a carrier's commit has not come back, or an early answer is just being given, the log stays locked until
    /// this process ends, since its next owner would presume that it can't commit any more.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), Undrained> {
        self.inner.closing.store(true, Ordering::Release);
        let expired = self.inner.env.sleep(deadline);
        tokio::select! {
            biased;
            () = self.inner.open.none() => {}
            () = expired => {}
        }
        self.inner.recovery.stop();
        let grace = self.inner.env.sleep(CLOSE_WAIT);
        let closing = async {
            self.inner.recovery.idle().await;
            self.inner.given_up.store(true, Ordering::Release);
            match self.inner.deciding.count() {
                0 => self.inner.log.close().await,
                carriers => {
                    tracing::warn!(carriers, "the log stays with this process: commits that decide are still out");
                }
            }
        };
        let closed = tokio::select! {
            biased;
            () = closing => true,
            () = grace => false,
        };
        // Whatever hangs: nothing is decided here any more.
        self.inner.given_up.store(true, Ordering::Release);
        match self.inner.open.count() {
            0 if closed => Ok(()),
            transactions => Err(Undrained { transactions, closed }),
        }
    }
}

/// Whether a manager takes new work, and what a person should look at: [`TransactionManager::readiness`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// A [shutdown](TransactionManager::shutdown) has begun: nothing new joins.
    pub closing: bool,
    /// Why the log takes no decisions now, with all sources; none where it does.
    pub log: Option<String>,
    /// What the last pass of recovery left in doubt, of transactions that it could name.
    pub in_doubt: usize,
    /// The names of resources that the last pass could not reach. They stop nobody else (rule 13).
    pub unreachable: Vec<String>,
}

impl Readiness {
    /// Whether new work is taken: a store that can't be reached does not change that, as others may work without it.
    pub fn is_ready(&self) -> bool {
        !self.closing && self.log.is_none()
    }
}

/// What a shutdown left behind at its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undrained {
    /// Transactions that had not ended.
    pub transactions: usize,
    /// Whether the log was closed; where it was not it closes when what hangs comes back, or with the process.
    pub closed: bool,
}

impl fmt::Display for Undrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Undrained { transactions, closed } = self;
        write!(
            f,
            "{transactions} transaction(s) had not ended at the deadline; the next start finishes what was decided"
        )?;
        if *closed { Ok(()) } else { f.write_str("; the decision log had not closed") }
    }
}

impl std::error::Error for Undrained {}
