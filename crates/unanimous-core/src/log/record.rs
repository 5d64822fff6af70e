//! The log's records and their bytes.
//!
//! Must not know frames, or what records add up to.
//!
//! A record is a kind (one byte), the length of its body (four bytes) and the body; all numbers are little-endian. The log's id is
//! not repeated in each record: a log holds its own transactions only.

use std::error::Error;
use std::fmt;

use crate::decider::{DecisionRecord, Note, Participant};
use crate::outcome::Decision;
use crate::xid::{Incarnation, LogId, MAX_SEQUENCE, StoreId, TransactionId};

const KIND_INCARNATION: u8 = 1;
const KIND_COMMIT: u8 = 2;
const KIND_FINISHED: u8 = 3;
const KIND_FLOOR: u8 = 4;
const KIND_FOLDED: u8 = 5;
/// A decision without a note keeps its own kind, so that a version that knows no notes can read it.
const KIND_NOTED_COMMIT: u8 = 6;
const KIND_ABORT: u8 = 7;

/// Kind and length.
const PREFIX: usize = 5;
const INCARNATION: usize = 12;
const TRANSACTION: usize = INCARNATION + 8;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// The log was opened by a new owner (rule 4).
    Incarnation {
        /// Who.
        incarnation: Incarnation,
        /// When: microseconds since 1970, UTC.
        started_at: u64,
    },
    /// A decision to commit.
    Commit(DecisionRecord),
    /// A decision to abort, of a transaction that lists its participants in its branches' ids: aborts of others are presumed. It has no note.
    Abort(DecisionRecord),
    /// Every branch of a decided transaction is confirmed.
    Finished {
        /// The transaction.
        transaction: TransactionId,
        /// When: microseconds since 1970, UTC.
        at: u64,
    },
    /// Of this incarnation nothing is presumed up to this sequence number: finished decisions up to there were dropped.
    Floor {
        /// The incarnation.
        incarnation: Incarnation,
        /// The highest sequence number that was dropped.
        sequence: u64,
    },
    /// Nothing is presumed of any incarnation with a counter below this: the log has forgotten them.
    Folded {
        /// The first counter that is still known.
        before: u32,
    },
}

/// A decision that no log can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// A resource's name has more than 255 bytes.
    ResourceTooLong {
        /// Its first characters.
        resource: String,
    },
    /// More participants than a branch's number can tell apart.
    TooManyParticipants {
        /// How many.
        count: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::ResourceTooLong { resource } => {
                write!(f, "the resource's name {resource:?}... has more than 255 bytes; give it a shorter one")
            }
            EncodeError::TooManyParticipants { count } => {
                write!(f, "{count} participants are more than the 65535 that a decision can list")
            }
        }
    }
}

impl Error for EncodeError {}

/// Bytes with a valid checksum that are no records: another program wrote them, or a newer version.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// A kind of record that this version does not know.
    UnknownKind(u8),
    /// The body is not what its kind says.
    Malformed {
        /// The kind.
        kind: u8,
    },
    /// The records don't fill their frame exactly.
    Length,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::UnknownKind(kind) => {
                write!(
                    f,
                    "a record of kind {kind}: the log was written by a newer version; use that version or a newer one"
                )
            }
            DecodeError::Malformed { kind } => write!(f, "a record of kind {kind} that is not one"),
            DecodeError::Length => f.write_str("records that don't fill their frame"),
        }
    }
}

impl Error for DecodeError {}

/// Whether a log can hold this decision.
///
/// # Errors
///
/// When a name or the list is too long.
pub fn check(record: &DecisionRecord) -> Result<(), EncodeError> {
    if record.participants.len() > usize::from(u16::MAX) {
        return Err(EncodeError::TooManyParticipants { count: record.participants.len() });
    }
    match record.participants.iter().find(|participant| participant.resource.len() > usize::from(u8::MAX)) {
        Some(participant) => {
            Err(EncodeError::ResourceTooLong { resource: participant.resource.chars().take(40).collect() })
        }
        None => Ok(()),
    }
}

/// The bytes that a decision's record takes.
pub(crate) fn decision_len(record: &DecisionRecord, decision: Decision) -> usize {
    let participants: usize = record.participants.iter().map(participant_len).sum();
    let note = if has_note(record, decision) { 2 + record.note.as_str().len() } else { 0 };
    PREFIX + TRANSACTION + 8 + 2 + participants + note
}

