//! What the tests of plain threads stand on: a manager over stores in memory, built on a thread without a runtime.

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use unanimous::thread::{Background, ThreadError, ThreadManager, ThreadTx};
use unanimous::{Branch, BranchError, BranchId, Builder, CommitError, TransactionManager, Work};

use unanimous_testing::memory::Hold;

use crate::support::{JournalLog, MemoryStore, World};

pub(crate) fn here() -> ThreadId {
    thread::current().id()
}

/// A manager and what it stands on.
pub(crate) struct Plain {
    pub(crate) world: World,
    pub(crate) background: Background,
    pub(crate) manager: ThreadManager,
}

impl Plain {
    pub(crate) fn over(stores: &[&MemoryStore], world: World) -> Self {
        Self::with(stores, world, |builder| builder)
    }

    /// Over these stores, which need not be the world's own.
    pub(crate) fn with(stores: &[&MemoryStore], world: World, tune: impl FnOnce(Builder) -> Builder) -> Self {
        let background = Background::start().unwrap();
        let builder = TransactionManager::builder(JournalLog::new(world.disk.open(), &world.journal));
        let builder = stores.iter().fold(builder, |builder, store| builder.resource((*store).clone()));
        let manager = ThreadManager::new(background.build(tune(builder)).unwrap());
        world.journal.clear();
        Self { world, background, manager }
    }

    /// A transaction that wrote into these stores, with the journal empty.
    pub(crate) fn wrote(&self, stores: &[&MemoryStore]) -> ThreadTx {
        let tx = self.manager.begin().unwrap();
        for store in stores {
            tx.join(*store).unwrap().put("row").unwrap();
        }
        self.world.journal.clear();
        tx
    }

    pub(crate) fn acts(&self) -> Vec<String> {
        self.world.journal.acts()
    }

    /// Waits for a line of the journal.
    pub(crate) fn until(&self, line: &str) {
        self.background.open(self.world.journal.until(line));
    }

    /// Waits, for a minute at most, until a store has committed a row.
    pub(crate) fn until_kept(&self, store: &MemoryStore, key: &str) {
        let start = Instant::now();
        while !store.keys().iter().any(|kept| kept == key) {
            assert!(start.elapsed() < Duration::from_secs(60), "{key:?} was not committed: {:?}", self.acts());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Does something on this thread; what has acted by the time that a call waits is looked at from another, which lets it go on.
    pub(crate) fn held<T>(&self, hold: &Hold, what: impl FnOnce() -> T) -> (T, Vec<String>) {
        thread::scope(|threads| {
            let looked = threads.spawn(|| {
                self.background.open(hold.reached());
                let acts = self.acts();
                hold.release();
                acts
            });
            (what(), looked.join().unwrap())
        })
    }
}

/// The error of a commit that was surely aborted.
#[track_caller]
pub(crate) fn aborted<T: std::fmt::Debug>(result: Result<T, ThreadError>) -> CommitError {
    match result {
        Err(ThreadError::Commit(error @ CommitError::Aborted { .. })) => error,
        other => panic!("aborted was expected, and it was {other:?}"),
    }
}

/// What a branch saw at a call: its name, the thread, and whether a runtime was there.
pub(crate) type Seen = Arc<Mutex<Vec<(&'static str, ThreadId, bool)>>>;

/// A volatile branch that looks where it runs.
pub(crate) struct Witness {
    pub(crate) seen: Seen,
}

impl Witness {
    fn saw(&self, call: &'static str) {
        let runtime = tokio::runtime::Handle::try_current().is_ok();
        self.seen.lock().unwrap().push((call, here(), runtime));
    }
}

impl Branch for Witness {
    async fn flush(&self) -> Result<Work, BranchError> {
        self.saw("flush");
        Ok(Work::Wrote)
    }

    async fn prepare(&self, _id: &BranchId) -> Result<(), BranchError> {
        self.saw("prepare");
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        self.saw("commit");
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        self.saw("rollback");
        Ok(())
    }
}
