//! A planted bug as its file says it: what it breaks, which test notices, and the diff.
//!
//! Must not know how it is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Where bugs may be planted: in what users run, and not in what judges it.
const PRODUCT: [&str; 3] = ["crates/unanimous/src/", "crates/unanimous-core/src/", "crates/unanimous-cli/src/"];

/// A planted bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mutant {
    /// Its file's name, without `.patch`.
    pub(super) name: String,
    pub(super) file: PathBuf,
    /// What it breaks, in a sentence.
    pub(super) what: String,
    pub(super) caught_by: Test,
    /// That its test never ends counts as caught.
    pub(super) may_hang: bool,
    /// The files that it changes, from the workspace's root.
    pub(super) changes: BTreeSet<String>,
    /// The lines that it changes, each with its neighbours: what tells it from others.
    diff: Vec<String>,
}

/// A test, as `cargo test` is told of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Test {
    /// What stands between `cargo test` and the name: package and features.
    pub(super) arguments: Vec<String>,
    /// The whole path that the test has in its binary.
    pub(super) name: String,
}

/// The line that runs it.
impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cargo test {} {} -- --exact", self.arguments.join(" "), self.name)
    }
}

impl Mutant {
    /// Only the core crate is built to try it.
    pub(super) fn is_of_the_core(&self) -> bool {
        self.changes.iter().all(|path| path.starts_with("crates/unanimous-core/"))
            && self.caught_by.arguments.iter().any(|argument| argument == "unanimous-core")
    }
}

/// Those of a folder, by name. A file that can't be one is told instead.
pub(super) fn read_all(folder: &Path) -> Result<Vec<Result<Mutant, String>>, String> {
    let failed = |path: &Path, error| format!("{}: {error}", path.display());
    let entries = fs::read_dir(folder).map_err(|error| failed(folder, error))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(|error| failed(folder, error)));
    let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).map_err(|error| failed(path, error))?;
        Ok(parse(path, &text).map_err(|wrong| format!("{} is no planted bug: {wrong}", path.display())))
    };
    let mut read = paths.iter().map(read).collect::<Result<Vec<_>, String>>()?;
    let mut first = BTreeMap::new();
    for mutant in &mut read {
        let Ok(Mutant { name, changes, diff, .. }) = mutant else { continue };
        let other = first.entry((changes.clone(), diff.clone())).or_insert_with(|| name.clone());
        if other != name {
            *mutant = Err(format!("{name} plants the same bug as {other}: keep one"));
        }
    }
    Ok(read)
}

/// Wherever it is in its file, and however much is around it.
fn diff(text: &str) -> Vec<String> {
    let is_change = |line: &str| line.starts_with(['+', '-']) && changed(line).is_none();
    let mut kept = Vec::new();
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("@@")).collect();
    for (at, line) in lines.iter().enumerate() {
        let near = lines[at.saturating_sub(1)..lines.len().min(at + 2)].iter().any(|line| is_change(line));
        if is_change(line) || (line.starts_with(' ') && near) {
            kept.push((*line).to_owned());
        }
    }
    kept
}

fn parse(file: &Path, text: &str) -> Result<Mutant, String> {
    let header = |name: &str| text.lines().take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix(name));
    let what = header("What: ").ok_or("its first lines have no `What: one sentence`")?.trim().to_owned();
    let caught_by = header("Caught-by: ").ok_or("its first lines have no `Caught-by: cargo test ...`")?;
    let may_hang = header("Caught-by-hang: ").is_some_and(|answer| answer.trim() == "yes");
    let changes: BTreeSet<String> = text.lines().filter_map(changed).map(str::to_owned).collect();
    if changes.is_empty() {
        return Err("it has no diff".into());
    }
    if let Some(other) = changes.iter().find(|path| !PRODUCT.iter().any(|product| path.starts_with(product))) {
        return Err(format!("it changes {other}; bugs are planted in {}", PRODUCT.join(", ")));
    }
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Mutant { name, file: file.into(), what, caught_by: test(caught_by)?, may_hang, changes, diff: diff(text) })
}

fn changed(line: &str) -> Option<&str> {
    let path = line.strip_prefix("+++ ").or_else(|| line.strip_prefix("--- "))?.split('\t').next()?.trim_end();
    path.strip_prefix("a/").or_else(|| path.strip_prefix("b/"))
}

fn test(line: &str) -> Result<Test, String> {
    let words = line.trim().strip_prefix("cargo test ").ok_or("what catches it must be a `cargo test`")?;
    let mut arguments: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    let name = arguments.pop().filter(|name| !name.starts_with('-')).ok_or("the test's name comes last")?;
    if arguments.iter().any(|argument| argument == "--") {
        return Err("the test's name comes last, without `--`".into());
    }
    if !arguments.iter().any(|argument| argument == "-p" || argument == "--package") {
        return Err("the test's package (-p) is not said".into());
    }
    Ok(Test { arguments, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str = "\n--- a/crates/unanimous-core/src/protocol.rs\n+++ b/crates/unanimous-core/src/protocol.rs\n@@ -1 +1 @@\n-a\n+b\n";

    fn parsed(header: &str) -> Result<Mutant, String> {
        parse(Path::new("mutants/early.patch"), &format!("{header}{DIFF}"))
    }

    #[test]
    fn a_patch_says_what_it_breaks_and_what_catches_it() {
        let mutant = parsed("What: it is early\nCaught-by: cargo test -p unanimous-core one::two\n").unwrap();
        assert_eq!((mutant.name.as_str(), mutant.what.as_str(), mutant.may_hang), ("early", "it is early", false));
        assert_eq!(mutant.caught_by.to_string(), "cargo test -p unanimous-core one::two -- --exact");
        assert_eq!(mutant.changes, BTreeSet::from(["crates/unanimous-core/src/protocol.rs".into()]));
        assert!(mutant.is_of_the_core());
        let other = parsed("What: w\nCaught-by: cargo test -p unanimous --features files a::b\nCaught-by-hang: yes\n");
        let other = other.unwrap();
        assert!(other.may_hang && !other.is_of_the_core());
        assert_eq!(other.caught_by.arguments, ["-p", "unanimous", "--features", "files"]);
    }

    #[test]
    fn what_is_missing_is_said() {
        for (header, part) in [
            ("Caught-by: cargo test -p unanimous a\n", "no `What:"),
            ("What: w\n", "no `Caught-by:"),
            ("What: w\nCaught-by: make test\n", "must be a `cargo test`"),
            ("What: w\nCaught-by: cargo test a\n", "package (-p)"),
            ("What: w\nCaught-by: cargo test -p unanimous a -- --exact\n", "comes last"),
            ("What: w\nCaught-by: cargo test -p unanimous -- a\n", "without `--`"),
        ] {
            let wrong = parsed(header).unwrap_err();
            assert!(wrong.contains(part), "{header:?}: {wrong}");
        }
        let header = "What: w\nCaught-by: cargo test -p unanimous a\n";
        assert!(parse(Path::new("x.patch"), header).unwrap_err().contains("no diff"));
        let judge =
            format!("{header}\n--- a/crates/unanimous-model/src/lib.rs\n+++ b/crates/unanimous-model/src/lib.rs\n");
        assert!(parse(Path::new("x.patch"), &judge).unwrap_err().contains("unanimous-model"));
    }
}
