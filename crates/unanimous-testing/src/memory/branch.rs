//! A branch of the store in memory: rows that are pending, and what was pending at its savepoints.
//!
//! Must not know managers or logs.

use std::sync::Mutex;

use unanimous::{Branch, BranchError, BranchId, Capability, DecisionRecord, SavepointId, Work};

use super::faults::Call;
use super::lock;
use super::store::{Deadlock, DecisionRow, MemoryStore, Reply, Rows};

/// A branch: rows that are pending until it commits.
#[derive(Debug)]
pub struct MemoryBranch {
    store: MemoryStore,
    session: Mutex<Session>,
}

#[derive(Clone, Debug)]
enum Session {
    Open {
        rows: Rows,
        /// What was pending at each savepoint, in their order.
        saved: Vec<(SavepointId, Rows)>,
    },
    Prepared(BranchId, Rows),
    Ended,
}

impl MemoryBranch {
    pub(super) fn new(store: MemoryStore) -> Self {
        Self { store, session: Mutex::new(Session::Open { rows: Rows::new(), saved: Vec::new() }) }
    }

    /// Writes a row.
    ///
    /// # Errors
    ///
    /// Refused once the branch has prepared or ended.
    pub fn put(&self, key: &str) -> Result<(), BranchError> {
        match &mut *lock(&self.session) {
            Session::Open { rows, .. } => {
                rows.insert(key.to_owned(), String::new());
                Ok(())
            }
            _ => Err(BranchError::refused("the branch has ended")),
        }
    }

    fn session(&self) -> Session {
        lock(&self.session).clone()
    }

    fn pending(&self) -> Rows {
        match self.session() {
            Session::Open { rows, .. } | Session::Prepared(_, rows) => rows,
            Session::Ended => Rows::new(),
        }
    }

    fn set(&self, session: Session) {
        *lock(&self.session) = session;
    }

    fn forced(&self, line: &str) -> String {
        if self.pending().is_empty() { line.to_owned() } else { format!("{line}!") }
    }
}

impl Branch for MemoryBranch {
    fn capability(&self) -> Capability {
        self.store.capability
    }

    fn sort_key(&self) -> String {
        self.store.sort_key.clone()
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        let reply = self.store.enter(Call::Flush, "flush".to_owned()).await?;
        self.store.leave(reply, "flush")?;
        Ok(if self.pending().is_empty() { Work::ReadOnly } else { Work::Wrote })
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        let durable = self.store.capability == Capability::TwoPhase;
        let reply = self.store.enter(Call::Prepare, if durable { "prepare!" } else { "prepare" }.to_owned()).await?;
        let rows = self.pending();
        if durable {
            let mut disk = self.store.disk();
            let to = if reply == Reply::Late { &mut disk.late } else { &mut disk.prepared };
            to.insert(id.clone(), rows.clone());
        }
        self.set(Session::Prepared(id.clone(), rows));
        self.store.leave(reply, "prepare")
    }

    async fn commit(&self) -> Result<(), BranchError> {
        let reply = self.store.enter(Call::Commit, "commit!".to_owned()).await?;
        if let Session::Prepared(id, mut rows) = self.session() {
            let mut disk = self.store.disk();
            let held = disk.prepared.remove(&id).is_some();
            // A volatile branch is in no list; a durable one that is in none was finished by another.
            if held || self.store.capability != Capability::TwoPhase {
                disk.rows.append(&mut rows);
            }
        }
        self.set(Session::Ended);
        self.store.leave(reply, "commit")
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        let reply = self.store.enter(Call::Rollback, "rollback".to_owned()).await?;
        if let Session::Prepared(id, _) = self.session() {
            self.store.disk().prepared.remove(&id);
        }
        self.set(Session::Ended);
        self.store.leave(reply, "rollback")
    }

    async fn commit_one_phase(&self, _id: &BranchId) -> Result<(), BranchError> {
        let reply = self.store.enter(Call::CommitOnePhase, self.forced("commit-one-phase")).await?;
        self.store.disk().rows.append(&mut self.pending());
        self.set(Session::Ended);
        self.store.leave(reply, "commit-one-phase")
    }

    async fn commit_carrying(&self, record: &DecisionRecord) -> Result<(), BranchError> {
        let others: Vec<_> = record.participants.iter().map(|participant| participant.resource.as_str()).collect();
        let line = |word| format!("{word} [{}]", others.join(" "));
        let reply = self.store.enter(Call::CommitCarrying, line("commit-carrying!")).await?;
        let mut disk = self.store.disk();
        if disk.decisions.contains_key(&record.transaction) {
            return Err(BranchError::refused("the transaction was fenced"));
        }
        disk.decisions.insert(record.transaction, DecisionRow::Commit(record.clone()));
        disk.rows.append(&mut self.pending());
        drop(disk);
        self.set(Session::Ended);
        self.store.leave(reply, &line("commit-carrying"))
    }

    fn is_retryable(&self, error: &(dyn std::error::Error + 'static)) -> bool {
        error.is::<Deadlock>() || self.store.disk().retries_everything
    }

    fn has_savepoints(&self) -> bool {
        self.store.disk().savepoints
    }

    async fn savepoint(&self, id: SavepointId) -> Result<(), BranchError> {
        let line = format!("savepoint {id}");
        let reply = self.store.enter(Call::Savepoint, line.clone()).await?;
        match &mut *lock(&self.session) {
            Session::Open { rows, saved } => saved.push((id, rows.clone())),
            _ => return Err(BranchError::refused("the branch has prepared or ended")),
        }
        self.store.leave(reply, &line)
    }

    async fn rollback_to(&self, id: SavepointId) -> Result<(), BranchError> {
        let line = format!("rollback-to {id}");
        let reply = self.store.enter(Call::RollbackTo, line.clone()).await?;
        match &mut *lock(&self.session) {
            Session::Open { rows, saved } => {
                let found = saved.iter().position(|(known, _)| *known == id);
                let found =
                    found.ok_or_else(|| BranchError::refused(format!("there is no savepoint {id} (any more)")))?;
                saved.truncate(found + 1);
                rows.clone_from(&saved[found].1);
            }
            _ => return Err(BranchError::refused("the branch has prepared or ended")),
        }
        self.store.leave(reply, &line)
    }
}
