//! A segment's bytes, cut at every byte, with every bit flipped, torn at every sector.
//!
//! Two properties everywhere: what can be opened holds no decision that was never made, and every decision that was acknowledged is in
//! it; where that can't be, it can't be opened.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use unanimous_core::log::frame::{HEADER_LEN, encode_beginning, encode_frame, frame_len};
use unanimous_core::log::{
    DamageKind, DecodeError, FrameKind, Header, HeaderError, Record, ScannedSegment, Tail, scan,
};
use unanimous_core::{DecisionRecord, Incarnation, LogId, Note, Owner, Participant, TransactionId};

const LENGTH: usize = 2048;

fn owner() -> Owner {
    Owner { log: LogId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef), incarnation: Incarnation::new(3, 0x12_3456_789a) }
}

fn header() -> Header {
    let Owner { log, incarnation } = owner();
    Header { log, segment: 7, length: LENGTH as u64, incarnation, created_at: 1_700_000_000_000_000 }
}

fn commit(sequence: u64, resources: &[&str]) -> Record {
    let participant = |(number, resource): (usize, &&str)| Participant {
        number: number as u16,
        resource: (*resource).to_owned(),
        store: (number % 2 == 0).then(|| format!("store-{number}").parse().unwrap()),
    };
    let participants = resources.iter().enumerate().map(participant).collect();
    Record::Commit(DecisionRecord {
        transaction: owner().transaction(sequence),
        participants,
        decided_at: sequence * 10,
        note: Note::default(),
    })
}

fn finished(sequence: u64) -> Record {
    Record::Finished { transaction: owner().transaction(sequence), at: sequence * 100 }
}

fn bytes_of(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        record.encode(&mut bytes).unwrap();
    }
    bytes
}

/// What one sync after the other made durable.
fn groups() -> Vec<Vec<Record>> {
    vec![
        vec![commit(1, &["orders", "receipts"])],
        vec![commit(2, &[]), finished(1)],
        vec![commit(3, &["a", "b", "c"]), commit(4, &["orders", ""])],
        vec![finished(3)],
        vec![commit(5, &["orders", "receipts"]), finished(4), commit(6, &["x"])],
    ]
}

/// A segment, and where each of its frames begins and ends.
struct Image {
    bytes: Vec<u8>,
    frames: Vec<(usize, usize)>,
}

fn image() -> Image {
    let checkpoint = [
        Record::Folded { before: 2 },
        Record::Incarnation { incarnation: Incarnation::new(2, 5), started_at: 1 },
        Record::Floor { incarnation: Incarnation::new(2, 5), sequence: 40 },
        Record::Incarnation { incarnation: owner().incarnation, started_at: 2 },
    ];
    let mut bytes = encode_beginning(&header(), &bytes_of(&checkpoint), checkpoint.len() as u32);
    let mut frames = Vec::new();
    for group in groups() {
        let start = bytes.len();
        bytes.extend(encode_frame(header().salt(), start as u64, &bytes_of(&group), group.len() as u32));
        frames.push((start, bytes.len()));
    }
    assert!(bytes.len() < LENGTH);
    bytes.resize(LENGTH, 0);
    Image { bytes, frames }
}

fn commits<'a>(records: impl Iterator<Item = &'a Record>) -> BTreeSet<TransactionId> {
    let transaction = |record: &Record| match record {
        Record::Commit(record) => Some(record.transaction),
        _ => None,
    };
    records.filter_map(transaction).collect()
}

/// The decisions of the first frames.
fn decided(frames: usize) -> BTreeSet<TransactionId> {
    commits(groups()[..frames].iter().flatten())
}

fn read(segment: &ScannedSegment) -> BTreeSet<TransactionId> {
    commits(segment.frames.iter().flat_map(|frame| &frame.records))
}

/// What an opening would believe; none where it refuses.
fn open(bytes: &[u8]) -> Option<ScannedSegment> {
    scan(bytes).ok().filter(|segment| segment.damage.is_empty())
}

