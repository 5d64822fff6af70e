//! `notify`: after the commit, in order, never lost, never twice, whoever has to deliver it.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use unanimous::log::MemoryLog;
use unanimous::postgres::{Postgres, PostgresError, PostgresOptions, tokio_postgres};
use unanimous::{
    Branch, BranchContext, BranchId, CommitError, DeciderId, DecisionLog, FailureKind, Options, ResourceManager,
    TransactionManager, Work,
};
use unanimous_testing::postgres::{Cluster, Database};

use super::listener::Listener;
use super::{Pair, connect, prepared};
use crate::support::aborted;

fn pairs(heard: &[(&str, &str)]) -> Vec<(String, String)> {
    heard.iter().map(|&(channel, payload)| (channel.to_owned(), payload.to_owned())).collect()
}

/// What is in the outbox, as a stranger sees it.
fn outbox(database: &Database<'_>) -> String {
    if database.psql("select to_regclass('unanimous.outbox') is null").unwrap() == "t" {
        return "no table".to_owned();
    }
    database.psql("select coalesce(string_agg(channel, ' ' order by branch, n), '') from unanimous.outbox").unwrap()
}

/// The id of a branch of a transaction that no manager knows.
fn branch_id() -> BranchId {
    let owner = MemoryLog::new().owner();
    BranchId { transaction: owner.transaction(1), decider: DeciderId::Log, number: 0 }
}

/// A branch that was prepared with these notifications, and is left to whoever finishes it.
async fn prepare(store: &Postgres, id: &BranchId, payloads: &[&str]) -> <Postgres as ResourceManager>::Branch {
    let branch = store.begin(&BranchContext::new(id.transaction), PostgresOptions::new()).await.unwrap();
    for payload in payloads {
        branch.notify_with("jobs", payload).unwrap();
    }
    assert_eq!(Branch::flush(&branch).await.unwrap(), Work::Wrote);
    Branch::prepare(&branch, id).await.unwrap();
    branch
}

#[tokio::test]
async fn one_that_commits_in_one_phase_notifies_in_its_own_transaction() {
    let pair = Pair::new();
    let (manager, orders, _) = pair.open().await;
    let mut listener = Listener::new(&pair.orders.url(), &["jobs", "news"]).await;
    let tx = manager.begin();
    let branch = tx.join_with(&orders, PostgresOptions::new().notify("jobs")).await.unwrap();
    branch.batch_execute("insert into t (v) values ('a')").await.unwrap();
    branch.notify_with("news", "first").unwrap();
    drop(branch);
    tx.join(&orders).await.unwrap().notify_with("news", "second").unwrap();
    assert_eq!(listener.heard().await, [], "nothing before the commit");
    tx.commit().await.unwrap();
    assert_eq!(listener.heard().await, pairs(&[("jobs", ""), ("news", "first"), ("news", "second")]));
    assert_eq!(pair.values(), ["a", ""]);
    assert_eq!(outbox(&pair.orders), "no table", "no row was needed");
}

#[tokio::test]
async fn one_that_is_prepared_notifies_after_commit_prepared() {
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    let mut listener = Listener::new(&pair.orders.url(), &["jobs", "news"]).await;
    let tx = manager.begin();
    // No work of its own: the notifications alone make it take part.
    tx.join(&orders).await.unwrap().notify_with("jobs", "1").unwrap();
    tx.join(&billing).await.unwrap().batch_execute("insert into t (v) values ('b')").await.unwrap();
    tx.join(&orders).await.unwrap().notify("news").unwrap();
    tx.join(&orders).await.unwrap().notify_with("jobs", "2").unwrap();
    assert_eq!(listener.heard().await, []);
    let committed = tx.commit().await.unwrap();
    assert_eq!(committed.pending, 0);
    assert_eq!(listener.heard().await, pairs(&[("jobs", "1"), ("news", ""), ("jobs", "2")]));
    assert_eq!(outbox(&pair.orders), "", "what was delivered is gone");
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
}

