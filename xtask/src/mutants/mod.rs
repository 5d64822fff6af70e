//! `cargo xtask prove --level mutants`: each bug of `crates/unanimous-proof/mutants` is planted in a copy of the workspace, and the test
//! that it names must fail.
//!
//! A bug that is not caught is a violation. So is one that tells nothing: its patch does not apply or does not compile, its test is
//! not there, or fails without it.
//!
//! Must not know what a bug breaks.

mod patch;
mod tree;
mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use unanimous_testing::rng::Rng;

use crate::metadata::workspace;
use crate::say;
use patch::{Mutant, Test};
use tree::Tree;
use trial::{Bench, Ended, places};

/// Where the bugs are, from the workspace's root.
const FOLDER: &str = "crates/unanimous-proof/mutants";

/// How long one test may take; it is quick without the bug.
const LIMIT: Duration = Duration::from_secs(120);

/// How many are tried where time is short, and until when another one is begun.
const QUICK: (usize, Duration) = (3, Duration::from_secs(20));

/// Fewer than so many are not all of them.
const LEAST: usize = 25;

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tried {
    pub(crate) caught: u64,
    /// Those that were tried.
    pub(crate) planted: u64,
    pub(crate) violations: Vec<String>,
}

/// Which bugs are tried.
#[derive(Clone, Debug)]
pub(crate) enum Which {
    /// All of them, which are so many at least.
    AtLeast(usize),
    /// A few of the core crate's, chosen by a seed.
    Quick(u64),
    /// Those whose names begin so.
    Named(String),
}

impl Which {
    pub(crate) const ALL: Self = Self::AtLeast(LEAST);
}

pub(crate) fn run(which: &Which) -> Result<Tried, String> {
    let workspace = workspace()?;
    let (tree, target) = places(&workspace.target);
    try_all(&workspace.root, &tree, &target, which, LIMIT)
}

fn try_all(root: &Path, tree: &Path, target: &Path, which: &Which, limit: Duration) -> Result<Tried, String> {
    let start = Instant::now();
    let mut tried = Tried::default();
    let mut mutants = Vec::new();
    for mutant in patch::read_all(&root.join(FOLDER))? {
        match mutant {
            Ok(mutant) => mutants.push(mutant),
            Err(wrong) => tried.broken(wrong),
        }
    }
    let (mut chosen, until) = choose(&mutants, which);
    say(&format!("{} of {} planted bugs are tried", chosen.len(), mutants.len()));
    match which {
        Which::Named(begin) if chosen.is_empty() => return Err(format!("no planted bug's name begins with {begin:?}")),
        Which::AtLeast(least) if chosen.len() < *least => {
            return Err(format!("{FOLDER} has only {} planted bugs, and should have {least} at least", chosen.len()));
        }
        _ if chosen.is_empty() => return Err(format!("{FOLDER} has no planted bug that could be tried")),
        _ => {}
    }
    let tree = Tree::copy(root, tree)?;
    let bench = Bench { tree: tree.folder(), target, limit };
    // Those of the same build after one another.
    chosen.sort_by(|a, b| (&a.caught_by.arguments, &a.name).cmp(&(&b.caught_by.arguments, &b.name)));
    // A sound test may take as long as it needs on this machine.
    let sound = sound_tests(&Bench { limit: limit.max(LIMIT), ..bench }, &chosen)?;
    for mutant in chosen {
        if tried.planted > 0 && until.is_some_and(|until| start.elapsed() > until) {
            say(&format!("not tried, since its time is over: {}", mutant.name));
            continue;
        }
        let begun = Instant::now();
        let choice = match &sound[&mutant.caught_by] {
            Ok(choice) => choice,
            Err(why) => {
                tried.broken(format!("{} tells nothing: {why}: {}", mutant.name, mutant.caught_by));
                continue;
            }
        };
        let verdict = try_one(&tree, &bench, mutant, choice)?;
        tried.judge(mutant, verdict, begun.elapsed());
    }
    Ok(tried)
}

impl Tried {
    fn broken(&mut self, why: String) {
        self.planted += 1;
        self.violations.push(why);
    }

    fn judge(&mut self, mutant: &Mutant, verdict: Verdict, took: Duration) {
        let Mutant { name, what, caught_by, file, .. } = mutant;
        let violation = match verdict {
            Verdict::Caught(how) => {
                self.planted += 1;
                self.caught += 1;
                return say(&format!("{name}: caught by {}, {:.1} s: {how}", caught_by.name, took.as_secs_f64()));
            }
            Verdict::Passed => format!("{name} is not caught ({what}): {caught_by} passes with {}", file.display()),
            Verdict::Hung => format!(
                "{name} is not caught by a failure ({what}): {caught_by} did not end; where that is how it shows, its patch says `Caught-by-hang: yes`"
            ),
            Verdict::Broken(why) => format!("{name} tells nothing: {why}"),
        };
        self.broken(violation);
    }
}

