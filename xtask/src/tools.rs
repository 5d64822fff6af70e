//! What the tests need beside Rust: looked for, installed where that is allowed, else named.
//!
//! Must not know what they are used for.

use crate::run::{Run, cargo};
use crate::say;

/// Looks for everything before anything is built, so that nothing is missing after a quarter of an hour.
pub(crate) fn prepare() -> Result<(), String> {
    compiler()?;
    for (name, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if !cargo([name, "--version"]).works() {
            return Err(format!("`cargo {name}` is missing; install it: rustup component add {component}"));
        }
    }
    if !cargo(["deny", "--version"]).works() {
        say("cargo-deny is missing; installing it (some minutes) ...");
        let install = cargo(["install", "--locked", "cargo-deny"]);
        install.show().map_err(|error| format!("{error}\ncargo-deny is missing; install it: {install}"))?;
    }
    Ok(())
}

/// SQLite is compiled from its C source. (Rust's own linker is usually the same program, so that this is mostly there.)
fn compiler() -> Result<(), String> {
    let name = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let compiler = Run::new(name.clone(), ["--version"]);
    if compiler.works() {
        return Ok(());
    }
    let is_root = Run::new("id", ["-u"]).output().is_ok_and(|output| output.stdout == b"0\n");
    if is_root && Run::new("apt-get", ["--version"]).works() {
        say("a C compiler is missing; installing it ...");
        Run::new("apt-get", ["update"]).show()?;
        Run::new("apt-get", ["install", "--yes", "--no-install-recommends", "gcc", "libc6-dev"]).show()?;
    }
    if compiler.works() {
        return Ok(());
    }
    Err(format!(
        "there is no C compiler (`{name}`), and SQLite is compiled from C; install one:\n  \
         Debian, Ubuntu: apt-get install gcc libc6-dev\n  Fedora: dnf install gcc\n  macOS: xcode-select --install"
    ))
}