fn has_note(record: &DecisionRecord, decision: Decision) -> bool {
    decision == Decision::Commit && !record.note.is_empty()
}

/// The bytes that a [`Record::Finished`] takes.
pub(crate) const FINISHED_LEN: usize = PREFIX + TRANSACTION + 8;
/// The bytes that a [`Record::Incarnation`] takes.
pub(crate) const INCARNATION_LEN: usize = PREFIX + INCARNATION + 8;
/// The bytes that a [`Record::Floor`] takes.
pub(crate) const FLOOR_LEN: usize = PREFIX + INCARNATION + 8;
/// The bytes that a [`Record::Folded`] takes.
pub(crate) const FOLDED_LEN: usize = PREFIX + 4;

fn participant_len(participant: &Participant) -> usize {
    2 + 1 + participant.resource.len() + 1 + participant.store.as_ref().map_or(0, |store| store.as_str().len())
}

impl Record {
    /// The bytes that the record takes.
    pub fn encoded_len(&self) -> usize {
        match self {
            Record::Incarnation { .. } => INCARNATION_LEN,
            Record::Commit(record) => decision_len(record, Decision::Commit),
            Record::Abort(record) => decision_len(record, Decision::Abort),
            Record::Finished { .. } => FINISHED_LEN,
            Record::Floor { .. } => FLOOR_LEN,
            Record::Folded { .. } => FOLDED_LEN,
        }
    }

    /// Appends the record's bytes.
    ///
    /// # Errors
    ///
    /// When [`check`] refuses the decision; nothing is appended then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Record::Commit(record) => return encode_decision(record, Decision::Commit, out),
            Record::Abort(record) => return encode_decision(record, Decision::Abort, out),
            _ => {}
        }
        put_prefix(out, self.kind(), self.encoded_len());
        match self {
            Record::Commit(_) | Record::Abort(_) => {}
            Record::Incarnation { incarnation, started_at } => {
                put_incarnation(out, *incarnation);
                out.extend_from_slice(&started_at.to_le_bytes());
            }
            Record::Finished { transaction, at } => {
                put_transaction(out, *transaction);
                out.extend_from_slice(&at.to_le_bytes());
            }
            Record::Floor { incarnation, sequence } => {
                put_incarnation(out, *incarnation);
                out.extend_from_slice(&sequence.to_le_bytes());
            }
            Record::Folded { before } => out.extend_from_slice(&before.to_le_bytes()),
        }
        Ok(())
    }

    fn kind(&self) -> u8 {
        match self {
            Record::Incarnation { .. } => KIND_INCARNATION,
            Record::Commit(record) => decision_kind(record, Decision::Commit),
            Record::Abort(record) => decision_kind(record, Decision::Abort),
            Record::Finished { .. } => KIND_FINISHED,
            Record::Floor { .. } => KIND_FLOOR,
            Record::Folded { .. } => KIND_FOLDED,
        }
    }

    /// The records of one frame of `log`, which must fill `bytes` exactly.
    ///
    /// # Errors
    ///
    /// When the bytes are no records, or records of a newer version.
    pub fn decode_all(log: LogId, bytes: &[u8], count: u32) -> Result<Vec<Record>, DecodeError> {
        let mut reader = Reader { log, bytes };
        let mut records = Vec::new();
        for _ in 0..count {
            records.push(reader.record()?);
        }
        if reader.bytes.is_empty() { Ok(records) } else { Err(DecodeError::Length) }
    }
}

fn put_prefix(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(kind);
    let body = u32::try_from(length - PREFIX).expect("65535 participants of 300 bytes fit");
    out.extend_from_slice(&body.to_le_bytes());
}

fn put_incarnation(out: &mut Vec<u8>, incarnation: Incarnation) {
    out.extend_from_slice(&incarnation.counter.to_le_bytes());
    out.extend_from_slice(&incarnation.nonce.to_le_bytes());
}

fn put_transaction(out: &mut Vec<u8>, transaction: TransactionId) {
    put_incarnation(out, transaction.incarnation);
    out.extend_from_slice(&transaction.sequence.to_le_bytes());
}

fn decision_kind(record: &DecisionRecord, decision: Decision) -> u8 {
    match decision {
        Decision::Abort => KIND_ABORT,
        Decision::Commit if has_note(record, decision) => KIND_NOTED_COMMIT,
        Decision::Commit => KIND_COMMIT,
    }
}

