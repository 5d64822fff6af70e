//! Building tests and running them by name, within a limit.
//!
//! Must not know whether a bug is planted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// Enough for any test, and less than a machine has: a planted bug may eat memory without end.
const MEMORY_KIB: u64 = 8 << 20;

/// What chooses among a package's targets.
const CHOICES: [&str; 6] = ["--lib", "--test", "--tests", "--bin", "--bins", "--doc"];

/// Where tests are built and run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bench<'a> {
    pub(super) tree: &'a Path,
    pub(super) target: &'a Path,
    /// How long a test may take.
    pub(super) limit: Duration,
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Passed,
    /// Where it panicked, and the first line of why.
    Failed(String),
    /// It was still running at the limit.
    Hung,
    /// It says nothing of the test: the end of what was printed.
    Otherwise(String),
}

impl Bench<'_> {
    /// Builds the tests that the arguments name, and finds the target which has each of these tests, as further arguments. A name that
    /// no target has is missing in the answer. The error is the compiler's.
    pub(super) fn find(
        &self,
        arguments: &[String],
        names: &BTreeSet<&str>,
    ) -> Result<BTreeMap<String, Vec<String>>, String> {
        let chosen = arguments.iter().any(|argument| CHOICES.contains(&argument.as_str()));
        let mut all = arguments.to_vec();
        all.extend((!chosen).then(|| "--tests".into()));
        let mut command = self.cargo(&all);
        command.args(["--no-run", "--quiet", "--message-format=json-render-diagnostics"]);
        let output = command.output().map_err(|error| format!("can't run cargo: {error}"))?;
        if !output.status.success() {
            return Err(end_of(&String::from_utf8_lossy(&output.stderr)));
        }
        let mut found = BTreeMap::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let message: Value = serde_json::from_str(line).unwrap_or_default();
            let (Some(program), Some(choice)) = (message["executable"].as_str(), choice(&message["target"])) else {
                continue;
            };
            if message["profile"]["test"] != true {
                continue;
            }
            let list = Command::new(program).args(["--list", "--format=terse"]).stdin(Stdio::null()).output();
            let list = list.map_err(|error| format!("can't run {program}: {error}"))?;
            for name in String::from_utf8_lossy(&list.stdout).lines().filter_map(|line| line.strip_suffix(": test")) {
                if names.contains(name) {
                    found.insert(name.to_owned(), if chosen { Vec::new() } else { choice.clone() });
                }
            }
        }
        Ok(found)
    }

    /// Builds what [`run`](Self::run) with these arguments needs. The error is the compiler's.
    pub(super) fn build(&self, arguments: &[String]) -> Result<(), String> {
        let mut command = self.cargo(arguments);
        let output = command.args(["--no-run", "--quiet"]).output();
        let output = output.map_err(|error| format!("can't run cargo: {error}"))?;
        if output.status.success() { Ok(()) } else { Err(end_of(&String::from_utf8_lossy(&output.stderr))) }
    }

    /// Runs these tests, which are built. Each has the limit; those after one that hangs hang too.
    pub(super) fn run(&self, arguments: &[String], names: &[&str]) -> Result<Vec<Ended>, String> {
        let mut command = self.cargo(arguments);
        command.arg("--").arg("--exact").args(names);
        let failed = |error: std::io::Error| format!("can't run cargo: {error}");
        let output = self.target.with_file_name("output");
        let file = fs::File::create(&output).map_err(failed)?;
        command.stdout(file.try_clone().map_err(failed)?).stderr(file);
        let limit = self.limit * u32::try_from(names.len()).unwrap_or(u32::MAX);
        let status = Group::start(&mut command).and_then(|group| group.wait(limit)).map_err(failed)?;
        let text = String::from_utf8_lossy(&fs::read(&output).map_err(failed)?).into_owned();
        Ok(names.iter().map(|name| ended(name, &text, status)).collect())
    }

    fn cargo(&self, arguments: &[String]) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -v {MEMORY_KIB}; exec \"$0\" \"$@\"")).arg(cargo);
        command.arg("test").args(arguments).arg("--target-dir").arg(self.target);
        // Nobody looks at a backtrace, and it is much of the time that linking takes.
        command.envs([("CARGO_PROFILE_DEV_DEBUG", "0"), ("CARGO_PROFILE_TEST_DEBUG", "0")]);
        command.current_dir(self.tree).stdin(Stdio::null());
        command
    }
}

