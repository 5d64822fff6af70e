//! The disk's own speed: bytes at the end of a file whose space is taken, and a sync, nothing else.
//!
//! Must not know what the bytes are.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};

/// As long as a segment of the file log.
const LENGTH: u64 = 16 << 20;

/// A file of which a part is used; another one takes its place when it is full, as in the log.
#[derive(Debug)]
pub(super) struct Bare {
    path: PathBuf,
    file: File,
    end: u64,
}

impl Bare {
    pub(super) fn new(path: PathBuf) -> io::Result<Self> {
        let file = preallocated(&path)?;
        Ok(Self { path, file, end: 0 })
    }

    pub(super) fn append(&mut self, bytes: usize) -> io::Result<()> {
        if self.end + bytes as u64 > LENGTH {
            self.file = preallocated(&self.path)?;
            self.end = 0;
        }
        self.file.write_all_at(&vec![0x55; bytes], self.end)?;
        self.file.sync_data()?;
        self.end += bytes as u64;
        Ok(())
    }
}

fn preallocated(path: &PathBuf) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, LENGTH)?;
    file.sync_all()?;
    Ok(file)
}
