//! What a log says when it can't go on: what is wrong, why, and what to do; and what its types show of themselves.

#![allow(clippy::unwrap_used)]

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use unanimous::env::NoRuntime;
use unanimous::log::{FileLog, HeaderError, LogError, MemoryLog, OpenError, ReadError, read};
use unanimous::{DecideError, DecisionLog, DecisionRecord, Incarnation, Note, Owner, Participant, TransactionId};
use unanimous_core::log::record::EncodeError;
use unanimous_core::log::{Damage, DamageKind, HistoryError};
use unanimous_testing::disk::{TestDisk, TestEnv};

fn transaction() -> TransactionId {
    TransactionId { log: unanimous::LogId(42), incarnation: Incarnation::new(2, 3), sequence: 7 }
}

fn decision(owner: Owner, sequence: u64, resource: &str) -> DecisionRecord {
    let participants = vec![Participant { number: 0, resource: resource.into(), store: None }];
    DecisionRecord { transaction: owner.transaction(sequence), participants, decided_at: 1, note: Note::default() }
}

fn full() -> Arc<io::Error> {
    Arc::new(io::ErrorKind::StorageFull.into())
}

#[test]
fn a_refusal_says_what_to_do() {
    let unwritable = EncodeError::TooManyParticipants { count: 70_000 };
    for (error, text, source) in [
        (LogError::Closed, "the decision log is closed".to_owned(), None),
        (
            LogError::Full { unfinished: 9, most: 8 },
            "9 bytes of decisions that are not finished fill the decision log (8 bytes); bring back the stores that they \
             wait for (`TransactionManager::in_doubt` names them), or restart with a greater max_size"
                .to_owned(),
            None,
        ),
        (
            LogError::NoReserve(full()),
            "there is no space on the disk for the decision log's next segment; free some, it is tried again".to_owned(),
            Some(full().to_string()),
        ),
        (
            LogError::NotOwned(transaction()),
            format!(
                "the transaction {} was not begun by this decision log's current incarnation; only its own can be decided",
                transaction()
            ),
            None,
        ),
        (
            LogError::DecidedTwice(transaction()),
            format!("the transaction {} has a decision with other participants already", transaction()),
            None,
        ),
        (
            LogError::Unwritable(unwritable.clone()),
            "no decision log can hold this decision".to_owned(),
            Some(unwritable.to_string()),
        ),
        (
            LogError::TooLarge { bytes: 9, most: 8 },
            "the decision takes 9 bytes, and this log has room for 8: fewer participants, shorter names, or a greater max_size"
                .to_owned(),
            None,
        ),
        (LogError::NoRuntime, "the runtime ended before the decision was written".to_owned(), None),
        (
            LogError::Database(Arc::new(io::Error::other("gone"))),
            "the database of the decision log does not take decisions".to_owned(),
            Some("gone".to_owned()),
        ),
    ] {
        assert_eq!(error.to_string(), text);
        assert_eq!(error.source().map(ToString::to_string), source, "{text}");
    }
}

