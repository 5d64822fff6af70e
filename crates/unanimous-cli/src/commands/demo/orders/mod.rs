//! Where orders are kept: a SQLite database, or two PostgreSQL databases of which the second one keeps the invoices.
//!
//! The desk sees one store of orders, so that everything but the statements is there once.
//!
//! Must not know receipts, requests or answers.

pub(crate) mod keys;
pub(crate) mod postgres;
pub(crate) mod sqlite;

use std::error::Error;
use std::fmt::{self, Write as _};
use std::path::Path;

use unanimous::postgres::{PostgresError, tokio_postgres};
use unanimous::sqlite::SqliteError;
use unanimous::{Builder, JoinError, TransactionManager, Tx};

use self::postgres::{Databases, TablesError};
use super::order::{NewOrder, Order};
use super::stores::Stores;
use crate::failure::Failure;

/// An order's columns, in the order in which both stores read them.
pub(crate) const COLUMNS: &str = "id, customer, item, quantity, transaction_id, placed_at";

/// The store of orders. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Orders {
    Sqlite(unanimous::sqlite::Sqlite),
    Postgres(Databases),
}

/// Why the store of orders could not do what it was asked for.
#[derive(Debug)]
pub(crate) enum OrdersError {
    Join(JoinError),
    Sqlite(SqliteError),
    /// A statement, in the database of this name.
    Postgres(&'static str, tokio_postgres::Error),
    Tables(TablesError),
    /// The order's notification was refused.
    Notify(PostgresError),
    Json(serde_json::Error),
}

impl Orders {
    /// Opens the store; `must_exist`: what is in the data folder was there before; `conflict`: orders shall meet in one row.
    pub(crate) async fn open(data: &Path, stores: &Stores, conflict: bool, must_exist: bool) -> Result<Self, Failure> {
        match stores {
            Stores::Sqlite => sqlite::open(data, must_exist).await.map(Self::Sqlite),
            Stores::Postgres(urls) => Databases::new(urls, conflict).map(Self::Postgres),
        }
    }

    /// Registers what is joined.
    pub(crate) fn register(&self, builder: Builder) -> Builder {
        match self {
            Self::Sqlite(orders) => builder.resource(orders.clone()),
            Self::Postgres(databases) => {
                builder.resource(databases.orders.store.clone()).resource(databases.invoices.store.clone())
            }
        }
    }

    /// Makes tables by this manager, now or when they can be made; before anything is asked for.
    pub(crate) async fn prepared(self, manager: &TransactionManager) -> Result<Self, Failure> {
        match self {
            Self::Sqlite(_) => Ok(self),
            Self::Postgres(databases) => databases.prepared(manager).await.map(Self::Postgres),
        }
    }

    /// Writes an order, and what else is written with it.
    pub(crate) async fn place(&self, tx: &Tx, new: &NewOrder) -> Result<Order, OrdersError> {
        match self {
            Self::Sqlite(orders) => sqlite::place(orders, tx, new).await,
            Self::Postgres(databases) => databases.place(tx, new).await,
        }
    }

    /// Hands the newest orders one by one to `each`, which gathers them.
    pub(crate) async fn newest<T: Send + 'static>(
        &self,
        tx: &Tx,
        limit: u64,
        gathered: T,
        each: impl FnMut(&mut T, Order) -> Result<(), serde_json::Error> + Send + 'static,
    ) -> Result<T, OrdersError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        match self {
            Self::Sqlite(orders) => sqlite::newest(orders, tx, limit, gathered, each).await,
            Self::Postgres(databases) => databases.newest(tx, limit, gathered, each).await,
        }
    }

    /// What each order is written to, for people.
    pub(crate) fn described(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "a SQLite database and a folder of files",
            Self::Postgres(_) => "two PostgreSQL databases and a folder of files",
        }
    }

    /// What of an order is where, for people.
    pub(crate) fn parts(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "a row and a receipt, both or neither",
            Self::Postgres(_) => "an order, an invoice and a receipt, all or none",
        }
    }

    /// Gives back what it holds.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite(orders) => {
                if let Err(error) = orders.close().await {
                    tracing::debug!(%error, "finished decisions were not noted; the next start looks at them once more");
                }
            }
            Self::Postgres(databases) => databases.close(),
        }
    }
}

impl From<JoinError> for OrdersError {
    fn from(error: JoinError) -> Self {
        Self::Join(error)
    }
}

impl From<SqliteError> for OrdersError {
    fn from(error: SqliteError) -> Self {
        Self::Sqlite(error)
    }
}

impl OrdersError {
    /// Whether the request may succeed when it is repeated at once.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Join(error) => error.is_retryable(),
            Self::Postgres(_, error) => postgres::is_conflict(error),
            Self::Sqlite(_) | Self::Tables(_) | Self::Notify(_) | Self::Json(_) => false,
        }
    }

    /// Whether a store can't be used now: down, starting, or not what it should be.
    pub(crate) fn is_unavailable(&self) -> bool {
        match self {
            Self::Join(error) => matches!(error, JoinError::Store { .. }),
            Self::Postgres(_, error) => postgres::is_lost(error),
            Self::Tables(_) => true,
            Self::Sqlite(_) | Self::Notify(_) | Self::Json(_) => false,
        }
    }
}

impl fmt::Display for OrdersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Join(error) => error.fmt(f),
            Self::Sqlite(error) => error.fmt(f),
            Self::Postgres(database, _) => write!(f, "a statement failed in the database of {database}"),
            Self::Tables(error) => error.fmt(f),
            Self::Notify(error) => error.fmt(f),
            Self::Json(error) => error.fmt(f),
        }
    }
}

impl Error for OrdersError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Join(error) => error.source(),
            Self::Sqlite(error) => error.source(),
            Self::Postgres(_, error) => Some(error),
            Self::Tables(error) => error.source(),
            Self::Notify(error) => error.source(),
            Self::Json(error) => error.source(),
        }
    }
}

/// An error and all its sources, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let _ = write!(text, ": {source}");
        next = source.source();
    }
    text
}
