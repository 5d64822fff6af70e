//! The process's one transaction manager: opened at first use, by the configuration that Python gives; not taken along by a fork.
//!
//! Must not know data managers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use unanimous::files::Files;
use unanimous::log::{FileLog, FileLogOptions, MemoryLog, OpenError};
use unanimous::postgres::tokio_postgres::Config;
use unanimous::postgres::{Postgres, PostgresError};
use unanimous::thread::{Background, wait_around};
use unanimous::{BoxError, Builder, InDoubt, TransactionManager};

use crate::adoption::Adoption;
use crate::logging;
use crate::resource::Resource;

/// What is configured.
#[derive(Clone)]
pub(crate) struct Configuration {
    /// The folder of the log, and of those of the other workers; none for a log in memory.
    pub(crate) log: Option<PathBuf>,
    /// By their names, where they are: `file:` and a folder, or a connection string of PostgreSQL's.
    urls: BTreeMap<String, String>,
    /// The one of them that carries decisions.
    carrier: Option<String>,
    phase_two_wait: Option<Duration>,
    recovery_interval: Option<Duration>,
    horizon: Option<Duration>,
    max_log_size: Option<u64>,
}

/// The resources of one manager.
#[derive(Clone, Default)]
pub(crate) struct Resources {
    pub(crate) postgres: BTreeMap<String, Resource>,
    pub(crate) files: BTreeMap<String, Files>,
}

pub(crate) struct Engine {
    pub(crate) manager: TransactionManager,
    pub(crate) resources: Resources,
    background: Background,
    /// Where its log is; none for one in memory.
    log: Option<PathBuf>,
    /// How many commits are under way.
    pub(crate) committing: AtomicUsize,
    /// Ends before the rest.
    adoption: Option<Adoption>,
}

/// Only held while Python's lock is, and never over a wait: a fork finds it free.
static ENGINE: RwLock<Option<Arc<Engine>>> = RwLock::new(None);

/// The engine, which is opened by `unanimous_tm._configuration.open_engine` where there is none.
pub(crate) fn get(py: Python<'_>) -> PyResult<Arc<Engine>> {
    if let Some(engine) = peek() {
        return Ok(engine);
    }
    py.import("unanimous_tm._configuration")?.call_method0("open_engine")?;
    peek().ok_or_else(|| PyRuntimeError::new_err("the transaction manager was closed while it was opened"))
}

