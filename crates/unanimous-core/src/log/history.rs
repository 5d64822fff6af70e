//! What a log's records add up to, and who can be presumed what.
//!
//! Rule 4: no decision means abort, but only for transactions of this log and of an incarnation that it knows, counter and nonce.
//! Rule 11: decisions don't age out; what was finished is kept up to a horizon, and what is dropped leaves a floor below which
//! nothing is presumed.
//!
//! Must not know bytes on a disk, clocks, or what is being written just now: what a history holds is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::time::Duration;

use super::record::{
    EncodeError, FINISHED_LEN, FLOOR_LEN, FOLDED_LEN, INCARNATION_LEN, Record, check, decision_len, encode_decision,
};
use crate::decider::{DecisionRecord, HoldReason, Known};
use crate::outcome::Decision;
use crate::xid::{Incarnation, LogId, TransactionId};

/// The memory of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    log: LogId,
    /// Nothing is presumed of incarnations with a counter below this.
    folded_before: u32,
    incarnations: BTreeMap<u32, Era>,
    /// How many of them have a floor.
    floors: usize,
    unfinished: BTreeMap<TransactionId, Decided>,
    finished: BTreeMap<TransactionId, (Decided, u64)>,
    /// The finished ones by the time of their end.
    by_age: BTreeSet<(u64, TransactionId)>,
    /// The bytes of the records of unfinished and of finished decisions.
    unfinished_bytes: usize,
    finished_bytes: usize,
}

/// A decision, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decided {
    decision: Decision,
    record: DecisionRecord,
}

impl Decided {
    fn len(&self) -> usize {
        decision_len(&self.record, self.decision)
    }

    fn decides_as(&self, other: &Self) -> bool {
        self.decision == other.decision && self.record.decides_as(&other.record)
    }

    fn of(&self, decision: Decision) -> Option<&DecisionRecord> {
        (self.decision == decision).then_some(&self.record)
    }
}

/// What is known of an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Era {
    nonce: u64,
    started_at: u64,
    /// The highest sequence number of which a finished decision was dropped; 0 when none was.
    floor: u64,
}

/// A record that does not fit what was before it: no log that this program wrote holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HistoryError {
    /// An incarnation's counter does not grow.
    IncarnationOrder(Incarnation),
    /// A record of an incarnation that was never begun.
    UnknownIncarnation(Incarnation),
    /// Another decision for a transaction that has one.
    DecidedTwice(TransactionId),
    /// A decision of another log's transaction.
    ForeignLog(TransactionId),
    /// A decision that no log can hold.
    Unwritable(EncodeError),
}

impl fmt::Display for HistoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HistoryError::IncarnationOrder(incarnation) => {
                write!(f, "the incarnation {incarnation} does not follow the one before it")
            }
            HistoryError::UnknownIncarnation(incarnation) => {
                write!(f, "a record of the incarnation {incarnation}, which was never begun")
            }
            HistoryError::DecidedTwice(transaction) => {
                write!(f, "the transaction {transaction} is decided twice, differently")
            }
            HistoryError::ForeignLog(transaction) => write!(f, "the transaction {transaction} is of another log"),
            HistoryError::Unwritable(_) => f.write_str("a decision that no log can hold"),
        }
    }
}

impl Error for HistoryError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            HistoryError::Unwritable(source) => Some(source),
            _ => None,
        }
    }
}

/// What [`History::retain`] let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Finished decisions that were dropped because they are past the horizon.
    pub expired: usize,
    /// Finished decisions that were dropped before the horizon, because space was short.
    pub squeezed: usize,
    /// Incarnations that were folded.
    pub folded: usize,
}

impl History {
    /// A log that has seen nothing.
    pub fn new(log: LogId) -> Self {
        Self {
            log,
            folded_before: 0,
            incarnations: BTreeMap::new(),
            floors: 0,
            unfinished: BTreeMap::new(),
            finished: BTreeMap::new(),
            by_age: BTreeSet::new(),
            unfinished_bytes: 0,
            finished_bytes: 0,
        }
    }

