//! What the databases say of orders: read as any other program would.
//!
//! Must not know receipts, nor what agrees with what.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio::runtime::Runtime;
use unanimous::postgres::{Postgres, Reader, tokio_postgres};
use unanimous::sqlite::rusqlite::{self, Connection, OpenFlags, OptionalExtension as _};

use crate::commands::demo::order::Order;
use crate::commands::demo::orders::sqlite::{FILE, order_of as order_of_row};
use crate::commands::demo::orders::{COLUMNS, postgres};
use crate::failure::Failure;

/// Another program holds the SQLite database's lock for moments only.
const BUSY: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(10);

/// Where orders are, and invoices where there are any.
pub(super) enum Rows {
    Sqlite(Connection),
    Postgres(Box<Databases>),
}

pub(super) struct Databases {
    runtime: Runtime,
    orders: Database,
    invoices: Database,
}

struct Database {
    part: &'static str,
    client: Reader,
    /// The rows' table.
    table: &'static str,
}

/// A database could not be read.
#[derive(Debug)]
pub(super) enum RowsError {
    Sqlite(rusqlite::Error),
    Postgres(&'static str, tokio_postgres::Error),
}

impl fmt::Display for RowsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(error) => error.fmt(f),
            Self::Postgres(part, _) => write!(f, "a statement failed in the database of the {part}"),
        }
    }
}

impl Error for RowsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Sqlite(error) => error.source(),
            Self::Postgres(_, error) => Some(error),
        }
    }
}

impl Rows {
    pub(super) fn sqlite(data: &Path) -> Result<Self, RowsError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(data.join(FILE), flags).map_err(RowsError::Sqlite)?;
        connection.busy_timeout(BUSY).map_err(RowsError::Sqlite)?;
        Ok(Self::Sqlite(connection))
    }

    pub(super) fn postgres([orders, invoices]: &[String; 2]) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new("can't start the runtime").because(&error))?;
        let orders = runtime.block_on(Database::connect("orders", "unanimous_demo.orders", orders))?;
        let invoices = runtime.block_on(Database::connect("invoices", "unanimous_demo.invoices", invoices))?;
        Ok(Self::Postgres(Box::new(Databases { runtime, orders, invoices })))
    }

    /// Whether orders have invoices here.
    pub(super) fn has_invoices(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    pub(super) fn orders(&self) -> Result<Vec<Order>, RowsError> {
        match self {
            Self::Sqlite(connection) => {
                let mut select =
                    connection.prepare(&format!("SELECT {COLUMNS} FROM orders")).map_err(RowsError::Sqlite)?;
                let orders = select.query_map([], order_of_row).map_err(RowsError::Sqlite)?;
                orders.collect::<Result<_, _>>().map_err(RowsError::Sqlite)
            }
            Self::Postgres(databases) => databases.runtime.block_on(databases.orders.rows(None)),
        }
    }

    pub(super) fn order(&self, id: i64) -> Result<Option<Order>, RowsError> {
        match self {
            Self::Sqlite(connection) => {
                let select = format!("SELECT {COLUMNS} FROM orders WHERE id = ?1");
                connection.query_row(&select, [id], order_of_row).optional().map_err(RowsError::Sqlite)
            }
            Self::Postgres(databases) => Ok(databases.runtime.block_on(databases.orders.rows(Some(id)))?.pop()),
        }
    }

    pub(super) fn invoices(&self) -> Result<Vec<Order>, RowsError> {
        match self {
            Self::Sqlite(_) => Ok(Vec::new()),
            Self::Postgres(databases) => databases.runtime.block_on(databases.invoices.rows(None)),
        }
    }

    pub(super) fn invoice(&self, id: i64) -> Result<Option<Order>, RowsError> {
        match self {
            Self::Sqlite(_) => Ok(None),
            Self::Postgres(databases) => Ok(databases.runtime.block_on(databases.invoices.rows(Some(id)))?.pop()),
        }
    }

    /// What is prepared in the databases, in words. SQLite prepares nothing.
    pub(super) fn prepared(&self) -> Result<BTreeSet<String>, RowsError> {
        self.asked(Database::prepared)
    }

    /// The notifications that are still to be sent, in words.
    pub(super) fn unsent(&self) -> Result<BTreeSet<String>, RowsError> {
        self.asked(Database::unsent)
    }

    fn asked(
        &self,
        ask: impl AsyncFn(&Database) -> Result<Vec<String>, RowsError>,
    ) -> Result<BTreeSet<String>, RowsError> {
        let Self::Postgres(databases) = self else { return Ok(BTreeSet::new()) };
        let Databases { runtime, orders, invoices } = &**databases;
        let both = runtime.block_on(async { Ok((ask(orders).await?, ask(invoices).await?)) });
        both.map(|(orders, invoices)| orders.into_iter().chain(invoices).collect())
    }
}

