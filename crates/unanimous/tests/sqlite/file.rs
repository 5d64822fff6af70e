//! The right file: created once, recognised for ever, never replaced behind our back.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use unanimous::sqlite::{BeginError, EndError, FileChanged, OpenError, Sqlite, SqliteOptions, rusqlite};
use unanimous::{Branch, FailureKind, ResourceManager};

use super::{Place, begin, begin_with, id, insert, owner, record, source, within};

async fn refused(path: impl AsRef<Path>) -> OpenError {
    within(Sqlite::open("work", path)).await.expect_err("it was opened")
}

#[tokio::test]
async fn what_cannot_be_opened_is_said_clearly() {
    let place = Place::new();
    let folder = place.folder.path();
    let error = refused(folder.join("missing").join("work.db")).await;
    assert!(matches!(&error, OpenError::NoFolder { folder, .. } if folder.ends_with("missing")), "{error:?}");
    assert!(!folder.join("missing").exists());
    for path in ["", ":memory:"] {
        assert!(matches!(refused(path).await, OpenError::InMemory), "{path:?}");
    }
    assert!(matches!(refused("/").await, OpenError::NoFolder { .. }));
    // A folder, and a file that is something else.
    fs::create_dir(folder.join("a folder")).unwrap();
    assert!(matches!(refused(folder.join("a folder")).await, OpenError::Sqlite { .. }));
    let letter = folder.join("letter.txt");
    fs::write(&letter, "Dear database,\n".repeat(100)).unwrap();
    assert!(matches!(refused(&letter).await, OpenError::Sqlite { .. }));
    assert_eq!(fs::read_to_string(&letter).unwrap(), "Dear database,\n".repeat(100));
    // Asked for, and not there.
    let error = within(Sqlite::builder("work", place.path()).must_exist().open()).await.unwrap_err();
    assert!(matches!(error, OpenError::NotThere { .. }), "{error:?}");
    assert!(!place.path().exists());
}

#[tokio::test]
async fn the_identity_is_made_once_and_kept() {
    let place = Place::new();
    let store = place.open().await;
    let identity = within(store.identity()).await.unwrap();
    assert_eq!(within(store.identity()).await.unwrap(), identity);
    assert_eq!(within(place.open().await.identity()).await.unwrap(), identity);
    drop(store);
    assert_eq!(within(place.open().await.identity()).await.unwrap(), identity);
    assert_ne!(within(Place::new().open().await.identity()).await.unwrap(), identity);
}

#[tokio::test]
async fn a_database_that_the_application_had_before_gets_our_tables_beside_its_own() {
    let place = Place::new();
    let before = place.stranger();
    before.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t (v) VALUES ('old')").unwrap();
    let store = within(Sqlite::open("work", place.path())).await.unwrap();
    let branch = begin(&store, 1).await;
    insert(&branch, "new").await;
    within(branch.flush()).await.unwrap();
    within(branch.commit_carrying(&record(owner().transaction(1)))).await.unwrap();
    assert_eq!(place.values(), ["old", "new"]);
}

#[tokio::test]
async fn a_missing_file_is_down_and_not_empty() {
    let place = Place::new();
    let store = place.open().await;
    let reader = begin_with(&store, 1, SqliteOptions::read_only()).await.unwrap();
    let aside = place.folder.path().join("aside.db");
    fs::rename(place.path(), &aside).unwrap();

    // With a new connection, and with the reader's, which is waiting for its next branch.
    for new in [true, false] {
        let error: BeginError = source(begin_with(&store, 2, SqliteOptions::new()).await, FailureKind::Refused);
        assert!(matches!(error, BeginError::Changed(FileChanged::Gone { .. })), "new {new}: {error:?}");
        within(reader.rollback()).await.unwrap();
    }
    assert!(within(store.identity()).await.is_err());
    assert!(within(store.in_doubt()).await.is_err());
    assert!(within(store.unfinished(owner())).await.is_err());
    assert!(within(store.decision(owner().transaction(9), owner())).await.is_err());
    let again = refused(place.path()).await;
    assert!(matches!(again, OpenError::Changed(FileChanged::Gone { .. })), "{again:?}");
    assert!(!place.path().exists(), "an empty database was made in its place");

    // The same file comes back, and all is well.
    fs::rename(&aside, place.path()).unwrap();
    let branch = begin(&store, 3).await;
    insert(&branch, "back").await;
    branch.commit_one_phase(&id(owner().transaction(3))).await.unwrap();
    within(store.identity()).await.unwrap();
    assert_eq!(place.values(), ["back"]);
}

