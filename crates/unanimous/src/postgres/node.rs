//! A node's row: whose decision log it is, and in which run it is. Opened and taken over by a compare-and-set.
//!
//! Two things keep two processes apart. The fence is the row: who decides must find its own counter and nonce there, and holds the row
//! while it does. The advisory lock only tells an honest second start, before it fences the first.
//!
//! Must not know decisions.

use std::sync::Arc;
use std::time::Duration;

use unanimous_core::{Incarnation, LogId, Owner};

use super::branch::Backend;
use super::control::{self, Control, ask};
use super::error::PostgresError;
use super::rows::{self, begin, nonce, number};
use super::schema;
use super::session::{Session, row};
use super::sql::literal;
use crate::env::Env;

/// How often the lock is asked for while it is another's.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// How often a compare-and-set is tried that meets another one.
const TRIES: u32 = 5;

/// The session stays, and a client that has gone without a word is noticed by the server within half a minute.
const KEEPALIVE: &str = "SET idle_session_timeout = 0; \
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4";

/// A node, and its log.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) owner: Owner,
}

impl Node {
    /// A row where this process may decide, held to the end of the transaction: a take-over waits for it, and after one there is none.
    pub(super) fn guard(&self) -> String {
        format!("{} FOR KEY SHARE", self.row())
    }

    fn row(&self) -> String {
        format!(
            "SELECT 1 FROM unanimous.node WHERE node = {} AND log = '{}' AND counter = {} AND nonce = {}",
            literal(&self.name),
            self.owner.log,
            self.owner.incarnation.counter,
            nonce(self.owner)
        )
    }

    /// Asks for the lock on a session of its own; false where another has it.
    pub(super) async fn try_lock(&self, session: &Session) -> Result<bool, PostgresError> {
        let sql = format!("{KEEPALIVE}; SELECT pg_catalog.pg_try_advisory_lock({})", lock(self.owner.log));
        let answer = ask(session, "locking the node's log", &sql).await?;
        Ok(row(&answer).and_then(|row| row.get(0)) == Some("t"))
    }
}

/// Of the advisory lock. (The rows' is the other half of the log's id.)
fn lock(log: LogId) -> i64 {
    (log.0 >> 64) as u64 as i64
}

/// The sessions that have the lock, but for the asking one.
fn holders(log: LogId) -> String {
    let lock = lock(log) as u64;
    format!(
        "pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a USING (pid) \
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid = {} AND l.objid = {} \
         AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         AND l.pid <> pg_catalog.pg_backend_pid()",
        lock >> 32,
        lock & 0xffff_ffff
    )
}

/// How a node's log is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Refused while another process has it, after this wait.
    Own(Duration),
    /// Whoever has it can't decide any more, and its session is ended.
    TakeOver,
}

/// Opens a node's log: a new run, durably, and the session that has its lock.
pub(super) async fn open(
    control: &Control,
    name: &str,
    opening: Opening,
    lock_timeout: Duration,
    env: &Arc<dyn Env>,
) -> Result<(Node, Session), PostgresError> {
    if name.is_empty() || name.len() > 255 || name.contains('\0') {
        return Err(PostgresError::NodeName(name.to_owned()));
    }
    let session = control.session().await?;
    // The lock needs a session of its own; what drops the connection's options shares sessions.
    if !session.who.guarded {
        return Err(PostgresError::Unwritable(
            "the connection leads through a pooler, which may share sessions; connect to the server itself".to_owned(),
        ));
    }
    schema::ensure_decisions(control).await?;
    for _ in 0..TRIES {
        let now = env.wall_clock();
        let node = read(control, &session, name, now, lock_timeout, env).await?;
        if let Opening::Own(wait) = opening {
            wait_for_lock(&node, &session, wait, env).await?;
        }
        let Some(next) = fence(control, &node, now, lock_timeout, env).await? else { continue };
        if opening == Opening::TakeOver {
            // Who is fenced and lives may connect once more, before it notices.
            let mut tries = 0;
            while !next.try_lock(&session).await? {
                tries += 1;
                if tries > TRIES {
                    wait_for_lock(&next, &session, lock_timeout, env).await?;
                    break;
                }
                end_holders(&next, &session).await?;
            }
        }
        return Ok((next, session));
    }
    Err(PostgresError::NodeHeld { node: name.to_owned(), by: "others that open it at this moment".to_owned() })
}

