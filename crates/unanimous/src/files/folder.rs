//! The folder on the disk: opened anew for each operation, so that one that was unmounted or replaced is noticed at once and
//! none is kept from being unmounted. Walks paths without following links, looks at targets, and locks.
//!
//! Must not know branches or what manifests say.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use unanimous_core::StoreId;

use super::acts::Acts;
use super::error::FilesError;
use super::identity;
use super::path::RelPath;
use crate::sync::lock;

/// The folder, in the root, that the store keeps its own files in.
pub(super) const OWN: &str = ".unanimous";
/// The same while it is being made.
pub(super) const OWN_NEW: &str = ".unanimous-new";
/// In it: locked for moments, while claims are looked at and made.
pub(super) const LOCK: &str = "lock";
/// In it: content that is prepared.
pub(super) const STAGE: &str = "stage";
/// In it: manifests, which are promises and claims.
pub(super) const PREPARED: &str = "prepared";

/// How long a lock is waited for: long beside a critical section, short beside a stopped process.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The folder's lock, held. The file goes first, so that the next in line finds it free.
#[must_use]
pub(super) struct Locked<'a> {
    _file: File,
    _gate: MutexGuard<'a, ()>,
}

/// An opened root with its own folder.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) acts: Acts,
    pub(super) id: StoreId,
    pub(super) path: PathBuf,
    pub(super) stage: File,
    pub(super) prepared: File,
    root: File,
    own: File,
    mount: Mount,
    /// Taken before the lock: threads of one process queue up here, and don't have to poll.
    gate: Arc<Mutex<()>>,
}

/// Where a file lives: a rename works within one of these only, not even between two mounts of one file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    device: u64,
    mount: Option<u64>,
}

impl Mount {
    /// Of the folder itself where `name` is empty, of what it contains otherwise.
    #[cfg(target_os = "linux")]
    pub(super) fn of(folder: &File, name: &str) -> io::Result<Self> {
        use rustix::fs::StatxFlags;
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statx(folder, name, flags, StatxFlags::MNT_ID) {
            Ok(statx) => {
                let mount = (statx.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(statx.stx_mnt_id);
                let device = (u64::from(statx.stx_dev_major) << 32) | u64::from(statx.stx_dev_minor);
                Ok(Self { device, mount })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Of the folder itself where `name` is empty, of what it contains otherwise.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn of(folder: &File, name: &str) -> io::Result<Self> {
        let stat = match name {
            "" => rustix::fs::fstat(folder)?,
            name => rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?,
        };
        Ok(Self { device: stat.st_dev as u64, mount: None })
    }
}

/// Tells whether a file is still the one that was seen: a replaced one is another inode, one written in place has another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between platforms")]
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            length: stat.st_size as u64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        }
    }

    /// Whether two names are names of one file.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// The file's length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

/// What is at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Missing,
    /// A regular file, and its permission bits.
    File(Stamp, u32),
    /// Something else, in words.
    Other(&'static str),
}

/// What to do about a folder that is missing on the way to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfMissing {
    Stop,
    Make,
}

/// The folders on the way to a file, opened; the root first, the file's own folder last.
pub(super) struct Way(Vec<(PathBuf, File)>);

impl Way {
    /// The folder that the file is in.
    pub(super) fn folder(&self) -> &File {
        &self.0.last().expect("the root is on every way").1
    }

    /// Every folder of it with its path, the root first.
    pub(super) fn into_folders(self) -> impl Iterator<Item = (PathBuf, File)> {
        self.0.into_iter()
    }
}

fn io_error<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> FilesError {
    let path = path.to_owned();
    move |error| FilesError::Io { doing, path, source: error.into() }
}

/// Opens a folder, without following a link at its end.
pub(super) fn open_folder(at: &File, name: &str) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty()).map(File::from)
}

/// Opens a file, without following a link at its end. Not blocked by a pipe that somebody put there.
pub(super) fn open_file(at: &File, name: &str) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(at, name, flags, Mode::empty()).map(File::from)
}

/// What is at a name in a folder.
pub(super) fn target(folder: &File, name: &str, path: &Path) -> Result<Target, FilesError> {
    let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Target::Missing),
        Err(error) => return Err(io_error("look at", path)(error)),
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        #[allow(clippy::unnecessary_cast, reason = "the field's type differs between platforms")]
        FileType::RegularFile => Target::File(Stamp::of(&stat), stat.st_mode as u32 & 0o777),
        FileType::Directory => Target::Other("a folder"),
        FileType::Symlink => Target::Other("a symbolic link"),
        FileType::Fifo => Target::Other("a pipe"),
        FileType::Socket => Target::Other("a socket"),
        _ => Target::Other("a device"),
    })
}

