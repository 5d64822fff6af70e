//! The log in files, on the operating system's disk: what a user of it sees.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use unanimous::env::disk::{Disk, DiskFile, Folder, OsDisk};
use unanimous::log::{DamageKind, FileLog, MemoryLog, OpenError, ReadError, Record, read, read_from};
use unanimous::{DecideError, Decider, DecisionLog, DecisionRecord, HoldReason, Known, Note, Owner, Participant};

fn decision(owner: Owner, sequence: u64) -> DecisionRecord {
    let participants = vec![
        Participant { number: 0, resource: "orders".into(), store: Some("store-a".parse().unwrap()) },
        Participant { number: 1, resource: "receipts".into(), store: None },
    ];
    DecisionRecord { transaction: owner.transaction(sequence), participants, decided_at: 17, note: Note::default() }
}

/// Every file of a folder, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

/// The newest segment.
fn segment(folder: &Path) -> PathBuf {
    files(folder).into_keys().filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

async fn open(path: &Path) -> Result<FileLog, OpenError> {
    FileLog::options().max_size(48 * 1024).lock_wait(Duration::from_secs(30)).open(path).await
}

/// A log with decisions 1 to 3 of its first incarnation, 2 of them finished; closed.
async fn written(path: &Path) -> Owner {
    let log = open(path).await.unwrap();
    let owner = log.owner();
    for sequence in [1, 2, 3] {
        log.decide(decision(owner, sequence)).await.unwrap();
    }
    log.forget(owner.transaction(2));
    log.close().await;
    owner
}

#[tokio::test]
async fn decisions_outlive_a_restart_and_the_rest_is_presumed_aborted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a").join("b");
    let log = FileLog::open(&path).await.unwrap();
    assert!(log.opened().created);
    let first = log.owner();
    assert_eq!(first.incarnation.counter, 1);
    for sequence in [1, 2, 3] {
        log.decide(decision(first, sequence)).await.unwrap();
    }
    log.forget(first.transaction(2));
    assert_eq!(log.lookup(first.transaction(3)).await.unwrap(), Known::Commit(decision(first, 3)));
    log.close().await;
    assert!(log.ready().is_err());

    let log = FileLog::open(&path).await.unwrap();
    assert!(!log.opened().created);
    let second = log.owner();
    assert_eq!((second.log, second.incarnation.counter), (first.log, 2));
    assert_eq!(log.unfinished().await.unwrap(), [decision(first, 1), decision(first, 3)]);
    assert_eq!(log.lookup(first.transaction(2)).await.unwrap(), Known::Commit(decision(first, 2)));
    assert_eq!(log.lookup(first.transaction(4)).await.unwrap(), Known::Abort);
    let held = FileLog::options().lock_wait(Duration::ZERO).open(&path).await.unwrap_err();
    assert!(matches!(&held, OpenError::Held { path: named } if *named == path), "{held:?}");
    assert!(held.to_string().contains("is held by another process; stop that one"), "{held}");
}

/// Dropped without a close, and opened again at once.
#[tokio::test]
async fn a_dropped_log_can_be_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    for counter in 1..=5 {
        let log = FileLog::options().max_size(48 * 1024).open(folder.path()).await.unwrap();
        assert_eq!(log.owner().incarnation.counter, counter);
        drop(log.decide(decision(log.owner(), 1)));
        drop(log);
    }
    let log = FileLog::options().max_size(48 * 1024).open(folder.path()).await.unwrap();
    assert_eq!(log.unfinished().await.unwrap().len(), 5, "dropping a decision's future changes nothing");
}

