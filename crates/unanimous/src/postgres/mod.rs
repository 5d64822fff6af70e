//! PostgreSQL databases as resources of a transaction.
//!
//! ```no_run
//! use unanimous::postgres::Postgres;
//! use unanimous::{DecisionLog, TransactionManager};
//!
//! # async fn example(log: impl DecisionLog) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let orders = Postgres::from_url("orders", "host=127.0.0.1 user=app dbname=orders")?;
//! let billing = Postgres::from_url("billing", "host=127.0.0.1 user=app dbname=billing")?;
//! let manager = TransactionManager::builder(log).resource(orders.clone()).resource(billing.clone()).build().await?;
//!
//! let tx = manager.begin();
//! tx.join(&orders).await?.execute("insert into orders (item) values ($1)", &[&"a lamp"]).await?;
//! tx.join(&billing).await?.execute("insert into invoices (item) values ($1)", &[&"a lamp"]).await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! A branch is prepared with `PREPARE TRANSACTION` and finished with `COMMIT PREPARED` or `ROLLBACK PREPARED`; alone it commits in one
//! phase. `max_prepared_transactions` must be set on the server. Servers from version 14 on.
//!
//! - The vote can't lie: a transaction that has failed, or that the work ended itself, is noticed in the same message that prepares it.
//! - A vote whose answer was lost is fenced: its session is ended before anything is concluded.
//! - A connection that may be inside a transaction never goes back to its pool.
//! - Recovery and phase two have connections of their own.
//!
//! # Connections
//!
//! A store made [from a connection string](Postgres::from_url) or [configuration](Postgres::builder) has a pool of its own. Its
//! sessions read only by default, so that `BEGIN` can travel with the first statement: joining costs no round trip. A session
//! is cleaned (settings, advisory locks, temporary objects) behind each transaction, without anybody waiting for it.
//!
//! `sslmode=require` in a string or configuration verifies the server's certificate, with the feature `postgres-rustls`: against the roots
//! that the machine trusts, or given ones (`PostgresBuilder::root_certificates`); without the feature it is an error. `prefer`, the default, uses
//! TLS where the server and the feature offer it, and verifies nothing, as with libpq.
//!
//! On a [pool of the application's](Postgres::new), and on [a client of its own](PostgresOptions::client), a join waits for three answers:
//! whether the connection is inside a transaction, where it leads, and `BEGIN`.
//!
//! Must not know the manager, the log, or any other adapter.

mod branch;
mod carrier;
mod control;
mod error;
mod foreign;
mod join;
#[cfg(feature = "http")]
mod keys;
mod log;
mod node;
mod options;
mod outbox;
mod rows;
mod schema;
mod session;
mod sql;
mod store;
mod survey;
mod tls;
mod writer;

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

pub use branch::PostgresBranch;
pub use control::Prepared;
/// The pool that a store can be made on.
pub use deadpool_postgres;
pub use error::PostgresError;
pub use foreign::ForeignBranch;
pub use join::JoinPostgres;
#[cfg(feature = "http")]
pub use keys::PostgresKeys;
pub use log::{PostgresLog, PostgresLogBuilder};
pub use options::{IsolationLevel, PostgresOptions};
pub use schema::schema_sql;
pub use survey::{Lock, NodeLog, Survey, Surveyed, Waiting};
/// The driver, whose client the application's work is given.
pub use tokio_postgres;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, Socket};
use unanimous_core::{
    BranchContext, BranchError, BranchId, Capability, DecisionRecord, Known, Owner, ResourceManager, StoreError,
    StoreId, TransactionId,
};

use self::carrier::Decisions;
use self::control::Finish;
use self::session::{ByConfig, ByPool, Connect, Guard, Session};
use self::store::{Source, Store};

/// A PostgreSQL database that takes part in transactions. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Postgres {
    store: Arc<Store>,
}

/// Where a store's connections come from.
#[derive(Clone)]
#[non_exhaustive]
pub enum Connections {
    /// A pool of the store's own, of connections made by this configuration.
    Config(Box<Config>),
    /// A pool that the application made. Recovery makes connections by its manager, outside of its size.
    Pool(deadpool_postgres::Pool),
}

