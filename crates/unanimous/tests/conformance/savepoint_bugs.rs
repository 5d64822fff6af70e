//! An adapter whose savepoints have one bug at a time, and the checks that must see it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use unanimous::{
    BoxError, Branch, BranchContext, BranchError, BranchId, Capability, ResourceManager, SavepointId, StoreError,
    StoreId, TransactionId, Work,
};
use unanimous_testing::conformance::{self, Subject};
use unanimous_testing::memory::{Journal, MemoryBranch, MemoryStore};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    Nothing,
    /// A rollback does nothing.
    UndoesNothing,
    /// A rollback undoes all that the branch did.
    UndoesAll,
    /// A rollback goes to the last savepoint, whichever was asked for.
    UndoesToTheLast,
    /// What was written once can't be written again, though it was undone.
    RemembersTheUndone,
    /// A savepoint that was rolled back to is gone.
    UsedUp,
    /// A rollback to what was forgotten is quietly done.
    IgnoresWhatIsForgotten,
    /// What was done since a savepoint is left out by the vote.
    VotesForTheSavepoint,
    /// A branch of which all was undone can't vote.
    NothingIsNoVote,
    /// It says that it has savepoints, and has none.
    OnlySaysSo,
    /// A call that was dropped half-way leaves the branch busy for good.
    StaysBusy,
    /// A transaction has one branch, also when that has left.
    OneForEachTransaction,
}

struct Buggy {
    store: MemoryStore,
    bug: Bug,
    begun: Arc<Mutex<BTreeSet<TransactionId>>>,
}

struct BuggyBranch {
    branch: MemoryBranch,
    bug: Bug,
    last: AtomicU64,
    busy: AtomicBool,
    undone: AtomicBool,
    used: Mutex<BTreeSet<SavepointId>>,
    written: Mutex<BTreeSet<String>>,
}

/// Before everything that the work does.
const START: SavepointId = SavepointId(0);

impl BuggyBranch {
    fn put(&self, key: &str) -> Result<(), BranchError> {
        self.not_busy()?;
        if !self.written.lock().unwrap().insert(key.to_owned()) && self.bug == Bug::RemembersTheUndone {
            return Err(BranchError::refused("it was written already"));
        }
        self.branch.put(key)
    }

    fn not_busy(&self) -> Result<(), BranchError> {
        if self.bug == Bug::StaysBusy && self.busy.load(Ordering::SeqCst) {
            return Err(BranchError::refused("another call is under way"));
        }
        Ok(())
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
        self.store.identity().await
    }

    async fn begin(&self, context: &BranchContext, (): ()) -> Result<BuggyBranch, BranchError> {
        if !self.begun.lock().unwrap().insert(context.transaction) && self.bug == Bug::OneForEachTransaction {
            return Err(BranchError::refused("it has begun in this transaction"));
        }
        let branch = self.store.begin(context, ()).await?;
        branch.savepoint(START).await?;
        Ok(BuggyBranch {
            branch,
            bug: self.bug,
            last: AtomicU64::new(START.0),
            busy: AtomicBool::new(false),
            undone: AtomicBool::new(false),
            used: Mutex::default(),
            written: Mutex::default(),
        })
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        self.store.in_doubt().await
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        self.store.commit(id).await
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        self.store.rollback(id).await
    }
}

impl Branch for BuggyBranch {
    fn capability(&self) -> Capability {
        self.branch.capability()
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        if self.bug == Bug::VotesForTheSavepoint {
            let last = self.last.load(Ordering::SeqCst);
            if last != START.0 {
                self.branch.rollback_to(SavepointId(last)).await?;
            }
        }
        let work = self.branch.flush().await?;
        if self.bug == Bug::NothingIsNoVote && work == Work::ReadOnly && self.undone.load(Ordering::SeqCst) {
            return Err(BranchError::refused("there is nothing to vote for"));
        }
        Ok(work)
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        self.branch.prepare(id).await
    }

    async fn commit(&self) -> Result<(), BranchError> {
        self.branch.commit().await
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        self.not_busy()?;
        self.branch.rollback().await
    }

    async fn commit_one_phase(&self, id: &BranchId) -> Result<(), BranchError> {
        self.branch.commit_one_phase(id).await
    }

    fn has_savepoints(&self) -> bool {
        true
    }

