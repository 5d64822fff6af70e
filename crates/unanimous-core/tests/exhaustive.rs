//! Every reachable state of the real protocol and recovery's plan, for 1 to 3 branches of every capability, in the world of
//! [`super::world`]: every vote and failure, answers that are lost or late, a crash at every point, process or power, and another
//! during recovery.
//!
//! Planted bugs show that the check would see what it is there to see.

use std::collections::{HashSet, VecDeque};

use unanimous_core::Capability;
use unanimous_core::protocol::Spec;

use crate::world::{Planted, Violation, World};

struct Seen {
    states: usize,
    violations: Vec<(Violation, String)>,
}

fn explore(start: World) -> Seen {
    let mut seen: HashSet<World> = HashSet::new();
    let mut queue = VecDeque::new();
    let mut violations: Vec<(Violation, String)> = Vec::new();
    let mut note = |violation: Violation, world: &World| {
        if !violations.iter().any(|(known, _)| *known == violation) {
            violations.push((violation, format!("{world:#?}")));
        }
    };
    seen.insert(start.clone());
    queue.push_back(start);
    let mut next = Vec::new();
    while let Some(world) = queue.pop_front() {
        if let Err(violation) = world.check() {
            note(violation, &world);
            continue;
        }
        world.next(&mut next);
        let mut moved = false;
        for step in next.drain(..) {
            match step {
                Err(violation) => note(violation, &world),
                Ok(following) => {
                    moved |= following != world;
                    if !seen.contains(&following) {
                        seen.insert(following.clone());
                        queue.push_back(following);
                    }
                }
            }
        }
        if !moved && let Err(violation) = world.check_end() {
            note(violation, &world);
        }
    }
    Seen { states: seen.len(), violations }
}

const ALL: [Capability; 4] = [Capability::TwoPhase, Capability::Carrier, Capability::OnePhase, Capability::Volatile];

/// Every choice of `count` capabilities, in every order that makes a difference.
fn choices(count: usize) -> Vec<Vec<Capability>> {
    let mut all = vec![Vec::new()];
    for _ in 0..count {
        all = all
            .into_iter()
            .flat_map(|some: Vec<Capability>| {
                // Sorted: the protocol treats branches by their capability, not by their place.
                let last = some.last().copied();
                let follows = move |capability: &Capability| last.is_none_or(|last| last <= *capability);
                ALL.into_iter().filter(follows).map(move |capability| [&some[..], &[capability]].concat())
            })
            .collect();
    }
    all
}

fn specs(capabilities: &[Capability], allowed: bool) -> Vec<Spec> {
    capabilities.iter().map(|&capability| Spec { capability, allowed }).collect()
}

fn explore_all(count: usize, crashes: u8, losses: u8) -> usize {
    let mut states = 0;
    for capabilities in choices(count) {
        let has = |wanted: &[Capability]| capabilities.iter().any(|capability| wanted.contains(capability));
        // Each option is varied where some branch heeds it.
        let mut options = vec![(true, false)];
        options.extend(has(&[Capability::Carrier]).then_some((true, true)));
        options.extend(has(&[Capability::OnePhase, Capability::Volatile]).then_some((false, false)));
        for (allowed, ask_single) in options {
            let world = World::new(&specs(&capabilities, allowed), ask_single, crashes, losses, Planted::None);
            let seen = explore(world);
            assert!(
                seen.violations.is_empty(),
                "{capabilities:?}, allowed {allowed}, ask_single {ask_single}: {:?}\n{}",
                seen.violations[0].0,
                seen.violations[0].1
            );
            states += seen.states;
        }
    }
    println!("{count} branches, {crashes} crashes, {losses} lost answers: {states} states");
    states
}

#[test]
fn one_branch_in_every_state() {
    explore_all(1, 2, 3);
}

#[test]
fn two_branches_in_every_state() {
    explore_all(2, 2, 2);
}

#[test]
fn three_branches_in_every_state() {
    explore_all(3, 1, 1);
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
