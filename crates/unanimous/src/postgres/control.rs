//! What recovery and phase two do on connections of their own (rule 14): list, finish, end a session, deliver.
//!
//! Each connection here leads to the primary of the right store, under the right role: that was asked when it was made, and a server
//! becomes a standby or another one only by a restart, which ends its connections. A pooler in between can send each statement to another
//! server; so what is concluded from a branch's absence says itself where it was seen.
//!
//! Must not know branches, nor why something is finished.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};
use unanimous_core::{BranchId, StoreId};

use super::branch::Backend;
use super::error::PostgresError;
use super::node::backend;
use super::session::{Connect, Session, Who, row, store_of, within};
use super::sql::{identifier, literal};
use crate::sync::lock;

/// How many connections wait for the next use at most.
const IDLE: usize = 2;

/// How long one statement of recovery or phase two may take.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a session that is ended may take to go, as the server counts it.
const TERMINATE_WAIT: Duration = Duration::from_secs(5);

/// The oldest server that is supported: `pg_terminate_backend` waits from 14 on.
const OLDEST: i32 = 140_000;

/// Where a statement is answered, in one row: to be joined with what it asks.
const HERE: &str = "SELECT pg_catalog.pg_is_in_recovery() AS standby, \
    (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS system, \
    (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) AS database";

/// How a prepared branch is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    Commit,
    Rollback,
}

impl Finish {
    pub(super) fn sql(self) -> &'static str {
        match self {
            Finish::Commit => "COMMIT PREPARED",
            Finish::Rollback => "ROLLBACK PREPARED",
        }
    }

    fn doing(self) -> &'static str {
        match self {
            Finish::Commit => "committing a prepared branch",
            Finish::Rollback => "rolling a prepared branch back",
        }
    }
}

/// How a prepared branch was found to be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finished {
    /// The server did it now.
    Done,
    /// The server does not list it: it did it before, or somebody else has finished the branch.
    Absent,
}

/// A prepared branch of ours, as the server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prepared {
    /// The branch.
    pub branch: BranchId,
    /// The role that prepared it: it, and a superuser, can finish it.
    pub owner: String,
    /// When it was prepared, by the server's clock: UTC, ISO 8601 with milliseconds.
    pub since: String,
}

/// The store's own connections.
pub(super) struct Control {
    connect: Arc<dyn Connect>,
    /// Decisions are kept here: the server need not prepare, and must not be promoted meanwhile, which may lose rows.
    decides: bool,
    known: OnceLock<Known>,
    idle: Mutex<Vec<Session>>,
    /// Where a durable list was asked for and not answered: it may wait for a replica that is away.
    listing: Mutex<Option<Backend>>,
}

/// What the store was when it was first reached.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) store: StoreId,
    pub(super) role: String,
    server: String,
}

impl Control {
    pub(super) fn new(connect: Arc<dyn Connect>, decides: bool) -> Self {
        Self { connect, decides, known: OnceLock::new(), idle: Mutex::default(), listing: Mutex::default() }
    }

    /// Whether a session leads to where it should, and the server can do what it must.
    pub(super) fn check(&self, who: &Who, sees_warnings: bool) -> Result<(), PostgresError> {
        if who.standby {
            return Err(PostgresError::Standby);
        }
        if who.version < OLDEST {
            return Err(PostgresError::TooOld { version: who.version });
        }
        if who.max_prepared == 0 && !self.decides {
            return Err(PostgresError::CantPrepare);
        }
        if who.replicates && !sees_warnings {
            return Err(PostgresError::WarningsUnseen);
        }
        let known =
            self.known.get_or_init(|| Known { store: who.store.clone(), role: who.role.clone(), server: who.server() });
        if known.store != who.store {
            let (expected, found) = (known.store.to_string(), who.store.to_string());
            return Err(PostgresError::OtherStore { expected, found });
        }
        if self.decides && known.server != who.server() {
            let (expected, found) = (known.server.clone(), who.server());
            return Err(PostgresError::Promoted { expected, found });
        }
        if known.role != who.role {
            return Err(PostgresError::OtherRole { expected: known.role.clone(), found: who.role.clone() });
        }
        Ok(())
    }

