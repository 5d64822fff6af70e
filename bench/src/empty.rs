//! Begin and commit of a transaction that nothing joins.

use unanimous_bench::Inner;

use crate::cost::{allocations, nanoseconds};
use crate::row::{Row, Target};
use crate::{Error, Options};

pub(crate) fn run(options: &Options) -> Result<Vec<Row>, Error> {
    let inner = Inner::new();
    let mut empty = |turns| inner.transactions(turns, 0);
    let counted = allocations("empty transaction, begin to commit: allocations", &mut empty);
    let [time] = nanoseconds(options.rounds(1_000), [("empty transaction, begin to commit", &mut empty)])?;
    Ok(vec![time.row().target(Target::AtMost(500.0)), counted.row().target(Target::AtMost(3.0))])
}
