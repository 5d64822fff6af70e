//! What a log's records add up to: rules 4 and 11.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use unanimous_core::log::{History, HistoryError, Record, Retained};
use unanimous_core::{DecisionRecord, HoldReason, Incarnation, Known, LogId, Note, Participant, TransactionId};

const LOG: LogId = LogId(42);
const FOR_EVER: Duration = Duration::MAX;

fn incarnation(counter: u32) -> Incarnation {
    Incarnation::new(counter, 1000 + u64::from(counter))
}

fn transaction(counter: u32, sequence: u64) -> TransactionId {
    TransactionId { log: LOG, incarnation: incarnation(counter), sequence }
}

fn decision(transaction: TransactionId) -> DecisionRecord {
    let participants = vec![Participant { number: 0, resource: "orders".into(), store: None }];
    let noted = transaction.sequence.is_multiple_of(3);
    let note = if noted { Note::new(format!("by ada: order {}", transaction.sequence)) } else { Note::default() };
    DecisionRecord { transaction, participants, decided_at: transaction.sequence, note }
}

fn begin(history: &mut History, counter: u32, started_at: u64) {
    history.apply(Record::Incarnation { incarnation: incarnation(counter), started_at }).unwrap();
}

fn commit(history: &mut History, transaction: TransactionId) {
    history.apply(Record::Commit(decision(transaction))).unwrap();
}

fn finish(history: &mut History, transaction: TransactionId, at: u64) {
    history.apply(Record::Finished { transaction, at }).unwrap();
}

fn rebuilt(history: &History) -> History {
    let (bytes, count) = history.checkpoint();
    assert_eq!(bytes.len(), history.bytes());
    let mut rebuilt = History::new(history.log());
    for record in Record::decode_all(history.log(), &bytes, count).unwrap() {
        rebuilt.apply(record).unwrap();
    }
    rebuilt
}

/// Rule 4: abort is presumed of a known incarnation of the own log, counter and nonce, and of nothing else.
#[test]
fn who_can_be_presumed_what() {
    let mut history = History::new(LOG);
    begin(&mut history, 1, 10);
    begin(&mut history, 2, 20);
    commit(&mut history, transaction(1, 7));
    assert_eq!(history.lookup(transaction(1, 7)), Known::Commit(decision(transaction(1, 7))));
    assert_eq!(history.lookup(transaction(1, 8)), Known::Abort);
    assert_eq!(history.lookup(transaction(2, 7)), Known::Abort);
    let foreign = TransactionId { log: LogId(43), ..transaction(1, 7) };
    assert_eq!(history.lookup(foreign), Known::Hold(HoldReason::ForeignLog));
    let restored = TransactionId { incarnation: Incarnation::new(2, 77), ..transaction(2, 7) };
    assert_eq!(history.lookup(restored), Known::Hold(HoldReason::ForeignIncarnation));
    assert_eq!(history.lookup(transaction(3, 1)), Known::Hold(HoldReason::ForeignIncarnation));
}

/// Early acknowledgement: without a record nothing is presumed; an abort that is recorded is one, survives a checkpoint, contradicts a
/// commit, is finished as a commit is, and leaves a floor when it goes.
#[test]
fn an_abort_that_is_recorded_is_kept_as_a_commit_is() {
    let mut history = History::new(LOG);
    begin(&mut history, 1, 10);
    let (one, other) = (transaction(1, 3), transaction(1, 4));
    assert_eq!((history.recorded(one), history.lookup(one)), (None, Known::Abort));
    assert_eq!(history.recorded(transaction(2, 1)), Some(Known::Hold(HoldReason::ForeignIncarnation)));
    history.apply(Record::Abort(decision(one))).unwrap();
    commit(&mut history, other);
    assert_eq!(history.recorded(one), Some(Known::Abort));
    assert_eq!(history.recorded(other), Some(Known::Commit(decision(other))));
    let twice = history.apply(Record::Commit(decision(one)));
    assert_eq!(twice, Err(HistoryError::DecidedTwice(one)));
    assert_eq!(history.apply(Record::Abort(decision(other))), Err(HistoryError::DecidedTwice(other)));
    assert_eq!(history.apply(Record::Abort(decision(one))), Ok(()), "it repeats what is known");
    let unfinished = |history: &History| {
        let of = |records: Vec<&DecisionRecord>| records.iter().map(|record| record.transaction).collect::<Vec<_>>();
        (of(history.unfinished().collect()), of(history.unfinished_aborts().collect()))
    };
    assert_eq!(unfinished(&history), (vec![other], vec![one]));
    let mut again = rebuilt(&history);
    assert_eq!((again.recorded(one), again.is_unfinished(one)), (Some(Known::Abort), true));
    assert_eq!(unfinished(&again), (vec![other], vec![one]));
    finish(&mut again, one, 20);
    assert_eq!((unfinished(&again), again.finished().count()), ((vec![other], vec![]), 0));
    again = rebuilt(&again);
    assert_eq!(again.recorded(one), Some(Known::Abort));
    again.retain(100, Duration::from_micros(1), usize::MAX);
    assert_eq!(again.recorded(one), Some(Known::Hold(HoldReason::BeyondHorizon)));
}

