//! The store behind [`Postgres`](super::Postgres): where its branches' connections come from, and what they share.
//!
//! Must not know what is done with a branch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool::managed;
use futures_util::TryFutureExt;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use unanimous_core::{Branch, Capability, TransactionId};

use super::branch::{BEGINNING, Backend, Begun, Link, PostgresBranch};
use super::carrier::Decisions;
use super::control::Control;
use super::error::PostgresError;
use super::options::PostgresOptions;
use super::session::{Connect, Guard, Sessions, WHO, Who, within};
use super::{outbox, schema};
use crate::sync::lock;

/// Where connections for branches come from.
pub(super) enum Source {
    Own(managed::Pool<Sessions>),
    Pool(deadpool_postgres::Pool),
}

pub(super) struct Store {
    pub(super) name: String,
    pub(super) capability: Capability,
    pub(super) source: Source,
    pub(super) control: Control,
    pub(super) decisions: Decisions,
    pub(super) lock_timeout: Duration,
    pub(super) vote_timeout: Duration,
    pub(super) pool_timeout: Duration,
    /// The outbox is known to be there.
    pub(super) outbox: tokio::sync::OnceCell<()>,
    /// How many connections a pool may have.
    pub(super) max_connections: usize,
    /// Of connections that lead here by a connection string, which is the key.
    pub(super) urls: Mutex<BTreeMap<String, managed::Pool<Sessions>>>,
}

/// How long a carrier keeps its rows where nothing else is said.
pub(super) const HORIZON: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection string, and the pool that is kept for it.
#[derive(Clone)]
pub(super) struct Url {
    pub(super) text: Arc<str>,
    pub(super) pool: managed::Pool<Sessions>,
}

/// A pool of sessions that are made so.
pub(super) fn pool(connect: Arc<dyn Connect>, most: usize) -> managed::Pool<Sessions> {
    managed::Pool::builder(Sessions(connect)).max_size(most).build().expect("a pool without timeouts needs no runtime")
}

impl Store {
    pub(super) fn new(name: String, capability: Capability, source: Source, connect: Arc<dyn Connect>) -> Self {
        Self {
            name,
            capability,
            source,
            control: Control::new(connect, capability == Capability::Carrier),
            lock_timeout: Guard::DEFAULT.lock_timeout,
            vote_timeout: Duration::from_secs(60),
            pool_timeout: Duration::from_secs(30),
            outbox: tokio::sync::OnceCell::new(),
            decisions: Decisions::new(HORIZON),
            max_connections: 16,
            urls: Mutex::default(),
        }
    }

    pub(super) async fn begin(
        self: &Arc<Self>,
        transaction: TransactionId,
        options: PostgresOptions,
    ) -> Result<PostgresBranch, PostgresError> {
        if self.capability == Capability::Carrier && !options.read_only {
            self.register(transaction.owner()).await?;
        }
        let begin = |session| options.begin(transaction, self.lock_timeout, session);
        let work = Begun {
            transaction,
            read_only: options.read_only,
            writes: options.writes,
            notifications: options.notifications()?,
            url: options.url.as_ref().map(|url| url.text.clone()),
            close: options.close,
        };
        if let Some(client) = &options.client {
            return self.begin_on(Link::Client(client.clone()), work, &begin(None)).await;
        }
        match (&options.url, &self.source) {
            (Some(Url { pool, .. }), _) | (None, Source::Own(pool)) => {
                let session = self.take_from(pool.get()).await?;
                if let Err(error) = self.control.check(&session.who, session.warnings.is_some()) {
                    // It leads elsewhere, or its server was a standby when it was made.
                    drop(managed::Object::take(session));
                    return Err(error);
                }
                if !session.who.guarded {
                    return self.begin_on(Link::Own(session), work, &begin(None)).await;
                }
                let begun = session.send_begin(BEGINNING, begin(Some(session.who.lock_timeout)));
                let backend = Backend { pid: session.who.pid, start: session.who.start.clone() };
                let link = Link::Own(session);
                Ok(PostgresBranch::new(link, Some(backend), self.clone(), work, begun))
            }
            (None, Source::Pool(pool)) => {
                let object = self.take_from(pool.get()).await?;
                self.begin_on(Link::Pool(object), work, &begin(None)).await
            }
        }
    }

