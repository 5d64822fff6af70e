//! What another driver sends, on real servers: where its connection leads, a vote that can't lie, notifications that are not lost.

use unanimous::log::MemoryLog;
use unanimous::postgres::tokio_postgres::error::SqlState;
use unanimous::postgres::tokio_postgres::{Client, Config, SimpleQueryMessage};
use unanimous::postgres::{ForeignBranch, Postgres, PostgresError};
use unanimous::{BranchId, DeciderId, DecisionLog, DecisionRecord, Known, Note, Participant, ResourceManager};

use super::listener::Listener;
use super::{Pair, connect, prepared};

fn branch_id() -> BranchId {
    BranchId { transaction: MemoryLog::new().owner().transaction(1), decider: DeciderId::Log, number: 0 }
}

/// The row of `who_sql`, as another driver has it.
async fn who(client: &Client) -> [String; 3] {
    let answer = client.simple_query(ForeignBranch::who_sql()).await.unwrap();
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    ["system", "database", "role"].map(|name| row.unwrap().get(name).unwrap().to_owned())
}

#[tokio::test]
async fn a_connection_is_its_databases_whatever_the_string_was() {
    let pair = Pair::new();
    let (orders, billing) = pair.stores();
    let [system, database, role] = who(&connect(&pair.orders.url()).await).await;
    // Neither was reached before.
    assert!(orders.leads_here(&system, &database, &role).await.unwrap());
    assert!(!billing.leads_here(&system, &database, &role).await.unwrap());
    let other = orders.leads_here(&system, &database, "somebody").await.unwrap_err();
    assert!(matches!(other, PostgresError::OtherRole { .. }), "{other}");
    let down = Postgres::from_url("down", "host=127.0.0.1 port=1 user=nobody dbname=none").unwrap();
    assert!(down.leads_here(&system, &database, &role).await.is_err());
    assert!(orders.leads_here("not a number", &database, &role).await.is_err());
}

#[tokio::test]
async fn a_vote_tells_a_failed_transaction_and_an_ended_one_from_its_own() {
    let pair = Pair::new();
    let client = connect(&pair.orders.url()).await;
    let branch = ForeignBranch::new("a 'quoted' \\mark");
    let id = branch_id().to_string();
    let vote = branch.vote_sql(&id, &[]).unwrap();
    let code = async |work: &str| {
        client.batch_execute(&format!("begin; {}", branch.mark_sql())).await.unwrap();
        let _ = client.batch_execute(work).await;
        let error = client.simple_query(&vote).await.unwrap_err();
        let _ = client.batch_execute("rollback").await;
        error.code().cloned()
    };
    assert_eq!(code("select 1/0").await, Some(SqlState::IN_FAILED_SQL_TRANSACTION));
    for ended in ["commit", "rollback", "commit; begin", "rollback and chain"] {
        assert_eq!(code(ended).await, Some(SqlState::DIVISION_BY_ZERO), "{ended}");
    }
    assert_eq!(prepared(&pair.orders), "");
    client.batch_execute(&format!("begin; {}; insert into t (v) values ('a')", branch.mark_sql())).await.unwrap();
    client.simple_query(&vote).await.unwrap();
    assert_eq!(prepared(&pair.orders), id);
    let (orders, _) = pair.stores();
    orders.commit(&id.parse().unwrap()).await.unwrap();
    assert_eq!(pair.values(), ["a", ""]);
}

#[tokio::test]
async fn notifications_go_with_the_vote_and_are_delivered_once() {
    let pair = Pair::new();
    let (orders, _) = pair.stores();
    orders.ensure_outbox().await.unwrap();
    let mut listener = Listener::new(&pair.orders.url(), &["jobs"]).await;
    let client = connect(&pair.orders.url()).await;
    let branch = ForeignBranch::new("mark");
    let made = [("jobs".to_owned(), "it's".to_owned()), ("jobs".to_owned(), "second".to_owned())];
    for by_resource in [false, true] {
        let id = branch_id();
        client
            .batch_execute(&format!("begin; {}; insert into t (v) values ('{by_resource}')", branch.mark_sql()))
            .await
            .unwrap();
        client.simple_query(&branch.vote_sql(&id.to_string(), &made).unwrap()).await.unwrap();
        assert_eq!(listener.heard().await, [], "nothing before the commit");
        if by_resource {
            orders.commit(&id).await.unwrap();
        } else {
            client.simple_query(&format!("commit prepared '{id}'")).await.unwrap();
            client.simple_query(&ForeignBranch::deliver_sql(&id.to_string())).await.unwrap();
        }
        // The other one finds nothing left.
        orders.in_doubt().await.unwrap();
        client.simple_query(&ForeignBranch::deliver_sql(&id.to_string())).await.unwrap();
        assert_eq!(listener.heard().await, made);
    }
    let refused = branch.vote_sql("id", &[(String::new(), String::new())]).unwrap_err();
    assert!(matches!(refused, PostgresError::Notification(_)), "{refused}");
}

