//! The log when its disk fails, is full, or is slow: poison (rule 12), refusals, and one sync for all that wait.

#![allow(clippy::unwrap_used)]

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::time::Duration;

use unanimous::env::{BoxFuture, Env, NoRuntime, TokioEnv};
use unanimous::log::{FileLog, FileLogOptions, LogError};
use unanimous::thread::{Background, wait};
use unanimous::{
    BoxError, DecideError, Decider, DecisionLog, DecisionRecord, HoldReason, Known, Note, Owner, Participant,
};

use unanimous_testing::disk::{Event, Fault, TestDisk, TestEnv};

const LOG: &str = "log";
const FIRST: &str = "0000000001.log";
const LEAST: u64 = 48 * 1024;

fn decision(owner: Owner, sequence: u64) -> DecisionRecord {
    sized(owner, sequence, 10)
}

/// A decision whose record takes about this many bytes more than 50.
fn sized(owner: Owner, sequence: u64, bytes: usize) -> DecisionRecord {
    let participants = vec![Participant { number: 0, resource: "r".repeat(bytes), store: None }];
    DecisionRecord { transaction: owner.transaction(sequence), participants, decided_at: 1, note: Note::default() }
}

fn options(disk: &TestDisk) -> FileLogOptions {
    FileLog::options().disk(Arc::new(disk.clone())).max_size(LEAST).lock_wait(Duration::ZERO)
}

/// A log in a world where everything happens at once.
async fn open(disk: &TestDisk) -> (FileLog, Arc<TestEnv>) {
    let env = TestEnv::new(disk.events().len() as u64);
    (options(disk).env(env.clone()).open(LOG).await.unwrap(), env)
}

fn why(error: &BoxError) -> &LogError {
    error.downcast_ref().expect("a log says why with its own error")
}

fn refused(result: Result<(), DecideError>) -> LogError {
    match result {
        Err(DecideError::Refused(source)) => why(&source).clone(),
        other => panic!("not refused: {other:?}"),
    }
}

fn unknown(result: Result<(), DecideError>) -> LogError {
    match result {
        Err(DecideError::Unknown(source)) => why(&source).clone(),
        other => panic!("not unknown: {other:?}"),
    }
}

/// Rule 12: what was being written is unknown, nothing is decided and nothing presumed any more, and the next start finds out.
#[tokio::test]
async fn a_failed_write_or_sync_poisons() {
    for fault in [Fault::NextSync, Fault::NextWrite, Fault::Panic] {
        let disk = TestDisk::default();
        let (log, _) = open(&disk).await;
        let owner = log.owner();
        log.decide(decision(owner, 1)).await.unwrap();
        disk.fail(fault);
        // The test's world runs the writer on this thread, so that its panic comes out here.
        let decided = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| log.decide(decision(owner, 2))));
        match decided {
            Ok(decided) => assert!(matches!(unknown(decided.await), LogError::Poisoned(_)), "{fault:?}"),
            Err(_) => assert_eq!(fault, Fault::Panic),
        }
        let before = disk.events();
        let later = tokio::time::timeout(Duration::from_secs(20), log.decide(decision(owner, 3))).await;
        let later = later.expect("a poisoned log answers at once");
        assert!(matches!(refused(later), LogError::Poisoned(_)), "{fault:?}");
        for sequence in 1..=4 {
            let known = log.lookup(owner.transaction(sequence)).await.unwrap();
            assert_eq!(known, Known::Hold(HoldReason::Poisoned), "{fault:?}");
        }
        assert!(log.unfinished().await.is_err());
        let said = log.ready().unwrap_err();
        assert!(said.to_string().contains("restart the process"), "{said}");
        assert!(why(&said).source().is_some());
        log.forget(owner.transaction(1));
        log.close().await;
        assert_eq!(disk.events(), before, "a poisoned log touches the disk no more");

        let (log, _) = open(&disk.after_kill()).await;
        assert_eq!(log.lookup(owner.transaction(1)).await.unwrap(), Known::Commit(decision(owner, 1)));
        // Half of the write is the first copy, and a failed sync leaves the page cache as it is.
        assert_eq!(log.lookup(owner.transaction(2)).await.unwrap(), Known::Commit(decision(owner, 2)), "{fault:?}");
        assert_eq!(log.lookup(owner.transaction(3)).await.unwrap(), Known::Abort, "{fault:?}");
    }
}

