//! The ids of a transaction's branches, for drivers that must be told them when the work begins.
//!
//! Must not know drivers, nor what becomes of the branches.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use unanimous::thread::{self, Reserved};
use unanimous::{Options, Transaction};

use crate::engine::{self, Engine, wait_detached};
use crate::postgres::not_ready;

/// Reserved by the manager that is open when they are made; another one's transaction has other ids, and its branches are told so at the
/// vote.
#[pyclass(frozen)]
pub(crate) struct Ids(Mutex<Option<Reserved>>);

#[pymethods]
impl Ids {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let engine = engine::get(py)?;
        Ok(Self(Mutex::new(Some(thread::reserve(&engine.manager)))))
    }

    /// The number and the id of another branch, of this resource; None where the transaction has begun to commit, or has as many as can be told
    /// apart. The id is the one that its vote will ask for where the same decides as last time.
    ///
    /// To be asked before the branch begins: what a carrier must know by then it is told here.
    fn branch(&self, py: Python<'_>, resource: &str) -> PyResult<Option<(u16, String)>> {
        let engine = engine::get(py)?;
        let Some(resource) = engine.resources.postgres.get(resource) else { return Ok(None) };
        let owner = self.reserved().as_ref().map(|reserved| reserved.id().owner());
        if let (true, Some(owner)) = (resource.carries(), owner) {
            // A branch that has begun before would not see it, with one snapshot for all of its statements.
            wait_detached(py, resource.ready_to_carry(owner)).map_err(|error| not_ready(py, &error))?;
        }
        let branch = self.reserved().as_mut().and_then(|reserved| reserved.branch_decided_by(resource.decider()));
        Ok(branch.map(|branch| (branch.number, branch.to_string())))
    }
}

impl Ids {
    /// Begins the transaction under these ids, once. None where they are not this manager's (any more).
    pub(crate) fn begin(&self, engine: &Engine) -> Option<Transaction> {
        let reserved = self.reserved().take()?;
        reserved.begin(&engine.manager, Options::default())
    }

    fn reserved(&self) -> MutexGuard<'_, Option<Reserved>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
