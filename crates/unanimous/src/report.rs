//! How a transaction ended, for pages, metrics and logs: what an observer is told.
//!
//! Must not know who reads it.

use std::collections::BTreeMap;
use std::time::Duration;

use unanimous_core::protocol::End;
use unanimous_core::{Capability, Outcome, TransactionId};

/// How a transaction ended, for pages, metrics and logs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The transaction.
    pub id: TransactionId,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not commit, with all sources: for operators, not for clients.
    pub cause: Option<String>,
    /// Its branches, in the order of their numbers.
    pub branches: Vec<BranchReport>,
    /// The note's lines.
    pub note: String,
    /// The user.
    pub user: String,
    /// The extended info.
    pub extended_info: BTreeMap<String, String>,
    /// When it began: microseconds since 1970, UTC.
    pub began_at: u64,
    /// From begin to the answer.
    pub took: Duration,
}

/// How a branch had ended when the caller was answered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BranchReport {
    /// The resource's or the branch's name.
    pub resource: String,
    /// What it could promise.
    pub capability: Capability,
    /// How it ended; pending where it has not.
    pub end: End,
    /// Whether its commit carried the decision.
    pub carried: bool,
}
