//! [`PostgresKeys`]: idempotency keys and their first responses, in a table of the store's own.
//!
//! ```text
//! try the key's advisory lock; INSERT the key    one statement, within the request's transaction
//! SELECT the row                                 only where nothing was inserted
//! UPDATE the row with the response               when the handler has answered
//! UPDATE the row as it is                        before a repeat is given a response that this process has not seen commit
//! ```
//!
//! The key is inserted before the handler works, not only looked for: a repeat that meets a row which its snapshot can't see fails at once (40001),
//! before any work; and under SERIALIZABLE an insert reads nothing that another key's request writes, where a look for a row that is not there
//! would make every two requests conflict (<https://www.postgresql.org/docs/current/transaction-iso.html#XACT-SERIALIZABLE>).
//!
//! Knows the transaction's handle and the trait of stores of keys. Must not know requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, SimpleQueryMessage};
use unanimous_core::{BoxError, BranchError, FailureKind};

use super::branch::PostgresBranch;
use super::control::ask;
use super::error::PostgresError;
use super::options::PostgresOptions;
use super::rows::{self, number};
use super::schema::{self, SCHEMA};
use super::{Postgres, session};
use crate::http::{Found, KeyStore, Lifetime, RequestKey, StoredResponse};
use crate::sync::lock;
use crate::transaction::Tx;

/// The table's name in the schema.
const TABLE: &str = "idempotency_key";

/// How often an expired row is replaced before that counts as a conflict: others may do the same.
const TRIES: usize = 3;

/// How often expired rows are looked for at most.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// How many expired rows are deleted in one transaction.
const SWEPT_AT_ONCE: usize = 500;

/// How long a deletion waits for others.
const SWEEP_LOCK_TIMEOUT: Duration = Duration::from_millis(500);

const LOOKING: &str = "looking an idempotency key up";
const KEEPING: &str = "keeping the response for an idempotency key";
const SWEEPING: &str = "deleting expired idempotency keys";

/// Keeps idempotency keys in a PostgreSQL database, in the table `unanimous.idempotency_key`, for
/// [`IdempotencyLayer`](crate::http::IdempotencyLayer). The table is made when it is needed and the role may; else by what
/// [`schema_sql`](super::schema_sql) gives.
///
/// Each request with a key joins the database, at one round trip before its handler and one behind it. A repeat whose first request this process has
/// not seen commit writes the row again, so that what it is told lasts. The key's row commits with the request's
/// transaction, in any isolation level. While a request is executed, or its branch is prepared and in doubt, repeats are told that it is in
/// flight, by all processes: a transaction-level advisory lock on 64 bits of a hash of scope and key says so, and a prepared transaction keeps it.
///
/// Expired rows are deleted beside the requests, from a connection of recovery's, every 10 s at most while keys are kept.
///
/// Where the work has changed its role when the handler returns (`SET LOCAL ROLE`), that role needs the right to update the table.
#[derive(Clone, Debug)]
pub struct PostgresKeys {
    resource: Postgres,
    options: PostgresOptions,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The table is known to be there.
    made: tokio::sync::OnceCell<()>,
    sweeping: AtomicBool,
    /// When expired rows were looked for, in microseconds since 1970.
    swept: std::sync::Mutex<Option<u64>>,
}

/// Where the row of a key is that a transaction has inserted.
struct Place(String);

impl PostgresKeys {
    /// Keys in this database, which must be registered with the transactions' manager.
    pub fn new(resource: &Postgres) -> Self {
        Self { resource: resource.clone(), options: PostgresOptions::default(), shared: Arc::default() }
    }

    /// How the database is joined: an isolation level, timeouts. It is joined before the handler, so that these count, and those of the handler's own
    /// join don't. Not read only.
    #[must_use]
    pub fn options(self, options: PostgresOptions) -> Self {
        Self { options, ..self }
    }