/// A failure while a segment is begun poisons too. What waited for it is refused, since no write of it was tried; the older segment is
/// still there, and so is what it holds.
#[tokio::test]
async fn a_failure_while_a_segment_is_begun_loses_nothing() {
    for fault in [Fault::NextSyncAll, Fault::NextRename, Fault::NextSyncFolder] {
        let disk = TestDisk::default();
        let (log, _) = open(&disk).await;
        let owner = log.owner();
        disk.fail(fault);
        let mut sequence = 0;
        let failed = loop {
            sequence += 1;
            let decided = log.decide(sized(owner, sequence, 100)).await;
            if decided.is_err() {
                break refused(decided);
            }
            assert!(sequence < 1000, "no segment is begun");
            log.forget(owner.transaction(sequence));
        };
        assert!(matches!(failed, LogError::Poisoned(_)), "{fault:?}: {failed}");
        for seed in 0..4 {
            let (log, _) = open(&disk.after_power_cut(seed)).await;
            for before in 1..sequence {
                let known = log.lookup(owner.transaction(before)).await.unwrap();
                assert!(known != Known::Abort, "{fault:?}: {before}");
            }
            assert_eq!(log.lookup(owner.transaction(sequence)).await.unwrap(), Known::Abort, "{fault:?}");
        }
    }
}

/// A full disk refuses new work, in time: what is past `ready` is still written, what is decided can still be finished; and it goes on by
/// itself when there is space again.
#[tokio::test]
async fn a_full_disk_refuses_in_time_and_recovers() {
    let disk = TestDisk::default();
    let (log, env) = open(&disk).await;
    let owner = log.owner();
    log.ready().unwrap();
    assert_eq!(disk.names(LOG), [FIRST, "reserve.new"], "the next segment's space is taken ahead");
    // Somebody else takes all the space that is left.
    disk.limit(Some(disk.used()));
    let mut sequence = 0;
    while disk.names(LOG)[0] == FIRST {
        sequence += 1;
        log.decide(sized(owner, sequence, 100)).await.unwrap();
        log.forget(owner.transaction(sequence));
    }
    // The older segment's space was given back and taken for the next reserve: with nobody else around, a full disk is enough.
    assert_eq!(disk.names(LOG), ["0000000002.log", "reserve.new"]);
    log.ready().unwrap();

    // Now somebody takes it in between.
    disk.limit(Some(LEAST / 3));
    while disk.names(LOG).contains(&"reserve.new".to_owned()) {
        sequence += 1;
        log.decide(sized(owner, sequence, 100)).await.unwrap();
        log.forget(owner.transaction(sequence));
    }
    let said = log.ready().unwrap_err();
    assert!(matches!(why(&said), LogError::NoReserve(_)), "{said}");
    sequence += 1;
    log.decide(sized(owner, sequence, 100)).await.expect("what is past `ready` is still written");
    let late = loop {
        sequence += 1;
        match log.decide(sized(owner, sequence, 100)).await {
            Ok(()) => log.forget(owner.transaction(sequence)),
            refusal => break refused(refusal),
        }
    };
    assert!(matches!(late, LogError::NoReserve(_)), "the segment is full, and certainly nothing was written: {late}");
    assert_eq!(log.lookup(owner.transaction(sequence)).await.unwrap(), Known::Abort);
    assert!(log.lookup(owner.transaction(sequence - 1)).await.unwrap() != Known::Abort);

    disk.limit(None);
    assert!(log.ready().is_err(), "not tried at each question");
    env.advance(Duration::from_secs(1));
    assert!(log.ready().is_err(), "tried because of this question");
    log.ready().unwrap();
    log.decide(sized(owner, sequence, 100)).await.unwrap();
}

