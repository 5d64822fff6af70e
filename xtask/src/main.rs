//! The project's own commands.
//!
//! - `cargo xtask test [STEP]`: everything that must hold before a commit; what CI runs.
//! - `cargo xtask crash demo --rounds N [--seed S]`: kill -9 of the demo under load, and what must be true after it; `crash postgres`: on
//!   two PostgreSQL servers, which fail too.
//! - `cargo xtask python wheel|test|crash|bench`: the Python package.
//! - `cargo xtask prove`: all levels of the proof.
//! - `cargo xtask bench`: what the library costs, beside the machine's own yardsticks.
//! - `cargo xtask coverage`: which lines the tests run.
//! - `cargo xtask fuzz`: the fuzz targets.
//!
//! Must not know the library: it runs cargo, and the test tools.

mod arguments;
mod bench;
mod coverage;
mod crash;
mod documents;
mod fuzz;
mod metadata;
mod mutants;
mod packages;
mod prove;
mod python;
mod run;
mod runners;
mod test;
mod tools;

use std::io::{self, Write as _};
use std::process::ExitCode;

use arguments::{Command, USAGE};

fn main() -> ExitCode {
    let done = match arguments::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            say(USAGE);
            Ok(())
        }
        Ok(Command::Test(only)) => test::run(only.as_deref()),
        Ok(Command::Crash(plan)) => crash::run(&plan),
        Ok(Command::Prove(plan)) => prove::run(&plan),
        Ok(Command::Coverage) => coverage::run(),
        Ok(Command::Fuzz(plan)) => fuzz::run(&plan),
        Ok(Command::Bench(plan)) => bench::run(&plan),
        Ok(Command::Python(what)) => python::run(&what),
        Err(wrong) => {
            complain(&format!("{wrong}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            complain(&what);
            ExitCode::FAILURE
        }
    }
}

/// A line on the standard output. Whoever closed it does not want it.
fn say(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
