//! The futures on two real databases and a log in files: each is dropped behind so many polls, each of which something has woken.
//!
//! Must not know how the adapter waits.

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use unanimous::env::TokioEnv;
use unanimous::log::FileLog;
use unanimous::postgres::tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use unanimous::postgres::{Postgres, deadpool_postgres};
use unanimous::{BoxError, CommitError, Outcome, Transaction, TransactionManager, Tx};
use unanimous_testing::postgres::{Cluster, Database};

use super::dropping::{MOST_POLLS, Mortal};
use crate::{Found, Options};

/// How many cases are under way at once.
const WORKERS: usize = 6;

/// Within this everything works again.
const PATIENCE: Duration = Duration::from_secs(30);

type Checked<T = ()> = Result<T, String>;

/// What is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Commit,
    Abort,
    /// The join of the second database; the first transaction of a manager, or one whose pool has connections.
    Join {
        warm: bool,
    },
    Work,
    Savepoint,
    RollbackTo,
    Run {
        warm: bool,
    },
    /// The detached task of a commit, and recovery's; the next start goes on.
    Driver,
    /// The next start behind the death of such a task.
    Build {
        died_at: usize,
    },
    /// A pass of recovery of the same manager, behind that.
    Recover {
        died_at: usize,
    },
    Shutdown,
}

/// Who decides, and where connections come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrangement {
    /// Both prepare; pools of the stores' own.
    TwoPhase,
    /// The second carries the decision.
    Carrier,
    /// Both prepare; pools of the application's.
    Pools,
}

/// The table's keys.
const ROW: &str = "row";
const SECOND: &str = "second";
const LATER: &str = "later";

pub(super) fn run(options: &Options) -> Checked<Found> {
    let cluster = Cluster::builder().setting("fsync", "off").setting("max_connections", 200).start();
    let cluster = &cluster.map_err(|error| error.to_string())?;
    let mut jobs = Vec::new();
    let deaths: &[usize] = if options.quick { &[6] } else { &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16] };
    for arrangement in [Arrangement::TwoPhase, Arrangement::Carrier, Arrangement::Pools] {
        let whats = [What::Commit, What::Abort, What::Work, What::Savepoint, What::RollbackTo];
        jobs.extend(whats.map(|what| (what, arrangement)));
        for warm in [false, true] {
            jobs.extend([What::Join { warm }, What::Run { warm }].map(|what| (what, arrangement)));
        }
        jobs.extend([What::Driver, What::Shutdown].map(|what| (what, arrangement)));
        for &died_at in deaths {
            jobs.extend([What::Build { died_at }, What::Recover { died_at }].map(|what| (what, arrangement)));
        }
    }
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Found::default()));
    let places = (0..WORKERS).map(|_| Place::new(cluster)).collect::<Checked<Vec<_>>>()?;
    let step = if options.quick { 3 } else { 1 };
    let work = |mut place: Place<'_>| {
        while let Some(&(what, arrangement)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut here = at_every_poll(&mut place, what, arrangement, step);
            if !here.violations.is_empty() {
                here.violations.extend(place.renew().err());
            }
            found.lock().unwrap_or_else(PoisonError::into_inner).add(here);
        }
    };
    thread::scope(|scope| {
        for place in places {
            scope.spawn(move || work(place));
        }
    });
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn at_every_poll(place: &mut Place<'_>, what: What, arrangement: Arrangement, step: usize) -> Found {
    let mut found = Found::default();
    for polls in (0..MOST_POLLS).step_by(step) {
        found.cases += 1;
        match place.try_case(what, arrangement, polls) {
            Ok(true) => return found,
            Ok(false) => {}
            Err(why) => {
                found.violations.push(format!("{what:?} dropped after {polls} polls; {arrangement:?}: {why}"));
                return found;
            }
        }
    }
    found.violations.push(format!("{what:?} did not end within {MOST_POLLS} polls; {arrangement:?}"));
    found
}