    /// Makes the table where it is missing, at start-up rather than with the first request, or says who must.
    ///
    /// # Errors
    ///
    /// When the database can't be reached, or this role may not make the table, or not use it: run [`schema_sql`](super::schema_sql) there.
    pub async fn ready(&self) -> Result<(), PostgresError> {
        self.make().await?;
        let session = self.resource.store.control.session().await?;
        let sql = rows::look(&format!("SELECT 1 FROM {SCHEMA}.{TABLE} LIMIT 0"), SWEEP_LOCK_TIMEOUT);
        ask(&session, LOOKING, &sql).await.map_err(schema::may_not)?;
        self.resource.store.control.give_back(session);
        Ok(())
    }

    async fn make(&self) -> Result<(), PostgresError> {
        let make = || schema::ensure(&self.resource.store.control, TABLE);
        self.shared.made.get_or_try_init(make).await.map(drop)
    }

    async fn look(&self, tx: &Tx, key: &RequestKey, lifetime: Lifetime) -> Result<Found, BoxError> {
        self.made().await?;
        let branch = tx.join_with(&self.resource, self.options.clone()).await?;
        for _ in 0..TRIES {
            let (held, place) = claim(&branch, tx, key, lifetime).await?;
            if let Some(place) = place {
                tx.set_data(&name_of(key), place);
                return Ok(Found::New);
            }
            // A second statement: where it may, it sees what was committed before the lock was there.
            match find(&branch, key).await? {
                Some(row) if !lifetime.has_expired(row.expires_at) => {
                    let stored = row.response()?;
                    if stored.was_seen_to_commit(tx) {
                        return Ok(Found::Stored(stored));
                    }
                    if !held {
                        // Another repeat makes sure of it.
                        return Ok(Found::InFlight);
                    }
                    if force(&branch, key, &stored.transaction).await? {
                        return Ok(Found::Stored(stored));
                    }
                }
                Some(row) if held => forget(&branch, &row.place, lifetime).await?,
                None if held => {}
                // Somebody else executes it, or replaces the row that has expired.
                Some(_) | None => return Ok(Found::InFlight),
            }
        }
        Err(BranchError::conflict(PostgresError::Unwritable(format!(
            "the row of an idempotency key was there and gone {TRIES} times; repeat the request"
        )))
        .into())
    }

    async fn fill(&self, tx: &Tx, key: &RequestKey, response: &StoredResponse) -> Result<(), BoxError> {
        let place = tx.data::<Place>(&name_of(key)).ok_or_else(|| {
            BranchError::refused(PostgresError::Unwritable(
                "no idempotency key was claimed in this transaction".to_owned(),
            ))
        })?;
        let branch = tx.join_with(&self.resource, self.options.clone()).await?;
        let sql = format!(
            "UPDATE {SCHEMA}.{TABLE} SET fingerprint = $1, status = $2, headers = $3, body = $4 \
             WHERE ctid = CAST($5 AS pg_catalog.tid) AND scope = $6 AND key = $7 AND transaction_id = $8"
        );
        let (status, headers) = (i32::from(response.status.as_u16()), response.headers_to_bytes());
        let id = tx.id().to_string();
        let parameters: [(&(dyn ToSql + Sync), Type); 8] = [
            (&&response.fingerprint[..], Type::BYTEA),
            (&status, Type::INT4),
            (&headers, Type::BYTEA),
            (&&response.body[..], Type::BYTEA),
            (&place.0, Type::TEXT),
            (&key.scope(), Type::TEXT),
            (&key.key(), Type::TEXT),
            (&id, Type::TEXT),
        ];
        let filled = within(&branch, KEEPING, branch.execute_typed(&sql, &parameters)).await?;
        if filled == 1 {
            return Ok(());
        }
        // The row went with a rollback to a savepoint of the work's own, or the work has touched it.
        let gone = "the row of the request's idempotency key is gone; the work must not roll back past its own savepoints, nor write into the table";
        Err(BranchError::refused(PostgresError::Unwritable(gone.to_owned())).into())
    }

    /// The table is there, or was made.
    async fn made(&self) -> Result<(), BranchError> {
        self.make().await.map_err(|error| match error {
            PostgresError::NoSchema(_) => error.into_branch(),
            // As where a join fails: the store can't be reached, or is not what it should be now.
            other if other.kind() == FailureKind::Refused => BranchError::lost(other),
            other => other.into_branch(),
        })
    }

