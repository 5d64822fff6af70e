//! Connections that are brought to a transaction: the application's own, and those that a connection string names.
//!
//! Each belongs to a registered store, which is found by what the server at its other end says of itself; or it joins as volatile, under
//! a name.
//!
//! Knows the transaction's handle, as the only module of this adapter. Must not know the manager.

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};
use unanimous_core::{BranchError, ResourceManager};

use super::branch::PostgresBranch;
use super::error::PostgresError;
use super::options::PostgresOptions;
use super::session::{CONNECT_LIMIT, Connect, Guard, Nowhere, WHO, Who, within};
use super::store::{Store, Url, pool};
use super::{Postgres, tls};
use crate::{JoinError, Joined, Tx};

/// Joins connections that are there already, or that a connection string names, to a transaction: `use` this, and [`Tx`] has it.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use unanimous::Tx;
/// use unanimous::postgres::{JoinPostgres, tokio_postgres};
///
/// # async fn example(tx: Tx, client: Arc<tokio_postgres::Client>) -> Result<(), unanimous::BoxError> {
/// tx.join_client(client).await?.execute("insert into orders (item) values ($1)", &[&"a lamp"]).await?;
/// let billing = tx.join_url("host=127.0.0.1 user=app dbname=billing").await?;
/// billing.execute("insert into invoices (item) values ($1)", &[&"a lamp"]).await?;
/// billing.notify("invoices")?;
/// # Ok(())
/// # }
/// ```
///
/// A connection's server says which database it leads to. That must be registered with the transaction's manager, whose recovery then
/// finishes what is left in doubt; its role must be the registered resource's. The branch is that resource's, as if it had
/// been [joined](Tx::join): one transaction has one connection of each.
///
/// Otherwise the connection can join as *volatile*, under a name of its own: it is prepared and committed all the same, but after a crash nobody
/// here would finish it. Beside others that write it needs [`Tx::allow`] (rule 10).
pub trait JoinPostgres {
    /// Joins a connection that the application made. Joined again, it is the same branch. It is the application's again
    /// when the transaction has ended; what is sent through it meanwhile is part of the branch.
    ///
    /// Cancel safety: a join that is dropped has joined or not; a connection that had begun is ended.
    ///
    /// # Errors
    ///
    /// [`JoinError::Store`], with a [`PostgresError`] as its source's: [`InTransaction`](PostgresError::InTransaction) where
    /// somebody began a transaction on it, [`NotRegistered`](PostgresError::NotRegistered),
    /// [`OtherRole`](PostgresError::OtherRole), [`OtherConnection`](PostgresError::OtherConnection) where another one of its database
    /// has joined already. The transaction goes on without it, and the connection is as it was.
    fn join_client(
        &self,
        client: Arc<Client>,
    ) -> impl Future<Output = Result<Joined<'_, PostgresBranch>, JoinError>> + Send;

    /// The same for a database that is not registered, as a volatile branch of this name. A connection that breaks after its
    /// vote leaves a prepared transaction in its database for a person to finish, since nothing else leads there.
    ///
    /// # Errors
    ///
    /// As [`join_client`](Self::join_client), and [`JoinError::Duplicate`].
    fn join_client_volatile(
        &self,
        name: &str,
        client: Arc<Client>,
    ) -> impl Future<Output = Result<Joined<'_, PostgresBranch>, JoinError>> + Send;

    /// Joins a connection that is opened by this string, in either of PostgreSQL's forms; TLS as in [`Postgres::from_url`]. The same string
    /// gives the same branch within a transaction. At the end the connection goes to a pool that the registered resource keeps for the
    /// string, of the size of its own: strings should be few.
    ///
    /// # Errors
    ///
    /// As [`join_client`](Self::join_client), and what [`Postgres::from_url`] says of the string.
    fn join_url(&self, url: &str) -> impl Future<Output = Result<Joined<'_, PostgresBranch>, JoinError>> + Send {
        self.join_url_with(url, PostgresOptions::new())
    }

    /// The same with options, which count where the branch begins now: [`PostgresOptions::close_at_end`] among them.
    ///
    /// # Errors
    ///
    /// As [`join_url`](Self::join_url).
    fn join_url_with(
        &self,
        url: &str,
        options: PostgresOptions,
    ) -> impl Future<Output = Result<Joined<'_, PostgresBranch>, JoinError>> + Send;

    /// The same for a database that is not registered, as a volatile branch of this name. Its connection is closed at the end. While this
    /// process lives it is finished, also on another connection.
    ///
    /// # Errors
    ///
    /// As [`join_url`](Self::join_url), and [`JoinError::Duplicate`].
    fn join_url_volatile(
        &self,
        name: &str,
        url: &str,
    ) -> impl Future<Output = Result<Joined<'_, PostgresBranch>, JoinError>> + Send;
}

