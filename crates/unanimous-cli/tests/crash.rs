//! kill -9 under load: the commands `cargo xtask crash demo` and `crash postgres`, also with `--keys`, with few rounds.

use unanimous_testing::crash::{Plan, postgres, repeat, run};
use unanimous_testing::demo::Place;

use crate::support::binary;

#[test]
fn what_was_acknowledged_survives_kill_9_and_nothing_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan { binary: binary().to_owned(), data: folder.path().join("data"), rounds: 4, seed: 1, clients: 16 };
    let mut told = Vec::new();
    let summary = run(&plan, |line| told.push(line.to_owned())).unwrap();
    assert_eq!(summary.violations, Vec::<String>::new(), "{told:#?}");
    assert_eq!(summary.rounds, 4, "{told:#?}");
    assert!(summary.kills >= 4 && summary.acknowledged > 0 && summary.aborted > 0, "{summary:?}: {told:#?}");
}

#[test]
fn what_was_acknowledged_survives_the_servers_faults_too() {
    let folder = tempfile::tempdir().unwrap();
    // Servers that root starts are another user's, who has to find their folders.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let plan = postgres::Plan {
        binary: binary().to_owned(),
        folder: folder.path().to_owned(),
        rounds: 4,
        seed: 1,
        clients: 16,
    };
    let mut told = Vec::new();
    let summary = postgres::run(&plan, |line| told.push(line.to_owned())).unwrap();
    let orders = &summary.orders;
    assert_eq!(orders.violations, Vec::<String>::new(), "{told:#?}");
    assert_eq!(orders.rounds, 4, "{told:#?}");
    assert!(orders.acknowledged > 0 && orders.aborted > 0, "{summary:?}: {told:#?}");
    assert!(summary.heard > 0 && summary.faults.len() > 1, "{summary:?}: {told:#?}");
}

#[test]
fn what_is_repeated_by_its_key_is_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(binary(), folder.path().join("data"));
    judge(repeat::run(&repeat::Plan { place, rounds: 8, seed: 1, clients: 16 }, drop_line).unwrap(), 8);
}

#[test]
fn what_is_repeated_by_its_key_is_stored_once_on_postgres() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let plan = postgres::Plan {
        binary: binary().to_owned(),
        folder: folder.path().to_owned(),
        rounds: 8,
        seed: 1,
        clients: 16,
    };
    judge(repeat::run_on_postgres(&plan, drop_line).unwrap(), 8);
}

fn drop_line(_: &str) {}

fn judge(summary: repeat::KeySummary, rounds: u32) {
    assert_eq!(summary.orders.violations, Vec::<String>::new(), "{summary:?}");
    assert_eq!((summary.orders.rounds, summary.orders.unanswered), (rounds, 0), "{summary:?}");
    assert!(summary.orders.acknowledged > 0 && summary.repeated > 0 && summary.replayed > 0, "{summary:?}");
    assert!(summary.older > 0 && summary.second_go > 0, "{summary:?}");
}
