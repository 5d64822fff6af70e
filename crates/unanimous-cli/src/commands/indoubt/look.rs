//! One look at each store: what is prepared there, and which decisions it keeps. Nothing is changed.
//!
//! SQLite and files are looked at as another program would: the library's own stores clean up when they are opened.
//!
//! Must not know the decision log, nor what follows from what is seen.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use unanimous::postgres::{Lock, Postgres, Waiting};
use unanimous::{
    BranchId, DecisionRecord, Known, LogId, Note, Participant, ResourceManager as _, StoreId, TransactionId,
};

use crate::commands::chain;
use crate::stores::{Given, Store};
use crate::time::utc;

/// Another program holds a SQLite database's lock for moments only.
const BUSY: Duration = Duration::from_secs(5);
/// The files of a folder that is a store.
const OWN: &str = ".unanimous";

/// What was seen of a store.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) kind: &'static str,
    /// What it has, or why it can't be asked.
    pub(super) state: Result<Content, String>,
}

impl Seen {
    /// Whether it answers, and is this store.
    pub(super) fn is(&self, store: &StoreId) -> bool {
        self.state.as_ref().is_ok_and(|content| content.store == *store)
    }
}

#[derive(Debug)]
pub(super) struct Content {
    pub(super) store: StoreId,
    pub(super) branches: Vec<Listed>,
    /// Prepared by other programs.
    pub(super) others: Vec<Other>,
    /// Why it can't be told what is held.
    pub(super) locks_unknown: Option<String>,
    /// Where decision rows can be asked for.
    rows: Rows,
}

/// A branch of ours that is prepared.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) branch: BranchId,
    /// UTC, ISO 8601.
    pub(super) since: String,
    pub(super) role: Option<String>,
    pub(super) locks: Vec<Lock>,
    /// Paths of files that are claimed.
    pub(super) paths: Vec<String>,
    /// When its store itself decided to commit it (microseconds since 1970, UTC), and has not completed that.
    pub(super) decided: Option<u64>,
    pub(super) waiting: Vec<Waiting>,
}

/// A prepared transaction of another program.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) id: String,
    pub(super) role: String,
    pub(super) since: String,
    pub(super) waiting: usize,
}

/// Who keeps a store's decision rows.
#[derive(Debug)]
enum Rows {
    Postgres(Postgres),
    Sqlite(Connection),
    None,
}

/// What a row says.
#[derive(Debug)]
pub(super) enum Row {
    Commit(DecisionRecord),
    Abort,
    None,
}

impl From<Option<Known>> for Row {
    fn from(found: Option<Known>) -> Self {
        match found {
            Some(Known::Commit(record)) => Row::Commit(record),
            Some(_) => Row::Abort,
            None => Row::None,
        }
    }
}

pub(super) async fn look(given: &Given) -> Seen {
    let state = match &given.store {
        Store::Postgres(postgres) => look_at_postgres(postgres).await,
        Store::Sqlite(path) => look_at_sqlite(path),
        Store::Files(path) => look_at_files(path),
    };
    Seen { name: given.name.clone(), kind: given.store.kind(), state }
}

async fn look_at_postgres(postgres: &Postgres) -> Result<Content, String> {
    let survey = postgres.survey().await.map_err(|error| chain(&error))?;
    let store = postgres.identity().await.map_err(|error| chain(&error))?;
    let (mut branches, mut others) = (Vec::new(), Vec::new());
    for told in survey.transactions {
        match told.branch {
            Some(branch) => branches.push(Listed {
                branch,
                since: told.since,
                role: Some(told.owner),
                locks: told.locks,
                paths: Vec::new(),
                decided: None,
                waiting: told.waiting,
            }),
            None => {
                others.push(Other { id: told.gid, role: told.owner, since: told.since, waiting: told.waiting.len() })
            }
        }
    }
    let locks_unknown = survey.locks.err().map(|error| chain(&error));
    Ok(Content { store, branches, others, locks_unknown, rows: Rows::Postgres(postgres.clone()) })
}

fn look_at_files(root: &Path) -> Result<Content, String> {
    let own = root.join(OWN);
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("{path}: {error}")
    };
    let identity = own.join("identity");
    let text = fs::read_to_string(&identity).map_err(failed(&identity))?;
    let store = text.lines().find_map(|line| line.strip_prefix("store ")).and_then(|id| id.parse().ok());
    let store = store.ok_or_else(|| format!("{} has no identity of a store", identity.display()))?;
    let prepared = own.join("prepared");
    let mut branches = Vec::new();
    for entry in fs::read_dir(&prepared).map_err(failed(&prepared))? {
        let path = entry.map_err(failed(&prepared))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A branch that is `decided` is completed by whoever uses the folder next, whatever any decider says.
        let (id, own) = match name.strip_suffix(".prepared") {
            Some(id) => (Some(id), false),
            None => (name.strip_suffix(".decided"), true),
        };
        let Some(branch) = id.and_then(|id| id.parse().ok()) else { continue };
        // It may have gone since the folder was listed.
        let (Ok(manifest), Ok(metadata)) = (fs::read_to_string(&path), fs::metadata(&path)) else { continue };
        let since = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let since = since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
        branches.push(Listed {
            branch,
            since: utc(since),
            role: None,
            locks: Vec::new(),
            paths: claimed(&manifest),
            decided: own.then_some(since),
            waiting: Vec::new(),
        });
    }
    branches.sort_by(|a, b| (&a.since, &a.branch).cmp(&(&b.since, &b.branch)));
    Ok(Content { store, branches, others: Vec::new(), locks_unknown: None, rows: Rows::None })
}

