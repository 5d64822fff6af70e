//! One transaction over two databases: what a user sees of it.

use std::error::Error;
use std::time::Duration;

use unanimous::log::MemoryLog;
use unanimous::postgres::tokio_postgres::error::SqlState;
use unanimous::postgres::{IsolationLevel, Postgres, PostgresBranch, PostgresError, PostgresOptions, tokio_postgres};
use unanimous::{Cause, CommitError, Options, TransactionManager};

use super::{Pair, prepared};
use crate::support::aborted;

/// The adapter's own error behind a commit that aborted.
fn why(error: &CommitError) -> &PostgresError {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return error;
        }
        next = error.source();
    }
    panic!("no error of PostgreSQL in {error:?}")
}

#[tokio::test]
async fn two_databases_commit_together() {
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    let tx = manager.begin();
    tx.join(&orders).await.unwrap().execute("insert into t (v) values ($1)", &[&"a"]).await.unwrap();
    tx.join(&billing).await.unwrap().execute("insert into t (v) values ($1)", &[&"b"]).await.unwrap();
    assert_eq!(pair.values(), ["", ""], "nothing is seen before the commit");
    tx.commit().await.unwrap();
    assert_eq!(pair.values(), ["a", "b"]);
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
}

#[tokio::test]
async fn two_databases_abort_together() {
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    let tx = manager.begin();
    tx.join(&orders).await.unwrap().batch_execute("insert into t (v) values ('a')").await.unwrap();
    tx.join(&billing).await.unwrap().batch_execute("insert into t (v) values ('b')").await.unwrap();
    tx.abort().await;
    assert_eq!(pair.values(), ["", ""]);
}

#[tokio::test]
async fn joined_twice_it_is_the_same_connection() {
    let pair = Pair::new();
    let (manager, orders, _) = pair.open().await;
    let tx = manager.begin();
    let mut pids = Vec::new();
    for _ in 0..2 {
        let branch = tx.join(&orders).await.unwrap();
        pids.push(branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0));
    }
    assert_eq!(pids[0], pids[1]);
    tx.abort().await;
}

/// PREPARE TRANSACTION and COMMIT both say ROLLBACK there, and no error.
#[tokio::test]
async fn a_statement_that_failed_is_a_no_for_all() {
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    let tx = manager.begin();
    tx.join(&orders).await.unwrap().batch_execute("insert into t (v) values ('a')").await.unwrap();
    let failed = tx.join(&billing).await.unwrap().batch_execute("insert into t (v) values ('b'); select 1/0").await;
    assert_eq!(failed.unwrap_err().code(), Some(&SqlState::DIVISION_BY_ZERO));
    let error = aborted(tx.commit().await);
    assert!(matches!(why(&error), PostgresError::WorkFailed), "{error:?}");
    assert_eq!(pair.values(), ["", ""]);
}

/// The vote guards without the question at the flush as well: failed work, ended work, and none at all.
#[tokio::test]
async fn a_join_that_says_that_it_writes_is_not_asked() {
    use unanimous_testing::proxy::{Act, Proxy};
    let pair = Pair::new();
    let proxy = Proxy::start(pair.orders.cluster().port()).unwrap();
    let asked = proxy.on("EXECUTE unanimous_look", Act::Replace("EXECUTE unanimous_look".into()));
    let port = format!("port={}", pair.orders.cluster().port());
    let url = pair.orders.url().replace(&port, &format!("port={}", proxy.port()));
    let orders = Postgres::from_url("orders", &url).unwrap();
    let billing = Postgres::from_url("billing", &pair.billing.url()).unwrap();
    let manager = super::builder(&orders, &billing).build().await.unwrap();
    for (round, both) in [(1, true), (2, false)] {
        let works = [
            (format!("insert into t (v) values ('kept{round}')"), true),
            ("select 1".to_owned(), true),
            (format!("insert into t (v) values ('lost{round}'); select 1/0"), false),
            (format!("insert into t (v) values ('ended{round}'); commit"), false),
        ];
        for (number, (work, commits)) in works.iter().enumerate() {
            let tx = manager.begin();
            let writes = PostgresOptions::new().writes();
            let _ = tx.join_with(&orders, writes).await.unwrap().batch_execute(work).await;
            if both {
                let insert = format!("insert into t (v) values ('{number}')");
                tx.join(&billing).await.unwrap().batch_execute(&insert).await.unwrap();
            }
            let ended = tx.commit().await;
            assert_eq!(ended.is_ok(), *commits, "{work}, both: {both}: {ended:?}");
            if work.ends_with("commit") {
                let error = aborted(ended);
                assert!(matches!(why(&error), PostgresError::WorkEnded), "{error:?}");
            }
        }
    }
    assert!(!asked.met());
    assert_eq!(pair.values(), ["kept1 ended1 kept2 ended2", "0 1"]);
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
}

