//! As whom a server runs: PostgreSQL refuses to run as root.
//!
//! Must not know what is run.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use super::error::{Error, ErrorKind};

/// The users that root may choose of: the one that the packages make, and one that is everywhere.
const USERS: [&str; 2] = ["postgres", "nobody"];

/// Who a server's process and files belong to.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    /// User and group; none where it is who we are.
    other: Option<(u32, u32)>,
    name: String,
}

impl Owner {
    /// Ourselves, or, for root, another: who owns the data already, else the first of [`USERS`] that there is.
    pub(super) fn of(data: &Path) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { other: None, name: "this user".into() });
        }
        if let Ok(data) = fs::metadata(data)
            && data.uid() != 0
        {
            return Ok(Self { other: Some((data.uid(), data.gid())), name: format!("the user {}", data.uid()) });
        }
        let known = USERS.iter().find_map(|name| {
            Some(Self { other: Some((id("-u", name)?, id("-g", name)?)), name: format!("the user {name}") })
        });
        known.ok_or_else(|| {
            let text = "PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody`; make one: \
                        useradd --system postgres";
            Error::new(ErrorKind::Setup, text)
        })
    }

    /// A command that runs as the owner, in `folder`, and is not led astray by what our environment says about another server.
    pub(super) fn command(&self, program: impl AsRef<OsStr>, folder: &Path) -> Command {
        let mut command = plain(program);
        command.current_dir(folder);
        if let Some((user, group)) = self.other {
            command.uid(user).gid(group).env("HOME", folder);
        }
        command
    }

    /// Makes a file or folder the owner's.
    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        match self.other {
            Some((user, group)) => chown(path, Some(user), Some(group)),
            None => Ok(()),
        }
    }

    /// Whether the owner can work in a folder: those above it may be closed to others.
    pub(super) fn must_reach(&self, folder: &Path) -> Result<(), Error> {
        let script = "test -w \"$1\" && test -x \"$1\"";
        let test = self.command("sh", Path::new("/")).args(["-c", script, "sh"]).arg(folder).output();
        if test.is_ok_and(|output| output.status.success()) {
            return Ok(());
        }
        let text = format!(
            "{} can't work in {}, as whom the server runs; open the folders above it to others (chmod o+x), or choose another \
             folder (the environment variable TMPDIR is where temporary ones go)",
            self.name,
            folder.display()
        );
        Err(Error::new(ErrorKind::Setup, text))
    }
}

/// A command that knows of no other server, and speaks English.
pub(super) fn plain(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C");
    command
}

fn id(which: &str, user: &str) -> Option<u32> {
    let output = Command::new("id").args([which, user]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim_end().parse().ok()
}
