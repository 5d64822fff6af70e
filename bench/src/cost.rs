//! What a piece of work costs the processor: nanoseconds and allocations for each turn of it.
//!
//! Must not know what the work is.

use rustix::time::{ClockId, clock_gettime};

use crate::Error;
use crate::rounds::{Rounds, Side, alternate};

const ROUND_NANOSECONDS: f64 = 1e6;

/// Work that can be done many times; it is told how often.
pub(crate) type Work<'w> = &'w mut dyn FnMut(u32);

/// Nanoseconds of the processor for each turn, the sides taking turns.
pub(crate) fn nanoseconds<const N: usize>(rounds: usize, sides: [(&str, Work<'_>); N]) -> Result<[Rounds; N], Error> {
    let mut times = sides.each_ref().map(|(name, _)| Rounds::new(*name, "ns"));
    let mut measures = sides.map(|(_, work)| {
        // The first turns are slower; they say enough about how many make a round.
        work(100);
        let turns = (ROUND_NANOSECONDS / time(work, 100)).clamp(10.0, 1e5) as u32;
        move || Ok(time(work, turns))
    });
    let mut sides: Vec<Side<'_, Error>> = Vec::new();
    for (times, measure) in times.iter_mut().zip(&mut measures) {
        sides.push((times, measure));
    }
    alternate(rounds, &mut sides)?;
    Ok(times)
}

/// The processor's time of this thread, on which all of the work is done: who else wants the processor meanwhile is not in it.
fn time(work: &mut dyn FnMut(u32), turns: u32) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let begin = now();
    work(turns);
    (now() - begin) / f64::from(turns)
}

/// Allocations for each turn, on this thread; the same in every round, but for what grows now and then.
pub(crate) fn allocations(name: &str, work: Work<'_>) -> Rounds {
    const TURNS: u32 = 1_000;
    work(TURNS);
    let mut rounds = Rounds::new(name, "allocations");
    for _ in 0..7 {
        let counted = allocation_counter::measure(|| work(TURNS));
        // Hundredths: less is the runtime's entry, and what grows.
        rounds.push((counted.count_total as f64 / f64::from(TURNS) * 100.0).round() / 100.0);
    }
    rounds
}
