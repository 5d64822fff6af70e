//! What a file log knows between two writes: what is durable, what waits, and why it may refuse.
//!
//! Everything here is plain data behind one mutex; no I/O, and nobody is woken while it is locked.
//!
//! Must not know files.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use unanimous_core::log::frame::copy_len;
use unanimous_core::log::record::check;
use unanimous_core::log::{History, Record};
use unanimous_core::{Decision, DecisionRecord, Known, Note, Owner, TransactionId};

use super::answer::Answer;
use super::error::{LogError, Poison};
use super::segments::Segments;

/// How much of what a log takes, all following from the length of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) segment: u64,
    pub(super) horizon: Duration,
}

impl Limits {
    /// The bytes that a checkpoint's records take at most: with its header it leaves half a segment free, so that each segment takes
    /// more new than it repeats.
    pub(super) fn checkpoint(self) -> usize {
        self.segment as usize / 16 * 7
    }

    /// From here on no new work is begun.
    fn unfinished_ready(self) -> usize {
        self.segment as usize / 4
    }

    /// From here on nothing is decided. The difference is for work that is past `ready`; the rest of the checkpoint is
    /// for incarnations and floors.
    fn unfinished_most(self) -> usize {
        self.checkpoint() * 3 / 4
    }

    /// The bytes of the records of one frame at most; in two copies they fit what a checkpoint leaves.
    pub(super) fn frame(self) -> usize {
        self.segment as usize / 8
    }
}

/// Senders with what they are to be told, once the lock is given up.
#[must_use]
#[derive(Default)]
pub(super) struct Answers {
    decided: Vec<(oneshot::Sender<Answer>, Answer)>,
    closed: Vec<oneshot::Sender<()>>,
    /// Dropped before anybody is told: that gives the folder's lock up.
    segments: Option<Segments>,
}

impl Answers {
    /// Tells them. Who has gone meanwhile has nothing to be told.
    pub(super) fn send(self) {
        drop(self.segments);
        for (sender, answer) in self.decided {
            let _ = sender.send(answer);
        }
        for sender in self.closed {
            let _ = sender.send(());
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Open,
    /// What is queued is still written.
    Closing,
    Closed,
    Poisoned(Arc<Poison>),
}

/// A decision that is queued or being written.
struct Pending {
    record: DecisionRecord,
    decision: Decision,
    /// Taken into a batch: a failure leaves it unknown.
    in_flight: bool,
    waiters: Vec<oneshot::Sender<Answer>>,
}

/// What one sync will cover.
pub(super) struct Batch {
    decided: Vec<TransactionId>,
    finished: Vec<TransactionId>,
    pub(super) bytes: Vec<u8>,
    pub(super) count: u32,
}

pub(super) struct State {
    pub(super) limits: Limits,
    pub(super) owner: Owner,
    pub(super) phase: Phase,
    /// What is durable.
    pub(super) history: History,
    pending: BTreeMap<TransactionId, Pending>,
    /// The pending ones that no batch has taken yet, in the order of their arrival, with their records' bytes.
    queue: VecDeque<(TransactionId, Vec<u8>)>,
    pending_bytes: usize,
    /// Finished ones whose record is not durable yet, with the time of their end.
    finishing: BTreeMap<TransactionId, u64>,
    /// With the running writer while there is one.
    pub(super) segments: Option<Segments>,
    /// A writer runs, or is about to.
    pub(super) running: bool,
    /// A timer will flush what is finished.
    pub(super) timer: bool,
    pub(super) no_reserve: Option<Arc<io::Error>>,
    /// When the writer last tried for a reserve, on the monotonic clock.
    pub(super) tried_reserve: Duration,
    closers: Vec<oneshot::Sender<()>>,
}

impl State {
    pub(super) fn new(limits: Limits, owner: Owner, history: History, segments: Segments) -> Self {
        Self {
            limits,
            owner,
            phase: Phase::Open,
            history,
            pending: BTreeMap::new(),
            queue: VecDeque::new(),
            pending_bytes: 0,
            finishing: BTreeMap::new(),
            segments: Some(segments),
            running: false,
            timer: false,
            no_reserve: None,
            tried_reserve: Duration::ZERO,
            closers: Vec::new(),
        }
    }

    /// Whether anything can be written at all.
    pub(super) fn usable(&self) -> Result<(), LogError> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Closing | Phase::Closed => Err(LogError::Closed),
            Phase::Poisoned(poison) => Err(LogError::Poisoned(poison.clone())),
        }
    }

