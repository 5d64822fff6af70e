//! A connection to a PostgreSQL server, and the pool of them: connected, identified, marked, cleaned.
//!
//! A session of ours reads only by default (`default_transaction_read_only`), so that a statement that is sent behind a `BEGIN`, and
//! runs although that has failed, can't write outside of the branch's transaction. It is so from its start, as an option of the
//! connection: a connection pooler in between refuses that or drops it, and the session then knows that it is not guarded.
//!
//! Must not know transactions or branches.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool::managed::{self, Metrics, RecycleError};
use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, Config, SimpleQueryMessage, SimpleQueryRow, Socket, Statement};
use unanimous_core::StoreId;

use super::error::PostgresError;
use super::rows::{MADE_DURABLE, milliseconds};
use crate::env::BoxFuture;
use crate::sync::lock;

/// How long a server may take to accept a connection and say who it is.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Asks the server who it is. One row.
///
/// `pg_control_system` and the rest can be read by every role (PostgreSQL 15, 9.27 and 9.28).
pub(super) const WHO: &str = "SELECT pg_catalog.pg_backend_pid() AS pid, \
    (SELECT extract(epoch FROM backend_start) FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()) AS start, \
    pg_catalog.pg_is_in_recovery() AS standby, \
    (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS system, \
    (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) AS database, \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL \
        ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END AS timeline, \
    session_user AS role, \
    pg_catalog.current_setting('server_version_num') AS version, \
    pg_catalog.current_setting('max_prepared_transactions') AS prepared, \
    pg_catalog.current_setting('synchronous_standby_names') AS replicas, \
    pg_catalog.current_setting('default_transaction_read_only') AS guarded, \
    (extract(epoch FROM pg_catalog.current_setting('lock_timeout')::pg_catalog.interval) * 1000)::bigint AS lock_timeout";

/// What a branch asks at its flush: whether the session is inside of the transaction that `BEGIN` marked with `$1`, and what was written.
pub(super) const LOOK: &str = "SELECT coalesce(pg_catalog.current_setting('unanimous.branch', true), '') = $1 AS ours, \
    pg_catalog.pg_current_xact_id_if_assigned() AS xid, EXISTS (SELECT FROM pg_catalog.pg_foreign_server) AS foreign";

/// 1; fails where the transaction that `BEGIN` marked with `$1` has failed (25P02), and where the session is not inside of it (22012).
pub(super) const MARKED: &str = "1/(coalesce(pg_catalog.current_setting('unanimous.branch', true), '') = $1)::int";

/// The statement that fails where [`MARKED`] does, in front of what ends the transaction.
pub(super) fn guard() -> String {
    format!("SELECT {MARKED}, pg_catalog.pg_current_xact_id_if_assigned() AS xid")
}

/// The same as statements that our own sessions keep, so that each session plans them once and not in every transaction. By SQL and not by the
/// driver, so that they share a message with what follows them.
fn kept() -> String {
    format!(
        "PREPARE unanimous_look (text) AS {LOOK}; PREPARE unanimous_guard (text) AS {}; \
         PREPARE unanimous_alone (text) AS SELECT {MARKED}, {MADE_DURABLE}; PREPARE unanimous_unlock AS {UNLOCK}",
        guard()
    )
}

/// What makes a session read only by default (<https://www.postgresql.org/docs/current/libpq-connect.html>, `options`).
const READ_ONLY: &str = "-c default_transaction_read_only=on";

/// What a connection asks for that is not a pooler's: a session that reads only by default, and waits so long for a lock where a
/// transaction does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guard {
    pub(super) lock_timeout: Duration,
}

impl Guard {
    pub(super) const DEFAULT: Self = Self { lock_timeout: Duration::from_secs(5) };

    fn options(self) -> String {
        format!("{READ_ONLY} -c lock_timeout={}", milliseconds(self.lock_timeout))
    }
}

/// Gives back what advisory locks the session still has.
const UNLOCK: &str = "SELECT pg_catalog.pg_advisory_unlock_all()";

/// Makes a session as it was when it was new. `DISCARD ALL` but for the prepared statements and plans, which the driver knows of.
///
/// What can't be prepared needs no cleaning behind a branch that was: cursors `WITH HOLD`, `LISTEN`, temporary objects
/// (<https://www.postgresql.org/docs/current/sql-prepare-transaction.html>).
fn cleaning(prepared: bool, unlock: &str) -> String {
    let rest = if prepared { "" } else { "CLOSE ALL; UNLISTEN *; DISCARD TEMP; " };
    format!("{rest}SET SESSION AUTHORIZATION DEFAULT; RESET ALL; {unlock}; DISCARD SEQUENCES")
}

const CLEANING: &str = "cleaning a connection";