/// A file that was cut, or a bit that flipped below what is known to be synced: refused, and nothing is changed by the try.
#[tokio::test]
async fn damage_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path()).await;
    let file = segment(folder.path());
    let whole = std::fs::read(&file).unwrap();
    let view = read(folder.path()).unwrap();
    let last = view.records().last().unwrap().offset as usize;
    for length in [0, 100, 4000, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let before = files(folder.path());
        let refusal = open(folder.path()).await.unwrap_err();
        assert!(matches!(refusal, OpenError::Header { .. } | OpenError::Damaged { .. }), "{refusal:?}");
        assert_eq!(files(folder.path()), before);
    }
    for byte in (0..last).step_by(7) {
        let mut flipped = whole.clone();
        flipped[byte] ^= 0x10;
        std::fs::write(&file, &flipped).unwrap();
        let refusal = open(folder.path()).await.unwrap_err();
        match refusal {
            OpenError::Header { .. } => assert!(byte < 128),
            OpenError::Damaged { .. } => assert!(refusal.to_string().contains("unanimous log verify"), "{refusal}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(std::fs::read(&file).unwrap(), flipped);
    }
    std::fs::write(&file, &whole).unwrap();
    open(folder.path()).await.unwrap();
}

/// One copy of an older frame is damaged: refused as any damage, and opened when a person says so.
#[tokio::test]
async fn a_single_copy_is_believed_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let owner = written(folder.path()).await;
    let file = segment(folder.path());
    let mut bytes = std::fs::read(&file).unwrap();
    let first = read(folder.path()).unwrap().records().find(|view| view.record.encoded_len() > 40).unwrap().offset;
    bytes[first as usize + 40] ^= 1;
    std::fs::write(&file, &bytes).unwrap();

    let view = read(folder.path()).unwrap();
    let verified = view.verify();
    assert!(!verified.is_sound());
    assert_eq!(verified.damage[0].kind, DamageKind::Copy);
    assert_eq!(view.unfinished().len(), 2, "everything can be read");
    let refusal = open(folder.path()).await.unwrap_err();
    assert!(refusal.to_string().contains("believe_single_copies"), "{refusal}");
    let log = FileLog::options().believe_single_copies(true).open(folder.path()).await.unwrap();
    assert_eq!(log.opened().repaired.len(), 1);
    assert_eq!(log.unfinished().await.unwrap(), [decision(owner, 1), decision(owner, 3)]);
    assert!(read(folder.path()).unwrap().verify().is_sound(), "it is written anew");
}

/// A last write that was not finished is cut and reported, and the log goes on; one good copy of it is believed.
#[tokio::test]
async fn a_torn_tail_is_cut_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await.unwrap();
    let owner = log.owner();
    log.decide(decision(owner, 1)).await.unwrap();
    log.decide(decision(owner, 2)).await.unwrap();
    log.close().await;
    let file = segment(folder.path());
    let whole = std::fs::read(&file).unwrap();
    let view = read(folder.path()).unwrap();
    let (last, end) = (view.records().last().unwrap().offset as usize, view.verify().used as usize);
    for (from, known) in [(last + 20, Known::Abort), ((last + end) / 2 + 20, Known::Commit(decision(owner, 2)))] {
        let copy = tempfile::tempdir().unwrap();
        let mut torn = whole.clone();
        torn[from..].fill(0);
        std::fs::write(copy.path().join(file.file_name().unwrap()), &torn).unwrap();
        let view = read(copy.path()).unwrap();
        let verified = view.verify();
        assert!(verified.is_sound(), "a torn tail is no damage");
        assert_eq!(verified.tail.is_some(), known == Known::Abort);

        let log = open(copy.path()).await.unwrap();
        assert_eq!(log.lookup(owner.transaction(1)).await.unwrap(), Known::Commit(decision(owner, 1)));
        assert_eq!(log.lookup(owner.transaction(2)).await.unwrap(), known);
        assert_eq!(log.opened().tail, verified.tail);
        assert_eq!(log.opened().single_copy, verified.single_copy);
        assert!(verified.tail.is_some() != verified.single_copy.is_some());
        log.decide(decision(log.owner(), 1)).await.unwrap();
        log.close().await;
        let again = open(copy.path()).await.unwrap();
        assert_eq!(again.lookup(owner.transaction(2)).await.unwrap(), known);
        assert_eq!(again.opened().tail, None, "it is gone");
    }
}

#[tokio::test]
async fn strange_folders() {
    let folder = tempfile::tempdir().unwrap();
    let owner = written(folder.path()).await;
    let file = segment(folder.path());

    // What is not the log's stays; what a crash left of it goes.
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    std::fs::write(folder.path().join("5.log"), "mine").unwrap();
    std::fs::copy(&file, folder.path().join("0000000000.log")).unwrap();
    std::fs::write(folder.path().join("reserve.new"), "half a segment").unwrap();
    let log = open(folder.path()).await.unwrap();
    assert_eq!(log.unfinished().await.unwrap().len(), 2);
    log.close().await;
    let mut found = files(folder.path());
    // It is there or not, as the close came after or before it was taken.
    if let Some(reserve) = found.remove(&folder.path().join("reserve.new")) {
        assert!(reserve.iter().all(|&byte| byte == 0));
    }
    let names: Vec<_> = found.keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["0000000002.log", "5.log", "notes.txt"]);

    // A renamed segment is not taken for another one.
    std::fs::rename(folder.path().join("0000000002.log"), folder.path().join("0000000009.log")).unwrap();
    let refusal = open(folder.path()).await.unwrap_err();
    assert!(refusal.to_string().contains("give it its own name back, 0000000002.log"), "{refusal}");
    assert!(!read(folder.path()).unwrap().verify().is_sound());
    std::fs::rename(folder.path().join("0000000009.log"), folder.path().join("0000000002.log")).unwrap();

    // Nothing there is no log, for a reader; and a new one, for an owner, that presumes nothing of the old one's.
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(read(empty.path()), Err(ReadError::NoLog { .. })));
    assert!(matches!(read(empty.path().join("nothing")), Err(ReadError::NoLog { .. })));
    let other = open(empty.path()).await.unwrap();
    assert_eq!(other.lookup(owner.transaction(9)).await.unwrap(), Known::Hold(HoldReason::ForeignLog));
    let file = empty.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(open(&file).await, Err(OpenError::Io { .. })));
    assert!(matches!(FileLog::options().max_size(1).open(empty.path()).await, Err(OpenError::MaxSize { .. })));
}

