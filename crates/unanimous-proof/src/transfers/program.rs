//! The program: a manager over a decision log, two databases and a folder of files, whose workers transfer until they are told to stop.
//!
//! `transfers ARRANGEMENT FOLDER LEFT-URL RIGHT-URL RUN SEED WORKERS`. A line says how each transfer ended. `ready` says that the manager is
//! built, so that all was recovered that could be. A first SIGTERM ends the workers, and `quiet` says that they have ended; the manager
//! lives on and recovers. A second one shuts it down, with the exit code 0.
//!
//! Must not know what becomes of it.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use unanimous::files::Files;
use unanimous::log::FileLog;
use unanimous::postgres::{Postgres, PostgresLog};
use unanimous::{BoxError, CommitError, Options, TransactionManager};
use unanimous_testing::rng::Rng;

use super::{ACCOUNTS, Arrangement, Fate, Kind, Name, journal, line};
use crate::say;

/// Short enough that a halted server has votes fenced.
const VOTE: Duration = Duration::from_secs(2);

/// Workers meet in opposite orders in two databases: it is what ends that.
const LOCK: Duration = Duration::from_millis(700);

/// How long a worker waits where a store can't be worked with.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the program with these arguments to its end.
///
/// # Errors
///
/// When an argument is wrong, or a store can't be opened for another reason than that its server is down.
pub fn run(arguments: impl Iterator<Item = String>) -> Result<(), BoxError> {
    let arguments: Vec<String> = arguments.collect();
    let [arrangement, folder, left, right, run, seed, workers] = arguments.as_slice() else {
        return Err("transfers ARRANGEMENT FOLDER LEFT-URL RIGHT-URL RUN SEED WORKERS".into());
    };
    let (run, mut rng, workers) = (run.parse()?, Rng::new(seed.parse()?), workers.parse::<u32>()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        // Before all else: an early SIGTERM would kill it.
        let mut terminate = signal(SignalKind::terminate())?;
        let program = Program::open(arrangement.parse()?, Path::new(folder), [left, right], run).await?;
        say("ready");
        let program = Arc::new(program);
        let tasks: Vec<_> = (0..workers)
            .map(|worker| {
                let (program, rng) = (program.clone(), rng.split());
                tokio::spawn(async move { program.work(worker, rng).await })
            })
            .collect();
        if workers > 0 {
            terminate.recv().await;
            program.stopping.store(true, Ordering::Relaxed);
            for task in tasks {
                task.await?;
            }
        }
        say("quiet");
        terminate.recv().await;
        program.manager.shutdown(Duration::from_secs(20)).await?;
        Ok(())
    })
}

struct Program {
    run: u32,
    manager: TransactionManager,
    databases: [Postgres; 2],
    journal: Files,
    stopping: AtomicBool,
    /// Whether decisions are in files, on a disk that nobody fails: who lives to be told of one is told which.
    knows: bool,
}

/// How a transfer differs from one that simply commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Twist {
    None,
    /// There is not so much money.
    Overdraft,
    Doom,
    GiveUp,
    DropOwner,
    /// A database says no at the vote, or at the commit where it does not vote.
    Refused(usize),
    TimeLimit,
    /// Nobody waits for the outcome.
    DropCommit,
}

impl Twist {
    fn draw(rng: &mut Rng) -> Self {
        match rng.between(1, 100) {
            1..=70 => Self::None,
            71..=74 => Self::Overdraft,
            75..=78 => Self::Doom,
            79..=82 => Self::GiveUp,
            83..=85 => Self::DropOwner,
            86..=90 => Self::Refused(rng.between(0, 1) as usize),
            91..=95 => Self::TimeLimit,
            _ => Self::DropCommit,
        }
    }
}

/// A change of one account.
#[derive(Clone, Copy, Debug)]
struct Leg {
    database: usize,
    account: i32,
    amount: i64,
    refused: bool,
}

impl Program {
    async fn open(arrangement: Arrangement, folder: &Path, urls: [&String; 2], run: u32) -> Result<Self, BoxError> {
        let urls = urls.map(|url| format!("{url} application_name=run-{run}"));
        let database = |name: &str, url: &str, carrier: bool| -> Result<Postgres, BoxError> {
            let builder = Postgres::builder(name, url.parse::<unanimous::postgres::tokio_postgres::Config>()?);
            let builder = builder.vote_timeout(VOTE).lock_timeout(LOCK).pool_timeout(VOTE);
            Ok(if carrier { builder.carrier().build() } else { builder.build() })
        };
        let left = database("left", &urls[0], false)?;
        let right = database("right", &urls[1], arrangement == Arrangement::Carrier)?;
        let files = Files::open("journal", folder.join("journal")).await?;
        let knows = arrangement == Arrangement::FileLog;
        let builder = match arrangement {
            Arrangement::PostgresLog => TransactionManager::builder(postgres_log(&urls[0]).await),
            Arrangement::FileLog | Arrangement::Carrier => {
                TransactionManager::builder(FileLog::open(folder.join("log")).await?)
            }
        };
        let builder = builder.resource(left.clone()).resource(right.clone()).resource(files.clone());
        let manager = builder.recovery_interval(Duration::from_secs(2)).store_wait(VOTE).build().await?;
        Ok(Self { run, manager, databases: [left, right], journal: files, stopping: AtomicBool::new(false), knows })
    }

