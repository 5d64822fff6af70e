//! The real process, with its log's own system calls killed and failed one after another by strace.
//!
//! For each call and each fault, the first time that it is made, then the second time, until the process ends without being hit. After
//! each the log is opened without faults, twice, and compared with what the process said: acknowledged decisions are there; refused ones are
//! not; unknown ones may be either, and stay what they were told to be.
//!
//! Must not know which calls the log makes when.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use unanimous::{Decider, DecisionLog, HoldReason, Known, TransactionId};

use super::child::{ALL, HANGS, NAME, decision, is_kept, options};
use super::image::{block_on, segments};
use super::in_two;
use crate::{Found, Options, say};

/// The calls that the log makes on its folder and files. (On another system or C library others may be made instead: then the level is an error.)
const CALLS: [&str; 10] =
    ["pwrite64", "fdatasync", "fsync", "fallocate", "renameat", "unlinkat", "openat", "pread64", "getdents64", "flock"];
/// More than any run makes of one call.
const MOST: u32 = 400;
/// In quick runs the first is hit, and one of so many.
const STRIDE: u32 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// kill -9 when the call is entered; it is not made.
    Kill,
    /// The call is not made, and fails with EIO.
    Io,
    /// The same with ENOSPC.
    Space,
    /// The same from that call on for ever: the disk stays full.
    Full,
}

/// One run of the process.
#[derive(Clone, Copy, Debug)]
struct Shot {
    call: &'static str,
    fault: Fault,
    /// The how many-th call is hit.
    at: u32,
}

impl fmt::Display for Shot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shot { call, fault, at } = self;
        match fault {
            Fault::Kill => write!(f, "inject={call}:signal=SIGKILL:when={at}"),
            Fault::Io => write!(f, "inject={call}:error=EIO:when={at}"),
            Fault::Space => write!(f, "inject={call}:error=ENOSPC:when={at}"),
            Fault::Full => write!(f, "inject={call}:error=ENOSPC:when={at}+"),
        }
    }
}

pub(super) fn run(options: &Options) -> Result<Found, String> {
    can_trace()?;
    let before = tempfile::tempdir().map_err(|error| error.to_string())?;
    // What the process finds: a log with decisions of an earlier life, three of them not finished.
    let earlier = block_on(earlier(before.path()))??;
    let mut series = Vec::new();
    for call in CALLS {
        for fault in [Fault::Kill, Fault::Io, Fault::Space, Fault::Full] {
            let fills = ["pwrite64", "fdatasync", "fsync", "fallocate", "renameat", "openat"].contains(&call);
            if (fault != Fault::Space || fills) && (fault != Fault::Full || call == "fallocate") {
                series.push((call, fault));
            }
        }
    }
    let hits = std::sync::Mutex::new(BTreeMap::<&str, u32>::new());
    let found = in_two(&series, |&(call, fault)| {
        let mut wrong = Vec::new();
        let is_drawn = |at: &u32| at % STRIDE == (options.seed % u64::from(STRIDE)) as u32;
        let mut ended = false;
        for at in (1..MOST).filter(|at| !options.quick || *at == 1 || is_drawn(at)) {
            let shot = Shot { call, fault, at };
            let ran = fire(shot, before.path())?;
            let judged = judge(&ran, &earlier)?;
            if let Some(first) = judged.first() {
                let more = judged.len() - 1;
                wrong.push(format!("{shot}: {first} (and {more} more); it said {:?}", ran.lines));
            }
            ended = !ran.hit;
            if ended {
                break;
            }
            *hits.lock().unwrap_or_else(std::sync::PoisonError::into_inner).entry(call).or_default() += 1;
        }
        if !ended {
            return Err(format!(
                "the process makes {call} {MOST} times or more, of which not all were hit by {fault:?}"
            ));
        }
        Ok(wrong)
    })?;
    let hits = hits.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    say(&format!("hit calls: {hits:?}"));
    let never: Vec<_> = CALLS.into_iter().filter(|call| !hits.contains_key(call)).collect();
    if !never.is_empty() {
        return Err(format!("the process makes other system calls than the ones that are failed, and never {never:?}"));
    }
    Ok(Found { cases: hits.values().map(|&hits| u64::from(hits)).sum(), ..found })
}

