//! A transaction manager: work spread over several real data stores commits in all of them or in none.
//!
//! No crash, lost connection or cancelled future can change that: decisions are durable before anybody acts upon them, and recovery
//! finishes what a crash left.
#![cfg_attr(all(feature = "sqlite", feature = "files"), doc = include_str!("docs/example.md"))]
#![cfg_attr(feature = "files", doc = include_str!("docs/branch.md"))]
//!
//! # In reading order
//!
//! - [`TransactionManager`]: begin, run, recover, shut down.
//! - [`Transaction`] and [`Tx`]: the owner that ends a transaction, and the handle that is shared.
//! - [`log`]: where decisions become durable.
//! - [`postgres`], [`sqlite`], [`files`]: adapters, each behind a feature of its name.
//! - [`http`]: a transaction for each request.
//! - [`mod@thread`]: transactions of plain threads, without a runtime.
//! - [`env`](mod@env): clock, spawning, randomness and disk, replaceable.
//! - The core's words and contracts, re-exported from `unanimous-core`: [`Branch`], [`ResourceManager`], [`Decider`].
#![cfg_attr(docsrs, feature(doc_cfg))]

mod annotations;
mod commit;
mod current;
mod dispatch;
mod driver;
mod ending;
pub mod env;
mod error;
#[cfg(all(feature = "files", unix))]
pub mod files;
mod hooks;
#[cfg(feature = "http")]
pub mod http;
mod inline;
mod inner;
#[cfg(feature = "http")]
mod lazy;
mod live;
pub mod log;
mod manager;
mod outcomes;
#[cfg(feature = "postgres")]
pub mod postgres;
mod recovery;
mod report;
mod savepoint;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod sync;
mod synchronizer;
pub mod thread;
mod transaction;

pub use commit::{Abort, Commit, Committed};
pub use current::{current, scope};
pub use error::{Cause, CommitError, HookError, JoinError, RunError, SavepointError};
pub use manager::{BuildError, Builder, Readiness, TransactionManager, Undrained};
pub use outcomes::{KnownOutcome, Waiting};
pub use recovery::{Doubt, InDoubt, Recovered};
pub use report::{BranchReport, Report};
pub use savepoint::Savepoint;
pub use synchronizer::Synchronizer;
pub use transaction::{Joined, Options, Transaction, Tx};
pub use unanimous_core::protocol::End;
#[doc(inline)]
pub use unanimous_core::xid::{Roster, StoreTag};
#[doc(inline)]
pub use unanimous_core::{
    BoxError, Branch, BranchContext, BranchError, BranchId, Capability, DecideError, Decider, DeciderId, Decision,
    DecisionLog, DecisionRecord, FailureKind, HoldReason, Incarnation, Known, LogId, Note, Outcome, Owner,
    ParseIdError, Participant, ResourceManager, SavepointId, StoreError, StoreId, TransactionId, Work,
};
