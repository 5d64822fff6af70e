//! The log's power goes off at each operation of the disk, and at each again while it is opened after that.
//!
//! Every decision that was acknowledged is there afterwards, nothing is invented, an honest power cut is never taken for damage, and
//! what was answered once is answered for ever (rule 3).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use unanimous::log::FileLog;
use unanimous::{
    DecideError, Decider, DecisionLog, DecisionRecord, HoldReason, Known, Note, Owner, Participant, TransactionId,
};

use unanimous_testing::disk::{Event, TestDisk, TestEnv};
use unanimous_testing::rng::Rng;

const LOG: &str = "log";
/// As small as it may be: a segment of 16 KiB is full after some fifteen decisions.
const MAX_SIZE: u64 = 48 * 1024;

fn decision(owner: Owner, sequence: u64) -> DecisionRecord {
    let participant = |number: u16| Participant { number, resource: "r".repeat(200), store: None };
    DecisionRecord {
        transaction: owner.transaction(sequence),
        participants: vec![participant(0), participant(1)],
        decided_at: 1,
        note: Note::default(),
    }
}

async fn open(disk: &TestDisk, seed: u64) -> Result<FileLog, unanimous::log::OpenError> {
    let options = FileLog::options().disk(Arc::new(disk.clone())).env(TestEnv::new(seed));
    options.max_size(MAX_SIZE).lock_wait(Duration::ZERO).open(LOG).await
}

/// What was asked of a log, and what it said.
#[derive(Default)]
struct Told {
    acknowledged: Vec<TransactionId>,
    unknown: Vec<TransactionId>,
    refused: Vec<TransactionId>,
    never: Vec<TransactionId>,
}

/// Two lives of a log: decisions, ends, and so many of them that segments are begun.
async fn live(disk: &TestDisk) -> Told {
    let mut told = Told::default();
    for life in 0..2 {
        let Ok(log) = open(disk, life).await else { return told };
        let owner = log.owner();
        for sequence in 1..=26 {
            let transaction = owner.transaction(sequence);
            if sequence % 5 == 0 {
                told.never.push(transaction);
                continue;
            }
            match log.decide(decision(owner, sequence)).await {
                Ok(()) => told.acknowledged.push(transaction),
                Err(DecideError::Unknown(_)) => told.unknown.push(transaction),
                Err(_) => told.refused.push(transaction),
            }
            if is_finished(transaction) {
                log.forget(transaction);
            }
        }
        log.close().await;
    }
    told
}

impl Told {
    fn all(&self) -> impl Iterator<Item = TransactionId> {
        [&self.acknowledged, &self.unknown, &self.refused, &self.never].into_iter().flatten().copied()
    }

    async fn check(&self, log: &FileLog, when: &str) -> BTreeMap<TransactionId, Known> {
        let mut answers = BTreeMap::new();
        for transaction in self.all() {
            let known = log.lookup(transaction).await.unwrap();
            match &known {
                Known::Commit(record) => {
                    assert_eq!(*record, decision(transaction.owner(), transaction.sequence), "{when}");
                    assert!(
                        !self.refused.contains(&transaction),
                        "{when}: the refused decision {transaction} is there"
                    );
                    assert!(!self.never.contains(&transaction), "{when}: the decision {transaction} is invented");
                }
                Known::Abort => {
                    assert!(!self.acknowledged.contains(&transaction), "{when}: the decision {transaction} is gone");
                }
                // Such a small log has to let finished ones go early; what is not finished it never may.
                Known::Hold(why) => {
                    assert_eq!(*why, HoldReason::BeyondHorizon, "{when}");
                    let kept = self.acknowledged.contains(&transaction) && !is_finished(transaction);
                    assert!(!kept, "{when}: the unfinished decision {transaction} is held");
                }
            }
            answers.insert(transaction, known);
        }
        answers
    }
}

fn is_finished(transaction: TransactionId) -> bool {
    transaction.sequence % 4 != 1
}

