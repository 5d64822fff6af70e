//! Every reachable state of the real protocol and recovery's plan, for 1 to 3 branches of every capability, in the world of the model;
//! and planted bugs, which show that the walk would see what it is there to see.

use unanimous_core::Capability;
use unanimous_model::world::{Planted, Violation, World};
use unanimous_model::{explore, explore_all, specs};

fn holds(count: usize, crashes: u8, losses: u8) {
    let seen = explore_all(count, crashes, losses);
    println!("{count} branches, {crashes} crashes, {losses} lost answers: {} states", seen.states);
    if let Some((violation, at)) = seen.violations.first() {
        panic!("{violation:?}: {at}");
    }
}

#[test]
fn one_branch_in_every_state() {
    holds(1, 2, 3);
}

#[test]
fn two_branches_in_every_state() {
    holds(2, 2, 2);
}

#[test]
fn three_branches_in_every_state() {
    holds(3, 1, 1);
}

fn catches(planted: Planted, capabilities: &[Capability], expected: Violation) {
    let seen = explore(World::new(&specs(capabilities, true), false, 2, 2, planted));
    let found: Vec<_> = seen.violations.iter().map(|(violation, _)| violation).collect();
    assert!(found.contains(&&expected), "{planted:?} was not caught: {found:?} in {} states", seen.states);
}

#[test]
fn planted_bugs_are_caught() {
    use Capability::{Carrier, TwoPhase};
    catches(Planted::BelieveUnforced, &[TwoPhase, TwoPhase], Violation::Torn);
    catches(Planted::BelieveUnforced, &[TwoPhase, Carrier], Violation::Torn);
    catches(Planted::TouchLive, &[TwoPhase, TwoPhase], Violation::Torn);
    catches(Planted::DecisionBeforeLive, &[TwoPhase, TwoPhase], Violation::Torn);
    catches(Planted::NoFence, &[TwoPhase, Carrier], Violation::Torn);
    catches(Planted::AskTheLog, &[TwoPhase, Carrier], Violation::Torn);
    catches(Planted::PresumePoisoned, &[TwoPhase, TwoPhase], Violation::Torn);
}