    /// Whether the store was reached before, and a session leads to it.
    pub(super) fn is(&self, who: &Who) -> bool {
        self.known.get().is_some_and(|known| known.store == who.store)
    }

    /// Whether this is the store, as it was when it was reached; another role could not finish what this one prepares.
    pub(super) fn is_store(&self, store: &StoreId, role: &str) -> Result<bool, PostgresError> {
        match self.known.get() {
            Some(known) if known.store != *store => Ok(false),
            Some(known) if known.role != role => {
                Err(PostgresError::OtherRole { expected: known.role.clone(), found: role.to_owned() })
            }
            known => Ok(known.is_some()),
        }
    }

    /// Whether the store was reached before.
    pub(super) fn is_known(&self) -> bool {
        self.known.get().is_some()
    }

    /// Whether there can't be any connection here.
    pub(super) fn leads_nowhere(&self) -> bool {
        self.connect.leads_nowhere()
    }

    /// A connection that was asked who it leads to.
    pub(super) async fn session(&self) -> Result<Session, PostgresError> {
        loop {
            let Some(session) = lock(&self.idle).pop() else { break };
            if !session.client().is_closed() {
                return Ok(session);
            }
        }
        let session = self.connect.connect().await?;
        self.check(&session.who, session.warnings.is_some())?;
        Ok(session)
    }

    /// For a session on which nothing failed and nothing is open; others are dropped.
    pub(super) fn give_back(&self, session: Session) {
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE {
            idle.push(session);
        }
    }

    /// Closes what is idle.
    pub(super) fn close(&self) {
        lock(&self.idle).clear();
    }

    /// Reads the store's identity anew.
    pub(super) async fn identity(&self) -> Result<StoreId, PostgresError> {
        let session = self.session().await?;
        let who = Who::parse(&ask(&session, "asking the server who it is", super::session::WHO).await?)?;
        self.check(&who, session.warnings.is_some())?;
        self.give_back(session);
        Ok(who.store)
    }

    /// The server that is asked now, as it was since its last promotion.
    pub(super) async fn server(&self) -> Result<String, PostgresError> {
        let session = self.session().await?;
        let server = session.who.server();
        self.give_back(session);
        Ok(server)
    }

    /// Whether commits wait for replicas, now.
    pub(super) async fn replicates(&self) -> Result<bool, PostgresError> {
        let session = self.session().await?;
        let sql = "SELECT pg_catalog.current_setting('synchronous_standby_names')";
        let answer = ask(&session, "asking for replicas", sql).await?;
        let none = row(&answer).is_some_and(|row| row.get(0) == Some(""));
        self.give_back(session);
        Ok(!none)
    }

