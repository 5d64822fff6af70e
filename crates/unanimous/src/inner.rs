//! What a manager, its transactions, their drivers and its recovery share.
//!
//! Must not know what any of them does with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use unanimous_core::xid::{MAX_SEQUENCE, StoreTag};
use unanimous_core::{BranchError, Owner, StoreId, TransactionId};

use crate::dispatch::{DynLog, Registered};
use crate::env::Env;
use crate::live::Live;
use crate::outcomes::Outcomes;
use crate::recovery::{Recovered, Recovery};
use crate::report::Report;
use crate::sync::Gauge;
use crate::synchronizer::Synchronizers;

/// Waits between tries grow from the first to the second, doubling, with jitter.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_secs(5);

pub(crate) type Observer = Box<dyn Fn(&Report) + Send + Sync>;
pub(crate) type RecoveryObserver = Box<dyn Fn(&Recovered) + Send + Sync>;

/// What the manager, its transactions and its recovery share.
pub(crate) struct Inner {
    pub(crate) env: Arc<dyn Env>,
    pub(crate) log: Arc<dyn DynLog>,
    pub(crate) owner: Owner,
    pub(crate) resources: BTreeMap<String, Arc<Registered>>,
    pub(crate) live: Live,
    pub(crate) recovery: Recovery,
    /// How transactions ended, for who asks later.
    pub(crate) outcomes: Outcomes,
    /// Transactions that have joined something and have not ended.
    pub(crate) open: Gauge,
    pub(crate) phase_two_wait: Duration,
    pub(crate) time_limit: Option<Duration>,
    /// Whether to answer before the decision is recorded, where that can be done.
    pub(crate) early: bool,
    pub(crate) store_wait: Duration,
    pub(crate) observer: Option<Observer>,
    pub(crate) recovery_observer: Option<RecoveryObserver>,
    pub(crate) synchronizers: Synchronizers,
    pub(crate) sequence: AtomicU64,
    pub(crate) closing: AtomicBool,
    pub(crate) given_up: AtomicBool,
    /// Commits of a branch that are a decision themselves, and answers that come before one.
    pub(crate) deciding: Gauge,
}

/// While it is there the log is not given up: its next owner would presume abort of a transaction whose carrier is late.
pub(crate) struct Deciding {
    inner: Arc<Inner>,
}

impl Drop for Deciding {
    fn drop(&mut self) {
        self.inner.deciding.remove();
    }
}

impl Inner {
    /// Whether the log was given up, so that nothing may be decided here any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// For a branch whose commit is the decision, or an answer before it is recorded.
    pub(crate) fn deciding(self: &Arc<Self>) -> Result<Deciding, BranchError> {
        // Counted before the look, as shutdown looks before it counts: one of the two sees the other.
        self.deciding.add();
        let deciding = Deciding { inner: self.clone() };
        if self.is_given_up() {
            Err(BranchError::refused("the transaction manager was shut down"))
        } else {
            Ok(deciding)
        }
    }

    /// # Panics
    ///
    /// As [`TransactionManager::begin`](crate::TransactionManager::begin).
    pub(crate) fn next_transaction(&self) -> TransactionId {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(sequence <= MAX_SEQUENCE, "an incarnation has at most 10^15 - 1 transactions; restart the process");
        self.owner.transaction(sequence)
    }

    pub(crate) fn registered(&self, name: &str) -> Option<Arc<Registered>> {
        self.resources.get(name).cloned()
    }

    pub(crate) fn all_registered(&self) -> impl Iterator<Item = &Arc<Registered>> {
        self.resources.values()
    }

    /// Whether no other registered store has the same tag.
    pub(crate) fn is_told_by_its_tag(&self, store: &StoreId) -> bool {
        let tag = StoreTag::of(store);
        let mut known = self.resources.values().filter_map(|registered| registered.known_identity());
        known.all(|other| other == store || StoreTag::of(other) != tag)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The wait before try number `tries` (from 1): doubled each time, between half and all of it.
    pub(crate) fn retry_wait(&self, tries: u32) -> Duration {
        let full = RETRY_FIRST.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(RETRY_LAST);
        jitter(&*self.env, full)
    }
}

/// Between half and all of `full`, so that those who failed together don't meet again.
pub(crate) fn jitter(env: &dyn Env, full: Duration) -> Duration {
    let half = full / 2;
    let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_micros(env.random() % span)
}
