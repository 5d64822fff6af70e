//! Databases of a worker's own, and how a case is tried on them.
//!
//! Must not know which cases there are.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use unanimous::log::FileLog;
use unanimous::postgres::tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use unanimous::postgres::{Postgres, PostgresLog};
use unanimous::{BoxError, CommitError, TransactionManager};
use unanimous_testing::postgres::{Cluster, Database};
use unanimous_testing::proxy::postgres::{Proxy, Rule, Seen};

use super::case::{Arrangement, Case, Fate, VOTE_TIMEOUT};

/// Within this everything works again, once a fault is over.
const PATIENCE: Duration = Duration::from_secs(20);

/// So often a delay may be in vain.
const DELAYED: u32 = 4;

type Checked<T = ()> = Result<T, String>;

/// What the caller of a transaction was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Committed,
    Aborted,
    Unknown,
    /// Its work failed, and it was given up.
    Failed,
    /// Nothing: the process died before.
    Nothing,
    /// There was no manager: the log could not be opened.
    NotBegun,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Told::Committed => "told committed",
            Told::Aborted => "told aborted",
            Told::Unknown => "told unknown",
            Told::Failed => "the work failed",
            Told::Nothing => "the process died",
            Told::NotBegun => "no log",
        })
    }
}

/// Three databases, and a way to look into them that no proxy is in.
pub(super) struct Place<'c> {
    cluster: &'c Cluster,
    databases: Vec<Database<'c>>,
    lookers: Vec<Client>,
    looking: Runtime,
    folder: TempDir,
    tries: u64,
}

/// A manager over the databases behind the proxies.
struct Life {
    manager: TransactionManager,
    stores: [Postgres; 2],
    arrangement: Arrangement,
}

