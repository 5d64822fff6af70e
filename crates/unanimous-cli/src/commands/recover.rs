//! `unanimous recover`: one pass of recovery, for an application that can't be started now.
//!
//! Must not know what recovery decides: the library does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use unanimous::files::Files;
use unanimous::log::{FileLog, OpenError, ReadError, holder, read};
use unanimous::sqlite::Sqlite;
use unanimous::{Builder, Decision, InDoubt, TransactionManager};

use crate::failure::{FOUND, Failure};
use crate::output::say;
use crate::stores::{Given, Store, StoreArgs};

/// How long the log may take to close.
const CLOSE: Duration = Duration::from_secs(10);

/// Run one recovery: finish what is decided, roll back what never will be
///
/// For when the application can't be started: a running one recovers by itself. Opens the log as the application does, and is refused
/// while a process has it open. Give every store that the application has, under its names.
///
/// Exits with 0 where nothing is left in doubt, with 1 where something is (each is printed, with why), with 2 where the command could not
/// be done.
#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// The decision log's folder
    #[arg(long, value_name = "DIR")]
    log: PathBuf,
    #[command(flatten)]
    stores: StoreArgs,
}

impl Recover {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let Self { log, stores } = self;
        if stores.is_empty() {
            return Err(Failure::new("no store was given to recover").hint(
                "unanimous recover --log DIR --postgres 'orders=host=... dbname=...' --files receipts=DIR; each store that the application has",
            ));
        }
        let given = stores.given()?;
        let ended = crate::runtime()?.block_on(recover(&log, given))?;
        Ok(if ended { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }
}

/// Whether nothing is left.
async fn recover(path: &Path, given: Vec<Given>) -> Result<bool, Failure> {
    let builder = TransactionManager::builder(open(path).await?);
    let (mut builder, mut down) = (builder, Vec::new());
    for given in given {
        match register(builder, &given).await {
            (same, Ok(())) => builder = same,
            (same, Err(error)) => {
                builder = same;
                down.push(format!("{:?} can't be opened: {error}", given.name));
            }
        }
    }
    let finished = Arc::<Mutex<Vec<String>>>::default();
    let told = finished.clone();
    let builder = builder.recovery_observer(move |recovered| {
        let did = match recovered.decision {
            Decision::Commit => "committed",
            Decision::Abort => "rolled back",
        };
        let line = format!("{did} {} in {:?}", recovered.branch, recovered.resource);
        told.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    });
    let manager = builder.build().await.map_err(|error| Failure::new("can't recover").because(&error))?;
    let left = manager.in_doubt();
    // Nothing is open here, so that only a disk that hangs can keep the log.
    let closed = manager.shutdown(CLOSE).await;

    let finished = std::mem::take(&mut *finished.lock().unwrap_or_else(PoisonError::into_inner));
    finished.iter().for_each(say);
    down.iter().for_each(say);
    left.iter().for_each(|doubt| say(doubt_text(doubt)));
    say(format!("finished {}, in doubt {}", finished.len(), left.len() + down.len()));
    closed.map_err(|error| Failure::new("the log was not closed in time").because(&error))?;
    Ok(left.is_empty() && down.is_empty())
}

/// The log, which must be there: an empty one would know of nothing, and what it says of a transaction is nothing either.
async fn open(path: &Path) -> Result<FileLog, Failure> {
    let failed = || Failure::new("can't open the decision log");
    if let Err(error @ ReadError::NoLog { .. }) = read(path) {
        return Err(failed().because(&error).hint("give the folder of the application's decision log: --log DIR"));
    }
    FileLog::open(path).await.map_err(|error| match error {
        OpenError::Held { .. } => {
            let pid = holder(path).ok().flatten().and_then(|holder| holder.pid);
            let who = pid.map_or("a process".to_owned(), |pid| format!("the process {pid}"));
            Failure::new(format!("{who} has the decision log {} open, and recovers by itself", path.display())).hint(
                "see with `unanimous indoubt` what is in doubt and why; to recover from here, stop that process first",
            )
        }
        error => failed().because(&error),
    })
}

async fn register(builder: Builder, given: &Given) -> (Builder, Result<(), String>) {
    match &given.store {
        Store::Postgres(postgres) => (builder.resource(postgres.clone()), Ok(())),
        Store::Sqlite(path) => match Sqlite::builder(&given.name, path).must_exist().open().await {
            Ok(sqlite) => (builder.resource(sqlite), Ok(())),
            Err(error) => (builder, Err(super::chain(&error))),
        },
        Store::Files(path) => match Files::open_existing(&given.name, path).await {
            Ok(files) => (builder.resource(files), Ok(())),
            Err(error) => (builder, Err(super::chain(&error))),
        },
    }
}

fn doubt_text(doubt: &InDoubt) -> String {
    let what = match (&doubt.branch, &doubt.transaction) {
        (Some(branch), _) => format!("{branch} in {:?}", doubt.resource),
        (None, Some(transaction)) => format!("the branch of {transaction} in {:?}", doubt.resource),
        (None, None) => format!("{:?}", doubt.resource),
    };
    format!("in doubt: {what}: {}", doubt.why)
}
