//! Every reachable state of the real protocol, recovery's plan and the log's memory, for a few branches of every capability:
//! every vote and failure, messages that are lost, late or repeated, a crash at every point, process or power, and another during
//! recovery.
//!
//! - [`world`]: branches of every capability, a log in a file, or a carrier as a whole.
//! - [`row`]: a decision that is a row in one of the databases, statement by statement, with two recoverers.
//! - [`shared`]: a decision log that several processes share, with an owner that may be slow.
//! - [`walk()`]: the walk through all states of any of them.
//!
//! Must not know anything but the core: it has to be built and run in seconds, so that every planted bug can be tried.

#[allow(missing_docs, reason = "the names say it, and nobody outside of the proof reads them")]
pub mod row;
#[allow(missing_docs, reason = "the names say it, and nobody outside of the proof reads them")]
pub mod shared;
pub mod walk;
#[allow(missing_docs, reason = "the names say it, and nobody outside of the proof reads them")]
pub mod world;

use unanimous_core::Capability;

use crate::walk::{Walked, walk};
use crate::world::{Faults, Planted, Spec, World};

/// What must never be seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Violation {
    Torn,
    AcknowledgedLost,
    ReportedAbortedCommitted,
    /// A decider has told two outcomes.
    DecisionChanged,
    CommitBeforeDecision,
    RollbackAfterDecision,
    PrepareNotLive,
    ListChanged,
    /// Recovery was given a branch that it can't finish.
    NobodysBranch,
    LeftInDoubt,
    /// A second pass of recovery changes what the first one has left.
    NotTheSameAgain,
    ToldTwice,
    Misused(String),
}

/// Every kind of branch: what its store can promise, and whether it was opted in where that matters.
const KINDS: [Spec; 6] = [
    Spec { capability: Capability::TwoPhase, allowed: true },
    Spec { capability: Capability::Carrier, allowed: true },
    Spec { capability: Capability::OnePhase, allowed: true },
    Spec { capability: Capability::OnePhase, allowed: false },
    Spec { capability: Capability::Volatile, allowed: true },
    Spec { capability: Capability::Volatile, allowed: false },
];

/// Every choice of so many branches; their order makes no difference to the protocol.
pub fn choices(count: usize) -> Vec<Vec<Spec>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        all = all
            .into_iter()
            .flat_map(|some: Vec<usize>| {
                let last = some.last().copied().unwrap_or(0);
                (last..KINDS.len()).map(move |kind| [&some[..], &[kind]].concat())
            })
            .collect();
    }
    all.into_iter().map(|kinds| kinds.into_iter().map(|kind| KINDS[kind]).collect()).collect()
}

/// Every start of a world with so many branches.
pub fn worlds(count: usize, faults: Faults) -> Vec<World> {
    let mut all = Vec::new();
    for specs in choices(count) {
        all.push(World::new(&specs, false, faults, Planted::None));
        if specs.iter().any(|spec| spec.capability == Capability::Carrier) {
            all.push(World::new(&specs, true, faults, Planted::None));
        }
    }
    all
}

/// Walks through all of them.
pub fn walk_all(count: usize, faults: Faults) -> Walked {
    let mut all = Walked::default();
    for world in worlds(count, faults) {
        let walked = walk(&world);
        all.states += walked.states;
        all.violations.extend(walked.violations);
    }
    all
}