    /// Deletes rows that have expired, in the background and by itself: within the request's transaction it would hold up others, and under
    /// SERIALIZABLE fail them.
    fn sweep_soon(&self, now: u64) {
        let shared = &self.shared;
        let every = u64::try_from(SWEEP_EVERY.as_micros()).expect("seconds fit");
        // A clock that goes backwards only makes it look too early.
        if lock(&shared.swept).is_some_and(|last| now.abs_diff(last) < every)
            || shared.sweeping.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let sweeping = Sweeping(self.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        lock(&shared.swept).replace(now);
        drop(runtime.spawn(async move {
            if let Err(error) = sweep(&sweeping.0.resource, now).await {
                tracing::debug!(
                    store = sweeping.0.resource.store.name,
                    error = &error as &(dyn std::error::Error + 'static),
                    "expired idempotency keys were not deleted; it is tried again"
                );
            }
        }));
    }
}

/// One deletes at a time, also where its runtime ends in between.
struct Sweeping(PostgresKeys);

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.0.shared.sweeping.store(false, Ordering::Release);
    }
}

impl KeyStore for PostgresKeys {
    async fn begin(&self, tx: &Tx, key: &RequestKey, lifetime: Lifetime) -> Result<Found, BoxError> {
        self.look(tx, key, lifetime).await
    }

    async fn keep(
        &self,
        tx: &Tx,
        key: &RequestKey,
        response: &StoredResponse,
        lifetime: Lifetime,
    ) -> Result<(), BoxError> {
        self.fill(tx, key, response).await?;
        self.sweep_soon(lifetime.now);
        Ok(())
    }
}

/// Under which the transaction remembers where a key's row is.
fn name_of(key: &RequestKey) -> String {
    format!("{TABLE} {} {}", key.key(), key.scope())
}

/// Takes the key's lock if it can be had, and inserts its row where there is none: whether the lock is held, and where the row is.
async fn claim(
    branch: &PostgresBranch,
    tx: &Tx,
    key: &RequestKey,
    lifetime: Lifetime,
) -> Result<(bool, Option<Place>), BranchError> {
    // DO NOTHING: a row that is there is not even locked, so that a replay writes nothing.
    let sql = format!(
        "WITH held AS MATERIALIZED (SELECT pg_catalog.pg_try_advisory_xact_lock($1) AS held), \
         made AS (INSERT INTO {SCHEMA}.{TABLE} (scope, key, transaction_id, expires_at) \
           SELECT $2, $3, $4, $5 FROM held WHERE held.held ON CONFLICT (scope, key) DO NOTHING RETURNING ctid) \
         SELECT held.held, CAST(made.ctid AS pg_catalog.text) FROM held LEFT JOIN made ON true"
    );
    let (id, expires_at) = (tx.id().to_string(), number(lifetime.expires_at));
    let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
        (&key.number(), Type::INT8),
        (&key.scope(), Type::TEXT),
        (&key.key(), Type::TEXT),
        (&id, Type::TEXT),
        (&expires_at, Type::INT8),
    ];
    let rows = within(branch, LOOKING, branch.query_typed(&sql, &parameters)).await?;
    let row = rows.first().ok_or_else(|| damaged("the server does not say whether its lock is held"))?;
    Ok((column(row, 0)?, column::<Option<String>>(row, 1)?.map(Place)))
}

/// A row of the table.
struct Kept {
    place: Place,
    expires_at: u64,
    row: Row,
}

impl Kept {
    fn response(&self) -> Result<StoredResponse, BoxError> {
        let row = &self.row;
        // It was committed without a response, which only somebody else can have done.
        let missing = || damaged("it has no response");
        let fingerprint: Option<Vec<u8>> = column(row, 2)?;
        let status: Option<i32> = column(row, 3)?;
        let headers: Option<Vec<u8>> = column(row, 4)?;
        let body: Option<Vec<u8>> = column(row, 5)?;
        let headers = StoredResponse::headers_from_bytes(&headers.ok_or_else(missing)?);
        let status = status.and_then(|status| u16::try_from(status).ok()).ok_or_else(missing)?;
        Ok(StoredResponse {
            fingerprint: fingerprint
                .ok_or_else(missing)?
                .try_into()
                .map_err(|_| damaged("its fingerprint has not 32 bytes"))?,
            transaction: column(row, 6)?,
            status: StatusCode::from_u16(status).map_err(|_| damaged("its status is none"))?,
            headers: headers.map_err(|_| damaged("its headers can't be read"))?,
            body: Bytes::from(body.ok_or_else(missing)?),
        })
    }
}