#[tokio::test]
async fn at_every_operation() {
    let whole = TestDisk::default();
    let told = live(&whole).await;
    assert_eq!((told.unknown.len(), told.refused.len()), (0, 0));
    let operations = whole.events().len();
    let begun = whole.events().iter().filter(|event| matches!(event, Event::Rename(..))).count();
    assert!(begun > 3, "the lives are long enough to begin {begun} segments, two of them by opening");

    let (mut torn, mut believed) = (0, 0);
    for cut in 0..operations {
        let disk = TestDisk::default();
        disk.power_off_after(cut);
        let told = live(&disk).await;
        for seed in 0..6 {
            let when = format!("the power went off at operation {cut} of {operations}, seed {seed}");
            let mut random = Rng::new(cut as u64 * 6 + seed);
            let found = disk.after_power_cut(random.next());
            // Once more, while it is opened; what that opening had read was not told to anybody.
            found.power_off_after(random.between(0, 11) as usize);
            let _ = open(&found, 7).await;
            let found = found.after_power_cut(random.next());
            let log = open(&found, 8)
                .await
                .unwrap_or_else(|error| panic!("{when}: {error}: {:?}", std::error::Error::source(&error)));
            let answers = told.check(&log, &when).await;
            torn += usize::from(log.opened().tail.is_some());
            believed += told.unknown.iter().filter(|id| matches!(answers[id], Known::Commit(_))).count();
            // What was answered is durable: a power cut right after it changes no answer.
            let later = open(&found.after_power_cut(random.next()), 9).await.unwrap();
            for (id, known) in told.check(&later, &when).await {
                let held = matches!(known, Known::Hold(_));
                assert!(held || known == answers[&id], "{when}: {id} was told {:?} and is {known:?}", answers[&id]);
            }
        }
    }
    assert!(
        torn > 0 && believed > 0,
        "{torn} torn tails were cut, {believed} unacknowledged decisions believed: both are met"
    );
}

/// Killed, read, answered, and then the power fails: what was only in the page cache when it was read is durable when it is answered.
#[tokio::test]
async fn what_a_killed_process_left_unsynced_is_forced_before_it_is_told() {
    let disk = TestDisk::default();
    let log = open(&disk, 1).await.unwrap();
    let owner = log.owner();
    log.decide(decision(owner, 1)).await.unwrap();
    // The frame is written, its sync never happens.
    disk.power_off_after(1);
    assert!(matches!(log.decide(decision(owner, 2)).await, Err(DecideError::Unknown(_))));
    let killed = disk.after_kill();
    let log = open(&killed, 2).await.unwrap();
    assert_eq!(log.lookup(owner.transaction(2)).await.unwrap(), Known::Commit(decision(owner, 2)));
    for seed in 0..20 {
        let later = open(&killed.after_power_cut(seed), 3).await.unwrap();
        assert_eq!(later.lookup(owner.transaction(2)).await.unwrap(), Known::Commit(decision(owner, 2)));
    }
    let mut lost = 0;
    for seed in 0..20 {
        let log = open(&disk.after_power_cut(seed), 2).await.unwrap();
        lost += usize::from(log.lookup(owner.transaction(2)).await.unwrap() == Known::Abort);
    }
    assert!(lost > 0, "it was not durable before");
}

/// A process dies when it has written the beginning of a segment that has no name yet: nothing of it is taken for a torn tail later.
#[tokio::test]
async fn a_segment_without_a_name_leaves_nothing_behind() {
    let disk = TestDisk::default();
    let log = open(&disk, 1).await.unwrap();
    for sequence in 1..=10 {
        log.decide(decision(log.owner(), sequence)).await.unwrap();
        log.forget(log.owner().transaction(sequence));
    }
    log.close().await;
    // Its beginning is written and synced, and then the process dies.
    disk.power_off_after(2);
    assert!(open(&disk, 2).await.is_err());
    let disk = disk.after_kill();
    assert_eq!(disk.names(LOG), ["0000000001.log", "reserve.new"]);

    // The next one has less to say, so that it does not cover all of it.
    let env = TestEnv::new(3);
    env.advance(Duration::from_secs(60));
    let options = FileLog::options().disk(Arc::new(disk.clone())).env(env).max_size(MAX_SIZE);
    let log = options.horizon(Duration::from_secs(1)).open(LOG).await.unwrap();
    let verified = unanimous::log::read_from(&disk, LOG.as_ref()).unwrap().verify();
    assert_eq!((verified.finished, verified.tail), (0, None));
    log.close().await;
}

/// The steps in which a segment gets its name, in their order: content and length, name, folder, and only then the older one goes.
#[tokio::test]
async fn a_segment_is_durable_before_the_older_one_goes() {
    let disk = TestDisk::default();
    open(&disk, 1).await.unwrap().close().await;
    disk.clear_events();
    open(&disk, 2).await.unwrap().close().await;
    let new = || "reserve.new".to_owned();
    let steps = [
        Event::Write(new(), 0),
        Event::SyncAll(new()),
        Event::Rename(new(), "0000000002.log".into()),
        Event::SyncFolder,
        Event::Remove("0000000001.log".into()),
        Event::Create(new()),
        Event::Preallocate(new()),
        Event::SyncAll(new()),
    ];
    assert_eq!(disk.events(), steps);
}
