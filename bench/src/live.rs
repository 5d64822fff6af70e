//! The memory that each live transaction takes.

use unanimous_bench::{Inner, join};

use crate::rounds::Rounds;
use crate::row::Row;
use crate::{Error, Options};

pub(crate) fn run(_: &Options) -> Result<Vec<Row>, Error> {
    const COUNT: usize = 10_000;
    let inner = Inner::new();
    // Once before, for what is made at the first use.
    inner.transactions(1, 2);
    let rows =
        [(0, "begun"), (1, "with one memory branch"), (2, "with two memory branches")].map(|(branches, name)| {
            let mut rounds = Rounds::new(format!("a live transaction, {name}"), "bytes");
            for _ in 0..3 {
                let mut live = Vec::with_capacity(COUNT);
                let taken = allocation_counter::measure(|| {
                    inner.runtime.block_on(async {
                        for _ in 0..COUNT {
                            let transaction = inner.manager.begin();
                            join(&transaction, &inner.stores[..branches]).await;
                            live.push(transaction);
                        }
                    });
                });
                rounds.push(taken.bytes_current as f64 / COUNT as f64);
                inner.runtime.block_on(async {
                    for transaction in live {
                        transaction.abort().await;
                    }
                });
            }
            rounds.row()
        });
    Ok(rows.into())
}
