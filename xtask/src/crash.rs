//! `cargo xtask crash demo` and `crash postgres`: builds the release binary and runs the crash rounds of the test tools.
//!
//! Must not know what a round does: the test tools do.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use unanimous_testing::crash::{self, Summary, repeat};
use unanimous_testing::demo::Place;

use crate::arguments::{Crash, Stores};
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
    say(&format!("seed {seed}, data in {}", folder.path().display()));
    let start = Instant::now();
    let done = match crash.stores {
        _ if crash.keys => keys(crash, binary, folder.path(), seed),
        Stores::Sqlite => demo(crash, binary, folder.path(), seed),
        Stores::Postgres => postgres(crash, binary, folder.path(), seed),
    };
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
        "rounds {}, orders acknowledged {}, aborted {}, unanswered {}, violations {}, in {:.0} s",
        summary.rounds,
        summary.acknowledged,
        summary.aborted,
        summary.unanswered,
        summary.violations.len(),
        start.elapsed().as_secs_f64()
    ));
    if summary.violations.is_empty() && summary.rounds == crash.rounds {
        return Ok(());
    }
    folder.disable_cleanup(true);
    let name = match crash.stores {
        Stores::Sqlite => "demo",
        Stores::Postgres => "postgres",
    };
    Err(format!(
        "the data is kept in {}\nto repeat it: cargo xtask crash {name} --rounds {} --seed {seed} --clients {}{}",
        folder.path().display(),
        crash.rounds,
        crash.clients,
        if crash.keys { " --keys" } else { "" }
    ))
}

fn demo(crash: &Crash, binary: PathBuf, folder: &Path, seed: u64) -> std::io::Result<Summary> {
    let Crash { rounds, clients, .. } = *crash;
    crash::run(&crash::Plan { binary, data: folder.join("data"), rounds, seed, clients }, say)
}

fn postgres(crash: &Crash, binary: PathBuf, folder: &Path, seed: u64) -> std::io::Result<Summary> {
    let summary = crash::postgres::run(&on_servers(crash, binary, folder, seed)?, say)?;
    for (fault, count) in &summary.faults {
        say(&format!("{count:5} times: {fault}"));
    }
    say(&format!("prepared when the demo was killed, and finished by its next start: {} branches", summary.left));
    say(&format!(
        "notified: {} orders were heard of, {} deliveries by nobody who listened; finished {:.1} s after the last fault at the latest",
        summary.heard,
        summary.unheard,
        summary.longest.as_secs_f64()
    ));
    Ok(summary.orders)
}

fn keys(crash: &Crash, binary: PathBuf, folder: &Path, seed: u64) -> std::io::Result<Summary> {
    let Crash { rounds, clients, .. } = *crash;
    let summary = match crash.stores {
        Stores::Sqlite => {
            let place = Place::new(binary, folder.join("data"));
            repeat::run(&repeat::Plan { place, rounds, seed, clients }, say)?
        }
        Stores::Postgres => repeat::run_on_postgres(&on_servers(crash, binary, folder, seed)?, say)?,
    };
    let repeat::KeySummary { orders, repeated, replayed, older, second_go, refused } = summary;
    say(&format!(
        "{repeated} requests were sent again until they were answered; of the answered ones {replayed} were asked for once more and were \
         the same, {older} of them after other orders; {second_go} were stored under the key of an aborted one; {refused} other orders with a used key were refused"
    ));
    Ok(orders)
}

fn on_servers(crash: &Crash, binary: PathBuf, folder: &Path, seed: u64) -> std::io::Result<crash::postgres::Plan> {
    let Crash { rounds, clients, .. } = *crash;
    // The servers may run as another user, who has to find their folders.
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(crash::postgres::Plan { binary, folder: folder.to_owned(), rounds, seed, clients })
}

/// Small, so that it can be typed.
fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos()) % 1_000_000
}
