//! The adapter of `docs/writing-an-adapter.md`: it conforms, it survives kill -9, and the document shows what is compiled here.

#[allow(unreachable_pub, reason = "an adapter is for others")]
#[path = "../examples/own_adapter/spool.rs"]
mod spool;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use unanimous::log::FileLog;
use unanimous::{BoxError, ResourceManager, TransactionManager};
use unanimous_testing::conformance::{self, Subject};
use unanimous_testing::disturbed::Disturbed;
use unanimous_testing::memory::{Call, Journal, JournalLog};
use unanimous_testing::process::Program;

use spool::{Batch, Spool, SpoolError};

struct Spools;

impl Subject for Spools {
    type Resource = Spool;
    type Place = TempDir;

    async fn place(&self) -> Result<TempDir, BoxError> {
        Ok(tempfile::tempdir()?)
    }

    async fn open(&self, place: &TempDir) -> Result<Spool, BoxError> {
        Ok(Spool::open("spool", place.path()).await?)
    }

    async fn write(&self, branch: &Batch, key: &str) -> Result<(), BoxError> {
        Ok(branch.put(key)?)
    }

    async fn is_there(&self, place: &TempDir, key: &str) -> Result<bool, BoxError> {
        Ok(lines(place.path())?.iter().any(|line| line == key))
    }
}

/// All lines of all batches, as the program sees them that picks them up.
fn lines(root: &Path) -> Result<Vec<String>, BoxError> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(root.join("done"))? {
        lines.extend(fs::read_to_string(entry?.path())?.lines().map(str::to_owned));
    }
    Ok(lines)
}

#[tokio::test]
async fn the_spool_conforms() {
    let report = conformance::run(Spools).await;
    println!("{report}");
}

/// Where the child waits for its end.
const BEFORE: &str = "before the decision";
const AFTER: &str = "after the decision";

/// The child's part: a transaction over two spools that stops half-way.
async fn stop_half_way(data: &Path, moment: &str) -> Result<(), BoxError> {
    let one = Disturbed::new(Spool::open("one", data.join("one")).await?);
    let two = Disturbed::new(Spool::open("two", data.join("two")).await?);
    let log = JournalLog::new(FileLog::open(data.join("decisions")).await?, &Journal::default());
    let holds = match moment {
        BEFORE => vec![log.hold()],
        _ => vec![one.hold(Call::Commit), two.hold(Call::Commit)],
    };
    let builder = TransactionManager::builder(log).resource(one.clone()).resource(two.clone());
    let manager = builder.build().await?;
    let tx = manager.begin();
    tx.join(&one).await?.put("a line")?;
    tx.join(&two).await?.put("a line")?;
    let commit = tx.commit();
    for hold in holds {
        hold.reached().await;
    }
    println!("the child waits for its end");
    drop(commit.await);
    Ok(())
}

#[tokio::test]
async fn a_promise_survives_kill_9() -> Result<(), BoxError> {
    if let (Ok(data), Ok(moment)) = (std::env::var("SPOOL_DATA"), std::env::var("SPOOL_MOMENT")) {
        return stop_half_way(&PathBuf::from(data), &moment).await;
    }
    for (moment, expected) in [(BEFORE, 0), (AFTER, 1)] {
        let folder = tempfile::tempdir()?;
        let data = folder.path();
        // The child is this test again, in a process of its own.
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["--exact", "own_adapter::a_promise_survives_kill_9", "--nocapture"]);
        let mut child = Program::start(child.env("SPOOL_DATA", data).env("SPOOL_MOMENT", moment))?;
        let waits = |line: &str| line.contains("the child waits for its end").then_some(());
        child.wait_for_line(Duration::from_secs(60), waits)?;
        child.kill()?;

        let one = Spool::open("one", data.join("one")).await?;
        let two = Spool::open("two", data.join("two")).await?;
        for spool in [&one, &two] {
            assert_eq!(spool.in_doubt().await?.len(), 1, "killed {moment}, {spool:?} lists its promise");
        }
        for root in ["one", "two"] {
            assert!(lines(&data.join(root))?.is_empty(), "killed {moment}, nothing has committed in {root}");
        }
        let builder = TransactionManager::builder(FileLog::open(data.join("decisions")).await?);
        let manager = builder.resource(one.clone()).resource(two.clone()).build().await?;
        assert_eq!(manager.in_doubt(), [], "killed {moment}, recovery has finished");
        for root in ["one", "two"] {
            let found = lines(&data.join(root))?;
            assert_eq!(found, vec!["a line"; expected], "killed {moment}, in {root} after recovery");
        }
    }
    Ok(())
}

#[tokio::test]
async fn another_folder_in_its_place_is_not_believed() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("spool");
    let spool = Spool::open("spool", &root).await?;
    fs::rename(&root, folder.path().join("away"))?;
    assert!(spool.in_doubt().await.is_err(), "a spool that is gone lists nothing");
    Spool::open("spool", &root).await?;
    assert!(spool.in_doubt().await.is_err(), "another spool is not asked for this one's branches");
    fs::remove_dir_all(&root)?;
    fs::rename(folder.path().join("away"), &root)?;
    assert_eq!(spool.in_doubt().await?, []);
    fs::write(root.join("prepared/notes.txt"), "")?;
    let error = spool.in_doubt().await.unwrap_err();
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<SpoolError>());
    assert!(matches!(source, Some(SpoolError::Stranger { path }) if path.ends_with("notes.txt")), "{error:?}");
    Ok(())
}

/// Every Rust listing of the document is a piece of what is compiled here, and none of the adapter is left out.
#[test]
fn the_document_shows_what_is_compiled() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(package.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let document = read("../../docs/writing-an-adapter.md");
    let adapter = read("examples/own_adapter/spool.rs");
    let sources = [adapter.clone(), read("examples/own_adapter/main.rs"), read("tests/own_adapter.rs")];
    let listings: Vec<_> = document.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!listings.is_empty(), "the document has no Rust listings");
    for listing in &listings {
        assert!(sources.iter().any(|source| source.contains(listing)), "this is compiled nowhere:\n{listing}");
    }
    let shown: std::collections::BTreeSet<_> = listings.iter().flat_map(|listing| listing.lines()).collect();
    for line in adapter.lines().skip_while(|line| line.starts_with("//!") || line.is_empty()) {
        assert!(shown.contains(line), "the document leaves this line of the adapter out: {line}");
    }
}
