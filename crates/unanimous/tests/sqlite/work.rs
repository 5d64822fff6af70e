//! What the application does on a branch, and what flush makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use unanimous::sqlite::{SqliteError, SqliteOptions};
use unanimous::{Branch, Work};

use super::{Place, begin, begin_with, id, insert, owner, poll_once, within};

#[tokio::test]
async fn work_is_seen_inside_at_once_and_outside_after_the_commit() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    insert(&branch, "a").await;
    let inside: i64 = branch.query_row("SELECT count(*) FROM t", (), |row| row.get(0)).await.unwrap();
    assert_eq!(inside, 1);
    assert_eq!(place.values(), [""; 0]);
    assert_eq!(within(branch.flush()).await.unwrap(), Work::Wrote);
    assert_eq!(place.values(), [""; 0]);
    within(branch.commit_one_phase(&id(owner().transaction(1)))).await.unwrap();
    assert_eq!(place.values(), ["a"]);
}

#[tokio::test]
async fn the_conveniences_do_what_their_namesakes_do() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    branch.execute_batch("INSERT INTO t (v) VALUES ('x'); INSERT INTO t (v) VALUES ('y')").await.unwrap();
    assert_eq!(branch.execute("UPDATE t SET v = v || ?1", ("!",)).await.unwrap(), 2);
    let all: Vec<(i64, String)> =
        branch.query("SELECT id, v FROM t ORDER BY id DESC", (), |row| Ok((row.get(0)?, row.get(1)?))).await.unwrap();
    assert_eq!(all, [(2, "y!".to_owned()), (1, "x!".to_owned())]);
    let none = branch.query_row("SELECT v FROM t WHERE id = ?1", [9], |row| row.get::<_, String>(0)).await;
    assert!(
        matches!(&none, Err(SqliteError::Sql(unanimous::sqlite::rusqlite::Error::QueryReturnedNoRows))),
        "{none:?}"
    );
    // A failed statement is the application's affair: the transaction goes on.
    assert!(matches!(branch.execute_batch("SELECT * FROM nowhere").await, Err(SqliteError::Sql(_))));
    insert(&branch, "z").await;
    branch.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    assert_eq!(place.values(), ["x!", "y!", "z"]);
}

#[tokio::test]
async fn flush_tells_whether_a_commit_would_make_anything_durable() {
    use Work::{ReadOnly, Wrote};
    let place = Place::new();
    let store = place.open().await;
    let setup = begin(&store, 1).await;
    setup
        .execute_batch(
            "INSERT INTO t (v) VALUES ('a');
             CREATE TABLE w (k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO w VALUES ('k', 1);
             CREATE VIRTUAL TABLE words USING fts5(body); INSERT INTO words VALUES ('some words');
             CREATE VIEW both AS SELECT v FROM t;
             CREATE TRIGGER both_insert INSTEAD OF INSERT ON both BEGIN INSERT INTO t (v) VALUES (new.v); END;",
        )
        .await
        .unwrap();
    setup.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    let cases = [
        ("", ReadOnly),
        ("SELECT * FROM t", ReadOnly),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9) SELECT sum(i) FROM n", ReadOnly),
        ("SELECT * FROM words WHERE words MATCH 'some'", ReadOnly),
        ("UPDATE t SET v = 'b' WHERE id = 99", ReadOnly),
        ("DELETE FROM t WHERE id = 99", ReadOnly),
        ("SAVEPOINT a; SELECT 1; RELEASE a", ReadOnly),
        ("PRAGMA user_version", ReadOnly),
        ("SELECT * FROM pragma_table_info('t')", ReadOnly),
        ("PRAGMA table_info(t)", ReadOnly),
        ("INSERT INTO t (v) VALUES ('c')", Wrote),
        ("UPDATE t SET v = v", Wrote),
        ("DELETE FROM t", Wrote),
        ("REPLACE INTO w VALUES ('k', 2)", Wrote),
        ("INSERT INTO both VALUES ('d')", Wrote),
        ("INSERT INTO words VALUES ('other words')", Wrote),
        ("INSERT INTO words(words) VALUES ('optimize')", Wrote),
        // Undone, and conservatively a write.
        ("SAVEPOINT a; INSERT INTO t (v) VALUES ('e'); ROLLBACK TO a; RELEASE a", Wrote),
        // These change no rows that SQLite would count.
        ("CREATE TABLE u (x)", Wrote),
        ("CREATE TABLE IF NOT EXISTS t (x)", Wrote),
        ("CREATE TABLE u AS SELECT * FROM t WHERE false", Wrote),
        ("CREATE INDEX i ON t (v)", Wrote),
        ("CREATE VIEW v AS SELECT 1", Wrote),
        ("CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END", Wrote),
        ("CREATE VIRTUAL TABLE f USING fts5(body)", Wrote),
        ("ALTER TABLE t ADD COLUMN more", Wrote),
        ("ALTER TABLE t RENAME TO s", Wrote),
        ("DROP TABLE t", Wrote),
        ("DROP VIEW both", Wrote),
        ("CREATE TEMP TABLE u (x)", Wrote),
        ("ANALYZE", Wrote),
        ("REINDEX", Wrote),
        ("PRAGMA user_version = 7", Wrote),
        ("PRAGMA user_version(7)", Wrote),
        ("PRAGMA application_id = 7", Wrote),
    ];
    for (number, (sql, expected)) in cases.into_iter().enumerate() {
        let branch = begin(&store, 10 + number as u64).await;
        branch.execute_batch(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(within(branch.flush()).await.unwrap(), expected, "{sql}");
        within(branch.rollback()).await.unwrap();
    }
}

#[tokio::test]
async fn work_is_refused_once_the_branch_was_flushed() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    assert_eq!(within(branch.flush()).await.unwrap(), Work::ReadOnly);
    let late = branch.execute("INSERT INTO t (v) VALUES ('late')", ()).await;
    assert!(matches!(late, Err(SqliteError::Ended { .. })), "{late:?}");
    branch.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    assert_eq!(place.values(), [""; 0]);
}