#[test]
fn a_whole_segment_gives_its_records_in_order() {
    let image = image();
    let segment = open(&image.bytes).unwrap();
    assert_eq!(segment.header, header());
    assert_eq!(segment.frames[0].kind, FrameKind::Checkpoint);
    assert_eq!(segment.frames[0].offset, HEADER_LEN as u64);
    let read: Vec<_> = segment.frames[1..].iter().map(|frame| frame.records.clone()).collect();
    assert_eq!(read, groups());
    let offsets: Vec<_> = segment.frames[1..].iter().map(|frame| frame.offset as usize).collect();
    assert_eq!(offsets, image.frames.iter().map(|frame| frame.0).collect::<Vec<_>>());
    assert_eq!((segment.end as usize, segment.tail, segment.single), (image.frames[4].1, None, None));
}

/// One flipped bit anywhere: in the last frame it is told from a torn write and nothing is lost; after the last frame it is cut off; and
/// anywhere before it is damage.
#[test]
fn every_bit_flipped() {
    let Image { bytes, frames } = image();
    let (last, end) = frames[4];
    for bit in 0..LENGTH * 8 {
        let byte = bit / 8;
        let mut flipped = bytes.clone();
        flipped[byte] ^= 1 << (bit % 8);
        let opened = open(&flipped);
        if byte < last {
            assert!(opened.is_none(), "bit {bit} of what was synced for sure");
            continue;
        }
        let opened = opened.unwrap_or_else(|| panic!("bit {bit} is above what any frame proves to be synced"));
        assert_eq!(read(&opened), decided(5), "bit {bit}");
        if byte < end {
            let bad = if byte < (last + end) / 2 { last } else { (last + end) / 2 };
            assert_eq!((opened.single, opened.tail), (Some(bad as u64), None), "bit {bit}");
        } else {
            assert_eq!(
                (opened.single, opened.tail),
                (None, Some(Tail { offset: end as u64, length: (byte - end) as u64 + 1 }))
            );
        }
    }
}

/// A file that was cut is shorter than its header says; nothing of it is believed.
#[test]
fn cut_at_every_byte() {
    let Image { bytes, .. } = image();
    for length in 0..LENGTH {
        match scan(&bytes[..length]) {
            Err(error) => assert!(length < HEADER_LEN, "{error} at {length}"),
            Ok(segment) => {
                assert!(segment.damage.iter().any(|damage| damage.kind == DamageKind::Cut), "cut at {length}")
            }
        }
    }
}

/// From each byte on nothing of the last write reached the disk; what was synced before is all there, and the last frame is there as a
/// whole or not at all.
#[test]
fn the_last_write_ends_at_every_byte() {
    let Image { bytes, frames } = image();
    for (done, &(start, end)) in frames.iter().enumerate() {
        for from in start..=end {
            let mut torn = bytes.clone();
            torn[from..].fill(0);
            let opened = open(&torn).unwrap_or_else(|| panic!("a write that ends at byte {from}"));
            let first_copy = torn[..start + (end - start) / 2] == bytes[..start + (end - start) / 2];
            assert_eq!(read(&opened), decided(done + usize::from(first_copy)), "a write that ends at byte {from}");
        }
    }
}

/// A power cut keeps any of the last write's sectors, in any combination; each sector is as it was or as it was to be.
#[test]
fn every_combination_of_the_last_writes_sectors() {
    const SECTOR: usize = 32;
    let Image { bytes, frames } = image();
    for (done, &(start, end)) in frames.iter().enumerate() {
        let sectors: Vec<usize> = (start / SECTOR..end.div_ceil(SECTOR)).collect();
        let mut believed = 0;
        for kept in 0..1_u32 << sectors.len() {
            let mut torn = bytes.clone();
            torn[start..].fill(0);
            for (place, sector) in sectors.iter().enumerate().filter(|(place, _)| kept & (1 << place) != 0) {
                let _ = place;
                let (from, to) = ((sector * SECTOR).max(start), ((sector + 1) * SECTOR).min(end));
                torn[from..to].copy_from_slice(&bytes[from..to]);
            }
            let opened = open(&torn).expect("a torn last write is no damage");
            let found = read(&opened);
            assert!(found == decided(done) || found == decided(done + 1), "sectors {kept:b} of frame {done}");
            assert_eq!(opened.frames.len() - 1, done + usize::from(opened.end as usize == end));
            believed += u32::from(opened.end as usize == end);
        }
        assert!(believed > 2, "each copy alone is believed, whatever is left of the other");
    }
}