/// Its rows are what the store's own branch writes, in a session that keeps the statements too; they need the run to be known, and are there or
/// not with the work.
#[tokio::test]
async fn a_carriers_message_commits_the_work_and_the_decision_or_neither() {
    let pair = Pair::new();
    let url = pair.orders.url();
    let carrier = Postgres::builder("orders", url.parse::<Config>().unwrap()).carrier().build();
    let owner = MemoryLog::new().owner();
    let client = connect(&url).await;
    let branch = ForeignBranch::new("mark");
    let record = |sequence| DecisionRecord {
        transaction: owner.transaction(sequence),
        participants: vec![Participant { number: 3, resource: "it's".to_owned(), store: None }],
        decided_at: 1,
        note: Note::default(),
    };
    let carry = async |work: &str, decision: String| {
        client.batch_execute(&format!("begin; {}", branch.mark_sql())).await.unwrap();
        let _ = client.batch_execute(work).await;
        let sent = client.simple_query(&format!("{}; {decision}; commit", branch.guard_sql())).await;
        let _ = client.batch_execute("rollback").await;
        sent.map(drop).map_err(|error| error.code().cloned().unwrap())
    };
    carrier.check().await.unwrap();
    let insert = |value: &str| format!("insert into t (v) values ('{value}')");
    let sql = |sequence| ForeignBranch::decision_sql(&record(sequence)).unwrap();
    assert_eq!(carry(&insert("unknown run"), sql(1)).await, Err(SqlState::NOT_NULL_VIOLATION));
    carrier.ready_to_carry(owner).await.unwrap();
    assert_eq!(carry("select 1/0", sql(1)).await, Err(SqlState::IN_FAILED_SQL_TRANSACTION));
    assert_eq!(carry("rollback and chain", sql(1)).await, Err(SqlState::DIVISION_BY_ZERO));
    assert_eq!(carrier.decided(record(1).transaction, owner).await.unwrap(), None);
    let kept = ForeignBranch::kept_decision_sql(&record(2)).unwrap();
    carry(&insert("1"), sql(1)).await.unwrap();
    carry(&insert("2"), format!("{}; {kept}", ForeignBranch::keep_decisions_sql())).await.unwrap();
    assert_eq!(carry(&insert("twice"), kept).await, Err(SqlState::UNIQUE_VIOLATION));
    assert_eq!(pair.values(), ["1 2", ""]);
    for sequence in [1, 2] {
        let known = carrier.decision(record(sequence).transaction, owner).await.unwrap();
        assert_eq!(known, Known::Commit(record(sequence)));
    }
}

/// Rule 9: what is answered is on the disk, whatever the database's setting is.
#[tokio::test]
async fn a_carriers_message_waits_for_the_disk() {
    let pair = Pair::new();
    let database = &pair.orders;
    let see = "create table seen (n serial, v text); create function see() returns trigger language plpgsql as \
        $$ begin insert into seen (v) values (current_setting('synchronous_commit')); return new; end $$; \
        create constraint trigger see after insert on t deferrable initially deferred for each row execute function see()";
    database.psql(see).unwrap();
    database.psql(&format!("alter database {} set synchronous_commit = off", database.name())).unwrap();
    let carrier = Postgres::builder("orders", database.url().parse::<Config>().unwrap()).carrier().build();
    let owner = MemoryLog::new().owner();
    carrier.check().await.unwrap();
    carrier.ready_to_carry(owner).await.unwrap();
    let record = |sequence| DecisionRecord {
        transaction: owner.transaction(sequence),
        participants: Vec::new(),
        decided_at: 1,
        note: Note::default(),
    };
    let client = connect(&database.url()).await;
    let branch = ForeignBranch::new("mark");
    let kept = ForeignBranch::kept_decision_sql(&record(2)).unwrap();
    for decision in [
        "select 1".to_owned(),
        ForeignBranch::durable_sql().to_owned(),
        ForeignBranch::decision_sql(&record(1)).unwrap(),
        format!("{}; {kept}", ForeignBranch::keep_decisions_sql()),
        ForeignBranch::kept_decision_sql(&record(3)).unwrap(),
    ] {
        client.batch_execute(&format!("begin; {}; insert into t default values", branch.mark_sql())).await.unwrap();
        client.simple_query(&format!("{}; {decision}; commit", branch.guard_sql())).await.unwrap();
    }
    assert_eq!(database.psql("select string_agg(v, ' ' order by n) from seen").unwrap(), "off on on on on");
}
