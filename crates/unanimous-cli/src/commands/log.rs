//! `unanimous log`: looks at a decision log, without its lock and without changing anything; beside a running process too. And says
//! that one was restored.
//!
//! Must not know bytes: the library reads them.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use unanimous::log::{FileLog, FrameKind, HeaderError, LogView, ReadError, Record, RecordView, Verification, read};
use unanimous::{DecisionLog as _, DecisionRecord, Owner, Participant};

use crate::failure::{FOUND, Failure};
use crate::operator::{self, Records};
use crate::output::{say, warn};
use crate::time::utc;

/// Said of all that can't be opened.
const NOT_SOUND: &str =
    "NOT SOUND: this log can't be opened; keep all of its files, and bring it back from a mirror of the disk";
/// Who reads a log must not take what it does not hold for aborted.
const CARRIED: &str = "not in this log: decisions that a store carries. A branch whose id names a store is decided there (SQLite: the table \
    unanimous_decision), and its absence here says nothing";
/// What a record is called that a later version has written.
const UNKNOWN_RECORD: &str = "a record that this version can't tell";

/// Look at a decision log, or say that it was restored
///
/// Looking takes no lock and changes nothing; it works beside the process that writes the log.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Log {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what the log holds, record by record, and what is not finished
    ///
    /// A decision that a store carries is not in the log but in that store; for SQLite in its table unanimous_decision. So a branch whose
    /// id names a store is not aborted because the log has no decision for it: ask the store.
    ///
    /// Exits with 0 where the log is whole, with 1 where it is not, with 2 where there is none or it can't be read.
    Show {
        /// The log's folder, such as ./unanimous-demo/decisions
        #[arg(long, value_name = "DIR")]
        log: PathBuf,
        /// As JSON, one object on a line: the log first, then its records
        #[arg(long)]
        json: bool,
    },
    /// Look whether all of it is whole; exits with 1 where it is not
    ///
    /// Exits with 0 where the log is whole, with 1 where it is not, with 2 where there is none or it can't be read.
    Verify {
        /// The log's folder, such as ./unanimous-demo/decisions
        #[arg(long, value_name = "DIR")]
        log: PathBuf,
    },
    /// Say that the log was restored from a backup, or copied, before anything else opens it
    ///
    /// Decisions that were made after the backup are not in it. From here on nothing is presumed of any transaction that began before:
    /// what is prepared and has no decision here is held for a person, where it would be rolled back otherwise, and undo commits.
    /// Decisions that the log has are still carried out. It can't be taken back, and is harmless where it was needless.
    ///
    /// Exits with 0 where it is done, with 2 where it is not: another process has the log open, or it is damaged.
    Restored {
        /// The log's folder
        #[arg(long, value_name = "DIR")]
        log: PathBuf,
    },
}

impl Log {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Restored { log } => crate::runtime()?.block_on(restored(&log)),
            Command::Show { log, json } => Ok(match opened(&log)? {
                Opened::View(view) => show(&view, &records(&log)?, json),
                Opened::NotSound(problem) => {
                    warn(problem);
                    ExitCode::from(FOUND)
                }
            }),
            Command::Verify { log } => Ok(match opened(&log)? {
                Opened::View(view) => verify(&view.verify()),
                Opened::NotSound(problem) => {
                    say(problem);
                    say(NOT_SOUND);
                    ExitCode::from(FOUND)
                }
            }),
        }
    }
}

/// A log that was found.
enum Opened {
    View(Box<LogView>),
    /// Its segment's header is damaged, so that nothing of it can be read; in words.
    NotSound(String),
}

fn opened(path: &Path) -> Result<Opened, Failure> {
    let error = match read(path) {
        Ok(view) => return Ok(Opened::View(Box::new(view))),
        Err(ReadError::Header { file, source }) if !matches!(source, HeaderError::Newer { .. }) => {
            return Ok(Opened::NotSound(format!("damage: {}: {source}", file.display())));
        }
        Err(error) => error,
    };
    let failure = Failure::new("can't read the decision log").because(&error);
    Err(match error {
        ReadError::NoLog { .. } => {
            failure.hint("give the folder of a decision log; that of the demo is ./unanimous-demo/decisions")
        }
        _ => failure,
    })
}

/// What operators have done by their own decision.
fn records(path: &Path) -> Result<Records, Failure> {
    operator::read(path)
        .map_err(|error| Failure::new(format!("can't read {}", path.join(operator::FILE).display())).because(&error))
}

