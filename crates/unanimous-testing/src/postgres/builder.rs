//! How a cluster is made: its folder, its settings, its data.
//!
//! Must not know how a server is run.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{Error, ErrorKind};
use super::owner::Owner;
use super::{Cluster, Home, binaries};

/// Our settings, which PostgreSQL's own file includes; rewritten at each start. (`ALTER SYSTEM` goes to a later file, and wins.)
const SETTINGS: &str = "unanimous.conf";

/// Below those that systems give to outgoing connections: a client that calls a port of that range while nobody listens there can be
/// connected with itself, and keeps the server from coming back.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// What a cluster is to be. Made by [`Cluster::builder`] or [`Cluster::replica`].
#[derive(Clone, Debug)]
pub struct Builder {
    folder: Option<PathBuf>,
    port: Option<u16>,
    settings: BTreeMap<String, String>,
    /// Whom it is a copy of, as a connection string.
    origin: Option<String>,
}

impl Builder {
    pub(super) fn new() -> Self {
        let defaults = [
            ("listen_addresses", "127.0.0.1"),
            // A socket's path has an upper bound that a deep folder exceeds.
            ("unix_socket_directories", ""),
            ("max_prepared_transactions", "64"),
            ("max_connections", "100"),
            ("shared_buffers", "16MB"),
            // Kept in the folder, so that a killed server leaves nothing elsewhere.
            ("dynamic_shared_memory_type", "mmap"),
            // Enough for a replica that was away for a while.
            ("wal_keep_size", "128MB"),
        ];
        let settings = defaults.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { folder: None, port: None, settings, origin: None }
    }

    pub(super) fn replica_of(origin: String, mut settings: BTreeMap<String, String>) -> Self {
        // A replica that is promoted would wait for itself.
        settings.remove("synchronous_standby_names");
        Self { folder: None, port: None, settings, origin: Some(origin) }
    }

    /// Where it lives, with its `data` and its `server.log`. Made if it is missing, stays at the end, and data that are there already are
    /// used again. Started by root, it becomes the server's user's. Without one it is a temporary folder.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// The port that it listens on; else a free one.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// A setting, as in `postgresql.conf`; the value is quoted here. `fsync` is on unless it is said to be `off` here.
    #[must_use]
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.insert(name.into(), value.to_string());
        self
    }

    /// Makes the data where there are none, starts the server, and waits until it accepts connections. Takes a second or two, in which
    /// it blocks the thread.
    ///
    /// # Errors
    ///
    /// When PostgreSQL is not installed, its data can't be made, or the server does not start; the text has the end of its log.
    pub fn start(self) -> Result<Cluster, Error> {
        let home = self.home()?;
        let fixed = self.port.is_some();
        let port = self.port.map_or_else(free_port, Ok)?;
        let mut cluster = Cluster { server: None, port, settings: self.settings, home };
        cluster.run(fixed)?;
        Ok(cluster)
    }

    fn home(&self) -> Result<Home, Error> {
        let binaries = binaries()?;
        let (folder, temporary) = match &self.folder {
            Some(folder) => {
                fs::create_dir_all(folder).map_err(|error| Error::setup("make", folder, &error))?;
                (folder.canonicalize().map_err(|error| Error::setup("find", folder, &error))?, None)
            }
            None => {
                let made = tempfile::Builder::new().prefix("unanimous-postgres-").tempdir();
                let made = made.map_err(|error| Error::setup("make a folder in", &std::env::temp_dir(), &error))?;
                (made.path().to_owned(), Some(made))
            }
        };
        let owner = Owner::of(&folder.join("data"))?;
        owner.give(&folder).map_err(|error| Error::setup("give away", &folder, &error))?;
        owner.must_reach(&folder)?;
        let home = Home { binaries, owner, folder, temporary };
        if !home.data().exists() {
            self.make_data(&home)?;
        }
        Ok(home)
    }

    /// Under another name first: a folder named `data` is complete, also after a kill.
    fn make_data(&self, home: &Home) -> Result<(), Error> {
        let unfinished = home.folder.join("data.new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(|error| Error::setup("remove", &unfinished, &error))?;
        }
        let mut command = match &self.origin {
            None => {
                let mut command = home.command("initdb");
                command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
                command
            }
            Some(origin) => {
                let mut command = home.command("pg_basebackup");
                // -R leaves the settings that make a standby of it.
                command.args(["-R", "--wal-method=stream", "--checkpoint=fast", "--no-password", "--dbname", origin]);
                command
            }
        };
        if home.temporary.is_some() {
            command.arg("--no-sync");
        }
        succeed(command.arg("--pgdata").arg(&unfinished))?;
        if self.origin.is_none() {
            let file = unfinished.join("postgresql.conf");
            let open = fs::OpenOptions::new().append(true).open(&file);
            open.and_then(|mut open| writeln!(open, "\ninclude_if_exists '{SETTINGS}'"))
                .map_err(|error| Error::setup("write", &file, &error))?;
        }
        let data = home.data();
        fs::rename(&unfinished, &data).map_err(|error| Error::setup("make", &data, &error))
    }
}

/// Writes the settings for the next start or reload.
pub(super) fn write_settings(home: &Home, port: u16, settings: &BTreeMap<String, String>) -> Result<(), Error> {
    let mut text = format!("port = {port}\n");
    for (name, value) in settings {
        let value = value.replace('\\', r"\\").replace('\'', "''");
        text.push_str(&format!("{name} = '{value}'\n"));
    }
    let file = home.data().join(SETTINGS);
    let written = fs::write(&file, text).and_then(|()| home.owner.give(&file));
    written.map_err(|error| Error::setup("write", &file, &error))
}

/// A port that nobody listens on at this moment.
pub(super) fn free_port() -> Result<u16, Error> {
    for _ in 0..1000 {
        // A fresh state of the standard library's hash maps is random.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let port = u16::try_from(PORTS.start + random % (PORTS.end - PORTS.start)).expect("the range is one of ports");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::new(ErrorKind::Setup, format!("no port of {PORTS:?} could be bound on 127.0.0.1")))
}

fn succeed(command: &mut Command) -> Result<(), Error> {
    let program = Path::new(command.get_program()).to_owned();
    let output = command.output().map_err(|error| Error::setup("run", &program, &error))?;
    if output.status.success() {
        return Ok(());
    }
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(Error::new(ErrorKind::Setup, format!("{} failed ({}):\n{out}{err}", program.display(), output.status)))
}
