//! Savepoints: a part of a transaction is undone in all its branches, and the transaction goes on.
//!
//! Must not know how a store undoes anything, nor how a transaction ends.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use unanimous_core::{BranchError, SavepointId};

use crate::dispatch::DynBranch;
use crate::error::SavepointError;
use crate::sync::lock;
use crate::transaction::{Lease, Shared, State, Tx};

/// The savepoints of one transaction.
#[derive(Default)]
pub(crate) struct Savepoints {
    /// The number of the last one that was begun: a branch that joins from then on is younger than it.
    pub(crate) last: u64,
    /// Those that can be rolled back to, in ascending order.
    valid: Vec<SavepointId>,
    /// What left the transaction in a state that nobody knows: it can only be aborted.
    pub(crate) failed: Option<SavepointError>,
}

type Branches = Vec<(String, Arc<dyn DynBranch>)>;

impl Tx {
    /// Remembers the state of all branches, so that what is done from now on can be undone by [`Savepoint::rollback`].
    ///
    #[cfg_attr(feature = "files", doc = include_str!("docs/savepoint.md"))]
    ///
    /// It holds up other joins and savepoints of this transaction meanwhile, and counts as a guard: a commit that starts before it has
    /// ended aborts. Work that other tasks do through their guards at this time may fall on either side.
    ///
    /// # Errors
    ///
    /// [`SavepointError::Unsupported`], before anything was done, where a branch has no savepoints: the transaction goes on, and
    /// [`savepoint_optimistic`](Self::savepoint_optimistic) would have been possible. [`SavepointError::Store`] fails the transaction:
    /// from then on it can only be aborted.
    ///
    /// # Cancel safety
    ///
    /// Dropped, there is no savepoint, and the transaction goes on.
    pub async fn savepoint(&self) -> Result<Savepoint, SavepointError> {
        self.make_savepoint(false).await
    }

    /// The same also where branches have no savepoints, for who will hardly roll back: the rollback is what fails then.
    ///
    /// # Errors
    ///
    /// As [`savepoint`](Self::savepoint), without `Unsupported`.
    ///
    /// # Cancel safety
    ///
    /// As [`savepoint`](Self::savepoint).
    pub async fn savepoint_optimistic(&self) -> Result<Savepoint, SavepointError> {
        self.make_savepoint(true).await
    }

    async fn make_savepoint(&self, optimistic: bool) -> Result<Savepoint, SavepointError> {
        let shared = &self.shared;
        let _lease = shared.hold()?;
        let _no_joins = shared.joining.lock().await;
        let (id, branches) = shared.begin_savepoint(optimistic)?;
        for (resource, branch) in branches {
            if let Err(source) = answered(branch.savepoint(id)).await {
                return Err(shared.fail(SavepointError::Store { resource, source: Arc::new(source) }));
            }
        }
        lock(&shared.state).savepoints.valid.push(id);
        Ok(Savepoint { tx: self.clone(), id })
    }
}

/// A moment in a transaction that can be gone back to, as often as wanted, until the transaction ends or an earlier savepoint is
/// rolled back. Dropping it changes nothing: the stores keep it until the end.
///
/// What belongs to the transaction and not to its branches stays as it is: hooks, annotations, data, doom.
#[must_use = "a savepoint is made to be rolled back to"]
pub struct Savepoint {
    tx: Tx,
    id: SavepointId,
}

impl fmt::Debug for Savepoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Savepoint").field("transaction", &self.tx.id()).field("id", &self.id).finish()
    }
}

impl Savepoint {
    /// Undoes in all branches what was done since. A branch that has joined since is rolled back and leaves the transaction: its guards
    /// are dead, and it can be joined anew. Savepoints that were made since are not valid any more; this one still is.
    ///
    /// It holds up joins and counts as a guard, as [`Tx::savepoint`] does.
    ///
    /// # Errors
    ///
    /// [`SavepointError::Invalid`] and [`SavepointError::NotActive`] change nothing. Every other fails the transaction, from then on it can
    /// only be aborted: [`SavepointError::Unsupported`] where a branch that has no savepoints was there when this one was made
    /// (nothing was undone then), [`SavepointError::Store`] (nobody knows what was).
    ///
    /// # Cancel safety
    ///
    /// Dropped before its end, it fails the transaction: nobody knows what was undone.
    pub async fn rollback(&self) -> Result<(), SavepointError> {
        let shared = &self.tx.shared;
        let _lease = shared.hold()?;
        let _no_joins = shared.joining.lock().await;
        let (before, since) = shared.begin_rollback(self.id)?;
        let mut halfway = Halfway { shared, armed: true };
        let done = shared.roll_back(self.id, before, since).await;
        halfway.armed = false;
        done
    }

