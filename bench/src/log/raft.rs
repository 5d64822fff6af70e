//! raft-engine doing the same: a record under a new key, the record before it deleted, durable when the call returns.
//!
//! Must not know the file log.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use raft_engine::{Config, Engine, LogBatch};
use tokio::sync::{mpsc, oneshot};
use unanimous::log::Record;
use unanimous::{Incarnation, LogId, Owner};

use crate::Error;

/// The default settings but for the folder.
#[derive(Clone)]
pub(super) struct Raft {
    engine: Arc<Engine>,
    /// A decision's record, as our own log writes it.
    record: Vec<u8>,
}

impl Raft {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let config =
            Config { dir: path.to_str().ok_or("the folder's path is no text")?.to_owned(), ..Config::default() };
        let owner = Owner { log: LogId(1), incarnation: Incarnation::new(1, 1) };
        let mut record = Vec::new();
        Record::Commit(super::record(owner.transaction(1))).encode(&mut record)?;
        Ok(Self { engine: Arc::new(Engine::open(config)?), record })
    }

    fn decide(&self, batch: &mut LogBatch, who: u64, number: u64) -> Result<(), Error> {
        batch.put(who, number.to_be_bytes().to_vec(), self.record.clone())?;
        batch.delete(who, (number - 1).to_be_bytes().to_vec());
        Ok(())
    }

    /// Records a second. Each thread writes its own batch; the engine joins those that wait.
    pub(super) fn by_threads(&self, threads: usize, round: Duration) -> Result<f64, Error> {
        let begin = Instant::now();
        let counts: Vec<Result<u64, Error>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=threads as u64)
                .map(|who| {
                    scope.spawn(move || {
                        let mut count = 0;
                        let mut batch = LogBatch::default();
                        while begin.elapsed() < round {
                            count += 1;
                            self.decide(&mut batch, who, count)?;
                            self.engine.write(&mut batch, true)?;
                        }
                        Ok(count)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no thread of this panics")).collect()
        });
        let count = counts.into_iter().sum::<Result<u64, Error>>()?;
        Ok(count as f64 / begin.elapsed().as_secs_f64())
    }

    /// Records a second. Tasks hand theirs to one thread, which writes all that are there in one batch.
    pub(super) async fn by_one_writer(&self, tasks: usize, round: Duration) -> Result<f64, Error> {
        let begin = Instant::now();
        let (sender, mut receiver) = mpsc::unbounded_channel::<(u64, u64, oneshot::Sender<()>)>();
        let raft = self.clone();
        let writer = std::thread::spawn(move || {
            let (mut batch, mut waiting) = (LogBatch::default(), Vec::new());
            while let Some(first) = receiver.blocking_recv() {
                let mut next = Some(first);
                while let Some((who, number, done)) = next {
                    raft.decide(&mut batch, who, number)?;
                    waiting.push(done);
                    next = receiver.try_recv().ok();
                }
                raft.engine.write(&mut batch, true)?;
                // Who has gone has nothing to be told.
                for done in waiting.drain(..) {
                    let _ = done.send(());
                }
            }
            Ok::<_, Error>(())
        });
        let tasks: Vec<_> = (1..=tasks as u64)
            .map(|who| {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let mut count = 0;
                    while begin.elapsed() < round {
                        count += 1;
                        let (done, waiting) = oneshot::channel();
                        sender.send((who, count, done))?;
                        waiting.await?;
                    }
                    Ok::<_, Error>(count)
                })
            })
            .collect();
        drop(sender);
        let mut count = 0;
        for task in tasks {
            count += task.await??;
        }
        let rate = count as f64 / begin.elapsed().as_secs_f64();
        writer.join().expect("the writer does not panic")?;
        Ok(rate)
    }
}
