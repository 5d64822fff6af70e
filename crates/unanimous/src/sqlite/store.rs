//! What all handles, branches and threads of one database share; and the thread that keeps a connection for recovery.
//!
//! Recovery must get through when every other connection is in use (rule 14), and the file must stay open so that its
//! inode can't be given to another: one connection does both, on a thread of its own.
//!
//! Must not know branches.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::oneshot;
use unanimous_core::{Known, Owner, StoreId, TransactionId};

use super::connection::{Opener, Patience};
use super::error::{DecisionError, FileChanged, OpenError, is_busy};
use super::file::OpenedFile;
use super::rows::{self, Unfinished};
use super::worker::Pool;
use crate::sync::lock;

/// One open database.
pub(super) struct Store {
    pub(super) name: String,
    pub(super) opener: Opener,
    pub(super) file: OpenedFile,
    pub(super) identity: StoreId,
    pub(super) horizon: Duration,
    pub(super) finished: Finished,
    pub(super) pool: Pool,
}

impl Store {
    pub(super) fn horizon_micros(&self) -> u64 {
        u64::try_from(self.horizon.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Transactions whose every branch is confirmed, and whose rows don't say so yet. Only in memory: a crash costs one
/// more listing.
#[derive(Default)]
pub(super) struct Finished(Mutex<BTreeSet<TransactionId>>);

impl Finished {
    pub(super) fn add(&self, transaction: TransactionId) {
        self.set().insert(transaction);
    }

    pub(super) fn list(&self) -> Vec<TransactionId> {
        self.set().iter().copied().collect()
    }

    /// The rows of these say so now, durably.
    pub(super) fn written(&self, transactions: &[TransactionId]) {
        let mut set = self.set();
        for transaction in transactions {
            set.remove(transaction);
        }
    }

    fn contains(&self, transaction: TransactionId) -> bool {
        self.set().contains(&transaction)
    }

    fn set(&self) -> MutexGuard<'_, BTreeSet<TransactionId>> {
        lock(&self.0)
    }
}

/// What the control thread is asked to do.
pub(super) type Request = Box<dyn FnOnce(&Connection) + Send>;

/// The control thread's channel. Dropped, the thread writes what is left to be written, if that is possible at once,
/// and ends.
pub(super) struct Control(Sender<Request>);

/// What the control thread hands over once the database is open.
pub(super) type Opened = (OpenedFile, StoreId);

impl Control {
    /// Starts the thread, which opens the database. It learns of its store later: the store does not exist without what
    /// is found in the file.
    pub(super) async fn open(opener: Opener, name: &str) -> Result<(Self, Opened), OpenError> {
        let (send, requests) = channel();
        let (reply, hear) = oneshot::channel();
        std::thread::Builder::new()
            .name(format!("sqlite {name} control"))
            .spawn(move || match opener.open_first() {
                Ok((conn, file, identity)) => {
                    if reply.send(Ok((file, identity))).is_ok() {
                        serve(&conn, &requests);
                    }
                }
                Err(error) => drop(reply.send(Err(error))),
            })
            .map_err(OpenError::Thread)?;
        match hear.await {
            Ok(Ok(opened)) => Ok((Self(send), opened)),
            Ok(Err(error)) => Err(error),
            // `init` panicked.
            Err(_) => {
                Err(OpenError::Thread(io::Error::other("it panicked while the database was opened (in `init`?)")))
            }
        }
    }

    /// Lets the thread do something. Dropping the future does not stop it.
    pub(super) async fn ask<T, F>(&self, request: F) -> Result<T, DecisionError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, DecisionError> + Send + 'static,
    {
        let (reply, hear) = oneshot::channel();
        let request: Request = Box::new(move |conn| drop(reply.send(request(conn))));
        self.0.send(request).map_err(|_| DecisionError::Closed)?;
        hear.await.unwrap_or(Err(DecisionError::Closed))
    }

    /// The same, without an answer and without waiting.
    pub(super) fn tell(&self, request: impl FnOnce(&Connection) + Send + 'static) {
        // Nobody is left to do it where the thread has ended, and nothing that is told must be done.
        drop(self.0.send(Box::new(request)));
    }
}

fn serve(conn: &Connection, requests: &Receiver<Request>) {
    while let Ok(request) = requests.recv() {
        request(conn);
    }
}

impl Store {
    /// What the rows say of a transaction, durably: see [`rows::ask`].
    pub(super) fn decision(
        &self,
        conn: &Connection,
        transaction: TransactionId,
        owner: Owner,
        wait: Duration,
    ) -> Result<Known, DecisionError> {
        let now = self.opener.env.wall_clock();
        self.in_transaction(conn, wait, |conn| rows::ask(conn, transaction, owner, now))
    }

    /// Whether there is a row of a transaction, of either outcome.
    pub(super) fn has_decision(&self, conn: &Connection, transaction: TransactionId) -> Result<bool, DecisionError> {
        self.file.check()?;
        rows::has_decision(conn, transaction)
    }

    /// What that row says, durably.
    pub(super) fn decided(
        &self,
        conn: &Connection,
        transaction: TransactionId,
        wait: Duration,
    ) -> Result<Option<Known>, DecisionError> {
        self.in_transaction(conn, wait, |conn| rows::decided(conn, transaction))
    }

    /// Whether some of an owner's log's transactions committed here and are not known to be finished, readable or not.
    pub(super) fn has_unfinished(&self, conn: &Connection, owner: Owner) -> Result<bool, DecisionError> {
        self.file.check()?;
        let Unfinished { records, damaged } = rows::unfinished(conn, owner)?;
        Ok(!damaged.is_empty() || records.iter().any(|record| !self.finished.contains(record.transaction)))
    }

    /// Those transactions, durably.
    pub(super) fn unfinished(
        &self,
        conn: &Connection,
        owner: Owner,
        wait: Duration,
    ) -> Result<Unfinished, DecisionError> {
        let mut unfinished = self.in_transaction(conn, wait, |conn| {
            let unfinished = rows::unfinished(conn, owner)?;
            rows::touch(conn)
                .map_err(|source| DecisionError::Sqlite { doing: "forcing the decisions that were read", source })?;
            Ok(unfinished)
        })?;
        unfinished.records.retain(|record| !self.finished.contains(record.transaction));
        Ok(unfinished)
    }

    /// Writes what is finished.
    pub(super) fn write_finished(&self, conn: &Connection, wait: Duration) -> Result<(), DecisionError> {
        let finished = self.finished.list();
        if finished.is_empty() {
            return Ok(());
        }
        let now = self.opener.env.wall_clock();
        self.in_transaction(conn, wait, |conn| {
            rows::finish(conn, &finished, now)
                .map_err(|source| DecisionError::Sqlite { doing: "marking decisions as finished", source })
        })?;
        self.finished.written(&finished);
        Ok(())
    }

    /// The identity, read from the file.
    pub(super) fn read_identity(&self, conn: &Connection) -> Result<StoreId, DecisionError> {
        self.file.check()?;
        let found = rows::identity(conn)
            .map_err(|source| DecisionError::Sqlite { doing: "reading the identity", source })?
            .and_then(|(store, _)| store.parse().ok());
        if found.as_ref() == Some(&self.identity) {
            return Ok(self.identity.clone());
        }
        Err(FileChanged::OtherIdentity { path: self.file.path().to_owned(), expected: self.identity.clone(), found }
            .into())
    }

    /// Runs something between BEGIN IMMEDIATE and a COMMIT that is synced; rolls back where it fails.
    fn in_transaction<T>(
        &self,
        conn: &Connection,
        wait: Duration,
        work: impl FnOnce(&Connection) -> Result<T, DecisionError>,
    ) -> Result<T, DecisionError> {
        self.file.check()?;
        let patience = Patience::new(&*self.opener.env, wait);
        let failed = |doing| {
            let waited = patience.waited();
            move |source: rusqlite::Error| match is_busy(&source) {
                true => DecisionError::Busy { waited },
                false => DecisionError::Sqlite { doing, source },
            }
        };
        conn.busy_timeout(Duration::ZERO).map_err(failed("configuring the connection"))?;
        patience
            .until_unlocked(|| false, || conn.execute_batch("BEGIN IMMEDIATE"))
            .map_err(failed("beginning a transaction"))?;
        // The wait can have been long, and what is said must be said of the file that is there.
        let result = self.file.check().map_err(DecisionError::from).and_then(|()| work(conn)).and_then(|value| {
            patience
                .until_unlocked(|| conn.is_autocommit(), || conn.execute_batch("COMMIT"))
                .map_err(failed("committing the decision row"))?;
            Ok(value)
        });
        if result.is_err() && !conn.is_autocommit() {
            // Where even this fails, the next BEGIN does too, and says so.
            if let Err(error) = conn.execute_batch("ROLLBACK") {
                tracing::warn!(store = %self.name, %error, "the control connection could not roll back");
            }
        }
        result
    }
}