    /// Whether it can be rolled back to: neither has its transaction ended or failed, nor was an earlier savepoint rolled back.
    pub fn is_valid(&self) -> bool {
        let shared = &self.tx.shared;
        let state = lock(&shared.state);
        shared.usable(&state).is_ok() && state.savepoints.valid.contains(&self.id)
    }
}

/// Fails the transaction where a rollback is dropped before its end.
struct Halfway<'s> {
    shared: &'s Shared,
    armed: bool,
}

impl Drop for Halfway<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.shared.fail(SavepointError::Interrupted);
        }
    }
}

impl Shared {
    fn usable(&self, state: &State) -> Result<(), SavepointError> {
        if state.savepoints.failed.is_some() {
            Err(SavepointError::Failed { id: self.id })
        } else if let Some(why) = self.why_not_open(state) {
            Err(SavepointError::NotActive { id: self.id, why })
        } else {
            Ok(())
        }
    }

    /// Keeps the commit from starting.
    fn hold(self: &Arc<Self>) -> Result<Lease, SavepointError> {
        let mut state = lock(&self.state);
        self.usable(&state)?;
        Ok(self.count_lease(&mut state))
    }

    fn begin_savepoint(&self, optimistic: bool) -> Result<(SavepointId, Branches), SavepointError> {
        let mut state = lock(&self.state);
        self.usable(&state)?;
        let slots = state.slots.iter();
        let (able, unable): (Vec<_>, Vec<_>) = slots.partition(|slot| slot.branch.has_savepoints());
        if !optimistic && !unable.is_empty() {
            let resources = unable.iter().map(|slot| slot.name.clone()).collect();
            return Err(SavepointError::Unsupported { resources });
        }
        let branches = able.iter().map(|slot| (slot.name.clone(), slot.branch.clone())).collect();
        state.savepoints.last += 1;
        Ok((SavepointId(state.savepoints.last), branches))
    }

    /// The branches that were there before a savepoint, and those that have joined since.
    fn begin_rollback(&self, id: SavepointId) -> Result<(Branches, Branches), SavepointError> {
        let mut state = lock(&self.state);
        self.usable(&state)?;
        if !state.savepoints.valid.contains(&id) {
            return Err(SavepointError::Invalid { id: self.id });
        }
        let (before, since): (Vec<_>, Vec<_>) = state.slots.iter().partition(|slot| slot.savepoint < id.0);
        let unable = before.iter().filter(|slot| !slot.branch.has_savepoints());
        let resources: Vec<_> = unable.map(|slot| slot.name.clone()).collect();
        let listed = |slots: Vec<&crate::transaction::Slot>| -> Branches {
            slots.iter().map(|slot| (slot.name.clone(), slot.branch.clone())).collect()
        };
        let (before, since) = (listed(before), listed(since));
        if !resources.is_empty() {
            drop(state);
            return Err(self.fail(SavepointError::Unsupported { resources }));
        }
        state.savepoints.valid.retain(|other| *other <= id);
        Ok((before, since))
    }

    /// One after the other, in the order of joining.
    async fn roll_back(&self, id: SavepointId, before: Branches, since: Branches) -> Result<(), SavepointError> {
        let failed = |resource, source| self.fail(SavepointError::Store { resource, source: Arc::new(source) });
        for (resource, branch) in before {
            answered(branch.rollback_to(id)).await.map_err(|source| failed(resource, source))?;
        }
        for (resource, branch) in since {
            // Also where no guard is out: one can still be had until the branch has left.
            branch.revoke();
            answered(branch.rollback()).await.map_err(|source| failed(resource, source))?;
            self.unjoin(&branch);
        }
        Ok(())
    }

    /// Unless it was taken meanwhile, by the time limit.
    fn unjoin(&self, branch: &Arc<dyn DynBranch>) {
        let mut state = lock(&self.state);
        let Some(i) = state.slots.iter().position(|slot| Arc::ptr_eq(&slot.branch, branch)) else { return };
        let left = state.slots.remove(i);
        if state.slots.is_empty() {
            self.manager.open.remove();
        }
        drop(state);
        // Outside of the lock: a store's branch does things when it is dropped.
        drop(left);
    }

    /// The first failure counts.
    fn fail(&self, error: SavepointError) -> SavepointError {
        tracing::debug!(transaction = %self.id, error = &error as &(dyn std::error::Error + 'static),
            "a savepoint failed; the transaction can only be aborted");
        lock(&self.state).savepoints.failed.get_or_insert_with(|| error.clone());
        error
    }
}

/// A branch's answer; a panic is a lost one.
async fn answered(call: impl Future<Output = Result<(), BranchError>>) -> Result<(), BranchError> {
    let result = AssertUnwindSafe(call).catch_unwind().await;
    result.unwrap_or_else(|_panic| Err(BranchError::lost("the branch panicked")))
}