#[tokio::test]
async fn work_that_ends_the_transaction_itself_is_noticed() {
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    for ending in ["rollback", "commit", "commit and chain", "rollback; begin read write"] {
        let tx = manager.begin();
        tx.join(&orders).await.unwrap().batch_execute("insert into t (v) values ('a')").await.unwrap();
        tx.join(&billing).await.unwrap().batch_execute(ending).await.unwrap();
        let error = aborted(tx.commit().await);
        assert!(matches!(why(&error), PostgresError::WorkEnded), "{ending}: {error:?}");
    }
    assert_eq!(pair.values(), ["", ""]);
}

/// A deferred constraint is checked by PREPARE TRANSACTION: an honest no.
#[tokio::test]
async fn what_fails_at_the_vote_aborts_all() {
    let pair = Pair::new();
    pair.billing.psql("create table d (id int references t (id) deferrable initially deferred)").unwrap();
    let (manager, orders, billing) = pair.open().await;
    let tx = manager.begin();
    tx.join(&orders).await.unwrap().batch_execute("insert into t (v) values ('a')").await.unwrap();
    tx.join(&billing).await.unwrap().batch_execute("insert into d values (7)").await.unwrap();
    let error = aborted(tx.commit().await);
    assert_eq!(why(&error).code(), Some(&SqlState::FOREIGN_KEY_VIOLATION), "{error:?}");
    assert_eq!(pair.values(), ["", ""]);
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
}

#[tokio::test]
async fn a_join_says_how_its_transaction_is() {
    let pair = Pair::new();
    let (manager, orders, _) = pair.open().await;
    let tx = manager.begin();
    let options = PostgresOptions::new()
        .isolation(IsolationLevel::Serializable)
        .read_only()
        .deferrable()
        .lock_timeout(Duration::from_millis(1234))
        .statement_timeout(Duration::from_secs(77));
    let branch = tx.join_with(&orders, options).await.unwrap();
    let row = branch
        .query_one(
            "select current_setting('transaction_isolation'), current_setting('transaction_read_only'), \
             current_setting('transaction_deferrable'), current_setting('lock_timeout'), current_setting('statement_timeout')",
            &[],
        )
        .await
        .unwrap();
    let said: Vec<String> = (0..5).map(|i| row.get(i)).collect();
    assert_eq!(said, ["serializable", "on", "on", "1234ms", "77s"]);
    let refused = branch.batch_execute("insert into t (v) values ('a')").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    drop(branch);
    tx.abort().await;
}

/// Without this, the statement would run outside of any transaction, and stay whatever becomes of the others.
#[tokio::test]
async fn what_is_sent_after_the_work_ended_its_transaction_cannot_write() {
    let pair = Pair::new();
    let (manager, orders, _) = pair.open().await;
    let tx = manager.begin();
    let branch = tx.join(&orders).await.unwrap();
    branch.batch_execute("rollback").await.unwrap();
    let refused = branch.batch_execute("insert into t (v) values ('a')").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    drop(branch);
    tx.abort().await;
    assert_eq!(pair.values(), ["", ""]);
}

