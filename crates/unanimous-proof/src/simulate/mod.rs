//! The real manager, log and recovery in a simulated world: its clock, its disks, its stores and the messages to them, all by one seed.
//! A case is a seed.
//!
//! A seed is a world of its own: one or two coordinators over common stores, with clients, faults, and an end in which the faults are over and
//! the invariants are looked at. The same seed gives the same trace, byte for byte.
//!
//! Must not know the other levels.

mod adapter;
mod chaos;
mod check;
mod client;
mod coverage;
mod disk;
mod executor;
mod ledger;
mod net;
mod plan;
mod process;
mod rows;
mod server;
mod threads;
mod trace;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Found, Options, say};
use coverage::Coverage;
use executor::{Step, lock};
use world::World;

/// How many seeds `--quick` tries.
const QUICK: u64 = 10_000;
/// How long the full run goes on.
const FULL: Duration = Duration::from_secs(600);
/// How many violations are told, all of them being counted; the first ones tell enough.
const MOST_TOLD: usize = 20;

/// How long everything has to settle when the faults are over.
const SETTLE: Duration = Duration::from_secs(75);
/// How long the checks may take; more is a manager that hangs.
const CHECKS: Duration = Duration::from_secs(600);

/// What became of one seed.
pub struct Simulated {
    /// The hash of its trace.
    pub hash: u64,
    /// How many events its trace has.
    pub events: u64,
    /// What must never be.
    pub violations: Vec<String>,
    /// Its trace, where it was asked for.
    pub lines: Vec<String>,
    coverage: Coverage,
}

/// Runs the world of this seed; with `keep`, its trace is kept.
pub fn simulate(seed: u64, keep: bool) -> Simulated {
    let world = World::new(seed, keep);
    chaos::start(&world);
    for process in world.processes() {
        process.start(&world);
    }
    let chaos = world.plan.chaos;
    run_until(&world, chaos);
    world.note(format_args!("the faults end"));
    world.end_faults();
    for server in world.servers() {
        server.start();
    }
    for process in world.processes() {
        process.disk().limit(None);
    }
    run_until(&world, chaos + SETTLE);
    world.note(format_args!("the checks begin"));
    let over = Arc::new(AtomicBool::new(false));
    let (done, own) = (over.clone(), world.clone());
    world.executor.spawn(None, async move {
        check::run(own).await;
        done.store(true, Ordering::Relaxed);
    });
    let limit = world.now() + CHECKS;
    while !over.load(Ordering::Relaxed) {
        if !step(&world, limit) {
            world.violation("the checks hang".to_owned());
            break;
        }
    }
    finish(&world)
}

fn finish(world: &Arc<World>) -> Simulated {
    let violations = world.take_violations();
    let coverage = world.coverage();
    let (hash, events, lines) = {
        let mut trace = world.trace();
        (trace.hash(), trace.events(), trace.take_lines())
    };
    for process in world.processes() {
        process.clear();
    }
    world.executor.drop_all();
    Simulated { hash, events, violations, lines, coverage }
}

fn run_until(world: &Arc<World>, limit: Duration) {
    while step(world, limit) {}
}

fn step(world: &Arc<World>, limit: Duration) -> bool {
    let went = match world.executor.step(limit) {
        Step::Went => true,
        Step::Panicked(text) => {
            world.violation(format!("a task panicked: {text}"));
            true
        }
        Step::Nothing => false,
    };
    for process in world.processes() {
        process.bury(world);
    }
    went
}

pub(crate) fn run(options: &Options) -> Result<Found, String> {
    if std::env::var_os("UNANIMOUS_TRACE").is_some() {
        return Ok(one(options.seed));
    }
    if let Some(count) = std::env::var_os("UNANIMOUS_HASHES") {
        let count = count.to_str().and_then(|count| count.parse().ok());
        return Ok(hashes(options.seed, count.ok_or("UNANIMOUS_HASHES is how many seeds to tell the hashes of")?));
    }
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let goes_on = |tried: u64| if options.quick { tried < QUICK } else { begun.elapsed() < FULL };
    let total = std::sync::Mutex::new((Found::default(), Coverage::default(), 0_u64));
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(2));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let tried = next.fetch_add(1, Ordering::Relaxed);
                    if !goes_on(tried) {
                        break;
                    }
                    let seed = options.seed.wrapping_add(tried);
                    let simulated = simulate(seed, false);
                    let (found, coverage, events) = &mut *lock(&total);
                    found.cases += 1;
                    *events += simulated.events;
                    coverage.add(&simulated.coverage);
                    let told = simulated
                        .violations
                        .into_iter()
                        .map(|text| format!("{text}\n  UNANIMOUS_TRACE=1 target/release/prove simulate --seed {seed}"));
                    found.tell_at_most(MOST_TOLD, told);
                }
            });
        }
    });
    let (mut found, coverage, events) = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    say(&format!("{} seeds from {}, {events} events", found.cases, options.seed));
    for (name, count) in coverage.counts() {
        say(&format!("{count:>9}  {name}"));
        if count == 0 {
            found.violations.push(format!("nothing was tested: {name}"));
        }
    }
    Ok(found)
}

/// One seed, with its trace.
fn one(seed: u64) -> Found {
    let simulated = simulate(seed, true);
    for line in &simulated.lines {
        say(line);
    }
    say(&format!("seed {seed}: {} events, hash {:016x}", simulated.events, simulated.hash));
    Found { cases: 1, violations: simulated.violations, untold: 0 }
}

/// The hashes of so many seeds.
fn hashes(first: u64, count: u64) -> Found {
    let mut found = Found::default();
    for seed in first..first + count {
        let simulated = simulate(seed, false);
        say(&format!("seed {seed}: {} events, hash {:016x}", simulated.events, simulated.hash));
        found.cases += 1;
        found.violations.extend(simulated.violations);
    }
    found
}