#[test]
fn a_log_that_is_not_opened_says_why_and_what_to_do() {
    let (path, file) = (PathBuf::from("decisions"), PathBuf::from("decisions/0000000002.log"));
    let damage = |kind| vec![Damage { offset: 128, end: 256, kind }];
    let presumed = "presuming anything of decisions that can't be read could undo commits. ";
    for (error, parts, has_source) in [
        (OpenError::Held { path: path.clone() }, vec!["decisions is held by another process; stop that one"], false),
        (OpenError::NoRuntime(NoRuntime), vec!["within a tokio runtime"], true),
        (OpenError::MaxSize { max_size: 1 }, vec!["a max_size of 1 bytes is not possible; it must be 49152 to"], false),
        (
            OpenError::Io { path: path.clone(), what: "sync", source: io::Error::other("gone") },
            vec!["could not sync decisions"],
            true,
        ),
        (
            OpenError::Header { file: file.clone(), source: HeaderError::Damaged },
            vec!["0000000002.log can't be read as a segment", presumed, "bring the file back from a mirror"],
            true,
        ),
        (
            OpenError::Damaged { file: file.clone(), damage: damage(DamageKind::Frame) },
            vec!["damaged in decisions/0000000002.log", presumed, "mirror", "`unanimous log verify`"],
            true,
        ),
        (
            OpenError::Damaged { file: file.clone(), damage: damage(DamageKind::Copy) },
            vec!["Every record is still whole in its second copy", "open it once with believe_single_copies"],
            true,
        ),
        (
            OpenError::Misnamed { file: file.clone(), number: 3 },
            vec!["its header says 3: give it its own name back, 0000000003.log"],
            false,
        ),
        (
            OpenError::Contradiction { file: file.clone(), source: HistoryError::DecidedTwice(transaction()) },
            vec!["the records in decisions/0000000002.log contradict each other", "please report it"],
            true,
        ),
        (
            OpenError::CountersUsedUp { path },
            vec!["has had its last incarnation; begin a new one in another folder"],
            false,
        ),
    ] {
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "{text:?} without {part:?}");
        }
        assert_eq!(error.source().is_some(), has_source, "{text}");
    }
    // A newer format is whole: nothing is to be brought back.
    let newer = HeaderError::Newer { version: 2 };
    let opened = OpenError::Header { file: file.clone(), source: newer.clone() };
    let looked = ReadError::Header { file, source: newer };
    for (error, text) in [(opened.to_string(), opened.source()), (looked.to_string(), looked.source())] {
        assert!(!error.contains("mirror"), "{error}");
        assert!(text.unwrap().to_string().contains("use that one or a newer one"));
    }
}

#[test]
fn a_look_that_fails_says_why() {
    let (path, file) = (PathBuf::from("decisions"), PathBuf::from("decisions/0000000002.log"));
    let none = ReadError::NoLog { path: path.clone() };
    assert_eq!(none.to_string(), "there is no decision log in decisions");
    assert!(none.source().is_none());
    let failed = ReadError::Io { path, source: io::Error::other("gone") };
    assert_eq!(failed.to_string(), "could not read decisions");
    assert_eq!(failed.source().unwrap().to_string(), "gone");
    let damaged = ReadError::Header { file, source: HeaderError::NotALog };
    assert!(
        damaged.to_string().contains("can't be read as a segment of a decision log. Look after the disk"),
        "{damaged}"
    );
    assert_eq!(damaged.source().unwrap().to_string(), "not a segment of a decision log");
}

/// What a person sees of a log in a program's own messages: where it is, who it is, and nothing of what is in it.
#[tokio::test]
async fn a_log_shows_where_and_who_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let options = FileLog::options().max_size(48 * 1024);
    let shown = format!("{options:?}");
    assert!(shown.contains("max_size: 49152") && shown.contains("restored_from_backup: false"), "{shown}");
    let log = options.open(folder.path()).await.unwrap();
    assert_eq!((log.path(), log.id()), (folder.path(), log.owner().log));
    let shown = format!("{log:?}");
    assert!(shown.contains(&log.id().to_string()) && shown.contains("incarnation: "), "{shown}");
    let view = read(folder.path()).unwrap();
    assert_eq!((view.path(), view.header().log), (folder.path(), log.id()));
    assert_eq!(view.file(), folder.path().join("0000000001.log"));
    assert!(view.superseded().is_empty());
    log.close().await;
    // As a crash leaves it, before the older one was removed.
    let older = std::fs::read(folder.path().join("0000000001.log")).unwrap();
    FileLog::options().max_size(48 * 1024).open(folder.path()).await.unwrap().close().await;
    std::fs::write(folder.path().join("0000000001.log"), older).unwrap();
    let view = read(folder.path()).unwrap();
    assert_eq!(view.header().segment, 2);
    let superseded: Vec<_> = view.superseded().iter().map(|older| (older.number, older.file.clone())).collect();
    assert_eq!(superseded, [(1, folder.path().join("0000000001.log"))]);

    let memory = MemoryLog::default();
    let shown = format!("{memory:?}");
    assert!(shown.contains(&memory.owner().log.to_string()), "{shown}");
}

