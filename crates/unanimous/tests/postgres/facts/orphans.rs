//! What a branch does that nobody finishes: why there must always be somebody.

use super::{Place, none, state};

/// Prepares what a statement did, and leaves it.
async fn orphan(place: &Place, work: &str) -> String {
    let gid = place.database.name().to_owned();
    place.raw.says(&format!("begin; {work}; prepare transaction '{gid}'")).await.unwrap();
    gid
}

#[tokio::test]
async fn an_orphan_blocks_writers_and_ddl() {
    let place = Place::new().await;
    assert_eq!(place.raw.says("insert into t values ('a')").await, none());
    let gid = orphan(&place, "update t set v = 'b'").await;
    let raw = place.raw().await;
    raw.says("set lock_timeout = 50").await.unwrap();
    for blocked in ["update t set v = 'c'", "delete from t", "alter table t add w text", "truncate t", "drop table t"] {
        assert_eq!(raw.says(blocked).await, state("55P03"), "{blocked}");
    }
    assert_eq!(place.raw.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!(raw.says("update t set v = 'c'").await, none());
}

/// It has no process that could be named.
#[tokio::test]
async fn who_waits_for_an_orphan_is_blocked_by_process_0() {
    let place = Place::new().await;
    let gid = orphan(&place, "lock t in access exclusive mode").await;
    let raw = place.raw().await;
    let pid = raw.pid;
    let waiting = tokio::spawn(async move { raw.says("select * from t").await });
    place.raw.until(&format!("select pg_blocking_pids({pid})"), &["{0}"]).await;
    assert_eq!(place.raw.says(&format!("rollback prepared '{gid}'")).await, none());
    assert_eq!(waiting.await.unwrap(), none());
}

/// Rows that were deleted since can't be removed.
#[tokio::test]
async fn an_orphan_holds_back_vacuum() {
    let place = Place::new().await;
    place.raw.says("create table other (v text); insert into t select generate_series(1, 1000)").await.unwrap();
    let gid = orphan(&place, "insert into other values ('a')").await;
    let size = "select pg_relation_size('t') > 0";
    assert_eq!(place.raw.says("delete from t").await, none());
    assert_eq!(place.raw.says("vacuum t").await, none());
    assert_eq!(place.raw.value(size).await, "t");
    assert_eq!(place.raw.says(&format!("rollback prepared '{gid}'")).await, none());
    assert_eq!(place.raw.says("vacuum t").await, none());
    assert_eq!(place.raw.value(size).await, "f");
}

#[tokio::test]
async fn an_orphan_holds_back_create_index_concurrently() {
    let place = Place::new().await;
    let gid = orphan(&place, "insert into t values ('a')").await;
    let raw = place.raw().await;
    raw.says("set lock_timeout = 50").await.unwrap();
    assert_eq!(raw.says("create index concurrently x on t (v)").await, state("55P03"));
    assert_eq!(place.raw.says(&format!("rollback prepared '{gid}'")).await, none());
    assert_eq!(raw.says("drop index if exists x").await, none());
    assert_eq!(raw.says("create index concurrently x on t (v)").await, none());
}

/// And from another database it can't be finished: a session that is there already must do it.
#[tokio::test]
async fn an_orphan_that_locks_pg_class_blocks_logins() {
    let place = Place::new().await;
    let elsewhere = Place::new().await;
    // The list is read once, so that the session has what it needs when the catalog is locked.
    place.raw.prepared().await;
    let gid = orphan(&place, "lock pg_class in access exclusive mode").await;
    let url = place.database.url();
    let login = tokio::spawn(async move { super::Raw::try_open(&url).await });
    let waiting = format!(
        "select count(*) from pg_locks where relation = 'pg_class'::regclass and not granted \
         and database = (select oid from pg_database where datname = '{}')",
        place.database.name()
    );
    elsewhere.raw.until(&waiting, &["1"]).await;
    assert!(!login.is_finished());
    assert_eq!(elsewhere.raw.says(&format!("rollback prepared '{gid}'")).await, state("0A000"));
    assert_eq!(place.raw.says(&format!("rollback prepared '{gid}'")).await, none());
    super::within(login).await.unwrap().unwrap();
}
