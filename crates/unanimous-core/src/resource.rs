//! The contract of a resource manager: a registered store that begins branches, and lists and finishes those in doubt.
//!
//! Must not know the manager or the log.

use std::future::Future;

use crate::branch::{Branch, Capability};
use crate::decider::Known;
use crate::error::{BranchError, StoreError};
use crate::xid::{BranchId, Owner, StoreId, TransactionId};

/// What a store is told when a branch begins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BranchContext {
    /// The transaction that is joined, for the store's own diagnostics. The branch's id exists from prepare on only.
    pub transaction: TransactionId,
}

impl BranchContext {
    /// What a branch of this transaction is told.
    pub fn new(transaction: TransactionId) -> Self {
        Self { transaction }
    }
}

/// A registered store.
///
/// Phase two and recovery must have connections of their own (rule 14): a pool that waiting transactions have emptied must
/// not stop what they wait for.
///
/// Recovery drops a call that takes too long, and makes it again in a later pass; what was dropped may still happen.
pub trait ResourceManager: Send + Sync + 'static {
    /// What a transaction gets when it joins.
    type Branch: Branch;

    /// What a join may ask for; `()` where there is nothing to ask.
    type Options: Default + Send + 'static;

    /// The name that the application gave the store: stable over restarts, unique in its manager.
    fn name(&self) -> &str;

    /// What its branches can promise; the same as [`Branch::capability`] of each.
    fn capability(&self) -> Capability;

    /// Reads the store's identity from the store itself. It is created where the store is new. A copy of the store carries the same
    /// identity and is not told from it.
    ///
    /// # Errors
    ///
    /// When the store can't be reached or is not what it was (an unmounted folder is down, not empty).
    fn identity(&self) -> impl Future<Output = Result<StoreId, StoreError>> + Send;

    /// Begins a branch.
    ///
    /// Cancel safety: when this future is dropped, or its branch is dropped without an end, nothing may stay open in the store; the
    /// manager can't roll back what it never got.
    ///
    /// # Errors
    ///
    /// A [conflict](BranchError::conflict) when a lock was not to be had in time.
    fn begin(
        &self,
        context: &BranchContext,
        options: Self::Options,
    ) -> impl Future<Output = Result<Self::Branch, BranchError>> + Send;

    /// Lists the prepared branches, whoever began them: recovery tells its own by their ids. And those that are decided in the store and
    /// not completed: their rollback is refused, their commit completes them.
    ///
    /// # Errors
    ///
    /// When the list would not be authoritative: unreachable, a standby, another identity. An empty list is a statement, and so is each branch that
    /// is not in it: with early acknowledgement recovery aborts a transaction of which one is missing that had promised to commit.
    fn in_doubt(&self) -> impl Future<Output = Result<Vec<BranchId>, StoreError>> + Send;

    /// The same list, given when what it holds is as durable as [`Branch::prepare`] promises. A branch may be listed before its prepare can be
    /// acknowledged (it waits for a disk, or for replicas), so that a real write is made after the list was read, is forced as a prepare is, and was
    /// confirmed by the same server. One that a repeated sync of the same data would confirm is no such write: a sync that failed once can succeed the next
    /// time without the data. With early acknowledgement recovery concludes from such lists only (rule 3).
    ///
    /// None, which is the default, for a store that can't make certain of its list: a transaction that such a store has joined is not acknowledged early. It is
    /// the same answer for the store's life; it is asked for when the store is registered, and the future is dropped then. Whoever wraps a resource
    /// manager passes it on.
    ///
    /// # Errors
    ///
    /// As [`in_doubt`](Self::in_doubt), and when the write is not confirmed now. Nothing follows then.
    fn durably_in_doubt(&self) -> Option<impl Future<Output = Result<Vec<BranchId>, StoreError>> + Send> {
        None::<std::future::Ready<_>>
    }

    /// Commits a prepared branch, from wherever it was prepared. Idempotent; repeated until it is absent from
    /// [`in_doubt`](Self::in_doubt), since no error code ends a branch (rule 8).
    ///
    /// An id that is not prepared (never, not yet, or not any more) changes nothing; Ok or an error is the store's choice, since the list is what
    /// counts.
    ///
    /// # Errors
    ///
    /// Any error is reported and the branch held until the next try.
    fn commit(&self, id: &BranchId) -> impl Future<Output = Result<(), BranchError>> + Send;

    /// Rolls a prepared branch back. As [`commit`](Self::commit) otherwise: an id that is not prepared is not fenced either. A vote that
    /// lands later is listed again, and rolled back then.
    ///
    /// # Errors
    ///
    /// Any error is reported and the branch held until the next try.
    fn rollback(&self, id: &BranchId) -> impl Future<Output = Result<(), BranchError>> + Send;

    /// For a [carrier](Capability::Carrier): what its decision rows say of a transaction.
    ///
    /// The answer is final and durable: a row that is found is forced again before it is believed (rule 3), and where none is
    /// found the transaction is fenced with an Abort row first, so that a carrier that is late can't commit any more
    /// (`docs/protocol.md`, rule 4). `owner` is who asks: it holds its log's lock, which rules that earlier incarnations of it are dead.
    ///
    /// # Errors
    ///
    /// When the rows can't be read, forced or fenced now. Nothing is presumed then.
    fn decision(
        &self,
        transaction: TransactionId,
        owner: Owner,
    ) -> impl Future<Output = Result<Known, StoreError>> + Send {
        let _ = owner;
        async move {
            Err(StoreError::new(format!(
                "{} keeps no decisions; {transaction} names it as its decider by mistake",
                self.name()
            )))
        }
    }

    /// For a carrier: what its rows say to somebody who only wants to know, of any transaction, also of one that may be made up: none where
    /// there is no row, and then nothing is written, unlike by [`decision`](Self::decision). A row that is found is forced before it is
    /// told (rule 3), whichever log's it is.
    ///
    /// By default none, for stores that keep no decisions. A carrier without it leaves outcomes "not known" that it could tell.
    ///
    /// # Errors
    ///
    /// When the rows can't be read or forced now.
    fn decided(
        &self,
        transaction: TransactionId,
        owner: Owner,
    ) -> impl Future<Output = Result<Option<Known>, StoreError>> + Send {
        let _ = (transaction, owner);
        async { Ok(None) }
    }

    /// For a carrier: the transactions of `owner`'s log whose commit row is there and not known to be finished.
    ///
    /// # Errors
    ///
    /// When the rows can't be read.
    fn unfinished(&self, owner: Owner) -> impl Future<Output = Result<Vec<crate::DecisionRecord>, StoreError>> + Send {
        let _ = owner;
        async { Ok(Vec::new()) }
    }

    /// For a carrier: every branch of the transaction is confirmed; its row is kept to the horizon and may go then. Not forced,
    /// must return at once: a forgotten "forget" costs one more listing after a restart.
    fn forget(&self, transaction: TransactionId) {
        let _ = transaction;
    }
}