    async fn work(&self, worker: u32, mut rng: Rng) {
        for number in 1.. {
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            let kind = match rng.between(1, 100) {
                1..=80 => Kind::Both,
                81..=90 => Kind::Within(0),
                _ => Kind::Within(1),
            };
            let name = Name { run: self.run, worker, number, kind };
            let fate = self.transfer(&name, &mut rng).await;
            say(&line(&name, &fate));
            if matches!(fate, Fate::Unreached | Fate::Unknown) {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn transfer(&self, name: &Name, rng: &mut Rng) -> Fate {
        let twist = Twist::draw(rng);
        let legs = legs(name.kind, twist, rng);
        let options = match twist {
            Twist::TimeLimit => Options::default().time_limit(Duration::from_millis(rng.between(1, 40))),
            _ => Options::default(),
        };
        let first = rng.between(0, 1) as usize;
        let transaction = self.manager.begin_with(options);
        let id = transaction.id().to_string();
        let work = async {
            for leg in [legs[first], legs[1 - first]] {
                let branch = transaction.join(&self.databases[leg.database]).await?;
                let changed = branch
                    .execute("update account set balance = balance + $1 where id = $2", &[&leg.amount, &leg.account])
                    .await?;
                if changed != 1 {
                    return Err(format!("there is no account {}", leg.account).into());
                }
                branch
                    .execute(
                        "insert into entry values ($1, $2, $3, $4, $5)",
                        &[&name.to_string(), &leg.account, &leg.amount, &id, &leg.refused],
                    )
                    .await?;
            }
            if name.kind == Kind::Both {
                let content = journal(name, &id, legs.map(|leg| (leg.account, leg.amount)));
                transaction.join(&self.journal).await?.create(name.file(), content).await?;
            }
            Ok::<(), BoxError>(())
        };
        let must_abort = match (work.await, twist) {
            (Err(_), Twist::Overdraft | Twist::TimeLimit) | (Ok(()), Twist::GiveUp) => {
                transaction.abort().await;
                return Fate::Aborted;
            }
            (Err(error), _) => {
                let conflict = transaction.is_retryable(&*error);
                transaction.abort().await;
                return if conflict { Fate::Aborted } else { Fate::Unreached };
            }
            (Ok(()), Twist::DropOwner) => {
                drop(transaction);
                return Fate::Aborted;
            }
            (Ok(()), Twist::DropCommit) => {
                drop(transaction.commit());
                return Fate::Unknown;
            }
            (Ok(()), Twist::Doom) => {
                transaction.doom();
                true
            }
            (Ok(()), twist) => matches!(twist, Twist::Overdraft | Twist::Refused(_)),
        };
        match transaction.commit().await {
            Ok(_) if must_abort => Fate::Wrong(format!("{twist:?}, and committed")),
            Ok(_) => Fate::Committed,
            Err(CommitError::Aborted { .. }) => Fate::Aborted,
            Err(error) if self.knows && name.kind == Kind::Both => {
                Fate::Wrong(format!("unknown, although the log decides: {}", chain(&error)))
            }
            Err(_) => Fate::Unknown,
        }
    }
}

fn legs(kind: Kind, twist: Twist, rng: &mut Rng) -> [Leg; 2] {
    let amount = match twist {
        Twist::Overdraft => i64::from(ACCOUNTS) * 2 * super::BALANCE + 1,
        _ => rng.between(1, 200) as i64,
    };
    let amount = if rng.chance(1, 2) { amount } else { -amount };
    let mut account = || rng.between(1, ACCOUNTS as u64) as i32;
    let (one, mut two) = (account(), account());
    let databases = match kind {
        Kind::Both => [0, 1],
        Kind::Within(database) => [database; 2],
    };
    if kind != Kind::Both && one == two {
        two = one % ACCOUNTS + 1;
    }
    let refused = |leg: usize| twist == Twist::Refused(leg);
    [
        Leg { database: databases[0], account: one, amount, refused: refused(0) },
        Leg { database: databases[1], account: two, amount: -amount, refused: refused(1) },
    ]
}

/// Opened as soon as its server is there, and the killed process before this one has left it.
async fn postgres_log(url: &str) -> PostgresLog {
    loop {
        match PostgresLog::open(url, "transfers").await {
            Ok(log) => return log,
            Err(error) => {
                // The last one of them tells why it never opened.
                let _ = writeln!(std::io::stderr().lock(), "{}", chain(&error));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |all, next| format!("{all}: {next}"))
}
