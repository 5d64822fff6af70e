//! What a branch may do, what it may not, and what an error of PREPARE leaves
//! (<https://www.postgresql.org/docs/current/sql-prepare-transaction.html>).

use std::sync::Arc;

use tokio::sync::Barrier;
use unanimous::postgres::{IsolationLevel, Postgres, PostgresError, PostgresOptions};

use super::{Place, Raw, Said, Two, none, said, sqlstate, state, why};
use crate::support::aborted;

/// Prepares what these statements did; rolls it back where that went well.
async fn prepare(place: &Place, raw: &Raw, work: &str) -> Said {
    assert_eq!(raw.says("begin").await, none());
    raw.says(work).await.unwrap();
    let gid = place.database.name();
    let said = raw.says(&format!("prepare transaction '{gid}'")).await;
    if said.is_ok() {
        assert_eq!(raw.says(&format!("rollback prepared '{gid}'")).await, none());
    }
    said
}

#[tokio::test]
async fn what_is_forbidden_in_a_branch_fails_its_prepare_with_0a000() {
    let place = Place::new().await;
    let forbidden = [
        "create temporary table x (v text)",
        "create temporary table x (v text) on commit drop",
        "create temporary view x as select 1",
        "create temporary sequence x",
        "create function pg_temp.x() returns int language sql return 1",
        "declare x cursor with hold for select 1",
        "listen x",
        "notify x",
        "select pg_notify('x', 'y')",
        "select pg_export_snapshot()",
        "select pg_advisory_lock(5), pg_advisory_xact_lock(5)",
    ];
    for work in forbidden {
        let raw = place.raw().await;
        assert_eq!(prepare(&place, &raw, work).await, state("0A000"), "{work}");
        // Whatever the error: the session is idle, and the transaction is gone.
        assert_eq!(raw.says("savepoint s").await, state("25P01"), "{work}");
        assert_eq!(raw.prepared().await, [""; 0], "{work}");
    }
    // Also what only reads a temporary table, or stops to listen.
    let raw = place.raw().await;
    raw.says("create temporary table x (v text); listen y").await.unwrap();
    for work in ["select * from x", "unlisten y", "unlisten *"] {
        assert_eq!(prepare(&place, &raw, work).await, state("0A000"), "{work}");
    }
}

#[tokio::test]
async fn ddl_savepoints_cursors_and_locks_are_allowed_in_a_branch() {
    let place = Place::new().await;
    let raw = place.raw().await;
    let allowed = [
        "create table made (v text); create index on made (v); alter table made add w text; drop table made",
        "savepoint s; insert into t values ('a'); rollback to savepoint s; savepoint r; release savepoint r",
        "declare x cursor for select 1; fetch x",
        "unlisten x",
        "select pg_advisory_lock(5)",
        "select pg_advisory_xact_lock(6)",
        "lock t in access exclusive mode",
        "truncate t",
    ];
    for work in allowed {
        assert_eq!(prepare(&place, &raw, work).await, none(), "{work}");
    }
}