/// Appends the bytes of a decision's record, as [`Record::encode`] does.
pub(crate) fn encode_decision(
    record: &DecisionRecord,
    decision: Decision,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    check(record)?;
    put_prefix(out, decision_kind(record, decision), decision_len(record, decision));
    put_transaction(out, record.transaction);
    out.extend_from_slice(&record.decided_at.to_le_bytes());
    let count = u16::try_from(record.participants.len()).expect("just checked");
    out.extend_from_slice(&count.to_le_bytes());
    for participant in &record.participants {
        out.extend_from_slice(&participant.number.to_le_bytes());
        put_text(out, &participant.resource);
        put_text(out, participant.store.as_ref().map_or("", StoreId::as_str));
    }
    if has_note(record, decision) {
        let length = u16::try_from(record.note.as_str().len()).expect("a note has at most 512 bytes");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(record.note.as_str().as_bytes());
    }
    Ok(())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("names are checked before, a store's id has at most 40 bytes"));
    out.extend_from_slice(text.as_bytes());
}

struct Reader<'a> {
    log: LogId,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn record(&mut self) -> Result<Record, DecodeError> {
        let &[kind] = self.array().ok_or(DecodeError::Length)?;
        let length = self.u32().ok_or(DecodeError::Length)?;
        let body = self.take(length as usize).ok_or(DecodeError::Length)?;
        let mut body = Reader { log: self.log, bytes: body };
        let malformed = DecodeError::Malformed { kind };
        let record = match kind {
            KIND_INCARNATION => body.incarnation_record(),
            KIND_COMMIT => body.commit().map(Record::Commit),
            KIND_NOTED_COMMIT => body.noted_commit().map(Record::Commit),
            KIND_FINISHED => body.finished(),
            KIND_FLOOR => body.floor(),
            KIND_ABORT => body.commit().map(Record::Abort),
            KIND_FOLDED => body.u32().map(|before| Record::Folded { before }),
            unknown => return Err(DecodeError::UnknownKind(unknown)),
        };
        record.filter(|_| body.bytes.is_empty()).ok_or(malformed)
    }

    fn incarnation_record(&mut self) -> Option<Record> {
        Some(Record::Incarnation { incarnation: self.incarnation()?, started_at: self.u64()? })
    }

    fn finished(&mut self) -> Option<Record> {
        Some(Record::Finished { transaction: self.transaction()?, at: self.u64()? })
    }

    fn floor(&mut self) -> Option<Record> {
        Some(Record::Floor { incarnation: self.incarnation()?, sequence: self.u64()? })
    }

    fn noted_commit(&mut self) -> Option<DecisionRecord> {
        let record = self.commit()?;
        let length = self.u16()?;
        let text = std::str::from_utf8(self.take(usize::from(length))?).ok()?;
        let note = Note::new(text);
        // One record has one form: an empty or longer note was not written by us.
        (!text.is_empty() && note.as_str() == text).then_some(DecisionRecord { note, ..record })
    }

    fn commit(&mut self) -> Option<DecisionRecord> {
        let transaction = self.transaction()?;
        let decided_at = self.u64()?;
        let count = self.u16()?;
        let mut participants = Vec::with_capacity(usize::from(count).min(64));
        for _ in 0..count {
            let number = self.u16()?;
            let resource = self.text()?.to_owned();
            let store = match self.text()? {
                "" => None,
                store => Some(store.parse().ok()?),
            };
            participants.push(Participant { number, resource, store });
        }
        Some(DecisionRecord { transaction, participants, decided_at, note: Note::default() })
    }

    fn transaction(&mut self) -> Option<TransactionId> {
        let incarnation = self.incarnation()?;
        let sequence = self.u64().filter(|&sequence| sequence <= MAX_SEQUENCE)?;
        Some(TransactionId { log: self.log, incarnation, sequence })
    }

    fn incarnation(&mut self) -> Option<Incarnation> {
        let (counter, nonce) = (self.u32()?, self.u64()?);
        Some(Incarnation::new(counter, nonce)).filter(|incarnation| incarnation.nonce == nonce)
    }

    fn text(&mut self) -> Option<&'a str> {
        let &[length] = self.array()?;
        std::str::from_utf8(self.take(usize::from(length))?).ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().copied().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().copied().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().copied().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (first, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(first)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(first)
    }
}
