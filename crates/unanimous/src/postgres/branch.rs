//! [`PostgresBranch`]: the part of a transaction in a PostgreSQL database, used as a [`tokio_postgres::Client`].
//!
//! ```text
//! BEGIN; SET LOCAL unanimous.branch = ...     sent in front of the first statement, not waited for
//! the application's statements
//! SELECT mark, xid                            flush
//! SELECT 1/mark; PREPARE TRANSACTION gid      the vote: one message, so that it fails where the transaction has
//! COMMIT PREPARED gid                         on the same connection; where that is lost, on one of recovery's
//! SELECT 1/mark; INSERT decision row; COMMIT  instead of both where it carries the decision
//! ```
//!
//! Notifications go in front of a commit in one phase, as rows in front of the vote, and are delivered behind `COMMIT PREPARED`; none of
//! that is waited for by itself.
//!
//! Must not know the protocol, nor other branches.

mod ends;

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use deadpool::managed::Object;
use futures_util::future::join;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};
use unanimous_core::{
    Branch, BranchError, BranchId, Capability, DecisionRecord, FailureKind, SavepointId, TransactionId, Work,
};

use super::error::{self, PostgresError};
use super::outbox::{self, Notification, Notifications};
use super::rows::DURABLE;
use super::session::{self, LOOK, MARKED, Sent, Sessions, row, within};
use super::sql::literal;
use super::store::Store;
use crate::sync::lock;

/// How long a rollback may take before the session is ended instead: a statement of the work may be running still.
const ROLLBACK_WAIT: Duration = Duration::from_millis(500);

/// What is being done while `BEGIN` is out.
pub(super) const BEGINNING: &str = "beginning the branch";

/// Where the branch's connection comes from.
pub(super) enum Link {
    /// Our own pool.
    Own(Object<Sessions>),
    /// The application's pool.
    Pool(deadpool_postgres::Object),
    /// The application itself.
    Client(Arc<Client>),
}

impl Link {
    pub(super) fn client(&self) -> &Client {
        match self {
            Link::Own(session) => session.client(),
            Link::Pool(object) => object,
            Link::Client(client) => client,
        }
    }

    /// Whether what runs on it outside of a transaction of ours could write, though it must not: the session reads and writes by default, and is
    /// not the application's own either.
    fn is_open(&self) -> bool {
        match self {
            Link::Own(session) => !session.who.guarded,
            Link::Pool(_) => true,
            Link::Client(_) => false,
        }
    }

    fn take_warning(&self) -> Option<String> {
        match self {
            Link::Own(session) => session.take_warning(),
            Link::Pool(_) | Link::Client(_) => None,
        }
    }
}

/// A session of the server: its process, and when that began.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    pub(super) pid: i32,
    pub(super) start: String,
}

/// What a branch begins with.
pub(super) struct Begun {
    pub(super) transaction: TransactionId,
    pub(super) read_only: bool,
    pub(super) writes: bool,
    pub(super) notifications: Vec<Notification>,
    pub(super) url: Option<Arc<str>>,
    pub(super) close: bool,
}

/// What has become of the branch.
enum Stage {
    /// Open, and nothing was asked that could commit it.
    Open,
    /// A vote was sent and not answered: it may be prepared, now or later.
    Voting(BranchId),
    /// It is prepared.
    Prepared(BranchId),
    /// It is committed, and its notifications are not delivered.
    Delivering(BranchId),
    /// A commit in one phase was sent and not answered.
    Committing,
    Committed,
    RolledBack,
}

