//! A disk and a world for tests of the log: it loses what was not synced, tears writes, fails once, fills up, and stops at a chosen
//! operation; everything that happens is deterministic.
//!
//! A power cut keeps what was synced. Of what was written and not synced it keeps any of the [`SECTOR`]s; of the names that were changed
//! and not synced, the first few changes; of a length that was not synced, the old or the new one.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use unanimous::env::disk::{Disk, DiskFile, Folder};
use unanimous::env::{BoxFuture, Env, NoRuntime};

/// What is written in whole or not at all. Smaller than any real one, so that small frames are torn too.
const SECTOR: usize = 64;

/// What happened to the disk, in order. Reads are not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Create(String),
    Preallocate(String),
    Write(String, u64),
    SyncData(String),
    SyncAll(String),
    Rename(String, String),
    Remove(String),
    SyncFolder,
}

/// What goes wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The next sync of a file's data fails, and what it should have made durable is dropped from the list of what is not: the next one
    /// succeeds without it, as Linux does.
    NextSync,
    /// The next write fails after half of it.
    NextWrite,
    /// The next sync of a file with its length fails.
    NextSyncAll,
    /// The next change of a name fails.
    NextRename,
    /// The next sync of a folder fails.
    NextSyncFolder,
    /// The next sync of a file panics.
    Panic,
}

#[derive(Clone, Default)]
pub(crate) struct TestDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct State {
    folders: BTreeMap<PathBuf, u64>,
    content: BTreeMap<u64, Content>,
    files: BTreeMap<u64, FileState>,
    next_id: u64,
    events: Vec<Event>,
    /// After this many more operations the power is off.
    operations_left: Option<usize>,
    fault: Option<Fault>,
    /// The bytes that all files may have together.
    capacity: Option<u64>,
    /// Syncs of data wait until they are let through; how many wait.
    gate: Option<Gate>,
}

#[derive(Clone, Copy, Default)]
struct Gate {
    waiting: usize,
    passes: usize,
}

#[derive(Clone, Default)]
struct Content {
    locked: bool,
    names: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Default)]
struct FileState {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Change::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            Change::Rename(from, to) => {
                let file = names.remove(from).expect("the order of changes is kept");
                names.insert(to.clone(), file);
            }
            Change::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl State {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Counts an operation; none any more when the power is off.
    fn operate(&mut self, event: Event) -> io::Result<()> {
        if let Some(left) = &mut self.operations_left {
            *left = left.checked_sub(1).ok_or_else(off)?;
        }
        self.events.push(event);
        Ok(())
    }

    fn fault(&mut self, fault: Fault) -> io::Result<()> {
        if self.fault == Some(fault) {
            self.fault = None;
            return Err(io::Error::other("the disk failed"));
        }
        Ok(())
    }
}

impl TestDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn with(state: State) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    pub(crate) fn clear_events(&self) {
        self.lock().events.clear();
    }

    /// The power goes off after this many more operations.
    pub(crate) fn power_off_after(&self, operations: usize) {
        self.lock().operations_left = Some(operations);
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.lock().fault = Some(fault);
    }

    /// All files together may have this many bytes.
    pub(crate) fn limit(&self, capacity: Option<u64>) {
        self.lock().capacity = capacity;
    }

    pub(crate) fn used(&self) -> u64 {
        used(&self.lock())
    }

    /// The names in a folder.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let state = self.lock();
        state.content[&state.folders[Path::new(path)]].names.keys().cloned().collect()
    }

    /// Puts another, empty folder in a folder's place.
    pub(crate) fn replace_folder(&self, path: &str) {
        let mut state = self.lock();
        let id = state.id();
        state.content.insert(id, Content::default());
        state.folders.insert(PathBuf::from(path), id);
    }

    /// From now on syncs of data wait for [`let_through`](Self::let_through).
    pub(crate) fn close_gate(&self) {
        self.lock().gate = Some(Gate::default());
    }

    /// Waits until a sync waits at the gate.
    pub(crate) fn sync_is_waiting(&self) {
        let waiting = |state: &mut State| state.gate.is_none_or(|gate| gate.waiting == 0);
        let limit = Duration::from_secs(60);
        let (_state, timeout) = self.shared.changed.wait_timeout_while(self.lock(), limit, waiting).unwrap();
        assert!(!timeout.timed_out(), "no sync came to the gate within a minute");
    }

    /// Lets one sync through the gate.
    pub(crate) fn let_through(&self) {
        if let Some(gate) = &mut self.lock().gate {
            gate.passes += 1;
        }
        self.shared.changed.notify_all();
    }

    /// What another process finds when this one was killed: everything that was written, synced or not; no locks.
    pub(crate) fn after_kill(&self) -> TestDisk {
        let mut state = self.lock().clone();
        state.content.values_mut().for_each(|content| content.locked = false);
        (state.operations_left, state.fault, state.gate) = (None, None, None);
        state.events.clear();
        Self::with(state)
    }

    /// What is found when the power comes back; the seed chooses what is kept of what was not synced.
    pub(crate) fn after_power_cut(&self, seed: u64) -> TestDisk {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let disk = self.after_kill();
        {
            let mut state = disk.lock();
            for content in state.content.values_mut() {
                let kept = random.below(content.changes.len() + 1);
                content.changes.drain(..).take(kept).for_each(|change| change.apply(&mut content.durable));
                content.names = content.durable.clone();
            }
            for file in state.files.values_mut() {
                if random.below(2) == 0 {
                    file.durable.resize(file.bytes.len(), 0);
                }
                let everything = random.below(4) == 0;
                for (offset, bytes) in file.unsynced.drain(..) {
                    keep_sectors(&mut file.durable, offset, &bytes, |_| everything || random.below(2) == 0);
                }
                file.bytes = file.durable.clone();
            }
        }
        disk
    }
}

