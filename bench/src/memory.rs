//! Transactions over branches that do nothing, with a log in memory: what the manager itself costs.

use unanimous_bench::Inner;

use crate::cost::{allocations, nanoseconds};
use crate::row::Row;
use crate::{Error, Options};

pub(crate) fn run(options: &Options) -> Result<Vec<Row>, Error> {
    let inner = Inner::new();
    let mut rows = Vec::new();
    for branches in [1, 2, 4, 8, 16] {
        let mut all = |turns| inner.transactions(turns, branches);
        let mut task = |turns| inner.tasks(turns);
        let name =
            format!("{branches} memory {}, joined and committed", if branches == 1 { "branch" } else { "branches" });
        let counted = allocations(&format!("{name}: allocations"), &mut all);
        let sides: [(&str, crate::cost::Work<'_>); 2] =
            [(&name, &mut all), ("a task that does nothing, spawned and awaited", &mut task)];
        let [time, task] = nanoseconds(options.rounds(500), sides)?;
        rows.extend([time.beside(&task, None), counted.row()]);
    }
    Ok(rows)
}
