//! Real processes over one log: one has it, the others are refused and told why; when it is killed, the next one goes on.
//!
//! Must not know what is in the log.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use unanimous::TransactionId;

use super::child::NAME;
use crate::{Found, Options};

/// A process that opens the log and keeps it, until it is dropped: then it is killed.
struct Holder {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Holder {
    fn start(folder: &Path) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut child = Command::new(program)
            .args([NAME, "hold"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("this program can't be started again: {error}"))?;
        let lines = BufReader::new(child.stdout.take().expect("it is piped"));
        Ok(Self { child, lines })
    }

    /// Its first line: the incarnation's counter, or how it was refused.
    fn said(&mut self) -> Result<Result<u32, String>, String> {
        let mut line = String::new();
        self.lines.read_line(&mut line).map_err(|error| error.to_string())?;
        match line.trim_end().strip_prefix("opened ") {
            Some(first) => {
                let first: TransactionId = first.parse().map_err(|_| format!("a process said {line:?}"))?;
                Ok(Ok(first.incarnation.counter))
            }
            None => Ok(Err(line.trim_end().to_owned())),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn run(options: &Options) -> Result<Found, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut found = Found::default();
    let mut counter = 0;
    for round in 0..if options.quick { 6 } else { 300 } {
        // All at once.
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(Holder::start(folder.path())?);
        }
        let mut owners = Vec::new();
        for holder in &mut all {
            found.cases += 1;
            match holder.said()? {
                Ok(counter) => owners.push(counter),
                Err(said) if is_clear(&said) => {}
                Err(said) => found.violations.push(format!("round {round}: a process was refused with {said:?}")),
            }
        }
        counter += 1;
        if owners != [counter] {
            found
                .violations
                .push(format!("round {round}: of three processes these have the log: {owners:?}, not {counter}"));
            counter = owners.last().copied().unwrap_or(counter);
        }
        // One later, while it is held.
        let late = Holder::start(folder.path())?.said()?;
        found.cases += 1;
        if !late.as_ref().is_err_and(|said| is_clear(said)) {
            found.violations.push(format!("round {round}: a process beside the owner was told {late:?}"));
        }
        // kill -9 of the owner, by the end of the round; the next round's processes begin when it is dead.
    }
    Ok(found)
}

fn is_clear(said: &str) -> bool {
    said.starts_with("not opened: the decision log ") && said.contains("is held by another process; stop that one")
}
