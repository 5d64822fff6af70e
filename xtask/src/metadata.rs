//! What cargo says of the workspace.
//!
//! Must not know what is done with a package.

use std::path::PathBuf;

use serde_json::Value;

use crate::run::cargo;

/// A package of the workspace.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Its folder.
    pub(crate) folder: PathBuf,
    pub(crate) published: bool,
    pub(crate) features: Vec<String>,
    /// The source files of its integration tests.
    pub(crate) tests: Vec<PathBuf>,
}

/// The workspace.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
    /// Its root folder.
    pub(crate) root: PathBuf,
    /// Where cargo builds.
    pub(crate) target: PathBuf,
}

pub(crate) fn workspace() -> Result<Workspace, String> {
    let run = cargo(["metadata", "--no-deps", "--format-version", "1"]);
    let output = run.output()?;
    if !output.status.success() {
        return Err(format!("`{run}` failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let json: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("`{run}`: {error}"))?;
    parse(&json).ok_or_else(|| format!("`{run}` gave something else than was expected"))
}

fn parse(json: &Value) -> Option<Workspace> {
    let packages = json["packages"].as_array()?.iter().map(package).collect::<Option<_>>()?;
    let folder = |key: &str| Some(PathBuf::from(json[key].as_str()?));
    Some(Workspace { packages, root: folder("workspace_root")?, target: folder("target_directory")? })
}

fn package(json: &Value) -> Option<Package> {
    let targets = json["targets"].as_array()?.iter();
    let tests = targets.filter(|target| target["kind"] == serde_json::json!(["test"]));
    Some(Package {
        name: json["name"].as_str()?.into(),
        version: json["version"].as_str()?.into(),
        folder: PathBuf::from(json["manifest_path"].as_str()?).parent()?.into(),
        // Absent or null: every registry.
        published: json["publish"].as_array().is_none_or(|registries| !registries.is_empty()),
        features: json["features"].as_object()?.keys().cloned().collect(),
        tests: tests.map(|target| target["src_path"].as_str().map(PathBuf::from)).collect::<Option<_>>()?,
    })
}
