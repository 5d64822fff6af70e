//! [`Nowhere`]: a store that keeps nothing, so that only its callers cost anything.
//!
//! Must not know who calls it.

use std::sync::Arc;

use unanimous::{Branch, BranchContext, BranchError, BranchId, Capability, ResourceManager, StoreError, StoreId};

/// A store that keeps nothing, as its own branch. It says that it writes.
#[derive(Clone, Debug)]
pub struct Nowhere(Arc<str>);

impl Nowhere {
    /// Its identity is its name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }
}

impl Branch for Nowhere {
    fn capability(&self) -> Capability {
        Capability::TwoPhase
    }

    async fn prepare(&self, _id: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        Ok(())
    }
}

impl ResourceManager for Nowhere {
    type Branch = Self;
    type Options = ();

    fn name(&self) -> &str {
        &self.0
    }

    fn capability(&self) -> Capability {
        Capability::TwoPhase
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        self.0.parse().map_err(StoreError::new)
    }

    async fn begin(&self, _context: &BranchContext, (): ()) -> Result<Self, BranchError> {
        Ok(self.clone())
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        Ok(Vec::new())
    }

    async fn commit(&self, _id: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }

    async fn rollback(&self, _id: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }
}