impl Folder {
    /// Opens the root. One that is no store yet becomes the store `create`, which is none where the root was seen before: it must be there
    /// then, and whether it is the same one is for the caller to compare.
    pub(super) fn open(
        path: &Path,
        create: Option<StoreId>,
        acts: &Acts,
        gate: &Arc<Mutex<()>>,
    ) -> Result<Self, FilesError> {
        let gone = |file: PathBuf, why| FilesError::Gone { file, why };
        let open_root = || -> Result<(File, File), FilesError> {
            // A link to the root itself is the application's way of naming it.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root: File = match rustix::fs::open(path, flags, Mode::empty()) {
                Ok(root) => root.into(),
                Err(Errno::NOENT) => {
                    return Err(gone(path.to_owned(), "the folder does not exist; mount or restore it"));
                }
                Err(error) => return Err(io_error("open the folder", path)(error)),
            };
            match open_folder(&root, OWN) {
                Ok(own) => Ok((root, own)),
                Err(Errno::NOENT) => Err(gone(
                    path.join(OWN),
                    "the folder is no store, or is not mounted; an empty mount point must not be taken for an empty store",
                )),
                Err(error) => Err(io_error("open the folder", &path.join(OWN))(error)),
            }
        };
        let (root, own) = match (open_root(), create) {
            (Err(FilesError::Gone { .. }), Some(id)) => {
                identity::create(path, id, acts)?;
                open_root()?
            }
            (other, ..) => other?,
        };
        let id = identity::read(&own, &path.join(OWN))?;
        let part = |name: &str| {
            open_folder(&own, name).map_err(|error| match error {
                Errno::NOENT => gone(path.join(OWN).join(name), "somebody removed a part of the store; restore it"),
                error => io_error("open the folder", &path.join(OWN).join(name))(error),
            })
        };
        let (stage, prepared) = (part(STAGE)?, part(PREPARED)?);
        let mount = Mount::of(&stage, "").map_err(io_error("look at", &path.join(OWN).join(STAGE)))?;
        if Mount::of(&root, "").map_err(io_error("look at", path))? != mount {
            return Err(FilesError::OtherFileSystem { path: format!("{OWN}/{STAGE}") });
        }
        Ok(Self {
            acts: acts.clone(),
            id,
            path: path.to_owned(),
            stage,
            prepared,
            root,
            own,
            mount,
            gate: Arc::clone(gate),
        })
    }

    /// Where a file of the store's own is, for people.
    pub(super) fn own_path(&self, part: &str, name: &str) -> PathBuf {
        let own = self.path.join(OWN).join(part);
        if name.is_empty() { own } else { own.join(name) }
    }

    /// Where a user's file is, for people.
    pub(super) fn user_path(&self, path: &RelPath) -> PathBuf {
        self.path.join(path.as_str())
    }

    /// Opens the folders on the way to a file; none where one is missing and is not to be made. What is made is durable.
    pub(super) fn walk(&self, path: &RelPath, if_missing: IfMissing) -> Result<Option<Way>, FilesError> {
        let root = self.root.try_clone().map_err(io_error("open the folder", &self.path))?;
        let mut way = vec![(self.path.clone(), root)];
        let mut text = String::new();
        for name in path.folders() {
            if !text.is_empty() {
                text.push('/');
            }
            text.push_str(name);
            let at = self.path.join(&text);
            let (above, folder) = way.last().map(|(path, file)| (path, file)).expect("the root is on every way");
            let next = match open_folder(folder, name) {
                Err(Errno::NOENT) if if_missing == IfMissing::Stop => return Ok(None),
                Err(Errno::NOENT) => {
                    self.acts.make_folder("make the folder", folder, name, &at)?;
                    self.acts.sync("sync the folder above a new one", folder, above)?;
                    open_folder(folder, name)
                }
                other => other,
            };
            let next = match next {
                Ok(next) => next,
                Err(error @ (Errno::NOTDIR | Errno::LOOP)) => {
                    return Err(match target(folder, name, &at)? {
                        Target::Other(what) => FilesError::NotAFile { path: text, what },
                        Target::File(..) => FilesError::NotAFile { path: text, what: "a file, not a folder" },
                        Target::Missing => io_error("open the folder", &at)(error),
                    });
                }
                Err(error) => return Err(io_error("open the folder", &at)(error)),
            };
            if Mount::of(&next, "").map_err(io_error("look at", &at))? != self.mount {
                return Err(FilesError::OtherFileSystem { path: text });
            }
            way.push((at, next));
        }
        Ok(Some(Way(way)))
    }

    /// What is at a path, and that it is nothing that can't be written.
    pub(super) fn look(&self, folder: &File, path: &RelPath) -> Result<Option<(Stamp, u32)>, FilesError> {
        let at = self.user_path(path);
        match target(folder, path.name(), &at)? {
            Target::Missing => Ok(None),
            Target::Other(what) => Err(FilesError::NotAFile { path: path.to_string(), what }),
            Target::File(stamp, mode) => {
                // A file, too, can be a mount of its own.
                if Mount::of(folder, path.name()).map_err(io_error("look at", &at))? != self.mount {
                    return Err(FilesError::OtherFileSystem { path: path.to_string() });
                }
                Ok(Some((stamp, mode)))
            }
        }
    }

    /// A file's content as it is now, and the stamp of what was read; none where there is no file.
    pub(super) fn read(&self, path: &RelPath) -> Result<Option<(Vec<u8>, Stamp)>, FilesError> {
        let Some(way) = self.walk(path, IfMissing::Stop)? else { return Ok(None) };
        if self.look(way.folder(), path)?.is_none() {
            return Ok(None);
        }
        let at = self.user_path(path);
        let mut file = match open_file(way.folder(), path.name()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io_error("open", &at)(error)),
        };
        let stat = rustix::fs::fstat(&file).map_err(io_error("look at", &at))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_error("read", &at))?;
        Ok(Some((bytes, Stamp::of(&stat))))
    }

    /// Holds the folder's lock until it is dropped. Never call it twice in one thread.
    pub(super) fn lock(&self) -> Result<Locked<'_>, FilesError> {
        let begin = Instant::now();
        // A panic while it was held has released the lock, and left what a crash leaves.
        let gate = lock(&self.gate);
        let path = self.own_path(LOCK, "");
        // Who waits behind others does not begin to wait anew.
        let file = lock_file(&self.own, LOCK, &path, LOCK_WAIT.saturating_sub(begin.elapsed()))?
            .ok_or(FilesError::Gone { file: path, why: "somebody removed a part of the store; restore it" })?;
        Ok(Locked { _file: file, _gate: gate })
    }

    /// Locks a manifest; none where it is not there (any more).
    pub(super) fn lock_manifest(&self, name: &str, wait: bool) -> Result<Option<File>, FilesError> {
        let wait = if wait { LOCK_WAIT } else { Duration::ZERO };
        lock_file(&self.prepared, name, &self.own_path(PREPARED, name), wait)
    }

    /// Whether a living process or thread holds the lock of a file in `stage/`.
    pub(super) fn is_staged_alive(&self, name: &str) -> Result<bool, FilesError> {
        match lock_file(&self.stage, name, &self.own_path(STAGE, name), Duration::ZERO) {
            Ok(_) => Ok(false),
            Err(FilesError::Busy { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The names in one of the store's own folders, in order.
    pub(super) fn list(&self, folder: &File, part: &'static str) -> Result<Vec<String>, FilesError> {
        let path = self.own_path(part, "");
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(folder).map_err(io_error("list", &path))? {
            let entry = entry.map_err(io_error("list", &path))?;
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => names.push(name.to_owned()),
                Err(_) => {
                    let why = "its name is not one that this program writes".to_owned();
                    return Err(FilesError::Damaged { file: path.join(&*entry.file_name().to_string_lossy()), why });
                }
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The content of a file of the store's own; none where it is not there.
    pub(super) fn read_own(&self, folder: &File, part: &str, name: &str) -> Result<Option<Vec<u8>>, FilesError> {
        let path = self.own_path(part, name);
        let mut bytes = Vec::new();
        match open_file(folder, name) {
            Ok(mut file) => file.read_to_end(&mut bytes).map_err(io_error("read", &path))?,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        Ok(Some(bytes))
    }
}

/// Locks a file against all threads and processes; none where it is not there. Busy after `wait`.
///
/// A lock belongs to the open file, hence a new one each time; and it counts only when the name still stands for what was locked.
fn lock_file(folder: &File, name: &str, path: &Path, wait: Duration) -> Result<Option<File>, FilesError> {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        let file = match open_file(folder, name) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io_error("open", path)(error)),
        };
        loop {
            match lock_now(&file) {
                Ok(true) => break,
                Ok(false) if begin.elapsed() >= wait => return Err(FilesError::Busy { file: path.to_owned() }),
                // The kernel's own waiting has no time limit, and a stopped process can hold the lock for ever.
                Ok(false) => std::thread::sleep(pause),
                Err(error) => return Err(io_error("lock", path)(error)),
            }
            pause = (2 * pause).min(Duration::from_millis(5));
        }
        let held = rustix::fs::fstat(&file).map_err(io_error("look at", path))?;
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if Stamp::of(&named).is_same_file(&Stamp::of(&held)) => return Ok(Some(file)),
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io_error("look at", path)(error)),
        }
    }
}

/// Locks an open file if nobody else does.
pub(super) fn lock_now(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn another_file_system_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("below")).unwrap();
        let here = File::open(root.path()).unwrap();
        let below = File::open(root.path().join("below")).unwrap();
        let proc = File::open("/proc").unwrap();
        assert_eq!(Mount::of(&here, "").unwrap(), Mount::of(&below, "").unwrap());
        assert_eq!(Mount::of(&here, "").unwrap(), Mount::of(&here, "below").unwrap());
        assert_ne!(Mount::of(&here, "").unwrap(), Mount::of(&proc, "").unwrap());
    }
}