/// A branch of a transaction in a PostgreSQL database: dereferences to the [`tokio_postgres::Client`] that it works on.
///
/// The work may send any statement but those that end the transaction or that PostgreSQL can't prepare: temporary objects, cursors
/// `WITH HOLD`, `LISTEN`, and `NOTIFY`, for which there is [`notify`](Self::notify). What it must not send: `BEGIN`, `COMMIT`, `ROLLBACK`
/// and the like; the vote notices it, and the transaction aborts. It aborts after a `DEALLOCATE ALL` too: our own sessions keep statements
/// that the vote needs.
///
/// A bare `NOTIFY` in a branch that writes nothing can't be noticed; it goes out when that branch ends, whatever becomes of the others.
///
/// # Drop
///
/// A branch that is dropped without an end is closed with its connection, which the server rolls back.
pub struct PostgresBranch {
    /// None only while it is dropped.
    link: Option<Link>,
    backend: OnceLock<Backend>,
    store: Arc<Store>,
    transaction: TransactionId,
    read_only: bool,
    /// Whether the join has said that the work writes.
    writes: bool,
    /// The answer to `BEGIN`, until somebody needs it.
    begun: tokio::sync::Mutex<Option<Sent>>,
    stage: Mutex<Stage>,
    notifications: Notifications,
    /// The connection string that its connection was opened by, where a join named one.
    url: Option<Arc<str>>,
    /// Whether its connection is closed at the end.
    close: bool,
    /// The server's id of the transaction, as it was at the flush or at the vote; none where nothing was written.
    xid: OnceLock<String>,
    /// The application may still use the connection after the end, or nobody knows what is open on it.
    spoiled: std::sync::atomic::AtomicBool,
}

impl PostgresBranch {
    pub(super) fn new(
        link: Link,
        backend: Option<Backend>,
        store: Arc<Store>,
        work: Begun,
        begun: Option<Sent>,
    ) -> Self {
        let Begun { transaction, read_only, writes, notifications, url, close } = work;
        Self {
            link: Some(link),
            backend: backend.map(OnceLock::from).unwrap_or_default(),
            store,
            transaction,
            read_only,
            writes,
            begun: tokio::sync::Mutex::new(begun),
            stage: Mutex::new(Stage::Open),
            notifications: Notifications::new(notifications),
            url,
            close,
            xid: OnceLock::new(),
            spoiled: std::sync::atomic::AtomicBool::new(false),
        }
    }

    fn link(&self) -> &Link {
        self.link.as_ref().expect("the link is taken by drop only")
    }

    /// The transaction that it is a part of.
    pub fn transaction(&self) -> TransactionId {
        self.transaction
    }

    /// Notifies this channel when the transaction has committed, and only then. The notification can't be lost: it goes out in the
    /// transaction that commits this branch, or, where the branch is prepared, is kept in the table `unanimous.outbox` with the branch's
    /// work and delivered behind `COMMIT PREPARED`, by recovery if need be. A transaction that has notified counts as one that wrote.
    ///
    /// The channel is taken as it is, as a quoted identifier: `LISTEN Jobs` listens to `jobs`. Notifications go out in the order in
    /// which they were asked for; equal ones of one transaction may come as one, as with `NOTIFY`. Those asked for after a
    /// [savepoint](crate::Tx::savepoint) go with a rollback to it; a `ROLLBACK TO` that the work sends by itself is not seen.
    ///
    /// Where the work has changed its role (`SET LOCAL ROLE`), that role needs the right to insert into the outbox.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Notification`] for what PostgreSQL would refuse: a channel has 1 to 63 bytes. Nothing was sent, and the branch
    /// goes on. [`PostgresError::Ended`] after its end.
    pub fn notify(&self, channel: &str) -> Result<(), PostgresError> {
        self.notify_with(channel, "")
    }

    /// The same, with a payload of less than 8000 bytes.
    ///
    /// # Errors
    ///
    /// As [`notify`](Self::notify).
    pub fn notify_with(&self, channel: &str, payload: &str) -> Result<(), PostgresError> {
        let notification = Notification::new(channel, payload)?;
        if self.read_only {
            return Err(PostgresError::READ_ONLY_NOTIFIES);
        }
        if self.is_spoiled() || !matches!(*lock(&self.stage), Stage::Open) {
            return Err(PostgresError::Ended);
        }
        self.notifications.add(notification);
        Ok(())
    }

