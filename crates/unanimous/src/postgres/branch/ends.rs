//! How a branch ends: phase two, the commit without a vote, giving up, and the drop.
//!
//! Must not know the protocol, nor other branches.

use std::error::Error;

use deadpool::managed::Object;
use futures_util::FutureExt;
use futures_util::future::{join, join3, join4};
use tokio_postgres::error::SqlState;
use unanimous_core::{BranchError, BranchId, DecisionRecord, FailureKind};

use super::{Link, PostgresBranch, ROLLBACK_WAIT, Stage};
use crate::postgres::control::{Finish, Finished};
use crate::postgres::error::PostgresError;
use crate::postgres::schema::SCHEMA;
use crate::postgres::sql::literal;
use crate::postgres::{outbox, rows};
use crate::sync::lock;

impl PostgresBranch {
    /// On this connection where it works, else on one of recovery's.
    pub(super) async fn finish(&self, id: &BranchId, how: Finish) -> Result<(), PostgresError> {
        let (finished, (), ()) = join3(self.finish_here(id, how), self.park(), self.clean(true)).await;
        if finished { Ok(()) } else { self.finish_elsewhere(id, how).await }
    }

    /// On one of recovery's connections.
    async fn finish_elsewhere(&self, id: &BranchId, how: Finish) -> Result<(), PostgresError> {
        let finished = self.store.control.finish(id, how).await?;
        if let (Finished::Absent, Some(xid)) = (finished, self.xid.get()) {
            self.store.control.look_for_heuristic(id, how, xid).await;
        }
        Ok(())
    }

    /// Whether the server has confirmed it on this connection. Sent at the first poll.
    async fn finish_here(&self, id: &BranchId, how: Finish) -> bool {
        let finished =
            self.done_here("finishing the branch", &format!("{} {}", how.sql(), literal(&id.to_string()))).await;
        if let (true, Some(warning)) = (finished, self.link().take_warning()) {
            tracing::warn!(branch = %id, warning, "a warning while finishing the branch");
        }
        finished
    }

    /// Whether the server did it on this connection, which is not used again where it did not. Sent at the first poll.
    async fn done_here(&self, doing: &'static str, sql: &str) -> bool {
        if !self.is_usable() {
            return false;
        }
        match self.ask(doing, sql).await {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(transaction = %self.transaction, error = &error as &(dyn Error + 'static),
                    "{doing} goes on on another connection");
                // No error code ends a branch (rule 8): the store's list is asked. The session may be inside of what has failed.
                self.spoil();
                false
            }
        }
    }

    /// Commits the prepared branch, and delivers what it has to notify.
    pub(super) async fn commit_prepared(&self, id: &BranchId) -> Result<(), PostgresError> {
        if self.notifications.is_empty() {
            return self.finish(id, Finish::Commit).await;
        }
        // One behind the other, without a wait in between; where the first fails the second finds nothing to deliver.
        let deliver_sql = outbox::deliver_sql(id);
        let (committed, delivered, (), ()) = join4(
            self.finish_here(id, Finish::Commit),
            self.done_here("delivering notifications", &deliver_sql),
            self.park(),
            self.clean(true),
        )
        .await;
        if !committed {
            self.finish_elsewhere(id, Finish::Commit).await?;
        }
        if committed && delivered {
            return Ok(());
        }
        *lock(&self.stage) = Stage::Delivering(id.clone());
        self.deliver(id).await
    }

    pub(super) async fn deliver(&self, id: &BranchId) -> Result<(), PostgresError> {
        outbox::deliver(&self.store.control, id).await
    }

    pub(super) fn is_usable(&self) -> bool {
        // Where nothing else leads to the session it is asked again.
        (!self.is_spoiled() || self.store.control.leads_nowhere()) && !self.link().client().is_closed()
    }

    /// Commits in one message, behind `first`: what fails where the commit must not be, and the decision's row where the commit carries one.
    pub(super) async fn commit_alone(&self, first: &str) -> Result<(), PostgresError> {
        self.begun().await?;
        // What came so far says nothing of the commit.
        let _ = self.link().take_warning();
        *lock(&self.stage) = Stage::Committing;
        let notify = self.send_notifications();
        // A message of its own: an error behind the commit in the same one (a cancel, say) would be taken for the commit's.
        let sql = format!("{first}; COMMIT");
        let commit = self.ask_behind("committing the branch", notify, &sql);
        let (answer, (), ()) = join3(commit, self.park(), self.clean(false)).await;
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
                    if let Link::Own(session) = self.link() {
                        session.is_not_clean();
                    }
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

    pub(super) async fn carry(&self, record: &DecisionRecord) -> Result<(), BranchError> {
        rows::check(record).map_err(PostgresError::into_branch)?;
        let Err(error) = self.commit_with_row(record).await else { return Ok(()) };
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

    async fn commit_with_row(&self, record: &DecisionRecord) -> Result<(), PostgresError> {
        let session = match self.link() {
            Link::Own(session) if session.keeps => session,
            _ => return self.commit_alone(&format!("{}; {}", self.alone(), rows::insert(record))).await,
        };
        // Not earlier: the tables are made when the first carrier begins.
        let first = session.begins_to_keep_rows();
        let prepare = if first { rows::keep() } else { "" };
        let row = rows::insert_kept(record);
        let committed = self.commit_alone(&format!("{}; {prepare}{row}", self.alone())).await;
        if first && committed.is_err() {
            // Nobody knows which of them it keeps.
            self.spoil();
        }
        committed
    }

    /// Gives up what can't have committed. Ok also where the connection is gone: the server rolls back what it held.
    async fn give_up(&self) {
        let link = self.link();
        // Where nothing else leads to the session it is asked in any case.
        if !self.is_spoiled() || self.store.control.leads_nowhere() {
            let rollback = format!("ROLLBACK{}", self.parking());
            let rollback = join(link.client().simple_query(&rollback), self.clean(false)).map(|(answer, ())| answer);
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

    pub(super) async fn undo(&self) -> Result<(), PostgresError> {
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
                // Nothing is asked by the transaction's number: only of what has prepared it is used up for good.
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

impl Drop for PostgresBranch {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        let stage = std::mem::replace(&mut *lock(&self.stage), Stage::RolledBack);
        let over = matches!(stage, Stage::Delivering(_) | Stage::Committed | Stage::RolledBack);
        let ended = over && !self.is_spoiled();
        if ended && link.is_open() {
            // Sent by its first poll, in front of what its next user sends.
            drop(link.client().simple_query("ROLLBACK").now_or_never());
        }
        match link {
            Link::Own(session) if ended && !self.close => session.clean(false),
            Link::Own(session) if ended => drop(Object::take(session)),
            Link::Pool(object) if ended && self.close => drop(deadpool_postgres::Object::take(object)),
            Link::Pool(_) | Link::Client(_) if ended => {}
            Link::Client(client) if self.store.control.leads_nowhere() || self.backend.get().is_none() => {
                // What is over is the application's again. Sent by its first poll, and not waited for.
                if !over {
                    drop(client.simple_query("ROLLBACK").now_or_never());
                }
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