/// Polls a future so often at most, when something has woken it, and drops it.
async fn woken<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Two databases of a worker's own, and a way to look into them.
struct Place<'c> {
    cluster: &'c Cluster,
    databases: [Database<'c>; 2],
    lookers: Vec<Client>,
    looking: Runtime,
    folder: TempDir,
    tries: u64,
}

/// A manager over them.
struct Life {
    manager: TransactionManager,
    stores: [Postgres; 2],
    pools: Vec<deadpool_postgres::Pool>,
    mortal: Arc<Mortal>,
}

impl<'c> Place<'c> {
    fn new(cluster: &'c Cluster) -> Checked<Self> {
        let looking = Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(text)?;
        let databases = [cluster.database().map_err(text)?, cluster.database().map_err(text)?];
        let mut lookers = Vec::new();
        for database in &databases {
            database.psql("create table t (k text primary key)").map_err(text)?;
            lookers.push(looking.block_on(async {
                let config: Config = database.url().parse().map_err(text)?;
                let (client, connection) = config.connect(NoTls).await.map_err(text)?;
                drop(tokio::spawn(connection));
                Checked::Ok(client)
            })?);
        }
        Ok(Self { cluster, databases, lookers, looking, folder: TempDir::new().map_err(text)?, tries: 0 })
    }

    /// Another one: what was violated stays in the databases.
    fn renew(&mut self) -> Checked {
        *self = Self::new(self.cluster)?;
        Ok(())
    }

    /// Whether the future was ready before it would have been dropped.
    fn try_case(&mut self, what: What, arrangement: Arrangement, polls: usize) -> Checked<bool> {
        self.tries += 1;
        let tried = self.case(what, arrangement, polls);
        // A log reserves more space than the disk has for all cases.
        let _ = std::fs::remove_dir_all(self.log());
        let ready = tried?;
        self.is_left()?;
        Ok(ready)
    }

    fn case(&self, what: What, arrangement: Arrangement, polls: usize) -> Checked<bool> {
        match what {
            What::Driver => {
                let (outcome, dead) = self.first_life(arrangement, polls)?;
                self.next_life(arrangement, outcome)?;
                Ok(!dead)
            }
            What::Build { died_at } => {
                let (outcome, _) = self.first_life(arrangement, died_at)?;
                let built = runtime()?.block_on(async {
                    Ok::<_, String>(woken(polls, self.live(arrangement)).await.transpose()?.is_some())
                })?;
                self.next_life(arrangement, outcome)?;
                Ok(built)
            }
            What::Shutdown => {
                let (outcome, ready) = runtime()?.block_on(self.shutdown(arrangement, polls))?;
                self.next_life(arrangement, outcome)?;
                Ok(ready)
            }
            _ => runtime()?.block_on(self.one_life(what, arrangement, polls)),
        }
    }

    /// Dies in a commit, at so many polls of its tasks. What the caller was told, and whether it did.
    fn first_life(&self, arrangement: Arrangement, polls: usize) -> Checked<(Outcome, bool)> {
        runtime()?.block_on(async {
            let life = self.live(arrangement).await?;
            self.dies(&life, polls).await
        })
    }

    /// The next start finishes what the one before has left.
    fn next_life(&self, arrangement: Arrangement, outcome: Outcome) -> Checked {
        runtime()?.block_on(async {
            let life = self.live(arrangement).await?;
            self.agrees(&life, outcome).await
        })
    }

