//! The log in files, where plain threads wait for their decisions: who writes them, and that nothing is lost from one writer to the next.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use unanimous::env::{BoxFuture, Env, NoRuntime, TokioEnv};
use unanimous::log::FileLog;
use unanimous::thread::{Background, Park, wait, wait_around};
use unanimous::{Decider, DecisionLog, DecisionRecord, Note, Owner, Participant};

fn decision(owner: Owner, sequence: u64) -> DecisionRecord {
    let participants = vec![Participant { number: 0, resource: "orders".into(), store: None }];
    DecisionRecord { transaction: owner.transaction(sequence), participants, decided_at: 17, note: Note::default() }
}

/// Counts the jobs that are to run on a thread of their own, and has them done when it returns.
struct Counting {
    env: TokioEnv,
    jobs: AtomicUsize,
}

impl Env for Counting {
    fn monotonic(&self) -> Duration {
        self.env.monotonic()
    }

    fn wall_clock(&self) -> u64 {
        self.env.wall_clock()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.env.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        self.env.spawn(task)
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        self.jobs.fetch_add(1, Ordering::SeqCst);
        thread::spawn(job).join().unwrap();
        Ok(())
    }

    fn random(&self) -> u64 {
        self.env.random()
    }
}

/// A change of threads costs one that is alone as much as a sync does on a fast disk.
#[test]
fn a_thread_that_waits_writes_its_decision_itself() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let env = runtime.block_on(async { Arc::new(Counting { env: TokioEnv::current(), jobs: AtomicUsize::new(0) }) });
    let log = runtime.block_on(FileLog::options().env(env.clone()).open(folder.path())).unwrap();
    let owner = log.owner();
    let jobs = |decide: &dyn Fn()| {
        let before = env.jobs.load(Ordering::SeqCst);
        decide();
        env.jobs.load(Ordering::SeqCst) - before
    };
    let decide = |sequence| {
        let log = &log;
        async move { log.decide(decision(owner, sequence)).await }
    };
    assert_eq!(jobs(&|| wait(decide(1)).unwrap()), 0);
    // Called before the thread waits.
    assert_eq!(jobs(&|| wait(log.decide(decision(owner, 2))).unwrap()), 1);
    // Who gives something up while he waits has given it up then too.
    let around = Cell::new(0);
    let parked = |park: Park<'_>| {
        around.set(around.get() + 1);
        park.park();
    };
    assert_eq!(jobs(&|| wait_around(decide(3), parked).unwrap()), 0);
    assert_eq!(around.get(), 1);
    // A runtime's thread has other tasks.
    assert_eq!(jobs(&|| runtime.block_on(log.decide(decision(owner, 4))).unwrap()), 1);
    runtime.block_on(log.close());

    let log = runtime.block_on(FileLog::open(folder.path())).unwrap();
    let unfinished = runtime.block_on(log.unfinished()).unwrap();
    assert_eq!(unfinished, [1, 2, 3, 4].map(|sequence| decision(owner, sequence)));
}

/// Some find a writer at work, and some are the writer: whoever comes while another one syncs is written by the job that goes on.
#[test]
fn threads_that_meet_are_all_written() {
    const THREADS: u64 = 8;
    const EACH: u64 = 60;
    let folder = tempfile::tempdir().unwrap();
    let background = Background::start().unwrap();
    // Small, so that it goes over into new segments, whose reserve is left to the job.
    let log = background.open(FileLog::options().max_size(48 * 1024).open(folder.path())).unwrap();
    let owner = log.owner();
    // All at once, again and again: a job that is always busy would leave nothing to be handed over.
    let together = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (log, together) = (&log, &together);
            scope.spawn(move || {
                for sequence in (1..=EACH).map(|n| number * EACH + n) {
                    together.wait();
                    wait(async { log.decide(decision(owner, sequence)).await }).unwrap();
                    if sequence % EACH != 0 {
                        log.forget(owner.transaction(sequence));
                    }
                }
            });
        }
    });
    background.open(log.close());

    let log = background.open(FileLog::options().max_size(48 * 1024).open(folder.path())).unwrap();
    let unfinished: BTreeSet<u64> =
        wait(log.unfinished()).unwrap().into_iter().map(|record| record.transaction.sequence).collect();
    assert_eq!(unfinished, (1..=THREADS).map(|number| number * EACH).collect());
}
