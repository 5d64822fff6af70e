//! The exact text of the command line.

use crate::support::{told, unanimous};

#[test]
fn x() {
    for a in [&["--help"][..], &["demo", "--help"], &["demo", "check", "--help"], &["log", "--help"], &["log", "show", "--help"], &["log", "verify", "--help"], &[], &["log"], &["demmo"], &["demo", "--port", "1"], &["log", "show"], &["--version"]] {
        let (c, o, e) = told(&unanimous(a.iter().copied()));
        println!("=== {a:?} {c:?}\n{o}--- err\n{e}");
    }
}
