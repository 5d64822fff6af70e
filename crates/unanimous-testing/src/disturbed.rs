//! Any resource, made to fail where it is told to: answers that are lost before or after the work was done, prepares that land late.
//!
//! ```
//! use unanimous::files::Files;
//! use unanimous_testing::disturbed::Disturbed;
//! use unanimous_testing::memory::{Call, Fault, World};
//!
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path();
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let mut world = World::new();
//! let orders = world.two_phase("orders");
//! let receipts = Disturbed::new(Files::open("receipts", folder).await?);
//! let (builder, _log) = world.builder();
//! let manager = builder.resource(receipts.clone()).build().await?;
//!
//! // The files prepare, and nobody hears of it.
//! receipts.fail(Call::Prepare, Fault::LostDone);
//! let tx = manager.begin();
//! tx.join(&orders).await?.put("1")?;
//! tx.join(&receipts).await?.create("1.json", "{}").await?;
//! assert!(tx.commit().await.is_err());
//! assert!(!folder.join("1.json").exists());
//! # Ok::<(), unanimous::BoxError>(())
//! # })?;
//! # Ok::<(), unanimous::BoxError>(())
//! ```
//!
//! Must not know what the resource does.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use unanimous::{
    Branch, BranchContext, BranchError, BranchId, Capability, DecisionRecord, Known, Owner, ResourceManager,
    SavepointId, StoreError, StoreId, TransactionId, Work,
};

use crate::memory::{Call, Fault, Faults, Hold, lock};

/// A resource that fails where it is told to. Clones are the same.
pub struct Disturbed<R: ResourceManager> {
    resource: Arc<R>,
    shared: Arc<Shared<R>>,
}

struct Shared<R: ResourceManager> {
    name: String,
    faults: Faults,
    /// Prepares that have not landed.
    late: Mutex<Vec<(Arc<R::Branch>, BranchId)>>,
    prepared: Mutex<Vec<BranchId>>,
}

impl<R: ResourceManager> Clone for Disturbed<R> {
    fn clone(&self) -> Self {
        Self { resource: self.resource.clone(), shared: self.shared.clone() }
    }
}

impl<R: ResourceManager> fmt::Debug for Disturbed<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disturbed").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl<R: ResourceManager> Disturbed<R> {
    /// The resource under its own name; nothing fails yet.
    pub fn new(resource: R) -> Self {
        let shared = Shared {
            name: resource.name().to_owned(),
            faults: Faults::default(),
            late: Mutex::default(),
            prepared: Mutex::default(),
        };
        Self { resource: Arc::new(resource), shared: Arc::new(shared) }
    }

    /// The resource itself.
    pub fn resource(&self) -> &R {
        &self.resource
    }

    /// The next call of this kind fails so; repeated, the calls after it.
    pub fn fail(&self, call: Call, fault: Fault) {
        self.shared.faults.queue(call, fault);
    }

    /// Every call of this kind fails so, until it is healed.
    pub fn fail_always(&self, call: Call, fault: Fault) {
        self.shared.faults.stand(call, fault);
    }

    /// Calls of this kind fail no more; what waits goes on only when it is released.
    pub fn heal(&self, call: Call) {
        self.shared.faults.heal(call);
    }

    /// The next call of this kind waits.
    pub fn hold(&self, call: Call) -> Hold {
        self.shared.faults.hold(call)
    }

    /// Lets the prepares that were [late](Fault::Late) reach the resource now.
    ///
    /// # Errors
    ///
    /// The first error of one of them.
    pub async fn land(&self) -> Result<(), BranchError> {
        let late = std::mem::take(&mut *lock(&self.shared.late));
        for (branch, id) in late {
            branch.prepare(&id).await?;
        }
        Ok(())
    }

    /// The ids that branches were told to prepare under, in order.
    pub fn ids(&self) -> Vec<BranchId> {
        lock(&self.shared.prepared).clone()
    }
}

impl<R: ResourceManager> Shared<R> {
    async fn call<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, BranchError>> + Send,
    ) -> Result<T, BranchError> {
        let fault = self.faults.at(call).await;
        self.answer(call, fault, work).await
    }

    async fn answer<T>(
        &self,
        call: Call,
        fault: Fault,
        work: impl Future<Output = Result<T, BranchError>> + Send,
    ) -> Result<T, BranchError> {
        let text = |word: &str| format!("{}: {call:?}: {word}", self.name);
        match fault {
            Fault::Pass | Fault::Hold(_) => work.await,
            Fault::Conflict => Err(BranchError::conflict(text("conflict"))),
            Fault::Refused => Err(BranchError::refused(text("refused"))),
            Fault::Lost => Err(BranchError::lost(text("lost"))),
            Fault::LostDone | Fault::Late => {
                work.await?;
                Err(BranchError::lost(text("lost, done")))
            }
            Fault::Panic => panic!("{}", text("panic")),
        }
    }

    /// The same for calls that only look.
    async fn look<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        match self.faults.at(call).await {
            Fault::Pass | Fault::Hold(_) => work.await,
            Fault::Panic => panic!("{}: {call:?}: panic", self.name),
            _ => Err(StoreError::new(format!("{}: {call:?} failed", self.name))),
        }
    }
}