#[tokio::test]
async fn a_guard_that_outlives_its_transaction_leads_nowhere() {
    let pair = Pair::new();
    let (manager, orders, _) = pair.open().await;
    let tx = manager.begin_with(Options::default().time_limit(Duration::from_millis(300)));
    let handle = tx.handle();
    let branch = handle.join(&orders).await.unwrap();
    branch.batch_execute("insert into t (v) values ('a')").await.unwrap();
    // The time limit passes in the middle of it.
    let cut = branch.batch_execute("select pg_sleep(60)").await.unwrap_err();
    assert!(cut.is_closed() || cut.code().is_some(), "{cut:?}");
    let after = branch.batch_execute("begin read write; insert into t (v) values ('b'); commit").await;
    assert!(after.is_err(), "the connection is closed");
    drop(branch);
    let error = aborted(tx.commit().await);
    assert!(matches!(error, CommitError::Aborted { source: Cause::TimeLimit, .. }), "{error:?}");
    assert_eq!(pair.values(), ["", ""]);
    let running = "select count(*) from pg_stat_activity where datname = current_database() and query like '%pg_sleep%' and pid <> pg_backend_pid()";
    assert_eq!(pair.orders.psql(running).unwrap(), "0", "the session was ended");
}

/// How a branch ends.
#[derive(Clone, Copy, Debug)]
enum End {
    OnePhase,
    Prepared,
    Aborted,
    /// By a statement that failed, which a commit without a vote meets.
    WorkFails,
    /// By a constraint that fails at the commit without a vote.
    CommitFails,
    /// By the same at the vote.
    VoteFails,
}

/// Work that leaves its session otherwise than it was; which session, and how it found it.
async fn unsettle(branch: &PostgresBranch) -> (i32, String) {
    let found = "select pg_backend_pid(), concat_ws(' ', current_setting('search_path'), current_setting('default_transaction_read_only'), \
        current_setting('lock_timeout'), current_user = session_user, \
        (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()))";
    let row = branch.query_one(found, &[]).await.unwrap();
    let unsettle = "set search_path = nowhere; set default_transaction_read_only = off; set lock_timeout = 0; set role pg_read_all_data; \
        select pg_advisory_lock(7)";
    branch.batch_execute(unsettle).await.unwrap();
    (row.get(0), row.get(1))
}

const NEW: &str = "\"$user\", public on 5s t 0";

#[tokio::test]
async fn what_a_branch_leaves_in_its_session_is_gone_for_the_next() {
    let pair = Pair::new();
    pair.orders
        .psql("create table late (v text unique deferrable initially deferred); insert into late values ('a')")
        .unwrap();
    let (manager, orders, billing) = pair.open().await;
    let mut same = None;
    for end in
        [End::OnePhase, End::Prepared, End::Aborted, End::WorkFails, End::CommitFails, End::VoteFails, End::OnePhase]
    {
        let tx = manager.begin();
        let branch = tx.join_with(&orders, PostgresOptions::new().writes()).await.unwrap();
        branch.batch_execute("insert into t (v) values (gen_random_uuid())").await.unwrap();
        if let End::CommitFails | End::VoteFails = end {
            branch.batch_execute("insert into late values ('a')").await.unwrap();
        }
        let (pid, found) = unsettle(&branch).await;
        if let End::WorkFails = end {
            branch.batch_execute("select 1/0").await.unwrap_err();
        }
        drop(branch);
        if let End::Prepared | End::VoteFails = end {
            tx.join(&billing)
                .await
                .unwrap()
                .batch_execute("insert into t (v) values (gen_random_uuid())")
                .await
                .unwrap();
        }
        assert_eq!((*same.get_or_insert(pid), &*found), (pid, NEW), "before {end:?}");
        match end {
            End::OnePhase | End::Prepared => drop(tx.commit().await.unwrap()),
            End::Aborted => tx.abort().await,
            End::WorkFails | End::CommitFails | End::VoteFails => drop(aborted(tx.commit().await)),
        }
    }
}

