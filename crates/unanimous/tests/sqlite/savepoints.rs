//! Savepoints in real databases, beside the work's own, and what each leaves in the file.

use unanimous::log::MemoryLog;
use unanimous::sqlite::{Broken, SqliteError, SqliteOptions};
use unanimous::{Branch, FailureKind, SavepointError, SavepointId, TransactionManager, Work};

use super::{Place, begin, begin_with, insert, source, within};

async fn managed(place: &Place) -> (TransactionManager, unanimous::sqlite::Sqlite) {
    let store = place.open().await;
    let manager = TransactionManager::builder(MemoryLog::new()).resource(store.clone()).build().await.unwrap();
    (manager, store)
}

/// Through a transaction: nested, repeated, with a table that was made since.
#[tokio::test]
async fn what_was_done_since_is_undone() {
    let place = Place::new();
    let (manager, store) = managed(&place).await;
    let tx = manager.begin();
    let branch = tx.join(&store).await.unwrap();
    insert(&branch, "before").await;
    let outer = within(tx.savepoint()).await.unwrap();
    insert(&branch, "undone").await;
    branch.execute_batch("CREATE TABLE gone (x)").await.unwrap();
    let inner = within(tx.savepoint()).await.unwrap();
    branch.execute("DELETE FROM t", ()).await.unwrap();
    within(inner.rollback()).await.unwrap();
    let rows: Vec<String> = branch.query("SELECT v FROM t ORDER BY id", (), |row| row.get(0)).await.unwrap();
    assert_eq!(rows, ["before", "undone"]);
    within(outer.rollback()).await.unwrap();
    assert!(!inner.is_valid());
    insert(&branch, "again").await;
    within(outer.rollback()).await.unwrap();
    insert(&branch, "after").await;
    drop(branch);
    within(tx.commit()).await.unwrap();
    assert_eq!(place.values(), ["before", "after"]);
    let tables: i64 = place
        .stranger()
        .query_row("SELECT count(*) FROM sqlite_master WHERE name = 'gone'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(tables, 0);
}

/// A branch that has joined since leaves, its guard is dead, and the database's lock is free.
#[tokio::test]
async fn a_branch_that_joined_since_gives_up_its_lock() {
    let place = Place::new();
    let (manager, store) = managed(&place).await;
    let tx = manager.begin();
    let savepoint = within(tx.savepoint()).await.unwrap();
    let branch = tx.join(&store).await.unwrap();
    insert(&branch, "undone").await;
    within(savepoint.rollback()).await.unwrap();
    let error = within(branch.execute("INSERT INTO t (v) VALUES ('dead')", ())).await.unwrap_err();
    assert!(matches!(error, SqliteError::Ended { .. }), "{error:?}");
    drop(branch);
    place.stranger().execute("INSERT INTO t (v) VALUES ('stranger')", []).expect("nobody holds the lock");
    insert(&tx.join(&store).await.unwrap(), "anew").await;
    within(tx.commit()).await.unwrap();
    assert_eq!(place.values(), ["stranger", "anew"]);
}

/// The work's own savepoints inside and around ours go on working.
#[tokio::test]
async fn the_works_own_savepoints_go_on_beside_ours() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    branch.execute_batch("SAVEPOINT mine; INSERT INTO t (v) VALUES ('mine')").await.unwrap();
    within(branch.savepoint(SavepointId(1))).await.unwrap();
    branch
        .execute_batch(
            "SAVEPOINT inside; INSERT INTO t (v) VALUES ('inside'); ROLLBACK TO inside; RELEASE inside;
             INSERT INTO t (v) VALUES ('since'); SAVEPOINT left_open",
        )
        .await
        .unwrap();
    within(branch.rollback_to(SavepointId(1))).await.unwrap();
    insert(&branch, "after").await;
    assert_eq!(within(branch.flush()).await.unwrap(), Work::Wrote);
    within(branch.commit_one_phase(&super::id(super::owner().transaction(1)))).await.unwrap();
    assert_eq!(place.values(), ["mine", "after"]);
}

