//! The files adapter through its public interface, on real folders.

mod kill;
mod managed;

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
async fn paths_that_lead_out_are_refused_and_nothing_is_lost() {
    let (root, files) = store().await;
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    fs::create_dir(root.path().join("real")).unwrap();
    fs::write(root.path().join("real/file"), "f").unwrap();
    symlink(outside.path(), root.path().join("out")).unwrap();
    symlink("real", root.path().join("in")).unwrap();
    symlink(outside.path().join("secret"), root.path().join("link")).unwrap();
    symlink("nowhere", root.path().join("dangling")).unwrap();
    let branch = branch(&files, 1).await;
    branch.create("kept", "k").await.unwrap();
    for (path, says) in [
        ("", "is empty"),
        ("../x", ".."),
        ("real/../../x", ".."),
        ("/etc/x", "absolute"),
        (".unanimous/identity", "own files"),
        ("out/secret", "symbolic link"),
        ("out/new", "symbolic link"),
        ("in/file", "symbolic link"),
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("real", "a folder"),
        ("real/file/x", "a file, not a folder"),
        ("kept/x", "same transaction"),
    ] {
        let errors = [
            branch.create(path, "x").await.unwrap_err(),
            branch.replace(path, "x").await.unwrap_err(),
            branch.delete(path).await.unwrap_err(),
        ];
        for error in errors {
            assert!(text(&error).contains(says), "{path}: {}", text(&error));
        }
        if path != "kept/x" {
            assert!(text(&branch.read(path).await.unwrap_err()).contains(says), "{path}");
        }
    }
    let long = "n".repeat(256);
    assert!(text(&branch.create(&long, "x").await.unwrap_err()).contains("255 bytes"));
    branch.prepare(&id(1)).await.unwrap();
    branch.commit().await.unwrap();
    assert_eq!(fs::read_to_string(root.path().join("kept")).unwrap(), "k");
    assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "s");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn odd_names_and_contents_survive_recovery() {
    let (root, files) = store().await;
    let long = "ü".repeat(127);
    let names = ["line\nbreak", "100%", "a b", "-rf", "%0A", "\u{1b}[31m", ".hidden", "deep/.unanimous", &long];
    let content: Vec<u8> = (0..300_000u32).map(|byte| (byte % 251) as u8).collect();
    let branch = branch(&files, 1).await;
    for name in names {
        branch.create(name, content.clone()).await.unwrap();
    }
    branch.prepare(&id(1)).await.unwrap();
    drop(branch);
    files.commit(&id(1)).await.unwrap();
    for name in names {
        assert_eq!(fs::read(root.path().join(name)).unwrap(), content, "{name:?}");
    }
    assert_clean(root.path());
}

#[tokio::test]
async fn a_replaced_file_keeps_its_permissions_and_a_new_one_gets_the_umask() {
    let (root, files) = store().await;
    for (name, mode) in [("secret", 0o600), ("script", 0o750)] {
        fs::write(root.path().join(name), "1").unwrap();
        fs::set_permissions(root.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(root.path().join("plain"), "1").unwrap();
    for (sequence, one_phase) in [(1, false), (2, true)] {
        let branch = branch(&files, sequence).await;
        for name in ["secret", "script", "new"] {
            branch.replace(name, format!("{sequence}")).await.unwrap();
        }
        if one_phase {
            branch.commit_one_phase(&id(sequence)).await.unwrap();
        } else {
            branch.prepare(&id(sequence)).await.unwrap();
            branch.commit().await.unwrap();
        }
        let mode = |name: &str| fs::metadata(root.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("secret"), mode("script"), mode("new")), (0o600, 0o750, mode("plain")));
    }
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
async fn the_identity_is_made_once_and_stays() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("not/yet/there");
    let files = Files::new("files", &root);
    assert!(!root.exists(), "nothing is touched before it is used");
    let store = files.identity().await.unwrap();
    assert_eq!(files.identity().await.unwrap(), store);
    assert_eq!(Files::open("other name", &root).await.unwrap().identity().await.unwrap(), store);
    assert_eq!(
        fs::read_to_string(root.join(".unanimous/identity")).unwrap(),
        format!("unanimous files 1\nstore {store}\n")
    );
    let moved = parent.path().join("moved");
    fs::rename(&root, &moved).unwrap();
    assert_eq!(Files::open_existing("files", &moved).await.unwrap().identity().await.unwrap(), store);
}

#[tokio::test]
async fn many_that_open_a_new_folder_at_once_see_one_store() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("new");
    let opened = (0..8).map(|_| {
        let root = root.clone();
        tokio::spawn(async move { Files::open("files", root).await.unwrap().identity().await.unwrap() })
    });
    let mut ids = Vec::new();
    for opened in opened.collect::<Vec<_>>() {
        ids.push(opened.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert!(!root.join(".unanimous-new").exists());
}

#[tokio::test]
async fn a_folder_that_is_gone_or_replaced_is_down_not_empty() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("root");
    let files = Files::open("files", &root).await.unwrap();
    let first = branch(&files, 1).await;
    first.create("a", "1").await.unwrap();
    first.prepare(&id(1)).await.unwrap();
    let late = branch(&files, 2).await;
    late.create("b", "1").await.unwrap();

    fs::rename(&root, parent.path().join("away")).unwrap();
    down(files.identity().await, "does not exist");
    down(files.in_doubt().await, "does not exist");
    refused(files.commit(&id(1)).await, FailureKind::Refused, "does not exist");
    refused(files.rollback(&id(1)).await, FailureKind::Refused, "does not exist");
    refused(first.commit().await, FailureKind::Refused, "does not exist");

    // An empty mount point.
    fs::create_dir(&root).unwrap();
    down(files.identity().await, "not mounted");
    down(files.in_doubt().await, "not mounted");
    refused(late.prepare(&id(2)).await, FailureKind::Refused, "not mounted");
    assert!(matches!(Files::open_existing("files", &root).await, Err(FilesError::Gone { .. })));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "nothing was made");

    // Another disk.
    Files::open("files", &root).await.unwrap();
    down(files.identity().await, "is the store");
    down(files.in_doubt().await, "is the store");
    refused(files.rollback(&id(1)).await, FailureKind::Refused, "is the store");

    fs::remove_dir_all(&root).unwrap();
    fs::rename(parent.path().join("away"), &root).unwrap();
    assert_eq!(files.in_doubt().await.unwrap(), [id(1)]);
    first.commit().await.unwrap();
    assert_tree(&root, &[("a", "1")]);
}