/// What a server says of itself and of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) pid: i32,
    /// With the process id what tells a session from all others.
    pub(super) start: String,
    pub(super) standby: bool,
    /// System identifier and database: the store.
    pub(super) store: StoreId,
    /// 8 hexadecimal digits; a promotion begins a new one.
    pub(super) timeline: String,
    pub(super) role: String,
    pub(super) version: i32,
    pub(super) max_prepared: i32,
    pub(super) replicates: bool,
    /// What runs outside of a transaction of ours can't write.
    pub(super) guarded: bool,
    /// How long a statement waits for a lock where its transaction does not say, in milliseconds; 0 is for ever.
    pub(super) lock_timeout: i32,
}

impl Who {
    /// The store as it was since its last promotion, which may have lost what was acknowledged before.
    pub(super) fn server(&self) -> String {
        format!("{}-{}", self.store, self.timeline)
    }

    pub(super) fn parse(messages: &[SimpleQueryMessage]) -> Result<Self, PostgresError> {
        let row =
            row(messages).ok_or_else(|| PostgresError::Damaged("the server does not say who it is".to_owned()))?;
        let text = |name: &str| row.get(name).unwrap_or_default();
        let damaged = |name: &str| PostgresError::Damaged(format!("the server says {name} is {:?}", row.get(name)));
        let number = |name: &'static str| text(name).parse::<i32>().map_err(|_| damaged(name));
        Ok(Self {
            pid: number("pid")?,
            start: text("start").to_owned(),
            standby: text("standby") == "t",
            store: store_of(row)?,
            timeline: text("timeline").to_ascii_lowercase(),
            role: text("role").to_owned(),
            version: number("version")?,
            max_prepared: number("prepared")?,
            replicates: !text("replicas").is_empty(),
            guarded: text("guarded") == "on",
            lock_timeout: number("lock_timeout")?,
        })
    }
}

/// The store that a row names by its `system` and `database`.
pub(super) fn store_of(row: &SimpleQueryRow) -> Result<StoreId, PostgresError> {
    store_by(row.get("system"), row.get("database"))
}

/// The store of this system identifier and database.
pub(super) fn store_by(system: Option<&str>, database: Option<&str>) -> Result<StoreId, PostgresError> {
    let numbers =
        system.and_then(|text| text.parse::<i64>().ok()).zip(database.and_then(|text| text.parse::<u32>().ok()));
    let store = numbers.and_then(|(system, database)| format!("pg-{system:016x}-{database}").parse().ok());
    store.ok_or_else(|| {
        PostgresError::Damaged(format!("the server says system is {system:?} and database {database:?}"))
    })
}