    /// Whether new work may be begun.
    pub(super) fn ready(&self) -> Result<(), LogError> {
        self.usable()?;
        let (unfinished, most) = (self.history.unfinished_bytes() + self.pending_bytes, self.limits.unfinished_ready());
        match &self.no_reserve {
            Some(error) => Err(LogError::NoReserve(error.clone())),
            None if unfinished >= most => Err(LogError::Full { unfinished, most }),
            None => Ok(()),
        }
    }

    /// Queues a decision; the receiver is told how it ends. One of an earlier incarnation's transaction is taken only where it is `concluded`, and
    /// the history would know another.
    pub(super) fn queue(
        &mut self,
        mut record: DecisionRecord,
        decision: Decision,
        concluded: bool,
    ) -> Result<oneshot::Receiver<Answer>, Answer> {
        let transaction = record.transaction;
        if let Some(known) = self.pending.get_mut(&transaction) {
            if known.decision != decision || !known.record.decides_as(&record) {
                return Err(Answer::Unknown(LogError::DecidedTwice(transaction)));
            }
            let (sender, receiver) = oneshot::channel();
            known.waiters.push(sender);
            return Ok(receiver);
        }
        self.usable().map_err(Answer::Refused)?;
        if transaction.owner() != self.owner && !concluded {
            return Err(Answer::Refused(LogError::NotOwned(transaction)));
        }
        match self.history.recorded(transaction) {
            Some(Known::Commit(known)) if decision == Decision::Commit && known.decides_as(&record) => {
                return Err(Answer::Durable);
            }
            Some(Known::Abort) if decision == Decision::Abort => return Err(Answer::Durable),
            Some(Known::Commit(_) | Known::Abort) => return Err(Answer::Unknown(LogError::DecidedTwice(transaction))),
            Some(Known::Hold(_)) if transaction.owner() != self.owner => {
                return Err(Answer::Refused(LogError::NotOwned(transaction)));
            }
            // A long transaction may be decided when later ones were dropped already.
            Some(Known::Hold(_)) | None => {}
        }
        check(&record).map_err(|error| Answer::Refused(LogError::Unwritable(error)))?;
        let drop_note = decision == Decision::Abort || !self.has_room(Record::Commit(record.clone()).encoded_len());
        if drop_note {
            record.note = Note::default();
        }
        let mut bytes = Vec::new();
        record_of(record.clone(), decision).encode(&mut bytes).expect("just checked");
        if bytes.len() > self.limits.frame() {
            return Err(Answer::Refused(LogError::TooLarge { bytes: bytes.len(), most: self.limits.frame() }));
        }
        let (unfinished, most) =
            (self.history.unfinished_bytes() + self.pending_bytes + bytes.len(), self.limits.unfinished_most());
        if unfinished > most {
            return Err(Answer::Refused(LogError::Full { unfinished, most }));
        }
        self.pending_bytes += bytes.len();
        self.queue.push_back((transaction, bytes));
        let (sender, receiver) = oneshot::channel();
        self.pending.insert(transaction, Pending { record, decision, in_flight: false, waiters: vec![sender] });
        Ok(receiver)
    }

    /// Whether a record of this length fits without taking what is kept for work that is past `ready`: a note must not be why a
    /// decision is refused.
    fn has_room(&self, bytes: usize) -> bool {
        let unfinished = self.history.unfinished_bytes() + self.pending_bytes + bytes;
        bytes <= self.limits.frame() && unfinished <= self.limits.unfinished_ready()
    }

    /// Waits with those who wait for this decision, if it is pending.
    pub(super) fn wait(&mut self, transaction: TransactionId) -> Option<oneshot::Receiver<Answer>> {
        let pending = self.pending.get_mut(&transaction)?;
        let (sender, receiver) = oneshot::channel();
        pending.waiters.push(sender);
        Some(receiver)
    }

    /// Notes the end of a transaction, to be written with what comes next. False when there is nothing to be written.
    pub(super) fn finish(&mut self, transaction: TransactionId, at: u64) -> bool {
        let known = matches!(self.phase, Phase::Open | Phase::Closing) && self.history.is_unfinished(transaction);
        if known {
            self.finishing.entry(transaction).or_insert(at);
        }
        known
    }

    /// How many finished ones wait to be written.
    pub(super) fn finishing(&self) -> usize {
        self.finishing.len()
    }

    /// The durable decisions that are not finished, and not about to be noted as such.
    pub(super) fn unfinished(&self) -> Vec<DecisionRecord> {
        self.history.unfinished().filter(|record| !self.finishing.contains_key(&record.transaction)).cloned().collect()
    }

