//! The levels of the proof. Each tries many cases, counts them, and says what was violated; `cargo xtask prove` runs them all.
//!
//! The fault model, what each level shows and what none of them does is in `docs/proof.md`.
//!
//! Must not know how it is called.

mod cancel;
mod crash;
mod exhaustive;
mod log;
mod network;
pub mod simulate;
pub mod transfers;

use std::io::Write as _;

/// How a level is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// As much as fits into the level's share of three minutes on two cores (15 to 45 s), instead of everything.
    pub quick: bool,
    /// Repeats the run that printed it.
    pub seed: u64,
}

/// What a level has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many cases were tried: states, seeds, cuts, rounds; the level's own documentation says which.
    pub cases: u64,
    /// What must never be, each with what repeats it.
    pub violations: Vec<String>,
    /// How many violations there were besides, which are like those and not told.
    pub untold: u64,
}

impl Found {
    /// With what another part has found.
    pub(crate) fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.violations.extend(other.violations);
        self.untold += other.untold;
    }

    /// How many violations there were, told or not.
    pub fn violated(&self) -> u64 {
        self.violations.len() as u64 + self.untold
    }

    /// Counts violations, and keeps the text of so many.
    pub(crate) fn tell_at_most(&mut self, most: usize, violations: impl IntoIterator<Item = String>) {
        for violation in violations {
            if self.violations.len() < most {
                self.violations.push(violation);
            } else {
                self.untold += 1;
            }
        }
    }
}

/// A level of the proof.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    /// As it is given to `--level`.
    pub name: &'static str,
    /// Runs it, and says on the standard output what it does.
    ///
    /// # Errors
    ///
    /// When it can't be run, such as where a server is missing: that is neither a pass nor a violation.
    pub run: fn(&Options) -> Result<Found, String>,
}

/// In the order in which they are run, the quickest to fail first.
pub const LEVELS: &[Level] = &[
    Level { name: "exhaustive", run: exhaustive::run },
    Level { name: "simulate", run: simulate::run },
    Level { name: "log", run: log::run },
    Level { name: "cancel", run: cancel::run },
    Level { name: "network", run: network::run },
    Level { name: "crash", run: crash::run },
];

/// What a level starts this program for, to be killed or failed: none where these arguments are no such thing.
pub fn child(arguments: &[String]) -> Option<Result<(), String>> {
    match arguments {
        [name, rest @ ..] if name == log::CHILD => Some(log::child(rest)),
        _ => None,
    }
}

/// A line on the standard output. Whoever closed it does not want it.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
