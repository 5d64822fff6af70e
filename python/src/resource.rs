//! The configured resources, as who can finish a branch whose own connection can't.
//!
//! Must not know Python, nor when a branch is finished.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use unanimous::postgres::{Postgres, PostgresBranch, PostgresError, PostgresOptions};
use unanimous::thread::Background;
use unanimous::{
    BranchContext, BranchError, BranchId, Capability, DeciderId, DecisionRecord, Known, Owner, ResourceManager,
    StoreError, StoreId, TransactionId,
};

/// For how long a database that could not be reached is not asked again who it is.
const BACK_OFF: Duration = Duration::from_secs(5);

/// A PostgreSQL database, and the thread that serves its connections.
#[derive(Clone)]
pub(crate) struct Resource {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) background: Background,
    reach: Arc<Mutex<Reach>>,
    /// Who has decided when a branch of it was prepared last: most likely who decides next time.
    decider: Arc<Mutex<DeciderId>>,
}

/// Whether a database has said who it is.
#[derive(Clone, Copy)]
pub(crate) enum Reach {
    Never,
    Yes,
    /// Not at that moment.
    No(Instant),
}

impl Resource {
    pub(crate) fn new(postgres: Postgres, background: Background) -> Self {
        Self {
            postgres: Arc::new(postgres),
            background,
            reach: Arc::new(Mutex::new(Reach::Never)),
            decider: Arc::new(Mutex::new(DeciderId::Log)),
        }
    }

    /// Whether its branches can carry decisions.
    pub(crate) fn carries(&self) -> bool {
        self.postgres.capability() == Capability::Carrier
    }

    pub(crate) async fn ready_to_carry(&self, owner: Owner) -> Result<(), PostgresError> {
        self.entered(self.postgres.ready_to_carry(owner)).await
    }

    /// Who is expected to decide about its next branch.
    pub(crate) fn decider(&self) -> DeciderId {
        self.decider.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note_decider(&self, decider: &DeciderId) {
        let mut noted = self.decider.lock().unwrap_or_else(PoisonError::into_inner);
        if *noted != *decider {
            *noted = decider.clone();
        }
    }

    pub(crate) fn is_reached(&self) -> bool {
        matches!(self.reach(), Reach::Yes)
    }

    /// It could not be reached a moment ago.
    pub(crate) fn backs_off(&self) -> bool {
        matches!(self.reach(), Reach::No(since) if since.elapsed() < BACK_OFF)
    }

    pub(crate) fn set_reach(&self, reach: Reach) {
        *self.reach.lock().unwrap_or_else(PoisonError::into_inner) = reach;
    }

    fn reach(&self) -> Reach {
        *self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls within the background's runtime, which the driver needs.
    pub(crate) async fn entered<F: Future>(&self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| -> Poll<F::Output> {
            let _entered = self.background.enter();
            future.as_mut().poll(cx)
        })
        .await
    }
}

/// As the manager knows it: it is asked from threads that are within no runtime, and from recovery, which is.
impl ResourceManager for Resource {
    type Branch = PostgresBranch;
    type Options = PostgresOptions;

    fn name(&self) -> &str {
        self.postgres.name()
    }

    fn capability(&self) -> Capability {
        self.postgres.capability()
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        self.entered(self.postgres.identity()).await
    }

    async fn begin(&self, context: &BranchContext, options: PostgresOptions) -> Result<PostgresBranch, BranchError> {
        self.entered(self.postgres.begin(context, options)).await
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        self.entered(self.postgres.in_doubt()).await
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        self.entered(ResourceManager::commit(&*self.postgres, id)).await
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        self.entered(ResourceManager::rollback(&*self.postgres, id)).await
    }

    async fn decision(&self, transaction: TransactionId, owner: Owner) -> Result<Known, StoreError> {
        self.entered(self.postgres.decision(transaction, owner)).await
    }

    async fn decided(&self, transaction: TransactionId, owner: Owner) -> Result<Option<Known>, StoreError> {
        self.entered(self.postgres.decided(transaction, owner)).await
    }

    async fn unfinished(&self, owner: Owner) -> Result<Vec<DecisionRecord>, StoreError> {
        self.entered(self.postgres.unfinished(owner)).await
    }

    fn forget(&self, transaction: TransactionId) {
        let _entered = self.background.enter();
        self.postgres.forget(transaction);
    }
}
