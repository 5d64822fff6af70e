//! What is to go wrong at which call.
//!
//! Faults of one call queue up and are used one for each call; a standing fault is for every call without one in the queue. A hold
//! does not use the call up: what follows it in the queue happens to the same call once it is released.
//!
//! Must not know what a call does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::{LONG, lock};

/// A call of one of the three traits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Call {
    /// [`ResourceManager::identity`](unanimous::ResourceManager::identity).
    Identity,
    /// [`ResourceManager::begin`](unanimous::ResourceManager::begin).
    Begin,
    /// [`Branch::flush`](unanimous::Branch::flush).
    Flush,
    /// [`Branch::prepare`](unanimous::Branch::prepare).
    Prepare,
    /// [`Branch::commit`](unanimous::Branch::commit).
    Commit,
    /// [`Branch::rollback`](unanimous::Branch::rollback).
    Rollback,
    /// [`Branch::commit_one_phase`](unanimous::Branch::commit_one_phase).
    CommitOnePhase,
    /// [`Branch::commit_carrying`](unanimous::Branch::commit_carrying).
    CommitCarrying,
    /// [`Branch::savepoint`](unanimous::Branch::savepoint).
    Savepoint,
    /// [`Branch::rollback_to`](unanimous::Branch::rollback_to).
    RollbackTo,
    /// [`ResourceManager::in_doubt`](unanimous::ResourceManager::in_doubt).
    List,
    /// [`ResourceManager::durably_in_doubt`](unanimous::ResourceManager::durably_in_doubt).
    DurableList,
    /// [`ResourceManager::commit`](unanimous::ResourceManager::commit).
    RecoveredCommit,
    /// [`ResourceManager::rollback`](unanimous::ResourceManager::rollback).
    RecoveredRollback,
    /// [`ResourceManager::decision`](unanimous::ResourceManager::decision) and `unfinished`.
    Decision,
    /// [`DecisionLog::decide`](unanimous::DecisionLog::decide).
    Decide,
}

/// What goes wrong.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing: lets one call through before the next fault.
    Pass,
    /// A definite no that is worth repeating the transaction for.
    Conflict,
    /// A definite no.
    Refused,
    /// No answer, and nothing was done.
    Lost,
    /// No answer, and the work was done.
    LostDone,
    /// A prepare without an answer that lands only when [`MemoryStore::land`](super::MemoryStore::land) is called.
    Late,
    /// A panic before anything was done.
    Panic,
    /// The call waits until it is released.
    Hold(Hold),
}

/// A call that waits until it is released. Clones are the same.
#[derive(Clone, Debug)]
pub struct Hold {
    /// How often it was reached, and whether it is released.
    state: Arc<watch::Sender<(usize, bool)>>,
}

impl Hold {
    fn new() -> Self {
        Self { state: Arc::new(watch::Sender::new((0, false))) }
    }

    /// Waits until a call waits here.
    ///
    /// # Panics
    ///
    /// When none does within [`LONG`].
    pub async fn reached(&self) {
        let mut state = self.state.subscribe();
        let waited = tokio::time::timeout(LONG, state.wait_for(|(reached, _)| *reached > 0));
        assert!(waited.await.is_ok(), "no call reached the hold within {LONG:?}");
    }

    /// Lets this call and all that come later go on.
    pub fn release(&self) {
        self.state.send_modify(|(_, released)| *released = true);
    }

    async fn wait(&self) {
        self.state.send_modify(|(reached, _)| *reached += 1);
        let mut state = self.state.subscribe();
        // The sender is in self, so it can't be closed.
        let _ = state.wait_for(|(_, released)| *released).await;
    }
}

#[derive(Debug, Default)]
pub(crate) struct Faults {
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    queued: BTreeMap<Call, VecDeque<Fault>>,
    standing: BTreeMap<Call, Fault>,
    /// How often every call gives way to others before it goes on.
    yields: usize,
}

impl Faults {
    pub(crate) fn queue(&self, call: Call, fault: Fault) {
        lock(&self.plan).queued.entry(call).or_default().push_back(fault);
    }

    pub(crate) fn stand(&self, call: Call, fault: Fault) {
        lock(&self.plan).standing.insert(call, fault);
    }

    pub(crate) fn heal(&self, call: Call) {
        let mut plan = lock(&self.plan);
        plan.queued.remove(&call);
        plan.standing.remove(&call);
    }

    pub(crate) fn set_slow(&self, yields: usize) {
        lock(&self.plan).yields = yields;
    }

    pub(crate) fn hold(&self, call: Call) -> Hold {
        let hold = Hold::new();
        self.queue(call, Fault::Hold(hold.clone()));
        hold
    }

    pub(crate) fn hold_always(&self, call: Call) -> Hold {
        let hold = Hold::new();
        self.stand(call, Fault::Hold(hold.clone()));
        hold
    }

    /// Waits where the call is held, then says what goes wrong; [`Fault::Pass`] where nothing does.
    pub(crate) async fn at(&self, call: Call) -> Fault {
        let yields = lock(&self.plan).yields;
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        loop {
            let queued = lock(&self.plan).queued.get_mut(&call).and_then(VecDeque::pop_front);
            match queued {
                Some(Fault::Hold(hold)) => hold.wait().await,
                Some(fault) => return fault,
                None => break,
            }
        }
        let standing = lock(&self.plan).standing.get(&call).cloned();
        match standing {
            Some(Fault::Hold(hold)) => {
                hold.wait().await;
                Fault::Pass
            }
            other => other.unwrap_or(Fault::Pass),
        }
    }
}