#[tokio::test]
async fn a_carrier_notifies_in_the_transaction_that_carries_the_decision() {
    let pair = Pair::new();
    let orders =
        Postgres::builder("orders", pair.orders.url().parse::<tokio_postgres::Config>().unwrap()).carrier().build();
    let (_, billing) = pair.stores();
    let manager = super::builder(&orders, &billing).build().await.unwrap();
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    pair.orders.psql("create table d (id int references t (id) deferrable initially deferred)").unwrap();
    for (work, v, committed) in
        [("insert into t (v) values ('a')", "b", true), ("insert into d values (7)", "c", false)]
    {
        let tx = manager.begin();
        let branch = tx.join(&orders).await.unwrap();
        branch.batch_execute(work).await.unwrap();
        branch.notify_with("jobs", "1").unwrap();
        branch.notify_with("jobs", "2").unwrap();
        drop(branch);
        tx.join(&billing).await.unwrap().execute("insert into t (v) values ($1)", &[&v]).await.unwrap();
        assert_eq!(tx.commit().await.is_ok(), committed);
        let expected = if committed { pairs(&[("jobs", "1"), ("jobs", "2")]) } else { Vec::new() };
        assert_eq!(listener.heard().await, expected, "{work}");
        assert_eq!(outbox(&pair.orders), "", "no row was needed");
    }
    assert_eq!(pair.values(), ["a", "b"]);
}

#[tokio::test]
async fn one_that_aborts_notifies_nobody() {
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    let tx = manager.begin();
    tx.join(&orders).await.unwrap().notify("jobs").unwrap();
    tx.abort().await;
    // With a vote that is a no, after ours was a yes or not.
    pair.billing.psql("create table d (id int references t (id) deferrable initially deferred)").unwrap();
    let tx = manager.begin();
    tx.join(&orders).await.unwrap().notify("jobs").unwrap();
    tx.join(&billing).await.unwrap().batch_execute("insert into d values (7)").await.unwrap();
    aborted(tx.commit().await);
    // Alone, where a statement has failed.
    let tx = manager.begin();
    let branch = tx.join(&orders).await.unwrap();
    branch.notify("jobs").unwrap();
    branch.batch_execute("insert into t (v) values ('a'); savepoint s; select 1/0").await.unwrap_err();
    drop(branch);
    aborted(tx.commit().await);
    assert_eq!(listener.heard().await, []);
    assert_eq!(outbox(&pair.orders), "");
    assert_eq!(pair.values(), ["", ""]);
}

/// Outside of the branch's transaction a notification goes out at once, and a row is committed at once.
#[tokio::test]
async fn nothing_is_notified_outside_of_the_branchs_transaction() {
    let pair = Pair::new();
    let (orders, _) = pair.stores();
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    // The outbox is there, so that a row would be written.
    let id = branch_id();
    drop(prepare(&orders, &id, &["0"]).await);
    ResourceManager::rollback(&orders, &id).await.unwrap();
    for prepared in [false, true] {
        let id = branch_id();
        // A connection that is not ours alone can write outside of its transaction.
        let client = std::sync::Arc::new(connect(&pair.orders.url()).await);
        let options = PostgresOptions::new().client(client.clone()).notify("jobs");
        let branch = orders.begin(&BranchContext::new(id.transaction), options).await.unwrap();
        Branch::flush(&branch).await.unwrap();
        // Behind the branch's back, after it was asked.
        client.batch_execute("rollback").await.unwrap();
        let refused = if prepared {
            Branch::prepare(&branch, &id).await.unwrap_err()
        } else {
            Branch::commit_one_phase(&branch, &id).await.unwrap_err()
        };
        assert_eq!(refused.kind(), FailureKind::Refused, "{refused:?}");
        assert!(format!("{refused:?}").contains("WorkEnded"), "{refused:?}");
        Branch::rollback(&branch).await.unwrap();
    }
    assert_eq!(orders.in_doubt().await.unwrap(), []);
    assert_eq!(listener.heard().await, []);
    assert_eq!(outbox(&pair.orders), "");
}

