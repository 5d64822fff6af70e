//! An adapter with one bug at a time, and the checks that must see it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use unanimous::{
    BoxError, Branch, BranchContext, BranchError, BranchId, Capability, DecisionRecord, Known, Owner, ResourceManager,
    StoreError, StoreId, TransactionId, Work,
};
use unanimous_testing::conformance::{self, Subject};
use unanimous_testing::memory::{Journal, MemoryBranch, MemoryStore};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// None: it conforms, so what is seen of the others is the bug.
    Nothing,
    /// A repeated commit is an error.
    SecondCommitFails,
    /// Recovery's second rollback is an error.
    SecondRollbackByIdFails,
    /// The branch's number is not kept.
    ForgetsTheNumber,
    /// "node1" claims "node10"'s branches.
    FinishesByPrefix,
    /// The handle lists what it prepared itself, and nothing that it finds.
    ListsFromMemory,
    /// Work after the end goes into a transaction of its own.
    WorksOutside,
    /// What is pending is called nothing.
    SaysReadOnly,
    /// The row goes to the store at once.
    WritesAtOnce,
    /// A prepare that is dropped half-way has left a promise that no rollback of the branch takes back.
    TornPrepare,
    /// What another has written meanwhile stands in the way of a commit that was promised.
    BreaksItsPromise,
    /// Branches and recovery share a few connections.
    OnePool,
    /// The identity is that of the kind of store.
    OneIdentity,
    /// A decision row comes in a transaction of its own, after the work.
    DecidesLater,
    /// Whether a transaction committed is presumed without a fence.
    PresumesWithoutFence,
    /// What an earlier incarnation carried is not listed.
    ForgetsIncarnations,
    /// Whoever only wants to know leaves a fence.
    FencesForTheCurious,
}

struct Buggy {
    store: MemoryStore,
    bug: Bug,
    own: Mutex<Vec<BranchId>>,
    finished: Mutex<Vec<BranchId>>,
    connections: Arc<Semaphore>,
}

impl Buggy {
    async fn connection(&self) -> Option<OwnedSemaphorePermit> {
        match self.bug {
            Bug::OnePool => self.connections.clone().acquire_owned().await.ok(),
            _ => None,
        }
    }
}

struct BuggyBranch {
    branch: MemoryBranch,
    store: MemoryStore,
    bug: Bug,
    ended: AtomicBool,
    committed: AtomicBool,
    prepared: Mutex<Option<BranchId>>,
    written: Mutex<Vec<String>>,
    _connection: Option<OwnedSemaphorePermit>,
}

impl BuggyBranch {
    fn put(&self, key: &str) -> Result<(), BranchError> {
        let outside = self.bug == Bug::WorksOutside && self.ended.load(Ordering::SeqCst);
        if outside || self.bug == Bug::WritesAtOnce {
            self.store.put_now(key);
            return Ok(());
        }
        self.written.lock().unwrap().push(key.to_owned());
        self.branch.put(key)
    }
}

impl ResourceManager for Buggy {
    type Branch = BuggyBranch;
    type Options = ();

    fn name(&self) -> &str {
        "buggy"
    }

    fn capability(&self) -> Capability {
        self.store.capability()
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        match self.bug {
            Bug::OneIdentity => "buggy".parse().map_err(StoreError::new),
            _ => self.store.identity().await,
        }
    }

