//! `cargo xtask bench`: what the library costs, beside the machine's own yardsticks; writes docs/performance.md.
//!
//! Must not know what is measured: that is `bench/`, a workspace of its own.

use crate::arguments::Bench;
use crate::metadata::workspace;
use crate::run::{Run, cargo};

pub(crate) fn run(plan: &Bench) -> Result<(), String> {
    let workspace = workspace()?;
    let target = workspace.target.join("bench").to_string_lossy().into_owned();
    let build = ["build", "--release", "--locked", "--manifest-path", "bench/Cargo.toml", "--target-dir", &target];
    cargo(build).show()?;
    let report = workspace.root.join("docs").join("performance.md").to_string_lossy().into_owned();
    let mut arguments = Vec::new();
    if plan.quick {
        arguments.push("--quick");
    }
    match &plan.group {
        Some(group) => arguments.extend(["--group", group]),
        // A quick run's figures are not what the document promises.
        None if plan.quick => {}
        None => arguments.extend(["--report", &report]),
    }
    Run::new(format!("{target}/release/bench"), arguments).show()
}