/// A frame that others follow is gone, in whole or one copy of it: damage, and what can be read is still shown.
#[test]
fn a_frame_below_others_is_gone() {
    let Image { bytes, frames } = image();
    for (place, &(start, end)) in frames[..4].iter().enumerate() {
        let middle = (start + end) / 2;
        for (from, to, kind) in
            [(start, end, DamageKind::Frame), (start, middle, DamageKind::Copy), (middle, end, DamageKind::Copy)]
        {
            let mut damaged = bytes.clone();
            damaged[from..to].fill(0);
            let segment = scan(&damaged).unwrap();
            assert_eq!(segment.damage.len(), 1);
            let damage = &segment.damage[0];
            assert_eq!(
                (damage.offset as usize, damage.end as usize, &damage.kind),
                (from, if kind == DamageKind::Copy { end } else { to }, &kind)
            );
            let lost = usize::from(kind == DamageKind::Frame);
            assert_eq!(segment.frames.len(), 6 - lost, "frame {place}");
        }
    }
}

/// A frame is gone, and the first copy of the one behind it: the second one is not taken for the frame that is gone.
#[test]
fn a_frame_and_half_of_the_next_are_gone() {
    let Image { bytes, frames } = image();
    for (place, pair) in frames.windows(2).enumerate() {
        let [(start, _), (next, end)] = [pair[0], pair[1]];
        let mut damaged = bytes.clone();
        damaged[start..(next + end) / 2].fill(0);
        let segment = scan(&damaged).unwrap();
        assert_eq!(segment.damage[0].kind, DamageKind::Frame, "frame {place}");
        assert_eq!(segment.damage[0].offset as usize, start);
        let offsets: Vec<_> = segment.frames[1..].iter().map(|frame| frame.offset as usize).collect();
        let kept: Vec<_> = frames.iter().map(|frame| frame.0).filter(|&offset| offset != start).collect();
        assert_eq!(offsets, kept, "frame {place}");
    }
}

/// Without its checkpoint a segment can't be believed, and what follows is shown all the same; a frame in the checkpoint's place is none.
#[test]
fn a_checkpoint_that_is_gone_is_damage_up_to_the_next_frame() {
    let Image { bytes, frames } = image();
    let first = frames[0].0;
    let mut damaged = bytes.clone();
    damaged[HEADER_LEN..first].fill(0);
    let segment = scan(&damaged).unwrap();
    let damage: Vec<_> = segment.damage.iter().map(|damage| (damage.offset as usize, damage.end as usize)).collect();
    assert_eq!((damage, &segment.damage[0].kind), (vec![(HEADER_LEN, first)], &DamageKind::Checkpoint));
    assert_eq!(segment.frames.len(), 5);

    let frame = encode_frame(header().salt(), HEADER_LEN as u64, &bytes_of(&[finished(1)]), 1);
    let mut misplaced = bytes[..HEADER_LEN].to_vec();
    misplaced.extend(&frame);
    misplaced.resize(LENGTH, 0);
    let segment = scan(&misplaced).unwrap();
    let damage = &segment.damage[0];
    assert_eq!(damage.kind, DamageKind::Checkpoint);
    assert_eq!((damage.offset as usize, damage.end as usize), (HEADER_LEN, HEADER_LEN + frame.len() / 2));
}

/// As many participants, and names as long, as a record can hold.
#[test]
fn the_largest_decision_is_held() {
    let with = |names: &[usize]| {
        let participant = |(number, length): (usize, &usize)| Participant {
            number: number as u16,
            resource: "x".repeat(*length),
            store: None,
        };
        let participants = names.iter().enumerate().map(participant).collect();
        let transaction = owner().transaction(1);
        Record::Commit(DecisionRecord { transaction, participants, decided_at: 0, note: Note::default() })
    };
    for (names, held) in [(vec![0; 65535], true), (vec![0; 65536], false), (vec![255], true), (vec![0, 256], false)] {
        let record = with(&names);
        let mut bytes = Vec::new();
        assert_eq!(record.encode(&mut bytes).is_ok(), held, "{} participants", names.len());
        match held {
            true => assert_eq!(Record::decode_all(owner().log, &bytes, 1).unwrap(), [record]),
            false => assert_eq!(bytes, [], "nothing of it is written"),
        }
    }
}

