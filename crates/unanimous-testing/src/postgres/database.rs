//! One server for the tests of a binary, and a database for each.
//!
//! Must not know how a server is run.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Cluster, Error};

/// A fresh database. It stays until its cluster's end: a prepared transaction that a test leaves would keep it from going.
#[derive(Clone, Debug)]
pub struct Database<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl Cluster {
    /// The cluster that the tests of one process share; started at the first call. It ends with the process.
    ///
    /// Its `fsync` is off, which a killed server does not notice, and a new database costs a tenth of the time.
    ///
    /// Its 64 prepared transactions and 100 connections are shared too: a test that leaves some, looks at the whole server or does something
    /// to it has a cluster of its own.
    ///
    /// # Panics
    ///
    /// When it can't be started.
    pub fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| match Self::builder().setting("fsync", "off").start() {
            Ok(cluster) => cluster,
            Err(error) => panic!("{error}"),
        })
    }

    /// Makes a database with a name of its own.
    ///
    /// # Errors
    ///
    /// When the server does not run.
    pub fn database(&self) -> Result<Database<'_>, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        // With the process, since data in a given folder have seen others.
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        self.create_database(&name)?;
        Ok(Database { cluster: self, name })
    }
}

impl Database<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster that it is in.
    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }

    /// A connection string, as the superuser `postgres`.
    pub fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    /// A connection string, as any role. (Roles are the cluster's, not the database's.)
    pub fn url_as(&self, role: &str) -> String {
        self.cluster.url_as(role, &self.name)
    }

    /// As [`Cluster::psql`].
    ///
    /// # Errors
    ///
    /// psql's, with the SQLSTATE.
    pub fn psql(&self, sql: &str) -> Result<String, Error> {
        self.cluster.psql(&self.name, sql)
    }
}
