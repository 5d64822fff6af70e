//! The header of a segment, and the frame: what one sync covers.
//!
//! Must not know what is in the records, nor where the bytes are kept.
//!
//! All numbers are little-endian; offsets count from the segment's beginning; frames begin at multiples of [`ALIGN`].

use std::error::Error;
use std::fmt;

use twox_hash::XxHash3_64;

use crate::xid::{Incarnation, LogId};

/// The first bytes of every segment, whatever its version. The line feed shows a file that was copied as text.
pub const MAGIC: [u8; 8] = *b"unanlog\n";
/// The format that this version writes.
pub const VERSION: u32 = 1;
/// The length of a segment's header.
pub const HEADER_LEN: usize = 128;
/// Frames and their copies begin at multiples of this.
pub const ALIGN: usize = 8;
/// The length of what stands before the records in each copy of a frame.
pub const FRAME_HEADER_LEN: usize = 32;

const HEADER_SUM: usize = HEADER_LEN - 8;

/// The first bytes of a segment: which log it is of, and who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The log.
    pub log: LogId,
    /// The segment's number, from 1; the highest one is the log, older ones are superseded.
    pub segment: u64,
    /// The segment's length in bytes, preallocated.
    pub length: u64,
    /// Who wrote it: a segment has one writer.
    pub incarnation: Incarnation,
    /// When: microseconds since 1970, UTC.
    pub created_at: u64,
}

/// Why bytes are not a segment's header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderError {
    /// It does not begin as a segment does: another file.
    NotALog,
    /// It begins as a segment does, but is damaged.
    Damaged,
    /// A format that this version does not know.
    Newer {
        /// The format's version.
        version: u32,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::NotALog => f.write_str("not a segment of a decision log"),
            HeaderError::Damaged => f.write_str("the segment's header is damaged"),
            HeaderError::Newer { version } => write!(
                f,
                "the log has format {version}, this version knows {VERSION}: it was written by a newer version; use that one or a newer one"
            ),
        }
    }
}

impl Error for HeaderError {}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(HEADER_LEN as u32).to_le_bytes());
        bytes[16..32].copy_from_slice(&self.log.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.segment.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.length.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.incarnation.counter.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.incarnation.nonce.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.created_at.to_le_bytes());
        let sum = XxHash3_64::oneshot(&bytes[..HEADER_SUM]);
        bytes[HEADER_SUM..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The header of a segment that begins with these bytes.
    ///
    /// # Errors
    ///
    /// When they are no header, damaged, or of a newer version. The checksum comes before the version, so that a damaged
    /// version is not taken for a newer one; every version keeps it at the same place.
    pub fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(if bytes.starts_with(&MAGIC) { HeaderError::Damaged } else { HeaderError::NotALog });
        };
        let sum = XxHash3_64::oneshot(&bytes[..HEADER_SUM]);
        if sum != number(bytes, HEADER_SUM) {
            // One flipped bit in the magic must not make a log look like somebody else's file.
            let alike = bytes.iter().zip(MAGIC).filter(|(found, magic)| *found == magic).count();
            return Err(if alike >= MAGIC.len() / 2 { HeaderError::Damaged } else { HeaderError::NotALog });
        }
        if bytes[..8] != MAGIC {
            return Err(HeaderError::NotALog);
        }
        match u32::from_le_bytes(array(bytes, 8)) {
            VERSION => {}
            version => return Err(HeaderError::Newer { version }),
        }
        Ok(Header {
            log: LogId(u128::from_le_bytes(array(bytes, 16))),
            segment: number(bytes, 32),
            length: number(bytes, 40),
            incarnation: Incarnation { counter: u32::from_le_bytes(array(bytes, 48)), nonce: number(bytes, 56) },
            created_at: number(bytes, 64),
        })
    }

    /// What the checksums of this segment's frames are salted with.
    pub fn salt(&self) -> SegmentSalt {
        let mut bytes = [0; 36];
        bytes[0..16].copy_from_slice(&self.log.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.segment.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.incarnation.counter.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.incarnation.nonce.to_le_bytes());
        SegmentSalt(XxHash3_64::oneshot(&bytes))
    }
}

