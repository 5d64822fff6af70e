//! Decisions a second in the file log, and how long one alone takes, beside the disk's own sync and beside raft-engine.
//!
//! All sides write the same: the record of a decision over two stores, and the end of an earlier one.

mod bare;
mod raft;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use unanimous::log::{FileLog, Record};
use unanimous::thread::{Background, wait};
use unanimous::{Decider, DecisionLog, DecisionRecord, Owner, Participant, TransactionId};
use unanimous_core::log::frame::frame_len;

use self::bare::Bare;
use self::raft::Raft;
use crate::rounds::{Rounds, alternate};
use crate::row::{Row, Target};
use crate::{Error, Options, folder};

/// A round of a side.
const ROUND: Duration = Duration::from_millis(300);

pub(crate) fn run(options: &Options) -> Result<Vec<Row>, Error> {
    let folder = folder()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut rows = alone(options, folder.path(), &runtime)?;
    let many: &[usize] = if options.quick { &[32] } else { &[1, 8, 32, 256] };
    for &waiting in many {
        rows.extend(together(options, folder.path(), &runtime, waiting)?);
    }
    Ok(rows)
}

/// The record of a decision over two stores.
pub(crate) fn record(transaction: TransactionId) -> DecisionRecord {
    let participants = [(0, "orders"), (1, "billing")].map(|(number, name)| Participant {
        number,
        resource: name.into(),
        store: Some("3f2504e04f8911d39a0c0305e82c3301".parse().expect("an identity is made of a-z and 0-9")),
    });
    DecisionRecord {
        transaction,
        participants: participants.into(),
        decided_at: 1_700_000_000_000_000,
        note: Default::default(),
    }
}

/// What is written for so many decisions and ends in one sync.
fn frame(owner: Owner, decisions: usize) -> usize {
    let transaction = owner.transaction(1);
    let decision = Record::Commit(record(transaction)).encoded_len();
    let end = Record::Finished { transaction, at: 0 }.encoded_len();
    frame_len(decisions * (decision + end))
}

/// Gives numbers out, for transactions.
#[derive(Clone, Debug, Default)]
struct Numbers(Arc<AtomicU64>);

impl Numbers {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// One decision at a time: how long each takes.
fn alone(options: &Options, folder: &Path, runtime: &Runtime) -> Result<Vec<Row>, Error> {
    let background = Background::start()?;
    let on_thread = background.open(FileLog::open(folder.join("thread")))?;
    let in_task = runtime.block_on(FileLog::open(folder.join("task")))?;
    let mut bare = Bare::new(folder.join("bare"))?;
    let bytes = frame(in_task.owner(), 1);
    let numbers = Numbers::default();

    let mut times = [
        "a bare write and fdatasync of the same bytes",
        "a decision, on the caller's thread",
        "a decision, awaited in a task",
    ]
    .map(|name| Rounds::new(name, "µs"));
    let [bares, threads, tasks] = &mut times;
    alternate(
        options.rounds(15),
        &mut [
            (bares, &mut || each(|| Ok(bare.append(bytes)?))),
            (threads, &mut || {
                each(|| {
                    let transaction = on_thread.owner().transaction(numbers.next());
                    // Called within the wait, as a commit on a plain thread does.
                    wait(async { on_thread.decide(record(transaction)).await })?;
                    on_thread.forget(transaction);
                    Ok(())
                })
            }),
            (tasks, &mut || {
                let (log, numbers) = (in_task.clone(), numbers.clone());
                let round = async move {
                    let (begin, mut count) = (Instant::now(), 0);
                    while begin.elapsed() < ROUND {
                        decide(&log, &numbers).await?;
                        count += 1;
                    }
                    Ok::<_, Error>(microseconds(begin, count))
                };
                runtime.block_on(runtime.spawn(round))?
            }),
        ],
    )?;
    let [bares, threads, tasks] = &times;
    background.open(on_thread.close());
    runtime.block_on(in_task.close());
    Ok(vec![
        bares.row(),
        threads.beside(bares, Some(Target::RatioAtMost(1.15))),
        tasks.beside(bares, None),
        tasks
            .less(bares, "what awaiting a decision in a task adds to a bare fdatasync")
            .row()
            .target(Target::AtMost(80.0)),
    ])
}

/// Microseconds for each, over a round.
fn each(mut turn: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < ROUND {
        turn()?;
        count += 1;
    }
    Ok(microseconds(begin, count))
}

fn microseconds(begin: Instant, count: u32) -> f64 {
    begin.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

async fn decide(log: &FileLog, numbers: &Numbers) -> Result<(), Error> {
    let transaction = log.owner().transaction(numbers.next());
    log.decide(record(transaction)).await?;
    log.forget(transaction);
    Ok(())
}

/// So many at a time: how many decisions a second.
fn together(options: &Options, folder: &Path, runtime: &Runtime, waiting: usize) -> Result<Vec<Row>, Error> {
    let path = |name: &str| -> PathBuf { folder.join(format!("{name}-{waiting}")) };
    let log = runtime.block_on(FileLog::open(path("log")))?;
    let mut bare = Bare::new(path("bare"))?;
    let bytes = frame(log.owner(), waiting);
    let (threads, writer) = (Raft::open(&path("raft-threads"))?, Raft::open(&path("raft-writer"))?);
    let numbers = Numbers::default();

    let name = |what: &str| format!("{what}, {waiting} waiting");
    let mut rates = [
        name("decisions in the file log"),
        name("all of their bytes in one write and fdatasync"),
        name("raft-engine, a thread for each"),
        name("raft-engine, one writer for all"),
    ]
    .map(|name| Rounds::new(name, "a second"));
    let [logs, bares, raft_threads, raft_writers] = &mut rates;
    alternate(
        options.rounds(11),
        &mut [
            (logs, &mut || runtime.block_on(decisions(&log, &numbers, waiting))),
            (bares, &mut || Ok(waiting as f64 * 1e6 / each(|| Ok(bare.append(bytes)?))?)),
            (raft_threads, &mut || threads.by_threads(waiting, ROUND)),
            (raft_writers, &mut || runtime.block_on(writer.by_one_writer(waiting, ROUND))),
        ],
    )?;
    runtime.block_on(log.close());
    let [logs, bares, threads, writers] = &rates;
    // What raft-engine does best.
    let best = if threads.row().value > writers.row().value { threads } else { writers };
    let target = (waiting == 32).then_some(Target::RatioAtLeast(0.9));
    let beside_raft = logs.beside(best, target);
    Ok(vec![
        logs.beside(bares, None),
        Row { name: format!("{}, beside raft-engine", beside_raft.name), ..beside_raft },
        bares.row(),
        threads.row(),
        writers.row(),
    ])
}

/// Decisions a second, by so many tasks.
async fn decisions(log: &FileLog, numbers: &Numbers, tasks: usize) -> Result<f64, Error> {
    let begin = Instant::now();
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (log, numbers) = (log.clone(), numbers.clone());
            tokio::spawn(async move {
                let mut count = 0_u32;
                while begin.elapsed() < ROUND {
                    decide(&log, &numbers).await?;
                    count += 1;
                }
                Ok::<_, Error>(count)
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await??;
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}
