//! What can go wrong with a PostgreSQL store, and what each of the server's codes means for the protocol.
//!
//! The codes are those of <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
//! Must not know what was being done, but for the name that its caller gives it.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tokio_postgres::error::{Severity, SqlState};
use unanimous_core::{BranchError, FailureKind};

use crate::error::sources;

/// An error of a PostgreSQL store: of a branch, of recovery, or of the store's set-up.
#[derive(Debug)]
#[non_exhaustive]
pub enum PostgresError {
    /// A connection string that can't be understood.
    Config(tokio_postgres::Error),
    /// No TLS, though the connection asks for it; why.
    Tls(String),
    /// No connection: the server is down or starting, or refused the role.
    Connect(tokio_postgres::Error),
    /// No connection of the pool was free in time, or the pool is closed; its text.
    Pool(String),
    /// The server, or the connection, while this was being done.
    Postgres {
        /// What was being done.
        doing: &'static str,
        /// The driver's error.
        source: tokio_postgres::Error,
    },
    /// The connection leads to another database, or another server, than the store.
    OtherStore {
        /// The store.
        expected: String,
        /// Where the connection leads.
        found: String,
    },
    /// The connection is another role's than the store's, which could not finish what it prepares.
    OtherRole {
        /// The store's role.
        expected: String,
        /// The connection's.
        found: String,
    },
    /// The server is a standby: it lists no prepared branches although there are some.
    Standby,
    /// The server does not prepare: `max_prepared_transactions` is 0.
    CantPrepare,
    /// The server is older than what is supported.
    TooOld {
        /// Its `server_version_num`.
        version: i32,
    },
    /// The server replicates synchronously, and warnings that a replica has not confirmed can't be seen through this pool.
    WarningsUnseen,
    /// The connection's database is not registered with the transaction's manager.
    NotRegistered {
        /// Where the connection leads.
        store: String,
    },
    /// Another connection of the same store has joined the transaction.
    OtherConnection,
    /// The application's connection is the only way to a volatile branch's database.
    OnlyConnection,
    /// The connection is inside a transaction that somebody else began.
    InTransaction,
    /// The work ended the branch's transaction, or began another: what it did then is not ours to commit.
    WorkEnded,
    /// A statement of the work failed, and nothing after it was done.
    WorkFailed,
    /// The server said Ok with a warning: the change is not on all replicas that it must be on.
    NotReplicated(String),
    /// The notifications were not sent, and what stood behind them was done all the same; the driver's text.
    Unsent(String),
    /// The server refused a commit, and could not be asked again whether it stayed so; both texts.
    Unconfirmed(String),
    /// No answer in time.
    NoAnswer {
        /// What was being done.
        doing: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The branch has ended, or is about to.
    Ended,
    /// A notification that PostgreSQL would refuse; why.
    Notification(&'static str),
    /// The tables that the store needs are not there, or this role may not use them.
    NoSchema(String),
    /// The tables are of a version that this program does not know.
    OtherTables {
        /// Their version.
        version: String,
    },
    /// The server was promoted or restored, and may have lost decisions that it had acknowledged before.
    Promoted {
        /// The store with its timeline, as it was first reached.
        expected: String,
        /// As it is now.
        found: String,
    },
    /// Another process has the node's decision log open.
    NodeHeld {
        /// The node.
        node: String,
        /// Who, as the server knows it.
        by: String,
    },
    /// Another process has taken the node's decision log over: this one can't decide any more.
    TakenOver {
        /// The node.
        node: String,
    },
    /// A node's name that can't be one.
    NodeName(String),
    /// The process was forked: the log is its parent's.
    Forked,
    /// A decision that the tables can't hold; why.
    Unwritable(String),
    /// What is in the tables can't be; why.
    Damaged(String),
    /// The transaction was fenced: recovery has decided Abort.
    Fenced,
}

impl fmt::Display for PostgresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(_) => f.write_str("the connection string can't be understood"),
            Self::Tls(why) => write!(f, "no TLS: {why}"),
            Self::Connect(_) => f.write_str("can't connect to PostgreSQL"),
            Self::Pool(text) => write!(f, "no connection from the pool: {text}"),
            Self::Postgres { doing, .. } => write!(f, "PostgreSQL failed while {doing}"),
            Self::OtherStore { expected, found } => {
                write!(f, "the connection leads to the store {found}, and the resource is the store {expected}; register the other one under a name of its own")
            }
            Self::OtherRole { expected, found } => write!(
                f,
                "the connection is the role {found:?}'s, and the resource is {expected:?}'s, who could not finish what it prepares; connect as that role"
            ),
            Self::Standby => f.write_str("the server is a standby; connect to the primary (target_session_attrs=read-write)"),
            Self::CantPrepare => f.write_str(
                "the server can't prepare transactions: set max_prepared_transactions in postgresql.conf to at least max_connections, and restart it",
            ),
            Self::TooOld { version } => write!(f, "the server's version is {version}; 14 (140000) is the oldest that is supported"),
            Self::WarningsUnseen => f.write_str(
                "the server replicates synchronously, and through a pool made elsewhere its warnings that a replica has not confirmed can't be seen; make the store from a connection string",
            ),
            Self::NotRegistered { store } => write!(
                f,
                "the connection leads to the store {store}, which is not registered with the transaction's manager; register it (Builder::resource), or join it as volatile under a name (join_client_volatile, join_url_volatile)"
            ),
            Self::OtherConnection => f.write_str(
                "another connection of the same store has joined the transaction already; work on that one, or in another transaction",
            ),
            Self::OnlyConnection => f.write_str(
                "no connection but the application's own leads to the database of this volatile branch; where that one is broken, finish what is prepared there by hand",
            ),
            Self::InTransaction => f.write_str(
                "the connection is inside a transaction already; commit it or roll it back before the connection joins",
            ),
            Self::WorkEnded => f.write_str(
                "the work ended the branch's transaction itself (COMMIT, ROLLBACK, BEGIN on its connection); leave that to the transaction manager",
            ),
            Self::WorkFailed => f.write_str(
                "a statement failed in this branch and its error was not acted upon; put what may fail behind a savepoint",
            ),
            Self::NotReplicated(warning) => {
                write!(f, "the server said Ok, with a warning that replicas have not confirmed it: {warning}")
            }
            Self::Unsent(why) => write!(f, "the notifications were not sent, and the transaction went on without: {why}"),
            Self::Unconfirmed(why) => write!(f, "the server refused to commit, and that could not be confirmed: {why}"),
            Self::NoAnswer { doing, waited } => write!(f, "no answer within {waited:?} while {doing}"),
            Self::Ended => f.write_str("the branch has ended"),
            Self::Notification(why) => f.write_str(why),
            Self::NoSchema(schema) => write!(
                f,
                "the tables of the schema {schema:?} are not there, or not for this role; let an owner of the database run what `unanimous sql postgres --role ROLE` prints"
            ),
            Self::OtherTables { version } => write!(
                f,
                "the tables of the schema \"unanimous\" are of version {version}, which this program does not know; use the version of it that made them, or a newer one"
            ),
            Self::Promoted { expected, found } => write!(
                f,
                "the server was promoted or restored (it is {found} and was {expected}), and may have lost decisions; restart the process, so that nothing is presumed of what was before"
            ),
            Self::NodeHeld { node, by } => write!(
                f,
                "the decision log of the node {node:?} is open in another process ({by}); stop that one, give this one a name of its own, or, where it can't be reached any more, take the node over"
            ),
            Self::TakenOver { node } => write!(
                f,
                "the decision log of the node {node:?} was taken over by another process; restart this one when that one has ended"
            ),
            Self::NodeName(name) => {
                write!(f, "{name:?} can't be a node's name: it has 1 to 255 bytes and no zero")
            }
            Self::Forked => f.write_str("the decision log is the parent process's; open one after the fork, under a name of its own"),
            Self::Unwritable(why) => write!(f, "the decision can't be written: {why}"),
            Self::Damaged(what) => write!(f, "the store's own tables are damaged: {what}"),
            Self::Fenced => f.write_str("recovery has decided to abort the transaction"),
        }
    }
}

