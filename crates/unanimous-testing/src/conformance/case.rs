//! A check's own store, log and keys, and the words that checks are written in.
//!
//! Must not know any check.

use std::collections::BTreeSet;
use std::error::Error;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use unanimous::{
    BoxError, Branch, BranchContext, BranchError, BranchId, DeciderId, FailureKind, Incarnation, LogId, Owner,
    ResourceManager, TransactionId, Work,
};

use super::{BranchOf, Subject};

/// How long something that must happen is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Why a check ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The duty was not kept: what was seen.
    Broken(String),
    /// The subject can't show it.
    LeftOut(&'static str),
}

pub(super) type Checked<T = ()> = Result<T, Stop>;

/// What must hold; a failure's text follows.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err($crate::conformance::case::Stop::Broken(format!($($text)+)));
        }
    };
}
pub(super) use ensure;

/// Tries until there is something. A macro, since the futures of an async closure can't be said to be `Send`.
macro_rules! eventually {
    ($what:expr, $attempt:expr) => {{
        let start = tokio::time::Instant::now();
        loop {
            if let Some(value) = $attempt {
                break value;
            }
            let patience = $crate::conformance::case::PATIENCE;
            $crate::conformance::case::ensure!(start.elapsed() < patience, "waited {patience:?} in vain for {}", $what);
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }};
}
pub(super) use eventually;

/// An error with its sources, on one line.
pub(super) fn text_of(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// What must succeed.
pub(super) fn must<T>(what: &str, result: Result<T, impl Into<BoxError>>) -> Checked<T> {
    result.map_err(|error| {
        let error: BoxError = error.into();
        Stop::Broken(format!("{what} failed: {}", text_of(&*error)))
    })
}

/// How far a branch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Begun,
    Written,
    Flushed,
    Prepared,
}

/// A check's own store.
pub(super) struct Case<S: Subject> {
    pub(super) subject: Arc<S>,
    pub(super) place: S::Place,
    pub(super) owner: Owner,
    numbers: AtomicU64,
}

impl<S: Subject> Case<S> {
    pub(super) async fn new(subject: Arc<S>) -> Checked<Self> {
        let place = must("Subject::place", subject.place().await)?;
        // Random, since some stores keep ids in a namespace that all their databases share.
        let owner = Owner { log: LogId(random()), incarnation: Incarnation::new(7, random() as u64) };
        Ok(Self { subject, place, owner, numbers: AtomicU64::new(1) })
    }

    /// Another handle, as after a restart.
    pub(super) async fn open(&self) -> Checked<S::Resource> {
        must("Subject::open", self.subject.open(&self.place).await)
    }

    pub(super) fn key(&self) -> String {
        format!("key{}", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn transaction(&self) -> TransactionId {
        self.owner.transaction(self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// An id whose transaction the log decides.
    pub(super) fn id(&self) -> BranchId {
        BranchId { transaction: self.transaction(), decider: DeciderId::Log, number: 0 }
    }

    /// A conflict at begin is waited out: what holds the lock may be on its way to its end.
    pub(super) async fn begin(&self, resource: &S::Resource, id: &BranchId) -> Checked<BranchOf<S>> {
        let context = BranchContext::new(id.transaction);
        let begun = eventually!("a conflict at begin to end", {
            match resource.begin(&context, Default::default()).await {
                Err(error) if error.kind() == FailureKind::Conflict => None,
                begun => Some(must("begin", begun)?),
            }
        });
        Ok(begun)
    }

    /// A new branch that has come so far, has written `key` if so, and prepares under `id`.
    pub(super) async fn branch(
        &self,
        resource: &S::Resource,
        stage: Stage,
        id: &BranchId,
        key: &str,
    ) -> Checked<BranchOf<S>> {
        let branch = self.begin(resource, id).await?;
        if stage == Stage::Begun {
            return Ok(branch);
        }
        must("writing", self.subject.write(&branch, key).await)?;
        if stage == Stage::Written {
            return Ok(branch);
        }
        let work = must("flush", branch.flush().await)?;
        ensure!(work == Work::Wrote, "flush says {work:?} of a branch that wrote {key}");
        if stage == Stage::Prepared {
            must("prepare", branch.prepare(id).await)?;
        }
        Ok(branch)
    }

    /// The store works: another transaction writes this key and commits. Conflicts are waited out.
    pub(super) async fn writes_again(&self, resource: &S::Resource, key: &str) -> Checked {
        eventually!(format!("another transaction to write {key}"), self.tries_again(resource, key).await?);
        self.is_there(key).await
    }

    /// The same once recovery has rolled back what it finds; what was cancelled may land while it looks.
    pub(super) async fn recovers_and_writes_again(&self, resource: &S::Resource, key: &str) -> Checked {
        self.is_absent(key).await?;
        eventually!(format!("recovery to let another transaction write {key}"), {
            self.recovers_to_nothing(resource).await?;
            self.is_absent(key).await?;
            self.tries_again(resource, key).await?
        });
        self.recovers_to_nothing(resource).await?;
        self.is_there(key).await
    }

    /// None: a conflict.
    async fn tries_again(&self, resource: &S::Resource, key: &str) -> Checked<Option<()>> {
        let id = self.id();
        let branch = self.begin(resource, &id).await?;
        match self.commit_alone(&branch, &id, key).await {
            Err(error) if is_conflict(&*error) || branch.is_retryable(&*error) => {
                // Where it fails, the conflict does not end.
                let _ = branch.rollback().await;
                Ok(None)
            }
            committed => must("another transaction that writes the same key", committed).map(Some),
        }
    }

    async fn commit_alone(&self, branch: &BranchOf<S>, id: &BranchId, key: &str) -> Result<(), BoxError> {
        self.subject.write(branch, key).await?;
        branch.flush().await?;
        Ok(branch.commit_one_phase(id).await?)
    }

    pub(super) async fn looks(&self, key: &str) -> Checked<bool> {
        must("Subject::is_there", self.subject.is_there(&self.place, key).await)
    }

    pub(super) async fn is_there(&self, key: &str) -> Checked {
        ensure!(self.looks(key).await?, "{key} is not there, though it was committed");
        Ok(())
    }

    pub(super) async fn is_absent(&self, key: &str) -> Checked {
        ensure!(!self.looks(key).await?, "{key} is there, though it was not committed");
        Ok(())
    }

    pub(super) async fn listed(&self, resource: &S::Resource) -> Checked<BTreeSet<BranchId>> {
        let listed = must("in_doubt", resource.in_doubt().await)?;
        let set: BTreeSet<_> = listed.iter().cloned().collect();
        ensure!(set.len() == listed.len(), "in_doubt lists a branch twice: {listed:?}");
        Ok(set)
    }

    pub(super) async fn lists(&self, resource: &S::Resource, expected: impl IntoIterator<Item = &BranchId>) -> Checked {
        let listed = self.listed(resource).await?;
        let expected: BTreeSet<_> = expected.into_iter().cloned().collect();
        ensure!(listed == expected, "in_doubt lists {listed:?}, and should list {expected:?}");
        if let Some(list) = resource.durably_in_doubt() {
            let durably = BTreeSet::from_iter(must("durably_in_doubt", list.await)?);
            ensure!(durably == expected, "durably_in_doubt lists {durably:?}, and should list {expected:?}");
        }
        Ok(())
    }

    /// What recovery does with branches whose transactions have aborted, until none is left.
    pub(super) async fn recovers_to_nothing(&self, resource: &S::Resource) -> Checked {
        eventually!("recovery to leave nothing prepared", {
            let listed = self.listed(resource).await?;
            for id in &listed {
                // Whatever it answers, the list says whether it is done (rule 8).
                let _ = resource.rollback(id).await;
            }
            listed.is_empty().then_some(())
        });
        Ok(())
    }
}

fn random() -> u128 {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    (half() << 64) | half()
}

fn is_conflict(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<BranchError>() {
            return error.kind() == FailureKind::Conflict;
        }
        next = error.source();
    }
    false
}

/// Polls a future so many times at most, and drops it then. Its output, if it was ready before.
pub(super) async fn polled<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(None),
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    })
    .await
}