/// The work takes our savepoint away with an older one of its own: the rollback fails, and the branch can't commit any more.
#[tokio::test]
async fn a_savepoint_that_the_work_has_taken_away_breaks_the_branch() {
    for takes_away in ["RELEASE mine", "ROLLBACK TO mine"] {
        let place = Place::new();
        let (manager, store) = managed(&place).await;
        let tx = manager.begin();
        let branch = tx.join(&store).await.unwrap();
        branch.execute_batch("SAVEPOINT mine").await.unwrap();
        let savepoint = within(tx.savepoint()).await.unwrap();
        insert(&branch, "row").await;
        branch.execute_batch(takes_away).await.unwrap();
        let error = within(savepoint.rollback()).await.unwrap_err();
        assert!(matches!(&error, SavepointError::Store { resource, .. } if resource == "work"), "{error:?}");
        let error = within(branch.execute("INSERT INTO t (v) VALUES ('late')", ())).await.unwrap_err();
        let SqliteError::Broken { why: Broken::SavepointFailed { .. }, .. } = &error else { panic!("{error:?}") };
        drop(branch);
        within(tx.commit()).await.unwrap_err();
        assert!(place.values().is_empty(), "{takes_away}");
    }
}

/// The names of our savepoints are out of the work's reach, in any case.
#[tokio::test]
async fn our_savepoints_names_are_forbidden_to_the_work() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    within(branch.savepoint(SavepointId(1))).await.unwrap();
    insert(&branch, "undone").await;
    for sql in [
        "SAVEPOINT unanimous_savepoint_1",
        "SAVEPOINT Unanimous_Savepoint_1",
        "RELEASE unanimous_savepoint_1",
        "ROLLBACK TO UNANIMOUS_SAVEPOINT_1",
    ] {
        let error = within(branch.execute_batch(sql)).await.unwrap_err();
        assert!(matches!(error, SqliteError::Forbidden { .. }), "{sql}: {error:?}");
    }
    within(branch.rollback_to(SavepointId(1))).await.unwrap();
    within(branch.flush()).await.unwrap();
    within(branch.commit_one_phase(&super::id(super::owner().transaction(1)))).await.unwrap();
    assert!(place.values().is_empty());
}

/// The guard still holds after a rollback: the work can't end the transaction, and what it leaves open is no harm to the next branch.
#[tokio::test]
async fn the_guard_holds_after_a_rollback() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    within(branch.savepoint(SavepointId(1))).await.unwrap();
    insert(&branch, "undone").await;
    within(branch.rollback_to(SavepointId(1))).await.unwrap();
    let error = within(branch.execute_batch("COMMIT")).await.unwrap_err();
    assert!(matches!(error, SqliteError::Broken { .. }), "{error:?}");
    let error: SqliteError = source(within(branch.savepoint(SavepointId(2))).await, FailureKind::Refused);
    assert!(matches!(error, SqliteError::Broken { .. }), "{error:?}");
    within(branch.rollback()).await.unwrap();
    let error: SqliteError = source(within(branch.rollback_to(SavepointId(1))).await, FailureKind::Refused);
    assert!(matches!(error, SqliteError::Ended { .. }), "{error:?}");
    // Nothing of it is left for the next one on the same connection.
    let next = begin(&store, 2).await;
    let error: SqliteError = source(within(next.rollback_to(SavepointId(1))).await, FailureKind::Refused);
    assert!(matches!(error, SqliteError::Broken { .. }), "{error:?}");
    within(next.rollback()).await.unwrap();
}

/// Who has undone all that it did has written nothing; what was there at the savepoint counts again.
#[tokio::test]
async fn what_was_undone_is_not_counted_as_written() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    within(branch.savepoint(SavepointId(1))).await.unwrap();
    insert(&branch, "undone").await;
    within(branch.rollback_to(SavepointId(1))).await.unwrap();
    assert_eq!(within(branch.flush()).await.unwrap(), Work::ReadOnly);
    // A flushed branch's vote must stay true.
    source::<SqliteError>(within(branch.savepoint(SavepointId(2))).await, FailureKind::Refused);
    source::<SqliteError>(within(branch.rollback_to(SavepointId(1))).await, FailureKind::Refused);
    within(branch.rollback()).await.unwrap();

    let branch = begin(&store, 2).await;
    insert(&branch, "kept").await;
    within(branch.savepoint(SavepointId(1))).await.unwrap();
    insert(&branch, "undone").await;
    within(branch.rollback_to(SavepointId(1))).await.unwrap();
    assert_eq!(within(branch.flush()).await.unwrap(), Work::Wrote);
    within(branch.commit_one_phase(&super::id(super::owner().transaction(2)))).await.unwrap();
    assert_eq!(place.values(), ["kept"]);

    let reader = begin_with(&store, 3, SqliteOptions::read_only()).await.unwrap();
    within(reader.savepoint(SavepointId(1))).await.unwrap();
    within(reader.rollback_to(SavepointId(1))).await.unwrap();
    assert_eq!(within(reader.flush()).await.unwrap(), Work::ReadOnly);
    within(reader.rollback()).await.unwrap();
}
