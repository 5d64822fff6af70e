//! One run of a server: a process that ends with this one, whatever end this one comes to.
//!
//! Must not know what is in the data, nor how it came there.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// Starts the server and ends it when our end of its standard input closes; the kernel closes that also for a killed process.
/// (Linux's signal for a parent's death would come when the *thread* ends that started it.)
const GUARD: &str = include_str!("guard.sh");

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);

/// How long a server may take to end, before it is killed.
pub(super) const END: Duration = Duration::from_secs(30);

/// How long the children of a killed postmaster may work on before they are killed too.
const CHILDREN: Duration = Duration::from_secs(1);

/// A server's process, which is immediately stopped when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    /// The shell that waits for the server; ends with it and with its status.
    guard: Child,
    postmaster: Pid,
}

/// How a start went.
#[derive(Debug)]
pub(super) enum Started {
    Ready,
    Ended(ExitStatus),
    TimedOut,
}

impl Server {
    /// Runs `postgres`, which is the server's program with its arguments, by way of `shell`. `remove` goes when this process dies.
    pub(super) fn start(
        mut shell: Command,
        remove: Option<&Path>,
        log: &Path,
        postgres: &Path,
        data: &Path,
    ) -> io::Result<Self> {
        shell.args(["-c", GUARD, "sh"]).arg(remove.unwrap_or(Path::new(""))).arg(log).arg(postgres).arg("-D").arg(data);
        // A group of its own, so that a Ctrl-C in a terminal is for us to answer and not the server's to see.
        shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut guard = shell.spawn()?;
        let mut line = String::new();
        BufReader::new(guard.stdout.take().expect("it was asked for as a pipe")).read_line(&mut line)?;
        match line.trim_end().parse().ok().and_then(Pid::from_raw) {
            Some(postmaster) => Ok(Self { guard, postmaster }),
            None => Err(io::Error::other(format!("sh ended without a server: {}", guard.wait()?))),
        }
    }

    /// The postmaster's process.
    pub(super) fn id(&self) -> Pid {
        self.postmaster
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.guard.try_wait()
    }

    /// Waits until it accepts connections, which it says as it does to `pg_ctl`: in the eighth line of its `postmaster.pid`.
    pub(super) fn wait_ready(&mut self, data: &Path, limit: Duration) -> io::Result<Started> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.ended()? {
                return Ok(Started::Ended(status));
            }
            let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let ours = lines.first().and_then(|line| line.parse().ok()) == Some(self.postmaster.as_raw_nonzero().get());
            if ours && lines.get(7).is_some_and(|status| ["ready", "standby"].contains(&status.trim_end())) {
                return Ok(Started::Ready);
            }
            thread::sleep(STEP);
        }
        Ok(Started::TimedOut)
    }

    /// Sends the postmaster a signal, if it still runs.
    pub(super) fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        match kill_process(self.postmaster, signal) {
            // It has ended, and its guard is about to.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks it to end, and waits. `false`: it did not within [`END`].
    pub(super) fn stop(&mut self, signal: Signal) -> io::Result<bool> {
        self.signal(signal)?;
        // One that somebody has halted hears nothing else.
        self.signal(Signal::CONT)?;
        self.wait(END)
    }

    /// kill -9 of the postmaster. Returns when its children have gone too, which they do by themselves when they next wait for
    /// something; those that don't are killed.
    pub(super) fn kill(&mut self) -> io::Result<bool> {
        // Halted first, it has no children that we don't know.
        self.signal(Signal::STOP)?;
        let children = children(self.postmaster);
        self.signal(Signal::KILL)?;
        if !self.wait(END)? {
            return Ok(false);
        }
        let start = Instant::now();
        while children.iter().any(Process::runs) {
            if start.elapsed() > END {
                return Ok(false);
            }
            if start.elapsed() > CHILDREN {
                for child in children.iter().filter(|child| child.runs()) {
                    // It may have ended meanwhile.
                    let _ = kill_process(child.id, Signal::KILL);
                }
            }
            thread::sleep(STEP);
        }
        Ok(true)
    }

    fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        let start = Instant::now();
        while self.ended()?.is_none() {
            if start.elapsed() > limit {
                return Ok(false);
            }
            thread::sleep(STEP);
        }
        Ok(true)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.stop(Signal::QUIT), Ok(true)) {
            // Nobody is left who could be told.
            let _ = self.kill();
        }
    }
}

/// A process that is not ours to wait for: its id may be given to another when it has ended, but not with the same start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    id: Pid,
    parent: Option<Pid>,
    /// Clock ticks since the machine's start.
    started: u64,
}

impl Process {
    /// From `/proc`; nothing where there is no such process any more, or only its status that nobody has asked for.
    fn read(id: Pid) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{}/stat", id.as_raw_nonzero())).ok()?;
        // The second field is the program's name in brackets, and may have anything in it.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let parent = Pid::from_raw(fields.get(1)?.parse().ok()?);
        let started = fields.get(19)?.parse().ok()?;
        (!["Z", "X"].contains(fields.first()?)).then_some(Self { id, parent, started })
    }

    fn runs(&self) -> bool {
        Self::read(self.id).is_some_and(|now| now.started == self.started)
    }
}

/// The children of a process. Elsewhere than on Linux none are seen, and a start after a kill repeats until they have gone.
fn children(parent: Pid) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    ids.filter_map(Process::read).filter(|process| process.parent == Some(parent)).collect()
}

/// The ids of a server's processes, the postmaster's first.
pub(super) fn family(postmaster: Pid) -> Vec<u32> {
    let ids = std::iter::once(postmaster).chain(children(postmaster).into_iter().map(|child| child.id));
    ids.map(|id| id.as_raw_nonzero().get().unsigned_abs()).collect()
}
