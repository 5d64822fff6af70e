//! An order desk on a plain thread: two folders of files and a SQLite database, all or none, without a runtime.
//!
//! `cargo run -p unanimous --example plain_thread --features sqlite`
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::path::Path;
use std::time::Duration;

use unanimous::files::Files;
use unanimous::log::FileLog;
use unanimous::sqlite::Sqlite;
use unanimous::thread::{Background, ThreadManager, ThreadTx, wait};
use unanimous::{BoxError, TransactionManager};

const SCHEMA: &str =
    "create table if not exists stock (item text primary key, left integer not null check (left >= 0));
    insert or ignore into stock values ('book', 3), ('lamp', 0)";

/// How often an order is tried before its conflict is somebody's problem.
const ATTEMPTS: u32 = 5;

struct Desk {
    stock: Sqlite,
    receipts: Files,
    labels: Files,
}

impl Desk {
    /// One order: the receipt and the label are there with the item taken out of the stock, or neither is.
    fn order(&self, tx: &ThreadTx, number: u32, item: &str) -> Result<(), BoxError> {
        let name = format!("{number}.txt");
        wait(tx.join(&self.receipts)?.create(&name, format!("one {item}, paid")))?;
        wait(tx.join(&self.labels)?.create(&name, format!("to: the reader, a {item}")))?;
        let take = "update stock set left = left - 1 where item = ?1";
        wait(tx.join(&self.stock)?.execute(take, (item.to_owned(),)))?;
        Ok(())
    }
}

pub(crate) fn order_desk(data: &Path) -> Result<(), BoxError> {
    // Timers and recovery have a thread of their own; everything else runs on this one.
    let background = Background::start()?;
    let stock = Sqlite::builder("stock", data.join("stock.db")).init(|conn| conn.execute_batch(SCHEMA));
    let desk = Desk {
        stock: background.open(stock.open())?,
        receipts: background.open(Files::open("receipts", data.join("receipts")))?,
        labels: background.open(Files::open("labels", data.join("labels")))?,
    };
    let log = background.open(FileLog::open(data.join("decisions")))?;
    let builder = TransactionManager::builder(log)
        .resource(desk.stock.clone())
        .resource(desk.receipts.clone())
        .resource(desk.labels.clone());
    let manager = ThreadManager::explicit(background.build(builder)?);

    // Begin and commit; the transaction is this thread's meanwhile.
    let tx = manager.begin()?;
    desk.order(&tx, 1, "book")?;
    println!("order 1 of the transaction {}: not there yet", tx.id());
    manager.commit()?;
    println!("order 1 is committed");

    // Or `run`, which repeats conflicts, and aborts where the work fails: here the database finds out last that there is no lamp.
    if let Err(error) = manager.run(ATTEMPTS, |tx| desk.order(tx, 2, "lamp")) {
        println!("order 2 is not: {error}");
    }
    for folder in [&desk.receipts, &desk.labels] {
        let files = std::fs::read_dir(folder.root())?.filter_map(Result::ok).filter(|entry| entry.path().is_file());
        println!("{}: {} file", folder.root().display(), files.count());
    }
    manager.shutdown(Duration::from_secs(10))?;
    Ok(())
}

fn main() -> Result<(), BoxError> {
    order_desk(tempfile::tempdir()?.path())
}
