//! The group `in_doubt`: a start that finds branches prepared whose process died between the phases, until nothing is in doubt.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::try_join_all;
use unanimous::log::FileLog;
use unanimous::postgres::{Postgres, tokio_postgres};
use unanimous::{BranchId, DeciderId, DecisionLog, DecisionRecord, Note, Owner, Participant, TransactionManager};
use unanimous_testing::postgres::Cluster;

use super::runtime;
use crate::rounds::Rounds;
use crate::row::Row;
use crate::{Error, Options};

const DATABASE: &str = "bench";

/// How many make the branches, on each server.
const MAKERS: usize = 8;

pub(crate) fn in_doubt(options: &Options) -> Result<Vec<Row>, Error> {
    let sizes: &[(usize, usize)] = if options.quick { &[(1000, 3)] } else { &[(1000, 7), (10_000, 3)] };
    let mut servers = Vec::new();
    for _ in 0..2 {
        let server =
            Cluster::builder().setting("max_prepared_transactions", 5100).setting("max_wal_size", "4GB").start()?;
        server.create_database(DATABASE)?;
        server.psql(DATABASE, "create table left_behind (branch text primary key)")?;
        servers.push(server);
    }
    let runtime = runtime()?;
    let mut rows = Vec::new();
    for &(branches, rounds) in sizes {
        let (mut ours, mut by_hand) = (Rounds::new("", "s"), Rounds::new("by hand, a connection to each server", "s"));
        for round in 0..rounds {
            let mut sides = [true, false];
            sides.rotate_left(round % 2);
            for is_ours in sides {
                let folder = tempfile::tempdir()?;
                let ids = leave(&runtime, &mut servers, folder.path(), branches)?;
                let took = match is_ours {
                    true => runtime.block_on(recover(&servers, folder.path()))?,
                    false => runtime.block_on(finish(&servers, &ids))?,
                };
                for server in &servers {
                    let left = server.psql(DATABASE, "select count(*) from pg_prepared_xacts")?;
                    if left != "0" {
                        return Err(format!("{left} of {branches} branches are still prepared").into());
                    }
                }
                if is_ours { &mut ours } else { &mut by_hand }.push(took.as_secs_f64());
            }
        }
        let row = ours.beside(&by_hand, None);
        rows.push(Row { name: format!("in doubt, {branches} branches in two databases: recovery"), ..row });
    }
    Ok(rows)
}

/// What a process leaves that dies when all has voted and every second transaction is decided. Gives the branches' ids by server.
fn leave(
    runtime: &tokio::runtime::Runtime,
    servers: &mut [Cluster],
    log: &Path,
    branches: usize,
) -> Result<Vec<Vec<String>>, Error> {
    // How they came about is not measured.
    for server in servers.iter_mut() {
        server.psql(DATABASE, "truncate left_behind")?;
        server.set("fsync", "off")?;
    }
    let ids = runtime.block_on(async {
        let log = FileLog::open(log).await?;
        let owner = log.owner();
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros().try_into()?;
        let transactions = 1..=branches / servers.len();
        let decided =
            transactions.clone().filter(is_decided).map(|number| log.decide(record(owner, number, servers.len(), now)));
        try_join_all(decided).await?;
        log.close().await;
        let id = |number, server| branch(owner, number, server).to_string();
        let ids: Vec<Vec<_>> =
            (0..servers.len()).map(|server| transactions.clone().map(|number| id(number, server)).collect()).collect();
        for (server, ids) in servers.iter().zip(&ids) {
            let made = ids.chunks(ids.len().div_ceil(MAKERS)).map(|ids| prepare(server.url(DATABASE), ids));
            try_join_all(made).await?;
        }
        Ok::<_, Error>(ids)
    })?;
    for server in servers.iter_mut() {
        server.psql(DATABASE, "checkpoint")?;
        server.set("fsync", "on")?;
    }
    Ok(ids)
}

fn is_decided(number: &usize) -> bool {
    number.is_multiple_of(2)
}

fn branch(owner: Owner, number: usize, server: usize) -> BranchId {
    let number = u64::try_from(number).expect("numbers are small");
    let server = u16::try_from(server).expect("there are two");
    BranchId { transaction: owner.transaction(number), decider: DeciderId::Log, number: server }
}

fn record(owner: Owner, number: usize, servers: usize, decided_at: u64) -> DecisionRecord {
    let participant = |server| {
        let BranchId { number, .. } = branch(owner, 0, server);
        Participant { number, resource: name(server), store: None }
    };
    let BranchId { transaction, .. } = branch(owner, number, 0);
    let participants = (0..servers).map(participant).collect();
    DecisionRecord { transaction, participants, decided_at, note: Note::default() }
}

fn name(server: usize) -> String {
    format!("server-{server}")
}

async fn prepare(url: String, ids: &[String]) -> Result<(), Error> {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    for id in ids {
        let work = format!("insert into left_behind values ('{id}')");
        client.batch_execute(&format!("BEGIN; {work}; PREPARE TRANSACTION '{id}'")).await?;
    }
    Ok(())
}

/// A start, until nothing is in doubt.
async fn recover(servers: &[Cluster], log: &Path) -> Result<Duration, Error> {
    let begun = Instant::now();
    let mut builder = TransactionManager::builder(FileLog::open(log).await?);
    for (number, server) in servers.iter().enumerate() {
        builder = builder.resource(Postgres::from_url(name(number), &server.url(DATABASE))?);
    }
    let manager = builder.build().await?;
    while !manager.in_doubt().is_empty() {
        manager.recover().await;
    }
    let took = begun.elapsed();
    manager.shutdown(Duration::from_secs(30)).await?;
    Ok(took)
}

/// The same ends, by who knows them: one after another, all servers at the same time.
async fn finish(servers: &[Cluster], ids: &[Vec<String>]) -> Result<Duration, Error> {
    let begun = Instant::now();
    let all = servers.iter().zip(ids).map(|(server, ids)| async {
        let (client, connection) = tokio_postgres::connect(&server.url(DATABASE), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        for (index, id) in ids.iter().enumerate() {
            let how = if is_decided(&(index + 1)) { "COMMIT PREPARED" } else { "ROLLBACK PREPARED" };
            client.batch_execute(&format!("{how} '{id}'")).await?;
        }
        Ok::<_, Error>(())
    });
    try_join_all(all).await?;
    Ok(begun.elapsed())
}
