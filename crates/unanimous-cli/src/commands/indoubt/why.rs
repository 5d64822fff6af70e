//! Why a branch is in doubt, and what to do: concluded from what was seen, without asking anybody.
//!
//! It concludes what recovery would (docs/protocol.md, rules 2 and 4), but only reads: it forces and fences nothing, so that what it
//! says holds for the moment.
//!
//! Must not know how stores and logs are read, nor how the answer is printed.

use std::collections::BTreeMap;

use unanimous::log::{Holder, LogView};
use unanimous::postgres::{NodeLog, Postgres};
use unanimous::{BranchId, DeciderId, DecisionRecord, HoldReason, Known, LogId, StoreId, TransactionId};

use super::look::{Listed, Row, Seen};

/// What stores say of the transactions that they decide.
pub(super) type Rows = BTreeMap<TransactionId, Option<Result<Row, String>>>;

/// The decision log, as it was after the stores.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) view: LogView,
    pub(super) holder: Option<Holder>,
}

/// The decision logs in a database, one for each node.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) database: Postgres,
    pub(super) nodes: Vec<NodeLog>,
    /// What they say of the transactions that are theirs.
    pub(super) rows: BTreeMap<TransactionId, Row>,
}

impl Shared {
    /// Whose log it is.
    pub(super) fn node(&self, log: LogId) -> Option<&str> {
        self.nodes.iter().find(|node| node.log == log).map(|node| node.node.as_str())
    }
}

/// What is known of a branch's decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Decided.
    Commit {
        /// Microseconds since 1970, UTC.
        at: u64,
        /// What for; for people.
        note: String,
    },
    /// Fenced, or presumed: it can't commit any more.
    Abort,
    /// Not yet.
    None,
    /// It can't be told here.
    Unknown,
}

impl Decision {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Decision::Commit { .. } => "commit",
            Decision::Abort => "abort",
            Decision::None => "none",
            Decision::Unknown => "unknown",
        }
    }
}

/// What follows for a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) decision: Decision,
    pub(super) why: String,
    /// One line.
    pub(super) advice: String,
}

fn finding(decision: Decision, why: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { decision, why: why.into(), advice: advice.into() }
}

const RECOVER: &str = "start the application, which recovers at its start, or run `unanimous recover`";
const BY_HAND: &str = "look what the transaction's other stores hold, then `unanimous indoubt commit` or `rollback` (docs/operating/in-doubt.md)";

/// Who has the log open, for people.
pub(super) fn who(holder: Holder) -> String {
    let Some(pid) = holder.pid else { return "a process that this system does not name".to_owned() };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("the process {pid}"),
        name => format!("the process {pid} ({name})"),
    }
}

/// Why a branch that a store lists is in doubt.
pub(super) fn why(
    listed: &Listed,
    log: Option<&Log>,
    shared: Option<&Shared>,
    stores: &[Seen],
    rows: &Rows,
) -> Finding {
    let branch = &listed.branch;
    if let Some(at) = listed.decided {
        return finding(
            Decision::Commit { at, note: String::new() },
            "decided to commit by its own store, which has not completed it",
            "whoever uses the store next completes it, the application or `unanimous recover`; where that fails, it says why",
        );
    }
    if branch.decider == DeciderId::Log
        && let Some(shared) = shared
        && let (Some(node), Some(row)) = (shared.node(branch.transaction.log), shared.rows.get(&branch.transaction))
    {
        return by_node(branch, node, row);
    }
    let own = log.map(|log| log.view.history().log());
    if branch.decider == DeciderId::Log
        && own != Some(branch.transaction.log)
        && let Some(Some(Ok(row))) = rows.get(&branch.transaction)
    {
        return by_shared_log(branch, row);
    }
    let Some(log) = log else {
        if shared.is_some() && branch.decider == DeciderId::Log {
            return foreign(branch);
        }
        return finding(Decision::Unknown, "no decision log was given", "give the application's log: --log DIR");
    };
    let own = log.view.history().log();
    if branch.transaction.log != own {
        return foreign(branch);
    }
    match &branch.decider {
        DeciderId::Log => by_log(branch, log),
        DeciderId::Together(_) => by_log_or_participants(branch, log),
        DeciderId::Store(store) => by_store(branch, store, log, stores, rows),
    }
}

