//! Reads a segment's bytes, and tells a torn tail from damage.
//!
//! The rule: a frame is written when everything before it has been synced, and there is one frame in flight at a time. So a valid
//! frame proves that all before it was once whole and synced, and what is not whole there now is [`Damage`]: presuming anything of
//! it could undo a commit. What is not whole *after* the last valid frame can only be a write that no sync has confirmed, of which nobody was told: a [`Tail`].
//!
//! Must not know what records add up to, nor where the bytes come from.

use std::error::Error;
use std::fmt;

use super::frame::{ALIGN, FrameCopy, HEADER_LEN, Header, HeaderError, Mark, SegmentSalt, copy_at};
use super::record::{DecodeError, Record};

/// A segment as its bytes give it. It may be believed only where [`damage`](Self::damage) is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedSegment {
    /// Which log, who wrote it.
    pub header: Header,
    /// The frames that could be read, in order; the first one is the checkpoint.
    pub frames: Vec<ScannedFrame>,
    /// Where the last frame ends.
    pub end: u64,
    /// What stands after the end: a write that was not finished.
    pub tail: Option<Tail>,
    /// What was once synced and is not whole any more, in order.
    pub damage: Vec<Damage>,
    /// The last frame has one good copy only: a torn write of a frame that nobody was told of, or a flipped bit in one that somebody
    /// was. Either way its records are believed, and written anew before they are acted upon (rule 3). It holds the bad copy's offset.
    pub single: Option<u64>,
}

/// One frame of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedFrame {
    /// Where it begins.
    pub offset: u64,
    /// What it is.
    pub kind: FrameKind,
    /// Its records.
    pub records: Vec<Record>,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// What was known when the segment was created.
    Checkpoint,
    /// What one sync made durable since.
    Synced,
}

/// Bytes after the last frame that are not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Where they begin.
    pub offset: u64,
    /// How many, up to the last one that is not zero.
    pub length: u64,
}

/// Something that was once synced, and is not whole any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins.
    pub offset: u64,
    /// Where the next thing begins that could be read, or the segment's end.
    pub end: u64,
    /// What it is.
    pub kind: DamageKind,
}

/// The kinds of damage.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DamageKind {
    /// The file is not as long as its header says. Segments are synced at their full length before they get their name: it was cut.
    Cut,
    /// The checkpoint at the segment's beginning.
    Checkpoint,
    /// A frame, and a later one proves that it was synced.
    Frame,
    /// One copy of a frame; the other one is whole, and its records were read.
    Copy,
    /// The checksum is right, but what it covers is not what this version writes.
    Records(DecodeError),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { offset, end, .. } = self;
        match &self.kind {
            DamageKind::Cut => write!(f, "the file ends at byte {offset} and should end at byte {end}: it was cut"),
            DamageKind::Checkpoint => write!(f, "bytes {offset} to {end}: the checkpoint is damaged"),
            DamageKind::Frame => {
                write!(
                    f,
                    "bytes {offset} to {end}: what stood here is damaged, and what follows proves that it had been synced"
                )
            }
            DamageKind::Copy => {
                write!(
                    f,
                    "bytes {offset} to {end}: one copy of a frame is damaged; the other one is whole and was read"
                )
            }
            DamageKind::Records(error) => write!(f, "bytes {offset} to {end}: {error}"),
        }
    }
}

impl Error for Damage {}

/// Reads a segment. `bytes` is the whole file.
///
/// # Errors
///
/// When there is no header that could be believed; nothing else can be read then.
pub fn scan(bytes: &[u8]) -> Result<ScannedSegment, HeaderError> {
    let header = Header::decode(bytes)?;
    let mut scanner = Scanner {
        bytes,
        salt: header.salt(),
        segment: ScannedSegment { header, frames: Vec::new(), end: 0, tail: None, damage: Vec::new(), single: None },
    };
    let length = usize::try_from(header.length).unwrap_or(usize::MAX);
    if bytes.len() < length {
        scanner.damage(bytes.len(), length, DamageKind::Cut);
    }
    let mut next = scanner.checkpoint();
    while let Some(offset) = next {
        next = scanner.frame(offset);
    }
    let mut segment = scanner.segment;
    segment.damage.sort_by_key(|damage| damage.offset);
    Ok(segment)
}

