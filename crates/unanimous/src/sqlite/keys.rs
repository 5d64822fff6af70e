//! [`SqliteKeys`]: idempotency keys and their first responses, in a table of the database's own.
//!
//! SQLite has one writer at a time, so who has joined sees every key that was kept, and nobody else is executing anything here.
//!
//! Knows the transaction's handle and the trait of stores of keys. Must not know requests.

use bytes::Bytes;
use http::StatusCode;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row};
use unanimous_core::BoxError;

use super::rows::touch;
use super::{Sqlite, SqliteOptions};
use crate::http::{Found, KeyStore, Lifetime, RequestKey, StoredResponse};
use crate::transaction::Tx;

/// Made with the first key that is kept.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS main.unanimous_idempotency_key (
        scope TEXT NOT NULL,
        key TEXT NOT NULL,
        transaction_id TEXT NOT NULL,
        expires_at INTEGER NOT NULL,
        fingerprint BLOB NOT NULL,
        status INTEGER NOT NULL,
        headers BLOB NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (scope, key)
    );
    CREATE INDEX IF NOT EXISTS main.unanimous_idempotency_key_end ON unanimous_idempotency_key (expires_at);
";

/// How many expired rows one request takes along at most, so that none becomes slow by it. More than one, so that they go faster
/// than they come.
const EXPIRED_AT_ONCE: i64 = 64;

/// Keeps idempotency keys in a SQLite database, in the table `unanimous_idempotency_key`, for
/// [`IdempotencyLayer`](crate::http::IdempotencyLayer). The first one that is kept makes the table; each deletes a few that have expired.
///
/// Each request with a key joins the database as a writer before its handler is called, and so waits for the one before, at most for the lock timeout; a
/// wait that was too long is answered as a conflict. A repeat whose first request this process has not seen commit writes, so that what it is told lasts. Repeats of a request that is being executed are told so at once by the layer within its process,
/// and wait in the queue of writers in others.
#[derive(Clone, Debug)]
pub struct SqliteKeys {
    resource: Sqlite,
    options: SqliteOptions,
}

impl SqliteKeys {
    /// Keys in this database, which must be registered with the transactions' manager.
    pub fn new(resource: &Sqlite) -> Self {
        Self { resource: resource.clone(), options: SqliteOptions::default() }
    }

    /// How the database is joined: its lock timeout. It is joined before the handler, so that these count, and those of the handler's own join don't.
    /// Not read only.
    #[must_use]
    pub fn options(self, options: SqliteOptions) -> Self {
        Self { options, ..self }
    }
}

impl KeyStore for SqliteKeys {
    async fn begin(&self, tx: &Tx, key: &RequestKey, lifetime: Lifetime) -> Result<Found, BoxError> {
        let branch = tx.join_with(&self.resource, self.options.clone()).await?;
        let wanted = key.clone();
        let found = branch.call_own(move |conn| find(conn, &wanted, lifetime)).await?;
        let Some(stored) = found else { return Ok(Found::New) };
        if !stored.was_seen_to_commit(tx) {
            // A killed process leaves rows in the page cache that the disk never gets: this commit syncs them (rule 3).
            branch.call_own(touch).await?;
        }
        Ok(Found::Stored(stored))
    }

    async fn keep(
        &self,
        tx: &Tx,
        key: &RequestKey,
        response: &StoredResponse,
        lifetime: Lifetime,
    ) -> Result<(), BoxError> {
        let branch = tx.join_with(&self.resource, self.options.clone()).await?;
        let (key, response) = (key.clone(), response.clone());
        Ok(branch.call_own(move |conn| keep(conn, &key, &response, lifetime)).await?)
    }
}

fn find(conn: &Connection, key: &RequestKey, lifetime: Lifetime) -> rusqlite::Result<Option<StoredResponse>> {
    let there: bool = conn.query_row(
        "SELECT EXISTS (SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = 'unanimous_idempotency_key')",
        [],
        |row| row.get(0),
    )?;
    if !there {
        return Ok(None);
    }
    conn.query_row(
        "SELECT fingerprint, transaction_id, status, headers, body FROM main.unanimous_idempotency_key \
         WHERE scope = ?1 AND key = ?2 AND expires_at > ?3",
        (key.scope(), key.key(), number(lifetime.now)),
        response,
    )
    .optional()
}

fn response(row: &Row<'_>) -> rusqlite::Result<StoredResponse> {
    let damaged = |column, error: BoxError| rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, error);
    let (status, headers, body): (u16, Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?, row.get(4)?);
    Ok(StoredResponse {
        fingerprint: row.get(0)?,
        transaction: row.get(1)?,
        status: StatusCode::from_u16(status).map_err(|error| damaged(2, error.into()))?,
        headers: StoredResponse::headers_from_bytes(&headers).map_err(|error| damaged(3, error.into()))?,
        body: Bytes::from(body),
    })
}

fn keep(conn: &Connection, key: &RequestKey, response: &StoredResponse, lifetime: Lifetime) -> rusqlite::Result<()> {
    conn.execute_batch(SCHEMA)?;
    conn.execute(
        "DELETE FROM main.unanimous_idempotency_key WHERE rowid IN \
         (SELECT rowid FROM main.unanimous_idempotency_key WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)",
        (number(lifetime.now), EXPIRED_AT_ONCE),
    )?;
    conn.execute(
        "DELETE FROM main.unanimous_idempotency_key WHERE scope = ?1 AND key = ?2 AND expires_at <= ?3",
        (key.scope(), key.key(), number(lifetime.now)),
    )?;
    // Another row can't be there, since `find` has seen none.
    conn.execute(
        "INSERT INTO main.unanimous_idempotency_key \
         (scope, key, transaction_id, expires_at, fingerprint, status, headers, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        (
            key.scope(),
            key.key(),
            &response.transaction,
            number(lifetime.expires_at),
            &response.fingerprint[..],
            response.status.as_u16(),
            response.headers_to_bytes(),
            &response.body[..],
        ),
    )?;
    Ok(())
}

/// SQLite's integers are signed; times in microseconds are far below the bound.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
