//! Several processes, and processes that are killed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use unanimous::{Branch, Known, ResourceManager};

use super::{Place, begin, child, insert, owner, record, within};

const CARRIER: &str = "UNANIMOUS_TEST_SQLITE_CARRIER";
const COUNTER: &str = "UNANIMOUS_TEST_SQLITE_COUNTER";
const OPENER: &str = "UNANIMOUS_TEST_SQLITE_OPENER";

fn run<F: Future<Output = ()>>(future: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// What a child has said; the test runner's own words can be before it in the line.
fn said_after(line: &str, word: &str) -> Option<String> {
    line.split_once(word).map(|(_, said)| said.to_owned())
}

/// Kills the child when the test fails, too.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A child carries one decision after another, each with its work, and says each that was answered. It is killed with
/// SIGKILL at some moment; then work and rows are compared. Expected: the same transactions in both, all that were said
/// among them, and the decision asked for is Commit for these and Abort for the first one that is not there.
#[test]
fn after_kill_9_work_and_its_row_are_there_together_or_not_at_all() {
    if let Some(path) = std::env::var_os(CARRIER) {
        return run(carry_for_ever(Path::new(&path).to_owned()));
    }
    let place = Place::new();
    run(async { drop(place.open().await) });
    let mut killed_in_between = 0;
    for round in 0..12_u64 {
        let test = "sqlite::crash::after_kill_9_work_and_its_row_are_there_together_or_not_at_all";
        let mut process = Killed(
            child(test, CARRIER, &place.path()).env("ROUND", round.to_string()).stdout(Stdio::piped()).spawn().unwrap(),
        );
        let mut said = BufReader::new(process.0.stdout.take().unwrap()).lines();
        let mut answered = BTreeSet::new();
        // Killed after a different number of answers and a different while each time; how far it is then is up to the
        // machine.
        while answered.len() < 3 + round as usize {
            let line = said.next().expect("the child ended by itself").unwrap();
            answered.extend(said_after(&line, "carried "));
        }
        std::thread::sleep(Duration::from_micros(round * 431));
        process.0.kill().unwrap();
        process.0.wait().unwrap();
        answered.extend(said.filter_map(|line| said_after(&line.ok()?, "carried ")));

        let (work, rows) = work_and_rows(&place, round);
        assert_eq!(work, rows, "round {round}");
        assert!(answered.is_subset(&rows), "round {round}: {answered:?} were answered, {rows:?} are there");
        killed_in_between += usize::from(answered != rows);

        run(async {
            let store = place.open().await;
            for sequence in 1..=rows.len() as u64 + 1 {
                let transaction = owner().transaction(round * 1000 + sequence);
                let known = within(store.decision(transaction, owner())).await.unwrap();
                let expected = if rows.contains(&transaction.to_string()) {
                    Known::Commit(record(transaction))
                } else {
                    Known::Abort
                };
                assert_eq!(known, expected, "round {round}");
            }
        });
    }
    println!("committed, and killed before the answer: {killed_in_between} of 12 rounds");
}

/// What one round wrote, and its commit rows.
fn work_and_rows(place: &Place, round: u64) -> (BTreeSet<String>, BTreeSet<String>) {
    let stranger = place.stranger();
    let of_round = |sql: &str| -> BTreeSet<String> {
        super::strings(&stranger, sql)
            .into_iter()
            .filter(|id| id.parse::<unanimous::TransactionId>().unwrap().sequence / 1000 == round)
            .collect()
    };
    (
        of_round("SELECT v FROM t ORDER BY id"),
        of_round("SELECT transaction_id FROM unanimous_decision WHERE outcome = 'commit'"),
    )
}

async fn carry_for_ever(path: std::path::PathBuf) {
    let round: u64 = std::env::var("ROUND").unwrap().parse().unwrap();
    let store = super::open(&path, Duration::from_secs(30)).await;
    for sequence in 1..1000 {
        let transaction = owner().transaction(round * 1000 + sequence);
        let branch = begin(&store, transaction.sequence).await;
        insert(&branch, &transaction.to_string()).await;
        branch.flush().await.unwrap();
        branch.commit_carrying(&record(transaction)).await.unwrap();
        println!("carried {transaction}");
    }
    std::future::pending().await
}

/// Two processes and this one add to one number, each reading it first. Expected: no addition is lost, whoever waits
/// for whom.
#[test]
fn processes_that_contend_lose_nothing() {
    const EACH: i64 = 40;
    if let Some(path) = std::env::var_os(COUNTER) {
        return run(count(Path::new(&path).to_owned(), EACH));
    }
    let place = Place::new();
    run(async {
        let store = place.open().await;
        let branch = begin(&store, 1).await;
        insert(&branch, "0").await;
        branch.commit_one_phase(&super::id(owner().transaction(1))).await.unwrap();
    });
    let test = "sqlite::crash::processes_that_contend_lose_nothing";
    let children: Vec<_> = (0..2)
        .map(|_| child(test, COUNTER, &place.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    run(count(place.path(), EACH));
    for process in children {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(place.values(), [(3 * EACH).to_string()]);
}

async fn count(path: std::path::PathBuf, times: i64) {
    let store = super::open(&path, Duration::from_secs(60)).await;
    for _ in 0..times {
        let branch = begin(&store, 2).await;
        let value: String = branch.query_row("SELECT v FROM t", (), |row| row.get(0)).await.unwrap();
        let next = value.parse::<i64>().unwrap() + 1;
        branch.execute("UPDATE t SET v = ?1", (next.to_string(),)).await.unwrap();
        branch.flush().await.unwrap();
        branch.commit_one_phase(&super::id(owner().transaction(2))).await.unwrap();
    }
}

/// Expected: one identity, whoever created the file.
#[test]
fn processes_that_create_a_database_at_once_agree_on_its_identity() {
    if let Some(path) = std::env::var_os(OPENER) {
        return run(async {
            let store = super::open(Path::new(&path), Duration::from_secs(60)).await;
            println!("identity {}", store.identity().await.unwrap());
        });
    }
    for _ in 0..3 {
        let place = Place::new();
        let test = "sqlite::crash::processes_that_create_a_database_at_once_agree_on_its_identity";
        let children: Vec<_> = (0..4)
            .map(|_| child(test, OPENER, &place.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        let mut identities = BTreeSet::new();
        for process in children {
            let output = process.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{output:?}");
            identities.extend(said.lines().filter_map(|line| said_after(line, "identity ")));
        }
        assert_eq!(identities.len(), 1, "{identities:?}");
    }
}
