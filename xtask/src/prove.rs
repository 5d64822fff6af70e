//! `cargo xtask prove`: the levels of the proof one after another, a line for each, and last one JSON line with all figures.
//!
//! Must not know what a level does: each is run by a program of its own, whose last line are its figures.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::arguments::Prove;
use crate::metadata::workspace;
use crate::run::cargo;
use crate::say;

/// As the program knows them, the quickest to fail first.
const LEVELS: &[&str] = &["exhaustive", "cancel", "network"];

pub(crate) fn run(prove: &Prove) -> Result<(), String> {
    if let Some(level) = prove.level.as_deref().filter(|level| !LEVELS.contains(level)) {
        return Err(format!("there is no level {level:?}; there are {}", LEVELS.join(", ")));
    }
    cargo(["build", "--release", "--package", "unanimous-proof"]).show()?;
    let program = workspace()?.target.join("release").join("prove");
    let mut figures = BTreeMap::new();
    let mut lines = Vec::new();
    for &level in LEVELS.iter().filter(|&&level| prove.level.as_deref().is_none_or(|only| only == level)) {
        let mut command = Command::new(&program);
        command.arg(level).args(["--seed", &prove.seed.to_string()]);
        if prove.quick {
            command.arg("--quick");
        }
        say(&format!("==> {level}"));
        let start = Instant::now();
        let found = level_figures(level, &mut command)?;
        let [cases, violations] = ["cases", "violations"].map(|name| found[name].as_u64().unwrap_or(u64::MAX));
        let seconds = (start.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        lines.push(format!("{level}: {cases} cases, {violations} violations, {seconds:.1} s"));
        figures.insert(level, json!({ "cases": cases, "violations": violations, "seconds": seconds }));
    }
    for line in lines {
        say(&line);
    }
    let violations: u64 = figures.values().filter_map(|level| level["violations"].as_u64()).sum();
    say(&json!({ "violations": violations, "levels": figures }).to_string());
    if violations == 0 {
        return Ok(());
    }
    Err(format!(
        "{violations} violations\nto repeat them: cargo xtask prove --seed {}{}",
        prove.seed,
        if prove.quick { " --quick" } else { "" }
    ))
}

/// Runs a level, shows what it says, and gives its figures.
fn level_figures(level: &str, command: &mut Command) -> Result<Value, String> {
    let failed = |error: std::io::Error| format!("the level {level} could not be run: {error}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut last = None;
    for line in output.lines() {
        let line = line.map_err(failed)?;
        last = match line.starts_with('{') {
            true => serde_json::from_str(&line).ok(),
            false => {
                say(&line);
                None
            }
        };
    }
    let status = child.wait().map_err(failed)?;
    match (status.code(), last) {
        (Some(0 | 1), Some(figures)) => Ok(figures),
        _ => Err(format!("the level {level} could not be run ({status})")),
    }
}