    /// The store of one volatile branch, over these connections.
    pub(super) fn volatile(name: &str, connect: Arc<dyn Connect>, pool: Option<managed::Pool<Sessions>>) -> Self {
        let pool = pool.unwrap_or_else(|| self::pool(connect.clone(), 1));
        Self::new(name.to_owned(), Capability::Volatile, Source::Own(pool), connect)
    }

    /// The pool that is kept for a connection string.
    pub(super) fn url_pool(&self, url: &str) -> Option<managed::Pool<Sessions>> {
        lock(&self.urls).get(url).cloned()
    }

    /// Keeps a pool for a connection string, where there is none yet; gives the one that is kept.
    pub(super) fn keep_url_pool(&self, url: &str, pool: managed::Pool<Sessions>) -> managed::Pool<Sessions> {
        let pool = lock(&self.urls).entry(url.to_owned()).or_insert(pool).clone();
        pool.resize(self.max_connections);
        pool
    }

    /// Closes what is idle.
    pub(super) fn close(&self) {
        if let Source::Own(pool) = &self.source {
            pool.close();
        }
        for pool in lock(&self.urls).values() {
            pool.close();
        }
        self.control.close();
    }

    /// The outbox is there, or was made.
    pub(super) async fn ensure_outbox(&self) -> Result<(), PostgresError> {
        self.outbox.get_or_try_init(|| schema::ensure(&self.control, outbox::TABLE)).await.map(drop)
    }

    async fn take_from<T, E: Into<PostgresError> + std::fmt::Display>(
        &self,
        get: impl Future<Output = Result<T, managed::PoolError<E>>>,
    ) -> Result<T, PostgresError> {
        match tokio::time::timeout(self.pool_timeout, get).await {
            Ok(Ok(object)) => Ok(object),
            Ok(Err(managed::PoolError::Backend(error))) => Err(error.into()),
            Ok(Err(error)) => Err(PostgresError::Pool(error.to_string())),
            Err(_elapsed) => Err(PostgresError::Pool(format!("none was free within {:?}", self.pool_timeout))),
        }
    }

    /// On a session that others use as well, or that may write outside of transactions: the first statement must not be sent before
    /// it is inside of its own.
    async fn begin_on(self: &Arc<Self>, link: Link, work: Begun, begin: &str) -> Result<PostgresBranch, PostgresError> {
        let warnings = matches!(link, Link::Own(_));
        // It must not be ended as the branch's before it is known to be outside of somebody's transaction.
        let link = match within("probing the connection", self.vote_timeout, outside(link.client())).await {
            Ok(()) => link,
            Err(error) => {
                match link {
                    Link::Own(session) => drop(managed::Object::take(session)),
                    Link::Pool(object) => drop(deadpool_postgres::Object::take(object)),
                    Link::Client(_) => {}
                }
                return Err(error);
            }
        };
        // From here on a dropped future drops the branch, which closes the session.
        let branch = PostgresBranch::new(link, None, self.clone(), work, None);
        // Asked within: behind a pooler another session may serve each transaction.
        let sql = format!("{begin}; {WHO}");
        let begun =
            within(BEGINNING, self.vote_timeout, branch.simple_query(&sql).map_err(PostgresError::of(BEGINNING)));
        let who = Who::parse(&begun.await?)?;
        branch.set_backend(Backend { pid: who.pid, start: who.start.clone() });
        match self.control.check(&who, warnings) {
            Ok(()) => Ok(branch),
            Err(error) => {
                // An application's own client is its own again.
                let _ = branch.rollback().await;
                Err(error)
            }
        }
    }
}

/// Whether a connection is outside of any transaction: there a savepoint fails (25P01), and nothing tells otherwise.
async fn outside(client: &Client) -> Result<(), PostgresError> {
    match client.batch_execute("SAVEPOINT unanimous_probe").await {
        Ok(()) => {
            let release = client.batch_execute("RELEASE SAVEPOINT unanimous_probe").await;
            release.map_err(PostgresError::of("probing the connection"))?;
            Err(PostgresError::InTransaction)
        }
        Err(error) if error.code() == Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION) => Ok(()),
        Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => Err(PostgresError::InTransaction),
        Err(error) => Err(PostgresError::of("probing the connection")(error)),
    }
}
