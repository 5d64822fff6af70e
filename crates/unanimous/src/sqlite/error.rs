//! What can go wrong, one type for each operation: [`OpenError`], [`BeginError`], [`SqliteError`] (the application's
//! own work), [`EndError`] (commit) and [`DecisionError`] (the rows). Each says what to do.
//!
//! Must not know the protocol: what an error means for it is said where the branch's answer is given.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::ErrorCode;
use unanimous_core::{SavepointId, StoreId, TransactionId};

use crate::error::sources;

/// The file at the database's path is not the one that was opened. Everything that is still open would be written into
/// a file that nobody can find any more, so nothing is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileChanged {
    /// There is no file (or folder) at the path any more.
    Gone {
        /// The database, or its write-ahead log.
        path: PathBuf,
    },
    /// There is another file.
    Replaced {
        /// The database, or its write-ahead log.
        path: PathBuf,
    },
    /// There is another database: its identity is not the one that was there before in this process.
    OtherIdentity {
        /// The database.
        path: PathBuf,
        /// The identity that was there before.
        expected: StoreId,
        /// The identity that is there now; none where the database has none.
        found: Option<StoreId>,
    },
}

impl fmt::Display for FileChanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileChanged::Gone { path } => write!(
                f,
                "the database file {} was there before and is gone; put the same file back (is its folder mounted?), \
                 or restart the process to go on with what is there then",
                path.display()
            ),
            FileChanged::Replaced { path } => write!(
                f,
                "the database file {} is not the file that was there before; put the same file back, \
                 or restart the process to go on with the other one",
                path.display()
            ),
            FileChanged::OtherIdentity { path, expected, found } => {
                let found = found.as_ref().map_or("none", StoreId::as_str);
                write!(
                    f,
                    "the database {} had the identity {expected} before and has {found} now; put the same file back, \
                     or restart the process to go on with the other one",
                    path.display()
                )
            }
        }
    }
}

impl Error for FileChanged {}