#[tokio::test]
async fn session_level_locks_stay_with_the_session_and_transaction_level_ones_go_with_the_branch() {
    let place = Place::new().await;
    let raw = place.raw().await;
    let gid = place.database.name();
    let work = "begin; select pg_advisory_lock(5); select pg_advisory_xact_lock(6)";
    raw.says(work).await.unwrap();
    assert_eq!(raw.says(&format!("prepare transaction '{gid}'")).await, none());
    // A branch has no process.
    let locks = "select objid, coalesce(pid, 0) from pg_locks where locktype = 'advisory' \
        and database = (select oid from pg_database where datname = current_database()) order by objid";
    assert_eq!(place.raw.says(locks).await, Ok(vec![format!("5|{}", raw.pid), "6|0".into()]));
    assert_eq!(raw.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!(place.raw.says(locks).await, Ok(vec![format!("5|{}", raw.pid)]));
}

#[tokio::test]
async fn a_deferred_constraint_fails_at_prepare_23503() {
    let place = Place::new().await;
    place
        .raw
        .says("create table p (id int primary key); create table c (id int references p deferrable initially deferred)")
        .await
        .unwrap();
    let raw = place.raw().await;
    assert_eq!(prepare(&place, &raw, "insert into c values (1)").await, state("23503"));
    assert_eq!(raw.says("savepoint s").await, state("25P01"), "the session is idle");
    assert_eq!(raw.says("select * from c").await, none());
}

#[tokio::test]
async fn a_serialization_conflict_fails_at_prepare_40001() {
    let place = Place::new().await;
    let (one, two) = (place.raw().await, place.raw().await);
    // Each reads what the other writes.
    for (raw, key) in [(&one, "a"), (&two, "b")] {
        raw.says("begin isolation level serializable; select count(*) from t").await.unwrap();
        raw.says(&format!("insert into t values ('{key}')")).await.unwrap();
    }
    let gid = place.database.name();
    assert_eq!(one.says(&format!("prepare transaction '{gid}'")).await, none());
    assert_eq!(two.says(&format!("prepare transaction '{gid} two'")).await, state("40001"));
    assert_eq!(one.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!(place.rows().await, ["a"]);
}

/// A conflict that the vote finds is worth repeating, and `run` repeats it, over both databases.
#[tokio::test]
async fn a_serialization_conflict_at_the_vote_is_repeated_by_run() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let met = Arc::new(Barrier::new(2));
    let work = async |key: &'static str| {
        let mut attempts = 0;
        let done = manager.run(10, |tx| {
            attempts += 1;
            let (first, a, b, met) = (attempts == 1, a.clone(), b.clone(), met.clone());
            async move {
                let options = PostgresOptions::new().isolation(IsolationLevel::Serializable);
                let branch = tx.join_with(&a, options).await?;
                branch.query_one("select count(*) from t", &[]).await?;
                branch.execute("insert into t values ($1)", &[&key]).await?;
                tx.join(&b).await?.execute("insert into t values ($1)", &[&key]).await?;
                if first {
                    met.wait().await;
                }
                Ok(())
            }
        });
        done.await.unwrap();
        attempts
    };
    let (one, other) = tokio::join!(work("one"), work("other"));
    assert!(one + other > 2, "one of the two met a conflict: {one}, {other}");
    assert_eq!(two.rows().await, [["one", "other"], ["one", "other"]]);
    assert_eq!(two.prepared().await, [[""; 0]; 2]);
}

/// No id means that nothing was written *here*: it says nothing of notifications and of foreign tables.
#[tokio::test]
async fn a_transaction_without_an_id_has_written_nothing_here() {
    let place = Place::new().await;
    foreign(&place).await;
    assert_eq!(place.raw.says("insert into t values ('there')").await, none());
    let raw = place.raw().await;
    let id = "select pg_current_xact_id_if_assigned() is null";
    for (work, none_assigned) in [
        ("select * from t", "t"),
        ("savepoint s", "t"),
        ("select * from t for share", "f"),
        ("insert into t values ('a')", "f"),
        ("notify x", "t"),
        ("insert into elsewhere.t values ('far')", "t"),
    ] {
        assert_eq!(raw.says("begin").await, none());
        raw.says(work).await.unwrap();
        assert_eq!(raw.value(id).await, none_assigned, "{work}");
        assert_eq!(raw.says("rollback").await, none());
    }
}

/// The tables of another database as foreign ones, in the schema `elsewhere`.
async fn foreign(place: &Place) -> Place {
    let far = Place::new().await;
    let sql = format!(
        "create extension postgres_fdw; \
         create server far foreign data wrapper postgres_fdw \
             options (host '127.0.0.1', port '{}', dbname '{}'); \
         create user mapping for postgres server far options (user 'postgres', password_required 'false'); \
         create schema elsewhere; import foreign schema public from server far into elsewhere",
        place.database.cluster().port(),
        far.database.name()
    );
    place.raw.says(&sql).await.unwrap();
    far
}

