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

/// A running demo, killed when it is dropped.
#[derive(Debug)]
pub struct Demo {
    program: Program,
    binary: PathBuf,
    data: PathBuf,
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
    /// Starts the demo on a port that the system chooses; does not wait until it serves.
    ///
    /// # Errors
    ///
    /// When the binary can't be run.
    pub fn start(binary: &Path, data: &Path) -> Result<Self, DemoError> {
        let mut command = Command::new(binary);
        command.args(["demo", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        let program = Program::start(&mut command).map_err(|error| DemoError::Start(binary.to_owned(), error))?;
        Ok(Self { program, binary: binary.to_owned(), data: data.to_owned() })
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
        self.program.signal(signal).map_err(|error| DemoError::Start(self.binary.clone(), error))?;
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
        check(&self.binary, &self.data)
    }
}

/// `demo check` on a data folder, whether a demo runs on it or not.
///
/// # Errors
///
/// When the binary can't be run.
pub fn check(binary: &Path, data: &Path) -> Result<Output, DemoError> {
    let output = Command::new(binary).args(["demo", "check", "--data"]).arg(data).output();
    output.map_err(|error| DemoError::Start(binary.to_owned(), error))
}