impl Error for PostgresError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Config(source) | Self::Connect(source) | Self::Postgres { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl PostgresError {
    pub(super) const READ_ONLY_NOTIFIES: Self = Self::Notification(
        "a branch that joined read only can't notify: its notifications may have to be written; join it without `read_only`",
    );

    /// An error of the driver, under the name of what was being done.
    pub(super) fn of(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Self {
        move |source| Self::Postgres { doing, source }
    }

    /// The server's code, where it gave one.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Config(source) | Self::Connect(source) | Self::Postgres { source, .. } => source.code(),
            _ => None,
        }
    }

    /// What it means for the protocol. Only an answer of the server, or what never reached it, is a definite no.
    pub(super) fn kind(&self) -> FailureKind {
        match self {
            Self::Postgres { source, .. } => kind(source),
            Self::NotReplicated(_)
            | Self::Unsent(_)
            | Self::Unconfirmed(_)
            | Self::NoAnswer { .. }
            | Self::OnlyConnection => FailureKind::Lost,
            _ => FailureKind::Refused,
        }
    }

    pub(super) fn into_branch(self) -> BranchError {
        match self.kind() {
            FailureKind::Conflict => BranchError::conflict(self),
            FailureKind::Refused => BranchError::refused(self),
            FailureKind::Lost => BranchError::lost(self),
        }
    }
}

/// What an error of the driver means for a statement that was sent.
///
/// 40003 (statement completion unknown) is of class 40, and an unknown outcome all the same. Classes 57P and 08, and 25P03, say that
/// the session ends or has ended, and so does every FATAL and PANIC: a commit whose record was written and not synced ends that way,
/// and can be there after the restart. Whatever else the server answers, it has answered.
pub(super) fn kind(error: &tokio_postgres::Error) -> FailureKind {
    let Some(answer) = error.as_db_error() else { return FailureKind::Lost };
    if matches!(answer.parsed_severity(), Some(Severity::Fatal | Severity::Panic)) {
        return FailureKind::Lost;
    }
    match answer.code().code() {
        "40001" | "40P01" | "55P03" => FailureKind::Conflict,
        "40003" | "25P03" => FailureKind::Lost,
        code if code.starts_with("57P") || code.starts_with("08") => FailureKind::Lost,
        _ => FailureKind::Refused,
    }
}

/// Whether an error among the sources of `error` is a conflict, for which the transaction is worth repeating: a serialization failure,
/// a deadlock, a lock that was not to be had in time.
pub(super) fn is_retryable(error: &(dyn Error + 'static)) -> bool {
    let mut drivers = sources(error).filter_map(|error| error.downcast_ref::<tokio_postgres::Error>());
    drivers.any(|error| kind(error) == FailureKind::Conflict)
}

/// A pool of the application's: its connections fail with the driver's errors.
impl From<tokio_postgres::Error> for PostgresError {
    fn from(source: tokio_postgres::Error) -> Self {
        Self::Connect(source)
    }
}

impl From<deadpool::managed::PoolError<Self>> for PostgresError {
    fn from(error: deadpool::managed::PoolError<Self>) -> Self {
        match error {
            deadpool::managed::PoolError::Backend(error) => error,
            error => Self::Pool(error.to_string()),
        }
    }
}