fn choice(target: &Value) -> Option<Vec<String>> {
    let name = target["name"].as_str()?;
    match target["kind"][0].as_str()? {
        "test" => Some(vec!["--test".into(), name.into()]),
        "bin" => Some(vec!["--bin".into(), name.into()]),
        _ => Some(vec!["--lib".into()]),
    }
}

fn ended(name: &str, output: &str, status: Option<ExitStatus>) -> Ended {
    let line = |end: &str| output.lines().any(|line| result(line, name).is_some_and(|rest| rest.ends_with(end)));
    match status {
        _ if line("... FAILED") => Ended::Failed(panic(name, output)),
        _ if line("... ok") => Ended::Passed,
        None => Ended::Hung,
        Some(status) => Ended::Otherwise(format!("{status}: {}", end_of(output))),
    }
}

/// What the test printed of its failure.
fn panic(name: &str, output: &str) -> String {
    let header = format!("---- {name} stdout ----");
    let printed = || output.lines().skip_while(|line| *line != header).skip(1);
    let own = || printed().take_while(|line| !line.starts_with("---- ") && *line != "failures:");
    match own().position(|line| line.contains("panicked at ")) {
        Some(at) => own().skip(at).take(2).collect::<Vec<_>>().join(" "),
        None => own().find(|line| !line.is_empty()).unwrap_or("it printed nothing").to_owned(),
    }
}

/// What `test NAME` is followed by.
fn result<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.strip_prefix("test ")?.strip_prefix(name).filter(|rest| rest.starts_with(' '))
}

fn end_of(output: &str) -> String {
    let lines: Vec<&str> = output.trim_end().lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// A program with all that it starts, but for what leaves its process group.
struct Group(Child);

impl Group {
    fn start(command: &mut Command) -> std::io::Result<Self> {
        command.process_group(0).spawn().map(Self)
    }

    /// None: it still ran at the limit, and is killed.
    fn wait(mut self, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if start.elapsed() > limit {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // One that was waited for has given its id away.
        if let Ok(None) = self.0.try_wait() {
            let id = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
            // It fails only where all of them have just ended.
            let _ = kill_process_group(id.expect("a child's id is a positive number"), Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

/// The scratch place of a workspace: the copy, and where it is built.
pub(super) fn places(target: &Path) -> (PathBuf, PathBuf) {
    let folder = target.join("mutants");
    (folder.join("tree"), folder.join("target"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_that_of_the_very_test() {
        let output = "\
test a::b ... ok
test a::bc ... FAILED
test a::d - should panic ... ok

failures:

---- a::bc stdout ----

thread 'a::bc' (7) panicked at src/a.rs:3:5:
it is 2
note: run with a backtrace
";
        assert_eq!(ended("a::b", output, None), Ended::Passed);
        assert_eq!(
            ended("a::bc", output, None),
            Ended::Failed("thread 'a::bc' (7) panicked at src/a.rs:3:5: it is 2".into())
        );
        assert_eq!(ended("a::d", output, None), Ended::Passed);
        assert_eq!(ended("a::", output, None), Ended::Hung);
    }

    #[test]
    fn what_hangs_is_killed_with_what_it_started() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("id");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let group = Group::start(Command::new("sh").args(["-c", &script])).unwrap();
        let grandchild = loop {
            let text = fs::read_to_string(&file).unwrap_or_default();
            if let Some(id) = text.trim().parse().ok().and_then(Pid::from_raw) {
                break id;
            }
            thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(group.wait(Duration::from_millis(10)).unwrap(), None);
        let start = Instant::now();
        // Whoever inherits it may take a moment to ask for its end.
        let runs = |id: Pid| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", id.as_raw_nonzero())).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
        };
        while runs(grandchild) {
            assert!(start.elapsed() < Duration::from_secs(20), "what it started still runs");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
