//! Whether the file at a path is still the file that was opened.
//!
//! An open connection goes on writing into a file that was unlinked or replaced, and everything that it commits is lost without
//! an error. So the path is looked at when a branch begins, before it commits, and when recovery asks.
//! The file is never opened here: closing any descriptor of it would drop all of the process's POSIX locks on it, SQLite's own
//! among them.
//!
//! Must not know what is in the file.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use unanimous_core::StoreId;

use super::error::{FileChanged, OpenError};

/// Which database was at which path, for the life of the process: an empty one must not take its place silently.
static SEEN: Mutex<BTreeMap<PathBuf, StoreId>> = Mutex::new(BTreeMap::new());

/// The identity that the database at this path had before in this process.
pub(super) fn seen_before(path: &Path) -> Option<StoreId> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
}

/// Remembers the identity of the database at this path; the first one counts.
///
/// # Errors
///
/// Another one was there before.
pub(super) fn remember(path: &Path, identity: &StoreId) -> Result<(), FileChanged> {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    match seen.get(path) {
        Some(expected) if expected != identity => Err(FileChanged::OtherIdentity {
            path: path.to_owned(),
            expected: expected.clone(),
            found: Some(identity.clone()),
        }),
        Some(_) => Ok(()),
        None => {
            seen.insert(path.to_owned(), identity.clone());
            Ok(())
        }
    }
}

/// The absolute path of a database: its folder is resolved, so that neither a later change of the working directory nor another
/// spelling makes two files of one.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
    if path.as_os_str().is_empty() || path.as_os_str() == ":memory:" {
        return Err(OpenError::InMemory);
    }
    let (Some(name), Some(folder)) = (path.file_name(), path.parent()) else {
        return Err(OpenError::NoFolder {
            folder: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"),
        });
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    match folder.canonicalize() {
        Ok(folder) => Ok(folder.join(name)),
        Err(source) => Err(OpenError::NoFolder { folder: folder.to_owned(), source }),
    }
}

/// A file as the operating system knows it.
#[derive(Clone, Debug)]
pub(super) struct OpenedFile {
    path: PathBuf,
    id: FileId,
}

impl OpenedFile {
    /// The file that is at the path now.
    pub(super) fn at(path: PathBuf) -> Result<Self, FileChanged> {
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok(Self { id: FileId::of(&metadata), path }),
            Err(_) => Err(FileChanged::Gone { path }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether the same file is still there. One call of the operating system, no disk access to speak of.
    pub(super) fn check(&self) -> Result<(), FileChanged> {
        let now = Self::at(self.path.clone())?;
        if now.id == self.id { Ok(()) } else { Err(FileChanged::Replaced { path: self.path.clone() }) }
    }
}

/// Device and inode. An inode is not used again while a connection holds the file open, and the store keeps one open always.
#[cfg(unix)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId(u64, u64);

#[cfg(unix)]
impl FileId {
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self(metadata.dev(), metadata.ino())
    }
}

/// Where the operating system doesn't let an open file be replaced, being there is enough.
#[cfg(not(unix))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId;

#[cfg(not(unix))]
impl FileId {
    fn of(_: &Metadata) -> Self {
        Self
    }
}
