//! What broke once, named by what it was.

use std::sync::mpsc;
use std::time::Duration;

use unanimous::files::Files;
use unanimous::log::{FileLog, MemoryLog};
use unanimous::{BuildError, Capability, Options, TransactionManager};

use crate::support::{Call, Fault, Journal, MemoryStore, World, aborted, ended, unknown};

/// Two managers over one log would give out the same ids, and each would presume of the other's transactions; also when the first
/// one is gone.
#[tokio::test(start_paused = true)]
async fn two_managers_over_one_log() {
    let log = MemoryLog::new();
    let first = TransactionManager::builder(log.clone()).build().await.unwrap();
    let second = TransactionManager::builder(log.clone()).build().await;
    assert!(matches!(second, Err(BuildError::LogInUse)), "{second:?}");
    drop(first);
    let third = TransactionManager::builder(log).build().await;
    assert!(matches!(third, Err(BuildError::LogInUse)), "{third:?}");
}

/// All threads of the runtime's blocking pool are held by callers that wait for commits: the commits must not need one of them.
#[test]
fn callers_that_hold_the_blocking_pool() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).max_blocking_threads(1).enable_all().build().unwrap();
    let data = tempfile::tempdir().unwrap();
    let tx = runtime.block_on(async {
        let left = Files::open("left", data.path().join("left")).await.unwrap();
        let right = Files::open("right", data.path().join("right")).await.unwrap();
        let log = FileLog::open(data.path().join("log")).await.unwrap();
        let builder = TransactionManager::builder(log).resource(left.clone()).resource(right.clone());
        let tx = builder.build().await.unwrap().begin();
        tx.join(&left).await.unwrap().create("x", "1").await.unwrap();
        tx.join(&right).await.unwrap().create("x", "1").await.unwrap();
        tx
    });
    let (answer, heard) = mpsc::channel();
    let handle = runtime.handle().clone();
    runtime.spawn_blocking(move || answer.send(handle.block_on(tx.commit())));
    heard.recv_timeout(Duration::from_secs(60)).expect("the commit needs the thread that its caller holds").unwrap();
    assert!(data.path().join("left/x").exists() && data.path().join("right/x").exists());
    runtime.shutdown_background();
}

/// A carrier's answer is lost and it can't be asked for long: the volatile branch beside it is told the outcome when it can.
#[tokio::test(start_paused = true)]
async fn a_volatile_branch_beside_a_carrier_that_cannot_be_asked() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let v = MemoryStore::new("v", Capability::Volatile, &world.journal);
    let (manager, _log) = world.start().await;
    let tx = manager.begin_with(Options::default().allow("v"));
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.join(&c).await.unwrap().put("row").unwrap();
    tx.join_branch("v", v.branch()).unwrap().put("row").unwrap();
    c.fail(Call::CommitCarrying, Fault::LostDone);
    c.fail_always(Call::Decision, Fault::Lost);
    unknown(ended(tx.commit()).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((a.keys().len(), v.keys().len()), (0, 0));
    c.heal(Call::Decision);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!((a.keys(), c.keys(), v.keys()), (vec!["row".into()], vec!["row".into()], vec!["row".into()]));
    assert!(manager.in_doubt().is_empty(), "{:?}", manager.in_doubt());
    manager.shutdown(Duration::from_secs(30)).await.unwrap();
}

/// A join of a branch with a time limit, on a thread outside of the runtime.
#[test]
fn a_join_with_a_time_limit_from_a_plain_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let v = MemoryStore::new("v", Capability::Volatile, &Journal::default());
    let manager = runtime.block_on(async {
        let builder = TransactionManager::builder(MemoryLog::new()).time_limit(Duration::from_secs(60));
        builder.build().await.unwrap()
    });
    let tx = manager.begin();
    tx.join_branch("v", v.branch()).unwrap().put("row").unwrap();
    runtime.block_on(tx.commit()).unwrap();
    assert_eq!(v.keys(), ["row"]);
}

/// A transaction that began long ago, counted in transactions, aborts, and one rollback is left to recovery: what this process knows
/// to be aborted is rolled back, although the log has forgotten that far back.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_old_transaction_that_aborts_beyond_the_horizon() {
    let data = tempfile::tempdir().unwrap();
    let journal = Journal::default();
    let [a, b] = ["a", "b"].map(|name| MemoryStore::new(name, Capability::TwoPhase, &journal));
    let log = FileLog::options().max_size(48 * 1024).open(data.path().join("log")).await.unwrap();
    let builder = TransactionManager::builder(log).phase_two_wait(Duration::from_millis(50));
    let manager = builder.resource(a.clone()).resource(b.clone()).build().await.unwrap();
    let joined = async |key: &str| {
        let tx = manager.begin();
        for store in [&a, &b] {
            tx.join(store).await.unwrap().put(key).unwrap();
        }
        tx
    };
    let old = joined("old").await;
    for key in 0..400 {
        ended(joined(&key.to_string()).await.commit()).await.unwrap();
    }
    b.fail(Call::Prepare, Fault::Refused);
    a.fail_always(Call::Rollback, Fault::Lost);
    let id = old.id();
    aborted(ended(old.commit()).await);
    a.heal(Call::Rollback);
    // Nobody but this process could tell any more.
    assert!(matches!(log_says(&data, id), unanimous::Known::Hold(unanimous::HoldReason::BeyondHorizon)));
    let doubts = manager.recover().await;
    assert!(doubts.is_empty(), "{doubts:?}");
    assert!(a.prepared().is_empty());
    assert!(!a.keys().contains(&"old".to_owned()));
}

fn log_says(data: &tempfile::TempDir, id: unanimous::TransactionId) -> unanimous::Known {
    unanimous::log::read(data.path().join("log")).unwrap().history().lookup(id)
}

/// A call of phase two that never comes back, of a branch that recovery has finished meanwhile: nobody waits for it at a shutdown.
#[tokio::test(start_paused = true)]
async fn a_call_that_never_comes_back_after_the_hand_over() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    let _hold = a.hold(Call::Commit);
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 1);
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!((a.keys(), b.keys()), (vec!["row".into()], vec!["row".into()]));
    assert!(manager.recover().await.is_empty(), "all is confirmed");
    manager.shutdown(Duration::from_secs(30)).await.unwrap();
}

/// Two names of one store, one of which was down when the manager was built: noticed when it is back.
#[tokio::test(start_paused = true)]
async fn one_store_under_two_names_that_was_down_at_start() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    b.set_identity(a.identity_now().as_str());
    b.set_down(true);
    let (manager, _log) = world.start().await;
    b.set_down(false);
    let doubts = manager.recover().await;
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    assert_eq!((doubts[0].resource.as_str(), &doubts[0].why), ("b", &unanimous::Doubt::SameStore("a".into())));
}