/// Rule 11: unfinished decisions are never dropped; when they alone fill the log, new work is refused until some are finished.
#[tokio::test]
async fn unfinished_decisions_fill_the_log_and_it_recovers() {
    let disk = TestDisk::default();
    let (log, _) = open(&disk).await;
    let owner = log.owner();
    let mut sequence = 0;
    while log.ready().is_ok() {
        sequence += 1;
        log.decide(sized(owner, sequence, 200)).await.unwrap();
        assert!(sequence < 1000, "a segment of 16 KiB never fills up");
    }
    let ready = sequence;
    let said = log.ready().unwrap_err();
    assert!(matches!(why(&said), LogError::Full { .. }), "{said}");
    let full = loop {
        sequence += 1;
        if let Err(error) = log.decide(sized(owner, sequence, 200)).await {
            break refused(Err(error));
        }
        assert!(sequence < 1000, "a segment of 16 KiB never fills up");
    };
    assert!(matches!(full, LogError::Full { .. }), "{full}");
    assert!(sequence > ready + 3, "there is room for what was past `ready`");
    log.close().await;

    let (log, env) = open(&disk).await;
    assert_eq!(log.unfinished().await.unwrap().len() as u64, sequence - 1, "all of them outlive a restart");
    assert!(log.ready().is_err());
    for done in 1..sequence {
        log.forget(owner.transaction(done));
    }
    env.run_tasks().await;
    log.ready().unwrap();
    assert!(log.unfinished().await.unwrap().is_empty());
}

/// A note is kept where there is room, over restarts too; where there is none it is left out, and never why a decision is refused.
#[tokio::test]
async fn a_note_is_left_out_where_there_is_no_room() {
    let disk = TestDisk::default();
    let (log, _) = open(&disk).await;
    let owner = log.owner();
    let noted = |sequence, bytes| DecisionRecord { note: Note::new("n".repeat(512)), ..sized(owner, sequence, bytes) };
    // A frame takes 2 KiB: these participants, and not the note too.
    let participant = |number| Participant { number, resource: "r".repeat(90), store: None };
    let large = DecisionRecord { participants: (0..20).map(participant).collect(), ..noted(1, 0) };
    log.decide(large.clone()).await.unwrap();
    let mut kept = vec![false];
    while log.ready().is_ok() {
        let record = noted(kept.len() as u64 + 1, 10);
        log.decide(record.clone()).await.unwrap();
        log.decide(record.clone()).await.expect("the same again is the same, with its note or without");
        let Known::Commit(known) = log.lookup(record.transaction).await.unwrap() else { panic!("it was decided") };
        assert!(known.decides_as(&record) && (known == record || known.note.is_empty()), "{known:?}");
        kept.push(!known.note.is_empty());
    }
    let mut without = 0;
    while log.decide(noted(kept.len() as u64 + 1, 10)).await.is_ok() {
        kept.push(false);
        without += 1;
    }
    assert!(without > 20, "{without} decisions were taken beyond `ready`, where notes must not take the room");
    let noted = kept.iter().skip(1).take_while(|kept| **kept).count();
    assert!(noted > 1 && !kept[1 + noted..].contains(&true), "first there is room, and then there is none: {kept:?}");
    log.close().await;

    let (log, _) = open(&disk).await;
    let after: Vec<_> = log.unfinished().await.unwrap().iter().map(|record| !record.note.is_empty()).collect();
    assert_eq!(after, kept);
}

/// However much is decided, the folder stays within its bound, and what is not finished is found for ever.
#[tokio::test]
async fn the_folder_is_bounded() {
    let disk = TestDisk::default();
    let (mut log, _) = open(&disk).await;
    let kept = sized(log.owner(), 1, 100);
    log.decide(kept.clone()).await.unwrap();
    let mut begun = 0;
    for life in 0..3 {
        let owner = log.owner();
        for sequence in 2..300 {
            log.decide(sized(owner, sequence, 100)).await.unwrap();
            log.forget(owner.transaction(sequence));
            assert!(disk.used() <= LEAST, "{} bytes", disk.used());
        }
        assert_eq!(log.lookup(owner.transaction(299)).await.unwrap(), Known::Commit(sized(owner, 299, 100)));
        assert_eq!(log.lookup(owner.transaction(2)).await.unwrap(), Known::Hold(HoldReason::BeyondHorizon));
        assert_eq!(log.lookup(owner.transaction(300)).await.unwrap(), Known::Abort);
        assert_eq!(log.unfinished().await.unwrap(), std::slice::from_ref(&kept));
        assert_eq!(owner.incarnation.counter, life + 1);
        begun += disk.events().iter().filter(|event| matches!(event, Event::Rename(..))).count();
        disk.clear_events();
        log.close().await;
        log = open(&disk).await.0;
    }
    assert!(begun > 9, "{begun} segments were begun");
}

