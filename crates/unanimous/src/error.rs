//! Errors of the manager's own operations, one small type for each.
//!
//! Must not know how an operation is done.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use unanimous_core::{BoxError, BranchError, DecideError, FailureKind, TransactionId};

use crate::env::NoRuntime;
use crate::thread::StateError;
#[cfg(feature = "http")]
use crate::transaction::Status;

/// A resource could not be joined. The transaction goes on; whether it can still commit is the application's choice.
#[derive(Debug)]
#[non_exhaustive]
pub enum JoinError {
    /// A branch that joins for a registered resource ([`join_foreign`](crate::Tx::join_foreign)) must be two-phase, or a carrier where the
    /// resource is one.
    NotTwoPhase {
        /// The branch's name.
        name: String,
    },
    /// The manager does not know a resource of this name and type.
    NotRegistered {
        /// The name that was joined.
        resource: String,
    },
    /// Two branches that can't prepare: one of them could only be committed on trust (rule 10).
    SecondUnprepared {
        /// The one that joined before.
        joined: String,
        /// The one that was refused.
        refused: String,
    },
    /// The transaction is not active any more: committing, ended, past its time limit, or the manager is shutting down.
    NotActive {
        /// The transaction.
        id: TransactionId,
        /// What it is instead, and what to do.
        why: &'static str,
    },
    /// A savepoint of the transaction failed: it can only be aborted.
    Failed {
        /// The transaction.
        id: TransactionId,
    },
    /// A branch of that name is there already, and is of another type or cannot be shared.
    Duplicate {
        /// The name.
        resource: String,
    },
    /// The branch says that it can be recovered, but was joined without a registered resource that could do it.
    Unrecoverable {
        /// The name.
        resource: String,
    },
    /// The store failed to begin.
    Store {
        /// The resource.
        resource: String,
        /// What it said.
        source: BranchError,
    },
}

impl JoinError {
    /// Whether repeating the transaction may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, JoinError::Store { source, .. } if source.kind() == FailureKind::Conflict)
    }

    /// Whether it is the world's fault, not the program's: the store can't be had, the manager shuts down, a time limit passed.
    #[cfg(feature = "http")]
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            JoinError::Store { .. } => true,
            JoinError::NotActive { why, .. } => *why != Status::Ending.why_not(),
            _ => false,
        }
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinError::NotRegistered { resource } => write!(
                f,
                "the resource {resource:?} is not registered with this manager; add it with Builder::resource, so that it can be recovered"
            ),
            JoinError::SecondUnprepared { joined, refused } => write!(
                f,
                "{refused:?} can't prepare, and neither can {joined:?}, which is in the transaction already; \
                 one transaction can have one such branch"
            ),
            JoinError::NotActive { id, why } => write!(f, "the transaction {id} can't be joined: {why}"),
            JoinError::Failed { id } => write!(
                f,
                "a savepoint of the transaction {id} failed, so nothing but an abort is left; abort it and begin another"
            ),
            JoinError::Duplicate { resource } => {
                write!(
                    f,
                    "a branch named {resource:?} of another type is in the transaction already; choose another name"
                )
            }
            JoinError::Unrecoverable { resource } => write!(
                f,
                "the branch {resource:?} says that it can be recovered, but no registered resource could do it; \
                 join its resource, or let its capability be volatile"
            ),
            JoinError::NotTwoPhase { name } => {
                write!(
                    f,
                    "the branch {name:?} can't be recovered by a resource: it says that it is not two-phase, nor is it the branch of a carrier"
                )
            }
            JoinError::Store { resource, .. } => write!(f, "the resource {resource:?} could not begin a branch"),
        }
    }
}

impl Error for JoinError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            JoinError::Store { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// A commit that did not succeed, or of which nobody can say yet whether it did.
#[derive(Debug)]
pub enum CommitError {
    /// Surely not committed, anywhere, now and later.
    Aborted {
        /// The transaction.
        id: TransactionId,
        /// Why.
        source: Cause,
    },
    /// It may have committed. Don't repeat it blindly; recovery finds out, and the id is in the log.
    Unknown {
        /// The transaction.
        id: TransactionId,
        /// Why nobody knows.
        source: Cause,
    },
}

impl CommitError {
    /// The transaction.
    pub fn id(&self) -> TransactionId {
        match self {
            CommitError::Aborted { id, .. } | CommitError::Unknown { id, .. } => *id,
        }
    }

    /// Why.
    pub fn cause(&self) -> &Cause {
        match self {
            CommitError::Aborted { source, .. } | CommitError::Unknown { source, .. } => source,
        }
    }

