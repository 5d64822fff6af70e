//! Steps under a test's control: where the world stops, which step fails, and what a power failure takes away.
//!
//! The model of a power failure: content that was not synced is cut in half; of the changes of names that were not synced with
//! their folder, the last so many are lost (a journal is cut), or all those in one folder (each folder is written for itself).
//!
//! Must not know what the steps are for.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;

use tempfile::TempDir;

/// What happens at which step, and what is not durable yet.
#[derive(Debug, Default)]
pub(super) struct Script {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    done: Vec<&'static str>,
    stop_after: Option<usize>,
    fail_at: Option<usize>,
    /// Changes of names, oldest first; only where a power failure is to be had.
    journal: Vec<Change>,
    dirty: Vec<File>,
    /// Where what was overwritten or removed is kept.
    kept: Option<TempDir>,
    keeps: usize,
}

#[derive(Debug)]
struct Change {
    /// A sync of any of these makes it durable.
    folders: Vec<PathBuf>,
    undo: Undo,
}

#[derive(Debug)]
enum Undo {
    Remove(PathBuf),
    Restore { kept: PathBuf, path: PathBuf },
    Rename { now: PathBuf, before: PathBuf, kept: Option<PathBuf> },
}

/// What a power failure takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    /// The last so many changes of names.
    Last(usize),
    /// All that happened in the folder of the change at this place of the journal.
    FolderOf(usize),
}

impl Script {
    /// All steps after the first `steps` are refused, as if the process had died: nothing is cleaned up either.
    pub(super) fn stop_after(steps: usize) -> Self {
        Self { inner: Mutex::new(Inner { stop_after: Some(steps), ..Inner::default() }) }
    }

    /// The step at this place (from 0) fails, the others don't.
    pub(super) fn fail_at(place: usize) -> Self {
        Self { inner: Mutex::new(Inner { fail_at: Some(place), ..Inner::default() }) }
    }

    /// The same as `stop_after`, with a power failure to come.
    pub(super) fn with_power_failure(steps: usize) -> Self {
        let kept = Some(memory_folder());
        Self { inner: Mutex::new(Inner { stop_after: Some(steps), kept, ..Inner::default() }) }
    }

    /// The process that died is followed by another, which comes so many steps far. What was not durable still is not.
    pub(super) fn go_on(&self, steps: usize) {
        let mut inner = self.inner.lock().unwrap();
        inner.stop_after = Some(inner.done.len() + steps);
    }

    /// The steps that were tried so far, without the one that was refused for a stop.
    pub(super) fn done(&self) -> Vec<&'static str> {
        self.inner.lock().unwrap().done.clone()
    }

    /// Whether it was stopped before its work was done.
    pub(super) fn has_stopped(&self) -> bool {
        let inner = self.inner.lock().unwrap();
        inner.stop_after == Some(inner.done.len())
    }

    pub(super) fn step(&self, doing: &'static str) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if inner.stop_after.is_some_and(|most| inner.done.len() >= most) {
            return Err(io::Error::other("the test stopped the world here"));
        }
        inner.done.push(doing);
        if inner.fail_at == Some(inner.done.len() - 1) {
            return Err(io::Error::other("the test let this step fail"));
        }
        Ok(())
    }

    /// How many changes of names are not durable.
    pub(super) fn changes(&self) -> usize {
        self.inner.lock().unwrap().journal.len()
    }

    /// The power fails.
    pub(super) fn lose(&self, loss: Loss) {
        let mut inner = self.inner.lock().unwrap();
        for file in std::mem::take(&mut inner.dirty) {
            let length = file.metadata().unwrap().len();
            file.set_len(length / 2).unwrap();
        }
        let journal = std::mem::take(&mut inner.journal);
        let folder = match loss {
            Loss::FolderOf(place) => Some(journal[place].folders.clone()),
            Loss::Last(_) => None,
        };
        let first = match loss {
            Loss::Last(many) => journal.len() - many,
            Loss::FolderOf(_) => 0,
        };
        for change in journal.into_iter().skip(first).rev() {
            if folder.as_ref().is_none_or(|folder| *folder == change.folders) {
                change.undo.run();
            }
        }
    }

    fn change(&self, folders: &[&File], undo: impl FnOnce() -> Undo) {
        let mut inner = self.inner.lock().unwrap();
        if inner.kept.is_some() {
            inner
                .journal
                .push(Change { folders: folders.iter().map(|folder| path_of(folder)).collect(), undo: undo() });
        }
    }

    pub(super) fn created(&self, folder: &File, name: &str) {
        self.change(&[folder], || Undo::Remove(path_of(folder).join(name)));
    }

    /// Keeps what is about to be overwritten or removed.
    pub(super) fn keep(&self, folder: &File, name: &str) -> Option<PathBuf> {
        let mut inner = self.inner.lock().unwrap();
        inner.keeps += 1;
        let kept = inner.kept.as_ref()?.path().join(inner.keeps.to_string());
        fs::hard_link(path_of(folder).join(name), &kept).ok().map(|()| kept)
    }

    pub(super) fn renamed(&self, from: (&File, &str), to: (&File, &str), kept: Option<PathBuf>) {
        self.change(&[from.0, to.0], || Undo::Rename {
            now: path_of(to.0).join(to.1),
            before: path_of(from.0).join(from.1),
            kept,
        });
    }

    pub(super) fn unlinked(&self, folder: &File, name: &str, kept: Option<PathBuf>) {
        if let Some(kept) = kept {
            self.change(&[folder], || Undo::Restore { kept, path: path_of(folder).join(name) });
        }
    }

    pub(super) fn written(&self, file: &File) {
        let mut inner = self.inner.lock().unwrap();
        if inner.kept.is_some() {
            inner.dirty.push(file.try_clone().unwrap());
        }
    }

    pub(super) fn synced(&self, file: &File) {
        let mut inner = self.inner.lock().unwrap();
        if inner.kept.is_none() {
            return;
        }
        let meta = file.metadata().unwrap();
        if meta.is_dir() {
            let path = path_of(file);
            inner.journal.retain(|change| !change.folders.contains(&path));
        } else {
            inner.dirty.retain(|dirty| dirty.metadata().unwrap().ino() != meta.ino());
        }
    }
}

impl Undo {
    /// A name that a later, surviving change took away is left alone.
    fn run(self) {
        match self {
            Undo::Remove(path) if path.is_dir() => fs::remove_dir_all(path).unwrap(),
            Undo::Remove(path) => drop(fs::remove_file(path)),
            Undo::Restore { kept, path } => drop(fs::rename(kept, path)),
            Undo::Rename { now, before, kept } => {
                let _ = fs::rename(&now, before);
                if let Some(kept) = kept {
                    fs::rename(kept, now).unwrap();
                }
            }
        }
    }
}

/// The path of an open folder.
fn path_of(folder: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).unwrap()
}

/// A folder in memory where there is one: these tests model what a disk does, and would only wait for a real one.
pub(super) fn memory_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}
