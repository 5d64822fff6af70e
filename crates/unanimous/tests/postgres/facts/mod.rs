//! What PostgreSQL and its driver do, fact by fact, as a client without this library sees it (each by the SQLSTATE or the behaviour
//! that the adapter leans on), and what the adapter makes of it. `docs/proof.md` lists them.

mod branches;
mod driver;
mod durability;
mod identity;
mod late;
mod orphans;
mod phase_two;
mod pooler;
mod replicas;
mod stores;
mod timeouts;
mod votes;

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};
use unanimous::postgres::tokio_postgres::error::DbError;
use unanimous::postgres::{Postgres, PostgresError, tokio_postgres};
use unanimous::{Builder, TransactionManager};
use unanimous_testing::memory::{KeptLog, LogDisk};
use unanimous_testing::postgres::{Cluster, Database};
use unanimous_testing::proxy::Proxy;

/// What every wait here is bounded by; far more than any of them takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client without this library.
struct Raw {
    client: Client,
    pid: i32,
    warnings: Arc<Mutex<Vec<DbError>>>,
    task: JoinHandle<Option<tokio_postgres::Error>>,
}

/// What a server said: the rows, values divided by `|`; or the SQLSTATE, `closed` where it has none.
type Said = Result<Vec<String>, String>;

impl Raw {
    async fn open(url: &str) -> Self {
        Self::try_open(url).await.unwrap()
    }

    async fn try_open(url: &str) -> Result<Self, tokio_postgres::Error> {
        let (client, mut connection) = tokio_postgres::connect(url, NoTls).await?;
        let warnings = Arc::<Mutex<Vec<DbError>>>::default();
        let task = tokio::spawn({
            let warnings = warnings.clone();
            async move {
                loop {
                    match poll_fn(|cx| connection.poll_message(cx)).await {
                        Some(Ok(AsyncMessage::Notice(notice))) if notice.severity() == "WARNING" => {
                            warnings.lock().unwrap().push(notice);
                        }
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Some(error),
                        None => return None,
                    }
                }
            }
        });
        // A simple query, since a prepared statement is closed behind its last answer, and that would be asked when the session ends.
        let pid = said(Ok(client.simple_query("select pg_backend_pid()").await?)).unwrap()[0].parse().unwrap();
        Ok(Self { client, pid, warnings, task })
    }

    /// One simple query, of one or several statements.
    async fn says(&self, sql: &str) -> Said {
        said(within(self.client.simple_query(sql)).await)
    }

    /// The one value that it gives.
    async fn value(&self, sql: &str) -> String {
        let rows = self.says(sql).await.unwrap();
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows.into_iter().next().unwrap()
    }

    /// The SQLSTATEs of the warnings that have come since this was last asked.
    fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap()).iter().map(|w| w.code().code().to_owned()).collect()
    }

    /// Waits until a query gives this.
    async fn until(&self, sql: &str, expected: &[&str]) {
        let mut last = Ok(Vec::new());
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                last = self.says(sql).await;
                if last.as_ref().is_ok_and(|rows| rows == expected) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if waited.await.is_err() {
            panic!("{sql} did not give {expected:?} but {last:?}");
        }
    }

    /// The gids that are prepared in this database.
    async fn prepared(&self) -> Vec<String> {
        self.says("select gid from pg_prepared_xacts where database = current_database() order by gid").await.unwrap()
    }

    /// Waits until the session `pid` waits for a lock.
    async fn until_waiting(&self, pid: i32) {
        self.until(&format!("select wait_event_type from pg_stat_activity where pid = {pid}"), &["Lock"]).await;
    }

    /// Why the server ended the connection, which it must have done or be about to.
    async fn ended(&mut self) -> String {
        match within(&mut self.task).await.unwrap() {
            Some(error) => code(&error),
            None => "closed".into(),
        }
    }
}

/// A simple query's answer.
fn said(answer: Result<Vec<SimpleQueryMessage>, tokio_postgres::Error>) -> Said {
    let messages = answer.map_err(|error| code(&error))?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or_default()).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    });
    Ok(rows.collect())
}

fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or("closed".to_owned(), |code| code.code().to_owned())
}

fn none() -> Said {
    Ok(Vec::new())
}

fn state(code: &str) -> Said {
    Err(code.to_owned())
}

/// A future that must not hang.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it did not end within a minute")
}

/// A fresh database of a server, with a table `t (v text)`.
struct Place {
    database: Database<'static>,
    /// A stranger's connection to it.
    raw: Raw,
}

impl Place {
    /// Of the server that all tests share.
    async fn new() -> Self {
        Self::of(Cluster::shared()).await
    }

