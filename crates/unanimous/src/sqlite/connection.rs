//! Opens connections that a decision may rest on: WAL, synchronous FULL, the right file with the right identity.
//!
//! Must not know branches or the thread that a connection lives on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use unanimous_core::StoreId;

use super::error::{FileChanged, OpenError, is_busy};
use super::file::{self, OpenedFile};
use super::rows;
use crate::env::Env;

/// The format of our tables.
pub(super) const FORMAT: i64 = 1;

/// What the application does with each new connection.
pub(super) type Init = Arc<dyn Fn(&Connection) -> rusqlite::Result<()> + Send + Sync>;

/// How connections of one store are opened.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) path: PathBuf,
    pub(super) must_exist: bool,
    pub(super) lock_timeout: Duration,
    pub(super) init: Option<Init>,
    pub(super) env: Arc<dyn Env>,
}

impl Opener {
    /// Opens the database, creates it and our tables where they are new.
    pub(super) fn open_first(&self) -> Result<(Connection, OpenedFile, StoreId), OpenError> {
        let path = &self.path;
        let before = file::seen_before(path)?;
        let there = path.try_exists().map_err(|source| OpenError::NoFolder { folder: path.clone(), source })?;
        if !there && self.must_exist {
            return Err(OpenError::NotThere { path: path.clone() });
        }
        let create = if there { OpenFlags::empty() } else { OpenFlags::SQLITE_OPEN_CREATE };
        let conn = self.connect(create)?;
        if let Some(expected) = before {
            // Looked at before anything is written: a database that took the place of ours gets neither tables nor an
            // identity.
            let found = self.read_identity(&conn)?;
            if found.as_ref() != Some(&expected) {
                return Err(FileChanged::OtherIdentity { path: path.clone(), expected, found }.into());
            }
        }
        self.configure(&conn)?;
        let identity = self.make_identity(&conn)?;
        // The identity was read above, so the log is there.
        let opened = OpenedFile::at(path.clone(), conn.path())?;
        file::remember(&opened, &identity)?;
        Ok((conn, opened, identity))
    }

    /// Opens another connection to a database that is open already; never creates one.
    pub(super) fn open_next(&self, opened: &OpenedFile, identity: &StoreId) -> Result<Connection, OpenError> {
        opened.check()?;
        let conn = self.connect(OpenFlags::empty())?;
        // A file that came to the path between the check and the open has another identity, or none.
        let found = self.read_identity(&conn)?;
        if found.as_ref() != Some(identity) {
            return Err(
                FileChanged::OtherIdentity { path: self.path.clone(), expected: identity.clone(), found }.into()
            );
        }
        self.configure(&conn)?;
        opened.check()?;
        Ok(conn)
    }

    fn connect(&self, create: OpenFlags) -> Result<Connection, OpenError> {
        // Each connection has one thread at a time, so SQLite's own mutex is not needed.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
        let conn = Connection::open_with_flags(&self.path, flags)
            .map_err(|source| self.failed("opening the database", source))?;
        conn.busy_timeout(self.lock_timeout).map_err(|source| self.failed("configuring", source))?;
        Ok(conn)
    }

    /// The application's settings first (some, like the page size, must come before the first table), then ours, which
    /// win.
    fn configure(&self, conn: &Connection) -> Result<(), OpenError> {
        if let Some(init) = &self.init {
            init(conn).map_err(OpenError::Init)?;
        }
        if !conn.is_autocommit() {
            return Err(OpenError::InitLeftOpen);
        }
        let schemas: Vec<String> = conn
            .prepare("SELECT name FROM pragma_database_list")
            .and_then(|mut rows| rows.query_map([], |row| row.get(0))?.collect())
            .map_err(|source| self.failed("listing the schemas of", source))?;
        if let Some(schema) = schemas.into_iter().find(|name| name != "main" && name != "temp") {
            return Err(OpenError::Attached { schema });
        }
        let mode: String = self
            .until_unlocked(|| conn.query_row("PRAGMA main.journal_mode = WAL", [], |row| row.get(0)))
            .map_err(|source| self.failed("switching to the write-ahead log in", source))?;
        if !mode.eq_ignore_ascii_case("wal") {
            return Err(OpenError::NoWriteAheadLog { path: self.path.clone(), mode });
        }
        // FULL: a commit is on the disk when it returns, which a decision needs; NORMAL would sync at checkpoints only.
        // fullfsync matters where fsync leaves data in the disk's cache (macOS), and is ignored elsewhere.
        conn.execute_batch(
            "PRAGMA main.synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON; PRAGMA query_only = OFF;",
        )
        .map_err(|source| self.failed("configuring", source))?;
        // `init` may have changed it; branches rely on it.
        conn.busy_timeout(self.lock_timeout).map_err(|source| self.failed("configuring", source))
    }

