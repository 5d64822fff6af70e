//! Every reachable state of a decision log that several processes share, with an owner that may be slow and two that take over; and
//! planted bugs.

use unanimous_model::Violation;
use unanimous_model::shared::{Planted, SharedWorld};
use unanimous_model::walk::{reaches, walk};

#[test]
fn a_shared_log_in_every_state() {
    let seen = walk(&SharedWorld::new(2, 2, 1, 0, Planted::None));
    println!("shared log, 2 branches, 1 crash of its server: {} states", seen.states);
    if let Some((violation, at)) = seen.violations.first() {
        panic!("{violation:?}: {at}");
    }
}

/// With so many crashes of the database and losses as the bug needs.
#[track_caller]
fn catches(planted: Planted, (crashes, losses): (u8, u8), expected: Violation) {
    if let Err(found) = reaches(&SharedWorld::new(2, 2, crashes, losses, planted), &expected) {
        panic!("{planted:?} does not lead to {expected:?}, but to {found:?}");
    }
}

#[test]
fn planted_bugs_of_a_shared_log_are_caught() {
    catches(Planted::NoGuard, (0, 0), Violation::Torn);
    catches(Planted::GuardNotHeld, (0, 1), Violation::ReportedAbortedCommitted);
    catches(Planted::NoTakeOver, (0, 0), Violation::Torn);
    catches(Planted::LostIsRefused, (0, 1), Violation::Torn);
    catches(Planted::AgainWithoutWrite, (0, 1), Violation::CommitBeforeDecision);
    catches(Planted::ConflictIsOurs, (0, 0), Violation::CommitBeforeDecision);
    catches(Planted::BelieveUnforced, (1, 0), Violation::DecisionChanged);
    catches(Planted::ActBeforeCommit, (0, 0), Violation::DecisionChanged);
    catches(Planted::KeyIsCommit, (0, 0), Violation::DecisionChanged);
}
