//! `cargo xtask crash demo`: builds the release binary and runs the crash rounds of the test tools.
//!
//! Must not know what a round does: the test tools do.

use std::time::{SystemTime, UNIX_EPOCH};

use unanimous_testing::crash::{Plan, run as run_rounds};

use crate::arguments::Crash;
use crate::metadata::workspace;
use crate::run::cargo;
use crate::{complain, say};

pub(crate) fn run(crash: &Crash) -> Result<(), String> {
    cargo(["build", "--release", "--package", "unanimous-cli"]).show()?;
    let binary = workspace()?.target.join("release").join("unanimous");
    let mut folder =
        tempfile::Builder::new().prefix("unanimous-crash-").tempdir().map_err(|error| error.to_string())?;
    folder.disable_cleanup(crash.keep);
    let seed = crash.seed.unwrap_or_else(fresh_seed);
    let data = folder.path().join("data");
    say(&format!("seed {seed}, data in {}", data.display()));
    let plan = Plan { binary, data, rounds: crash.rounds, seed, clients: crash.clients };
    let done = run_rounds(&plan, say);
    let summary = done.map_err(|error| {
        folder.disable_cleanup(true);
        format!("the rounds could not be run: {error}; the data is kept in {}", folder.path().display())
    })?;
    for violation in &summary.violations {
        complain(&format!("violation: {violation}"));
    }
    say(&format!(
        "kills {}, those during start-up included; of the unanswered orders {} were committed, wholly",
        summary.kills, summary.unanswered_committed
    ));
    say(&format!(
        "rounds {}, orders acknowledged {}, aborted {}, unanswered {}, violations {}",
        summary.rounds,
        summary.acknowledged,
        summary.aborted,
        summary.unanswered,
        summary.violations.len()
    ));
    if summary.violations.is_empty() && summary.rounds == crash.rounds {
        return Ok(());
    }
    folder.disable_cleanup(true);
    Err(format!(
        "the data is kept in {}\nto repeat it: cargo xtask crash demo --rounds {} --seed {seed} --clients {}",
        folder.path().display(),
        crash.rounds,
        crash.clients
    ))
}

/// Small, so that it can be typed.
fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos()) % 1_000_000
}