    async fn begin(&self, context: &BranchContext, (): ()) -> Result<BuggyBranch, BranchError> {
        Ok(BuggyBranch {
            branch: self.store.begin(context, ()).await?,
            store: self.store.clone(),
            bug: self.bug,
            ended: AtomicBool::new(false),
            committed: AtomicBool::new(false),
            prepared: Mutex::default(),
            written: Mutex::default(),
            _connection: self.connection().await,
        })
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        let _connection = self.connection().await;
        let listed = self.store.in_doubt().await?;
        Ok(match self.bug {
            Bug::ForgetsTheNumber => listed.into_iter().map(|id| BranchId { number: 0, ..id }).collect(),
            Bug::ListsFromMemory => {
                let own = self.own.lock().unwrap();
                listed.into_iter().filter(|id| own.contains(id)).collect()
            }
            _ => listed,
        })
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        for listed in self.store.in_doubt().await.map_err(BranchError::refused)? {
            let claimed = listed.gtrid().starts_with(&id.gtrid());
            if listed == *id || (self.bug == Bug::FinishesByPrefix && claimed) {
                self.store.commit(&listed).await?;
            }
        }
        Ok(())
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        self.store.rollback(id).await?;
        let mut finished = self.finished.lock().unwrap();
        if self.bug == Bug::SecondRollbackByIdFails && finished.contains(id) {
            return Err(BranchError::refused("there is no such branch"));
        }
        finished.push(id.clone());
        Ok(())
    }

    async fn decision(&self, transaction: TransactionId, owner: Owner) -> Result<Known, StoreError> {
        if self.bug == Bug::PresumesWithoutFence && self.store.unfinished(owner).await?.is_empty() {
            return Ok(Known::Abort);
        }
        self.store.decision(transaction, owner).await
    }

    async fn decided(&self, transaction: TransactionId, owner: Owner) -> Result<Option<Known>, StoreError> {
        if self.bug == Bug::FencesForTheCurious {
            self.store.decision(transaction, transaction.owner()).await?;
            return Ok(None);
        }
        self.store.decided(transaction, owner).await
    }

    async fn unfinished(&self, owner: Owner) -> Result<Vec<DecisionRecord>, StoreError> {
        let mut listed = self.store.unfinished(owner).await?;
        if self.bug == Bug::ForgetsIncarnations {
            listed.retain(|record| record.transaction.owner() == owner);
        }
        Ok(listed)
    }

    fn forget(&self, transaction: TransactionId) {
        self.store.forget(transaction);
    }
}

