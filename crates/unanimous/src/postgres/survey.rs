//! What an operator asks: of prepared transactions whose they are, what they hold, whom they block; of decision rows what they say.
//! Looks, which change nothing and force nothing.
//!
//! `pg_locks` is PostgreSQL 15, 54.12: a prepared transaction has no process there. What it holds is under the virtual transaction that it
//! had in its session (`-1/XID` after a restart of the server), under which it holds its own id as well. Row locks are not in it; who
//! waits for one waits for the transaction.
//!
//! Must not know what follows from a decision.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::SimpleQueryRow;
use unanimous_core::{BranchId, DecisionRecord, Known, LogId, TransactionId};

use super::control::{Control, ask, rows};
use super::error::PostgresError;
use super::rows::{self as decisions, By, Decided};
use super::schema;
use super::session::Session;
use super::sql::literal;

/// The transactions that are prepared in a database.
#[derive(Debug)]
#[non_exhaustive]
pub struct Survey {
    /// In the order in which they were prepared.
    pub transactions: Vec<Surveyed>,
    /// Why it can't be told what they hold: a transaction that holds the system's own tables keeps others from reading their names.
    pub locks: Result<(), PostgresError>,
}

/// A prepared transaction, whoever's it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Surveyed {
    /// Its identifier.
    pub gid: String,
    /// The branch that it is; none where another program prepared it.
    pub branch: Option<BranchId>,
    /// The role that prepared it: it, and a superuser, can finish it.
    pub owner: String,
    /// When it was prepared, by the server's clock: UTC, ISO 8601 with milliseconds.
    pub since: String,
    /// What it holds, but for rows.
    pub locks: Vec<Lock>,
    /// Who waits for it.
    pub waiting: Vec<Waiting>,
}

/// A node whose decision log is in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeLog {
    /// The node's name.
    pub node: String,
    /// Its log, which its branches' ids name.
    pub log: LogId,
}

/// A lock that a prepared transaction holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Lock {
    /// On what: `schema.table`, or the kind of lock and its keys.
    pub object: String,
    /// As PostgreSQL calls it (`RowExclusiveLock`).
    pub mode: String,
}

/// A session that waits because of a prepared transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// Its process on the server.
    pub pid: i32,
    /// Its role; empty where it has none.
    pub role: String,
    /// What it calls itself.
    pub application: String,
    /// Since when it waits: UTC, ISO 8601 with milliseconds; empty in its first moment.
    pub since: String,
    /// What it runs; PostgreSQL tells that to its own role, to superusers and to `pg_read_all_stats` only.
    pub query: String,
    /// It waits for this session, which waits for the transaction; none where it does so itself.
    pub behind: Option<i32>,
}

const LIST: &str = "SELECT gid, owner, transaction AS xid, \
    pg_catalog.to_char(prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS since \
    FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() ORDER BY prepared, gid";

/// The names of tables are in tables, which a prepared transaction can hold.
const BRIEFLY: &str = "BEGIN READ ONLY; SET LOCAL lock_timeout = '2s'";

const HELD: &str = "SELECT l.virtualtransaction AS virtual, l.transactionid AS xid, l.mode, \
    CASE l.locktype \
        WHEN 'relation' THEN coalesce(pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), 'relation ' || l.relation) \
        WHEN 'advisory' THEN 'advisory ' || l.classid || ' ' || l.objid \
        ELSE pg_catalog.concat_ws(' ', l.locktype, l.relation, l.page, l.tuple, l.classid, l.objid) END AS object \
    FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_class c ON l.locktype = 'relation' AND c.oid = l.relation \
    LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE l.pid IS NULL AND l.granted AND l.locktype <> 'virtualxid' ORDER BY object, l.mode";

/// One look at the locks for both sides, so that they fit together.
const WAITING: &str = "WITH l AS MATERIALIZED (SELECT * FROM pg_catalog.pg_locks) \
    SELECT w.pid, w.mode AS wanted, h.virtualtransaction AS virtual, h.mode AS held, \
        pg_catalog.array_to_string(pg_catalog.pg_blocking_pids(w.pid), ' ') AS blockers, \
        coalesce(a.usename, '') AS role, coalesce(a.application_name, '') AS application, coalesce(a.query, '') AS query, \
        coalesce(pg_catalog.to_char(w.waitstart AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), '') AS since \
    FROM l w LEFT JOIN l h ON h.pid IS NULL AND h.granted \
        AND (h.locktype, h.database, h.relation, h.page, h.tuple, h.virtualxid, h.transactionid, h.classid, h.objid, h.objsubid) \
        IS NOT DISTINCT FROM \
        (w.locktype, w.database, w.relation, w.page, w.tuple, w.virtualxid, w.transactionid, w.classid, w.objid, w.objsubid) \
    LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = w.pid \
    WHERE NOT w.granted ORDER BY w.waitstart, w.pid";

