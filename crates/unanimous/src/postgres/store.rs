//! The store behind [`Postgres`](super::Postgres): where its branches' connections come from, and what they share.
//!
//! Must not know what is done with a branch.

use std::sync::Arc;
use std::time::Duration;

use deadpool::managed;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use unanimous_core::{Capability, TransactionId};

use super::branch::{Link, PostgresBranch};
use super::control::Control;
use super::error::PostgresError;
use super::options::PostgresOptions;
use super::session::{Sessions, WHO, Who};

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
    pub(super) lock_timeout: Duration,
    pub(super) vote_timeout: Duration,
    pub(super) pool_timeout: Duration,
}

impl Store {
    pub(super) async fn begin(
        self: &Arc<Self>,
        transaction: TransactionId,
        options: PostgresOptions,
    ) -> Result<PostgresBranch, PostgresError> {
        let begin = options.begin(transaction, self.lock_timeout);
        if let Some(client) = options.client {
            return self.begin_on_client(transaction, options.read_only, client, &begin).await;
        }
        match &self.source {
            Source::Own(pool) => {
                let session = self.from_pool(pool.get()).await?;
                self.control.check(&session.who, session.warnings.is_some())?;
                let begun = session.send(begin);
                Ok(PostgresBranch::new(Link::Own(session), self.clone(), transaction, options.read_only, begun))
            }
            Source::Pool(pool) => {
                let object = self.from_pool(pool.get()).await?;
                self.begin_on_object(transaction, options.read_only, object, &begin).await
            }
        }
    }

    async fn from_pool<T, E: Into<PostgresError> + std::fmt::Display>(
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

    /// Nothing stands in front of the first statement on such a connection but its own transaction: it is waited for.
    async fn begin_on_object(
        self: &Arc<Self>,
        transaction: TransactionId,
        read_only: bool,
        object: deadpool_postgres::Object,
        begin: &str,
    ) -> Result<PostgresBranch, PostgresError> {
        // Taken out of the pool until it is known to be clean.
        let who = match outside(&object).await {
            Ok(()) => who(&object).await,
            Err(error) => Err(error),
        };
        let who = match who.and_then(|who| self.control.check(&who, false).map(|()| who)) {
            Ok(who) => who,
            Err(error) => {
                drop(deadpool_postgres::Object::take(object));
                return Err(error);
            }
        };
        let branch = PostgresBranch::new(Link::Pool(object, who), self.clone(), transaction, read_only, None);
        branch.batch_execute(begin).await.map_err(PostgresError::of("beginning the branch"))?;
        Ok(branch)
    }

    async fn begin_on_client(
        self: &Arc<Self>,
        transaction: TransactionId,
        read_only: bool,
        client: Arc<Client>,
        begin: &str,
    ) -> Result<PostgresBranch, PostgresError> {
        outside(&client).await?;
        let who = who(&client).await?;
        self.control.check(&who, false)?;
        let branch = PostgresBranch::new(Link::Client(client, who), self.clone(), transaction, read_only, None);
        branch.batch_execute(begin).await.map_err(PostgresError::of("beginning the branch"))?;
        Ok(branch)
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

async fn who(client: &Client) -> Result<Who, PostgresError> {
    Who::parse(&client.simple_query(WHO).await.map_err(PostgresError::of("asking the server who it is"))?)
}