    /// Prepares a statement, or gives the one that was prepared before on the same connection: a pool's connections keep their statements
    /// over the transactions, so that a statement that comes again and again is parsed once for each connection, and costs no
    /// message of its own. What a rolled back branch prepared stays prepared.
    ///
    /// The statements stay as long as their connection: for texts that are few, with parameters for what differs. Behind a
    /// [pooler](super::PostgresBuilder::pooler), and on a client of the application's own, it prepares each time.
    ///
    /// # Errors
    ///
    /// The driver's, as [`Client::prepare`]. A statement whose columns a migration has changed fails when it is executed (0A000),
    /// on each connection that prepared it before.
    pub async fn prepare_cached(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        match self.link() {
            Link::Own(session) => session.prepare_cached(sql).await,
            Link::Pool(object) => object.prepare_cached(sql).await,
            Link::Client(client) => client.prepare(sql).await,
        }
    }

    /// Whether it works on this connection of the application's.
    pub(super) fn is_on(&self, client: &Arc<Client>) -> bool {
        matches!(self.link(), Link::Client(ours) if Arc::ptr_eq(ours, client))
    }

    /// The connection string that its connection was opened by, where a join named one.
    pub(super) fn url(&self) -> Option<&str> {
        self.url.as_deref()
    }

    /// How long an answer to a statement of ours is waited for.
    #[cfg(feature = "http")]
    pub(super) fn vote_timeout(&self) -> Duration {
        self.store.vote_timeout
    }

    /// Known once `BEGIN` was answered, where a pooler may choose another session for each transaction.
    pub(super) fn set_backend(&self, backend: Backend) {
        let _ = self.backend.set(backend);
    }

    fn spoil(&self) {
        self.spoiled.store(true, std::sync::atomic::Ordering::Release);
    }

    fn is_spoiled(&self) -> bool {
        self.spoiled.load(std::sync::atomic::Ordering::Acquire)
    }

    /// The answer to `BEGIN`. Where it failed, what was sent behind it could only read.
    async fn begun(&self) -> Result<(), PostgresError> {
        let mut begun = self.begun.lock().await;
        match begun.as_mut() {
            None => Ok(()),
            Some(answer) => {
                let answer = within(BEGINNING, self.store.vote_timeout, answer).await;
                if answer.is_err() {
                    self.spoil();
                }
                *begun = Some(Box::pin(std::future::ready(Ok(()))));
                answer
            }
        }
    }

    async fn ask(&self, doing: &'static str, sql: &str) -> Result<Vec<SimpleQueryMessage>, PostgresError> {
        self.ask_behind(doing, std::future::ready(Ok(())), sql).await
    }

