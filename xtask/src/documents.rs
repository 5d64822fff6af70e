//! No document names a test that is not there: where `docs/*.md` says `module::test`, a function of that name must exist.
//!
//! A table of tests is believed only while it is true, and names change.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

pub(crate) fn check(root: &Path) -> Result<(), String> {
    let mut functions = BTreeSet::new();
    each_file(&root.join("crates"), "rs", &mut |_, text| {
        functions.extend(text.lines().filter_map(function).map(str::to_owned))
    })?;
    let mut wrong = Vec::new();
    each_file(&root.join("docs"), "md", &mut |path, text| {
        for name in named_tests(text) {
            let (_, last) = name.rsplit_once("::").expect("a named test has a module");
            if !functions.contains(last) {
                wrong.push(format!("{} names the test {name}, which is not there", path.display()));
            }
        }
    })?;
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// What stands between backticks and looks like a test: lower-case words joined by `::`.
fn named_tests(text: &str) -> impl Iterator<Item = &str> {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    text.split('`').skip(1).step_by(2).filter(move |code| code.contains("::") && code.split("::").all(word)).filter(
        |code| {
            // A test's name is a sentence; `http::after_end` and its like are items.
            code.rsplit("::").next().is_some_and(|last| last.matches('_').count() >= 2)
        },
    )
}

/// The function that a line begins.
fn function(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_item = before.trim().split(' ').all(|word| word.is_empty() || word == "async" || word.starts_with("pub"));
    is_item.then(|| after.split(['(', '<']).next().unwrap_or(after))
}

fn each_file(folder: &Path, extension: &str, see: &mut dyn FnMut(&Path, &str)) -> Result<(), String> {
    let failed = |error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            each_file(&path, extension, see)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            see(&path, &fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_not_there_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("crates/one/tests")).unwrap();
        fs::create_dir(root.path().join("docs")).unwrap();
        fs::write(
            root.path().join("crates/one/tests/it.rs"),
            "    async fn it_is_right() {}\n// fn it_is_not_code() {}\n",
        )
        .unwrap();
        let document = |text: &str| fs::write(root.path().join("docs/it.md"), text).unwrap();
        document("| `it::it_is_right` | `http::after_end` | `std::env::current_exe()` |");
        assert_eq!(check(root.path()), Ok(()));
        document("`it::it_is_right` and\n`it::it_is_wrong`, `it::it_is_not_code`");
        let wrong = check(root.path()).unwrap_err();
        assert!(wrong.contains("it::it_is_wrong") && wrong.contains("it::it_is_not_code"), "{wrong}");
        assert!(!wrong.contains("it_is_right"), "{wrong}");
    }
}