/// What another segment, another incarnation or another place left behind is no frame here.
#[test]
fn stale_bytes_are_no_frame() {
    let Image { bytes, frames } = image();
    let end = frames[4].1;
    let invented = bytes_of(&[commit(99, &["never"])]);
    let mut others = [header(); 3];
    others[0].segment -= 1;
    others[1].incarnation.nonce ^= 1;
    others[2].log.0 ^= 1;
    let mut stale: Vec<_> = others.iter().map(|other| encode_frame(other.salt(), end as u64, &invented, 1)).collect();
    stale.push(encode_frame(header().salt(), end as u64 + 8, &invented, 1));
    stale.push(encode_frame(header().salt(), frames[0].0 as u64, &invented, 1));
    for stale in stale {
        let mut with = bytes.clone();
        with[end..end + stale.len()].copy_from_slice(&stale);
        let opened = open(&with).unwrap();
        assert_eq!(read(&opened), decided(5));
        assert_eq!(opened.tail.unwrap().offset, end as u64);
    }
    let real = encode_frame(header().salt(), end as u64, &invented, 1);
    let mut with = bytes.clone();
    with[end..end + real.len()].copy_from_slice(&real);
    assert_eq!(read(&open(&with).unwrap()).len(), decided(5).len() + 1, "the test's own frames are frames");
}

