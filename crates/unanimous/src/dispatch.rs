//! The contract's traits as trait objects: implementers write plain `async fn`, the driver and recovery call boxed futures.
//!
//! Must not know what is called when.

use std::any::Any;
use std::error::Error;
use std::sync::{Arc, OnceLock};

use unanimous_core::{
    BoxError, Branch, BranchError, BranchId, Capability, DecideError, Decider, Decision, DecisionLog, DecisionRecord,
    Known, Owner, ResourceManager, SavepointId, StoreError, StoreId, TransactionId, Work,
};

use crate::env::BoxFuture;
use crate::outcomes::Lookups;

pub(crate) trait DynBranch: Send + Sync {
    fn capability(&self) -> Capability;
    fn sort_key(&self) -> String;
    fn flush(&self) -> BoxFuture<'_, Result<Work, BranchError>>;
    fn prepare<'a>(&'a self, id: &'a BranchId) -> BoxFuture<'a, Result<(), BranchError>>;
    fn commit(&self) -> BoxFuture<'_, Result<(), BranchError>>;
    fn rollback(&self) -> BoxFuture<'_, Result<(), BranchError>>;
    fn commit_one_phase<'a>(&'a self, id: &'a BranchId) -> BoxFuture<'a, Result<(), BranchError>>;
    fn commit_carrying<'a>(&'a self, record: &'a DecisionRecord) -> BoxFuture<'a, Result<(), BranchError>>;
    fn is_retryable(&self, error: &(dyn Error + 'static)) -> bool;
    fn revoke(&self);
    fn has_savepoints(&self) -> bool;
    fn savepoint(&self, id: SavepointId) -> BoxFuture<'_, Result<(), BranchError>>;
    fn rollback_to(&self, id: SavepointId) -> BoxFuture<'_, Result<(), BranchError>>;
}

impl<B: Branch> DynBranch for B {
    fn capability(&self) -> Capability {
        Branch::capability(self)
    }

    fn sort_key(&self) -> String {
        Branch::sort_key(self)
    }

    fn flush(&self) -> BoxFuture<'_, Result<Work, BranchError>> {
        Box::pin(Branch::flush(self))
    }

    fn prepare<'a>(&'a self, id: &'a BranchId) -> BoxFuture<'a, Result<(), BranchError>> {
        Box::pin(Branch::prepare(self, id))
    }

    fn commit(&self) -> BoxFuture<'_, Result<(), BranchError>> {
        Box::pin(Branch::commit(self))
    }

    fn rollback(&self) -> BoxFuture<'_, Result<(), BranchError>> {
        Box::pin(Branch::rollback(self))
    }

    fn commit_one_phase<'a>(&'a self, id: &'a BranchId) -> BoxFuture<'a, Result<(), BranchError>> {
        Box::pin(Branch::commit_one_phase(self, id))
    }

    fn commit_carrying<'a>(&'a self, record: &'a DecisionRecord) -> BoxFuture<'a, Result<(), BranchError>> {
        Box::pin(Branch::commit_carrying(self, record))
    }

    fn is_retryable(&self, error: &(dyn Error + 'static)) -> bool {
        Branch::is_retryable(self, error)
    }

    fn revoke(&self) {
        Branch::revoke(self);
    }

    fn has_savepoints(&self) -> bool {
        Branch::has_savepoints(self)
    }

    fn savepoint(&self, id: SavepointId) -> BoxFuture<'_, Result<(), BranchError>> {
        Box::pin(Branch::savepoint(self, id))
    }

    fn rollback_to(&self, id: SavepointId) -> BoxFuture<'_, Result<(), BranchError>> {
        Box::pin(Branch::rollback_to(self, id))
    }
}

