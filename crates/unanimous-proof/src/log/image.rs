//! A log of a hundred records, made by the log itself in real files, and what must come out of it when bytes of it are damaged.
//!
//! The rule is short enough to be written down a second time, by the frames' places alone: let the last frame be the last one of which a
//! copy is untouched. Where header, checkpoint, or any copy of an earlier frame is touched, the log must not open. Else it opens, and holds
//! exactly what it held when the last frame was written.
//!
//! Must not know how damage is made.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use unanimous::env::disk::{Disk, OsDisk};
use unanimous::env::{BoxFuture, Env, NoRuntime};
use unanimous::log::{FileLog, FileLogOptions, FrameKind, Record, Tail, read};
use unanimous::{Decider, DecisionLog, DecisionRecord, HoldReason, Known, Note, Owner, Participant, TransactionId};
use unanimous_testing::disk::{TestDisk, TestEnv};
use unanimous_testing::rng::Rng;

/// The folder on the test disk.
const LOG: &str = "log";
/// The smallest log: a segment of 16 KiB.
const MAX_SIZE: u64 = 48 * 1024;
const HEADER: usize = 128;

pub(super) fn block_on<F: Future>(future: F) -> Result<F::Output, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    Ok(runtime.map_err(|error| format!("no runtime: {error}"))?.block_on(future))
}

type Job = Box<dyn FnOnce() + Send>;

/// A world in which jobs that block wait until they are let go, so that several decisions get into one frame.
struct Gathering {
    world: Arc<TestEnv>,
    held: Mutex<Option<Vec<Job>>>,
}

impl Gathering {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<Job>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self) {
        *self.lock() = Some(Vec::new());
    }

    fn let_go(&self) {
        let jobs = self.lock().take();
        jobs.into_iter().flatten().for_each(|job| job());
    }
}

impl Env for Gathering {
    fn monotonic(&self) -> Duration {
        self.world.monotonic()
    }

    fn wall_clock(&self) -> u64 {
        self.world.wall_clock()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.world.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        self.world.spawn(task)
    }

    fn blocking(&self, job: Job) -> Result<(), NoRuntime> {
        let mut held = self.lock();
        match &mut *held {
            Some(jobs) => jobs.push(job),
            None => {
                drop(held);
                job();
            }
        }
        Ok(())
    }

    fn random(&self) -> u64 {
        self.world.random()
    }
}

/// One frame's place in the segment.
struct Frame {
    start: usize,
    /// Where its second copy begins.
    middle: usize,
    end: usize,
}

/// The log, whole.
pub(super) struct Image {
    /// The newest segment's file, its name and its bytes.
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    /// How many records it has.
    pub(super) records: usize,
    /// Where the checkpoint ends.
    checkpoint: usize,
    frames: Vec<Frame>,
    /// Each decision with the number of frames that must be there for it, and for its end if it has one.
    decided: BTreeMap<TransactionId, (DecisionRecord, usize, Option<usize>)>,
    /// What was never decided, and what must be said of it.
    never: Vec<(TransactionId, Known)>,
    disk: TestDisk,
}

/// What must become of damaged bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Refused,
    Opened {
        /// How many frames are believed.
        frames: usize,
        single: Option<u64>,
        tail: Option<Tail>,
    },
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Refused => f.write_str("the log must not open"),
            Expected::Opened { frames, single, tail } => {
                write!(f, "{frames} frames must be believed, with the bad copy {single:?} and the tail {tail:?}")
            }
        }
    }
}

fn decision(owner: Owner, sequence: u64, random: &mut Rng) -> DecisionRecord {
    let names = ["orders", "receipts", "billing", ""];
    let participants = (0..random.between(0, 2) as u16).map(|number| Participant {
        number,
        resource: (*random.pick(&names)).to_owned(),
        store: random.chance(1, 2).then(|| format!("s{number}").parse().expect("a short word is a store's id")),
    });
    let participants = participants.collect();
    let note = if sequence.is_multiple_of(7) { Note::new(format!("by ada: {sequence}")) } else { Note::default() };
    DecisionRecord { transaction: owner.transaction(sequence), participants, decided_at: sequence * 10, note }
}