    /// The log.
    pub fn log(&self) -> LogId {
        self.log
    }

    /// The incarnation that began last.
    pub fn current(&self) -> Option<Incarnation> {
        self.incarnations.last_key_value().map(|(&counter, era)| Incarnation { counter, nonce: era.nonce })
    }

    /// The incarnations that are known, with the time of their start (microseconds since 1970, UTC) and their floor.
    pub fn incarnations(&self) -> impl Iterator<Item = (Incarnation, u64, u64)> {
        self.incarnations
            .iter()
            .map(|(&counter, era)| (Incarnation { counter, nonce: era.nonce }, era.started_at, era.floor))
    }

    /// Nothing is presumed of incarnations with a counter below this.
    pub fn folded_before(&self) -> u32 {
        self.folded_before
    }

    /// Adds a record.
    ///
    /// Records that repeat what is known change nothing; so does the end of a transaction that is not known as decided.
    ///
    /// # Errors
    ///
    /// When the record contradicts those before it; nothing has changed then.
    pub fn apply(&mut self, record: Record) -> Result<(), HistoryError> {
        match record {
            Record::Incarnation { incarnation, started_at } => self.begin(incarnation, started_at)?,
            Record::Commit(record) => self.decide(Decided { decision: Decision::Commit, record })?,
            Record::Abort(record) => self.decide(Decided { decision: Decision::Abort, record })?,
            Record::Finished { transaction, at } => self.finish(transaction, at),
            Record::Floor { incarnation, sequence } => {
                self.era(incarnation).ok_or(HistoryError::UnknownIncarnation(incarnation))?;
                self.raise_floor(incarnation, sequence);
            }
            Record::Folded { before } => self.fold(before),
        }
        Ok(())
    }

    fn begin(&mut self, incarnation: Incarnation, started_at: u64) -> Result<(), HistoryError> {
        let Incarnation { counter, nonce } = incarnation;
        let last = self.incarnations.last_key_value().map_or(0, |(&last, _)| last);
        if counter <= last || counter < self.folded_before {
            return Err(HistoryError::IncarnationOrder(incarnation));
        }
        self.incarnations.insert(counter, Era { nonce, started_at, floor: 0 });
        Ok(())
    }

    fn decide(&mut self, decided: Decided) -> Result<(), HistoryError> {
        let transaction = decided.record.transaction;
        if transaction.log != self.log {
            return Err(HistoryError::ForeignLog(transaction));
        }
        check(&decided.record).map_err(HistoryError::Unwritable)?;
        let incarnation = transaction.incarnation;
        if incarnation.counter >= self.folded_before && self.era(incarnation).is_none() {
            return Err(HistoryError::UnknownIncarnation(incarnation));
        }
        match self.decision(transaction) {
            Some(known) if known.decides_as(&decided) => {}
            Some(_) => return Err(HistoryError::DecidedTwice(transaction)),
            None => {
                self.unfinished_bytes += decided.len();
                self.unfinished.insert(transaction, decided);
            }
        }
        Ok(())
    }

    fn finish(&mut self, transaction: TransactionId, at: u64) {
        if let Some(decided) = self.unfinished.remove(&transaction) {
            self.unfinished_bytes -= decided.len();
            self.finished_bytes += decided.len() + FINISHED_LEN;
            self.by_age.insert((at, transaction));
            self.finished.insert(transaction, (decided, at));
        }
    }

    fn fold(&mut self, before: u32) {
        self.folded_before = self.folded_before.max(before);
        self.incarnations = self.incarnations.split_off(&self.folded_before);
        self.floors = self.incarnations.values().filter(|era| era.floor > 0).count();
    }

    /// An incarnation that is not known any more is folded, which holds all of it.
    fn raise_floor(&mut self, incarnation: Incarnation, sequence: u64) {
        if let Some(era) = self.incarnations.get_mut(&incarnation.counter) {
            self.floors += usize::from(era.floor == 0 && sequence > 0);
            era.floor = era.floor.max(sequence);
        }
    }

