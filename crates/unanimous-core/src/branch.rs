//! The contract of a branch: the part of a transaction in one store, from join to its end.
//!
//! Must not know the manager, the log or other branches.

use std::error::Error;
use std::fmt;
use std::future::Future;

use crate::decider::DecisionRecord;
use crate::error::BranchError;
use crate::xid::{BranchId, TransactionId};

/// What a store can promise for a branch (rule 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capability {
    /// Prepares, survives a crash as prepared, and is listed and finished by its resource manager.
    TwoPhase,
    /// Cannot prepare, but its own commit can carry the decision as a row that is asked after a crash.
    Carrier,
    /// Cannot prepare, and cannot be asked afterwards. Alone it is atomic; beside another that writes it needs an opt-in.
    OnePhase,
    /// Prepares, but nobody could finish it after a crash. Alone it is as good as its store; beside another that writes it needs an opt-in.
    Volatile,
}

impl Capability {
    /// Whether a branch with this capability can promise to commit before it does.
    pub fn can_prepare(self) -> bool {
        matches!(self, Capability::TwoPhase | Capability::Volatile)
    }
}

/// What a branch has done, known at flush, so that the path is chosen before any prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// Nothing that a commit would make durable. When in doubt, say [`Wrote`](Self::Wrote).
    ReadOnly,
    /// Something that must be committed or rolled back.
    Wrote,
}

/// A savepoint of one transaction. Numbers grow with the time, and none is used twice, also not after a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SavepointId(pub u64);