/// Rule 11: what was finished is dropped past the horizon, oldest first when space is short; what is not finished never is; and nothing
/// is presumed below what was dropped.
#[test]
fn finished_ones_go_and_leave_a_floor() {
    let mut history = History::new(LOG);
    begin(&mut history, 1, 0);
    for sequence in 1..=9 {
        commit(&mut history, transaction(1, sequence));
    }
    for (sequence, at) in [(5, 100), (3, 200), (8, 300), (2, 400)] {
        finish(&mut history, transaction(1, sequence), at);
    }
    let before = history.clone();
    assert_eq!(
        history.retain(399, Duration::from_micros(200), usize::MAX).expired,
        1,
        "199 is past the horizon, 200 is not"
    );
    assert_eq!(history.lookup(transaction(1, 5)), Known::Hold(HoldReason::BeyondHorizon));
    assert_eq!(
        history.lookup(transaction(1, 1)),
        Known::Commit(decision(transaction(1, 1))),
        "unfinished, below the floor"
    );
    assert_eq!(history.lookup(transaction(1, 3)), Known::Commit(decision(transaction(1, 3))), "kept, below the floor");
    assert_eq!(history.lookup(transaction(1, 10)), Known::Abort);

    let mut history = before;
    let retained = history.retain(500, FOR_EVER, history.bytes() - 1);
    assert_eq!(retained, Retained { squeezed: 1, ..Retained::default() });
    assert_eq!(history.lookup(transaction(1, 5)), Known::Hold(HoldReason::BeyondHorizon), "the oldest, not the first");
    let retained = history.retain(500, FOR_EVER, 0);
    assert_eq!(retained.squeezed, 3);
    let unfinished: Vec<_> = history.unfinished().map(|record| record.transaction.sequence).collect();
    assert_eq!(unfinished, [1, 4, 6, 7, 9], "what is not finished stays, whatever the space");
    assert_eq!(history.lookup(transaction(1, 2)), Known::Hold(HoldReason::BeyondHorizon));
    assert_eq!(rebuilt(&history), history);

    finish(&mut history, transaction(1, 4), 600);
    assert_eq!(history.lookup(transaction(1, 4)), Known::Commit(decision(transaction(1, 4))));
    begin(&mut history, 2, 700);
    assert_eq!(history.lookup(transaction(2, 1)), Known::Abort, "a floor is its incarnation's own");
}

/// What is exactly at a bound is within it: the horizon, the space, the quarter of it that incarnations take.
#[test]
fn bounds_are_inclusive() {
    let mut history = History::new(LOG);
    begin(&mut history, 1, 0);
    for (sequence, at) in [(1, 100), (2, 200)] {
        commit(&mut history, transaction(1, sequence));
        finish(&mut history, transaction(1, sequence), at);
    }
    assert_eq!(history.retain(300, Duration::from_micros(200), usize::MAX), Retained::default(), "at the horizon");
    assert_eq!(history.retain(300, FOR_EVER, history.bytes()), Retained::default(), "it fills the space");
    assert_eq!(history.retain(301, Duration::from_micros(200), usize::MAX).expired, 1);

    let mut history = History::new(LOG);
    for counter in 1..=4 {
        begin(&mut history, counter, 0);
    }
    assert_eq!(history.retain(0, FOR_EVER, 4 * history.bytes()), Retained::default(), "they fill their quarter");
    assert_eq!(history.retain(0, FOR_EVER, 4 * history.bytes() - 1).folded, 3, "each may have a floor to come");
}

