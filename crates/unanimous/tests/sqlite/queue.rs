//! Writers wait for each other in order, for a bounded time, and nobody who goes away keeps the others waiting.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use unanimous::sqlite::{BeginError, Holder, SqliteOptions};
use unanimous::{Branch, BranchContext, FailureKind, ResourceManager};

use super::{Place, begin, begin_with, id, insert, owner, poll_once, source, within};

#[tokio::test(flavor = "current_thread")]
async fn writers_of_one_process_queue_in_order() {
    let place = Place::new();
    let store = place.open().await;
    let first = begin(&store, 1).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for number in 2..=9_u64 {
        let (store, order) = (store.clone(), Arc::clone(&order));
        waiters.push(tokio::spawn(async move {
            let branch = begin(&store, number).await;
            order.lock().unwrap().push(number);
            insert(&branch, &number.to_string()).await;
            branch.commit_one_phase(&id(owner().transaction(number))).await.unwrap();
        }));
        // On this one thread it runs up to the queue before the next one is spawned.
        tokio::task::yield_now().await;
    }
    assert_eq!(*order.lock().unwrap(), [0; 0]);
    within(first.rollback()).await.unwrap();
    for waiter in waiters {
        within(waiter).await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(place.values(), ["2", "3", "4", "5", "6", "7", "8", "9"]);
}

#[tokio::test]
async fn a_writer_in_the_way_is_a_conflict_after_the_lock_timeout() {
    let place = Place::new();
    let store = place.open().await;
    let first = begin(&store, 1).await;
    let options = SqliteOptions::new().lock_timeout(Duration::from_millis(50));
    let error: BeginError = source(begin_with(&store, 2, options).await, FailureKind::Conflict);
    assert!(matches!(error, BeginError::LockTimeout { by: Holder::ThisProcess, .. }), "{error:?}");
    assert!(first.is_retryable(&error));
    insert(&first, "a").await;
    first.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    assert_eq!(place.values(), ["a"]);
}

#[tokio::test]
async fn another_connection_in_the_way_is_a_conflict_too() {
    let place = Place::new();
    let store = place.open_with(Duration::from_millis(50)).await;
    let stranger = place.stranger();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error: BeginError = source(begin_with(&store, 1, SqliteOptions::new()).await, FailureKind::Conflict);
    assert!(matches!(error, BeginError::LockTimeout { by: Holder::Elsewhere, .. }), "{error:?}");
    // Readers don't care.
    begin_with(&store, 2, SqliteOptions::read_only()).await.unwrap();
    stranger.execute_batch("ROLLBACK").unwrap();
    insert(&begin(&store, 3).await, "a").await;
}

#[tokio::test]
async fn what_comes_free_within_the_lock_timeout_is_had() {
    let place = Place::new();
    let store = place.open().await;
    let stranger = place.stranger();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    let context = BranchContext::new(owner().transaction(1));
    let mut waiting = Box::pin(store.begin(&context, SqliteOptions::new()));
    assert!(poll_once(&mut waiting).await.is_pending());
    stranger.execute_batch("COMMIT").unwrap();
    insert(&within(waiting).await.unwrap(), "a").await;
}

/// It had its turn in the queue and waits for another process: the next in the queue must not wait until it has had
/// enough.
#[tokio::test]
async fn a_join_that_is_dropped_stops_waiting_for_the_other_process_too() {
    let place = Place::new();
    let store = place.open_with(2 * super::PATIENCE).await;
    let stranger = place.stranger();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    let context = BranchContext::new(owner().transaction(1));
    let mut waiting = Box::pin(store.begin(&context, SqliteOptions::new()));
    assert!(poll_once(&mut waiting).await.is_pending());
    drop(waiting);
    within(async {
        loop {
            let options = SqliteOptions::new().lock_timeout(Duration::from_millis(20));
            let error: BeginError = source(begin_with(&store, 2, options).await, FailureKind::Conflict);
            if matches!(error, BeginError::LockTimeout { by: Holder::Elsewhere, .. }) {
                break;
            }
        }
    })
    .await;
}

/// In the queue, on the thread, and with the branch begun but not yet handed over.
#[tokio::test]
async fn a_join_that_is_dropped_at_any_point_gives_everything_back() {
    let place = Place::new();
    let store = place.open().await;
    let context = BranchContext::new(owner().transaction(1));
    // In the queue.
    let first = begin(&store, 1).await;
    let mut queued = Box::pin(store.begin(&context, SqliteOptions::new()));
    assert!(poll_once(&mut queued).await.is_pending());
    drop(queued);
    drop(first);
    // On the thread: it waits for a stranger's lock, with the permit.
    let stranger = place.stranger();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut waiting = Box::pin(store.begin(&context, SqliteOptions::new()));
    assert!(poll_once(&mut waiting).await.is_pending());
    drop(waiting);
    stranger.execute_batch("COMMIT").unwrap();
    // Begun, or about to be: polled once, dropped at a different time in each round.
    for round in 0..100 {
        let mut begun = Box::pin(store.begin(&context, SqliteOptions::new()));
        let polled = poll_once(&mut begun).await;
        for _ in 0..round {
            std::thread::yield_now();
        }
        drop(polled);
        drop(begun);
    }
    let last = begin(&store, 2).await;
    insert(&last, "a").await;
    last.commit_one_phase(&id(owner().transaction(2))).await.unwrap();
    assert_eq!(place.values(), ["a"]);
}

#[tokio::test]
async fn a_branch_that_is_dropped_is_rolled_back_and_the_queue_moves_on() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    insert(&branch, "dropped").await;
    drop(branch);
    let next = begin(&store, 2).await;
    insert(&next, "next").await;
    next.commit_one_phase(&id(owner().transaction(2))).await.unwrap();
    assert_eq!(place.values(), ["next"]);
}