impl From<Config> for Connections {
    fn from(config: Config) -> Self {
        Self::Config(Box::new(config))
    }
}

impl From<deadpool_postgres::Pool> for Connections {
    fn from(pool: deadpool_postgres::Pool) -> Self {
        Self::Pool(pool)
    }
}

/// Makes connections by a configuration, which are guarded where that is asked for.
type MakeConnect = Box<dyn FnOnce(Config, Option<Guard>) -> Arc<dyn Connect> + Send>;

/// Makes a [`Postgres`].
#[must_use = "nothing is made before `build`"]
pub struct PostgresBuilder {
    name: String,
    connections: Connections,
    connect: MakeConnect,
    guard: bool,
    max_connections: usize,
    lock_timeout: Duration,
    vote_timeout: Duration,
    pool_timeout: Duration,
    carrier: bool,
    horizon: Duration,
}

impl PostgresBuilder {
    /// Lets this database carry decisions: its branch does not prepare, but commits its work last and with a row of the decision, after
    /// the others have prepared. That is one forced write less than a log, and the server needs no `max_prepared_transactions`. A
    /// transaction can have one such branch.
    ///
    /// The rows are in the schema `unanimous`, which is made when it is needed and the role may; else by what
    /// [`schema_sql`] gives. Who drops it drops decisions. A promotion may have lost some: branches that wait for a decision
    /// from before one, which has no row, are held.
    ///
    /// The store may be named a carrier or not from one start to the next: its rows are asked for in both cases.
    pub fn carrier(self) -> Self {
        Self { carrier: true, ..self }
    }

    /// How long a carrier's decision rows are kept after every branch was confirmed; 24 h by default. A failover or a restored store can
    /// bring a branch back as prepared; beyond the horizon it is held.
    pub fn horizon(self, horizon: Duration) -> Self {
        Self { horizon, ..self }
    }

    /// How many connections branches may have at once, where the pool is the store's own; 16 by default. Recovery's are beside them.
    pub fn max_connections(self, most: usize) -> Self {
        Self { max_connections: most.max(1), ..self }
    }

    /// How long a statement waits for a lock where the join does not say; 5 s by default. A deadlock over two databases is visible to
    /// neither, so that there is always such a bound.
    pub fn lock_timeout(self, timeout: Duration) -> Self {
        Self { lock_timeout: timeout, ..self }
    }

    /// How long flush, vote and commit each wait for the server; 60 s by default. `statement_timeout` does not bound what a vote does
    /// (deferred triggers, the wait for a replica), so this does, here: a vote that takes longer is a no, and fenced.
    pub fn vote_timeout(self, timeout: Duration) -> Self {
        Self { vote_timeout: timeout, ..self }
    }

    /// How long a join waits for a connection of the pool; 30 s by default.
    pub fn pool_timeout(self, timeout: Duration) -> Self {
        Self { pool_timeout: timeout, ..self }
    }

    /// Connects with this TLS connector of the application's, as the configuration's `sslmode` says. Counts where the pool is the store's own.
    pub fn tls<T>(self, tls: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Self { connect: Box::new(|config, guard| Arc::new(ByConfig::new(config, tls, guard))), ..self }
    }

    /// Trusts servers whose certificates lead to one of these root certificates (PEM), instead of those that the machine trusts. They
    /// count with `sslmode=require`, which is made the configuration's.
    ///
    /// # Errors
    ///
    /// When there is none among them, or one can't be used.
    #[cfg(feature = "postgres-rustls")]
    pub fn root_certificates(self, pem: &[u8]) -> Result<Self, PostgresError> {
        Ok(Self { connect: Box::new(tls::by_roots(pem)?), ..self })
    }

    /// The configuration leads to a connection pooler (PgBouncer) that shares sessions among clients, by the transaction or by the
    /// connection: nothing is left set on a session, and each join waits for its `BEGIN`. Without it such a pooler refuses the connection, as
    /// it takes no `options`. A pooler that shares sessions by the statement can't be used.
    pub fn pooler(self) -> Self {
        Self { guard: false, ..self }
    }

