//! How a branch ends, and what is left of it in each case.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use unanimous::sqlite::{EndError, Ended, SqliteError, rusqlite};
use unanimous::{Branch, Capability, FailureKind, ResourceManager, Work};

use super::{Place, begin, child, id, insert, owner, record, source, within};

#[tokio::test]
async fn work_after_the_end_is_not_run_although_its_thread_serves_another_branch() {
    let place = Place::new();
    let store = place.open().await;
    for (end, expected) in [("commit", Ended::Committed), ("rollback", Ended::RolledBack)] {
        let branch = begin(&store, 1).await;
        let thread = branch.call(|_| Ok(std::thread::current().id())).await.unwrap();
        match end {
            "commit" => branch.commit_one_phase(&id(owner().transaction(1))).await.unwrap(),
            _ => within(branch.rollback()).await.unwrap(),
        }
        let other = begin(&store, 2).await;
        assert_eq!(other.call(|_| Ok(std::thread::current().id())).await.unwrap(), thread);
        let ran = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ran);
        let late = within(branch.call(move |conn| {
            flag.store(true, Ordering::SeqCst);
            conn.execute("INSERT INTO t (v) VALUES ('late')", [])
        }))
        .await;
        assert!(matches!(late, Err(SqliteError::Ended { how }) if how == expected), "{late:?}");
        assert!(within(branch.flush()).await.is_err());
        // Ending it again, or dropping it, does not touch the other one.
        drop(within(branch.rollback()).await);
        drop(branch);
        insert(&other, end).await;
        other.commit_one_phase(&id(owner().transaction(2))).await.unwrap();
        assert!(!ran.load(Ordering::SeqCst));
    }
    assert_eq!(place.values(), ["commit", "rollback"]);
}

#[tokio::test]
async fn ends_are_idempotent_and_never_lie() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    insert(&branch, "rolled back").await;
    within(branch.rollback()).await.unwrap();
    within(branch.rollback()).await.unwrap();
    let error: SqliteError =
        source(within(branch.commit_one_phase(&id(owner().transaction(1)))).await, FailureKind::Refused);
    assert!(matches!(error, SqliteError::Ended { how: Ended::RolledBack }), "{error:?}");

    let branch = begin(&store, 2).await;
    insert(&branch, "committed").await;
    within(branch.commit_one_phase(&id(owner().transaction(2)))).await.unwrap();
    within(branch.commit_one_phase(&id(owner().transaction(2)))).await.unwrap();
    let error: SqliteError = source(within(branch.rollback()).await, FailureKind::Refused);
    assert!(matches!(error, SqliteError::Ended { how: Ended::Committed }), "{error:?}");
    assert_eq!(place.values(), ["committed"]);
}

#[tokio::test]
async fn a_rollback_without_a_flush_or_after_it_leaves_nothing() {
    let place = Place::new();
    let store = place.open().await;
    for flushes in [false, true] {
        let branch = begin(&store, 1).await;
        insert(&branch, "a").await;
        branch.execute_batch("CREATE TABLE left_over (x); PRAGMA user_version = 5").await.unwrap();
        if flushes {
            assert_eq!(within(branch.flush()).await.unwrap(), Work::Wrote);
        }
        within(branch.rollback()).await.unwrap();
    }
    assert_eq!(place.values(), [""; 0]);
    assert!(!place.stranger().table_exists(None, "left_over").unwrap());
}

#[tokio::test]
async fn sqlite_branches_never_prepare() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    assert_eq!(branch.capability(), Capability::Carrier);
    assert_eq!(store.capability(), Capability::Carrier);
    let id = id(owner().transaction(1));
    for result in [
        within(branch.prepare(&id)).await,
        within(branch.commit()).await,
        within(store.commit(&id)).await,
        within(store.rollback(&id)).await,
    ] {
        let error: EndError = source(result, FailureKind::Refused);
        assert!(matches!(error, EndError::NeverPrepared), "{error:?}");
    }
    assert_eq!(within(store.in_doubt()).await.unwrap(), []);
}

/// SQLite says no at COMMIT and leaves the transaction open: it must not commit later.
#[tokio::test]
async fn a_deferred_foreign_key_is_refused_at_the_commit() {
    let place = Place::new();
    let store = place.open().await;
    for carrying in [false, true] {
        let transaction = owner().transaction(1);
        let branch = begin(&store, 1).await;
        branch
            .execute_batch(
                "CREATE TABLE child (parent INTEGER REFERENCES t (id) DEFERRABLE INITIALLY DEFERRED); INSERT INTO child VALUES (99)",
            )
            .await
            .unwrap();
        assert_eq!(within(branch.flush()).await.unwrap(), Work::Wrote);
        let ended = if carrying {
            within(branch.commit_carrying(&record(transaction))).await
        } else {
            within(branch.commit_one_phase(&id(transaction))).await
        };
        let error: EndError = source(ended, FailureKind::Refused);
        assert!(matches!(&error, EndError::Refused(cause) if cause.to_string().contains("FOREIGN KEY")), "{error:?}");
        within(branch.rollback()).await.unwrap();
        let stranger = place.stranger();
        assert!(!stranger.table_exists(None, "child").unwrap());
        assert_eq!(super::strings(&stranger, "SELECT transaction_id FROM unanimous_decision"), [""; 0]);
        // The lock is free already.
        stranger.execute_batch("BEGIN IMMEDIATE; ROLLBACK").unwrap();
    }
}