/// Whether there is a strace that may trace here.
fn can_trace() -> Result<(), String> {
    let missing = "strace is not there; install it (Debian, Ubuntu: apt-get install strace)";
    let tried = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    let tried = tried.map_err(|error| format!("{missing}: {error}"))?;
    if tried.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
    Err(format!("strace may not trace processes here ({said}); allow ptrace, in a container by --cap-add=SYS_PTRACE"))
}

async fn earlier(path: &Path) -> Result<BTreeSet<TransactionId>, String> {
    let log = options().open(path).await.map_err(|error| error.to_string())?;
    let mut decided = BTreeSet::new();
    for sequence in 1..=9 {
        let record = decision(log.owner(), sequence);
        decided.insert(record.transaction);
        log.decide(record).await.map_err(|error| error.to_string())?;
        if sequence <= 5 && !is_kept(sequence) {
            log.forget(log.owner().transaction(sequence));
        }
    }
    log.close().await;
    Ok(decided)
}

/// What a run was and said.
struct Ran {
    folder: tempfile::TempDir,
    shot: Shot,
    hit: bool,
    exit: Option<i32>,
    killed: bool,
    lines: Vec<String>,
}

/// Runs the process on a copy of that folder.
fn fire(shot: Shot, before: &Path) -> Result<Ran, String> {
    let failed = |error: std::io::Error| format!("{shot} can't be tried: {error}");
    let folder = tempfile::tempdir().map_err(failed)?;
    let path = folder.path().canonicalize().map_err(failed)?;
    let log = path.join("log");
    std::fs::create_dir(&log).map_err(failed)?;
    for name in segments(before)? {
        std::fs::copy(before.join(&name), log.join(&name)).map_err(failed)?;
    }
    let trace = path.join("trace");
    let program = std::env::current_exe().map_err(failed)?;
    let mut strace = Command::new("strace");
    strace.args(["-f", "--seccomp-bpf", "-qq", "-o"]).arg(&trace);
    // Nothing but the log's own folder and files is hit.
    for name in
        ["", "reserve.new"].map(str::to_owned).into_iter().chain((1..=30).map(|number| format!("{number:010}.log")))
    {
        let own: PathBuf = if name.is_empty() { log.clone() } else { log.join(name) };
        strace.arg("-P").arg(own);
    }
    strace.args(["-e", &format!("trace={}", shot.call), "-e", &shot.to_string()]);
    strace.arg(program).args([NAME, "work"]).arg(&log).stdin(Stdio::null());
    let Output { status, stdout, stderr } = strace.output().map_err(failed)?;
    let said = String::from_utf8_lossy(&stdout);
    // A line without its end was not said.
    let lines = said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect();
    let traced = std::fs::read_to_string(&trace).map_err(failed)?;
    let killed = status.signal() == Some(9) || status.code() == Some(128 + 9);
    let errors = String::from_utf8_lossy(&stderr);
    if errors.contains("strace:") {
        return Err(format!("{shot} can't be tried: {}", errors.trim()));
    }
    let hit = killed || traced.contains("(INJECTED)");
    Ok(Ran { folder, shot, hit, exit: status.code(), killed, lines })
}

/// What the process said, by the first word of each line.
struct Said<'a>(&'a [String]);

impl Said<'_> {
    fn ids(&self, word: &str) -> BTreeSet<TransactionId> {
        self.0
            .iter()
            .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.split(' ').next()?.parse().ok())
            .collect()
    }

    fn has(&self, part: &str) -> bool {
        self.0.iter().any(|line| line.contains(part))
    }
}

