//! A decision log in memory that survives its owner, and a wrapper that journals any log and makes it fail.
//!
//! Must not know managers or stores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use unanimous::{
    BoxError, DecideError, Decider, Decision, DecisionLog, DecisionRecord, HoldReason, Incarnation, Known, LogId,
    Owner, StoreError, TransactionId,
};

use super::faults::{Call, Fault, Faults, Hold};
use super::{Journal, lock};

/// What a log keeps over restarts. Clones share it.
#[derive(Clone, Debug)]
pub struct LogDisk {
    log: LogId,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    incarnations: BTreeSet<Incarnation>,
    decisions: BTreeMap<TransactionId, DecisionRecord>,
    aborts: BTreeMap<TransactionId, DecisionRecord>,
    forgotten: BTreeSet<TransactionId>,
}

impl LogDisk {
    /// An empty log with this identity.
    pub fn new(number: u128) -> Self {
        Self { log: LogId(number), kept: Arc::default() }
    }

    /// The next start of the log's owner. Unlike a real log it does not lock out the owner before: drop that one's manager first.
    ///
    /// # Panics
    ///
    /// At the 2^32nd start.
    pub fn open(&self) -> KeptLog {
        let mut kept = lock(&self.kept);
        let counter = u32::try_from(kept.incarnations.len()).expect("a test starts a log fewer than 2^32 times") + 1;
        let incarnation = Incarnation::new(counter, 1000 + u64::from(counter));
        kept.incarnations.insert(incarnation);
        KeptLog {
            owner: Owner { log: self.log, incarnation },
            kept: self.kept.clone(),
            closed: AtomicBool::new(false),
            taken: AtomicBool::new(false),
        }
    }

    /// The transactions that are decided and not forgotten.
    pub fn unfinished(&self) -> Vec<TransactionId> {
        let kept = lock(&self.kept);
        kept.decisions.keys().filter(|transaction| !kept.forgotten.contains(transaction)).copied().collect()
    }

    /// The transactions that are recorded as aborted and not forgotten.
    pub fn unfinished_aborts(&self) -> Vec<TransactionId> {
        let kept = lock(&self.kept);
        kept.aborts.keys().filter(|transaction| !kept.forgotten.contains(transaction)).copied().collect()
    }

    /// All decisions, with what they list.
    pub fn records(&self) -> Vec<DecisionRecord> {
        lock(&self.kept).decisions.values().cloned().collect()
    }

    /// Puts a decision there that an earlier owner made.
    pub fn plant(&self, record: DecisionRecord) {
        lock(&self.kept).decisions.insert(record.transaction, record);
    }
}

/// One owner's log. Unlike the library's own log in memory it can be opened again, as its next incarnation.
#[derive(Debug)]
pub struct KeptLog {
    owner: Owner,
    kept: Arc<Mutex<Kept>>,
    closed: AtomicBool,
    taken: AtomicBool,
}

impl Decider for KeptLog {
    async fn lookup(&self, transaction: TransactionId) -> Result<Known, StoreError> {
        Ok(self.recorded(transaction).await?.unwrap_or(Known::Abort))
    }

    async fn unfinished(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        let kept = lock(&self.kept);
        Ok(kept.decisions.values().filter(|record| !kept.forgotten.contains(&record.transaction)).cloned().collect())
    }

    fn forget(&self, transaction: TransactionId) {
        lock(&self.kept).forgotten.insert(transaction);
    }
}

impl DecisionLog for KeptLog {
    fn owner(&self) -> Owner {
        self.owner
    }

    fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::SeqCst)
    }

    fn ready(&self) -> Result<(), BoxError> {
        if self.closed.load(Ordering::SeqCst) { Err("the log is closed".into()) } else { Ok(()) }
    }

    async fn decide(&self, record: DecisionRecord) -> Result<(), DecideError> {
        self.ready().map_err(DecideError::Refused)?;
        if record.transaction.owner() != self.owner {
            return Err(DecideError::Refused("another run of the log began it".into()));
        }
        self.conclude(record, Decision::Commit).await
    }

    fn records_aborts(&self) -> bool {
        true
    }

    async fn conclude(&self, record: DecisionRecord, decision: Decision) -> Result<(), DecideError> {
        self.ready().map_err(DecideError::Refused)?;
        let mut kept = lock(&self.kept);
        let Kept { decisions, aborts, .. } = &mut *kept;
        let (own, other) = match decision {
            Decision::Commit => (decisions, aborts),
            Decision::Abort => (aborts, decisions),
        };
        if other.contains_key(&record.transaction) {
            return Err(DecideError::Unknown("it was decided otherwise".into()));
        }
        own.insert(record.transaction, record);
        Ok(())
    }

    async fn recorded(&self, transaction: TransactionId) -> Result<Option<Known>, StoreError> {
        let kept = lock(&self.kept);
        Ok(match kept.decisions.get(&transaction) {
            _ if transaction.log != self.owner.log => Some(Known::Hold(HoldReason::ForeignLog)),
            _ if !kept.incarnations.contains(&transaction.incarnation) => {
                Some(Known::Hold(HoldReason::ForeignIncarnation))
            }
            Some(record) => Some(Known::Commit(record.clone())),
            None => kept.aborts.contains_key(&transaction).then_some(Known::Abort),
        })
    }

    async fn unfinished_aborts(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        let kept = lock(&self.kept);
        Ok(kept.aborts.values().filter(|record| !kept.forgotten.contains(&record.transaction)).cloned().collect())
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

/// Any log, journaled, and failing when told to: [`Call::Decide`] refused, lost before or after it was written, held. A lost
/// decision poisons it, as a failed sync does. Clones are the same log.
#[derive(Debug)]
pub struct JournalLog<L> {
    shared: Arc<Shared<L>>,
}

#[derive(Debug)]
struct Shared<L> {
    log: L,
    journal: Journal,
    faults: Faults,
    full: AtomicBool,
    poisoned: AtomicBool,
}

impl<L> Clone for JournalLog<L> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<L: DecisionLog> JournalLog<L> {
    /// Journals and disturbs this log.
    pub fn new(log: L, journal: &Journal) -> Self {
        let shared = Shared {
            log,
            journal: journal.clone(),
            faults: Faults::default(),
            full: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The next decision fails so.
    pub fn fail(&self, fault: Fault) {
        self.shared.faults.queue(Call::Decide, fault);
    }

    /// The next decision waits.
    pub fn hold(&self) -> Hold {
        self.shared.faults.hold(Call::Decide)
    }

    /// A full log takes no new work.
    pub fn set_full(&self, full: bool) {
        self.shared.full.store(full, Ordering::SeqCst);
    }

    fn poison(&self, verb: &str, word: &str) -> DecideError {
        self.shared.poisoned.store(true, Ordering::SeqCst);
        self.shared.journal.act(format!("log.{verb}: {word}"));
        DecideError::Unknown("the sync failed".into())
    }

    /// A decision, told by this verb, that fails as it was told to.
    async fn write(
        &self,
        verb: &str,
        record: DecisionRecord,
        write: impl AsyncFnOnce(DecisionRecord) -> Result<(), DecideError>,
    ) -> Result<(), DecideError> {
        let branches: Vec<_> = record.participants.iter().map(|participant| participant.resource.as_str()).collect();
        self.shared.journal.act(format!("log.{verb}! [{}]", branches.join(" ")));
        match self.shared.faults.at(Call::Decide).await {
            Fault::Pass | Fault::Hold(_) => write(record).await,
            Fault::Panic => panic!("the log panics"),
            Fault::Lost | Fault::Late => Err(self.poison(verb, "lost")),
            Fault::LostDone => {
                write(record).await?;
                Err(self.poison(verb, "lost, done"))
            }
            Fault::Conflict | Fault::Refused => {
                self.shared.journal.act(format!("log.{verb}: refused"));
                Err(DecideError::Refused("the log refuses".into()))
            }
        }
    }
}

impl<L: DecisionLog> Decider for JournalLog<L> {
    async fn lookup(&self, transaction: TransactionId) -> Result<Known, StoreError> {
        self.shared.journal.look("log.lookup");
        if self.shared.poisoned.load(Ordering::SeqCst) {
            return Ok(Known::Hold(HoldReason::Poisoned));
        }
        self.shared.log.lookup(transaction).await
    }

    async fn decided(&self, transaction: TransactionId) -> Result<Option<Known>, StoreError> {
        self.shared.journal.look("log.decided");
        if self.shared.poisoned.load(Ordering::SeqCst) {
            return Ok(Some(Known::Hold(HoldReason::Poisoned)));
        }
        self.shared.log.decided(transaction).await
    }

    async fn unfinished(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        self.shared.journal.look("log.unfinished");
        self.shared.log.unfinished().await
    }

    fn forget(&self, transaction: TransactionId) {
        self.shared.journal.act("log.forget");
        self.shared.log.forget(transaction);
    }
}

impl<L: DecisionLog> DecisionLog for JournalLog<L> {
    fn owner(&self) -> Owner {
        self.shared.log.owner()
    }

    fn take(&self) -> bool {
        self.shared.log.take()
    }

    fn ready(&self) -> Result<(), BoxError> {
        if self.shared.full.load(Ordering::SeqCst) {
            return Err("the log is full".into());
        }
        if self.shared.poisoned.load(Ordering::SeqCst) {
            return Err("the log is poisoned".into());
        }
        self.shared.log.ready()
    }

    async fn decide(&self, record: DecisionRecord) -> Result<(), DecideError> {
        self.write("decide", record, async |record| self.shared.log.decide(record).await).await
    }

    fn records_aborts(&self) -> bool {
        self.shared.log.records_aborts()
    }

    async fn conclude(&self, record: DecisionRecord, decision: Decision) -> Result<(), DecideError> {
        let verb = match decision {
            Decision::Commit => "conclude-commit",
            Decision::Abort => "conclude-abort",
        };
        self.write(verb, record, async |record| self.shared.log.conclude(record, decision).await).await
    }

    async fn recorded(&self, transaction: TransactionId) -> Result<Option<Known>, StoreError> {
        self.shared.journal.look("log.recorded");
        if self.shared.poisoned.load(Ordering::SeqCst) {
            return Ok(Some(Known::Hold(HoldReason::Poisoned)));
        }
        self.shared.log.recorded(transaction).await
    }

    async fn unfinished_aborts(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        self.shared.log.unfinished_aborts().await
    }

    async fn close(&self) {
        self.shared.journal.act("log.close");
        self.shared.log.close().await;
    }
}
