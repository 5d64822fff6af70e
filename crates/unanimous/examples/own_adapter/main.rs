//! An adapter of one's own at work: mails are spooled with the receipts that they belong to, both or neither.
//!
//! `cargo run -p unanimous --example own_adapter`
#![allow(clippy::print_stdout, reason = "an example talks")]

#[allow(unreachable_pub, reason = "an adapter is for others")]
mod spool;

use std::path::Path;

use spool::Spool;
use unanimous::files::Files;
use unanimous::log::FileLog;
use unanimous::{BoxError, TransactionManager};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let data = folder.path();
    let mails = Spool::open("mails", data.join("mails")).await?;
    let receipts = Files::open("receipts", data.join("receipts")).await?;
    let manager = TransactionManager::builder(FileLog::open(data.join("decisions")).await?)
        .resource(mails.clone())
        .resource(receipts.clone())
        .build()
        .await?;

    for (number, item) in [(1, "tea"), (2, "a lamp"), (1, "tea again")] {
        let tx = manager.begin();
        tx.join(&mails).await?.put(format!("to: orders@example.org, we have sold {item}"))?;
        let receipt = tx.join(&receipts).await?.create(format!("{number}.txt"), item).await;
        match receipt {
            Ok(()) => println!("receipt {number}: {item}: {:?}", tx.commit().await?.id),
            Err(error) => {
                println!("receipt {number}: {item}: {error}");
                tx.abort().await;
            }
        }
    }
    show(&data.join("receipts"))?;
    show(&data.join("mails/done"))?;
    Ok(())
}

fn show(folder: &Path) -> Result<(), BoxError> {
    println!("{}:", folder.file_name().unwrap_or_default().display());
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            println!("  {}", std::fs::read_to_string(&path)?.trim_end());
        }
    }
    Ok(())
}
