//! The kit's conformance suite, on every adapter that is here, and on one with bugs, so that it is known to see them.

mod bugs;
mod savepoint_bugs;

use std::sync::atomic::{AtomicUsize, Ordering};

use unanimous::{BoxError, Capability};
use unanimous_testing::conformance::{self, Subject};
use unanimous_testing::memory::{Journal, MemoryBranch, MemoryStore};

/// The store in memory, with a capability, giving way to others so often in each call.
struct Memory {
    capability: Capability,
    yields: usize,
    places: AtomicUsize,
}

impl Memory {
    fn new(capability: Capability, yields: usize) -> Self {
        Self { capability, yields, places: AtomicUsize::new(0) }
    }
}

impl Subject for Memory {
    type Resource = MemoryStore;
    type Place = MemoryStore;

    async fn place(&self) -> Result<MemoryStore, BoxError> {
        let number = self.places.fetch_add(1, Ordering::Relaxed);
        let store = MemoryStore::new(&format!("place-{number}"), self.capability, &Journal::default());
        store.set_slow(self.yields);
        Ok(store.named("memory"))
    }

    async fn open(&self, place: &MemoryStore) -> Result<MemoryStore, BoxError> {
        Ok(place.clone())
    }

    async fn write(&self, branch: &MemoryBranch, key: &str) -> Result<(), BoxError> {
        Ok(branch.put(key)?)
    }

    async fn is_there(&self, place: &MemoryStore, key: &str) -> Result<bool, BoxError> {
        Ok(place.keys().iter().any(|known| known == key))
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_in_memory_conforms() {
    for (capability, checked) in [
        (Capability::TwoPhase, "managed::a_vote_that_lands_late"),
        (Capability::Carrier, "cancel::commit_carrying"),
        (Capability::OnePhase, "managed::on_trust_needs_to_be_allowed"),
        (Capability::Volatile, "branch::a_prepared_branch_commits"),
    ] {
        let report = conformance::run(Memory::new(capability, 3)).await;
        println!("{capability:?}: {report}");
        assert!(report.passed.contains(&checked), "{capability:?}: {report}");
        assert!(report.passed.contains(&"savepoints::they_nest"), "{capability:?}: {report}");
    }
}

#[cfg(feature = "files")]
mod files {
    use tempfile::TempDir;
    use unanimous::BoxError;
    use unanimous::files::{Files, FilesBranch};
    use unanimous_testing::conformance::{self, Subject};

    struct Folders;

    impl Subject for Folders {
        type Resource = Files;
        type Place = TempDir;

        async fn place(&self) -> Result<TempDir, BoxError> {
            Ok(tempfile::tempdir()?)
        }

        async fn open(&self, place: &TempDir) -> Result<Files, BoxError> {
            Ok(Files::open("files", place.path()).await?)
        }

        async fn write(&self, branch: &FilesBranch, key: &str) -> Result<(), BoxError> {
            Ok(branch.create(key, "content").await?)
        }

        async fn is_there(&self, place: &TempDir, key: &str) -> Result<bool, BoxError> {
            Ok(place.path().join(key).exists())
        }

        async fn read(&self, branch: &FilesBranch) -> Result<(), BoxError> {
            branch.read("absent").await?;
            Ok(())
        }

        /// Something outside of any transaction takes the name.
        async fn write_in_vain(&self, place: &TempDir, branch: &FilesBranch, key: &str) -> Result<bool, BoxError> {
            let name = format!("taken-{key}");
            branch.create(&name, "ours").await?;
            std::fs::write(place.path().join(name), "theirs")?;
            Ok(true)
        }
    }

    #[tokio::test]
    async fn folders_of_files_conform() {
        let report = conformance::run(Folders).await;
        println!("{report}");
        assert!(report.passed.contains(&"branch::a_no_leaves_nothing"), "{report}");
        assert!(report.passed.contains(&"savepoints::they_nest"), "{report}");
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::time::Duration;

    use tempfile::TempDir;
    use unanimous::BoxError;
    use unanimous::sqlite::{Sqlite, SqliteBranch, rusqlite};
    use unanimous_testing::conformance::{self, Subject};

    struct Databases;

    fn path(place: &TempDir) -> std::path::PathBuf {
        place.path().join("work.db")
    }

    impl Subject for Databases {
        type Resource = Sqlite;
        type Place = TempDir;

        async fn place(&self) -> Result<TempDir, BoxError> {
            Ok(tempfile::tempdir()?)
        }

        async fn open(&self, place: &TempDir) -> Result<Sqlite, BoxError> {
            let tables = "CREATE TABLE IF NOT EXISTS t (key TEXT PRIMARY KEY);
                CREATE TABLE IF NOT EXISTS child (key TEXT PRIMARY KEY REFERENCES t DEFERRABLE INITIALLY DEFERRED);
                PRAGMA foreign_keys = ON";
            let builder = Sqlite::builder("work", path(place)).lock_timeout(Duration::from_secs(30));
            Ok(builder.init(move |conn| conn.execute_batch(tables)).open().await?)
        }

        async fn write(&self, branch: &SqliteBranch, key: &str) -> Result<(), BoxError> {
            branch.execute("INSERT INTO t VALUES (?1)", (key.to_owned(),)).await?;
            Ok(())
        }

        async fn is_there(&self, place: &TempDir, key: &str) -> Result<bool, BoxError> {
            let conn = rusqlite::Connection::open(path(place))?;
            conn.busy_timeout(Duration::from_secs(30))?;
            Ok(conn.query_row("SELECT count(*) FROM t WHERE key = ?1", (key,), |row| row.get::<_, i64>(0))? == 1)
        }

        async fn read(&self, branch: &SqliteBranch) -> Result<(), BoxError> {
            branch.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)).await?;
            Ok(())
        }

        /// A child without a parent: the constraint is looked at when it commits.
        async fn write_in_vain(&self, _place: &TempDir, branch: &SqliteBranch, key: &str) -> Result<bool, BoxError> {
            branch.execute("INSERT INTO child VALUES (?1)", (key.to_owned(),)).await?;
            Ok(true)
        }
    }

    #[tokio::test]
    async fn sqlite_databases_conform() {
        let report = conformance::run(Databases).await;
        println!("{report}");
        assert!(report.passed.contains(&"branch::a_no_leaves_nothing"), "{report}");
        assert!(report.passed.contains(&"savepoints::they_nest"), "{report}");
    }
}
