//! Opening a log whose folder holds anything: any bytes as segments, and a whole log of which any bytes are others.
//!
//! It never panics. A log that opens tells no decision that is not written in its newest segment; it goes on, decides, and is the same
//! after another opening, with a process that died in between.

#![no_main]

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use unanimous::env::disk::Disk as _;
use unanimous::log::FileLog;
use unanimous::{Decider as _, DecisionLog as _, DecisionRecord, Known, Note, Owner, Participant, TransactionId};
use unanimous_core::log::frame::{encode_beginning, encode_frame};
use unanimous_core::log::{Header, Record};
use unanimous_core::{Incarnation, LogId};
use unanimous_testing::disk::{TestDisk, TestEnv};

const LOG: &str = "log";
/// Shorter than what is written today, so that a case is quick; a log may always have been made with other options.
const LENGTH: usize = 1024;

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let disk = TestDisk::default();
    let newest = match how % 3 {
        0 => {
            put(&disk, 1, rest);
            rest.to_vec()
        }
        1 => {
            let (older, newer) = rest.split_at(rest.len() / 2);
            put(&disk, 1, older);
            put(&disk, 2, newer);
            newer.to_vec()
        }
        _ => {
            let bytes = changed(rest);
            put(&disk, 1, &bytes);
            bytes
        }
    };
    open(&disk, &newest);
});

/// The test's world does everything at once.
fn now<F: Future>(future: F) -> F::Output {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

fn put(disk: &TestDisk, number: u64, bytes: &[u8]) {
    let folder = disk.open_folder(Path::new(LOG), true).expect("the test disk");
    let file = folder.create(&format!("{number:010}.log")).expect("the test disk");
    file.preallocate(bytes.len() as u64).expect("the test disk");
    file.write_at(0, bytes).expect("the test disk");
}

fn decision(owner: Owner, sequence: u64) -> DecisionRecord {
    let participants = vec![Participant { number: 0, resource: "orders".into(), store: None }];
    DecisionRecord {
        transaction: owner.transaction(sequence),
        participants,
        decided_at: sequence,
        note: Note::default(),
    }
}

fn bytes_of(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes).expect("a short record");
    bytes
}

/// A whole segment, with these changes: three bytes each, a place and what is there.
fn changed(changes: &[u8]) -> Vec<u8> {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    let mut bytes = WHOLE
        .get_or_init(|| {
            let owner = Owner { log: LogId(42), incarnation: Incarnation::new(1, 3) };
            let Owner { log, incarnation } = owner;
            let header = Header { log, segment: 1, length: LENGTH as u64, incarnation, created_at: 1 };
            let begun = bytes_of(&Record::Incarnation { incarnation, started_at: 1 });
            let mut bytes = encode_beginning(&header, &begun, 1);
            for sequence in 1..=3 {
                let mut records = bytes_of(&Record::Commit(decision(owner, sequence)));
                let at = sequence;
                records.extend(bytes_of(&Record::Finished { transaction: owner.transaction(sequence - 1), at }));
                bytes.extend(encode_frame(header.salt(), bytes.len() as u64, &records, 2));
            }
            bytes.resize(LENGTH, 0);
            bytes
        })
        .clone();
    for change in changes.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]])) % LENGTH;
        bytes[place] ^= change[2];
    }
    bytes
}

fn open(disk: &TestDisk, newest: &[u8]) {
    let options = |disk: &TestDisk| {
        FileLog::options()
            .disk(Arc::new(disk.clone()))
            .env(TestEnv::new(1))
            .max_size(48 * 1024)
            .lock_wait(Duration::ZERO)
    };
    let before = disk.events();
    let Ok(log) = now(options(disk).open(LOG)) else {
        assert_eq!(disk.events(), before, "a refused opening changes nothing");
        return;
    };
    let unfinished = now(log.unfinished()).expect("an open log tells");
    for record in &unfinished {
        let bytes = bytes_of(&Record::Commit(record.clone()));
        assert!(newest.windows(bytes.len()).any(|there| there == bytes), "{record:?} is written nowhere");
        assert_eq!(now(log.lookup(record.transaction)).expect("an open log tells"), Known::Commit(record.clone()));
    }
    let first: TransactionId = log.owner().transaction(1);
    assert_eq!(now(log.lookup(first)).expect("an open log tells"), Known::Abort);
    let decided = now(log.decide(decision(log.owner(), 1))).is_ok();
    let log = now(options(&disk.after_kill()).open(LOG)).expect("what was opened once opens again");
    let mut expected = unfinished;
    if decided {
        expected.push(decision(first.owner(), 1));
    }
    expected.sort_by_key(|record| record.transaction);
    assert_eq!(now(log.unfinished()).expect("an open log tells"), expected);
}
