//! The commit of one transaction of Python's: its data managers become branches, and the core does the rest.
//!
//! Must not know the ancestors' hooks, savepoints or synchronizers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;
use unanimous::{CommitError, JoinError, Options, ResourceManager, Transaction, thread};

use crate::branch::{Group, Place};
use crate::engine::{self, Engine, told, wait_detached};
use crate::files::{self, Gathered};
use crate::ids::Ids;
use crate::postgres::not_ready;

/// Commits `managers` in this order. What one of them raises before the decision is raised here, as it is; what the first `tpc_finish` that
/// fails raises is returned: it is committed then.
#[pyfunction]
pub(crate) fn commit<'py>(
    py: Python<'py>,
    transaction: Bound<'py, PyAny>,
    managers: Bound<'py, PyList>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let engine = engine::get(py)?;
    let committing = Committing::enter(&engine);
    let found = files::gathered(&engine, managers.clone())
        .and_then(|(others, gathered)| Ok((places_of(&engine, &others)?, others, gathered)));
    let ((mut places, ids), managers, gathered) = match found {
        Ok(found) => found,
        Err(error) => {
            Group::new(transaction, managers, Vec::new(), false).clean_up(py);
            return Err(error);
        }
    };
    let tx = begin(&engine, ids, &mut places);
    let group = Group::new(transaction, managers, places, !committing.is_crowded());
    let tx = match join_all(py, tx, &group, &gathered) {
        Ok(tx) => tx,
        Err(error) => {
            group.clean_up(py);
            return Err(error);
        }
    };
    match wait_detached(py, async move { tx.commit().await }) {
        Ok(committed) => {
            if committed.pending > 0 {
                tracing::warn!(transaction = %committed.id, pending = committed.pending,
                    "committed, and some branches have not confirmed it yet; recovery goes on with them");
            }
            Ok(group.take_unfinished().map(|error| error.into_value(py).into_bound(py).into_any()))
        }
        Err(CommitError::Aborted { .. }) if let Some(error) = group.take_failed() => Err(error),
        Err(error @ CommitError::Aborted { .. }) if let Some(raised) = files::raised(&error) => Err(raised),
        Err(error) => {
            if matches!(error, CommitError::Unknown { .. }) {
                group.forget(py);
            }
            match group.take_failed() {
                // What ends a program does so.
                Some(ends) if !ends.is_instance_of::<PyException>(py) => {
                    ends.set_cause(py, Some(not_committed(py, &error, None)));
                    Err(ends)
                }
                failed => Err(not_committed(py, &error, failed)),
            }
        }
    }
}

/// Counts the commits that are under way.
struct Committing<'e> {
    all: &'e AtomicUsize,
    others: usize,
}

impl<'e> Committing<'e> {
    fn enter(engine: &'e Engine) -> Self {
        Self { others: engine.committing.fetch_add(1, Ordering::Relaxed), all: &engine.committing }
    }

    /// Every processor has another transaction that ends already: threads would only take turns.
    fn is_crowded(&self) -> bool {
        static PROCESSORS: OnceLock<usize> = OnceLock::new();
        let processors =
            PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get));
        self.others >= *processors
    }
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One for each data manager, or none; and whence their numbers are.
type Places<'py> = (Vec<Option<Place>>, Option<Bound<'py, Ids>>);

/// The configured resource that each data manager says that its branch is in; empty where none does. And the ids that were reserved for them.
fn places_of<'py>(engine: &Engine, managers: &Bound<'py, PyList>) -> PyResult<Places<'py>> {
    let (mut places, mut ids, mut carried) = (Vec::new(), None::<Bound<'_, Ids>>, false);
    for (index, manager) in managers.iter().enumerate() {
        let name = manager.getattr_opt(intern!(manager.py(), "unanimous_resource"))?;
        let Some(name) = name.and_then(|name| name.extract::<String>().ok()) else { continue };
        let Some(resource) = engine.resources.postgres.get(&name) else {
            // Volatile it would be without its being said (rule 10).
            let message = format!(
                "a branch is in the resource {name:?}, which is not configured any more; configure before a transaction begins"
            );
            return Err(raise(manager.py(), "TransactionError", &message));
        };
        let branch = manager.getattr_opt(intern!(manager.py(), "unanimous_branch"))?;
        let number =
            branch.and_then(|branch| branch.extract::<(Bound<'_, Ids>, u16)>().ok()).and_then(|(its, number)| {
                let first = ids.get_or_insert_with(|| its.clone());
                first.is(&its).then_some(number)
            });
        // One is enough, and the others of the same database prepare.
        let carries = !carried && resource.carries() && can_carry(&manager)?;
        carried |= carries;
        places.resize(managers.len(), None);
        places[index] = Some(Place { resource: resource.clone(), number, carries });
    }
    Ok((places, ids))
}

