//! One level of the proof: `prove LEVEL [--quick] [--seed N]`. Last it prints one JSON line with the level's figures; it exits with 1 where
//! something was violated, and with 2 where the level could not be run.
//!
//! Must not know what the levels do.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use unanimous_proof::{LEVELS, Level, Options, say};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(done) = unanimous_proof::child(&arguments) {
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&error);
                ExitCode::from(2)
            }
        };
    }
    let (level, options) = match parse(arguments.into_iter()) {
        Ok(parsed) => parsed,
        Err(wrong) => {
            complain(&wrong);
            return ExitCode::from(2);
        }
    };
    let start = Instant::now();
    let found = match (level.run)(&options) {
        Ok(found) => found,
        Err(error) => {
            complain(&format!("error: the level {} could not be run: {error}", level.name));
            return ExitCode::from(2);
        }
    };
    for violation in &found.violations {
        complain(&format!("violation: {violation}"));
    }
    if found.untold > 0 {
        complain(&format!("and {} violations more", found.untold));
    }
    let seconds = start.elapsed().as_secs_f64();
    let figures = json!({ "cases": found.cases, "violations": found.violated(), "seconds": seconds });
    say(&figures.to_string());
    if found.violated() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(&'static Level, Options), String> {
    let names = || LEVELS.iter().map(|level| level.name).collect::<Vec<_>>().join(", ");
    let name = arguments.next().ok_or_else(|| format!("error: which level? there are {}", names()))?;
    let level = LEVELS.iter().find(|level| level.name == name);
    let level = level.ok_or_else(|| format!("error: there is no level {name:?}; there are {}", names()))?;
    let mut options = Options { quick: false, seed: 1 };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => options.quick = true,
            "--seed" => {
                let value = arguments.next().unwrap_or_default();
                options.seed =
                    value.parse().map_err(|_| format!("error: --seed needs a whole number, not {value:?}"))?;
            }
            _ => return Err(format!("error: unexpected argument {argument:?}")),
        }
    }
    Ok((level, options))
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
