//! The configured resources, as who can finish a branch whose own connection can't.
//!
//! Must not know Python, nor when a branch is finished.

use std::sync::Arc;
use std::task::Poll;

use unanimous::postgres::Postgres;
use unanimous::thread::Background;
use unanimous::{BranchError, BranchId, ResourceManager};

/// A PostgreSQL database, and the thread that serves its connections.
#[derive(Clone)]
pub(crate) struct Resource {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) background: Background,
}

impl Resource {
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