/// The paths that a manifest claims (docs/files-layout.md): the last field of its operations.
fn claimed(manifest: &str) -> Vec<String> {
    let fields = |line: &str| -> Option<String> {
        let (word, rest) = line.split_once(' ')?;
        let before = match word {
            "create" | "replace" => 3,
            "delete" => 1,
            _ => return None,
        };
        rest.splitn(before + 1, ' ').nth(before).map(str::to_owned)
    };
    manifest.lines().filter_map(fields).collect()
}

fn look_at_sqlite(path: &Path) -> Result<Content, String> {
    let read = || -> Result<Content, Box<dyn std::error::Error>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags)?;
        database.busy_timeout(BUSY)?;
        let store: String =
            database.query_row("SELECT store FROM main.unanimous_identity", [], |row| row.get(0)).map_err(|error| {
                format!("it has no identity of a store; was it ever one of the application's? ({error})")
            })?;
        Ok(Content {
            store: store.parse()?,
            branches: Vec::new(),
            others: Vec::new(),
            locks_unknown: None,
            rows: Rows::Sqlite(database),
        })
    };
    read().map_err(|error| format!("{}: {}", path.display(), chain(&*error)))
}

fn record(database: &Connection, transaction: TransactionId) -> Result<DecisionRecord, Box<dyn std::error::Error>> {
    let id = transaction.to_string();
    let decided_at: i64 = database.query_row(
        "SELECT decided_at FROM main.unanimous_decision WHERE transaction_id = ?1",
        [&id],
        |row| row.get(0),
    )?;
    let mut select = database.prepare(
        "SELECT number, resource, store FROM main.unanimous_participant WHERE transaction_id = ?1 ORDER BY number",
    )?;
    let mut rows = select.query([&id])?;
    let mut participants = Vec::new();
    while let Some(row) = rows.next()? {
        let store: Option<String> = row.get(2)?;
        let store = store.map(|store| store.parse()).transpose()?;
        participants.push(Participant { number: row.get(0)?, resource: row.get(1)?, store });
    }
    Ok(DecisionRecord { transaction, participants, decided_at: u64::try_from(decided_at)?, note: Note::default() })
}

impl Content {
    /// What the store says of a transaction that it decides; none where it can't decide any.
    pub(super) async fn row(&self, transaction: TransactionId) -> Option<Result<Row, String>> {
        match &self.rows {
            Rows::None => None,
            Rows::Postgres(postgres) => {
                let found = postgres.decision_row(transaction).await;
                Some(found.map_err(|error| chain(&error)).map(Row::from))
            }
            Rows::Sqlite(database) => Some(sqlite_row(database, transaction).map_err(|error| chain(&*error))),
        }
    }

    /// The transactions of a log that this store decided to commit, and that are not noted as finished.
    pub(super) async fn unfinished(&self, log: LogId) -> Result<Vec<DecisionRecord>, String> {
        match &self.rows {
            Rows::None => Ok(Vec::new()),
            Rows::Postgres(postgres) => postgres.unfinished_rows(log).await.map_err(|error| chain(&error)),
            Rows::Sqlite(database) => sqlite_unfinished(database, log).map_err(|error| chain(&*error)),
        }
    }
}

fn sqlite_row(database: &Connection, transaction: TransactionId) -> Result<Row, Box<dyn std::error::Error>> {
    let outcome: Option<String> = database
        .query_row(
            "SELECT outcome FROM main.unanimous_decision WHERE transaction_id = ?1",
            [transaction.to_string()],
            |row| row.get(0),
        )
        .optional()?;
    Ok(match outcome.as_deref() {
        Some("commit") => Row::Commit(record(database, transaction)?),
        Some(_) => Row::Abort,
        None => Row::None,
    })
}

fn sqlite_unfinished(database: &Connection, log: LogId) -> Result<Vec<DecisionRecord>, Box<dyn std::error::Error>> {
    let mut select = database.prepare(
        "SELECT transaction_id FROM main.unanimous_decision WHERE outcome = 'commit' AND finished_at IS NULL AND log = ?1 \
         ORDER BY decided_at, transaction_id",
    )?;
    let ids: Vec<String> = select.query_map([log.to_string()], |row| row.get(0))?.collect::<Result<_, _>>()?;
    ids.into_iter().map(|id| record(database, id.parse()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifests_paths_are_read() {
        let manifest = "unanimous files manifest 1\noperations 3\ncreate 0 11 b94d receipts/7.json\nreplace 1 0 e3b0 a b\n\
                        delete 2 receipts/6.json\nsha256 0\n";
        assert_eq!(claimed(manifest), ["receipts/7.json", "a b", "receipts/6.json"]);
    }
}
