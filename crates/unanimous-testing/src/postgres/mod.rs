//! Private PostgreSQL servers: own data, own port on 127.0.0.1, gone when they are dropped, also when their process is killed.
//!
//! ```
//! use unanimous_testing::postgres::Cluster;
//!
//! # fn main() -> Result<(), unanimous_testing::postgres::Error> {
//! let mut cluster = Cluster::start()?;
//! cluster.create_database("orders")?;
//! cluster.psql("orders", "create table lines (id int); insert into lines values (1), (2)")?;
//! cluster.kill()?;
//! cluster.restart()?;
//! assert_eq!(cluster.psql("orders", "select count(*) from lines")?, "2");
//! # Ok(())
//! # }
//! ```
//!
//! A start takes about a second: tests that do nothing to the server itself share one, with a database each
//! ([`Cluster::shared`], [`Cluster::database`]).
//!
//! PostgreSQL 13 or later; its programs are looked for by [`binaries`]. All calls block their thread. Started by root, the server runs as
//! the user `postgres` or `nobody`, since it refuses to run as root.
//!
//! No data are copied to save time: two clusters of one `initdb` have one system identifier, by which they could not be told apart.
//!
//! Must not know what its users store, nor any driver: it talks to the server through psql.

mod binaries;
mod builder;
mod database;
mod error;
mod owner;
mod server;
mod servers;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, test_kill_process};

pub use binaries::binaries;
pub use builder::Builder;
pub use database::Database;
pub use error::{Error, ErrorKind};
pub use servers::Servers;

use builder::{free_port, write_settings};
use owner::{Owner, plain};
use server::{END, Server, Started};

/// How long a server may take to accept connections: it may have to recover.
const START: Duration = Duration::from_secs(60);

/// What the log says when a start fails for what passes: an earlier server that is about to end, a port that somebody holds. (The
/// clusters' messages are in English.)
const PASSING: [&str; 3] =
    ["Address already in use", "pre-existing shared memory block", "lock file \"postmaster.pid\" already exists"];

/// How long such a start is repeated.
const REPEAT: Duration = Duration::from_secs(10);

/// How much of the log an error quotes, in lines.
const QUOTED: usize = 20;

/// A private PostgreSQL server.
///
/// Dropped, it is stopped at once (`immediate`), and its folder goes if it was a temporary one. It may be stopped, killed and started
/// again, with its data and its port.
#[derive(Debug)]
pub struct Cluster {
    /// Before the home, so that the server has ended when its folder goes.
    server: Option<Server>,
    port: u16,
    settings: BTreeMap<String, String>,
    home: Home,
}

/// What stays from one run to the next.
#[derive(Debug)]
struct Home {
    binaries: PathBuf,
    owner: Owner,
    folder: PathBuf,
    /// Removes the folder when it is dropped.
    temporary: Option<tempfile::TempDir>,
}

impl Home {
    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// One of PostgreSQL's programs, run as the server's user.
    fn command(&self, program: &str) -> Command {
        self.owner.command(self.binaries.join(program), &self.folder)
    }
}

impl Cluster {
    /// Starts one with a temporary folder, a free port and settings for tests.
    ///
    /// # Errors
    ///
    /// As [`Builder::start`].
    pub fn start() -> Result<Self, Error> {
        Self::builder().start()
    }

