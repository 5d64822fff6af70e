//! The decision rows as SQL: carried, asked for, marked as finished, let go. The tables are described in `schema.sql`.
//!
//! Each text is one message of the simple protocol that ends its own transaction (but [`insert`]'s, which is put in front of a commit), so
//! that a client that dies never leaves a transaction open which others wait for.
//!
//! Must not know connections, nor who asks why.

use std::fmt::Write as _;
use std::time::Duration;

use tokio_postgres::SimpleQueryRow;
use unanimous_core::log::record;
use unanimous_core::{DecisionRecord, LogId, Note, Owner, Participant, StoreId, TransactionId};

use super::error::PostgresError;
use super::sql::literal;

/// What decides, as the rows say it. Each has its rows to itself: their horizons differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The commit of the work in the same database.
    Carrier,
    /// A node's decision log.
    Log,
}

impl By {
    fn text(self) -> &'static str {
        match self {
            By::Carrier => "carrier",
            By::Log => "log",
        }
    }
}

/// How many rows that are past the horizon go at once: more than come, and no transaction becomes long by it.
const EXPIRED_AT_ONCE: u32 = 256;

/// A commit that was answered must be on the disk; a stronger setting (`remote_apply`) stays.
pub(super) const DURABLE: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'on', true) \
    WHERE pg_catalog.current_setting('synchronous_commit') = 'off'";

/// Begins a transaction of our own: whatever the defaults are, it writes, each statement sees what is committed before it, and its
/// commit lasts.
pub(super) fn begin(lock_timeout: Duration) -> String {
    let lock_timeout = milliseconds(lock_timeout);
    format!("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = {lock_timeout}; {DURABLE}")
}

/// A query that changes nothing, and waits for its tables no longer than this: somebody may hold them, or queue for them, for long.
pub(super) fn look(query: &str, lock_timeout: Duration) -> String {
    let lock_timeout = milliseconds(lock_timeout);
    format!("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL lock_timeout = {lock_timeout}; {query}; COMMIT")
}

/// For `lock_timeout`, where 0 would be for ever.
pub(super) fn milliseconds(lock_timeout: Duration) -> u128 {
    lock_timeout.as_millis().clamp(1, i32::MAX as u128)
}

/// PostgreSQL's bigint is signed; times, counters and sequences are far below the bound.
pub(super) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The nonce as it stands in ids.
pub(super) fn nonce(owner: Owner) -> String {
    let text = owner.incarnation.to_string();
    literal(text.rsplit_once('.').map_or(text.as_str(), |(_, nonce)| nonce))
}

/// Which rows of incarnations and floors are a run's.
fn run(by: By, owner: Owner) -> String {
    let Owner { log, incarnation } = owner;
    let (decider, nonce) = (by.text(), nonce(owner));
    format!("decider = '{decider}' AND log = '{log}' AND counter = {} AND nonce = {nonce}", incarnation.counter)
}

/// Decides transactions for a node: see [`node`](super::node) for the guard. Gives the rows that are there then, of whichever outcome.
///
/// With `again`, a try before may have written them: they are written again, so that the commit makes them durable (rule 3).
pub(super) fn decide(
    records: &[DecisionRecord],
    owner: Owner,
    guard: &str,
    again: bool,
    lock_timeout: Duration,
) -> String {
    let ids: Vec<_> = records.iter().map(|record| literal(&record.transaction.to_string())).collect();
    let ids = ids.join(", ");
    let participants = participants(records);
    let kept = match participants.is_empty() {
        true => "SELECT count(*) FROM decided".to_owned(),
        false => format!(
            "INSERT INTO unanimous.participant (transaction_id, number, resource, store) \
             SELECT p.* FROM (VALUES {participants}) AS p (transaction_id, number, resource, store) \
             JOIN decided USING (transaction_id)"
        ),
    };
    let again = match again {
        true => format!("UPDATE unanimous.decision SET asked = asked + 1 WHERE transaction_id IN ({ids}); "),
        false => String::new(),
    };
    format!(
        "{}; WITH guard AS MATERIALIZED ({guard}), \
         decided AS (INSERT INTO unanimous.decision (transaction_id, decider, log, counter, outcome, decided_at, note) \
           SELECT d.id, 'log', '{}', {}, 'commit', d.decided_at, d.note \
           FROM guard, (VALUES {}) AS d (id, decided_at, note) \
           ON CONFLICT (transaction_id) DO NOTHING RETURNING transaction_id) \
         {kept}; {again}{}; COMMIT",
        begin(lock_timeout),
        owner.log,
        owner.incarnation.counter,
        decisions(records),
        select(&format!("d.transaction_id IN ({ids})")),
    )
}

