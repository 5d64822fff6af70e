//! No document names a test that is not there: where one says `module::test`, a function of that name must exist in that module; of
//! Python's tests the module is the file (`test_wsgi::test_...`).
//!
//! A table of tests is believed only while it is true, and names change. Looked through are `docs/*.md` and the root's documents.
//!
//! Must not know Markdown or Rust but for what stands between backticks, and on a function's first line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

/// Beside `docs/`.
const AT_THE_ROOT: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];

pub(crate) fn check(root: &Path) -> Result<(), String> {
    let mut functions: BTreeMap<String, BTreeSet<Vec<String>>> = BTreeMap::new();
    let crates = root.join("crates");
    each_file(&crates, "rs", &mut |path, text| {
        let place = place(path.strip_prefix(&crates).unwrap_or(path));
        for name in text.lines().filter_map(function) {
            functions.entry(name.to_owned()).or_default().insert(place.clone());
        }
    })?;
    let python = root.join("python/tests");
    if python.is_dir() {
        each_file(&python, "py", &mut |path, text| {
            let place = place(path.strip_prefix(&python).unwrap_or(path));
            for name in text.lines().filter_map(python_function) {
                functions.entry(name.to_owned()).or_default().insert(place.clone());
            }
        })?;
    }
    let mut wrong = Vec::new();
    let mut see = |path: &Path, text: &str| {
        for name in named_tests(text) {
            let (module, last) = name.rsplit_once("::").expect("a named test has a module");
            let places = functions.get(last).into_iter().flatten();
            if !places.into_iter().any(|place| is_in(place, module)) {
                wrong.push(format!("{} names the test {name}, which is not there", path.display()));
            }
        }
    };
    each_file(&root.join("docs"), "md", &mut see)?;
    for name in AT_THE_ROOT {
        let path = root.join(name);
        see(&path, &read(&path)?);
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// The folders that a file is in, and its own name: its modules, but for those that are within it.
fn place(path: &Path) -> Vec<String> {
    let parts = path.with_extension("");
    let words = parts.components().filter_map(|part| match part {
        Component::Normal(word) => Some(word.to_string_lossy().into_owned()),
        _ => None,
    });
    words.filter(|word| word != "mod").collect()
}

/// Whether a module's path ends the file's, where modules within the file (`mod tests`) are left out.
fn is_in(place: &[String], module: &str) -> bool {
    let module: Vec<&str> = module.split("::").filter(|word| *word != "tests").collect();
    // A name of one word is that of the file or of its folder.
    let tail =
        |place: &[String]| place.iter().rev().zip(module.iter().rev()).filter(|(a, b)| a == b).count() == module.len();
    tail(place) || place.split_last().is_some_and(|(_, folders)| tail(folders))
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

/// The function that a line of Python begins.
fn python_function(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let after = line.strip_prefix("async ").unwrap_or(line).strip_prefix("def ")?;
    Some(after.split('(').next().unwrap_or(after))
}

fn each_file(folder: &Path, extension: &str, see: &mut dyn FnMut(&Path, &str)) -> Result<(), String> {
    let failed = |error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            each_file(&path, extension, see)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            see(&path, &read(&path)?);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace whose test `it_is_right` is in `one/tests/it.rs`, and `it_is_deep` in `one/src/part/inner.rs`.
    fn workspace() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("crates/one/tests/it.rs", "    async fn it_is_right() {}\n// fn it_is_not_code() {}\n");
        write("crates/one/src/part/inner.rs", "    fn it_is_deep() {}\n");
        write("crates/one/tests/whole/mod.rs", "fn it_is_whole() {}\n");
        write("python/tests/test_one.py", "class TestOne:\n    def test_it_is_python(self):\n");
        for name in AT_THE_ROOT.into_iter().chain(["docs/it.md"]) {
            write(name, "");
        }
        root
    }

    #[test]
    fn a_test_that_is_not_there_is_named() {
        let root = workspace();
        for document in AT_THE_ROOT.into_iter().chain(["docs/it.md"]) {
            let path = root.path().join(document);
            fs::write(&path, "| `it::it_is_right` | `http::after_end` | `std::env::current_exe()` |").unwrap();
            assert_eq!(check(root.path()), Ok(()));
            fs::write(&path, "`it::it_is_right` and\n`it::it_is_wrong`, `it::it_is_not_code`").unwrap();
            let wrong = check(root.path()).unwrap_err();
            assert!(wrong.contains("it::it_is_wrong") && wrong.contains("it::it_is_not_code"), "{wrong}");
            assert!(!wrong.contains("it_is_right") && wrong.contains(document), "{wrong}");
            fs::write(&path, "").unwrap();
        }
    }

    #[test]
    fn a_test_that_is_in_another_module_is_named() {
        let root = workspace();
        let path = root.path().join("docs/it.md");
        let right = [
            "part::inner::it_is_deep",
            "inner::it_is_deep",
            "inner::tests::it_is_deep",
            "part::it_is_deep",
            "whole::it_is_whole",
            "test_one::test_it_is_python",
        ];
        for name in right {
            fs::write(&path, format!("`{name}`")).unwrap();
            assert_eq!(check(root.path()), Ok(()), "{name}");
        }
        for name in [
            "other::it_is_right",
            "inner::it_is_right",
            "other::inner::it_is_deep",
            "inner::part::it_is_deep",
            "mod::it_is_whole",
        ] {
            fs::write(&path, format!("`{name}`")).unwrap();
            assert!(check(root.path()).unwrap_err().contains(name), "{name}");
        }
    }
}
