//! Orders in a SQLite database in the data folder.
//!
//! Must not know any other store.

use std::path::Path;

use unanimous::Tx;
use unanimous::sqlite::rusqlite::{self, Row};
use unanimous::sqlite::{self, Sqlite, SqliteOptions};

use super::{COLUMNS, OrdersError};
use crate::commands::demo::desk::gone;
use crate::commands::demo::order::{NewOrder, Order};
use crate::failure::Failure;

/// The database's file in the data folder.
pub(crate) const FILE: &str = "orders.db";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        customer TEXT NOT NULL,
        item TEXT NOT NULL,
        quantity INTEGER NOT NULL CHECK (quantity BETWEEN 1 AND 1000000),
        transaction_id TEXT NOT NULL,
        placed_at TEXT NOT NULL
    ) STRICT";

pub(super) async fn open(data: &Path, must_exist: bool) -> Result<Sqlite, Failure> {
    let orders = Sqlite::builder("orders", data.join(FILE)).init(|connection| connection.execute_batch(SCHEMA));
    let orders = if must_exist { orders.must_exist() } else { orders };
    orders.open().await.map_err(|error| match &error {
        sqlite::OpenError::NotThere { .. } => gone(data, FILE),
        _ => {
            Failure::new("can't open the database of orders").because(&error).hint("choose another folder with --data")
        }
    })
}

pub(super) async fn place(orders: &Sqlite, tx: &Tx, new: &NewOrder) -> Result<Order, OrdersError> {
    let orders = tx.join(orders).await?;
    let (new, transaction) = (new.clone(), tx.id().to_string());
    let order = orders.call(move |connection| {
        let insert = format!(
            "INSERT INTO orders (customer, item, quantity, transaction_id, placed_at)
             VALUES (?1, ?2, ?3, ?4, strftime('%Y-%m-%dT%H:%M:%fZ')) RETURNING {COLUMNS}"
        );
        connection.query_row(&insert, (new.customer, new.item, new.quantity, transaction), order_of)
    });
    Ok(order.await?)
}

pub(super) async fn newest<T: Send + 'static>(
    orders: &Sqlite,
    tx: &Tx,
    limit: i64,
    mut gathered: T,
    mut each: impl FnMut(&mut T, Order) -> Result<(), serde_json::Error> + Send + 'static,
) -> Result<T, OrdersError> {
    let orders = tx.join_with(orders, SqliteOptions::read_only()).await?;
    let gathered = orders.call(move |connection| {
        let mut select = connection.prepare(&format!("SELECT {COLUMNS} FROM orders ORDER BY id DESC LIMIT ?1"))?;
        let mut rows = select.query([limit])?;
        while let Some(row) = rows.next()? {
            each(&mut gathered, order_of(row)?)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        }
        Ok(gathered)
    });
    Ok(gathered.await?)
}

/// A row of [`COLUMNS`].
pub(crate) fn order_of(row: &Row<'_>) -> rusqlite::Result<Order> {
    Ok(Order {
        id: row.get(0)?,
        customer: row.get(1)?,
        item: row.get(2)?,
        quantity: row.get(3)?,
        transaction: row.get(4)?,
        placed_at: row.get(5)?,
    })
}
