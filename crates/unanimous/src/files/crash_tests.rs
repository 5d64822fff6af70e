//! The world stops after each single step of prepare, commit, rollback and one-phase commits, and of the recovery that follows; and
//! each single step fails. Whatever is found then, the files are all old or all new, as was decided, and nothing is left over.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use unanimous_core::{
    Branch, BranchContext, BranchError, BranchId, DeciderId, Decision, DecisionLog, FailureKind, Incarnation, LogId,
    Owner, ResourceManager,
};

use super::Files;
use super::acts::Acts;
use super::branch::FilesBranch;
use super::script::{Loss, Script, memory_folder};
use crate::log::FileLog;
use crate::{Doubt, InDoubt, TransactionManager};

fn id(sequence: u64) -> BranchId {
    let transaction = Owner { log: LogId(7), incarnation: Incarnation::new(1, 1) }.transaction(sequence);
    BranchId { transaction, decider: DeciderId::Log, number: 0 }
}

/// A process: its own `Files` on the folder, and what happens to its steps.
fn process(root: &Path, script: Option<&Arc<Script>>) -> Files {
    Files::build("files".to_owned(), root, true, Acts { script: script.cloned() })
}

async fn begin(files: &Files, sequence: u64) -> FilesBranch {
    files.begin(&BranchContext::new(id(sequence).transaction), ()).await.unwrap()
}

type Tree = BTreeMap<String, String>;

