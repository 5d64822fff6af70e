//! `unanimous indoubt`: which branches are prepared and not finished, and why; and the operator's own decision.
//!
//! - [`look`]: what stores have. [`why`]: what follows. [`told`]: how it is printed.
//! - [`act`]: `indoubt commit` and `indoubt rollback`.
//!
//! Looking takes no lock and changes nothing; it works beside a running process.

mod act;
mod look;
mod told;
mod why;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use unanimous::log::{ReadError, holder, read};
use unanimous::{DeciderId, DecisionRecord, StoreId};

use self::look::{Listed, Row, Seen, look};
use self::why::{Finding, Log, Rows, Shared, why};
use crate::failure::{FOUND, Failure};
use crate::operator::{self, Records};
use crate::stores::{Given, StoreArgs, connection_string, decisions};

/// Between two looks at a running process's branches: most of them are gone by then, since they were never stuck.
const PAUSE: Duration = Duration::from_millis(500);

/// List the branches that are prepared and not finished: whose, since when, what is decided, why they wait, whom they block
///
/// Takes no lock and changes nothing; works beside a running server, whose branches are looked at twice, half a second apart, so that those
/// that it is just committing are left out. Prepared transactions of other programs are listed apart.
///
/// Exits with 0 where nothing is in doubt, with 1 where something is, or where it can't be told because a store can't be asked or was not
/// given, with 2 where the command could not be done.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct InDoubt {
    #[command(flatten)]
    what: What,
    /// As JSON, one object on a line
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What is looked at.
#[derive(Debug, Args)]
struct What {
    /// The decision log's folder; without it no decision can be told
    #[arg(long, value_name = "DIR", conflicts_with = "log_postgres")]
    log: Option<PathBuf>,
    /// The database that the decision log is in, where it is in one; env:VARIABLE takes the connection string from the environment
    #[arg(long, value_name = "URL")]
    log_postgres: Option<String>,
    #[command(flatten)]
    stores: StoreArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Commit a branch by your own decision; recorded, and refused without --yes
    Commit(act::Arguments),
    /// Roll a branch back by your own decision; recorded, and refused without --yes
    Rollback(act::Arguments),
}

impl InDoubt {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let runtime = crate::runtime()?;
        match self.command {
            Some(Command::Commit(arguments)) => runtime.block_on(arguments.run(operator::Act::Commit)),
            Some(Command::Rollback(arguments)) => runtime.block_on(arguments.run(operator::Act::Rollback)),
            None => runtime.block_on(list(self.what, self.json)),
        }
    }
}