#[tokio::test]
async fn a_rollback_to_a_savepoint_drops_those_asked_for_since() {
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    for two_phase in [false, true] {
        let tx = manager.begin();
        let notify = async |payload: &str| tx.join(&orders).await.unwrap().notify_with("jobs", payload).unwrap();
        notify("a").await;
        let outer = tx.savepoint().await.unwrap();
        notify("b").await;
        let inner = tx.savepoint().await.unwrap();
        notify("c").await;
        inner.rollback().await.unwrap();
        notify("d").await;
        outer.rollback().await.unwrap();
        notify("e").await;
        if two_phase {
            tx.join(&billing).await.unwrap().batch_execute("insert into t (v) values ('b')").await.unwrap();
        }
        tx.commit().await.unwrap();
        assert_eq!(listener.heard().await, pairs(&[("jobs", "a"), ("jobs", "e")]), "two-phase: {two_phase}");
    }
    let tx = manager.begin();
    let savepoint = tx.savepoint().await.unwrap();
    tx.join(&orders).await.unwrap().notify("jobs").unwrap();
    savepoint.rollback().await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(listener.heard().await, [], "who joined since has left, with its notifications");
}

/// Each of a name and a payload, in both ways in which they go out.
#[tokio::test]
async fn strange_names_and_payloads_arrive_as_they_are() {
    let long_channel = "c".repeat(63);
    let long_payload = "x".repeat(7_999);
    let strange = [
        ("\"; drop table t; --", "'; drop table t; --"),
        ("it's", "it''s \\ \\' $1 %s"),
        ("Größe 数 🦀", "Größe 数 🦀\n\t\r"),
        ("Jobs", "case is kept"),
        (" ", "a space"),
        (&long_channel, &long_payload),
    ];
    let channels: Vec<&str> = strange.iter().map(|(channel, _)| *channel).collect();
    let pair = Pair::new();
    let (manager, orders, billing) = pair.open().await;
    let mut listener = Listener::new(&pair.orders.url(), &channels).await;
    for two_phase in [false, true] {
        let tx = manager.begin();
        let branch = tx.join(&orders).await.unwrap();
        for (channel, payload) in strange {
            branch.notify_with(channel, payload).unwrap();
        }
        drop(branch);
        if two_phase {
            tx.join(&billing).await.unwrap().batch_execute("insert into t (v) values ('b')").await.unwrap();
        }
        tx.commit().await.unwrap();
        assert_eq!(listener.heard().await, pairs(&strange), "two-phase: {two_phase}");
    }
}

#[tokio::test]
async fn what_the_server_would_refuse_is_refused_at_once_and_changes_nothing() {
    let pair = Pair::new();
    let (manager, orders, _) = pair.open().await;
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    let tx = manager.begin();
    let long = "x".repeat(64);
    let refused = tx.join_with(&orders, PostgresOptions::new().notify(&long)).await.unwrap_err();
    assert!(format!("{refused:?}").contains("1 to 63 bytes"), "{refused:?}");
    let refused = tx.join_with(&orders, PostgresOptions::new().read_only().notify("jobs")).await.unwrap_err();
    assert!(format!("{refused:?}").contains("read only"), "{refused:?}");
    let branch = tx.join(&orders).await.unwrap();
    for (channel, payload) in [("", ""), (&*long, ""), ("jobs", &*"x".repeat(8_000)), ("a\0b", ""), ("jobs", "\0")] {
        let refused = branch.notify_with(channel, payload).unwrap_err();
        assert!(matches!(refused, PostgresError::Notification(_)), "{refused:?}");
    }
    branch.notify("jobs").unwrap();
    drop(branch);
    tx.commit().await.unwrap();
    assert_eq!(listener.heard().await, pairs(&[("jobs", "")]));
    // The bounds are the server's own.
    for (channel, payload) in [(long, "x".to_owned()), ("jobs".to_owned(), "x".repeat(8_000))] {
        let error = connect(&pair.orders.url()).await.query("select pg_notify($1, $2)", &[&channel, &payload]).await;
        assert_eq!(error.unwrap_err().code(), Some(&SqlState::INVALID_PARAMETER_VALUE));
    }
}