/// A database could not be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// `:memory:` or an empty path: nothing of it would survive a crash.
    InMemory,
    /// The path has no file name, or the folder is not there.
    NoFolder {
        /// The folder that is missed.
        folder: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// There is no file, and [`must_exist`](super::SqliteBuilder::must_exist) was asked for.
    NotThere {
        /// The database.
        path: PathBuf,
    },
    /// The file is not the one that was open before in this process.
    Changed(FileChanged),
    /// The write-ahead log can't be used there, a network file system for one.
    NoWriteAheadLog {
        /// The database.
        path: PathBuf,
        /// The journal mode that SQLite has chosen instead.
        mode: String,
    },
    /// `init` attached another database, whose part of a commit could be lost alone in a crash.
    Attached {
        /// The schema's name.
        schema: String,
    },
    /// `init` returned within a transaction of its own.
    InitLeftOpen,
    /// `init` failed.
    Init(rusqlite::Error),
    /// The tables in the database were made by a later version of this library.
    NewerFormat {
        /// The database.
        path: PathBuf,
        /// The format that was found.
        found: i64,
    },
    /// The identity row is not what this library has written.
    DamagedIdentity {
        /// The database.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// The connection's thread could not be started, or has ended.
    Thread(std::io::Error),
    /// SQLite failed.
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::InMemory => f.write_str(
                "a database in memory can't take part in transactions that survive a crash; give a file's path",
            ),
            OpenError::NoFolder { folder, .. } => {
                write!(f, "the folder {} can't be used; create it, or mount it, first", folder.display())
            }
            OpenError::NotThere { path } => write!(
                f,
                "there is no database at {}, and it must exist already; look whether its folder is mounted, \
                 or leave out `must_exist` to create it",
                path.display()
            ),
            OpenError::Changed(changed) => changed.fmt(f),
            OpenError::NoWriteAheadLog { path, mode } => write!(
                f,
                "{} can't have a write-ahead log (SQLite chose the journal mode {mode:?}); put it on a local file system",
                path.display()
            ),
            OpenError::Attached { schema } => write!(
                f,
                "`init` attached another database as {schema:?}, and a commit over two files is not atomic in a crash; \
                 open each file as a store of its own"
            ),
            OpenError::InitLeftOpen => f.write_str("`init` left a transaction open; end it there"),
            OpenError::Init(_) => f.write_str("`init` failed on a new connection"),
            OpenError::NewerFormat { path, found } => write!(
                f,
                "the tables of unanimous in {} have format {found}, this version knows up to {}; use the version that made them",
                path.display(),
                super::connection::FORMAT
            ),
            OpenError::DamagedIdentity { path, found } => write!(
                f,
                "the table unanimous_identity in {} holds {found:?}, which is no identity; restore it from a backup",
                path.display()
            ),
            OpenError::Thread(_) => f.write_str("a thread for a connection could not be started"),
            OpenError::Sqlite { path, doing, .. } => write!(f, "{doing} {} failed", path.display()),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            OpenError::NoFolder { source, .. } | OpenError::Thread(source) => Some(source),
            OpenError::Init(source) | OpenError::Sqlite { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<FileChanged> for OpenError {
    fn from(changed: FileChanged) -> Self {
        OpenError::Changed(changed)
    }
}

/// A branch could not begin. It is the source of the [`BranchError`](unanimous_core::BranchError) that a join fails
/// with.
#[derive(Debug)]
#[non_exhaustive]
pub enum BeginError {
    /// Another transaction held the database for the whole lock timeout. Worth repeating.
    LockTimeout {
        /// How long was waited.
        waited: Duration,
        /// For what.
        by: Holder,
    },
    /// The store was closed.
    Closed,
    /// The file is not the one that was opened.
    Changed(FileChanged),
    /// A connection could not be opened.
    Open(OpenError),
    /// SQLite failed to begin.
    Sqlite(rusqlite::Error),
    /// The connection's thread has ended.
    ThreadEnded,
}

/// Who holds what a branch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// Writing transactions of this process, which queue up in order.
    ThisProcess,
    /// A writing transaction of another process, or of another handle of the same file.
    Elsewhere,
    /// Reading transactions of this process: as many as may be open at once.
    Readers,
}

impl fmt::Display for BeginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BeginError::LockTimeout { waited, by } => {
                let by = match by {
                    Holder::ThisProcess => "a writing transaction of this process had the database",
                    Holder::Elsewhere => "another process had the database locked for writing",
                    Holder::Readers => "as many reading transactions as may be were open",
                };
                write!(f, "waited {} ms in vain: {by}; repeat the transaction", waited.as_millis())
            }
            BeginError::Closed => f.write_str("the store was closed; open it again"),
            BeginError::Changed(changed) => changed.fmt(f),
            BeginError::Open(_) => f.write_str("a connection could not be opened"),
            BeginError::Sqlite(_) => f.write_str("SQLite could not begin a transaction"),
            BeginError::ThreadEnded => f.write_str("the connection's thread has ended; repeat the transaction"),
        }
    }
}

impl Error for BeginError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BeginError::Open(source) => Some(source),
            BeginError::Sqlite(source) => Some(source),
            _ => None,
        }
    }
}