    /// Whether repeating the whole transaction may help: aborted by a conflict. Never for an unknown outcome.
    pub fn is_retryable(&self) -> bool {
        match self {
            CommitError::Aborted { source, .. } => is_conflict(source),
            CommitError::Unknown { .. } => false,
        }
    }
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommitError::Aborted { id, .. } => write!(f, "the transaction {id} was aborted"),
            CommitError::Unknown { id, .. } => write!(
                f,
                "the outcome of the transaction {id} is unknown; it must not be repeated before recovery has found out"
            ),
        }
    }
}

impl Error for CommitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            CommitError::Aborted { source, .. } | CommitError::Unknown { source, .. } => Some(source),
        }
    }
}

/// Why a transaction was aborted, or its outcome is unknown: the source of a [`CommitError`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Cause {
    /// Its owner gave it up. No commit is answered so; a [`Report`](crate::Report) may say it.
    GivenUp,
    /// It was doomed.
    Doomed,
    /// Its owner was dropped without ending it: a failure on the way, or a future that was dropped.
    Dropped,
    /// The commit veto said so.
    Vetoed,
    /// The commit veto failed; its error was traced.
    VetoFailed,
    /// The request's handler failed or panicked.
    HandlerFailed,
    /// A savepoint, or a rollback to one, failed, so that nobody knows what the transaction would commit.
    Savepoint(Box<SavepointError>),
    /// A [`before_commit`](crate::Tx::before_commit) hook failed or panicked, so nothing was asked of the branches.
    Hook {
        /// Whether a joined branch called the hook's error worth repeating, or a conflict is among its sources.
        retryable: bool,
        /// What the hook gave.
        source: BoxError,
    },
    /// A guard of a joined branch was still in use when commit was called; drop guards before the commit.
    InUse {
        /// How many guards.
        guards: usize,
    },
    /// Its time limit passed.
    TimeLimit,
    /// The manager is shutting down.
    ShuttingDown,
    /// There is no runtime that could run the commit.
    NoRuntime(NoRuntime),
    /// The runtime ended, or the driver failed, while it was under way; recovery finishes what is left.
    Interrupted,
    /// A branch failed.
    Branch {
        /// Its resource's or its own name.
        resource: String,
        /// What the store said.
        source: BranchError,
    },
    /// The decision log refused or lost the decision.
    Log(DecideError),
    /// A volatile or one-phase branch wrote beside another that wrote (rule 10).
    NotAllowed {
        /// Its name.
        resource: String,
    },
    /// Two branches that wrote can't prepare (rule 10).
    TwoUnprepared {
        /// Their names.
        resources: [String; 2],
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::GivenUp => f.write_str("its owner gave it up"),
            Cause::Doomed => f.write_str("it was doomed, which leaves nothing but an abort; begin another"),
            Cause::Savepoint(_) => {
                f.write_str("a savepoint had failed, which leaves nothing but an abort; begin another")
            }
            Cause::Hook { .. } => f.write_str("a before-commit hook failed"),
            Cause::Dropped => f.write_str("its owner was dropped before it had ended it"),
            Cause::Vetoed => f.write_str("the commit veto said so"),
            Cause::VetoFailed => f.write_str("the commit veto failed"),
            Cause::HandlerFailed => f.write_str("the request's handler failed"),
            Cause::InUse { guards } => {
                write!(f, "{guards} guard(s) of joined branches were in use when commit was called; drop them before")
            }
            Cause::TimeLimit => f.write_str("its time limit passed"),
            Cause::ShuttingDown => f.write_str("the transaction manager is shutting down"),
            Cause::NoRuntime(_) => f.write_str("the commit could not start"),
            Cause::Interrupted => f.write_str("its runtime ended, or its driver failed, while it was under way"),
            Cause::Branch { resource, .. } => write!(f, "the branch {resource:?} failed"),
            Cause::Log(_) => f.write_str("the decision could not be made durable"),
            Cause::NotAllowed { resource } => write!(
                f,
                "the branch {resource:?} could be torn from the others by a crash; \
                 allow it by name (Tx::allow) where that is acceptable"
            ),
            Cause::TwoUnprepared { resources: [one, other] } => {
                write!(f, "neither {one:?} nor {other:?} can prepare, and both wrote; use two transactions")
            }
        }
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Cause::Branch { source, .. } => Some(source),
            Cause::Log(source) => Some(source),
            Cause::NoRuntime(source) => Some(source),
            Cause::Savepoint(source) => Some(&**source),
            Cause::Hook { source, .. } => Some(&**source),
            _ => None,
        }
    }
}