fn foreign(branch: &BranchId) -> Finding {
    let its = branch.transaction.log;
    finding(
        Decision::Unknown,
        HoldReason::ForeignLog.to_string(),
        format!("leave it to the application whose log is {its}; look with that log to see more"),
    )
}

/// The log that was given has a row for each of its decisions.
fn by_node(branch: &BranchId, node: &str, row: &Row) -> Finding {
    let does = |what: &str| {
        format!(
            "the node {node:?} {what} by itself, at its start at the latest; where it does not come back: `unanimous recover --log-postgres URL --take-over {node}`"
        )
    };
    match row {
        Row::Commit(record) if lists(record, branch) => finding(
            Decision::Commit { at: record.decided_at, note: record.note.to_string() },
            format!("decided to commit by the node {node:?}, and its store has not finished it"),
            does("commits it"),
        ),
        Row::Commit(_) => not_listed(),
        Row::Abort => finding(Decision::Abort, format!("decided to abort by the node {node:?}"), does("rolls it back")),
        // No presumption: only who fences the node can tell that it never will.
        Row::None => finding(
            Decision::None,
            format!("the node {node:?} has not decided it: it may still do so where its process lives"),
            does("ends it"),
        ),
    }
}

/// A log in a database has a row for each decision.
fn by_shared_log(branch: &BranchId, row: &Row) -> Finding {
    const NODE: &str = "its node finishes it, at its start at the latest; where that does not come back: `unanimous recover --log-postgres URL --take-over NODE`";
    match row {
        Row::Commit(record) if lists(record, branch) => finding(
            Decision::Commit { at: record.decided_at, note: record.note.to_string() },
            "decided to commit, in a decision log in one of these databases, and its store has not finished it",
            NODE,
        ),
        Row::Commit(_) => not_listed(),
        Row::Abort | Row::None => {
            finding(Decision::Abort, "decided to abort, in a decision log in one of these databases", NODE)
        }
    }
}

fn lists(record: &DecisionRecord, branch: &BranchId) -> bool {
    record.participants.iter().any(|participant| participant.number == branch.number)
}

fn not_listed() -> Finding {
    finding(Decision::Unknown, HoldReason::NotListed.to_string(), format!("recovery holds it; {BY_HAND}"))
}

fn by_log(branch: &BranchId, log: &Log) -> Finding {
    if !log.view.verify().is_sound() {
        return finding(
            Decision::Unknown,
            "the decision log is damaged, so that the decision may be what can't be read",
            "see `unanimous log verify`, and bring the log back from a mirror of its disk (docs/operating/backup.md)",
        );
    }
    match log.view.history().lookup(branch.transaction) {
        Known::Commit(record) => decided(branch, &record, log),
        Known::Abort => undecided(branch, log),
        Known::Hold(reason) => finding(
            Decision::Unknown,
            format!("nothing is presumed of it: {reason}"),
            format!("recovery holds it; {BY_HAND}"),
        ),
    }
}

/// Nothing is presumed where the log has no record: its application may have been told that it has committed.
fn by_log_or_participants(branch: &BranchId, log: &Log) -> Finding {
    match log.view.history().recorded(branch.transaction) {
        Some(Known::Abort) if log.view.verify().is_sound() => {
            let why = "decided to abort, and its store has not finished it";
            return finding(Decision::Abort, why, repeats(log, "rolls it back"));
        }
        None if log.view.verify().is_sound() => {}
        _ => return by_log(branch, log),
    }
    let Some(holder) = log.holder else {
        return finding(
            Decision::Unknown,
            "not recorded, and perhaps acknowledged: it has committed if all of its participants are prepared",
            format!("{RECOVER}, with all of its stores; finish nothing by hand, neither way"),
        );
    };
    finding(
        Decision::None,
        "not recorded yet, and perhaps acknowledged: it has committed if all of its participants are prepared",
        format!(
            "leave it to {}, which records it once it can list all of its stores; finish nothing by hand, neither way",
            who(holder)
        ),
    )
}