    async fn one_life(&self, what: What, arrangement: Arrangement, polls: usize) -> Checked<bool> {
        let life = self.live(arrangement).await?;
        if matches!(what, What::Join { warm: true } | What::Run { warm: true }) {
            let tx = life.manager.begin();
            self.write(&life, &tx, "warm").await?;
            tx.commit().await.map_err(text)?;
        }
        let (ready, outcome) = match what {
            What::Commit => {
                let tx = self.written(&life).await?;
                let end = end_of(&tx);
                let answer = woken(polls, tx.commit()).await;
                let outcome = within("the end of a commit", end).await??;
                ensure(outcome == Outcome::Committed, || format!("a commit ended {outcome:?}"))?;
                (answer.is_some(), outcome)
            }
            What::Abort => {
                let tx = self.written(&life).await?;
                let ready = woken(polls, tx.abort()).await.is_some();
                (ready, Outcome::Aborted)
            }
            What::Join { .. } => {
                let tx = life.manager.begin();
                self.insert(&life, &tx, &life.stores[0], ROW).await?;
                let joined = woken(polls, tx.join(&life.stores[1])).await.map(|joined| joined.map(drop));
                let ready = joined.is_some();
                joined.transpose().map_err(text)?;
                self.insert(&life, &tx, &life.stores[1], ROW).await?;
                (ready, told(&within("a commit", tx.commit()).await?))
            }
            What::Work => {
                let tx = life.manager.begin();
                self.insert(&life, &tx, &life.stores[0], ROW).await?;
                let branch = tx.join(&life.stores[1]).await.map_err(text)?;
                // Whether it was sent is not known; it is part of the branch in any case.
                let sql = format!("insert into t values ($1); -- {}", self.tries);
                let inserted = woken(polls, branch.execute(&sql, &[&self.key(ROW)])).await;
                drop(branch);
                drop(tx);
                (inserted.is_some(), Outcome::Aborted)
            }
            What::Savepoint => {
                let tx = self.written(&life).await?;
                let saved = woken(polls, tx.savepoint()).await;
                self.write(&life, &tx, SECOND).await?;
                if let Some(saved) = &saved {
                    saved.as_ref().map_err(text)?.rollback().await.map_err(text)?;
                }
                let outcome = told(&within("a commit", tx.commit()).await?);
                ensure(outcome == Outcome::Committed, || format!("behind a savepoint that was dropped: {outcome:?}"))?;
                let second = if saved.is_some() { Outcome::Aborted } else { Outcome::Committed };
                self.all_or_none(SECOND, second).await?;
                (saved.is_some(), outcome)
            }
            What::RollbackTo => {
                let tx = self.written(&life).await?;
                let savepoint = tx.savepoint().await.map_err(text)?;
                self.write(&life, &tx, SECOND).await?;
                let undone = woken(polls, savepoint.rollback()).await;
                let outcome = told(&within("a commit", tx.commit()).await?);
                let halfway = undone.is_none() && polls > 0;
                let expected = if halfway { Outcome::Aborted } else { Outcome::Committed };
                ensure(outcome == expected, || format!("undone {undone:?}, and it ended {outcome:?}"))?;
                let second = if undone.is_some() { Outcome::Aborted } else { outcome };
                self.all_or_none(SECOND, second).await?;
                (undone.is_some(), outcome)
            }
            What::Run { .. } => {
                let work = |tx: Tx| {
                    let stores = life.stores.clone();
                    let row = self.key(ROW);
                    async move {
                        for store in &stores {
                            tx.join(store).await?.execute("insert into t values ($1)", &[&row]).await?;
                        }
                        Ok::<_, BoxError>(())
                    }
                };
                let ran = woken(polls, life.manager.run(1, work)).await;
                let ready = ran.is_some();
                ran.transpose().map_err(text)?;
                (ready, if ready { Outcome::Committed } else { Outcome::Unknown })
            }
            What::Recover { died_at } => {
                let (outcome, _) = self.dies(&life, died_at).await?;
                let recovered = woken(polls, life.manager.recover()).await;
                (recovered.is_some(), outcome)
            }
            What::Driver | What::Build { .. } | What::Shutdown => return Err("it takes several lives".to_owned()),
        };
        self.agrees(&life, outcome).await?;
        Ok(ready)
    }

    /// A commit whose tasks are dropped, and those of recovery with them. What the caller was told, and whether any was.
    async fn dies(&self, life: &Life, polls: usize) -> Checked<(Outcome, bool)> {
        let tx = self.written(life).await?;
        life.mortal.set(polls);
        let answer = within("the answer of a commit", tx.commit()).await?;
        let dead = life.mortal.is_dead();
        life.mortal.set(usize::MAX);
        ensure(dead || answer.is_ok(), || format!("nothing was dropped, and the answer is {answer:?}"))?;
        Ok((told(&answer), dead))
    }