    /// Makes the store. Nothing is connected yet: a server that is down stops nobody.
    pub fn build(self) -> Postgres {
        let Self {
            name,
            connections,
            connect,
            guard,
            max_connections,
            lock_timeout,
            vote_timeout,
            pool_timeout,
            carrier,
            horizon,
        } = self;
        let (source, connect) = match connections {
            Connections::Config(config) => {
                let connect = connect(*config, guard.then_some(Guard { lock_timeout }));
                (Source::Own(store::pool(connect.clone(), max_connections)), connect)
            }
            Connections::Pool(pool) => {
                let connect: Arc<dyn Connect> = Arc::new(ByPool(pool.clone()));
                (Source::Pool(pool), connect)
            }
        };
        let capability = if carrier { Capability::Carrier } else { Capability::TwoPhase };
        let store = Store::new(name, capability, source, connect);
        let decisions = Decisions::new(horizon);
        let store = Store { decisions, lock_timeout, vote_timeout, pool_timeout, max_connections, ..store };
        Postgres { store: Arc::new(store) }
    }
}

impl fmt::Debug for PostgresBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Postgres {
    /// The database behind a pool that the application made, under the name that the manager knows it by: stable over restarts.
    pub fn new(name: impl Into<String>, pool: deadpool_postgres::Pool) -> Self {
        Self::builder(name, pool).build()
    }

    /// The database that a connection string names, in either of PostgreSQL's forms (`host=... dbname=...`, `postgresql://...`), with
    /// a pool of the store's own.
    ///
    /// # Errors
    ///
    /// When the string can't be understood, or asks for TLS and there is none. Nothing is connected yet.
    pub fn from_url(name: impl Into<String>, url: &str) -> Result<Self, PostgresError> {
        let config = Config::from_str(url).map_err(PostgresError::Config)?;
        let connect = tls::by_config(config.clone(), Some(Guard::DEFAULT))?;
        let builder = Self::builder(name, config);
        Ok(PostgresBuilder { connect: Box::new(|_, _| connect), ..builder }.build())
    }

    /// A builder for other than the defaults.
    pub fn builder(name: impl Into<String>, connections: impl Into<Connections>) -> PostgresBuilder {
        PostgresBuilder {
            name: name.into(),
            connections: connections.into(),
            connect: Box::new(tls::by_config_or_never),
            guard: true,
            max_connections: 16,
            lock_timeout: Guard::DEFAULT.lock_timeout,
            vote_timeout: Duration::from_secs(60),
            pool_timeout: Duration::from_secs(30),
            carrier: false,
            horizon: store::HORIZON,
        }
    }

    /// Whether the store can be used now: connects, and checks that the server is a primary, can prepare, is new enough and is the
    /// store that it was; that a carrier's tables are there, or can be made. A manager does the same when it is built, and goes on without a store that fails.
    ///
    /// # Errors
    ///
    /// What is wrong, and what to set.
    pub async fn check(&self) -> Result<(), PostgresError> {
        self.store.control.identity().await?;
        match self.store.capability {
            Capability::Carrier => schema::ensure_decisions(&self.store.control).await,
            _ => Ok(()),
        }
    }

    /// The branches that are prepared in this database, whoever's they are.
    ///
    /// # Errors
    ///
    /// When the list would not be authoritative: unreachable, a standby, another store.
    pub async fn prepared(&self) -> Result<Vec<Prepared>, PostgresError> {
        self.store.control.list().await
    }

    /// What an operator wants to know of the transactions that are prepared in this database: whose they are, what they hold, whom they
    /// block. Those of other programs too.
    ///
    /// # Errors
    ///
    /// When the list would not be authoritative: unreachable, a standby, another store.
    pub async fn survey(&self) -> Result<Survey, PostgresError> {
        survey::survey(&self.store.control).await
    }

    /// What this database's decision rows say of a transaction, for people: [`Known::Commit`] or [`Known::Abort`]. Only a look: it forces and
    /// fences nothing, so that nothing follows from a row that is not there. Recovery asks [`decision`](ResourceManager::decision).
    ///
    /// # Errors
    ///
    /// When the rows can't be read.
    pub async fn decision_row(&self, transaction: TransactionId) -> Result<Option<Known>, PostgresError> {
        survey::decision_row(&self.store.control, transaction).await
    }

