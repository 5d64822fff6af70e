//! A look at a log's files, without its lock and without changing anything; beside a running process too.
//!
//! What a running process is just writing, or a segment that it is just replacing, looks like a torn tail, damage or a missing file.
//! So what does not look clean is read again until it stays the same for a while.
//!
//! Must not know whether the log is open somewhere.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use unanimous_core::log::{Damage, FrameKind, Header, History, Record, ScannedSegment, Tail, scan};
use unanimous_core::{DecisionRecord, Incarnation, LogId};

use super::error::ReadError;
use super::segments::{list, name};
use crate::env::disk::{Disk, Folder, OsDisk};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(40);
/// What looks the same this often in a row is so: a write that is torn for as long as that is not under way any more.
const STEADY: u32 = 4;
/// And after this many looks the last one has to do.
const LOOKS: u32 = 50;

/// A log as its files show it.
#[derive(Clone, Debug)]
pub struct LogView {
    path: PathBuf,
    file: PathBuf,
    segment: ScannedSegment,
    superseded: Vec<SupersededView>,
    history: History,
    contradictions: Vec<String>,
}

/// A segment that a newer one has made needless, and that will be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SupersededView {
    /// Its number.
    pub number: u64,
    /// Its file.
    pub file: PathBuf,
}

/// One record, and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// The segment's number.
    pub segment: u64,
    /// Where its frame begins in the segment's file, in bytes; records of one offset were made durable by one sync.
    pub offset: u64,
    /// Whether it repeats what an earlier segment held, or is what happened since.
    pub kind: FrameKind,
    /// The record.
    pub record: &'a Record,
}

/// What a log's files amount to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// The log.
    pub log: LogId,
    /// The segment's file.
    pub file: PathBuf,
    /// Who writes it, or wrote it last.
    pub incarnation: Incarnation,
    /// Frames that could be read, with the checkpoint.
    pub frames: usize,
    /// Records that could be read.
    pub records: usize,
    /// Decisions that are not finished.
    pub unfinished: usize,
    /// Decisions that are finished and still kept.
    pub finished: usize,
    /// The bytes of the segment that are used.
    pub used: u64,
    /// The segment's length in bytes.
    pub length: u64,
    /// A write that is under way, or was not finished: nobody was told of what it holds. Harmless; the next opening cuts it.
    pub tail: Option<Tail>,
    /// The last frame has one good copy only; the other one's offset. It is believed.
    pub single_copy: Option<u64>,
    /// What was synced once and is not whole any more. The log can't be opened.
    pub damage: Vec<Damage>,
    /// What doesn't fit together, in words. The log can't be opened.
    pub contradictions: Vec<String>,
}

impl Verification {
    /// Whether the log can be opened.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.contradictions.is_empty()
    }
}

/// Reads the log in this folder. Blocks, for two seconds at most when the log does not look clean.
///
/// # Errors
///
/// When there is no log, or nothing of it can be read. Damage is no error: the view tells it.
pub fn read(path: impl AsRef<Path>) -> Result<LogView, ReadError> {
    read_from(&OsDisk, path.as_ref())
}

/// The same on another disk.
///
/// # Errors
///
/// As [`read`].
pub fn read_from(disk: &dyn Disk, path: &Path) -> Result<LogView, ReadError> {
    let mut last = look(disk, path);
    let mut steady = 1;
    for _ in 1..LOOKS {
        if steady == STEADY || last.as_ref().is_ok_and(LogView::is_clean) {
            break;
        }
        std::thread::sleep(PAUSE);
        let next = look(disk, path);
        steady = if same(&last, &next) { steady + 1 } else { 1 };
        last = next;
    }
    last
}

fn same(one: &Result<LogView, ReadError>, other: &Result<LogView, ReadError>) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one.segment == other.segment,
        (Err(one), Err(other)) => format!("{one:?}") == format!("{other:?}"),
        _ => false,
    }
}

fn look(disk: &dyn Disk, path: &Path) -> Result<LogView, ReadError> {
    let failed = |source| ReadError::Io { path: path.to_owned(), source };
    let folder = match disk.open_folder(path, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ReadError::NoLog { path: path.to_owned() });
        }
        opened => opened.map_err(failed)?,
    };
    let numbers = list(&*folder).map_err(failed)?;
    let Some((&number, older)) = numbers.split_last() else {
        return Err(ReadError::NoLog { path: path.to_owned() });
    };
    let file = path.join(name(number));
    let bytes = read_file(&*folder, &name(number)).map_err(|source| ReadError::Io { path: file.clone(), source })?;
    let segment = scan(&bytes).map_err(|source| ReadError::Header { file: file.clone(), source })?;
    let superseded = older.iter().map(|&number| SupersededView { number, file: path.join(name(number)) }).collect();
    let mut view = LogView {
        path: path.to_owned(),
        file,
        history: History::new(segment.header.log),
        superseded,
        contradictions: Vec::new(),
        segment,
    };
    view.add_up(number);
    Ok(view)
}

fn read_file(folder: &dyn Folder, name: &str) -> io::Result<Vec<u8>> {
    folder.open(name, false)?.read()
}

impl LogView {
    fn add_up(&mut self, number: u64) {
        let said = self.segment.header.segment;
        if said != number {
            self.contradictions.push(format!("the file is named {number}, its header says {said}"));
        }
        for frame in &self.segment.frames {
            for record in &frame.records {
                // Where a frame is missing, what follows may refer to it; that is told as damage already.
                if let Err(error) = self.history.apply(record.clone())
                    && self.segment.damage.is_empty()
                {
                    self.contradictions.push(format!("in the frame at byte {}: {error}", frame.offset));
                }
            }
        }
    }

    fn is_clean(&self) -> bool {
        self.segment.damage.is_empty()
            && self.segment.tail.is_none()
            && self.segment.single.is_none()
            && self.contradictions.is_empty()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The segment's file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The header of the segment that is the log: its id, number, length, writer and when that began it.
    pub fn header(&self) -> &Header {
        &self.segment.header
    }

    /// Older segments that are still there.
    pub fn superseded(&self) -> &[SupersededView] {
        &self.superseded
    }

    /// The records that can be read, in their order.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'_>> {
        let segment = self.segment.header.segment;
        self.segment.frames.iter().flat_map(move |frame| {
            frame.records.iter().map(move |record| RecordView {
                segment,
                offset: frame.offset,
                kind: frame.kind,
                record,
            })
        })
    }

    /// The decisions that are not finished.
    pub fn unfinished(&self) -> Vec<&DecisionRecord> {
        self.history.unfinished().collect()
    }

    /// What the records add up to: incarnations, floors, decisions. Of a damaged log, what can be read of it.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What a person wants to know of the files' state.
    pub fn verify(&self) -> Verification {
        let segment = &self.segment;
        Verification {
            log: segment.header.log,
            file: self.file.clone(),
            incarnation: segment.header.incarnation,
            frames: segment.frames.len(),
            records: segment.frames.iter().map(|frame| frame.records.len()).sum(),
            unfinished: self.history.unfinished().count(),
            finished: self.history.finished().count(),
            used: segment.end,
            length: segment.header.length,
            tail: segment.tail,
            single_copy: segment.single,
            damage: segment.damage.clone(),
            contradictions: self.contradictions.clone(),
        }
    }
}