/// The horizon: what was finished longer ago is gone when the next segment is begun, and held.
#[tokio::test]
async fn finished_decisions_are_kept_to_the_horizon() {
    let disk = TestDisk::default();
    let env = TestEnv::new(1);
    let horizon = Duration::from_secs(100);
    let reopen = || options(&disk).env(env.clone()).horizon(horizon).open(LOG);
    let log = reopen().await.unwrap();
    let owner = log.owner();
    log.decide(decision(owner, 1)).await.unwrap();
    log.forget(owner.transaction(1));
    log.close().await;
    env.advance(horizon);
    let log = reopen().await.unwrap();
    assert_eq!(log.lookup(owner.transaction(1)).await.unwrap(), Known::Commit(decision(owner, 1)));
    assert_eq!(log.lookup(owner.transaction(2)).await.unwrap(), Known::Abort);
    log.close().await;
    env.advance(Duration::from_secs(1));
    let log = reopen().await.unwrap();
    assert_eq!(log.lookup(owner.transaction(1)).await.unwrap(), Known::Hold(HoldReason::BeyondHorizon));
}

/// An end is written without a decision that takes it along, a little later; and at the close.
#[tokio::test]
async fn ends_are_written_soon() {
    let disk = TestDisk::default();
    let (log, env) = open(&disk).await;
    let owner = log.owner();
    for sequence in 1..=3 {
        log.decide(decision(owner, sequence)).await.unwrap();
    }
    env.run_tasks().await;
    disk.clear_events();
    log.forget(owner.transaction(1));
    log.forget(owner.transaction(1));
    log.forget(owner.transaction(9));
    assert_eq!(log.unfinished().await.unwrap().len(), 2);
    assert_eq!(disk.events(), [], "it returns at once");
    env.run_tasks().await;
    assert!(matches!(&disk.events()[..], [Event::Write(..), Event::SyncData(_)]), "{:?}", disk.events());
    env.run_tasks().await;
    assert_eq!(disk.events().len(), 2, "once");

    log.forget(owner.transaction(2));
    log.decide(decision(owner, 4)).await.unwrap();
    assert_eq!(disk.events().len(), 4, "a decision takes it along");
    env.run_tasks().await;
    assert_eq!(disk.events().len(), 4);

    log.forget(owner.transaction(3));
    log.close().await;
    let (log, _) = open(&disk).await;
    assert_eq!(log.unfinished().await.unwrap(), [decision(owner, 4)]);
}

/// A folder that was moved away or replaced is noticed before a segment is begun in it.
#[tokio::test]
async fn a_replaced_folder_poisons() {
    let disk = TestDisk::default();
    let (log, _) = open(&disk).await;
    let owner = log.owner();
    disk.replace_folder(LOG);
    let mut sequence = 0;
    let poisoned = loop {
        sequence += 1;
        if let Err(error) = log.decide(sized(owner, sequence, 100)).await {
            break refused(Err(error));
        }
        log.forget(owner.transaction(sequence));
        assert!(sequence < 1000, "segments are begun in a folder that is not the log's any more");
    };
    assert!(poisoned.source().unwrap().to_string().contains("moved or replaced"), "{poisoned:?}");
    assert!(disk.names(LOG).is_empty(), "nothing lands in the other folder");
}

#[tokio::test]
async fn only_own_transactions_are_decided_and_each_once() {
    let disk = TestDisk::default();
    let (log, _) = open(&disk).await;
    let owner = log.owner();
    let mut other = owner;
    other.incarnation.nonce ^= 1;
    assert!(matches!(refused(log.decide(decision(other, 1)).await), LogError::NotOwned(_)));
    assert!(matches!(refused(log.decide(sized(owner, 1, 256)).await), LogError::Unwritable(_)));
    let participant = |number| Participant { number, resource: "r".repeat(200), store: None };
    let large = DecisionRecord { participants: (0..20).map(participant).collect(), ..decision(owner, 1) };
    assert!(matches!(refused(log.decide(large).await), LogError::TooLarge { .. }));
    log.decide(decision(owner, 1)).await.unwrap();
    log.decide(decision(owner, 1)).await.expect("the same again is the same");
    assert!(matches!(unknown(log.decide(sized(owner, 1, 5)).await), LogError::DecidedTwice(_)));
    log.close().await;
    assert!(matches!(refused(log.decide(decision(owner, 2)).await), LogError::Closed));
    assert!(log.lookup(owner.transaction(1)).await.is_err());
    log.close().await;
}