/// A process that dies between COMMIT PREPARED and its delivery: the rows can be seen, and whoever recovers delivers them.
#[tokio::test]
async fn recovery_delivers_what_nobody_did_in_order_and_once() {
    let pair = Pair::new();
    let (dead, billing) = pair.stores();
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    let payloads: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
    let id = branch_id();
    drop(prepare(&dead, &id, &payloads).await);
    dead.close();
    assert_eq!(outbox(&pair.orders), "", "what is not committed can't be seen");
    let (alive, _) = pair.stores();
    assert_eq!(alive.in_doubt().await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(listener.heard().await, [], "and is not delivered");
    pair.orders.psql(&format!("commit prepared '{id}'")).unwrap();
    assert_eq!(listener.heard().await, []);
    // Several recover at once.
    let managers: Vec<_> = (0..4).map(|_| recoverer(&pair, &billing)).collect();
    futures_util::future::join_all(managers).await;
    let expected: Vec<_> = payloads.iter().map(|payload| ("jobs".to_owned(), (*payload).to_owned())).collect();
    assert_eq!(listener.heard().await, expected);
    assert_eq!(outbox(&pair.orders), "");
}

/// A prepared branch that has notified holds the outbox; VACUUM FULL queues behind it, and the delivery would behind that.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_holds_the_outbox_is_listed_before_anybody_waits_for_it() {
    let pair = Pair::new();
    let (orders, _) = pair.stores();
    let id = branch_id();
    drop(prepare(&orders, &id, &["a"]).await);
    let between = Between::new(&pair.orders).await;
    let listing = tokio::time::timeout(Duration::from_secs(60), orders.in_doubt());
    assert_eq!(listing.await.expect("the list waits for nobody").unwrap(), std::slice::from_ref(&id));
    ResourceManager::rollback(&orders, &id).await.unwrap();
    between.let_go().await;
    assert_eq!(prepared(&pair.orders), "");
}

/// Whatever keeps one branch's rows from being delivered, those behind it are.
#[tokio::test]
async fn a_row_that_cant_be_delivered_holds_up_no_other() {
    let pair = Pair::new();
    let (orders, _) = pair.stores();
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    let id = branch_id();
    drop(prepare(&orders, &id, &["last"]).await);
    pair.orders.psql(&format!("commit prepared '{id}'")).unwrap();
    // The server takes no such channel.
    let (channel, first) = ("c".repeat(64), "insert into unanimous.outbox (branch, n, channel, payload) values");
    pair.orders.psql(&format!("{first} ('0', 1, '{channel}', ''), ('1', 1, '{channel}', '')")).unwrap();
    assert_eq!(orders.in_doubt().await.unwrap(), []);
    assert_eq!(listener.heard().await, pairs(&[("jobs", "last")]));
    assert_eq!(outbox(&pair.orders), format!("{channel} {channel}"));
}

async fn recoverer(pair: &Pair, billing: &Postgres) -> TransactionManager {
    let orders = Postgres::from_url("orders", &pair.orders.url()).unwrap();
    TransactionManager::builder(MemoryLog::new()).resource(orders).resource(billing.clone()).build().await.unwrap()
}

