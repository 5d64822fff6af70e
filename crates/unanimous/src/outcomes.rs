//! What this process remembers of how transactions ended, and [`KnownOutcome`]: what can be told to somebody who asks by the id.
//!
//! The memory is a ring over the incarnation's sequence numbers: each end overwrites the one that is a whole ring older. A transaction
//! that takes longer than that is written into a small map beside it, so that "not in the ring" still means "under way".
//!
//! Must not know the protocol, nor who asks. It never guesses (rule 9): a log without a decision says nothing of a former incarnation's
//! transaction, since one with a single writer commits without the log.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Semaphore, SemaphorePermit};
use unanimous_core::{Decision, HoldReason, Known, Outcome, TransactionId};

use crate::dispatch::Registered;
use crate::env;
use crate::inner::Inner;
use crate::live::Stage;
use crate::recovery::within;
use crate::sync::lock;

/// What can be said of a transaction's outcome; [`TransactionManager::outcome`](crate::TransactionManager::outcome) tells it.
///
/// Deliberately exhaustive: who matches on it has thought of all four.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KnownOutcome {
    /// It has committed: the decision is durable (or, with [early acknowledgement](crate::Builder::early_acknowledgement), all branches that wrote are
    /// prepared, which is one), and every branch has committed or will. Final.
    Committed,
    /// It can never commit any more, anywhere. Final. (A one-phase branch that was let in beside others by name may have committed all
    /// the same: that is what the opt-in says.)
    Aborted,
    /// Nobody can say yet: ask again later.
    InDoubt(Waiting),
    /// Nobody here can say: it was never begun, it is another log's, it ended longer ago than anybody remembers, or it was a former run's and
    /// left no trace. It may have committed.
    NotKnown,
}

impl fmt::Display for KnownOutcome {
    /// `committed`, `aborted`, `in doubt` or `not known`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KnownOutcome::Committed => "committed",
            KnownOutcome::Aborted => "aborted",
            KnownOutcome::InDoubt(_) => "in doubt",
            KnownOutcome::NotKnown => "not known",
        })
    }
}

/// What an outcome that is in doubt waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Waiting {
    /// For its end: it is under way in this process.
    End,
    /// For recovery: its outcome is unknown, or a branch of it is still prepared.
    /// [`in_doubt`](crate::TransactionManager::in_doubt) says more. Where the answer of a single writer's commit was lost it stays so.
    Recovery,
    /// For who could say, and can't be asked now: the resource of this name, or none for the log.
    Decider(Option<String>),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::End => f.write_str("it is under way"),
            Waiting::Recovery => f.write_str("its outcome is unknown; recovery looks for it"),
            Waiting::Decider(None) => f.write_str("the decision log can't be asked now"),
            Waiting::Decider(Some(resource)) => write!(f, "{resource:?} can't be asked now, and may know"),
        }
    }
}

/// Entries that are allocated at once, at the first use of one of them: 8 KiB.
const CHUNK: usize = 1024;

/// How many lookups ask one store, or the log, at the same time. Each may have a connection there, and phase two and recovery have theirs from the
/// same hand (rule 14): whoever asks for made-up ids must not take them all.
const LOOKUPS: usize = 2;

/// How long a lookup waits for those before it. Who asks by HTTP can come again.
const LOOKUP_WAIT: Duration = Duration::from_millis(250);

/// The lookups that one store may be asked by now.
#[derive(Debug)]
pub(crate) struct Lookups(Semaphore);

impl Lookups {
    /// For one lookup; none where those before it take too long.
    async fn enter(&self, inner: &Inner) -> Option<SemaphorePermit<'_>> {
        env::within(&*inner.env, LOOKUP_WAIT, self.0.acquire()).await?.ok()
    }
}

impl Default for Lookups {
    fn default() -> Self {
        Self(Semaphore::new(LOOKUPS))
    }
}

/// What the ring says of a transaction of this incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remembered {
    Ended(Outcome),
    UnderWay,
    /// It was overwritten.
    Forgotten,
}

/// How transactions ended. Costs one exchange in memory for each.
pub(crate) struct Outcomes {
    /// At `sequence % length`: the sequence number, and the outcome in the two lowest bits; 0 where nothing ended yet.
    ring: Box<[OnceLock<Box<[AtomicU64]>>]>,
    /// Transactions that a later one has overtaken by a whole ring; none while they are under way. At most a ring of them.
    late: Mutex<BTreeMap<u64, Option<Outcome>>>,
    /// What recovery found, of this incarnation's and of former ones' transactions. At most a ring of them.
    recovered: Mutex<BTreeMap<TransactionId, Decision>>,
    /// What records have proven to somebody who asked, so that one record is read, and forced, once. At most a ring of them.
    proven: Mutex<BTreeMap<TransactionId, Decision>>,
    /// Those that ask the log.
    lookups: Lookups,
}

