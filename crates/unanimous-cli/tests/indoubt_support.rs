//! What the tests of `indoubt` and `recover` share: databases, a folder with a decision log, and what a crash leaves in them.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use unanimous::log::FileLog;
use unanimous::postgres::Postgres;
use unanimous::{
    BranchId, DeciderId, DecisionLog as _, DecisionRecord, Note, Owner, Participant, ResourceManager, StoreId,
    TransactionId,
};
use unanimous_testing::postgres::{Cluster, Database};

use crate::support::{told, unanimous};

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Looks until it is so.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same text with TIME for each time.
pub(crate) fn masked(text: &str) -> String {
    let mut masked = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("20") {
        let (before, time) = rest.split_at(at);
        masked.push_str(before);
        let shape = time.get(..24).is_some_and(|time| {
            time.bytes().zip("dddd-dd-ddTdd:dd:dd.dddZ".bytes()).all(|(byte, shape)| match shape {
                b'd' => byte.is_ascii_digit(),
                shape => byte == shape,
            })
        });
        let length = if shape { 24 } else { 2 };
        masked.push_str(if shape { "TIME" } else { "20" });
        rest = &time[length..];
    }
    masked + rest
}

/// How the command names this process.
pub(crate) fn this_process() -> String {
    let pid = std::process::id();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    format!("the process {pid} ({})", name.trim())
}

pub(crate) fn database() -> Database<'static> {
    let database = Cluster::shared().database().unwrap();
    database.psql("create table t (v text)").unwrap();
    database
}

/// `--postgres` for a database.
pub(crate) fn postgres(name: &str, database: &Database<'_>) -> String {
    format!("--postgres={name}={}", database.url())
}

/// A folder with a decision log.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("decisions")
    }

    /// Opens the log and closes it, as a process that came and went.
    pub(crate) fn incarnation(&self) -> Owner {
        runtime().block_on(async {
            let log = FileLog::open(self.log()).await.unwrap();
            log.close().await;
            log.owner()
        })
    }

    /// The same for one that decided to commit its first transaction.
    pub(crate) fn decided(&self, participants: Vec<Participant>) -> TransactionId {
        runtime().block_on(async {
            let log = FileLog::open(self.log()).await.unwrap();
            let transaction = log.owner().transaction(1);
            log.decide(DecisionRecord {
                transaction,
                participants,
                decided_at: 1_600_000_000_000_000,
                note: Note::new("order 7"),
            })
            .await
            .unwrap();
            log.close().await;
            transaction
        })
    }

    pub(crate) fn run(&self, command: &[&str], stores: &[&str]) -> (Option<i32>, String, String) {
        let log = format!("--log={}", self.log().display());
        let arguments = command.iter().copied().chain([log.as_str()]).chain(stores.iter().copied());
        let (code, out, err) = told(&unanimous(arguments));
        (code, masked(&out), err)
    }

    /// The lines of `indoubt` that are a branch's.
    pub(crate) fn branch(&self, stores: &[&str], branch: &BranchId) -> Vec<String> {
        let (code, out, err) = self.run(&["indoubt"], stores);
        assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
        let lines = out.lines().skip_while(|line| line.trim() != branch.to_string()).skip(1);
        lines.take_while(|line| line.starts_with("    ")).map(|line| line.trim().to_owned()).collect()
    }
}

pub(crate) fn branch(transaction: TransactionId, number: u16) -> BranchId {
    BranchId { transaction, decider: DeciderId::Log, number }
}

/// Prepares a branch that has inserted its number.
pub(crate) fn prepare(database: &Database<'_>, branch: &BranchId) {
    let number = branch.number;
    database.psql(&format!("begin; insert into t values ('{number}'); prepare transaction '{branch}'")).unwrap();
}

pub(crate) fn identity(store: &impl ResourceManager) -> StoreId {
    runtime().block_on(store.identity()).unwrap()
}

pub(crate) fn store(name: &str, database: &Database<'_>) -> Postgres {
    Postgres::from_url(name, &database.url()).unwrap()
}

/// Branch 0 in the first, branch 1 in the second.
pub(crate) fn participants(stores: &[(&str, &Database<'_>)]) -> Vec<Participant> {
    let participants = stores.iter().zip(0..).map(|((name, database), number)| Participant {
        number,
        resource: (*name).to_owned(),
        store: Some(identity(&store(name, database))),
    });
    participants.collect()
}

pub(crate) fn values(database: &Database<'_>) -> String {
    database.psql("select coalesce(string_agg(v, ' ' order by v), '') from t").unwrap()
}