/// A write to a foreign table can't be prepared, and is not taken for a branch that only read.
#[tokio::test]
async fn a_write_to_a_foreign_table_is_no_branch_that_only_reads() {
    let two = Two::new().await;
    let far = foreign(&two.b).await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into elsewhere.t values ('far')").await.unwrap();
    let error = aborted(tx.commit().await);
    assert_eq!(sqlstate(&error), "0A000");
    two.is_empty().await;
    assert_eq!(far.rows().await, [""; 0]);
    // Alone it commits.
    let tx = manager.begin();
    tx.join(&b).await.unwrap().batch_execute("insert into elsewhere.t values ('far')").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(far.rows().await, ["far"]);
}

/// An honest no: the branch that notified aborts, and so does the other.
#[tokio::test]
async fn a_bare_notify_in_a_branch_that_writes_is_a_no() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b'); notify x").await.unwrap();
    let error = aborted(tx.commit().await);
    assert_eq!(sqlstate(&error), "0A000");
    assert!(matches!(why(&error), PostgresError::Postgres { .. }));
    two.is_empty().await;
}

/// The state before a read-only serializable transaction that has seen one of two others, which only together are in no order with it
/// (<https://wiki.postgresql.org/wiki/SSI>, "Deposit Report").
struct Report {
    /// Has taken the batch's number, and writes into it when it is closed already.
    deposit: Raw,
}

impl Report {
    async fn new(place: &Place) -> Self {
        place
            .raw
            .says("create table control (batch int); insert into control values (1); create table receipts (batch int)")
            .await
            .unwrap();
        let deposit = place.raw().await;
        deposit.says("begin isolation level serializable; select batch from control").await.unwrap();
        let close = "begin isolation level serializable; update control set batch = 2; commit";
        assert_eq!(place.raw.says(close).await, none());
        Self { deposit }
    }

    /// After the report on the closed batch.
    async fn finish(self) -> Said {
        match self.deposit.says("insert into receipts values (1)").await {
            Ok(_) => self.deposit.says("commit").await,
            failed => failed,
        }
    }
}

/// Reads the number, and then the receipts of the batch before.
const REPORT: [&str; 2] = ["select batch from control", "select count(*) from receipts where batch = 1"];

#[tokio::test]
async fn a_read_only_serializable_transaction_counts_only_where_it_commits() {
    for (end, expected) in [("commit", state("40001")), ("rollback", none())] {
        let place = Place::new().await;
        let report = Report::new(&place).await;
        let raw = place.raw().await;
        assert_eq!(raw.says("begin isolation level serializable").await, none());
        assert_eq!((raw.value(REPORT[0]).await, raw.value(REPORT[1]).await), ("2".into(), "0".into()));
        assert_eq!(raw.says(end).await, none());
        assert_eq!(report.finish().await, expected, "{end}");
    }
}

/// So a branch that only read ends by COMMIT.
#[tokio::test]
async fn a_branch_that_only_read_ends_by_commit() {
    let place = Place::new().await;
    let report = Report::new(&place).await;
    let two = Two { a: place, b: Place::new().await, log: super::disk() };
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    let branch = tx.join_with(&a, PostgresOptions::new().isolation(IsolationLevel::Serializable)).await.unwrap();
    for (sql, expected) in [(REPORT[0], "2"), (REPORT[1], "0")] {
        assert_eq!(said(branch.simple_query(sql).await), Ok(vec![expected.into()]));
    }
    drop(branch);
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(report.finish().await, state("40001"));
}

/// For a pool that the application made the same holds, and its connections take part as they are.
#[tokio::test]
async fn an_application_pool_prepares_and_reads_as_our_own() {
    use unanimous::postgres::deadpool_postgres::{Manager, Pool};
    let two = Two::new().await;
    let pool = |place: &Place| {
        let manager = Manager::new(place.database.url().parse().unwrap(), unanimous::postgres::tokio_postgres::NoTls);
        Pool::builder(manager).max_size(2).build().unwrap()
    };
    let (a, b) = (Postgres::new("a", pool(&two.a)), Postgres::new("b", pool(&two.b)));
    let manager = two.manager(&a, &b).await;
    for key in ["one", "two"] {
        let tx = manager.begin();
        for store in [&a, &b] {
            tx.join(store).await.unwrap().execute("insert into t values ($1)", &[&key]).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
    assert_eq!(two.rows().await, [["one", "two"], ["one", "two"]]);
    assert_eq!(two.prepared().await, [[""; 0]; 2]);
}
