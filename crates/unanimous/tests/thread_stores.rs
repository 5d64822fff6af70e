//! Real stores under plain threads: SQLite and folders of files, without a runtime, over conflicts, savepoints and kill -9.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use unanimous::files::Files;
use unanimous::log::{FileLog, MemoryLog};
use unanimous::sqlite::Sqlite;
use unanimous::thread::{Background, ThreadManager, ThreadTx, wait};
use unanimous::{BoxError, Options, ResourceManager, TransactionManager};
use unanimous_testing::disturbed::Disturbed;
use unanimous_testing::memory::{Call, Fault, Journal, JournalLog};
use unanimous_testing::process::Program;

use crate::thread_support::{Seen, Witness, here};

#[allow(dead_code, reason = "the example's main is run by cargo run")]
#[path = "../examples/plain_thread.rs"]
mod example;

/// Two folders and a database, each of which can be made to fail.
struct Desk {
    background: Background,
    orders: Sqlite,
    receipts: Disturbed<Files>,
    labels: Disturbed<Files>,
    manager: ThreadManager,
}

impl Desk {
    fn open(data: &Path) -> Result<Self, BoxError> {
        let background = Background::start()?;
        let schema = "create table if not exists orders (item text not null)";
        let orders = Sqlite::builder("orders", data.join("orders.db")).init(|conn| conn.execute_batch(schema));
        let orders = background.open(orders.open())?;
        let receipts = Disturbed::new(background.open(Files::open("receipts", data.join("receipts")))?);
        let labels = Disturbed::new(background.open(Files::open("labels", data.join("labels")))?);
        let log = background.open(FileLog::open(data.join("decisions")))?;
        let builder = TransactionManager::builder(JournalLog::new(log, &Journal::default()));
        let builder = builder.resource(orders.clone()).resource(receipts.clone()).resource(labels.clone());
        let manager = ThreadManager::explicit(background.build(builder)?);
        Ok(Self { background, orders, receipts, labels, manager })
    }

    /// Writes an order into all three.
    fn write(&self, tx: &ThreadTx, item: &'static str) -> Result<(), BoxError> {
        wait(tx.join(&self.orders)?.execute("insert into orders (item) values (?1)", (item,)))?;
        wait(tx.join(&self.receipts)?.create(format!("{item}.txt"), item))?;
        wait(tx.join(&self.labels)?.create(format!("{item}.txt"), item))?;
        Ok(())
    }

    /// What all three have.
    fn items(&self) -> Result<[Vec<String>; 3], BoxError> {
        let tx = self.manager.begin()?;
        let orders = tx.join(&self.orders)?;
        let all = orders.call(|conn| {
            let mut rows = conn.prepare("select item from orders order by item")?;
            rows.query_map((), |row| row.get(0))?.collect()
        });
        let all: Vec<String> = wait(all)?;
        drop(orders);
        self.manager.abort()?;
        let files = |files: &Disturbed<Files>| -> Result<Vec<String>, BoxError> {
            let mut names = Vec::new();
            for entry in fs::read_dir(files.resource().root())? {
                let path = entry?.path();
                if path.is_file() {
                    names.push(fs::read_to_string(path)?);
                }
            }
            names.sort();
            Ok(names)
        };
        Ok([all, files(&self.receipts)?, files(&self.labels)?])
    }
}

fn same(items: &[&str]) -> [Vec<String>; 3] {
    [(); 3].map(|()| items.iter().map(|item| (*item).to_owned()).collect())
}

/// Commits whole, aborts whole, and no call finds a runtime: the example's three stores and a branch that looks around.
#[test]
fn a_database_and_two_folders_from_a_plain_thread() -> Result<(), BoxError> {
    assert!(tokio::runtime::Handle::try_current().is_err());
    let folder = tempfile::tempdir()?;
    let desk = Desk::open(folder.path())?;
    let seen = Seen::default();
    let tx = desk.manager.begin_with(Options::default().allow("witness"))?;
    desk.write(&tx, "book")?;
    tx.join_branch("witness", Witness { seen: seen.clone() })?;
    desk.manager.commit()?;
    let expected = ["flush", "prepare", "commit"].map(|call| (call, here(), false));
    assert_eq!(*seen.lock().unwrap(), expected);
    assert_eq!(desk.items()?, same(&["book"]));

    let tx = desk.manager.begin()?;
    desk.write(&tx, "lamp")?;
    desk.manager.abort()?;
    let tx = desk.manager.begin()?;
    desk.write(&tx, "lamp")?;
    desk.labels.fail(Call::Prepare, Fault::Refused);
    assert!(desk.manager.commit().is_err());
    desk.manager.abort()?;
    assert_eq!(desk.items()?, same(&["book"]));
    assert_eq!(desk.manager.recover(), []);
    desk.manager.shutdown(Duration::from_secs(60))?;
    Ok(())
}