/// Rule 4: a copy of the log goes on as another incarnation. What the original decided after the copy was made is not in it: opened as
/// restored, it presumes nothing of that.
#[tokio::test]
async fn a_restored_backup_presumes_nothing_of_what_was_before() {
    let (folder, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = open(folder.path()).await.unwrap();
    let owner = log.owner();
    log.decide(decision(owner, 1)).await.unwrap();
    log.decide(decision(owner, 3)).await.unwrap();
    for (path, bytes) in files(folder.path()) {
        std::fs::write(backup.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    log.decide(decision(owner, 2)).await.unwrap();
    log.close().await;
    let later = open(folder.path()).await.unwrap().owner();

    let restored = FileLog::options().restored_from_backup(true).open(backup.path()).await.unwrap();
    assert_eq!(restored.lookup(owner.transaction(1)).await.unwrap(), Known::Commit(decision(owner, 1)));
    assert_eq!(restored.lookup(owner.transaction(2)).await.unwrap(), Known::Hold(HoldReason::BeyondHorizon));
    let last = restored.lookup(owner.transaction(3)).await.unwrap();
    assert_eq!(
        last,
        Known::Hold(HoldReason::BeyondHorizon),
        "the last write may have been copied before it was durable"
    );
    assert_eq!(restored.opened().unproven, [owner.transaction(3)]);
    assert_eq!(restored.owner().incarnation.counter, later.incarnation.counter);
    let unheard = restored.lookup(later.transaction(1)).await.unwrap();
    assert_eq!(unheard, Known::Hold(HoldReason::ForeignIncarnation), "the same counter, another nonce");
    assert_eq!(restored.lookup(restored.owner().transaction(1)).await.unwrap(), Known::Abort);
    restored.close().await;
    let again = open(backup.path()).await.unwrap();
    assert_eq!(again.lookup(owner.transaction(2)).await.unwrap(), Known::Hold(HoldReason::BeyondHorizon), "for ever");
}

/// Somebody moves the log's folder away while it is open: the next segment is not begun, wherever it would land.
#[tokio::test]
async fn a_moved_folder_poisons() {
    let folder = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (folder.path().join("log"), folder.path().join("elsewhere"));
    let log = open(&path).await.unwrap();
    let owner = log.owner();
    std::fs::rename(&path, &elsewhere).unwrap();
    std::fs::create_dir(&path).unwrap();
    let mut sequence = 0;
    let poisoned = loop {
        sequence += 1;
        if let Err(error) = log.decide(decision(owner, sequence)).await {
            break error;
        }
        log.forget(owner.transaction(sequence));
        assert!(sequence < 1000, "a segment is begun in a folder that is not the log's any more");
    };
    assert!(matches!(poisoned, DecideError::Refused(_)), "{poisoned:?}");
    assert!(files(&path).is_empty());
    log.close().await;
    let log = open(&elsewhere).await.unwrap();
    assert!(log.lookup(owner.transaction(sequence - 1)).await.unwrap() != Known::Abort);
}

/// A reader takes no lock, changes nothing, and takes neither a frame in flight nor a segment that is just replaced for damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_beside_a_running_process() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await.unwrap();
    let owner = log.owner();
    let path = folder.path().to_owned();
    let (acknowledged, latest) = tokio::sync::watch::channel(0);
    let reader = tokio::task::spawn_blocking(move || {
        let mut segments = std::collections::BTreeSet::new();
        let mut looks = 0;
        while segments.len() < 5 {
            let before = *latest.borrow();
            let view = read(&path).unwrap();
            let verified = view.verify();
            assert!(verified.is_sound(), "{verified:?}");
            // By the time of the look it may be finished, and dropped again from such a small log; it never looks aborted.
            let known = view.history().lookup(owner.transaction(before));
            assert!(before == 0 || known != Known::Abort, "{before} was acknowledged before the look: {verified:?}");
            segments.insert(view.header().segment);
            looks += 1;
            assert!(looks < 100_000, "the writer does not get on: {segments:?}");
        }
    });
    let mut sequence = 0;
    while !reader.is_finished() {
        sequence += 1;
        log.decide(decision(owner, sequence)).await.unwrap();
        acknowledged.send_replace(sequence);
        log.forget(owner.transaction(sequence));
        assert!(sequence < 100_000, "the log begins no segments");
    }
    reader.await.unwrap();
    log.close().await;

    let before = files(folder.path());
    let view = read(folder.path()).unwrap();
    assert_eq!(view.records().filter(|view| matches!(view.record, Record::Incarnation { .. })).count(), 1);
    assert_eq!(view.verify().unfinished, 0);
    assert_eq!(files(folder.path()), before);
}

/// A disk as a reader may find it beside a running process: the first looks are given, the later ones are at the disk below.
struct Flickering {
    looks: Mutex<VecDeque<io::Result<Vec<u8>>>>,
}

struct FlickeringFolder {
    folder: Box<dyn Folder>,
    look: Mutex<Option<io::Result<Vec<u8>>>>,
}

struct Given(Vec<u8>);

impl Disk for Flickering {
    fn open_folder(&self, path: &Path, create: bool) -> io::Result<Box<dyn Folder>> {
        let folder = OsDisk.open_folder(path, create)?;
        Ok(Box::new(FlickeringFolder { folder, look: Mutex::new(self.looks.lock().unwrap().pop_front()) }))
    }
}

impl Folder for FlickeringFolder {
    fn try_lock(&self) -> io::Result<bool> {
        panic!("a reader takes no lock")
    }
    fn is_current(&self) -> io::Result<bool> {
        self.folder.is_current()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.folder.list()
    }
    fn create(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        panic!("a reader changes nothing")
    }
    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn DiskFile>> {
        assert!(!write, "a reader changes nothing");
        match self.look.lock().unwrap().take() {
            Some(look) => Ok(Box::new(Given(look?))),
            None => self.folder.open(name, write),
        }
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        panic!("a reader changes nothing")
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        panic!("a reader changes nothing")
    }
    fn sync(&self) -> io::Result<()> {
        panic!("a reader changes nothing")
    }
}

impl DiskFile for Given {
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.clone())
    }
    fn preallocate(&self, _: u64) -> io::Result<()> {
        panic!("a reader changes nothing")
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        panic!("a reader changes nothing")
    }
    fn sync_data(&self) -> io::Result<()> {
        panic!("a reader changes nothing")
    }
    fn sync_all(&self) -> io::Result<()> {
        panic!("a reader changes nothing")
    }
}