#[tokio::test]
async fn a_read_only_branch_reads_a_snapshot_beside_a_writer_and_cannot_write() {
    let place = Place::new();
    let store = place.open().await;
    let reader = begin_with(&store, 1, SqliteOptions::read_only()).await.unwrap();
    let count = "SELECT count(*) FROM t";
    assert_eq!(reader.query_row(count, (), |row| row.get::<_, i64>(0)).await.unwrap(), 0);
    // It holds no writer up, and none holds it up.
    let writer = begin(&store, 2).await;
    insert(&writer, "a").await;
    let beside = begin_with(&store, 3, SqliteOptions::read_only()).await.unwrap();
    assert_eq!(beside.query_row(count, (), |row| row.get::<_, i64>(0)).await.unwrap(), 0);
    writer.commit_one_phase(&id(owner().transaction(2))).await.unwrap();
    assert_eq!(reader.query_row(count, (), |row| row.get::<_, i64>(0)).await.unwrap(), 0);

    for sql in ["INSERT INTO t (v) VALUES ('no')", "CREATE TABLE u (x)", "PRAGMA user_version = 3"] {
        assert!(matches!(reader.execute_batch(sql).await, Err(SqliteError::Sql(_))), "{sql}");
    }
    let off = reader.execute_batch("PRAGMA query_only = OFF").await;
    assert!(matches!(off, Err(SqliteError::Forbidden { .. })), "{off:?}");
    assert_eq!(within(reader.flush()).await.unwrap(), Work::ReadOnly);
    reader.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    within(beside.rollback()).await.unwrap();
    assert_eq!(place.values(), ["a"]);
}

#[tokio::test]
async fn the_connection_of_a_reader_can_write_for_the_next_branch() {
    let place = Place::new();
    let store = place.open().await;
    for commits in [true, false] {
        let reader = begin_with(&store, 1, SqliteOptions::read_only()).await.unwrap();
        let thread = reader.call(|_| Ok(std::thread::current().id())).await.unwrap();
        if commits {
            reader.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
        } else {
            within(reader.rollback()).await.unwrap();
        }
        let writer = begin(&store, 2).await;
        assert_eq!(writer.call(|_| Ok(std::thread::current().id())).await.unwrap(), thread, "it was not used again");
        insert(&writer, "a").await;
        writer.commit_one_phase(&id(owner().transaction(2))).await.unwrap();
    }
    assert_eq!(place.values(), ["a", "a"]);
}

#[tokio::test]
async fn settings_and_temporary_tables_end_with_the_branch() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    branch
        .execute_batch("CREATE TEMP TABLE scratch (x); INSERT INTO scratch VALUES (1); PRAGMA case_sensitive_like = ON")
        .await
        .unwrap();
    branch.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    let next = begin(&store, 2).await;
    assert!(next.execute_batch("SELECT * FROM scratch").await.is_err());
    assert!(next.query_row("SELECT 'a' LIKE 'A'", (), |row| row.get::<_, bool>(0)).await.unwrap());
    within(next.rollback()).await.unwrap();
}