/// Of the advisory lock that keeps rows from being let go while they are asked for: for each log another. (A node's is the other half of
/// its log's id.)
fn rows_lock(log: LogId) -> i64 {
    log.0 as u64 as i64
}

/// Whether the rows can hold a decision.
pub(super) fn check(record: &DecisionRecord) -> Result<(), PostgresError> {
    record::check(record).map_err(|error| PostgresError::Unwritable(error.to_string()))?;
    if i64::try_from(record.decided_at).is_err() {
        return Err(PostgresError::Unwritable("its time is out of range".to_owned()));
    }
    match record.participants.iter().find(|participant| participant.resource.contains('\0')) {
        Some(participant) => {
            Err(PostgresError::Unwritable(format!("the resource's name {:?} has a zero in it", participant.resource)))
        }
        None => Ok(()),
    }
}

/// `(id, decided_at, note), ...`
pub(super) fn decisions<'r>(records: impl IntoIterator<Item = &'r DecisionRecord>) -> String {
    let mut sql = String::new();
    for record in records {
        let comma = if sql.is_empty() { "" } else { ", " };
        let id = literal(&record.transaction.to_string());
        // A text here has no zeros; a note is for people, and can do without.
        let note = literal(&record.note.as_str().replace('\0', ""));
        let _ = write!(sql, "{comma}({id}, {}::bigint, {note})", number(record.decided_at));
    }
    sql
}

/// `(id, number, resource, store), ...`; empty where there are none.
pub(super) fn participants<'r>(records: impl IntoIterator<Item = &'r DecisionRecord>) -> String {
    let mut sql = String::new();
    for record in records {
        let id = literal(&record.transaction.to_string());
        for participant in &record.participants {
            let comma = if sql.is_empty() { "" } else { ", " };
            let store = participant.store.as_ref().map_or("NULL".to_owned(), |store| literal(store.as_str()));
            let (number, resource) = (participant.number, literal(&participant.resource));
            let _ = write!(sql, "{comma}({id}, {number}, {resource}, {store}::text)");
        }
    }
    sql
}

/// Inserts the commit row of a carrier; fails with 23505 where a row of either outcome is there, and with 23502 (there is no `counter`)
/// where its incarnation has been let go, and the fence with it.
pub(super) fn insert(record: &DecisionRecord) -> String {
    let log = record.transaction.log;
    let mut sql = format!(
        "INSERT INTO unanimous.decision (transaction_id, decider, log, counter, outcome, decided_at, note) \
         SELECT id, 'carrier', '{log}', (SELECT counter FROM unanimous.incarnation WHERE {} FOR KEY SHARE), 'commit', decided_at, note \
         FROM (VALUES {}) AS d (id, decided_at, note)",
        run(By::Carrier, record.transaction.owner()),
        decisions([record])
    );
    let participants = participants([record]);
    if !participants.is_empty() {
        let _ = write!(
            sql,
            "; INSERT INTO unanimous.participant (transaction_id, number, resource, store) VALUES {participants}"
        );
    }
    sql
}

/// Makes a session keep what [`insert_kept`] executes, so that it is planned once; ends with a semicolon.
pub(super) fn keep() -> &'static str {
    "PREPARE unanimous_decide (text, text, bigint, text, bigint, text) AS \
       INSERT INTO unanimous.decision (transaction_id, decider, log, counter, outcome, decided_at, note) \
       VALUES ($1, 'carrier', $2, (SELECT counter FROM unanimous.incarnation \
         WHERE decider = 'carrier' AND log = $2 AND counter = $3 AND nonce = $4 FOR KEY SHARE), 'commit', $5, $6); \
     PREPARE unanimous_participant (text, integer, text, text) AS \
       INSERT INTO unanimous.participant (transaction_id, number, resource, store) VALUES ($1, $2, $3, $4); "
}

