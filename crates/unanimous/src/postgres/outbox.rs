//! The notifications of a branch: gathered while it works, sent with its commit, or kept as rows of the outbox until then.
//!
//! PostgreSQL does not prepare a transaction that has notified
//! (<https://www.postgresql.org/docs/current/sql-prepare-transaction.html>). So a branch that is prepared writes its
//! notifications as rows of `unanimous.outbox`, which can be seen when it is committed, and which are deleted in the transaction that
//! notifies: by whoever committed it, or by recovery. A row can't be lost, and is deleted once.
//!
//! Must not know when a branch ends, nor how it ends.

use std::sync::Mutex;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use unanimous_core::{BranchId, SavepointId};

use super::control::{self, Control, ask};
use super::error::PostgresError;
use super::rows;
use super::schema;
use super::session::within;
use super::sql::literal;
use crate::sync::lock;

/// The table's name in the schema.
pub(super) const TABLE: &str = "outbox";

/// The longest channel, in bytes (`NAMEDATALEN` without the zero).
const CHANNEL: usize = 63;

/// The longest payload, in bytes: "must be shorter than 8000 bytes"
/// (<https://www.postgresql.org/docs/current/sql-notify.html>).
const PAYLOAD: usize = 7_999;

/// A channel, and a payload, which may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notification {
    channel: String,
    payload: String,
}

impl Notification {
    /// One that the server would take.
    pub(super) fn new(channel: &str, payload: &str) -> Result<Self, PostgresError> {
        if channel.is_empty() || channel.len() > CHANNEL {
            return Err(PostgresError::Notification("a notification's channel has 1 to 63 bytes; choose another name"));
        }
        if payload.len() > PAYLOAD {
            return Err(PostgresError::Notification(
                "a notification's payload is shorter than 8000 bytes; put the data into a table and notify its key",
            ));
        }
        if channel.contains('\0') || payload.contains('\0') {
            return Err(PostgresError::Notification("PostgreSQL's texts have no NUL; encode the notification"));
        }
        Ok(Self { channel: channel.to_owned(), payload: payload.to_owned() })
    }
}

/// What a branch has to notify, in the order in which it was asked for.
#[derive(Debug, Default)]
pub(super) struct Notifications(Mutex<Made>);

#[derive(Debug, Default)]
struct Made {
    all: Vec<Notification>,
    /// How many there were at each savepoint.
    savepoints: Vec<(SavepointId, usize)>,
}

impl Notifications {
    pub(super) fn new(all: Vec<Notification>) -> Self {
        Self(Mutex::new(Made { all, savepoints: Vec::new() }))
    }

    pub(super) fn add(&self, notification: Notification) {
        lock(&self.0).all.push(notification);
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).all.is_empty()
    }

    pub(super) fn savepoint(&self, id: SavepointId) {
        let mut made = lock(&self.0);
        let count = made.all.len();
        made.savepoints.push((id, count));
    }

    /// Those that were asked for since are gone.
    pub(super) fn rollback_to(&self, id: SavepointId) {
        let mut made = lock(&self.0);
        if let Some(&(_, count)) = made.savepoints.iter().find(|(savepoint, _)| *savepoint == id) {
            made.all.truncate(count);
        }
        made.savepoints.retain(|(savepoint, _)| *savepoint <= id);
    }

    fn columns(&self) -> (Vec<String>, Vec<String>) {
        lock(&self.0).all.iter().map(|one| (one.channel.clone(), one.payload.clone())).unzip()
    }

    /// Notifies within the transaction: they go out when it commits, and only then. `marked` divides by zero where the
    /// transaction is not the branch's any more: they would go out at once.
    ///
    /// Sent at the first poll.
    pub(super) async fn send(&self, client: &Client, marked: &str) -> Result<(), tokio_postgres::Error> {
        let (channels, payloads) = self.columns();
        let sql = format!(
            "SELECT pg_catalog.pg_notify(channel, payload) FROM ( \
                SELECT channel, payload FROM unnest($1, $2) WITH ORDINALITY AS made (channel, payload, n) \
                WHERE {marked} = 1 ORDER BY n \
             ) AS made"
        );
        execute(client, &sql, &[(&channels, Type::TEXT_ARRAY), (&payloads, Type::TEXT_ARRAY)]).await
    }

    /// Writes them as rows, within the transaction. As [`send`](Self::send) otherwise.
    pub(super) async fn keep(
        &self,
        client: &Client,
        branch: &BranchId,
        marked: &str,
    ) -> Result<(), tokio_postgres::Error> {
        let (channels, payloads) = self.columns();
        let sql = format!(
            "INSERT INTO {}.{TABLE} (branch, n, channel, payload) SELECT $1, n::int, channel, payload \
             FROM unnest($2, $3) WITH ORDINALITY AS made (channel, payload, n) WHERE {marked} = 1",
            schema::SCHEMA
        );
        let branch = branch.to_string();
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&branch, Type::TEXT), (&channels, Type::TEXT_ARRAY), (&payloads, Type::TEXT_ARRAY)];
        execute(client, &sql, &parameters).await
    }
}