impl Outcomes {
    /// `most` is rounded up to whole chunks, at least one.
    pub(crate) fn new(most: usize) -> Self {
        let chunks = most.div_ceil(CHUNK).max(1);
        Self {
            ring: (0..chunks).map(|_| OnceLock::new()).collect(),
            late: Mutex::default(),
            recovered: Mutex::default(),
            proven: Mutex::default(),
            lookups: Lookups::default(),
        }
    }

    fn length(&self) -> u64 {
        (self.ring.len() * CHUNK) as u64
    }

    fn place(&self, sequence: u64) -> &AtomicU64 {
        let place = (sequence % self.length()) as usize;
        let chunk = self.ring[place / CHUNK].get_or_init(|| (0..CHUNK).map(|_| AtomicU64::new(0)).collect());
        &chunk[place % CHUNK]
    }

    /// A transaction of this incarnation has ended.
    pub(crate) fn ended(&self, sequence: u64, outcome: Outcome) {
        let place = self.place(sequence);
        let held = place.load(Ordering::Relaxed);
        let in_turn = sequence_of(held) == sequence.saturating_sub(self.length());
        let swap = || place.compare_exchange(held, packed(sequence, outcome), Ordering::Release, Ordering::Relaxed);
        if !in_turn || swap().is_err() {
            self.ended_out_of_turn(sequence, outcome);
        }
    }

    /// A transaction that should have had this place before, or should have it now, takes longer than a whole ring of others.
    fn ended_out_of_turn(&self, sequence: u64, outcome: Outcome) {
        let (place, length) = (self.place(sequence), self.length());
        let mut late = lock(&self.late);
        loop {
            let held = place.load(Ordering::Acquire);
            let last = sequence_of(held);
            // It ended in turn after all, while the others were written down.
            if late.get(&last) == Some(&None) {
                late.remove(&last);
            }
            if last > sequence {
                late.insert(sequence, Some(outcome));
                break;
            }
            let next = if last == 0 { (sequence - 1) % length + 1 } else { last + length };
            for under_way in (next..sequence).step_by(self.ring.len() * CHUNK) {
                late.entry(under_way).or_insert(None);
            }
            // Written down before they are overtaken, so that nobody who looks in between takes them for forgotten.
            let packed = packed(sequence, outcome);
            if place.compare_exchange(held, packed, Ordering::Release, Ordering::Relaxed).is_ok() {
                break;
            }
        }
        while late.len() as u64 > length {
            late.pop_first();
        }
    }

    /// What is remembered of a transaction of this incarnation whose number was given out.
    pub(crate) fn of(&self, sequence: u64) -> Remembered {
        let held = self.place(sequence).load(Ordering::Acquire);
        match sequence_of(held).cmp(&sequence) {
            std::cmp::Ordering::Less => Remembered::UnderWay,
            std::cmp::Ordering::Equal => Remembered::Ended(outcome_of(held)),
            std::cmp::Ordering::Greater => match lock(&self.late).get(&sequence) {
                None => Remembered::Forgotten,
                Some(None) => Remembered::UnderWay,
                Some(Some(outcome)) => Remembered::Ended(*outcome),
            },
        }
    }

    /// Recovery has finished a branch by its decider's answer, which proves how its transaction was decided.
    pub(crate) fn recovered(&self, id: TransactionId, decision: Decision) {
        self.note(&self.recovered, id, decision);
    }

    fn note(&self, known: &Mutex<BTreeMap<TransactionId, Decision>>, id: TransactionId, decision: Decision) {
        let mut known = lock(known);
        known.insert(id, decision);
        while known.len() as u64 > self.length() {
            known.pop_first();
        }
    }

    fn found_by_recovery(&self, id: TransactionId) -> Option<Decision> {
        lock(&self.recovered).get(&id).copied()
    }

    fn found(&self, id: TransactionId) -> Option<Decision> {
        self.found_by_recovery(id).or_else(|| lock(&self.proven).get(&id).copied())
    }
}

fn packed(sequence: u64, outcome: Outcome) -> u64 {
    let code = match outcome {
        Outcome::Committed => 1,
        Outcome::Aborted => 2,
        Outcome::Unknown => 3,
    };
    // Sequence numbers have 50 bits.
    sequence << 2 | code
}

fn sequence_of(packed: u64) -> u64 {
    packed >> 2
}

fn outcome_of(packed: u64) -> Outcome {
    match packed & 3 {
        1 => Outcome::Committed,
        2 => Outcome::Aborted,
        _ => Outcome::Unknown,
    }
}

/// Whether this process has seen the transaction commit: it is durable then, whatever is read of it.
#[cfg(feature = "http")]
pub(crate) fn was_seen_to_commit(inner: &Inner, id: TransactionId) -> bool {
    id.owner() == inner.owner
        && (1..=inner.sequence.load(Ordering::Relaxed)).contains(&id.sequence)
        && inner.outcomes.of(id.sequence) == Remembered::Ended(Outcome::Committed)
}