/// Without a runtime a log in files isn't opened, and what to do is said.
#[test]
fn without_a_runtime_no_log_is_opened() {
    use std::task::{Context, Poll, Waker};
    let disk = TestDisk::default();
    let env = TestEnv::new(1);
    env.end_runtime();
    let mut opening = Box::pin(FileLog::options().disk(Arc::new(disk)).env(env).open("log"));
    match opening.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(OpenError::NoRuntime(NoRuntime))) => {}
        other => panic!("{other:?}"),
    }
}

/// The last counter is used up: no incarnation could be told from an earlier one any more.
#[tokio::test]
async fn a_log_whose_counters_are_used_up_is_not_opened() {
    use unanimous::env::disk::{Disk, OsDisk};
    use unanimous_core::log::frame::encode_beginning;
    use unanimous_core::log::{Header, Record};
    let folder = tempfile::tempdir().unwrap();
    let owner = Owner { log: unanimous::LogId(42), incarnation: Incarnation::new(u32::MAX, 7) };
    let mut records = Vec::new();
    Record::Incarnation { incarnation: owner.incarnation, started_at: 1 }.encode(&mut records).unwrap();
    let header = Header { log: owner.log, segment: 1, length: 16384, incarnation: owner.incarnation, created_at: 1 };
    let file = OsDisk.open_folder(folder.path(), false).unwrap().create("0000000001.log").unwrap();
    file.preallocate(16384).unwrap();
    file.write_at(0, &encode_beginning(&header, &records, 1)).unwrap();
    let refusal = FileLog::options().max_size(48 * 1024).open(folder.path()).await.unwrap_err();
    assert!(matches!(refusal, OpenError::CountersUsedUp { .. }), "{refusal:?}");
}

/// Records whose checksums are right and that contradict each other: no version of the program wrote them, and nothing is presumed.
#[tokio::test]
async fn records_that_contradict_each_other_are_not_opened() {
    use unanimous::env::disk::{Disk, OsDisk};
    use unanimous_core::log::frame::{encode_beginning, encode_frame};
    use unanimous_core::log::{Header, Record};
    let folder = tempfile::tempdir().unwrap();
    let owner = Owner { log: unanimous::LogId(42), incarnation: Incarnation::new(1, 7) };
    let header = Header { log: owner.log, segment: 1, length: 16384, incarnation: owner.incarnation, created_at: 1 };
    let encoded = |record: Record| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        bytes
    };
    let begun = encoded(Record::Incarnation { incarnation: owner.incarnation, started_at: 1 });
    let mut bytes = encode_beginning(&header, &begun, 1);
    for resource in ["orders", "billing"] {
        let record = encoded(Record::Commit(decision(owner, 1, resource)));
        bytes.extend(encode_frame(header.salt(), bytes.len() as u64, &record, 1));
    }
    let file = OsDisk.open_folder(folder.path(), false).unwrap().create("0000000001.log").unwrap();
    file.preallocate(16384).unwrap();
    file.write_at(0, &bytes).unwrap();
    let refusal = FileLog::options().max_size(48 * 1024).open(folder.path()).await.unwrap_err();
    assert!(matches!(refusal, OpenError::Contradiction { .. }), "{refusal:?}");
    let verified = read(folder.path()).unwrap().verify();
    assert!(!verified.is_sound());
    assert!(verified.contradictions[0].contains("is decided twice, differently"), "{:?}", verified.contradictions);
}

/// A memory log is full too, some day, and says so before it decides.
#[tokio::test]
async fn a_memory_log_takes_no_more_than_it_can_hold() {
    let log = MemoryLog::new();
    let mut sequence = 0;
    while log.ready().is_ok() {
        sequence += 1;
        assert!(sequence < 10_000_000, "a memory log never fills up");
        let participant = |number| Participant { number, resource: "r".repeat(255), store: None };
        let participants = (0..60_000).map(participant).collect();
        log.decide(DecisionRecord { participants, ..decision(log.owner(), sequence, "") }).await.unwrap();
    }
    match log.decide(decision(log.owner(), sequence + 1, "orders")).await {
        Err(DecideError::Refused(why)) => assert!(matches!(why.downcast_ref(), Some(LogError::Full { .. })), "{why}"),
        other => panic!("{other:?}"),
    }
}