/// The node as its row is now; the row is made where the node is new.
async fn read(
    control: &Control,
    session: &Session,
    name: &str,
    now: u64,
    lock_timeout: Duration,
    env: &Arc<dyn Env>,
) -> Result<Node, PostgresError> {
    let quoted = literal(name);
    let look = format!("SELECT log, counter, nonce FROM unanimous.node WHERE node = {quoted}");
    let look = rows::look(&look, lock_timeout);
    let mut answer = ask(session, "reading the node's row", &look).await.map_err(schema::may_not)?;
    if row(&answer).is_none() {
        let log = LogId(u128::from(env.random()) << 64 | u128::from(env.random()));
        let insert = format!(
            "{}; INSERT INTO unanimous.node (node, log, counter, nonce, opened_at) VALUES ({quoted}, '{log}', 0, '00000000', {}) \
             ON CONFLICT (node) DO NOTHING; COMMIT",
            begin(lock_timeout),
            number(now)
        );
        control.forced("making the node's row", &insert).await.map_err(schema::may_not)?;
        answer = ask(session, "reading the node's row", &look).await?;
    }
    let owner = row(&answer).and_then(|row| {
        // An id is the easiest way to read a nonce.
        let text = format!("{}.{}.{}.0", row.get("log")?, row.get("counter")?, row.get("nonce")?);
        text.parse().ok().map(unanimous_core::TransactionId::owner)
    });
    match owner {
        Some(owner) => Ok(Node { name: name.to_owned(), owner }),
        None => Err(PostgresError::Damaged(format!("the row of the node {name:?} can't be read"))),
    }
}

async fn wait_for_lock(
    node: &Node,
    session: &Session,
    wait: Duration,
    env: &Arc<dyn Env>,
) -> Result<(), PostgresError> {
    let begun = env.monotonic();
    while !node.try_lock(session).await? {
        if env.monotonic().saturating_sub(begun) >= wait {
            let sql = format!(
                "SELECT pg_catalog.format('process %s, from %s, since %s', pid, coalesce(pg_catalog.host(client_addr), 'a local socket'), \
                 backend_start) FROM {}",
                holders(node.owner.log)
            );
            let answer = ask(session, "looking who has the node's log", &sql).await?;
            let by = row(&answer).and_then(|row| row.get(0)).unwrap_or("it has just ended").to_owned();
            return Err(PostgresError::NodeHeld { node: node.name.clone(), by });
        }
        env.sleep(LOCK_RETRY).await;
    }
    Ok(())
}

/// Begins the next run where the present one is still that of `node`, and waits for decisions of it that are being written.
async fn fence(
    control: &Control,
    node: &Node,
    now: u64,
    lock_timeout: Duration,
    env: &Arc<dyn Env>,
) -> Result<Option<Node>, PostgresError> {
    let Owner { log, incarnation } = node.owner;
    let Some(counter) = incarnation.counter.checked_add(1) else {
        return Err(PostgresError::Damaged(format!(
            "the node {:?} has had its last run; give it another name",
            node.name
        )));
    };
    let owner = Owner { log, incarnation: Incarnation::new(counter, env.random()) };
    let next = nonce(owner);
    // An update alone would not wait for those who share the row.
    let sql = format!(
        "{}; {} FOR UPDATE; \
         WITH run AS (UPDATE unanimous.node SET counter = {counter}, nonce = {next}, opened_at = {now} \
           WHERE node = {} AND log = '{log}' AND counter = {} AND nonce = {} RETURNING node) \
         INSERT INTO unanimous.incarnation (decider, log, counter, nonce, server, started_at) \
         SELECT 'log', '{log}', {counter}, {next}, {}, {now} FROM run RETURNING counter AS run; COMMIT",
        begin(lock_timeout),
        node.row(),
        literal(&node.name),
        incarnation.counter,
        nonce(node.owner),
        literal(&control.server().await?),
        now = number(now),
    );
    let answer = control.forced("beginning a run of the node's log", &sql).await.map_err(schema::may_not)?;
    let begun = control::rows(&answer).any(|row| matches!(row.try_get("run"), Ok(Some(_))));
    Ok(begun.then(|| Node { name: node.name.clone(), owner }))
}

async fn end_holders(node: &Node, session: &Session) -> Result<(), PostgresError> {
    let sql = format!("SELECT pg_catalog.pg_terminate_backend(pid, 5000) FROM {}", holders(node.owner.log));
    ask(session, "ending the session that has the node's log", &sql).await.map(drop)
}

/// The session's process on the server.
pub(super) fn backend(session: &Session) -> Backend {
    Backend { pid: session.who.pid, start: session.who.start.clone() }
}