    /// The same of decisions to abort.
    pub(super) fn unfinished_aborts(&self) -> Vec<DecisionRecord> {
        let aborts = self.history.unfinished_aborts();
        aborts.filter(|record| !self.finishing.contains_key(&record.transaction)).cloned().collect()
    }

    /// Whether anything waits to be written.
    pub(super) fn has_work(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Closing) && !(self.queue.is_empty() && self.finishing.is_empty())
    }

    /// Whether something waits that nobody will come for later: ends have time until the timer's turn, or until there are so many.
    pub(super) fn is_urgent(&self, many: usize) -> bool {
        let ends_wait = self.timer && self.finishing.len() < many && matches!(self.phase, Phase::Open);
        self.has_work() && !(self.queue.is_empty() && ends_wait)
    }

    /// Refuses what comes from now on; the receiver is told when the log is given up.
    pub(super) fn close(&mut self) -> oneshot::Receiver<()> {
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::Closing;
        }
        let (sender, receiver) = oneshot::channel();
        self.closers.push(sender);
        receiver
    }

    /// What the next frame holds: decisions in the order of their arrival, and then ends, as many as fit.
    pub(super) fn batch(&mut self) -> Option<Batch> {
        if !self.has_work() {
            return None;
        }
        let most = self.limits.frame();
        let mut batch = Batch { decided: Vec::new(), finished: Vec::new(), bytes: Vec::new(), count: 0 };
        while let Some((transaction, bytes)) =
            self.queue.pop_front_if(|(_, bytes)| batch.bytes.len() + bytes.len() <= most)
        {
            batch.bytes.extend_from_slice(&bytes);
            batch.count += 1;
            batch.decided.push(transaction);
            self.pending.get_mut(&transaction).expect("what is queued is pending").in_flight = true;
        }
        for (&transaction, &at) in &self.finishing {
            let record = Record::Finished { transaction, at };
            if batch.bytes.len() + record.encoded_len() > most {
                break;
            }
            record.encode(&mut batch.bytes).expect("only decisions can be too long");
            batch.count += 1;
            batch.finished.push(transaction);
        }
        debug_assert!(copy_len(batch.bytes.len()) <= copy_len(most));
        Some(batch)
    }

    /// A batch is durable.
    pub(super) fn written(&mut self, batch: &Batch) -> Answers {
        let mut answers = Answers::default();
        for transaction in &batch.decided {
            let pending = self.pending.remove(transaction).expect("what is in flight is pending");
            let record = record_of(pending.record, pending.decision);
            self.pending_bytes -= record.encoded_len();
            self.history.apply(record).expect("checked when it was queued");
            answers.decided.extend(pending.waiters.into_iter().map(|waiter| (waiter, Answer::Durable)));
        }
        for transaction in &batch.finished {
            if let Some(at) = self.finishing.remove(transaction) {
                let finished = Record::Finished { transaction: *transaction, at };
                self.history.apply(finished).expect("an end contradicts nothing");
            }
        }
        answers
    }

    /// Nothing of what is pending will be written: what no write was tried of is refused, and what is in flight is unknown if one
    /// was tried.
    pub(super) fn give_up(&mut self, why: &LogError, tried: bool) -> Answers {
        let mut answers = Answers::default();
        self.queue.clear();
        self.pending_bytes = 0;
        for pending in std::mem::take(&mut self.pending).into_values() {
            let answer =
                if tried && pending.in_flight { Answer::Unknown(why.clone()) } else { Answer::Refused(why.clone()) };
            answers.decided.extend(pending.waiters.into_iter().map(|waiter| (waiter, answer.clone())));
        }
        answers
    }

    /// A write failed (rule 12); `tried` says whether it was one of what is in flight.
    pub(super) fn poison(&mut self, poison: Poison, tried: bool) -> Answers {
        let poison = Arc::new(poison);
        self.phase = Phase::Poisoned(poison.clone());
        let answers = self.give_up(&LogError::Poisoned(poison), tried);
        self.finishing.clear();
        answers
    }

    /// The writer stops; it gives its segments back, if it still has them. Whoever waits for the close is told.
    pub(super) fn stop(&mut self, segments: Option<Segments>, mut answers: Answers) -> Answers {
        self.running = false;
        self.segments = segments.or(self.segments.take());
        if !self.closers.is_empty() {
            if matches!(self.phase, Phase::Closing) {
                self.phase = Phase::Closed;
            }
            answers.segments = self.segments.take();
            answers.closed = std::mem::take(&mut self.closers);
        }
        answers
    }
}

fn record_of(record: DecisionRecord, decision: Decision) -> Record {
    match decision {
        Decision::Commit => Record::Commit(record),
        Decision::Abort => Record::Abort(record),
    }
}
