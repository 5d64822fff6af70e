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

use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use deadpool::managed::Object;
use futures_util::future::join;
use futures_util::{FutureExt, TryFutureExt};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};
use unanimous_core::{
    Branch, BranchError, BranchId, Capability, DecisionRecord, FailureKind, SavepointId, TransactionId, Work,
};

use super::control::{Finish, Finished};
use super::error::{self, PostgresError};
use super::outbox::{self, Notification, Notifications};
use super::rows::{self, DURABLE};
use super::schema::SCHEMA;
use super::session::{Sent, Sessions, row, within};
use super::sql::literal;
use super::store::Store;
use crate::sync::lock;

/// How long a rollback may take before the session is ended instead: a statement of the work may be running still.
const ROLLBACK_WAIT: Duration = Duration::from_millis(500);

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
/// and the like; the vote notices it, and the transaction aborts.
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
    /// The answer to `BEGIN`, until somebody needs it.
    begun: tokio::sync::Mutex<Option<Sent>>,
    stage: Mutex<Stage>,
    notifications: Notifications,
    /// The connection string that its connection was opened by, where a join named one.
    url: Option<Arc<str>>,
    /// Whether its connection is closed at the end.
    close: bool,
    /// The server's id of the transaction, as it was at the flush; none where nothing was written.
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
        let Begun { transaction, read_only, notifications, url, close } = work;
        Self {
            link: Some(link),
            backend: backend.map(OnceLock::from).unwrap_or_default(),
            store,
            transaction,
            read_only,
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

    /// Whether it works on this connection of the application's.
    pub(super) fn is_on(&self, client: &Arc<Client>) -> bool {
        matches!(self.link(), Link::Client(ours) if Arc::ptr_eq(ours, client))
    }

    /// The connection string that its connection was opened by, where a join named one.
    pub(super) fn url(&self) -> Option<&str> {
        self.url.as_deref()
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
                const DOING: &str = "beginning the branch";
                let answer = within(DOING, self.store.vote_timeout, answer.map_err(PostgresError::of(DOING))).await;
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
            if error.kind() == FailureKind::Lost {
                self.spoil();
            }
        })
    }

    /// 1; fails where the transaction has failed (25P02), and where it is not ours any more (22012).
    fn marked(&self) -> String {
        let mark = literal(&self.transaction.to_string());
        format!("1/(coalesce(pg_catalog.current_setting('unanimous.branch', true), '') = {mark})::int")
    }

    /// The statement that commits without a vote, behind the mark. A commit that was answered must last.
    fn commit_sql(&self, row: &str) -> String {
        format!("SELECT {}; {DURABLE}; {row}; COMMIT", self.marked())
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
        self.begun().await?;
        let mark = literal(&self.transaction.to_string());
        let sql = format!(
            "SELECT coalesce(pg_catalog.current_setting('unanimous.branch', true), '') = {mark} AS ours, \
             pg_catalog.pg_current_xact_id_if_assigned() AS xid, \
             EXISTS (SELECT FROM pg_catalog.pg_foreign_server) AS foreign"
        );
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
        *lock(&self.stage) = Stage::Voting(id.clone());
        let sql = format!("SELECT {}; PREPARE TRANSACTION {}", self.marked(), literal(&id.to_string()));
        let answer = self.ask_behind("preparing the branch", self.keep_notifications(id), &sql).await;
        match answer.map_err(Self::tell) {
            Ok(_) => match self.link().take_warning() {
                None => {
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

    /// On this connection where it works, else on one of recovery's.
    async fn finish(&self, id: &BranchId, how: Finish) -> Result<(), PostgresError> {
        if self.finish_here(id, how).await { Ok(()) } else { self.finish_elsewhere(id, how).await }
    }

    /// On one of recovery's connections.
    async fn finish_elsewhere(&self, id: &BranchId, how: Finish) -> Result<(), PostgresError> {
        let finished = self.store.control.finish(id, how).await?;
        if let (Finished::Absent, Finish::Commit, Some(xid)) = (finished, how, self.xid.get()) {
            self.store.control.look_for_heuristic(id, xid).await;
        }
        Ok(())
    }

    /// Whether the server has confirmed it on this connection. Sent at the first poll.
    async fn finish_here(&self, id: &BranchId, how: Finish) -> bool {
        if !self.is_usable() {
            return false;
        }
        match self.ask("finishing the branch", &format!("{} {}", how.sql(), literal(&id.to_string()))).await {
            Ok(_) => {
                if let Some(warning) = self.link().take_warning() {
                    tracing::warn!(branch = %id, warning, "a warning while finishing the branch");
                }
                true
            }
            Err(error) => {
                tracing::debug!(branch = %id, error = &error as &(dyn Error + 'static),
                    "finishing the branch on another connection");
                // No error code ends a branch (rule 8): the store's list is asked.
                self.spoil();
                false
            }
        }
    }

    /// Commits the prepared branch, and delivers what it has to notify.
    async fn commit_prepared(&self, id: &BranchId) -> Result<(), PostgresError> {
        if self.notifications.is_empty() {
            return self.finish(id, Finish::Commit).await;
        }
        // One behind the other, without a wait in between; where the first fails the second finds nothing to deliver.
        let (committed, delivered) = join(self.finish_here(id, Finish::Commit), self.deliver_here(id)).await;
        if !committed {
            self.finish_elsewhere(id, Finish::Commit).await?;
        }
        if committed && delivered {
            return Ok(());
        }
        *lock(&self.stage) = Stage::Delivering(id.clone());
        self.deliver(id).await
    }

    /// Whether the server has confirmed it on this connection. Sent at the first poll.
    async fn deliver_here(&self, id: &BranchId) -> bool {
        if !self.is_usable() {
            return false;
        }
        match self.ask("delivering notifications", &outbox::deliver_sql(id)).await {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(branch = %id, error = &error as &(dyn Error + 'static),
                    "delivering notifications on another connection");
                // It may be inside of a transaction that has failed.
                self.spoil();
                false
            }
        }
    }

    async fn deliver(&self, id: &BranchId) -> Result<(), PostgresError> {
        outbox::deliver(&self.store.control, id).await
    }

    fn is_usable(&self) -> bool {
        // Where nothing else leads to the session it is asked again.
        (!self.is_spoiled() || self.store.control.leads_nowhere()) && !self.link().client().is_closed()
    }

    /// Commits in one message. `row` is the decision's, where the commit carries one.
    async fn commit_alone(&self, row: &str) -> Result<(), PostgresError> {
        self.begun().await?;
        *lock(&self.stage) = Stage::Committing;
        let notify = self.send_notifications();
        let answer = self.ask_behind("committing the branch", notify, &self.commit_sql(row)).await;
        match answer.map_err(Self::tell) {
            Ok(_) => {
                if let Some(warning) = self.link().take_warning() {
                    return Err(PostgresError::NotReplicated(warning));
                }
                *lock(&self.stage) = Stage::Committed;
                Ok(())
            }
            Err(error) if error.kind() == FailureKind::Lost => Err(error),
            Err(error) => match self.ask("confirming that the branch did not commit", "ROLLBACK").await {
                Ok(_) => {
                    *lock(&self.stage) = Stage::Open;
                    Err(error)
                }
                // An error behind the commit's record is followed by the server's end.
                Err(gone) => {
                    self.spoil();
                    Err(PostgresError::Unconfirmed(format!("{error}; {gone}")))
                }
            },
        }
    }

    async fn carry(&self, record: &DecisionRecord) -> Result<(), BranchError> {
        rows::check(record).map_err(PostgresError::into_branch)?;
        let Err(error) = self.commit_alone(&rows::insert(record)).await else { return Ok(()) };
        if !is_row_there(&error) {
            return Err(error.into_branch());
        }
        // The outcome is read, not concluded: the row that is in the way can say either.
        match self.store.has_commit_row(record.transaction).await {
            Ok(false) => Err(PostgresError::Fenced.into_branch()),
            Ok(true) => Err(BranchError::lost(error)),
            Err(unread) => Err(BranchError::lost(unread)),
        }
    }

    /// Gives up what can't have committed. Ok also where the connection is gone: the server rolls back what it held.
    async fn give_up(&self) {
        let link = self.link();
        // Where nothing else leads to the session it is asked in any case.
        if !self.is_spoiled() || self.store.control.leads_nowhere() {
            let rollback = link.client().simple_query("ROLLBACK");
            match tokio::time::timeout(ROLLBACK_WAIT, rollback).await {
                Ok(Ok(_)) => return,
                Ok(Err(_)) | Err(_) => self.spoil(),
            }
        }
        self.cut().await;
    }

    /// Ends the session, on both sides where that is possible.
    async fn cut(&self) {
        if let Link::Own(session) = self.link() {
            session.close();
        }
        let Some(backend) = self.backend.get() else { return };
        if let Err(error) = self.store.control.terminate(backend).await {
            tracing::warn!(transaction = %self.transaction, pid = backend.pid, error = &error as &(dyn Error + 'static),
                "a session was not ended; it ends when the server notices that its client is gone");
        }
    }

    /// Behind a vote that was not answered, on the same session: it has ended by the time that this is read, so that it needs no fence.
    async fn undo_behind(&self, id: &BranchId) -> Result<(), PostgresError> {
        self.ask("rolling back behind a vote", "ROLLBACK").await?;
        match self.ask("rolling back behind a vote", &format!("ROLLBACK PREPARED {}", literal(&id.to_string()))).await {
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => Ok(()),
            answer => answer.map(drop),
        }
    }

    async fn undo(&self) -> Result<(), PostgresError> {
        enum What {
            Nothing,
            Open,
            Finish(BranchId),
            Fence(BranchId),
            Committed,
        }
        let what = match &*lock(&self.stage) {
            Stage::Open | Stage::Committing => What::Open,
            Stage::Voting(id) => What::Fence(id.clone()),
            Stage::Prepared(id) => What::Finish(id.clone()),
            Stage::RolledBack => What::Nothing,
            Stage::Delivering(_) | Stage::Committed => What::Committed,
        };
        match what {
            What::Nothing => return Ok(()),
            What::Committed => return Err(PostgresError::Ended),
            What::Open => self.give_up().await,
            What::Finish(id) => self.finish(&id, Finish::Rollback).await?,
            What::Fence(id) if self.store.control.leads_nowhere() => self.undo_behind(&id).await?,
            What::Fence(id) => {
                // A vote may still be under way there: it has landed, or never will, once its session is gone.
                self.spoil();
                if let Link::Own(session) = self.link() {
                    session.close();
                }
                let backend = self.backend.get().expect("a vote is sent after BEGIN was answered");
                self.store.control.terminate(backend).await?;
                self.store.control.finish(&id, Finish::Rollback).await?;
            }
        }
        *lock(&self.stage) = Stage::RolledBack;
        Ok(())
    }
}

/// Whether a commit failed since the transaction has a decision row already.
fn is_row_there(error: &PostgresError) -> bool {
    let PostgresError::Postgres { source, .. } = error else { return false };
    source.as_db_error().is_some_and(|error| {
        *error.code() == SqlState::UNIQUE_VIOLATION
            && error.schema() == Some(SCHEMA)
            && error.table() == Some("decision")
    })
}

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
        self.commit_alone("").await.map_err(PostgresError::into_branch)
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

impl Drop for PostgresBranch {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        let stage = std::mem::replace(&mut *lock(&self.stage), Stage::RolledBack);
        let ended = matches!(stage, Stage::Delivering(_) | Stage::Committed | Stage::RolledBack) && !self.is_spoiled();
        match link {
            Link::Own(session) if ended && !self.close => session.clean(),
            Link::Own(session) if ended => drop(Object::take(session)),
            Link::Pool(object) if ended && self.close => drop(deadpool_postgres::Object::take(object)),
            Link::Pool(_) | Link::Client(_) if ended => {}
            // Sent by its first poll, and not waited for.
            Link::Client(client) if self.store.control.leads_nowhere() || self.backend.get().is_none() => {
                drop(client.simple_query("ROLLBACK").now_or_never())
            }
            link => {
                match link {
                    // Taken out of its pool: it may be inside a transaction.
                    Link::Own(session) => drop(Object::take(session)),
                    Link::Pool(object) => drop(deadpool_postgres::Object::take(object)),
                    Link::Client(_) => {}
                }
                // What runs in the session holds its locks until the server notices; it is told, where there is a runtime.
                let runtime = tokio::runtime::Handle::try_current();
                let runs = !matches!(stage, Stage::Prepared(_)) && !self.is_spoiled();
                if let (Ok(runtime), Some(backend), true) = (runtime, self.backend.take(), runs) {
                    let store = self.store.clone();
                    drop(runtime.spawn(async move { store.control.terminate(&backend).await }));
                }
            }
        }
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
