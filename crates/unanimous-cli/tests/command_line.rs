//! The exact text of the command line: help, and what is said to a wrong one.

use std::fmt::Write as _;

use crate::support::{told, unanimous};

const COMMANDS: &[&[&str]] = &[
    &["--version"],
    &["--help"],
    &["demo", "--help"],
    &["demo", "check", "--help"],
    &["indoubt", "--help"],
    &["indoubt", "commit", "--help"],
    &["indoubt", "rollback", "--help"],
    &["recover", "--help"],
    &["sql", "--help"],
    &["sql", "postgres", "--help"],
    &["log", "--help"],
    &["log", "show", "--help"],
    &["log", "verify", "--help"],
    &["log", "restored", "--help"],
    &[],
    &["demmo"],
    &["demo", "--port", "1"],
    &["demo", "--data", "x", "check"],
    &["demo", "check", "--data", "x"],
    &["demo", "--listen", "127.0.0.1:0", "check"],
    &["demo", "--conflict", "--spawn-postgres", "check"],
    &["demo", "--listen", "8080"],
    &["demo", "--postgres", "dbname=orders"],
    &["demo", "--postgres", "dbname=orders", "--postgres", "dbname=orders"],
    &["demo", "--postgres", "what=orders", "--postgres", "dbname=invoices"],
    &["demo", "--postgres", "dbname=orders", "--spawn-postgres"],
    &["demo", "check", "--spawn-postgres", "--data", "x"],
    &["log"],
    &["log", "show"],
    &["indoubt"],
    &["indoubt", "--log", "x", "--postgres", "host=db"],
    &["indoubt", "--postgres", "orders=nonsense"],
    &["indoubt", "--postgres", "orders=env:UNANIMOUS_NOT_SET"],
    &["indoubt", "--files", "a=x", "--sqlite", "a=y"],
    &["indoubt", "commit", "theirs", "--files", "a=x"],
    &["recover"],
    &["recover", "--log", "x"],
    &["recover", "--log", "x", "--log-postgres", "host=y", "--node", "z"],
    &["recover", "--log-postgres", "host=y", "--files", "a=x"],
    &["recover", "--log", "x", "--take-over", "z"],
    &["recover", "--log-postgres", "host=y", "--take-over", "z", "--node", "z"],
    &["sql"],
];

#[test]
fn the_text_is_what_it_was() {
    let mut text = String::new();
    for arguments in COMMANDS {
        let (code, out, err) = told(&unanimous(arguments.iter().copied()));
        let code = code.expect("no signal ends it");
        let line = ["unanimous"].iter().chain(*arguments).copied().collect::<Vec<_>>().join(" ");
        let _ = write!(text, "$ {line}\n{out}{err}[exit {code}]\n\n");
    }
    // Help has lines of spaces only, which editors like to remove.
    let text: String = text.lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
    let expected = include_str!("command_line.txt");
    if text != expected {
        let seen = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("command_line.txt");
        std::fs::write(&seen, &text).unwrap();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/command_line.txt");
        panic!("the text is another one; if that is meant: cp {} {file}\n{text}", seen.display());
    }
}
