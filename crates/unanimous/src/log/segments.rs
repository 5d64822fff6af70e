//! A log's folder: the segment that is written, the one in reserve, and the steps from one to the next.
//!
//! Each step leaves the folder so that a crash right after it opens fine: a segment gets its name when its header and checkpoint
//! are synced, and older ones go when that name is.
//!
//! Must not know who waits for what is written, nor what the records mean.

use std::io;
use std::path::{Path, PathBuf};

use unanimous_core::log::frame::{HEADER_LEN, copy_len, encode_beginning, encode_frame, frame_len};
use unanimous_core::log::{Damage, DamageKind, FrameKind, Header, History, Record, Tail, scan};
use unanimous_core::{LogId, Owner, TransactionId};

use super::error::{OpenError, Poison};
use crate::env::disk::{DiskFile, Folder};

/// The next segment, before it has anything to say.
const RESERVE: &str = "reserve.new";

/// A segment's file name.
pub(super) fn name(number: u64) -> String {
    format!("{number:010}.log")
}

/// The number of the segment of this name; none for other files.
pub(super) fn number_of(file: &str) -> Option<u64> {
    let number = file.strip_suffix(".log")?.parse().ok()?;
    (name(number) == file).then_some(number)
}

/// The segments in a folder, oldest first.
pub(super) fn list(folder: &dyn Folder) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = folder.list()?.iter().filter_map(|file| number_of(file)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What an opening found.
pub(super) struct Loaded {
    pub(super) history: History,
    pub(super) header: Header,
    pub(super) tail: Option<Tail>,
    pub(super) single: Option<u64>,
    pub(super) repaired: Vec<Damage>,
    /// The decisions of the last frame where that was left out.
    pub(super) unproven: Vec<TransactionId>,
}

/// Reads the newest segment; none in a folder without one. Changes nothing.
///
/// Of a log that was `restored` the last frame is left out: nothing shows that it was ever synced. It may have been copied before that,
/// and lost with the power, so that its transactions were rolled back.
pub(super) fn load(
    folder: &dyn Folder,
    path: &Path,
    believe_copies: bool,
    restored: bool,
) -> Result<Option<Loaded>, OpenError> {
    let failed = |what| move |source| OpenError::Io { path: path.to_owned(), what, source };
    let Some(&number) = list(folder).map_err(failed("list"))?.last() else { return Ok(None) };
    let file = path.join(name(number));
    let bytes = folder.open(&name(number), false).and_then(|file| file.read());
    let bytes = bytes.map_err(|source| OpenError::Io { path: file.clone(), what: "read", source })?;
    let segment = scan(&bytes).map_err(|source| OpenError::Header { file: file.clone(), source })?;
    if segment.header.segment != number {
        return Err(OpenError::Misnamed { file, number: segment.header.segment });
    }
    let fatal = |damage: &Damage| !(believe_copies && damage.kind == DamageKind::Copy);
    if segment.damage.iter().any(fatal) {
        return Err(OpenError::Damaged { file, damage: segment.damage });
    }
    let mut frames = segment.frames;
    let unproven = frames.pop_if(|frame| restored && frame.kind == FrameKind::Synced);
    let unproven = unproven.into_iter().flat_map(|frame| frame.records).filter_map(|record| match record {
        Record::Commit(record) | Record::Abort(record) => Some(record.transaction),
        _ => None,
    });
    let unproven = unproven.collect();
    let mut history = History::new(segment.header.log);
    for record in frames.into_iter().flat_map(|frame| frame.records) {
        history.apply(record).map_err(|source| OpenError::Contradiction { file: file.clone(), source })?;
    }
    let (header, tail, single) = (segment.header, segment.tail, segment.single);
    Ok(Some(Loaded { history, header, tail, single, repaired: segment.damage, unproven }))
}

/// Why the next segment could not be begun.
pub(super) enum RotateError {
    /// There is no space for it; nothing has changed.
    NoReserve(io::Error),
    /// Something failed of which nobody knows how far it came.
    Failed(Poison),
}

/// The segment that is written, and the one in reserve.
pub(super) struct Segments {
    folder: Box<dyn Folder>,
    path: PathBuf,
    /// The length that a segment has, unless its checkpoint needs more.
    length: u64,
    current: Current,
    reserve: Option<Box<dyn DiskFile>>,
}

struct Current {
    header: Header,
    file: Box<dyn DiskFile>,
    end: u64,
}

impl Segments {
    /// Begins a segment with this checkpoint after number `after`, in a locked folder. What the checkpoint holds is durable when
    /// this returns, and older segments are gone.
    pub(super) fn begin(
        folder: Box<dyn Folder>,
        path: PathBuf,
        length: u64,
        owner: Owner,
        after: u64,
        checkpoint: (&[u8], u32),
        now: u64,
    ) -> Result<Self, OpenError> {
        let length = length.next_multiple_of(8);
        let wanted = length_for(length, checkpoint.0);
        let reserve = take_reserve(&*folder, wanted).map_err(|source| OpenError::Io {
            path: path.clone(),
            what: "reserve space on the disk for a segment in",
            source,
        })?;
        let current = next(&*folder, reserve, owner, after + 1, wanted, checkpoint, now)
            .map_err(|(what, source)| OpenError::Io { path: path.clone(), what, source })?;
        let segments = Self { folder, path, length, current, reserve: None };
        segments.remove_older();
        Ok(segments)
    }

    /// Whether a frame with records of this length fits.
    pub(super) fn has_room(&self, records: usize) -> bool {
        self.current.end + frame_len(records) as u64 <= self.current.header.length
    }

    /// The number of the current segment.
    pub(super) fn number(&self) -> u64 {
        self.current.header.segment
    }

    /// Writes a frame and syncs it.
    pub(super) fn append(&mut self, records: &[u8], count: u32) -> Result<(), Poison> {
        let Current { header, file, end } = &mut self.current;
        let frame = encode_frame(header.salt(), *end, records, count);
        file.write_at(*end, &frame).map_err(|source| Poison::new("a write to the log failed", Some(source)))?;
        file.sync_data().map_err(|source| Poison::new("a sync of the log failed", Some(source)))?;
        *end += frame.len() as u64;
        Ok(())
    }

    /// Whether the next segment's space is there.
    pub(super) fn has_reserve(&self) -> bool {
        self.reserve.is_some()
    }

    /// Takes the next segment's space, if it is not there yet.
    pub(super) fn ensure_reserve(&mut self) -> io::Result<()> {
        if self.reserve.is_none() {
            self.reserve = Some(take_reserve(&*self.folder, self.length)?);
        }
        Ok(())
    }

    /// Goes on in a new segment that begins with this checkpoint.
    pub(super) fn rotate(&mut self, checkpoint: (&[u8], u32), now: u64) -> Result<(), RotateError> {
        let failed = |what| move |source| RotateError::Failed(Poison::new(what, Some(source)));
        if !self.folder.is_current().map_err(failed("the log's folder can't be looked at"))? {
            return Err(RotateError::Failed(Poison::new("the log's folder was moved or replaced", None)));
        }
        self.ensure_reserve().map_err(RotateError::NoReserve)?;
        let wanted = length_for(self.length, checkpoint.0);
        let reserve = self.reserve.take().expect("just ensured");
        if let Err(error) = reserve.preallocate(wanted) {
            self.reserve = Some(reserve);
            return Err(RotateError::NoReserve(error));
        }
        let Header { log, incarnation, segment, .. } = self.current.header;
        self.current = next(&*self.folder, reserve, Owner { log, incarnation }, segment + 1, wanted, checkpoint, now)
            .map_err(|(what, source)| RotateError::Failed(Poison::new(what, Some(source))))?;
        self.remove_older();
        Ok(())
    }

    /// Superseded segments cost nothing but space, so that a failure is no reason to stop.
    fn remove_older(&self) {
        let older = list(&*self.folder).map(|mut numbers| {
            numbers.retain(|&number| number < self.number());
            numbers
        });
        let removed =
            older.and_then(|older| older.into_iter().try_for_each(|number| self.folder.remove(&name(number))));
        if let Err(error) = removed {
            tracing::warn!(log = %self.path.display(), %error, "a superseded segment of the decision log could not be removed");
        }
    }
}

/// A segment must have room for its checkpoint and half as much again as it has at all.
fn length_for(length: u64, checkpoint: &[u8]) -> u64 {
    let beginning = (HEADER_LEN + copy_len(checkpoint.len())) as u64;
    length.max((beginning + length / 2).next_multiple_of(8))
}

/// A file of zeros of this length, whose space on the disk is taken. One that a crash left is used again, so that a start needs no
/// more space than there was.
fn take_reserve(folder: &dyn Folder, length: u64) -> io::Result<Box<dyn DiskFile>> {
    if let Some(file) = left_reserve(folder, length)? {
        return Ok(file);
    }
    let file = folder.create(RESERVE)?;
    // Synced now, so that a file system that finds out late that it is full says so here, where it does no harm.
    match file.preallocate(length).and_then(|()| file.sync_all()) {
        Ok(()) => Ok(file),
        Err(error) => {
            drop(file);
            folder.remove(RESERVE)?;
            Err(error)
        }
    }
}

fn left_reserve(folder: &dyn Folder, length: u64) -> io::Result<Option<Box<dyn DiskFile>>> {
    let file = match folder.open(RESERVE, true) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let bytes = file.read()?;
    if bytes.len() as u64 != length {
        drop(file);
        folder.remove(RESERVE)?;
        return Ok(None);
    }
    // The beginning of a segment that never got its name would be reported as a torn tail for ever.
    if let Some(last) = bytes.iter().rposition(|&byte| byte != 0) {
        file.write_at(0, &vec![0; last + 1])?;
    }
    Ok(Some(file))
}

/// Makes the reserve the segment of this number. What failed, and why.
fn next(
    folder: &dyn Folder,
    file: Box<dyn DiskFile>,
    owner: Owner,
    number: u64,
    length: u64,
    (records, count): (&[u8], u32),
    now: u64,
) -> Result<Current, (&'static str, io::Error)> {
    let header = Header { log: owner.log, segment: number, length, incarnation: owner.incarnation, created_at: now };
    let beginning = encode_beginning(&header, records, count);
    file.write_at(0, &beginning).map_err(|error| ("write a new segment in", error))?;
    file.sync_all().map_err(|error| ("sync a new segment in", error))?;
    folder.rename(RESERVE, &name(number)).map_err(|error| ("name a new segment in", error))?;
    folder.sync().map_err(|error| ("sync", error))?;
    Ok(Current { header, file, end: beginning.len() as u64 })
}

/// A log's first identity.
pub(super) fn new_log_id(random: impl Fn() -> u64) -> LogId {
    LogId(u128::from(random()) << 64 | u128::from(random()))
}