/// Recovery, which commits a branch in place of its driver, delivers for it too.
#[tokio::test]
async fn whoever_commits_a_prepared_branch_delivers() {
    let pair = Pair::new();
    let (orders, _) = pair.stores();
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    let id = branch_id();
    drop(prepare(&orders, &id, &["a", "b"]).await);
    ResourceManager::commit(&orders, &id).await.unwrap();
    assert_eq!(listener.heard().await, pairs(&[("jobs", "a"), ("jobs", "b")]));
    ResourceManager::commit(&orders, &id).await.unwrap();
    assert_eq!(listener.heard().await, [], "repeated, there is nothing left to deliver");
    let id = branch_id();
    drop(prepare(&orders, &id, &["c"]).await);
    ResourceManager::rollback(&orders, &id).await.unwrap();
    assert_eq!(orders.in_doubt().await.unwrap(), []);
    assert_eq!(listener.heard().await, [], "a rollback takes the rows with it");
}

/// The session is ended between COMMIT PREPARED and the delivery that was sent behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_is_cut_off_is_made_on_another_connection() {
    let pair = Pair::new();
    let (orders, _) = pair.stores();
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    let id = branch_id();
    let branch = prepare(&orders, &id, &["a", "b"]).await;
    let between = Between::new(&pair.orders).await;
    let committing = tokio::spawn(async move {
        Branch::commit(&branch).await.unwrap();
        branch
    });
    let pid = between.waiting_delivery().await;
    assert_eq!(prepared(&pair.orders), "", "it is committed, and its delivery waits");
    pair.orders.psql(&format!("select pg_terminate_backend({pid})")).unwrap();
    between.let_go().await;
    let branch = committing.await.unwrap();
    assert_eq!(listener.heard().await, pairs(&[("jobs", "a"), ("jobs", "b")]));
    Branch::commit(&branch).await.unwrap();
    assert_eq!(listener.heard().await, [], "a repeated commit delivers nothing again");
}

/// Nobody may delete from the outbox for a while: the commit says that it is not done, and its repetition only delivers.
#[tokio::test]
async fn a_commit_whose_delivery_fails_is_repeated_until_it_is_delivered() {
    let cluster = Cluster::shared();
    let database = cluster.database().unwrap();
    let role = format!("{}_app", database.name());
    database.psql(&format!("create role {role} login")).unwrap();
    let owner = Postgres::from_url("orders", &database.url()).unwrap();
    let (id, mut listener) = (branch_id(), Listener::new(&database.url(), &["jobs"]).await);
    // Made by somebody who may; this role may write rows only.
    drop(prepare(&owner, &id, &["0"]).await);
    ResourceManager::rollback(&owner, &id).await.unwrap();
    let grant = |what: &str| {
        database.psql(&format!("grant usage on schema unanimous to {role}; grant {what} on unanimous.outbox to {role}"))
    };
    grant("insert").unwrap();
    let store = Postgres::from_url("orders", &database.url_as(&role)).unwrap();
    let id = branch_id();
    let branch = prepare(&store, &id, &["a"]).await;
    for _ in 0..2 {
        let error = Branch::commit(&branch).await.unwrap_err();
        assert!(format!("{error:?}").contains("delivering notifications"), "{error:?}");
        assert_eq!(prepared(&database), "", "it is committed all the same");
        assert_eq!(outbox(&database), "jobs");
    }
    assert_eq!(store.in_doubt().await.unwrap(), [], "recovery of branches goes on without it");
    grant("select, update, delete").unwrap();
    Branch::commit(&branch).await.unwrap();
    assert_eq!(listener.heard().await, pairs(&[("jobs", "a")]));
    assert_eq!(outbox(&database), "");
}

