//! The log's decoder: any bytes as a segment, as the inside of frames whose checksums are right, and as records.
//!
//! It never panics; what it reads is what the encoder writes for it, byte for byte; and what the records add up to is rebuilt from its own
//! checkpoint.

#![no_main]

use libfuzzer_sys::fuzz_target;
use unanimous_core::log::frame::{copy_len, encode_beginning, encode_frame};
use unanimous_core::log::{FrameKind, Header, History, Record, ScannedSegment, scan};
use unanimous_core::{Incarnation, LogId};

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    match how % 3 {
        0 => segment(rest),
        1 => segment(&framed(rest)),
        _ => records(rest),
    }
});

fn header() -> Header {
    let incarnation = Incarnation::new(2, 3);
    Header { log: LogId(42), segment: 1, length: 4096, incarnation, created_at: 1 }
}

/// Pieces of these bytes as a checkpoint and frames with right checksums; a piece begins with its length and its count of records, and a count
/// above 200 damages its frame.
fn framed(mut bytes: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    while let [length, count, rest @ ..] = bytes {
        let (records, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = rest;
        if segment.is_empty() {
            segment = encode_beginning(&header(), records, u32::from(*count));
            continue;
        }
        let start = segment.len();
        segment.extend(encode_frame(header().salt(), start as u64, records, u32::from(*count % 200)));
        if *count >= 200 {
            let damaged = start + usize::from(*count - 200) * (segment.len() - start) / 56;
            segment[damaged] ^= 1;
        }
    }
    let length = segment.len().max(4096);
    segment.resize(length, 0);
    segment
}

fn segment(bytes: &[u8]) {
    let Ok(found) = scan(bytes) else { return };
    for frame in &found.frames {
        let mut records = Vec::new();
        for record in &frame.records {
            record.encode(&mut records).expect("what was decoded can be encoded");
        }
        let (offset, copy) = (frame.offset as usize, copy_len(records.len()));
        let count = frame.records.len() as u32;
        let there = match frame.kind {
            FrameKind::Checkpoint => {
                let beginning = encode_beginning(&found.header, &records, count);
                beginning[offset..] == bytes[offset..offset + copy]
            }
            FrameKind::Synced => {
                let both = encode_frame(found.header.salt(), frame.offset, &records, count);
                let copies = [(offset, &both[..copy]), (offset + copy, &both[copy..])];
                copies.iter().any(|(at, copy)| bytes.get(*at..at + copy.len()) == Some(copy))
            }
        };
        assert!(there, "the frame at {offset} is not what its records are written as");
    }
    assert!(found.end as usize <= bytes.len());
    if found.damage.is_empty() {
        add_up(&found);
    }
}

fn add_up(found: &ScannedSegment) {
    let mut history = History::new(found.header.log);
    for record in found.frames.iter().flat_map(|frame| &frame.records) {
        if history.apply(record.clone()).is_err() {
            return;
        }
    }
    let (bytes, count) = history.checkpoint();
    assert_eq!(bytes.len(), history.bytes());
    let mut rebuilt = History::new(found.header.log);
    for record in Record::decode_all(found.header.log, &bytes, count).expect("a checkpoint can be read") {
        rebuilt.apply(record).expect("a checkpoint contradicts nothing");
    }
    assert_eq!(rebuilt, history);
}

fn records(bytes: &[u8]) {
    let Some((&count, bytes)) = bytes.split_first() else { return };
    let Ok(records) = Record::decode_all(LogId(42), bytes, u32::from(count)) else { return };
    let mut again = Vec::new();
    for record in &records {
        record.encode(&mut again).expect("what was decoded can be encoded");
    }
    assert_eq!(again, bytes, "one record has one form");
}