fn tree(root: &Path) -> Tree {
    fn walk(root: &Path, at: &Path, found: &mut Tree) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path != root.join(".unanimous") {
                walk(root, &path, found);
            } else if path.is_file() {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = Tree::new();
    walk(root, root, &mut found);
    found
}

fn expect(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect()
}

fn old() -> Tree {
    expect(&[("d/gone", "old"), ("d/kept", "old"), ("d/replaced", "old"), ("gone too", "old")])
}

fn new() -> Tree {
    expect(&[("d/created", "new"), ("d/kept", "old"), ("d/replaced", "new"), ("fresh", "new"), ("n/e/w", "new")])
}

/// A store with old files in it.
async fn store() -> TempDir {
    let root = memory_folder();
    process(root.path(), None).identity().await.unwrap();
    fs::create_dir(root.path().join("d")).unwrap();
    for (path, content) in old() {
        fs::write(root.path().join(path), content).unwrap();
    }
    root
}

/// All that a transaction can do to files, in one.
async fn work(branch: &FilesBranch) {
    branch.create("d/created", "new").await.unwrap();
    branch.delete("d/gone").await.unwrap();
    branch.replace("d/replaced", "new").await.unwrap();
    branch.replace("fresh", "new").await.unwrap();
    branch.delete("gone too").await.unwrap();
    branch.create("n/e/w", "new").await.unwrap();
}

fn own(root: &Path, part: &str) -> Vec<String> {
    fs::read_dir(root.join(".unanimous").join(part))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// A new process recovers: decides what is in doubt, and must find nothing left over after it.
async fn recover(root: &Path, decision: Decision, at: &str) {
    let files = process(root, None);
    for branch in files.in_doubt().await.unwrap() {
        match decision {
            Decision::Commit => files.commit(&branch).await,
            Decision::Abort => files.rollback(&branch).await,
        }
        .unwrap_or_else(|error| panic!("{at}: {error}: {}", std::error::Error::source(&error).unwrap()));
    }
    assert_eq!(files.in_doubt().await.unwrap(), [], "{at}");
    assert_eq!(own(root, "stage"), Vec::<String>::new(), "{at}");
    assert_eq!(own(root, "prepared"), Vec::<String>::new(), "{at}");
}

/// The steps of each phase, in order: a change of this list is a change of what survives a power failure.
#[tokio::test]
async fn the_order_of_steps_is_the_order_that_survives() {
    let root = store().await;
    let script = Arc::new(Script::default());
    let files = process(root.path(), Some(&script));
    let branch = begin(&files, 1).await;
    branch.create("d/created", "new").await.unwrap();
    branch.delete("d/gone").await.unwrap();
    branch.replace("d/replaced", "new").await.unwrap();
    branch.create("n/w", "new").await.unwrap();
    assert_eq!(script.done(), [""; 0], "nothing is changed before prepare");
    branch.prepare(&id(1)).await.unwrap();
    let prepared = script.done();
    assert_eq!(
        prepared,
        [
            "create the stage of the branch",
            "create the new content",
            "write the new content",
            "create the new content",
            "keep the permissions of the old content in",
            "write the new content",
            "create the new content",
            "write the new content",
            "sync the new content",
            "sync the new content",
            "sync the new content",
            "write the manifest",
            "sync the manifest",
            "sync the stage",
            "make the folder",
            "sync the folder above a new one",
            "claim the paths by",
            "sync the folder of manifests",
        ]
    );
    branch.commit().await.unwrap();
    let ended = script.done();
    assert_eq!(
        ended[prepared.len()..],
        [
            "create",
            "take away",
            "put the new content in the place of",
            "create",
            "sync the folder",
            "sync the folder",
            "sync the folder",
            "remove the manifest",
            "sync the folder of manifests",
            "remove",
            "remove",
            "remove",
            "remove",
            "remove",
        ]
    );
    let branch = begin(&files, 2).await;
    branch.create("d/again", "new").await.unwrap();
    branch.prepare(&id(2)).await.unwrap();
    let prepared = script.done().len();
    branch.rollback().await.unwrap();
    assert_eq!(script.done()[prepared..], ["remove the manifest", "sync the folder of manifests", "remove", "remove"]);
    let before = script.done().len();
    let branch = begin(&files, 3).await;
    branch.create("d/alone", "new").await.unwrap();
    branch.commit_one_phase(&id(3)).await.unwrap();
    assert_eq!(
        script.done()[before..],
        [
            "create the stage of the branch",
            "create the new content",
            "write the new content",
            "sync the new content",
            "create",
            "sync the folder",
            "sync the folder",
            "remove",
            "remove",
        ]
    );
}

#[tokio::test]
async fn a_crash_at_every_step_of_prepare_and_commit() {
    for steps in 0.. {
        for decision in [Decision::Commit, Decision::Abort] {
            let root = store().await;
            let script = Arc::new(Script::stop_after(steps));
            let branch = begin(&process(root.path(), Some(&script)), 1).await;
            work(&branch).await;
            let prepared = branch.prepare(&id(1)).await.is_ok();
            // As the protocol has it: a commit is called for after a vote only, and no abort after that.
            if decision == Decision::Abort && prepared {
                continue;
            }
            let committed = prepared && branch.commit().await.is_ok();
            let at = format!("{decision} after {steps} steps, the last of them {:?}", script.done().last());
            drop(branch);
            let found = process(root.path(), None).in_doubt().await.unwrap();
            let listed = !found.is_empty();
            assert!(found.is_empty() || found == [id(1)], "{at}");
            if !prepared {
                assert_eq!(tree(root.path()), old(), "{at}");
            } else if !committed && !listed {
                assert_eq!(tree(root.path()), new(), "{at}: it is gone from the list, so it must be done");
            }
            recover(root.path(), decision, &at).await;
            let all = match decision {
                Decision::Commit if listed || prepared => new(),
                _ => old(),
            };
            assert_eq!(tree(root.path()), all, "{at}");
            if committed && script.done().len() < steps {
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_crash_at_every_step_of_rollback() {
    for steps in 0.. {
        let root = store().await;
        let branch = begin(&process(root.path(), None), 1).await;
        work(&branch).await;
        branch.prepare(&id(1)).await.unwrap();
        drop(branch);
        let script = Arc::new(Script::stop_after(steps));
        let _ = process(root.path(), Some(&script)).rollback(&id(1)).await;
        let at = format!("after {steps} steps, the last of them {:?}", script.done().last());
        recover(root.path(), Decision::Abort, &at).await;
        assert_eq!(tree(root.path()), old(), "{at}");
        if script.done().len() < steps {
            return;
        }
    }
}

#[tokio::test]
async fn a_crash_at_every_step_of_a_one_phase_commit_of_several_files() {
    let mut seen = Vec::new();
    for steps in 0.. {
        let root = store().await;
        let script = Arc::new(Script::stop_after(steps));
        let branch = begin(&process(root.path(), Some(&script)), 1).await;
        work(&branch).await;
        let result = branch.commit_one_phase(&id(1)).await;
        let at = format!("after {steps} steps, the last of them {:?}", script.done().last());
        drop(branch);
        let decided = own(root.path(), "prepared").iter().any(|name| name.ends_with(".decided"));
        assert_eq!(process(root.path(), None).in_doubt().await.unwrap(), [], "{at}: it must not be listed as in doubt");
        let found = tree(root.path());
        assert!(found == old() || found == new(), "{at}: torn: {found:?}");
        match &result {
            Ok(()) => assert_eq!(found, new(), "{at}: it was acknowledged"),
            Err(error) if error.kind() == FailureKind::Lost => {}
            Err(_) => assert_eq!(found, old(), "{at}: it was refused"),
        }
        if decided {
            assert_eq!(found, new(), "{at}: the decision was there");
        }
        recover(root.path(), Decision::Abort, &at).await;
        assert_eq!(tree(root.path()), found, "{at}: an end does not change");
        seen.push((result.map_err(|error: BranchError| error.kind()), found == new()));
        if script.done().len() < steps {
            break;
        }
    }
    seen.dedup();
    assert_eq!(
        seen,
        [
            (Err(FailureKind::Refused), false),
            (Err(FailureKind::Lost), false),
            (Err(FailureKind::Lost), true),
            (Ok(()), true)
        ]
    );
}

#[tokio::test]
async fn a_crash_at_every_step_of_a_one_phase_commit_of_one_file() {
    for kind in ["create", "replace", "delete"] {
        for steps in 0.. {
            let root = store().await;
            let script = Arc::new(Script::stop_after(steps));
            let branch = begin(&process(root.path(), Some(&script)), 1).await;
            let mut after = old();
            match kind {
                "create" => {
                    branch.create("x/y", "new").await.unwrap();
                    after.insert("x/y".to_owned(), "new".to_owned());
                }
                "replace" => {
                    branch.replace("d/replaced", "new").await.unwrap();
                    after.insert("d/replaced".to_owned(), "new".to_owned());
                }
                _ => {
                    branch.delete("d/gone").await.unwrap();
                    after.remove("d/gone");
                }
            }
            let result = branch.commit_one_phase(&id(1)).await;
            let at = format!("{kind} after {steps} steps, the last of them {:?}", script.done().last());
            drop(branch);
            let found = tree(root.path());
            assert!(found == old() || found == after, "{at}: {found:?}");
            match &result {
                Ok(()) => assert_eq!(found, after, "{at}"),
                Err(error) if error.kind() == FailureKind::Lost => {}
                Err(_) => assert_eq!(found, old(), "{at}"),
            }
            recover(root.path(), Decision::Abort, &at).await;
            assert_eq!(tree(root.path()), found, "{at}");
            if script.done().len() < steps {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_second_crash_at_every_step_of_recovery() {
    // The first crash: after the vote, in the middle of commit, and after a decision of one phase.
    for (one_phase, first) in [(false, 27), (false, 29), (false, 31), (true, 27), (true, 30)] {
        for second in 0.. {
            let root = store().await;
            let script = Arc::new(Script::stop_after(first));
            let branch = begin(&process(root.path(), Some(&script)), 1).await;
            work(&branch).await;
            if one_phase {
                let _ = branch.commit_one_phase(&id(1)).await;
            } else {
                branch.prepare(&id(1)).await.unwrap();
                let _ = branch.commit().await;
            }
            drop(branch);
            assert_eq!(own(root.path(), "prepared").len(), 1, "the first crash is where this test wants it");
            let script = Arc::new(Script::stop_after(second));
            let recoverer = process(root.path(), Some(&script));
            let _ = recoverer.in_doubt().await;
            if !one_phase {
                let _ = recoverer.commit(&id(1)).await;
            }
            let at = format!("{first}, then {second} steps, the last of them {:?}", script.done().last());
            recover(root.path(), Decision::Commit, &at).await;
            assert_eq!(tree(root.path()), new(), "{at}");
            if script.done().len() < second {
                break;
            }
        }
    }
}

#[tokio::test]
async fn each_step_fails_once_and_the_same_process_goes_on() {
    for place in 0.. {
        let root = store().await;
        let script = Arc::new(Script::fail_at(place));
        let files = process(root.path(), Some(&script));
        let branch = begin(&files, 1).await;
        work(&branch).await;
        let vote = branch.prepare(&id(1)).await;
        let at = format!("step {place}, {:?}", script.done().get(place));
        match vote {
            Ok(()) => {
                if branch.commit().await.is_err() {
                    branch.commit().await.unwrap_or_else(|error| panic!("{at}: {error:?}"));
                }
                assert_eq!(tree(root.path()), new(), "{at}");
            }
            Err(error) => {
                // A no leaves nothing behind; what may be prepared is listed or not, and rolled back.
                let listed = process(root.path(), None).in_doubt().await.unwrap();
                assert!(listed.is_empty() || error.kind() == FailureKind::Lost, "{at}: {error:?}");
                branch.rollback().await.unwrap();
                assert_eq!(tree(root.path()), old(), "{at}");
            }
        }
        drop(branch);
        recover(root.path(), Decision::Abort, &at).await;
        if script.done().len() <= place {
            return;
        }
        // And the folder takes the next transaction.
        let next = begin(&files, 2).await;
        next.replace("fresh", "next").await.unwrap();
        next.prepare(&id(2)).await.unwrap();
        next.commit().await.unwrap();
    }
}

#[tokio::test]
async fn each_step_of_a_one_phase_commit_fails_once_and_the_answer_is_true() {
    for place in 0.. {
        let root = store().await;
        let script = Arc::new(Script::fail_at(place));
        let files = process(root.path(), Some(&script));
        let branch = begin(&files, 1).await;
        work(&branch).await;
        let result = branch.commit_one_phase(&id(1)).await;
        let at = format!("step {place}, {:?}", script.done().get(place));
        let done = script.done().len();
        drop(branch);
        recover(root.path(), Decision::Abort, &at).await;
        let found = tree(root.path());
        match result.map_err(|error| error.kind()) {
            Ok(()) => assert_eq!(found, new(), "{at}"),
            Err(FailureKind::Lost) => assert!(found == new() || found == old(), "{at}: {found:?}"),
            Err(_) => assert_eq!(found, old(), "{at}"),
        }
        if done <= place {
            return;
        }
    }
}

#[tokio::test]
async fn a_crash_at_every_step_of_making_the_store() {
    for steps in 0.. {
        let parent = memory_folder();
        let root = parent.path().join("a/b");
        let script = Arc::new(Script::stop_after(steps));
        let made = process(&root, Some(&script)).identity().await;
        let again = process(&root, None).identity().await.unwrap();
        if let Ok(made) = made {
            assert_eq!(made, again, "after {steps} steps");
        }
        assert!(!root.join(".unanimous-new").exists(), "after {steps} steps");
        assert_eq!(process(&root, None).identity().await.unwrap(), again, "after {steps} steps");
        recover(&root, Decision::Abort, "a new store").await;
        if script.done().len() < steps {
            return;
        }
    }
}

#[tokio::test]
async fn what_was_put_in_the_place_of_a_deleted_file_meanwhile_stays() {
    let root = store().await;
    let branch = begin(&process(root.path(), None), 1).await;
    branch.delete("d/gone").await.unwrap();
    branch.create("z", "new").await.unwrap();
    branch.prepare(&id(1)).await.unwrap();
    drop(branch);
    // Stopped after the file was taken away.
    let script = Arc::new(Script::stop_after(1));
    let _ = process(root.path(), Some(&script)).commit(&id(1)).await;
    assert_eq!(script.done(), ["take away"]);
    assert!(!root.path().join("d/gone").exists());
    fs::write(root.path().join("d/gone"), "theirs").unwrap();
    recover(root.path(), Decision::Commit, "after the file was taken away").await;
    assert_eq!(fs::read_to_string(root.path().join("d/gone")).unwrap(), "theirs");
    assert_eq!(fs::read_to_string(root.path().join("z")).unwrap(), "new");
}

#[tokio::test]
async fn a_living_stage_is_never_swept() {
    // The world stands still, with the first process alive and holding its locks, while a second one sweeps after each step.
    let root = store().await;
    let files = process(root.path(), None);
    let folder = files.inner.folder().unwrap();
    let branch = begin(&files, 1).await;
    work(&branch).await;
    let staged = branch.stage_for_test(&folder, &id(1));
    let before = own(root.path(), "stage");
    assert_eq!(before.len(), 5, "{before:?}");
    assert_eq!(process(root.path(), None).in_doubt().await.unwrap(), []);
    assert_eq!(own(root.path(), "stage").len(), before.len());
    drop(staged);
    assert_eq!(process(root.path(), None).in_doubt().await.unwrap(), []);
    assert_eq!(own(root.path(), "stage"), Vec::<String>::new());
}

/// Every way in which a power failure can hit what is not durable now. `run` does everything up to it, the same each time.
async fn every_loss<F: Future<Output = Arc<Script>>>(run: impl Fn() -> F) -> Vec<Loss> {
    let changes = run().await.changes();
    (0..=changes).map(Loss::Last).chain((0..changes).map(Loss::FolderOf)).collect()
}

/// Prepares, and commits or rolls back, until the script stops it. Gives back whether each of them was acknowledged.
async fn until_stopped(root: &Path, script: &Arc<Script>, decision: Decision) -> (bool, bool) {
    let branch = begin(&process(root, Some(script)), 1).await;
    work(&branch).await;
    let prepared = branch.prepare(&id(1)).await.is_ok();
    let ended = prepared
        && match decision {
            Decision::Commit => branch.commit().await.is_ok(),
            Decision::Abort => branch.rollback().await.is_ok(),
        };
    (prepared, ended)
}

#[tokio::test]
async fn a_power_failure_after_every_step_of_two_phases() {
    for decision in [Decision::Commit, Decision::Abort] {
        for steps in 0.. {
            let losses = every_loss(async || {
                let (root, script) = (store().await, Arc::new(Script::with_power_failure(steps)));
                until_stopped(root.path(), &script, decision).await;
                script
            })
            .await;
            let mut finished = false;
            for loss in losses {
                let (root, script) = (store().await, Arc::new(Script::with_power_failure(steps)));
                let (prepared, ended) = until_stopped(root.path(), &script, decision).await;
                finished = !script.has_stopped();
                let at =
                    format!("{decision} after {steps} steps, the last of them {:?}, {loss:?}", script.done().last());
                script.lose(loss);
                let listed = process(root.path(), None).in_doubt().await.unwrap();
                if ended {
                    assert_eq!(listed, [], "{at}: its end was confirmed");
                }
                // Nobody may call for a commit of what has not been acknowledged as prepared.
                let decision = if prepared { decision } else { Decision::Abort };
                recover(root.path(), decision, &at).await;
                let expected = if decision == Decision::Commit { new() } else { old() };
                assert_eq!(tree(root.path()), expected, "{at}");
            }
            if finished {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_power_failure_after_every_step_of_one_phase() {
    for files in [1, 6] {
        let run = async |root: &Path, script: &Arc<Script>| {
            let branch = begin(&process(root, Some(script)), 1).await;
            match files {
                1 => branch.create("n/e/w", "new").await.unwrap(),
                _ => work(&branch).await,
            }
            branch.commit_one_phase(&id(1)).await
        };
        let after = match files {
            1 => old().into_iter().chain(expect(&[("n/e/w", "new")])).collect(),
            _ => new(),
        };
        for steps in 0.. {
            let losses = every_loss(async || {
                let (root, script) = (store().await, Arc::new(Script::with_power_failure(steps)));
                let _ = run(root.path(), &script).await;
                script
            })
            .await;
            let mut finished = false;
            for loss in losses {
                let (root, script) = (store().await, Arc::new(Script::with_power_failure(steps)));
                let result = run(root.path(), &script).await;
                finished = !script.has_stopped();
                let at = format!("{files} files after {steps} steps, the last {:?}, {loss:?}", script.done().last());
                script.lose(loss);
                recover(root.path(), Decision::Abort, &at).await;
                let found = tree(root.path());
                match result.map_err(|error| error.kind()) {
                    Ok(()) => assert_eq!(found, after, "{at}: it was acknowledged"),
                    Err(FailureKind::Lost) => assert!(found == old() || found == after, "{at}: torn: {found:?}"),
                    Err(_) => assert_eq!(found, old(), "{at}: it was refused"),
                }
            }
            if finished {
                break;
            }
        }
    }
}

/// Rule 3: a decision that a recovering process has read may be in the page cache only. It must be durable before the first file is
/// touched, or a power failure in the middle of the recovery leaves some files new and no decision.
#[tokio::test]
async fn a_power_failure_in_the_recovery_of_a_decision_that_was_not_synced() {
    let claim = {
        let (root, whole) = (store().await, Arc::new(Script::default()));
        let branch = begin(&process(root.path(), Some(&whole)), 1).await;
        work(&branch).await;
        branch.commit_one_phase(&id(1)).await.unwrap();
        whole.done().iter().position(|step| *step == "claim the paths by").unwrap() + 1
    };
    let run = async |root: &Path, steps: usize, listing: bool| {
        let script = Arc::new(Script::with_power_failure(usize::MAX));
        let branch = begin(&process(root, Some(&script)), 1).await;
        work(&branch).await;
        // Killed after the manifest's rename, before the sync of its folder.
        script.go_on(claim);
        assert_eq!(branch.commit_one_phase(&id(1)).await.unwrap_err().kind(), FailureKind::Lost);
        drop(branch);
        script.go_on(steps);
        let recoverer = process(root, Some(&script));
        if listing {
            let _ = recoverer.in_doubt().await;
        } else {
            let _ = recoverer.commit(&id(1)).await;
        }
        script
    };
    for listing in [true, false] {
        for steps in 0.. {
            let losses = every_loss(async || run(store().await.path(), steps, listing).await).await;
            let mut finished = false;
            for loss in losses {
                let root = store().await;
                let script = run(root.path(), steps, listing).await;
                finished = !script.has_stopped();
                let at = format!("after {steps} steps of recovery, the last {:?}, {loss:?}", script.done().last());
                script.lose(loss);
                recover(root.path(), Decision::Abort, &at).await;
                let found = tree(root.path());
                assert!(found == old() || found == new(), "{at}: torn: {found:?}");
                if finished {
                    assert_eq!(found, new(), "{at}: completed, and undone by a power failure");
                }
            }
            if finished {
                break;
            }
        }
    }
}

/// Rules 3 and 8: a branch that is not listed has ended, and its decision is forgotten. Killed between the removal of the manifest and
/// its sync, the next process must make the absence durable before it tells anybody; or the manifest is back after a power
/// failure, nobody knows what was decided, and what it would do again undoes a later transaction.
#[tokio::test]
async fn an_absence_that_was_listed_does_not_end_with_the_power() {
    // Commits (or not) up to that step; another process lists, and where it finds nothing, writes the same file.
    let run = async |root: &Path, decision: Decision, steps: usize| {
        let script = Arc::new(Script::with_power_failure(steps));
        let branch = begin(&process(root, Some(&script)), 1).await;
        branch.replace("d/replaced", "one").await.unwrap();
        let prepared = branch.prepare(&id(1)).await.is_ok();
        if prepared {
            let _ = match decision {
                Decision::Commit => branch.commit().await,
                Decision::Abort => branch.rollback().await,
            };
        }
        drop(branch);
        let finished = !script.has_stopped();
        script.go_on(usize::MAX / 2);
        let files = process(root, Some(&script));
        let absent = prepared && files.in_doubt().await.unwrap().is_empty();
        if absent {
            let branch = begin(&files, 2).await;
            branch.replace("d/replaced", "two").await.unwrap();
            branch.commit_one_phase(&id(2)).await.unwrap();
        }
        (script, absent, finished)
    };
    for decision in [Decision::Commit, Decision::Abort] {
        let mut absences = 0;
        for steps in 0.. {
            let losses = every_loss(async || run(store().await.path(), decision, steps).await.0).await;
            let mut finished = false;
            for loss in losses {
                let root = store().await;
                let (script, absent, last) = run(root.path(), decision, steps).await;
                finished = last;
                if !absent {
                    continue;
                }
                absences += 1;
                let at = format!("{decision} after {steps} steps, {loss:?}");
                script.lose(loss);
                assert_eq!(process(root.path(), None).in_doubt().await.unwrap(), [], "{at}: it was listed as absent");
                assert_eq!(tree(root.path())["d/replaced"], "two", "{at}");
            }
            if finished {
                break;
            }
        }
        assert!(absences > 0, "{decision}: the killed process never left an absence behind");
    }
}

/// A one-phase commit of several files that was acknowledged and is not done: somebody's file is in the way. It is reported by the
/// manager until it is done, is never rolled back, and is completed once the file is moved away.
#[tokio::test]
async fn an_acknowledged_commit_that_can_not_be_completed_is_in_doubt_until_it_is() {
    let data = tempfile::tempdir().unwrap();
    let log = FileLog::open(data.path().join("log")).await.unwrap();
    let transaction = log.owner().transaction(1);
    log.close().await;
    drop(log);
    let own_id = BranchId { transaction, decider: DeciderId::Log, number: 0 };

    // The process ends when the decision is durable; what it has acknowledged is not done.
    let (root, script) = acknowledged_only(&own_id).await;
    assert_eq!(tree(root.path()), old(), "after {:?}", script.done().last());
    fs::write(root.path().join("d/created"), "theirs").unwrap();

    let files = process(root.path(), None);
    assert_eq!(files.in_doubt().await.unwrap(), std::slice::from_ref(&own_id));
    let log = FileLog::open(data.path().join("log")).await.unwrap();
    let manager = TransactionManager::builder(log).resource(files.clone()).build().await.unwrap();
    let doubts = manager.recover().await;
    let [InDoubt { branch: Some(branch), why: Doubt::NotFinished(why), .. }] = &doubts[..] else {
        panic!("{doubts:?}")
    };
    assert_eq!(*branch, own_id);
    for says in ["was decided in one phase", "completed as soon as", "\"d/created\"", "move that file away"] {
        assert!(why.contains(says), "{says}: {why}");
    }
    assert_eq!(fs::read_to_string(root.path().join("d/created")).unwrap(), "theirs");
    // Its paths stay its own meanwhile.
    let other = begin(&files, 2).await;
    other.replace("fresh", "other").await.unwrap();
    assert_eq!(other.prepare(&id(2)).await.unwrap_err().kind(), FailureKind::Conflict);

    fs::remove_file(root.path().join("d/created")).unwrap();
    assert_eq!(manager.recover().await, []);
    assert_eq!(tree(root.path()), new());
    recover(root.path(), Decision::Abort, "after it was completed").await;
}

/// A store whose process ended as early as it could after it had acknowledged a one-phase commit of several files.
async fn acknowledged_only(id: &BranchId) -> (TempDir, Arc<Script>) {
    for steps in 0.. {
        let root = store().await;
        let script = Arc::new(Script::stop_after(steps));
        let branch = process(root.path(), Some(&script)).begin(&BranchContext::new(id.transaction), ()).await.unwrap();
        work(&branch).await;
        if branch.commit_one_phase(id).await.is_ok() {
            return (root, script);
        }
    }
    unreachable!("a commit has an end")
}