/// Why a branch can only be rolled back any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Broken {
    /// The work tried to begin, commit or roll back by itself. It was stopped from it, but it must not be committed as
    /// if nothing had happened.
    TransactionStatement {
        /// The statement's kind: `BEGIN`, `COMMIT` or `ROLLBACK`.
        statement: &'static str,
    },
    /// SQLite rolled the transaction back within the work: a conflict clause or trigger that says ROLLBACK (`INSERT OR
    /// ROLLBACK`), or an error after which it can't go on (disk full, an I/O error).
    RolledBack,
    /// After that, a statement would have committed on its own. It was undone.
    RanOutside,
    /// The work replaced the commit hook, rollback hook or authorizer that keep the transaction safe.
    HooksReplaced,
    /// The work panicked, perhaps halfway.
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// A rollback to a savepoint of the transaction failed: most often the work has taken it away, by `RELEASE` or `ROLLBACK TO` of a
    /// savepoint of its own that was older.
    SavepointFailed {
        /// The transaction's savepoint.
        id: SavepointId,
    },
    /// The work failed after its caller had gone away, so that nobody knows what was left out.
    UnseenFailure {
        /// What failed.
        message: String,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::TransactionStatement { statement } => write!(
                f,
                "the work issued {statement}, but the transaction is ended by its owner alone; use SAVEPOINT for a part of it"
            ),
            Broken::RolledBack => f.write_str(
                "the transaction was ended by SQLite within the work, by a ROLLBACK clause or an error that it can't go on after",
            ),
            Broken::RanOutside => {
                f.write_str("the work went on after SQLite had ended its transaction; what it wrote then was undone")
            }
            Broken::HooksReplaced => {
                f.write_str("the work replaced the connection's commit hook, rollback hook or authorizer, which guard the transaction")
            }
            Broken::Panicked { message } => write!(f, "the work panicked: {message}"),
            Broken::SavepointFailed { id } => write!(
                f,
                "the rollback to the transaction's savepoint {id} failed; \
                 a savepoint of the work's own must be released before the transaction's savepoint is made, or after its rollback"
            ),
            Broken::UnseenFailure { message } => {
                write!(f, "work whose caller had gone away failed: {message}")
            }
        }
    }
}

/// The application's own work on a branch failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum SqliteError {
    /// A statement failed. The transaction goes on; whether it can still be committed is the application's choice.
    Sql(rusqlite::Error),
    /// A statement is not allowed within a branch and was not run. The transaction goes on.
    Forbidden {
        /// What it was, and why it can't be.
        what: &'static str,
        /// What SQLite made of it.
        source: rusqlite::Error,
    },
    /// The transaction can only be rolled back. Work that is called later is not run.
    Broken {
        /// Why.
        why: Broken,
        /// The error that the work itself ended with, the first time.
        source: Option<rusqlite::Error>,
    },
    /// The transaction has ended, or is ending; the work was not run, or was interrupted and rolled back.
    Ended {
        /// How far it is.
        how: Ended,
    },
}

/// How far a transaction was that refused more work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It is being committed.
    Committing,
    /// It has committed.
    Committed,
    /// It was rolled back, or is being rolled back.
    RolledBack,
    /// Its commit failed in a way that leaves the outcome open.
    Unknown,
}

impl fmt::Display for SqliteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SqliteError::Sql(source) => write!(f, "a statement failed: {source}"),
            SqliteError::Forbidden { what, .. } => write!(f, "not within a transaction: {what}"),
            SqliteError::Broken { why, .. } => write!(f, "the transaction can only be rolled back: {why}"),
            SqliteError::Ended { how } => {
                f.write_str("the transaction has ended, and the work was not done: ")?;
                f.write_str(match how {
                    Ended::Committing => "it is being committed",
                    Ended::Committed => "it has committed",
                    Ended::RolledBack => "it was rolled back",
                    Ended::Unknown => "it failed to commit, and the outcome is open",
                })
            }
        }
    }
}

impl Error for SqliteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SqliteError::Sql(source) | SqliteError::Forbidden { source, .. } => Some(source),
            SqliteError::Broken { source, .. } => source.as_ref().map(|source| source as &(dyn Error + 'static)),
            SqliteError::Ended { .. } => None,
        }
    }
}

impl From<rusqlite::Error> for SqliteError {
    fn from(source: rusqlite::Error) -> Self {
        SqliteError::Sql(source)
    }
}

