//! What unanimous costs, beside the machine's own yardsticks: `cargo xtask bench`.
//!
//! Every row is measured in alternation with its yardstick, in one run: figures of different runs, or of different minutes, are not
//! comparable on a machine that others use too. What is quoted is a ratio, and the spread of it over the rounds.
//!
//! - [`rounds`]: sides that take turns.
//! - [`row`]: a row, its target, and whether it was reached.
//! - [`cost`]: nanoseconds and allocations of what only computes.
//! - [`report`]: the rows as text, as JSON, and as docs/performance.md.
//! - [`servers`]: the groups on PostgreSQL servers.
//! - The groups of rows, each a module: see [`GROUPS`].

mod cost;
mod empty;
mod layer;
mod live;
mod log;
mod memory;
mod recovery;
mod report;
mod rounds;
mod row;
mod servers;
mod startup;

use std::path::PathBuf;
use std::process::ExitCode;

use row::Row;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What a run was asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// At most five minutes, all groups together: fewer rounds, and of a series only its ends.
    pub(crate) quick: bool,
    /// The group that is run; none: all of them.
    pub(crate) group: Option<String>,
    /// Where docs/performance.md is written.
    pub(crate) report: Option<PathBuf>,
}

impl Options {
    /// How many rounds are run of so many, at least three.
    fn rounds(&self, all: usize) -> usize {
        if self.quick { (all / 5).max(3) } else { all }
    }
}

/// A group's rows.
type Group = fn(&Options) -> Result<Vec<Row>, Error>;

/// By name, the cheap ones first.
const GROUPS: &[(&str, Group)] = &[
    ("empty", empty::run),
    ("memory", memory::run),
    ("layer", layer::run),
    ("live", live::run),
    ("log", log::run),
    ("startup", startup::run),
    ("recovery", recovery::run),
    ("postgres", servers::postgres),
    ("row", servers::row),
    ("http", servers::http),
    ("ancestors", servers::ancestors),
    ("in_doubt", servers::in_doubt),
];

const USAGE: &str = "usage: bench [--quick] [--group NAME] [--report FILE]";

fn main() -> ExitCode {
    let done = options(std::env::args().skip(1)).and_then(|options| run(&options));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A folder for what is measured, on the disk that this program is on: the usual place for temporary files may be in memory.
fn folder() -> Result<tempfile::TempDir, Error> {
    let program = std::env::current_exe()?;
    Ok(tempfile::tempdir_in(program.parent().unwrap_or(&program))?)
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, Error> {
    let mut options = Options::default();
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"));
        match name.as_str() {
            "--quick" => options.quick = true,
            "--group" => options.group = Some(value()?),
            "--report" => options.report = Some(value()?.into()),
            _ => return Err(format!("unexpected argument {name:?}\n{USAGE}").into()),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> Result<(), Error> {
    let wanted = |name: &str| options.group.as_deref().is_none_or(|only| only == name);
    if !GROUPS.iter().any(|&(name, _)| wanted(name)) {
        let all: Vec<&str> = GROUPS.iter().map(|&(name, _)| name).collect();
        return Err(format!("there is no such group; there are {}", all.join(", ")).into());
    }
    let mut groups = Vec::new();
    for &(name, group) in GROUPS.iter().filter(|&&(name, _)| wanted(name)) {
        println!("==> {name}");
        let rows = group(options).map_err(|error| format!("the group {name}: {error}"))?;
        rows.iter().for_each(|row| println!("{row}"));
        groups.push((name, rows));
    }
    if let Some(path) = &options.report {
        report::write(path, &groups)?;
    }
    println!("{}", report::json(&groups));
    Ok(())
}
