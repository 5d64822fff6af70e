//! The files adapter through its public interface, on real folders.

mod folder;
mod kill;
mod managed;
mod savepoints;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;
use unanimous::files::{Files, FilesBranch, FilesError};
use unanimous::{
    Branch, BranchContext, BranchError, BranchId, Capability, DeciderId, FailureKind, Incarnation, LogId, Owner,
    ResourceManager, StoreError, TransactionId, Work,
};

fn transaction(sequence: u64) -> TransactionId {
    Owner { log: LogId(7), incarnation: Incarnation::new(1, 1) }.transaction(sequence)
}

fn id(sequence: u64) -> BranchId {
    BranchId { transaction: transaction(sequence), decider: DeciderId::Log, number: 0 }
}

async fn branch(files: &Files, sequence: u64) -> FilesBranch {
    files.begin(&BranchContext::new(transaction(sequence)), ()).await.unwrap()
}

async fn store() -> (TempDir, Files) {
    let root = tempfile::tempdir().unwrap();
    let files = Files::open("files", root.path()).await.unwrap();
    (root, files)
}

/// Every file of the application's below a root, with its content.
fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path != root.join(".unanimous") {
                walk(root, &path, found);
            } else if path.is_file() {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, String::from_utf8(fs::read(&path).unwrap()).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

fn entries(root: &Path, part: &str) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(root.join(".unanimous").join(part))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn assert_tree(root: &Path, expected: &[(&str, &str)]) {
    let expected = expected.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect();
    assert_eq!(tree(root), expected);
}

/// Nothing of any transaction is left in the store's own folder.
fn assert_clean(root: &Path) {
    assert_eq!(entries(root, "stage"), Vec::<String>::new());
    assert_eq!(entries(root, "prepared"), Vec::<String>::new());
}

/// The error and its sources as a person sees them.
fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

#[track_caller]
fn refused(result: Result<(), BranchError>, kind: FailureKind, says: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", text(&error));
    assert!(text(&error).contains(says), "{}", text(&error));
}

#[track_caller]
fn down<T: std::fmt::Debug>(result: Result<T, StoreError>, says: &str) {
    let error = result.unwrap_err();
    assert!(text(&error).contains(says), "{}", text(&error));
}

#[tokio::test]
async fn nothing_is_seen_before_commit_and_everything_after() {
    let (root, files) = store().await;
    fs::write(root.path().join("old"), "1").unwrap();
    fs::write(root.path().join("gone"), "2").unwrap();
    let branch = branch(&files, 1).await;
    branch.create("receipts/deep/7.json", "seven").await.unwrap();
    branch.replace("old", "new").await.unwrap();
    branch.replace("fresh", "").await.unwrap();
    branch.delete("gone").await.unwrap();
    assert_eq!(branch.capability(), Capability::TwoPhase);
    assert_eq!(branch.flush().await.unwrap(), Work::Wrote);
    assert_tree(root.path(), &[("old", "1"), ("gone", "2")]);
    branch.prepare(&id(1)).await.unwrap();
    assert_tree(root.path(), &[("old", "1"), ("gone", "2")]);
    assert_eq!(files.in_doubt().await.unwrap(), [id(1)]);
    branch.commit().await.unwrap();
    assert_tree(root.path(), &[("old", "new"), ("fresh", ""), ("receipts/deep/7.json", "seven")]);
    assert_eq!(files.in_doubt().await.unwrap(), []);
    assert_clean(root.path());
    branch.commit().await.unwrap();
    files.commit(&id(1)).await.unwrap();
    assert_tree(root.path(), &[("old", "new"), ("fresh", ""), ("receipts/deep/7.json", "seven")]);
}

#[tokio::test]
async fn rollback_leaves_the_old_files_whether_prepared_or_not() {
    let (root, files) = store().await;
    fs::write(root.path().join("old"), "1").unwrap();
    for prepared in [false, true] {
        let branch = branch(&files, 1).await;
        branch.create("new", "x").await.unwrap();
        branch.delete("old").await.unwrap();
        if prepared {
            branch.prepare(&id(1)).await.unwrap();
        }
        branch.rollback().await.unwrap();
        branch.rollback().await.unwrap();
        files.rollback(&id(1)).await.unwrap();
        assert_eq!(files.in_doubt().await.unwrap(), []);
        assert_tree(root.path(), &[("old", "1")]);
        assert_clean(root.path());
        refused(branch.commit().await, FailureKind::Refused, "has not prepared");
    }
}

#[tokio::test]
async fn recovery_commits_or_rolls_back_from_the_manifest_alone() {
    let (root, files) = store().await;
    fs::write(root.path().join("old"), "1").unwrap();
    for (sequence, path) in [(1, "a"), (2, "b")] {
        let branch = branch(&files, sequence).await;
        branch.create(path, path).await.unwrap();
        branch.replace("last-".to_owned() + path, path).await.unwrap();
        branch.prepare(&id(sequence)).await.unwrap();
    }
    let again = Files::open_existing("files", root.path()).await.unwrap();
    assert_eq!(again.in_doubt().await.unwrap(), [id(1), id(2)]);
    again.commit(&id(1)).await.unwrap();
    again.rollback(&id(2)).await.unwrap();
    assert_eq!(again.in_doubt().await.unwrap(), []);
    assert_tree(root.path(), &[("a", "a"), ("last-a", "a"), ("old", "1")]);
    assert_clean(root.path());
}

#[tokio::test]
async fn many_may_finish_one_branch_at_the_same_time() {
    let (root, files) = store().await;
    for sequence in 1..=20 {
        let branch = branch(&files, sequence).await;
        branch.replace("a", format!("{sequence}")).await.unwrap();
        branch.create(format!("n{sequence}"), "x").await.unwrap();
        branch.prepare(&id(sequence)).await.unwrap();
        let other = Files::open_existing("files", root.path()).await.unwrap();
        let (first, second, third) = (id(sequence), id(sequence), id(sequence));
        let (a, b, c, d) =
            tokio::join!(branch.commit(), files.commit(&first), other.commit(&second), other.commit(&third));
        for result in [a, b, c, d] {
            result.unwrap();
        }
        assert_eq!(fs::read_to_string(root.path().join("a")).unwrap(), sequence.to_string());
        assert_clean(root.path());
    }
}

#[tokio::test]
async fn the_last_operation_on_a_path_wins() {
    let (root, files) = store().await;
    for path in ["replaced", "deleted", "back", "rewritten"] {
        fs::write(root.path().join(path), "old").unwrap();
    }
    let branch = branch(&files, 1).await;
    branch.create("nothing", "x").await.unwrap();
    branch.delete("nothing").await.unwrap();
    branch.create("created", "1").await.unwrap();
    branch.replace("created", "2").await.unwrap();
    branch.replace("never", "1").await.unwrap();
    branch.delete("never").await.unwrap();
    branch.replace("replaced", "1").await.unwrap();
    branch.replace("replaced", "2").await.unwrap();
    branch.replace("deleted", "1").await.unwrap();
    branch.delete("deleted").await.unwrap();
    branch.delete("back").await.unwrap();
    branch.create("back", "new").await.unwrap();
    branch.delete("rewritten").await.unwrap();
    branch.replace("rewritten", "new").await.unwrap();
    // What is wrong changes nothing.
    assert!(matches!(branch.create("created", "3").await, Err(FilesError::Exists { .. })));
    assert!(matches!(branch.create("replaced", "3").await, Err(FilesError::Exists { .. })));
    assert!(matches!(branch.delete("deleted").await, Err(FilesError::Missing { .. })));
    assert!(matches!(branch.delete("nothing").await, Err(FilesError::Missing { .. })));
    branch.prepare(&id(1)).await.unwrap();
    branch.commit().await.unwrap();
    assert_tree(root.path(), &[("created", "2"), ("replaced", "2"), ("back", "new"), ("rewritten", "new")]);
}

#[tokio::test]
async fn a_transaction_reads_its_own_writes() {
    let (root, files) = store().await;
    fs::write(root.path().join("old"), "1").unwrap();
    let branch = branch(&files, 1).await;
    assert_eq!(branch.read("old").await.unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(branch.read("new").await.unwrap(), None);
    assert_eq!(branch.read("no/folder/here").await.unwrap(), None);
    assert!(!branch.exists("new").await.unwrap());
    branch.create("new", "2").await.unwrap();
    branch.delete("old").await.unwrap();
    assert_eq!(branch.read("old").await.unwrap(), None);
    assert!(!branch.exists("old").await.unwrap());
    assert_eq!(branch.read("new").await.unwrap().as_deref(), Some(&b"2"[..]));
    assert!(branch.exists("new").await.unwrap());
    branch.rollback().await.unwrap();
}

#[tokio::test]
async fn reading_only_is_read_only_and_ends_without_a_trace() {
    let (root, files) = store().await;
    let branch = branch(&files, 1).await;
    branch.exists("x").await.unwrap();
    assert_eq!(branch.flush().await.unwrap(), Work::ReadOnly);
    branch.commit_one_phase(&id(1)).await.unwrap();
    assert_clean(root.path());
    assert!(matches!(branch.exists("x").await, Err(FilesError::Ended { .. })));
}

#[tokio::test]
async fn one_phase_commits_one_file_or_several() {
    let (root, files) = store().await;
    fs::write(root.path().join("old"), "1").unwrap();
    for (sequence, paths) in [(1, &["a"][..]), (2, &["b", "c"][..])] {
        let branch = branch(&files, sequence).await;
        for path in paths {
            branch.create(path, "x").await.unwrap();
        }
        branch.commit_one_phase(&id(sequence)).await.unwrap();
        assert_clean(root.path());
        assert!(matches!(branch.create("late", "x").await, Err(FilesError::Ended { .. })));
        refused(branch.rollback().await, FailureKind::Refused, "has committed");
    }
    let last = branch(&files, 3).await;
    last.delete("old").await.unwrap();
    last.commit_one_phase(&id(3)).await.unwrap();
    let last = branch(&files, 4).await;
    last.replace("a", "y").await.unwrap();
    last.commit_one_phase(&id(4)).await.unwrap();
    assert_tree(root.path(), &[("a", "y"), ("b", "x"), ("c", "x")]);
    assert_clean(root.path());
}

#[tokio::test]
async fn claims_are_conflicts_until_phase_two_has_ended() {
    let (root, files) = store().await;
    let other = Files::open_existing("files", root.path()).await.unwrap();
    let first = branch(&files, 1).await;
    first.create("a/b", "1").await.unwrap();
    first.prepare(&id(1)).await.unwrap();
    // The same path, a folder of it, and a file below it; prepared and in one phase.
    for (sequence, path) in [(2, "a/b"), (3, "a"), (4, "a/b/c")] {
        for one_phase in [false, true] {
            let branch = branch(&other, sequence).await;
            // The empty folder that was made for the claim is no obstacle of its own.
            let _ = fs::remove_dir(root.path().join("a"));
            branch.replace(path, "2").await.unwrap();
            let result = if one_phase {
                branch.commit_one_phase(&id(sequence)).await
            } else {
                branch.prepare(&id(sequence)).await
            };
            let error = result.unwrap_err();
            assert_eq!(error.kind(), FailureKind::Conflict, "{}", text(&error));
            assert!(text(&error).contains(&id(1).to_string()), "{}", text(&error));
            assert!(branch.is_retryable(&error));
            branch.rollback().await.unwrap();
            assert_eq!(entries(root.path(), "stage").len(), 1, "only the claim's own content");
        }
    }
    let beside = branch(&other, 5).await;
    beside.create("a/c", "3").await.unwrap();
    beside.prepare(&id(5)).await.unwrap();
    beside.commit().await.unwrap();
    first.commit().await.unwrap();
    let after = branch(&other, 6).await;
    after.replace("a/b", "4").await.unwrap();
    after.prepare(&id(6)).await.unwrap();
    after.commit().await.unwrap();
    assert_tree(root.path(), &[("a/b", "4"), ("a/c", "3")]);
}

#[tokio::test]
async fn must_not_exist_and_must_exist_are_looked_at_again_at_prepare() {
    let (root, files) = store().await;
    fs::write(root.path().join("old"), "1").unwrap();
    let made = branch(&files, 1).await;
    made.create("new", "mine").await.unwrap();
    let gone = branch(&files, 2).await;
    gone.delete("old").await.unwrap();
    let blocked = branch(&files, 3).await;
    blocked.replace("blocked", "x").await.unwrap();
    fs::write(root.path().join("new"), "theirs").unwrap();
    fs::remove_file(root.path().join("old")).unwrap();
    fs::create_dir(root.path().join("blocked")).unwrap();
    refused(made.prepare(&id(1)).await, FailureKind::Refused, "exists already");
    refused(gone.prepare(&id(2)).await, FailureKind::Refused, "does not exist");
    refused(blocked.prepare(&id(3)).await, FailureKind::Refused, "is a folder");
    assert_tree(root.path(), &[("new", "theirs")]);
    assert_clean(root.path());
    for branch in [made, gone, blocked] {
        branch.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn a_stale_read_is_a_conflict_and_no_update_is_lost() {
    let (root, files) = store().await;
    fs::write(root.path().join("count"), "1").unwrap();
    let (first, second) = (branch(&files, 1).await, branch(&files, 2).await);
    for branch in [&first, &second] {
        assert_eq!(branch.read("count").await.unwrap().as_deref(), Some(&b"1"[..]));
        assert!(!branch.exists("new").await.unwrap());
    }
    first.replace("count", "2").await.unwrap();
    first.commit_one_phase(&id(1)).await.unwrap();
    second.replace("count", "2").await.unwrap();
    refused(second.prepare(&id(2)).await, FailureKind::Conflict, "since this transaction read it");
    let third = branch(&files, 3).await;
    assert!(!third.exists("new").await.unwrap());
    let fourth = branch(&files, 4).await;
    fourth.create("new", "4").await.unwrap();
    fourth.commit_one_phase(&id(4)).await.unwrap();
    third.replace("new", "3").await.unwrap();
    refused(third.commit_one_phase(&id(3)).await, FailureKind::Conflict, "since this transaction read it");
    // Who has looked before it creates or deletes is told of a conflict, not of what it already asked.
    let (creates, deletes) = (branch(&files, 5).await, branch(&files, 6).await);
    assert!(!creates.exists("made").await.unwrap());
    creates.create("made", "5").await.unwrap();
    assert!(deletes.exists("new").await.unwrap());
    deletes.delete("new").await.unwrap();
    fs::write(root.path().join("made"), "theirs").unwrap();
    fs::remove_file(root.path().join("new")).unwrap();
    refused(creates.prepare(&id(5)).await, FailureKind::Conflict, "since this transaction read it");
    refused(deletes.prepare(&id(6)).await, FailureKind::Conflict, "since this transaction read it");
    assert_tree(root.path(), &[("count", "2"), ("made", "theirs")]);
    assert_clean(root.path());
}

#[tokio::test]
async fn a_create_never_overwrites_what_came_after_the_promise() {
    let (root, files) = store().await;
    let branch = branch(&files, 1).await;
    branch.create("a", "mine").await.unwrap();
    branch.create("b", "mine too").await.unwrap();
    branch.prepare(&id(1)).await.unwrap();
    fs::write(root.path().join("b"), "theirs").unwrap();
    refused(branch.commit().await, FailureKind::Refused, "move that file away");
    refused(files.commit(&id(1)).await, FailureKind::Refused, "move that file away");
    assert_eq!(files.in_doubt().await.unwrap(), [id(1)]);
    assert_eq!(fs::read_to_string(root.path().join("b")).unwrap(), "theirs");
    fs::rename(root.path().join("b"), root.path().join("aside")).unwrap();
    files.commit(&id(1)).await.unwrap();
    branch.commit().await.unwrap();
    assert_tree(root.path(), &[("a", "mine"), ("aside", "theirs"), ("b", "mine too")]);
    assert_clean(root.path());
}

#[tokio::test]
async fn a_folder_removed_after_the_promise_is_made_again() {
    let (root, files) = store().await;
    let branch = branch(&files, 1).await;
    branch.create("a/b/c", "x").await.unwrap();
    branch.replace("d/e", "y").await.unwrap();
    branch.prepare(&id(1)).await.unwrap();
    assert!(root.path().join("a/b").is_dir(), "folders are made before the vote");
    fs::remove_dir_all(root.path().join("a")).unwrap();
    fs::remove_dir_all(root.path().join("d")).unwrap();
    branch.commit().await.unwrap();
    assert_tree(root.path(), &[("a/b/c", "x"), ("d/e", "y")]);
}

#[tokio::test]
async fn lost_or_changed_prepared_content_is_reported_and_never_used() {
    let (root, files) = store().await;
    let content = |sequence: u64, suffix: &str| {
        let text =
            fs::read_to_string(root.path().join(format!(".unanimous/prepared/{}.prepared", id(sequence)))).unwrap();
        let token = text.lines().find_map(|line| line.strip_prefix("stage ")).unwrap().to_owned();
        root.path().join(".unanimous/stage").join(token + suffix)
    };
    fs::write(root.path().join("old"), "1").unwrap();
    let branch = branch(&files, 1).await;
    branch.replace("old", "promised").await.unwrap();
    branch.prepare(&id(1)).await.unwrap();
    let staged = content(1, ".0");
    fs::write(&staged, "PROMISED").unwrap();
    refused(files.commit(&id(1)).await, FailureKind::Refused, "not what was promised");
    fs::remove_file(&staged).unwrap();
    refused(files.commit(&id(1)).await, FailureKind::Refused, "can't be completed");
    assert_tree(root.path(), &[("old", "1")]);
    assert_eq!(files.in_doubt().await.unwrap(), [id(1)]);
    fs::write(&staged, "promised").unwrap();
    files.commit(&id(1)).await.unwrap();
    assert_tree(root.path(), &[("old", "promised")]);
}

#[tokio::test]
async fn a_branch_after_its_prepare_or_end_refuses_work() {
    let (root, files) = store().await;
    let branch = branch(&files, 1).await;
    branch.create("a", "1").await.unwrap();
    branch.prepare(&id(1)).await.unwrap();
    for ended in [false, true] {
        for error in [
            branch.create("b", "x").await.unwrap_err(),
            branch.replace("b", "x").await.unwrap_err(),
            branch.delete("a").await.unwrap_err(),
            branch.read("a").await.unwrap_err(),
            branch.exists("a").await.unwrap_err(),
        ] {
            assert!(matches!(error, FilesError::Ended { .. }), "{error}");
        }
        refused(branch.prepare(&id(2)).await, FailureKind::Refused, "can't be used any more");
        refused(branch.commit_one_phase(&id(2)).await, FailureKind::Refused, "can't be used any more");
        if !ended {
            branch.commit().await.unwrap();
        }
    }
    refused(branch.rollback().await, FailureKind::Refused, "has committed");
    assert_tree(root.path(), &[("a", "1")]);
    assert_clean(root.path());
}

#[tokio::test]
async fn one_id_is_prepared_once() {
    let (root, files) = store().await;
    let (first, second) = (branch(&files, 1).await, branch(&files, 1).await);
    first.create("a", "1").await.unwrap();
    second.create("b", "2").await.unwrap();
    first.prepare(&id(1)).await.unwrap();
    refused(second.prepare(&id(1)).await, FailureKind::Refused, "prepared already");
    second.rollback().await.unwrap();
    assert_eq!(files.in_doubt().await.unwrap(), [id(1)], "the refused one must not take the first one's promise back");
    first.commit().await.unwrap();
    assert_tree(root.path(), &[("a", "1")]);
}

#[tokio::test]
async fn a_dropped_branch_leaves_nothing_unless_it_has_prepared() {
    let (root, files) = store().await;
    let dropped = branch(&files, 1).await;
    dropped.create("a", "1").await.unwrap();
    drop(dropped);
    assert_clean(root.path());
    let prepared = branch(&files, 2).await;
    prepared.create("a", "1").await.unwrap();
    prepared.prepare(&id(2)).await.unwrap();
    drop(prepared);
    assert_eq!(files.in_doubt().await.unwrap(), [id(2)]);
    files.commit(&id(2)).await.unwrap();
    assert_tree(root.path(), &[("a", "1")]);
}

#[tokio::test]
async fn a_dropped_prepare_ends_before_the_rollback_that_follows() {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};
    let (root, files) = store().await;
    for sequence in 1..=30 {
        let branch = branch(&files, sequence).await;
        branch.create("a", vec![1; 100_000]).await.unwrap();
        branch.create("b", "x").await.unwrap();
        {
            let of = id(sequence);
            let mut prepare = Box::pin(branch.prepare(&of));
            let polled = prepare.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Pending));
        }
        branch.rollback().await.unwrap();
        assert_eq!(files.in_doubt().await.unwrap(), []);
        assert_clean(root.path());
    }
    assert_tree(root.path(), &[]);
}

#[tokio::test]
async fn parallel_transactions_each_commit_whole_or_conflict() {
    let (root, files) = store().await;
    let mut tasks = Vec::new();
    for task in 0..8u64 {
        let files = files.clone();
        tasks.push(tokio::spawn(async move {
            let mut committed = Vec::new();
            for round in 0..10u64 {
                let sequence = task * 100 + round + 1;
                let branch = branch(&files, sequence).await;
                branch.replace("shared", format!("{sequence}")).await.unwrap();
                branch.create(format!("own/{sequence}"), format!("{sequence}")).await.unwrap();
                match branch.prepare(&id(sequence)).await {
                    Ok(()) => {
                        branch.commit().await.unwrap();
                        committed.push(sequence);
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), FailureKind::Conflict, "{}", text(&error));
                        branch.rollback().await.unwrap();
                    }
                }
            }
            committed
        }));
    }
    let mut committed = Vec::new();
    for task in tasks {
        committed.extend(task.await.unwrap());
    }
    let mut found = tree(root.path());
    let shared: u64 = found.remove("shared").unwrap().parse().unwrap();
    assert!(committed.contains(&shared));
    committed.sort_by_key(|sequence| format!("own/{sequence}"));
    let expected: Vec<_> = committed.iter().map(|sequence| (format!("own/{sequence}"), sequence.to_string())).collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
    assert_clean(root.path());
}

#[test]
fn without_a_runtime_the_error_says_so() {
    let root = tempfile::tempdir().unwrap();
    let files = Files::new("files", root.path());
    let mut identity = Box::pin(files.identity());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::future::Future::poll(identity.as_mut(), &mut context) {
        std::task::Poll::Ready(result) => down(result, "tokio runtime"),
        std::task::Poll::Pending => panic!("it waits for a runtime that is not there"),
    }
}
