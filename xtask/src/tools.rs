//! What the tests need beside Rust: looked for, installed where that is allowed, else named.
//!
//! Must not know what they are used for.

use unanimous_testing::postgres::{ErrorKind, binaries};

use crate::run::{Run, cargo};
use crate::say;

/// Looks for everything before anything is built, so that nothing is missing after a quarter of an hour.
pub(crate) fn prepare() -> Result<(), String> {
    compiler()?;
    postgresql()?;
    pgbouncer()?;
    strace()?;
    python()?;
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
    let script = "apt-get update; apt-get install --yes --no-install-recommends gcc libc6-dev";
    let tried = as_root("a C compiler", script);
    if compiler.works() {
        return Ok(());
    }
    Err(format!(
        "there is no C compiler (`{name}`), and SQLite is compiled from C; install one:\n  \
         Debian, Ubuntu: apt-get install gcc libc6-dev\n  Fedora: dnf install gcc\n  macOS: xcode-select --install{}",
        why(tried)
    ))
}

/// Installs PostgreSQL. Debian's package would start a server of its own on port 5432, which nobody has asked for; while it is
/// installed, a file says that it should not.
const POSTGRESQL: &str = "\
    folder=/etc/postgresql-common/createcluster.d
    mkdir -p $folder && echo 'create_main_cluster = false' >$folder/unanimous.conf || exit
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql
    status=$?
    rm -f $folder/unanimous.conf
    exit $status";

/// The tests start servers of their own from PostgreSQL's programs.
fn postgresql() -> Result<(), String> {
    let Err(missing) = binaries() else { return Ok(()) };
    // A wrong setting stays wrong, whatever is installed.
    if missing.kind() != ErrorKind::NotInstalled {
        return Err(missing.to_string());
    }
    let tried = as_root("PostgreSQL", POSTGRESQL);
    binaries().map(drop).map_err(|missing| format!("{missing}{}", why(tried)))
}

/// Installs PgBouncer. Debian's package would start one on port 6432, now and at each boot.
const PGBOUNCER: &str = "\
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then printf '#!/bin/sh\\nexit 101\\n' >$policy && chmod 755 $policy || exit; ours=yes; fi
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends pgbouncer
    status=$?
    if [ -n \"$ours\" ]; then rm -f $policy; fi
    if command -v systemctl >/dev/null; then systemctl disable pgbouncer; fi
    exit $status";

/// Tests put a pooler in front of a server. Debian has it outside of an ordinary user's search path.
fn pgbouncer() -> Result<(), String> {
    let is_there = || ["pgbouncer", "/usr/sbin/pgbouncer"].iter().any(|name| Run::new(*name, ["--version"]).works());
    if is_there() {
        return Ok(());
    }
    let tried = as_root("PgBouncer", PGBOUNCER);
    if is_there() {
        return Ok(());
    }
    Err(format!(
        "PgBouncer is not installed; install it (its program is enough, none needs to run):\n  \
         Debian, Ubuntu: apt-get install pgbouncer\n  Fedora: dnf install pgbouncer\n  macOS: brew install pgbouncer{}",
        why(tried)
    ))
}

/// The proof kills and fails the log's own system calls, where there is ptrace.
fn strace() -> Result<(), String> {
    let strace = Run::new("strace", ["--version"]);
    if !cfg!(target_os = "linux") || strace.works() {
        return Ok(());
    }
    let tried = as_root("strace", "apt-get update; apt-get install --yes --no-install-recommends strace");
    if strace.works() {
        return Ok(());
    }
    Err(format!(
        "strace is not installed; install it:\n  Debian, Ubuntu: apt-get install strace\n  Fedora: dnf install strace{}",
        why(tried)
    ))
}

/// The interpreters that are looked for: one that the environment names, and what systems call theirs.
const PYTHONS: [&str; 6] = ["python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10"];

/// Python's tests make a virtual environment with an interpreter, 3.10 or later, that has what is needed for that. Its program.
pub(crate) fn python() -> Result<String, String> {
    const CAN: &str = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))";
    let find = || {
        let named = std::env::var("UNANIMOUS_PYTHON").ok();
        let names = named.into_iter().chain(PYTHONS.map(str::to_owned));
        names.into_iter().find(|name| Run::new(name.clone(), ["-c", CAN]).works())
    };
    if let Some(python) = find() {
        return Ok(python);
    }
    let script = "apt-get update; apt-get install --yes --no-install-recommends python3 python3-venv";
    let tried = as_root("Python", script);
    find().ok_or_else(|| {
        format!(
            "there is no Python 3.10 or later that can make virtual environments; install one, or name it in UNANIMOUS_PYTHON:\n  \
             Debian, Ubuntu: apt-get install python3 python3-venv\n  Fedora: dnf install python3\n  macOS: brew install python{}",
            why(tried)
        )
    })
}

/// Runs a script of `apt-get` commands, by `sudo` where we are not root; does nothing where there is neither. (`apt-get update` may fail for a
/// repository that isn't needed, hence what follows it is tried all the same.)
fn as_root(what: &str, script: &str) -> Result<(), String> {
    if !Run::new("apt-get", ["--version"]).works() {
        return Ok(());
    }
    let is_root = Run::new("id", ["-u"]).output().is_ok_and(|output| output.stdout == b"0\n");
    let run = match is_root {
        true => Run::new("sh", ["-c", script]),
        false if Run::new("sudo", ["--version"]).works() => Run::new("sudo", ["sh", "-c", script]),
        false => return Ok(()),
    };
    say(&format!("{what} is missing; installing it ..."));
    run.show()
}

/// What an error adds about an installation that did not work.
fn why(tried: Result<(), String>) -> String {
    tried.err().map(|error| format!("\nit was tried here: {error}")).unwrap_or_default()
}