    async fn savepoint(&self, id: SavepointId) -> Result<(), BranchError> {
        if self.bug == Bug::OnlySaysSo {
            return Err(BranchError::refused("the branch has no savepoints"));
        }
        self.busy.store(true, Ordering::SeqCst);
        self.branch.savepoint(id).await?;
        self.last.store(id.0, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.busy.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn rollback_to(&self, id: SavepointId) -> Result<(), BranchError> {
        if !self.used.lock().unwrap().insert(id) && self.bug == Bug::UsedUp {
            return Err(BranchError::refused("it was rolled back to already"));
        }
        self.busy.store(true, Ordering::SeqCst);
        match self.bug {
            Bug::UndoesNothing => {}
            Bug::UndoesAll => self.branch.rollback_to(START).await?,
            Bug::UndoesToTheLast => self.branch.rollback_to(SavepointId(self.last.load(Ordering::SeqCst))).await?,
            Bug::IgnoresWhatIsForgotten => drop(self.branch.rollback_to(id).await),
            _ => self.branch.rollback_to(id).await?,
        }
        self.undone.store(true, Ordering::SeqCst);
        if self.bug != Bug::UndoesToTheLast {
            self.last.store(id.0, Ordering::SeqCst);
        }
        tokio::task::yield_now().await;
        self.busy.store(false, Ordering::SeqCst);
        Ok(())
    }
}

struct Planted {
    bug: Bug,
    places: AtomicUsize,
}

impl Planted {
    fn new(bug: Bug) -> Self {
        Self { bug, places: AtomicUsize::new(0) }
    }
}

impl Subject for Planted {
    type Resource = Buggy;
    type Place = MemoryStore;

    async fn place(&self) -> Result<MemoryStore, BoxError> {
        let number = self.places.fetch_add(1, Ordering::Relaxed);
        Ok(MemoryStore::new(&format!("place-{number}"), Capability::TwoPhase, &Journal::default()))
    }

    async fn open(&self, place: &MemoryStore) -> Result<Buggy, BoxError> {
        Ok(Buggy { store: place.clone(), bug: self.bug, begun: Arc::default() })
    }

    async fn write(&self, branch: &BuggyBranch, key: &str) -> Result<(), BoxError> {
        Ok(branch.put(key)?)
    }

    async fn is_there(&self, place: &MemoryStore, key: &str) -> Result<bool, BoxError> {
        Ok(place.keys().iter().any(|known| known == key))
    }
}

/// Each check sees a bug that it is there for, and says what is wrong.
#[tokio::test(start_paused = true)]
async fn every_check_of_savepoints_sees_a_bug() {
    let mut seeing = BTreeSet::new();
    for (bug, check, says) in [
        (Bug::UndoesNothing, "savepoints::what_came_after_is_undone", "though it was not committed"),
        (Bug::UndoesAll, "savepoints::what_came_after_is_undone", "is not there"),
        (Bug::OnlySaysSo, "savepoints::what_came_after_is_undone", "savepoint 2 failed"),
        (Bug::RemembersTheUndone, "savepoints::what_was_undone_can_be_done_again", "it was written already"),
        (Bug::UsedUp, "savepoints::it_can_be_rolled_back_to_again", "rollback_to 5 failed"),
        (Bug::UndoesToTheLast, "savepoints::they_nest", "though it was not committed"),
        (Bug::IgnoresWhatIsForgotten, "savepoints::later_ones_are_forgotten", "rollback_to 2 was Ok"),
        (Bug::VotesForTheSavepoint, "savepoints::one_that_is_never_used_changes_nothing", "is not there"),
        (Bug::NothingIsNoVote, "savepoints::all_undone_is_nothing", "nothing to vote for"),
        (Bug::UndoesNothing, "managed::a_savepoint_undoes_in_all_branches", "in the subject"),
        (Bug::VotesForTheSavepoint, "managed::a_savepoint_over_one_without_is_optimistic", "in the subject"),
        (Bug::OneForEachTransaction, "managed::a_rollback_past_the_join_unjoins", "it has begun in this transaction"),
        (Bug::StaysBusy, "cancel::savepoint", "another call is under way"),
        (Bug::StaysBusy, "cancel::rollback_to", "rollback to be Ok"),
    ] {
        let report = conformance::report(Planted::new(bug)).await;
        let seen = report.failed.iter().find(|failure| failure.check == check);
        let seen = seen.unwrap_or_else(|| panic!("{bug:?} is not seen by {check}: {report}"));
        assert!(seen.what.contains(says), "{bug:?} is told as: {seen}");
        seeing.insert(check);
    }
    let report = conformance::run(Planted::new(Bug::Nothing)).await;
    let of_savepoints = |check: &&str| check.contains("savepoint") || check.contains("rollback_to");
    let checks: BTreeSet<_> = report.passed.iter().copied().filter(of_savepoints).collect();
    assert!(checks.is_subset(&seeing), "these checks see no bug: {:?}", checks.difference(&seeing));
}

/// Where branches have no savepoints, the checks are left out, and nothing else is.
#[tokio::test(start_paused = true)]
async fn without_savepoints_their_checks_are_left_out() {
    struct Without(Planted);

    impl Subject for Without {
        type Resource = MemoryStore;
        type Place = MemoryStore;

        async fn place(&self) -> Result<MemoryStore, BoxError> {
            let place = self.0.place().await?;
            place.set_savepoints(false);
            Ok(place)
        }

        async fn open(&self, place: &MemoryStore) -> Result<MemoryStore, BoxError> {
            Ok(place.clone())
        }

        async fn write(&self, branch: &MemoryBranch, key: &str) -> Result<(), BoxError> {
            Ok(branch.put(key)?)
        }

        async fn is_there(&self, place: &MemoryStore, key: &str) -> Result<bool, BoxError> {
            self.0.is_there(place, key).await
        }
    }

    let with = conformance::run(Planted::new(Bug::Nothing)).await;
    let without = conformance::run(Without(Planted::new(Bug::Nothing))).await;
    let left_out: Vec<_> = without.left_out.iter().filter(|(_, why)| why.contains("no savepoints")).collect();
    assert_eq!(left_out.len(), 12, "{without}");
    assert_eq!(without.passed.len() + left_out.len(), with.passed.len(), "{without}");
}
