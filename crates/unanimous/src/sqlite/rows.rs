//! Our tables: the database's identity, and the decisions that its commits carry.
//!
//! ```sql
//! select transaction_id, outcome, datetime(decided_at / 1000000, 'unixepoch'), finished_at is not null as finished
//!   from unanimous_decision order by decided_at desc;
//! select * from unanimous_participant where transaction_id = '...';
//! ```
//!
//! - `unanimous_identity`: one row, written once.
//! - `unanimous_decision`: a row for each transaction that this database decided. `commit` came with the work's own
//!   commit; `abort` is a fence: somebody asked, found nothing, and made sure that a late commit can't follow.
//!   `finished_at` is when every branch was known to be confirmed, for a fence when it was made. `asked` grows with
//!   each time that recovery was told the row, so that telling it is a real write.
//! - `unanimous_participant`: the prepared branches of each.
//! - `unanimous_floor`: for each incarnation of a log, the highest sequence whose row was deleted: no row at or below
//!   it says nothing.
//!
//! Every function runs within a transaction that its caller began, and ends none.
//! Must not know threads or branches.

use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row};
use unanimous_core::{DecisionRecord, HoldReason, Known, Note, Owner, Participant, StoreId, TransactionId};

use super::error::DecisionError;

/// The tables that the application's work must not change.
const TABLES: [&str; 5] = [
    "unanimous_identity",
    "unanimous_decision",
    "unanimous_participant",
    "unanimous_floor",
    "unanimous_idempotency_key",
];

/// How many expired rows one commit takes along at most, so that none becomes slow by it. More than one, so that they
/// go faster than they come.
const EXPIRED_AT_ONCE: i64 = 64;