/// Damage of any shape invents nothing, and hides at most the last frame, which alone no later frame proves.
#[test]
fn random_damage_invents_nothing() {
    let Image { bytes, frames } = image();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let (mut opened, mut refused) = (0, 0);
    for round in 0..4_000 {
        let mut damaged = bytes.clone();
        let (from, length) = (next(frames[4].1), 1 + next(300));
        let to = (from + length).min(LENGTH);
        match round % 3 {
            0 => damaged[from..to].fill(0),
            1 => damaged[from..to].iter_mut().for_each(|byte| *byte = next(256) as u8),
            _ => damaged.copy_within(from..to, next(LENGTH - (to - from))),
        }
        match open(&damaged) {
            None => refused += 1,
            Some(segment) => {
                opened += 1;
                let found = read(&segment);
                assert!(found.is_subset(&decided(5)), "round {round} invents");
                assert!(found.is_superset(&decided(4)), "round {round} hides what a later frame proved");
            }
        }
    }
    assert!(opened > 100 && refused > 100, "{opened} opened, {refused} refused: both are looked at");
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let Image { bytes, .. } = image();
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert_eq!(scan(&newer), Err(HeaderError::Damaged), "without its checksum it is a flipped bit");
    let sum = twox_hash::XxHash3_64::oneshot(&newer[..HEADER_LEN - 8]);
    newer[HEADER_LEN - 8..HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(scan(&newer), Err(HeaderError::Newer { version: 2 }));
    assert!(scan(&newer).unwrap_err().to_string().contains("written by a newer version"));

    let frame = encode_frame(header().salt(), image().frames[4].1 as u64, &[77, 0, 0, 0, 0], 1);
    let mut unknown = bytes;
    unknown[image().frames[4].1..][..frame.len()].copy_from_slice(&frame);
    let segment = scan(&unknown).unwrap();
    assert!(segment.damage[0].to_string().contains("written by a newer version"), "{}", segment.damage[0]);
}

#[test]
fn other_files_are_no_logs() {
    assert_eq!(scan(b""), Err(HeaderError::NotALog));
    assert_eq!(scan(&[0; LENGTH]), Err(HeaderError::NotALog));
    assert_eq!(scan("a letter to a friend ".repeat(100).as_bytes()), Err(HeaderError::NotALog));
    let Image { bytes, .. } = image();
    let text = String::from_utf8_lossy(&bytes).replace('\n', "\r\n");
    assert_eq!(scan(text.as_bytes()), Err(HeaderError::Damaged), "a log that was copied as text");
}

/// A decision with a note: the bytes of one with every field, which stay as they are; and what is none of ours.
#[test]
fn a_noted_decision_is_a_kind_of_its_own() {
    let Record::Commit(plain) = commit(5, &["orders"]) else { unreachable!() };
    let noted = Record::Commit(DecisionRecord { note: Note::new("by / ada: räksmörgås"), ..plain.clone() });
    let bytes = bytes_of(std::slice::from_ref(&noted));
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = [
        "0648000000",
        "03000000",
        "9a78563412000000",
        "0500000000000000",
        "3200000000000000",
        "0100",
        "0000066f7264657273",
        "0773746f72652d30",
        "1700",
        "6279202f206164613a2072c3a46b736dc3b67267c3a573",
    ];
    assert_eq!(text, expected.concat());
    assert_eq!(bytes.len(), noted.encoded_len());
    let decode = |bytes: &[u8]| Record::decode_all(owner().log, bytes, 1);
    assert_eq!(decode(&bytes).unwrap(), [noted]);

    // Everything before the note, with another note behind it.
    let with = |length: u16, note: &[u8]| {
        let mut bytes = bytes[..bytes.len() - 25].to_vec();
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(note);
        let body = u32::try_from(bytes.len() - 5).unwrap();
        bytes[1..5].copy_from_slice(&body.to_le_bytes());
        bytes
    };
    let longest = vec![b'n'; Note::MOST];
    let longest = decode(&with(512, &longest)).unwrap();
    assert_eq!(longest, [Record::Commit(DecisionRecord { note: Note::new("n".repeat(600)), ..plain })]);
    for (length, note) in
        [(0, &b""[..]), (513, &[b'n'; 513]), (3, b"no"), (1, b"no"), (2, &[0xc3, 0x28]), (u16::MAX, b"no")]
    {
        assert_eq!(decode(&with(length, note)), Err(DecodeError::Malformed { kind: 6 }), "{length} {note:?}");
    }
}

/// An abort is a kind of its own, with a commit's body and no note.
#[test]
fn a_decision_to_abort_is_a_kind_of_its_own() {
    let Record::Commit(decided) = commit(7, &["orders", "billing"]) else { panic!("not a decision") };
    let bytes = bytes_of(&[Record::Abort(DecisionRecord { note: Note::new("by ada"), ..decided.clone() })]);
    assert_eq!(bytes.len(), Record::Abort(decided.clone()).encoded_len());
    let as_commit = bytes_of(&[Record::Commit(decided.clone())]);
    assert_eq!((bytes[0], &bytes[1..]), (7, &as_commit[1..]));
    assert_eq!(Record::decode_all(owner().log, &bytes, 1).unwrap(), [Record::Abort(decided)]);
    for length in 0..bytes.len() {
        assert!(Record::decode_all(owner().log, &bytes[..length], 1).is_err(), "{length} bytes");
    }
}

/// A note is cut between two characters.
#[test]
fn a_note_is_cut_at_a_character() {
    assert_eq!(Note::new("ä".repeat(256)).as_str(), "ä".repeat(256));
    assert_eq!(Note::new(format!("x{}", "ä".repeat(256))).as_str(), format!("x{}", "ä".repeat(255)));
    assert!(Note::new("").is_empty() && Note::default().is_empty() && !Note::new(" ").is_empty());
}

/// The bytes of a log that the first version wrote; it must be readable for ever. Never change the constant: a new format gets a new
/// version, a test of its own, and this one stays.
#[test]
fn version_1_is_readable_for_ever() {
    let Image { bytes, frames } = image();
    let fixture: Vec<u8> = include_str!("log_v1.hex")
        .split_whitespace()
        .flat_map(|line| (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()))
        .collect();
    let mut segment = fixture.clone();
    segment.resize(LENGTH, 0);
    let read: Vec<_> = open(&segment).unwrap().frames.into_iter().skip(1).map(|frame| frame.records).collect();
    assert_eq!(read, groups());
    assert_eq!(fixture, bytes[..frames[4].1], "and what is written today is the same");
    assert_eq!(frame_len(0), 64);
}