/// What can't be prepared is cleaned away where nothing was.
#[tokio::test]
async fn what_cannot_be_prepared_is_gone_for_the_next() {
    let pair = Pair::new();
    let (manager, orders, _) = pair.open().await;
    for round in 0..3 {
        let tx = manager.begin();
        let branch = tx.join(&orders).await.unwrap();
        let left = "select (select count(*) from pg_cursors where name = 'held') + (select count(*) from pg_class where relname = 'mine') \
            + (select count(*) from pg_listening_channels())";
        assert_eq!(branch.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0, "round {round}");
        let work = "insert into t (v) values (gen_random_uuid()); create temp table mine (v text); listen news; \
            declare held cursor with hold for select 1";
        branch.batch_execute(work).await.unwrap();
        drop(branch);
        if round == 0 {
            tx.abort().await;
        } else {
            tx.commit().await.unwrap();
        }
    }
}

/// The cleaning is not waited for before the next branch begins, and is looked at before that one commits.
#[tokio::test]
async fn a_branch_on_a_session_that_could_not_be_cleaned_aborts() {
    use unanimous_testing::proxy::{Act, Proxy};
    let pair = Pair::new();
    let proxy = Proxy::start(pair.orders.cluster().port()).unwrap();
    let fails = proxy.on("DISCARD SEQUENCES", Act::Replace("SELECT 1/0       ".into()));
    let port = format!("port={}", pair.orders.cluster().port());
    let url = pair.orders.url().replace(&port, &format!("port={}", proxy.port()));
    let config: tokio_postgres::Config = url.parse().unwrap();
    let orders = Postgres::builder("orders", config).max_connections(1).build();
    let billing = Postgres::from_url("billing", &pair.billing.url()).unwrap();
    let manager = super::builder(&orders, &billing).build().await.unwrap();
    for (value, options) in
        [("a", PostgresOptions::new()), ("b", PostgresOptions::new()), ("c", PostgresOptions::new().writes())]
    {
        let tx = manager.begin();
        let insert = format!("insert into t (v) values ('{value}')");
        tx.join_with(&orders, options).await.unwrap().batch_execute(&insert).await.unwrap();
        let ended = tx.commit().await;
        assert_eq!(ended.is_ok(), value != "b", "{value}: {ended:?}");
    }
    assert!(fails.met());
    assert_eq!(pair.values(), ["a c", ""]);
}

/// From its start the session waits so long, and the transaction sets it only where it wants another bound.
#[tokio::test]
async fn a_lock_is_waited_for_as_long_as_the_store_or_the_join_says() {
    let pair = Pair::new();
    let config: tokio_postgres::Config = pair.orders.url().parse().unwrap();
    let orders = Postgres::builder("orders", config).lock_timeout(Duration::from_millis(1500)).build();
    let billing = Postgres::from_url("billing", &pair.billing.url()).unwrap();
    let manager = super::builder(&orders, &billing).build().await.unwrap();
    let mut said = Vec::new();
    for options in [
        PostgresOptions::new(),
        PostgresOptions::new().lock_timeout(Duration::from_secs(60)),
        PostgresOptions::new().lock_timeout(Duration::ZERO),
        PostgresOptions::new(),
    ] {
        let tx = manager.begin();
        let branch = tx.join_with(&orders, options).await.unwrap();
        said.push(branch.query_one("select current_setting('lock_timeout')", &[]).await.unwrap().get::<_, String>(0));
        drop(branch);
        tx.abort().await;
    }
    assert_eq!(said, ["1500ms", "1min", "1ms", "1500ms"]);
}

#[tokio::test]
async fn savepoints_are_the_servers_own() {
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    let tx = manager.begin();
    tx.join(&orders).await.unwrap().batch_execute("insert into t (v) values ('a')").await.unwrap();
    let savepoint = tx.savepoint().await.unwrap();
    let branch = tx.join(&orders).await.unwrap();
    branch.batch_execute("insert into t (v) values ('b')").await.unwrap();
    branch.batch_execute("select 1/0").await.unwrap_err();
    drop(branch);
    tx.join(&billing).await.unwrap().batch_execute("insert into t (v) values ('c')").await.unwrap();
    savepoint.rollback().await.unwrap();
    tx.join(&orders).await.unwrap().batch_execute("insert into t (v) values ('d')").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(pair.values(), ["a d", ""], "the failure is undone, and who joined since has left");
}

