//! What a join may ask for, and the statements that a branch begins with.
//!
//! Must not know connections.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;
pub use tokio_postgres::IsolationLevel;
use unanimous_core::TransactionId;

use super::error::PostgresError;
use super::outbox::Notification;
use super::store::Url;

/// What a join may ask for. By default: the server's default isolation level, read and write, the store's lock timeout, no statement
/// timeout of its own, a connection of the store's pool.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct PostgresOptions {
    pub(super) isolation: Option<IsolationLevel>,
    pub(super) read_only: bool,
    pub(super) writes: bool,
    pub(super) deferrable: bool,
    pub(super) statement_timeout: Option<Duration>,
    pub(super) lock_timeout: Option<Duration>,
    pub(super) client: Option<Arc<Client>>,
    pub(super) notify: Vec<(String, String)>,
    pub(super) url: Option<Url>,
    pub(super) close: bool,
}

impl PostgresOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The isolation level; the server's `default_transaction_isolation` otherwise.
    #[must_use]
    pub fn isolation(self, level: IsolationLevel) -> Self {
        Self { isolation: Some(level), ..self }
    }

    /// A transaction that the server keeps from writing.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// Says that the work writes, so that the commit does not ask the server whether it did: one round trip less. Where it has written nothing
    /// after all, the branch is treated as one that wrote, which costs forced writes and is right. Beside [`read_only`](Self::read_only) it says nothing.
    #[must_use]
    pub fn writes(self) -> Self {
        Self { writes: true, ..self }
    }

    /// `DEFERRABLE`: counts for a serializable transaction that only reads, which then waits for a snapshot that can't fail.
    #[must_use]
    pub fn deferrable(self) -> Self {
        Self { deferrable: true, ..self }
    }

    /// How long one statement may take, in whole milliseconds, at least one. Does not bound the vote: see
    /// [`vote_timeout`](super::PostgresBuilder::vote_timeout).
    #[must_use]
    pub fn statement_timeout(self, timeout: Duration) -> Self {
        Self { statement_timeout: Some(timeout), ..self }
    }

    /// How long a statement waits for one lock, in whole milliseconds, at least one. There is always such a bound: a deadlock over two
    /// databases is visible to neither.
    #[must_use]
    pub fn lock_timeout(self, timeout: Duration) -> Self {
        Self { lock_timeout: Some(timeout), ..self }
    }

    /// Works on a connection that the application made, instead of one of the pool. It must belong to this store's database, under the
    /// same role, and must not be inside a transaction. It is the application's again when the transaction has ended; what else is
    /// sent through it meanwhile is part of the branch.
    #[must_use]
    pub fn client(self, client: Arc<Client>) -> Self {
        Self { client: Some(client), ..self }
    }

    /// Closes the connection when the transaction has ended, instead of giving it back to its pool. Not one that the application made.
    #[must_use]
    pub fn close_at_end(self) -> Self {
        Self { close: true, ..self }
    }

    /// Works on a connection of this pool.
    pub(super) fn url(self, url: Url) -> Self {
        Self { url: Some(url), ..self }
    }

    /// Notifies this channel when the transaction has committed, as [`PostgresBranch::notify`](super::PostgresBranch::notify); several
    /// are sent in this order. A name that PostgreSQL would refuse fails the join.
    #[must_use]
    pub fn notify(self, channel: impl Into<String>) -> Self {
        self.notify_with(channel, "")
    }

    /// The same, with a payload.
    #[must_use]
    pub fn notify_with(mut self, channel: impl Into<String>, payload: impl Into<String>) -> Self {
        self.notify.push((channel.into(), payload.into()));
        self
    }

    pub(super) fn notifications(&self) -> Result<Vec<Notification>, PostgresError> {
        let all: Vec<_> = self
            .notify
            .iter()
            .map(|(channel, payload)| Notification::new(channel, payload))
            .collect::<Result<_, _>>()?;
        if self.read_only && !all.is_empty() {
            return Err(PostgresError::READ_ONLY_NOTIFIES);
        }
        Ok(all)
    }

    /// `BEGIN` with all of it, and the mark by which the vote knows that it is still this transaction.
    pub(super) fn begin(&self, transaction: TransactionId, lock_timeout: Duration) -> String {
        let mut sql = String::from("BEGIN");
        if let Some(level) = self.isolation {
            sql.push_str(match level {
                IsolationLevel::ReadUncommitted => " ISOLATION LEVEL READ UNCOMMITTED",
                IsolationLevel::ReadCommitted => " ISOLATION LEVEL READ COMMITTED",
                IsolationLevel::RepeatableRead => " ISOLATION LEVEL REPEATABLE READ",
                _ => " ISOLATION LEVEL SERIALIZABLE",
            });
        }
        // Said always: the sessions of our own pool read only by default.
        sql.push_str(if self.read_only { " READ ONLY" } else { " READ WRITE" });
        if self.deferrable {
            sql.push_str(" DEFERRABLE");
        }
        let _ = write!(sql, "; SET LOCAL unanimous.branch = '{transaction}'");
        let lock_timeout = milliseconds(self.lock_timeout.unwrap_or(lock_timeout));
        let _ = write!(sql, "; SET LOCAL lock_timeout = {lock_timeout}");
        if let Some(timeout) = self.statement_timeout {
            let _ = write!(sql, "; SET LOCAL statement_timeout = {}", milliseconds(timeout));
        }
        sql
    }
}

impl std::fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("isolation", &self.isolation)
            .field("read_only", &self.read_only)
            .field("writes", &self.writes)
            .field("deferrable", &self.deferrable)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("own_client", &self.client.is_some())
            .field("notify", &self.notify)
            .field("close", &self.close)
            .finish()
    }
}

/// As PostgreSQL's timeouts count: a 32-bit number of milliseconds, of which 0 would be no limit.
fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use unanimous_core::{Incarnation, LogId, Owner};

    use super::*;

    #[test]
    fn begin_says_all_that_was_asked_for() {
        let transaction = Owner { log: LogId(1), incarnation: Incarnation::new(2, 3) }.transaction(4);
        let plain = PostgresOptions::new().begin(transaction, Duration::from_secs(5));
        let mark = "SET LOCAL unanimous.branch = '00000000000000000000000001.2.00000003.4'";
        assert_eq!(plain, format!("BEGIN READ WRITE; {mark}; SET LOCAL lock_timeout = 5000"));
        let all = PostgresOptions::new()
            .isolation(IsolationLevel::Serializable)
            .read_only()
            .deferrable()
            .lock_timeout(Duration::ZERO)
            .statement_timeout(Duration::MAX);
        let expected = format!(
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE; {mark}; SET LOCAL lock_timeout = 1; \
             SET LOCAL statement_timeout = 2147483647"
        );
        assert_eq!(all.begin(transaction, Duration::from_secs(5)), expected);
    }
}
