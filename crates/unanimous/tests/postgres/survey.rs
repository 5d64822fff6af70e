//! What an operator is told of prepared transactions, and what is told of an operator's own doing.

use std::time::{Duration, Instant};

use unanimous::ResourceManager as _;
use unanimous::log::MemoryLog;
use unanimous::postgres::{Postgres, Surveyed};
use unanimous::{Branch as _, BranchContext, BranchId, DeciderId, DecisionLog as _};
use unanimous_testing::postgres::{Cluster, Database};

use super::{TABLE, values};
use crate::support::warnings::Warnings;

fn store(database: &Database<'_>) -> Postgres {
    Postgres::from_url("orders", &database.url()).unwrap()
}

fn branch() -> BranchId {
    BranchId { transaction: MemoryLog::new().owner().transaction(7), decider: DeciderId::Log, number: 0 }
}

/// Looks until it is so, for a minute at most.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn one(store: &Postgres) -> Surveyed {
    let survey = store.survey().await.unwrap();
    assert!(survey.locks.is_ok(), "{survey:?}");
    let [transaction] = survey.transactions.try_into().unwrap();
    transaction
}

#[tokio::test]
async fn what_a_prepared_transaction_holds_and_whom_it_blocks() {
    let database = Cluster::shared().database().unwrap();
    database.psql(TABLE).unwrap();
    database.psql("insert into t (v) values ('a')").unwrap();
    let branch = branch();
    let sql = format!(
        "begin; update t set v = 'b' where v = 'a'; select pg_advisory_xact_lock(3, 4); prepare transaction '{branch}'"
    );
    database.psql(&sql).unwrap();
    let store = store(&database);

    let alone = one(&store).await;
    assert_eq!((alone.gid.as_str(), alone.branch.as_ref()), (branch.to_string().as_str(), Some(&branch)));
    assert_eq!(alone.owner, "postgres");
    assert!(alone.since.starts_with("20") && alone.since.ends_with('Z') && alone.since.len() == 24, "{}", alone.since);
    let locks: Vec<(&str, &str)> = alone.locks.iter().map(|lock| (&*lock.object, &*lock.mode)).collect();
    for expected in [("advisory 3 4", "ExclusiveLock"), ("public.t", "RowExclusiveLock")] {
        assert!(locks.contains(&expected), "{locks:?}");
    }
    assert_eq!(alone.waiting, []);

    // The first waits for the row, the second behind it, the third for the table.
    let mut clients = Vec::new();
    for (name, sql) in [
        ("first", "update t set v = 'c' where v = 'a'"),
        ("second", "update t set v = 'd' where v = 'a'"),
        ("third", "lock table t in share mode"),
    ] {
        let url = format!("{} application_name={name}", database.url());
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        clients.push(tokio::spawn(async move { client.batch_execute(&format!("begin; {sql}; commit")).await }));
        // One after another, so that who is behind whom is known.
        until(name, async || {
            one(&store)
                .await
                .waiting
                .iter()
                .any(|waiting| waiting.application == name && !waiting.since.is_empty())
                .then_some(())
        })
        .await;
    }
    let waiting = one(&store).await.waiting;
    let pid = |name: &str| waiting.iter().find(|waiting| waiting.application == name).unwrap().pid;
    let told: Vec<(&str, Option<i32>)> =
        waiting.iter().map(|waiting| (&*waiting.application, waiting.behind)).collect();
    assert_eq!(told, [("first", None), ("third", None), ("second", Some(pid("first")))]);
    assert_eq!(waiting[0].role, "postgres");
    assert!(waiting[0].query.contains("set v = 'c'"), "{waiting:?}");

    store.rollback(&branch).await.unwrap();
    for client in clients {
        client.await.unwrap().unwrap();
    }
    assert_eq!(store.survey().await.unwrap().transactions, []);
}