    /// The transactions of a log that this database's commits decided and that are not noted as finished; a look, as
    /// [`decision_row`](Self::decision_row). Rows that can't be read are left out.
    ///
    /// # Errors
    ///
    /// When the rows can't be read.
    pub async fn unfinished_rows(&self, log: unanimous_core::LogId) -> Result<Vec<DecisionRecord>, PostgresError> {
        survey::unfinished_rows(&self.store.control, log).await
    }

    /// The nodes whose decision logs ([`PostgresLog`]) are in this database, by name; none where there never was one. Only a look.
    ///
    /// # Errors
    ///
    /// When the rows can't be read.
    pub async fn nodes(&self) -> Result<Vec<NodeLog>, PostgresError> {
        survey::nodes(&self.store.control).await
    }

    /// A connection to this database beside all transactions, made as the store's own are, TLS included. It reads only by default, and is
    /// closed when it is dropped.
    ///
    /// # Errors
    ///
    /// When the server can't be reached, or is not the store's primary.
    pub async fn reader(&self) -> Result<Reader, PostgresError> {
        self.store.control.session().await.map(|session| Reader { session })
    }

    /// Closes the connections that are idle. Branches that are open go on to their end; decisions that are finished are still marked.
    pub fn close(&self) {
        self.store.flush_soon();
        self.store.close();
    }
}

/// A connection that reads beside all transactions: [`Postgres::reader`]. Dereferences to the driver's client.
#[derive(Debug)]
pub struct Reader {
    session: Session,
}

impl Deref for Reader {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        self.session.client()
    }
}

impl ResourceManager for Postgres {
    type Branch = PostgresBranch;
    type Options = PostgresOptions;

    fn name(&self) -> &str {
        &self.store.name
    }

    fn capability(&self) -> Capability {
        self.store.capability
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        self.store.control.identity().await.map_err(StoreError::new)
    }

    /// # Cancel safety
    ///
    /// A future that is dropped gives up its place in the queue, or closes the connection that it had.
    async fn begin(&self, context: &BranchContext, options: PostgresOptions) -> Result<PostgresBranch, BranchError> {
        self.store.begin(context.transaction, options).await.map_err(PostgresError::into_branch)
    }

    /// Delivers then what the outbox has (what can be seen there is committed), within 2 s; the rest in the next pass.
    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        // First the list: a listed branch may itself hold what the delivery waits for.
        let prepared = self.store.control.list().await.map_err(StoreError::new)?;
        if let Err(error) = outbox::deliver_all(&self.store.control).await {
            tracing::warn!(
                store = self.store.name,
                error = &error as &(dyn std::error::Error + 'static),
                "notifications of committed transactions were not delivered; they are tried again"
            );
        }
        Ok(prepared.into_iter().map(|prepared| prepared.branch).collect())
    }

    /// A prepare is listed while it waits for synchronous replicas (PostgreSQL's `EndPrepare`).
    fn durably_in_doubt(&self) -> Option<impl Future<Output = Result<Vec<BranchId>, StoreError>> + Send> {
        Some(async {
            let prepared = self.store.control.list_durably().await.map_err(StoreError::new)?;
            Ok(prepared.into_iter().map(|prepared| prepared.branch).collect())
        })
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        let control = &self.store.control;
        control.finish(id, Finish::Commit).await.map_err(PostgresError::into_branch)?;
        outbox::deliver(control, id).await.map_err(PostgresError::into_branch)
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        self.store.control.finish(id, Finish::Rollback).await.map(drop).map_err(PostgresError::into_branch)
    }

    /// Waits for a carrier that is about to commit, at most for the lock timeout.
    async fn decision(&self, transaction: TransactionId, owner: Owner) -> Result<Known, StoreError> {
        self.store.decision(transaction, owner).await.map_err(StoreError::new)
    }

    async fn decided(&self, transaction: TransactionId, _owner: Owner) -> Result<Option<Known>, StoreError> {
        self.store.decided(transaction).await.map_err(StoreError::new)
    }

    async fn unfinished(&self, owner: Owner) -> Result<Vec<DecisionRecord>, StoreError> {
        self.store.unfinished(owner).await.map_err(StoreError::new)
    }

    /// Marked in the background, with others.
    fn forget(&self, transaction: TransactionId) {
        self.store.forget(transaction);
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("name", &self.store.name).finish_non_exhaustive()
    }
}
