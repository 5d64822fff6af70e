//! The tables that the store keeps in its database, in the schema `unanimous`: whether they are there, and how they are made.
//!
//! Must not know what is in them.

use super::control::{Control, ask};
use super::error::PostgresError;
use super::session::{Session, row};

/// The schema's name.
pub(super) const SCHEMA: &str = "unanimous";

/// What makes the tables; can be run again.
const SQL: &str = include_str!("schema.sql");

/// Of the advisory lock under which the tables are made: `CREATE ... IF NOT EXISTS` by two at once can fail.
const LOCK: i64 = 0x756e_616e_696d;

/// Whether a table of the schema is there.
pub(super) async fn has(session: &Session, table: &str) -> Result<bool, PostgresError> {
    let sql = format!("SELECT pg_catalog.to_regclass('{SCHEMA}.{table}') IS NOT NULL");
    let answer = ask(session, "looking for the store's tables", &sql).await?;
    Ok(row(&answer).and_then(|row| row.get(0)) == Some("t"))
}

/// Makes the tables where this one is missing.
pub(super) async fn ensure(control: &Control, table: &str) -> Result<(), PostgresError> {
    let session = control.session().await?;
    if !has(&session, table).await? {
        let sql = format!("BEGIN READ WRITE; SELECT pg_catalog.pg_advisory_xact_lock({LOCK}); {SQL}; COMMIT");
        ask(&session, "making the store's tables", &sql).await.map_err(|error| match error {
            // Lost or busy: the next try may make them.
            error if error.kind() != unanimous_core::FailureKind::Refused => error,
            error => {
                tracing::warn!(
                    error = &error as &(dyn std::error::Error + 'static),
                    "the tables of the schema {SCHEMA} can't be made"
                );
                PostgresError::NoSchema(SCHEMA.to_owned())
            }
        })?;
    }
    control.give_back(session);
    Ok(())
}