/// What a running process makes look damaged for a moment: a frame of which the reader got the old page and of the next one the new
/// one, a frame in flight, a segment that is gone between listing and opening. And what stays so, is so.
#[tokio::test]
async fn a_reader_looks_again() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path()).await;
    let whole = std::fs::read(segment(folder.path())).unwrap();
    let view = read(folder.path()).unwrap();
    let mut offsets: Vec<_> = view.records().map(|view| view.offset as usize).collect();
    offsets.dedup();
    let (older, newest) = (offsets[1], *offsets.last().unwrap());
    let (mut stale, mut torn) = (whole.clone(), whole.clone());
    stale[older..offsets[2]].fill(0);
    torn[newest + 8..].fill(0);
    let gone = || Err(io::ErrorKind::NotFound.into());

    let looks = VecDeque::from([Ok(stale.clone()), gone(), Ok(torn.clone()), Ok(stale.clone())]);
    let disk = Flickering { looks: Mutex::new(looks) };
    let verified = read_from(&disk, folder.path()).unwrap().verify();
    assert_eq!(verified, view.verify());

    let disk = Flickering { looks: Mutex::new((0..100).map(|_| Ok(stale.clone())).collect()) };
    assert_eq!(read_from(&disk, folder.path()).unwrap().verify().damage[0].kind, DamageKind::Frame);
    let disk = Flickering { looks: Mutex::new((0..100).map(|_| Ok(torn.clone())).collect()) };
    assert_eq!(read_from(&disk, folder.path()).unwrap().verify().tail.unwrap().offset, newest as u64);
    let disk = Flickering { looks: Mutex::new((0..100).map(|_| gone()).collect()) };
    assert!(matches!(read_from(&disk, folder.path()), Err(ReadError::Io { .. })));
}

