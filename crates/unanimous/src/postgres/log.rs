//! [`PostgresLog`]: the decision log of one process among several on several machines, where a local file won't do.
//!
//! Must not know branches, stores, or how a transaction is driven.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, Socket};
use unanimous_core::{
    BoxError, DecideError, Decider, DecisionLog, DecisionRecord, HoldReason, Known, Owner, StoreError, TransactionId,
};

use super::carrier::{decided, question, unfinished};
use super::control::Control;
use super::error::PostgresError;
use super::node::{self, Opening};
use super::rows::By;
use super::session::{ByConfig, Connect};
use super::tls;
use super::writer::{self, Shared, because};
use crate::env::TokioEnv;
use crate::log::{Answer, LogError, answered};

/// A decision log in a PostgreSQL database, for the processes of several machines: each is a node, with a name of its own that it keeps
/// over restarts, and has a log of its own there.
///
/// ```no_run
/// use unanimous::TransactionManager;
/// use unanimous::postgres::PostgresLog;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let log = PostgresLog::open("host=db.example user=decisions dbname=decisions", "web-1").await?;
/// let manager = TransactionManager::builder(log).build().await?;
/// # Ok(())
/// # }
/// ```
///
/// A process recovers what its own node left. What a node left that does not come back is recovered by another process with
/// [`take_over`](Self::take_over).
///
/// - One process at a time decides for a node: a second one is refused at its opening, and a decision is written only while the node's
///   row still has the counter and nonce of who writes it. A process that was taken over, and lives, is refused from then on.
/// - All decisions that wait are written in one transaction. A decision is answered when its commit was confirmed by the server, and by
///   all replicas that must. Where an answer is lost the log connects again and looks; it never guesses. While the server
///   can't be reached, decisions that were sent wait for it, and those that were not are refused.
/// - The connection must lead to the server itself: a pooler that shares sessions refuses it.
/// - The tables are in the schema `unanimous`; see [`schema_sql`](super::schema_sql). Whoever restores them from a backup, or promotes an
///   asynchronous replica, loses decisions: nothing is presumed of earlier runs then.
///
/// Cheap to clone. When the last clone is dropped the log is closed in the background.
#[derive(Clone)]
pub struct PostgresLog {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    taken: AtomicBool,
    /// Of the process that opened it.
    process: u32,
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.shared.close());
    }
}

/// Opens a [`PostgresLog`].
#[must_use = "nothing is opened before `open` or `take_over`"]
pub struct PostgresLogBuilder {
    node: String,
    connect: Box<dyn FnOnce() -> Arc<dyn Connect> + Send>,
    config: Config,
    horizon: Duration,
    lock_wait: Duration,
    lock_timeout: Duration,
}

impl PostgresLogBuilder {
    /// How long a decision is kept after every branch was confirmed; 7 days by default. A failover or a restored store can bring a branch
    /// back as prepared; beyond the horizon it is held.
    pub fn horizon(self, horizon: Duration) -> Self {
        Self { horizon, ..self }
    }

    /// How long to wait for another process to let go before the node counts as held; 2 s by default, so that a start may overlap with the
    /// end of the process before it.
    pub fn lock_wait(self, wait: Duration) -> Self {
        Self { lock_wait: wait, ..self }
    }

    /// Connects with this TLS connector, as the configuration's `sslmode` says.
    pub fn tls<T>(self, tls: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let config = self.config.clone();
        Self { connect: Box::new(|| Arc::new(ByConfig::new(config, tls, true))), ..self }
    }

    /// As [`PostgresBuilder::root_certificates`](super::PostgresBuilder::root_certificates).
    ///
    /// # Errors
    ///
    /// As there.
    #[cfg(feature = "postgres-rustls")]
    pub fn root_certificates(self, pem: &[u8]) -> Result<Self, PostgresError> {
        let (config, connect) = (self.config.clone(), tls::by_roots(pem)?);
        Ok(Self { connect: Box::new(|| connect(config, true)), ..self })
    }

    /// Opens the node's log; it is made where the node is new.
    ///
    /// Cancel safety: dropping the future gives the node up; a new run may have begun, which is harmless.
    ///
    /// # Errors
    ///
    /// [`PostgresError::NodeHeld`] while another process has it. When the server can't be reached, is a standby, or the tables can't
    /// be made or are not for this role.
    pub async fn open(self) -> Result<PostgresLog, PostgresError> {
        let wait = self.lock_wait;
        self.begin(Opening::Own(wait)).await
    }

    /// Opens the log of a node whose process does not come back, to recover what it left: a manager that is built over it finishes that.
    ///
    /// Fences first: from then on the process that had the log, should it live, can't decide. What it has written by then is found; what it
    /// has not is aborted.
    ///
    /// Cancel safety: as [`open`](Self::open); the process that had the log is fenced or not.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), but that nobody holds it. A node that there never was is made: check the name.
    pub async fn take_over(self) -> Result<PostgresLog, PostgresError> {
        self.begin(Opening::TakeOver).await
    }

    async fn begin(self, opening: Opening) -> Result<PostgresLog, PostgresError> {
        let env = TokioEnv::shared();
        let control = Control::new((self.connect)(), true);
        let (node, session) = node::open(&control, &self.node, opening, self.lock_timeout, &env).await?;
        let shared = Arc::new(Shared::new(control, node, self.horizon, self.lock_timeout, env));
        drop(tokio::spawn(writer::run(shared.clone(), session)));
        let handle = Handle { shared, taken: AtomicBool::new(false), process: std::process::id() };
        Ok(PostgresLog { handle: Arc::new(handle) })
    }
}