fn judge(ran: &Ran, earlier: &BTreeSet<TransactionId>) -> Result<Vec<String>, String> {
    let mut wrong = Vec::new();
    let said = Said(&ran.lines);
    let opened = said.has("opened ") && !said.has("not opened");
    // Who decides is told; where nobody does any more, the end tells.
    let poisoned = said.has(" poisoned");
    let told = ran.lines.iter().any(|line| line.ends_with(" poisoned") && !line.starts_with("closed"));
    match (ran.killed, ran.exit) {
        (true, _) if ran.shot.fault == Fault::Kill => {}
        (false, Some(0)) if !(ran.hit && ran.shot.fault == Fault::Kill) => {}
        (_, Some(HANGS)) => wrong.push("somebody waits for ever".to_owned()),
        (_, exit) => wrong.push(format!("the process ended with {exit:?}")),
    }
    if said.has("late ") {
        wrong.push("a poisoned log decides".into());
    }
    for line in ran.lines.iter().filter_map(|line| line.strip_prefix("told ")) {
        let finished = line
            .split(' ')
            .next()
            .and_then(|id| id.parse().ok())
            .is_some_and(|id: TransactionId| !is_kept(id.sequence));
        let whole = line.ends_with(" commit") || (finished && line.ends_with(" BeyondHorizon"));
        let right = (whole && !told) || (poisoned && line.ends_with(" Poisoned"));
        if !right {
            wrong.push(format!("it answered {line}"));
        }
    }
    let whole = said.has("closed: in order") && said.ids("acknowledged").len() as u64 == ALL;
    if !ran.hit && !whole {
        wrong.push("without a fault it did not decide all".into());
    }
    if ran.hit && !ran.killed {
        wrong.extend(failure(ran, opened, poisoned));
    }
    wrong.extend(block_on(compare(ran, &said, earlier))?);
    Ok(wrong)
}

/// Whether the process behaved as it must when that call failed.
fn failure(ran: &Ran, opened: bool, poisoned: bool) -> Option<String> {
    let said = Said(&ran.lines);
    if !opened {
        return (!said.has("not opened: could not ")).then(|| "it did not say why it does not open".to_owned());
    }
    let unready = said.has("no reserve");
    let right = match (ran.shot.call, ran.shot.fault) {
        // A frame, or a segment's beginning: rule 12.
        ("pwrite64" | "fdatasync" | "renameat", _) => poisoned,
        // A segment, the folder, or the reserve, which is only space. It may be the last thing that was done.
        ("fsync", _) => poisoned || unready || said.has("closed"),
        ("fallocate" | "openat", _) => !poisoned && said.ids("unknown").is_empty(),
        _ => !said.has("late "),
    };
    (!right).then(|| format!("the failure had the wrong effect (poisoned {poisoned}, without a reserve {unready})"))
}