    /// The identity, if the database has one; looks only.
    fn read_identity(&self, conn: &Connection) -> Result<Option<StoreId>, OpenError> {
        let failed = |source| self.failed("reading the identity of", source);
        let there: bool = self
            .until_unlocked(|| {
                conn.query_row(
                    "SELECT EXISTS (SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = 'unanimous_identity')",
                    [],
                    |row| row.get(0),
                )
            })
            .map_err(failed)?;
        if !there {
            return Ok(None);
        }
        let Some((store, format)) = rows::identity(conn).map_err(failed)? else { return Ok(None) };
        if format > FORMAT {
            return Err(OpenError::NewerFormat { path: self.path.clone(), found: format });
        }
        match store.parse() {
            Ok(identity) => Ok(Some(identity)),
            Err(_) => Err(OpenError::DamagedIdentity { path: self.path.clone(), found: store }),
        }
    }

    /// The identity; where the database is new here, our tables and an identity are made, in one transaction: another
    /// process may be doing the same.
    fn make_identity(&self, conn: &Connection) -> Result<StoreId, OpenError> {
        if let Some(identity) = self.read_identity(conn)? {
            return Ok(identity);
        }
        let failed = |source| self.failed("creating the tables of unanimous in", source);
        let identity = StoreId::from_random(u128::from(self.env.random()) << 64 | u128::from(self.env.random()));
        self.until_unlocked(|| conn.execute_batch("BEGIN IMMEDIATE")).map_err(failed)?;
        conn.execute_batch(rows::SCHEMA)
            .and_then(|()| {
                conn.execute(
                    "INSERT INTO main.unanimous_identity (one, store, format) VALUES (1, ?1, ?2) ON CONFLICT (one) DO NOTHING",
                    (identity.as_str(), FORMAT),
                )
            })
            .and_then(|_| conn.execute_batch("COMMIT"))
            .map_err(failed)?;
        match self.read_identity(conn)? {
            Some(identity) => Ok(identity),
            None => Err(OpenError::DamagedIdentity { path: self.path.clone(), found: String::new() }),
        }
    }

    /// Some locks (a switch of the journal mode, recovery of the log by another process) bypass SQLite's busy timeout.
    fn until_unlocked<T>(&self, attempt: impl FnMut() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        Patience::new(&*self.env, self.lock_timeout).until_unlocked(|| false, attempt)
    }

    fn failed(&self, doing: &'static str, source: rusqlite::Error) -> OpenError {
        OpenError::Sqlite { path: Path::to_owned(&self.path), doing, source }
    }
}

/// A wait for somebody else's lock, with a bound. Blocks its thread.
pub(super) struct Patience<'e> {
    env: &'e dyn Env,
    began: Duration,
    bound: Duration,
}

impl<'e> Patience<'e> {
    pub(super) fn new(env: &'e dyn Env, bound: Duration) -> Self {
        Self { env, began: env.monotonic(), bound }
    }

    /// Since the wait began.
    pub(super) fn waited(&self) -> Duration {
        self.env.monotonic().saturating_sub(self.began)
    }

    /// Repeats an attempt while it finds the database busy, until it is not, the bound has passed or nobody wants it
    /// any more.
    pub(super) fn until_unlocked<T>(
        &self,
        abandoned: impl Fn() -> bool,
        mut attempt: impl FnMut() -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        // SQLite's own busy handler can't be told to give up. Its delays, capped lower: a queue of one process waits
        // behind this one.
        let mut pauses = [1, 2, 5, 10, 15, 20].into_iter();
        loop {
            match attempt() {
                Err(error) if is_busy(&error) => {
                    let left = self.bound.saturating_sub(self.waited());
                    if left.is_zero() || abandoned() {
                        return Err(error);
                    }
                    let pause = Duration::from_millis(pauses.next().unwrap_or(25));
                    std::thread::sleep(pause.min(left));
                }
                other => return other,
            }
        }
    }
}