/// Savepoints of the real stores, on the thread.
#[test]
fn a_savepoint_undoes_what_came_after_it() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let desk = Desk::open(folder.path())?;
    let receipts = desk.receipts.resource();
    let builder =
        TransactionManager::builder(MemoryLog::new()).resource(desk.orders.clone()).resource(receipts.clone());
    let manager = ThreadManager::new(desk.background.build(builder)?);
    let tx = manager.begin()?;
    let write = |item: &'static str| -> Result<(), BoxError> {
        wait(tx.join(&desk.orders)?.execute("insert into orders (item) values (?1)", (item,)))?;
        Ok(wait(tx.join(receipts)?.create(format!("{item}.txt"), item))?)
    };
    write("book")?;
    let savepoint = manager.savepoint()?;
    write("lamp")?;
    let later = tx.savepoint_optimistic()?;
    savepoint.rollback()?;
    assert_eq!([savepoint.is_valid(), later.is_valid()], [true, false]);
    assert!(later.rollback().is_err());
    write("tea")?;
    manager.commit()?;
    let [orders, receipts, _] = desk.items()?;
    assert_eq!([orders, receipts], [["book", "tea"], ["book", "tea"]]);
    Ok(())
}

/// Threads that want the same rows: `run` repeats who came too late, and nothing is lost.
#[test]
fn threads_that_contend_lose_nothing() -> Result<(), BoxError> {
    const EACH: i64 = 10;
    let folder = tempfile::tempdir()?;
    let desk = Desk::open(folder.path())?;
    let count = |tx: &ThreadTx| -> Result<(), BoxError> {
        let orders = tx.join(&desk.orders)?;
        let items: i64 = wait(orders.query_row("select count(*) from orders", (), |row| row.get(0)))?;
        wait(orders.execute("insert into orders (item) values (?1)", (items,)))?;
        Ok(wait(tx.join(&desk.receipts)?.create(format!("{items}.txt"), items.to_string()))?)
    };
    thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| (0..EACH).for_each(|_| desk.manager.run(100, count).unwrap()));
        }
    });
    let [orders, receipts, _] = desk.items()?;
    let mut expected: Vec<_> = (0..3 * EACH).map(|item| item.to_string()).collect();
    expected.sort();
    assert_eq!([orders, receipts], [expected.clone(), expected]);
    Ok(())
}

const DATA: &str = "UNANIMOUS_TEST_THREAD_DATA";
const MOMENT: &str = "UNANIMOUS_TEST_THREAD_MOMENT";
/// Where the child waits for its end, and what is there after recovery.
const BEFORE: &str = "before the decision";
const AFTER: &str = "after the decision";

/// The child's part: its thread stops in the middle of a commit, in a call of a branch.
fn stop_half_way(data: &Path, moment: &str) -> Result<(), BoxError> {
    let desk = Desk::open(data)?;
    let tx = desk.manager.begin()?;
    desk.write(&tx, "book")?;
    let hold = match moment {
        // The first of the folders has prepared then.
        BEFORE => desk.receipts.hold(Call::Prepare),
        _ => desk.labels.hold(Call::Commit),
    };
    thread::scope(|threads| {
        threads.spawn(|| {
            desk.background.open(hold.reached());
            println!("the child waits for its end");
        });
        desk.manager.commit().map(drop)
    })?;
    Ok(())
}

/// A process that is killed in the middle: the next one finishes, also on plain threads. Expected: all three have the order where the
/// database had committed with its decision, none otherwise.
#[test]
fn what_kill_9_left_is_finished_by_the_next_process() -> Result<(), BoxError> {
    if let (Some(data), Ok(moment)) = (std::env::var_os(DATA), std::env::var(MOMENT)) {
        return stop_half_way(Path::new(&data), &moment);
    }
    for (moment, expected) in [(BEFORE, [].as_slice()), (AFTER, &["book"])] {
        let folder = TempDir::new()?;
        let data = folder.path();
        let mut child = Command::new(std::env::current_exe()?);
        let name = "thread_stores::what_kill_9_left_is_finished_by_the_next_process";
        child.args(["--exact", name, "--nocapture"]);
        let mut child = Program::start(child.env(DATA, data).env(MOMENT, moment))?;
        let waits = |line: &str| line.contains("the child waits for its end").then_some(());
        child.wait_for_line(Duration::from_secs(60), waits)?;
        child.kill()?;

        let background = Background::start()?;
        let labels = background.open(Files::open("labels", data.join("labels")))?;
        assert_eq!(wait(labels.in_doubt())?.len(), 1, "killed {moment}, the labels' promise is listed");
        drop((labels, background));

        let desk = Desk::open(data)?;
        assert_eq!(desk.manager.manager().in_doubt(), [], "killed {moment}, recovery has finished");
        assert_eq!(desk.items()?, same(expected), "killed {moment}");
        desk.manager.run(1, |tx| desk.write(tx, "tea"))?;
        assert_eq!(desk.items()?, same(&[expected, &["tea"]].concat()), "killed {moment}");
    }
    Ok(())
}

/// The example does what it says.
#[test]
fn the_example_runs() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    example::order_desk(folder.path())?;
    let text = |path: &str| fs::read_to_string(folder.path().join(path));
    assert_eq!(text("receipts/1.txt")?, "one book, paid");
    assert_eq!(text("labels/1.txt")?, "to: the reader, a book");
    assert!(!folder.path().join("receipts/2.txt").exists(), "the lamp was out of stock");
    assert!(!folder.path().join("labels/2.txt").exists(), "the lamp was out of stock");
    Ok(())
}