fn can_carry(manager: &Bound<'_, PyAny>) -> PyResult<bool> {
    let carries = manager.getattr_opt(intern!(manager.py(), "unanimous_carries"))?;
    carries.map_or(Ok(false), |carries| carries.is_truthy())
}

/// Begins under the ids that were reserved, where they are this manager's; else the branches get other ones.
fn begin(engine: &Engine, ids: Option<Bound<'_, Ids>>, places: &mut [Option<Place>]) -> Transaction {
    if let Some(tx) = ids.and_then(|ids| ids.get().begin(engine)) {
        return tx;
    }
    for place in places.iter_mut().flatten() {
        place.number = None;
    }
    thread::begin(&engine.manager, Options::default())
}

fn join_all(py: Python<'_>, tx: Transaction, group: &Arc<Group>, gathered: &[Gathered]) -> PyResult<Transaction> {
    for (place, branch) in group.branches(py).into_iter().enumerate() {
        // Branches are called in the order of their names.
        let name = format!("python {place:04}");
        let place = branch.place().cloned();
        // Where it has an id it was told before.
        if let Some(Place { resource, carries: true, number: None }) = &place
            && let Err(error) = wait_detached(py, resource.ready_to_carry(tx.id().owner()))
        {
            return Err(given_up(py, tx, not_ready(py, &error)));
        }
        let joined = match place {
            None => {
                // Nobody could finish it after a crash: it is let in here, as the ancestors do (rule 10).
                tx.allow(&name);
                tx.join_branch(&name, branch).map(drop)
            }
            Some(Place { resource, number: None, .. }) => {
                let join = tx.join_foreign(resource.name(), &name, branch);
                wait_detached(py, resource.entered(join)).map(drop)
            }
            Some(Place { resource, number: Some(number), .. }) => {
                let join = tx.join_foreign_as(resource.name(), &name, branch, number);
                wait_detached(py, resource.entered(join)).map(drop)
            }
        };
        if let Err(error) = joined {
            return Err(given_up(py, tx, not_joined(py, &error)));
        }
    }
    for files in gathered {
        if let Err(error) = wait_detached(py, files.write(&tx)) {
            let raised = files::raised(&*error).unwrap_or_else(|| raise(py, "TransactionError", &told(&*error)));
            return Err(given_up(py, tx, raised));
        }
    }
    Ok(tx)
}

/// For a reason that is told.
fn given_up(py: Python<'_>, tx: Transaction, why: PyErr) -> PyErr {
    wait_detached(py, async move { tx.abort().await });
    why
}

fn not_joined(py: Python<'_>, error: &JoinError) -> PyErr {
    raise(py, if error.is_retryable() { "TransientError" } else { "TransactionError" }, &told(error))
}

fn not_committed(py: Python<'_>, error: &CommitError, cause: Option<PyErr>) -> PyErr {
    let class = match error {
        CommitError::Unknown { .. } => "OutcomeUnknown",
        CommitError::Aborted { .. } if error.is_retryable() => "TransientError",
        CommitError::Aborted { .. } => "TransactionError",
    };
    let raised = raise(py, class, &told(error));
    if class == "OutcomeUnknown" {
        // The exception is one of ours: it takes the attribute.
        let _ = raised.value(py).setattr("transaction_id", error.id().to_string());
    }
    raised.set_cause(py, cause);
    raised
}

/// An exception of `unanimous_tm.transaction.interfaces`.
pub(crate) fn raise(py: Python<'_>, class: &str, message: &str) -> PyErr {
    let made = py
        .import("unanimous_tm.transaction.interfaces")
        .and_then(|interfaces| interfaces.getattr(class))
        .and_then(|class| class.call1((message,)));
    made.map_or_else(|error| error, PyErr::from_value)
}

/// Tells data managers to give up, none of which has voted: `abort` on all, then `tpc_abort` on all. Errors are logged.
#[pyfunction]
pub(crate) fn clean_up<'py>(py: Python<'py>, transaction: Bound<'py, PyAny>, managers: Bound<'py, PyList>) {
    Group::new(transaction, managers, Vec::new(), false).clean_up(py);
}
