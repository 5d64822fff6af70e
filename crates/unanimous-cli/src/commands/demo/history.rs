//! The last transactions, for the page.
//!
//! Must not know HTML.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use unanimous::{BranchReport, End, Outcome, Report};

/// How many are kept.
const KEPT: usize = 50;

/// A transaction that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) id: String,
    pub(crate) outcome: Outcome,
    /// Why it did not commit.
    pub(crate) cause: Option<String>,
    /// What it was for.
    pub(crate) note: String,
    /// For whom.
    pub(crate) user: String,
    /// Each branch's store, and how it ended.
    pub(crate) branches: Vec<(String, &'static str)>,
    /// Microseconds since 1970, UTC.
    pub(crate) began_at: u64,
    pub(crate) took: Duration,
}

impl From<&Report> for Ended {
    fn from(report: &Report) -> Self {
        Self {
            id: report.id.to_string(),
            outcome: report.outcome,
            cause: report.cause.as_deref().map(|cause| reason(cause, report)),
            note: report.note.clone(),
            user: report.user.clone(),
            branches: report.branches.iter().map(|branch| (branch.resource.clone(), words(branch))).collect(),
            began_at: report.began_at,
            took: report.took,
        }
    }
}

/// The cause without what the rest of its line says already.
fn reason(cause: &str, report: &Report) -> String {
    let told = format!("the transaction {} was {}: ", report.id, report.outcome);
    cause.strip_prefix(&told).unwrap_or(cause).to_owned()
}

const READ_ONLY: &str = "read only";

fn words(branch: &BranchReport) -> &'static str {
    match branch.end {
        End::ReadOnly => READ_ONLY,
        End::Committed if branch.carried => "committed, carrying the decision",
        End::Committed => "committed",
        End::RolledBack => "rolled back",
        End::Pending => "pending",
        End::Unknown => "unknown",
    }
}

/// The last transactions that changed something, or tried to. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    ended: Arc<Mutex<VecDeque<Ended>>>,
}

impl History {
    /// Remembers a transaction, and forgets the oldest one where there are too many. Those that have only read are left out: each
    /// look at the page would push an order's transaction out of it.
    pub(crate) fn add(&self, ended: Ended) {
        let only_read = ended.branches.iter().all(|(_, end)| *end == READ_ONLY);
        if ended.outcome == Outcome::Committed && only_read {
            return;
        }
        let mut all = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        all.truncate(KEPT - 1);
        all.push_front(ended);
    }

    /// The newest first.
    pub(crate) fn last(&self) -> Vec<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_fifty_that_wrote_are_kept() {
        let history = History::default();
        let ended = |id: usize, outcome, end| Ended {
            id: id.to_string(),
            outcome,
            cause: None,
            note: String::new(),
            user: String::new(),
            branches: vec![("orders".into(), end)],
            began_at: 0,
            took: Duration::ZERO,
        };
        for id in 0..60 {
            history.add(ended(id, Outcome::Committed, "committed"));
            history.add(ended(1000, Outcome::Committed, READ_ONLY));
        }
        history.add(ended(60, Outcome::Aborted, READ_ONLY));
        let last: Vec<usize> = history.last().iter().map(|ended| ended.id.parse().unwrap()).collect();
        assert_eq!(last, (11..=60).rev().collect::<Vec<_>>());
    }
}
