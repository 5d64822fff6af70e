//! Orders in a PostgreSQL database and their invoices in another one.
//!
//! A database that is down when the demo starts gets its tables when it is first used.
//!
//! Must not know any other store.

use std::error::Error;
use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;

use futures_util::{TryStreamExt as _, pin_mut};
use tokio::sync::OnceCell;
use unanimous::postgres::tokio_postgres::{self, Config, Row, error::SqlState};
use unanimous::postgres::{IsolationLevel, Postgres, PostgresOptions};
use unanimous::{CommitError, JoinError, TransactionManager, Tx};

use super::{COLUMNS, OrdersError, chain};
use crate::commands::demo::order::{NewOrder, Order};
use crate::failure::Failure;
use crate::output::warn;

/// The channel on which the first database tells of each order, by its number.
pub(crate) const CHANNEL: &str = "orders";

/// Our tables are in a schema of their own: the databases may have others.
const SCHEMA: &str = "
    SELECT pg_advisory_xact_lock(hashtext('unanimous_demo'));
    CREATE SCHEMA IF NOT EXISTS unanimous_demo;
    CREATE TABLE IF NOT EXISTS unanimous_demo.desk (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        part text NOT NULL,
        log text NOT NULL
    );";

const ORDERS: &str = "
    CREATE TABLE IF NOT EXISTS unanimous_demo.orders (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        customer text NOT NULL,
        item text NOT NULL,
        quantity integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000000),
        transaction_id text NOT NULL,
        placed_at text NOT NULL
    )";

/// One row in which all orders meet, for who wants to see conflicts.
const SHARED: &str = "
    CREATE TABLE IF NOT EXISTS unanimous_demo.counted (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        orders bigint NOT NULL
    );
    INSERT INTO unanimous_demo.counted (orders) VALUES (0) ON CONFLICT DO NOTHING";

const INVOICES: &str = "
    CREATE TABLE IF NOT EXISTS unanimous_demo.invoices (
        id bigint PRIMARY KEY,
        customer text NOT NULL,
        item text NOT NULL,
        quantity integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000000),
        transaction_id text NOT NULL,
        placed_at text NOT NULL
    )";

/// The two databases. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Databases {
    pub(super) orders: Database,
    pub(super) invoices: Database,
    /// Makes the tables, in transactions of its own; none before [`prepared`](Self::prepared).
    manager: Option<TransactionManager>,
    /// Orders meet in one row.
    pub(super) conflict: bool,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Database {
    /// What is in it, and its name as a resource.
    part: &'static str,
    tables: &'static str,
    /// What else is made, whenever it is not there.
    more: Option<&'static str>,
    pub(super) store: Postgres,
    /// Set when the tables are known to be there, and to be this desk's.
    ready: Arc<OnceCell<()>>,
}

/// A database's tables could not be made, or are not this desk's.
#[derive(Debug)]
pub(crate) struct TablesError {
    part: &'static str,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Join(JoinError),
    Statement(tokio_postgres::Error),
    Commit(CommitError),
    /// They are another desk's, or have another part of this one's.
    Others {
        part: String,
        log: String,
    },
}

impl Databases {
    /// From the two connection strings. Nothing is connected yet.
    pub(super) fn new([orders, invoices]: &[String; 2], conflict: bool) -> Result<Self, Failure> {
        let database = |part, tables, more, url| {
            let config = config(part, url)?;
            let store = Postgres::builder(part, config).build();
            Ok::<_, Failure>(Database { part, tables, more, store, ready: Arc::default() })
        };
        Ok(Self {
            orders: database("orders", ORDERS, conflict.then_some(SHARED), orders)?,
            invoices: database("invoices", INVOICES, None, invoices)?,
            manager: None,
            conflict,
        })
    }

    /// Makes the tables where that can be done now.
    ///
    /// # Errors
    ///
    /// Where they are not this desk's. A database that can't be used now is only told of.
    pub(super) async fn prepared(self, manager: &TransactionManager) -> Result<Self, Failure> {
        let prepared = Self { manager: Some(manager.clone()), ..self };
        let (orders, invoices) = tokio::join!(prepared.ready(&prepared.orders), prepared.ready(&prepared.invoices));
        for error in [orders, invoices].into_iter().filter_map(Result::err) {
            if let Cause::Others { .. } = error.cause {
                return Err(Failure::new(error.to_string())
                    .hint("give the databases in the order of the first start, or other ones, or the data folder that belongs to these: --data DIR"));
            }
            warn(format!("{}; orders are refused until it can be used", chain(&error)));
        }
        Ok(prepared)
    }

