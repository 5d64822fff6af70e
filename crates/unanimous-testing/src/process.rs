//! A child process that never outlives its test: killed by its id when its guard is dropped.
//!
//! Must not know what the process does.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A running child process, with what it has printed so far.
#[derive(Debug)]
pub struct Program {
    child: Child,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
}

/// A process did not do within the limit what was waited for; says what it printed.
#[derive(Debug)]
pub struct WaitError {
    what: String,
    output: String,
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; the process printed:\n{}", self.what, self.output)
    }
}

impl std::error::Error for WaitError {}

impl Program {
    /// Starts it, without input; its output is gathered by two threads.
    ///
    /// # Errors
    ///
    /// When it can't be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stdout = Lines::gather(child.stdout.take());
        let stderr = Lines::gather(child.stderr.take());
        Ok(Self { child, stdout, stderr })
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a line of its standard output is what `find` looks for.
    ///
    /// # Errors
    ///
    /// When the limit is over, or the process has ended without such a line.
    pub fn wait_for_line<T>(&self, limit: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T, WaitError> {
        let what = match self.stdout.wait_for(limit, find) {
            Ok(found) => return Ok(found),
            Err(Ended::Closed) => {
                "it ended (or closed its output) before it printed the line that was waited for".into()
            }
            Err(Ended::TimedOut) => format!("the line that was waited for did not come within {limit:?}"),
        };
        Err(WaitError { what, output: self.output() })
    }

    /// kill -9, and waits for the end.
    ///
    /// # Errors
    ///
    /// When the process can't be waited for.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Sends a signal to the process, if it still runs.
    ///
    /// # Errors
    ///
    /// When the signal can't be sent.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        // The child is not waited for yet, so its id can't have been given to another process.
        if self.child.try_wait()?.is_none() {
            let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            kill_process(id.expect("a child's id is a positive number"), signal)?;
        }
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it still runs at the limit.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, WaitError> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.stdout.wait_closed(limit);
                    self.stderr.wait_closed(limit);
                    return Ok(status);
                }
                Ok(None) if start.elapsed() < limit => thread::sleep(Duration::from_millis(5)),
                Ok(None) => {
                    return Err(WaitError { what: format!("it still runs after {limit:?}"), output: self.output() });
                }
                Err(error) => {
                    return Err(WaitError { what: format!("can't wait for it: {error}"), output: self.output() });
                }
            }
        }
    }

    /// What it has printed to its standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has printed to its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    fn output(&self) -> String {
        format!("{}{}", self.stdout(), self.stderr())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a stream that a thread gathers.
#[derive(Debug, Default)]
struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    closed: bool,
}

enum Ended {
    Closed,
    TimedOut,
}

impl Lines {
    fn gather(stream: Option<impl Read + Send + 'static>) -> Arc<Self> {
        let lines = Arc::new(Self::default());
        let gathered = Arc::clone(&lines);
        let stream = stream.expect("the stream was asked for as a pipe");
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
                gathered.lock().lines.push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
                gathered.changed.notify_all();
                line.clear();
            }
            gathered.lock().closed = true;
            gathered.changed.notify_all();
        });
        lines
    }

    /// A thread that panicked while it held the lock has left whole lines behind.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<T>(&self, limit: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T, Ended> {
        let start = Instant::now();
        let mut seen = 0;
        let mut state = self.lock();
        loop {
            while let Some(line) = state.lines.get(seen) {
                if let Some(found) = find(line) {
                    return Ok(found);
                }
                seen += 1;
            }
            if state.closed {
                return Err(Ended::Closed);
            }
            let Some(left) = limit.checked_sub(start.elapsed()) else {
                return Err(Ended::TimedOut);
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Bounded, since a grandchild may keep the stream open.
    fn wait_closed(&self, limit: Duration) {
        let start = Instant::now();
        let mut state = self.lock();
        while !state.closed {
            let Some(left) = limit.checked_sub(start.elapsed()) else { return };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn text(&self) -> String {
        self.lock().lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Program {
        Program::start(Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn a_line_is_found_and_a_missing_one_is_told_with_the_output() {
        let program = shell("echo one; echo two; exec sleep 1000");
        assert_eq!(program.wait_for_line(LIMIT, |line| line.strip_prefix("tw").map(str::to_owned)).unwrap(), "o");
        let mut ended = shell("echo something else; echo why >&2; exit 3");
        let error = ended.wait_for_line(LIMIT, |line| (line == "ready").then_some(())).unwrap_err();
        assert!(error.to_string().contains("something else"), "{error}");
        assert_eq!(ended.wait(LIMIT).unwrap().code(), Some(3));
        assert_eq!(ended.stderr(), "why\n");
    }

    #[test]
    fn dropping_the_guard_kills_the_process() {
        let program = shell("exec sleep 1000");
        let id = Pid::from_raw(i32::try_from(program.id()).unwrap()).unwrap();
        assert!(rustix::process::test_kill_process(id).is_ok());
        drop(program);
        assert!(rustix::process::test_kill_process(id).is_err(), "the process {id:?} outlived its guard");
    }

    #[test]
    fn a_signal_arrives() {
        let mut program = shell("trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.01; done");
        program.wait_for_line(LIMIT, |line| (line == "ready").then_some(())).unwrap();
        program.signal(Signal::TERM).unwrap();
        assert_eq!(program.wait(LIMIT).unwrap().code(), Some(7));
        assert_eq!(program.stdout(), "ready\ngot it\n");
    }
}
