//! Branches on connections of other drivers, and of other languages: the statements that they send, and whose branches they are.
//!
//! Must not know how they are sent, nor when.

use unanimous_core::{DecisionRecord, Owner};

use super::Postgres;
use super::error::PostgresError;
use super::outbox::{self, Notification};
use super::rows::{self, DURABLE};
use super::schema::SCHEMA;
use super::session;
use super::sql::literal;

/// A branch on a connection that another driver has made: what it sends, so that it keeps the promises of this adapter's own branches. It
/// takes part by [`Tx::join_foreign`](crate::Tx::join_foreign).
///
/// ```text
/// who_sql                              one row, which Postgres::leads_here reads; once for each connection is enough
/// BEGIN, and mark_sql
/// the application's statements
/// vote_sql                             one message
/// COMMIT PREPARED or ROLLBACK PREPARED the id as a literal; on another connection where this one is lost
/// deliver_sql                          one message, behind COMMIT PREPARED where it has notifications
/// ```
///
/// Where the database is a [carrier](super::PostgresBuilder::carrier), and the branch says that it is one, it is not prepared:
///
/// ```text
/// Postgres::ready_to_carry             before it joins
/// guard_sql; decision_sql; COMMIT      one message, when the others have voted; what it notifies by pg_notify in front of the COMMIT
/// guard_sql; durable_sql; COMMIT       where it is the transaction's only branch that wrote
/// ```
///
/// An error of that message is a definite no where the server has answered with it and with the state of its transaction: failed. What came behind
/// the commit, or instead of an answer, is lost, and the rows are asked.
#[derive(Clone, Debug)]
pub struct ForeignBranch {
    mark: String,
}

impl ForeignBranch {
    /// A branch that is told from others by this mark: random, or the transaction's id.
    pub fn new(mark: impl Into<String>) -> Self {
        Self { mark: mark.into() }
    }

    /// Asks where a connection leads, outside of a transaction: whatever reads within one keeps the application from setting its
    /// isolation level. Its row, of texts: `system`, `database` and `role` for [`Postgres::leads_here`], and `replicas`: where that is not
    /// empty, a warning at the vote is a no; and `session`, the server's process, which is not the one that the driver was told of where a pooler is in
    /// between.
    pub fn who_sql() -> &'static str {
        "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text AS system, \
         (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())::text AS database, \
         session_user::text AS role, pg_catalog.current_setting('synchronous_standby_names') AS replicas, \
         pg_catalog.pg_backend_pid()::text AS session"
    }

    /// Behind `BEGIN`: marks the transaction.
    pub fn mark_sql(&self) -> String {
        format!("SET LOCAL unanimous.branch = {}", literal(&self.mark))
    }

    /// The vote, to be sent as one message: it prepares the transaction under `id`, with its notifications (channel and payload) as rows of the
    /// [outbox](Postgres::ensure_outbox). It fails with 25P02 where the transaction has failed, and with 22012 where the work has ended it;
    /// a bare `PREPARE TRANSACTION` would be answered without an error then, and prepare nothing.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Notification`] for what PostgreSQL would refuse to notify.
    pub fn vote_sql(&self, id: &str, notifications: &[(String, String)]) -> Result<String, PostgresError> {
        let mut sql = format!("{}; ", self.guard_sql());
        if !notifications.is_empty() {
            sql.push_str(&Self::notifications_sql(id, notifications)?);
            sql.push_str("; ");
        }
        sql.push_str("PREPARE TRANSACTION ");
        sql.push_str(&literal(id));
        Ok(sql)
    }

    /// What a commit without a vote begins with, in the same message: it fails with 25P02 where the transaction has failed, and with 22012 where
    /// the work has ended it, so that nothing behind it is done.
    pub fn guard_sql(&self) -> String {
        let ours =
            format!("coalesce(pg_catalog.current_setting('unanimous.branch', true), '') = {}", literal(&self.mark));
        format!("SELECT 1/({ours})::int")
    }

    /// What a commit that was answered needs in front of it, so that it lasts.
    pub fn durable_sql() -> &'static str {
        DURABLE
    }

    /// The rows of a decision, behind what makes the commit last. They fail with 23505 where the transaction has been decided, which may be a
    /// recoverer's abort.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Unwritable`] for a record that the rows can't hold.
    pub fn decision_sql(record: &DecisionRecord) -> Result<String, PostgresError> {
        rows::check(record)?;
        Ok(format!("{DURABLE}; {}", rows::insert(record)))
    }

    /// Makes a session keep what [`kept_decision_sql`](Self::kept_decision_sql) executes, so that it is planned once. In front of that, in a session
    /// that stays: behind a pooler that shares sessions, and after a `DEALLOCATE ALL`, a commit would fail with 26000.
    pub fn keep_decisions_sql() -> String {
        format!("{}PREPARE unanimous_durable AS {DURABLE}", rows::keep())
    }

    /// [`decision_sql`](Self::decision_sql) in a session that keeps its statements.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn kept_decision_sql(record: &DecisionRecord) -> Result<String, PostgresError> {
        rows::check(record)?;
        Ok(format!("EXECUTE unanimous_durable; {}", rows::insert_kept(record)))
    }

    /// What keeps a branch's notifications (at least one) in the outbox, for who prepares by a call of the driver's own: the last statement before
    /// it.
    ///
    /// # Errors
    ///
    /// [`PostgresError::Notification`] for what PostgreSQL would refuse to notify.
    pub fn notifications_sql(id: &str, notifications: &[(String, String)]) -> Result<String, PostgresError> {
        let mut rows = Vec::with_capacity(notifications.len());
        for (index, (channel, payload)) in notifications.iter().enumerate() {
            Notification::new(channel, payload)?;
            rows.push(format!("({}, {}, {}, {})", literal(id), index + 1, literal(channel), literal(payload)));
        }
        let table = outbox::TABLE;
        Ok(format!("INSERT INTO {SCHEMA}.{table} (branch, n, channel, payload) VALUES {}", rows.join(", ")))
    }

    /// Notifies what the committed branch has in the outbox, in a transaction of its own; nothing where recovery was earlier. One message.
    pub fn deliver_sql(id: &str) -> String {
        outbox::delivery_sql(id)
    }
}

