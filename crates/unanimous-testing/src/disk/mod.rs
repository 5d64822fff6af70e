//! A disk for the decision log that loses what was not synced, tears writes, fails once, fills up, and stops at a chosen operation; and a world
//! around it in which everything happens at once, so that a failure is the same in each run.
//!
//! A power cut keeps what was synced. Of what was written and not synced it keeps any of the sectors (64 bytes here, smaller than any real one,
//! so that small writes are torn too); of the names that were changed and not synced, the first few changes; of a length that was not
//! synced, the old or the new one.
//!
//! ```
//! use std::sync::Arc;
//!
//! use unanimous::log::FileLog;
//! use unanimous::{Decider, DecisionLog, DecisionRecord, Known, Note};
//! use unanimous_testing::disk::{Fault, TestDisk, TestEnv};
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let open = |disk: &TestDisk, seed| {
//!     // A small log, since each cut copies the disk.
//!     FileLog::options().max_size(64 << 10).disk(Arc::new(disk.clone())).env(TestEnv::new(seed)).open("log")
//! };
//! let decision = |transaction| DecisionRecord { transaction, participants: vec![], decided_at: 0, note: Note::default() };
//!
//! let disk = TestDisk::default();
//! let log = open(&disk, 1).await?;
//! let [first, second] = [1, 2].map(|sequence| log.owner().transaction(sequence));
//! log.decide(decision(first)).await?;
//! disk.fail(Fault::NextSync);
//! assert!(log.decide(decision(second)).await.is_err());
//!
//! // The power fails: whatever it keeps, what was acknowledged is there.
//! for seed in 0..100 {
//!     let log = open(&disk.after_power_cut(seed), 2).await?;
//!     assert_eq!(log.lookup(first).await?, Known::Commit(decision(first)));
//! }
//! # Ok::<(), unanimous::BoxError>(())
//! # })?;
//! # Ok::<(), unanimous::BoxError>(())
//! ```
//!
//! Must not know what a log writes.

mod env;
mod files;
mod state;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use env::TestEnv;

use crate::memory::lock;
use crate::rng::Rng;
use state::{Content, Gate, State, keep_sectors};

/// What happened to the disk, in order. Reads are not listed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A file was made.
    Create(String),
    /// A file got its length.
    Preallocate(String),
    /// A file was written at this byte.
    Write(String, u64),
    /// What was written to a file was synced.
    SyncData(String),
    /// The same, with its length.
    SyncAll(String),
    /// A file got another name: from, to.
    Rename(String, String),
    /// A file was removed.
    Remove(String),
    /// The names of a folder were synced.
    SyncFolder,
}

/// What goes wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
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

/// A disk for a decision log, which is told what goes wrong. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct TestDisk {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl TestDisk {
    /// What happened so far, in order.
    pub fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// Forgets what happened.
    pub fn clear_events(&self) {
        self.lock().events.clear();
    }

    /// The power goes off after this many more operations.
    pub fn power_off_after(&self, operations: usize) {
        self.lock().operations_left = Some(operations);
    }

    /// The next operation of this kind goes wrong, once. The last fault that it was told counts.
    pub fn fail(&self, fault: Fault) {
        self.lock().fault = Some(fault);
    }

    /// All files together may have this many bytes; more is a full disk. None: as many as they want.
    pub fn limit(&self, capacity: Option<u64>) {
        self.lock().capacity = capacity;
    }

    /// The bytes that all files have together.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// The names in a folder, in order.
    ///
    /// # Panics
    ///
    /// When it was never opened.
    pub fn names(&self, path: &str) -> Vec<String> {
        let state = self.lock();
        let folder = state.folders.get(Path::new(path)).expect("a folder that was opened");
        state.content[folder].names.keys().cloned().collect()
    }

    /// Puts another, empty folder in a folder's place.
    pub fn replace_folder(&self, path: &str) {
        let mut state = self.lock();
        let id = state.id();
        state.content.insert(id, Content::default());
        state.folders.insert(PathBuf::from(path), id);
    }

    /// From now on syncs of data wait for [`let_through`](Self::let_through); one that waits for 20 s panics.
    pub fn close_gate(&self) {
        self.lock().gate = Some(Gate::default());
    }

    /// Waits until a sync waits at the gate. Blocks its thread.
    ///
    /// # Panics
    ///
    /// When none comes within a minute.
    pub fn sync_is_waiting(&self) {
        let waiting = |state: &mut State| state.gate.is_none_or(|gate| gate.waiting == 0);
        let limit = Duration::from_secs(60);
        let (_state, timeout) =
            self.shared.changed.wait_timeout_while(self.lock(), limit, waiting).unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "no sync came to the gate within a minute");
    }

    /// Lets one sync through the gate.
    pub fn let_through(&self) {
        if let Some(gate) = &mut self.lock().gate {
            gate.passes += 1;
        }
        self.shared.changed.notify_all();
    }

    /// What another process finds when this one was killed: everything that was written, synced or not; no locks.
    pub fn after_kill(&self) -> TestDisk {
        let mut state = self.lock().clone();
        state.content.values_mut().for_each(|content| content.locked = false);
        (state.operations_left, state.fault, state.gate) = (None, None, None);
        state.events.clear();
        Self::with(state)
    }

    /// What is found when the power comes back; the seed chooses what is kept of what was not synced.
    pub fn after_power_cut(&self, seed: u64) -> TestDisk {
        let mut random = Rng::new(seed);
        let disk = self.after_kill();
        {
            let mut state = disk.lock();
            for content in state.content.values_mut() {
                let kept = random.between(0, content.changes.len() as u64) as usize;
                content.changes.drain(..).take(kept).for_each(|change| change.apply(&mut content.durable));
                content.names = content.durable.clone();
            }
            for file in state.files.values_mut() {
                if random.chance(1, 2) {
                    file.durable.resize(file.bytes.len(), 0);
                }
                let everything = random.chance(1, 4);
                for (offset, bytes) in file.unsynced.drain(..) {
                    keep_sectors(&mut file.durable, offset, &bytes, |_| everything || random.chance(1, 2));
                }
                file.bytes = file.durable.clone();
            }
        }
        disk
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    fn with(state: State) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }
}