/// A branch could not commit. It is the source of the [`BranchError`](unanimous_core::BranchError).
#[derive(Debug)]
#[non_exhaustive]
pub enum EndError {
    /// Somebody asked for the transaction's outcome before, and was told Abort for good: a row says so.
    Fenced {
        /// The transaction.
        transaction: TransactionId,
    },
    /// A row says Commit already, from an earlier call.
    Repeated {
        /// The transaction.
        transaction: TransactionId,
    },
    /// The database was busy for the whole lock timeout; rolled back. Worth repeating.
    Busy {
        /// How long was waited.
        waited: Duration,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// SQLite refused, a deferred foreign key for one; rolled back.
    Refused(rusqlite::Error),
    /// The file is not the one that was opened; rolled back.
    Changed(FileChanged),
    /// SQLite failed halfway: it may have committed or not.
    Unknown(rusqlite::Error),
    /// The connection's thread has ended: it may have committed or not.
    ThreadEnded,
    /// A branch of SQLite can't prepare, so it is never committed or rolled back as a prepared one.
    NeverPrepared,
}

impl fmt::Display for EndError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndError::Fenced { transaction } => {
                write!(f, "the transaction {transaction} was decided Abort by whoever asked for its outcome before")
            }
            EndError::Repeated { transaction } => {
                write!(f, "the transaction {transaction} has a commit row already; ask for its decision")
            }
            EndError::Busy { waited, .. } => {
                write!(f, "the database was busy for {} ms; rolled back, repeat the transaction", waited.as_millis())
            }
            EndError::Refused(_) => f.write_str("SQLite refused to commit; rolled back"),
            EndError::Changed(changed) => changed.fmt(f),
            EndError::Unknown(_) => f.write_str("SQLite failed within the commit; nobody knows whether it is durable"),
            EndError::ThreadEnded => f.write_str("the connection's thread ended within the commit"),
            EndError::NeverPrepared => {
                f.write_str("branches of SQLite can't prepare and are never in doubt; ask for the decision instead")
            }
        }
    }
}

impl Error for EndError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            EndError::Busy { source, .. } | EndError::Refused(source) | EndError::Unknown(source) => Some(source),
            _ => None,
        }
    }
}

/// The decision rows could not be read, forced or written. It is the source of the
/// [`StoreError`](unanimous_core::StoreError).
#[derive(Debug)]
#[non_exhaustive]
pub enum DecisionError {
    /// The database was locked for writing for the whole lock timeout; ask again.
    Busy {
        /// How long was waited.
        waited: Duration,
    },
    /// The file is not the one that was opened.
    Changed(FileChanged),
    /// A row is not what this library has written.
    Damaged {
        /// The row's transaction.
        transaction: String,
        /// What is wrong.
        what: String,
    },
    /// SQLite failed.
    Sqlite {
        /// What was being done.
        doing: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The store was closed, or its thread has ended.
    Closed,
}

impl fmt::Display for DecisionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecisionError::Busy { waited } => {
                write!(f, "the database was locked for writing for {} ms; it is asked again", waited.as_millis())
            }
            DecisionError::Changed(changed) => changed.fmt(f),
            DecisionError::Damaged { transaction, what } => write!(
                f,
                "the decision row of {transaction} is damaged ({what}); nothing is presumed, restore the row or decide by hand"
            ),
            DecisionError::Sqlite { doing, .. } => write!(f, "{doing} failed"),
            DecisionError::Closed => f.write_str("the store was closed; open it again"),
        }
    }
}

impl Error for DecisionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            DecisionError::Sqlite { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<FileChanged> for DecisionError {
    fn from(changed: FileChanged) -> Self {
        DecisionError::Changed(changed)
    }
}

/// Busy or locked: somebody else is in the way, and a later try may find them gone.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Whether an error, or one of its sources, is worth repeating the whole transaction for.
pub(super) fn is_retryable(error: &(dyn Error + 'static)) -> bool {
    sources(error).any(|error| {
        error.downcast_ref::<rusqlite::Error>().is_some_and(is_busy)
            || matches!(error.downcast_ref(), Some(BeginError::LockTimeout { .. }))
    })
}
