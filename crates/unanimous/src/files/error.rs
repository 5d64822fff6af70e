//! What can go wrong in a folder of files, each with what to do about it.
//!
//! Must not know the protocol; only [`FilesError::into_branch`] turns an error into a kind that the protocol acts upon.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use unanimous_core::{BranchError, BranchId, FailureKind, SavepointId, StoreId};

/// Why an operation on a folder of files failed.
///
/// Paths of files are relative to the folder's root; those of the folder's own files are absolute.
#[derive(Debug)]
#[non_exhaustive]
pub enum FilesError {
    /// The path is not one that a transaction may use. Nothing was changed.
    Path {
        /// The path as it was given.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// `create` of a file that exists.
    Exists {
        /// The file.
        path: String,
    },
    /// `delete` of a file that does not exist.
    Missing {
        /// The file.
        path: String,
    },
    /// There is something else than a regular file, or something else than a folder on the way to it.
    NotAFile {
        /// The path of what is there.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// The path is on another file system, or behind another mount, than the root: a rename could not reach it.
    OtherFileSystem {
        /// The path of the folder or file.
        path: String,
    },
    /// Another transaction that has prepared and not ended yet holds the path. Worth repeating the transaction for.
    Claimed {
        /// The path that this transaction wanted.
        path: String,
        /// The path that is held: the same one, or a folder of it, or a file below it.
        held: String,
        /// Who holds it.
        by: Box<BranchId>,
    },
    /// This transaction has read the file, and would write it; another has changed it in between. Worth repeating for.
    Changed {
        /// The file.
        path: String,
    },
    /// The folder is not there, or is not the store that it was. It is down, not empty.
    Gone {
        /// What is missing.
        file: PathBuf,
        /// Why nothing is presumed.
        why: &'static str,
    },
    /// Another store is where this one was.
    Replaced {
        /// The folder.
        root: PathBuf,
        /// The identity that it had.
        known: StoreId,
        /// The identity that it has now.
        found: StoreId,
    },
    /// One of the folder's own files is not what was written.
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Something that knows nothing of transactions created the file after the branch had promised to. It is not overwritten.
    CreatedByOther {
        /// The file.
        path: String,
        /// The branch that is held.
        branch: Box<BranchId>,
    },
    /// The prepared content is not there any more, and the file is not what it should have become.
    Torn {
        /// The file.
        path: String,
        /// The branch that is held.
        branch: Box<BranchId>,
        /// Where the content was kept.
        staged: PathBuf,
        /// What was found.
        why: &'static str,
    },
    /// A rollback of a branch that has committed in one phase. It is completed instead.
    Decided {
        /// The branch.
        branch: Box<BranchId>,
        /// Why it can't be completed now; none where it is completed, or somebody else is at it.
        why: Option<Box<FilesError>>,
    },
    /// Another process or thread holds a lock for too long.
    Busy {
        /// The locked file.
        file: PathBuf,
    },
    /// The branch has ended, or is past the point where this could be asked of it.
    Ended {
        /// What it is now.
        why: &'static str,
    },
    /// A rollback to a savepoint that the branch was never asked for, or that an earlier rollback has undone.
    NoSavepoint {
        /// Its number.
        id: SavepointId,
    },
    /// No runtime ran the operation, or it panicked.
    Stopped,
    /// The operating system refused.
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl FilesError {
    /// Whether repeating the whole transaction may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, FilesError::Claimed { .. } | FilesError::Changed { .. } | FilesError::Busy { .. })
    }

    /// The error as the protocol sees it, where what was asked for was certainly not done.
    pub(super) fn into_branch(self) -> BranchError {
        if self.is_retryable() {
            BranchError::conflict(self)
        } else if matches!(self, FilesError::Stopped) {
            BranchError::lost(self)
        } else {
            BranchError::refused(self)
        }
    }

    /// The same in phase two, where a conflict has no meaning any more: not done, to be repeated.
    pub(super) fn into_phase_two(self) -> BranchError {
        let error = self.into_branch();
        if error.kind() == FailureKind::Conflict { error.with_kind(FailureKind::Refused) } else { error }
    }
}

impl fmt::Display for FilesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FilesError::Path { path, why } => write!(f, "the path {path:?} can't be used: {why}"),
            FilesError::Exists { path } => {
                write!(f, "the file {path:?} exists already; use replace if it may be overwritten")
            }
            FilesError::Missing { path } => write!(f, "the file {path:?} does not exist"),
            FilesError::NotAFile { path, what } => {
                write!(f, "{path:?} is {what}; only regular files in real folders are written, and no link is followed")
            }
            FilesError::OtherFileSystem { path } => write!(
                f,
                "{path:?} is on another file system or mount than the root, where no rename can reach it; \
                 register a Files of its own for it"
            ),
            FilesError::Claimed { path, held, by } => {
                write!(f, "{path:?} is claimed: the branch {by} has prepared {held:?} and has not ended yet")
            }
            FilesError::Changed { path } => {
                write!(f, "{path:?} was changed since this transaction read it; repeat the transaction")
            }
            FilesError::Gone { file, why } => write!(f, "{} is not there: {why}", file.display()),
            FilesError::Replaced { root, known, found } => write!(
                f,
                "{} was the store {known} and is the store {found} now; put the first one back, or restart for the second",
                root.display()
            ),
            FilesError::Damaged { file, why } => write!(
                f,
                "{} is damaged: {why}; nothing is presumed of it. Restore it from a backup; or look up its branch's decision, \
                 finish the branch by hand, and move the file away",
                file.display()
            ),
            FilesError::CreatedByOther { path, branch } => write!(
                f,
                "{path:?} was created by something outside of any transaction after the branch {branch} had promised to create it; \
                 move that file away, and the branch is completed at the next try"
            ),
            FilesError::Torn { path, branch, staged, why } => write!(
                f,
                "the branch {branch} can't be completed: {why} (prepared content: {}, file: {path:?}). Restore either, \
                 or finish the branch by hand and move its manifest away",
                staged.display()
            ),
            FilesError::Decided { branch, why: None } => {
                write!(f, "the branch {branch} was decided in one phase, has committed and can't be rolled back")
            }
            FilesError::Decided { branch, why: Some(_) } => write!(
                f,
                "the branch {branch} was decided in one phase and can't be rolled back; it is completed as soon as this is out of the way"
            ),
            FilesError::Busy { file } => {
                write!(f, "another process or thread holds the lock {} for too long", file.display())
            }
            FilesError::Ended { why } => write!(f, "the branch can't be used any more: {why}"),
            FilesError::NoSavepoint { id } => {
                write!(f, "the branch has no savepoint {id} (any more); abort the transaction")
            }
            FilesError::Stopped => {
                f.write_str("no runtime ran the operation to its end; open the folder within a tokio runtime, or on a plain thread within `thread::Background::open`")
            }
            FilesError::Io { doing, path, .. } => write!(f, "could not {doing} {}", path.display()),
        }
    }
}

impl Error for FilesError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            FilesError::Io { source, .. } => Some(source),
            FilesError::Decided { why: Some(why), .. } => Some(why),
            _ => None,
        }
    }
}