impl fmt::Display for SavepointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The part of a transaction in one store.
///
/// The manager calls, in this order, each at most once at a time:
///
/// ```text
/// flush ─┬─ prepare ─┬─ commit     (repeated until Ok)
///        │           └─ rollback   (repeated until Ok)
///        ├─ commit_one_phase
///        ├─ commit_carrying
///        └─ rollback               (also without flush, and after any failure above)
/// ```
///
/// Duties of an implementation:
///
/// - After `rollback` or a commit was called, anything that the application still does through the branch must fail; it must
///   never run outside of the transaction. From `flush` on no guard of the branch is in use (a commit with one in use aborts), so
///   work may be refused from there on, and should be where the application can get at the branch without a guard.
/// - `commit` after a successful `prepare` must not fail for a reason that `prepare` could have seen. It is repeated after any
///   error, also by [`ResourceManager::commit`](crate::ResourceManager::commit) after a crash, so it must be idempotent.
/// - `rollback` is idempotent too, and is called on a branch in any state but committed.
/// - `commit` after `rollback`, and `rollback` after a commit that was Ok, are never called. Ok or an error is the branch's choice; either way
///   it changes nothing.
/// - Futures may be dropped at any await when a runtime ends, which counts as a crash; the manager itself never drops one early. So each
///   call to a server needs a time limit of the adapter's own: the manager's time limit does not reach a commit in one phase, and there is
///   none by default.
/// - A panic counts as a lost answer.
///
/// Before `flush`, a branch that has them may be asked for savepoints, one call at a time. Only a `rollback` may meet such a call under
/// way, when the transaction's time limit passes.
///
/// Only `prepare`, `commit` and `rollback` must be written; the defaults describe a volatile branch that always wrote.
pub trait Branch: Send + Sync + 'static {
    /// What the store can promise for this branch.
    fn capability(&self) -> Capability {
        Capability::Volatile
    }

    /// Branches that are called on the caller's own thread are flushed, asked and finished in the order of this key, then of
    /// their resource's name, then of their joining. A global order of stores keeps two transactions from deadlock. Most adapters leave
    /// the default, which is the order of the names.
    fn sort_key(&self) -> String {
        String::new()
    }

    /// Sends work that is still pending to the store, and tells whether this branch wrote.
    ///
    /// # Errors
    ///
    /// Any error aborts the transaction; a [conflict](BranchError::conflict) makes it worth repeating.
    fn flush(&self) -> impl Future<Output = Result<Work, BranchError>> + Send {
        async { Ok(Work::Wrote) }
    }

    /// Promises to be able to commit, whatever happens; `id` is what the store must keep with the promise.
    ///
    /// # Errors
    ///
    /// An error is a no and aborts the transaction. It is [lost](BranchError::lost) when the branch may be prepared nevertheless,
    /// now or later: a connection that was lost, a time limit that passed, an answer that says that the session ends. Refused or conflict
    /// only where the store itself has answered that this prepare failed, or where it was certainly not asked.
    fn prepare(&self, id: &BranchId) -> impl Future<Output = Result<(), BranchError>> + Send;

    /// Phase two of a prepared branch whose transaction committed.
    ///
    /// # Errors
    ///
    /// Any error is repeated: there is no way back after the decision (rule 7).
    fn commit(&self) -> impl Future<Output = Result<(), BranchError>> + Send;

    /// Gives the branch up, in whatever state short of committed it is.
    ///
    /// Where the answer to `prepare` was lost, the vote may land after this. It should be fenced then: end its session and wait until
    /// that is gone, or leave a mark in the store that refuses it. What lands all the same is listed, and rolled back by recovery.
    ///
    /// # Errors
    ///
    /// It is repeated while the branch may be prepared, here and then by recovery. An error of any other branch is not: that must end with
    /// its session.
    fn rollback(&self) -> impl Future<Output = Result<(), BranchError>> + Send;

    /// Commits a branch that was not prepared: one that only read, or the only one that wrote.
    ///
    /// By default it prepares and commits, also a branch that only read, which costs one forced write more than a store's own commit. Where
    /// a prepare costs, or leaves something behind, write it out.
    ///
    /// # Errors
    ///
    /// Conflict or refused: certainly not committed; `rollback` follows. [Lost](BranchError::lost): nobody knows. A branch that wrote is
    /// then dropped without a `rollback`, and the outcome is unknown: drop must end what is still open, and recovery rolls
    /// back what is listed. A branch that only read is rolled back after any error, and may answer Ok.
    fn commit_one_phase(&self, id: &BranchId) -> impl Future<Output = Result<(), BranchError>> + Send {
        async move {
            self.prepare(id).await?;
            self.commit().await.map_err(|error| error.with_kind(crate::FailureKind::Lost))
        }
    }

    /// Commits the branch's work together with the row of the decision, atomically and durably. Only called on a
    /// [carrier](Capability::Carrier).
    ///
    /// # Errors
    ///
    /// Conflict or refused: certainly not committed, now and later. [Lost](BranchError::lost): the store's
    /// [`decision`](crate::ResourceManager::decision) will be asked.
    fn commit_carrying(&self, record: &DecisionRecord) -> impl Future<Output = Result<(), BranchError>> + Send {
        let transaction: TransactionId = record.transaction;
        async move { Err(BranchError::refused(format!("the branch of {transaction} cannot carry a decision"))) }
    }

    /// Whether an error of the application's own work, seen in this branch's store, is worth repeating the transaction for. The work's
    /// error is the store's own, or has it among its sources; what the branch's own calls fail with says so by its
    /// [kind](BranchError::conflict).
    fn is_retryable(&self, error: &(dyn Error + 'static)) -> bool {
        let _ = error;
        false
    }

    /// The application still holds a guard of the branch, and the transaction is being aborted all the same (a commit with a guard in
    /// use, a time limit). What it does through the guard from now on must fail. [`rollback`](Self::rollback) follows. Must not block.
    ///
    /// For adapters whose guards lead to the store's own connection, which could be used behind the rollback; those that check each
    /// call need nothing.
    fn revoke(&self) {}

    /// Whether the branch has savepoints. One that says no is never asked for any.
    fn has_savepoints(&self) -> bool {
        false
    }

    /// Remembers what was done so far under this number, until the branch ends or an earlier savepoint is rolled back to. Nobody says that it
    /// is not needed any more.
    ///
    /// Cancel safety: when this future is dropped, the savepoint may be there or not; the branch goes on.
    ///
    /// # Errors
    ///
    /// Any error fails the transaction: from then on it can only be aborted.
    fn savepoint(&self, id: SavepointId) -> impl Future<Output = Result<(), BranchError>> + Send {
        async move { Err(BranchError::refused(format!("the branch has no savepoints, and was asked for number {id}"))) }
    }

    /// Undoes what was done since a savepoint of this branch, and forgets those that were made after it. The savepoint itself stays, and
    /// can be rolled back to again.
    ///
    /// Cancel safety: when this future is dropped, the transaction has failed, and only `rollback` is called.
    ///
    /// # Errors
    ///
    /// One that was never made, or is forgotten. Any error fails the transaction, as nobody knows what was undone: from then on it can only be aborted.
    fn rollback_to(&self, id: SavepointId) -> impl Future<Output = Result<(), BranchError>> + Send {
        async move { Err(BranchError::refused(format!("the branch has no savepoints, and number {id} was asked for"))) }
    }
}
