//! Every reachable state of the real protocol and recovery's plan, for a few branches of every capability, in the world of [`world`]:
//! every vote and failure, answers that are lost or late, a crash at every point, process or power, and another during recovery.
//!
//! Must not know anything but the core: it has to be built and run in seconds, so that every planted bug can be tried.

#[allow(missing_docs, reason = "the names say it, and nobody outside of the proof reads them")]
pub mod world;

use std::collections::{HashSet, VecDeque};

use unanimous_core::Capability;
use unanimous_core::protocol::Spec;

use crate::world::{Planted, Violation, World};

/// What a walk through all states has found.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How many different ones there were.
    pub states: usize,
    /// Each kind of violation once, with the state where it was seen first.
    pub violations: Vec<(Violation, String)>,
}

/// Walks through every state that can follow.
pub fn explore(start: World) -> Seen {
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

/// Branches of these capabilities.
pub fn specs(capabilities: &[Capability], allowed: bool) -> Vec<Spec> {
    capabilities.iter().map(|&capability| Spec { capability, allowed }).collect()
}

/// Every choice of capabilities for that many branches, with every option that some branch heeds.
pub fn explore_all(count: usize, crashes: u8, losses: u8) -> Seen {
    let mut all = Seen::default();
    for capabilities in choices(count) {
        let has = |wanted: &[Capability]| capabilities.iter().any(|capability| wanted.contains(capability));
        let mut options = vec![(true, false)];
        options.extend(has(&[Capability::Carrier]).then_some((true, true)));
        options.extend(has(&[Capability::OnePhase, Capability::Volatile]).then_some((false, false)));
        for (allowed, ask_single) in options {
            let world = World::new(&specs(&capabilities, allowed), ask_single, crashes, losses, Planted::None);
            let seen = explore(world);
            all.states += seen.states;
            all.violations.extend(seen.violations.into_iter().map(|(violation, at)| {
                (violation, format!("{capabilities:?}, allowed {allowed}, ask_single {ask_single}: {at}"))
            }));
        }
    }
    all
}
