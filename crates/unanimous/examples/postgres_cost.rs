//! What a transaction over two PostgreSQL databases costs, side by side with the same statements written by hand on the bare driver.
//!
//! ```sh
//! cargo run --release -p unanimous --features postgres --example postgres_cost -- URL URL [ROUNDS]
//! ```
//!
//! Both sides insert a row into each database, prepare both at the same time, and commit both at the same time. By hand nothing decides
//! durably between the two, and a crash there leaves orphans; unanimous forces a decision into a log. The sides take turns, so that
//! both meet the same noise.

use std::time::{Duration, Instant};

use futures_util::future::try_join;
use unanimous::log::FileLog;
use unanimous::postgres::tokio_postgres::{Client, NoTls};
use unanimous::postgres::{Postgres, tokio_postgres};
use unanimous::{BoxError, TransactionManager};

const TABLE: &str = "create table if not exists unanimous_cost (id bigserial primary key, side text not null)";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [one, two, rest @ ..] = arguments.as_slice() else {
        return Err("give two connection strings, and the rounds".into());
    };
    let rounds: usize = rest.first().map_or(Ok(500), |text| text.parse())?;
    let folder = std::env::temp_dir().join(format!("unanimous-cost-{}", std::process::id()));
    let outcome = measure(one, two, rounds, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    outcome
}

async fn measure(one: &str, two: &str, rounds: usize, folder: &std::path::Path) -> Result<(), BoxError> {
    let bare = [connect(one).await?, connect(two).await?];
    for client in &bare {
        client.batch_execute(TABLE).await?;
    }
    let (first, second) = (Postgres::from_url("one", one)?, Postgres::from_url("two", two)?);
    let log = FileLog::open(folder).await?;
    let manager = TransactionManager::builder(log).resource(first.clone()).resource(second.clone()).build().await?;

    let (mut by_hand, mut by_us, mut alone, mut alone_by_us) = (vec![], vec![], vec![], vec![]);
    for round in 0..rounds + 20 {
        let hand = two_by_hand(&bare, round).await?;
        let us = two_by_us(&manager, &first, &second).await?;
        let one_hand = one_by_hand(&bare[0]).await?;
        let one_us = one_by_us(&manager, &first).await?;
        // The first ones warm up.
        if round >= 20 {
            by_hand.push(hand);
            by_us.push(us);
            alone.push(one_hand);
            alone_by_us.push(one_us);
        }
    }
    tell("two databases, by hand", by_hand);
    tell("two databases, unanimous", by_us);
    tell("one database, by hand", alone);
    tell("one database, unanimous", alone_by_us);
    manager.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}

async fn connect(url: &str) -> Result<Client, BoxError> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

const INSERT: &str = "insert into unanimous_cost (side) values ('a')";

async fn two_by_hand(bare: &[Client; 2], round: usize) -> Result<Duration, BoxError> {
    let gid = format!("cost-{}-{round}", std::process::id());
    let begin = Instant::now();
    for client in bare {
        client.batch_execute("BEGIN").await?;
        client.batch_execute(INSERT).await?;
    }
    let prepare = format!("PREPARE TRANSACTION '{gid}'");
    let other = format!("PREPARE TRANSACTION '{gid}-2'");
    try_join(bare[0].batch_execute(&prepare), bare[1].batch_execute(&other)).await?;
    let commit = format!("COMMIT PREPARED '{gid}'");
    let other = format!("COMMIT PREPARED '{gid}-2'");
    try_join(bare[0].batch_execute(&commit), bare[1].batch_execute(&other)).await?;
    Ok(begin.elapsed())
}

async fn two_by_us(manager: &TransactionManager, one: &Postgres, two: &Postgres) -> Result<Duration, BoxError> {
    let begin = Instant::now();
    let tx = manager.begin();
    tx.join(one).await?.batch_execute(INSERT).await?;
    tx.join(two).await?.batch_execute(INSERT).await?;
    tx.commit().await?;
    Ok(begin.elapsed())
}

async fn one_by_hand(bare: &Client) -> Result<Duration, BoxError> {
    let begin = Instant::now();
    bare.batch_execute("BEGIN").await?;
    bare.batch_execute(INSERT).await?;
    bare.batch_execute("COMMIT").await?;
    Ok(begin.elapsed())
}

async fn one_by_us(manager: &TransactionManager, one: &Postgres) -> Result<Duration, BoxError> {
    let begin = Instant::now();
    let tx = manager.begin();
    tx.join(one).await?.batch_execute(INSERT).await?;
    tx.commit().await?;
    Ok(begin.elapsed())
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_micros();
    #[expect(clippy::print_stdout, reason = "an example talks")]
    {
        println!("{what:28} p10 {:6} µs   p50 {:6} µs   p90 {:6} µs", at(10), at(50), at(90));
    }
}
