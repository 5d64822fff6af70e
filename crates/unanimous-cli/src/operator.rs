//! What operators have done to branches by their own decision: a file of JSON lines, each forced before the next step.
//!
//! Two lines for an act: `begin` before it is done, `end` with what came of it. A line that a crash has cut is passed over, and told.
//!
//! Must not know stores, or what is decided.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::time::utc;

/// In the log's folder, which leaves other files alone.
pub(crate) const FILE: &str = "operator.jsonl";

/// What was done to a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Act {
    Commit,
    Rollback,
}

impl Act {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Act::Commit => "commit",
            Act::Rollback => "rollback",
        }
    }

    pub(crate) fn done(self) -> &'static str {
        match self {
            Act::Commit => "committed",
            Act::Rollback => "rolled back",
        }
    }
}

/// An operator's act, as it is recorded before it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begin {
    /// Microseconds since 1970, UTC.
    pub(crate) at: u64,
    pub(crate) act: Act,
    pub(crate) branch: String,
    pub(crate) resource: String,
    pub(crate) store: String,
    /// What was decided, as it was known then: commit, abort, none, unknown.
    pub(crate) decision: String,
    /// Whether the act is against the decision; none where nobody knew.
    pub(crate) heuristic: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Begin(Begin),
    End { at: u64, branch: String, resource: String, result: String },
}

/// An act, and what came of it: none where the program ended before it knew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) begin: Begin,
    pub(crate) result: Option<String>,
}

impl Recorded {
    /// One line for people.
    pub(crate) fn text(&self) -> String {
        let Begin { at, act, branch, resource, decision, heuristic, .. } = &self.begin;
        let against = match heuristic {
            Some(true) => format!("HEURISTIC, against the decision ({decision})"),
            Some(false) => format!("as decided ({decision})"),
            None => format!("the decision was not known ({decision})"),
        };
        let result = self.result.as_deref().unwrap_or("not known whether it was done");
        format!("{} {} of {branch} in {resource:?}, {against}: {result}", utc(*at), act.word())
    }
}

impl Recorded {
    /// For programs; times are microseconds since 1970, UTC.
    pub(crate) fn json(&self) -> Value {
        let Begin { at, act, branch, resource, store, decision, heuristic } = &self.begin;
        json!({
            "kind": "operator", "at": at, "act": act, "branch": branch, "resource": resource, "store": store, "decision": decision,
            "heuristic": heuristic, "result": self.result,
        })
    }
}

/// What a file of records holds.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) acts: Vec<Recorded>,
    /// Lines that can't be read.
    pub(crate) broken: usize,
}

impl Records {
    /// The acts on a branch.
    pub(crate) fn of(&self, branch: &str) -> impl Iterator<Item = &Recorded> {
        self.acts.iter().filter(move |recorded| recorded.begin.branch == branch)
    }
}

/// The records in a log's folder; none where there is no file.
pub(crate) fn read(log: &Path) -> io::Result<Records> {
    let text = match std::fs::read(log.join(FILE)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Records::default()),
        Err(error) => return Err(error),
    };
    Ok(parse(&text))
}

fn parse(text: &str) -> Records {
    let mut records = Records::default();
    for line in text.lines().filter(|line| !line.is_empty()) {
        match serde_json::from_str(line) {
            Ok(Line::Begin(begin)) => records.acts.push(Recorded { begin, result: None }),
            Ok(Line::End { branch, resource, result, .. }) => {
                let last = records.acts.iter_mut().rev();
                let mut open = last.filter(|act| act.begin.branch == branch && act.begin.resource == resource);
                if let Some(act) = open.next() {
                    act.result = Some(result);
                }
            }
            Err(_) => records.broken += 1,
        }
    }
    records
}

/// A file of records, open for more.
#[derive(Debug)]
pub(crate) struct Recorder {
    path: PathBuf,
    file: File,
}

impl Recorder {
    /// Opens the file, or begins it where there is none.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        // The name must last too.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// On the disk when this returns.
    pub(crate) fn begin(&mut self, begin: &Begin) -> io::Result<()> {
        self.append(&Line::Begin(begin.clone()))
    }

    /// On the disk when this returns.
    pub(crate) fn end(&mut self, begin: &Begin, result: &str) -> io::Result<()> {
        let (branch, resource) = (begin.branch.clone(), begin.resource.clone());
        self.append(&Line::End { at: now(), branch, resource, result: result.to_owned() })
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let line = serde_json::to_string(line).map_err(io::Error::other)?;
        // What a crash has cut must not take the next line with it.
        let start = if self.is_cut()? { "\n" } else { "" };
        self.file.write_all(format!("{start}{line}\n").as_bytes())?;
        self.file.sync_all()
    }

    fn is_cut(&mut self) -> io::Result<bool> {
        if self.file.metadata()?.len() == 0 {
            return Ok(false);
        }
        let mut last = [0];
        self.file.seek(SeekFrom::End(-1))?;
        self.file.read_exact(&mut last)?;
        Ok(last != *b"\n")
    }
}

/// Microseconds since 1970, UTC.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(branch: &str) -> Begin {
        let text = |text: &str| text.to_owned();
        Begin {
            at: 1_000_000,
            act: Act::Rollback,
            branch: text(branch),
            resource: text("orders"),
            store: text("pg-1"),
            decision: text("commit"),
            heuristic: Some(true),
        }
    }

    #[test]
    fn acts_are_kept_with_what_came_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::open(&folder.path().join(FILE)).unwrap();
        recorder.begin(&begin("one")).unwrap();
        recorder.end(&begin("one"), "failed").unwrap();
        recorder.begin(&begin("one")).unwrap();
        recorder.end(&begin("one"), "done").unwrap();
        recorder.begin(&begin("two")).unwrap();
        let records = read(folder.path()).unwrap();
        let told: Vec<String> = records.acts.iter().map(Recorded::text).collect();
        let text = |branch: &str, result: &str| {
            format!(
                "1970-01-01T00:00:01.000Z rollback of {branch} in \"orders\", HEURISTIC, against the decision (commit): {result}"
            )
        };
        assert_eq!(told, [text("one", "failed"), text("one", "done"), text("two", "not known whether it was done")]);
        assert_eq!((records.of("two").count(), records.broken), (1, 0));
    }

    #[test]
    fn a_line_that_was_cut_costs_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        Recorder::open(&path).unwrap().begin(&begin("one")).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 1..whole.len() - 1 {
            std::fs::write(&path, [&whole[..], &whole[..length]].concat()).unwrap();
            let records = read(folder.path()).unwrap();
            assert_eq!((records.acts.len(), records.broken), (1, 1), "{length}");
            Recorder::open(&path).unwrap().begin(&begin("two")).unwrap();
            let records = read(folder.path()).unwrap();
            let branches: Vec<&str> = records.acts.iter().map(|act| act.begin.branch.as_str()).collect();
            assert_eq!((branches.as_slice(), records.broken), (&["one", "two"][..], 1), "{length}");
        }
    }
}