impl Postgres {
    /// Whether a connection leads to this database, by what it answered to [`ForeignBranch::who_sql`]. A store that was not reached yet is asked
    /// who it is.
    ///
    /// # Errors
    ///
    /// [`PostgresError::OtherRole`] where it does, with another role than this store's, so that this store could not finish its branches; and
    /// what a store that was not reached yet fails with.
    pub async fn leads_here(&self, system: &str, database: &str, role: &str) -> Result<bool, PostgresError> {
        let control = &self.store.control;
        if !control.is_known() {
            control.identity().await?;
        }
        self.is_known_to_lead_here(system, database, role)
    }

    /// The same without asking: false also where the store was not reached yet.
    ///
    /// # Errors
    ///
    /// [`PostgresError::OtherRole`], as [`leads_here`](Self::leads_here).
    pub fn is_known_to_lead_here(&self, system: &str, database: &str, role: &str) -> Result<bool, PostgresError> {
        let store = session::store_by(Some(system), Some(database))?;
        self.store.control.is_store(&store, role)
    }

    /// Whether the server has replicas now that a commit waits for: then a warning at a vote is a no.
    ///
    /// # Errors
    ///
    /// When the database can't be asked.
    pub async fn replicates(&self) -> Result<bool, PostgresError> {
        self.store.control.replicates().await
    }

    /// Makes a run of a decision log known to this carrier, with the tables where they are missing: before the first branch of that run that a
    /// [`ForeignBranch`] carries a decision with. Asked again it costs nothing.
    ///
    /// # Errors
    ///
    /// When the database can't be reached or was promoted since, or the role may not: see [`schema_sql`](super::schema_sql).
    pub async fn ready_to_carry(&self, owner: Owner) -> Result<(), PostgresError> {
        self.store.register(owner).await
    }

    /// Makes the table of notifications where it is missing; a [`vote_sql`](ForeignBranch::vote_sql) with notifications needs it.
    ///
    /// # Errors
    ///
    /// When the database can't be reached, or the role may not: see [`schema_sql`](super::schema_sql).
    pub async fn ensure_outbox(&self) -> Result<(), PostgresError> {
        self.store.ensure_outbox().await
    }
}
