//! Errors that cross the three traits: a kind that the protocol acts upon, and a source for people.
//!
//! Must not know any store's error codes: an adapter turns its own codes into a kind.

use std::error::Error;
use std::fmt;

/// Any error, as it is carried along as the source of another.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// What an error of a branch means for the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// A definite no, worth repeating the transaction for: a serialization failure, a deadlock, a lock timeout, a claim that another holds.
    Conflict,
    /// A definite no. Before the decision: this branch can never commit any more. In phase two: not done now, to be repeated.
    Refused,
    /// No answer: it may have happened, may happen later, or never. A lost connection, a time limit, a panic.
    Lost,
}

/// What an operation of a [`Branch`](crate::Branch) failed with.
#[derive(Debug)]
pub struct BranchError {
    kind: FailureKind,
    source: BoxError,
}

impl BranchError {
    /// A definite no that is worth repeating the transaction for.
    pub fn conflict(source: impl Into<BoxError>) -> Self {
        Self { kind: FailureKind::Conflict, source: source.into() }
    }

    /// A definite no.
    pub fn refused(source: impl Into<BoxError>) -> Self {
        Self { kind: FailureKind::Refused, source: source.into() }
    }

    /// No answer: nobody knows whether it happened, or still will.
    pub fn lost(source: impl Into<BoxError>) -> Self {
        Self { kind: FailureKind::Lost, source: source.into() }
    }

    /// What the error means for the protocol.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The same source under another kind: for an adapter whose caller knows more than the error's code does.
    #[must_use]
    pub fn with_kind(self, kind: FailureKind) -> Self {
        Self { kind, ..self }
    }

    /// The store's own error.
    pub fn into_source(self) -> BoxError {
        self.source
    }
}

impl fmt::Display for BranchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            FailureKind::Conflict => "the store reported a conflict",
            FailureKind::Refused => "the store refused",
            FailureKind::Lost => "the store's answer was lost",
        })
    }
}

impl Error for BranchError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// A store could not be asked: it is down, unreachable, not what it was, or lacks something. Nothing follows from it for any branch.
#[derive(Debug)]
pub struct StoreError(BoxError);

impl StoreError {
    /// A store that could not be asked, and why.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self(source.into())
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the store could not be asked")
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// Why a decision could not be made durable.
#[derive(Debug)]
#[non_exhaustive]
pub enum DecideError {
    /// Certainly not written: the log is full, closed or was poisoned before. The transaction aborts.
    Refused(BoxError),
    /// It may be durable or not (a failed sync). The outcome is unknown until the next start has read the log (rule 12).
    Unknown(BoxError),
}

impl fmt::Display for DecideError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecideError::Refused(_) => "the decision was refused by its log",
            DecideError::Unknown(_) => "nobody knows whether the decision became durable",
        })
    }
}

impl Error for DecideError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            DecideError::Refused(source) | DecideError::Unknown(source) => Some(&**source),
        }
    }
}
