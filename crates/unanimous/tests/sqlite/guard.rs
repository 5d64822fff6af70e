//! The application's work cannot end its transaction, and a vote after an attempt is a no (traps, "a vote can lie").

use unanimous::sqlite::{Broken, Sqlite, SqliteBranch, SqliteError, rusqlite};
use unanimous::{Branch, FailureKind};

use super::{Place, begin, id, insert, owner, record, source, within};

/// A branch that wrote "before", did `work` (which ignores errors), and tries everything that could make something of
/// it durable. Gives why it is broken.
async fn broken_by(place: &Place, work: impl FnOnce(&rusqlite::Connection) + Clone + Send + 'static) -> Broken {
    let store = place.open().await;
    let mut causes = Vec::new();
    for end in ["flush", "one phase", "carrying"] {
        let branch = begin(&store, 1).await;
        insert(&branch, "before").await;
        let work = work.clone();
        let first = branch
            .call(move |conn| {
                work(conn);
                Ok(())
            })
            .await;
        let Err(SqliteError::Broken { why, .. }) = first else { panic!("not noticed: {first:?}") };
        // Later work is not run at all.
        let later = branch.call(|_| -> rusqlite::Result<()> { panic!("it ran") }).await;
        assert!(matches!(&later, Err(SqliteError::Broken { why: again, .. }) if *again == why), "{later:?}");
        let transaction = owner().transaction(1);
        let ended = match end {
            "flush" => within(branch.flush()).await.map(drop),
            "one phase" => within(branch.commit_one_phase(&id(transaction))).await,
            _ => within(branch.commit_carrying(&record(transaction))).await,
        };
        let refused: SqliteError = source(ended, FailureKind::Refused);
        assert!(matches!(&refused, SqliteError::Broken { why: again, .. } if *again == why), "{end}: {refused:?}");
        within(branch.rollback()).await.unwrap();
        assert_eq!(place.values(), [""; 0], "{end}");
        causes.push(why);
    }
    let stranger = place.stranger();
    assert_eq!(super::strings(&stranger, "SELECT transaction_id FROM unanimous_decision"), [""; 0]);
    // The next branch is not harmed by any of it.
    let next = begin(&store, 2).await;
    insert(&next, "next").await;
    next.commit_one_phase(&id(owner().transaction(2))).await.unwrap();
    assert_eq!(place.values(), ["next"]);
    causes.dedup();
    assert_eq!(causes.len(), 1);
    causes.remove(0)
}

