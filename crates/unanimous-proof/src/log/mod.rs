//! The decision log's files, damaged in every way that is written down here; the log's own system calls, failed or killed one by one in a
//! real process; and processes that want one log at once. A case is a damaged log, or a run of a process.
//!
//! Never, in any of them: a decision that nobody made, an acknowledged one that is gone without being said, two owners of one log, an answer
//! that changes. What is read is judged by what was handed to the log, not by what the log's own reader makes of it.
//!
//! Must not know how the log keeps its promises.

mod child;
mod damage;
mod image;
mod inject;
mod processes;

use crate::{Found, Options, say};

pub(crate) use child::{NAME as CHILD, run as child};

pub(crate) fn run(options: &Options) -> Result<Found, String> {
    let mut found = Found::default();
    for (what, part) in [
        ("damaged logs", damage::run as fn(&Options) -> Result<Found, String>),
        ("processes over one log", processes::run),
        ("system calls that fail or kill", inject::run),
    ] {
        let part = part(options)?;
        say(&format!("{what}: {} cases, {} violations", part.cases, part.violated()));
        found.add(part);
    }
    Ok(found)
}

/// Cases that share the work of two threads; their violations come in the order of the cases.
fn in_two<T: Sync>(cases: &[T], run: impl Fn(&T) -> Result<Vec<String>, String> + Sync) -> Result<Found, String> {
    let half = |part: usize| -> Result<Vec<(usize, String)>, String> {
        let mut seen = Vec::new();
        for (place, case) in cases.iter().enumerate().skip(part).step_by(2) {
            seen.extend(run(case)?.into_iter().map(|violation| (place, violation)));
        }
        Ok(seen)
    };
    let mut seen = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        let mut seen = half(0)?;
        seen.extend(other.join().map_err(|_| "a thread of the level panicked")??);
        Ok::<_, String>(seen)
    })?;
    seen.sort();
    let violations = seen.into_iter().map(|(_, violation)| violation).collect();
    Ok(Found { cases: cases.len() as u64, violations, untold: 0 })
}