#[tokio::test]
async fn another_file_in_its_place_is_noticed_before_anything_is_written() {
    let place = Place::new();
    let store = place.open().await;
    let reader = begin_with(&store, 1, SqliteOptions::read_only()).await.unwrap();
    let ends = [begin(&store, 2).await];
    insert(&ends[0], "into the old file").await;
    within(ends[0].flush()).await.unwrap();

    // Another database with tables of ours, as a restored backup of another store would be.
    let other = Place::new();
    drop(other.open().await);
    other.stranger().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let content = fs::read(other.path()).unwrap();
    let new = place.folder.path().join("new.db");
    fs::write(&new, &content).unwrap();
    fs::rename(&new, place.path()).unwrap();

    let ended = within(ends[0].commit_carrying(&record(owner().transaction(2)))).await;
    let error: EndError = source(ended, FailureKind::Refused);
    assert!(matches!(error, EndError::Changed(FileChanged::Replaced { .. })), "{error:?}");
    let error: EndError =
        source(within(reader.commit_one_phase(&id(owner().transaction(1)))).await, FailureKind::Refused);
    assert!(matches!(error, EndError::Changed(_)), "{error:?}");
    let error: BeginError = source(begin_with(&store, 3, SqliteOptions::new()).await, FailureKind::Refused);
    assert!(matches!(error, BeginError::Changed(FileChanged::Replaced { .. })), "{error:?}");
    assert!(within(store.identity()).await.is_err());
    assert!(within(store.decision(owner().transaction(2), owner())).await.is_err());

    // Opening it anew in this process is refused as well: SQLite would apply the old file's log to the new one.
    let error = refused(place.path()).await;
    assert!(matches!(error, OpenError::Changed(FileChanged::Replaced { .. })), "{error:?}");
    assert_eq!(fs::read(place.path()).unwrap(), content);
}