impl Branch for BuggyBranch {
    fn capability(&self) -> Capability {
        self.branch.capability()
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        let work = self.branch.flush().await?;
        Ok(if self.bug == Bug::SaysReadOnly { Work::ReadOnly } else { work })
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        self.branch.prepare(id).await?;
        // Dropped here, it has prepared and does not know it.
        tokio::task::yield_now().await;
        *self.prepared.lock().unwrap() = Some(id.clone());
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        if self.committed.load(Ordering::SeqCst) && self.bug == Bug::SecondCommitFails {
            return Err(BranchError::refused("there is no such branch"));
        }
        let taken = self.written.lock().unwrap().iter().any(|key| self.store.keys().contains(key));
        if self.bug == Bug::BreaksItsPromise && taken && !self.committed.load(Ordering::SeqCst) {
            return Err(BranchError::refused("it is taken meanwhile"));
        }
        self.branch.commit().await?;
        self.committed.store(true, Ordering::SeqCst);
        self.ended.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        if self.bug == Bug::TornPrepare && self.prepared.lock().unwrap().is_none() {
            return Ok(());
        }
        self.branch.rollback().await?;
        self.ended.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn commit_one_phase(&self, id: &BranchId) -> Result<(), BranchError> {
        self.branch.commit_one_phase(id).await?;
        self.ended.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn commit_carrying(&self, record: &DecisionRecord) -> Result<(), BranchError> {
        if self.bug == Bug::DecidesLater {
            let id = BranchId { transaction: record.transaction, decider: unanimous::DeciderId::Log, number: 0 };
            self.branch.commit_one_phase(&id).await?;
            tokio::task::yield_now().await;
        }
        self.branch.commit_carrying(record).await
    }
}

struct Planted {
    bug: Bug,
    capability: Capability,
    places: AtomicUsize,
}

impl Subject for Planted {
    type Resource = Buggy;
    type Place = MemoryStore;

    async fn place(&self) -> Result<MemoryStore, BoxError> {
        let number = self.places.fetch_add(1, Ordering::Relaxed);
        Ok(MemoryStore::new(&format!("place-{number}"), self.capability, &Journal::default()))
    }

    async fn open(&self, place: &MemoryStore) -> Result<Buggy, BoxError> {
        Ok(Buggy {
            store: place.clone(),
            bug: self.bug,
            own: Mutex::default(),
            finished: Mutex::default(),
            connections: Arc::new(Semaphore::new(8)),
        })
    }

    async fn write(&self, branch: &BuggyBranch, key: &str) -> Result<(), BoxError> {
        Ok(branch.put(key)?)
    }

    async fn is_there(&self, place: &MemoryStore, key: &str) -> Result<bool, BoxError> {
        Ok(place.keys().iter().any(|known| known == key))
    }
}

/// Each bug is seen, by a check that says what is wrong.
#[tokio::test(start_paused = true)]
async fn every_planted_bug_is_seen_by_name() {
    let two_phase = Capability::TwoPhase;
    let carrier = Capability::Carrier;
    for (bug, capability, check, says) in [
        (Bug::SecondCommitFails, two_phase, "branch::a_prepared_branch_commits", "commit twice failed"),
        (
            Bug::SecondRollbackByIdFails,
            two_phase,
            "two_phase::recovery_rolls_back_by_the_id_alone",
            "rollback by id twice failed",
        ),
        (Bug::ForgetsTheNumber, two_phase, "two_phase::a_prepared_branch_is_listed_by_its_id", "and should list"),
        (Bug::FinishesByPrefix, two_phase, "two_phase::transactions_are_apart", "has committed"),
        (Bug::ListsFromMemory, two_phase, "two_phase::a_prepared_branch_is_listed_by_its_id", "and should list"),
        (Bug::WorksOutside, two_phase, "branch::nothing_works_after_the_end", "though it was not committed"),
        (Bug::SaysReadOnly, two_phase, "branch::what_wrote_says_so_and_is_not_seen", "ReadOnly"),
        (Bug::WritesAtOnce, two_phase, "branch::rollback_leaves_nothing", "though it was not committed"),
        (Bug::TornPrepare, two_phase, "cancel::prepare", "which its branch has rolled back"),
        (Bug::BreaksItsPromise, two_phase, "two_phase::a_promise_holds", "it is taken meanwhile"),
        (Bug::OnePool, two_phase, "two_phase::recovery_does_not_wait_for_branches", "beside 8 branches"),
        (Bug::OneIdentity, two_phase, "branch::the_store_keeps_its_identity", "another store has the same identity"),
        (Bug::DecidesLater, carrier, "carrier::a_fence_keeps_the_late_one_out", "though it was not committed"),
        (Bug::DecidesLater, carrier, "cancel::commit_carrying", "that key"),
        (Bug::PresumesWithoutFence, carrier, "carrier::a_fence_keeps_the_late_one_out", "a carrier that was fenced"),
        (Bug::FencesForTheCurious, carrier, "carrier::who_only_asks_changes_nothing", "after somebody has asked"),
        (Bug::ForgetsIncarnations, carrier, "carrier::another_log_is_not_answered_for", "next incarnation"),
    ] {
        let report = conformance::report(Planted { bug, capability, places: AtomicUsize::new(0) }).await;
        let seen = report.failed.iter().find(|failure| failure.check == check);
        let seen = seen.unwrap_or_else(|| panic!("{bug:?} is not seen by {check}: {report}"));
        assert!(seen.what.contains(says), "{bug:?} is told as: {seen}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_bug_it_conforms() {
    for capability in [Capability::TwoPhase, Capability::Carrier, Capability::OnePhase, Capability::Volatile] {
        conformance::run(Planted { bug: Bug::Nothing, capability, places: AtomicUsize::new(0) }).await;
    }
}

#[tokio::test(start_paused = true)]
#[should_panic = "the adapter does not conform"]
async fn run_panics_with_what_failed() {
    let capability = Capability::TwoPhase;
    conformance::run(Planted { bug: Bug::OneIdentity, capability, places: AtomicUsize::new(0) }).await;
}
