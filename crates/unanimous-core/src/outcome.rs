//! The words for how a transaction ends.
//!
//! Must not know who decided, or how.

use std::fmt;

/// What was decided for a whole transaction. There is no third decision, and a decision never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Decision {
    /// Every branch commits.
    Commit,
    /// Every branch rolls back.
    Abort,
}

/// What can be said to a caller (rule 9).
///
/// Deliberately exhaustive: a caller that matches on it has thought of all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// The decision to commit is durable; every branch has committed or will.
    Committed,
    /// It can never commit any more.
    Aborted,
    /// Nobody can say yet. It must not be repeated blindly: it may have committed.
    Unknown,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Decision::Commit => "commit",
            Decision::Abort => "abort",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Committed => "committed",
            Outcome::Aborted => "aborted",
            Outcome::Unknown => "unknown",
        })
    }
}
