//! The yardsticks: what a good engineer would write on the bare driver. Connections are kept, statements prepared, what can travel together
//! does. No log, no recovery, and nothing is checked: a crash between the phases leaves orphans for ever, and a failed statement is
//! "prepared" without an error.
//!
//! Must not know the library.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{try_join, try_join_all};
use unanimous::postgres::tokio_postgres::{self, Client, NoTls, Statement};

use super::place::{UPDATE, any_row};
use crate::Error;

/// What the bare decision row is written into.
const DECISION: &str =
    "create table if not exists bench_decision (id text primary key, decided_at timestamptz not null default now())";
const DECIDE: &str = "insert into bench_decision (id) values ($1)";

/// A connection, and what is prepared on it.
struct Line {
    client: Client,
    update: Statement,
    decide: Statement,
}

impl Line {
    async fn open(url: &str) -> Result<Self, Error> {
        let client = connect(url).await?;
        let update = client.prepare(UPDATE).await?;
        let decide = client.prepare(DECIDE).await?;
        Ok(Self { client, update, decide })
    }

    /// `BEGIN` and the work, on one way.
    async fn work(&self) -> Result<(), tokio_postgres::Error> {
        let row = any_row();
        try_join(self.client.batch_execute("BEGIN"), self.client.execute(&self.update, &[&row])).await.map(drop)
    }

    async fn finish(&self, how: &str, id: &str) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute(&format!("{how} '{id}'")).await
    }
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The clients' connections: each has one to every database.
pub(crate) struct ByHand {
    clients: Vec<Vec<Line>>,
    next: AtomicU64,
}

impl ByHand {
    pub(crate) async fn open(urls: &[String], clients: usize) -> Result<Arc<Self>, Error> {
        for url in urls {
            connect(url).await?.batch_execute(DECISION).await?;
        }
        let mut all = Vec::new();
        for _ in 0..clients {
            all.push(try_join_all(urls.iter().map(|url| Line::open(url))).await?);
        }
        Ok(Arc::new(Self { clients: all, next: AtomicU64::new(1) }))
    }

    /// Unique in each server, which several of a transaction's databases may share.
    fn ids(&self, databases: usize) -> Vec<String> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (0..databases).map(|database| format!("by-hand-{number}-{database}")).collect()
    }

    fn lines(&self, client: usize, databases: usize) -> &[Line] {
        &self.clients[client][..databases]
    }

    /// One database needs no second phase.
    pub(crate) async fn one(&self, client: usize) -> Result<(), Error> {
        let line = &self.lines(client, 1)[0];
        line.work().await?;
        line.client.batch_execute("COMMIT").await?;
        Ok(())
    }

    /// One database after the other, as it is written first.
    pub(crate) async fn sequential(&self, client: usize, databases: usize) -> Result<(), Error> {
        let (lines, ids) = (self.lines(client, databases), self.ids(databases));
        for line in lines {
            line.work().await?;
        }
        for how in ["PREPARE TRANSACTION", "COMMIT PREPARED"] {
            for (line, id) in lines.iter().zip(&ids) {
                line.finish(how, id).await?;
            }
        }
        Ok(())
    }

    /// All databases at the same time, step by step. Gives how long it took until all had prepared, which is what a client that is
    /// answered early would wait.
    pub(crate) async fn parallel(&self, client: usize, databases: usize) -> Result<Duration, Error> {
        let begun = Instant::now();
        let (lines, ids) = (self.lines(client, databases), self.ids(databases));
        try_join_all(lines.iter().map(Line::work)).await?;
        let all = |how| try_join_all(lines.iter().zip(&ids).map(move |(line, id)| line.finish(how, id)));
        all("PREPARE TRANSACTION").await?;
        let prepared = begun.elapsed();
        all("COMMIT PREPARED").await?;
        Ok(prepared)
    }

    /// The first database's commit decides, by a row that is written while the others prepare.
    pub(crate) async fn row(&self, client: usize, databases: usize) -> Result<(), Error> {
        let (lines, ids) = (self.lines(client, databases), self.ids(databases));
        try_join_all(lines.iter().map(Line::work)).await?;
        let (carrier, others) = lines.split_first().ok_or("a decision row is in one of the databases")?;
        let all = |how| try_join_all(others.iter().zip(&ids[1..]).map(move |(line, id)| line.finish(how, id)));
        let row = async { carrier.client.execute(&carrier.decide, &[&ids[0]]).await };
        try_join(row, all("PREPARE TRANSACTION")).await?;
        carrier.client.batch_execute("COMMIT").await?;
        all("COMMIT PREPARED").await?;
        Ok(())
    }
}
