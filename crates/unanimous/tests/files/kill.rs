//! Real processes: killed with signal 9 at random moments, and working on one folder at the same time.
//!
//! Each test starts this test binary again with its own name; an environment variable tells it that it is the child.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use unanimous::files::Files;
use unanimous::{Branch, FailureKind, ResourceManager};

use super::{assert_clean, branch, entries, id, text, tree};

const CHILD: &str = "UNANIMOUS_FILES_TEST_CHILD";
const BASE: &str = "UNANIMOUS_FILES_TEST_BASE";
/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder that this process works on, if it is a child.
fn child_of() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// A child process that is killed when it is dropped.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    fn start(test: &str, root: &Path, base: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, root)
            .env(BASE, base.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let lines = Self::read(child.stdout.take().unwrap());
        Self { child, stdin, lines }
    }

    fn read(stdout: ChildStdout) -> Receiver<String> {
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                // The test harness's own lines are on the same pipe.
                if let Some(said) = line.strip_prefix("> ")
                    && send.send(said.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        lines
    }

    fn expect(&self, expected: &str) {
        let said = self.lines.recv_timeout(PATIENCE).expect("the child said nothing in time");
        assert_eq!(said, expected);
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// Kills it with signal 9, and gives back all that it has said.
    fn kill(&mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.iter().collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line to the parent. One write: a killed child has said all of it or nothing.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(format!("\n> {line}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

fn told() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Contents that can't be mistaken for another's, nor for half of one.
fn content(sequence: u64) -> String {
    format!("{sequence}\n").repeat(3000)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The sequence number that a file has the whole content of.
fn sequence_of(path: &str, found: &str) -> u64 {
    let sequence =
        found.lines().next().unwrap_or_default().parse().unwrap_or_else(|_| panic!("{path} is empty or torn"));
    assert!(found == content(sequence), "{path} has half a content of {sequence}");
    sequence
}

/// What a task of the child does over and over, until it is killed: a transaction over four files, two of them the same each time.
async fn work(root: PathBuf, decisions: PathBuf, task: u64, base: u64) {
    let files = Files::open("files", &root).await.unwrap();
    for round in 0.. {
        let sequence = base + task * 10_000 + round;
        let branch = branch(&files, sequence).await;
        let way = sequence % 4;
        for pair in ["left", "right"] {
            branch.replace(format!("{task}/{pair}"), content(sequence)).await.unwrap();
        }
        branch.create(format!("{task}/made/{sequence}"), content(sequence)).await.unwrap();
        // What the last but one of its kind has made goes.
        let before = format!("{task}/made/{}", sequence.saturating_sub(8));
        if round >= 8 && branch.exists(&before).await.unwrap() {
            branch.delete(&before).await.unwrap();
        }
        match way {
            0 => branch.commit_one_phase(&id(sequence)).await.unwrap(),
            1 => {
                branch.prepare(&id(sequence)).await.unwrap();
                branch.rollback().await.unwrap();
                continue;
            }
            _ => {
                branch.prepare(&id(sequence)).await.unwrap();
                let decision = File::create_new(decisions.join(sequence.to_string())).unwrap();
                decision.sync_all().unwrap();
                File::open(&decisions).unwrap().sync_all().unwrap();
                branch.commit().await.unwrap();
            }
        }
        say(&sequence.to_string());
    }
}

#[test]
fn killed_at_random_moments_each_transaction_is_whole_or_never_was() {
    if let Some(root) = child_of() {
        let base = std::env::var(BASE).unwrap().parse().unwrap();
        let decisions = root.join("../decisions");
        return runtime().block_on(async {
            let tasks: Vec<_> =
                (0..4).map(|task| tokio::spawn(work(root.clone(), decisions.clone(), task, base))).collect();
            for task in tasks {
                task.await.unwrap();
            }
        });
    }
    let parent = tempfile::tempdir().unwrap();
    let (root, decisions) = (parent.path().join("root"), parent.path().join("decisions"));
    fs::create_dir(&decisions).unwrap();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    let mut in_doubt = 0;
    for round in 1..=500u64 {
        if round > 20 && in_doubt > 0 {
            break;
        }
        let mut child = Process::start(
            "files::kill::killed_at_random_moments_each_transaction_is_whole_or_never_was",
            &root,
            round * 1_000_000,
        );
        let first = child.lines.recv_timeout(PATIENCE).expect("the child commits something");
        let delay = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos() % 40_000;
        std::thread::sleep(Duration::from_micros(u64::from(delay)));
        let mut acknowledged: Vec<u64> = vec![first.parse().unwrap()];
        acknowledged.extend(child.kill().iter().map(|line| line.parse::<u64>().unwrap()));

        let committed = runtime().block_on(async {
            let files = Files::open("files", &root).await.unwrap();
            let mut committed = BTreeSet::new();
            for branch in files.in_doubt().await.unwrap() {
                in_doubt += 1;
                let sequence = branch.transaction.sequence;
                if decisions.join(sequence.to_string()).exists() {
                    files.commit(&branch).await.unwrap();
                    committed.insert(sequence);
                } else {
                    files.rollback(&branch).await.unwrap();
                }
            }
            assert_eq!(files.in_doubt().await.unwrap(), []);
            committed
        });
        assert_clean(&root);

        let found = tree(&root);
        let at = format!("round {round}, killed after {delay} microseconds");
        for task in 0..4u64 {
            let (left, right) = (found.get(&format!("{task}/left")), found.get(&format!("{task}/right")));
            let mut done: Vec<u64> = acknowledged
                .iter()
                .chain(&committed)
                .copied()
                .filter(|sequence| sequence % 1_000_000 / 10_000 == task)
                .collect();
            done.sort_unstable();
            let (Some(left), Some(right)) = (left, right) else {
                assert!(left.is_none() && right.is_none() && done.is_empty(), "{at}: half of a pair");
                continue;
            };
            let left = sequence_of("left", left);
            assert_eq!(left, sequence_of("right", right), "{at}: the pair of task {task} is torn");
            // The last one to commit is the newest that was acknowledged, or one that was decided and not acknowledged any more.
            if let Some(newest) = done.last() {
                assert!(left >= *newest, "{at}: {newest} was committed, and {left} is there");
            }
            assert_ne!(left % 4, 1, "{at}: {left} was rolled back");
            if left % 4 >= 2 {
                assert!(decisions.join(left.to_string()).exists(), "{at}: {left} was never decided");
            }
            assert!(last.get(&format!("{task}")).is_none_or(|before| *before <= left), "{at}: it went back");
            last.insert(format!("{task}"), left);
            let made: BTreeSet<u64> = found
                .iter()
                .filter(|(path, _)| path.starts_with(&format!("{task}/made/")))
                .map(|(path, found)| {
                    let sequence = sequence_of(path, found);
                    assert!(path.ends_with(&format!("/{sequence}")), "{at}: {path} has the content of {sequence}");
                    sequence
                })
                .collect();
            assert!(made.contains(&left), "{at}: {left} is in the pair, and its own file is not there");
            for sequence in &made {
                assert!(*sequence <= left, "{at}: {sequence} made its own file, and the pair has {left}");
                assert_ne!(sequence % 4, 1, "{at}: {sequence} was rolled back");
            }
            for sequence in done {
                // Within one life of the process, eight later another one deletes it.
                let deleted = (sequence + 8..=left).any(|later| later == sequence + 8 && later % 4 != 1);
                assert_eq!(made.contains(&sequence), !deleted, "{at}: {sequence} of {left}");
            }
        }
    }
    assert!(in_doubt > 0, "none of 500 kills hit a prepared branch");
}

#[test]
fn two_processes_exclude_each_other_by_claims() {
    if let Some(root) = child_of() {
        return runtime().block_on(async {
            let files = Files::open("files", &root).await.unwrap();
            for sequence in [1, 2] {
                let branch = branch(&files, sequence).await;
                branch.replace("shared/a", content(sequence)).await.unwrap();
                branch.prepare(&id(sequence)).await.unwrap();
                say("prepared");
                match told().as_str() {
                    "commit" => branch.commit().await.unwrap(),
                    _ => branch.rollback().await.unwrap(),
                }
                say("ended");
            }
            assert_eq!(told(), "exit");
        });
    }
    let root = tempfile::tempdir().unwrap();
    let mut child = Process::start("files::kill::two_processes_exclude_each_other_by_claims", root.path(), 0);
    runtime().block_on(async {
        child.expect("prepared");
        let files = Files::open_existing("files", root.path()).await.unwrap();
        for (sequence, ending) in [(1, "commit"), (2, "rollback")] {
            assert_eq!(files.in_doubt().await.unwrap(), [id(sequence)]);
            for path in ["shared/a", "shared/a/below"] {
                let mine = branch(&files, 10 + sequence).await;
                let wrote = mine.replace(path, "mine").await;
                if path == "shared/a/below" && sequence == 2 {
                    assert!(text(&wrote.unwrap_err()).contains("a file, not a folder"));
                    continue;
                }
                wrote.unwrap();
                let error = mine.prepare(&id(10 + sequence)).await.unwrap_err();
                assert_eq!(error.kind(), FailureKind::Conflict, "{}", text(&error));
                assert!(text(&error).contains(&id(sequence).to_string()), "{}", text(&error));
                mine.rollback().await.unwrap();
            }
            child.tell(ending);
            child.expect("ended");
            let mine = branch(&files, 20 + sequence).await;
            let expected = if sequence == 1 { content(1) } else { "mine 1".to_owned() };
            assert_eq!(mine.read("shared/a").await.unwrap(), Some(expected.into_bytes()));
            if sequence == 1 {
                child.expect("prepared");
                let error = {
                    mine.replace("shared/a", "mine").await.unwrap();
                    mine.prepare(&id(21)).await.unwrap_err()
                };
                assert_eq!(error.kind(), FailureKind::Conflict);
                mine.rollback().await.unwrap();
                // Not disturbed by a claim on another path.
                let beside = branch(&files, 31).await;
                beside.create("shared/b", "b").await.unwrap();
                beside.prepare(&id(31)).await.unwrap();
                beside.commit().await.unwrap();
                // Behind the claim's back, as something outside of any transaction would.
                fs::write(root.path().join("shared/a"), "mine 1").unwrap();
            } else {
                mine.replace("shared/a", "mine 2").await.unwrap();
                mine.prepare(&id(22)).await.unwrap();
                mine.commit().await.unwrap();
            }
        }
        child.tell("exit");
        assert_eq!(fs::read_to_string(root.path().join("shared/a")).unwrap(), "mine 2");
        assert!(child.child.wait().unwrap().success());
    });
    assert_clean(root.path());
}

#[test]
fn listing_beside_a_working_process_disturbs_nothing() {
    if let Some(root) = child_of() {
        return runtime().block_on(async {
            let files = Files::open("files", &root).await.unwrap();
            say("begun");
            for sequence in 1..=150 {
                let branch = branch(&files, sequence).await;
                branch.replace("a", content(sequence)).await.unwrap();
                branch.replace("b", content(sequence)).await.unwrap();
                if sequence % 3 == 0 {
                    branch.commit_one_phase(&id(sequence)).await.unwrap();
                } else {
                    branch.prepare(&id(sequence)).await.unwrap();
                    branch.commit().await.unwrap();
                }
            }
            say("done");
        });
    }
    let root = tempfile::tempdir().unwrap();
    let mut child = Process::start("files::kill::listing_beside_a_working_process_disturbs_nothing", root.path(), 0);
    child.expect("begun");
    runtime().block_on(async {
        let files = Files::open_existing("files", root.path()).await.unwrap();
        loop {
            for branch in files.in_doubt().await.unwrap() {
                assert!((1..=150).contains(&branch.transaction.sequence) && branch.transaction.sequence % 3 != 0);
            }
            match child.lines.try_recv() {
                Ok(said) => break assert_eq!(said, "done"),
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => panic!("the child died: its own output says why"),
            }
        }
        assert_eq!(files.in_doubt().await.unwrap(), []);
    });
    assert!(child.child.wait().unwrap().success());
    assert_eq!(tree(root.path()), [("a".to_owned(), content(150)), ("b".to_owned(), content(150))].into());
    assert_clean(root.path());
}

#[test]
fn what_a_killed_process_staged_is_removed_and_what_it_promised_is_kept() {
    if let Some(root) = child_of() {
        return runtime().block_on(async {
            let files = Files::open("files", &root).await.unwrap();
            let promised = branch(&files, 1).await;
            promised.create("a", content(1)).await.unwrap();
            promised.prepare(&id(1)).await.unwrap();
            say("promised");
            // Staged again and again, and killed somewhere in it.
            for sequence in 2.. {
                let branch = branch(&files, sequence).await;
                branch.create("b", vec![b'x'; 1_000_000]).await.unwrap();
                branch.create("a/below", "refused by the claim").await.unwrap();
                branch.prepare(&id(sequence)).await.unwrap_err();
                branch.rollback().await.unwrap();
            }
        });
    }
    let root = tempfile::tempdir().unwrap();
    let mut leftovers = 0;
    for round in 1..=500 {
        if round > 10 && leftovers > 0 {
            break;
        }
        let test = "files::kill::what_a_killed_process_staged_is_removed_and_what_it_promised_is_kept";
        let mut child = Process::start(test, root.path(), 0);
        child.expect("promised");
        std::thread::sleep(Duration::from_millis(15));
        child.kill();
        leftovers += entries(root.path(), "stage").len() - 1;
        runtime().block_on(async {
            let files = Files::open_existing("files", root.path()).await.unwrap();
            assert_eq!(entries(root.path(), "stage").len(), 1, "only what was promised is kept");
            assert_eq!(files.in_doubt().await.unwrap(), [id(1)]);
            files.rollback(&id(1)).await.unwrap();
        });
        assert_clean(root.path());
    }
    assert!(leftovers > 0, "none of 500 kills hit a process that was staging");
    assert_eq!(tree(root.path()), BTreeMap::new());
}
