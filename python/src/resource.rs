//! The configured resources, as who can finish a branch whose own connection can't.
//!
//! Must not know Python, nor when a branch is finished.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use unanimous::postgres::Postgres;
use unanimous::thread::Background;
use unanimous::{BranchError, BranchId, ResourceManager};

/// For how long a database that could not be reached is not asked again who it is.
const BACK_OFF: Duration = Duration::from_secs(5);

/// A PostgreSQL database, and the thread that serves its connections.
#[derive(Clone)]
pub(crate) struct Resource {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) background: Background,
    reach: Arc<Mutex<Reach>>,
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
        Self { postgres: Arc::new(postgres), background, reach: Arc::new(Mutex::new(Reach::Never)) }
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

    pub(crate) fn name(&self) -> &str {
        self.postgres.name()
    }

    pub(crate) async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        self.entered(ResourceManager::commit(&*self.postgres, id)).await
    }

    pub(crate) async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        self.entered(ResourceManager::rollback(&*self.postgres, id)).await
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
