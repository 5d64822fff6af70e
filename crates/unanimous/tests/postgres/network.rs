//! What a network does that sees messages one by one: answers in pieces, and answers that say something else.

use std::time::Duration;

use unanimous::postgres::Postgres;
use unanimous::{Cause, FailureKind, Transaction};
use unanimous_testing::proxy::postgres::{Act, Direction, Proxy, Said, error, notice};

use super::{Pair, builder, prepared};
use crate::support::{aborted, unknown};

/// The first database as `orders`, behind a proxy.
fn behind(pair: &Pair) -> (Proxy, Postgres, Postgres) {
    let port = pair.orders.cluster().port();
    let proxy = Proxy::start(port).unwrap();
    let url = pair.orders.url().replace(&format!("port={port}"), &format!("port={}", proxy.port()));
    let (_, billing) = pair.stores();
    (proxy, Postgres::from_url("orders", &url).unwrap(), billing)
}

/// `BEGIN` is not waited for, and the driver keeps back what comes behind an answer of which three pieces were not taken.
#[tokio::test]
async fn an_answer_to_begin_that_comes_in_pieces_does_not_stop_the_work() {
    let pair = Pair::new();
    let (proxy, orders, billing) = behind(&pair);
    let manager = builder(&orders, &billing).build().await.unwrap();
    let tx = manager.begin();
    let branch = tx.join(&orders).await.unwrap();
    for piece in ["BEGIN\0", "SET\0", "SET\0"] {
        proxy.on(Direction::ToClient, piece, Act::Delay(Duration::from_millis(30)));
    }
    let insert = branch.batch_execute("insert into t (v) values ('a')");
    tokio::time::timeout(Duration::from_secs(30), insert).await.expect("the insert was answered").unwrap();
    drop(branch);
    tx.commit().await.unwrap();
    assert_eq!(pair.values()[0], "a");
}

/// What an error says whose code alone would be an answer.
const DISK_FULL: Said<'_> = Said {
    translated: "SCHWERWIEGEND",
    severity: "FATAL",
    code: "53100",
    text: "as the session ends",
    routine: "mdextend",
};

async fn insert(tx: &Transaction, store: &Postgres, value: &str) {
    let insert = format!("insert into t (v) values ('{value}')");
    tx.join(store).await.unwrap().batch_execute(&insert).await.unwrap();
}

/// A session that ends says nothing of the vote, whatever its code: it had been done here.
#[tokio::test]
async fn a_fatal_error_at_the_vote_is_no_answer() {
    let pair = Pair::new();
    let (proxy, orders, billing) = behind(&pair);
    let manager = builder(&orders, &billing).build().await.unwrap();
    let tx = manager.begin();
    insert(&tx, &orders, "a").await;
    insert(&tx, &billing, "b").await;
    let rule = proxy.on(Direction::ToServer, "PREPARE TRANSACTION", Act::Answer(error(&DISK_FULL)));
    let error = aborted(tx.commit().await);
    let lost = matches!(error.cause(), Cause::Branch { source, .. } if source.kind() == FailureKind::Lost);
    assert!(lost, "{error:?}");
    assert!(rule.met());
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
    assert_eq!(pair.values(), ["", ""]);
}

/// The same of a commit in one phase: nobody knows.
#[tokio::test]
async fn a_fatal_error_at_a_commit_is_no_answer() {
    let pair = Pair::new();
    let (proxy, orders, billing) = behind(&pair);
    let manager = builder(&orders, &billing).build().await.unwrap();
    let tx = manager.begin();
    insert(&tx, &orders, "a").await;
    let rule = proxy.on(Direction::ToServer, "; COMMIT", Act::Answer(error(&DISK_FULL)));
    unknown(tx.commit().await);
    assert!(rule.met());
    assert_eq!(pair.values(), ["a", ""]);
}

/// A server speaks its users' language; what it means is said beside it.
#[tokio::test]
async fn a_translated_warning_of_a_replica_is_a_warning() {
    let pair = Pair::new();
    let (proxy, orders, billing) = behind(&pair);
    let manager = builder(&orders, &billing).build().await.unwrap();
    let tx = manager.begin();
    insert(&tx, &orders, "a").await;
    insert(&tx, &billing, "b").await;
    let warning = Said {
        translated: "WARNUNG",
        severity: "WARNING",
        code: "01000",
        text: "Warten auf synchrone Replikation abgebrochen",
        routine: "SyncRepWaitForLSN",
    };
    let rule = proxy.on(Direction::ToClient, "PREPARE TRANSACTION\0", Act::Insert(notice(&warning)));
    aborted(tx.commit().await);
    assert!(rule.met());
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
    assert_eq!(pair.values(), ["", ""]);
}

/// A session's start is told in a form that no setting changes.
#[tokio::test]
async fn sessions_are_told_apart_whatever_the_date_style() {
    let pair = Pair::new();
    let name = pair.orders.name();
    for setting in ["datestyle = 'German, DMY'", "timezone = 'Asia/Kathmandu'", "extra_float_digits = -15"] {
        pair.orders.psql(&format!("alter database \"{name}\" set {setting}")).unwrap();
    }
    let (proxy, orders, billing) = behind(&pair);
    let manager = builder(&orders, &billing).build().await.unwrap();
    let tx = manager.begin();
    insert(&tx, &billing, "b").await;
    let branch = tx.join(&orders).await.unwrap();
    branch.batch_execute("insert into t (v) values ('a')").await.unwrap();
    let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    drop(branch);
    // It does not arrive, and its session stays on the server: only who ends it by its pid and start can roll back.
    let rule = proxy.on(Direction::ToServer, "PREPARE TRANSACTION", Act::Detach);
    aborted(tx.commit().await);
    let session = format!("select count(*) from pg_stat_activity where pid = {pid}");
    assert_eq!(pair.orders.psql(&session).unwrap(), "0", "the session was ended");
    rule.release();
    assert!(rule.wait_over(Duration::from_secs(60)));
    assert_eq!([prepared(&pair.orders), prepared(&pair.billing)], ["", ""]);
    assert_eq!(pair.values(), ["", ""]);
}