/// The end of the runtime: what was not begun is refused, for certain.
#[tokio::test]
async fn without_a_runtime_nothing_is_written() {
    let disk = TestDisk::default();
    let (log, env) = open(&disk).await;
    let owner = log.owner();
    env.end_runtime();
    let before = disk.events();
    assert!(matches!(refused(log.decide(decision(owner, 1)).await), LogError::NoRuntime));
    assert_eq!(disk.events(), before);
    assert_eq!(log.lookup(owner.transaction(1)).await.unwrap(), Known::Abort);
    log.close().await;
}

/// Asks a future once.
async fn is_pending<F: Future>(future: &mut Pin<Box<F>>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

/// Group commit: those that come while one syncs wait for the next sync, which takes all of them along, in the order of their coming;
/// nobody is told before it has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sync_for_all_that_wait() {
    let disk = TestDisk::default();
    let log = options(&disk).max_size(1 << 20).env(TokioEnv::shared()).open(LOG).await.unwrap();
    let owner = log.owner();
    disk.close_gate();
    let first = log.decide(decision(owner, 1));
    disk.sync_is_waiting();
    disk.clear_events();
    let mut others: Vec<_> = (2..=40).map(|sequence| Box::pin(log.decide(decision(owner, sequence)))).collect();
    // One of those who wait goes away, and one who only asks comes.
    drop(others.remove(7));
    let mut asking = Box::pin(log.lookup(owner.transaction(20)));
    assert!(is_pending(&mut asking).await);
    assert_eq!(log.lookup(owner.transaction(41)).await.unwrap(), Known::Abort, "who is not decided waits for nobody");

    disk.let_through();
    first.await.unwrap();
    // The next sync waits at the gate, and nobody was told yet.
    disk.sync_is_waiting();
    for other in &mut others {
        assert!(is_pending(other).await, "nobody is told before the sync has ended");
    }
    assert!(is_pending(&mut asking).await);
    disk.let_through();
    for other in others {
        other.await.unwrap();
    }
    assert_eq!(asking.await.unwrap(), Known::Commit(decision(owner, 20)));
    assert_eq!(
        log.lookup(owner.transaction(9)).await.unwrap(),
        Known::Commit(decision(owner, 9)),
        "its caller had gone"
    );
    let events = disk.events();
    let name = || FIRST.to_owned();
    assert!(
        matches!(&events[..], [Event::SyncData(one), Event::Write(two, _), Event::SyncData(three)]
            if [one, two, three].iter().all(|found| **found == name())),
        "one write and one sync for 39 decisions, after the first one's sync: {events:?}"
    );
    let view = unanimous::log::read_from(&disk, LOG.as_ref()).unwrap();
    let order: Vec<_> = view.unfinished().iter().map(|record| record.transaction.sequence).collect();
    assert_eq!(order, (1..=40).collect::<Vec<_>>());
}

/// A plain thread writes its own decision. It does not stay with those that came meanwhile: another thread writes them.
#[test]
fn a_plain_thread_does_not_write_for_others() {
    let background = Background::start().unwrap();
    let disk = TestDisk::default();
    let log = Arc::new(background.open(options(&disk).max_size(1 << 20).env(background.env()).open(LOG)).unwrap());
    let owner = log.owner();
    disk.close_gate();
    let (say, told) = mpsc::channel();
    let its = log.clone();
    std::thread::spawn(move || say.send(wait(async { its.decide(decision(owner, 1)).await })));
    disk.sync_is_waiting();
    let others: Vec<_> = (2..=4).map(|sequence| log.decide(decision(owner, sequence))).collect();
    disk.let_through();
    // The next sync waits at the gate, and not on that thread.
    disk.sync_is_waiting();
    told.recv_timeout(Duration::from_secs(60)).expect("its own decision is durable").unwrap();
    disk.let_through();
    for other in others {
        wait(other).unwrap();
    }
    wait(log.close());
    let view = unanimous::log::read_from(&disk, LOG.as_ref()).unwrap();
    let order: Vec<_> = view.unfinished().iter().map(|record| record.transaction.sequence).collect();
    assert_eq!(order, [1, 2, 3, 4]);
}

/// The real world, but for timers, which never ring.
struct NoTimers(Arc<dyn Env>);

