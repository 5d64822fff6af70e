//! Folders of files under a real manager with a real log: the decision comes from elsewhere.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use unanimous::files::{Files, FilesError};
use unanimous::log::FileLog;
use unanimous::{
    BoxError, Branch, BranchContext, BranchId, CommitError, DeciderId, DecisionLog, DecisionRecord, JoinError, Note,
    Participant, ResourceManager, TransactionManager, Tx,
};

use super::{assert_clean, assert_tree, text};

struct World {
    data: TempDir,
    manager: TransactionManager,
    left: Files,
    right: Files,
}

impl World {
    async fn start(data: TempDir) -> Self {
        let left = Files::open("left", data.path().join("left")).await.unwrap();
        let right = Files::open("right", data.path().join("right")).await.unwrap();
        let log = FileLog::open(data.path().join("decisions")).await.unwrap();
        let manager =
            TransactionManager::builder(log).resource(left.clone()).resource(right.clone()).build().await.unwrap();
        Self { data, manager, left, right }
    }

    async fn new() -> Self {
        Self::start(tempfile::tempdir().unwrap()).await
    }

    fn root(&self, name: &str) -> std::path::PathBuf {
        self.data.path().join(name)
    }

    /// The same file created in both folders.
    async fn create(&self, tx: &Tx, path: &str, content: &str) -> Result<(), BoxError> {
        for store in [&self.left, &self.right] {
            tx.join(store).await?.create(path, content).await?;
        }
        Ok(())
    }

    fn assert_both(&self, expected: &[(&str, &str)]) {
        for name in ["left", "right"] {
            assert_tree(&self.root(name), expected);
            assert_clean(&self.root(name));
        }
    }
}

/// A folder's promise is listed although its sync failed, and to sync it again proves nothing: folders are never acknowledged early.
#[tokio::test]
async fn two_folders_are_not_acknowledged_early() {
    let data = tempfile::tempdir().unwrap();
    let left = Files::open("left", data.path().join("left")).await.unwrap();
    let right = Files::open("right", data.path().join("right")).await.unwrap();
    assert!(left.durably_in_doubt().is_none());
    let log = FileLog::open(data.path().join("decisions")).await.unwrap();
    let builder = TransactionManager::builder(log).early_acknowledgement(true);
    let manager = builder.resource(left.clone()).resource(right.clone()).build().await.unwrap();
    let world = World { data, manager, left, right };
    let tx = world.manager.begin();
    world.create(&tx, "a", "1").await.unwrap();
    assert_eq!(tx.commit().await.unwrap().pending, 0);
    world.assert_both(&[("a", "1")]);
}

#[tokio::test]
async fn two_folders_commit_together_or_not_at_all() {
    let world = World::new().await;
    let tx = world.manager.begin();
    world.create(&tx, "a", "1").await.unwrap();
    assert_eq!(tx.commit().await.unwrap().pending, 0);
    world.assert_both(&[("a", "1")]);

    let tx = world.manager.begin();
    world.create(&tx, "b", "2").await.unwrap();
    tx.abort().await;
    world.assert_both(&[("a", "1")]);

    // One of the two says no at its vote: somebody outside was faster.
    let tx = world.manager.begin();
    world.create(&tx, "c", "3").await.unwrap();
    fs::write(world.root("right").join("c"), "theirs").unwrap();
    let error = tx.commit().await.unwrap_err();
    assert!(matches!(error, CommitError::Aborted { .. }) && !error.is_retryable(), "{}", text(&error));
    assert!(text(&error).contains("exists already"), "{}", text(&error));
    fs::remove_file(world.root("right").join("c")).unwrap();
    world.assert_both(&[("a", "1")]);
}

#[tokio::test]
async fn one_folder_alone_commits_in_one_phase_and_reading_costs_nothing() {
    let world = World::new().await;
    fs::write(world.root("right").join("r"), "read").unwrap();
    let tx = world.manager.begin();
    assert!(tx.join(&world.right).await.unwrap().exists("r").await.unwrap());
    let files = tx.join(&world.left).await.unwrap();
    files.create("a", "1").await.unwrap();
    files.create("b", "2").await.unwrap();
    drop(files);
    tx.commit().await.unwrap();
    assert_tree(&world.root("left"), &[("a", "1"), ("b", "2")]);
    assert_clean(&world.root("left"));
    assert_clean(&world.root("right"));
}