/// What is left to finish: which, and the space that can't be given back.
#[test]
fn what_is_unfinished_is_known_and_counted() {
    let mut history = History::new(LOG);
    begin(&mut history, 1, 0);
    assert_eq!(history.unfinished_bytes(), 0);
    for sequence in 1..=3 {
        commit(&mut history, transaction(1, sequence));
    }
    finish(&mut history, transaction(1, 2), 10);
    let bytes = |sequence| Record::Commit(decision(transaction(1, sequence))).encoded_len();
    assert_eq!(history.unfinished_bytes(), bytes(1) + bytes(3));
    let unfinished = [1, 2, 3, 4].map(|sequence| history.is_unfinished(transaction(1, sequence)));
    assert_eq!(unfinished, [true, false, true, false]);
}

/// A floor that holds nothing back takes no space in a checkpoint.
#[test]
fn a_floor_of_nothing_is_none() {
    let mut history = History::new(LOG);
    begin(&mut history, 1, 0);
    let before = history.clone();
    history.apply(Record::Floor { incarnation: incarnation(1), sequence: 0 }).unwrap();
    assert_eq!(rebuilt(&history), before);
}

/// A process that starts again and again leaves no endless list behind it; what is decided stays found.
#[test]
fn incarnations_are_folded() {
    let mut history = History::new(LOG);
    for counter in 1..=10 {
        begin(&mut history, counter, u64::from(counter) * 100);
    }
    commit(&mut history, transaction(2, 1));
    assert_eq!(
        history.retain(1100, Duration::from_micros(700), usize::MAX).folded,
        1,
        "the second has an unfinished decision"
    );
    assert_eq!(history.lookup(transaction(1, 5)), Known::Hold(HoldReason::BeyondHorizon));
    assert_eq!(history.lookup(transaction(2, 5)), Known::Abort);
    finish(&mut history, transaction(2, 1), 1100);
    assert_eq!(history.retain(1100, Duration::from_micros(700), usize::MAX).folded, 0, "it is finished, and kept");
    let retained = history.retain(2000, Duration::from_micros(700), usize::MAX);
    assert_eq!(retained, Retained { expired: 1, folded: 8, squeezed: 0 });
    assert_eq!(history.folded_before(), 10, "the last one never is");
    assert_eq!(history.lookup(transaction(2, 1)), Known::Hold(HoldReason::BeyondHorizon));
    assert_eq!(history.lookup(transaction(10, 1)), Known::Abort);
    assert_eq!(history.next_counter(), Some(11));
    assert_eq!(rebuilt(&history), history);
}

#[test]
fn incarnations_take_a_quarter_of_the_space_at_most() {
    let mut history = History::new(LOG);
    for counter in 1..=100 {
        begin(&mut history, counter, 100);
        commit(&mut history, transaction(counter, 1));
    }
    history.retain(100, FOR_EVER, 2000);
    assert_eq!(history.incarnations().count(), 2000 / 4 / 50);
    assert_eq!(history.unfinished().count(), 100);
    assert_eq!(history.lookup(transaction(1, 1)), Known::Commit(decision(transaction(1, 1))));
    assert_eq!(history.lookup(transaction(1, 2)), Known::Hold(HoldReason::BeyondHorizon));
    assert_eq!(history.lookup(transaction(100, 2)), Known::Abort);
    assert_eq!(rebuilt(&history), history);
    history.retain(100, FOR_EVER, 0);
    assert_eq!(history.current(), Some(incarnation(100)), "the one that lives stays");
}

#[test]
fn a_restored_log_presumes_nothing_of_what_was_before() {
    let mut history = History::new(LOG);
    begin(&mut history, 1, 0);
    commit(&mut history, transaction(1, 1));
    history.presume_nothing();
    assert_eq!(history.next_counter(), Some(2));
    begin(&mut history, 2, 0);
    assert_eq!(history.lookup(transaction(1, 1)), Known::Commit(decision(transaction(1, 1))));
    assert_eq!(history.lookup(transaction(1, 2)), Known::Hold(HoldReason::BeyondHorizon));
    assert_eq!(history.lookup(transaction(2, 1)), Known::Abort);
    finish(&mut history, transaction(1, 1), 1);
    assert_eq!(rebuilt(&history), history);
}