pub(crate) trait DynResource: Send + Sync {
    fn identity(&self) -> BoxFuture<'_, Result<StoreId, StoreError>>;
    fn in_doubt(&self) -> BoxFuture<'_, Result<Vec<BranchId>, StoreError>>;
    fn durably_in_doubt(&self) -> Option<BoxFuture<'_, Result<Vec<BranchId>, StoreError>>>;
    fn commit<'a>(&'a self, id: &'a BranchId) -> BoxFuture<'a, Result<(), BranchError>>;
    fn rollback<'a>(&'a self, id: &'a BranchId) -> BoxFuture<'a, Result<(), BranchError>>;
    fn decision(&self, transaction: TransactionId, owner: Owner) -> BoxFuture<'_, Result<Known, StoreError>>;
    fn decided(&self, transaction: TransactionId, owner: Owner) -> BoxFuture<'_, Result<Option<Known>, StoreError>>;
    fn unfinished(&self, owner: Owner) -> BoxFuture<'_, Result<Vec<DecisionRecord>, StoreError>>;
    fn forget(&self, transaction: TransactionId);
}

impl<R: ResourceManager> DynResource for R {
    fn identity(&self) -> BoxFuture<'_, Result<StoreId, StoreError>> {
        Box::pin(ResourceManager::identity(self))
    }

    fn in_doubt(&self) -> BoxFuture<'_, Result<Vec<BranchId>, StoreError>> {
        Box::pin(ResourceManager::in_doubt(self))
    }

    fn durably_in_doubt(&self) -> Option<BoxFuture<'_, Result<Vec<BranchId>, StoreError>>> {
        ResourceManager::durably_in_doubt(self).map(|list| Box::pin(list) as BoxFuture<'_, _>)
    }

    fn commit<'a>(&'a self, id: &'a BranchId) -> BoxFuture<'a, Result<(), BranchError>> {
        Box::pin(ResourceManager::commit(self, id))
    }

    fn rollback<'a>(&'a self, id: &'a BranchId) -> BoxFuture<'a, Result<(), BranchError>> {
        Box::pin(ResourceManager::rollback(self, id))
    }

    fn decision(&self, transaction: TransactionId, owner: Owner) -> BoxFuture<'_, Result<Known, StoreError>> {
        Box::pin(ResourceManager::decision(self, transaction, owner))
    }

    fn decided(&self, transaction: TransactionId, owner: Owner) -> BoxFuture<'_, Result<Option<Known>, StoreError>> {
        Box::pin(ResourceManager::decided(self, transaction, owner))
    }

    fn unfinished(&self, owner: Owner) -> BoxFuture<'_, Result<Vec<DecisionRecord>, StoreError>> {
        Box::pin(ResourceManager::unfinished(self, owner))
    }

    fn forget(&self, transaction: TransactionId) {
        ResourceManager::forget(self, transaction);
    }
}

pub(crate) trait DynLog: Send + Sync {
    fn owner(&self) -> Owner;
    fn take(&self) -> bool;
    fn ready(&self) -> Result<(), BoxError>;
    fn decide(&self, record: DecisionRecord) -> BoxFuture<'_, Result<(), DecideError>>;
    fn lookup(&self, transaction: TransactionId) -> BoxFuture<'_, Result<Known, StoreError>>;
    fn decided(&self, transaction: TransactionId) -> BoxFuture<'_, Result<Option<Known>, StoreError>>;
    fn unfinished(&self) -> BoxFuture<'_, Result<Vec<DecisionRecord>, StoreError>>;
    fn forget(&self, transaction: TransactionId);
    fn records_aborts(&self) -> bool;
    fn conclude(&self, record: DecisionRecord, decision: Decision) -> BoxFuture<'_, Result<(), DecideError>>;
    fn recorded(&self, transaction: TransactionId) -> BoxFuture<'_, Result<Option<Known>, StoreError>>;
    fn unfinished_aborts(&self) -> BoxFuture<'_, Result<Vec<DecisionRecord>, StoreError>>;
    fn close(&self) -> BoxFuture<'_, ()>;
}

impl<L: DecisionLog> DynLog for L {
    fn owner(&self) -> Owner {
        DecisionLog::owner(self)
    }

    fn take(&self) -> bool {
        DecisionLog::take(self)
    }

    fn ready(&self) -> Result<(), BoxError> {
        DecisionLog::ready(self)
    }

