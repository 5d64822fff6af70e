//! Whether a log is open in some process, asked from outside.
//!
//! Must not know what is in a log.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Who has a log open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The process; none where the system doesn't tell (another machine's or container's, or no Linux).
    pub pid: Option<u32>,
}

/// Who has the log in this folder open: whoever holds the folder's lock. It can be another one the next moment.
///
/// Where the system's table of locks doesn't tell, the lock is tried, shared, for some microseconds; an opening at that very moment is
/// repeated within its [`lock_wait`](super::FileLogOptions::lock_wait).
///
/// # Errors
///
/// When the folder can't be opened, or its file system can't lock.
pub fn holder(path: impl AsRef<Path>) -> io::Result<Option<Holder>> {
    let folder = File::open(path)?;
    let own = folder.metadata()?;
    if let Some(pid) = locked_by(&fs::read_to_string("/proc/locks").unwrap_or_default(), own.dev(), own.ino()) {
        return Ok(Some(Holder { pid: Some(pid) }));
    }
    match folder.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(Holder { pid: None })),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The process that has a `flock` for writing, by Linux's table (proc_locks(5)):
/// `1: FLOCK  ADVISORY  WRITE 4242 fd:01:1234567 0 EOF`.
fn locked_by(table: &str, device: u64, inode: u64) -> Option<u32> {
    let device = format!("{:02x}:{:02x}", rustix::fs::major(device), rustix::fs::minor(device));
    let file = format!("{device}:{inode}");
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            // A line with an arrow is one that waits.
            [_, "FLOCK", _, "WRITE", pid, on, ..] if on == file => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_locks_is_read_by_device_and_inode() {
        let table = "1: POSIX  ADVISORY  WRITE 1 fe:00:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 4242 fe:00:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 4243 fe:00:78 0 EOF\n3: FLOCK  ADVISORY  READ 4244 fe:00:79 0 EOF\n";
        let device = rustix::fs::makedev(0xfe, 0);
        assert_eq!(locked_by(table, device, 77), Some(4242));
        for inode in [7, 78, 79] {
            assert_eq!(locked_by(table, device, inode), None);
        }
        assert_eq!(locked_by(table, rustix::fs::makedev(0xfe, 1), 77), None);
    }

    #[tokio::test]
    async fn an_open_log_has_a_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions");
        assert_eq!(holder(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let log = crate::log::FileLog::open(&path).await.unwrap();
        let holds = holder(&path).unwrap().unwrap();
        if cfg!(target_os = "linux") {
            // On a file system with its own idea of devices the process stays unknown.
            assert!(holds.pid.is_none_or(|pid| pid == std::process::id()), "{holds:?}");
        }
        unanimous_core::DecisionLog::close(&log).await;
        assert_eq!(holder(&path).unwrap(), None);
    }
}
