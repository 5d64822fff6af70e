//! Opening a log of many decisions: how long, and in how much memory.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use unanimous::env::{BoxFuture, Env, NoRuntime, TokioEnv};
use unanimous::log::{FileLog, FileLogOptions};
use unanimous::{Decider, DecisionLog};

use crate::log::record;
use crate::rounds::{Rounds, alternate};
use crate::row::Row;
use crate::{Error, Options, folder};

/// Space for each of them: a segment is read in whole when a log is opened, so that one that is larger than needed says nothing.
const SPACE_FOR_EACH: usize = 1280;
/// One in so many is not finished.
const UNFINISHED: usize = 10;
/// As many are decided at a time.
const AT_ONCE: usize = 20_000;

pub(crate) fn run(options: &Options) -> Result<Vec<Row>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let folder = folder()?;
    let count = if options.quick { 100_000 } else { 1_000_000 };
    let path = folder.path().join("log");
    let log_options = FileLog::options().max_size((count * SPACE_FOR_EACH) as u64);
    runtime.block_on(fill(log_options.clone(), &path, count))?;
    let verified = unanimous::log::read(&path)?.verify();
    if verified.finished + verified.unfinished != count {
        return Err(format!("the log has let decisions go: {verified:?}").into());
    }
    let bytes = verified.used;

    let name = format!("a log of {count} decisions, a tenth of them unfinished");
    let mut times =
        [format!("{name}: opened"), "its bytes read, written and synced".into()].map(|name| Rounds::new(name, "s"));
    let mut memory = Rounds::new(format!("{name}: memory when it is open"), "MiB");
    let mut most = Rounds::new(format!("{name}: memory while it opens, at most"), "MiB");
    let [opened, copied] = &mut times;
    // Few: each takes seconds, of which little differs.
    alternate(
        options.rounds(3),
        &mut [
            (opened, &mut || {
                let (mut log, mut seconds) = (None, 0.0);
                let taken = allocation_counter::measure(|| {
                    let begin = Instant::now();
                    log = Some(runtime.block_on(log_options.clone().env(Arc::new(Here::new())).open(&path)));
                    seconds = begin.elapsed().as_secs_f64();
                });
                let log = log.expect("it was opened or not")?;
                memory.push(taken.bytes_current as f64 / f64::from(1 << 20));
                most.push(taken.bytes_max as f64 / f64::from(1 << 20));
                runtime.block_on(log.close());
                Ok::<_, Error>(seconds)
            }),
            (copied, &mut || copy(&path, &folder.path().join("copy"), bytes)),
        ],
    )?;
    let [opened, copied] = &times;
    let mut size = Rounds::new(format!("{name}: on the disk"), "MiB");
    size.push(bytes as f64 / f64::from(1 << 20));
    Ok(vec![opened.beside(copied, None), copied.row(), size.row(), memory.row(), most.row()])
}

async fn fill(options: FileLogOptions, path: &Path, count: usize) -> Result<(), Error> {
    let log = options.open(path).await?;
    for first in (0..count).step_by(AT_ONCE) {
        let transactions: Vec<_> = (first..first + AT_ONCE).map(|n| log.owner().transaction(n as u64 + 1)).collect();
        // Queued at the call.
        let decided: Vec<_> = transactions.iter().map(|&transaction| log.decide(record(transaction))).collect();
        for decided in decided {
            decided.await?;
        }
        for (n, &transaction) in transactions.iter().enumerate() {
            if n % UNFINISHED != 0 {
                log.forget(transaction);
            }
        }
    }
    log.close().await;
    Ok(())
}

/// Seconds for as many bytes, from one file to another.
fn copy(log: &Path, to: &Path, bytes: u64) -> Result<f64, Error> {
    use std::io::{Read, Write};
    let view = unanimous::log::read(log)?;
    let begin = Instant::now();
    let mut all = Vec::new();
    std::fs::File::open(view.file())?.take(bytes).read_to_end(&mut all)?;
    let mut file = std::fs::File::create(to)?;
    file.write_all(&all)?;
    file.sync_all()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// tokio's environment, but that what blocks is done at once: on the thread whose memory is counted.
#[derive(Debug)]
struct Here(TokioEnv);

impl Here {
    fn new() -> Self {
        Self(TokioEnv::current())
    }
}

impl Env for Here {
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn wall_clock(&self) -> u64 {
        self.0.wall_clock()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        self.0.spawn(task)
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        job();
        Ok(())
    }

    fn random(&self) -> u64 {
        self.0.random()
    }
}