impl Image {
    /// Writes the log in this folder: two lives, the second one with several decisions in a frame, with ends, notes, and numbers
    /// that were never decided. Keeps the segment of the first life beside it, as a crash leaves it.
    pub(super) fn write(path: &Path, seed: u64) -> Result<Self, String> {
        let mut handed = BTreeMap::new();
        let mut random = Rng::new(seed);
        let (older, owners) = block_on(async {
            let first = open(path, Self::world(seed)).await?;
            let mut owners = vec![first.owner()];
            for sequence in (1..=34).filter(|sequence| sequence % 6 != 0) {
                let record = decision(first.owner(), sequence, &mut random);
                handed.insert(record.transaction, record.clone());
                first.decide(record).await.map_err(|error| error.to_string())?;
                if sequence % 3 != 1 {
                    first.forget(first.owner().transaction(sequence));
                }
            }
            first.close().await;
            let older = segments(path)?.pop().ok_or("the log has no segment")?;
            let older = (older.clone(), std::fs::read(path.join(&older)).map_err(|error| error.to_string())?);

            let world = Self::world(seed ^ 1);
            let second = open(path, world.clone()).await?;
            owners.push(second.owner());
            let mut sequence = 0;
            while read(path).map_err(|error| error.to_string())?.records().count() < 100 {
                world.hold();
                let mut waiting = Vec::new();
                for _ in 0..random.between(1, 3) {
                    sequence += 1 + u64::from(random.chance(1, 5));
                    let record = decision(second.owner(), sequence, &mut random);
                    handed.insert(record.transaction, record.clone());
                    waiting.push((record.transaction, second.decide(record)));
                }
                world.let_go();
                for (transaction, decided) in waiting {
                    decided.await.map_err(|error| error.to_string())?;
                    if random.chance(1, 2) {
                        second.forget(transaction);
                    }
                }
            }
            // Dropped, not closed: as a process that dies leaves it.
            Ok::<_, String>((older, owners))
        })??;
        let mut image = Self::look(path, &handed)?;
        std::fs::write(path.join(&older.0), &older.1).map_err(|error| error.to_string())?;
        for (owner, sequence) in owners.iter().flat_map(|&owner| (1..=200).map(move |sequence| (owner, sequence))) {
            let transaction = owner.transaction(sequence);
            if !handed.contains_key(&transaction) && image.never.len() < 40 {
                image.never.push((transaction, Known::Abort));
            }
        }
        let mut stranger = owners[1];
        stranger.incarnation.nonce ^= 1;
        image.never.push((stranger.transaction(1), Known::Hold(HoldReason::ForeignIncarnation)));
        image.disk = disk_of(&[(&older.0, &older.1), (&image.name, &image.bytes)])?;
        Ok(image)
    }

    fn world(seed: u64) -> Arc<Gathering> {
        Arc::new(Gathering { world: TestEnv::new(seed), held: Mutex::new(None) })
    }

    fn look(path: &Path, handed: &BTreeMap<TransactionId, DecisionRecord>) -> Result<Self, String> {
        let view = read(path).map_err(|error| error.to_string())?;
        let mut offsets: Vec<usize> = view.records().map(|view| view.offset as usize).collect();
        offsets.dedup();
        let ends = offsets[1..].iter().copied().chain([view.verify().used as usize]);
        let mut places: Vec<(usize, usize)> = offsets.iter().copied().zip(ends).collect();
        let (_, checkpoint) = places.remove(0);
        let frames: Vec<Frame> =
            places.iter().map(|&(start, end)| Frame { start, middle: (start + end) / 2, end }).collect();
        let mut decided: BTreeMap<TransactionId, (DecisionRecord, usize, Option<usize>)> = BTreeMap::new();
        for view in view.records() {
            let needs = match view.kind {
                FrameKind::Checkpoint => 0,
                FrameKind::Synced => 1 + frames.iter().take_while(|frame| frame.start as u64 != view.offset).count(),
            };
            match view.record {
                Record::Commit(record) => {
                    if handed.get(&record.transaction) != Some(record) {
                        return Err(format!("the whole log holds {record:?}, which was not handed to it"));
                    }
                    decided.insert(record.transaction, (record.clone(), needs, None));
                }
                Record::Finished { transaction, .. } => {
                    decided.get_mut(transaction).ok_or("an end without its decision")?.2 = Some(needs);
                }
                _ => {}
            }
        }
        if decided.len() != handed.len() {
            return Err(format!("of {} decisions the whole log holds {}", handed.len(), decided.len()));
        }
        let file = view.file();
        let name = file.file_name().and_then(|name| name.to_str()).ok_or("a segment has a name")?.to_owned();
        let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
        let (records, disk) = (view.records().count(), TestDisk::default());
        Ok(Self { name, bytes, records, checkpoint, frames, decided, never: Vec::new(), disk })
    }

