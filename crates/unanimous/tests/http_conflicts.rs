//! Conflicts of real PostgreSQL servers under SERIALIZABLE, over real sockets: in the handler, in prepare, in a commit that decides; and a
//! thousand of them.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::task::JoinHandle;
use unanimous::http::{Attempt, Failed, RetryLayer, TransactionLayer};
use unanimous::log::MemoryLog;
use unanimous::postgres::{IsolationLevel, Postgres, PostgresOptions};
use unanimous::{TransactionManager, Tx};
use unanimous_testing::postgres::{Cluster, Database};

fn serializable() -> PostgresOptions {
    PostgresOptions::new().isolation(IsolationLevel::Serializable)
}

pub(crate) fn database(sql: &str) -> Database<'static> {
    let database = Cluster::shared().database().unwrap();
    database.psql(sql).unwrap();
    database
}

/// A server of this app; ends with the test.
pub(crate) async fn serve(app: Router) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }))
}

/// A client with one connection, which it uses for all its requests.
pub(crate) struct Client(BufStream<TcpStream>);

impl Client {
    pub(crate) async fn new(address: SocketAddr) -> Self {
        Self(BufStream::new(TcpStream::connect(address).await.unwrap()))
    }

    /// The status and the body.
    pub(crate) async fn post(&mut self, path: &str) -> (u16, String) {
        let request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
        let mut status = String::new();
        self.0.read_line(&mut status).await.unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).await.unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (status.split(' ').nth(1).unwrap().parse().unwrap(), String::from_utf8(body).unwrap())
    }
}

/// Where two transactions that meet are told that one of them is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Both change one row: the second one's statement fails.
    Handler,
    /// Each reads what the other writes, in two databases: its PREPARE TRANSACTION fails.
    Prepare,
    /// The same in one database: its COMMIT fails.
    OnePhase,
    /// The same in a database that carries the decision: its commit with the row fails.
    Carrier,
}

struct Meeting {
    place: Place,
    a: Postgres,
    b: Postgres,
    /// The first attempts wait for each other before they end.
    met: Barrier,
}

impl Meeting {
    /// One of two requests that meet; answers its attempt's number.
    async fn work(&self, tx: Tx, attempt: Attempt, name: String) -> Result<String, Failed> {
        let branch = tx.join_with(&self.a, serializable()).await?;
        branch.query_one("select sum(v) from t", &[]).await?;
        if self.place == Place::Handler {
            if attempt.number == 1 {
                self.met.wait().await;
            }
            branch.execute("update t set v = v + 1", &[]).await?;
        } else {
            branch.execute("insert into t (v) values (1)", &[]).await?;
            if matches!(self.place, Place::Prepare | Place::Carrier) {
                tx.join(&self.b).await?.execute("insert into t (v) values (1)", &[]).await?;
            }
            if attempt.number == 1 {
                self.met.wait().await;
            }
        }
        tx.note(&name);
        Ok(attempt.number.to_string())
    }
}

#[tokio::test]
async fn two_requests_that_meet_are_both_done_wherever_the_conflict_is_found() {
    for place in [Place::Handler, Place::Prepare, Place::OnePhase, Place::Carrier] {
        let (first, second) = (database("create table t (v bigint)"), database("create table t (v bigint)"));
        first.psql("insert into t values (0)").unwrap();
        let builder =
            Postgres::builder("a", first.url().parse::<unanimous::postgres::tokio_postgres::Config>().unwrap());
        let a = if place == Place::Carrier { builder.carrier() } else { builder }.build();
        let b = Postgres::from_url("b", &second.url()).unwrap();
        let causes = Arc::<Mutex<Vec<String>>>::default();
        let manager = TransactionManager::builder(MemoryLog::new())
            .resource(a.clone())
            .resource(b.clone())
            .observer({
                let causes = causes.clone();
                move |report| causes.lock().unwrap().extend(report.cause.clone())
            })
            .build()
            .await
            .unwrap();
        let meeting = Arc::new(Meeting { place, a, b, met: Barrier::new(2) });
        let app = Router::new()
            .route(
                "/{name}",
                post(
                    async |tx: Tx, attempt: Attempt, Path(name): Path<String>, State(meeting): State<Arc<Meeting>>| {
                        meeting.work(tx, attempt, name).await
                    },
                ),
            )
            .with_state(meeting)
            .layer(TransactionLayer::new(manager.clone()))
            .layer(RetryLayer::new());
        let (address, server) = serve(app).await;
        let request = async |name: &str| Client::new(address).await.post(name).await;
        let (one, other) = tokio::join!(request("/one"), request("/other"));
        assert_eq!((one.0, other.0), (200, 200), "{place:?}: {one:?} {other:?}");
        assert_eq!(first.psql("select sum(v) from t").unwrap(), "2", "{place:?}");
        let beside = if matches!(place, Place::Prepare | Place::Carrier) { "2" } else { "0" };
        assert_eq!(second.psql("select count(*) from t").unwrap(), beside, "{place:?}");
        // The one that came first was not in its own way.
        let mut attempts = [one.1, other.1];
        attempts.sort();
        assert_eq!(attempts, ["1", "2"], "{place:?}");
        let causes = std::mem::take(&mut *causes.lock().unwrap());
        let cause = if place == Place::Handler { "the request's handler failed" } else { "the branch \"a\" failed" };
        assert!(causes.len() == 1 && causes[0].starts_with(cause), "{place:?}: {causes:?}");
        assert_eq!(manager.recover().await.len(), 0, "{place:?}");
        server.abort();
    }
}

