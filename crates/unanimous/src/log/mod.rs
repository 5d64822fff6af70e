//! Decision logs that one process owns: in files, and in memory.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("decisions");
//! use unanimous::log::FileLog;
//! use unanimous::{Decider, DecisionLog, DecisionRecord, Known};
//!
//! let log = FileLog::open(&path).await?;
//! let transaction = log.owner().transaction(1);
//! let record = DecisionRecord { transaction, participants: vec![], decided_at: 0, note: Default::default() };
//! log.decide(record).await?;
//! log.close().await;
//!
//! let log = FileLog::open(&path).await?; // another start, another incarnation
//! assert!(matches!(log.lookup(transaction).await?, Known::Commit(_)));
//! assert_eq!(log.lookup(log.owner().transaction(1)).await?, Known::Abort);
//!
//! // Beside it, without a lock, and changing nothing:
//! let view = unanimous::log::read(&path)?;
//! assert_eq!(view.unfinished().len(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! - [`FileLog`]: survives crashes; one sync for all that wait.
//! - [`MemoryLog`]: forgets with its process.
//! - [`read`]: a look at a log's files; [`holder`]: who has it open.
//!
//! The bytes, the reasons for them and a walk through each crash are in `docs/log-format.md`; what the records add up to is
//! [`History`].
//!
//! Must not know branches, stores, or how a transaction is driven.

mod answer;
mod error;
mod file;
mod holder;
mod memory;
mod read;
mod segments;
mod state;
mod writer;

#[cfg(feature = "postgres")]
pub(crate) use answer::{Answer, answered};
pub use error::{LogError, OpenError, Poison, ReadError};
pub use file::{FileLog, FileLogOptions, Opened};
pub use holder::{Holder, holder};
pub use memory::MemoryLog;
pub use read::{LogView, RecordView, SupersededView, Verification, read, read_from};
pub use unanimous_core::log::{
    Damage, DamageKind, FrameKind, Header, HeaderError, History, HistoryError, Record, Tail,
};
