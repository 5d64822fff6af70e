//! What the tests of the manager stand on: a store in memory, a log in memory, and one journal that both write into.
//!
//! Store and log keep their state apart from the handles that a manager is built with, so a test "restarts" a manager by dropping
//! it and building another over clones of the same handles. Every call of the three traits is journaled as it starts, and any of
//! them can be told to fail, to lose its answer before or after it did its work, to panic, or to wait until it is released.

pub(crate) mod faults;
pub(crate) mod journal;
pub(crate) mod log;
pub(crate) mod store;
pub(crate) mod warnings;

use std::time::Duration;

use unanimous::{Builder, Capability, CommitError, TransactionManager};

pub(crate) use faults::{Call, Fault};
pub(crate) use journal::Journal;
pub(crate) use log::{JournalLog, KeptLog, LogDisk};
pub(crate) use store::MemoryStore;

/// Longer than anything that a test waits for. Under tokio's paused clock it passes at once where nothing else can happen.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A journal, a log's disk and stores that outlive the managers built over them.
pub(crate) struct World {
    pub(crate) journal: Journal,
    pub(crate) disk: LogDisk,
    stores: Vec<MemoryStore>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { journal: Journal::default(), disk: LogDisk::new(1), stores: Vec::new() }
    }

    /// A store that every manager of this world gets.
    pub(crate) fn store(&mut self, name: &str, capability: Capability) -> MemoryStore {
        let store = MemoryStore::new(name, capability, &self.journal);
        self.stores.push(store.clone());
        store
    }

    pub(crate) fn two_phase(&mut self, name: &str) -> MemoryStore {
        self.store(name, Capability::TwoPhase)
    }

    pub(crate) fn carrier(&mut self, name: &str) -> MemoryStore {
        self.store(name, Capability::Carrier)
    }

    /// A builder over the log's next incarnation and all stores.
    pub(crate) fn builder(&self) -> (Builder, JournalLog<KeptLog>) {
        let log = JournalLog::new(self.disk.open(), &self.journal);
        let builder = TransactionManager::builder(log.clone());
        (self.stores.iter().fold(builder, |builder, store| builder.resource(store.clone())), log)
    }

    /// Starts a manager with the default options, as a process would that starts, and forgets what starting journaled.
    pub(crate) async fn start(&self) -> (TransactionManager, JournalLog<KeptLog>) {
        let (builder, log) = self.builder();
        let manager = builder.build().await.expect("the manager builds");
        self.journal.clear();
        (manager, log)
    }
}

/// The error of a commit that was surely aborted.
#[track_caller]
pub(crate) fn aborted<T: std::fmt::Debug>(result: Result<T, CommitError>) -> CommitError {
    match result {
        Err(error @ CommitError::Aborted { .. }) => error,
        other => panic!("aborted was expected, and it was {other:?}"),
    }
}

/// The error of a commit whose outcome nobody knows.
#[track_caller]
pub(crate) fn unknown<T: std::fmt::Debug>(result: Result<T, CommitError>) -> CommitError {
    match result {
        Err(error @ CommitError::Unknown { .. }) => error,
        other => panic!("an unknown outcome was expected, and it was {other:?}"),
    }
}

/// What a future gives; fails where it never ends, instead of hanging with it.
pub(crate) async fn ended<F: Future>(future: F) -> F::Output {
    match tokio::time::timeout(LONG, future).await {
        Ok(output) => output,
        Err(_) => panic!("this did not end within {LONG:?}"),
    }
}

/// Waits until something holds, letting tasks run and time pass; fails with `what` when it never does.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waited).await.is_ok(), "this did not happen within {LONG:?}: {what}");
}
