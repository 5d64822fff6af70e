//! Every reachable state of the protocol, recovery's plan and the deciders. A case is a state.
//! Of each walk a kind of violation is told and counted once, with the shortest way to it, however many states have it.
//!
//! Must not know how states follow one another: the model does.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::thread::available_parallelism;

use unanimous_core::Capability;
use unanimous_model::row::{self, Kind, RowWorld};
use unanimous_model::shared::{self, SharedWorld};
use unanimous_model::walk::{Walked, walk};
use unanimous_model::world::{Faults, Planted, Spec, World};
use unanimous_model::worlds;

use crate::{Found, Options, say};

/// Starts that are walked through together.
struct Case {
    name: String,
    walks: Vec<Box<dyn Fn() -> Walked + Send>>,
}

/// A file log or a carrier as a whole: so many branches, of every capability.
fn branches(count: usize, crashes: u8, losses: u8, repeats: u8) -> Case {
    let name = format!("{count} branches: {crashes} crashes, {losses} losses, {repeats} repeats");
    let worlds = worlds(count, Faults { crashes, losses, repeats }).into_iter();
    Case { name, walks: worlds.map(|world| Box::new(move || walk(&world)) as Box<_>).collect() }
}

/// Early acknowledgement: all two-phase, any of them may only have read.
fn early(count: usize, crashes: u8, losses: u8, repeats: u8) -> Case {
    let name = format!("{count} branches, early: {crashes} crashes, {losses} losses, {repeats} repeats");
    let spec = Spec { capability: Capability::TwoPhase, allowed: true };
    let start = World::new(&vec![spec; count], false, Faults { crashes, losses, repeats }, Planted::None);
    let start = start.acknowledging_early();
    Case { name, walks: vec![Box::new(move || walk(&start))] }
}

/// A decision row, step by step: two recoverers.
fn row(kind: Kind, others: usize, crashes: u8, losses: u8) -> Case {
    let name = match kind {
        Kind::Server => "a row in a server",
        Kind::File => "a row in a file",
    };
    let name = format!("{name}, {others} others: {crashes} crashes of it, {losses} losses");
    let start = RowWorld::new(others, kind, crashes, losses, row::Planted::None);
    Case { name, walks: vec![Box::new(move || walk(&start))] }
}

/// A log that processes share: an owner that may be slow, the others take over.
fn shared(branches: usize, processes: usize, crashes: u8, losses: u8) -> Case {
    let name = format!(
        "a log of {processes} processes, {branches} branches: {crashes} crashes of its server, {losses} losses"
    );
    let start = SharedWorld::new(branches, processes, crashes, losses, shared::Planted::None);
    Case { name, walks: vec![Box::new(move || walk(&start))] }
}

/// Those with one start first: each is one core's work.
fn quick() -> Vec<Case> {
    vec![
        shared(2, 2, 1, 0),
        row(Kind::Server, 1, 1, 2),
        row(Kind::File, 2, 1, 1),
        early(2, 2, 2, 1),
        early(3, 1, 1, 0),
        branches(1, 2, 3, 2),
        branches(2, 2, 2, 1),
        branches(3, 1, 1, 0),
        branches(4, 1, 0, 0),
    ]
}

fn full() -> Vec<Case> {
    vec![
        shared(2, 3, 1, 1),
        shared(3, 2, 1, 1),
        row(Kind::Server, 3, 1, 1),
        row(Kind::Server, 2, 2, 2),
        row(Kind::File, 3, 2, 2),
        early(2, 3, 3, 2),
        early(3, 2, 2, 1),
        early(4, 1, 1, 0),
        branches(1, 3, 3, 2),
        branches(2, 3, 3, 2),
        branches(3, 2, 2, 1),
        branches(4, 2, 1, 0),
    ]
}

pub(crate) fn run(options: &Options) -> Result<Found, String> {
    let cases = if options.quick { quick() } else { full() };
    let left = Mutex::new(VecDeque::new());
    let mut sums = Vec::new();
    for (i, Case { name, walks }) in cases.into_iter().enumerate() {
        sums.push(Mutex::new(Sum { name, left: walks.len(), starts: walks.len(), walked: Walked::default() }));
        locked(&left).extend(walks.into_iter().map(|walk| (i, walk)));
    }
    std::thread::scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some((i, walk)) = locked(&left).pop_front() else { return };
                    let walked = walk();
                    locked(&sums[i]).add(walked);
                }
            });
        }
    });
    let mut found = Found::default();
    for sum in sums {
        let Sum { name, walked, .. } = sum.into_inner().expect(UNPOISONED);
        found.cases += walked.states;
        let named = |(violation, at)| format!("{violation:?}: {name}: {at}");
        found.violations.extend(walked.violations.into_iter().map(named));
    }
    Ok(found)
}

/// What the walks of a case have come to.
struct Sum {
    name: String,
    left: usize,
    starts: usize,
    walked: Walked,
}

impl Sum {
    fn add(&mut self, walked: Walked) {
        self.left -= 1;
        self.walked.states += walked.states;
        self.walked.violations.extend(walked.violations);
        if self.left == 0 {
            say(&format!("{}: {} states from {} starts", self.name, self.walked.states, self.starts));
        }
    }
}

const UNPOISONED: &str = "nobody panics while it is locked";

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect(UNPOISONED)
}
