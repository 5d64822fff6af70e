//! The decision log's disk, behind a trait that a simulator can replace.
//!
//! A disk opens folders; a folder is worked on through its own descriptor, not through its path, so that nothing lands in another
//! folder that took its place. All methods block; the log calls them from [`Env::blocking`](super::Env::blocking).
//!
//! What the log relies on: what was synced stays, whatever happens; what was written and not synced may be there after a crash in
//! whole, in part or not at all; bytes that a write does not touch are not changed by it, not even by a power cut while it runs.
//!
//! Must not know what the bytes mean.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Opens folders.
pub trait Disk: Send + Sync + 'static {
    /// Opens a folder; with `create`, makes it and its parents where they are missing, durably.
    ///
    /// # Errors
    ///
    /// `NotFound` when it is not there and not to be created.
    fn open_folder(&self, path: &Path, create: bool) -> io::Result<Box<dyn Folder>>;
}

/// An open folder. Dropping it gives its lock up.
pub trait Folder: Send + Sync {
    /// Locks the folder for this owner alone, until it is dropped. False when another holds it.
    ///
    /// # Errors
    ///
    /// When the file system can't lock.
    fn try_lock(&self) -> io::Result<bool>;

    /// Whether the path that the folder was opened by still leads to it.
    ///
    /// # Errors
    ///
    /// When that can't be found out; `NotFound` counts as false.
    fn is_current(&self) -> io::Result<bool>;

    /// The names in the folder, in any order.
    ///
    /// # Errors
    ///
    /// When it can't be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates a file for reading and writing.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` when the name is taken.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file, for writing too if asked.
    ///
    /// # Errors
    ///
    /// `NotFound` when it is not there.
    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name; one that had that name before is replaced.
    ///
    /// # Errors
    ///
    /// When it can't be done.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// `NotFound` when it is not there.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names durable.
    ///
    /// # Errors
    ///
    /// After an error nobody knows which names are.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Send {
    /// The whole file.
    ///
    /// # Errors
    ///
    /// When it can't be read.
    fn read(&self) -> io::Result<Vec<u8>>;

    /// Makes the file at least `length` bytes long, the new ones zero, with their space on the disk taken.
    ///
    /// # Errors
    ///
    /// `StorageFull` when there is not enough space; the file may have grown.
    fn preallocate(&self, length: u64) -> io::Result<()>;

    /// Writes bytes within the file's length.
    ///
    /// # Errors
    ///
    /// After an error nobody knows which bytes are there.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    ///
    /// After an error nobody knows what is durable, and a later success says nothing of what was written before.
    fn sync_data(&self) -> io::Result<()>;

    /// The same, with the file's length.
    ///
    /// # Errors
    ///
    /// As [`sync_data`](Self::sync_data).
    fn sync_all(&self) -> io::Result<()>;
}

/// The operating system's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn open_folder(&self, path: &Path, create: bool) -> io::Result<Box<dyn Folder>> {
        // A relative path must go on meaning the same folder when the process changes its own.
        let path = std::path::absolute(path)?;
        if create {
            create_durably(&path)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
        Ok(Box::new(OsFolder { path, folder }))
    }
}

/// Creates what is missing of a path, and syncs each folder that got a new entry.
fn create_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent();
    if let Some(parent) = parent {
        create_durably(parent)?;
    }
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => created?,
    }
    parent.map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

struct OsFolder {
    path: PathBuf,
    folder: File,
}

impl OsFolder {
    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<Box<dyn DiskFile>> {
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let file = rustix::fs::openat(&self.folder, name, flags | OFlags::CLOEXEC, mode)?;
        Ok(Box::new(OsFile(File::from(file))))
    }
}

impl Folder for OsFolder {
    fn try_lock(&self) -> io::Result<bool> {
        match self.folder.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn is_current(&self) -> io::Result<bool> {
        let own = self.folder.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.folder)? {
            // A name that is no text is none of the log's.
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn DiskFile>> {
        self.open_file(name, if write { OFlags::RDWR } else { OFlags::RDONLY })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.folder, from, &self.folder, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.folder, name, rustix::fs::AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        self.folder.sync_all()
    }
}

struct OsFile(File);

impl DiskFile for OsFile {
    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.0.metadata()?.len()).map_err(io::Error::other)?];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.0.read_at(&mut bytes[filled..], filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn preallocate(&self, length: u64) -> io::Result<()> {
        match allocate(&self.0, length) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => write_zeros(&self.0, length),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn allocate(file: &File, length: u64) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, length))
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn allocate(_: &File, _: u64) -> Result<(), Errno> {
    Err(Errno::NOSYS)
}

fn write_zeros(file: &File, length: u64) -> io::Result<()> {
    let zeros = [0; 64 * 1024];
    let mut offset = file.metadata()?.len();
    while offset < length {
        let part = (length - offset).min(zeros.len() as u64);
        file.write_all_at(&zeros[..part as usize], offset)?;
        offset += part;
    }
    Ok(())
}