#[tokio::test]
async fn a_branch_that_is_dropped_in_the_middle_of_a_runaway_query_is_rolled_back() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    insert(&branch, "dropped").await;
    let (started, hear) = mpsc::channel();
    let runaway = tokio::spawn(async move {
        branch
            .call(move |conn| {
                started.send(()).unwrap();
                conn.execute_batch(
                    "INSERT INTO t (v) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0",
                )
            })
            .await
    });
    while hear.try_recv().is_err() {
        tokio::task::yield_now().await;
    }
    // Drops the call's future and the branch with it.
    runaway.abort();
    assert!(within(runaway).await.unwrap_err().is_cancelled());
    let next = begin(&store, 2).await;
    insert(&next, "next").await;
    next.commit_one_phase(&id(owner().transaction(2))).await.unwrap();
    assert_eq!(place.values(), ["next"]);
}

#[test]
fn the_end_of_the_runtime_rolls_back_what_is_open() {
    let place = Place::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(place.open());
    let (begun, hear) = mpsc::channel();
    runtime.spawn({
        let store = store.clone();
        async move {
            let branch = begin(&store, 1).await;
            insert(&branch, "lost with the runtime").await;
            begun.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(branch);
        }
    });
    hear.recv_timeout(super::PATIENCE).expect("the branch did not begin");
    drop(runtime);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let next = begin(&store, 2).await;
        insert(&next, "next").await;
        next.commit_one_phase(&id(owner().transaction(2))).await.unwrap();
    });
    assert_eq!(place.values(), ["next"]);
}

#[tokio::test]
async fn many_branches_at_once_lose_nothing() {
    let place = Place::new();
    let store = place.open().await;
    let tasks: Vec<_> = (1..=60_u64)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let reader = begin_with(&store, number, SqliteOptions::read_only()).await.unwrap();
                reader.query("SELECT v FROM t", (), |row| row.get::<_, String>(0)).await.unwrap();
                let branch = begin(&store, number).await;
                insert(&branch, &number.to_string()).await;
                reader.rollback().await.unwrap();
                match number % 3 {
                    0 => branch.rollback().await.unwrap(),
                    1 => drop(branch),
                    _ => branch.commit_one_phase(&id(owner().transaction(number))).await.unwrap(),
                }
            })
        })
        .collect();
    for task in tasks {
        within(task).await.unwrap();
    }
    let mut values: Vec<u64> = place.values().iter().map(|value| value.parse().unwrap()).collect();
    values.sort_unstable();
    assert_eq!(values, (1..=60).filter(|number| number % 3 == 2).collect::<Vec<_>>());
}
