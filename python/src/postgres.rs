//! What a PostgreSQL branch on a connection of Python's sends, and which configured resource it belongs to: the adapter's words.
//!
//! Must not know Python's drivers.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use unanimous::postgres::{ForeignBranch, PostgresError};
use unanimous::{DecisionRecord, ResourceManager};

use crate::commit::raise;
use crate::engine::{self, failed, told, wait_detached};
use crate::resource::{Reach, Resource};

/// Asks where a connection leads, outside of a transaction. Its row, of texts: system, database, role, replicas, session.
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

/// What a commit without a vote begins with, of a branch with this mark.
#[pyfunction]
pub(crate) fn postgres_guard_sql(mark: &str) -> String {
    ForeignBranch::new(mark).guard_sql()
}

/// What a commit without a vote and without a decision's rows needs in front of it, so that it lasts.
#[pyfunction]
pub(crate) fn postgres_durable_sql() -> &'static str {
    ForeignBranch::durable_sql()
}

/// The decision that a branch carries, as statements in front of its commit.
#[pyclass(frozen)]
pub(crate) struct Decision(pub(crate) DecisionRecord);

#[pymethods]
impl Decision {
    /// In any session.
    fn sql(&self) -> PyResult<String> {
        ForeignBranch::decision_sql(&self.0).map_err(|error| PyValueError::new_err(told(&error)))
    }

    /// In a session that was made to keep the statements.
    fn kept_sql(&self) -> PyResult<String> {
        ForeignBranch::kept_decision_sql(&self.0).map_err(|error| PyValueError::new_err(told(&error)))
    }
}

/// Makes a session keep the statements of decisions.
#[pyfunction]
pub(crate) fn postgres_keep_decisions_sql() -> String {
    ForeignBranch::keep_decisions_sql()
}

/// What keeps a branch's notifications in the outbox, as the last statement of its work.
#[pyfunction]
pub(crate) fn postgres_notifications_sql(gid: &str, notifications: Vec<(String, String)>) -> PyResult<String> {
    let sql = ForeignBranch::notifications_sql(gid, &notifications);
    sql.map_err(|error| PyValueError::new_err(told(&error)))
}

/// What delivers a committed branch's notifications from the outbox; one message, outside of a transaction.
#[pyfunction]
pub(crate) fn postgres_deliver_sql(gid: &str) -> String {
    ForeignBranch::deliver_sql(gid)
}

/// How long a join waits for resources that were not reached yet.
const REACH: Duration = Duration::from_secs(1);

/// The name of the configured resource that a connection belongs to, by the row of `postgres_who_sql`; None where it is certainly none of them.
/// Those that were reached before answer at once; the others are asked together, and not again for a while where they don't answer.
///
/// Raises a `TransientError` where it may be one that can't be reached: as a volatile branch nobody could finish it.
#[pyfunction]
pub(crate) fn postgres_resource(py: Python<'_>, system: &str, database: &str, role: &str) -> PyResult<Option<String>> {
    let engine = engine::get(py)?;
    let (reached, others): (Vec<_>, Vec<_>) = engine.resources.postgres.values().partition(|one| one.is_reached());
    for resource in reached {
        let here = resource.postgres.is_known_to_lead_here(system, database, role);
        if here.map_err(|error| failed(&error))? {
            return Ok(Some(resource.name().to_owned()));
        }
    }
    let Some(first) = others.first() else { return Ok(None) };
    let (mut unreached, asked): (Vec<&Resource>, Vec<&Resource>) =
        others.iter().copied().partition(|one| one.backs_off());
    let mut expired = first.background.env().sleep(REACH);
    let mut asked: Vec<_> = asked
        .into_iter()
        .map(|one| (one, Box::pin(one.entered(one.postgres.leads_here(system, database, role)))))
        .collect();
    let found = poll_fn(|cx| {
        let mut index = 0;
        while let Some((resource, answer)) = asked.get_mut(index) {
            let Poll::Ready(answer) = answer.as_mut().poll(cx) else {
                index += 1;
                continue;
            };
            match answer {
                Ok(here) => {
                    resource.set_reach(Reach::Yes);
                    if here {
                        return Poll::Ready(Some(Ok(resource.name().to_owned())));
                    }
                }
                Err(error @ PostgresError::OtherRole { .. }) => return Poll::Ready(Some(Err(failed(&error)))),
                Err(error) => {
                    tracing::warn!(
                        resource = resource.name(),
                        error = told(&error),
                        "a resource can't be asked who it is"
                    );
                    resource.set_reach(Reach::No(Instant::now()));
                    unreached.push(resource);
                }
            }
            drop(asked.swap_remove(index));
        }
        if asked.is_empty() { Poll::Ready(None) } else { expired.as_mut().poll(cx).map(|()| None) }
    });
    if let Some(found) = wait_detached(py, found) {
        return found.map(Some);
    }
    for (resource, _) in &asked {
        resource.set_reach(Reach::No(Instant::now()));
        unreached.push(resource);
    }
    if unreached.is_empty() {
        return Ok(None);
    }
    let names: Vec<_> = unreached.iter().map(|resource| format!("{:?}", resource.name())).collect();
    let message = format!(
        "the connection may be a branch of {}, which can't be reached now; try again, or leave out of the configuration what is gone",
        names.join(" or ")
    );
    Err(raise(py, "TransientError", &message))
}

/// Why a database can't carry decisions, as Python's exception: a `TransientError` where it could not be reached.
pub(crate) fn not_ready(py: Python<'_>, error: &PostgresError) -> PyErr {
    let passes = match error {
        PostgresError::Connect(source) | PostgresError::Postgres { source, .. } => source.code().is_none_or(|code| {
            // PostgreSQL 15, appendix A: the connection, resources that are short, who ends the session or starts the server.
            ["08", "53", "57P"].iter().any(|class| code.code().starts_with(class))
        }),
        PostgresError::Pool(_) | PostgresError::NoAnswer { .. } => true,
        _ => false,
    };
    raise(py, if passes { "TransientError" } else { "TransactionError" }, &told(error))
}

/// Makes the outbox in a resource's database where it is missing.
#[pyfunction]
pub(crate) fn postgres_ensure_outbox(py: Python<'_>, resource: &str) -> PyResult<()> {
    let resource = named(py, resource)?;
    let ensured = resource.entered(resource.postgres.ensure_outbox());
    wait_detached(py, ensured).map_err(|error| failed(&error))
}

/// Whether a resource's server has replicas that a vote must reach.
#[pyfunction]
pub(crate) fn postgres_replicates(py: Python<'_>, resource: &str) -> PyResult<bool> {
    let resource = named(py, resource)?;
    let asked = resource.entered(resource.postgres.replicates());
    wait_detached(py, asked).map_err(|error| failed(&error))
}

fn named(py: Python<'_>, resource: &str) -> PyResult<Resource> {
    let engine = engine::get(py)?;
    let named = engine.resources.postgres.get(resource);
    named.cloned().ok_or_else(|| PyValueError::new_err(format!("no resource is named {resource:?}")))
}
