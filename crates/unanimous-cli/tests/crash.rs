//! kill -9 under load: the command `cargo xtask crash demo`, with few rounds.

use unanimous_testing::crash::{Plan, run};

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
