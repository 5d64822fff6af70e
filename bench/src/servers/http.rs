//! The group `http`: requests through axum and the transaction's layer, beside the same transactions without HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use tokio::net::TcpListener;
use unanimous::files::Files;
use unanimous::http::{TransactionLayer, default_commit_veto};
use unanimous::log::FileLog;
use unanimous::sqlite::Sqlite;
use unanimous::{TransactionManager, Tx};

use super::client::posts;
use super::load::{Plan, Side, turns};
use super::ours::{Decides, Ours};
use super::place::{Place, ROWS, UPDATE, any_row};
use super::runtime;
use crate::row::{Row, Target};
use crate::{Error, Options};

/// As many as the ancestors' stack has threads.
pub(crate) const CLIENTS: usize = 16;

pub(crate) fn http(options: &Options) -> Result<Vec<Row>, Error> {
    let place = Place::start(2)?;
    // The server's threads are not its clients'.
    let (server, clients) = (runtime()?, runtime()?);
    let two = server.block_on(Ours::start(place.urls(2), Decides::Log, CLIENTS))?;
    let small = server.block_on(Small::start())?;

    let none = {
        let bare = server.block_on(serve(Router::new().route("/", post(nothing))))?;
        let layered = server.block_on(serve(layered(Router::new().route("/", post(nothing)), &two.manager)))?;
        let _on = clients.enter();
        [
            posts("through the layer", layered, "/", CLIENTS),
            posts("the same service without the layer", bare, "/", CLIENTS),
        ]
    };
    let sqlite_and_files = {
        let router = Router::new().route("/", post(in_small)).with_state(small.clone());
        let address = server.block_on(serve(layered(router, &small.manager)))?;
        let small = small.clone();
        sides(&server, &clients, address, move || {
            let small = small.clone();
            async move { small.once().await }
        })
    };
    let two_databases = {
        let address = server.block_on(serve(two_databases(&two)))?;
        let two = two.clone();
        sides(&server, &clients, address, move || {
            let two = two.clone();
            async move { two.once().await }
        })
    };
    let measured = [
        ("no store", &none, None),
        ("SQLite and files", &sqlite_and_files, None),
        ("two databases", &two_databases, Some(Target::RatioAtLeast(0.85))),
    ];
    let mut rows = Vec::new();
    for (name, sides, target) in measured {
        place.checkpoint()?;
        let measured = clients.block_on(turns(plan(options, target.is_some()), sides))?;
        let row = measured[0].per_second.beside(&measured[1].per_second, target);
        rows.push(Row { name: format!("http, {name}, {CLIENTS} clients: requests"), ..row });
        let row = measured[0].p50.beside(&measured[1].p50, None);
        rows.push(Row { name: format!("http, {name}, {CLIENTS} clients: p50"), ..row });
    }
    Ok(rows)
}

pub(crate) fn plan(options: &Options, promised: bool) -> Plan {
    let (rounds, length) = match (options.quick, promised) {
        (true, _) => (5, 400),
        (false, true) => (15, 1000),
        (false, false) => (7, 700),
    };
    Plan { clients: CLIENTS, rounds, length: Duration::from_millis(length) }
}

/// Over HTTP, and in the server's runtime without it.
fn sides<F, Fut>(
    server: &tokio::runtime::Runtime,
    clients: &tokio::runtime::Runtime,
    address: SocketAddr,
    once: F,
) -> [Side; 2]
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Error>> + Send + 'static,
{
    let over = {
        let _on = clients.enter();
        posts("over HTTP", address, "/", CLIENTS)
    };
    let _on = server.enter();
    [over, Side::new("the same transactions without HTTP", move |_| once())]
}

/// The service of the two-database request.
pub(crate) fn two_databases(ours: &Arc<Ours>) -> Router {
    layered(Router::new().route("/", post(in_two_databases)).with_state(ours.clone()), &ours.manager)
}

fn layered(router: Router, manager: &TransactionManager) -> Router {
    router.layer(TransactionLayer::new(manager.clone()).commit_veto(default_commit_veto))
}

/// Serves on a free port in the current runtime until that ends.
pub(crate) async fn serve(router: Router) -> Result<SocketAddr, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

type Answer = Result<&'static str, (StatusCode, String)>;

async fn nothing() -> &'static str {
    "ok"
}

async fn in_two_databases(tx: Tx, State(ours): State<Arc<Ours>>) -> Answer {
    ours.work(&tx).await.map(|()| "ok").map_err(failed)
}

async fn in_small(tx: Tx, State(small): State<Arc<Small>>) -> Answer {
    small.work(&tx).await.map(|()| "ok").map_err(failed)
}

fn failed(error: Error) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// A SQLite database, which carries the decision, and a folder of files.
struct Small {
    manager: TransactionManager,
    database: Sqlite,
    files: Files,
    _folder: tempfile::TempDir,
}

impl Small {
    async fn start() -> Result<Arc<Self>, Error> {
        let folder = tempfile::tempdir()?;
        let table = format!(
            "create table account (id integer primary key, balance integer not null);
             with recursive ids (id) as (select 1 union all select id + 1 from ids where id < {ROWS})
             insert into account select id, 0 from ids"
        );
        let database = Sqlite::open("database", folder.path().join("database")).await?;
        let files = Files::open("files", folder.path().join("files")).await?;
        let log = FileLog::open(folder.path().join("log")).await?;
        let manager =
            TransactionManager::builder(log).resource(database.clone()).resource(files.clone()).build().await?;
        let tx = manager.begin();
        tx.join(&database).await?.execute_batch(&table).await?;
        tx.commit().await?;
        Ok(Arc::new(Self { manager, database, files, _folder: folder }))
    }

    /// Updates a row and replaces a file.
    async fn work(&self, tx: &Tx) -> Result<(), Error> {
        let row = any_row();
        tx.join(&self.files).await?.replace(row.to_string(), "1 lamp").await?;
        tx.join(&self.database).await?.execute(&UPDATE.replace("$1", "?1"), (row,)).await?;
        Ok(())
    }

    async fn once(&self) -> Result<(), Error> {
        let tx = self.manager.begin();
        self.work(&tx).await?;
        tx.commit().await?;
        Ok(())
    }
}
