//! Two ways to stream: a body that is a part of the request's transaction, held back until it is made (`commit_after_body`), and a
//! body without a bound that streams as it is made, with a transaction of its own.
//!
//! `cargo run -p unanimous --example streaming --features axum,sqlite` asks itself for both; with `-- --serve` it waits for you.
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use futures_util::stream::{self, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use unanimous::http::{TransactionLayer, commit_after_body, default_commit_veto};
use unanimous::log::FileLog;
use unanimous::sqlite::{Sqlite, SqliteOptions};
use unanimous::{BoxError, Transaction, TransactionManager, Tx};

#[derive(Clone)]
struct Queue {
    manager: TransactionManager,
    jobs: Sqlite,
}

/// Takes all jobs out of the queue and hands them out line by line. They are gone when the client gets them, all or none: an error in
/// the middle of the body puts them back, and the client gets an error instead of half a list.
async fn take_all(tx: Tx, State(queue): State<Queue>) -> Body {
    Body::from_stream(stream::try_unfold((tx, queue), async |(tx, queue)| {
        let jobs = tx.join(&queue.jobs).await?;
        let taken: Vec<String> = jobs
            .call(|conn| {
                let mut next =
                    conn.prepare("delete from job where id = (select min(id) from job) returning id || ' ' || text")?;
                next.query_map((), |row| row.get(0))?.collect()
            })
            .await?;
        drop(jobs);
        if taken.iter().any(|line| line.ends_with("impossible")) {
            return Err("this one can't be handed out".into());
        }
        Ok::<_, BoxError>(taken.into_iter().next().map(|line| (line + "\n", (tx, queue))))
    }))
}

/// Reads all jobs as they are at one moment, however many, in a transaction that begins and ends with the stream. A client that goes away drops
/// it, which aborts; it has only read.
async fn list(State(queue): State<Queue>) -> Body {
    let lines = stream::try_unfold((None, 0_i64), move |(begun, after): (Option<Transaction>, i64)| {
        let queue = queue.clone();
        async move {
            let tx = begun.unwrap_or_else(|| queue.manager.begin());
            let sql = "select id, id || ' ' || text || char(10) from job where id > ?1 order by id limit 1";
            let page: Vec<(i64, String)> = {
                let jobs = tx.join_with(&queue.jobs, SqliteOptions::read_only()).await?;
                jobs.call(move |conn| {
                    conn.prepare(sql)?.query_map((after,), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
                })
                .await?
            };
            match page.into_iter().next() {
                Some((id, line)) => Ok::<_, BoxError>(Some((line, (Some(tx), id)))),
                None => {
                    tx.commit().await?;
                    Ok(None)
                }
            }
        }
    });
    Body::from_stream(checked(lines))
}

/// What is sent must be Send and 'static.
fn checked<S: Stream<Item = Result<String, BoxError>> + Send + 'static>(lines: S) -> S {
    lines
}

fn app(queue: &Queue) -> Router {
    // The layer is for the route whose body is work; the other one streams without a bound.
    Router::new()
        .route("/take", post(take_all).layer(commit_after_body().max_bytes(64 << 10)))
        .route("/list", get(list))
        .with_state(queue.clone())
        .layer(TransactionLayer::new(queue.manager.clone()).commit_veto(default_commit_veto))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let data = folder.path();
    let schema = "create table if not exists job (id integer primary key, text text not null)";
    let jobs = Sqlite::builder("jobs", data.join("jobs.db")).init(|conn| conn.execute_batch(schema));
    let jobs = jobs.open().await?;
    let log = FileLog::open(data.join("decisions")).await?;
    let manager = TransactionManager::builder(log).resource(jobs.clone()).build().await?;
    let queue = Queue { manager, jobs };
    put(&queue, &["wash", "iron", "impossible"]).await?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("http://{address}/list, POST http://{address}/take");
    let server = axum::serve(listener, app(&queue));
    if std::env::args().any(|argument| argument == "--serve") {
        server.await?;
        return Ok(());
    }
    tokio::spawn(async move { server.await });
    let refused = ask(address, "POST /take").await?;
    println!("--- taking all, one of which can't be:\n{}", head(&refused));
    let listed = ask(address, "GET /list").await?;
    println!("--- so all are there:\n{listed}");
    let tx = queue.manager.begin();
    tx.join(&queue.jobs).await?.execute("delete from job where text = 'impossible'", ()).await?;
    tx.commit().await?;
    let taken = ask(address, "POST /take").await?;
    println!("--- taking the others:\n{taken}");
    let left = ask(address, "GET /list").await?;
    let right = refused.starts_with("HTTP/1.1 500")
        && ["1 wash", "2 iron", "3 impossible"].iter().all(|job| listed.contains(job))
        && taken.starts_with("HTTP/1.1 200")
        && taken.ends_with("1 wash\n2 iron\n")
        && !left.contains("wash");
    if right { Ok(()) } else { Err("the answers are not what they should be".into()) }
}

async fn put(queue: &Queue, texts: &[&'static str]) -> Result<(), BoxError> {
    let tx = queue.manager.begin();
    for text in texts {
        tx.join(&queue.jobs).await?.execute("insert into job (text) values (?1)", (*text,)).await?;
    }
    tx.commit().await?;
    Ok(())
}

fn head(answer: &str) -> &str {
    answer.split("\r\n").next().unwrap_or_default()
}

async fn ask(address: SocketAddr, what: &str) -> Result<String, BoxError> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