/// Old shells must be able to read them at three in the morning: no STRICT (3.37), no generated columns (3.31).
pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS main.unanimous_identity (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        store TEXT NOT NULL,
        format INTEGER NOT NULL,
        asked INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE IF NOT EXISTS main.unanimous_decision (
        transaction_id TEXT NOT NULL PRIMARY KEY,
        log TEXT NOT NULL,
        counter INTEGER NOT NULL,
        outcome TEXT NOT NULL CHECK (outcome IN ('commit', 'abort')),
        decided_at INTEGER NOT NULL,
        finished_at INTEGER,
        asked INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS main.unanimous_decision_finished ON unanimous_decision (outcome, finished_at);
    CREATE TABLE IF NOT EXISTS main.unanimous_participant (
        transaction_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        resource TEXT NOT NULL,
        store TEXT,
        PRIMARY KEY (transaction_id, number)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS main.unanimous_floor (
        log TEXT NOT NULL,
        counter INTEGER NOT NULL,
        nonce INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        PRIMARY KEY (log, counter, nonce)
    ) WITHOUT ROWID;
";

/// Whether a table is one of ours.
pub(super) fn is_ours(table: &str) -> bool {
    TABLES.iter().any(|ours| table.eq_ignore_ascii_case(ours))
}

/// Whether a row is there already, of whichever outcome.
pub(super) enum Carried {
    /// The row was inserted.
    Inserted,
    /// A fence was there before.
    Fenced,
    /// A commit row was there before.
    Repeated,
}

/// Inserts a transaction's commit row with its participants.
pub(super) fn carry(conn: &Connection, record: &DecisionRecord) -> rusqlite::Result<Carried> {
    let id = record.transaction.to_string();
    let inserted = conn.execute(
        "INSERT INTO main.unanimous_decision (transaction_id, log, counter, outcome, decided_at) VALUES (?1, ?2, ?3, 'commit', ?4)",
        (&id, record.transaction.log.to_string(), record.transaction.incarnation.counter, micros(record.decided_at)),
    );
    match inserted {
        Ok(_) => {}
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            return Ok(match outcome(conn, &id)? {
                Some(outcome) if outcome == "commit" => Carried::Repeated,
                Some(_) => Carried::Fenced,
                None => return Err(error),
            });
        }
        Err(error) => return Err(error),
    }
    let mut insert = conn.prepare(
        "INSERT INTO main.unanimous_participant (transaction_id, number, resource, store) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for participant in &record.participants {
        let store = participant.store.as_ref().map(StoreId::as_str);
        insert.execute((&id, participant.number, &participant.resource, store))?;
    }
    Ok(Carried::Inserted)
}

/// Marks transactions as finished: every branch of each is confirmed.
pub(super) fn finish(conn: &Connection, transactions: &[TransactionId], now: u64) -> rusqlite::Result<()> {
    if transactions.is_empty() {
        return Ok(());
    }
    let mut update = conn.prepare(
        "UPDATE main.unanimous_decision SET finished_at = ?2 \
         WHERE transaction_id = ?1 AND outcome = 'commit' AND finished_at IS NULL",
    )?;
    for transaction in transactions {
        update.execute((transaction.to_string(), micros(now)))?;
    }
    Ok(())
}

/// Deletes rows of `owner`'s own log that are past the horizon, some at a time, and raises their incarnations' floors.
/// Those of other logs are their owners', whose horizon may be a longer one.
///
/// Commit rows go when they are finished. Fences go when they are of an earlier incarnation, whose carriers are dead
/// since `owner` holds the log; one of the present incarnation may still be what stops a late carrier.
pub(super) fn expire(conn: &Connection, owner: Owner, horizon: u64) -> rusqlite::Result<()> {
    let (horizon, log) = (micros(horizon), owner.log.to_string());
    let mut expired: Vec<String> = conn
        .prepare(
            "SELECT transaction_id FROM main.unanimous_decision \
             WHERE outcome = 'commit' AND finished_at IS NOT NULL AND finished_at <= ?1 AND log = ?2 \
             ORDER BY finished_at LIMIT ?3",
        )?
        .query_map((horizon, &log, EXPIRED_AT_ONCE), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let fences: Vec<String> = conn
        .prepare(
            "SELECT transaction_id FROM main.unanimous_decision \
             WHERE outcome = 'abort' AND finished_at <= ?1 AND log = ?2 AND counter < ?3 ORDER BY finished_at LIMIT ?4",
        )?
        .query_map((horizon, &log, owner.incarnation.counter, EXPIRED_AT_ONCE), |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    expired.extend(fences);
    for id in &expired {
        // A row whose id can't be read, or is another log's, is left for an operator: deleting it would raise no floor, or not its
        // own.
        let Some(transaction) = id.parse::<TransactionId>().ok().filter(|transaction| transaction.log == owner.log)
        else {
            continue;
        };
        conn.execute(
            "INSERT INTO main.unanimous_floor (log, counter, nonce, sequence) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (log, counter, nonce) DO UPDATE SET sequence = max(sequence, excluded.sequence)",
            (
                transaction.log.to_string(),
                transaction.incarnation.counter,
                micros(transaction.incarnation.nonce),
                micros(transaction.sequence),
            ),
        )?;
        conn.execute("DELETE FROM main.unanimous_participant WHERE transaction_id = ?1", [id])?;
        conn.execute("DELETE FROM main.unanimous_decision WHERE transaction_id = ?1", [id])?;
    }
    Ok(())
}

/// What the rows say of a transaction of `owner`'s own log; fences it where they say nothing. What is answered is not
/// durable before the caller has committed: a fence is written, a row that was there is written again (rule 3).
pub(super) fn ask(
    conn: &Connection,
    transaction: TransactionId,
    owner: Owner,
    now: u64,
) -> Result<Known, DecisionError> {
    if transaction.log != owner.log {
        return Ok(Known::Hold(HoldReason::ForeignLog));
    }
    let (its, present) = (transaction.incarnation, owner.incarnation);
    if its.counter > present.counter || (its.counter == present.counter && its.nonce != present.nonce) {
        return Ok(Known::Hold(HoldReason::ForeignIncarnation));
    }
    let id = transaction.to_string();
    let failed = |doing| move |source| DecisionError::Sqlite { doing, source };
    let found = outcome(conn, &id).map_err(failed("reading the decision row"))?;
    if found.is_none() && floor(conn, transaction).map_err(failed("reading the floor"))? >= Some(transaction.sequence) {
        return Ok(Known::Hold(HoldReason::BeyondHorizon));
    }
    conn.execute(
        "INSERT INTO main.unanimous_decision (transaction_id, log, counter, outcome, decided_at, finished_at) \
         VALUES (?1, ?2, ?3, 'abort', ?4, ?4) ON CONFLICT (transaction_id) DO NOTHING",
        (&id, transaction.log.to_string(), its.counter, micros(now)),
    )
    .map_err(failed("fencing the transaction"))?;
    // The outcome is read, not concluded from the insert: the row that was in its way can be another recoverer's fence.
    let outcome = outcome(conn, &id).map_err(failed("reading the decision row"))?;
    conn.execute("UPDATE main.unanimous_decision SET asked = asked + 1 WHERE transaction_id = ?1", [&id])
        .map_err(failed("writing the decision row again"))?;
    known(conn, transaction, outcome.as_deref())
}

/// What the row of a transaction says, whichever log's it is; fences nothing where there is none. Durable when the caller has committed.
pub(super) fn decided(conn: &Connection, transaction: TransactionId) -> Result<Option<Known>, DecisionError> {
    let outcome = outcome(conn, &transaction.to_string())
        .map_err(|source| DecisionError::Sqlite { doing: "reading the decision row", source })?;
    let Some(outcome) = outcome else { return Ok(None) };
    let known = known(conn, transaction, Some(&outcome))?;
    touch(conn).map_err(|source| DecisionError::Sqlite { doing: "forcing the decision that was read", source })?;
    Ok(Some(known))
}

/// What the outcome of a transaction's row says. Another one than these two, or none where there must be a row, is damage.
fn known(conn: &Connection, transaction: TransactionId, outcome: Option<&str>) -> Result<Known, DecisionError> {
    match outcome {
        Some("abort") => Ok(Known::Abort),
        Some("commit") => record(conn, transaction).map(Known::Commit),
        other => {
            let what = format!("its outcome is {other:?}");
            Err(DecisionError::Damaged { transaction: transaction.to_string(), what })
        }
    }
}

/// Whether there is a row of a transaction, of either outcome. Only a look.
pub(super) fn has_decision(conn: &Connection, transaction: TransactionId) -> Result<bool, DecisionError> {
    let outcome = outcome(conn, &transaction.to_string());
    outcome
        .map(|outcome| outcome.is_some())
        .map_err(|source| DecisionError::Sqlite { doing: "looking for a decision row", source })
}

/// What a log still has to finish here.
pub(super) struct Unfinished {
    pub(super) records: Vec<DecisionRecord>,
    /// Rows that can't be read. They stay as they are: a branch of theirs that is listed somewhere asks for its own decision,
    /// and is held by the same error.
    pub(super) damaged: Vec<DecisionError>,
}

/// The transactions of a log that committed here and are not known to be finished. A damaged row does not keep the
/// others from being finished.
pub(super) fn unfinished(conn: &Connection, owner: Owner) -> Result<Unfinished, DecisionError> {
    let failed = |source| DecisionError::Sqlite { doing: "listing unfinished decisions", source };
    // An id that is no text, or no UTF-8, is a damage of its row too; it is named in hex.
    let ids: Vec<(Option<String>, String)> = conn
        .prepare(
            "SELECT transaction_id, hex(transaction_id) FROM main.unanimous_decision \
             WHERE outcome = 'commit' AND finished_at IS NULL AND log = ?1 ORDER BY decided_at, transaction_id",
        )
        .and_then(|mut rows| {
            rows.query_map([owner.log.to_string()], |row| Ok((row.get(0).ok(), row.get(1)?)))?.collect()
        })
        .map_err(failed)?;
    let parse = |id: String| match id.parse::<TransactionId>() {
        Ok(transaction) if transaction.log == owner.log => Ok(transaction),
        Ok(_) => Err(DecisionError::Damaged { transaction: id, what: "its id and its log differ".to_owned() }),
        Err(error) => Err(DecisionError::Damaged { transaction: id, what: error.to_string() }),
    };
    let mut unfinished = Unfinished { records: Vec::new(), damaged: Vec::new() };
    for (id, hex) in ids {
        let id = id.ok_or_else(|| DecisionError::Damaged {
            transaction: format!("the transaction where hex(transaction_id) = '{hex}'"),
            what: "its id is not text".to_owned(),
        });
        match id.and_then(parse).and_then(|transaction| record(conn, transaction)) {
            Ok(record) => unfinished.records.push(record),
            Err(damaged @ DecisionError::Damaged { .. }) => unfinished.damaged.push(damaged),
            Err(error) => return Err(error),
        }
    }
    Ok(unfinished)
}

/// A real write, which commits with a sync: it makes durable whatever was read in the same transaction (rule 3).
pub(super) fn touch(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute("UPDATE main.unanimous_identity SET asked = asked + 1", []).map(drop)
}

/// The database's identity and the format of our tables.
pub(super) fn identity(conn: &Connection) -> rusqlite::Result<Option<(String, i64)>> {
    conn.query_row("SELECT store, format FROM main.unanimous_identity", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

fn outcome(conn: &Connection, id: &str) -> rusqlite::Result<Option<String>> {
    conn.query_row("SELECT outcome FROM main.unanimous_decision WHERE transaction_id = ?1", [id], |row| row.get(0))
        .optional()
}

fn floor(conn: &Connection, transaction: TransactionId) -> rusqlite::Result<Option<u64>> {
    let incarnation = transaction.incarnation;
    conn.query_row(
        "SELECT sequence FROM main.unanimous_floor WHERE log = ?1 AND counter = ?2 AND nonce = ?3",
        (transaction.log.to_string(), incarnation.counter, micros(incarnation.nonce)),
        |row| unsigned(row, 0),
    )
    .optional()
}

fn record(conn: &Connection, transaction: TransactionId) -> Result<DecisionRecord, DecisionError> {
    let id = transaction.to_string();
    let read = || -> rusqlite::Result<DecisionRecord> {
        let decided_at =
            conn.query_row("SELECT decided_at FROM main.unanimous_decision WHERE transaction_id = ?1", [&id], |row| {
                unsigned(row, 0)
            })?;
        let participants = conn
            .prepare("SELECT number, resource, store FROM main.unanimous_participant WHERE transaction_id = ?1 ORDER BY number")?
            .query_map([&id], participant)?
            .collect::<Result<_, _>>()?;
        Ok(DecisionRecord { transaction, participants, decided_at, note: Note::default() })
    };
    read().map_err(|source| match source.sqlite_error_code() {
        Some(_) => DecisionError::Sqlite { doing: "reading the decision row", source },
        None => DecisionError::Damaged { transaction: id.clone(), what: source.to_string() },
    })
}

fn participant(row: &Row<'_>) -> rusqlite::Result<Participant> {
    let store: Option<String> = row.get(2)?;
    let store = store
        .map(|store| store.parse())
        .transpose()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(2, Type::Text, Box::new(error)))?;
    Ok(Participant { number: row.get(0)?, resource: row.get(1)?, store })
}

/// SQLite's integers are signed; microseconds, nonces and sequences are far below the bound.
fn micros(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}