    /// For one with a folder, a port or settings of its own.
    ///
    /// The settings that it begins with: 127.0.0.1 only, no Unix socket, 64 prepared transactions, 100 connections, little memory;
    /// `fsync` is on, as always.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// A standby that streams from this one, named `name` for `synchronous_standby_names`. It has a copy of the data and of the settings
    /// as they are now. A synchronous one is made in three steps:
    ///
    /// ```no_run
    /// # use unanimous_testing::postgres::{Cluster, Error};
    /// # fn main() -> Result<(), Error> {
    /// let mut primary = Cluster::start()?;
    /// let replica = primary.replica("second").start()?;
    /// primary.set("synchronous_standby_names", "second")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn replica(&self, name: &str) -> Builder {
        let origin = format!("host=127.0.0.1 port={} user=postgres application_name={}", self.port, quoted(name));
        Builder::replica_of(origin, self.settings.clone())
    }

    /// Starts it again after its end, with the same data and port, and waits until it accepts connections. One that runs is stopped first,
    /// by its fast shutdown.
    ///
    /// # Errors
    ///
    /// When it does not start, or does not stop; the text has the end of its log.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.end(|server| server.stop(Signal::INT))?;
        self.run(true)
    }

    /// kill -9 of the postmaster. Returns when its children have gone too: they end by themselves when they next wait for something, and
    /// are killed after a second. Nothing happens to one that has ended already.
    ///
    /// # Errors
    ///
    /// When it can't be killed.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.end(Server::kill)
    }

    /// Stops it as `pg_ctl stop -m immediate` does: it will have to recover. Returns when it has ended.
    ///
    /// # Errors
    ///
    /// When it does not end; the text has the end of its log.
    pub fn stop_immediate(&mut self) -> Result<(), Error> {
        self.end(|server| server.stop(Signal::QUIT))
    }

    /// Stops it as `pg_ctl stop -m fast` does: open transactions are rolled back, connections closed. Returns when it has ended.
    ///
    /// # Errors
    ///
    /// When it does not end; the text has the end of its log.
    pub fn stop_fast(&mut self) -> Result<(), Error> {
        self.end(|server| server.stop(Signal::INT))
    }

    /// Sends the postmaster a signal and does not wait: TERM is a smart shutdown, HUP reads the settings again, STOP and CONT halt it and let
    /// it go on (not its children, which serve the connections that there are).
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        self.running()?.signal(signal).map_err(|error| Error::new(ErrorKind::Running, format!("signal: {error}")))
    }

    /// Changes a setting of a running server, and waits until it is in force for new sessions; one that needs a restart is in force after
    /// the next. What `ALTER SYSTEM` says wins over it.
    ///
    /// # Errors
    ///
    /// When the server does not run, or refuses the setting; the text has the end of its log.
    pub fn set(&mut self, name: &str, value: impl ToString) -> Result<(), Error> {
        self.running()?;
        let before = self.loaded()?;
        self.settings.insert(name.into(), value.to_string());
        write_settings(&self.home, self.port, &self.settings)?;
        self.signal(Signal::HUP)?;
        let start = Instant::now();
        while self.loaded()? == before {
            if start.elapsed() > END {
                return Err(self.failed(ErrorKind::Setup, &format!("the server did not take the setting {name}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Makes a role, a superuser, that the server lets in with TLS only, by this certificate and its key (PEM).
    ///
    /// # Errors
    ///
    /// When the server does not run, has such a role, or does not take the certificate.
    pub fn require_tls(&mut self, role: &str, certificate: &[u8], key: &[u8]) -> Result<(), Error> {
        self.psql("postgres", &format!("create role \"{}\" superuser login", role.replace('"', "\"\"")))?;
        let data = self.data();
        for (name, content) in [("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            let written = fs::write(&path, content)
                // The server refuses a key that others can read.
                .and_then(|()| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)))
                .and_then(|()| self.home.owner.give(&path));
            written.map_err(|error| Error::setup("write", &path, &error))?;
        }
        let access = data.join("pg_hba.conf");
        let rules = fs::read_to_string(&access).and_then(|rules| {
            let only = format!("hostssl all {role} 127.0.0.1/32 trust\nhost all {role} all reject\n");
            fs::write(&access, only + &rules)
        });
        rules.map_err(|error| Error::setup("write", &access, &error))?;
        self.set("ssl", "on")
    }

    /// Makes a primary of a standby, and waits until it is one.
    ///
    /// # Errors
    ///
    /// When it is no standby, or does not become a primary in a minute.
    pub fn promote(&self) -> Result<(), Error> {
        if self.psql("postgres", "select pg_promote(true, 60)")? == "t" {
            return Ok(());
        }
        Err(self.failed(ErrorKind::Start, "the standby did not become a primary within a minute"))
    }

    /// The port on 127.0.0.1. It stays the same.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The postmaster's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(|server| server.id().as_raw_nonzero().get().unsigned_abs())
    }

    /// The ids of the server's processes, the postmaster's first (on Linux; elsewhere only that). None if it does not run.
    pub fn processes(&self) -> Vec<u32> {
        self.server.as_ref().map(|server| server::family(server.id())).unwrap_or_default()
    }

    /// The folder with the data, `PGDATA`.
    pub fn data(&self) -> PathBuf {
        self.home.data()
    }

    /// The server's log, of all its runs.
    pub fn log(&self) -> String {
        fs::read(self.home.log()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// A connection string for a database, as the superuser `postgres`; there is no password.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// A connection string for a database, as any role; there is no password.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("host=127.0.0.1 port={} user={} dbname={}", self.port, quoted(role), quoted(database))
    }

    /// Makes a database.
    ///
    /// # Errors
    ///
    /// When there is one of that name, or the server does not run.
    pub fn create_database(&self, name: &str) -> Result<(), Error> {
        self.psql("postgres", &format!("create database \"{}\"", name.replace('"', "\"\""))).map(drop)
    }

    /// Runs statements with psql, one after another, as the superuser `postgres`, and gives what they print: a line for each row, `|` between
    /// values, nothing else. The first error ends it.
    ///
    /// # Errors
    ///
    /// psql's, with the SQLSTATE.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String, Error> {
        let failed = |why: String| Error::new(ErrorKind::Sql, format!("psql: {why}\nit was to do: {sql}"));
        let mut child = plain(self.home.binaries.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"])
            .args(["--set=ON_ERROR_STOP=1", "--set=VERBOSITY=verbose", "--file=-"])
            .arg(format!("--dbname={} connect_timeout=10", self.url(database)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let mut input = child.stdin.take().expect("it was asked for as a pipe");
        let output = thread::scope(|scope| {
            // psql that ends early closes its input; it has said why.
            scope.spawn(move || input.write_all(sql.as_bytes()));
            child.wait_with_output()
        });
        let output = output.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    /// Starts it. Its port may be another's by now: a new one is drawn, unless it was asked for or has been told already.
    fn run(&mut self, fixed_port: bool) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            write_settings(&self.home, self.port, &self.settings)?;
            let said_before = self.log().len();
            let status = match self.launch()? {
                None => return Ok(()),
                Some(status) => status,
            };
            let log = self.log();
            let said = log.get(said_before..).unwrap_or_default();
            if start.elapsed() > REPEAT || !PASSING.iter().any(|reason| said.contains(reason)) {
                return Err(self.failed(ErrorKind::Start, &format!("the server ended ({status})")));
            }
            if !fixed_port {
                self.port = free_port()?;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts the server; gives how it ended if it did.
    fn launch(&mut self) -> Result<Option<std::process::ExitStatus>, Error> {
        let (data, postgres) = (self.home.data(), self.home.binaries.join("postgres"));
        let failed = |error: io::Error| Error::setup("run", &postgres, &error);
        let shell = self.home.owner.command("sh", &self.home.folder);
        let remove = self.home.temporary.as_ref().map(tempfile::TempDir::path);
        let mut server = Server::start(shell, remove, &self.home.log(), &postgres, &data).map_err(failed)?;
        match server.wait_ready(&data, START).map_err(failed)? {
            Started::Ready => {
                self.server = Some(server);
                Ok(None)
            }
            Started::Ended(status) => Ok(Some(status)),
            Started::TimedOut => {
                Err(self.failed(ErrorKind::Start, &format!("the server did not accept connections within {START:?}")))
            }
        }
    }

    fn end(&mut self, how: impl FnOnce(&mut Server) -> io::Result<bool>) -> Result<(), Error> {
        let Some(server) = &mut self.server else { return Ok(()) };
        match how(server) {
            Ok(true) => {
                self.server = None;
                Ok(())
            }
            Ok(false) => Err(self.failed(ErrorKind::Running, &format!("the server did not end within {END:?}"))),
            Err(error) => Err(Error::new(ErrorKind::Running, format!("the server can't be ended: {error}"))),
        }
    }

    fn running(&mut self) -> Result<&mut Server, Error> {
        let stopped = || Error::new(ErrorKind::NotRunning, "the server does not run; start it again");
        self.server.as_mut().ok_or_else(stopped)
    }

    /// When the settings were read last.
    fn loaded(&self) -> Result<String, Error> {
        self.psql("postgres", "select pg_conf_load_time()")
    }

    fn failed(&self, kind: ErrorKind, what: &str) -> Error {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(QUOTED)..].join("\n");
        Error::new(kind, format!("{what}; its log, {}, ends with:\n{end}", self.home.log().display()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.server.take());
        remove_shared_memory(&self.home.data());
    }
}

/// A killed server leaves its identification as a System V segment of some bytes, which the next start would remove; there is none.
fn remove_shared_memory(data: &Path) {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let postmaster = lines.first().and_then(|line| Pid::from_raw(line.parse().ok()?));
    let segment = lines.get(6).and_then(|line| line.split_whitespace().nth(1));
    // A folder that was given may be another's by now, whose server runs.
    if let (Some(postmaster), Some(segment)) = (postmaster, segment)
        && test_kill_process(postmaster) == Err(Errno::SRCH)
    {
        // Without ipcrm it stays there, and is small.
        let _ = plain("ipcrm").args(["-m", segment]).stderr(Stdio::null()).status();
    }
}

/// A value in a connection string.
fn quoted(text: &str) -> String {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}
