//! What would be published builds by itself: each package is made, unpacked, and built from its own files, with the others as they
//! would be published beside it.
//!
//! Cargo's own verification keeps what it has unpacked under the package's version, and so builds against yesterday's files until
//! the version changes.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::metadata::{Package, Workspace};
use crate::run::{Run, cargo};

pub(crate) fn check(workspace: &Workspace) -> Result<(), String> {
    let published: Vec<&Package> = workspace.packages.iter().filter(|package| package.published).collect();
    // Dirty trees are allowed: before a commit is when it is run.
    let names = published.iter().flat_map(|package| ["--package", package.name.as_str()]);
    cargo(["package", "--allow-dirty", "--no-verify", "--quiet"].into_iter().chain(names)).show()?;

    let made = workspace.target.join("package");
    let folder = made.join("unpacked");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    }
    fs::create_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
    let mut manifest = String::from("[workspace]\nresolver = \"3\"\nmembers = [\"*-*.*.*\"]\n\n[patch.crates-io]\n");
    for Package { name, version, .. } in &published {
        let archive = made.join(format!("{name}-{version}.crate"));
        Run::new("tar", ["-xzf", text(&archive)?, "-C", text(&folder)?]).show()?;
        let _ = writeln!(manifest, "{name} = {{ path = \"{name}-{version}\" }}");
    }
    let manifest_path = folder.join("Cargo.toml");
    fs::write(&manifest_path, manifest).map_err(|error| failed(&manifest_path, &error))?;
    // The versions that everything else was tested with.
    let lock = folder.join("Cargo.lock");
    fs::copy(workspace.root.join("Cargo.lock"), &lock).map_err(|error| failed(&lock, &error))?;
    let target = made.join("built");
    let build = ["check", "--quiet", "--workspace", "--all-features", "--manifest-path", text(&manifest_path)?];
    cargo(build.into_iter().chain(["--target-dir", text(&target)?])).show()
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8, and can't be handed to cargo", path.display()))
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