fn ignoring(sql: &'static str) -> impl FnOnce(&rusqlite::Connection) + Clone + Send + 'static {
    move |conn| drop(conn.execute_batch(sql))
}

#[tokio::test]
async fn transaction_statements_are_refused_and_break_the_branch() {
    for (sql, statement) in [
        ("COMMIT", "COMMIT"),
        ("end transaction", "COMMIT"),
        ("INSERT INTO t (v) VALUES ('with'); COMMIT; INSERT INTO t (v) VALUES ('after')", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("BEGIN", "BEGIN"),
        ("BEGIN IMMEDIATE", "BEGIN"),
        ("COMMIT; BEGIN", "COMMIT"),
    ] {
        let why = broken_by(&Place::new(), ignoring(sql)).await;
        assert_eq!(why, Broken::TransactionStatement { statement }, "{sql}");
    }
}

#[tokio::test]
async fn rusqlites_own_transaction_is_refused_too() {
    let why = broken_by(&Place::new(), |conn| {
        assert!(conn.unchecked_transaction().is_err());
    })
    .await;
    assert_eq!(why, Broken::TransactionStatement { statement: "BEGIN" });
}

#[tokio::test]
async fn insert_or_rollback_is_noticed_although_sqlite_goes_on_in_autocommit_mode() {
    let place = Place::new();
    let why = broken_by(&place, |conn| {
        conn.execute_batch("INSERT INTO t (id, v) VALUES (77, 'a')").unwrap();
        assert!(conn.execute_batch("INSERT OR ROLLBACK INTO t (id, v) VALUES (77, 'b')").is_err());
        assert!(conn.is_autocommit());
        // On its own now, and would be durable at once.
        assert!(conn.execute_batch("INSERT INTO t (v) VALUES ('outside')").is_err());
        assert!(conn.execute_batch("CREATE TABLE outside (x)").is_err());
        assert!(conn.execute_batch("PRAGMA user_version = 9").is_err());
        // A savepoint outside of a transaction begins one, and its release commits.
        assert!(conn.execute_batch("SAVEPOINT s; INSERT INTO t (v) VALUES ('outside'); RELEASE s").is_err());
        drop(conn.execute_batch("ROLLBACK TO s; RELEASE s"));
    })
    .await;
    assert_eq!(why, Broken::RolledBack);
    let stranger = place.stranger();
    assert_eq!(stranger.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    assert!(!stranger.table_exists(None, "outside").unwrap());
}

#[tokio::test]
async fn a_trigger_that_raises_rollback_is_noticed() {
    let place = Place::new();
    place.open().await;
    place
        .stranger()
        .execute_batch("CREATE TRIGGER no BEFORE INSERT ON t WHEN new.v = 'x' BEGIN SELECT RAISE(ROLLBACK, 'no'); END")
        .unwrap();
    let why = broken_by(&place, ignoring("INSERT INTO t (v) VALUES ('x')")).await;
    assert_eq!(why, Broken::RolledBack);
}

#[tokio::test]
async fn a_panic_breaks_the_branch_and_the_store_lives() {
    let store_place = Place::new();
    let store = store_place.open().await;
    let branch = begin(&store, 1).await;
    insert(&branch, "before").await;
    let panicked = branch
        .call(|conn| -> rusqlite::Result<()> {
            conn.execute_batch("INSERT INTO t (v) VALUES ('half')")?;
            panic!("out of {}", "cheese")
        })
        .await;
    let Err(SqliteError::Broken { why: Broken::Panicked { message }, .. }) = panicked else { panic!("{panicked:?}") };
    assert_eq!(message, "out of cheese");
    let refused: SqliteError = source(within(branch.flush()).await, FailureKind::Refused);
    assert!(refused.to_string().contains("out of cheese"), "{refused}");
    within(branch.rollback()).await.unwrap();
    let next = begin(&store, 2).await;
    insert(&next, "next").await;
    next.commit_one_phase(&id(owner().transaction(2))).await.unwrap();
    assert_eq!(store_place.values(), ["next"]);
}

/// Its caller has gone, so the thread drops the work's result, and that panics.
#[tokio::test]
async fn a_result_that_panics_when_it_is_dropped_does_not_end_the_thread() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    insert(&branch, "before").await;
    let (go, wait) = std::sync::mpsc::channel();
    let mut call = Box::pin(branch.call(move |_| {
        wait.recv().unwrap();
        Ok(Bomb)
    }));
    assert!(super::poll_once(&mut call).await.is_pending());
    drop(call);
    go.send(()).unwrap();
    let error: SqliteError = source(within(branch.flush()).await, FailureKind::Refused);
    assert!(matches!(error, SqliteError::Broken { why: Broken::Panicked { .. }, .. }), "{error:?}");
    within(branch.rollback()).await.unwrap();
    assert_eq!(place.values(), [""; 0]);
}

#[tokio::test]
async fn savepoints_are_the_applications_own() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    branch
        .execute_batch(
            "INSERT INTO t (v) VALUES ('a'); SAVEPOINT one; INSERT INTO t (v) VALUES ('b');
             SAVEPOINT two; INSERT INTO t (v) VALUES ('c'); ROLLBACK TO two; RELEASE two;
             RELEASE one; INSERT INTO t (v) VALUES ('d')",
        )
        .await
        .unwrap();
    // One that is left open is released by the commit.
    branch.execute_batch("SAVEPOINT open; INSERT INTO t (v) VALUES ('e')").await.unwrap();
    within(branch.flush()).await.unwrap();
    branch.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    assert_eq!(place.values(), ["a", "b", "d", "e"]);
}

/// What the work does then can't be undone any more; the branch must not vote yes to it.
#[tokio::test]
async fn hooks_that_were_replaced_break_the_branch() {
    fn no_hook() -> Option<fn() -> bool> {
        None
    }
    type Sabotage = fn(&rusqlite::Connection) -> rusqlite::Result<()>;
    let sabotages: [Sabotage; 3] = [
        |conn| conn.commit_hook(no_hook()),
        |conn| conn.rollback_hook(None::<fn()>),
        |conn| {
            conn.commit_hook(no_hook())?;
            conn.authorizer(None::<fn(rusqlite::hooks::AuthContext<'_>) -> rusqlite::hooks::Authorization>)?;
            conn.execute_batch("COMMIT; BEGIN IMMEDIATE")
        },
    ];
    let place = Place::new();
    let store = place.open().await;
    for (number, sabotage) in sabotages.into_iter().enumerate() {
        let branch = begin(&store, number as u64 + 1).await;
        let thread = branch.call(|_| Ok(std::thread::current().id())).await.unwrap();
        let noticed = branch.call(sabotage).await;
        assert!(
            matches!(noticed, Err(SqliteError::Broken { why: Broken::HooksReplaced, .. })),
            "{number}: {noticed:?}"
        );
        let _: SqliteError = source(within(branch.flush()).await, FailureKind::Refused);
        within(branch.rollback()).await.unwrap();
        // The connection has lost its guard and must not be used again.
        let next = begin(&store, 9).await;
        assert_ne!(next.call(|_| Ok(std::thread::current().id())).await.unwrap(), thread);
        within(next.rollback()).await.unwrap();
    }
}

async fn forbidden(branch: &SqliteBranch, sql: &str) -> String {
    match branch.execute_batch(sql).await {
        Err(SqliteError::Forbidden { what, .. }) => what.to_owned(),
        other => panic!("{sql}: {other:?}"),
    }
}

#[tokio::test]
async fn what_would_weaken_the_commit_is_forbidden_and_the_transaction_goes_on() {
    let place = Place::new();
    let store: Sqlite = place.open().await;
    let branch = begin(&store, 1).await;
    insert(&branch, "a").await;
    let other = place.folder.path().join("other.db");
    assert!(forbidden(&branch, &format!("ATTACH '{}' AS other", other.display())).await.contains("ATTACH"));
    assert!(!other.exists());
    for sql in [
        "PRAGMA synchronous = OFF",
        "PRAGMA main.SYNCHRONOUS(0)",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA locking_mode = EXCLUSIVE",
        "PRAGMA query_only = 1",
    ] {
        assert!(forbidden(&branch, sql).await.contains("durability"), "{sql}");
    }
    for sql in [
        "DELETE FROM unanimous_decision",
        "INSERT INTO Unanimous_Decision (transaction_id, log, counter, outcome, decided_at) VALUES ('x', 'y', 1, 'commit', 0)",
        "UPDATE unanimous_identity SET store = 'mine'",
        "DROP TABLE unanimous_floor",
        "ALTER TABLE unanimous_participant ADD COLUMN x",
        "CREATE TRIGGER evil BEFORE INSERT ON unanimous_decision BEGIN SELECT RAISE(IGNORE); END",
        "CREATE TEMP TRIGGER evil BEFORE INSERT ON main.unanimous_decision BEGIN SELECT RAISE(IGNORE); END",
    ] {
        assert!(forbidden(&branch, sql).await.contains("unanimous"), "{sql}");
    }
    branch.execute_batch("SELECT * FROM unanimous_decision").await.unwrap();
    insert(&branch, "b").await;
    within(branch.flush()).await.unwrap();
    branch.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    assert_eq!(place.values(), ["a", "b"]);
}

/// A temporary table of the same name comes first where no schema is named.
#[tokio::test]
async fn a_temporary_table_cannot_take_the_decisions_place() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    branch
        .execute_batch(
            "CREATE TEMP TABLE unanimous_decision (transaction_id, log, counter, outcome, decided_at, finished_at, asked)",
        )
        .await
        .unwrap();
    insert(&branch, "a").await;
    within(branch.flush()).await.unwrap();
    within(branch.commit_carrying(&record(owner().transaction(1)))).await.unwrap();
    let rows = super::strings(&place.stranger(), "SELECT transaction_id FROM unanimous_decision");
    assert_eq!(rows, [owner().transaction(1).to_string()]);
}
