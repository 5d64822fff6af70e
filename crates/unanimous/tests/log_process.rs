//! The log between processes: one owner at a time, and kill -9.
//!
//! A test starts itself again as a child, which an environment variable tells what to do.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use unanimous::log::{FileLog, LogError, OpenError};
use unanimous::{
    DecideError, Decider, DecisionLog, DecisionRecord, HoldReason, Known, Note, Owner, Participant, TransactionId,
};

const CHILD: &str = "UNANIMOUS_TEST_LOG_CHILD";

/// A child that is killed, at the latest when the test ends.
struct Process {
    child: Child,
    said: Receiver<String>,
}

impl Process {
    /// Starts this test again, as a child that works on the log in this folder.
    fn start(test: &str, path: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
        let (sender, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines {
                let line = String::from_utf8(line.unwrap()).unwrap();
                // What the test's own frame prints is no message, nor is what the kill cut short.
                if let Some(said) = line.split_once("child: ").and_then(|(_, said)| said.strip_suffix('.')) {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        Self { child, said }
    }

    /// The next thing that the child says to its parent; none when it has ended.
    fn said(&mut self) -> Option<String> {
        match self.said.recv_timeout(Duration::from_secs(60)) {
            Ok(said) => Some(said),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the child has said nothing for a minute"),
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "child: {text}.").unwrap();
    out.flush().unwrap();
}

async fn open(path: &Path, wait: Duration) -> Result<FileLog, OpenError> {
    FileLog::options().max_size(96 * 1024).lock_wait(wait).open(path).await
}

fn decision(owner: Owner, sequence: u64) -> DecisionRecord {
    let participants = vec![Participant { number: 0, resource: "orders".into(), store: None }];
    let note = Note::default();
    DecisionRecord { transaction: owner.transaction(sequence), participants, decided_at: sequence, note }
}

#[tokio::test]
async fn one_process_at_a_time() {
    if let Some(path) = std::env::var_os(CHILD) {
        let log = open(path.as_ref(), Duration::from_secs(30)).await.unwrap();
        say(&log.owner().transaction(1).to_string());
        loop {
            std::thread::park();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut child = Process::start("log_process::one_process_at_a_time", folder.path());
    let first: TransactionId = child.said().unwrap().parse().unwrap();
    let held = open(folder.path(), Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(held, OpenError::Held { .. }), "{held:?}");
    child.kill();
    let log = open(folder.path(), Duration::from_secs(30)).await.unwrap();
    assert_eq!(log.owner().incarnation.counter, first.incarnation.counter + 1);
    assert_eq!(log.lookup(first).await.unwrap(), Known::Abort);
}

/// A child decides as fast as it can, over many segments, and says what was acknowledged. It is killed at some moment; nothing that it
/// said is lost, and nothing it never decided is there.
#[tokio::test]
async fn killed_again_and_again() {
    if let Some(path) = std::env::var_os(CHILD) {
        return decide_for_ever(path.as_ref()).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeSet<TransactionId> = BTreeSet::new();
    for round in 1..=8 {
        let mut news = BTreeSet::new();
        let mut child = Process::start("log_process::killed_again_and_again", folder.path());
        for _ in 0..round * round * 12 {
            news.insert(child.said().expect("the child decides until it is killed").parse().unwrap());
        }
        child.kill();
        // What it said just before its end counts too.
        while let Some(said) = child.said() {
            news.insert(said.parse().unwrap());
        }

        acknowledged.extend(&news);

        let log = open(folder.path(), Duration::from_secs(30)).await.unwrap();
        let unfinished = log.unfinished().await.unwrap();
        for &transaction in &acknowledged {
            match log.lookup(transaction).await.unwrap() {
                Known::Commit(record) => assert_eq!(record, decision(transaction.owner(), transaction.sequence)),
                // Such a small log lets finished ones go early; this parent finishes what earlier children left.
                Known::Hold(HoldReason::BeyondHorizon)
                    if !(is_kept(transaction.sequence) && news.contains(&transaction)) => {}
                known => panic!("round {round}: {transaction} was acknowledged and is {known:?}"),
            }
        }
        for record in unfinished {
            assert!(record.transaction.sequence % 10 != 0, "round {round}: {} was never decided", record.transaction);
            log.forget(record.transaction);
        }
        log.close().await;
    }
    assert!(acknowledged.len() > 1000, "{}", acknowledged.len());
}

/// Not finished by the child.
fn is_kept(sequence: u64) -> bool {
    sequence % 10 == 1
}

async fn decide_for_ever(path: &Path) {
    let log = open(path, Duration::from_secs(30)).await.unwrap();
    let owner = log.owner();
    let mut sequence = 0;
    loop {
        // A few at a time, so that a sync has several to cover.
        let group: Vec<u64> = (1..=4).map(|place| sequence + place).filter(|sequence| sequence % 10 != 0).collect();
        sequence += 4;
        let decisions: Vec<_> = group.iter().map(|&sequence| log.decide(decision(owner, sequence))).collect();
        for (decided, sequence) in decisions.into_iter().zip(group) {
            match decided.await {
                Ok(()) => say(&owner.transaction(sequence).to_string()),
                // At the end of a long life, when there are more unfinished ones than such a small log can hold.
                Err(DecideError::Refused(why)) if matches!(why.downcast_ref(), Some(LogError::Full { .. })) => continue,
                Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
            }
            if !is_kept(sequence) {
                log.forget(owner.transaction(sequence));
            }
        }
    }
}