/// A savepoint could not be made or rolled back to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SavepointError {
    /// The transaction has ended, is ending, or is past its time limit.
    NotActive {
        /// The transaction.
        id: TransactionId,
        /// What it is instead, and what to do.
        why: &'static str,
    },
    /// An earlier savepoint of the transaction failed.
    Failed {
        /// The transaction.
        id: TransactionId,
    },
    /// An earlier savepoint was rolled back since this one was made, and this one went with it.
    Invalid {
        /// The transaction.
        id: TransactionId,
    },
    /// Branches that have no savepoints.
    Unsupported {
        /// Their names.
        resources: Vec<String>,
    },
    /// A branch failed.
    Store {
        /// Its resource's or its own name.
        resource: String,
        /// What it said.
        source: Arc<BranchError>,
    },
    /// A rollback was dropped before its end, so that nobody knows what it has undone.
    Interrupted,
}

impl SavepointError {
    /// Whether repeating the transaction may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, SavepointError::Store { source, .. } if source.kind() == FailureKind::Conflict)
    }
}

impl fmt::Display for SavepointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SavepointError::NotActive { id, why } => write!(f, "the transaction {id} has no savepoints any more: {why}"),
            SavepointError::Failed { id } => write!(
                f,
                "an earlier savepoint of the transaction {id} failed, so nothing but an abort is left; abort it and begin another"
            ),
            SavepointError::Invalid { id } => write!(
                f,
                "an earlier savepoint of the transaction {id} was rolled back, and this one with it; make another one"
            ),
            SavepointError::Unsupported { resources } => write!(
                f,
                "these branches have no savepoints: {resources:?}; \
                 join them after it, or use two transactions, or savepoint_optimistic where no rollback will be needed"
            ),
            SavepointError::Store { resource, .. } => write!(f, "the savepoint failed in the branch {resource:?}"),
            SavepointError::Interrupted => f.write_str(
                "a rollback to a savepoint was dropped before its end, so nothing but an abort is left; await it to its end",
            ),
        }
    }
}

impl Error for SavepointError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SavepointError::Store { source, .. } => Some(&**source),
            _ => None,
        }
    }
}

/// A hook was registered when its moment was over: it can't run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HookError {
    /// The transaction.
    pub id: TransactionId,
    /// Which kind of hook.
    pub hook: &'static str,
}

impl fmt::Display for HookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the {} hook comes too late, the transaction {} is past that point; register it before commit or abort is called",
            self.hook, self.id
        )
    }
}

impl Error for HookError {}

/// Whether a conflict is among an error and its sources; an unknown outcome among them rules it out.
pub(crate) fn is_conflict(error: &(dyn Error + 'static)) -> bool {
    let said = |error: &(dyn Error + 'static)| {
        if let Some(commit) = error.downcast_ref::<CommitError>() {
            return Some(commit.is_retryable());
        }
        if let Some(Cause::Hook { retryable, .. }) = error.downcast_ref() {
            return Some(*retryable);
        }
        if let Some(join) = error.downcast_ref::<JoinError>() {
            return Some(join.is_retryable());
        }
        error.downcast_ref::<BranchError>().map(|branch| branch.kind() == FailureKind::Conflict)
    };
    // The outermost one that says something counts.
    sources(error).find_map(said).unwrap_or(false)
}

/// Whether an unknown outcome is among an error and its sources: it must not be repeated, whatever else it says.
pub(crate) fn is_unknown(error: &(dyn Error + 'static)) -> bool {
    sources(error).any(|error| matches!(error.downcast_ref(), Some(CommitError::Unknown { .. })))
}

/// A transaction that was run with attempts failed for good.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunError {
    /// A thread's manager could not begin it, or the work has ended it by itself.
    State {
        /// What the thread is in instead.
        source: StateError,
    },
    /// The work failed, was not worth repeating or was repeated often enough; its transaction was aborted.
    Work {
        /// How often it was tried.
        attempts: u32,
        /// The work's own error.
        source: BoxError,
    },
    /// The commit failed.
    Commit {
        /// How often it was tried.
        attempts: u32,
        /// The last commit's error; look whether it is unknown.
        source: CommitError,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::State { .. } => f.write_str("the thread's transaction could not be run"),
            RunError::Work { attempts, .. } => write!(f, "the work failed at attempt {attempts}, and was aborted"),
            RunError::Commit { attempts, .. } => write!(f, "the commit failed at attempt {attempts}"),
        }
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            RunError::State { source } => Some(source),
            RunError::Work { source, .. } => Some(&**source),
            RunError::Commit { source, .. } => Some(source),
        }
    }
}

/// An error, and all its sources in their order.
pub(crate) fn sources<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// An error with all its sources on one line, for reports and logs.
pub(crate) fn chain(error: &(impl Error + ?Sized)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