/// 40001 in the work, at the vote and at the commit is worth repeating.
#[tokio::test]
async fn a_serialization_failure_is_repeated() {
    let pair = Pair::new();
    pair.orders.psql("insert into t (v) values ('0')").unwrap();
    let (manager, orders, _) = pair.open().await;
    let met = std::sync::Arc::new(tokio::sync::Barrier::new(2));
    let count = |met: std::sync::Arc<tokio::sync::Barrier>| {
        let (manager, orders) = (manager.clone(), orders.clone());
        async move {
            let mut attempts = 0;
            manager
                .run(10, |tx| {
                    attempts += 1;
                    let first = attempts == 1;
                    let (orders, met) = (orders.clone(), met.clone());
                    async move {
                        let options = PostgresOptions::new().isolation(IsolationLevel::RepeatableRead);
                        let branch = tx.join_with(&orders, options).await?;
                        let v: String = branch.query_one("select v from t", &[]).await?.get(0);
                        if first {
                            met.wait().await;
                        }
                        let next = (v.parse::<i32>()? + 1).to_string();
                        branch.execute("update t set v = $1", &[&next]).await?;
                        Ok(())
                    }
                })
                .await
                .unwrap();
            attempts
        }
    };
    let (one, two) = tokio::join!(count(met.clone()), count(met));
    assert_eq!(pair.values()[0], "2");
    assert_eq!(one + two, 3, "one of the two met a conflict and was repeated");
}

/// A warning of a replica means "not yet"; one that the work raises says nothing of the commit.
#[tokio::test]
async fn warnings_that_the_work_raises_are_not_taken_for_a_replicas() {
    let pair = Pair::new();
    pair.orders
        .psql(
            "create function warn() returns trigger language plpgsql as \
             $$ begin raise warning 'as it commits'; return null; end $$; \
             create constraint trigger warn after insert on t deferrable initially deferred for each row execute function warn()",
        )
        .unwrap();
    let (manager, orders, billing) = pair.open().await;
    let tx = manager.begin();
    let work = "do $$ begin raise warning 'in the work'; end $$; insert into t (v) values ('a')";
    tx.join(&orders).await.unwrap().batch_execute(work).await.unwrap();
    tx.commit().await.unwrap();
    let tx = manager.begin();
    tx.join(&orders).await.unwrap().batch_execute("insert into t (v) values ('b')").await.unwrap();
    tx.join(&billing).await.unwrap().batch_execute("insert into t (v) values ('c')").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(pair.values(), ["a b", "c"]);
}

/// The driver asks each host whether it reads only, which our own sessions do by default otherwise.
#[tokio::test]
async fn a_primary_is_found_among_hosts() {
    let pair = Pair::new();
    let url = format!("{} target_session_attrs=read-write", pair.orders.url());
    let orders = Postgres::from_url("orders", &url).unwrap();
    orders.check().await.unwrap();
    let manager = TransactionManager::builder(MemoryLog::new()).resource(orders.clone()).build().await.unwrap();
    let tx = manager.begin();
    let branch = tx.join(&orders).await.unwrap();
    branch.batch_execute("insert into t (v) values ('a'); set search_path = nowhere").await.unwrap();
    drop(branch);
    tx.commit().await.unwrap();
    let tx = manager.begin();
    let branch = tx.join(&orders).await.unwrap();
    let path: String = branch.query_one("select current_setting('search_path')", &[]).await.unwrap().get(0);
    assert_eq!(path, "\"$user\", public", "such a session is cleaned too");
    drop(branch);
    tx.abort().await;
    assert_eq!(pair.values(), ["a", ""]);
}
