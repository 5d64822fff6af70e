//! What a network does that sees messages one by one: answers in pieces, and answers that say something else.

use std::time::Duration;

use unanimous_testing::proxy::postgres::{Act, Direction, Proxy};

use super::{Pair, builder};
use unanimous::postgres::Postgres;

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