/// COMMIT answers BUSY with the transaction open. Here a statement that was never reset is in its way, for good.
#[tokio::test]
async fn a_busy_commit_is_repeated_and_then_a_conflict() {
    let place = Place::new();
    let store = place.open_with(Duration::from_millis(100)).await;
    let branch = begin(&store, 1).await;
    branch
        .call(|conn| {
            let mut statement = conn.prepare("INSERT INTO t (v) VALUES ('a'), ('b') RETURNING id")?;
            let mut rows = statement.query([])?;
            rows.next()?;
            std::mem::forget(rows);
            std::mem::forget(statement);
            Ok(())
        })
        .await
        .unwrap();
    within(branch.flush()).await.unwrap();
    let ended = within(branch.commit_one_phase(&id(owner().transaction(1)))).await;
    let error: EndError = source(ended, FailureKind::Conflict);
    let EndError::Busy { waited, .. } = &error else { panic!("{error:?}") };
    assert!(*waited >= Duration::from_millis(100), "{waited:?}");
    assert!(branch.is_retryable(&error));
    within(branch.rollback()).await.unwrap();
    assert_eq!(place.values(), [""; 0]);
    insert(&begin(&store, 2).await, "the lock is free").await;
}

#[tokio::test]
async fn busy_and_locked_are_retryable_wherever_they_are_among_the_sources() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    let with_code = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
    for code in [rusqlite::ffi::SQLITE_BUSY, rusqlite::ffi::SQLITE_BUSY_SNAPSHOT, rusqlite::ffi::SQLITE_LOCKED] {
        assert!(branch.is_retryable(&with_code(code)), "{code}");
        assert!(branch.is_retryable(&SqliteError::Sql(with_code(code))), "{code}");
        let deep = unanimous::BranchError::refused(std::io::Error::other(SqliteError::Sql(with_code(code))));
        assert!(branch.is_retryable(&deep), "{code}");
    }
    for code in [rusqlite::ffi::SQLITE_CONSTRAINT, rusqlite::ffi::SQLITE_FULL, rusqlite::ffi::SQLITE_IOERR] {
        assert!(!branch.is_retryable(&SqliteError::Sql(with_code(code))), "{code}");
    }
}

const LIMITED: &str = "UNANIMOUS_TEST_SQLITE_LIMITED";

/// Writing fails within COMMIT: SQLite says that it rolled back, but a part of the commit may be in the log's file. In
/// a child process, whose files may not grow beyond a bound.
#[test]
fn an_io_error_within_the_commit_is_lost() {
    if let Some(folder) = std::env::var_os(LIMITED) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(limited(Path::new(&folder)));
    }
    let place = Place::new();
    let test = "sqlite::ends::an_io_error_within_the_commit_is_lost";
    let plain = child(test, LIMITED, place.folder.path());
    // The shell ignores the signal that comes with the limit, so that writes fail instead; 4 MiB in blocks of 512
    // bytes.
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$0\" \"$@\""]);
    limited.arg(plain.get_program()).args(plain.get_args()).env(LIMITED, place.folder.path());
    let output = limited.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("the commit was lost"), "{output:?}");
    assert_eq!(place.values(), ["before"]);
}

async fn limited(folder: &Path) {
    let store = super::open(&folder.join("work.db"), Duration::from_secs(1)).await;
    let before = begin(&store, 1).await;
    insert(&before, "before").await;
    before.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    let branch = begin(&store, 2).await;
    // Fits into the page cache, which nothing is written from before the commit; more than the file may become.
    branch.execute_batch("PRAGMA cache_size = -100000; INSERT INTO t (v) VALUES (zeroblob(8000000))").await.unwrap();
    assert_eq!(within(branch.flush()).await.unwrap(), Work::Wrote);
    let ended = within(branch.commit_carrying(&record(owner().transaction(2)))).await;
    let error: EndError = source(ended, FailureKind::Lost);
    assert!(matches!(error, EndError::Unknown(_)), "{error:?}");
    let late = branch.execute("INSERT INTO t (v) VALUES ('late')", ()).await;
    assert!(matches!(late, Err(SqliteError::Ended { how: Ended::Unknown })), "{late:?}");
    // What the manager does then: ask. The answer is final.
    let known = within(store.decision(owner().transaction(2), owner())).await.unwrap();
    assert_eq!(known, unanimous::Known::Abort);
    within(branch.rollback()).await.unwrap();
    println!("the commit was lost");
}
