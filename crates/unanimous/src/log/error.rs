//! What can go wrong with a log, and what to do then.
//!
//! Must not know how a log is written or read.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use unanimous_core::TransactionId;
use unanimous_core::log::record::EncodeError;
use unanimous_core::log::{Damage, DamageKind, HeaderError, HistoryError};

use crate::env::NoRuntime;

/// Why a log was poisoned.
#[derive(Debug)]
pub struct Poison {
    what: &'static str,
    source: Option<io::Error>,
}

impl Poison {
    pub(crate) fn new(what: &'static str, source: Option<io::Error>) -> Self {
        Self { what, source }
    }
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl Error for Poison {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// Why a log refuses a decision, or does not know what became of it. It is the source of a
/// [`DecideError`](crate::DecideError), and what [`ready`](crate::DecisionLog::ready) says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LogError {
    /// A write or a sync failed (rule 12): no decisions any more, until the next start has read what is durable.
    Poisoned(Arc<Poison>),
    /// The log was closed.
    Closed,
    /// Decisions that are not finished fill the log; they can't be dropped (rule 11).
    Full {
        /// The bytes that they take, with those that are waiting.
        unfinished: usize,
        /// The bytes that they may take.
        most: usize,
    },
    /// There is no space on the disk for the next segment, which is kept in reserve.
    NoReserve(Arc<io::Error>),
    /// The transaction is not of this log and its current incarnation.
    NotOwned(TransactionId),
    /// The transaction has another decision already.
    DecidedTwice(TransactionId),
    /// A decision that no log can hold.
    Unwritable(EncodeError),
    /// A decision that this log has no room for.
    TooLarge {
        /// The bytes that it takes.
        bytes: usize,
        /// The bytes that it may take.
        most: usize,
    },
    /// The runtime ended before it was written.
    NoRuntime,
    /// The database that the log is kept in; why.
    Database(Arc<dyn Error + Send + Sync>),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Poisoned(_) => f.write_str(
                "the decision log is poisoned, since a write to it failed; look after the disk and restart the process",
            ),
            LogError::Closed => f.write_str("the decision log is closed"),
            LogError::Full { unfinished, most } => write!(
                f,
                "{unfinished} bytes of decisions that are not finished fill the decision log ({most} bytes); bring back the stores that they \
                 wait for (`TransactionManager::in_doubt` names them), or restart with a greater max_size"
            ),
            LogError::NoReserve(_) => f.write_str(
                "there is no space on the disk for the decision log's next segment; free some, it is tried again",
            ),
            LogError::NotOwned(transaction) => write!(
                f,
                "the transaction {transaction} was not begun by this decision log's current incarnation; only its own can be decided"
            ),
            LogError::DecidedTwice(transaction) => {
                write!(f, "the transaction {transaction} has a decision with other participants already")
            }
            LogError::Unwritable(_) => f.write_str("no decision log can hold this decision"),
            LogError::TooLarge { bytes, most } => write!(
                f,
                "the decision takes {bytes} bytes, and this log has room for {most}: fewer participants, shorter names, or a greater max_size"
            ),
            LogError::NoRuntime => f.write_str("the runtime ended before the decision was written"),
            LogError::Database(_) => f.write_str("the database of the decision log does not take decisions"),
        }
    }
}

impl Error for LogError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            LogError::Poisoned(source) => Some(&**source),
            LogError::NoReserve(source) => Some(&**source),
            LogError::Unwritable(source) => Some(source),
            LogError::Database(source) => Some(&**source),
            _ => None,
        }
    }
}

/// Why a log could not be opened. Nothing was presumed, and what was there is unchanged.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process (or another part of this one) has it open.
    Held {
        /// The log's folder.
        path: PathBuf,
    },
    /// There is no runtime to open it with.
    NoRuntime(NoRuntime),
    /// The options don't fit together.
    MaxSize {
        /// What was asked for.
        max_size: u64,
    },
    /// The disk.
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What could not be done with it.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file that should be a segment has no header of one, or one of a newer version.
    Header {
        /// The file.
        file: PathBuf,
        /// Why.
        source: HeaderError,
    },
    /// Something that was synced is not whole any more. Presuming abort for what can't be read could undo commits.
    Damaged {
        /// The segment.
        file: PathBuf,
        /// What is damaged; at least one.
        damage: Vec<Damage>,
    },
    /// A segment whose name is not the number in its header: somebody renamed it.
    Misnamed {
        /// The segment.
        file: PathBuf,
        /// The number in its header.
        number: u64,
    },
    /// Records that contradict each other, though their checksums are right.
    Contradiction {
        /// The segment.
        file: PathBuf,
        /// What contradicts.
        source: HistoryError,
    },
    /// The counter of incarnations is at its end.
    CountersUsedUp {
        /// The log's folder.
        path: PathBuf,
    },
}

