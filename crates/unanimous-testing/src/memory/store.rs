//! A store in memory with all four capabilities: rows, prepared branches and decision rows, shared by all clones of its handle.
//!
//! What is in its "disk" survives a restart of the manager; what a branch has pending does not.
//!
//! Must not know managers or logs.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};

use unanimous::{
    BranchContext, BranchError, BranchId, Capability, DecisionRecord, FailureKind, HoldReason, Known, Owner,
    ResourceManager, StoreError, StoreId, TransactionId,
};

use super::branch::MemoryBranch;
use super::faults::{Call, Fault, Faults, Hold};
use super::{Journal, lock};

pub(super) type Rows = BTreeMap<String, String>;

/// How a call that does its work answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Given,
    Lost,
    /// Only a prepare does its work later; every other call has done it.
    Late,
}

/// A handle of the store; clones share the store, also for a manager that starts again over them.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    name: String,
    pub(super) capability: Capability,
    pub(super) sort_key: String,
    lists_durably: bool,
    journal: Journal,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Mutex<Disk>,
    faults: Faults,
}

#[derive(Debug)]
pub(super) struct Disk {
    identity: StoreId,
    down: bool,
    /// Prepared branches are in no list, as where they hide behind their session.
    hiding: bool,
    pub(super) retries_everything: bool,
    pub(super) savepoints: bool,
    pub(super) rows: Rows,
    pub(super) prepared: BTreeMap<BranchId, Rows>,
    /// Prepares whose answer was lost and that have not landed.
    pub(super) late: BTreeMap<BranchId, Rows>,
    pub(super) decisions: BTreeMap<TransactionId, DecisionRow>,
    /// Transactions whose decision row is not needed any more; it stays, as it would up to the horizon.
    forgotten: BTreeSet<TransactionId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DecisionRow {
    Commit(DecisionRecord),
    Abort,
}

/// The error that a branch gives for its own conflicts in the application's work, for `is_retryable`.
#[derive(Debug)]
pub struct Deadlock;

impl std::fmt::Display for Deadlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("deadlock")
    }
}

impl std::error::Error for Deadlock {}

fn identity_of(text: &str) -> StoreId {
    text.parse().expect("a memory store's identity is made of a-z, 0-9 and -")
}

impl MemoryStore {
    /// An empty store, which writes its calls into the journal. Its identity is `store-NAME`.
    ///
    /// # Panics
    ///
    /// When the name is not 1 to 34 of `a-z`, `0-9` and `-`.
    pub fn new(name: &str, capability: Capability, journal: &Journal) -> Self {
        let disk = Disk {
            identity: identity_of(&format!("store-{name}")),
            down: false,
            hiding: false,
            retries_everything: false,
            savepoints: true,
            rows: Rows::new(),
            prepared: BTreeMap::new(),
            late: BTreeMap::new(),
            decisions: BTreeMap::new(),
            forgotten: BTreeSet::new(),
        };
        let shared = Shared { disk: Mutex::new(disk), faults: Faults::default() };
        Self {
            name: name.to_owned(),
            capability,
            sort_key: String::new(),
            lists_durably: true,
            journal: journal.clone(),
            shared: Arc::new(shared),
        }
    }