/// What can be said of a transaction: first by memory, then by the deciders' records. Writes nothing for a transaction of which nobody
/// has a record.
pub(crate) async fn outcome(inner: &Inner, id: TransactionId) -> KnownOutcome {
    use KnownOutcome::{Aborted, Committed, InDoubt, NotKnown};
    let ours = id.owner() == inner.owner;
    let mut open = false;
    if ours {
        if !(1..=inner.sequence.load(Ordering::Relaxed)).contains(&id.sequence) {
            return NotKnown;
        }
        match inner.outcomes.of(id.sequence) {
            Remembered::Ended(Outcome::Committed) => return Committed,
            Remembered::Ended(Outcome::Aborted) => return Aborted,
            Remembered::Ended(Outcome::Unknown) => open = true,
            Remembered::UnderWay => return InDoubt(Waiting::End),
            Remembered::Forgotten => {}
        }
    }
    if id.log == inner.owner.log && id.incarnation.counter > inner.owner.incarnation.counter {
        // No later run has begun.
        return NotKnown;
    }
    match inner.outcomes.found(id) {
        Some(Decision::Commit) => return Committed,
        Some(Decision::Abort) => return Aborted,
        None => {}
    }
    match inner.live.stage(id) {
        Some(Stage::Aborted) => return Aborted,
        Some(Stage::Driven | Stage::Held) => open = true,
        None => {}
    }
    // Before the deciders are asked: a branch that is finished meanwhile has left a record.
    let doubts = inner.recovery.in_doubt();
    open |= doubts.iter().any(|doubt| doubt.transaction == Some(id));
    let asked = records(inner, id).await;
    if let Some(decision) = asked.decision {
        inner.outcomes.note(&inner.outcomes.proven, id, decision);
    }
    if let Some(decision) = asked.decision.or_else(|| inner.outcomes.found_by_recovery(id)) {
        return match decision {
            Decision::Commit => Committed,
            Decision::Abort => Aborted,
        };
    }
    if open {
        return InDoubt(Waiting::Recovery);
    }
    if let Some(silent) = asked.silent {
        return InDoubt(Waiting::Decider(silent));
    }
    // What can't be listed may have a branch of it that is prepared.
    match doubts.iter().find(|doubt| doubt.is_unreachable()) {
        Some(doubt) if id.log == inner.owner.log && !ours => InDoubt(Waiting::Decider(Some(doubt.resource.clone()))),
        _ => NotKnown,
    }
}

#[derive(Default)]
struct Asked {
    decision: Option<Decision>,
    /// Who could not be asked; none within for the log.
    silent: Option<Option<String>>,
}

