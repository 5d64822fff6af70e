//! Savepoints of a branch are SQLite's own, inside of its transaction and beside the application's.
//!
//! SQLite keeps savepoints on one stack: a `RELEASE` or `ROLLBACK TO` of the application's takes away what was made after its own
//! savepoint, ours too. A rollback to one that is gone fails, and the branch with it.
//!
//! Must not know the transaction, nor who else has savepoints.

use unanimous_core::{BranchError, SavepointId, Work};

use super::error::{Broken, SqliteError, is_busy};
use super::session::Session;

/// What the names of our savepoints begin with; the guard keeps the application from using one.
pub(super) const PREFIX: &str = "unanimous_savepoint_";

/// A savepoint, and what the branch had done by then.
pub(super) struct Saved {
    id: SavepointId,
    work: Work,
}

/// Whether a savepoint's name could be one of ours. SQLite compares them without regard to case.
pub(super) fn is_ours(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

impl Session<'_> {
    pub(super) fn savepoint(&mut self, id: SavepointId) -> Result<(), BranchError> {
        self.check()?;
        self.check_not_flushed()?;
        let work = self.work_so_far();
        self.conn.execute_batch(&format!("SAVEPOINT {PREFIX}{id}")).map_err(|source| {
            let busy = is_busy(&source);
            failed(busy, SqliteError::Sql(source))
        })?;
        self.saved.push(Saved { id, work });
        Ok(())
    }

    pub(super) fn rollback_to(&mut self, id: SavepointId) -> Result<(), BranchError> {
        self.check()?;
        self.check_not_flushed()?;
        if let Err(source) = self.conn.execute_batch(&format!("ROLLBACK TO {PREFIX}{id}")) {
            let busy = is_busy(&source);
            let why = Broken::SavepointFailed { id };
            // What was undone is not known.
            self.broken.get_or_insert_with(|| why.clone());
            return Err(failed(busy, SqliteError::Broken { why, source: Some(source) }));
        }
        self.saved.retain(|saved| saved.id <= id);
        if let Some(saved) = self.saved.last() {
            let work = saved.work;
            self.continue_from(work);
        }
        Ok(())
    }
}

fn failed(busy: bool, error: SqliteError) -> BranchError {
    if busy { BranchError::conflict(error) } else { BranchError::refused(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ours_whatever_their_case() {
        assert!(is_ours("unanimous_savepoint_1") && is_ours("UNANIMOUS_Savepoint_x"));
        assert!(!is_ours("unanimous") && !is_ours("mine") && !is_ours("unanimous_savepöint_"));
    }
}
