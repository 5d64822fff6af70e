//! Every reachable state of the protocol, recovery's plan and the deciders. A case is a state.
//!
//! Must not know how states follow one another: the model does.

use std::sync::Mutex;
use std::thread::available_parallelism;

use unanimous_model::walk::Walked;
use unanimous_model::world::{Faults, World};
use unanimous_model::{walk, worlds};

use crate::{Found, Options, say};

/// Branches, and what may go wrong among them.
const QUICK: &[(usize, Faults)] = &[
    (1, Faults { crashes: 2, losses: 3, repeats: 2 }),
    (2, Faults { crashes: 2, losses: 2, repeats: 1 }),
    (3, Faults { crashes: 1, losses: 1, repeats: 1 }),
    (4, Faults { crashes: 1, losses: 0, repeats: 0 }),
];
const FULL: &[(usize, Faults)] = &[
    (1, Faults { crashes: 3, losses: 3, repeats: 2 }),
    (2, Faults { crashes: 3, losses: 3, repeats: 2 }),
    (3, Faults { crashes: 2, losses: 2, repeats: 1 }),
    (4, Faults { crashes: 2, losses: 1, repeats: 0 }),
];

type Case = (String, World);

pub(crate) fn run(options: &Options) -> Result<Found, String> {
    let mut found = Found::default();
    for &(count, faults) in if options.quick { QUICK } else { FULL } {
        let Faults { crashes, losses, repeats } = faults;
        let name = format!("{count} branches, {crashes} crashes, {losses} losses, {repeats} repeats");
        let cases = worlds(count, faults);
        let starts = cases.len();
        let walked = all(cases.into_iter().map(|world| (name.clone(), world)).collect());
        say(&format!("{name}: {} states from {starts} starts", walked.states));
        found.cases += walked.states;
        found.violations.extend(walked.violations.into_iter().map(|(violation, at)| format!("{violation:?}: {at}")));
    }
    Ok(found)
}

/// Walks through all of them, as many at a time as there are cores.
fn all(mut cases: Vec<Case>) -> Walked {
    cases.reverse();
    let left = Mutex::new(cases);
    let sum = Mutex::new(Walked::default());
    std::thread::scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let case = left.lock().expect("nobody panics").pop();
                    let Some((name, world)) = case else { return };
                    let walked = walk::walk(&world);
                    let mut sum = sum.lock().expect("nobody panics");
                    sum.states += walked.states;
                    let named = |(violation, at)| (violation, format!("{name}: {at}"));
                    sum.violations.extend(walked.violations.into_iter().map(named));
                }
            });
        }
    });
    sum.into_inner().expect("nobody panics")
}
