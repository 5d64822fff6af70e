//! What a PostgreSQL branch on a connection of Python's sends, and which configured resource it belongs to: the adapter's words.
//!
//! Must not know Python's drivers.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use unanimous::postgres::{ForeignBranch, PostgresError};

use crate::engine::{self, failed, told, wait_detached};

/// Asks where a connection leads, outside of a transaction. Its row, of texts: system, database, role, replicas.
#[pyfunction]
pub(crate) fn postgres_who_sql() -> &'static str {
    ForeignBranch::who_sql()
}

/// Sent behind BEGIN: marks the transaction.
#[pyfunction]
pub(crate) fn postgres_mark_sql(mark: &str) -> String {
    ForeignBranch::new(mark).mark_sql()
}

/// The vote of a branch with this mark, one message: prepares it under this id, with its notifications as rows of the outbox.
#[pyfunction]
#[pyo3(signature = (mark, gid, notifications = Vec::new()))]
pub(crate) fn postgres_vote_sql(mark: &str, gid: &str, notifications: Vec<(String, String)>) -> PyResult<String> {
    let sql = ForeignBranch::new(mark).vote_sql(gid, &notifications);
    sql.map_err(|error| PyValueError::new_err(told(&error)))
}

/// What delivers a committed branch's notifications from the outbox; one message, outside of a transaction.
#[pyfunction]
pub(crate) fn postgres_deliver_sql(gid: &str) -> String {
    ForeignBranch::deliver_sql(gid)
}

/// The name of the configured resource that a connection belongs to, by the row of `postgres_who_sql`; None where it is none of them. A
/// resource that can't be reached now is not it: the connection's server has just answered.
#[pyfunction]
pub(crate) fn postgres_resource(py: Python<'_>, system: &str, database: &str, role: &str) -> PyResult<Option<String>> {
    let engine = engine::get(py)?;
    for (name, resource) in &engine.resources.postgres {
        let asked = resource.entered(resource.postgres.leads_here(system, database, role));
        match wait_detached(py, asked) {
            Ok(true) => return Ok(Some(name.clone())),
            Ok(false) => {}
            Err(error @ PostgresError::OtherRole { .. }) => return Err(failed(&error)),
            Err(_unreached) => {}
        }
    }
    Ok(None)
}

/// Makes the outbox in a resource's database where it is missing.
#[pyfunction]
pub(crate) fn postgres_ensure_outbox(py: Python<'_>, resource: &str) -> PyResult<()> {
    let engine = engine::get(py)?;
    let named = engine.resources.postgres.get(resource);
    let resource = named.ok_or_else(|| PyValueError::new_err(format!("no resource is named {resource:?}")))?;
    let ensured = resource.entered(resource.postgres.ensure_outbox());
    wait_detached(py, ensured).map_err(|error| failed(&error))
}