#[tokio::test]
async fn without_the_outbox_and_the_right_to_make_it_the_vote_is_a_no_that_says_what_to_do() {
    let database = Cluster::shared().database().unwrap();
    let role = format!("{}_app", database.name());
    database.psql(&format!("create role {role} login")).unwrap();
    let store = Postgres::from_url("orders", &database.url_as(&role)).unwrap();
    let id = branch_id();
    let branch = store.begin(&BranchContext::new(id.transaction), PostgresOptions::new().notify("jobs")).await.unwrap();
    Branch::flush(&branch).await.unwrap();
    let refused = Branch::prepare(&branch, &id).await.unwrap_err();
    assert_eq!(refused.kind(), FailureKind::Refused, "{refused:?}");
    assert!(format!("{refused:?}").contains("NoSchema"), "{refused:?}");
    Branch::rollback(&branch).await.unwrap();
    assert_eq!(prepared(&database), "");
    // In one phase it needs none.
    let mut listener = Listener::new(&database.url(), &["jobs"]).await;
    let branch = store.begin(&BranchContext::new(id.transaction), PostgresOptions::new().notify("jobs")).await.unwrap();
    Branch::flush(&branch).await.unwrap();
    Branch::commit_one_phase(&branch, &id).await.unwrap();
    assert_eq!(listener.heard().await, pairs(&[("jobs", "")]));
}

/// The first users of a database meet: each finds the outbox missing and makes it.
#[tokio::test]
async fn the_outbox_is_made_once_by_several_at_once() {
    let pair = Pair::new();
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    let ids: Vec<BranchId> = (0..6).map(|_| branch_id()).collect();
    let each = ids.iter().enumerate().map(|(n, id)| {
        let store = pair.stores().0;
        async move {
            let branch = prepare(&store, id, &[&n.to_string()]).await;
            Branch::commit(&branch).await.unwrap();
        }
    });
    futures_util::future::join_all(each).await;
    let mut heard: Vec<_> = listener.heard().await.into_iter().map(|(_, payload)| payload).collect();
    heard.sort();
    assert_eq!(heard, ["0", "1", "2", "3", "4", "5"]);
}

/// A time limit that passes while a guard is used: what it asks for afterwards goes nowhere.
#[tokio::test]
async fn after_the_end_nothing_can_be_asked_for() {
    let pair = Pair::new();
    let (manager, orders, _) = pair.open().await;
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    let tx = manager.begin_with(Options::default().time_limit(Duration::from_millis(200)));
    let handle = tx.handle();
    let branch = handle.join(&orders).await.unwrap();
    branch.notify("jobs").unwrap();
    branch.batch_execute("select pg_sleep(60)").await.unwrap_err();
    let error = aborted(tx.commit().await);
    assert!(matches!(error, CommitError::Aborted { .. }), "{error:?}");
    let refused = branch.notify("jobs").unwrap_err();
    assert!(matches!(refused, PostgresError::Ended), "{refused:?}");
    drop(branch);
    assert_eq!(listener.heard().await, []);
}

/// Holds the outbox from the moment on at which a prepared branch lets go of it.
struct Between {
    locker: tokio_postgres::Client,
    locking: tokio::task::JoinHandle<()>,
}

impl Between {
    /// Queues for the outbox, which the prepared branch holds: before any delivery that is sent behind its commit.
    async fn new(database: &Database<'_>) -> Self {
        let (locker, held) = (connect(&database.url()).await, connect(&database.url()).await);
        held.batch_execute("begin").await.unwrap();
        let locking = tokio::spawn(async move {
            held.batch_execute("lock table unanimous.outbox in access exclusive mode").await.unwrap();
            std::future::pending::<()>().await;
        });
        let this = Self { locker, locking };
        this.until("select pid from pg_locks where relation = 'unanimous.outbox'::regclass and not granted and mode = 'AccessExclusiveLock'").await;
        this
    }

    /// The backend whose delivery waits.
    async fn waiting_delivery(&self) -> i32 {
        self.until("select pid from pg_locks where relation = 'unanimous.outbox'::regclass and not granted and mode <> 'AccessExclusiveLock'").await
    }

    async fn until(&self, sql: &str) -> i32 {
        let asking = async {
            loop {
                if let Some(row) = self.locker.query_opt(sql, &[]).await.unwrap() {
                    return row.get(0);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        crate::support::ended(asking).await
    }

    /// Dropped, its connection ends, and the lock with it.
    async fn let_go(self) {
        let Self { locking, .. } = self;
        locking.abort();
        let _ = locking.await;
    }
}
