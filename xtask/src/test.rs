//! `cargo xtask test`: everything that must hold, one step after another, the cheap ones first.
//!
//! Must not know how a step does its work.

use std::time::Instant;

use crate::arguments::{Crash, Prove, Python, Stores};
use crate::metadata::{Workspace, workspace};
use crate::run::{Run, cargo};
use crate::{bench, crash, documents, packages, prove, python, runners, say, tools};

/// Few, since the full number is a command of its own; enough to see that the machinery works and that nothing is badly broken.
const CRASH_ROUNDS: u32 = 5;

/// `only`: the beginning of the names of the steps that are done; all of them otherwise.
pub(crate) fn run(only: Option<&str>) -> Result<(), String> {
    let workspace = workspace()?;
    let mut steps = Steps { only: only.unwrap_or_default().into(), done: Vec::new() };
    steps.step("tools", "cargo xtask test tools", tools::prepare)?;
    steps.cargo("format", &cargo(["fmt", "--all", "--", "--check"]))?;
    for apart in ["fuzz/Cargo.toml", bench::MANIFEST] {
        steps.cargo("format", &cargo(["fmt", "--manifest-path", apart, "--", "--check"]))?;
    }
    steps.step("runners: no test file is forgotten", "cargo xtask test runners", || {
        runners::check(&workspace.packages)
    })?;
    steps.step("documents: no test is named that is not there", "cargo xtask test documents", || {
        documents::check(&workspace.root)
    })?;
    steps.cargo(
        "clippy",
        &cargo(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"]),
    )?;
    let apart = bench::target(&workspace);
    let clippy = ["clippy", "--locked", "--manifest-path", bench::MANIFEST, "--target-dir", &apart, "--all-targets"];
    steps.cargo("clippy", &cargo(clippy.into_iter().chain(["--", "-D", "warnings"])))?;
    for combination in feature_combinations(&workspace) {
        steps.cargo("features", &combination)?;
    }
    steps.cargo(
        "documentation",
        &cargo(["doc", "--workspace", "--all-features", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    steps.cargo("tests", &cargo(["test", "--workspace", "--all-features"]))?;
    steps.step("python", "cargo xtask python test", || python::run(&Python::Test(Vec::new())))?;
    steps.cargo("dependencies", &cargo(["deny", "check", "bans", "licenses", "sources"]))?;
    steps.step("packages: each builds from its own files", "cargo xtask test packages", || {
        packages::check(&workspace)
    })?;
    let quick = Prove { quick: true, level: None, seed: 1, mutant: None };
    steps.step("proof", "cargo xtask prove --quick", || prove::run(&quick))?;
    for (stores, name) in [(Stores::Sqlite, "demo"), (Stores::Postgres, "postgres")] {
        for keys in [false, true] {
            let rounds = Crash { stores, rounds: CRASH_ROUNDS, seed: None, clients: 16, keys, keep: false };
            let repeat =
                format!("cargo xtask crash {name} --rounds {CRASH_ROUNDS}{}", if keys { " --keys" } else { "" });
            steps.step("crash rounds", &repeat, || crash::run(&rounds))?;
        }
    }
    steps.summary();
    if steps.done.is_empty() {
        return Err(format!("there is no step whose name begins with {:?}", steps.only));
    }
    Ok(())
}

/// Each feature of the library compiles alone, and the library without any: no part may lean on another's feature by accident.
fn feature_combinations(workspace: &Workspace) -> Vec<Run> {
    let library = workspace.packages.iter().find(|package| package.name == "unanimous");
    let features = library.map(|package| package.features.as_slice()).unwrap_or_default();
    let alone = features.iter().map(String::as_str).filter(|&feature| feature != "default");
    let check = ["clippy", "--package", "unanimous", "--no-default-features"];
    let warnings = ["--", "-D", "warnings"];
    let none = cargo(check.into_iter().chain(warnings));
    let each = alone.map(|feature| cargo(check.into_iter().chain(["--features", feature]).chain(warnings)));
    std::iter::once(none).chain(each).collect()
}

/// The steps that are done, with their seconds.
#[derive(Debug)]
struct Steps {
    /// What the names of those begin with that are to be done.
    only: String,
    done: Vec<(String, f64)>,
}

impl Steps {
    fn cargo(&mut self, name: &str, run: &Run) -> Result<(), String> {
        self.step(name, &run.to_string(), || run.show())
    }

    fn step(&mut self, name: &str, repeat: &str, step: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        if !name.starts_with(&self.only) {
            return Ok(());
        }
        say(&format!("==> {name}: {repeat}"));
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs_f64();
        self.done.push((format!("{name}: {repeat}"), seconds));
        result.map_err(|error| {
            self.summary();
            format!("FAILED {name}, after {seconds:.1} s: {error}\nto repeat it: {repeat}")
        })
    }

    fn summary(&self) {
        say("==> seconds of each step");
        for (name, seconds) in &self.done {
            say(&format!("{seconds:8.1}  {name}"));
        }
    }
}