async fn list(what: What, json: bool) -> Result<ExitCode, Failure> {
    let What { log, log_postgres, stores } = what;
    if stores.is_empty() {
        return Err(Failure::new("no store was given to look at").hint(
            "unanimous indoubt --log DIR --postgres 'orders=host=... dbname=...' --files receipts=DIR; each store that the application has",
        ));
    }
    let given = stores.given()?;
    let picture = Picture::take(&given, log.as_deref(), log_postgres.as_deref()).await?;
    if json {
        told::json(&picture);
    } else {
        told::text(&picture);
    }
    Ok(if picture.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// Everything that was seen, and what follows from it.
struct Picture {
    log: Option<Log>,
    shared: Option<Shared>,
    stores: Vec<Seen>,
    /// For each store that answered its branches, with what follows for each.
    findings: Vec<Vec<(Listed, Finding)>>,
    waiting: Vec<Unfinished>,
    records: Records,
}

/// A decision of which it can't be told from here whether it is finished.
struct Unfinished {
    record: DecisionRecord,
    /// The participants' names that were not looked at, or that can't be asked.
    stores: Vec<String>,
}

impl Picture {
    async fn take(given: &[Given], path: Option<&Path>, url: Option<&str>) -> Result<Self, Failure> {
        // The decisions last, as recovery does: what is listed and not decided then was not decided before.
        let mut stores = Vec::new();
        for given in given {
            stores.push(look(given).await);
        }
        let mut log = path.map(open).transpose()?;
        let mut shared = shared(url).await?;
        // Whether a node's process lives can't be seen from here.
        let live = shared.is_some() || log.as_ref().is_some_and(|log| log.holder.is_some());
        if live && stores.iter().any(|seen| seen.state.as_ref().is_ok_and(|content| !content.branches.is_empty())) {
            tokio::time::sleep(PAUSE).await;
            let first = stores;
            stores = Vec::new();
            for (given, first) in given.iter().zip(first) {
                let mut seen = look(given).await;
                if let (Ok(seen), Ok(first)) = (&mut seen.state, &first.state) {
                    seen.branches.retain(|listed| first.branches.iter().any(|other| other.branch == listed.branch));
                }
                stores.push(seen);
            }
            log = path.map(open).transpose()?;
        }
        if let Some(shared) = &mut shared {
            shared.read(&stores).await?;
        }
        let records = path.map(records).transpose()?.unwrap_or_default();
        let branches = |seen: &Seen| -> Vec<Listed> {
            seen.state.as_ref().map(|content| content.branches.clone()).unwrap_or_default()
        };
        let rows = rows(log.as_ref(), &stores).await;
        let findings = stores
            .iter()
            .map(|seen| {
                let found = branches(seen).into_iter().map(|listed| {
                    let finding = why(&listed, log.as_ref(), shared.as_ref(), &stores, &rows);
                    (listed, finding)
                });
                found.collect()
            })
            .collect();
        let waiting = unfinished(log.as_ref(), &stores).await?;
        Ok(Self { log, shared, stores, findings, waiting, records })
    }

    fn in_doubt(&self) -> usize {
        self.findings.iter().map(Vec::len).sum()
    }

    fn down(&self) -> usize {
        self.stores.iter().filter(|seen| seen.state.is_err()).count()
    }

    fn is_clean(&self) -> bool {
        let sound = self.log.as_ref().is_none_or(|log| log.view.verify().is_sound());
        sound && self.in_doubt() + self.down() + self.waiting.len() == 0
    }
}

/// The log in a database, and its nodes.
async fn shared(url: Option<&str>) -> Result<Option<Shared>, Failure> {
    let Some(url) = url else { return Ok(None) };
    let database = decisions(&connection_string(url, "the decision log")?)?;
    let nodes = database.nodes().await.map_err(|error| unreadable(&error))?;
    if nodes.is_empty() {
        return Err(Failure::new("there is no decision log in that database")
            .hint("give the database that the application opens its log in: --log-postgres URL"));
    }
    Ok(Some(Shared { database, nodes, rows: BTreeMap::new() }))
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new("can't read the decision log").because(error)
}

impl Shared {
    /// What it says of the branches that are listed and are of its nodes.
    async fn read(&mut self, stores: &[Seen]) -> Result<(), Failure> {
        let contents = stores.iter().filter_map(|seen| seen.state.as_ref().ok());
        for transaction in contents.flat_map(|content| &content.branches).map(|listed| listed.branch.transaction) {
            if self.node(transaction.log).is_some() && !self.rows.contains_key(&transaction) {
                let row = self.database.decision_row(transaction).await.map_err(|error| unreadable(&error))?;
                self.rows.insert(transaction, row.into());
            }
        }
        Ok(())
    }
}

/// The log and who has it open.
fn open(path: &Path) -> Result<Log, Failure> {
    let failed = |error: &(dyn std::error::Error + 'static)| Failure::new("can't read the decision log").because(error);
    let view = read(path).map_err(|error| match error {
        ReadError::NoLog { .. } => failed(&error).hint("give the folder of the application's decision log: --log DIR"),
        error => failed(&error),
    })?;
    let holder = holder(path).map_err(|error| failed(&error))?;
    Ok(Log { view, holder })
}

fn records(path: &Path) -> Result<Records, Failure> {
    operator::read(path)
        .map_err(|error| Failure::new(format!("can't read {}", path.join(operator::FILE).display())).because(&error))
}

/// What the stores that decide say of the branches that are listed.
async fn rows(log: Option<&Log>, stores: &[Seen]) -> Rows {
    let own = log.map(|log| log.view.history().log());
    let mut rows = Rows::new();
    let contents = || stores.iter().filter_map(|seen| seen.state.as_ref().ok());
    for listed in contents().flat_map(|content| &content.branches) {
        let transaction = listed.branch.transaction;
        if rows.contains_key(&transaction) {
            continue;
        }
        match &listed.branch.decider {
            DeciderId::Store(store) => {
                if let Some(decider) = contents().find(|content| content.store == *store) {
                    rows.insert(transaction, decider.row(transaction).await);
                }
            }
            DeciderId::Log if own == Some(transaction.log) => {}
            // One process owns its log.
            DeciderId::Together(_) => {}
            // Its log may be in one of the databases that were given.
            DeciderId::Log => {
                for content in contents() {
                    if let Some(Ok(row @ (Row::Commit(_) | Row::Abort))) = content.row(transaction).await {
                        rows.insert(transaction, Some(Ok(row)));
                    }
                }
            }
        }
    }
    rows
}

/// The decisions that may wait for stores that were not seen.
async fn unfinished(log: Option<&Log>, stores: &[Seen]) -> Result<Vec<Unfinished>, Failure> {
    let Some(log) = log else { return Ok(Vec::new()) };
    let mut records: Vec<DecisionRecord> = log.view.unfinished().into_iter().cloned().collect();
    for seen in stores {
        let Ok(content) = &seen.state else { continue };
        let carried = content.unfinished(log.view.history().log()).await;
        records.extend(
            carried.map_err(|error| Failure::new(format!("can't read the decisions in {:?}: {error}", seen.name)))?,
        );
    }
    let waiting = records.into_iter().filter_map(|record| {
        let seen = |store: &StoreId| stores.iter().any(|seen| seen.is(store));
        let missing = record.participants.iter().filter(|participant| !participant.store.as_ref().is_none_or(seen));
        let stores: Vec<String> = missing
            .map(|participant| {
                let down = stores.iter().any(|seen| seen.name == participant.resource && seen.state.is_err());
                let why = if down { "can't be asked" } else { "not given, or another store under its name" };
                format!("{:?} ({why})", participant.resource)
            })
            .collect();
        (!stores.is_empty()).then_some(Unfinished { record, stores })
    });
    Ok(waiting.collect())
}