/// The key's row, where there is one that can be seen.
async fn find(branch: &PostgresBranch, key: &RequestKey) -> Result<Option<Kept>, BranchError> {
    let sql = format!(
        "SELECT CAST(ctid AS pg_catalog.text), expires_at, fingerprint, status, headers, body, transaction_id \
         FROM {SCHEMA}.{TABLE} WHERE scope = $1 AND key = $2"
    );
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&key.scope(), Type::TEXT), (&key.key(), Type::TEXT)];
    let mut rows = within(branch, LOOKING, branch.query_typed(&sql, &parameters)).await?;
    let Some(row) = rows.pop() else { return Ok(None) };
    let expires_at = u64::try_from(column::<i64>(&row, 1)?).unwrap_or(0);
    Ok(Some(Kept { place: Place(column(&row, 0)?), expires_at, row }))
}

/// Writes a row again as it is: one that is visible may not be on the disk, nor on the replicas (its client was terminated while it waited for
/// them), and the commit of this write confirms both, or warns (rule 3). False where it is gone.
async fn force(branch: &PostgresBranch, key: &RequestKey, transaction: &str) -> Result<bool, BranchError> {
    let sql = format!(
        "UPDATE {SCHEMA}.{TABLE} SET expires_at = expires_at WHERE scope = $1 AND key = $2 AND transaction_id = $3"
    );
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&key.scope(), Type::TEXT), (&key.key(), Type::TEXT), (&transaction, Type::TEXT)];
    Ok(within(branch, LOOKING, branch.execute_typed(&sql, &parameters)).await? == 1)
}

/// Deletes a row that has expired.
async fn forget(branch: &PostgresBranch, place: &Place, lifetime: Lifetime) -> Result<(), BranchError> {
    let sql = format!("DELETE FROM {SCHEMA}.{TABLE} WHERE ctid = CAST($1 AS pg_catalog.tid) AND expires_at <= $2");
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&place.0, Type::TEXT), (&number(lifetime.now), Type::INT8)];
    within(branch, LOOKING, branch.execute_typed(&sql, &parameters)).await.map(drop)
}

/// An answer to one of our own statements, within the store's limit.
async fn within<T>(
    branch: &PostgresBranch,
    doing: &'static str,
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, BranchError> {
    let asked = async { asked.await.map_err(PostgresError::of(doing)) };
    let answer = session::within(doing, branch.vote_timeout(), asked).await;
    answer.map_err(|error| schema::may_not(error).into_branch())
}

fn column<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, index: usize) -> Result<T, BranchError> {
    row.try_get(index).map_err(|error| damaged(&error.to_string()))
}

fn damaged(what: &str) -> BranchError {
    BranchError::refused(PostgresError::Damaged(format!("the row of an idempotency key in {SCHEMA}.{TABLE}: {what}")))
}

/// Deletes what has expired, some rows in each transaction. What others are about to delete or replace is left to them.
async fn sweep(resource: &Postgres, now: u64) -> Result<(), PostgresError> {
    let control = &resource.store.control;
    let session = control.session().await?;
    let sql = format!(
        "{}; SET LOCAL synchronous_commit = off; \
         DELETE FROM {SCHEMA}.{TABLE} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {SCHEMA}.{TABLE} \
           WHERE expires_at <= {} ORDER BY expires_at LIMIT {SWEPT_AT_ONCE} FOR UPDATE SKIP LOCKED)); COMMIT",
        rows::begin(SWEEP_LOCK_TIMEOUT),
        number(now)
    );
    loop {
        let answer = ask(&session, SWEEPING, &sql).await?;
        let counts = answer.iter().map(|message| match message {
            SimpleQueryMessage::CommandComplete(count) => *count,
            _ => 0,
        });
        if counts.max().unwrap_or(0) < SWEPT_AT_ONCE as u64 {
            break;
        }
    }
    control.give_back(session);
    Ok(())
}