/// On a runtime with one thread: a query that never ends by itself runs, the runtime goes on, and a rollback ends it.
#[tokio::test(flavor = "current_thread")]
async fn a_runaway_query_blocks_neither_the_runtime_nor_the_rollback() {
    let place = Place::new();
    let store = place.open().await;
    let branch = Arc::new(begin(&store, 1).await);
    insert(&branch, "a").await;
    let (started, hear) = mpsc::channel();
    let runaway = tokio::spawn({
        let branch = Arc::clone(&branch);
        async move {
            branch
                .call(move |conn| {
                    started.send(()).unwrap();
                    conn.query_row(
                        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n",
                        [],
                        |row| row.get::<_, i64>(0),
                    )
                })
                .await
        }
    });
    while hear.try_recv().is_err() {
        tokio::task::yield_now().await;
    }
    within(branch.rollback()).await.unwrap();
    let end = within(runaway).await.unwrap();
    assert!(matches!(end, Err(SqliteError::Ended { .. })), "{end:?}");
    insert(&begin(&store, 2).await, "the lock is free").await;
    assert_eq!(place.values(), [""; 0]);
}

/// The interrupt hits one statement; work that goes on with the next one after each error must come to an end as well.
#[tokio::test]
async fn work_that_ignores_its_errors_is_stopped_by_the_rollback() {
    let place = Place::new();
    let store = place.open().await;
    let branch = Arc::new(begin(&store, 1).await);
    let (started, hear) = mpsc::channel();
    let stubborn = tokio::spawn({
        let branch = Arc::clone(&branch);
        async move {
            branch
                .call(move |conn| {
                    let mut prepared = conn.prepare("INSERT INTO t (v) VALUES ('again')")?;
                    started.send(()).unwrap();
                    // Ends when statements fail for good, both new ones and the one that was compiled before.
                    while prepared.execute([]).is_ok() || conn.execute("DELETE FROM t", []).is_ok() {}
                    Ok(())
                })
                .await
        }
    });
    while hear.try_recv().is_err() {
        tokio::task::yield_now().await;
    }
    within(branch.rollback()).await.unwrap();
    assert!(matches!(within(stubborn).await.unwrap(), Err(SqliteError::Ended { .. })));
    assert_eq!(place.values(), [""; 0]);
}

#[tokio::test]
async fn a_dropped_call_runs_to_its_end_and_later_work_waits_behind_it() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    let (go, wait) = mpsc::channel::<()>();
    let mut call = Box::pin(branch.call(move |conn| {
        wait.recv().unwrap();
        conn.execute("INSERT INTO t (v) VALUES ('first')", [])
    }));
    assert!(poll_once(&mut call).await.is_pending());
    drop(call);
    let mut later = Box::pin(branch.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)));
    assert!(poll_once(&mut later).await.is_pending());
    go.send(()).unwrap();
    assert_eq!(within(later).await.unwrap(), 1);
    branch.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    assert_eq!(place.values(), ["first"]);
}

#[tokio::test]
async fn a_call_that_was_never_polled_does_nothing() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    let ran = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ran);
    drop(branch.call(move |_| Ok(count.fetch_add(1, Ordering::SeqCst))));
    branch.commit_one_phase(&id(owner().transaction(1))).await.unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

/// Its caller went away (a timeout, say), and then it failed halfway: nobody knows what was left out, so nothing may be
/// committed.
#[tokio::test]
async fn work_that_failed_unseen_cannot_be_committed() {
    let place = Place::new();
    let store = place.open().await;
    let branch = begin(&store, 1).await;
    let (go, wait) = mpsc::channel::<()>();
    let mut call = Box::pin(branch.call(move |conn| {
        wait.recv().unwrap();
        conn.execute_batch("INSERT INTO t (v) VALUES ('half'); INSERT INTO nowhere VALUES (1)")
    }));
    assert!(poll_once(&mut call).await.is_pending());
    drop(call);
    go.send(()).unwrap();
    let refused = within(branch.flush()).await;
    assert!(refused.is_err(), "{refused:?}");
    within(branch.rollback()).await.unwrap();
    assert_eq!(place.values(), [""; 0]);
}
