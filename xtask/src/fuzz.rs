//! `cargo xtask fuzz`: the fuzz targets, so many executions of each.
//!
//! Nothing is installed by it. What libFuzzer has found stays in `fuzz/corpus`, and what fails in `fuzz/artifacts`; neither is kept in the
//! repository.
//!
//! Must not know what a target tries.

use crate::arguments::Fuzz;
use crate::run::Run;
use crate::say;

/// The binaries of `fuzz/Cargo.toml`.
const TARGETS: [&str; 2] = ["log_decode", "log_open"];

pub(crate) fn run(plan: &Fuzz) -> Result<(), String> {
    if let Some(target) = plan.target.as_deref().filter(|target| !TARGETS.contains(target)) {
        return Err(format!("there is no fuzz target {target:?}; there are {}", TARGETS.join(", ")));
    }
    // The toolchain is chosen by rustup's own `cargo`, not by the one that runs this.
    if !Run::new("cargo", ["+nightly", "fuzz", "--version"]).works() {
        return Err("fuzzing needs a nightly toolchain and cargo-fuzz; install them:\n  \
                    rustup toolchain install nightly\n  cargo install --locked cargo-fuzz"
            .into());
    }
    for &target in TARGETS.iter().filter(|&&target| plan.target.as_deref().is_none_or(|only| only == target)) {
        say(&format!("==> {target}, {} executions", plan.executions));
        // There is no unsafe code, so that no sanitizer has anything to find.
        let fuzz = ["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz", "--sanitizer", "none", target, "--"];
        let runs = format!("-runs={}", plan.executions);
        let limits = ["-max_len=4096", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0", runs.as_str()];
        Run::new("cargo", fuzz.into_iter().chain(limits)).show()?;
    }
    Ok(())
}