#[tokio::test]
async fn conflicts_are_repeated_and_no_increment_is_lost() {
    let world = World::new().await;
    for name in ["left", "right"] {
        fs::write(world.root(name).join("count"), "0").unwrap();
    }
    let increment = |tx: Tx| {
        let (left, right) = (world.left.clone(), world.right.clone());
        async move {
            for store in [&left, &right] {
                let files = tx.join(store).await?;
                let count = files.read("count").await?.expect("the file is there");
                let count: u64 = String::from_utf8(count)?.parse()?;
                files.replace("count", (count + 1).to_string()).await?;
            }
            Ok::<(), BoxError>(())
        }
    };
    let runs = (0..4).map(|_| async {
        for _ in 0..5 {
            world.manager.run(1000, increment).await.unwrap();
        }
    });
    let mut runs = runs.map(Box::pin).collect::<Vec<_>>().into_iter();
    let mut next = || runs.next().unwrap();
    tokio::join!(next(), next(), next(), next());
    world.assert_both(&[("count", "20")]);
}

#[tokio::test]
async fn a_restart_finishes_what_was_prepared_as_the_log_decided() {
    let world = World::new().await;
    // Prepared by hand, as a process would leave them that was killed: one decided, one not.
    let World { data, manager, left, right } = world;
    manager.shutdown(std::time::Duration::from_secs(60)).await.unwrap();
    drop(manager);
    let log = FileLog::open(data.path().join("decisions")).await.unwrap();
    for (sequence, path) in [(1, "decided"), (2, "not")] {
        let transaction = log.owner().transaction(sequence);
        let mut participants = Vec::new();
        for (number, store) in [(0, &left), (1, &right)] {
            let branch = store.begin(&BranchContext::new(transaction), ()).await.unwrap();
            branch.create(path, "x").await.unwrap();
            branch.prepare(&BranchId { transaction, decider: DeciderId::Log, number }).await.unwrap();
            let resource = store.name().to_owned();
            participants.push(Participant { number, resource, store: Some(store.identity().await.unwrap()) });
        }
        if path == "decided" {
            let record = DecisionRecord { transaction, participants, decided_at: 0, note: Note::default() };
            log.decide(record).await.unwrap();
        }
    }
    log.close().await;
    drop(log);
    let world = World::start(data).await;
    assert_eq!(world.manager.recover().await.len(), 0);
    world.assert_both(&[("decided", "x")]);
}

#[tokio::test]
async fn a_folder_that_goes_away_stops_only_itself_and_is_finished_when_it_is_back() {
    let world = World::new().await;
    let tx = world.manager.begin();
    world.create(&tx, "a", "1").await.unwrap();
    fs::rename(world.root("right"), world.root("away")).unwrap();
    let error = tx.commit().await.unwrap_err();
    assert!(matches!(error, CommitError::Aborted { .. }), "{}", text(&error));
    assert_tree(&world.root("left"), &[]);

    let tx = world.manager.begin();
    let result = match tx.join(&world.right).await {
        Ok(files) => files.create("b", "2").await.map_err(BoxError::from),
        Err(error) => Err(BoxError::from(error)),
    };
    let error = result.unwrap_err();
    let gone = |error: &FilesError| matches!(error, FilesError::Gone { .. });
    assert!(
        error.downcast_ref::<FilesError>().is_some_and(gone) || error.downcast_ref::<JoinError>().is_some(),
        "{}",
        text(&*error)
    );
    tx.abort().await;
    let tx = world.manager.begin();
    tx.join(&world.left).await.unwrap().create("c", "3").await.unwrap();
    tx.commit().await.unwrap();
    assert_tree(&world.root("left"), &[("c", "3")]);

    fs::rename(world.root("away"), world.root("right")).unwrap();
    let tx = world.manager.begin();
    world.create(&tx, "d", "4").await.unwrap();
    tx.commit().await.unwrap();
    assert_tree(&world.root("right"), &[("d", "4")]);
    assert_eq!(world.manager.recover().await.len(), 0);
    assert_clean(&world.root("left"));
    assert_clean(&world.root("right"));
    assert!(!Path::new(&world.root("away")).exists());
}