    /// Sends what `first` sends, and the query behind it, and waits for both. Where the first failed, its error tells more than the
    /// query's.
    async fn ask_behind(
        &self,
        doing: &'static str,
        first: impl Future<Output = Result<(), tokio_postgres::Error>>,
        sql: &str,
    ) -> Result<Vec<SimpleQueryMessage>, PostgresError> {
        let limit = self.store.vote_timeout;
        let asked = within(doing, limit, async {
            // Polled, and so sent, in this order.
            let (first, answer) = join(first, self.link().client().simple_query(sql)).await;
            match (first, answer) {
                (Ok(()), answer) => answer.map_err(PostgresError::of(doing)),
                // An answer that was lost hides what became of the query, whatever the first one's error was.
                (Err(_), Err(lost)) if error::kind(&lost) == FailureKind::Lost => Err(PostgresError::of(doing)(lost)),
                // Nothing was sent, and the rest went through without it: no answer that could be believed.
                (Err(failed), Ok(_)) => Err(PostgresError::Unsent(failed.to_string())),
                (Err(failed), Err(_)) => Err(outbox::failed(failed)),
            }
        });
        asked.await.inspect_err(|error| {
            // Where the work has deallocated what the session keeps, its next user must not meet that.
            let deallocated = error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME);
            if error.kind() == FailureKind::Lost || deallocated {
                self.spoil();
            }
        })
    }

    /// 1; fails where the transaction has failed (25P02), and where it is not ours any more (22012).
    fn marked(&self) -> String {
        self.with_mark(MARKED)
    }

    fn mark(&self) -> String {
        literal(&self.transaction.to_string())
    }

    fn with_mark(&self, sql: &str) -> String {
        sql.replace("$1", &self.mark())
    }

    /// Whether the session keeps the statements of ours.
    fn keeps(&self) -> bool {
        matches!(self.link(), Link::Own(session) if session.keeps)
    }

    /// The statement that fails where [`marked`](Self::marked) does.
    fn guard(&self) -> String {
        if self.keeps() {
            format!("EXECUTE unanimous_guard ({})", self.mark())
        } else {
            self.with_mark(&session::guard())
        }
    }

    /// What stands in front of a commit without a vote: fails where [`marked`](Self::marked) does, and makes the commit last, since it
    /// is answered.
    fn alone(&self) -> String {
        if self.keeps() {
            format!("EXECUTE unanimous_alone ({})", self.mark())
        } else {
            format!("{}; {DURABLE}", self.guard())
        }
    }

    /// What follows the branch's end in the same message: a guard that is in use still can't write then, until the branch is dropped.
    fn parking(&self) -> &'static str {
        if self.link().is_open() { PARKED } else { "" }
    }

    /// The same as a message of its own, behind what can't share one. Sent at the first poll.
    async fn park(&self) {
        if !self.link().is_open() || !self.is_usable() {
            return;
        }
        match self.ask("parking the session", PARKED).await {
            // Inside of what has failed nothing can be written, and a rollback follows.
            Err(error) if error.code() != Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => self.spoil(),
            _ => {}
        }
    }

    /// Sends the cleaning behind the branch's end, so that the server does both at one time. For a session of our own that nobody uses
    /// any more: one that goes back to its pool. Sent at the first poll.
    async fn clean(&self, prepared: bool) {
        if let Link::Own(session) = self.link()
            && session.who.guarded
            && !self.close
            && !self.is_spoiled()
        {
            session.clean(prepared);
        }
    }

    /// Notifies in the transaction that is about to commit. Sent at the first poll.
    async fn send_notifications(&self) -> Result<(), tokio_postgres::Error> {
        if self.notifications.is_empty() {
            return Ok(());
        }
        self.notifications.send(self.link().client(), &self.marked()).await
    }

    /// Writes the notifications into the transaction that is about to be prepared. Sent at the first poll.
    async fn keep_notifications(&self, id: &BranchId) -> Result<(), tokio_postgres::Error> {
        if self.notifications.is_empty() {
            return Ok(());
        }
        self.notifications.keep(self.link().client(), id, &self.marked()).await
    }

    /// What the mark's errors mean; other errors are the server's own.
    fn tell(error: PostgresError) -> PostgresError {
        match error.code() {
            Some(code) if *code == SqlState::IN_FAILED_SQL_TRANSACTION => PostgresError::WorkFailed,
            Some(code) if *code == SqlState::DIVISION_BY_ZERO => PostgresError::WorkEnded,
            _ => error,
        }
    }

    async fn look(&self) -> Result<Work, PostgresError> {
        if self.writes && !self.read_only {
            // What else is looked for here, the vote or the commit finds.
            return Ok(Work::Wrote);
        }
        self.begun().await?;
        let sql = match self.keeps() {
            true => format!("EXECUTE unanimous_look ({})", self.mark()),
            false => self.with_mark(LOOK),
        };
        let answer = self.ask("flushing the branch", &sql).await.map_err(Self::tell)?;
        let row = row(&answer).ok_or(PostgresError::WorkEnded)?;
        if row.get("ours") != Some("t") {
            return Err(PostgresError::WorkEnded);
        }
        // What came so far says nothing of the vote.
        let _ = self.link().take_warning();
        if let Some(xid) = row.get("xid") {
            let _ = self.xid.set(xid.to_owned());
        }
        // Without an id nothing was written here; a foreign server may have been written to all the same.
        let wrote = row.get("xid").is_some()
            || !self.notifications.is_empty()
            || (!self.read_only && row.get("foreign") == Some("t"));
        Ok(if wrote { Work::Wrote } else { Work::ReadOnly })
    }

    async fn vote(&self, id: &BranchId) -> Result<(), PostgresError> {
        self.begun().await?;
        if !self.notifications.is_empty() && !self.store.control.leads_nowhere() {
            self.store.ensure_outbox().await?;
        }
        // What came so far says nothing of the vote.
        let _ = self.link().take_warning();
        *lock(&self.stage) = Stage::Voting(id.clone());
        let sql = format!("{}; PREPARE TRANSACTION {}", self.guard(), literal(&id.to_string()));
        let answer = self.ask_behind("preparing the branch", self.keep_notifications(id), &sql).await;
        match answer.map_err(Self::tell) {
            Ok(answer) => match self.link().take_warning() {
                None => {
                    if let Some(xid) = row(&answer).and_then(|row| row.try_get("xid").ok().flatten()) {
                        let _ = self.xid.set(xid.to_owned());
                    }
                    *lock(&self.stage) = Stage::Prepared(id.clone());
                    Ok(())
                }
                Some(warning) => Err(PostgresError::NotReplicated(warning)),
            },
            Err(error) => {
                if error.kind() != FailureKind::Lost {
                    *lock(&self.stage) = Stage::Open;
                }
                Err(error)
            }
        }
    }
}