/// [`insert`] in a session that keeps its statements.
pub(super) fn insert_kept(record: &DecisionRecord) -> String {
    let id = literal(&record.transaction.to_string());
    let Owner { log, incarnation } = record.transaction.owner();
    let mut sql = format!(
        "EXECUTE unanimous_decide ({id}, '{log}', {}, {}, {}, {})",
        incarnation.counter,
        nonce(record.transaction.owner()),
        number(record.decided_at),
        literal(&record.note.as_str().replace('\0', "")),
    );
    for participant in &record.participants {
        let store = participant.store.as_ref().map_or("NULL".to_owned(), |store| literal(store.as_str()));
        let (number, resource) = (participant.number, literal(&participant.resource));
        let _ = write!(sql, "; EXECUTE unanimous_participant ({id}, {number}, {resource}, {store})");
    }
    sql
}

/// Makes an incarnation known that may carry decisions here. Gives the server that it is known with.
pub(super) fn register(owner: Owner, server: &str, now: u64, lock_timeout: Duration) -> String {
    format!(
        "{}; {}; COMMIT",
        begin(lock_timeout),
        // What is there already is written again: it may not be durable yet.
        format_args!(
            "INSERT INTO unanimous.incarnation AS i (decider, log, counter, nonce, server, started_at) \
             VALUES ('carrier', '{}', {}, {}, {}, {}) \
             ON CONFLICT (decider, log, counter, nonce) DO UPDATE SET started_at = i.started_at RETURNING server",
            owner.log,
            owner.incarnation.counter,
            nonce(owner),
            literal(server),
            number(now)
        )
    )
}

/// A question about a transaction's decision.
pub(super) struct Question<'q> {
    pub(super) by: By,
    pub(super) transaction: TransactionId,
    /// The server that is asked.
    pub(super) server: &'q str,
    pub(super) now: u64,
    pub(super) lock_timeout: Duration,
    /// Who may presume: a query with one row or none, which stays as it is until the transaction ends.
    pub(super) guard: &'q str,
}

/// The guard of who needs none.
pub(super) const UNGUARDED: &str = "SELECT 1";

/// Asks what the rows say of a transaction; fences it where they say nothing and may say so. What is answered is durable when the commit
/// is: a fence was written, and a row that was there is written again (rule 3).
///
/// The outcome is read behind the insert, not concluded from it: the row that was in its way can be another recoverer's fence. An insert
/// waits for one that is not committed yet, so that a carrier that is about to commit is waited for, at most for the lock timeout.
pub(super) fn ask(question: &Question<'_>) -> String {
    let Question { by, transaction, server, now, lock_timeout, guard } = *question;
    let (decider, now, id) = (by.text(), number(now), literal(&transaction.to_string()));
    let run = run(by, transaction.owner());
    let known = format!("EXISTS (SELECT FROM unanimous.incarnation WHERE {run} AND server = {})", literal(server));
    let beyond = format!(
        "(EXISTS (SELECT FROM unanimous.floor WHERE {run} AND sequence >= {}) OR {} < \
         (SELECT min(counter) FROM unanimous.incarnation WHERE decider = '{decider}' AND log = '{}'))",
        number(transaction.sequence),
        transaction.incarnation.counter,
        transaction.log
    );
    format!(
        "{}; SELECT pg_catalog.pg_advisory_xact_lock_shared({}); \
         INSERT INTO unanimous.decision (transaction_id, decider, log, counter, outcome, decided_at, finished_at) \
         SELECT {id}, '{decider}', '{}', {}, 'abort', {now}, {now} FROM ({guard}) AS guard \
         WHERE {known} AND NOT {beyond} ON CONFLICT (transaction_id) DO NOTHING; \
         UPDATE unanimous.decision SET asked = asked + 1 WHERE transaction_id = {id}; \
         {}; \
         SELECT {known} AS known, {beyond} AS beyond, EXISTS ({guard}) AS guarded; COMMIT",
        begin(lock_timeout),
        rows_lock(transaction.log),
        transaction.log,
        transaction.incarnation.counter,
        select(&format!("d.transaction_id = {id}")),
    )
}