/// One message, not prepared before. (`unnest` with several arrays is syntax, and takes no schema.)
async fn execute(
    client: &Client,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<(), tokio_postgres::Error> {
    client.execute_typed(sql, parameters).await.map(drop)
}

/// Why notifications could not be sent or kept.
pub(super) fn failed(error: tokio_postgres::Error) -> PostgresError {
    schema::may_not(PostgresError::of("notifying")(error))
}

/// How long the delivery of one branch's rows waits for others.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long each step of [`deliver_all`] waits for others: the table may be held, or queued for, by whom recovery ends next.
const BRIEFLY: Duration = Duration::from_millis(500);

/// How long [`deliver_all`] takes at most; what is left is delivered in the next pass.
const ALL_LIMIT: Duration = Duration::from_secs(2);

/// Whether to wait for somebody who delivers the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    Wait,
    Leave,
}

/// What delivers a branch's rows: deletes them and notifies, in one transaction and one message. Where there are none, nothing happens.
///
/// Who has the first row has them all, so that two that deliver at once don't share them out and mix their order.
pub(super) fn deliver_sql(branch: &BranchId) -> String {
    delivery_sql(&branch.to_string())
}

/// The same of a branch that is named by its text.
pub(super) fn delivery_sql(branch: &str) -> String {
    delivery(branch, Busy::Wait)
}

fn delivery(branch: &str, busy: Busy) -> String {
    let branch = literal(branch);
    let (busy, wait) = match busy {
        Busy::Wait => ("", LOCK_TIMEOUT),
        Busy::Leave => (" SKIP LOCKED", BRIEFLY),
    };
    let outbox = format!("{}.{TABLE}", schema::SCHEMA);
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = {}; \
         WITH first AS MATERIALIZED (SELECT FROM {outbox} WHERE branch = {branch} AND n = 1 FOR UPDATE{busy}), \
         delivered AS (DELETE FROM {outbox} WHERE branch = {branch} AND EXISTS (SELECT FROM first) RETURNING n, channel, payload) \
         SELECT pg_catalog.pg_notify(channel, payload) FROM (SELECT channel, payload FROM delivered ORDER BY n) AS delivered; \
         COMMIT",
        rows::milliseconds(wait)
    )
}

/// Delivers a committed branch's notifications, where there are any.
pub(super) async fn deliver(control: &Control, branch: &BranchId) -> Result<(), PostgresError> {
    let session = control.session().await?;
    if schema::has(&session, TABLE).await? {
        ask(&session, DELIVERING, &deliver_sql(branch)).await?;
    }
    control.give_back(session);
    Ok(())
}

/// Delivers what was committed and not delivered: what can be seen in the outbox. What somebody else is delivering is left to them.
/// Where a branch's rows can't be delivered those of the others are; the first failure is told at the end.
pub(super) async fn deliver_all(control: &Control) -> Result<(), PostgresError> {
    within(DELIVERING, ALL_LIMIT, deliver_each(control)).await
}

async fn deliver_each(control: &Control) -> Result<(), PostgresError> {
    let mut session = control.session().await?;
    if !schema::has(&session, TABLE).await? {
        control.give_back(session);
        return Ok(());
    }
    let query = format!("SELECT branch FROM {}.{TABLE} WHERE n = 1 ORDER BY branch", schema::SCHEMA);
    let answer = ask(&session, "looking into the outbox", &rows::look(&query, BRIEFLY)).await?;
    let mut delivered = Ok(());
    for branch in control::rows(&answer).filter_map(|row| row.get(0)) {
        if let Err(error) = ask(&session, DELIVERING, &delivery(branch, Busy::Leave)).await {
            // It may be inside of a transaction that has failed.
            session = control.session().await?;
            delivered = delivered.and(Err(error));
        }
    }
    control.give_back(session);
    delivered
}

const DELIVERING: &str = "delivering notifications";

#[cfg(test)]
mod tests {
    use super::*;

    fn channels(made: &Notifications) -> Vec<String> {
        made.columns().0
    }

    #[test]
    fn what_the_server_would_refuse_is_refused_at_once() {
        let refused = |channel: &str, payload: &str| Notification::new(channel, payload).unwrap_err().to_string();
        assert!(refused("", "").contains("1 to 63 bytes"));
        assert!(refused(&"ä".repeat(32), "").contains("1 to 63 bytes"));
        assert!(refused("jobs", &"x".repeat(8_000)).contains("shorter than 8000 bytes"));
        assert!(refused("jo\0bs", "").contains("NUL"));
        assert!(refused("jobs", "\0").contains("NUL"));
        assert!(Notification::new(&"c".repeat(63), &"x".repeat(7_999)).is_ok());
    }

    #[test]
    fn a_rollback_to_a_savepoint_drops_those_since() {
        let made = Notifications::new(vec![Notification::new("a", "").unwrap()]);
        made.savepoint(SavepointId(1));
        made.add(Notification::new("b", "").unwrap());
        made.savepoint(SavepointId(2));
        made.add(Notification::new("c", "").unwrap());
        made.rollback_to(SavepointId(2));
        assert_eq!(channels(&made), ["a", "b"]);
        made.rollback_to(SavepointId(1));
        made.add(Notification::new("d", "").unwrap());
        made.rollback_to(SavepointId(1));
        assert_eq!(channels(&made), ["a"]);
    }
}
