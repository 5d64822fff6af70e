//! No test is forgotten: each package has one test binary, `tests/runner.rs`, and each file beside it is a module of it.
//!
//! One binary links once; a file that nobody names would compile and run nowhere, and nobody would notice.
//!
//! Must not know what a test does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::metadata::Package;

pub(crate) fn check(packages: &[Package]) -> Result<(), String> {
    let mut wrong = Vec::new();
    for package in packages {
        let folder = package.folder.join("tests");
        if has_rust(&folder)? {
            wrong.extend(forgotten(&folder)?);
            wrong.extend(strangers(package, &folder.join("runner.rs")));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Whether cargo would look into it: Python's tests have a folder of the same name.
fn has_rust(folder: &Path) -> Result<bool, String> {
    if !folder.is_dir() {
        return Ok(false);
    }
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "rs")))
}

/// Files that no `mod` line of the runner names, and lines that name no file (rustc sees these too, but says it less plainly).
fn forgotten(folder: &Path) -> Result<Vec<String>, String> {
    let runner = folder.join("runner.rs");
    let text = fs::read_to_string(&runner)
        .map_err(|error| format!("{}: {error}; each tests folder needs a runner.rs", runner.display()))?;
    let named: BTreeSet<&str> = text.lines().filter_map(module).collect();
    let mut wrong = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry.map_err(|error| format!("{}: {error}", folder.display()))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_module = path.extension().is_some_and(|extension| extension == "rs") || path.join("mod.rs").is_file();
        if is_module && stem != "runner" && !named.contains(stem) {
            wrong.push(format!("{} is run by nobody: add `mod {stem};` to {}", path.display(), runner.display()));
        }
    }
    wrong.sort();
    Ok(wrong)
}

/// Test binaries beside the runner: cargo makes one of each file that it finds, unless it is told not to.
fn strangers(package: &Package, runner: &PathBuf) -> Vec<String> {
    let others = package.tests.iter().filter(|test| *test != runner);
    let tell = |test: &PathBuf| {
        let manifest = package.folder.join("Cargo.toml");
        format!("{} is a test binary of its own: put `autotests = false` into {}", test.display(), manifest.display())
    };
    others.map(tell).collect()
}

/// The module that a line declares.
fn module(line: &str) -> Option<&str> {
    let line = line.trim();
    let line = line.strip_prefix("pub ").unwrap_or(line);
    line.strip_prefix("mod ")?.strip_suffix(';').map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forgotten_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("runner.rs", "//! The runner.\n#[cfg(feature = \"x\")]\nmod named;\n// mod forgotten;\nmod folder;\n");
        write("named.rs", "");
        write("notes.txt", "");
        fs::create_dir(folder.path().join("folder")).unwrap();
        write("folder/mod.rs", "");
        assert_eq!(forgotten(folder.path()).unwrap(), Vec::<String>::new());
        write("forgotten.rs", "");
        let wrong = forgotten(folder.path()).unwrap();
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].contains("forgotten.rs is run by nobody"), "{wrong:?}");
    }

    #[test]
    fn a_second_test_binary_is_named() {
        let tests = vec!["/p/tests/runner.rs".into(), "/p/tests/log.rs".into()];
        let package = Package {
            name: "p".into(),
            version: "0.1.0".into(),
            folder: "/p".into(),
            published: true,
            features: Vec::new(),
            tests,
        };
        let wrong = strangers(&package, &"/p/tests/runner.rs".into());
        assert_eq!(wrong, ["/p/tests/log.rs is a test binary of its own: put `autotests = false` into /p/Cargo.toml"]);
    }
}