/// The last row among the answers of a simple query.
pub(super) fn row(messages: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// What warns that a replica has not confirmed a commit or a prepare (`syncrep.c`). Names in the source are not translated, as texts are.
const NOT_REPLICATED: &str = "SyncRepWaitForLSN";

/// The warnings of the server on a session that a commit or a prepare is not everywhere that it must be, as they came. Others, which the
/// application's own functions may raise, say nothing of that.
#[derive(Clone, Default)]
pub(super) struct Warnings(Arc<Mutex<Vec<DbError>>>);

impl Warnings {
    fn push(&self, notice: DbError) {
        let warns = notice.parsed_severity().map_or(notice.severity() == "WARNING", |known| known == Severity::Warning);
        // One that does not say where it comes from may be it.
        if warns && notice.routine().is_none_or(|routine| routine == NOT_REPLICATED) {
            lock(&self.0).push(notice);
        } else {
            tracing::debug!(severity = notice.severity(), "PostgreSQL: {}", notice.message());
        }
    }

    /// Forgets what came so far.
    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// The first warning since, where there is one: an Ok with a warning means *not yet* where it comes with a commit or a prepare.
    pub(super) fn take(&self) -> Option<String> {
        let mut warnings = lock(&self.0);
        let first = warnings.first().map(|warning| format!("{} ({})", warning.message(), warning.code().code()));
        warnings.clear();
        first
    }
}

/// A connection of ours. Closed when it is dropped, whatever is under way.
pub(super) struct Session {
    line: Line,
    pub(super) who: Who,
    /// None where the connection's notices go elsewhere.
    pub(super) warnings: Option<Warnings>,
    shared: bool,
    /// Whether `unanimous_look` and the others are prepared on it.
    pub(super) keeps: bool,
    /// Whether `unanimous_decide` and the other statement of a decision row are, too.
    keeps_rows: AtomicBool,
    /// What was prepared on it, by its text. The cleaning leaves it alone.
    statements: Mutex<BTreeMap<Box<str>, Statement>>,
    /// Our own cleaning, sent when the branch ended: looked at when the session is used again.
    cleaning: Mutex<Option<Sent>>,
}

enum Line {
    Own {
        client: Arc<Client>,
        task: JoinHandle<()>,
    },
    /// By the manager of the application's pool, but outside of it.
    Made(deadpool_postgres::ClientWrapper),
}

impl Line {
    fn client(&self) -> &Client {
        match self {
            Line::Own { client, .. } => client,
            Line::Made(made) => made,
        }
    }
}

impl Session {
    /// `shared`: with other clients of a pooler.
    async fn new(line: Line, warnings: Option<Warnings>, shared: bool) -> Result<Self, PostgresError> {
        let mut who = Who::parse(&line.client().simple_query(WHO).await.map_err(PostgresError::Connect)?)?;
        // A pooler's next session may be another one.
        who.guarded &= !shared;
        // Where our options arrived no pooler is in between, and the session is nobody else's.
        let is_own = who.guarded && matches!(line, Line::Own { .. });
        // A server that is too old does not know all of it, and is told so by who looks at its version.
        let keeps = is_own && line.client().batch_execute(&kept()).await.is_ok();
        if let Some(warnings) = &warnings {
            warnings.clear();
        }
        Ok(Self {
            line,
            who,
            warnings,
            shared,
            keeps,
            keeps_rows: AtomicBool::default(),
            statements: Mutex::default(),
            cleaning: Mutex::default(),
        })
    }

    pub(super) fn client(&self) -> &Client {
        self.line.client()
    }

    /// Whether the statements of a decision row are still to be prepared here; from now on they count as prepared.
    pub(super) fn begins_to_keep_rows(&self) -> bool {
        !self.keeps_rows.swap(true, Ordering::AcqRel)
    }

    /// The statement that was prepared here before, or is now. Kept nowhere where a pooler may be in between, whose next
    /// session would not know it.
    pub(super) async fn prepare_cached(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = lock(&self.statements).get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client().prepare(sql).await?;
        if self.keeps {
            lock(&self.statements).insert(sql.into(), statement.clone());
        }
        Ok(statement)
    }

    /// Sends a batch and waits for nothing; what is sent later runs behind it. None where the session can't do that.
    pub(super) fn send(&self, doing: &'static str, sql: String) -> Option<Sent> {
        let Line::Own { client, .. } = &self.line else { return None };
        let client = client.clone();
        let mut answer: Sent =
            Box::pin(async move { client.batch_execute(&sql).await.map_err(PostgresError::of(doing)) });
        // The first poll sends it.
        if let Some(answer) = answer.as_mut().now_or_never() {
            return Some(Box::pin(std::future::ready(answer)));
        }
        // Taken in as it comes: an answer in several pieces that nobody takes in keeps back all that are behind it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return Some(answer) };
        let task = runtime.spawn(answer);
        Some(Box::pin(async move {
            let ended = |_| Err(PostgresError::NoAnswer { doing, waited: Duration::ZERO });
            task.await.unwrap_or_else(ended)
        }))
    }

    /// Whether no other client's work runs in it, whatever is between: its settings are ours to change.
    pub(super) fn is_ours(&self) -> bool {
        !self.shared
    }

    /// The first warning since this was last asked.
    pub(super) fn take_warning(&self) -> Option<String> {
        self.warnings.as_ref().and_then(Warnings::take)
    }

    /// Ends the connection now: every use of it fails from here on. The server rolls back when it notices, at the latest when the
    /// statement that runs there has ended.
    pub(super) fn close(&self) {
        if let Line::Own { task, .. } = &self.line {
            task.abort();
        }
    }

    /// The answer to the cleaning, where one was sent.
    async fn cleaned(&self) -> Result<(), PostgresError> {
        let cleaning = lock(&self.cleaning).take();
        match cleaning {
            Some(cleaning) => within(CLEANING, CONNECT_LIMIT, cleaning).await,
            None => Ok(()),
        }
    }

    /// Sends what begins a branch behind the cleaning; the answer is to both, so that a session that could not be cleaned aborts the branch.
    pub(super) fn send_begin(&self, doing: &'static str, sql: String) -> Option<Sent> {
        let cleaning = lock(&self.cleaning).take();
        let begun = self.send(doing, sql)?;
        let Some(cleaning) = cleaning else { return Some(begun) };
        Some(Box::pin(async move {
            within(CLEANING, CONNECT_LIMIT, cleaning).await?;
            begun.await
        }))
    }

    /// What was sent as its cleaning has not cleaned it: it ran into a transaction that had failed.
    pub(super) fn is_not_clean(&self) {
        lock(&self.cleaning).take();
    }

    /// Sends the cleaning behind what ends the session's transaction, once, before the session is given back to its pool. Behind a pooler there
    /// is nothing of its own to clean. `prepared`: the transaction was.
    pub(super) fn clean(&self, prepared: bool) {
        let mut answer = lock(&self.cleaning);
        if !self.shared && answer.is_none() {
            let unlock = if self.keeps { "EXECUTE unanimous_unlock" } else { UNLOCK };
            *answer = self.send(CLEANING, cleaning(prepared, unlock));
        }
    }
}

/// The answer to a batch that was sent.
pub(super) type Sent = BoxFuture<'static, Result<(), PostgresError>>;

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("pid", &self.who.pid).field("store", &self.who.store).finish_non_exhaustive()
    }
}