    /// An incarnation that is known, counter and nonce.
    fn era(&self, incarnation: Incarnation) -> Option<&Era> {
        self.incarnations.get(&incarnation.counter).filter(|era| era.nonce == incarnation.nonce)
    }

    fn decision(&self, transaction: TransactionId) -> Option<&Decided> {
        self.unfinished.get(&transaction).or_else(|| self.finished.get(&transaction).map(|(decided, _)| decided))
    }

    /// What is known of a transaction that is not live and not being decided just now: where nothing is recorded, abort is presumed. Not for
    /// transactions whose ids list their participants: see [`recorded`](Self::recorded).
    pub fn lookup(&self, transaction: TransactionId) -> Known {
        self.recorded(transaction).unwrap_or(Known::Abort)
    }

    /// What is recorded of such a transaction; none where the log would know a decision, and has none.
    pub fn recorded(&self, transaction: TransactionId) -> Option<Known> {
        if transaction.log != self.log {
            return Some(Known::Hold(HoldReason::ForeignLog));
        }
        if let Some(decided) = self.decision(transaction) {
            return Some(decided.of(Decision::Commit).cloned().map_or(Known::Abort, Known::Commit));
        }
        if transaction.incarnation.counter < self.folded_before {
            return Some(Known::Hold(HoldReason::BeyondHorizon));
        }
        match self.era(transaction.incarnation) {
            None => Some(Known::Hold(HoldReason::ForeignIncarnation)),
            Some(era) if transaction.sequence <= era.floor => Some(Known::Hold(HoldReason::BeyondHorizon)),
            Some(_) => None,
        }
    }

    /// The decisions to commit that are not finished, in the order of their transactions' ids.
    pub fn unfinished(&self) -> impl Iterator<Item = &DecisionRecord> {
        self.unfinished.values().filter_map(|decided| decided.of(Decision::Commit))
    }

    /// The decisions to abort that are not finished, in the order of their transactions' ids.
    pub fn unfinished_aborts(&self) -> impl Iterator<Item = &DecisionRecord> {
        self.unfinished.values().filter_map(|decided| decided.of(Decision::Abort))
    }

    /// Whether the transaction is decided and not finished.
    pub fn is_unfinished(&self, transaction: TransactionId) -> bool {
        self.unfinished.contains_key(&transaction)
    }

    /// The decisions to commit that are finished and still kept, with the time of their end (microseconds since 1970, UTC).
    pub fn finished(&self) -> impl Iterator<Item = (&DecisionRecord, u64)> {
        self.finished.values().filter_map(|(decided, at)| Some((decided.of(Decision::Commit)?, *at)))
    }

    /// The bytes of the records of unfinished decisions: they can't be dropped.
    pub fn unfinished_bytes(&self) -> usize {
        self.unfinished_bytes
    }

    /// The bytes of a [`checkpoint`](Self::checkpoint)'s records.
    pub fn bytes(&self) -> usize {
        self.base_bytes() + self.unfinished_bytes + self.finished_bytes
    }

    /// What incarnations and floors take.
    fn base_bytes(&self) -> usize {
        let folded = if self.folded_before > 0 { FOLDED_LEN } else { 0 };
        folded + self.incarnations.len() * INCARNATION_LEN + self.floors * FLOOR_LEN
    }

    /// Lets go what was finished longer than `horizon` before `now` (microseconds since 1970, UTC), and then, oldest first, of what
    /// was finished later, until a checkpoint takes at most `space` bytes. Incarnations that ended before the horizon and have no
    /// decision left are folded; they take a quarter of the space at most. Unfinished decisions are never dropped, so that the
    /// checkpoint can still be larger than `space` afterwards.
    pub fn retain(&mut self, now: u64, horizon: Duration, space: usize) -> Retained {
        let horizon = u64::try_from(horizon.as_micros()).unwrap_or(u64::MAX);
        let oldest = now.saturating_sub(horizon);
        let mut retained = Retained::default();
        while let Some(&(at, transaction)) = self.by_age.first().filter(|(at, _)| *at < oldest) {
            self.drop_finished(at, transaction);
            retained.expired += 1;
        }
        let known = self.incarnations.len();
        self.fold(self.first_worth_keeping(oldest));
        if self.base_bytes() > space / 4 {
            // The one that began last is never folded: it is the one that lives.
            let keep = (space / 4 / (INCARNATION_LEN + FLOOR_LEN)).max(1);
            if let Some((&first, _)) = self.incarnations.iter().rev().nth(keep - 1) {
                self.fold(first);
            }
        }
        retained.folded = known - self.incarnations.len();
        while let Some(&(at, transaction)) = self.by_age.first().filter(|_| self.bytes() > space) {
            self.drop_finished(at, transaction);
            retained.squeezed += 1;
        }
        retained
    }