fn peek() -> Option<Arc<Engine>> {
    ENGINE.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn swap(engine: Option<Arc<Engine>>) -> Option<Arc<Engine>> {
    std::mem::replace(&mut *ENGINE.write().unwrap_or_else(PoisonError::into_inner), engine)
}

/// Waits for a future on this thread; Python's lock is given up while there is nothing to do.
pub(crate) fn wait_detached<F: Future>(py: Python<'_>, future: F) -> F::Output {
    wait_around(future, |park| py.detach(move || park.park()))
}

/// Opens the process's manager; durations are seconds.
#[pyfunction]
#[pyo3(signature = (log, resources, *, carrier = None, phase_two_wait = None, recovery_interval = None, horizon = None, max_log_size = None))]
#[expect(clippy::too_many_arguments, reason = "they are Python's keyword arguments")]
pub(crate) fn open(
    py: Python<'_>,
    log: Option<PathBuf>,
    resources: BTreeMap<String, String>,
    carrier: Option<String>,
    phase_two_wait: Option<f64>,
    recovery_interval: Option<f64>,
    horizon: Option<f64>,
    max_log_size: Option<u64>,
) -> PyResult<()> {
    let seconds = |seconds: Option<f64>| {
        let duration = seconds.map(Duration::try_from_secs_f64).transpose();
        duration.map_err(|error| PyValueError::new_err(error.to_string()))
    };
    let configuration = Configuration {
        log,
        urls: resources,
        carrier,
        phase_two_wait: seconds(phase_two_wait)?,
        recovery_interval: seconds(recovery_interval)?,
        horizon: seconds(horizon)?,
        max_log_size,
    };
    logging::start();
    let opened = py.detach(|| configuration.open()).map_err(|error| failed(&*error))?;
    drop(swap(Some(Arc::new(opened))));
    Ok(())
}

impl Configuration {
    fn open(self) -> Result<Engine, BoxError> {
        let background = Background::start()?;
        let resources = self.resources(&background)?;
        let Some(folder) = &self.log else {
            let manager = background
                .build(self.builder(TransactionManager::builder(MemoryLog::with_env(background.env())), &resources))?;
            return Ok(Engine {
                manager,
                resources,
                background,
                log: None,
                committing: AtomicUsize::new(0),
                adoption: None,
            });
        };
        let log = self.first_free(folder, &background)?;
        let path = log.path().to_owned();
        let manager = background.build(self.builder(TransactionManager::builder(log), &resources))?;
        let adoption = Adoption::start(self.clone(), path.clone())?;
        let committing = AtomicUsize::new(0);
        Ok(Engine { manager, resources, background, log: Some(path), committing, adoption: Some(adoption) })
    }

    /// Each process has a log of its own: the folder itself, or the first of its `worker-` folders that nobody has open.
    fn first_free(&self, folder: &std::path::Path, background: &Background) -> Result<FileLog, OpenError> {
        for number in 0.. {
            let path = if number == 0 { folder.to_owned() } else { folder.join(format!("worker-{number}")) };
            match background.open(self.log_options(background).open(path)) {
                Err(OpenError::Held { .. }) => {}
                opened => return opened,
            }
        }
        unreachable!("there are more numbers than processes")
    }

    /// Held logs are passed by at once.
    pub(crate) fn log_options(&self, background: &Background) -> FileLogOptions {
        let mut options = FileLog::options().lock_wait(Duration::ZERO).env(background.env());
        if let Some(horizon) = self.horizon {
            options = options.horizon(horizon);
        }
        if let Some(size) = self.max_log_size {
            options = options.max_size(size);
        }
        options
    }

    pub(crate) fn resources(&self, background: &Background) -> Result<Resources, BoxError> {
        let mut resources = Resources::default();
        for (name, url) in &self.urls {
            if let Some(root) = url.strip_prefix("file:") {
                resources.files.insert(name.clone(), Files::new(name, root).with_env(background.env()));
            } else {
                let postgres = self.postgres(name, url)?;
                resources.postgres.insert(name.clone(), Resource::new(postgres, background.clone()));
            }
        }
        Ok(resources)
    }

    fn postgres(&self, name: &str, url: &str) -> Result<Postgres, PostgresError> {
        if self.carrier.as_deref() != Some(name) {
            return Postgres::from_url(name, url);
        }
        let mut builder = Postgres::builder(name, url.parse::<Config>().map_err(PostgresError::Config)?).carrier();
        if let Some(horizon) = self.horizon {
            builder = builder.horizon(horizon);
        }
        Ok(builder.build())
    }

    pub(crate) fn builder(&self, mut builder: Builder, resources: &Resources) -> Builder {
        if let Some(wait) = self.phase_two_wait {
            builder = builder.phase_two_wait(wait);
        }
        if let Some(interval) = self.recovery_interval {
            builder = builder.recovery_interval(interval);
        }
        for resource in resources.postgres.values() {
            builder = builder.resource(resource.clone());
        }
        for files in resources.files.values() {
            builder = builder.resource(files.clone());
        }
        builder
    }
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

/// Something in doubt: the resource, the transaction and the branch where they are known, and why.
type Left = (String, Option<String>, Option<String>, String);

fn left(doubt: InDoubt) -> Left {
    let InDoubt { resource, transaction, branch, why, .. } = doubt;
    (resource, transaction.map(|id| id.to_string()), branch.map(|id| id.to_string()), why.to_string())
}

/// One pass of recovery now; what it left in doubt.
#[pyfunction]
pub(crate) fn recover(py: Python<'_>) -> PyResult<Vec<Left>> {
    let engine = get(py)?;
    // The stores are asked from here, and their driver needs the background.
    let in_doubt = py.detach(move || engine.background.open(engine.manager.recover()));
    Ok(in_doubt.into_iter().map(left).collect())
}

/// Ends the manager in order; waits for it at most this many seconds, and a moment. Whether there was one.
#[pyfunction]
pub(crate) fn close(py: Python<'_>, deadline: f64) -> bool {
    let Some(engine) = swap(None) else { return false };
    py.detach(move || {
        if let Some(adoption) = &engine.adoption {
            adoption.stop();
        }
        let deadline = Duration::try_from_secs_f64(deadline).unwrap_or_default();
        // What is not ended by then is left to the next start. Nor is it noted that nothing is left: nobody has asked the stores since the last
        // transaction, so that whoever lives opens the log once more.
        let _ = engine.background.open(engine.manager.shutdown(deadline));
        drop(engine);
        logging::flush();
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
