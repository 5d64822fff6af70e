//! The contract of a decider: who can be asked for a transaction's decision, and the log that is told it.
//!
//! Must not know how a decision is stored, nor branches and their stores.

use std::fmt;
use std::future::Future;

use crate::error::{BoxError, DecideError, StoreError};
use crate::outcome::Decision;
use crate::xid::{Owner, StoreId, StoreTag, TransactionId};

/// One branch of a decided transaction, as the decision lists it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Participant {
    /// The branch's number in its transaction.
    pub number: u16,
    /// The resource's name, at most 255 bytes.
    pub resource: String,
    /// The store's identity; none for a volatile branch, which no store could list.
    pub store: Option<StoreId>,
}

/// A text for people in a decision: at most [`MOST`](Self::MOST) bytes, and empty where nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Note(String);

impl Note {
    /// The bytes of the longest note: 512.
    pub const MOST: usize = 512;

    /// As much of the text as a note holds, cut between two characters.
    pub fn new(text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(Self::MOST));
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A decision, with what must be confirmed before it may be forgotten. It is one to commit, but for those that
/// [`DecisionLog::conclude`] is told: other aborts are presumed and have no record in a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DecisionRecord {
    /// The transaction.
    pub transaction: TransactionId,
    /// Its prepared branches, fixed before the first prepare (rule 2).
    pub participants: Vec<Participant>,
    /// When it was decided: microseconds since 1970, UTC, by the decider's clock; for people and the horizon, never for order.
    pub decided_at: u64,
    /// What the transaction said of itself, for people. A decider keeps it where it has room, and may leave it out: nothing is decided by it.
    pub note: Note,
}

impl DecisionRecord {
    /// Whether both decide the same: everything but the [`note`](Self::note) is equal.
    pub fn decides_as(&self, other: &Self) -> bool {
        let Self { transaction, participants, decided_at, note: _ } = self;
        (transaction, participants, decided_at) == (&other.transaction, &other.participants, &other.decided_at)
    }
}

/// Why nothing may be presumed of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum HoldReason {
    /// Another log began it.
    ForeignLog,
    /// This log never had that incarnation: the log or the store was restored from a backup, or copied.
    ForeignIncarnation,
    /// It is older than what the decider remembers (rule 11).
    BeyondHorizon,
    /// The log was poisoned by a failed sync; the next start reads what is durable (rule 12).
    Poisoned,
    /// The store that decides is not registered here, or is another store under its name.
    UnregisteredDecider(StoreId),
    /// The decider could not be asked now.
    Unreachable,
    /// Its transaction committed, but the decision doesn't list this branch.
    NotListed,
    /// Its application may have been told that it has committed; that shows in the list of the store with this tag, which can't be had now.
    Unlisted(StoreTag),
    /// What follows from the lists could not be recorded now.
    NotRecorded,
}

impl fmt::Display for HoldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HoldReason::ForeignLog => f.write_str("begun by another decision log; ask the process that owns it"),
            HoldReason::ForeignIncarnation => {
                f.write_str("begun by an incarnation that this log does not know: a restored or copied log or store")
            }
            HoldReason::BeyondHorizon => f.write_str("older than the decisions that are kept"),
            HoldReason::Poisoned => {
                f.write_str("the decision log failed to sync; restart the process to read what is durable")
            }
            HoldReason::UnregisteredDecider(store) => {
                write!(f, "decided by the store {store}, which is not registered here; register it")
            }
            HoldReason::NotListed => {
                f.write_str("its transaction committed, but without listing this branch; compare the ids by hand")
            }
            HoldReason::Unlisted(store) => write!(
                f,
                "it may have been acknowledged, which the list of its participant {store} will show; bring that store back, and register it"
            ),
            HoldReason::NotRecorded => {
                f.write_str("the decision log did not take what follows for it; it is tried again")
            }
            HoldReason::Unreachable => f.write_str("its decider can't be asked now; it is asked again"),
        }
    }
}

/// What a decider says of a transaction. Commit and Abort are final.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Known {
    /// Decided, durably.
    Commit(DecisionRecord),
    /// Can never be decided Commit any more.
    Abort,
    /// Nothing may be presumed.
    Hold(HoldReason),
}