    /// Where the last frame begins, its second copy, and where it ends.
    pub(super) fn last(&self) -> (usize, usize, usize) {
        let last = self.frames.last().expect("a log of a hundred records has frames");
        (last.start, last.middle, last.end)
    }

    /// What must become of the segment with these bytes.
    pub(super) fn expected(&self, damaged: &[u8]) -> Expected {
        let touched = |from: usize, to: usize| damaged[from..to] != self.bytes[from..to];
        let copies = |frame: &Frame| (touched(frame.start, frame.middle), touched(frame.middle, frame.end));
        if touched(0, HEADER) || touched(HEADER, self.checkpoint) {
            return Expected::Refused;
        }
        let last = self.frames.iter().rposition(|frame| copies(frame) != (true, true));
        let frames = last.map_or(0, |last| last + 1);
        let earlier = &self.frames[..last.unwrap_or_default()];
        if earlier.iter().any(|frame| copies(frame) != (false, false)) {
            return Expected::Refused;
        }
        let single = last.and_then(|last| match copies(&self.frames[last]) {
            (true, _) => Some(self.frames[last].start as u64),
            (_, true) => Some(self.frames[last].middle as u64),
            _ => None,
        });
        let end = last.map_or(self.checkpoint, |last| self.frames[last].end);
        let tail = damaged[end..].iter().rposition(|&byte| byte != 0);
        let tail = tail.map(|last| Tail { offset: end as u64, length: last as u64 + 1 });
        Expected::Opened { frames, single, tail }
    }

    /// How many of the last frames are gone where these frames are believed: what two copies can't tell from a torn write.
    pub(super) fn lost(&self, expected: &Expected) -> usize {
        match expected {
            Expected::Refused => 0,
            Expected::Opened { frames, .. } => self.frames.len() - frames,
        }
    }

    /// Opens a log with these bytes in the newest segment's place, and says what is wrong with what comes of it; with `again`, once
    /// more after that.
    pub(super) fn try_with(&self, damaged: &[u8], again: bool) -> Result<Vec<String>, String> {
        let expected = self.expected(damaged);
        let disk = self.disk.after_kill();
        let failed = |error: std::io::Error| format!("the test disk: {error}");
        {
            let folder = disk.open_folder(Path::new(LOG), false).map_err(failed)?;
            folder.open(&self.name, true).map_err(failed)?.write_at(0, damaged).map_err(failed)?;
        }
        block_on(async {
            let mut wrong = Vec::new();
            let log = match open_on(&disk).open(LOG).await {
                Ok(log) => log,
                Err(_) if expected == Expected::Refused => return wrong,
                Err(error) => {
                    wrong.push(format!("{expected}, but it is refused: {error}"));
                    return wrong;
                }
            };
            let Expected::Opened { frames, single, tail } = expected else {
                wrong.push(format!("{expected}, but it does"));
                return wrong;
            };
            let opened = log.opened();
            if (opened.single_copy, opened.tail) != (single, tail) {
                wrong
                    .push(format!("{expected}, but it is said to have {:?} and {:?}", opened.single_copy, opened.tail));
            }
            self.judge(&log, frames, &mut wrong).await;
            if again {
                log.close().await;
                match open_on(&disk).open(LOG).await {
                    Ok(log) => {
                        if log.opened().tail.is_some() || log.opened().single_copy.is_some() {
                            wrong.push("opened again, it is not clean".into());
                        }
                        self.judge(&log, frames, &mut wrong).await;
                    }
                    Err(error) => wrong.push(format!("it does not open again: {error}")),
                }
            }
            wrong
        })
    }