/// Opens the log without faults, twice, and compares.
async fn compare(ran: &Ran, said: &Said<'_>, earlier: &BTreeSet<TransactionId>) -> Vec<String> {
    let mut wrong = Vec::new();
    let path = ran.folder.path().join("log");
    let mut answers = BTreeMap::new();
    let owner = ran.lines.iter().find_map(|line| line.strip_prefix("opened ")?.parse::<TransactionId>().ok());
    for _ in 0..2 {
        // A process that is just started has this one's lock too, until it has become another program.
        let log = match options().lock_wait(Duration::from_secs(30)).open(&path).await {
            Ok(log) => log,
            Err(error) => {
                wrong.push(format!("afterwards the log does not open: {error}"));
                return wrong;
            }
        };
        let unfinished = match log.unfinished().await {
            Ok(unfinished) => unfinished.into_iter().map(|record| record.transaction).collect::<BTreeSet<_>>(),
            Err(error) => {
                wrong.push(format!("afterwards the log does not tell what is unfinished: {error}"));
                return wrong;
            }
        };
        let (acknowledged, unknown, refused) = (said.ids("acknowledged"), said.ids("unknown"), said.ids("refused"));
        let mine = owner.iter().flat_map(|first| (0..ALL + 9).map(|sequence| first.owner().transaction(sequence)));
        for transaction in earlier.iter().copied().chain(mine) {
            let known = match log.lookup(transaction).await {
                Ok(known) => known,
                Err(error) => {
                    wrong.push(format!("{transaction}: {error}"));
                    continue;
                }
            };
            let durable = earlier.contains(&transaction) || acknowledged.contains(&transaction);
            let kept = durable && is_kept(transaction.sequence);
            match &known {
                Known::Commit(record) => {
                    let made = decision(transaction.owner(), transaction.sequence);
                    let whole = record.decides_as(&made) && (record.note == made.note || record.note.is_empty());
                    // Killed, it did not say what it was deciding.
                    let may =
                        durable || unknown.contains(&transaction) || (ran.killed && !refused.contains(&transaction));
                    if !whole || !may || transaction.sequence == 0 || transaction.sequence > ALL {
                        wrong.push(format!("afterwards {transaction} is committed, and should not be"));
                    }
                }
                Known::Abort if durable => {
                    wrong.push(format!("afterwards {transaction} is aborted, and was acknowledged"))
                }
                Known::Abort => {}
                // So small a log lets finished ones go early.
                Known::Hold(HoldReason::BeyondHorizon) if !kept => {}
                Known::Hold(reason) => wrong.push(format!("afterwards {transaction} is held: {reason:?}")),
            }
            if kept && !unfinished.contains(&transaction) {
                wrong.push(format!("afterwards {transaction} counts as finished"));
            }
            let before = answers.entry(transaction).or_insert_with(|| known.clone());
            let forgotten = matches!(known, Known::Hold(_)) && !kept;
            if *before != known && !forgotten {
                wrong.push(format!("{transaction} was told {before:?} and is {known:?}"));
            }
        }
        // A full disk stops new work, not the end of what is decided, while the segment has room.
        if ran.shot.fault == Fault::Full && said.has("closed") && refused.is_empty() {
            let left = acknowledged
                .iter()
                .chain(earlier)
                .filter(|id| !is_kept(id.sequence) && unfinished.contains(id))
                .count();
            if left > 0 {
                wrong.push(format!("{left} finished ones could not be noted on a full disk"));
            }
        }
        log.close().await;
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that was not hit, with lines that are not true of its log: each is seen.
    #[test]
    fn a_process_that_lies_is_seen() {
        let before = tempfile::tempdir().unwrap();
        let earlier = block_on(earlier(before.path())).unwrap().unwrap();
        let first = *earlier.first().unwrap();
        let own = first.owner().transaction(30);
        let ran = |fault, lines: &[String]| {
            let folder = tempfile::tempdir().unwrap();
            let log = folder.path().join("log");
            std::fs::create_dir(&log).unwrap();
            for name in segments(before.path()).unwrap() {
                std::fs::copy(before.path().join(&name), log.join(&name)).unwrap();
            }
            let shot = Shot { call: "fdatasync", fault, at: 1 };
            let killed = fault == Fault::Kill;
            let exit = (!killed).then_some(0);
            Ran { folder, shot, hit: true, exit, killed, lines: lines.to_vec() }
        };
        let opened = format!("opened {}", first.owner().transaction(0));
        let judged = |fault, lines: &[&str]| {
            let lines: Vec<String> = lines.iter().map(|line| line.replace("OWN", &own.to_string())).collect();
            judge(&ran(fault, &lines), &earlier).unwrap().join("\n")
        };
        assert_eq!(judged(Fault::Kill, &[&opened]), "");
        assert_eq!(judged(Fault::Io, &[&opened, "unknown OWN poisoned", "closed: poisoned"]), "");
        for (lines, part) in [
            (vec![&*opened, "acknowledged OWN"], "is aborted, and was acknowledged"),
            (vec![&*opened, "unknown OWN poisoned", "late OWN"], "a poisoned log decides"),
            (vec![&*opened, "unknown OWN poisoned", "told OWN commit"], "it answered"),
            (vec![&*opened, "closed: in order"], "the wrong effect"),
            (vec!["gone"], "did not say why"),
        ] {
            let wrong = judged(Fault::Io, &lines);
            assert!(wrong.contains(part), "{lines:?}: {wrong:?}");
        }
        // What was refused is there.
        let refused = format!("refused {first} poisoned");
        let strangers = BTreeSet::new();
        let wrong = judge(&ran(Fault::Kill, &[opened.clone(), refused]), &strangers).unwrap().join("\n");
        assert!(wrong.contains("is committed, and should not be"), "{wrong}");
    }
}