    /// The same store, registered under another name.
    pub fn named(&self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self.clone() }
    }

    /// The same store, with this sort key for its branches.
    pub fn sorted(&self, key: &str) -> Self {
        Self { sort_key: key.to_owned(), ..self.clone() }
    }

    /// The same store, which can't make certain of [what it lists](ResourceManager::durably_in_doubt).
    pub fn listing_unsurely(&self) -> Self {
        Self { lists_durably: false, ..self.clone() }
    }

    /// A branch for [`Tx::join_branch`](unanimous::Tx::join_branch), without the store standing behind it.
    pub fn branch(&self) -> MemoryBranch {
        MemoryBranch::new(self.clone())
    }

    /// The next call of this kind fails so; repeated, the calls after it.
    pub fn fail(&self, call: Call, fault: Fault) {
        self.shared.faults.queue(call, fault);
    }

    /// Every call of this kind fails so, until it is healed.
    pub fn fail_always(&self, call: Call, fault: Fault) {
        self.shared.faults.stand(call, fault);
    }

    /// Calls of this kind fail no more; what waits goes on only when it is released.
    pub fn heal(&self, call: Call) {
        self.shared.faults.heal(call);
    }

    /// The next call of this kind waits.
    pub fn hold(&self, call: Call) -> Hold {
        self.shared.faults.hold(call)
    }

    /// Every call of this kind waits.
    pub fn hold_always(&self, call: Call) -> Hold {
        self.shared.faults.hold_always(call)
    }

    /// From now on every call gives way to other tasks this often before it does its work.
    pub fn set_slow(&self, yields: usize) {
        self.shared.faults.set_slow(yields);
    }

    /// While a store is down, it answers nothing, and does nothing.
    pub fn set_down(&self, down: bool) {
        self.disk().down = down;
    }

    /// While a store hides its prepared branches, its lists are empty.
    pub fn set_hiding(&self, hiding: bool) {
        self.disk().hiding = hiding;
    }

    /// Its branches call every error of the work worth repeating.
    pub fn set_retries_everything(&self, retries: bool) {
        self.disk().retries_everything = retries;
    }

    /// Whether its branches have savepoints, from now on; at first they have.
    pub fn set_savepoints(&self, savepoints: bool) {
        self.disk().savepoints = savepoints;
    }

    /// Becomes another store behind the same name, as a folder does that is not mounted.
    ///
    /// # Panics
    ///
    /// When it is not 1 to 40 of `a-z`, `0-9` and `-`.
    pub fn set_identity(&self, identity: &str) {
        self.disk().identity = identity_of(identity);
    }

    /// The prepares that were late are there now.
    pub fn land(&self) {
        let mut disk = self.disk();
        let mut late = std::mem::take(&mut disk.late);
        disk.prepared.append(&mut late);
    }

    /// Puts a branch there that was prepared by somebody.
    pub fn plant(&self, id: &BranchId, key: &str) {
        self.disk().prepared.insert(id.clone(), Rows::from([(key.to_owned(), "planted".to_owned())]));
    }

    /// Puts the row of a decision to commit there.
    pub fn plant_decision(&self, record: DecisionRecord) {
        self.disk().decisions.insert(record.transaction, DecisionRow::Commit(record));
    }

    /// Writes a row outside of any transaction, as a stranger does.
    pub fn put_now(&self, key: &str) {
        self.disk().rows.insert(key.to_owned(), String::new());
    }

    /// The committed rows' keys.
    pub fn keys(&self) -> Vec<String> {
        self.disk().rows.keys().cloned().collect()
    }

    /// The branches that are prepared.
    pub fn prepared(&self) -> Vec<BranchId> {
        self.disk().prepared.keys().cloned().collect()
    }

    /// Its identity, without a call that is journaled.
    pub fn identity_now(&self) -> StoreId {
        self.disk().identity.clone()
    }

    pub(super) fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.shared.disk)
    }

    /// Journals a call, waits where it is held, and fails where it is to fail before its work.
    ///
    /// `Ok`: do the work, and then give the answer so.
    pub(super) async fn enter(&self, call: Call, line: String) -> Result<Reply, BranchError> {
        self.journal.act(format!("{}.{line}", self.name));
        let line = line.replace('!', "");
        let fault = self.shared.faults.at(call).await;
        let failed = |kind: FailureKind, word: &str| {
            self.journal.act(format!("{}.{line}: {word}", self.name));
            Err(BranchError::refused(format!("{}: {line}: {word}", self.name)).with_kind(kind))
        };
        if self.disk().down {
            return failed(FailureKind::Lost, "down");
        }
        match fault {
            Fault::Pass | Fault::Hold(_) => Ok(Reply::Given),
            Fault::Conflict => failed(FailureKind::Conflict, "conflict"),
            Fault::Refused => failed(FailureKind::Refused, "refused"),
            Fault::Lost => failed(FailureKind::Lost, "lost"),
            Fault::LostDone => Ok(Reply::Lost),
            Fault::Late => Ok(Reply::Late),
            Fault::Panic => {
                self.journal.act(format!("{}.{line}: panic", self.name));
                panic!("{}: {line}", self.name)
            }
        }
    }

    /// The end of a call that did its work.
    pub(super) fn leave(&self, reply: Reply, line: &str) -> Result<(), BranchError> {
        let word = match reply {
            Reply::Given => return Ok(()),
            Reply::Lost => "lost, done",
            Reply::Late => "lost, late",
        };
        self.journal.act(format!("{}.{line}: {word}", self.name));
        Err(BranchError::lost(format!("{}: {line}: {word}", self.name)))
    }

    /// The same for calls that only look.
    async fn look(&self, call: Call, line: &str) -> Result<(), StoreError> {
        self.journal.look(format!("{}.{line}", self.name));
        let fault = self.shared.faults.at(call).await;
        if self.disk().down {
            return Err(StoreError::new(format!("{} is down", self.name)));
        }
        match fault {
            Fault::Pass | Fault::Hold(_) => Ok(()),
            Fault::Panic => panic!("{}: {line}", self.name),
            _ => Err(StoreError::new(format!("{}: {line} failed", self.name))),
        }
    }
}

