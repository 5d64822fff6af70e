//! What the tests of idempotency keys share: a shop on PostgreSQL or SQLite behind a real socket, and a client.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use unanimous::http::{IdempotencyLayer, KeyStore, TransactionLayer};
use unanimous::log::MemoryLog;
use unanimous::postgres::{Postgres, PostgresKeys, PostgresOptions};
use unanimous::sqlite::{Sqlite, SqliteKeys, rusqlite};
use unanimous::{TransactionManager, Tx};
use unanimous_testing::postgres::{Cluster, Database};

/// How long a test waits for what must happen before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A database with a table `t` of orders, and a store of keys in it.
pub(crate) trait Place: Clone + Send + Sync + 'static {
    type Keys: KeyStore;

    fn keys(&self) -> Self::Keys;

    fn insert(&self, tx: &Tx, order: &str) -> impl Future<Output = ()> + Send;

    /// The orders, as a stranger sees them.
    fn orders(&self) -> Vec<String>;

    /// How many keys are kept, as a stranger sees them.
    fn kept(&self) -> usize;

    /// Lets what is kept be older than it is kept for.
    fn expire(&self);

    /// A manager as a process of its own would have it, with connections of its own.
    fn manager(&self) -> impl Future<Output = (Self, TransactionManager)> + Send;
}

#[derive(Clone)]
pub(crate) struct OnPostgres {
    pub(crate) store: Postgres,
    pub(crate) options: PostgresOptions,
    database: Option<Arc<Database<'static>>>,
}

impl OnPostgres {
    pub(crate) fn new() -> Self {
        let database = Arc::new(Cluster::shared().database().unwrap());
        database.psql("create table t (id bigserial primary key, v text)").unwrap();
        Self { database: Some(database.clone()), ..Self::at(&database.url()) }
    }

    /// In a database that somebody else looks after.
    pub(crate) fn at(url: &str) -> Self {
        Self { store: Postgres::from_url("orders", url).unwrap(), options: PostgresOptions::new(), database: None }
    }

    pub(crate) fn database(&self) -> &Database<'static> {
        self.database.as_ref().unwrap()
    }
}

impl Place for OnPostgres {
    type Keys = PostgresKeys;

    fn keys(&self) -> PostgresKeys {
        PostgresKeys::new(&self.store).options(self.options.clone())
    }

    async fn insert(&self, tx: &Tx, order: &str) {
        let branch = tx.join(&self.store).await.unwrap();
        branch.execute("insert into t (v) values ($1)", &[&order]).await.unwrap();
    }

    fn orders(&self) -> Vec<String> {
        let orders = self.database().psql("select v from t order by id").unwrap();
        orders.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    fn kept(&self) -> usize {
        self.database().psql("select count(*) from unanimous.idempotency_key").unwrap().parse().unwrap()
    }

    fn expire(&self) {
        self.database().psql("update unanimous.idempotency_key set expires_at = 1").unwrap();
    }

    async fn manager(&self) -> (Self, TransactionManager) {
        let Self { options, database, .. } = self.clone();
        let place = Self { options, database, ..Self::at(&self.database().url()) };
        let builder = TransactionManager::builder(MemoryLog::new()).resource(place.store.clone());
        let manager = builder.build().await.unwrap();
        (place, manager)
    }
}

#[derive(Clone)]
pub(crate) struct OnSqlite {
    store: Sqlite,
    folder: Arc<TempDir>,
}

impl OnSqlite {
    pub(crate) async fn new() -> Self {
        Self::over(Arc::new(tempfile::tempdir().unwrap())).await
    }

    async fn over(folder: Arc<TempDir>) -> Self {
        let store = Sqlite::builder("orders", folder.path().join("orders.db"))
            .lock_timeout(PATIENCE)
            .init(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v TEXT)"))
            .open()
            .await
            .unwrap();
        Self { store, folder }
    }

    pub(crate) fn strings(&self, sql: &str) -> Vec<String> {
        let conn = rusqlite::Connection::open(self.folder.path().join("orders.db")).unwrap();
        conn.busy_timeout(PATIENCE).unwrap();
        conn.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }
}

impl Place for OnSqlite {
    type Keys = SqliteKeys;

    fn keys(&self) -> SqliteKeys {
        SqliteKeys::new(&self.store)
    }

    async fn insert(&self, tx: &Tx, order: &str) {
        let branch = tx.join(&self.store).await.unwrap();
        branch.execute("INSERT INTO t (v) VALUES (?1)", (order.to_owned(),)).await.unwrap();
    }

    fn orders(&self) -> Vec<String> {
        self.strings("SELECT v FROM t ORDER BY id")
    }

    fn kept(&self) -> usize {
        let there = self.strings("SELECT name FROM sqlite_master WHERE name = 'unanimous_idempotency_key'");
        if there.is_empty() { 0 } else { self.strings("SELECT key FROM unanimous_idempotency_key").len() }
    }

    fn expire(&self) {
        self.strings("UPDATE unanimous_idempotency_key SET expires_at = 1 RETURNING key");
    }

    async fn manager(&self) -> (Self, TransactionManager) {
        let place = Self::over(self.folder.clone()).await;
        let builder = TransactionManager::builder(MemoryLog::new()).resource(place.store.clone());
        let manager = builder.build().await.unwrap();
        (place, manager)
    }
}

/// What the handlers of a test have done, and whether they wait.
#[derive(Clone)]
pub(crate) struct Counter {
    executed: Arc<Mutex<Vec<String>>>,
    pub(crate) held: Arc<watch::Sender<bool>>,
    waiting: Arc<watch::Sender<usize>>,
}

impl Counter {
    pub(crate) fn new() -> Self {
        Self { executed: Arc::default(), held: Arc::new(watch::Sender::new(false)), waiting: Arc::default() }
    }

