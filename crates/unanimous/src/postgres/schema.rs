//! The tables that the store keeps in its database, in the schema `unanimous`: whether they are there, and how they are made.
//!
//! Must not know what is in them.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use unanimous_core::FailureKind;

use super::control::{Control, ask};
use super::error::PostgresError;
use super::rows;
use super::session::{Session, row};
use super::sql::identifier;

/// The schema's name.
pub(super) const SCHEMA: &str = "unanimous";

/// What makes the tables; can be run again.
const SQL: &str = include_str!("schema.sql");

/// The version of the tables that this program knows.
const VERSION: &str = "1";

/// Of the advisory lock under which the tables are made: `CREATE ... IF NOT EXISTS` by two at once can fail.
const LOCK: i64 = 0x756e_616e_696d;

/// How long the making of the tables, and a look at their version, wait for others.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The SQL that makes the tables which a carrier, a shared decision log and notifications need, for a database's owner to run where the
/// store's own role may not. Can be run again. With a role, it grants that role what it needs.
pub fn schema_sql(role: Option<&str>) -> String {
    let grants = role.map(identifier).map_or_else(String::new, |role| {
        format!(
            "\nGRANT USAGE ON SCHEMA {SCHEMA} TO {role};\n\
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA} TO {role};\n"
        )
    });
    format!("{SQL}{grants}")
}

/// Whether a table of the schema is there, as far as this role can see: where it may not look into the schema it has nothing in it.
pub(super) async fn has(session: &Session, table: &str) -> Result<bool, PostgresError> {
    let sql = format!(
        "SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = '{SCHEMA}' \
         AND pg_catalog.has_schema_privilege(oid, 'USAGE')) \
         THEN pg_catalog.to_regclass('{SCHEMA}.{table}') IS NOT NULL ELSE false END"
    );
    let answer = ask(session, "looking for the store's tables", &sql).await?;
    Ok(row(&answer).and_then(|row| row.get(0)) == Some("t"))
}

/// The tables of decisions are there, or were made, and are of a version that is known.
pub(super) async fn ensure_decisions(control: &Control) -> Result<(), PostgresError> {
    ensure(control, "decision").await?;
    let session = control.session().await?;
    let sql = rows::look(&format!("SELECT version FROM {SCHEMA}.format"), LOCK_TIMEOUT);
    let answer = ask(&session, "reading the version of the store's tables", &sql).await.map_err(may_not)?;
    control.give_back(session);
    match row(&answer).and_then(|row| row.get(0)) {
        Some(VERSION) => Ok(()),
        Some(other) => Err(PostgresError::OtherTables { version: other.to_owned() }),
        None => Err(PostgresError::Damaged(format!("{SCHEMA}.format has no row"))),
    }
}

/// Makes the tables where this one is missing.
pub(super) async fn ensure(control: &Control, table: &str) -> Result<(), PostgresError> {
    let session = control.session().await?;
    if !has(&session, table).await? {
        let sql =
            format!("{}; SELECT pg_catalog.pg_advisory_xact_lock({LOCK}); {SQL}; COMMIT", rows::begin(LOCK_TIMEOUT));
        ask(&session, "making the store's tables", &sql).await.map_err(|error| match error.kind() {
            FailureKind::Refused => {
                let source: &(dyn std::error::Error + 'static) = &error;
                tracing::warn!(error = source, "the tables of the schema {SCHEMA} can't be made");
                PostgresError::NoSchema(SCHEMA.to_owned())
            }
            // Lost or busy: the next try may make them.
            FailureKind::Conflict | FailureKind::Lost => error,
        })?;
    }
    control.give_back(session);
    Ok(())
}

/// The tables may be there, but not for this role.
pub(super) fn may_not(error: PostgresError) -> PostgresError {
    match error.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => PostgresError::NoSchema(SCHEMA.to_owned()),
        Some(code) if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::INVALID_SCHEMA_NAME => {
            PostgresError::NoSchema(SCHEMA.to_owned())
        }
        _ => error,
    }
}
