//! The same transaction with the library: a manager with its log in files, and the databases.
//!
//! Must not know what it is compared with.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use unanimous::log::FileLog;
use unanimous::postgres::{Postgres, PostgresOptions, tokio_postgres};
use unanimous::{Decider as _, DecisionLog as _, TransactionManager, Tx};

use super::place::{UPDATE, any_row};
use crate::Error;

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decides {
    /// The log in files.
    Log,
    /// The same, after the answer: early acknowledgement.
    Early,
    /// A row in the first database.
    Row,
}

pub(crate) struct Ours {
    pub(crate) manager: TransactionManager,
    databases: Vec<Postgres>,
    log: FileLog,
    /// The log's.
    _folder: tempfile::TempDir,
}

impl Ours {
    /// With as many connections to each database as there are clients; where they are answered early, with three times as many: a client's next transaction
    /// begins while the last one commits.
    pub(crate) async fn start(urls: &[String], decides: Decides, clients: usize) -> Result<Arc<Self>, Error> {
        let folder = tempfile::tempdir()?;
        let mut databases = Vec::new();
        for (number, url) in urls.iter().enumerate() {
            let config = tokio_postgres::Config::from_str(url)?;
            let connections = if decides == Decides::Early { 3 * clients } else { clients };
            let builder = Postgres::builder(format!("database-{number}"), config).max_connections(connections);
            let carrier = decides == Decides::Row && number == 0;
            databases.push(if carrier { builder.carrier().build() } else { builder.build() });
        }
        let log = FileLog::open(folder.path()).await?;
        let mut builder = TransactionManager::builder(log.clone()).early_acknowledgement(decides == Decides::Early);
        for database in &databases {
            builder = builder.resource(database.clone());
        }
        let manager = builder.build().await?;
        let doubts = manager.in_doubt();
        if !doubts.is_empty() {
            return Err(format!("in doubt at the start: {doubts:?}").into());
        }
        Ok(Arc::new(Self { manager, databases, log, _folder: folder }))
    }

    /// Updates a row in each database, all at the same time, and commits.
    pub(crate) async fn once(&self) -> Result<(), Error> {
        let tx = self.manager.begin();
        self.work(&tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The same, and then waits until all branches have committed, which is what a client that goes away after its answer leaves behind. Gives how long the
    /// answer took.
    pub(crate) async fn once_to_its_end(&self) -> Result<Duration, Error> {
        let begun = Instant::now();
        let tx = self.manager.begin();
        self.work(&tx).await?;
        let committed = tx.commit().await?;
        let answered = begun.elapsed();
        if committed.pending != self.databases.len() {
            return Err("it was not acknowledged early".into());
        }
        let id = committed.id;
        // The record is there a little after the answer, and finished when every branch is confirmed.
        while self.log.recorded(id).await?.is_none()
            || self.log.unfinished().await?.iter().any(|record| record.transaction == id)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(answered)
    }

    pub(crate) async fn work(&self, tx: &Tx) -> Result<(), Error> {
        let work = self.databases.iter().map(|database| async {
            let branch = tx.join_with(database, PostgresOptions::new().writes()).await?;
            let update = branch.prepare_cached(UPDATE).await?;
            branch.execute(&update, &[&any_row()]).await?;
            Ok::<_, Error>(())
        });
        try_join_all(work).await.map(drop)
    }

    /// Nothing of it may be left when the next one measures.
    pub(crate) async fn end(self: Arc<Self>) -> Result<(), Error> {
        self.manager.shutdown(Duration::from_secs(30)).await?;
        Ok(())
    }
}