    /// Whether the log says what it must when these frames are believed.
    async fn judge(&self, log: &FileLog, frames: usize, wrong: &mut Vec<String>) {
        let mut open = Vec::new();
        for (&transaction, (record, needs, ends)) in &self.decided {
            let expected = if *needs <= frames { Known::Commit(record.clone()) } else { Known::Abort };
            if *needs <= frames && ends.is_none_or(|needs| needs > frames) {
                open.push(record.clone());
            }
            self.ask(log, transaction, &expected, wrong).await;
        }
        for (transaction, expected) in &self.never {
            self.ask(log, *transaction, expected, wrong).await;
        }
        match log.unfinished().await {
            Ok(unfinished) if unfinished == open => {}
            other => wrong.push(format!("unfinished are {other:?} instead of {open:?}")),
        }
    }

    async fn ask(&self, log: &FileLog, transaction: TransactionId, expected: &Known, wrong: &mut Vec<String>) {
        match log.lookup(transaction).await {
            Ok(known) if known == *expected => {}
            other => wrong.push(format!("{transaction} is {other:?} instead of {expected:?}")),
        }
    }
}

/// The segments' file names in a folder, the newest one last.
pub(super) fn segments(path: &Path) -> Result<Vec<String>, String> {
    let entries = std::fs::read_dir(path).map_err(|error| error.to_string())?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".log")).collect();
    names.sort();
    Ok(names)
}

fn disk_of(files: &[(&str, &[u8])]) -> Result<TestDisk, String> {
    let disk = TestDisk::default();
    let failed = |error: std::io::Error| format!("the test disk: {error}");
    let folder = disk.open_folder(Path::new(LOG), true).map_err(failed)?;
    for (name, bytes) in files {
        let file = folder.create(name).map_err(failed)?;
        file.preallocate(bytes.len() as u64).map_err(failed)?;
        file.write_at(0, bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
    }
    folder.sync().map_err(failed)?;
    drop(folder);
    Ok(disk)
}

fn open_on(disk: &TestDisk) -> FileLogOptions {
    let env = TestEnv::new(7);
    FileLog::options().disk(Arc::new(disk.clone())).env(env).max_size(MAX_SIZE).lock_wait(Duration::ZERO)
}

async fn open(path: &Path, env: Arc<dyn Env>) -> Result<FileLog, String> {
    let options = FileLog::options().disk(Arc::new(OsDisk)).env(env).max_size(MAX_SIZE).lock_wait(Duration::ZERO);
    options.open(path).await.map_err(|error| error.to_string())
}

/// Opens the log in this folder of real files, in a world in which everything happens at once.
pub(super) fn open_files(path: &PathBuf) -> Result<Result<FileLog, unanimous::log::OpenError>, String> {
    let options = FileLog::options().env(TestEnv::new(9)).max_size(MAX_SIZE).lock_wait(Duration::ZERO);
    block_on(options.open(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the level believes of a log is wrong in each way in turn, and seen; the log itself is right.
    #[test]
    fn a_wrong_answer_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let mut image = Image::write(folder.path(), 5).unwrap();
        let whole = image.bytes.clone();
        assert!(image.records >= 100);
        assert_eq!(image.try_with(&whole, true).unwrap(), Vec::<String>::new());

        let (&lost, entry) = image.decided.iter().next().unwrap();
        let entry = entry.clone();
        image.decided.get_mut(&lost).unwrap().0.decided_at += 1;
        assert!(image.try_with(&whole, false).unwrap()[0].contains(&lost.to_string()), "another decision");
        image.decided.insert(lost, entry);
        let invented = image.never[0].0;
        image.never[0].1 = Known::Hold(HoldReason::BeyondHorizon);
        assert!(image.try_with(&whole, false).unwrap()[0].contains(&invented.to_string()), "another answer");
        image.never[0].1 = Known::Abort;

        // An image that takes the last frame for an earlier one, so that its damage should be refused.
        let (start, _, end) = image.last();
        let mut damaged = whole.clone();
        damaged[start + 40] ^= 1;
        assert_eq!(image.try_with(&damaged, false).unwrap(), Vec::<String>::new());
        image.checkpoint = end;
        assert!(image.try_with(&damaged, false).unwrap()[0].contains("must not open, but it does"));
    }
}