struct Scanner<'a> {
    bytes: &'a [u8],
    salt: SegmentSalt,
    segment: ScannedSegment,
}

impl<'a> Scanner<'a> {
    /// Reads the checkpoint; gives the offset of what follows, if there is anything.
    fn checkpoint(&mut self) -> Option<usize> {
        match copy_at(self.bytes, self.salt, HEADER_LEN).filter(|copy| copy.mark == Mark::Checkpoint) {
            Some(copy) => {
                self.take(HEADER_LEN, copy, FrameKind::Checkpoint);
                Some(self.arrive(HEADER_LEN + copy.len()))
            }
            None => {
                let found = self.find(HEADER_LEN + ALIGN);
                self.damage(HEADER_LEN, found.map_or(self.bytes.len(), |(at, _)| at), DamageKind::Checkpoint);
                found.map(|(_, copy)| copy.start)
            }
        }
    }

    /// Reads the frame at this offset; gives the offset of the next one, if there is anything.
    fn frame(&mut self, offset: usize) -> Option<usize> {
        match copy_at(self.bytes, self.salt, offset).filter(|copy| copy.mark == Mark::First) {
            Some(first) => {
                self.proven(offset);
                let place = offset + first.len();
                let second = copy_at(self.bytes, self.salt, place).filter(|copy| same_frame(copy, &first));
                if second.is_none() {
                    self.segment.single = Some(place as u64);
                }
                self.take(offset, first, FrameKind::Synced);
                Some(self.arrive(place + first.len()))
            }
            None => match self.find(offset + ALIGN) {
                Some((place, second)) if second.mark == Mark::Second && second.start == offset => {
                    self.proven(offset);
                    self.segment.single = Some(offset as u64);
                    self.take(offset, second, FrameKind::Synced);
                    Some(self.arrive(place + second.len()))
                }
                Some((place, copy)) => {
                    self.proven(offset);
                    self.damage(offset, place, DamageKind::Frame);
                    // A second copy whose first is gone is read as the frame that begins where it says.
                    Some(copy.start.max(offset + ALIGN))
                }
                None => {
                    self.tail(offset);
                    None
                }
            },
        }
    }

    /// There is something valid at or after this offset: what stands before had been synced. A frame before it of which one
    /// copy is bad is not the last one, so this is damage.
    fn proven(&mut self, offset: usize) {
        if let Some(bad) = self.segment.single.take() {
            self.damage(bad as usize, offset, DamageKind::Copy);
        }
    }

    fn take(&mut self, offset: usize, copy: FrameCopy<'a>, kind: FrameKind) {
        match Record::decode_all(self.segment.header.log, copy.records, copy.count) {
            Ok(records) => self.segment.frames.push(ScannedFrame { offset: offset as u64, kind, records }),
            Err(error) => self.damage(offset, offset + copy.len(), DamageKind::Records(error)),
        }
    }

    fn arrive(&mut self, end: usize) -> usize {
        self.segment.end = end as u64;
        end
    }

    fn tail(&mut self, offset: usize) {
        let rest = self.bytes.get(offset..).unwrap_or_default();
        if let Some(last) = rest.iter().rposition(|&byte| byte != 0) {
            self.segment.tail = Some(Tail { offset: offset as u64, length: last as u64 + 1 });
        }
    }

    fn damage(&mut self, offset: usize, end: usize, kind: DamageKind) {
        self.segment.damage.push(Damage { offset: offset as u64, end: end as u64, kind });
    }

    /// The first valid copy at or after this offset.
    fn find(&self, from: usize) -> Option<(usize, FrameCopy<'a>)> {
        (from..self.bytes.len())
            .step_by(ALIGN)
            .find_map(|offset| Some((offset, copy_at(self.bytes, self.salt, offset)?)))
    }
}

fn same_frame(second: &FrameCopy<'_>, first: &FrameCopy<'_>) -> bool {
    second.mark == Mark::Second
        && second.start == first.start
        && second.count == first.count
        && second.records == first.records
}
