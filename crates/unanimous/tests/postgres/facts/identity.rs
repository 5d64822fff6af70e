//! Who may finish what, and under which name (<https://www.postgresql.org/docs/current/sql-prepare-transaction.html>).

use std::sync::OnceLock;

use tokio::sync::{Mutex, MutexGuard};
use unanimous::JoinError;
use unanimous::postgres::{Postgres, PostgresError};
use unanimous_testing::postgres::Cluster;

use super::{Place, Raw, Two, none, sqlstate, state, why};
use crate::support::aborted;

/// A server that can't prepare, which is PostgreSQL's default.
fn unable() -> &'static Cluster {
    static UNABLE: OnceLock<Cluster> = OnceLock::new();
    UNABLE.get_or_init(|| {
        Cluster::builder().setting("max_prepared_transactions", 0).setting("fsync", "off").start().unwrap()
    })
}

/// A server with one slot for a prepared transaction, for one test at a time.
async fn one_slot() -> (MutexGuard<'static, ()>, &'static Cluster) {
    static ONE: OnceLock<Cluster> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    (
        turn,
        ONE.get_or_init(|| {
            Cluster::builder().setting("max_prepared_transactions", 1).setting("fsync", "off").start().unwrap()
        }),
    )
}

#[tokio::test]
async fn without_max_prepared_transactions_a_prepare_fails_with_55000_and_the_transaction_is_gone() {
    let place = Place::of(unable()).await;
    let raw = place.raw().await;
    assert_eq!(raw.says("begin; insert into t values ('a')").await, none());
    assert_eq!(raw.says("prepare transaction 'x'").await, state("55000"));
    assert_eq!(raw.says("savepoint s").await, state("25P01"), "the session is idle");
    assert_eq!(place.rows().await, [""; 0]);
}

/// Checked at registration and join, and the text says what to set.
#[tokio::test]
async fn a_server_that_cannot_prepare_is_refused_with_what_to_set() {
    let (a, b) = (Place::new().await, Place::of(unable()).await);
    let store = b.store("b");
    let error = store.check().await.unwrap_err();
    assert!(matches!(error, PostgresError::CantPrepare), "{error:?}");
    assert!(error.to_string().contains("set max_prepared_transactions"), "{error}");
    let two = Two { a, b, log: super::disk() };
    // It stops neither the start nor the others.
    let manager = two.manager(&two.a.store("a"), &store).await;
    let tx = manager.begin();
    tx.join(&two.a.store("a")).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    let error = tx.join(&store).await.unwrap_err();
    assert!(matches!(error, JoinError::Store { .. }) && matches!(why(&error), PostgresError::CantPrepare), "{error:?}");
    tx.commit().await.unwrap();
    assert_eq!(two.rows().await, [vec!["a"], vec![]]);
}

#[tokio::test]
async fn with_no_slot_left_a_prepare_fails_with_53200() {
    let (_turn, cluster) = one_slot().await;
    let place = Place::of(cluster).await;
    assert_eq!(place.raw.says("begin; prepare transaction 'one'").await, none());
    let raw = place.raw().await;
    assert_eq!(raw.says("begin; insert into t values ('a')").await, none());
    assert_eq!(raw.says("prepare transaction 'two'").await, state("53200"));
    assert_eq!(raw.says("savepoint s").await, state("25P01"), "the session is idle");
    assert_eq!(raw.says("rollback prepared 'one'").await, none());
    assert_eq!(place.rows().await, [""; 0]);
}

#[tokio::test]
async fn with_no_slot_left_the_vote_is_an_honest_no() {
    let (_turn, cluster) = one_slot().await;
    let two = Two { a: Place::new().await, b: Place::of(cluster).await, log: super::disk() };
    assert_eq!(two.b.raw.says("begin; prepare transaction 'one'").await, none());
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    let error = aborted(tx.commit().await);
    assert_eq!(sqlstate(&error), "53200");
    assert_eq!(two.rows().await, [[""; 0]; 2]);
    assert_eq!(two.prepared().await, [vec![], vec!["one"]]);
    assert_eq!(two.b.raw.says("rollback prepared 'one'").await, none());
}

/// Read-only and empty transactions take a slot as well, where they are prepared.
#[tokio::test]
async fn an_empty_transaction_takes_a_slot_too() {
    let (_turn, cluster) = one_slot().await;
    let place = Place::of(cluster).await;
    let (one, two) = (place.raw().await, place.raw().await);
    assert_eq!(one.says("begin; select * from t").await, none());
    assert_eq!(one.says("prepare transaction 'one'").await, none());
    assert_eq!(two.says("begin; prepare transaction 'two'").await, state("53200"));
    assert_eq!(one.says("rollback prepared 'one'").await, none());
}