impl ResourceManager for MemoryStore {
    type Branch = MemoryBranch;
    type Options = ();

    fn name(&self) -> &str {
        &self.name
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        self.look(Call::Identity, "identity").await?;
        Ok(self.identity_now())
    }

    async fn begin(&self, _context: &BranchContext, (): ()) -> Result<MemoryBranch, BranchError> {
        self.enter(Call::Begin, "begin".to_owned()).await?;
        Ok(self.branch())
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        self.look(Call::List, "list").await?;
        Ok(if self.disk().hiding { Vec::new() } else { self.prepared() })
    }

    fn durably_in_doubt(&self) -> Option<impl Future<Output = Result<Vec<BranchId>, StoreError>> + Send> {
        self.lists_durably.then_some(async {
            self.look(Call::DurableList, "durable-list").await?;
            Ok(if self.disk().hiding { Vec::new() } else { self.prepared() })
        })
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        let reply = self.enter(Call::RecoveredCommit, "recovered-commit!".to_owned()).await?;
        let mut disk = self.disk();
        if let Some(mut rows) = disk.prepared.remove(id) {
            disk.rows.append(&mut rows);
        }
        drop(disk);
        self.leave(reply, "recovered-commit")
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        let reply = self.enter(Call::RecoveredRollback, "recovered-rollback".to_owned()).await?;
        self.disk().prepared.remove(id);
        self.leave(reply, "recovered-rollback")
    }

    async fn decision(&self, transaction: TransactionId, owner: Owner) -> Result<Known, StoreError> {
        self.look(Call::Decision, "decision").await?;
        if transaction.log != owner.log {
            return Ok(Known::Hold(HoldReason::ForeignLog));
        }
        let mut disk = self.disk();
        match disk.decisions.get(&transaction) {
            Some(DecisionRow::Commit(record)) => Ok(Known::Commit(record.clone())),
            Some(DecisionRow::Abort) => Ok(Known::Abort),
            None => {
                disk.decisions.insert(transaction, DecisionRow::Abort);
                self.journal.act(format!("{}.fence!", self.name));
                Ok(Known::Abort)
            }
        }
    }

    async fn decided(&self, transaction: TransactionId, _owner: Owner) -> Result<Option<Known>, StoreError> {
        self.look(Call::Decision, "decided").await?;
        Ok(self.disk().decisions.get(&transaction).map(|row| match row {
            DecisionRow::Commit(record) => Known::Commit(record.clone()),
            DecisionRow::Abort => Known::Abort,
        }))
    }

    async fn unfinished(&self, owner: Owner) -> Result<Vec<DecisionRecord>, StoreError> {
        self.look(Call::Decision, "unfinished").await?;
        let disk = self.disk();
        let rows = disk.decisions.values().filter_map(|row| match row {
            DecisionRow::Commit(record) => Some(record),
            DecisionRow::Abort => None,
        });
        Ok(rows
            .filter(|record| record.transaction.log == owner.log && !disk.forgotten.contains(&record.transaction))
            .cloned()
            .collect())
    }

    fn forget(&self, transaction: TransactionId) {
        self.journal.act(format!("{}.forget", self.name));
        self.disk().forgotten.insert(transaction);
    }
}
