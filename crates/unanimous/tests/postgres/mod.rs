//! The PostgreSQL adapter against real servers: what each test needs, in one place.

// Clippy knows test functions, but not what helps them.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod ancestor;
mod branch;
mod conformance;
mod decisions;
mod early;
mod facts;
mod foreign;
mod join;
mod listener;
mod network;
mod notify;
mod outcome;
mod plain_thread;
mod pools;
mod shared_log;
mod survey;
mod tls;

use unanimous::log::MemoryLog;
use unanimous::postgres::Postgres;
use unanimous::postgres::tokio_postgres::{self, Client, NoTls};
use unanimous::{Builder, TransactionManager};
use unanimous_testing::postgres::{Cluster, Database};

/// Two fresh databases of the shared server, each with a table `t (id bigserial primary key, v text unique)`.
struct Pair {
    orders: Database<'static>,
    billing: Database<'static>,
}

const TABLE: &str = "create table t (id bigserial primary key, v text unique)";

impl Pair {
    fn new() -> Self {
        let database = || {
            let database = Cluster::shared().database().unwrap();
            database.psql(TABLE).unwrap();
            database
        };
        Self { orders: database(), billing: database() }
    }

    /// Both as resources, and a manager over them.
    async fn open(&self) -> (TransactionManager, Postgres, Postgres) {
        let (orders, billing) = self.stores();
        let manager = builder(&orders, &billing).build().await.unwrap();
        (manager, orders, billing)
    }

    fn stores(&self) -> (Postgres, Postgres) {
        let open = |name: &str, database: &Database<'_>| Postgres::from_url(name, &database.url()).unwrap();
        (open("orders", &self.orders), open("billing", &self.billing))
    }

    /// What is committed in both, as a stranger sees it.
    fn values(&self) -> [String; 2] {
        [values(&self.orders), values(&self.billing)]
    }
}

fn builder(orders: &Postgres, billing: &Postgres) -> Builder {
    TransactionManager::builder(MemoryLog::new()).resource(orders.clone()).resource(billing.clone())
}

fn values(database: &Database<'_>) -> String {
    database.psql("select coalesce(string_agg(v, ' ' order by id), '') from t").unwrap()
}

/// The gids that are prepared in a database.
fn prepared(database: &Database<'_>) -> String {
    let sql = "select coalesce(string_agg(gid, ' '), '') from pg_prepared_xacts where database = current_database()";
    database.psql(sql).unwrap()
}

/// A connection of the application's own.
async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
