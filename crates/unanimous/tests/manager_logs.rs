//! The manager over the library's own logs: the same calls over the log in memory, and over files a restart that finishes what
//! the run before left, by what the files say.

use std::time::Duration;

use unanimous::log::{FileLog, MemoryLog};
use unanimous::{DecisionLog, HoldReason, TransactionManager};

use crate::support::{Call, Fault, Journal, JournalLog, MemoryStore, ended, unknown};

fn stores(journal: &Journal) -> [MemoryStore; 2] {
    ["a", "b"].map(|name| MemoryStore::new(name, unanimous::Capability::TwoPhase, journal))
}

async fn start(log: JournalLog<impl DecisionLog>, stores: &[MemoryStore; 2]) -> TransactionManager {
    let builder = TransactionManager::builder(log).phase_two_wait(Duration::from_millis(50));
    stores.iter().fold(builder, |builder, store| builder.resource(store.clone())).build().await.unwrap()
}

async fn write(manager: &TransactionManager, stores: &[MemoryStore; 2], key: &str) -> unanimous::Transaction {
    let tx = manager.begin();
    for store in stores {
        tx.join(store).await.unwrap().put(key).unwrap();
    }
    tx
}

/// Over the log in memory: the ordered calls, and nothing is unfinished at the end.
#[tokio::test(start_paused = true)]
async fn the_log_in_memory_decides() {
    let journal = Journal::default();
    let stores = stores(&journal);
    let log = MemoryLog::new();
    let manager = start(JournalLog::new(log.clone(), &journal), &stores).await;
    let tx = write(&manager, &stores, "row").await;
    journal.clear();
    ended(tx.commit()).await.unwrap();
    let acts = ["a.flush", "b.flush", "a.prepare!", "b.prepare!", "log.decide! [a b]", "a.commit!", "b.commit!"];
    assert_eq!(journal.acts(), [&acts[..], &["log.forget"]].concat());
    assert!(unanimous::Decider::unfinished(&log).await.unwrap().is_empty());
}

/// Another log in memory knows nothing of the first one's branches: they are held as foreign, not rolled back.
#[tokio::test(start_paused = true)]
async fn a_log_in_memory_presumes_nothing_of_its_predecessor() {
    let journal = Journal::default();
    let stores = stores(&journal);
    let manager = start(JournalLog::new(MemoryLog::new(), &journal), &stores).await;
    for call in [Call::Commit, Call::RecoveredCommit] {
        stores[0].fail_always(call, Fault::Lost);
    }
    let tx = write(&manager, &stores, "row").await;
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 1);
    drop(manager);
    stores[0].heal(Call::RecoveredCommit);
    let manager = start(JournalLog::new(MemoryLog::new(), &journal), &stores).await;
    let doubts = manager.in_doubt();
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    assert_eq!(doubts[0].why, unanimous::Doubt::Held(HoldReason::ForeignLog));
    assert_eq!(stores[0].prepared().len(), 1);
}

/// Over files: one transaction is decided and pending, of another the decision was lost before it was written, a third is decided
/// and done. The next start, over the same folder, commits the first, rolls back the second, and has nothing left to finish.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_restart_over_files_finishes_what_the_run_before_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decisions");
    let journal = Journal::default();
    let stores = stores(&journal);

    let log = JournalLog::new(FileLog::open(&path).await.unwrap(), &journal);
    let manager = start(log.clone(), &stores).await;
    let first = manager.owner().incarnation.counter;
    ended(write(&manager, &stores, "done").await.commit()).await.unwrap();
    for call in [Call::Commit, Call::RecoveredCommit] {
        stores[0].fail_always(call, Fault::Lost);
    }
    assert_eq!(ended(write(&manager, &stores, "pending").await.commit()).await.unwrap().pending, 1);
    log.fail(Fault::Lost);
    unknown(ended(write(&manager, &stores, "lost").await.commit()).await);
    manager.shutdown(Duration::from_secs(30)).await.unwrap();
    drop((manager, log));

    for call in [Call::Commit, Call::RecoveredCommit] {
        stores[0].heal(call);
    }
    journal.clear();
    let log = FileLog::open(&path).await.unwrap();
    let manager = start(JournalLog::new(log, &journal), &stores).await;
    assert_eq!(manager.owner().incarnation.counter, first + 1);
    let mut acts = journal.acts();
    assert_eq!(acts.pop().as_deref(), Some("log.forget"));
    acts.sort();
    assert_eq!(acts, ["a.recovered-commit!", "a.recovered-rollback", "b.recovered-rollback"]);
    for store in &stores {
        assert_eq!(store.keys(), ["done", "pending"]);
        assert!(store.prepared().is_empty());
    }
    assert!(manager.in_doubt().is_empty());
    ended(write(&manager, &stores, "after").await.commit()).await.unwrap();
    manager.shutdown(Duration::from_secs(30)).await.unwrap();
    assert!(unanimous::log::read(&path).unwrap().unfinished().is_empty());
}
