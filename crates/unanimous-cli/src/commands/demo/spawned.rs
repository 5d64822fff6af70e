//! Two PostgreSQL servers of the data folder's own, which run as long as the demo does.
//!
//! They end with this process also when it is killed. One that is still there when the next one starts is waited for, and ended by its
//! process id where nobody ends it.
//!
//! Must not know what is kept in them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use unanimous_testing::postgres::{Cluster, Error};

use crate::failure::Failure;

/// Each server's folder below the data folder, and its database.
const SERVERS: [(&str, &str); 2] = [("postgres-1", "orders"), ("postgres-2", "invoices")];

/// How long a server that lost its demo may take to end by itself, and then because it was told to.
const BY_ITSELF: Duration = Duration::from_secs(5);
const WHEN_TOLD: Duration = Duration::from_secs(30);

/// The running servers; those are ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Spawned {
    clusters: [Cluster; 2],
    /// Keeps others from starting servers on the same data.
    _lock: File,
}

impl Spawned {
    /// Makes and starts them; `lock`: that of the data folder, held.
    pub(super) fn start(data: &Path, lock: File) -> Result<Self, Failure> {
        let [first, second] = SERVERS.map(|(folder, database)| start(&data.join(folder), database));
        Ok(Self { clusters: [first?, second?], _lock: lock })
    }

    /// Their databases' connection strings.
    pub(crate) fn urls(&self) -> [String; 2] {
        let [first, second] = &self.clusters;
        [url(first.port(), SERVERS[0].1), url(second.port(), SERVERS[1].1)]
    }

    /// Stops them in order: nothing has to be recovered at the next start.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        let stopped = self.clusters.each_mut().map(Cluster::stop_fast);
        stopped
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::new("can't stop PostgreSQL").because(&error))
    }
}

/// The connection strings of servers that another process runs on this data.
pub(super) fn running(data: &Path) -> Result<[String; 2], Failure> {
    let [first, second] = SERVERS.map(|(folder, database)| {
        let file = pid_file(&data.join(folder));
        // The port is in the fourth line (postmaster.pid, PostgreSQL's `miscadmin.h`).
        let port = fs::read_to_string(&file).ok().and_then(|text| text.lines().nth(3)?.parse().ok());
        port.map(|port| url(port, database)).ok_or_else(|| {
            Failure::new(format!("the data folder {} is in use, and its servers don't run (yet)", data.display()))
                .hint("wait until its demo serves; or stop what holds the folder")
        })
    });
    Ok([first?, second?])
}

fn start(folder: &Path, database: &str) -> Result<Cluster, Failure> {
    end_earlier(folder);
    let failed = |error: Error| {
        Failure::new(format!("can't start PostgreSQL in {}", folder.display())).because(&error).hint(
            "give databases that are there already with --postgres URL --postgres URL; or leave both out for SQLite",
        )
    };
    let cluster = Cluster::builder().folder(folder).start().map_err(failed)?;
    let known = cluster.psql("postgres", &format!("select 1 from pg_database where datname = '{database}'"));
    if known.map_err(failed)?.is_empty() {
        cluster.create_database(database).map_err(failed)?;
    }
    Ok(cluster)
}

fn url(port: u16, database: &str) -> String {
    format!("host=127.0.0.1 port={port} user=postgres dbname={database}")
}

fn pid_file(folder: &Path) -> PathBuf {
    folder.join("data/postmaster.pid")
}

/// The folder's lock is ours, so that a server which still runs there is one whose demo is gone.
fn end_earlier(folder: &Path) {
    let start = Instant::now();
    let mut told = false;
    while let Some(server) = earlier(folder) {
        if start.elapsed() > WHEN_TOLD {
            // The start that follows says why it can't.
            return;
        }
        if start.elapsed() > BY_ITSELF && !told {
            tracing::warn!(pid = server.as_raw_nonzero().get(), "a server that lost its demo is ended");
            // It may have ended meanwhile.
            let _ = kill_process(server, Signal::INT);
            told = true;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A server that runs on this data. After a restart of the machine its process id may be another program's, which works elsewhere.
fn earlier(folder: &Path) -> Option<Pid> {
    let text = fs::read_to_string(pid_file(folder)).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd"));
    let data = folder.join("data").canonicalize().ok()?;
    let pid = Pid::from_raw(pid)?;
    (test_kill_process(pid).is_ok() && works_in.is_ok_and(|works_in| works_in == data)).then_some(pid)
}
