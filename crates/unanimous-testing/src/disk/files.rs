//! The library's traits of a disk, over what the test disk has.
//!
//! Must not know what a power cut keeps.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use unanimous::env::disk::{Disk, DiskFile, Folder};

use super::state::{Change, Content, FileState, State, keep_sectors};
use super::{Event, Fault, TestDisk};

impl Disk for TestDisk {
    fn open_folder(&self, path: &Path, create: bool) -> io::Result<Box<dyn Folder>> {
        let mut state = self.lock();
        let known = state.folders.get(path).copied();
        let folder = match known {
            Some(folder) => folder,
            None if create => {
                let id = state.id();
                state.folders.insert(path.to_owned(), id);
                state.content.insert(id, Content::default());
                id
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Box::new(TestFolder { disk: self.clone(), path: path.to_owned(), folder, locked: AtomicBool::new(false) }))
    }
}

struct TestFolder {
    disk: TestDisk,
    path: PathBuf,
    folder: u64,
    locked: AtomicBool,
}

impl TestFolder {
    /// The folder's content, to be changed; after the operation was counted.
    fn change<T>(&self, event: Event, change: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.lock();
        state.operate(event)?;
        change(&mut state, self.folder)
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        if *self.locked.get_mut() {
            self.disk.lock().folder(self.folder).locked = false;
        }
    }
}

impl Folder for TestFolder {
    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.disk.lock();
        let locked = std::mem::replace(&mut state.folder(self.folder).locked, true);
        self.locked.fetch_or(!locked, Ordering::SeqCst);
        Ok(!locked)
    }

    fn is_current(&self) -> io::Result<bool> {
        Ok(self.disk.lock().folders.get(&self.path) == Some(&self.folder))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.disk.lock().content[&self.folder].names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.change(Event::Create(name.into()), |state, folder| {
            let id = state.id();
            let content = state.folder(folder);
            if content.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let change = Change::Create(name.into(), id);
            change.apply(&mut content.names);
            content.changes.push(change);
            state.files.insert(id, FileState::default());
            Ok(id)
        })?;
        Ok(Box::new(TestFile { disk: self.disk.clone(), file }))
    }

    fn open(&self, name: &str, _write: bool) -> io::Result<Box<dyn DiskFile>> {
        let file = *self.disk.lock().content[&self.folder].names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(TestFile { disk: self.disk.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(Event::Rename(from.into(), to.into()), |state, folder| {
            state.fault(Fault::NextRename)?;
            let content = state.folder(folder);
            if !content.names.contains_key(from) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let change = Change::Rename(from.into(), to.into());
            change.apply(&mut content.names);
            content.changes.push(change);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(Event::Remove(name.into()), |state, folder| {
            let content = state.folder(folder);
            content.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
            content.changes.push(Change::Remove(name.into()));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.change(Event::SyncFolder, |state, folder| {
            state.fault(Fault::NextSyncFolder)?;
            let content = state.folder(folder);
            content.changes.clear();
            content.durable = content.names.clone();
            Ok(())
        })
    }
}

struct TestFile {
    disk: TestDisk,
    file: u64,
}

impl TestFile {
    fn name(&self, state: &State) -> String {
        let names = state.content.values().flat_map(|content| &content.names);
        names.filter(|(_, file)| **file == self.file).map(|(name, _)| name.clone()).next().unwrap_or_default()
    }

    fn change<T>(
        &self,
        event: impl FnOnce(String) -> Event,
        change: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.disk.lock();
        let event = event(self.name(&state));
        state.operate(event)?;
        change(&mut state)
    }

    fn sync(&self, state: &mut State, length_too: bool) -> io::Result<()> {
        assert!(state.fault(Fault::Panic).is_ok(), "the disk panics, as it was told to");
        let failed = state.fault(if length_too { Fault::NextSyncAll } else { Fault::NextSync });
        let file = state.file(self.file);
        let unsynced = std::mem::take(&mut file.unsynced);
        failed?;
        if length_too {
            file.durable.resize(file.bytes.len(), 0);
        }
        for (offset, bytes) in unsynced {
            keep_sectors(&mut file.durable, offset, &bytes, |_| true);
        }
        Ok(())
    }
}

impl DiskFile for TestFile {
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.disk.lock().files[&self.file].bytes.clone())
    }

    fn preallocate(&self, length: u64) -> io::Result<()> {
        self.change(Event::Preallocate, |state| {
            let free = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used()));
            let bytes = &mut state.file(self.file).bytes;
            let grow = length.saturating_sub(bytes.len() as u64);
            let got = bytes.len() as u64 + grow.min(free);
            bytes.resize(got as usize, 0);
            if grow > free { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(
            |name| Event::Write(name, offset),
            |state| {
                let failed = state.fault(Fault::NextWrite);
                let bytes = if failed.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
                let file = state.file(self.file);
                let offset = offset as usize;
                file.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
                file.unsynced.push((offset, bytes.to_vec()));
                failed
            },
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        if let Some(gate) = &mut state.gate {
            gate.waiting += 1;
            self.disk.shared.changed.notify_all();
            let shut = |state: &mut State| state.gate.is_some_and(|gate| gate.passes == 0);
            let limit = Duration::from_secs(20);
            let (passed, timeout) =
                self.disk.shared.changed.wait_timeout_while(state, limit, shut).unwrap_or_else(PoisonError::into_inner);
            assert!(!timeout.timed_out(), "nobody let the sync through: the test failed, or forgot it");
            state = passed;
            if let Some(gate) = &mut state.gate {
                gate.waiting -= 1;
                gate.passes -= 1;
            }
        }
        let name = self.name(&state);
        state.operate(Event::SyncData(name))?;
        self.sync(&mut state, false)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.change(Event::SyncAll, |state| self.sync(state, true))
    }
}
