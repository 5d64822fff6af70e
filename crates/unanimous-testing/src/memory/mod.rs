//! Stores and a log in memory that journal every call and can be told to fail anywhere: for tests of what stands around a
//! transaction, of an adapter's neighbours, and of the manager itself.
//!
//! Store and log keep their state apart from the handles that a manager is built with, so a test "restarts" a manager by dropping
//! it and building another over clones of the same handles. Every call of the three traits is journaled as it starts, and any of
//! them can be told to fail, to lose its answer before or after it did its work, to panic, or to wait until it is released.
//!
//! ```
//! use unanimous_testing::memory::{Call, Fault, World};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
//! let mut world = World::new();
//! let (orders, billing) = (world.two_phase("orders"), world.two_phase("billing"));
//! let (manager, _log) = world.start().await;
//!
//! // What does my code do when the second store says no?
//! billing.fail(Call::Prepare, Fault::Refused);
//! let tx = manager.begin();
//! tx.join(&orders).await?.put("order 1")?;
//! tx.join(&billing).await?.put("invoice 1")?;
//! assert!(tx.commit().await.is_err());
//! assert_eq!((orders.keys().len(), billing.keys().len()), (0, 0));
//!
//! // ... and in which order was it done? The journal has each call as it started; `!` forces a write.
//! world.journal.clear();
//! let tx = manager.begin();
//! tx.join(&orders).await?.put("order 2")?;
//! tx.commit().await?;
//! assert_eq!(world.journal.acts(), ["orders.begin", "orders.flush", "orders.commit-one-phase!"]);
//! # Ok::<(), unanimous::BoxError>(())
//! # })?;
//! # Ok::<(), unanimous::BoxError>(())
//! ```
//!
//! Under tokio's paused clock (`start_paused`, feature `test-util`) the manager's waits cost no time.
//!
//! Must not know any real store.

mod branch;
mod faults;
mod journal;
mod log;
mod store;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use unanimous::{BuildError, Builder, Capability, TransactionManager};

pub use branch::MemoryBranch;
pub(crate) use faults::Faults;
pub use faults::{Call, Fault, Hold};
pub use journal::Journal;
pub use log::{JournalLog, KeptLog, LogDisk};
pub use store::{Deadlock, MemoryStore};

/// Longer than anything that a test waits for: 600 s. Under tokio's paused clock it passes at once where nothing else can happen.
pub const LONG: Duration = Duration::from_secs(600);

/// A journal, a log's disk and stores that outlive the managers built over them.
#[derive(Debug)]
pub struct World {
    /// Where all calls are written down.
    pub journal: Journal,
    /// What the log keeps over restarts.
    pub disk: LogDisk,
    stores: Vec<MemoryStore>,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// A world without stores, with an empty log.
    pub fn new() -> Self {
        Self { journal: Journal::default(), disk: LogDisk::new(1), stores: Vec::new() }
    }

    /// A store that every manager of this world gets.
    ///
    /// # Panics
    ///
    /// As [`MemoryStore::new`].
    pub fn store(&mut self, name: &str, capability: Capability) -> MemoryStore {
        let store = MemoryStore::new(name, capability, &self.journal);
        self.stores.push(store.clone());
        store
    }

    /// A store that can prepare and be recovered.
    ///
    /// # Panics
    ///
    /// As [`MemoryStore::new`].
    pub fn two_phase(&mut self, name: &str) -> MemoryStore {
        self.store(name, Capability::TwoPhase)
    }

    /// A store that can't prepare, and whose commit can carry the decision.
    ///
    /// # Panics
    ///
    /// As [`MemoryStore::new`].
    pub fn carrier(&mut self, name: &str) -> MemoryStore {
        self.store(name, Capability::Carrier)
    }

    /// A builder over the log's next incarnation and all stores; another resource can be added to it.
    pub fn builder(&self) -> (Builder, JournalLog<KeptLog>) {
        let log = JournalLog::new(self.disk.open(), &self.journal);
        let builder = TransactionManager::builder(log.clone());
        (self.stores.iter().fold(builder, |builder, store| builder.resource(store.clone())), log)
    }

    /// Starts a manager with the default options, as a process would that starts, and forgets what starting journaled.
    ///
    /// # Panics
    ///
    /// When the manager can't be built: two stores of one name, or no tokio runtime.
    pub async fn start(&self) -> (TransactionManager, JournalLog<KeptLog>) {
        let (builder, log) = self.builder();
        let manager = builder.build().await.unwrap_or_else(|error: BuildError| panic!("no manager was built: {error}"));
        self.journal.clear();
        (manager, log)
    }
}

/// A panic that a test has asked for may happen while a lock is held; what the lock guards is changed whole or not at all.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
