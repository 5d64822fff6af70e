//! A carrier's decision rows, with their fence and their horizon, as the adapters of SQLite and PostgreSQL keep them.
//!
//! Fences are kept for ever: what makes them go safely is each adapter's own (docs/protocol.md, rule 4). Must not know sessions.

use std::collections::BTreeMap;
use std::time::Duration;

use unanimous::{DecisionRecord, HoldReason, Incarnation, Known, LogId, Owner, TransactionId};

#[derive(Clone)]
enum Row {
    Commit { record: DecisionRecord, finished: Option<Duration> },
    Abort,
}

#[derive(Clone, Default)]
pub(super) struct Rows {
    rows: BTreeMap<TransactionId, Row>,
    /// No row at or below these sequences says nothing.
    floors: BTreeMap<(LogId, Incarnation), u64>,
}

impl Rows {
    /// Inserts the row of a commit; false where a fence was there before.
    pub(super) fn carry(&mut self, record: &DecisionRecord) -> bool {
        let row = self.rows.entry(record.transaction);
        let row = row.or_insert_with(|| Row::Commit { record: record.clone(), finished: None });
        matches!(row, Row::Commit { .. })
    }

    /// What is known of a transaction, and whether a fence was written for it.
    pub(super) fn ask(&mut self, transaction: TransactionId, owner: Owner) -> (Known, bool) {
        if transaction.log != owner.log {
            return (Known::Hold(HoldReason::ForeignLog), false);
        }
        let (its, present) = (transaction.incarnation, owner.incarnation);
        if its.counter > present.counter || (its.counter == present.counter && its.nonce != present.nonce) {
            return (Known::Hold(HoldReason::ForeignIncarnation), false);
        }
        match self.rows.get(&transaction) {
            Some(Row::Commit { record, .. }) => (Known::Commit(record.clone()), false),
            Some(Row::Abort) => (Known::Abort, false),
            None if self.floors.get(&(transaction.log, its)).is_some_and(|&floor| transaction.sequence <= floor) => {
                (Known::Hold(HoldReason::BeyondHorizon), false)
            }
            None => {
                self.rows.insert(transaction, Row::Abort);
                (Known::Abort, true)
            }
        }
    }

    pub(super) fn unfinished(&self, owner: Owner) -> Vec<DecisionRecord> {
        let unfinished = self.rows.values().filter_map(|row| match row {
            Row::Commit { record, finished: None } if record.transaction.log == owner.log => Some(record.clone()),
            _ => None,
        });
        unfinished.collect()
    }

    /// All branches are confirmed. Rows that were finished before the horizon go with it.
    pub(super) fn finish(&mut self, transaction: TransactionId, now: Duration, horizon: Duration) {
        if let Some(Row::Commit { finished, .. }) = self.rows.get_mut(&transaction) {
            finished.get_or_insert(now);
        }
        let oldest = now.saturating_sub(horizon);
        let floors = &mut self.floors;
        self.rows.retain(|id, row| {
            let expired = matches!(row, Row::Commit { finished: Some(at), .. } if *at < oldest);
            if expired {
                let floor = floors.entry((id.log, id.incarnation)).or_default();
                *floor = (*floor).max(id.sequence);
            }
            !expired
        });
    }
}
