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
use unanimous::postgres::{PostgresError, PostgresLog};
use unanimous::sqlite::Sqlite;
use unanimous::{Builder, Decision, InDoubt, TransactionManager};

use crate::failure::{FOUND, Failure};
use crate::output::say;
use crate::stores::{Given, Store, StoreArgs, connection_string, decisions};

/// How long the log may take to close.
const CLOSE: Duration = Duration::from_secs(10);

/// Run one recovery: finish what is decided, roll back what never will be
///
/// For when the application can't be started: a running one recovers by itself. Opens the log as the application does, and is refused
/// while a process has it open. Give every store that the application has, under its names.
///
/// For a decision log in a PostgreSQL database: --log-postgres, with --node for the application's own node, or with --take-over for one whose
/// process does not come back. That is fenced first: should it live, it can't decide any more.
///
/// Exits with 0 where nothing is left in doubt, with 1 where something is (each is printed, with why), with 2 where the command could not
/// be done.
#[derive(Debug, Args)]
pub(crate) struct Recover {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    stores: StoreArgs,
}

/// Where the decision log is.
#[derive(Debug, Args)]
struct LogArgs {
    /// The decision log's folder
    #[arg(long, value_name = "DIR", required_unless_present = "log_postgres", conflicts_with = "log_postgres")]
    log: Option<PathBuf>,
    /// The database that the decision log is in; env:VARIABLE takes the connection string from the environment
    #[arg(long, value_name = "URL", requires = "which")]
    log_postgres: Option<String>,
    #[command(flatten)]
    which: Option<Which>,
}

/// Which node's log.
#[derive(Debug, Args)]
#[group(id = "which", multiple = false)]
struct Which {
    /// The node whose log it is; refused while its process has it open
    #[arg(long, value_name = "NODE", requires = "log_postgres", conflicts_with = "log")]
    node: Option<String>,
    /// A node whose process does not come back: fence it, and recover what it left
    #[arg(long, value_name = "NODE", requires = "log_postgres", conflicts_with = "log")]
    take_over: Option<String>,
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
        let ended = crate::runtime()?.block_on(async { recover(log.builder().await?, given).await })?;
        Ok(if ended { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
    }
}

impl LogArgs {
    /// A manager over the log, which is opened.
    async fn builder(self) -> Result<Builder, Failure> {
        match (self.log, self.log_postgres, self.which) {
            (Some(path), ..) => Ok(TransactionManager::builder(open(&path).await?)),
            (None, Some(url), Some(which)) => Ok(TransactionManager::builder(open_node(&url, which).await?)),
            (None, ..) => Err(Failure::new("no decision log was given").hint("give its folder, --log DIR")),
        }
    }
}

/// Whether nothing is left.
async fn recover(mut builder: Builder, given: Vec<Given>) -> Result<bool, Failure> {
    let mut down = Vec::new();
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

/// A node's log, which must be there: one of another name would be a new one, and know of nothing.
async fn open_node(url: &str, Which { node, take_over }: Which) -> Result<PostgresLog, Failure> {
    let name = take_over.as_ref().or(node.as_ref()).expect("the group has one of them");
    let url = connection_string(url, "the decision log")?;
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(format!("can't open the decision log of the node {name:?}")).because(error)
    };
    let nodes = decisions(&url)?.nodes().await.map_err(|error| failed(&error))?;
    let nodes: Vec<&str> = nodes.iter().map(|node| node.node.as_str()).collect();
    if !nodes.contains(&name.as_str()) {
        let known = if nodes.is_empty() { "none".to_owned() } else { nodes.join(", ") };
        return Err(Failure::new(format!("there is no node {name:?} in that database"))
            .hint(format!("the nodes that there are: {known}")));
    }
    let opened = match &take_over {
        Some(node) => PostgresLog::take_over(&url, node).await,
        None => PostgresLog::open(&url, name).await,
    };
    opened.map_err(|error| {
        let held = matches!(error, PostgresError::NodeHeld { .. });
        let failure = failed(&error);
        if held {
            failure.hint("that process recovers by itself; where it does not come back, and only then: --take-over")
        } else {
            failure
        }
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
