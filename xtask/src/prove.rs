//! `cargo xtask prove`: the levels of the proof one after another, a line for each, and last one JSON line with all figures.
//!
//! Must not know what a level does: each is run by a program of its own, whose last line are its figures.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::arguments::Prove;
use crate::metadata::workspace;
use crate::mutants::{self, Which};
use crate::run::cargo;
use crate::{complain, say};

/// As the program knows them, the quickest to fail first.
const LEVELS: &[&str] = &["exhaustive", "simulate", "log", "cancel", "network", "crash"];

/// The last one, run from here, since it is cargo that it needs.
const MUTANTS: &str = "mutants";

/// What `--quick` promises, on two cores.
const QUICK: Duration = Duration::from_secs(180);

pub(crate) fn run(prove: &Prove) -> Result<(), String> {
    let mut wanted: Vec<&str> = LEVELS.iter().copied().chain([MUTANTS]).collect();
    if let Some(only) = &prove.level {
        let all = wanted.join(", ");
        wanted.retain(|level| level == only);
        if wanted.is_empty() {
            return Err(format!("there is no level {only:?}; there are {all}"));
        }
    }
    let built = match wanted == [MUTANTS] {
        true => Ok(()),
        false => cargo(["build", "--release", "--package", "unanimous-proof"]).show(),
    };
    let start = Instant::now();
    let mut figures = Figures::default();
    for level in wanted {
        say(&format!("==> {level}"));
        let start = Instant::now();
        let tried = match level {
            MUTANTS => planted_bugs(prove, &mut figures),
            level => built.clone().and_then(|()| level_figures(level, prove)),
        };
        figures.add(level, tried, start.elapsed());
    }
    let took = start.elapsed();
    figures.lines.iter().for_each(|line| say(line));
    if prove.quick && prove.level.is_none() && took > QUICK {
        say(&format!("it took {:.0} s, and should take {} at most", took.as_secs_f64(), QUICK.as_secs()));
    }
    say(&figures.json().to_string());
    if figures.violations == 0 {
        return Ok(());
    }
    Err(format!("{} violations\nto repeat them: cargo xtask prove{}", figures.violations, repeat(prove)))
}

fn repeat(prove: &Prove) -> String {
    let mut line = format!(" --seed {}", prove.seed);
    for (name, value) in [("--level", &prove.level), ("--mutant", &prove.mutant)] {
        if let Some(value) = value {
            line.push_str(&format!(" {name} {value}"));
        }
    }
    line + if prove.quick { " --quick" } else { "" }
}

/// What all levels have found.
#[derive(Debug, Default)]
struct Figures {
    violations: u64,
    levels: BTreeMap<String, Value>,
    lines: Vec<String>,
    caught: u64,
    planted: u64,
}

impl Figures {
    /// A level that could not be run, or that tried nothing, has shown nothing: that is a violation, and the others are run still.
    fn add(&mut self, level: &str, tried: Result<(u64, u64), String>, took: Duration) {
        let seconds = (took.as_secs_f64() * 10.0).round() / 10.0;
        let (cases, mut violations) = *tried.as_ref().unwrap_or(&(0, 0));
        let error = match tried {
            Ok((0, _)) => Some("nothing was tried".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        violations += u64::from(error.is_some());
        self.violations += violations;
        let mut line = format!("{level}: {cases} cases, {violations} violations, {seconds:.1} s");
        let mut all = json!({ "cases": cases, "violations": violations, "seconds": seconds });
        if let Some(error) = error {
            complain(&format!("error: {level}: {error}"));
            line.push_str(&format!("; error: {error}"));
            all["error"] = error.into();
        }
        self.lines.push(line);
        self.levels.insert(level.into(), all);
    }

    fn json(&self) -> Value {
        let Self { violations, levels, caught, planted, .. } = self;
        json!({ "violations": violations, "levels": levels, "mutants": { "caught": caught, "planted": planted } })
    }
}

/// Cases and violations of the level `mutants`.
fn planted_bugs(prove: &Prove, figures: &mut Figures) -> Result<(u64, u64), String> {
    let which = match &prove.mutant {
        Some(name) => Which::Named(name.clone()),
        None if prove.quick => Which::Quick(prove.seed),
        None => Which::ALL,
    };
    let tried = mutants::run(&which)?;
    for violation in &tried.violations {
        complain(&format!("violation: {violation}"));
    }
    say(&format!("of {} planted bugs {} were caught", tried.planted, tried.caught));
    (figures.caught, figures.planted) = (tried.caught, tried.planted);
    Ok((tried.planted, tried.violations.len() as u64))
}

/// Runs a level, shows what it says, and gives its cases and violations.
fn level_figures(level: &str, prove: &Prove) -> Result<(u64, u64), String> {
    let mut command = Command::new(workspace()?.target.join("release").join("prove"));
    command.arg(level).args(["--seed", &prove.seed.to_string()]);
    if prove.quick {
        command.arg("--quick");
    }
    // They ask the level `simulate` for something else than its cases.
    command.env_remove("UNANIMOUS_TRACE").env_remove("UNANIMOUS_HASHES");
    let failed = |error: std::io::Error| format!("the level {level} could not be run: {error}");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut last = None;
    for line in output.lines() {
        let line = line.map_err(failed)?;
        last = match line.starts_with('{') {
            true => serde_json::from_str::<Value>(&line).ok(),
            false => {
                say(&line);
                None
            }
        };
    }
    let status = child.wait().map_err(failed)?;
    let number = |name| last.as_ref().and_then(|figures| figures[name].as_u64());
    match (status.code(), number("cases"), number("violations")) {
        (Some(0), Some(cases), Some(0)) => Ok((cases, 0)),
        (Some(1), Some(cases), Some(violations)) if violations > 0 => Ok((cases, violations)),
        _ => Err(format!("the level {level} could not be run ({status})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_showed_nothing_is_a_violation_and_keeps_the_figures_of_the_others() {
        let mut figures = Figures::default();
        let took = Duration::from_millis(1230);
        figures.add("good", Ok((7, 0)), took);
        figures.add("bad", Ok((7, 2)), took);
        figures.add("empty", Ok((0, 0)), took);
        figures.add("gone", Err("no server".into()), took);
        assert_eq!(
            figures.json()["levels"],
            json!({
                "good": { "cases": 7, "violations": 0, "seconds": 1.2 },
                "bad": { "cases": 7, "violations": 2, "seconds": 1.2 },
                "empty": { "cases": 0, "violations": 1, "seconds": 1.2, "error": "nothing was tried" },
                "gone": { "cases": 0, "violations": 1, "seconds": 1.2, "error": "no server" },
            })
        );
        assert_eq!(figures.json()["violations"], 4);
        assert_eq!(figures.lines[3], "gone: 0 cases, 1 violations, 1.2 s; error: no server");
    }
}
