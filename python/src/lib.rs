//! `unanimous_tm._core`: what the Python package needs of the core. The package's Python files have the ancestors' interfaces; here is the one
//! call that commits, the process's manager, and what PostgreSQL's branches are made of.
//!
//! Must not know WSGI, nor any Python driver.

mod adoption;
mod branch;
mod commit;
mod engine;
mod files;
mod ids;
mod logging;
mod phases;
mod postgres;
mod resource;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::commit::{clean_up, commit};
    #[pymodule_export]
    use crate::engine::{close, forget, is_open, open, open_log, recover};
    #[pymodule_export]
    use crate::ids::Ids;
    #[pymodule_export]
    use crate::postgres::{
        Decision, postgres_deliver_sql, postgres_durable_sql, postgres_ensure_outbox, postgres_guard_sql,
        postgres_keep_decisions_sql, postgres_mark_sql, postgres_notifications_sql, postgres_replicates,
        postgres_resource, postgres_vote_sql, postgres_who_sql,
    };
}