/// The transactions that are prepared in the database, with what they hold and who waits for it.
pub(super) async fn survey(control: &Control) -> Result<Survey, PostgresError> {
    let session = control.session().await?;
    let listed = ask(&session, "listing prepared transactions", LIST).await?;
    let mut transactions = BTreeMap::new();
    let mut order = Vec::new();
    for row in rows(&listed) {
        let text = |name: &str| row.get(name).unwrap_or_default().to_owned();
        let gid = text("gid");
        let branch = gid.parse().ok();
        let (owner, since) = (text("owner"), text("since"));
        order.push(text("xid"));
        transactions
            .insert(text("xid"), Surveyed { gid, branch, owner, since, locks: Vec::new(), waiting: Vec::new() });
    }
    let locks = if transactions.is_empty() { Ok(()) } else { add_locks(&session, &mut transactions).await };
    // Also where the locks can't be read: a transaction that holds the catalogs keeps new sessions out, and this one may be the last.
    if locks.is_ok() || ask(&session, "leaving the locks", "ROLLBACK").await.is_ok() {
        control.give_back(session);
    }
    Ok(Survey { transactions: order.iter().filter_map(|xid| transactions.remove(xid)).collect(), locks })
}

async fn add_locks(session: &Session, transactions: &mut BTreeMap<String, Surveyed>) -> Result<(), PostgresError> {
    let doing = "looking at locks";
    ask(session, doing, BRIEFLY).await?;
    let held = ask(session, doing, HELD).await?;
    let waiting = ask(session, doing, WAITING).await?;
    ask(session, doing, "COMMIT").await?;
    let mut virtuals = BTreeMap::new();
    for row in rows(&held) {
        // Those of subtransactions are no listed transaction's.
        if let (Some(id), Some(xid)) = (row.get("virtual"), row.get("xid"))
            && transactions.contains_key(xid)
        {
            virtuals.insert(id, xid);
        }
    }
    for row in rows(&held).filter(|row| row.get("xid").is_none()) {
        let text = |name: &str| row.get(name).unwrap_or_default().to_owned();
        let holder = row.get("virtual").and_then(|id| virtuals.get(id));
        if let Some(transaction) = holder.and_then(|xid| transactions.get_mut(*xid)) {
            transaction.locks.push(Lock { object: text("object"), mode: text("mode") });
        }
    }
    let waiters: Vec<Waiter> = rows(&waiting).filter_map(Waiter::read).collect();
    for (id, xid) in virtuals {
        if let Some(transaction) = transactions.get_mut(xid) {
            transaction.waiting = who_waits(id, &waiters);
        }
    }
    Ok(())
}

/// What the rows say of a transaction.
pub(super) async fn decision_row(
    control: &Control,
    transaction: TransactionId,
) -> Result<Option<Known>, PostgresError> {
    let query = decisions::select(&format!("d.transaction_id = {}", literal(&transaction.to_string())));
    let Some(found) = look(control, &query).await?.pop() else { return Ok(None) };
    Ok(Some(match found.decided? {
        Decided::Commit(record) => Known::Commit(record),
        Decided::Abort => Known::Abort,
    }))
}

/// The transactions of a log that the database's own commits decided and that are not noted as finished; what can be read of them.
pub(super) async fn unfinished_rows(control: &Control, log: LogId) -> Result<Vec<DecisionRecord>, PostgresError> {
    let found = look(control, &decisions::unfinished(By::Carrier, log)).await?;
    let records = found.into_iter().filter_map(|found| match found.decided {
        Ok(Decided::Commit(record)) => Some(record),
        Ok(Decided::Abort) | Err(_) => None,
    });
    Ok(records.collect())
}

/// The nodes whose decision logs are in the database, by name.
pub(super) async fn nodes(control: &Control) -> Result<Vec<NodeLog>, PostgresError> {
    let session = control.session().await?;
    let mut nodes = Vec::new();
    if schema::has(&session, "node").await? {
        let query = "SELECT node, log FROM unanimous.node ORDER BY node";
        let answer = ask(&session, "looking for decision logs", query).await.map_err(schema::may_not)?;
        for row in rows(&answer) {
            let text = |name: &str| row.get(name).unwrap_or_default();
            let damaged =
                || PostgresError::Damaged(format!("the node {:?} has the log {:?}", text("node"), text("log")));
            nodes.push(NodeLog { node: text("node").to_owned(), log: text("log").parse().map_err(|_| damaged())? });
        }
    }
    control.give_back(session);
    Ok(nodes)
}