/// The seed of a segment's checksums, made of log, segment and incarnation: bytes that an earlier segment left on the disk are
/// never taken for a frame of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSalt(u64);

/// Which copy of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The records that rebuild what was known when the segment was created: one copy, synced before the segment has its name.
    Checkpoint,
    /// The first of the two copies of a frame.
    First,
    /// The second.
    Second,
}

impl Mark {
    fn bytes(self) -> [u8; 4] {
        match self {
            Mark::Checkpoint => *b"ckpt",
            Mark::First => *b"frmA",
            Mark::Second => *b"frmB",
        }
    }

    fn of(bytes: [u8; 4]) -> Option<Mark> {
        [Mark::Checkpoint, Mark::First, Mark::Second].into_iter().find(|mark| mark.bytes() == bytes)
    }
}

/// The bytes that one copy of a frame takes, for records of this length.
pub fn copy_len(records: usize) -> usize {
    (FRAME_HEADER_LEN + records).next_multiple_of(ALIGN)
}

/// The bytes that a frame (both copies) takes, for records of this length.
pub fn frame_len(records: usize) -> usize {
    2 * copy_len(records)
}

/// A frame that begins at `start`, both copies: to be written at once, when everything before `start` is synced.
///
/// # Panics
///
/// When the records have 4 GiB or more.
pub fn encode_frame(salt: SegmentSalt, start: u64, records: &[u8], count: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame_len(records.len()));
    put_copy(&mut bytes, salt, Mark::First, start, records, count);
    put_copy(&mut bytes, salt, Mark::Second, start, records, count);
    bytes
}

/// A new segment's first bytes: header and checkpoint.
///
/// # Panics
///
/// When the records have 4 GiB or more.
pub fn encode_beginning(header: &Header, records: &[u8], count: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + copy_len(records.len()));
    bytes.extend_from_slice(&header.encode());
    put_copy(&mut bytes, header.salt(), Mark::Checkpoint, HEADER_LEN as u64, records, count);
    bytes
}

fn put_copy(bytes: &mut Vec<u8>, salt: SegmentSalt, mark: Mark, start: u64, records: &[u8], count: u32) {
    let length = u32::try_from(records.len()).expect("a frame has less than 4 GiB");
    let begin = bytes.len();
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&mark.bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&start.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(records);
    bytes.resize(begin + copy_len(records.len()), 0);
    // The padding is covered too, so that no bit of a frame can flip unseen.
    let sum = XxHash3_64::oneshot_with_seed(salt.0, &bytes[begin + 8..]);
    bytes[begin..begin + 8].copy_from_slice(&sum.to_le_bytes());
}

/// One valid copy of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameCopy<'a> {
    pub(crate) mark: Mark,
    /// Where the frame begins; everything before was synced when it was written.
    pub(crate) start: usize,
    pub(crate) count: u32,
    pub(crate) records: &'a [u8],
}

impl FrameCopy<'_> {
    pub(crate) fn len(&self) -> usize {
        copy_len(self.records.len())
    }
}

/// The copy at this offset, if a valid one is there that says so itself.
pub(crate) fn copy_at(segment: &[u8], salt: SegmentSalt, offset: usize) -> Option<FrameCopy<'_>> {
    let bytes = segment.get(offset..)?;
    let header = bytes.first_chunk::<FRAME_HEADER_LEN>()?;
    let mark = Mark::of(array(header, 8))?;
    let length = usize::try_from(u32::from_le_bytes(array(header, 12))).ok()?;
    let start = usize::try_from(number(header, 16)).ok()?;
    let count = u32::from_le_bytes(array(header, 24));
    let whole = bytes.get(..FRAME_HEADER_LEN.checked_add(length)?.checked_next_multiple_of(ALIGN)?)?;
    let place = if mark == Mark::Second { start.checked_add(whole.len())? } else { start };
    if place != offset || XxHash3_64::oneshot_with_seed(salt.0, &whole[8..]) != number(header, 0) {
        return None;
    }
    Some(FrameCopy { mark, start, count, records: &whole[FRAME_HEADER_LEN..FRAME_HEADER_LEN + length] })
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    *bytes[offset..].first_chunk().expect("the caller's offsets are within its fixed length")
}

fn number(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array(bytes, offset))
}