/// Who can be asked for decisions.
pub trait Decider: Send + Sync + 'static {
    /// What is known of a transaction that is not live any more. What is answered is durable (rule 3), and a decision that is
    /// being written is waited for.
    ///
    /// # Errors
    ///
    /// When it can't be asked now.
    fn lookup(&self, transaction: TransactionId) -> impl Future<Output = Result<Known, StoreError>> + Send;

    /// What somebody is told who only wants to know, of any transaction, also of one that may be made up: nothing is written because of it.
    /// None where nothing is recorded. What is told of a record is durable (rule 3), and a decision that is being written is waited for.
    ///
    /// By default [`lookup`](Self::lookup): for deciders whose lookup fences nothing.
    ///
    /// # Errors
    ///
    /// When it can't be asked now.
    fn decided(&self, transaction: TransactionId) -> impl Future<Output = Result<Option<Known>, StoreError>> + Send {
        async move { self.lookup(transaction).await.map(Some) }
    }

    /// Decisions that are durable and not finished: some branch is not confirmed yet.
    ///
    /// # Errors
    ///
    /// When it can't be asked now.
    fn unfinished(&self) -> impl Future<Output = Result<Vec<DecisionRecord>, StoreError>> + Send;

    /// Every branch is confirmed: the decision is kept to the horizon and may go then. Not forced; returns at once.
    fn forget(&self, transaction: TransactionId);
}

/// A decider that is told decisions: a log that one process owns.
pub trait DecisionLog: Decider {
    /// The log's identity and its current incarnation, forced before this is callable (rule 4).
    fn owner(&self) -> Owner;

    /// Gives the log to one manager; true once in the log's life, also over all clones of it. A second manager would give out the
    /// same ids again, and presume of the first one's transactions.
    fn take(&self) -> bool;

    /// Whether a decision could be written now; asked before the first prepare, so that no branch is prepared in vain.
    ///
    /// # Errors
    ///
    /// Poisoned, closed, or unfinished decisions fill the log.
    fn ready(&self) -> Result<(), BoxError>;

    /// Makes a decision to commit durable.
    ///
    /// Cancel safety: dropping the future changes nothing; the decision is written or refused all the same.
    ///
    /// # Errors
    ///
    /// [`DecideError::Refused`]: certainly not written. [`DecideError::Unknown`]: nobody knows until the next start.
    fn decide(&self, record: DecisionRecord) -> impl Future<Output = Result<(), DecideError>> + Send;

    /// Whether it keeps what early acknowledgement needs: [`conclude`](Self::conclude), [`recorded`](Self::recorded) and
    /// [`unfinished_aborts`](Self::unfinished_aborts). Only for a log that one process owns.
    fn records_aborts(&self) -> bool {
        false
    }

    /// Makes either decision durable, of a transaction whose ids list its participants, and of whichever of the log's incarnations: its driver
    /// gives it up, or recovery concludes from what all of them list. An abort needs a record, since all of them being
    /// prepared would be taken for a commitment without it; it has no note.
    ///
    /// Cancel safety: as [`decide`](Self::decide).
    ///
    /// # Errors
    ///
    /// As [`decide`](Self::decide); a transaction of which the log [holds](Known::Hold) back what it may know is refused.
    fn conclude(
        &self,
        record: DecisionRecord,
        decision: Decision,
    ) -> impl Future<Output = Result<(), DecideError>> + Send {
        let transaction = record.transaction;
        async move {
            let refused = format!("the log of {transaction} records no conclusions: {decision}");
            Err(DecideError::Refused(refused.into()))
        }
    }

    /// What is recorded of a transaction that is not live any more, as [`lookup`](Decider::lookup), but without presuming anything: none where
    /// the log would know a decision, and has none.
    ///
    /// # Errors
    ///
    /// When it can't be asked now.
    fn recorded(&self, transaction: TransactionId) -> impl Future<Output = Result<Option<Known>, StoreError>> + Send {
        async move { Err(StoreError::new(format!("the log of {transaction} does not tell what it presumes"))) }
    }

    /// Decisions to abort that are durable, and of which some branch is not confirmed yet; as [`unfinished`](Decider::unfinished).
    ///
    /// # Errors
    ///
    /// When it can't be asked now.
    fn unfinished_aborts(&self) -> impl Future<Output = Result<Vec<DecisionRecord>, StoreError>> + Send {
        async { Ok(Vec::new()) }
    }

    /// Writes what is still only in memory (finished decisions) and gives the log up for another process. Refuses decisions from now on.
    fn close(&self) -> impl Future<Output = ()> + Send;
}
