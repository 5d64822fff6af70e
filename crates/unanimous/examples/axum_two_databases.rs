//! An order in one PostgreSQL database and its invoice in another one, both or neither, behind axum: with conflicts that are repeated, load
//! that is shed, and an outcome that a client can ask for.
//!
//! ```sh
//! cargo run -p unanimous --example axum_two_databases --features axum,postgres -- URL URL [--serve]
//! ```
//!
//! The servers need `max_prepared_transactions` above 0. Without connection strings it starts a server of its own, from the programs that are
//! installed, and ends it again.
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::net::SocketAddr;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use unanimous::http::{
    AdmissionLayer, Failed, OutcomeService, ReadinessService, RetryLayer, TransactionLayer, default_commit_veto,
};
use unanimous::log::FileLog;
use unanimous::postgres::{IsolationLevel, Postgres, PostgresOptions};
use unanimous::{BoxError, TransactionManager, Tx};
use unanimous_testing::postgres::Cluster;

#[derive(Clone)]
struct Shop {
    orders: Postgres,
    billing: Postgres,
}

/// Nothing of it is there before both databases have promised, and all of it after.
async fn order(tx: Tx, State(shop): State<Shop>, Path(item): Path<String>) -> Result<(StatusCode, Json<i64>), Failed> {
    let serializable = || PostgresOptions::default().isolation(IsolationLevel::Serializable);
    let orders = tx.join_with(&shop.orders, serializable()).await?;
    let id: i64 = orders.query_one("insert into item (name) values ($1) returning id", &[&item]).await?.get(0);
    let billing = tx.join_with(&shop.billing, serializable()).await?;
    billing.execute("insert into item (id, name) values ($1, $2)", &[&id, &item]).await?;
    Ok((StatusCode::CREATED, Json(id)))
}

fn app(manager: &TransactionManager, shop: Shop) -> Router {
    Router::new()
        .route("/orders/{item}", post(order))
        .with_state(shop)
        .layer(TransactionLayer::new(manager.clone()).commit_veto(default_commit_veto))
        .layer(RetryLayer::new())
        // As many as there are connections in each store's pool: nobody waits for one.
        .layer(AdmissionLayer::new(16).drain(manager))
        // Behind the layers, since it must answer when they don't.
        .route_service("/transactions/{id}", OutcomeService::new(manager.clone()))
        .route_service("/ready", ReadinessService::new(manager.clone()))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (options, urls): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|text| text.starts_with("--"));
    let serve = options.iter().any(|option| option == "--serve");
    match urls.as_slice() {
        [one, two] => run(one, two, serve).await,
        [] => {
            let cluster = Cluster::start()?;
            let (one, two) = (cluster.database()?, cluster.database()?);
            run(&one.url(), &two.url(), serve).await
        }
        _ => Err("give two connection strings, or none".into()),
    }
}

async fn run(one: &str, two: &str, serve: bool) -> Result<(), BoxError> {
    let shop = Shop { orders: Postgres::from_url("orders", one)?, billing: Postgres::from_url("billing", two)? };
    let folder = tempfile::tempdir()?;
    let manager = TransactionManager::builder(FileLog::open(folder.path()).await?)
        .resource(shop.orders.clone())
        .resource(shop.billing.clone())
        .build()
        .await?;
    let tx = manager.begin();
    for store in [&shop.orders, &shop.billing] {
        let sql = "create table if not exists item (id bigserial primary key, name text not null)";
        tx.join(store).await?.batch_execute(sql).await?;
    }
    tx.commit().await?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("POST http://{address}/orders/lamp");
    let server = axum::serve(listener, app(&manager, shop));
    if serve {
        server.await?;
        return Ok(());
    }
    tokio::spawn(async move { server.await });
    let ordered = ask(address, "POST /orders/lamp").await?;
    println!("--- an order:\n{ordered}");
    let id = ordered.lines().find_map(|line| line.strip_prefix("unanimous-transaction: ")).unwrap_or("none");
    let outcome = ask(address, &format!("GET /transactions/{id}")).await?;
    println!("--- its transaction's outcome:\n{outcome}");
    let ready = ask(address, "GET /ready").await?;
    println!("--- readiness:\n{ready}");
    manager.shutdown(std::time::Duration::from_secs(10)).await?;
    let right = ordered.starts_with("HTTP/1.1 201")
        && outcome.contains(r#""outcome":"committed""#)
        && ready.contains(r#""ready":true"#);
    if right { Ok(()) } else { Err("the answers are not what they should be".into()) }
}

async fn ask(address: SocketAddr, what: &str) -> Result<String, BoxError> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
