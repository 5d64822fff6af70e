//! Every reachable state of the real protocol and recovery's plan, for 1 to 3 branches of every capability, in the world of the model;
//! and planted bugs, which show that the walk would see what it is there to see.

use unanimous_core::Capability::{self, Carrier, OnePhase, TwoPhase, Volatile};
use unanimous_model::walk::{reaches, walk};
use unanimous_model::world::{Faults, Planted, Spec, World};
use unanimous_model::{Violation, walk_all};

fn holds(count: usize, faults: Faults) {
    let seen = walk_all(count, faults);
    println!("{count} branches, {faults:?}: {} states", seen.states);
    if let Some((violation, at)) = seen.violations.first() {
        panic!("{violation:?}: {at}");
    }
}

#[test]
fn one_branch_in_every_state() {
    holds(1, Faults { crashes: 2, losses: 3, repeats: 1 });
}

#[test]
fn two_branches_in_every_state() {
    holds(2, Faults { crashes: 2, losses: 1, repeats: 1 });
}

#[test]
fn three_branches_in_every_state() {
    holds(3, Faults { crashes: 1, losses: 1, repeats: 0 });
}

fn early(count: usize, faults: Faults, planted: Planted) -> World {
    World::new(&[Spec { capability: TwoPhase, allowed: true }; 4][..count], false, faults, planted)
        .acknowledging_early()
}

/// Early acknowledgement: nothing that was acknowledged is lost, and nothing reported aborted commits, for two and three participants.
#[test]
fn early_acknowledgement_in_every_state() {
    for (count, faults) in [
        (2, Faults { crashes: 2, losses: 1, repeats: 1 }),
        (2, Faults { crashes: 1, losses: 2, repeats: 0 }),
        (3, Faults { crashes: 1, losses: 1, repeats: 0 }),
    ] {
        let seen = walk(&early(count, faults, Planted::None));
        println!("{count} branches, early, {faults:?}: {} states", seen.states);
        if let Some((violation, at)) = seen.violations.first() {
            panic!("{violation:?}: {at}");
        }
    }
}

#[test]
fn planted_bugs_of_early_acknowledgement_are_caught() {
    for (planted, expected) in [
        (Planted::BelieveUnforced, Violation::Torn),
        (Planted::PresumeOfAll, Violation::AcknowledgedLost),
        (Planted::CommitUnrecorded, Violation::Torn),
        (Planted::RollBackUnrecorded, Violation::Torn),
        (Planted::UnlistedIsMissing, Violation::AcknowledgedLost),
        (Planted::UnlistedIsPrepared, Violation::Torn),
        (Planted::ListsBeforeLive, Violation::AcknowledgedLost),
        (Planted::UnsureIsPrepared, Violation::Torn),
        (Planted::AbortLeavesNoFloor, Violation::ReportedAbortedCommitted),
        (Planted::TouchLive, Violation::AcknowledgedLost),
    ] {
        let faults = Faults { crashes: 2, losses: 1, repeats: 1 };
        if let Err(found) = reaches(&early(2, faults, planted), &expected) {
            panic!("{planted:?} does not lead to {expected:?}, but to {found:?}");
        }
    }
}

#[track_caller]
fn catches(planted: Planted, capabilities: &[Capability], expected: Violation) {
    let specs: Vec<_> = capabilities.iter().map(|&capability| Spec { capability, allowed: true }).collect();
    let faults = Faults { crashes: 2, losses: 1, repeats: 1 };
    if let Err(found) = reaches(&World::new(&specs, false, faults, planted), &expected) {
        panic!("{planted:?} does not lead to {expected:?}, but to {found:?}");
    }
}

#[test]
fn planted_bugs_are_caught() {
    catches(Planted::BelieveUnforced, &[TwoPhase, TwoPhase], Violation::Torn);
    catches(Planted::BelieveUnforced, &[TwoPhase, Carrier], Violation::Torn);
    catches(Planted::BelieveUnforced, &[TwoPhase, TwoPhase], Violation::DecisionChanged);
    catches(Planted::BelieveUnforced, &[TwoPhase, Carrier], Violation::CommitBeforeDecision);
    catches(Planted::NoFence, &[TwoPhase, Carrier], Violation::ReportedAbortedCommitted);
    catches(Planted::AbortedWhenDropped, &[TwoPhase, TwoPhase], Violation::AcknowledgedLost);
    catches(Planted::TouchLive, &[TwoPhase, TwoPhase], Violation::Torn);
    catches(Planted::DecisionBeforeLive, &[TwoPhase, TwoPhase], Violation::Torn);
    catches(Planted::NoFence, &[TwoPhase, Carrier], Violation::Torn);
    catches(Planted::AskTheLog, &[TwoPhase, Carrier], Violation::Torn);
    catches(Planted::PresumePoisoned, &[TwoPhase, TwoPhase], Violation::Torn);
    catches(Planted::DontWaitForTheLog, &[TwoPhase, TwoPhase], Violation::Torn);
    catches(Planted::AbortedWhenDropped, &[TwoPhase, TwoPhase], Violation::Torn);
    catches(Planted::ForgetUnconfirmed, &[TwoPhase, TwoPhase], Violation::LeftInDoubt);
    catches(Planted::ListsBeforeDecisions, &[TwoPhase, TwoPhase], Violation::LeftInDoubt);
    catches(Planted::ForgetUnconfirmed, &[TwoPhase, Carrier], Violation::LeftInDoubt);
}

/// What a crash may tear is what was opted in to, and that it may is seen too.
#[test]
fn without_a_crash_volatile_and_one_phase_branches_are_atomic_too() {
    for other in [OnePhase, Volatile] {
        let specs = [TwoPhase, other].map(|capability| Spec { capability, allowed: true });
        let seen = walk(&World::new(&specs, false, Faults { crashes: 0, losses: 2, repeats: 1 }, Planted::None));
        assert!(seen.violations.is_empty(), "{:?}", seen.violations);
    }
}
