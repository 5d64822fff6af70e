//! Servers of the bench's own, with the same table in each database.
//!
//! Must not know what is measured.

use std::hash::{BuildHasher as _, Hasher as _};

use unanimous_testing::postgres::Cluster;

use crate::Error;

/// Databases beyond this many share servers, the first with the fifth and so on: each server takes memory and processes of its own.
const SERVERS: usize = 4;

/// Rows of the table: so many that clients seldom meet at one.
pub(crate) const ROWS: u32 = 100_000;

/// The work of every transaction in each of its databases, on a random row.
pub(crate) const UPDATE: &str = "update account set balance = balance + 1 where id = $1";

/// Room for the next version of each row in its page, so that the table does not grow over the rounds.
const TABLE: &str = "create table account (id int4 primary key, balance int8 not null) with (fillfactor = 50)";

/// Databases, each with the table. The servers end when it is dropped.
pub(crate) struct Place {
    clusters: Vec<Cluster>,
    urls: Vec<String>,
}

impl Place {
    /// Takes some seconds, in which it blocks the thread.
    pub(crate) fn start(databases: usize) -> Result<Self, Error> {
        let start = |_| {
            let cluster = Cluster::builder()
                .setting("max_connections", 400)
                .setting("max_prepared_transactions", 400)
                .setting("shared_buffers", "64MB")
                // A checkpoint within a side's turn, and not in the other's, would say nothing of either.
                .setting("checkpoint_timeout", "1h")
                .setting("max_wal_size", "8GB");
            cluster.start()
        };
        let clusters: Vec<_> = (0..databases.min(SERVERS)).map(start).collect::<Result<_, _>>()?;
        let mut urls = Vec::new();
        for number in 0..databases {
            let cluster = &clusters[number % SERVERS];
            let name = format!("bench_{number}");
            cluster.create_database(&name)?;
            cluster.psql(&name, TABLE)?;
            cluster.psql(&name, &format!("insert into account select id, 0 from generate_series(1, {ROWS}) as id"))?;
            cluster.psql(&name, "vacuum analyze account")?;
            urls.push(cluster.url(&name));
        }
        Ok(Self { clusters, urls })
    }

    /// The connection strings of the first databases.
    pub(crate) fn urls(&self, databases: usize) -> &[String] {
        &self.urls[..databases]
    }

    /// Writes out what is dirty, so that nobody's round has to.
    pub(crate) fn checkpoint(&self) -> Result<(), Error> {
        for cluster in &self.clusters {
            cluster.psql("postgres", "checkpoint")?;
        }
        Ok(())
    }
}

/// One of the table's rows.
pub(crate) fn any_row() -> i32 {
    // A fresh state of the standard library's hash maps is another one each time, and costs next to nothing.
    let random = std::hash::RandomState::new().build_hasher().finish();
    i32::try_from(random % u64::from(ROWS)).expect("there are fewer rows than numbers") + 1
}