/// Without the layer the one that comes second is told.
#[tokio::test]
async fn without_the_layer_a_conflict_is_the_clients() {
    let database = database("create table t (v bigint); insert into t values (0)");
    let a = Postgres::from_url("a", &database.url()).unwrap();
    let manager = TransactionManager::builder(MemoryLog::new()).resource(a.clone()).build().await.unwrap();
    let meeting = Arc::new(Meeting { place: Place::Handler, b: a.clone(), a, met: Barrier::new(2) });
    let app = Router::new()
        .route(
            "/{name}",
            post(async |tx: Tx, attempt: Attempt, Path(name): Path<String>, State(meeting): State<Arc<Meeting>>| {
                meeting.work(tx, attempt, name).await
            }),
        )
        .with_state(meeting)
        .layer(TransactionLayer::new(manager));
    let (address, server) = serve(app).await;
    let request = async |name: &str| Client::new(address).await.post(name).await;
    let (one, other) = tokio::join!(request("/one"), request("/other"));
    let mut statuses = [one.0, other.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    let problem = if one.0 == 409 { one.1 } else { other.1 };
    assert!(problem.contains("#commit-conflict") && !problem.contains("serialize"), "{problem}");
    assert_eq!(database.psql("select v from t").unwrap(), "1");
    server.abort();
}

const CLIENTS: u32 = 32;
const INCREMENTS: u32 = 1000;

/// Clients that all add one to the same row, which each of them reads first.
///
/// It ends by design, not by luck: of those that have read the row the first to write it commits, so that each round of conflicts is a
/// step ahead for all; and while no attempt is the last one and the budget is longer than the whole, each request's turn comes.
/// The waits, which grow up to what many increments take, keep most of those that met from meeting again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_conflicting_increments_by_32_clients_end_at_a_thousand() {
    // A server of its own: the shared one has not enough connections for these clients beside other tests.
    let cluster = Cluster::builder().setting("fsync", "off").start().unwrap();
    let database = cluster.database().unwrap();
    database.psql("create table counter (value bigint); insert into counter values (0)").unwrap();
    let config = database.url().parse::<unanimous::postgres::tokio_postgres::Config>().unwrap();
    let store = Postgres::builder("counter", config).max_connections(CLIENTS as usize).build();
    let manager = TransactionManager::builder(MemoryLog::new()).resource(store.clone()).build().await.unwrap();
    let increment = async |tx: Tx, attempt: Attempt, State(store): State<Postgres>| -> Result<String, Failed> {
        let branch = tx.join_with(&store, serializable()).await?;
        let value: i64 = branch.query_one("select value from counter", &[]).await?.get(0);
        branch.execute("update counter set value = $1", &[&(value + 1)]).await?;
        Ok(attempt.number.to_string())
    };
    let app = Router::new()
        .route("/increment", post(increment))
        .with_state(store)
        .layer(TransactionLayer::new(manager.clone()))
        .layer(
            RetryLayer::new()
                .attempts(u32::MAX)
                // Longer than a slow machine takes for all of it.
                .budget(Duration::from_secs(600)),
        );
    let (address, server) = serve(app).await;
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            tokio::spawn(async move {
                let mine = INCREMENTS / CLIENTS + u32::from(client < INCREMENTS % CLIENTS);
                let mut connection = Client::new(address).await;
                let mut answers = Vec::new();
                for _ in 0..mine {
                    let asked = Instant::now();
                    let (status, body) = connection.post("/increment").await;
                    assert_eq!(status, 200, "{body}");
                    answers.push((body.parse::<u32>().unwrap(), asked.elapsed()));
                }
                answers
            })
        })
        .collect();
    let mut answers = Vec::new();
    for client in clients {
        answers.extend(client.await.unwrap());
    }
    let took = began.elapsed();
    assert_eq!(answers.len(), INCREMENTS as usize);
    assert_eq!(database.psql("select value from counter").unwrap(), INCREMENTS.to_string());
    let mut histogram = BTreeMap::<u32, u32>::new();
    for (attempts, _) in &answers {
        *histogram.entry(*attempts).or_default() += 1;
    }
    let attempts: u32 = answers.iter().map(|(attempts, _)| attempts).sum();
    let longest = answers.iter().map(|(_, time)| *time).max().unwrap();
    println!(
        "{INCREMENTS} increments by {CLIENTS} clients in {took:?}: {attempts} attempts, the longest request {longest:?}; \
         requests by attempts: {histogram:?}"
    );
    assert!(attempts > INCREMENTS, "there was no conflict, so nothing was tested");
    server.abort();
}