/// An open transaction that holds nothing, and in which nothing can be written.
const PARKED: &str = "; BEGIN READ ONLY";

impl Deref for PostgresBranch {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.link().client()
    }
}

impl Branch for PostgresBranch {
    fn capability(&self) -> Capability {
        self.store.capability
    }

    fn sort_key(&self) -> String {
        format!("postgres:{}", self.store.name)
    }

    /// [`Work::ReadOnly`] where no transaction id was assigned and the database has no foreign servers that may have been written to.
    async fn flush(&self) -> Result<Work, BranchError> {
        self.look().await.map_err(PostgresError::into_branch)
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        self.vote(id).await.map_err(PostgresError::into_branch)
    }

    /// Also delivers what the branch has to notify; repeated after its commit it only does that.
    async fn commit(&self) -> Result<(), BranchError> {
        let (id, committed) = match &*lock(&self.stage) {
            Stage::Prepared(id) => (id.clone(), false),
            Stage::Delivering(id) => (id.clone(), true),
            Stage::Committed => return Ok(()),
            _ => return Err(BranchError::refused(PostgresError::Ended)),
        };
        let finished = if committed { self.deliver(&id).await } else { self.commit_prepared(&id).await };
        finished.map_err(PostgresError::into_branch)?;
        *lock(&self.stage) = Stage::Committed;
        Ok(())
    }

    /// A branch that may be prepared is fenced first: its session is ended, so that a late vote can't follow.
    async fn rollback(&self) -> Result<(), BranchError> {
        self.undo().await.map_err(PostgresError::into_branch)
    }

    async fn commit_one_phase(&self, _id: &BranchId) -> Result<(), BranchError> {
        self.commit_alone(&self.alone()).await.map_err(PostgresError::into_branch)
    }

    /// The work and the row are one message: no client that dies in between leaves a transaction open that a fence waits for.
    async fn commit_carrying(&self, record: &DecisionRecord) -> Result<(), BranchError> {
        self.carry(record).await
    }

    fn is_retryable(&self, error: &(dyn Error + 'static)) -> bool {
        error::is_retryable(error)
    }

    /// The session is ended by the rollback that follows, and not used again.
    fn revoke(&self) {
        self.spoil();
        if let Link::Own(session) = self.link() {
            session.close();
        }
    }

    fn has_savepoints(&self) -> bool {
        true
    }

    async fn savepoint(&self, id: SavepointId) -> Result<(), BranchError> {
        let answer = self.ask("making a savepoint", &format!("SAVEPOINT unanimous_{id}")).await;
        answer.map_err(|error| Self::tell(error).into_branch())?;
        self.notifications.savepoint(id);
        Ok(())
    }

    async fn rollback_to(&self, id: SavepointId) -> Result<(), BranchError> {
        let sql = format!("ROLLBACK TO SAVEPOINT unanimous_{id}");
        self.ask("rolling back to a savepoint", &sql).await.map_err(PostgresError::into_branch)?;
        self.notifications.rollback_to(id);
        Ok(())
    }
}

impl fmt::Debug for PostgresBranch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBranch")
            .field("store", &self.store.name)
            .field("transaction", &self.transaction)
            .finish_non_exhaustive()
    }
}