    pub(super) async fn place(&self, tx: &Tx, new: &NewOrder) -> Result<Order, OrdersError> {
        self.ready(&self.orders).await.map_err(OrdersError::Tables)?;
        self.ready(&self.invoices).await.map_err(OrdersError::Tables)?;

        let failed = |error| OrdersError::Postgres("orders", error);
        let orders = if self.conflict {
            let serializable = PostgresOptions::new().isolation(IsolationLevel::Serializable);
            let orders = tx.join_with(&self.orders.store, serializable).await?;
            orders.execute("UPDATE unanimous_demo.counted SET orders = orders + 1", &[]).await.map_err(failed)?;
            orders
        } else {
            tx.join(&self.orders.store).await?
        };
        let insert = format!(
            "INSERT INTO unanimous_demo.orders (customer, item, quantity, transaction_id, placed_at)
             VALUES ($1, $2, $3, $4, to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'))
             RETURNING {COLUMNS}"
        );
        let (quantity, transaction) = (stored(new.quantity), tx.id().to_string());
        let row = orders.query_one(&insert, &[&new.customer, &new.item, &quantity, &transaction]).await;
        let order = row.and_then(|row| order_of(&row)).map_err(failed)?;
        // Goes out when the order is committed in all stores.
        orders.notify_with(CHANNEL, &order.id.to_string()).map_err(OrdersError::Notify)?;

        let invoices = tx.join(&self.invoices.store).await?;
        let insert = format!("INSERT INTO unanimous_demo.invoices ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)");
        let Order { id, customer, item, transaction, placed_at, .. } = &order;
        let inserted = invoices.execute(&insert, &[id, customer, item, &quantity, transaction, placed_at]).await;
        inserted.map_err(|error| OrdersError::Postgres("invoices", error))?;
        Ok(order)
    }

    pub(super) async fn newest<T>(
        &self,
        tx: &Tx,
        limit: i64,
        mut gathered: T,
        mut each: impl FnMut(&mut T, Order) -> Result<(), serde_json::Error>,
    ) -> Result<T, OrdersError> {
        self.ready(&self.orders).await.map_err(OrdersError::Tables)?;
        let failed = |error| OrdersError::Postgres("orders", error);
        let orders = tx.join_with(&self.orders.store, PostgresOptions::new().read_only()).await?;
        let select = format!("SELECT {COLUMNS} FROM unanimous_demo.orders ORDER BY id DESC LIMIT $1");
        let rows = orders.query_raw(&select, [limit]).await.map_err(failed)?;
        pin_mut!(rows);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            each(&mut gathered, order_of(&row).map_err(failed)?).map_err(OrdersError::Json)?;
        }
        Ok(gathered)
    }

    pub(super) fn close(&self) {
        self.orders.store.close();
        self.invoices.store.close();
    }

    async fn ready(&self, database: &Database) -> Result<(), TablesError> {
        let manager = self.manager.as_ref().expect("it is prepared before all use");
        let made = database.ready.get_or_try_init(|| database.make(manager)).await;
        made.copied().map_err(|cause| TablesError { part: database.part, cause })
    }
}

impl Database {
    /// Makes the tables where they are missing.
    async fn make(&self, manager: &TransactionManager) -> Result<(), Cause> {
        let tx = manager.begin();
        tx.note("makes the tables");
        if let Err(cause) = self.make_in(&tx, manager.owner().log.to_string()).await {
            // Nothing is lost with it: what is wrong is known already.
            let _ = tx.abort().await;
            return Err(cause);
        }
        tx.commit().await.map_err(Cause::Commit)?;
        Ok(())
    }

    async fn make_in(&self, tx: &Tx, log: String) -> Result<(), Cause> {
        let branch = tx.join(&self.store).await.map_err(Cause::Join)?;
        let look = "SELECT to_regclass('unanimous_demo.desk') IS NOT NULL";
        let there: bool = branch.query_one(look, &[]).await.map_err(Cause::Statement)?.get(0);
        if !there {
            branch.batch_execute(SCHEMA).await.map_err(Cause::Statement)?;
            let claim = "INSERT INTO unanimous_demo.desk (part, log) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            branch.execute(claim, &[&self.part, &log]).await.map_err(Cause::Statement)?;
            branch.batch_execute(self.tables).await.map_err(Cause::Statement)?;
        }
        if let Some(more) = self.more {
            branch.batch_execute(more).await.map_err(Cause::Statement)?;
        }
        let row = branch.query_one("SELECT part, log FROM unanimous_demo.desk", &[]).await.map_err(Cause::Statement)?;
        let (part, owner): (String, String) = (row.get(0), row.get(1));
        if part == self.part && owner == log { Ok(()) } else { Err(Cause::Others { part, log: owner }) }
    }
}

/// A connection string as the driver has it.
pub(crate) fn config(part: &str, url: &str) -> Result<Config, Failure> {
    Config::from_str(url).map_err(|error| {
        Failure::new(format!("the connection string of the {part} can't be understood"))
            .because(&error)
            .hint("--postgres 'host=127.0.0.1 port=5432 user=me dbname=orders', or --postgres postgresql://me@127.0.0.1/orders")
    })
}

/// Whether a statement was in the way of another transaction's.
pub(super) fn is_conflict(error: &tokio_postgres::Error) -> bool {
    let conflicts =
        [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::LOCK_NOT_AVAILABLE];
    error.code().is_some_and(|code| conflicts.contains(code))
}

/// Whether the server is not there any more, or says that it is about to go (classes 08 and 57P).
pub(super) fn is_lost(error: &tokio_postgres::Error) -> bool {
    error.code().is_none_or(|code| code.code().starts_with("08") || code.code().starts_with("57P"))
}

/// A row of [`COLUMNS`].
pub(crate) fn order_of(row: &Row) -> Result<Order, tokio_postgres::Error> {
    let quantity: i32 = row.try_get(3)?;
    Ok(Order {
        id: row.try_get(0)?,
        customer: row.try_get(1)?,
        item: row.try_get(2)?,
        quantity: u32::try_from(quantity).unwrap_or_default(),
        transaction: row.try_get(4)?,
        placed_at: row.try_get(5)?,
    })
}

fn stored(quantity: u32) -> i32 {
    i32::try_from(quantity).expect("a quantity is at most a million")
}

impl fmt::Display for TablesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Others { part, log } => write!(
                f,
                "the database that was given for the {} has the {part} of the desk whose decision log is {log}",
                self.part
            ),
            _ => write!(f, "the database of the {} can't be used now", self.part),
        }
    }
}

impl Error for TablesError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            Cause::Join(error) => Some(error),
            Cause::Statement(error) => Some(error),
            Cause::Commit(error) => Some(error),
            Cause::Others { .. } => None,
        }
    }
}
