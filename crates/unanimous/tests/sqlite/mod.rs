//! The SQLite adapter against real files: what each test needs, in one place.

// Clippy knows test functions, but not what helps them.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod crash;
mod decisions;
mod ends;
mod file;
mod guard;
mod queue;
mod savepoints;
mod work;

use std::error::Error;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tempfile::TempDir;
use unanimous::sqlite::{Sqlite, SqliteBranch, SqliteOptions, rusqlite};
use unanimous::{
    BranchContext, BranchError, BranchId, DeciderId, DecisionRecord, FailureKind, Incarnation, LogId, Note, Owner,
    Participant, ResourceManager, TransactionId,
};

/// What every wait here is bounded by; far more than any of them takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with one database in it: table `t (id integer primary key, v)`.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("work.db")
    }

    async fn open(&self) -> Sqlite {
        self.open_with(Duration::from_secs(30)).await
    }

    async fn open_with(&self, lock_timeout: Duration) -> Sqlite {
        open(&self.path(), lock_timeout).await
    }

    /// What a stranger sees: a connection of its own, without this library.
    fn stranger(&self) -> rusqlite::Connection {
        let conn = rusqlite::Connection::open(self.path()).unwrap();
        conn.busy_timeout(PATIENCE).unwrap();
        conn
    }

    /// The values in `t`, by id, as a stranger sees them.
    fn values(&self) -> Vec<String> {
        strings(&self.stranger(), "SELECT v FROM t ORDER BY id")
    }
}

async fn open(path: &Path, lock_timeout: Duration) -> Sqlite {
    Sqlite::builder("work", path)
        .lock_timeout(lock_timeout)
        .init(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v)"))
        .open()
        .await
        .unwrap()
}

fn strings(conn: &rusqlite::Connection, sql: &str) -> Vec<String> {
    conn.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// The second incarnation of a log.
fn owner() -> Owner {
    Owner { log: LogId(7), incarnation: Incarnation::new(2, 0xabcde) }
}

fn id(transaction: TransactionId) -> BranchId {
    BranchId { transaction, decider: DeciderId::Log, number: 0 }
}

fn record(transaction: TransactionId) -> DecisionRecord {
    DecisionRecord {
        transaction,
        participants: vec![
            Participant { number: 0, resource: "work".to_owned(), store: Some("work-store".parse().unwrap()) },
            Participant { number: 1, resource: "a mailer, volatile".to_owned(), store: None },
            Participant { number: 300, resource: "räksmörgås".to_owned(), store: Some("0-9".parse().unwrap()) },
        ],
        decided_at: 1_700_000_000_000_001,
        note: Note::default(),
    }
}

async fn begin(store: &Sqlite, sequence: u64) -> SqliteBranch {
    begin_with(store, sequence, SqliteOptions::new()).await.expect("a branch")
}

async fn begin_with(store: &Sqlite, sequence: u64, options: SqliteOptions) -> Result<SqliteBranch, BranchError> {
    within(store.begin(&BranchContext::new(owner().transaction(sequence)), options)).await
}

async fn insert(branch: &SqliteBranch, value: &str) {
    within(branch.execute("INSERT INTO t (v) VALUES (?1)", (value.to_owned(),))).await.expect("the insert");
}

/// A future that must not hang.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it did not end within a minute")
}

/// Polls a future once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context))).await
}

/// An error that must be of a kind, and its source of a type.
#[track_caller]
fn source<E: Error + 'static>(result: Result<impl Sized, BranchError>, kind: FailureKind) -> E {
    let error = result.err().expect("an error");
    assert_eq!(error.kind(), kind, "{error:?}");
    let source = error.into_source();
    match source.downcast::<E>() {
        Ok(source) => *source,
        Err(other) => panic!("another source: {other:?}"),
    }
}

/// The child's part of a test that needs two processes: the same test binary, running the test of this name, which
/// looks at this variable first.
fn child(test: &str, variable: &str, value: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().expect("this test binary"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(variable, value);
    command
}
