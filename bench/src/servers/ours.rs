//! The same transaction with the library: a manager with its log in files, and the databases.
//!
//! Must not know what it is compared with.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use unanimous::log::FileLog;
use unanimous::postgres::{Postgres, PostgresOptions, tokio_postgres};
use unanimous::{TransactionManager, Tx};

use super::place::{UPDATE, any_row};
use crate::Error;

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decides {
    /// The log in files.
    Log,
    /// A row in the first database.
    Row,
}

pub(crate) struct Ours {
    pub(crate) manager: TransactionManager,
    databases: Vec<Postgres>,
    /// The log's.
    _folder: tempfile::TempDir,
}

impl Ours {
    /// With as many connections to each database as there are clients.
    pub(crate) async fn start(urls: &[String], decides: Decides, clients: usize) -> Result<Arc<Self>, Error> {
        let folder = tempfile::tempdir()?;
        let mut databases = Vec::new();
        for (number, url) in urls.iter().enumerate() {
            let config = tokio_postgres::Config::from_str(url)?;
            let builder = Postgres::builder(format!("database-{number}"), config).max_connections(clients);
            let carrier = decides == Decides::Row && number == 0;
            databases.push(if carrier { builder.carrier().build() } else { builder.build() });
        }
        let mut builder = TransactionManager::builder(FileLog::open(folder.path()).await?);
        for database in &databases {
            builder = builder.resource(database.clone());
        }
        let manager = builder.build().await?;
        let doubts = manager.in_doubt();
        if !doubts.is_empty() {
            return Err(format!("in doubt at the start: {doubts:?}").into());
        }
        Ok(Arc::new(Self { manager, databases, _folder: folder }))
    }

    /// Updates a row in each database, all at the same time, and commits.
    pub(crate) async fn once(&self) -> Result<(), Error> {
        let tx = self.manager.begin();
        self.work(&tx).await?;
        tx.commit().await?;
        Ok(())
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