    async fn shutdown(&self, arrangement: Arrangement, polls: usize) -> Checked<(Outcome, bool)> {
        let life = self.live(arrangement).await?;
        let commit = self.written(&life).await?.commit();
        let first = woken(polls, life.manager.shutdown(PATIENCE)).await;
        let outcome = told(&within("the answer of a commit", commit).await?);
        ensure(outcome == Outcome::Committed, || format!("a commit that is drained ended {outcome:?}"))?;
        let again = within("a second shutdown", life.manager.shutdown(PATIENCE)).await?;
        ensure(again.is_ok(), || format!("a second shutdown: {again:?}"))?;
        Ok((outcome, first.is_some()))
    }

    async fn live(&self, arrangement: Arrangement) -> Checked<Life> {
        let (mut stores, mut pools) = (Vec::new(), Vec::new());
        for (name, database) in ["a", "b"].into_iter().zip(&self.databases) {
            let config: Config = database.url().parse().map_err(text)?;
            let builder = if arrangement == Arrangement::Pools {
                let manager = deadpool_postgres::Manager::new(config, NoTls);
                let pool = deadpool_postgres::Pool::builder(manager).max_size(2).build().map_err(text)?;
                pools.push(pool.clone());
                Postgres::builder(name, pool)
            } else {
                Postgres::builder(name, config)
            };
            let builder =
                builder.max_connections(2).pool_timeout(Duration::from_secs(10)).lock_timeout(Duration::from_secs(10));
            let carries = arrangement == Arrangement::Carrier && name == "b";
            stores.push(if carries { builder.carrier() } else { builder }.build());
        }
        let stores: [Postgres; 2] = stores.try_into().map_err(|_| "two stores were made")?;
        let mortal = Arc::new(Mortal::new(Arc::new(TokioEnv::current()), usize::MAX));
        // An opening that was dropped may still be at the disk, and has the lock until it comes back.
        let log = FileLog::options().lock_wait(PATIENCE / 2).open(self.log()).await.map_err(text)?;
        let manager = TransactionManager::builder(log)
            .resource(stores[0].clone())
            .resource(stores[1].clone())
            .env(mortal.clone())
            .build()
            .await
            .map_err(text)?;
        Ok(Life { manager, stores, pools, mortal })
    }

    /// The folder of the case's log.
    fn log(&self) -> PathBuf {
        self.folder.path().join(format!("log-{}", self.tries))
    }

    fn key(&self, key: &str) -> String {
        format!("{}-{key}", self.tries)
    }

    async fn written(&self, life: &Life) -> Checked<Transaction> {
        let tx = life.manager.begin();
        self.write(life, &tx, ROW).await?;
        Ok(tx)
    }

    async fn write(&self, life: &Life, tx: &Transaction, key: &str) -> Checked {
        for store in &life.stores {
            self.insert(life, tx, store, key).await?;
        }
        Ok(())
    }

    /// Also leaves in the session what the next one must not find; but in an application's, who cleans it as it likes to.
    async fn insert(&self, life: &Life, tx: &Transaction, store: &Postgres, key: &str) -> Checked {
        let branch = tx.join(store).await.map_err(text)?;
        let dirt = if life.pools.is_empty() { DIRT } else { "" };
        let sql = format!("insert into t values ('{}'){dirt}", self.key(key));
        within("a statement", branch.batch_execute(&sql)).await?.map_err(text)
    }

