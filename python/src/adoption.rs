//! The logs of workers that have died: opened by those that live, which finish what they left, and let go again.
//!
//! ```text
//! LOG, LOG/worker-1, LOG/worker-2 ...    each locked by the process that it belongs to
//! ```
//!
//! A log that nobody has locked belonged to a process that has ended. It is recovered as its own next start would do it, and held until
//! nothing of it is in doubt. It is not opened a second time before somebody else has used it.
//!
//! Must not know data managers, nor the process's own manager.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use unanimous::log::OpenError;
use unanimous::thread::{Background, wait};
use unanimous::{BoxError, TransactionManager};

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
        let adopter = Adopter { configuration, own, held: Vec::new(), seen: BTreeMap::new() };
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
    /// What a log's files looked like when there was nothing left to do in it.
    seen: BTreeMap<PathBuf, Files>,
}

/// A dead worker's log, which is recovered here.
struct Held {
    path: PathBuf,
    background: Background,
    manager: TransactionManager,
    since: Instant,
}

/// Names, sizes and times of a folder's files: they change when somebody opens a log.
type Files = Vec<(String, u64, Option<SystemTime>)>;

impl Adopter {
    fn round(&mut self) {
        let (done, held): (Vec<_>, Vec<_>) = self.held.drain(..).partition(Held::is_done);
        self.held = held;
        for Held { path, manager, .. } in done {
            tracing::info!(log = %path.display(), "a dead worker's transactions are finished");
            // Nothing of it is under way.
            let _ = wait(manager.shutdown(END));
            drop(manager);
            self.seen.insert(path.clone(), files(&path));
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
            // An empty folder has never been a log: opening it would make it one.
            .filter(|path| files(path).iter().any(|(name, ..)| name.ends_with(".log")))
            .filter(|path| self.seen.get(path) != Some(&files(path)))
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
        self.since.elapsed() >= HOLD && self.background.open(self.manager.recover()).is_empty()
    }
}

impl Drop for Adopter {
    fn drop(&mut self) {
        for held in self.held.drain(..) {
            // What is left is the next one's who adopts it.
            let _ = wait(held.manager.shutdown(END));
        }
    }
}

fn files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let described = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some((entry.file_name().to_string_lossy().into_owned(), metadata.len(), metadata.modified().ok()))
    });
    let mut files: Files = described.collect();
    files.sort();
    files
}
