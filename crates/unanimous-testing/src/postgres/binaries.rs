//! Where PostgreSQL's programs are.
//!
//! Must not know what they are started for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{Error, ErrorKind};

/// Names the folder of the programs, where it is not one of those that are looked at.
const VARIABLE: &str = "UNANIMOUS_POSTGRES_BIN";

/// Where Debian and Ubuntu keep a folder for each version, outside of the search path.
const DEBIAN: &str = "/usr/lib/postgresql";

const NEEDED: [&str; 3] = ["initdb", "postgres", "psql"];

/// The folder of PostgreSQL's programs: what the environment variable `UNANIMOUS_POSTGRES_BIN` names; else the newest below
/// `/usr/lib/postgresql`, what `pg_config --bindir` says, or the first in the search path that has `initdb`, `postgres` and `psql`.
///
/// # Errors
///
/// When there is none ([`ErrorKind::NotInstalled`]; the text says what to install), or the variable names a folder without them
/// ([`ErrorKind::Setup`]).
pub fn binaries() -> Result<PathBuf, Error> {
    if let Some(named) = env::var_os(VARIABLE) {
        let named = PathBuf::from(named);
        if complete(&named) {
            return Ok(named);
        }
        let needed = NEEDED.join(", ");
        let text =
            format!("{VARIABLE} names {}, which has not all of: {needed}; correct it, or unset it", named.display());
        return Err(Error::new(ErrorKind::Setup, text));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = versions(Path::new(DEBIAN)).into_iter().chain(configured()).chain(env::split_paths(&path));
    found.into_iter().find(|folder| complete(folder)).ok_or_else(|| {
        let text = format!(
            "PostgreSQL's server is not installed; install it (its programs are enough, no server needs to run):\n  \
             Debian, Ubuntu: apt-get install postgresql\n  Fedora: dnf install postgresql-server\n  \
             macOS: brew install postgresql\nor name the folder of its programs in {VARIABLE}"
        );
        Error::new(ErrorKind::NotInstalled, text)
    })
}

fn complete(folder: &Path) -> bool {
    NEEDED.iter().all(|program| folder.join(program).is_file())
}

/// The `bin` of each version, newest first; 9.6's number is older than 10's, whatever the alphabet says.
fn versions(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<f32>().ok();
    let mut versions: Vec<(f32, PathBuf)> =
        entries.filter_map(|entry| Some((number(&entry.path())?, entry.path().join("bin")))).collect();
    versions.sort_by(|a, b| b.0.total_cmp(&a.0));
    versions.into_iter().map(|(_, path)| path).collect()
}

fn configured() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(folder.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["9.6", "15", "10", "lost+found"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let found: Vec<_> = ["15", "10", "9.6"].iter().map(|name| folder.path().join(name).join("bin")).collect();
        assert_eq!(versions(folder.path()), found);
        assert!(!complete(&found[0]));
    }
}
