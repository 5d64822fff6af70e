//! The process's one transaction manager: opened at first use, by the configuration that Python gives; not taken along by a fork.
//!
//! Must not know data managers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use unanimous::log::{FileLog, MemoryLog};
use unanimous::postgres::Postgres;
use unanimous::thread::{Background, wait, wait_around};
use unanimous::{BoxError, TransactionManager};

use crate::resource::Resource;

pub(crate) struct Engine {
    pub(crate) manager: TransactionManager,
    pub(crate) background: Background,
    pub(crate) resources: BTreeMap<String, Resource>,
    /// Where its log is; none for one in memory.
    pub(crate) log: Option<PathBuf>,
}

/// Only held while Python's lock is, and never over a wait: a fork finds it free.
static ENGINE: RwLock<Option<Arc<Engine>>> = RwLock::new(None);

/// The engine, which is opened by `unanimous_tm._configuration.open_engine` where there is none.
pub(crate) fn get(py: Python<'_>) -> PyResult<Arc<Engine>> {
    if let Some(engine) = peek() {
        return Ok(engine);
    }
    py.import("unanimous_tm._configuration")?.call_method0("open_engine")?;
    peek().ok_or_else(|| PyValueError::new_err("the transaction manager was closed while it was opened"))
}

pub(crate) fn peek() -> Option<Arc<Engine>> {
    ENGINE.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn swap(engine: Option<Arc<Engine>>) -> Option<Arc<Engine>> {
    std::mem::replace(&mut *ENGINE.write().unwrap_or_else(PoisonError::into_inner), engine)
}

/// Waits for a future on this thread; Python's lock is given up while there is nothing to do.
pub(crate) fn wait_detached<F: Future>(py: Python<'_>, future: F) -> F::Output {
    wait_around(future, |park| py.detach(move || park.park()))
}

/// Opens the process's manager.
#[pyfunction]
#[pyo3(signature = (log, resources, phase_two_wait = None))]
pub(crate) fn open(
    py: Python<'_>,
    log: Option<PathBuf>,
    resources: BTreeMap<String, String>,
    phase_two_wait: Option<f64>,
) -> PyResult<()> {
    let opened = py.detach(|| build(log, resources, phase_two_wait)).map_err(|error| failed(&*error))?;
    drop(swap(Some(Arc::new(opened))));
    Ok(())
}

fn build(
    log: Option<PathBuf>,
    urls: BTreeMap<String, String>,
    phase_two_wait: Option<f64>,
) -> Result<Engine, BoxError> {
    let background = Background::start()?;
    let mut resources = BTreeMap::new();
    for (name, url) in &urls {
        let postgres = Arc::new(Postgres::from_url(name, url)?);
        resources.insert(name.clone(), Resource { postgres, background: background.clone() });
    }
    let mut builder = match &log {
        Some(path) => TransactionManager::builder(background.open(FileLog::open(path))?),
        None => TransactionManager::builder(MemoryLog::new()),
    };
    if let Some(wait) = phase_two_wait {
        builder = builder.phase_two_wait(Duration::from_secs_f64(wait));
    }
    for resource in resources.values() {
        builder = builder.resource(Postgres::clone(&resource.postgres));
    }
    let manager = background.build(builder)?;
    Ok(Engine { manager, background, resources, log })
}

/// An error of the library as Python's, with its sources.
pub(crate) fn failed(error: &(dyn std::error::Error + 'static)) -> PyErr {
    PyOSError::new_err(told(error))
}

/// An error with its sources, on one line.
pub(crate) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        told.push_str(": ");
        told.push_str(&error.to_string());
        source = error.source();
    }
    told
}

/// Ends the manager in order; waits for it at most this many seconds. Whether there was one.
#[pyfunction]
pub(crate) fn close(py: Python<'_>, deadline: f64) -> bool {
    let Some(engine) = swap(None) else { return false };
    py.detach(move || {
        // What is not ended by then is left to the next start.
        let _ = wait(engine.manager.shutdown(Duration::from_secs_f64(deadline)));
        drop(engine);
    });
    true
}

/// In a forked child: the parent's manager is the parent's. Nothing of it is run here, not even its end.
#[pyfunction]
pub(crate) fn forget() {
    if let Some(engine) = swap(None) {
        std::mem::forget(engine);
    }
}

/// Where the open manager's log is; none where it is in memory, or nothing is open.
#[pyfunction]
pub(crate) fn open_log() -> Option<PathBuf> {
    peek().and_then(|engine| engine.log.clone())
}

/// Whether a manager is open.
#[pyfunction]
pub(crate) fn is_open() -> bool {
    peek().is_some()
}
