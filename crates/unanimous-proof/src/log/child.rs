//! What runs in the real process that is killed and failed: it opens a log, recovers, decides, and says each thing that it learns in a line of
//! its own, which is out before anything else is done.
//!
//! Must not know what is done to it, nor judge what it sees.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use unanimous::env::{BoxFuture, Env, NoRuntime, TokioEnv};
use unanimous::log::{FileLog, FileLogOptions, LogError};
use unanimous::{BoxError, DecideError, Decider, DecisionLog, DecisionRecord, Known, Note, Owner, Participant};

use crate::say;

/// The program's first argument.
pub(crate) const NAME: &str = "log-child";
/// How many decide at once, and how often each.
const WAITERS: u64 = 4;
const DECISIONS: u64 = 15;
/// All decisions that a process makes, numbered from 1.
pub(super) const ALL: u64 = WAITERS * DECISIONS;
/// Nothing takes that long but a waiter who was forgotten.
const PATIENCE: Duration = Duration::from_secs(60);
/// The exit code of a process in which somebody waits for ever.
pub(super) const HANGS: i32 = 3;

/// `log-child hold FOLDER`: opens the log and keeps it. `log-child work FOLDER`: decides, and ends.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|error| format!("error: no runtime: {error}"))?;
    match arguments {
        [what, folder] if what == "hold" => runtime.block_on(hold(folder.as_ref())),
        [what, folder] if what == "work" => {
            let (done, watch) = channel::<()>();
            std::thread::spawn(move || {
                if watch.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    say("hangs");
                    std::process::exit(HANGS);
                }
            });
            runtime.block_on(work(folder.as_ref()));
            drop(done);
        }
        _ => return Err(format!("error: {NAME} is for the level `log` of this program")),
    }
    Ok(())
}

/// The smallest log, so that segments are begun all the time.
pub(super) fn options() -> FileLogOptions {
    FileLog::options().max_size(48 * 1024).lock_wait(Duration::ZERO)
}

/// What is decided for a transaction: its record depends on its number alone.
pub(super) fn decision(owner: Owner, sequence: u64) -> DecisionRecord {
    let participants = vec![Participant { number: 0, resource: "orders".into(), store: None }];
    let note = if sequence.is_multiple_of(3) { Note::new("n".repeat(400)) } else { Note::default() };
    DecisionRecord { transaction: owner.transaction(sequence), participants, decided_at: sequence, note }
}

/// Some are never finished.
pub(super) fn is_kept(sequence: u64) -> bool {
    sequence % 8 == 1
}

async fn hold(folder: &Path) {
    match options().open(folder).await {
        Ok(log) => {
            say(&format!("opened {}", log.owner().transaction(0)));
            std::future::pending::<()>().await;
        }
        Err(error) => say(&format!("not opened: {error}")),
    }
}

/// The real world, but for the threads that block: there is one, so that its calls can be counted.
struct OneThread {
    world: TokioEnv,
    jobs: std::sync::mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl OneThread {
    fn new() -> Arc<Self> {
        let (jobs, queue) = channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
        Arc::new(Self { world: TokioEnv::current(), jobs })
    }
}

impl Env for OneThread {
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

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        self.jobs.send(job).map_err(|_| NoRuntime)
    }

    fn random(&self) -> u64 {
        self.world.random()
    }
}

fn because(error: &BoxError) -> &'static str {
    match error.downcast_ref() {
        Some(LogError::Poisoned(_)) => "poisoned",
        Some(LogError::NoReserve(_)) => "no reserve",
        Some(LogError::Full { .. }) => "full",
        Some(LogError::Closed) => "in order",
        _ => "something else",
    }
}

async fn work(folder: &Path) {
    let log = match options().env(OneThread::new()).open(folder).await {
        Ok(log) => log,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            return say(&format!("not opened: {error}: {source}"));
        }
    };
    say(&format!("opened {}", log.owner().transaction(0)));
    match log.unfinished().await {
        Ok(unfinished) => {
            for record in unfinished {
                say(&format!("found {}", record.transaction));
                if !is_kept(record.transaction.sequence) {
                    log.forget(record.transaction);
                }
            }
        }
        Err(error) => say(&format!("nothing found: {error}")),
    }
    let seen = Seen { log, poisoned: Cell::new(false), acknowledged: Cell::default() };
    all_at_once(&seen).await;
    for transaction in seen.acknowledged.take() {
        let known = match seen.log.lookup(transaction).await {
            Ok(Known::Commit(_)) => "commit".into(),
            Ok(Known::Abort) => "abort".into(),
            Ok(Known::Hold(reason)) => format!("{reason:?}"),
            Err(error) => format!("an error: {error}"),
        };
        say(&format!("told {transaction} {known}"));
    }
    seen.log.close().await;
    let end = seen.log.ready().err();
    say(&format!("closed: {}", end.as_ref().map_or("ready", because)));
}

struct Seen {
    log: FileLog,
    /// Somebody was told that the log is poisoned.
    poisoned: Cell<bool>,
    acknowledged: Cell<Vec<unanimous::TransactionId>>,
}

/// All waiters at once, in this one task: each is polled when one of them may go on.
async fn all_at_once(seen: &Seen) {
    let mut waiters: Vec<_> = (0..WAITERS).map(|waiter| Box::pin(wait(seen, waiter))).collect();
    std::future::poll_fn(move |context| {
        waiters.retain_mut(|waiter| waiter.as_mut().poll(context).is_pending());
        if waiters.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

async fn wait(seen: &Seen, waiter: u64) {
    for turn in 0..DECISIONS {
        let sequence = 1 + turn * WAITERS + waiter;
        let record = decision(seen.log.owner(), sequence);
        let transaction = record.transaction;
        if let Err(error) = seen.log.ready() {
            say(&format!("not ready: {}", because(&error)));
            // As a manager does; a poisoned log is tried all the same.
            if because(&error) != "poisoned" {
                return;
            }
        }
        let poisoned = seen.poisoned.get();
        let decided = seen.log.decide(record).await;
        match &decided {
            Ok(()) => {
                say(&format!("acknowledged {transaction}"));
                if poisoned {
                    say(&format!("late {transaction}"));
                }
                let mut acknowledged = seen.acknowledged.take();
                acknowledged.push(transaction);
                seen.acknowledged.set(acknowledged);
                if !is_kept(sequence) {
                    seen.log.forget(transaction);
                }
            }
            Err(DecideError::Unknown(error)) => say(&format!("unknown {transaction} {}", because(error))),
            Err(DecideError::Refused(error)) => say(&format!("refused {transaction} {}", because(error))),
            Err(error) => say(&format!("unknown {transaction} {error}")),
        }
        if let Err(DecideError::Unknown(error) | DecideError::Refused(error)) = &decided {
            seen.poisoned.set(seen.poisoned.get() || because(error) == "poisoned");
        }
    }
}
