//! What is on the disk, what of it is durable, and what is to go wrong.
//!
//! Must not know who works on it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::{Event, Fault};

/// What is written in whole or not at all. Smaller than any real one, so that small frames are torn too.
const SECTOR: usize = 64;

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) folders: BTreeMap<PathBuf, u64>,
    pub(super) content: BTreeMap<u64, Content>,
    pub(super) files: BTreeMap<u64, FileState>,
    pub(super) next_id: u64,
    pub(super) events: Vec<Event>,
    /// After this many more operations the power is off.
    pub(super) operations_left: Option<usize>,
    pub(super) fault: Option<Fault>,
    /// The bytes that all files may have together.
    pub(super) capacity: Option<u64>,
    /// Syncs of data wait until they are let through; how many wait.
    pub(super) gate: Option<Gate>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gate {
    pub(super) waiting: usize,
    pub(super) passes: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) locked: bool,
    pub(super) names: BTreeMap<String, u64>,
    pub(super) durable: BTreeMap<String, u64>,
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileState {
    pub(super) bytes: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) unsynced: Vec<(usize, Vec<u8>)>,
}

impl Change {
    pub(super) fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Change::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            Change::Rename(from, to) => {
                let file = names.remove(from).expect("the order of changes is kept");
                names.insert(to.clone(), file);
            }
            Change::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl State {
    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Counts an operation; none any more when the power is off.
    pub(super) fn operate(&mut self, event: Event) -> io::Result<()> {
        if let Some(left) = &mut self.operations_left {
            *left = left.checked_sub(1).ok_or_else(off)?;
        }
        self.events.push(event);
        Ok(())
    }

    pub(super) fn fault(&mut self, fault: Fault) -> io::Result<()> {
        if self.fault == Some(fault) {
            self.fault = None;
            return Err(io::Error::other("the disk failed"));
        }
        Ok(())
    }

    /// The bytes of all files that have a name.
    pub(super) fn used(&self) -> u64 {
        let named = |id: &u64| self.content.values().any(|content| content.names.values().any(|file| file == id));
        self.files.iter().filter(|(id, _)| named(id)).map(|(_, file)| file.bytes.len() as u64).sum()
    }

    /// An open folder's content.
    pub(super) fn folder(&mut self, folder: u64) -> &mut Content {
        self.content.get_mut(&folder).expect("the content of a folder is kept for ever")
    }

    /// An open file.
    pub(super) fn file(&mut self, file: u64) -> &mut FileState {
        self.files.get_mut(&file).expect("a file is kept for ever, also without a name")
    }
}

/// Makes those sectors of a write durable that `keep` chooses.
pub(super) fn keep_sectors(durable: &mut [u8], offset: usize, bytes: &[u8], mut keep: impl FnMut(usize) -> bool) {
    let end = offset + bytes.len();
    for sector in offset / SECTOR..end.div_ceil(SECTOR) {
        let (from, to) = ((sector * SECTOR).max(offset), ((sector + 1) * SECTOR).min(end).min(durable.len()));
        if from < to && keep(sector) {
            durable[from..to].copy_from_slice(&bytes[from - offset..to - offset]);
        }
    }
}
