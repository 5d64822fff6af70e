//! Futures of the manager, each dropped at every number of polls: commit, abort, join, savepoint, its rollback, `run`, the manager's build,
//! a pass of recovery, shutdown; and the detached task of a commit, as at the end of its runtime. A case is a future, a number of polls, and
//! an arrangement of stores and faults.
//!
//! Must not know how any of them waits.

mod dropping;
mod memory;
mod postgres;

use crate::{Found, Options, say};

pub(crate) fn run(options: &Options) -> Result<Found, String> {
    let mut found = Found::default();
    let memory = memory::run(options)?;
    say(&format!("on stores in memory: {} cases", memory.cases));
    found.add(memory);
    let postgres = postgres::run(options)?;
    say(&format!("on two databases: {} cases", postgres.cases));
    found.add(postgres);
    Ok(found)
}