#[tokio::test]
async fn other_programs_transactions_are_told_apart_and_other_databases_are_not() {
    let (database, other) = (Cluster::shared().database().unwrap(), Cluster::shared().database().unwrap());
    let sql = |gid: &str| format!("begin; create table x (); prepare transaction '{gid}'");
    let (ours, theirs) = (branch(), format!("theirs-{}", database.name()));
    database.psql(&sql(&theirs)).unwrap();
    other.psql(&sql(&ours.to_string())).unwrap();
    let [told] = store(&database).survey().await.unwrap().transactions.try_into().unwrap();
    assert_eq!((told.gid, told.branch), (theirs.clone(), None));
    assert_eq!(store(&database).prepared().await.unwrap(), []);
    database.psql(&format!("rollback prepared '{theirs}'")).unwrap();
    store(&other).rollback(&ours).await.unwrap();
}

/// It keeps everybody from reading what tables there are: the list is had all the same. (It would keep new sessions out too.)
#[tokio::test]
async fn one_that_holds_the_catalog_is_listed_without_its_locks() {
    // Of its own: what others make in their databases can empty this session's cache of the catalog, and it could not be read again.
    let cluster = Cluster::start().unwrap();
    let database = cluster.database().unwrap();
    let store = store(&database);
    // A session that has not listed before could not read the view's definition either.
    assert_eq!(store.survey().await.unwrap().transactions, []);
    let branch = branch();
    database.psql(&format!("begin; lock table pg_class; prepare transaction '{branch}'")).unwrap();
    let survey = store.survey().await.unwrap();
    assert_eq!(survey.transactions.iter().map(|told| told.branch.clone()).collect::<Vec<_>>(), [Some(branch.clone())]);
    assert_eq!(survey.locks.unwrap_err().code(), Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE));
    // A connection that was there before can finish it.
    store.check().await.unwrap();
    store.rollback(&branch).await.unwrap();
}

/// The branch's own id of the server tells an operator's rollback from an answer that was lost.
#[tokio::test]
async fn a_branch_that_an_operator_rolled_back_after_the_decision_is_noticed() {
    let database = Cluster::shared().database().unwrap();
    database.psql(TABLE).unwrap();
    let store = store(&database);
    let warnings = Warnings::collect();
    for (sequence, act, heuristics) in [(1, "rollback", 1), (2, "commit", 0)] {
        let id = BranchId { transaction: MemoryLog::new().owner().transaction(sequence), ..branch() };
        let work = store.begin(&BranchContext::new(id.transaction), Default::default()).await.unwrap();
        work.execute("insert into t (v) values ($1)", &[&act]).await.unwrap();
        work.flush().await.unwrap();
        work.prepare(&id).await.unwrap();
        database.psql(&format!("{act} prepared '{id}'")).unwrap();
        work.commit().await.unwrap();
        assert_eq!(warnings.with(&["ERROR", "heuristic rollback", &id.to_string()]).len(), heuristics, "{act}");
    }
    assert_eq!(values(&database), "commit");
}

/// The same, where the transaction aborts.
#[tokio::test]
async fn a_branch_that_an_operator_committed_although_it_aborts_is_noticed() {
    let database = Cluster::shared().database().unwrap();
    database.psql(TABLE).unwrap();
    let store = store(&database);
    let warnings = Warnings::collect();
    for (sequence, act, heuristics) in [(1, "commit", 1), (2, "rollback", 0)] {
        let id = BranchId { transaction: MemoryLog::new().owner().transaction(sequence), ..branch() };
        let work = store.begin(&BranchContext::new(id.transaction), Default::default()).await.unwrap();
        work.execute("insert into t (v) values ($1)", &[&act]).await.unwrap();
        work.flush().await.unwrap();
        work.prepare(&id).await.unwrap();
        database.psql(&format!("{act} prepared '{id}'")).unwrap();
        work.rollback().await.unwrap();
        assert_eq!(warnings.with(&["ERROR", "heuristic commit", &id.to_string()]).len(), heuristics, "{act}");
    }
    assert_eq!(values(&database), "commit");
}