/// The rows of decisions, a participant in each, in the order of their decision.
pub(super) fn select(which: &str) -> String {
    format!(
        "SELECT d.transaction_id, d.outcome, d.decided_at, d.note, p.number, p.resource, p.store FROM unanimous.decision AS d \
         LEFT JOIN unanimous.participant AS p USING (transaction_id) WHERE {which} \
         ORDER BY d.decided_at, d.transaction_id, p.number"
    )
}

/// The decisions of a log to commit that are not known to be finished. Only a look: see [`force`].
pub(super) fn unfinished(by: By, log: LogId) -> String {
    let decider = by.text();
    select(&format!("d.decider = '{decider}' AND d.log = '{log}' AND d.finished_at IS NULL AND d.outcome = 'commit'"))
}

/// The same query, and what it read is durable when the commit is (rule 3).
pub(super) fn force(query: &str, lock_timeout: Duration) -> String {
    format!("{}; {query}; UPDATE unanimous.format SET asked = asked + 1; COMMIT", begin(lock_timeout))
}

/// Marks transactions as finished, and lets go what is past the horizon of `owner`'s own log. Not forced: what is lost of it is done again.
///
/// Commit rows go when they are finished, and leave a floor. Incarnations go when they ended before the horizon and have no rows but
/// fences from before it. Fences go when their incarnation is gone: its process may only be suspended, and a late commit of it meets
/// either the fence or [`insert`]'s question for the incarnation. One that is about to commit holds it, and it stays.
pub(super) fn finish(
    by: By,
    finished: &[TransactionId],
    owner: Option<Owner>,
    now: u64,
    horizon: Duration,
    lock_timeout: Duration,
) -> String {
    let mut sql = format!("{}; SET LOCAL synchronous_commit = off", begin(lock_timeout));
    if !finished.is_empty() {
        let ids: Vec<_> = finished.iter().map(|transaction| literal(&transaction.to_string())).collect();
        let _ = write!(
            sql,
            "; UPDATE unanimous.decision SET finished_at = {} \
             WHERE transaction_id IN ({}) AND outcome = 'commit' AND finished_at IS NULL",
            number(now),
            ids.join(", ")
        );
    }
    if let Some(owner) = owner {
        let horizon = number(now.saturating_sub(u64::try_from(horizon.as_micros()).unwrap_or(u64::MAX)));
        let (decider, log, counter) = (by.text(), owner.log, owner.incarnation.counter);
        let lock = rows_lock(log);
        // An id that can't be read is left for an operator: deleting its row would raise no floor, or not its own.
        let readable = format!("^{log}[.][0-9]{{1,10}}[.][0-9a-z]{{8}}[.][0-9]{{1,15}}$");
        let _ = write!(
            sql,
            "; WITH old AS (SELECT transaction_id FROM unanimous.decision \
               WHERE (SELECT pg_catalog.pg_try_advisory_xact_lock({lock})) \
               AND log = '{log}' AND finished_at <= {horizon} AND decider = '{decider}' AND outcome = 'commit' \
               AND transaction_id ~ '{readable}' \
               ORDER BY finished_at LIMIT {EXPIRED_AT_ONCE}), \
             gone AS (DELETE FROM unanimous.decision AS d USING old WHERE d.transaction_id = old.transaction_id \
               RETURNING d.transaction_id), \
             rest AS (DELETE FROM unanimous.participant AS p USING old WHERE p.transaction_id = old.transaction_id) \
             INSERT INTO unanimous.floor AS f (decider, log, counter, nonce, sequence) \
             SELECT '{decider}', '{log}', pg_catalog.split_part(transaction_id, '.', 2)::bigint, \
               pg_catalog.split_part(transaction_id, '.', 3), max(pg_catalog.split_part(transaction_id, '.', 4)::bigint) \
             FROM gone GROUP BY 3, 4 \
             ON CONFLICT (decider, log, counter, nonce) DO UPDATE SET sequence = greatest(f.sequence, excluded.sequence); \
             WITH old AS (SELECT counter, nonce FROM unanimous.incarnation AS i \
               WHERE (SELECT pg_catalog.pg_try_advisory_xact_lock({lock})) \
               AND decider = '{decider}' AND log = '{log}' AND counter < {counter} \
               AND EXISTS (SELECT FROM unanimous.incarnation AS next WHERE next.decider = '{decider}' AND next.log = '{log}' \
                 AND next.counter > i.counter AND next.started_at <= {horizon}) \
               AND NOT EXISTS (SELECT FROM unanimous.decision AS d WHERE d.decider = '{decider}' AND d.log = '{log}' \
                 AND d.counter <= i.counter AND (d.outcome = 'commit' OR (d.finished_at <= {horizon}) IS NOT TRUE)) \
               FOR UPDATE OF i SKIP LOCKED), \
             gone AS (DELETE FROM unanimous.incarnation AS i USING old \
               WHERE i.decider = '{decider}' AND i.log = '{log}' AND i.counter = old.counter AND i.nonce = old.nonce) \
             DELETE FROM unanimous.floor AS f USING old \
             WHERE f.decider = '{decider}' AND f.log = '{log}' AND f.counter = old.counter AND f.nonce = old.nonce; \
             WITH old AS (SELECT transaction_id FROM unanimous.decision AS d \
               WHERE (SELECT pg_catalog.pg_try_advisory_xact_lock({lock})) \
               AND log = '{log}' AND finished_at <= {horizon} AND decider = '{decider}' AND outcome = 'abort' \
               AND counter < {counter} AND transaction_id ~ '{readable}' \
               AND NOT EXISTS (SELECT FROM unanimous.incarnation AS i WHERE i.decider = '{decider}' AND i.log = '{log}' \
                 AND i.counter = d.counter AND i.nonce = pg_catalog.split_part(d.transaction_id, '.', 3)) \
               ORDER BY finished_at LIMIT {EXPIRED_AT_ONCE}) \
             DELETE FROM unanimous.decision AS d USING old WHERE d.transaction_id = old.transaction_id"
        );
    }
    sql.push_str("; COMMIT");
    sql
}