/// The adapter doesn't prepare them: with no slot left anywhere, one that writes and one that reads commit.
#[tokio::test]
async fn a_branch_that_only_reads_takes_no_slot() {
    let (_turn, cluster) = one_slot().await;
    let two = Two { a: Place::of(cluster).await, b: Place::of(cluster).await, log: super::disk() };
    assert_eq!(two.b.raw.says("begin; prepare transaction 'one'").await, none());
    let (a, b) = two.stores();
    let manager = two.manager(&a, &b).await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    assert_eq!(tx.join(&b).await.unwrap().query("select * from t", &[]).await.unwrap().len(), 0);
    tx.commit().await.unwrap();
    assert_eq!(two.rows().await, [vec!["a"], vec![]]);
    assert_eq!(two.b.raw.says("rollback prepared 'one'").await, none());
}

#[tokio::test]
async fn a_gid_has_199_bytes_at_most_and_cannot_be_a_parameter() {
    let place = Place::new().await;
    let raw = place.raw().await;
    let name = place.database.name();
    let longest = format!("{name}{}", "x".repeat(199 - name.len()));
    assert_eq!(raw.says(&format!("begin; prepare transaction '{longest}'")).await, none());
    assert_eq!(raw.prepared().await, [longest.as_str()]);
    assert_eq!(raw.says(&format!("rollback prepared '{longest}'")).await, none());
    assert_eq!(raw.says(&format!("begin; prepare transaction '{longest}x'")).await, state("22023"));
    assert_eq!(raw.says("rollback").await, none());
    for statement in ["prepare transaction", "commit prepared", "rollback prepared"] {
        let error = raw.client.execute(&format!("{statement} $1"), &[&name]).await.unwrap_err();
        assert_eq!(super::code(&error), "42601", "{statement}");
    }
}

#[tokio::test]
async fn a_gid_is_one_in_the_whole_cluster_42710() {
    let (one, other) = (Place::new().await, Place::new().await);
    let gid = one.database.name();
    assert_eq!(one.raw.says(&format!("begin; prepare transaction '{gid}'")).await, none());
    assert_eq!(other.raw.says(&format!("begin; prepare transaction '{gid}'")).await, state("42710"));
    assert_eq!(other.raw.says("savepoint s").await, state("25P01"), "the session is idle");
    assert_eq!(one.raw.says(&format!("rollback prepared '{gid}'")).await, none());
}