    /// A message that writes and commits. Ok when it is durable, and on the replicas that it must be on.
    pub(super) async fn forced(
        &self,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<SimpleQueryMessage>, PostgresError> {
        let session = self.session().await?;
        self.forced_on(session, doing, sql).await
    }

    async fn forced_on(
        &self,
        session: Session,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<SimpleQueryMessage>, PostgresError> {
        session.take_warning();
        let answer = ask(&session, doing, sql).await?;
        if let Some(warning) = session.take_warning() {
            return Err(PostgresError::NotReplicated(warning));
        }
        self.give_back(session);
        Ok(answer)
    }

    /// The branches of ours that are prepared in this database, whoever prepared them.
    pub(super) async fn list(&self) -> Result<Vec<Prepared>, PostgresError> {
        let session = self.session().await?;
        let answer = ask(&session, "listing prepared branches", &list()).await?;
        self.is_here(&answer)?;
        self.give_back(session);
        Ok(rows(&answer).filter_map(prepared).collect())
    }

    /// The same, when all of them are durable, and on the replicas that they must be on: what is written after the list, by the same server, is
    /// confirmed after it. A message that nobody decodes is the least that PostgreSQL writes and waits for. It waits for the replicas whatever
    /// the role's or the database's `synchronous_commit` is: the work may have set another one for its own prepare. One that waits still, since
    /// the list of before was given up, is ended first: each pass would leave another one.
    pub(super) async fn list_durably(&self) -> Result<Vec<Prepared>, PostgresError> {
        let write = "SELECT pg_catalog.pg_logical_emit_message(true, 'unanimous'::text, 'in doubt'::text)";
        let waits = "SELECT pg_catalog.set_config('synchronous_commit', 'on', true)";
        let sql = format!("{}; {waits}; {write}", list());
        let unanswered = lock(&self.listing).take();
        if let Some(unanswered) = unanswered {
            self.terminate(&unanswered).await?;
        }
        let session = self.session().await?;
        // A pooler's session may be another client's by then.
        *lock(&self.listing) = session.is_ours().then(|| backend(&session));
        let answer = self.forced_on(session, "listing prepared branches, durably", &sql).await?;
        lock(&self.listing).take();
        self.is_here(&answer)?;
        Ok(rows(&answer).filter_map(prepared).collect())
    }

    /// Finishes a prepared branch. Ok when the server did it, or when it does not list the branch (any more).
    pub(super) async fn finish(&self, branch: &BranchId, how: Finish) -> Result<Finished, PostgresError> {
        let gid = literal(&branch.to_string());
        let session = self.session().await?;
        let failed = match ask(&session, how.doing(), &format!("{} {gid}", how.sql())).await {
            Ok(_) => {
                warn(&session, branch, how);
                self.give_back(session);
                return Ok(Finished::Done);
            }
            Err(error) => error,
        };
        let owner = match failed.code() {
            // No proof by itself: a late PREPARE can still land, and is listed then.
            Some(code) if *code == SqlState::UNDEFINED_OBJECT => self.owner(&session, &gid).await?,
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => self.owner(&session, &gid).await?,
            _ => return Err(failed),
        };
        let Some(owner) = owner else {
            self.give_back(session);
            return Ok(Finished::Absent);
        };
        // A pooler's session is not ours to change.
        if failed.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) || !session.is_ours() {
            return Err(failed);
        }
        // The work had changed its role. This session is not used again.
        ask(&session, "taking the role that prepared the branch", &format!("SET ROLE {}", identifier(&owner))).await?;
        ask(&session, how.doing(), &format!("{} {gid}", how.sql())).await?;
        warn(&session, branch, how);
        Ok(Finished::Done)
    }

    /// Says it aloud where a branch was finished by somebody else, and not as it is to be finished. To be asked when its server does not list
    /// the branch any more, by the transaction id that it was prepared under: for what was prepared that id is used up, so that it can't be
    /// another's (PostgreSQL 15, 9.27.9 for `pg_xact_status`). A server that was promoted meanwhile may have lost the branch, and given its
    /// transaction id to another: it is not asked.
    pub(super) async fn look_for_heuristic(&self, branch: &BranchId, how: Finish, xid: &str) {
        let asked = async {
            let session = self.session().await?;
            let server = session.who.server();
            if let Some(known) = self.known.get().filter(|known| known.server != server) {
                // What a rolled back branch lost there is no loss.
                if how == Finish::Commit {
                    tracing::error!(
                        %branch,
                        xid,
                        "the branch is decided to commit, and its store does not list it; the store was promoted or restored (it is \
                         {server} and was {}), and may have lost it: look whether its work is there (docs/operating/heuristics.md)",
                        known.server
                    );
                }
                self.give_back(session);
                return Ok(None);
            }
            let sql = format!("SELECT pg_catalog.pg_xact_status({}::pg_catalog.xid8)", literal(xid));
            let answer = ask(&session, "asking what became of a branch", &sql).await?;
            self.give_back(session);
            Ok::<_, PostgresError>(row(&answer).and_then(|row| row.get(0)).map(str::to_owned))
        };
        let status = match asked.await {
            Ok(status) => status,
            Err(error) => {
                tracing::debug!(%branch, error = &error as &(dyn std::error::Error + 'static),
                    "what became of a branch that is not listed any more can't be asked");
                return;
            }
        };
        match (how, status.as_deref()) {
            (Finish::Commit, Some("aborted")) => tracing::error!(
                %branch,
                xid,
                "heuristic rollback: the branch is decided to commit, and somebody rolled it back in its store; the transaction is \
                 torn, and what the branch did must be done again by hand (docs/operating/heuristics.md)"
            ),
            (Finish::Rollback, Some("committed")) => tracing::error!(
                %branch,
                xid,
                "heuristic commit: the branch's transaction is aborted, and somebody committed the branch in its store; the transaction is \
                 torn, and what the branch did must be undone by hand (docs/operating/heuristics.md)"
            ),
            _ => {}
        }
    }

    /// Whether an answer with [`HERE`] in it is the store's primary's.
    fn is_here(&self, answer: &[SimpleQueryMessage]) -> Result<(), PostgresError> {
        let damaged = || PostgresError::Damaged("the server does not say who it is".to_owned());
        let here = rows(answer).find(|row| row.try_get("standby").is_ok()).ok_or_else(damaged)?;
        let found = store_of(here)?;
        if here.get("standby").ok_or_else(damaged)? != "f" {
            return Err(PostgresError::Standby);
        }
        match self.known.get() {
            Some(known) if known.store != found => {
                Err(PostgresError::OtherStore { expected: known.store.to_string(), found: found.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Who prepared the branch; none where it is not listed.
    async fn owner(&self, session: &Session, gid: &str) -> Result<Option<String>, PostgresError> {
        let sql = format!(
            "SELECT here.*, p.owner FROM ({HERE}) AS here LEFT JOIN pg_catalog.pg_prepared_xacts AS p \
             ON p.gid = {gid} AND p.database = pg_catalog.current_database()"
        );
        let answer = ask(session, "looking for a prepared branch", &sql).await?;
        self.is_here(&answer)?;
        Ok(row(&answer).and_then(|row| row.get("owner")).map(str::to_owned))
    }

    /// Ends a session of the server, and waits until it is gone: what it was told to do has happened by then, or never will.
    pub(super) async fn terminate(&self, backend: &Backend) -> Result<(), PostgresError> {
        let Backend { pid, start } = backend;
        let session = self.session().await?;
        let sql = format!(
            "SELECT pg_catalog.pg_terminate_backend(pid, {}) FROM pg_catalog.pg_stat_activity WHERE pid = {pid} AND extract(epoch FROM backend_start) = {}::numeric",
            TERMINATE_WAIT.as_millis(),
            literal(start),
        );
        let answer = ask(&session, "ending a session", &sql).await?;
        let gone = row(&answer).is_none_or(|row| row.get(0) == Some("t"));
        self.give_back(session);
        if gone { Ok(()) } else { Err(PostgresError::NoAnswer { doing: "ending a session", waited: TERMINATE_WAIT }) }
    }
}

/// A simple query, within the limit.
pub(super) async fn ask(
    session: &Session,
    doing: &'static str,
    sql: &str,
) -> Result<Vec<SimpleQueryMessage>, PostgresError> {
    within(doing, LIMIT, async { session.client().simple_query(sql).await.map_err(PostgresError::of(doing)) }).await
}

/// The rows among the answers.
pub(super) fn rows(messages: &[SimpleQueryMessage]) -> impl Iterator<Item = &SimpleQueryRow> {
    messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// Lists what is prepared, and says where.
fn list() -> String {
    format!(
        "SELECT here.*, p.gid, p.owner, \
         pg_catalog.to_char(p.prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS since \
         FROM ({HERE}) AS here LEFT JOIN pg_catalog.pg_prepared_xacts AS p ON p.database = pg_catalog.current_database() \
         ORDER BY p.prepared, p.gid"
    )
}

/// A prepared transaction that is not ours has another kind of id, and another statement's row has none.
fn prepared(row: &SimpleQueryRow) -> Option<Prepared> {
    Some(Prepared {
        branch: row.try_get("gid").ok()??.parse().ok()?,
        owner: row.get("owner")?.to_owned(),
        since: row.get("since")?.to_owned(),
    })
}

/// The decision is durable; that replicas don't have its execution yet is told, and the log keeps the decision.
fn warn(session: &Session, branch: &BranchId, how: Finish) {
    if let Some(warning) = session.take_warning() {
        tracing::warn!(%branch, warning, "a warning while {}", how.doing());
    }
}