/// What a row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decided {
    Commit(DecisionRecord),
    Abort,
}

/// A decision as its rows tell it.
pub(super) struct Found {
    pub(super) id: String,
    /// An error where a row can't be read. The others can.
    pub(super) decided: Result<Decided, PostgresError>,
}

/// Reads what [`select`] gave; rows of other queries are left out.
pub(super) fn read<'r>(rows: impl Iterator<Item = &'r SimpleQueryRow>) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for row in rows {
        let Ok(Some(id)) = row.try_get("transaction_id") else { continue };
        let damaged = |what: &str| PostgresError::Damaged(format!("the decision row of {id}: {what}"));
        if found.last().is_none_or(|last| last.id != id) {
            found.push(Found { id: id.to_owned(), decided: head(row, id).map_err(damaged) });
        }
        let last = found.last_mut().expect("just pushed");
        if let (Ok(Decided::Commit(record)), Some(number)) = (&mut last.decided, row.get("number")) {
            match participant(row, number) {
                Some(participant) => record.participants.push(participant),
                None => last.decided = Err(damaged("a participant of it can't be read")),
            }
        }
    }
    found
}

fn head(row: &SimpleQueryRow, id: &str) -> Result<Decided, &'static str> {
    let transaction = id.parse().map_err(|_| "its id can't be read")?;
    match row.get("outcome") {
        Some("abort") => Ok(Decided::Abort),
        Some("commit") => {
            let decided_at = row.get("decided_at").and_then(|at| at.parse().ok()).ok_or("its time can't be read")?;
            let note = Note::new(row.get("note").unwrap_or_default());
            Ok(Decided::Commit(DecisionRecord { transaction, participants: Vec::new(), decided_at, note }))
        }
        _ => Err("its outcome is neither commit nor abort"),
    }
}

fn participant(row: &SimpleQueryRow, number: &str) -> Option<Participant> {
    let store = row.get("store").map(str::parse::<StoreId>).transpose().ok()?;
    Some(Participant { number: number.parse().ok()?, resource: row.get("resource")?.to_owned(), store })
}