/// Why ids are never used again.
#[tokio::test]
async fn a_gid_that_is_used_again_lets_a_repeated_commit_hit_the_later_transaction() {
    let place = Place::new().await;
    let gid = place.database.name();
    assert_eq!(
        place.raw.says(&format!("begin; insert into t values ('a'); prepare transaction '{gid}'")).await,
        none()
    );
    assert_eq!(place.raw.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!(
        place.raw.says(&format!("begin; insert into t values ('b'); prepare transaction '{gid}'")).await,
        none()
    );
    // The first one's answer was lost, and it is repeated.
    assert_eq!(place.raw.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!(place.rows().await, ["a", "b"]);
}

/// Exactly the role that prepared, which SET ROLE makes one; a member of it is none.
#[tokio::test]
async fn only_the_role_that_prepared_or_a_superuser_may_finish_42501() {
    let place = Place::new().await;
    let [owner_name, member, other] =
        ["owner", "member", "other"].map(|role| format!("{role}_{}", place.database.name()));
    let roles = format!(
        "create role {owner_name} login; create role {member} login in role {owner_name}; create role {other} login"
    );
    place.raw.says(&roles).await.unwrap();
    let open = async |role: &str| Raw::open(&place.database.url_as(role)).await;
    let (owner, member, other) = (open(&owner_name).await, open(&member).await, open(&other).await);
    let gid = place.database.name();
    let (prepare, commit) = (format!("begin; prepare transaction '{gid}'"), format!("commit prepared '{gid}'"));
    for finisher in ["owner", "superuser", "member who has set the role"] {
        assert_eq!(owner.says(&prepare).await, none());
        assert_eq!(other.says(&commit).await, state("42501"));
        assert_eq!(member.says(&commit).await, state("42501"));
        let done = match finisher {
            "owner" => owner.says(&commit).await,
            "superuser" => place.raw.says(&commit).await,
            _ => {
                assert_eq!(member.says(&format!("set role {owner_name}")).await, none());
                member.says(&commit).await
            }
        };
        assert_eq!(done, none(), "{finisher}");
    }
}

/// After `SET LOCAL ROLE` the branch is that role's, and the session's own can't finish it on the same connection.
#[tokio::test]
async fn after_set_local_role_the_same_connection_may_not_finish_42501() {
    let place = Place::new().await;
    let (app, clerk) = (format!("app_{}", place.database.name()), format!("clerk_{}", place.database.name()));
    let roles = format!("create role {clerk}; create role {app} login in role {clerk}; grant all on t to {clerk}");
    place.raw.says(&roles).await.unwrap();
    let raw = Raw::open(&place.database.url_as(&app)).await;
    let gid = place.database.name();
    let work = format!("begin; set local role {clerk}; insert into t values ('a'); prepare transaction '{gid}'");
    assert_eq!(raw.says(&work).await, none());
    assert_eq!(raw.says(&format!("commit prepared '{gid}'")).await, state("42501"));
    assert_eq!(raw.value("select owner from pg_prepared_xacts where database = current_database()").await, clerk);
    assert_eq!(raw.says(&format!("set role {clerk}")).await, none());
    assert_eq!(raw.says(&format!("commit prepared '{gid}'")).await, none());
}

/// It is finished as the role that the server lists, in phase two and by recovery.
#[tokio::test]
async fn a_branch_whose_work_changed_its_role_is_finished_as_its_owner() {
    let two = Two::new().await;
    let clerk = format!("\"the clerk's {}\"", two.a.database.name());
    let app = format!("app_{}", two.a.database.name());
    two.a
        .raw
        .says(&format!("create role {clerk}; create role {app} login in role {clerk}; grant all on t to {clerk}"))
        .await
        .unwrap();
    let a = Postgres::from_url("a", &two.a.database.url_as(&app)).unwrap();
    let b = two.b.store("b");
    let manager = two.manager(&a, &b).await;
    for end in ["commit", "abort"] {
        if end == "abort" {
            two.b.failing("23514").await;
        }
        let tx = manager.begin();
        let branch = tx.join(&a).await.unwrap();
        branch.batch_execute(&format!("set local role {clerk}; insert into t values ('{end}')")).await.unwrap();
        drop(branch);
        let table = if end == "abort" { "failing" } else { "t" };
        let sql = format!("insert into {table} values ('{end}')");
        tx.join(&b).await.unwrap().batch_execute(&sql).await.unwrap();
        let committed = tx.commit().await;
        assert_eq!(committed.is_ok_and(|committed| committed.pending == 0), end == "commit");
        assert_eq!(two.prepared().await, [[""; 0]; 2]);
        assert_eq!(two.rows().await, [["commit"], ["commit"]]);
    }
}

#[tokio::test]
async fn from_another_database_it_cannot_be_finished_0a000() {
    let (one, other) = (Place::new().await, Place::new().await);
    let gid = one.database.name();
    assert_eq!(one.raw.says(&format!("begin; prepare transaction '{gid}'")).await, none());
    for end in ["commit", "rollback"] {
        assert_eq!(other.raw.says(&format!("{end} prepared '{gid}'")).await, state("0A000"));
    }
    assert_eq!(one.raw.says(&format!("rollback prepared '{gid}'")).await, none());
}

/// The list is the whole cluster's; a store's is its database's.
#[tokio::test]
async fn a_store_lists_the_branches_of_its_own_database() {
    let two = Two::new().await;
    let gid = {
        use unanimous::{BranchId, DeciderId, DecisionLog};
        BranchId { transaction: two.log().owner().transaction(1), decider: DeciderId::Log, number: 0 }.to_string()
    };
    assert_eq!(two.a.raw.says(&format!("begin; prepare transaction '{gid}'")).await, none());
    let everywhere = format!("select count(*) from pg_prepared_xacts where gid = '{gid}'");
    assert_eq!(two.b.raw.value(&everywhere).await, "1", "from the other database it is seen");
    let (a, b) = two.stores();
    let listed = |prepared: Vec<unanimous::postgres::Prepared>| {
        prepared.iter().map(|p| p.branch.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed(a.prepared().await.unwrap()), [gid.as_str()]);
    assert_eq!(listed(b.prepared().await.unwrap()), [""; 0]);
    assert_eq!(two.a.raw.says(&format!("rollback prepared '{gid}'")).await, none());
}

/// Two names for one database are noticed, and two databases of one server are two stores.
#[tokio::test]
async fn two_names_for_one_database_are_noticed() {
    let two = Two::new().await;
    let twice = two.builder(&two.a.store("a"), &two.a.store("b")).build().await;
    let error = twice.unwrap_err();
    assert!(matches!(&error, unanimous::BuildError::SameStore { names, .. } if *names == ["a", "b"]), "{error:?}");
    let (a, b) = two.stores();
    two.manager(&a, &b).await;
}