    /// The counter of the first incarnation that still ran at `oldest`, or of which a decision is kept.
    fn first_worth_keeping(&self, oldest: u64) -> u32 {
        let mut first = self.folded_before;
        let ends = self.incarnations.values().skip(1).map(|next| next.started_at);
        for ((&counter, era), end) in self.incarnations.iter().zip(ends) {
            let from =
                TransactionId { log: self.log, incarnation: Incarnation { counter, nonce: era.nonce }, sequence: 0 };
            let kept = |transaction: Option<&TransactionId>| {
                transaction.is_some_and(|transaction| transaction.incarnation == from.incarnation)
            };
            let unfinished = kept(self.unfinished.range(from..).next().map(|(transaction, _)| transaction));
            let finished = kept(self.finished.range(from..).next().map(|(transaction, _)| transaction));
            if end >= oldest || unfinished || finished {
                break;
            }
            first = counter + 1;
        }
        first
    }

    fn drop_finished(&mut self, at: u64, transaction: TransactionId) {
        self.by_age.remove(&(at, transaction));
        let (decided, _) = self.finished.remove(&transaction).expect("what is listed by age is kept");
        self.finished_bytes -= decided.len() + FINISHED_LEN;
        self.raise_floor(transaction.incarnation, transaction.sequence);
    }

    /// From now on nothing is presumed of any transaction that began before the next incarnation: for a log that was restored from a
    /// backup, whose later decisions are lost (rule 4). Decisions that are there stay.
    pub fn presume_nothing(&mut self) {
        if let Some(current) = self.current() {
            self.fold(current.counter.saturating_add(1));
        }
    }

    /// The counter of the incarnation that begins next; none when all are used up.
    pub fn next_counter(&self) -> Option<u32> {
        let last = self.incarnations.last_key_value().map_or(0, |(&last, _)| last);
        last.checked_add(1).map(|next| next.max(self.folded_before))
    }

    /// The records that rebuild this history, as bytes in an order that [`apply`](Self::apply) takes, and how many they are.
    pub fn checkpoint(&self) -> (Vec<u8>, u32) {
        let mut out = Checkpoint { bytes: Vec::with_capacity(self.bytes()), count: 0 };
        if self.folded_before > 0 {
            out.add(&Record::Folded { before: self.folded_before });
        }
        for (incarnation, started_at, floor) in self.incarnations() {
            out.add(&Record::Incarnation { incarnation, started_at });
            if floor > 0 {
                out.add(&Record::Floor { incarnation, sequence: floor });
            }
        }
        for decided in self.unfinished.values() {
            out.add_decided(decided);
        }
        for (decided, at) in self.finished.values() {
            out.add_decided(decided);
            out.add(&Record::Finished { transaction: decided.record.transaction, at: *at });
        }
        (out.bytes, out.count)
    }
}

/// A checkpoint's records as they are put together; decisions are not copied first, since there can be many.
struct Checkpoint {
    bytes: Vec<u8>,
    count: u32,
}

impl Checkpoint {
    fn add(&mut self, record: &Record) {
        record.encode(&mut self.bytes).expect("only decisions can be too long");
        self.count += 1;
    }

    fn add_decided(&mut self, decided: &Decided) {
        encode_decision(&decided.record, decided.decision, &mut self.bytes)
            .expect("a decision is checked when it is applied");
        self.count += 1;
    }
}