    async fn of(cluster: &'static Cluster) -> Self {
        let database = cluster.database().unwrap();
        let raw = Raw::open(&database.url()).await;
        raw.says("create table t (v text)").await.unwrap();
        Self { database, raw }
    }

    async fn raw(&self) -> Raw {
        Raw::open(&self.database.url()).await
    }

    fn store(&self, name: &str) -> Postgres {
        Postgres::from_url(name, &self.database.url()).unwrap()
    }

    /// A way to the server that can lose things, and the connection string that leads through it.
    fn proxy(&self) -> (Proxy, String) {
        let proxy = Proxy::start(self.database.cluster().port()).unwrap();
        let url = self
            .database
            .url()
            .replace(&format!("port={}", self.database.cluster().port()), &format!("port={}", proxy.port()));
        (proxy, url)
    }

    /// What is committed in `t`.
    async fn rows(&self) -> Vec<String> {
        self.raw.says("select v from t order by v").await.unwrap()
    }

    /// A deferred trigger on the table `slow`, whose insert makes PREPARE and COMMIT wait until the lock that this gives is released.
    async fn slow(&self) -> Gate {
        let raw = self.raw().await;
        raw.says(
            "create table slow (v text); \
             create function pass() returns trigger language plpgsql as \
                 'begin perform pg_advisory_lock_shared(1); perform pg_advisory_unlock_shared(1); return null; end'; \
             create constraint trigger pass after insert on slow deferrable initially deferred \
                 for each row execute function pass(); \
             select pg_advisory_lock(1)",
        )
        .await
        .unwrap();
        Gate { raw }
    }

    /// A table whose insert makes PREPARE and COMMIT fail with a SQLSTATE.
    async fn failing(&self, code: &str) {
        let sql = format!(
            "create table failing (v text); \
             create function fail() returns trigger language plpgsql as \
                 $$begin raise 'as asked for' using errcode = '{code}'; end$$; \
             create constraint trigger fail after insert on failing deferrable initially deferred \
                 for each row execute function fail()"
        );
        self.raw.says(&sql).await.unwrap();
    }
}

/// A lock that a deferred trigger waits for.
struct Gate {
    raw: Raw,
}

impl Gate {
    async fn open(&self) {
        self.raw.says("select pg_advisory_unlock(1)").await.unwrap();
    }
}

/// An empty log of a program of its own: ids are unique in a whole server, and the tests share one.
fn disk() -> LogDisk {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    LogDisk::new(u128::from(COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Two databases as the resources `a` and `b` of a manager.
struct Two {
    a: Place,
    b: Place,
    log: LogDisk,
}

impl Two {
    async fn new() -> Self {
        Self { a: Place::new().await, b: Place::new().await, log: disk() }
    }

    fn stores(&self) -> (Postgres, Postgres) {
        (self.a.store("a"), self.b.store("b"))
    }

    /// A manager over these: the next run of the same program.
    async fn manager(&self, a: &Postgres, b: &Postgres) -> TransactionManager {
        self.builder(a, b).build().await.unwrap()
    }

    fn builder(&self, a: &Postgres, b: &Postgres) -> Builder {
        TransactionManager::builder(self.log()).resource(a.clone()).resource(b.clone())
    }

    fn log(&self) -> KeptLog {
        self.log.open()
    }

    async fn rows(&self) -> [Vec<String>; 2] {
        [self.a.rows().await, self.b.rows().await]
    }

    async fn prepared(&self) -> [Vec<String>; 2] {
        [self.a.raw.prepared().await, self.b.raw.prepared().await]
    }

    /// Nothing is there, and nothing is prepared.
    async fn is_empty(&self) {
        assert_eq!((self.rows().await, self.prepared().await), Default::default());
    }
}

/// The adapter's own error among an error's sources.
#[track_caller]
fn why<'a>(error: &'a (dyn Error + 'static)) -> &'a PostgresError {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return error;
        }
        next = error.source();
    }
    panic!("no error of PostgreSQL in {error:?}")
}

/// The SQLSTATE in an error of the adapter.
#[track_caller]
fn sqlstate(error: &(dyn Error + 'static)) -> String {
    why(error).code().map_or("none".to_owned(), |code| code.code().to_owned())
}

/// What psql prints for statements, command tags included, which the driver keeps to itself.
fn psql(url: &str, sql: &str) -> String {
    let program = unanimous_testing::postgres::binaries().unwrap().join("psql");
    let output = std::process::Command::new(program)
        .args(["--no-psqlrc", "--no-align", "--tuples-only", "--no-password", "--dbname", url])
        .args(sql.split("; ").flat_map(|statement| ["--command", statement]))
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").field("pid", &self.pid).finish_non_exhaustive()
    }
}
