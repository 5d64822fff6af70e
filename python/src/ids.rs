//! The ids of a transaction's branches, for drivers that must be told them when the work begins.
//!
//! Must not know drivers, nor what becomes of the branches.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use unanimous::thread::{self, Reserved};
use unanimous::{Options, Transaction};

use crate::engine::{self, Engine};

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

    /// The number and the id of another branch; None where the transaction has begun to commit, or has as many as can be told apart.
    fn branch(&self) -> Option<(u16, String)> {
        let branch = self.reserved().as_mut()?.branch()?;
        Some((branch.number, branch.to_string()))
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