/// Why a log that can't be read whole is not opened.
const WHY_NOT: &str = "presuming anything of decisions that can't be read could undo commits.";

/// What can be done about it.
const BRING_BACK: &str = "Look after the disk, and bring the file back from a mirror of it. If there is none, move the folder away: \
    with a new log nothing that is in doubt is presumed. `TransactionManager::in_doubt` names each branch then; look what the other \
    stores hold of its transaction, finish it by hand in its own store, and restart.";

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Held { path } => write!(
                f,
                "the decision log {} is held by another process; stop that one, or give this one a log of its own",
                path.display()
            ),
            OpenError::NoRuntime(_) => f.write_str("a decision log is opened within a tokio runtime, or on a plain thread within `thread::Background::open`"),
            OpenError::MaxSize { max_size } => write!(
                f,
                "a max_size of {max_size} bytes is not possible; it must be {} to {}",
                super::file::LEAST_MAX_SIZE,
                super::file::GREATEST_MAX_SIZE
            ),
            OpenError::Io { path, what, .. } => write!(f, "could not {what} {}", path.display()),
            OpenError::Header { file, source } => {
                write!(
                    f,
                    "{} can't be read as a segment of a decision log, and the log is not opened",
                    file.display()
                )?;
                // A newer format is whole, and says itself what to do.
                if matches!(source, HeaderError::Newer { .. }) { Ok(()) } else { write!(f, ": {WHY_NOT} {BRING_BACK}") }
            }
            OpenError::Damaged { file, damage } => {
                write!(f, "the decision log is damaged in {}, and is not opened: {WHY_NOT} ", file.display())?;
                if damage.iter().all(|damage| damage.kind == DamageKind::Copy) {
                    f.write_str(
                        "Every record is still whole in its second copy: look after the disk, then open it once with believe_single_copies. ",
                    )?;
                } else {
                    write!(f, "{BRING_BACK} ")?;
                }
                f.write_str("`unanimous log verify` and `unanimous log show` tell what can be read")
            }
            OpenError::Misnamed { file, number } => write!(
                f,
                "the segment {} was renamed; its header says {number}: give it its own name back, {}",
                file.display(),
                super::segments::name(*number)
            ),
            OpenError::Contradiction { file, .. } => write!(
                f,
                "the records in {} contradict each other: no version of this program wrote them in this order; please report it",
                file.display()
            ),
            OpenError::CountersUsedUp { path } => {
                write!(
                    f,
                    "the decision log {} has had its last incarnation; begin a new one in another folder",
                    path.display()
                )
            }
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            OpenError::NoRuntime(source) => Some(source),
            OpenError::Io { source, .. } => Some(source),
            OpenError::Header { source, .. } => Some(source),
            OpenError::Damaged { damage, .. } => damage.first().map(|damage| damage as _),
            OpenError::Contradiction { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Why a log's files could not be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// There is no log in the folder.
    NoLog {
        /// The folder.
        path: PathBuf,
    },
    /// The disk.
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that should be a segment has no header of one, or one of a newer version.
    Header {
        /// The file.
        file: PathBuf,
        /// Why.
        source: HeaderError,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::NoLog { path } => write!(f, "there is no decision log in {}", path.display()),
            ReadError::Io { path, .. } => write!(f, "could not read {}", path.display()),
            ReadError::Header { file, source } => {
                write!(f, "{} can't be read as a segment of a decision log", file.display())?;
                if matches!(source, HeaderError::Newer { .. }) { Ok(()) } else { write!(f, ". {BRING_BACK}") }
            }
        }
    }
}

impl Error for ReadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ReadError::NoLog { .. } => None,
            ReadError::Io { source, .. } => Some(source),
            ReadError::Header { source, .. } => Some(source),
        }
    }
}
