//! `cargo xtask bench`: what the library costs, beside the machine's own yardsticks; writes docs/performance.md.
//!
//! Must not know what is measured: that is `bench/`, a workspace of its own.

use crate::arguments::Bench;
use crate::metadata::{Workspace, workspace};
use crate::python;
use crate::run::{Run, cargo};

/// Of a workspace of its own, as the fuzz targets have.
pub(crate) const MANIFEST: &str = "bench/Cargo.toml";

/// The group that needs Python, and packages that are not ours.
const ANCESTORS: &str = "ancestors";

pub(crate) fn run(plan: &Bench) -> Result<(), String> {
    let workspace = workspace()?;
    let target = target(&workspace);
    let build = ["build", "--release", "--locked", "--manifest-path", MANIFEST, "--target-dir", &target];
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
    let mut run = Run::new(format!("{target}/release/bench"), arguments);
    if plan.group.as_deref().is_none_or(|group| group == ANCESTORS) {
        let (interpreter, sources) = python::ancestors()?;
        run = run
            .env("UNANIMOUS_BENCH_PYTHON", interpreter.to_string_lossy())
            .env("UNANIMOUS_TEST_ANCESTORS", sources.to_string_lossy());
    }
    run.show()
}

/// Where it is built: apart, since its dependencies are other ones.
pub(crate) fn target(workspace: &Workspace) -> String {
    workspace.target.join("bench").to_string_lossy().into_owned()
}
