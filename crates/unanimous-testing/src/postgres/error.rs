//! What can go wrong with a cluster.
//!
//! Must not know how a cluster is run.

use std::fmt;
use std::path::Path;

/// What went wrong with a [`Cluster`](super::Cluster), with what to do about it and, where the server ended, the end of its log.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    text: String,
}

/// What went wrong, for code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// PostgreSQL's programs were not found.
    NotInstalled,
    /// The folder, the user or the data could not be made ready.
    Setup,
    /// The server ended before it accepted connections, or did not accept them in time.
    Start,
    /// The server runs and should not, or did not end in time.
    Running,
    /// The server does not run.
    NotRunning,
    /// psql ended with an error.
    Sql,
}

impl Error {
    pub(super) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    pub(super) fn setup(what: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(ErrorKind::Setup, format!("can't {what} {}: {error}", path.display()))
    }

    /// What went wrong, for code.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}