impl JoinPostgres for Tx {
    async fn join_client(&self, client: Arc<Client>) -> Result<Joined<'_, PostgresBranch>, JoinError> {
        let resources = self.registered::<Postgres>();
        if let Some(joined) = find_joined(self, &resources, |branch| branch.is_on(&client))? {
            return Ok(joined);
        }
        let who = ask(&client).await.map_err(unknown)?;
        let resource = find(&resources, &who).await?;
        let joined = self.join_with(&*resource, PostgresOptions::new().client(client.clone())).await?;
        if joined.is_on(&client) { Ok(joined) } else { Err(other(resource.name())) }
    }

    async fn join_client_volatile(
        &self,
        name: &str,
        client: Arc<Client>,
    ) -> Result<Joined<'_, PostgresBranch>, JoinError> {
        if let Some(joined) = self.joined::<PostgresBranch>(name)? {
            return if joined.is_on(&client) { Ok(joined) } else { Err(other(name)) };
        }
        let store = Store::volatile(name, Arc::new(Nowhere), None);
        begin(self, name, store, PostgresOptions::new().client(client)).await
    }

    async fn join_url_with(
        &self,
        url: &str,
        options: PostgresOptions,
    ) -> Result<Joined<'_, PostgresBranch>, JoinError> {
        let resources = self.registered::<Postgres>();
        if let Some(joined) = find_joined(self, &resources, |branch| branch.url() == Some(url))? {
            return Ok(joined);
        }
        let kept = resources.iter().find_map(|resource| Some((resource.clone(), resource.store.url_pool(url)?)));
        let (resource, pool) = match kept {
            Some(kept) => kept,
            None => {
                let pool = pool(connect(url).map_err(unknown)?, 1);
                let session = pool.get().await.map_err(|error| unknown(error.into()))?;
                let resource = find(&resources, &session.who).await?;
                let pool = resource.store.keep_url_pool(url, pool);
                (resource, pool)
            }
        };
        let joined = self.join_with(&*resource, options.url(Url { text: url.into(), pool })).await?;
        if joined.url() == Some(url) { Ok(joined) } else { Err(other(resource.name())) }
    }

    async fn join_url_volatile(&self, name: &str, url: &str) -> Result<Joined<'_, PostgresBranch>, JoinError> {
        if let Some(joined) = self.joined::<PostgresBranch>(name)? {
            return if joined.url() == Some(url) { Ok(joined) } else { Err(other(name)) };
        }
        let connect = connect(url).map_err(|error| refused(name, error))?;
        let pool = pool(connect.clone(), 1);
        let store = Store::volatile(name, connect, Some(pool.clone()));
        begin(self, name, store, PostgresOptions::new().url(Url { text: url.into(), pool })).await
    }
}

fn connect(url: &str) -> Result<Arc<dyn Connect>, PostgresError> {
    tls::by_config(Config::from_str(url).map_err(PostgresError::Config)?, Some(Guard::DEFAULT))
}

async fn begin<'t>(
    tx: &'t Tx,
    name: &str,
    store: Store,
    options: PostgresOptions,
) -> Result<Joined<'t, PostgresBranch>, JoinError> {
    if tx.is_registered(name) {
        // A join of that resource would be given this branch.
        return Err(JoinError::Duplicate { resource: name.to_owned() });
    }
    let branch = Arc::new(store).begin(tx.id(), options).await.map_err(|error| refused(name, error))?;
    tx.join_branch(name, branch)
}

/// The branch of one of these that has joined, and is the one that is meant.
fn find_joined<'t>(
    tx: &'t Tx,
    resources: &[Arc<Postgres>],
    is_it: impl Fn(&PostgresBranch) -> bool,
) -> Result<Option<Joined<'t, PostgresBranch>>, JoinError> {
    for resource in resources {
        if let Some(joined) = tx.joined::<PostgresBranch>(resource.name())?
            && is_it(&joined)
        {
            return Ok(Some(joined));
        }
    }
    Ok(None)
}

/// The registered store that a session leads to. Those that were not reached yet are asked who they are.
async fn find(resources: &[Arc<Postgres>], who: &Who) -> Result<Arc<Postgres>, JoinError> {
    let is_it = |resource: &&Arc<Postgres>| resource.store.control.is(who);
    if let Some(resource) = resources.iter().find(is_it) {
        return Ok(resource.clone());
    }
    // One that can't be reached is not it: that server has just answered.
    join_all(resources.iter().filter(|resource| !resource.store.control.is_known()).map(|resource| resource.check()))
        .await;
    let not_registered = || unknown(PostgresError::NotRegistered { store: who.store.to_string() });
    resources.iter().find(is_it).cloned().ok_or_else(not_registered)
}

async fn ask(client: &Client) -> Result<Who, PostgresError> {
    let doing = "asking the server who it is";
    let asked =
        within(doing, CONNECT_LIMIT, async { client.simple_query(WHO).await.map_err(PostgresError::of(doing)) });
    match asked.await {
        Ok(answer) => Who::parse(&answer),
        Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => Err(PostgresError::InTransaction),
        Err(error) => Err(error),
    }
}

/// It is not known of which resource it is. Never the string: it may have a password.
fn unknown(error: PostgresError) -> JoinError {
    refused("PostgreSQL", error)
}

fn refused(name: &str, error: PostgresError) -> JoinError {
    JoinError::Store { resource: name.to_owned(), source: error.into_branch() }
}

fn other(name: &str) -> JoinError {
    JoinError::Store { resource: name.to_owned(), source: BranchError::refused(PostgresError::OtherConnection) }
}