/// In the order of their names, and until when another is begun.
fn choose<'a>(mutants: &'a [Mutant], which: &Which) -> (Vec<&'a Mutant>, Option<Duration>) {
    match which {
        Which::AtLeast(_) => (mutants.iter().collect(), None),
        Which::Named(begin) => (mutants.iter().filter(|mutant| mutant.name.starts_with(begin)).collect(), None),
        Which::Quick(seed) => {
            let mut rng = Rng::new(*seed);
            let mut left: Vec<_> = mutants.iter().filter(|mutant| mutant.is_of_the_core()).collect();
            let mut chosen = Vec::new();
            while !left.is_empty() && chosen.len() < QUICK.0 {
                chosen.push(left.swap_remove(rng.between(0, left.len() as u64 - 1) as usize));
            }
            (chosen, Some(QUICK.1))
        }
    }
}

/// Where each test is, as further arguments, if it is there and passes without any bug; else why not.
fn sound_tests<'a>(
    bench: &Bench<'_>,
    mutants: &[&'a Mutant],
) -> Result<BTreeMap<&'a Test, Result<Vec<String>, String>>, String> {
    let mut groups: BTreeMap<&[String], BTreeSet<&Test>> = BTreeMap::new();
    for mutant in mutants {
        groups.entry(&mutant.caught_by.arguments).or_default().insert(&mutant.caught_by);
    }
    let mut sound = BTreeMap::new();
    for (arguments, tests) in groups {
        say(&format!("without a bug: cargo test {} of {} tests", arguments.join(" "), tests.len()));
        let names = tests.iter().map(|test| test.name.as_str()).collect();
        let found = bench.find(arguments, &names);
        let found = found.map_err(|error| format!("the workspace itself can't be tested: {error}"))?;
        let mut choices: BTreeMap<&Vec<String>, Vec<&Test>> = BTreeMap::new();
        for test in tests {
            match found.get(&test.name) {
                Some(choice) => choices.entry(choice).or_default().push(test),
                None => drop(sound.insert(test, Err("there is no such test".into()))),
            }
        }
        for (choice, tests) in choices {
            let names: Vec<_> = tests.iter().map(|test| test.name.as_str()).collect();
            let arguments = [arguments, choice].concat();
            for (test, ended) in tests.iter().zip(bench.run(&arguments, &names)?) {
                let result = match ended {
                    Ended::Passed => Ok(choice.clone()),
                    ended => Err(format!("the test does not pass without the bug ({ended:?})")),
                };
                sound.insert(*test, result);
            }
        }
    }
    Ok(sound)
}

enum Verdict {
    /// By what.
    Caught(String),
    Passed,
    Hung,
    Broken(String),
}

fn try_one(tree: &Tree, bench: &Bench<'_>, mutant: &Mutant, choice: &[String]) -> Result<Verdict, String> {
    let arguments = [&mutant.caught_by.arguments, choice].concat();
    let done = tree.with(&mutant.file, &mutant.changes, || {
        if let Err(error) = bench.build(&arguments) {
            return Ok(Verdict::Broken(format!("it does not compile: {error}")));
        }
        let ended = bench.run(&arguments, &[&mutant.caught_by.name])?.pop().expect("one test was run");
        Ok(match ended {
            Ended::Failed(by) => Verdict::Caught(by),
            Ended::Passed => Verdict::Passed,
            Ended::Hung if mutant.may_hang => Verdict::Caught("did not end".into()),
            Ended::Hung => Verdict::Hung,
            Ended::Otherwise(output) => Verdict::Broken(format!("its test was not run: {output}")),
        })
    })?;
    Ok(done.unwrap_or_else(|refused| Verdict::Broken(format!("it does not apply: {refused}"))))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    const LIBRARY: &str = "\
pub fn double(n: u32) -> u32 {
    n * 2
}

pub fn is_even(n: u32) -> bool {
    n % 2 == 0
}
";

    const TESTS: &str = "\
#[test]
fn doubles() {
    assert_eq!(scratch::double(3), 6);
}

#[test]
fn evens() {
    assert!(scratch::is_even(4));
}