    /// The bodies of the requests that a handler was called for.
    pub(crate) fn executed(&self) -> Vec<String> {
        self.executed.lock().unwrap().clone()
    }

    /// Waits until so many handlers are held.
    pub(crate) async fn until_held(&self, handlers: usize) {
        let mut waiting = self.waiting.subscribe();
        let held = waiting.wait_for(|waiting| *waiting == handlers);
        tokio::time::timeout(PATIENCE, held).await.expect("the handlers are held").unwrap();
    }
}

#[derive(Clone)]
struct Shop<P> {
    place: P,
    counter: Counter,
}

/// Orders what the body says, and does what the header `x-do` says. The answer is another one each time.
async fn order<P: Place>(
    tx: Tx,
    State(shop): State<Shop<P>>,
    headers: HeaderMap,
    body: String,
) -> Result<Response, StatusCode> {
    let number = {
        let mut executed = shop.counter.executed.lock().unwrap();
        executed.push(body.clone());
        executed.len()
    };
    shop.place.insert(&tx, &body).await;
    if *shop.counter.held.borrow() {
        shop.counter.waiting.send_modify(|waiting| *waiting += 1);
        shop.counter.held.subscribe().wait_for(|held| !held).await.unwrap();
        shop.counter.waiting.send_modify(|waiting| *waiting -= 1);
    }
    let id = tx.id().to_string();
    let response = (StatusCode::CREATED, format!("{number}: {body}\u{fc}\0")).into_response();
    let (mut head, body) = response.into_parts();
    for (name, value) in [
        ("location", format!("/orders/{number}")),
        ("etag", format!("\"{number}\"")),
        ("set-cookie", format!("order={number}")),
        ("x-transaction", id),
        ("x-number", number.to_string()),
    ] {
        head.headers.insert(name, value.parse().unwrap());
    }
    for link in ["</a>; rel=prev", "</b>; rel=next"] {
        head.headers.append("link", link.parse().unwrap());
    }
    let body = match headers.get("x-do").map(|value| value.to_str().unwrap()) {
        Some("doom") => {
            tx.doom();
            body
        }
        Some("panic") => panic!("out of paper"),
        Some("fail") => {
            head.status = StatusCode::INTERNAL_SERVER_ERROR;
            body
        }
        Some("large") => Body::from(vec![b'x'; 1001]),
        Some("events") => {
            head.headers.insert("content-type", "text/event-stream".parse().unwrap());
            Body::from_stream(futures_util::stream::pending::<Result<String, std::io::Error>>())
        }
        Some("break") => Body::from_stream(futures_util::stream::iter([
            Ok("the beginning"),
            Err(std::io::Error::other("the end is missing")),
        ])),
        Some(other) => panic!("{other} is not known"),
        None => body,
    };
    Ok(Response::from_parts(head, body))
}

pub(crate) fn routes<P: Place>(place: &P, counter: &Counter) -> Router {
    let shop = Shop { place: place.clone(), counter: counter.clone() };
    let orders = post(order::<P>).get(order::<P>).put(order::<P>);
    Router::new().route("/orders", orders.clone()).route("/bills", orders).with_state(shop)
}

/// A server, ended when it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn serve(app: Router) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    Server { address, task }
}

/// A place with a server before it.
pub(crate) struct World<P> {
    pub(crate) place: P,
    pub(crate) manager: TransactionManager,
    pub(crate) counter: Counter,
}

impl<P: Place> World<P> {
    pub(crate) async fn new(place: &P) -> Self {
        let (place, manager) = place.manager().await;
        Self { place, manager, counter: Counter::new() }
    }

    pub(crate) fn layer(&self) -> IdempotencyLayer<P::Keys> {
        IdempotencyLayer::new(self.place.keys())
    }

    pub(crate) fn transactions(&self) -> TransactionLayer {
        TransactionLayer::new(self.manager.clone())
            .user(|parts| Some(parts.headers.get("x-user")?.to_str().ok()?.to_owned()))
    }

    pub(crate) fn routes(&self) -> Router {
        routes(&self.place, &self.counter)
    }

    pub(crate) async fn serve(&self) -> Server {
        self.serve_with(self.layer()).await
    }

    pub(crate) async fn serve_with(&self, layer: IdempotencyLayer<P::Keys>) -> Server {
        serve(self.routes().layer(layer).layer(self.transactions())).await
    }
}

/// A response as it came over the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn replayed(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    /// All values of a header, in their order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Asserts that it is a problem document of this kind.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, kind: &str) {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{text}");
        assert!(text.contains(&format!("index.html#{kind}\"")), "{text}");
        assert!(text.contains(&format!("\"status\":{status},")), "{text}");
    }
}

/// A request on a connection of its own. None where the server closed it without an answer.
pub(crate) async fn send(server: &Server, head: &str, headers: &[(&str, &str)], body: &str) -> Option<Reply> {
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let mut request =
        format!("{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("\r\n{body}"));
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("an answer");
    // A server that does not read a body to its end resets the connection behind its answer.
    if read.is_err() && answer.is_empty() {
        return None;
    }
    parse(&answer)
}

fn parse(answer: &[u8]) -> Option<Reply> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers =
        lines.map(|line| line.split_once(": ").unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned()));
    Some(Reply { status, headers: headers.collect(), body: answer[end + 4..].to_vec() })
}

/// An order with a key.
pub(crate) async fn order_with(server: &Server, key: &str, body: &str) -> Reply {
    send(server, "POST /orders", &[("idempotency-key", key)], body).await.expect("an answer")
}
