//! Errors of the thread's manager. Must not know how an operation is done.

use std::error::Error;
use std::fmt;

use unanimous_core::TransactionId;

use crate::error::{CommitError, SavepointError};

/// What was asked for does not fit the state that this thread's transaction is in; nothing was done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// This thread has no transaction.
    NoTransaction,
    /// An explicit manager was asked for a second transaction on this thread.
    AlreadyInTransaction {
        /// The one that is there.
        id: TransactionId,
    },
    /// A doomed transaction was to be committed.
    Doomed {
        /// The transaction.
        id: TransactionId,
    },
    /// A transaction was to be committed whose commit had failed.
    Failed {
        /// The transaction.
        id: TransactionId,
        /// What the failed commit said.
        why: String,
    },
    /// It was asked for from within the transaction's own commit or abort.
    Ending {
        /// The transaction.
        id: TransactionId,
    },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateError::NoTransaction => f.write_str("this thread has no transaction; begin one"),
            StateError::AlreadyInTransaction { id } => {
                write!(f, "this thread is already in the transaction {id}; commit or abort it before another begins")
            }
            StateError::Doomed { id } => {
                write!(
                    f,
                    "the transaction {id} is doomed, which leaves nothing but an abort; abort it and begin another"
                )
            }
            StateError::Failed { id, why } => {
                write!(f, "the commit of the transaction {id} has failed before; abort it and begin another ({why})")
            }
            StateError::Ending { id } => write!(
                f,
                "the transaction {id} is being committed or aborted on this thread; wait for its end, outside of its hooks and branches"
            ),
        }
    }
}

impl Error for StateError {}

/// An operation of the thread's manager failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum ThreadError {
    /// It does not fit the state of this thread's transaction.
    State(StateError),
    /// The commit failed; look whether the outcome is unknown.
    Commit(CommitError),
    /// The savepoint failed.
    Savepoint(SavepointError),
}

impl ThreadError {
    /// Whether repeating the transaction may help; never for an unknown outcome.
    pub fn is_retryable(&self) -> bool {
        match self {
            ThreadError::State(_) => false,
            ThreadError::Commit(error) => error.is_retryable(),
            ThreadError::Savepoint(error) => error.is_retryable(),
        }
    }
}

impl fmt::Display for ThreadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ThreadError::State(error) => error.fmt(f),
            ThreadError::Commit(_) => f.write_str("the commit failed"),
            ThreadError::Savepoint(_) => f.write_str("the savepoint failed"),
        }
    }
}

impl Error for ThreadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ThreadError::State(_) => None,
            ThreadError::Commit(error) => Some(error),
            ThreadError::Savepoint(error) => Some(error),
        }
    }
}

impl From<StateError> for ThreadError {
    fn from(error: StateError) -> Self {
        ThreadError::State(error)
    }
}

impl From<CommitError> for ThreadError {
    fn from(error: CommitError) -> Self {
        ThreadError::Commit(error)
    }
}

impl From<SavepointError> for ThreadError {
    fn from(error: SavepointError) -> Self {
        ThreadError::Savepoint(error)
    }
}