impl fmt::Debug for PostgresLogBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLogBuilder").field("node", &self.node).finish_non_exhaustive()
    }
}

impl PostgresLog {
    /// Opens the log of a node of this name, in the database that a connection string names; TLS as in
    /// [`Postgres::from_url`](super::Postgres::from_url). As [`PostgresLogBuilder::open`].
    ///
    /// # Errors
    ///
    /// As there, and when the string can't be understood.
    pub async fn open(url: &str, node: impl Into<String>) -> Result<Self, PostgresError> {
        Self::builder(Config::from_str(url).map_err(PostgresError::Config)?, node).open().await
    }

    /// Takes the log of a node over: see [`PostgresLogBuilder::take_over`].
    ///
    /// # Errors
    ///
    /// As there, and when the string can't be understood.
    pub async fn take_over(url: &str, node: impl Into<String>) -> Result<Self, PostgresError> {
        Self::builder(Config::from_str(url).map_err(PostgresError::Config)?, node).take_over().await
    }

    /// A builder for other than the defaults.
    pub fn builder(config: Config, node: impl Into<String>) -> PostgresLogBuilder {
        let plain = config.clone();
        PostgresLogBuilder {
            node: node.into(),
            connect: Box::new(|| tls::by_config_or_never(plain, true)),
            config,
            horizon: Duration::from_secs(7 * 24 * 60 * 60),
            lock_wait: Duration::from_secs(2),
            lock_timeout: Duration::from_secs(5),
        }
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.shared().node.name
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// A child that was forked has its parent's run, and must not decide in it.
    fn own(&self) -> Result<(), LogError> {
        if self.handle.process == std::process::id() { Ok(()) } else { Err(because(PostgresError::Forked)) }
    }

    fn usable(&self) -> Result<(), StoreError> {
        self.own().and_then(|()| self.shared().usable()).map_err(StoreError::new)
    }

    /// Waits while a decision of this transaction is under way here: however it ends, the rows say it.
    async fn settled(&self, transaction: TransactionId) -> Result<&Shared, StoreError> {
        loop {
            self.usable()?;
            let Some(ended) = self.shared().wait(transaction) else { return Ok(self.shared()) };
            let _ = ended.await;
        }
    }
}

impl fmt::Debug for PostgresLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.shared().node;
        f.debug_struct("PostgresLog").field("node", &node.name).field("owner", &node.owner).finish_non_exhaustive()
    }
}

impl Decider for PostgresLog {
    /// A transaction without a decision is fenced by an Abort row, under the node's row: what another process could still write for it, it
    /// can't any more.
    async fn lookup(&self, transaction: TransactionId) -> Result<Known, StoreError> {
        let shared = self.settled(transaction).await?;
        let Owner { log, incarnation } = shared.node.owner;
        let its = transaction.incarnation;
        if transaction.log != log {
            return Ok(Known::Hold(HoldReason::ForeignLog));
        }
        if its.counter > incarnation.counter || (its.counter == incarnation.counter && its.nonce != incarnation.nonce) {
            return Ok(Known::Hold(HoldReason::ForeignIncarnation));
        }
        let now = shared.env.wall_clock();
        let answer = question(&shared.control, By::Log, transaction, now, shared.lock_timeout, &shared.guard).await;
        let answer = answer.map_err(StoreError::new)?;
        if !answer.guarded {
            let why = because(PostgresError::TakenOver { node: shared.node.name.clone() });
            shared.end(&why);
            if !matches!(answer.known, Known::Commit(_) | Known::Abort) {
                return Err(StoreError::new(why));
            }
        }
        Ok(answer.known)
    }

    /// Of any node's transaction whose log is in this database.
    async fn decided(&self, transaction: TransactionId) -> Result<Option<Known>, StoreError> {
        let shared = self.settled(transaction).await?;
        decided(&shared.control, transaction, shared.lock_timeout).await.map_err(StoreError::new)
    }

    async fn unfinished(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        self.usable()?;
        let shared = self.shared();
        let listed = unfinished(&shared.control, By::Log, shared.node.owner, shared.lock_timeout).await;
        let mut listed = listed.map_err(StoreError::new)?;
        listed.retain(|record| !shared.is_finished(record.transaction));
        Ok(listed)
    }

    /// Marked in the background, with others.
    fn forget(&self, transaction: TransactionId) {
        self.shared().forget(transaction);
    }
}

impl DecisionLog for PostgresLog {
    fn owner(&self) -> Owner {
        self.shared().node.owner
    }

    fn take(&self) -> bool {
        !self.handle.taken.swap(true, Ordering::AcqRel)
    }

    /// Refuses while the server can't be reached, and after a take-over. (That decisions fill a disk is the server's to say.)
    fn ready(&self) -> Result<(), BoxError> {
        Ok(self.own().and_then(|()| self.shared().ready())?)
    }

    /// Queued at the call, not at the first poll.
    fn decide(&self, record: DecisionRecord) -> impl Future<Output = Result<(), DecideError>> + Send {
        let queued = match self.own() {
            Ok(()) => self.shared().queue(record),
            Err(forked) => Err(Answer::Refused(forked)),
        };
        answered(queued)
    }

    /// Begun at the call, not at the first poll.
    fn close(&self) -> impl Future<Output = ()> + Send {
        let closed = self.shared().close();
        async move {
            // A sender that is gone has given the log up too.
            let _ = closed.await;
        }
    }
}
