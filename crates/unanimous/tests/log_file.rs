//! The log in files, on the operating system's disk: what a user of it sees.

use unanimous::log::{FileLog, OpenError};
use unanimous::{Decider, DecisionLog, DecisionRecord, Known, Owner, Participant};

fn decision(owner: Owner, sequence: u64) -> DecisionRecord {
    let participants = vec![
        Participant { number: 0, resource: "orders".into(), store: Some("store-a".parse().unwrap()) },
        Participant { number: 1, resource: "receipts".into(), store: None },
    ];
    DecisionRecord { transaction: owner.transaction(sequence), participants, decided_at: 17 }
}

#[tokio::test]
async fn decisions_outlive_a_restart_and_the_rest_is_presumed_aborted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a").join("b");
    let log = FileLog::open(&path).await.unwrap();
    assert!(log.opened().created);
    let first = log.owner();
    assert_eq!(first.incarnation.counter, 1);
    for sequence in [1, 2, 3] {
        log.decide(decision(first, sequence)).await.unwrap();
    }
    log.forget(first.transaction(2));
    assert_eq!(log.lookup(first.transaction(3)).await.unwrap(), Known::Commit(decision(first, 3)));
    log.close().await;
    assert!(log.ready().is_err());

    let log = FileLog::open(&path).await.unwrap();
    assert!(!log.opened().created);
    let second = log.owner();
    assert_eq!((second.log, second.incarnation.counter), (first.log, 2));
    assert_eq!(log.unfinished().await.unwrap(), [decision(first, 1), decision(first, 3)]);
    assert_eq!(log.lookup(first.transaction(2)).await.unwrap(), Known::Commit(decision(first, 2)));
    assert_eq!(log.lookup(first.transaction(4)).await.unwrap(), Known::Abort);
    let held = OpenError::Held { path: path.clone() }.to_string();
    let refused = FileLog::options().lock_wait(std::time::Duration::ZERO).open(&path).await.unwrap_err();
    assert_eq!(refused.to_string(), held);
}