impl<'c> Place<'c> {
    pub(super) fn new(cluster: &'c Cluster) -> Checked<Self> {
        // With a thread of its own, that goes on while a case's runtime runs.
        let looking = Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(text)?;
        let (mut databases, mut lookers) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let database = cluster.database().map_err(text)?;
            database.psql("create table t (k text primary key)").map_err(text)?;
            lookers.push(looking.block_on(async {
                let (client, connection) =
                    database.url().parse::<Config>().map_err(text)?.connect(NoTls).await.map_err(text)?;
                drop(tokio::spawn(connection));
                Checked::Ok(client)
            })?);
            databases.push(database);
        }
        Ok(Self { cluster, databases, lookers, looking, folder: TempDir::new().map_err(text)?, tries: 0 })
    }

    /// Another one: what was violated stays in the databases.
    pub(super) fn renew(&mut self) -> Checked {
        *self = Self::new(self.cluster)?;
        Ok(())
    }

    /// What goes by on each way.
    pub(super) fn without_faults(&mut self, arrangement: Arrangement) -> Checked<Vec<Vec<Seen>>> {
        let ways = self.ways(arrangement)?;
        for way in &ways {
            way.record();
        }
        let told = runtime()?.block_on(async {
            let life = self.live(arrangement, &ways).await.map_err(text)?;
            Checked::Ok([life.transfer(&self.key(1)).await?, life.transfer(&self.key(2)).await?])
        })?;
        ensure(told == [Told::Committed; 2], || format!("without faults it was {told:?}"))?;
        self.tries += 1;
        Ok(ways.iter().map(Proxy::recorded).collect())
    }

    fn ways(&self, arrangement: Arrangement) -> Checked<Vec<Proxy>> {
        let databases = self.databases[..arrangement.ways()].iter();
        databases.map(|database| Proxy::start(database.cluster().port()).map_err(text)).collect()
    }

    fn key(&self, transaction: u64) -> String {
        format!("{}-{transaction}", self.tries)
    }

    fn url(&self, database: usize, way: &Proxy) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={}", way.port(), self.databases[database].name())
    }

    /// What the callers were told, where nothing was violated, and whether the message came.
    pub(super) fn try_case(&mut self, case: &Case) -> Checked<(Vec<Told>, bool)> {
        let mut left = DELAYED;
        loop {
            let (told, met) = self.try_once(case)?;
            if case.fate != Fate::Delay || told[..2] == [Told::Committed; 2] {
                return Ok((told, met));
            }
            // A machine that is busy may make a delay longer than a limit, and not each time.
            left -= 1;
            ensure(left > 0, || format!("it was delayed by less than any limit, and was {told:?}"))?;
        }
    }

    fn try_once(&mut self, case: &Case) -> Checked<(Vec<Told>, bool)> {
        self.tries += 1;
        let ways = self.ways(case.arrangement)?;
        let rule = ways[case.way].at(case.direction, case.number, case.fate.act());
        let tried = self.lives(case, &ways, &rule);
        // A log reserves more space than the disk has for all cases.
        let _ = std::fs::remove_dir_all(self.log());
        Ok((tried?, rule.met()))
    }

    fn lives(&self, case: &Case, ways: &[Proxy], rule: &Rule) -> Checked<Vec<Told>> {
        let mut told = if case.fate.dies() { self.first_life(case, ways, rule)? } else { Vec::new() };
        runtime()?.block_on(self.whole_life(case, ways, rule, &mut told))?;
        self.is_left()?;
        Ok(told)
    }

    /// The folder of the case's log.
    fn log(&self) -> PathBuf {
        self.folder.path().join(format!("log-{}", self.tries))
    }

    /// Dies at the case's message.
    fn first_life(&self, case: &Case, ways: &[Proxy], rule: &Rule) -> Checked<Vec<Told>> {
        let mut told = Vec::new();
        // The runtime is dropped behind it, and everything in it, as at the end of a process.
        runtime()?.block_on(async {
            let life = async {
                let Ok(life) = self.live(case.arrangement, ways).await else { return Ok(()) };
                for transaction in 1..=2 {
                    told.push(Told::Nothing);
                    let heard = life.transfer(&self.key(transaction)).await?;
                    told.pop();
                    told.push(heard);
                }
                Checked::Ok(())
            };
            match select(pin!(life), pin!(met(rule))).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => Ok(()),
            }
        })?;
        Ok(told)
    }

    /// Lives through the case's message, or behind its death; checks everything at the end.
    async fn whole_life(&self, case: &Case, ways: &[Proxy], rule: &Rule, told: &mut Vec<Told>) -> Checked {
        let opened = within("opening the log and the manager", self.live(case.arrangement, ways)).await?;
        let life = match opened {
            Ok(life) => life,
            Err(error) => {
                ensure(rule.met(), || format!("the log was not opened: {error}"))?;
                told.push(Told::NotBegun);
                self.over(rule).await?;
                self.again("opening the log and the manager", || self.live(case.arrangement, ways)).await?
            }
        };
        while told.len() < 2 {
            let key = self.key(told.len() as u64 + 1);
            // What was detached arrives when recovery has listed.
            if rule.met() && !rule.is_over() {
                life.manager.recover().await;
                rule.release();
            }
            told.push(life.transfer(&key).await?);
        }
        if rule.met() && !rule.is_over() {
            life.manager.recover().await;
            rule.release();
            self.over(rule).await?;
        }
        let start = Instant::now();
        while told.len() == 2 || told.last() != Some(&Told::Committed) {
            ensure(start.elapsed() < PATIENCE, || format!("the fault is over, and the manager can't work: {told:?}"))?;
            told.push(life.transfer(&self.key(told.len() as u64 + 1)).await?);
        }
        self.settle(&life, rule).await?;
        self.agree(case, told).await?;
        for _ in 0..2 {
            life.manager.recover().await;
        }
        self.agree(case, told).await?;
        let end = within("the shutdown", life.manager.shutdown(PATIENCE)).await?;
        ensure(end.is_ok(), || format!("something keeps the manager from its end: {end:?}"))
    }

    async fn live(&self, arrangement: Arrangement, ways: &[Proxy]) -> Result<Life, BoxError> {
        let store = |way: usize| -> Result<_, BoxError> {
            let name = ["a", "b"][way];
            let config: Config = self.url(way, &ways[way]).parse()?;
            let builder = Postgres::builder(name, config)
                .max_connections(2)
                .vote_timeout(VOTE_TIMEOUT)
                .lock_timeout(Duration::from_secs(1))
                .pool_timeout(Duration::from_secs(2));
            let carries = arrangement == Arrangement::Carrier && way == 1;
            Ok(if carries { builder.carrier() } else { builder }.build())
        };
        let stores = [store(0)?, store(1)?];
        let builder = match arrangement {
            Arrangement::PostgresLog => {
                let log = PostgresLog::builder(self.url(2, &ways[2]).parse()?, "node");
                TransactionManager::builder(log.lock_wait(Duration::from_secs(5)).open().await?)
            }
            _ => TransactionManager::builder(FileLog::options().lock_wait(PATIENCE / 2).open(self.log()).await?),
        };
        let manager = builder
            .resource(stores[0].clone())
            .resource(stores[1].clone())
            .store_wait(Duration::from_millis(600))
            .phase_two_wait(Duration::from_secs(1))
            .build()
            .await?;
        Ok(Life { manager, stores, arrangement })
    }

    /// Waits until the rule has acted to its end, where it was met.
    async fn over(&self, rule: &Rule) -> Checked {
        let start = Instant::now();
        rule.release();
        while rule.met() && !rule.is_over() {
            ensure(start.elapsed() < PATIENCE, || "the fault did not end".to_owned())?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    async fn again<T, E: fmt::Display, F: Future<Output = Result<T, E>>>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Checked<T> {
        let start = Instant::now();
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => {
                    ensure(start.elapsed() < PATIENCE, || format!("{what} still fails: {error}"))?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Nothing stays in doubt.
    async fn settle(&self, life: &Life, rule: &Rule) -> Checked {
        self.over(rule).await?;
        let start = Instant::now();
        loop {
            let doubts = within("a pass of recovery", life.manager.recover()).await?;
            let mut prepared = Vec::new();
            for looker in &self.lookers {
                let sql = "select gid from pg_prepared_xacts where database = current_database()";
                prepared.extend(rows(looker, sql).await?);
            }
            if doubts.is_empty() && prepared.is_empty() {
                return Ok(());
            }
            ensure(start.elapsed() < PATIENCE, || format!("it stays in doubt: {doubts:?}, prepared {prepared:?}"))?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The rows are as the callers were told.
    async fn agree(&self, case: &Case, told: &[Told]) -> Checked {
        let mut found = Vec::new();
        for looker in &self.lookers[..2] {
            found.extend(rows(looker, &format!("select k from t where k like '{}-%'", self.tries)).await?);
        }
        for (told, number) in told.iter().zip(1..) {
            let there: Vec<_> = ["x", "y"].map(|part| found.contains(&format!("{}-{part}", self.key(number)))).into();
            let as_told = match told {
                Told::Committed => there == [true, true],
                Told::Aborted | Told::Failed | Told::NotBegun => there == [false, false],
                Told::Unknown | Told::Nothing => there[0] == there[1],
            };
            ensure(as_told, || format!("transaction {number}: {told}, and its rows are there: {there:?}"))?;
            let may = case.arrangement.decides() == Some(case.way);
            ensure(*told != Told::Unknown || may, || format!("transaction {number} is unknown without need"))?;
        }
        Ok(())
    }

    /// No session is left, and no lock with it, although the ways are there still.
    fn is_left(&self) -> Checked {
        self.looking.block_on(async {
            let start = Instant::now();
            loop {
                let mut left = Vec::new();
                for looker in &self.lookers {
                    let sql = "select pid || ' ' || state || ' ' || query from pg_stat_activity \
                               where datname = current_database() and backend_type = 'client backend' \
                               and pid <> pg_backend_pid()";
                    left.extend(rows(looker, sql).await?);
                }
                if left.is_empty() {
                    return Ok(());
                }
                ensure(start.elapsed() < PATIENCE, || format!("sessions are left: {left:?}"))?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }
}

impl Life {
    async fn transfer(&self, key: &str) -> Checked<Told> {
        within("a transaction", self.try_transfer(key)).await
    }

    async fn try_transfer(&self, key: &str) -> Told {
        let tx = self.manager.begin();
        let work = async {
            let [a, b] = &self.stores;
            let insert = "insert into t (k) values ($1)";
            tx.join(a).await?.execute(insert, &[&format!("{key}-x")]).await?;
            if self.arrangement == Arrangement::OnePhase {
                tx.join(b).await?.simple_query("select count(*) from t").await?;
                tx.join(a).await?.batch_execute(&format!("insert into t (k) values ('{key}-y')")).await?;
            } else {
                tx.join(b).await?.batch_execute(&format!("insert into t (k) values ('{key}-y')")).await?;
            }
            Ok::<_, BoxError>(())
        };
        if work.await.is_err() {
            tx.abort().await;
            return Told::Failed;
        }
        match tx.commit().await {
            Ok(_) => Told::Committed,
            Err(CommitError::Aborted { .. }) => Told::Aborted,
            Err(_) => Told::Unknown,
        }
    }
}

async fn met(rule: &Rule) {
    while !rule.met() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn rows(client: &Client, sql: &str) -> Checked<Vec<String>> {
    let answer = client.simple_query(sql).await.map_err(text)?;
    let rows = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    Ok(rows.collect())
}

fn runtime() -> Checked<Runtime> {
    Builder::new_current_thread().enable_all().build().map_err(text)
}

async fn within<F: Future>(what: &str, future: F) -> Checked<F::Output> {
    tokio::time::timeout(PATIENCE * 2, future).await.map_err(|_| format!("{what} hangs"))
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(why()) }
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}
