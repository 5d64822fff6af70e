//! Whether the file at a path is still the file that was opened.
//!
//! An open connection goes on writing into a file that was unlinked or replaced, and everything that it commits is lost
//! without an error. So the path is looked at when a branch begins, before it commits, and when recovery asks. The file
//! is never opened here: closing any descriptor of it would drop all of the process's POSIX locks on it, SQLite's own
//! among them.
//!
//! Must not know what is in the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use unanimous_core::StoreId;

use super::error::{FileChanged, OpenError};
use crate::sync::lock;

/// Which file with which identity was at which path, for the life of the process: an empty one must not take its place
/// silently, and SQLite would apply the write-ahead log that an earlier file has left at the path to whatever file is
/// there now.
static SEEN: Mutex<BTreeMap<PathBuf, (OpenedFile, StoreId)>> = Mutex::new(BTreeMap::new());

/// The identity that the database at this path had before in this process.
///
/// # Errors
///
/// There was one, and now its file is gone or another.
pub(super) fn seen_before(path: &Path) -> Result<Option<StoreId>, FileChanged> {
    match lock(&SEEN).get(path) {
        Some((file, identity)) => file.check_database().map(|()| Some(identity.clone())),
        None => Ok(None),
    }
}

/// Remembers the database that was opened at a path; the first one counts.
///
/// # Errors
///
/// Another one was there before.
pub(super) fn remember(file: &OpenedFile, identity: &StoreId) -> Result<(), FileChanged> {
    let mut seen = lock(&SEEN);
    let (_, expected) = seen.entry(file.path.clone()).or_insert_with(|| (file.clone(), identity.clone()));
    if expected == identity {
        return Ok(());
    }
    Err(FileChanged::OtherIdentity {
        path: file.path.clone(),
        expected: expected.clone(),
        found: Some(identity.clone()),
    })
}

/// The absolute path of a database: its folder is resolved, so that neither a later change of the working directory nor
/// another spelling makes two files of one.
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

/// A database's files as the operating system knows them.
#[derive(Clone, Debug)]
pub(super) struct OpenedFile {
    path: PathBuf,
    id: FileId,
    /// The write-ahead log: there from the first read to the last connection's end, always the same file. Commits go
    /// there first, so one that was deleted by hand takes them along.
    log: PathBuf,
    log_id: FileId,
}

impl OpenedFile {
    /// The files that are there now. `opened` is the path that SQLite made of `path`: it follows links, and puts the
    /// log beside the file itself.
    pub(super) fn at(path: PathBuf, opened: Option<&str>) -> Result<Self, FileChanged> {
        // SQLite gives no name that is not Unicode; then it is ours, and must not be a link.
        let mut log = opened.map_or_else(|| path.clone().into_os_string(), OsString::from);
        log.push("-wal");
        let log = PathBuf::from(log);
        Ok(Self { id: look_at(&path)?, path, log_id: look_at(&log)?, log })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks whether the same files are still there. Two calls of the operating system, no disk access to speak of.
    pub(super) fn check(&self) -> Result<(), FileChanged> {
        self.check_database()?;
        same(&self.log, self.log_id)
    }

    /// The same without the log, which is not there while no connection is.
    fn check_database(&self) -> Result<(), FileChanged> {
        same(&self.path, self.id)
    }
}

fn look_at(path: &Path) -> Result<FileId, FileChanged> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(FileId::of(&metadata)),
        Err(_) => Err(FileChanged::Gone { path: path.to_owned() }),
    }
}

fn same(path: &Path, id: FileId) -> Result<(), FileChanged> {
    if look_at(path)? == id { Ok(()) } else { Err(FileChanged::Replaced { path: path.to_owned() }) }
}

/// Device and inode. An inode is not used again while a connection holds the file open, and the store keeps one open
/// always.
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