/// Polls the connection to its end; keeps the warnings.
async fn drive<T>(mut connection: tokio_postgres::Connection<Socket, T>, warnings: Warnings)
where
    T: tokio_postgres::tls::TlsStream + Unpin,
{
    loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => warnings.push(notice),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::debug!(error = &error as &(dyn std::error::Error + 'static), "a connection ended");
                return;
            }
            None => return,
        }
    }
}

/// Makes connections, whatever their transport.
pub(super) trait Connect: Send + Sync {
    fn connect(&self) -> BoxFuture<'_, Result<Session, PostgresError>>;

    /// Whether no connection can ever be made.
    fn leads_nowhere(&self) -> bool {
        false
    }
}

/// By a configuration, and TLS where it asks for it.
pub(super) struct ByConfig<T> {
    config: Config,
    tls: T,
    shared: bool,
}

impl<T> ByConfig<T> {
    /// Without a guard the sessions are a pooler's. Where a primary is looked for among several hosts, the driver
    /// asks each whether it reads only, so that there a session must not by itself; it waits for its `BEGIN` then.
    pub(super) fn new(mut config: Config, tls: T, guard: Option<Guard>) -> Self {
        if let Some(guard) = guard
            && config.get_target_session_attrs() == TargetSessionAttrs::Any
        {
            let ours = guard.options();
            let options = config.get_options().map_or(ours.clone(), |options| format!("{options} {ours}"));
            config.options(options);
        }
        Self { config, tls, shared: guard.is_none() }
    }
}

impl<T> Connect for ByConfig<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn connect(&self) -> BoxFuture<'_, Result<Session, PostgresError>> {
        Box::pin(within("connecting", CONNECT_LIMIT, async {
            let (client, connection) = self.config.connect(self.tls.clone()).await.map_err(PostgresError::Connect)?;
            let warnings = Warnings::default();
            let task = tokio::spawn(drive(connection, warnings.clone()));
            Session::new(Line::Own { client: Arc::new(client), task }, Some(warnings), self.shared).await
        }))
    }
}

/// By the manager of a pool that the application made: connections of its kind, that don't count in it. Warnings are not seen.
pub(super) struct ByPool(pub(super) deadpool_postgres::Pool);

impl Connect for ByPool {
    fn connect(&self) -> BoxFuture<'_, Result<Session, PostgresError>> {
        Box::pin(within("connecting", CONNECT_LIMIT, async {
            let made = managed::Manager::create(self.0.manager()).await.map_err(PostgresError::Connect)?;
            Session::new(Line::Made(made), None, false).await
        }))
    }
}

/// To a database of which nothing is known but a connection of the application's.
pub(super) struct Nowhere;

impl Connect for Nowhere {
    fn connect(&self) -> BoxFuture<'_, Result<Session, PostgresError>> {
        Box::pin(std::future::ready(Err(PostgresError::OnlyConnection)))
    }

    fn leads_nowhere(&self) -> bool {
        true
    }
}

/// Where the configuration asks for TLS and there can't be any.
pub(super) struct Never(pub(super) PostgresError);

impl Connect for Never {
    fn connect(&self) -> BoxFuture<'_, Result<Session, PostgresError>> {
        Box::pin(std::future::ready(Err(PostgresError::Tls(self.0.to_string()))))
    }
}

/// An answer within the limit.
pub(super) async fn within<T>(
    doing: &'static str,
    limit: Duration,
    call: impl Future<Output = Result<T, PostgresError>>,
) -> Result<T, PostgresError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(PostgresError::NoAnswer { doing, waited: limit }),
    }
}

/// The pool's manager.
pub(super) struct Sessions(pub(super) Arc<dyn Connect>);

impl managed::Manager for Sessions {
    type Type = Session;
    type Error = PostgresError;

    async fn create(&self) -> Result<Session, PostgresError> {
        self.0.connect().await
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> Result<(), RecycleError<PostgresError>> {
        if session.client().is_closed() {
            return Err(RecycleError::message("the connection is closed"));
        }
        // On a guarded session the next `BEGIN` is sent behind it, and waits for both.
        if !session.who.guarded {
            session.cleaned().await.map_err(RecycleError::Backend)?;
        }
        if let Some(warnings) = &session.warnings {
            warnings.clear();
        }
        Ok(())
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}
