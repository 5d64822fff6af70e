//! The commit of one transaction of Python's: its data managers become branches, and the core does the rest.
//!
//! Must not know the ancestors' hooks, savepoints or synchronizers.

use std::sync::Arc;

use pyo3::prelude::*;
use unanimous::{CommitError, JoinError, Options, Transaction, thread};

use crate::branch::{Group, ManagerBranch, Member};
use crate::engine::{self, Engine, told, wait_detached};
use crate::files::{self, Gathered};
use crate::resource::Resource;

/// Commits `managers` in this order. What one of them raises before the decision is raised here, as it is; what the first `tpc_finish` that
/// fails raises is returned: it is committed then.
#[pyfunction]
pub(crate) fn commit<'py>(
    py: Python<'py>,
    transaction: Bound<'py, PyAny>,
    managers: Vec<Bound<'py, PyAny>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let engine = engine::get(py)?;
    let (mut members, mut gathered) = (Vec::with_capacity(managers.len()), Vec::new());
    for manager in managers {
        match Gathered::of(&engine, &manager)? {
            Some(files) => gathered.push(files),
            None => {
                let resource = resource_of(&engine, &manager)?;
                members.push(Member::new(manager.unbind(), resource));
            }
        }
    }
    let group = Group::new(transaction.unbind(), members);
    let tx = match join_all(py, &engine, &group, &gathered) {
        Ok(tx) => tx,
        Err(error) => {
            group.clean_up(py);
            return Err(error);
        }
    };
    match wait_detached(py, async move { tx.commit().await }) {
        Ok(_) => Ok(group.take_unfinished().map(|error| error.into_value(py).into_bound(py).into_any())),
        Err(CommitError::Aborted { .. }) if let Some(error) = group.take_failed() => Err(error),
        Err(error @ CommitError::Aborted { .. }) if let Some(raised) = files::raised(&error) => Err(raised),
        Err(error) => Err(not_committed(py, &error, group.take_failed())),
    }
}

/// The configured resource that a data manager says that its branch is in.
fn resource_of(engine: &Engine, manager: &Bound<'_, PyAny>) -> PyResult<Option<Resource>> {
    if engine.resources.postgres.is_empty() {
        return Ok(None);
    }
    let name = manager.getattr_opt("unanimous_resource")?.and_then(|name| name.extract::<String>().ok());
    Ok(name.and_then(|name| engine.resources.postgres.get(&name).cloned()))
}

fn join_all(py: Python<'_>, engine: &Engine, group: &Arc<Group>, gathered: &[Gathered]) -> PyResult<Transaction> {
    let tx = thread::begin(&engine.manager, Options::default());
    for (place, members) in group.branches().into_iter().enumerate() {
        // Branches are called in the order of their names.
        let name = format!("python {place:04}");
        let resource = group.resource(members.start);
        let branch = ManagerBranch { group: group.clone(), members };
        let joined = match resource {
            None => {
                // Nobody could finish it after a crash: it is let in here, as the ancestors do (rule 10).
                tx.allow(&name);
                tx.join_branch(&name, branch).map(drop)
            }
            Some(resource) => {
                let join = tx.join_foreign(resource.name(), &name, branch);
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
fn raise(py: Python<'_>, class: &str, message: &str) -> PyErr {
    let made = py
        .import("unanimous_tm.transaction.interfaces")
        .and_then(|interfaces| interfaces.getattr(class))
        .and_then(|class| class.call1((message,)));
    made.map_or_else(|error| error, PyErr::from_value)
}

/// Tells data managers to give up, none of which has voted: `abort` on all, then `tpc_abort` on all. Errors are logged.
#[pyfunction]
pub(crate) fn clean_up(py: Python<'_>, transaction: Py<PyAny>, managers: Vec<Py<PyAny>>) {
    let members = managers.into_iter().map(|manager| Member::new(manager, None)).collect();
    Group::new(transaction, members).clean_up(py);
}