impl Database {
    async fn connect(part: &'static str, table: &'static str, url: &str) -> Result<Self, Failure> {
        let mut config = postgres::config(part, url)?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        let client = Postgres::builder(part, config).build().reader().await.map_err(|error| {
            Failure::new(format!("can't reach the database of the {part}"))
                .because(&error)
                .hint("start its server; what is in doubt there is only known when it runs")
        })?;
        let database = Self { part, client, table };
        // What is read must be all that is committed: a standby may be behind, and lists no prepared branches.
        if database.flag("SELECT pg_is_in_recovery()").await? {
            return Err(Failure::new(format!("the database of the {part} is a standby; give the primary")));
        }
        if database.flag(&format!("SELECT to_regclass('{table}') IS NULL")).await? {
            return Err(Failure::new(format!(
                "the database that was given for the {part} has none; the demo was never ready on it"
            ))
            .hint("give the databases in the order in which the demo has them; or start the demo once"));
        }
        Ok(database)
    }

    async fn flag(&self, select: &str) -> Result<bool, Failure> {
        let row = self.client.query_one(select, &[]).await;
        let row =
            row.map_err(|error| Failure::new(format!("can't read the database of the {}", self.part)).because(&error))?;
        Ok(row.get(0))
    }

    async fn rows(&self, id: Option<i64>) -> Result<Vec<Order>, RowsError> {
        let select = format!("SELECT {COLUMNS} FROM {}", self.table);
        let rows = match id {
            Some(id) => self.client.query(&format!("{select} WHERE id = $1"), &[&id]).await,
            None => self.client.query(&select, &[]).await,
        };
        let rows = rows.map_err(|error| RowsError::Postgres(self.part, error))?;
        let orders = rows.iter().map(postgres::order_of).collect::<Result<_, _>>();
        orders.map_err(|error| RowsError::Postgres(self.part, error))
    }

    async fn prepared(&self) -> Result<Vec<String>, RowsError> {
        // Ids of this library begin like this; others' prepared transactions are none of the demo's.
        let select = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE 'u1:%'";
        let told = |gid| format!("{gid} in the database of the {}", self.part);
        Ok(self.texts(select).await?.into_iter().map(told).collect())
    }

    async fn unsent(&self) -> Result<Vec<String>, RowsError> {
        let there = self.texts("SELECT 'outbox' WHERE to_regclass('unanimous.outbox') IS NOT NULL").await?;
        if there.is_empty() {
            return Ok(there);
        }
        let select = "SELECT coalesce(payload, '') || ' (' || branch || ')' FROM unanimous.outbox";
        let told = |what| format!("{what} in the database of the {}", self.part);
        Ok(self.texts(select).await?.into_iter().map(told).collect())
    }

    async fn texts(&self, select: &str) -> Result<Vec<String>, RowsError> {
        let rows = self.client.query(select, &[]).await.map_err(|error| RowsError::Postgres(self.part, error))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