async fn look(control: &Control, query: &str) -> Result<Vec<decisions::Found>, PostgresError> {
    let session = control.session().await?;
    let found = if schema::has(&session, "decision").await? {
        let answer = ask(&session, "looking at decisions", query).await.map_err(schema::may_not)?;
        decisions::read(rows(&answer))
    } else {
        Vec::new()
    };
    control.give_back(session);
    Ok(found)
}

/// A session that waits, beside one prepared transaction that holds a lock on what it waits for, if there is one.
struct Waiter {
    session: Waiting,
    blockers: Vec<i32>,
    /// The holder's virtual transaction, where its lock and the one that is waited for exclude each other.
    holder: Option<String>,
}

impl Waiter {
    fn read(row: &SimpleQueryRow) -> Option<Self> {
        let text = |name: &str| row.get(name).unwrap_or_default().to_owned();
        let excluded = row.get("held").is_some_and(|held| exclude(held, &text("wanted")));
        let blockers = text("blockers").split(' ').filter_map(|pid| pid.parse().ok()).collect();
        let session = Waiting {
            pid: row.get("pid")?.parse().ok()?,
            role: text("role"),
            application: text("application"),
            since: text("since"),
            query: text("query"),
            behind: None,
        };
        Some(Self { session, blockers, holder: excluded.then(|| text("virtual")) })
    }
}

/// Those who wait for a virtual transaction, and those behind them.
fn who_waits(holder: &str, waiters: &[Waiter]) -> Vec<Waiting> {
    let direct = waiters.iter().filter(|waiter| waiter.holder.as_deref() == Some(holder));
    let mut all: Vec<Waiting> = direct.map(|waiter| waiter.session.clone()).collect();
    let mut seen: BTreeSet<i32> = all.iter().map(|waiting| waiting.pid).collect();
    let mut next = 0;
    while let Some(pid) = all.get(next).map(|waiting| waiting.pid) {
        for waiter in waiters.iter().filter(|waiter| waiter.blockers.contains(&pid)) {
            if seen.insert(waiter.session.pid) {
                all.push(Waiting { behind: Some(pid), ..waiter.session.clone() });
            }
        }
        next += 1;
    }
    all
}

/// Which locks exclude each other (PostgreSQL 15, table 13.2): for each mode, the weakest one that it excludes, and what else it
/// leaves alone.
fn exclude(one: &str, other: &str) -> bool {
    const MODES: [&str; 8] = [
        "AccessShareLock",
        "RowShareLock",
        "RowExclusiveLock",
        "ShareUpdateExclusiveLock",
        "ShareLock",
        "ShareRowExclusiveLock",
        "ExclusiveLock",
        "AccessExclusiveLock",
    ];
    let place = |mode: &str| MODES.iter().position(|known| *known == mode);
    let (Some(one), Some(other)) = (place(one), place(other)) else { return true };
    match (one.min(other), one.max(other)) {
        (0, strong) => strong == 7,
        (1, strong) => strong >= 6,
        (2, strong) => strong >= 4,
        (3, strong) => strong >= 3,
        // Share locks exclude all that write, and not each other.
        (4, strong) => strong >= 5,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as it is printed: PostgreSQL 15, 13.3.1.
    #[test]
    fn locks_exclude_each_other_as_documented() {
        let table = [
            (".......x", "AccessShareLock"),
            ("......xx", "RowShareLock"),
            ("....xxxx", "RowExclusiveLock"),
            ("...xxxxx", "ShareUpdateExclusiveLock"),
            ("..xx.xxx", "ShareLock"),
            ("..xxxxxx", "ShareRowExclusiveLock"),
            (".xxxxxxx", "ExclusiveLock"),
            ("xxxxxxxx", "AccessExclusiveLock"),
        ];
        for (row, one) in table {
            let excluded: String = table.iter().map(|(_, other)| if exclude(one, other) { 'x' } else { '.' }).collect();
            assert_eq!(excluded, row, "{one}");
        }
    }

    #[test]
    fn who_waits_behind_a_waiter_is_told_once() {
        let waiter = |pid, blockers: &[i32], holder: Option<&str>| Waiter {
            session: Waiting {
                pid,
                role: String::new(),
                application: String::new(),
                since: String::new(),
                query: String::new(),
                behind: None,
            },
            blockers: blockers.to_vec(),
            holder: holder.map(str::to_owned),
        };
        let waiters = [
            waiter(11, &[0], Some("3/7")),
            waiter(12, &[11, 0], Some("3/7")),
            waiter(13, &[12, 11], None),
            waiter(14, &[99], None),
            waiter(15, &[0], Some("-1/8")),
        ];
        let told = |holder| {
            who_waits(holder, &waiters).iter().map(|waiting| (waiting.pid, waiting.behind)).collect::<Vec<_>>()
        };
        assert_eq!(told("3/7"), [(11, None), (12, None), (13, Some(11))]);
        assert_eq!(told("-1/8"), [(15, None)]);
    }
}