#[tokio::test]
async fn a_memory_log_keeps_the_same_rules() {
    let log = MemoryLog::new();
    let owner = log.owner();
    log.ready().unwrap();
    log.decide(decision(owner, 1)).await.unwrap();
    log.decide(decision(owner, 2)).await.unwrap();
    log.decide(decision(owner, 2)).await.unwrap();
    let other = DecisionRecord { participants: vec![], ..decision(owner, 2) };
    assert!(matches!(log.decide(other).await, Err(DecideError::Unknown(_))));
    log.forget(owner.transaction(1));
    assert_eq!(log.unfinished().await.unwrap(), [decision(owner, 2)]);
    assert_eq!(log.lookup(owner.transaction(1)).await.unwrap(), Known::Commit(decision(owner, 1)));
    assert_eq!(log.lookup(owner.transaction(3)).await.unwrap(), Known::Abort);
    let next = MemoryLog::new();
    assert_eq!(next.lookup(owner.transaction(1)).await.unwrap(), Known::Hold(HoldReason::ForeignLog));
    assert!(matches!(next.decide(decision(owner, 4)).await, Err(DecideError::Refused(_))));
    log.close().await;
    assert!(log.ready().is_err() && log.lookup(owner.transaction(1)).await.is_err());
    assert!(matches!(log.decide(decision(owner, 4)).await, Err(DecideError::Refused(_))));
}

/// Early acknowledgement: what is concluded of an earlier run's transaction is recorded once, outlives a restart, is unfinished until it is
/// forgotten, and is never contradicted; of a run that the log does not know nothing is taken.
#[tokio::test]
async fn a_conclusion_is_recorded_once_of_any_known_run() {
    use unanimous::Decision::{Abort, Commit};
    let folder = tempfile::tempdir().unwrap();
    let first = written(folder.path()).await;
    let log = open(folder.path()).await.unwrap();
    let [aborted, committed, open_one] = [11, 12, 13].map(|sequence| first.transaction(sequence));
    assert!(log.records_aborts());
    assert_eq!(log.recorded(aborted).await.unwrap(), None);
    assert!(
        matches!(log.decide(decision(first, 11)).await, Err(DecideError::Refused(_))),
        "it is no decision of its own"
    );
    log.conclude(decision(first, 11), Abort).await.unwrap();
    log.conclude(decision(first, 12), Commit).await.unwrap();
    log.conclude(decision(first, 11), Abort).await.expect("the same again is the same");
    for (sequence, other) in [(11, Commit), (12, Abort)] {
        let twice = log.conclude(decision(first, sequence), other).await;
        assert!(matches!(twice, Err(DecideError::Unknown(_))), "{twice:?}");
    }
    let mut unknown = first;
    unknown.incarnation.nonce ^= 1;
    for decision_of in [Abort, Commit] {
        let refused = log.conclude(decision(unknown, 1), decision_of).await;
        assert!(matches!(refused, Err(DecideError::Refused(_))), "{refused:?}");
    }
    log.conclude(decision(log.owner(), 1), Abort).await.unwrap();
    let own = log.owner().transaction(1);
    assert!(matches!(log.decide(decision(log.owner(), 1)).await, Err(DecideError::Unknown(_))));
    log.close().await;

    let log = open(folder.path()).await.unwrap();
    assert_eq!(
        (log.recorded(aborted).await.unwrap(), log.lookup(aborted).await.unwrap()),
        (Some(Known::Abort), Known::Abort)
    );
    assert_eq!(log.recorded(committed).await.unwrap(), Some(Known::Commit(decision(first, 12))));
    assert_eq!((log.recorded(open_one).await.unwrap(), log.lookup(open_one).await.unwrap()), (None, Known::Abort));
    let aborts = log.unfinished_aborts().await.unwrap();
    assert_eq!(aborts.iter().map(|record| record.transaction).collect::<Vec<_>>(), [aborted, own]);
    assert!(log.unfinished().await.unwrap().iter().all(|record| record.transaction != aborted));
    log.forget(aborted);
    log.forget(own);
    assert!(log.unfinished_aborts().await.unwrap().is_empty());
    assert_eq!(log.recorded(aborted).await.unwrap(), Some(Known::Abort), "it is kept to the horizon");
    log.close().await;
}