    /// Nothing stays in doubt, the rows are as the outcome says, sessions are clean, and what comes later works.
    async fn agrees(&self, life: &Life, outcome: Outcome) -> Checked {
        let start = Instant::now();
        loop {
            let doubts = within("a pass of recovery", life.manager.recover()).await?;
            let mut busy = Vec::new();
            for looker in &self.lookers {
                busy.extend(rows(looker, PREPARED).await?);
                busy.extend(rows(looker, OPEN).await?);
            }
            if doubts.is_empty() && busy.is_empty() {
                break;
            }
            ensure(start.elapsed() < PATIENCE, || format!("it stays in doubt or open: {doubts:?}, {busy:?}"))?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.all_or_none(ROW, outcome).await?;
        self.is_clean(life).await?;
        let tx = life.manager.begin();
        self.write(life, &tx, LATER).await?;
        let later = within("a later commit", tx.commit()).await?;
        ensure(later.is_ok(), || format!("a later commit: {later:?}"))?;
        self.all_or_none(LATER, Outcome::Committed).await?;
        let end = within("the shutdown", life.manager.shutdown(PATIENCE)).await?;
        ensure(end.is_ok(), || format!("something keeps the manager from its end: {end:?}"))
    }

    /// As many transactions at once as the pools have connections: none is lost, and each finds its session as a new one.
    async fn is_clean(&self, life: &Life) -> Checked {
        for pool in &life.pools {
            let status = pool.status();
            ensure(status.available == status.size && status.size <= 2, || format!("the pool is {status:?}"))?;
        }
        let both = [life.manager.begin(), life.manager.begin()];
        for tx in &both {
            for store in &life.stores {
                let branch = within("a join", tx.join(store)).await?.map_err(text)?;
                let found = rows(&branch, STATE).await?;
                ensure(found == [format!("{} 0", tx.id())], || {
                    format!("the session of {} is not clean: {found:?}", tx.id())
                })?;
            }
        }
        for tx in both {
            within("an abort", tx.abort()).await?;
        }
        Ok(())
    }

    async fn all_or_none(&self, key: &str, outcome: Outcome) -> Checked {
        let mut there = Vec::new();
        for looker in &self.lookers {
            let found = rows(looker, &format!("select k from t where k = '{}'", self.key(key))).await?;
            there.push(!found.is_empty());
        }
        let as_told = match outcome {
            Outcome::Committed => there == [true, true],
            Outcome::Aborted => there == [false, false],
            Outcome::Unknown => there[0] == there[1],
        };
        ensure(as_told, || format!("outcome {outcome:?}, and {key:?} is there: {there:?}"))
    }

    /// No session is left.
    fn is_left(&self) -> Checked {
        self.looking.block_on(async {
            let start = Instant::now();
            loop {
                let mut left = Vec::new();
                for looker in &self.lookers {
                    left.extend(rows(looker, SESSIONS).await?);
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

const PREPARED: &str = "select gid from pg_prepared_xacts where database = current_database()";

const SESSIONS: &str = "select pid || ' ' || state || ' ' || query from pg_stat_activity \
    where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()";

/// Sessions that are inside of a transaction.
const OPEN: &str = "select pid || ' ' || state || ' ' || query from pg_stat_activity \
    where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid() and state <> 'idle'";

/// What work may leave in a session.
const DIRT: &str = "; set application_name = 'dirty'; select pg_advisory_lock(7)";

/// Whose transaction a session is in, and what of an earlier one's it has.
const STATE: &str = "select current_setting('unanimous.branch', true) || ' ' \
    || (current_setting('application_name') = 'dirty')::int \
    + (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";

/// How a transaction ends, when it does.
fn end_of(tx: &Transaction) -> impl Future<Output = Checked<Outcome>> + use<> {
    let (ended, end) = tokio::sync::oneshot::channel();
    tx.after_end(move |outcome| {
        let _ = ended.send(outcome);
    });
    async move { end.await.map_err(|_| "the transaction was forgotten without an end".to_owned()) }
}

fn told<T>(answer: &Result<T, CommitError>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Committed,
        Err(CommitError::Aborted { .. }) => Outcome::Aborted,
        Err(_) => Outcome::Unknown,
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
    tokio::time::timeout(PATIENCE, future).await.map_err(|_| format!("{what} hangs"))
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(why()) }
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}
