//! A background job with `run`: takes an order from a queue in SQLite and writes its invoice into a folder, both or neither, and
//! repeats what another worker got in the way of.
//!
//! `cargo run -p unanimous --example background_job --features sqlite`
#![allow(clippy::print_stdout, reason = "an example talks")]

use unanimous::files::Files;
use unanimous::log::FileLog;
use unanimous::sqlite::rusqlite::OptionalExtension as _;
use unanimous::sqlite::{Sqlite, SqliteBranch, SqliteError};
use unanimous::{BoxError, TransactionManager, Tx};

/// How often a job is tried before its conflict is somebody's problem.
const ATTEMPTS: u32 = 5;

/// Takes the first order out of the queue.
async fn take(orders: &SqliteBranch) -> Result<Option<(i64, String)>, SqliteError> {
    let sql = "delete from queue where id = (select min(id) from queue) returning id, item";
    orders.call(move |conn| conn.query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?))).optional()).await
}

/// One job: nothing of it is there before its transaction has committed, all of it after.
async fn job(tx: Tx, orders: Sqlite, invoices: Files) -> Result<Option<i64>, BoxError> {
    let Some((id, item)) = take(&*tx.join(&orders).await?).await? else { return Ok(None) };
    tx.join(&invoices).await?.create(format!("{id}.txt"), format!("one {item}, please pay")).await?;
    Ok(Some(id))
}

async fn worker(name: &str, manager: TransactionManager, orders: Sqlite, invoices: Files) -> Result<(), BoxError> {
    while let Some(id) = manager.run(ATTEMPTS, |tx| job(tx, orders.clone(), invoices.clone())).await? {
        println!("{name} has written the invoice of order {id}");
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let data = folder.path();
    let schema = "create table if not exists queue (id integer primary key, item text not null)";
    let orders = Sqlite::builder("orders", data.join("orders.db")).init(|conn| conn.execute_batch(schema));
    let orders = orders.open().await?;
    let invoices = Files::open("invoices", data.join("invoices")).await?;
    let manager = TransactionManager::builder(FileLog::open(data.join("decisions")).await?)
        .resource(orders.clone())
        .resource(invoices.clone())
        .build()
        .await?;

    let tx = manager.begin();
    for item in ["tea", "lamp", "book", "chair"] {
        tx.join(&orders).await?.execute("insert into queue (item) values (?1)", (item,)).await?;
    }
    tx.commit().await?;

    let [one, two] = ["one", "two"].map(|name| worker(name, manager.clone(), orders.clone(), invoices.clone()));
    tokio::try_join!(one, two)?;

    let tx = manager.begin();
    let left: i64 = tx.join(&orders).await?.query_row("select count(*) from queue", (), |row| row.get(0)).await?;
    tx.abort().await;
    let written = std::fs::read_dir(invoices.root())?.filter_map(Result::ok).filter(|entry| entry.path().is_file());
    println!("{left} orders are left in the queue, {} invoices are written", written.count());
    Ok(())
}