impl<R: ResourceManager> ResourceManager for Disturbed<R> {
    type Branch = DisturbedBranch<R>;
    type Options = R::Options;

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn capability(&self) -> Capability {
        self.resource.capability()
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        self.shared.look(Call::Identity, self.resource.identity()).await
    }

    async fn begin(&self, context: &BranchContext, options: R::Options) -> Result<Self::Branch, BranchError> {
        let branch = self.shared.call(Call::Begin, self.resource.begin(context, options)).await?;
        Ok(DisturbedBranch { branch: Arc::new(branch), shared: self.shared.clone() })
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        self.shared.look(Call::List, self.resource.in_doubt()).await
    }

    fn durably_in_doubt(&self) -> Option<impl Future<Output = Result<Vec<BranchId>, StoreError>> + Send> {
        self.resource.durably_in_doubt().map(|list| self.shared.look(Call::DurableList, list))
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        self.shared.call(Call::RecoveredCommit, self.resource.commit(id)).await
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        self.shared.call(Call::RecoveredRollback, self.resource.rollback(id)).await
    }

    async fn decision(&self, transaction: TransactionId, owner: Owner) -> Result<Known, StoreError> {
        self.shared.look(Call::Decision, self.resource.decision(transaction, owner)).await
    }

    async fn decided(&self, transaction: TransactionId, owner: Owner) -> Result<Option<Known>, StoreError> {
        self.shared.look(Call::Decision, self.resource.decided(transaction, owner)).await
    }

    async fn unfinished(&self, owner: Owner) -> Result<Vec<DecisionRecord>, StoreError> {
        self.shared.look(Call::Decision, self.resource.unfinished(owner)).await
    }

    fn forget(&self, transaction: TransactionId) {
        self.resource.forget(transaction);
    }
}

/// A branch that fails where its resource is told to; it dereferences to the resource's own branch.
pub struct DisturbedBranch<R: ResourceManager> {
    branch: Arc<R::Branch>,
    shared: Arc<Shared<R>>,
}

impl<R: ResourceManager> fmt::Debug for DisturbedBranch<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DisturbedBranch").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl<R: ResourceManager> Deref for DisturbedBranch<R> {
    type Target = R::Branch;

    fn deref(&self) -> &R::Branch {
        &self.branch
    }
}

impl<R: ResourceManager> DisturbedBranch<R> {
    /// What goes wrong with a commit that was not prepared. Lost before it was done, it went with its session, which the store rolls
    /// back: nobody asks what became of it while it still holds its locks.
    async fn alone(&self, call: Call) -> Fault {
        let fault = self.shared.faults.at(call).await;
        if matches!(fault, Fault::Lost) {
            // The answer is lost too.
            let _ = self.branch.rollback().await;
        }
        fault
    }
}

impl<R: ResourceManager> Branch for DisturbedBranch<R> {
    fn capability(&self) -> Capability {
        self.branch.capability()
    }

    fn sort_key(&self) -> String {
        self.branch.sort_key()
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        self.shared.call(Call::Flush, self.branch.flush()).await
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        lock(&self.shared.prepared).push(id.clone());
        match self.shared.faults.at(Call::Prepare).await {
            Fault::Late => {
                lock(&self.shared.late).push((self.branch.clone(), id.clone()));
                Err(BranchError::lost(format!("{}: Prepare: lost, late", self.shared.name)))
            }
            fault => self.shared.answer(Call::Prepare, fault, self.branch.prepare(id)).await,
        }
    }

    async fn commit(&self) -> Result<(), BranchError> {
        self.shared.call(Call::Commit, self.branch.commit()).await
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        self.shared.call(Call::Rollback, self.branch.rollback()).await
    }

    async fn commit_one_phase(&self, id: &BranchId) -> Result<(), BranchError> {
        let fault = self.alone(Call::CommitOnePhase).await;
        self.shared.answer(Call::CommitOnePhase, fault, self.branch.commit_one_phase(id)).await
    }

    async fn commit_carrying(&self, record: &DecisionRecord) -> Result<(), BranchError> {
        let fault = self.alone(Call::CommitCarrying).await;
        self.shared.answer(Call::CommitCarrying, fault, self.branch.commit_carrying(record)).await
    }

    fn is_retryable(&self, error: &(dyn std::error::Error + 'static)) -> bool {
        self.branch.is_retryable(error)
    }

    fn revoke(&self) {
        self.branch.revoke();
    }

    fn has_savepoints(&self) -> bool {
        self.branch.has_savepoints()
    }

    async fn savepoint(&self, id: SavepointId) -> Result<(), BranchError> {
        self.shared.call(Call::Savepoint, self.branch.savepoint(id)).await
    }

    async fn rollback_to(&self, id: SavepointId) -> Result<(), BranchError> {
        self.shared.call(Call::RollbackTo, self.branch.rollback_to(id)).await
    }
}
