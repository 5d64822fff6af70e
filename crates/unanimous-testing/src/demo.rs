//! The demo as a process: start, wait until it serves, check, stop.
//!
//! Knows what the demo prints and its command line. Must not know how it works.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;

use crate::client::Client;
use crate::process::{Program, WaitError};

/// How long the demo may take to recover and serve, or to stop: generous, since a busy machine is not a failure.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Where a demo runs, and with which stores.
#[derive(Clone, Debug)]
pub struct Place {
    /// The binary `unanimous`.
    pub binary: PathBuf,
    /// The data folder.
    pub data: PathBuf,
    /// The arguments that choose the stores; without any it is SQLite.
    pub stores: Vec<String>,
    /// Arguments of a demo that serves.
    pub serving: Vec<String>,
}

impl Place {
    /// One on SQLite.
    pub fn new(binary: impl Into<PathBuf>, data: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), data: data.into(), stores: Vec::new(), serving: Vec::new() }
    }

    /// The same on two PostgreSQL databases: of the orders, and of the invoices.
    #[must_use]
    pub fn postgres(self, urls: [String; 2]) -> Self {
        Self { stores: urls.into_iter().flat_map(|url| ["--postgres".into(), url]).collect(), ..self }
    }

    /// The same with an argument of a demo that serves, such as `--conflict`.
    #[must_use]
    pub fn serving(mut self, argument: impl Into<String>) -> Self {
        self.serving.push(argument.into());
        self
    }

    /// Starts the demo on a port that the system chooses; does not wait until it serves.
    ///
    /// # Errors
    ///
    /// When the binary can't be run.
    pub fn start(&self) -> Result<Demo, DemoError> {
        let mut command = self.command(&["demo", "--listen", "127.0.0.1:0"]);
        command.args(&self.serving);
        let program = Program::start(&mut command).map_err(|error| DemoError::Start(self.binary.clone(), error))?;
        Ok(Demo { program, place: self.clone() })
    }

    /// `demo check`, whether a demo runs there or not.
    ///
    /// # Errors
    ///
    /// When the binary can't be run.
    pub fn check(&self) -> Result<Output, DemoError> {
        let output = self.command(&["demo", "check"]).output();
        output.map_err(|error| DemoError::Start(self.binary.clone(), error))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(words).arg("--data").arg(&self.data).args(&self.stores);
        command
    }
}

/// A running demo, killed when it is dropped.
#[derive(Debug)]
pub struct Demo {
    program: Program,
    place: Place,
}

/// The demo could not be started, or did not serve.
#[derive(Debug)]
#[non_exhaustive]
pub enum DemoError {
    /// The binary could not be run.
    Start(PathBuf, io::Error),
    /// It ran, but not as it should.
    Wait(WaitError),
}

impl fmt::Display for DemoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DemoError::Start(binary, error) => write!(f, "can't start {}: {error}", binary.display()),
            DemoError::Wait(error) => write!(f, "the demo: {error}"),
        }
    }
}

impl std::error::Error for DemoError {}

impl From<WaitError> for DemoError {
    fn from(error: WaitError) -> Self {
        Self::Wait(error)
    }
}

impl Demo {
    /// Starts the demo on SQLite, on a port that the system chooses; does not wait until it serves.
    ///
    /// # Errors
    ///
    /// When the binary can't be run.
    pub fn start(binary: &Path, data: &Path) -> Result<Self, DemoError> {
        Place::new(binary, data).start()
    }

    /// Waits until it serves: a client of it.
    ///
    /// # Errors
    ///
    /// When it ends before, or takes longer than [`LIMIT`].
    pub fn ready(&self) -> Result<Client, DemoError> {
        let address = self.program.wait_for_line(LIMIT, |line| {
            let rest = line.split("http://").nth(1)?;
            Some(rest.trim_end_matches('/').to_owned())
        })?;
        Ok(Client::new(address))
    }

    /// kill -9.
    ///
    /// # Errors
    ///
    /// When the process can't be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.program.kill().map(drop)
    }

    /// Sends a signal and waits for the end: the exit code, and what it printed to its standard error.
    ///
    /// # Errors
    ///
    /// When it does not stop within [`LIMIT`].
    pub fn stop(mut self, signal: Signal) -> Result<(Option<i32>, String), DemoError> {
        self.program.signal(signal).map_err(|error| DemoError::Start(self.place.binary.clone(), error))?;
        let status = self.program.wait(LIMIT)?;
        Ok((status.code(), self.program.stderr()))
    }

    /// The process behind it.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// `demo check` on its data.
    ///
    /// # Errors
    ///
    /// When the binary can't be run.
    pub fn check(&self) -> Result<Output, DemoError> {
        self.place.check()
    }
}

/// `demo check` on the data folder of a demo on SQLite, whether a demo runs on it or not.
///
/// # Errors
///
/// When the binary can't be run.
pub fn check(binary: &Path, data: &Path) -> Result<Output, DemoError> {
    Place::new(binary, data).check()
}