/// Commits would go into a log that no crash recovery finds.
#[tokio::test]
async fn a_deleted_write_ahead_log_is_noticed() {
    let place = Place::new();
    let store = place.open().await;
    let open = begin(&store, 1).await;
    insert(&open, "a").await;
    fs::remove_file(place.folder.path().join("work.db-wal")).unwrap();
    let ended = within(open.commit_carrying(&record(owner().transaction(1)))).await;
    let error: EndError = source(ended, FailureKind::Refused);
    assert!(
        matches!(&error, EndError::Changed(FileChanged::Gone { path }) if path.ends_with("work.db-wal")),
        "{error:?}"
    );
    let error: BeginError = source(begin_with(&store, 2, SqliteOptions::new()).await, FailureKind::Refused);
    assert!(matches!(error, BeginError::Changed(FileChanged::Gone { .. })), "{error:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_to_a_database_is_the_database() {
    let place = Place::new();
    let folder = place.folder.path().join("elsewhere");
    fs::create_dir(&folder).unwrap();
    drop(super::open(&folder.join("real.db"), super::PATIENCE).await);
    std::os::unix::fs::symlink(folder.join("real.db"), place.path()).unwrap();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    insert(&branch, "a").await;
    branch.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    assert_eq!(place.values(), ["a"]);
}

/// Copied over the old one, by `cp` say: the file is the same, its content is not.
#[tokio::test]
async fn another_content_of_the_same_file_is_noticed_when_it_is_opened_again() {
    let place = Place::new();
    let expected = within(place.open().await.identity()).await.unwrap();
    let other = Place::new();
    let identity = within(other.open().await.identity()).await.unwrap();
    for database in [&place, &other] {
        // The last connection takes the log along when it is closed.
        let log = database.folder.path().join("work.db-wal");
        within(async {
            while log.exists() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
    fs::write(place.path(), fs::read(other.path()).unwrap()).unwrap();
    let before = fs::read(place.path()).unwrap();
    let error = refused(place.path()).await;
    let OpenError::Changed(FileChanged::OtherIdentity { expected: was, found, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!((was, &found), (expected, &Some(identity)));
    assert_eq!(fs::read(place.path()).unwrap(), before);

    // A database that never was ours does not become it.
    let strange = place.folder.path().join("strange.db");
    rusqlite::Connection::open(&strange).unwrap().execute_batch("CREATE TABLE s (x)").unwrap();
    fs::write(place.path(), fs::read(&strange).unwrap()).unwrap();
    let before = fs::read(place.path()).unwrap();
    let error = refused(place.path()).await;
    assert!(matches!(error, OpenError::Changed(FileChanged::OtherIdentity { found: None, .. })), "{error:?}");
    assert_eq!(fs::read(place.path()).unwrap(), before);
}

#[tokio::test]
async fn init_runs_on_every_connection() {
    let place = Place::new();
    let runs = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&runs);
    let store = Sqlite::builder("work", place.path())
        .init(move |conn| {
            count.fetch_add(1, Ordering::SeqCst);
            conn.execute_batch(
                "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v); PRAGMA case_sensitive_like = ON",
            )
        })
        .open()
        .await
        .unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let readers = [
        begin_with(&store, 1, SqliteOptions::read_only()).await.unwrap(),
        begin_with(&store, 2, SqliteOptions::read_only()).await.unwrap(),
    ];
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    for reader in &readers {
        assert!(!reader.query_row("SELECT 'a' LIKE 'A'", (), |row| row.get::<_, bool>(0)).await.unwrap());
    }
}

#[tokio::test]
async fn init_cannot_weaken_the_commit() {
    let place = Place::new();
    let store = Sqlite::builder("work", place.path())
        .init(|conn| {
            conn.execute_batch(
                "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v); PRAGMA synchronous = OFF; PRAGMA query_only = ON",
            )
        })
        .open()
        .await
        .unwrap();
    let branch = begin(&store, 1).await;
    let settings = branch
        .call(|conn| {
            let synchronous: i64 = conn.query_row("PRAGMA synchronous", [], |row| row.get(0))?;
            let mode: String = conn.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
            Ok((synchronous, mode))
        })
        .await
        .unwrap();
    assert_eq!(settings, (2, "wal".to_owned()));
    insert(&branch, "a").await;
}

#[tokio::test]
async fn an_init_that_cannot_be_is_refused() {
    let place = Place::new();
    let build = || Sqlite::builder("work", place.path()).lock_timeout(Duration::from_secs(30));
    let other = place.folder.path().join("other.db");
    let attach = format!("ATTACH '{}' AS other", other.display());
    let error = within(build().init(move |conn| conn.execute_batch(&attach)).open()).await.unwrap_err();
    assert!(matches!(&error, OpenError::Attached { schema } if schema == "other"), "{error:?}");
    let error = within(build().init(|conn| conn.execute_batch("BEGIN")).open()).await.unwrap_err();
    assert!(matches!(error, OpenError::InitLeftOpen), "{error:?}");
    let error = within(build().init(|conn| conn.execute_batch("no sql")).open()).await.unwrap_err();
    assert!(matches!(error, OpenError::Init(_)), "{error:?}");
    let error = within(build().init(|_| panic!("no")).open()).await.unwrap_err();
    assert!(matches!(error, OpenError::Thread(_)), "{error:?}");
    within(build().open()).await.unwrap();
}

#[tokio::test]
async fn tables_of_a_later_version_are_refused() {
    let place = Place::new();
    place.open().await;
    place.stranger().execute_batch("UPDATE unanimous_identity SET format = 2").unwrap();
    let error = refused(place.path()).await;
    assert!(matches!(error, OpenError::NewerFormat { found: 2, .. }), "{error:?}");
}

#[tokio::test]
async fn the_same_file_by_two_ways_is_one_store_for_its_locks() {
    let place = Place::new();
    let store = place.open().await;
    let again = Sqlite::builder(
        "again",
        place.folder.path().join("..").join(place.folder.path().file_name().unwrap()).join("work.db"),
    )
    .lock_timeout(Duration::from_millis(50))
    .open()
    .await
    .unwrap();
    assert_eq!(again.path(), store.path());
    let branch = begin(&store, 1).await;
    let blocked = begin_with(&again, 2, SqliteOptions::new()).await;
    assert_eq!(blocked.err().unwrap().kind(), FailureKind::Conflict);
    within(branch.rollback()).await.unwrap();
}