#[test]
fn red() {
    panic!();
}
";

    /// A workspace with a crate at a place where bugs may be planted.
    fn workspace() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(".gitignore", "/target\n");
        write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"crates/unanimous-core\"]\n");
        let manifest = "[package]\nname = \"unanimous-core\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[lib]\nname = \"scratch\"\n";
        write("crates/unanimous-core/Cargo.toml", manifest);
        write("crates/unanimous-core/src/lib.rs", LIBRARY);
        write("crates/unanimous-core/tests/runner.rs", TESTS);
        assert!(Command::new("git").args(["init", "--quiet"]).current_dir(root.path()).status().unwrap().success());
        root
    }

    fn plant(root: &Path, name: &str, test: &str, before: &str, after: &str) {
        let folder = root.join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        let file = "crates/unanimous-core/src/lib.rs";
        let header = format!("What: {name}\nCaught-by: cargo test -p unanimous-core {test}\n");
        let diff = format!("--- a/{file}\n+++ b/{file}\n@@ -2 +2 @@\n {{}}\n-    {before}\n+    {after}\n }}\n");
        let first =
            if before.contains("* 2") { "pub fn double(n: u32) -> u32 {" } else { "pub fn is_even(n: u32) -> bool {" };
        let diff = diff.replace(" {}", &format!(" {first}"));
        fs::write(folder.join(format!("{name}.patch")), format!("{header}\n{diff}")).unwrap();
    }

    fn tried(root: &Path, which: &Which, limit: Duration) -> Tried {
        let (tree, target) = places(&root.join("target"));
        try_all(root, &tree, &target, which, limit).unwrap()
    }

    #[test]
    fn a_bug_is_caught_by_the_failure_of_its_test_and_by_nothing_else() {
        let root = workspace();
        let double = |name, test, after| plant(root.path(), name, test, "n * 2", after);
        double("caught", "doubles", "n * 3");
        double("changes_nothing", "doubles", "2 * n");
        double("another_test_fails", "evens", "n * 4");
        double("does_not_compile", "doubles", "n * \"3\"");
        double("no_such_test", "double", "n * 5");
        double("red_without_it", "red", "n * 6");
        plant(root.path(), "does_not_apply", "doubles", "n * 2 + 1", "n * 3");
        let Tried { caught, planted, violations } = tried(root.path(), &Which::AtLeast(1), LIMIT);
        let expected = [
            "another_test_fails is not caught",
            "changes_nothing is not caught",
            "does_not_apply tells nothing: it does not apply",
            "does_not_compile tells nothing: it does not compile",
            "no_such_test tells nothing: there is no such test",
            "red_without_it tells nothing: the test does not pass without",
        ];
        assert_eq!((caught, planted, violations.len()), (1, 7, 6), "{violations:#?}");
        for (violation, begin) in violations.iter().zip(expected) {
            assert!(violation.starts_with(begin), "{begin}: {violation}");
        }
        // Each was taken out again.
        assert_eq!(
            fs::read_to_string(root.path().join("target/mutants/tree/crates/unanimous-core/src/lib.rs")).unwrap(),
            LIBRARY
        );
        assert_eq!(tried(root.path(), &Which::Named("caught".into()), LIMIT).caught, 1);
        // One more that does the same as another.
        let text = fs::read_to_string(root.path().join(FOLDER).join("caught.patch")).unwrap();
        fs::write(root.path().join(FOLDER).join("caught_again.patch"), text.replace("@@ -2 +2 @@", "@@ -1 +1 @@ x"))
            .unwrap();
        let Tried { caught, violations, .. } = tried(root.path(), &Which::Named("caught".into()), LIMIT);
        assert_eq!((caught, violations), (1, vec!["caught_again plants the same bug as caught: keep one".into()]));
    }

    #[test]
    fn where_nothing_would_be_tried_is_an_error() {
        let root = workspace();
        let refused = |which: &Which| {
            let (tree, target) = places(&root.path().join("target"));
            try_all(root.path(), &tree, &target, which, LIMIT).unwrap_err()
        };
        let missing = refused(&Which::ALL);
        assert!(missing.contains(FOLDER), "{missing}");
        plant(root.path(), "one", "doubles", "n * 2", "n * 3");
        assert_eq!(refused(&Which::Named("typo".into())), "no planted bug's name begins with \"typo\"");
        let few = refused(&Which::ALL);
        assert!(few.contains("only 1 planted bugs"), "{few}");
    }

    #[test]
    fn what_never_ends_is_caught_where_its_patch_says_so() {
        let root = workspace();
        plant(root.path(), "endless", "evens", "n % 2 == 0", "loop { std::hint::black_box(n); }");
        let file = root.path().join(FOLDER).join("endless.patch");
        let limit = Duration::from_secs(3);
        let seen = tried(root.path(), &Which::AtLeast(1), limit);
        assert!(seen.caught == 0 && seen.violations[0].contains("did not end"), "{seen:?}");
        let text = fs::read_to_string(&file).unwrap().replacen("\n\n", "\nCaught-by-hang: yes\n\n", 1);
        fs::write(&file, text).unwrap();
        let seen = tried(root.path(), &Which::AtLeast(1), limit);
        assert_eq!(seen, Tried { caught: 1, planted: 1, violations: Vec::new() });
    }
}