fn used(state: &State) -> u64 {
    let named = |id: &u64| state.content.values().any(|content| content.names.values().any(|file| file == id));
    state.files.iter().filter(|(id, _)| named(id)).map(|(_, file)| file.bytes.len() as u64).sum()
}

fn keep_sectors(durable: &mut [u8], offset: usize, bytes: &[u8], mut keep: impl FnMut(usize) -> bool) {
    let end = offset + bytes.len();
    for sector in offset / SECTOR..end.div_ceil(SECTOR) {
        let (from, to) = ((sector * SECTOR).max(offset), ((sector + 1) * SECTOR).min(end).min(durable.len()));
        if from < to && keep(sector) {
            durable[from..to].copy_from_slice(&bytes[from - offset..to - offset]);
        }
    }
}

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
        Ok(Box::new(TestFolder { disk: self.clone(), path: path.to_owned(), folder, locked: Mutex::new(false) }))
    }
}

struct TestFolder {
    disk: TestDisk,
    path: PathBuf,
    folder: u64,
    locked: Mutex<bool>,
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
        if *self.locked.get_mut().unwrap() {
            self.disk.lock().content.get_mut(&self.folder).unwrap().locked = false;
        }
    }
}

impl Folder for TestFolder {
    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.disk.lock();
        let locked = std::mem::replace(&mut state.content.get_mut(&self.folder).unwrap().locked, true);
        *self.locked.lock().unwrap() |= !locked;
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
            let content = state.content.get_mut(&folder).unwrap();
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
            let content = state.content.get_mut(&folder).unwrap();
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
            let content = state.content.get_mut(&folder).unwrap();
            content.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
            content.changes.push(Change::Remove(name.into()));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.change(Event::SyncFolder, |state, folder| {
            state.fault(Fault::NextSyncFolder)?;
            let content = state.content.get_mut(&folder).unwrap();
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
        let file = state.files.get_mut(&self.file).unwrap();
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
            let free = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(used(state)));
            let bytes = &mut state.files.get_mut(&self.file).unwrap().bytes;
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
                let file = state.files.get_mut(&self.file).unwrap();
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
            let (passed, timeout) = self.disk.shared.changed.wait_timeout_while(state, limit, shut).unwrap();
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

/// Random numbers that are the same in each run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// A world in which a job that blocks is done at once, on the caller's thread, and spawned tasks wait until they are
/// [run](TestEnv::run_tasks); sleeping makes it later.
#[derive(Default)]
pub(crate) struct TestEnv {
    now: Arc<Mutex<Duration>>,
    draws: Mutex<u64>,
    tasks: Mutex<Vec<BoxFuture<'static, ()>>>,
    no_runtime: Mutex<bool>,
}

impl TestEnv {
    /// Two worlds with different seeds draw different numbers.
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { draws: Mutex::new(seed << 32), ..Self::default() })
    }

    pub(crate) fn advance(&self, time: Duration) {
        *self.now.lock().unwrap() += time;
    }

    /// Runs what was spawned so far to its end.
    pub(crate) async fn run_tasks(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        for task in tasks {
            task.await;
        }
    }

    /// As if the runtime had ended: jobs and tasks are dropped.
    pub(crate) fn end_runtime(&self) {
        *self.no_runtime.lock().unwrap() = true;
    }

    fn ended(&self) -> Result<(), NoRuntime> {
        if *self.no_runtime.lock().unwrap() { Err(NoRuntime) } else { Ok(()) }
    }
}

impl Env for TestEnv {
    fn monotonic(&self) -> Duration {
        *self.now.lock().unwrap()
    }

    fn wall_clock(&self) -> u64 {
        1_700_000_000_000_000 + self.monotonic().as_micros() as u64
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let now = self.now.clone();
        Box::pin(async move { *now.lock().unwrap() += duration })
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        self.ended()?;
        self.tasks.lock().unwrap().push(task);
        Ok(())
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        self.ended()?;
        job();
        Ok(())
    }

    fn random(&self) -> u64 {
        let mut draws = self.draws.lock().unwrap();
        *draws += 1;
        // SplitMix64: neighbouring seeds give unrelated numbers.
        let mut value = draws.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
}