impl Env for NoTimers {
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn wall_clock(&self) -> u64 {
        self.0.wall_clock()
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        self.0.spawn(task)
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        self.0.blocking(job)
    }

    fn random(&self) -> u64 {
        self.0.random()
    }
}

/// An end that is told while the log syncs gets no sync of its own: the next decision takes it along, or the timer comes for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_is_told_during_a_sync_waits_for_the_next_decision() {
    let disk = TestDisk::default();
    let env = Arc::new(NoTimers(TokioEnv::shared()));
    let log = options(&disk).max_size(1 << 20).env(env).open(LOG).await.unwrap();
    let owner = log.owner();
    log.decide(decision(owner, 1)).await.unwrap();
    disk.close_gate();
    let second = log.decide(decision(owner, 2));
    disk.sync_is_waiting();
    disk.clear_events();
    log.forget(owner.transaction(1));
    disk.let_through();
    second.await.unwrap();
    let third = log.decide(decision(owner, 3));
    disk.sync_is_waiting();
    disk.let_through();
    third.await.unwrap();
    let events = disk.events();
    assert!(matches!(&events[..], [Event::SyncData(_), Event::Write(..), Event::SyncData(_)]), "{events:?}");
    let view = unanimous::log::read_from(&disk, LOG.as_ref()).unwrap();
    let order: Vec<_> = view.unfinished().iter().map(|record| record.transaction.sequence).collect();
    assert_eq!(order, [2, 3]);
}

/// Who decides the same while it is being written is told when it is durable, each of them; another decision for it is refused at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_decide_the_same_are_told() {
    let disk = TestDisk::default();
    let log = options(&disk).env(TokioEnv::shared()).open(LOG).await.unwrap();
    let owner = log.owner();
    disk.close_gate();
    let first = log.decide(decision(owner, 1));
    disk.sync_is_waiting();
    let second = log.decide(decision(owner, 1));
    assert!(matches!(unknown(log.decide(sized(owner, 1, 5)).await), LogError::DecidedTwice(_)));
    disk.let_through();
    first.await.unwrap();
    second.await.expect("it waited for the same");
}

/// A failed sync while others queue: what it covered is unknown, what was not tried is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_tells_what_was_tried_from_what_was_not() {
    let disk = TestDisk::default();
    let log = options(&disk).env(TokioEnv::shared()).open(LOG).await.unwrap();
    let owner = log.owner();
    disk.close_gate();
    let tried = log.decide(decision(owner, 1));
    disk.sync_is_waiting();
    let queued = log.decide(decision(owner, 2));
    let mut asking = Box::pin(log.lookup(owner.transaction(1)));
    assert!(is_pending(&mut asking).await);
    disk.fail(Fault::NextSync);
    disk.let_through();
    assert!(matches!(unknown(tried.await), LogError::Poisoned(_)));
    assert!(matches!(refused(queued.await), LogError::Poisoned(_)));
    assert_eq!(asking.await.unwrap(), Known::Hold(HoldReason::Poisoned));
}

/// A copy of the files sees what was written and not synced. The original lost it with the power and presumed abort: the copy, restored, must
/// not bring the decision back.
#[tokio::test]
async fn a_restored_copy_does_not_bring_back_a_decision_that_was_never_durable() {
    let disk = TestDisk::default();
    let (log, _env) = open(&disk).await;
    let owner = log.owner();
    log.decide(decision(owner, 1)).await.unwrap();
    disk.fail(Fault::NextSync);
    unknown(log.decide(decision(owner, 2)).await);
    let backup = disk.after_kill();

    let original = disk.after_power_cut(1);
    let (log, _env) = open(&original).await;
    assert_eq!(log.lookup(owner.transaction(2)).await.unwrap(), Known::Abort, "the power cut kept nothing of it");
    assert_eq!(log.lookup(owner.transaction(1)).await.unwrap(), Known::Commit(decision(owner, 1)));

    let restored = options(&backup).restored_from_backup(true).env(TestEnv::new(9)).open(LOG).await.unwrap();
    assert_eq!(restored.lookup(owner.transaction(2)).await.unwrap(), Known::Hold(HoldReason::BeyondHorizon));
    assert_eq!(restored.lookup(owner.transaction(1)).await.unwrap(), Known::Commit(decision(owner, 1)));
    assert_eq!(restored.opened().unproven, [owner.transaction(2)]);
}
