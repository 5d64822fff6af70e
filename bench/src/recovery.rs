//! Recovery of many in-doubt branches in the store in memory: time, memory, and whether both grow as the branches do.

use std::time::Instant;

use unanimous::{BranchId, Capability, DeciderId, TransactionManager};
use unanimous_testing::memory::{Journal, LogDisk, MemoryStore};

use crate::log::record;
use crate::rounds::{Rounds, alternate};
use crate::row::{Row, Target};
use crate::{Error, Options};

/// The few and the many.
const COUNTS: [usize; 2] = [10_000, 100_000];

pub(crate) fn run(options: &Options) -> Result<Vec<Row>, Error> {
    let mut times =
        COUNTS.map(|count| Rounds::new(format!("{count} in-doubt branches recovered in memory: each"), "µs"));
    let mut memory = COUNTS
        .map(|count| Rounds::new(format!("{count} in-doubt branches recovered in memory: growth at most"), "MiB"));
    let ([few, many], [little, much]) = (&mut times, &mut memory);
    alternate(
        options.rounds(15),
        &mut [(few, &mut || recover(COUNTS[0], little)), (many, &mut || recover(COUNTS[1], much))],
    )?;
    let ([few, many], [little, much]) = (&times, &memory);
    Ok(vec![
        few.row(),
        // Linear: each takes as long, how many there ever are.
        many.beside(few, Some(Target::RatioAtMost(1.5))),
        little.row(),
        much.row().target(Target::AtMost(64.0)),
    ])
}

/// Microseconds for each branch, of which every second one was decided to commit.
fn recover(count: usize, memory: &mut Rounds) -> Result<f64, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (disk, journal) = (LogDisk::new(1), Journal::default());
    let store = MemoryStore::new("orders", Capability::TwoPhase, &journal);
    let owner = unanimous::DecisionLog::owner(&disk.open());
    for n in 0..count as u64 {
        let transaction = owner.transaction(n + 1);
        store.plant(&BranchId { transaction, decider: DeciderId::Log, number: 0 }, "row");
        if n % 2 == 0 {
            let mut record = record(transaction);
            record.participants.truncate(1);
            record.participants[0].store = Some(store.identity_now());
            disk.plant(record);
        }
    }
    let mut microseconds = 0.0;
    let mut left = Ok(0);
    let taken = allocation_counter::measure(|| {
        let begin = Instant::now();
        let builder = TransactionManager::builder(disk.open()).resource(store.clone());
        // The first pass is a part of it.
        left = runtime.block_on(builder.build()).map(|manager| manager.in_doubt().len());
        microseconds = begin.elapsed().as_secs_f64() * 1e6;
    });
    if left? > 0 || !store.prepared().is_empty() {
        return Err("recovery has left something in doubt".into());
    }
    memory.push(taken.bytes_max as f64 / f64::from(1 << 20));
    Ok(microseconds / count as f64)
}