#[tokio::test]
async fn parts_of_the_own_folder_that_are_gone_are_an_error() {
    for part in ["identity", "lock", "stage", "prepared"] {
        let (root, files) = store().await;
        let branch = branch(&files, 1).await;
        branch.create("a", "1").await.unwrap();
        let path = root.path().join(".unanimous").join(part);
        if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
        refused(branch.prepare(&id(1)).await, FailureKind::Refused, "restore it");
        if part != "lock" {
            down(files.in_doubt().await, "restore it");
            assert!(matches!(Files::open("files", root.path()).await, Err(FilesError::Gone { .. })), "{part}");
        }
        assert!(!path.exists(), "nothing was made up");
    }
    let (root, files) = store().await;
    fs::write(root.path().join(".unanimous/identity"), "unanimous files 2\nstore x\n").unwrap();
    down(files.identity().await, "later version");
}

#[tokio::test]
async fn a_damaged_manifest_stops_the_folder_loudly_but_not_other_branches_ends() {
    let (root, files) = store().await;
    for sequence in 1..=3 {
        let branch = branch(&files, sequence).await;
        branch.create(format!("{sequence}"), "x").await.unwrap();
        branch.prepare(&id(sequence)).await.unwrap();
    }
    let manifest = root.path().join(format!(".unanimous/prepared/{}.prepared", id(1)));
    let good = fs::read(&manifest).unwrap();
    let mut bad = good.clone();
    bad[150] ^= 4;
    fs::write(&manifest, &bad).unwrap();
    let name = format!("{}.prepared is damaged", id(1));
    down(files.in_doubt().await, &name);
    assert!(matches!(Files::open("files", root.path()).await, Err(FilesError::Damaged { .. })));
    refused(files.commit(&id(1)).await, FailureKind::Refused, &name);
    refused(files.rollback(&id(1)).await, FailureKind::Refused, &name);
    let next = branch(&files, 4).await;
    next.create("other", "x").await.unwrap();
    refused(next.prepare(&id(4)).await, FailureKind::Refused, &name);
    let next = branch(&files, 5).await;
    next.create("other", "x").await.unwrap();
    refused(next.commit_one_phase(&id(5)).await, FailureKind::Refused, &name);
    files.commit(&id(2)).await.unwrap();
    files.rollback(&id(3)).await.unwrap();
    assert_tree(root.path(), &[("2", "x")]);
    assert_eq!(entries(root.path(), "stage").len(), 1, "content that may be promised is not swept");

    fs::write(&manifest, &good).unwrap();
    assert_eq!(files.in_doubt().await.unwrap(), [id(1)]);
    // Renamed by somebody: what it says and what its name says differ.
    let renamed = root.path().join(format!(".unanimous/prepared/{}.decided", id(1)));
    fs::rename(&manifest, &renamed).unwrap();
    down(files.in_doubt().await, "somebody renamed it");
    fs::rename(&renamed, &manifest).unwrap();
    fs::write(root.path().join(".unanimous/prepared/notes.txt"), "x").unwrap();
    down(files.in_doubt().await, "notes.txt is damaged");
    fs::remove_file(root.path().join(".unanimous/prepared/notes.txt")).unwrap();
    files.commit(&id(1)).await.unwrap();
    assert_tree(root.path(), &[("1", "x"), ("2", "x")]);
    assert_clean(root.path());
}

#[tokio::test]
async fn a_manifest_copied_from_another_store_is_not_believed() {
    let ((root, files), (other_root, other)) = (store().await, store().await);
    let branch = branch(&other, 1).await;
    branch.create("a", "x").await.unwrap();
    branch.prepare(&id(1)).await.unwrap();
    let name = format!(".unanimous/prepared/{}.prepared", id(1));
    fs::copy(other_root.path().join(&name), root.path().join(&name)).unwrap();
    down(files.in_doubt().await, "copied from another store");
}

#[tokio::test]
async fn a_read_only_folder_is_a_no_before_the_promise() {
    let (root, files) = store().await;
    fs::create_dir(root.path().join("closed")).unwrap();
    fs::set_permissions(root.path().join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    let branch = branch(&files, 1).await;
    branch.create("closed/a", "x").await.unwrap();
    let result = branch.prepare(&id(1)).await;
    // Root may write everywhere: then the promise is kept instead.
    match fs::write(root.path().join("closed/probe"), "x") {
        Ok(()) => {
            result.unwrap();
            branch.commit().await.unwrap();
            assert_eq!(fs::read_to_string(root.path().join("closed/a")).unwrap(), "x");
        }
        Err(_) => {
            refused(result, FailureKind::Refused, "could not write into the folder");
            assert_tree(root.path(), &[]);
        }
    }
    assert_clean(root.path());
    fs::set_permissions(root.path().join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
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