    fn decide(&self, record: DecisionRecord) -> BoxFuture<'_, Result<(), DecideError>> {
        Box::pin(DecisionLog::decide(self, record))
    }

    fn lookup(&self, transaction: TransactionId) -> BoxFuture<'_, Result<Known, StoreError>> {
        Box::pin(Decider::lookup(self, transaction))
    }

    fn decided(&self, transaction: TransactionId) -> BoxFuture<'_, Result<Option<Known>, StoreError>> {
        Box::pin(Decider::decided(self, transaction))
    }

    fn unfinished(&self) -> BoxFuture<'_, Result<Vec<DecisionRecord>, StoreError>> {
        Box::pin(Decider::unfinished(self))
    }

    fn forget(&self, transaction: TransactionId) {
        Decider::forget(self, transaction);
    }

    fn records_aborts(&self) -> bool {
        DecisionLog::records_aborts(self)
    }

    fn conclude(&self, record: DecisionRecord, decision: Decision) -> BoxFuture<'_, Result<(), DecideError>> {
        Box::pin(DecisionLog::conclude(self, record, decision))
    }

    fn recorded(&self, transaction: TransactionId) -> BoxFuture<'_, Result<Option<Known>, StoreError>> {
        Box::pin(DecisionLog::recorded(self, transaction))
    }

    fn unfinished_aborts(&self) -> BoxFuture<'_, Result<Vec<DecisionRecord>, StoreError>> {
        Box::pin(DecisionLog::unfinished_aborts(self))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(DecisionLog::close(self))
    }
}

/// A registered resource: the typed one for joins, the erased one for recovery.
pub(crate) struct Registered {
    pub(crate) name: String,
    pub(crate) capability: Capability,
    /// Whether it can make certain of what it lists.
    pub(crate) lists_durably: bool,
    pub(crate) resource: Arc<dyn DynResource>,
    typed: Arc<dyn Any + Send + Sync>,
    identity: OnceLock<StoreId>,
    /// Those that ask it how a transaction ended.
    pub(crate) lookups: Lookups,
}

impl Registered {
    pub(crate) fn new<R: ResourceManager>(resource: R) -> Self {
        let lists_durably = resource.durably_in_doubt().is_some();
        let resource = Arc::new(resource);
        Self {
            name: resource.name().to_owned(),
            capability: resource.capability(),
            lists_durably,
            resource: resource.clone(),
            typed: resource,
            identity: OnceLock::new(),
            lookups: Lookups::default(),
        }
    }

    /// The registered store itself: a join goes through it, whatever other object of the same name it was asked with, so that
    /// what is joined is what recovery will look after.
    pub(crate) fn typed<R: ResourceManager>(&self) -> Option<Arc<R>> {
        self.typed.clone().downcast().ok()
    }

    /// The identity that the store had when it was first reached; none before.
    pub(crate) fn known_identity(&self) -> Option<&StoreId> {
        self.identity.get()
    }

    /// What the decision rows of this carrier say, where it still is the store that it was: another store's missing row would read
    /// as an abort.
    pub(crate) async fn decision(&self, transaction: TransactionId, owner: Owner) -> Result<Known, StoreError> {
        self.identity().await?;
        self.resource.decision(transaction, owner).await
    }

    /// What its rows say to somebody who only wants to know. Where it has no rows it is not asked who it is either.
    pub(crate) async fn decided(&self, transaction: TransactionId, owner: Owner) -> Result<Option<Known>, StoreError> {
        let known = self.resource.decided(transaction, owner).await?;
        if known.is_some() {
            self.identity().await?;
        }
        Ok(known)
    }

    /// Asks the store who it is, and notices when it is not the store that it was.
    pub(crate) async fn identity(&self) -> Result<&StoreId, StoreError> {
        let now = self.resource.identity().await?;
        let known = self.identity.get_or_init(|| now.clone());
        if *known == now {
            return Ok(known);
        }
        Err(StoreError::new(format!(
            "the resource {:?} was the store {known} and is the store {now} now; \
             put the right one back, or restart to use this one",
            self.name
        )))
    }
}
