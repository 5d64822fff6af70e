//! Savepoints over what is pending in a folder.

use std::fs;

use unanimous::log::MemoryLog;
use unanimous::{Branch, FailureKind, SavepointId, TransactionManager, Work};

use super::{assert_clean, assert_tree, branch, id, refused, store};

/// Creates, replaces and deletes since are as if they had not been, nested and repeated; the folder has not seen any of it.
#[tokio::test]
async fn what_was_pending_at_the_savepoint_is_pending_again() {
    let (root, files) = store().await;
    fs::write(root.path().join("old"), "old").unwrap();
    let manager = TransactionManager::builder(MemoryLog::new()).resource(files.clone()).build().await.unwrap();
    let tx = manager.begin();
    let folder = tx.join(&files).await.unwrap();
    folder.create("kept", "kept").await.unwrap();
    let outer = tx.savepoint().await.unwrap();
    folder.replace("kept", "overwritten").await.unwrap();
    folder.delete("old").await.unwrap();
    let inner = tx.savepoint().await.unwrap();
    folder.create("old", "new").await.unwrap();
    folder.create("undone/deep", "x").await.unwrap();
    inner.rollback().await.unwrap();
    assert_eq!(folder.read("old").await.unwrap(), None);
    assert_eq!(folder.read("kept").await.unwrap().as_deref(), Some(&b"overwritten"[..]));
    outer.rollback().await.unwrap();
    assert_eq!(folder.read("old").await.unwrap().as_deref(), Some(&b"old"[..]));
    folder.create("undone", "it never was a folder").await.unwrap();
    outer.rollback().await.unwrap();
    folder.create("after", "after").await.unwrap();
    drop(folder);
    tx.commit().await.unwrap();
    assert_tree(root.path(), &[("after", "after"), ("kept", "kept"), ("old", "old")]);
    assert_clean(root.path());
}

/// All undone is nothing written.
#[tokio::test]
async fn a_folder_whose_work_is_undone_has_written_nothing() {
    let (root, files) = store().await;
    let folder = branch(&files, 1).await;
    folder.savepoint(SavepointId(1)).await.unwrap();
    folder.create("undone", "x").await.unwrap();
    folder.rollback_to(SavepointId(1)).await.unwrap();
    assert_eq!(folder.flush().await.unwrap(), Work::ReadOnly);
    folder.rollback().await.unwrap();
    assert_tree(root.path(), &[]);
}

/// What was read since was read: a write that rests on it is still refused where another has changed the file.
#[tokio::test]
async fn a_stale_read_stays_a_conflict_over_a_rollback() {
    let (root, files) = store().await;
    fs::write(root.path().join("counter"), "1").unwrap();
    let folder = branch(&files, 1).await;
    folder.savepoint(SavepointId(1)).await.unwrap();
    folder.read("counter").await.unwrap();
    folder.rollback_to(SavepointId(1)).await.unwrap();
    fs::write(root.path().join("counter"), "theirs").unwrap();
    folder.replace("counter", "2").await.unwrap();
    refused(folder.prepare(&id(1)).await, FailureKind::Conflict, "was changed since");
    folder.rollback().await.unwrap();
    assert_tree(root.path(), &[("counter", "theirs")]);
}

/// Savepoints that are not there, and those of a branch that has prepared or ended, are refused and change nothing.
#[tokio::test]
async fn savepoints_out_of_place_are_refused() {
    let (root, files) = store().await;
    let folder = branch(&files, 1).await;
    for number in [1, 2] {
        folder.savepoint(SavepointId(number)).await.unwrap();
        folder.create(format!("file-{number}"), "x").await.unwrap();
    }
    folder.rollback_to(SavepointId(1)).await.unwrap();
    refused(folder.rollback_to(SavepointId(2)).await, FailureKind::Refused, "no savepoint 2");
    folder.create("kept", "x").await.unwrap();
    folder.prepare(&id(1)).await.unwrap();
    refused(folder.savepoint(SavepointId(3)).await, FailureKind::Refused, "has prepared");
    refused(folder.rollback_to(SavepointId(1)).await, FailureKind::Refused, "has prepared");
    folder.commit().await.unwrap();
    refused(folder.rollback_to(SavepointId(1)).await, FailureKind::Refused, "has committed");
    assert_tree(root.path(), &[("kept", "x")]);
    assert_clean(root.path());
}