/// What the log's and the carriers' records say.
async fn records(inner: &Inner, id: TransactionId) -> Asked {
    let mut asked = Asked::default();
    if inner.is_given_up() {
        asked.silent = Some(None);
        return asked;
    }
    let Some(lookup) = inner.outcomes.lookups.enter(inner).await else {
        asked.silent = Some(None);
        return asked;
    };
    let aborts = inner.log.records_aborts();
    let known = match aborts {
        true => within(inner, inner.log.recorded(id)).await,
        false => within(inner, inner.log.decided(id)).await,
    };
    match known {
        Ok(Some(Known::Commit(_))) => {
            asked.decision = Some(Decision::Commit);
            return asked;
        }
        Ok(Some(Known::Abort)) if aborts => {
            asked.decision = Some(Decision::Abort);
            return asked;
        }
        // Nor are the stores asked: a log that others share would have said nothing.
        Ok(Some(Known::Hold(HoldReason::ForeignLog))) => return asked,
        Ok(Some(Known::Hold(HoldReason::Poisoned | HoldReason::Unreachable))) => asked.silent = Some(None),
        // One that tells no more presumes abort where it has no record, and a single writer leaves none: that proves nothing here.
        Ok(Some(Known::Abort | Known::Hold(_)) | None) => {}
        Err(error) => {
            tracing::warn!(transaction = %id, error = &error as &(dyn std::error::Error + 'static),
                "the decision log can't be asked for an outcome");
            asked.silent = Some(None);
        }
    }
    drop(lookup);
    let answers = join_all(inner.resources.values().map(|registered| row(inner, registered, id)));
    for (registered, answer) in inner.resources.values().zip(answers.await) {
        match answer {
            Ok(Some(decision)) => asked.decision = Some(decision),
            Ok(None) => {}
            Err(()) => {
                asked.silent.get_or_insert_with(|| Some(registered.name.clone()));
            }
        }
    }
    asked
}

/// What the rows of a store say: either outcome is one that somebody wrote there, so that both are proven.
async fn row(inner: &Inner, registered: &Registered, id: TransactionId) -> Result<Option<Decision>, ()> {
    let Some(_lookup) = registered.lookups.enter(inner).await else { return Err(()) };
    match within(inner, registered.decided(id, inner.owner)).await {
        Ok(Some(Known::Commit(_))) => Ok(Some(Decision::Commit)),
        Ok(Some(Known::Abort)) => Ok(Some(Decision::Abort)),
        Ok(Some(Known::Hold(HoldReason::Poisoned | HoldReason::Unreachable))) => Err(()),
        Ok(Some(Known::Hold(_)) | None) => Ok(None),
        Err(error) => {
            tracing::warn!(transaction = %id, resource = %registered.name,
                error = &error as &(dyn std::error::Error + 'static), "a store can't be asked for an outcome");
            Err(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u64 = CHUNK as u64;

    #[test]
    fn each_end_is_remembered_until_it_is_a_ring_old() {
        let outcomes = Outcomes::new(1);
        assert_eq!(outcomes.of(1), Remembered::UnderWay);
        for sequence in 1..=RING {
            outcomes.ended(sequence, if sequence % 2 == 0 { Outcome::Committed } else { Outcome::Aborted });
        }
        assert_eq!(outcomes.of(1), Remembered::Ended(Outcome::Aborted));
        assert_eq!(outcomes.of(RING), Remembered::Ended(Outcome::Committed));
        outcomes.ended(RING + 1, Outcome::Unknown);
        assert_eq!(outcomes.of(1), Remembered::Forgotten);
        assert_eq!(outcomes.of(2), Remembered::Ended(Outcome::Committed));
        assert_eq!(outcomes.of(RING + 1), Remembered::Ended(Outcome::Unknown));
        assert_eq!(outcomes.of(RING + 2), Remembered::UnderWay);
    }

    #[test]
    fn one_that_takes_longer_than_a_ring_of_others_is_under_way_until_it_ends() {
        let outcomes = Outcomes::new(1);
        // 1 and 1 + RING have not ended when the third one of their place does.
        outcomes.ended(1 + 2 * RING, Outcome::Committed);
        assert_eq!(outcomes.of(1), Remembered::UnderWay);
        assert_eq!(outcomes.of(1 + RING), Remembered::UnderWay);
        outcomes.ended(1 + RING, Outcome::Aborted);
        outcomes.ended(1, Outcome::Committed);
        assert_eq!(outcomes.of(1), Remembered::Ended(Outcome::Committed));
        assert_eq!(outcomes.of(1 + RING), Remembered::Ended(Outcome::Aborted));
        assert_eq!(outcomes.of(1 + 2 * RING), Remembered::Ended(Outcome::Committed));
        // A place that is in turn again knows nothing of those.
        outcomes.ended(1 + 3 * RING, Outcome::Committed);
        assert_eq!(outcomes.of(1 + 2 * RING), Remembered::Forgotten);
        assert_eq!(outcomes.of(1 + RING), Remembered::Ended(Outcome::Aborted));
    }

    #[test]
    fn the_late_ones_are_bounded() {
        let outcomes = Outcomes::new(1);
        for place in 1..=RING {
            outcomes.ended(place + 3 * RING, Outcome::Committed);
        }
        assert_eq!(lock(&outcomes.late).len() as u64, RING);
        assert_eq!(outcomes.of(RING + 2 * RING), Remembered::UnderWay);
    }

    /// Whatever the order of the ends on several threads: what has ended is never taken for under way.
    #[test]
    fn ends_that_meet() {
        let outcomes = Outcomes::new(1);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let outcomes = &outcomes;
                scope.spawn(move || {
                    for place in 1..=RING {
                        let sequence = place + thread * RING;
                        outcomes.ended(sequence, Outcome::Committed);
                        assert_ne!(outcomes.of(sequence), Remembered::UnderWay, "{sequence}");
                    }
                });
            }
        });
        for sequence in 1..=4 * RING {
            assert_ne!(outcomes.of(sequence), Remembered::UnderWay, "{sequence}");
        }
        for sequence in 1 + 3 * RING..=4 * RING {
            assert_eq!(outcomes.of(sequence), Remembered::Ended(Outcome::Committed));
        }
    }

    #[test]
    fn what_recovery_found_is_bounded_too() {
        let outcomes = Outcomes::new(1);
        let owner = unanimous_core::Owner {
            log: unanimous_core::LogId(1),
            incarnation: unanimous_core::Incarnation::new(1, 1),
        };
        for sequence in 1..=RING + 1 {
            outcomes.recovered(owner.transaction(sequence), Decision::Abort);
        }
        assert_eq!(outcomes.found_by_recovery(owner.transaction(1)), None);
        assert_eq!(outcomes.found_by_recovery(owner.transaction(2)), Some(Decision::Abort));
    }
}
