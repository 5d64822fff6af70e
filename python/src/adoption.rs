//! The logs of workers that have died: opened by those that live, which finish what they left, and let go again.
//!
//! ```text
//! LOG, LOG/worker-1, LOG/worker-2 ...    each locked by the process that it belongs to
//! ```
//!
//! A log that nobody has locked belonged to a process that has ended. It is recovered as its own next start would do it, and held until
//! nothing of it is in doubt. Then a note beside it says what its files look like, so that nobody opens it again before it was used.
//!
//! Must not know data managers, nor the process's own manager.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use unanimous::log::OpenError;
use unanimous::thread::Background;
use unanimous::{BoxError, Doubt, HoldReason, InDoubt, TransactionManager};

use crate::engine::{Configuration, told};

/// How often dead workers are looked for, and what is held is looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long a log is held at least: a vote that its worker had sent may land after the first look.
const HOLD: Duration = Duration::from_secs(10);

/// How long the end waits for a recovery that is under way.
const END: Duration = Duration::from_secs(1);

/// The thread that adopts; it ends when this is dropped.
pub(crate) struct Adoption {
    stop: SyncSender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Adoption {
    pub(crate) fn start(configuration: Configuration, own: PathBuf) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::sync_channel(1);
        let adopter = Adopter { configuration, own, held: Vec::new() };
        let thread = std::thread::Builder::new().name("unanimous adoption".into()).spawn(move || {
            let mut adopter = adopter;
            loop {
                adopter.round();
                match stopped.recv_timeout(INTERVAL) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    pub(crate) fn stop(&self) {
        // It is stopping already where there is no place.
        let _ = self.stop.try_send(());
    }
}

impl Drop for Adoption {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed.
            let _ = thread.join();
        }
    }
}

struct Adopter {
    configuration: Configuration,
    own: PathBuf,
    held: Vec<Held>,
}

/// A dead worker's log, which is recovered here.
struct Held {
    path: PathBuf,
    background: Background,
    manager: TransactionManager,
    since: Instant,
}

impl Adopter {
    fn round(&mut self) {
        let (done, held): (Vec<_>, Vec<_>) = self.held.drain(..).partition(Held::is_done);
        self.held = held;
        for Held { path, background, manager, .. } in done {
            tracing::info!(log = %path.display(), "a dead worker's transactions are finished");
            // As it is while it is held here; whoever opens it behind that changes it.
            let looked = look(&path);
            // Nothing of it is under way.
            let _ = background.open(manager.shutdown(END));
            drop(manager);
            note_finished(&path, &looked);
        }
        for path in self.candidates() {
            if let Err(error) = self.adopt(&path) {
                tracing::warn!(log = %path.display(), error = told(&*error), "a dead worker's log can't be recovered now");
            }
        }
    }

    fn candidates(&self) -> Vec<PathBuf> {
        let Some(folder) = &self.configuration.log else { return Vec::new() };
        let workers = fs::read_dir(folder).into_iter().flatten().flatten();
        let workers = workers.filter(|entry| entry.file_name().to_string_lossy().starts_with("worker-"));
        let all = std::iter::once(folder.clone()).chain(workers.map(|entry| entry.path()));
        all.filter(|path| *path != self.own && self.held.iter().all(|held| held.path != *path))
            // A folder without files has never been a log: opening it would make it one.
            .filter(|path| !look(path).is_empty() && !is_finished(path))
            .collect()
    }

    fn adopt(&mut self, path: &Path) -> Result<(), BoxError> {
        if unanimous::log::holder(path)?.is_some() {
            return Ok(());
        }
        let background = Background::start()?;
        let log = match background.open(self.configuration.log_options(&background).open(path)) {
            Err(OpenError::Held { .. }) => return Ok(()),
            opened => opened?,
        };
        tracing::info!(log = %path.display(), "recovering a dead worker's transactions");
        let resources = self.configuration.resources(&background)?;
        let builder = TransactionManager::builder(log);
        let manager = background.build(self.configuration.builder(builder, &resources))?;
        self.held.push(Held { path: path.to_owned(), background, manager, since: Instant::now() });
        Ok(())
    }
}

impl Held {
    fn is_done(&self) -> bool {
        // What another log has begun is its own matter.
        let ours = |doubt: &InDoubt| doubt.why != Doubt::Held(HoldReason::ForeignLog);
        self.since.elapsed() >= HOLD && !self.background.open(self.manager.recover()).iter().any(ours)
    }
}

impl Drop for Adopter {
    fn drop(&mut self) {
        for held in self.held.drain(..) {
            // What is left is the next one's who adopts it.
            let _ = held.background.open(held.manager.shutdown(END));
        }
    }
}

/// In a log's folder: what its files looked like when nothing of it was in doubt.
const FINISHED: &str = "finished";

/// Names, sizes and times of a log's files: they change when somebody opens it.
fn look(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let described = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok().filter(|name| name.ends_with(".log"))?;
        let metadata = entry.metadata().ok()?;
        let since = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(format!("{name} {} {}\n", metadata.len(), since.as_nanos()))
    });
    let mut files: Vec<String> = described.collect();
    files.sort();
    files.concat()
}

fn is_finished(folder: &Path) -> bool {
    fs::read_to_string(folder.join(FINISHED)).is_ok_and(|noted| noted == look(folder))
}

/// Notes that nothing is left to do in a log that was just given up and looked like this. A note that is not written, or is lost, costs one
/// opening.
fn note_finished(folder: &Path, looked: &str) {
    let noted = || -> std::io::Result<()> {
        // Under the log's lock, so that it says nothing of whoever opens it now.
        let lock = fs::File::open(folder)?;
        if lock.try_lock().is_ok() {
            let new = folder.join("finished.new");
            fs::write(&new, looked)?;
            fs::rename(new, folder.join(FINISHED))?;
        }
        Ok(())
    };
    if let Err(error) = noted() {
        tracing::debug!(log = %folder.display(), %error, "it is not noted that a log is finished");
    }
}