/// Opens the log as one that was restored, and closes it.
async fn restored(path: &Path) -> Result<ExitCode, Failure> {
    let failed = |error: &(dyn Error + 'static)| Failure::new("can't open the decision log").because(error);
    if let Err(error @ ReadError::NoLog { .. }) = read(path) {
        return Err(failed(&error).hint("give the folder that the log was restored to: --log DIR"));
    }
    let opened = FileLog::options().restored_from_backup(true).open(path).await;
    let log = opened.map_err(|error| failed(&error))?;
    let Owner { log: id, incarnation } = log.owner();
    log.close().await;
    say(format!(
        "log {id} in {}: nothing is presumed of what began before the incarnation {incarnation}",
        path.display()
    ));
    for transaction in &log.opened().unproven {
        say(format!(
            "not believed: the decision about {transaction}, the log's last write, which may have been copied before it was durable"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(view: &LogView, records: &Records, as_json: bool) -> ExitCode {
    let verification = view.verify();
    if as_json {
        say(head_json(view, &verification).to_string());
        view.records().for_each(|record| say(record_json(&record).to_string()));
        records.acts.iter().for_each(|recorded| say(recorded.json().to_string()));
    } else {
        say(format!("log {}, segment {} in {}", verification.log, view.header().segment, view.file().display()));
        say(format!("{:>10}  {:<10}  record", "byte", "frame"));
        view.records().for_each(|record| say(record_text(&record)));
        say(format!("not finished: {}", verification.unfinished));
        view.unfinished().iter().for_each(|decision| say(format!("  {}", decision_text(decision))));
        if !records.acts.is_empty() {
            say(format!("done by operators: {}", records.acts.len()));
            records.acts.iter().for_each(|recorded| say(format!("  {}", recorded.text())));
        }
        say(CARRIED);
    }
    if records.broken > 0 {
        warn(format!("lines of {} that can't be read: {}", operator::FILE, records.broken));
    }
    health(&verification)
}

/// A log that is not whole is shown as far as it can be read, and is not passed over in silence.
fn health(verification: &Verification) -> ExitCode {
    if verification.is_sound() {
        return ExitCode::SUCCESS;
    }
    problems(verification).iter().for_each(warn);
    ExitCode::from(FOUND)
}

fn verify(verification: &Verification) -> ExitCode {
    let Verification { log, file, incarnation, frames, records, unfinished, finished, used, length, .. } = verification;
    say(format!("log {log} in {}", file.display()));
    say(format!("written by the incarnation {incarnation}; {used} of {length} bytes used"));
    say(format!("frames {frames}, records {records}, decisions not finished {unfinished}, finished {finished}"));
    if let Some(tail) = verification.tail {
        say(format!(
            "byte {}: {} bytes of a write that is under way or was cut off; nobody was told of it, and the next start cuts it",
            tail.offset, tail.length
        ));
    }
    if let Some(offset) = verification.single_copy {
        say(format!("byte {offset}: one of the last frame's two copies is not whole; the other one is believed"));
    }
    problems(verification).iter().for_each(say);
    if verification.is_sound() {
        say("sound");
        ExitCode::SUCCESS
    } else {
        say(NOT_SOUND);
        ExitCode::from(FOUND)
    }
}

fn problems(verification: &Verification) -> Vec<String> {
    let damage = verification.damage.iter().map(|damage| format!("damage: {damage}"));
    damage.chain(verification.contradictions.iter().map(|text| format!("contradiction: {text}"))).collect()
}

fn record_text(view: &RecordView<'_>) -> String {
    let text = match view.record {
        Record::Incarnation { incarnation, started_at } => {
            format!("opened by the incarnation {incarnation} at {}", utc(*started_at))
        }
        Record::Commit(decision) => format!("commit {}", decision_text(decision)),
        Record::Abort(decision) => format!("abort {}", decision_text(decision)),
        Record::Finished { transaction, at } => format!("finished {transaction} at {}", utc(*at)),
        Record::Floor { incarnation, sequence } => {
            format!("nothing is presumed of the incarnation {incarnation} up to its transaction {sequence}")
        }
        Record::Folded { before } => format!("nothing is presumed of incarnations before {before}"),
        _ => UNKNOWN_RECORD.to_owned(),
    };
    format!("{:>10}  {:<10}  {text}", view.offset, frame_word(view.kind))
}

fn decision_text(decision: &DecisionRecord) -> String {
    let mut text = format!("{} at {}", decision.transaction, utc(decision.decided_at));
    for Participant { number, resource, store } in &decision.participants {
        let _ = write!(text, ", branch {number} in {resource:?}");
        if let Some(store) = store {
            let _ = write!(text, " ({store})");
        }
    }
    if !decision.note.is_empty() {
        let _ = write!(text, ", note {:?}", decision.note.as_str());
    }
    text
}

fn frame_word(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Checkpoint => "checkpoint",
        FrameKind::Synced => "synced",
    }
}

fn head_json(view: &LogView, verification: &Verification) -> Value {
    json!({
        "kind": "log",
        "log": verification.log.to_string(),
        "segment": view.header().segment,
        "file": view.file().display().to_string(),
        "incarnation": verification.incarnation.to_string(),
        "unfinished": view.unfinished().iter().map(|decision| decision.transaction.to_string()).collect::<Vec<_>>(),
        "carried": CARRIED,
        "sound": verification.is_sound(),
        "problems": problems(verification),
    })
}

/// Times are microseconds since 1970, UTC, as in the log.
fn record_json(view: &RecordView<'_>) -> Value {
    let mut value = match view.record {
        Record::Incarnation { incarnation, started_at } => {
            json!({"kind": "incarnation", "incarnation": incarnation.to_string(), "started_at": started_at})
        }
        Record::Commit(decision) => json!({
            "kind": "commit",
            "transaction": decision.transaction.to_string(),
            "decided_at": decision.decided_at,
            "participants": decision.participants.iter().map(participant_json).collect::<Vec<_>>(),
            "note": (!decision.note.is_empty()).then(|| decision.note.as_str()),
        }),
        Record::Abort(decision) => json!({
            "kind": "abort",
            "transaction": decision.transaction.to_string(),
            "decided_at": decision.decided_at,
            "participants": decision.participants.iter().map(participant_json).collect::<Vec<_>>(),
        }),
        Record::Finished { transaction, at } => {
            json!({"kind": "finished", "transaction": transaction.to_string(), "at": at})
        }
        Record::Floor { incarnation, sequence } => {
            json!({"kind": "floor", "incarnation": incarnation.to_string(), "sequence": sequence})
        }
        Record::Folded { before } => json!({"kind": "folded", "before": before}),
        _ => json!({"kind": "other", "text": UNKNOWN_RECORD}),
    };
    value["segment"] = json!(view.segment);
    value["offset"] = json!(view.offset);
    value["frame"] = json!(frame_word(view.kind));
    value
}

fn participant_json(participant: &Participant) -> Value {
    json!({
        "number": participant.number,
        "resource": participant.resource,
        "store": participant.store.as_ref().map(ToString::to_string),
    })
}
