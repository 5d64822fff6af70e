//! The pure core of [unanimous]: everything that decides, nothing that acts.
//!
//! In reading order:
//!
//! - [`xid`]: who is who: transactions, branches, logs, incarnations, stores.
//! - [`outcome`]: the words for how a transaction ends.
//! - [`branch`], [`resource`], [`decider`]: the three traits that adapters implement.
//! - [`protocol`]: the commit protocol as a transition function, `handle(event) -> actions`.
//! - [`recovery`]: what to do with a branch that a store lists as in doubt.
//! - [`log`]: the decision log's records, frames and memory.
//!
//! What this crate must not know: files, sockets, clocks, threads, an async runtime, and any store by name.
//! So its tests run in seconds, and what they show holds for every driver.
//!
//! [unanimous]: https://docs.rs/unanimous

pub mod branch;
pub mod decider;
pub mod error;
pub mod log;
pub mod outcome;
pub mod protocol;
pub mod recovery;
pub mod resource;
pub mod xid;

pub use branch::{Branch, Capability, SavepointId, Work};
pub use decider::{Decider, DecisionLog, DecisionRecord, HoldReason, Known, Note, Participant};
pub use error::{BoxError, BranchError, DecideError, FailureKind, StoreError};
pub use outcome::{Decision, Outcome};
pub use resource::{BranchContext, ResourceManager};
pub use xid::{BranchId, DeciderId, Incarnation, LogId, Owner, ParseIdError, StoreId, TransactionId};