#[test]
fn contradictions_are_refused_and_change_nothing() {
    let mut history = History::new(LOG);
    begin(&mut history, 2, 0);
    commit(&mut history, transaction(2, 1));
    let before = history.clone();
    let other = DecisionRecord { participants: vec![], ..decision(transaction(2, 1)) };
    let foreign = TransactionId { log: LogId(1), ..transaction(2, 2) };
    let long = DecisionRecord {
        participants: vec![Participant { number: 0, resource: "x".repeat(256), store: None }],
        ..decision(transaction(2, 3))
    };
    let floor = Record::Floor { incarnation: incarnation(1), sequence: 1 };
    let again = Record::Incarnation { incarnation: Incarnation::new(2, 9), started_at: 0 };
    for (record, expected) in [
        (Record::Commit(other), HistoryError::DecidedTwice(transaction(2, 1))),
        (Record::Commit(decision(foreign)), HistoryError::ForeignLog(foreign)),
        (Record::Commit(decision(transaction(3, 1))), HistoryError::UnknownIncarnation(incarnation(3))),
        (floor, HistoryError::UnknownIncarnation(incarnation(1))),
        (again, HistoryError::IncarnationOrder(Incarnation::new(2, 9))),
    ] {
        assert_eq!(history.apply(record), Err(expected));
        assert_eq!(history, before);
    }
    assert!(matches!(history.apply(Record::Commit(long)), Err(HistoryError::Unwritable(_))));
    assert_eq!(history, before);
    commit(&mut history, transaction(2, 1));
    let noted = DecisionRecord { note: Note::new("for people"), ..decision(transaction(2, 1)) };
    history.apply(Record::Commit(noted)).unwrap();
    finish(&mut history, transaction(2, 9), 1);
    assert_eq!(history, before, "what repeats, and the end of what is not known, change nothing");
}

/// Random lives of a log against the simplest possible memory: nothing that was decided is ever answered with abort, nothing that was not
/// with commit, and each checkpoint rebuilds its history.
#[test]
fn no_life_of_a_log_contradicts_a_plain_memory() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let (mut held, mut aborted, mut committed) = (0, 0, 0);
    for _ in 0..150 {
        let mut history = History::new(LOG);
        let mut plain: BTreeMap<TransactionId, bool> = BTreeMap::new();
        let (mut now, mut counter) = (0, 0);
        for step in 0..120 {
            now += next(50);
            match next(12) {
                0 | 1 if step > 0 => {}
                2 => {
                    history.retain(now, Duration::from_micros(next(2000)), usize::try_from(300 + next(3000)).unwrap());
                    assert_eq!(rebuilt(&history), history);
                }
                3..=6 => {
                    let open: Vec<_> = plain.iter().filter(|(_, finished)| !**finished).map(|(id, _)| *id).collect();
                    if !open.is_empty() {
                        let ended = open[next(open.len() as u64) as usize];
                        finish(&mut history, ended, now);
                        plain.insert(ended, true);
                    }
                }
                _ if counter > 0 => {
                    let decided = transaction(counter, 1 + next(40));
                    plain.entry(decided).or_insert_with(|| {
                        commit(&mut history, decided);
                        false
                    });
                }
                _ => {}
            }
            if counter == 0 || next(20) == 0 {
                counter += 1;
                begin(&mut history, counter, now);
            }
        }
        for counter in 1..=counter {
            for sequence in 1..=40 {
                let id = transaction(counter, sequence);
                match (history.lookup(id), plain.get(&id)) {
                    (Known::Commit(record), Some(_)) => {
                        committed += 1;
                        assert_eq!(record, decision(id));
                    }
                    (Known::Abort, None) => aborted += 1,
                    (Known::Hold(HoldReason::BeyondHorizon), None | Some(true)) => held += 1,
                    (known, plain) => panic!("{id}: {known:?}, but was decided {plain:?}"),
                }
            }
        }
        let open = plain.iter().filter(|(_, finished)| !**finished).map(|(id, _)| *id);
        assert!(history.unfinished().map(|record| record.transaction).eq(open));
    }
    assert!(held > 1000 && aborted > 1000 && committed > 1000, "{held} held, {aborted} aborted, {committed} committed");
}