fn by_store(branch: &BranchId, decider: &StoreId, log: &Log, stores: &[Seen], rows: &Rows) -> Finding {
    let Some(seen) = stores.iter().find(|seen| seen.is(decider)) else {
        let down: Vec<&str> = stores.iter().filter(|seen| seen.state.is_err()).map(|seen| seen.name.as_str()).collect();
        let (why, advice) = if down.is_empty() {
            let why = format!("the store {decider} decides it, and was not given");
            (why, "give that store too (--sqlite, --postgres)".to_owned())
        } else {
            let why = format!("the store {decider} decides it, which is not among those that answer");
            (why, format!("bring back what can't be asked: {}", down.join(", ")))
        };
        return finding(Decision::Unknown, why, advice);
    };
    match rows.get(&branch.transaction).and_then(Option::as_ref) {
        Some(Ok(Row::Commit(record))) => decided(branch, record, log),
        Some(Ok(Row::Abort)) => finding(
            Decision::Abort,
            format!("{:?} decides it, and has decided to abort", seen.name),
            repeats(log, "rolls it back"),
        ),
        Some(Ok(Row::None)) => {
            // No presumption: only recovery can fence the carrier, which may be late.
            let Finding { why, advice, .. } = undecided(branch, log);
            finding(Decision::None, format!("{:?} decides it, and has no row of it; {why}", seen.name), advice)
        }
        Some(Err(error)) => finding(
            Decision::Unknown,
            format!("{:?} decides it, and its row can't be read: {error}", seen.name),
            format!("recovery holds it; {BY_HAND}"),
        ),
        None => finding(
            Decision::Unknown,
            format!("{:?} decides it, and its rows can't be read from here", seen.name),
            "recovery asks it; let it run".to_owned(),
        ),
    }
}

fn decided(branch: &BranchId, record: &DecisionRecord, log: &Log) -> Finding {
    if let DeciderId::Together(roster) = &branch.decider
        && !roster.lists(branch.number)
    {
        return finding(
            Decision::Commit { at: record.decided_at, note: record.note.to_string() },
            "its transaction has committed; this branch had only read, and was in the middle of its end",
            repeats(log, "rolls it back, which changes nothing"),
        );
    }
    if !lists(record, branch) {
        return not_listed();
    }
    finding(
        Decision::Commit { at: record.decided_at, note: record.note.to_string() },
        "decided to commit, and its store has not finished it",
        repeats(log, "commits it"),
    )
}

/// The log has no decision of it.
fn undecided(branch: &BranchId, log: &Log) -> Finding {
    let current = log.view.history().current();
    match log.holder {
        Some(holder) if current == Some(branch.transaction.incarnation) => finding(
            Decision::None,
            format!("not decided yet: {} is running, and may still commit it", who(holder)),
            "leave it to that process; where it stays for minutes, look there what its transaction waits for",
        ),
        Some(_) => finding(
            Decision::Abort,
            "never decided, so that it is aborted: its process has ended",
            repeats(log, "rolls it back"),
        ),
        None => finding(Decision::Abort, "never decided, so that it is aborted: its process has ended", RECOVER),
    }
}

fn repeats(log: &Log, does: &str) -> String {
    match log.holder {
        Some(holder) => {
            format!(
                "{} {does} by itself, at most a minute after its store can do it; where it does not, see what it logs",
                who(holder)
            )
        }
        None => RECOVER.to_owned(),
    }
}
