//! Recovery: at start, and in the background for the manager's life, with back-off while something is in doubt.
//!
//! A pass looks in the order that the pure plan ([`unanimous_core::recovery`]) states: unfinished decisions, the stores' lists, the
//! live table, the deciders. Stores are asked at the same time and each within its own limit, so that a dead one stops nobody
//! (rule 13).
//!
//! Must not know drivers, nor what a store does to list and finish.

mod together;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use unanimous_core::recovery::{Ask, Lists, Verdict, is_finished, verdict, whom_to_ask};
use unanimous_core::{BranchId, Decision, DecisionRecord, HoldReason, Known, StoreError, StoreId, TransactionId};

use crate::dispatch::Registered;
use crate::env::{self, NoRuntime};
use crate::inner::{Inner, jitter};
use crate::live::Stage;
use crate::sync::lock;

/// The wait after a pass that left something in doubt: doubled from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(15);

/// Something that recovery could not finish in its last pass.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InDoubt {
    /// The resource's name.
    pub resource: String,
    /// The transaction; none where the store could not be asked at all.
    pub transaction: Option<TransactionId>,
    /// The branch, where its store lists it.
    pub branch: Option<BranchId>,
    /// Why it is not finished.
    pub why: Doubt,
}

impl InDoubt {
    /// Whether it says that the store could not be asked, so that nobody knows what is prepared there.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.transaction.is_none() && matches!(self.why, Doubt::Unreachable(_))
    }
}

/// A branch that recovery has finished.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// The resource's name.
    pub resource: String,
    /// The branch.
    pub branch: BranchId,
    /// How it was finished.
    pub decision: Decision,
}

/// Why something is in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Doubt {
    /// Nothing may be presumed.
    Held(HoldReason),
    /// The store can't be asked; the error's text.
    Unreachable(String),
    /// It is decided, and the store did not finish the branch; the error's text. It is tried again.
    NotFinished(String),
    /// It is decided, and the participant's store is not registered here: to commit, or, with [early
    /// acknowledgement](crate::Builder::early_acknowledgement), to abort. The decision is kept until that store confirms it.
    Unregistered,
    /// It is decided, and what is registered under the participant's name is another store than it was.
    OtherStore {
        /// The store that the decision was made for.
        was: StoreId,
        /// The one that has its name now.
        now: StoreId,
    },
    /// Another resource, this one, is the same store.
    SameStore(String),
    /// Its outcome is unknown to this process, which therefore leaves it alone.
    Undecided,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::Held(reason) => write!(f, "held: {reason}"),
            Doubt::Unreachable(error) => write!(f, "the store can't be asked: {error}"),
            Doubt::NotFinished(error) => write!(f, "decided, but its store did not finish it: {error}"),
            Doubt::SameStore(other) => {
                write!(f, "it is the same store as {other:?}; register it once, under the name that its decisions have")
            }
            Doubt::Unregistered => f.write_str("decided, but its store is not registered here; register it"),
            Doubt::OtherStore { was, now } => write!(
                f,
                "decided in the store {was}, and what is registered under its name is the store {now} now; bring back the one it was"
            ),
            Doubt::Undecided => {
                f.write_str("its outcome is unknown; restart the process, so that it reads which decisions are durable")
            }
        }
    }
}

struct Signals {
    wake: Notify,
    stop: watch::Sender<bool>,
}

impl Signals {
    async fn stopped(&self) {
        // The sender is in self, so it can't be closed.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }
}

/// The background's own state.
pub(crate) struct Recovery {
    interval: Duration,
    doubts: Mutex<Vec<InDoubt>>,
    /// Transactions whose ids list their participants and which their driver left without a record, by one of their branches: what follows is recorded
    /// also where no store lists any of them.
    left: Mutex<BTreeMap<TransactionId, BranchId>>,
    /// For each resource the branch whose end got no answer in the last pass.
    hung: Mutex<BTreeMap<String, BranchId>>,
    signals: Arc<Signals>,
    one_pass_at_a_time: AsyncMutex<()>,
}

impl Recovery {
    pub(crate) fn new(interval: Duration) -> Self {
        let signals = Signals { wake: Notify::new(), stop: watch::Sender::new(false) };
        Self {
            interval,
            doubts: Mutex::default(),
            left: Mutex::default(),
            hung: Mutex::default(),
            signals: Arc::new(signals),
            one_pass_at_a_time: AsyncMutex::new(()),
        }
    }

    /// Something was left to recovery: don't wait for the interval.
    pub(crate) fn wake(&self) {
        self.signals.wake.notify_one();
    }

    /// The driver of this branch's transaction, which lists its participants, has ended without a record, and tells nobody anything any more. It wakes recovery then.
    pub(crate) fn leave(&self, branch: BranchId) {
        lock(&self.left).insert(branch.transaction, branch);
    }

    /// Ends the background, and a pass that is under way: it must not ask in the name of a log that is given up.
    pub(crate) fn stop(&self) {
        self.signals.stop.send_replace(true);
    }

    /// Waits until no pass is under way; after [`stop`](Self::stop) none begins any more.
    pub(crate) async fn idle(&self) {
        drop(self.one_pass_at_a_time.lock().await);
    }

    /// Not empty: the next pass comes soon.
    pub(crate) fn in_doubt(&self) -> Vec<InDoubt> {
        lock(&self.doubts).clone()
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts the background passes; they end with the manager.
pub(crate) fn start(inner: &Arc<Inner>) -> Result<(), NoRuntime> {
    // The manager must not live on in its own background: only a pass holds it.
    let weak = Arc::downgrade(inner);
    let signals = inner.recovery.signals.clone();
    let env = inner.env.clone();
    env.clone().spawn(Box::pin(async move {
        let mut doubtful_passes = 0_u32;
        loop {
            let Some(inner) = weak.upgrade() else { return };
            let wait = if inner.recovery.in_doubt().is_empty() {
                doubtful_passes = 0;
                inner.recovery.interval
            } else {
                doubtful_passes = doubtful_passes.saturating_add(1);
                FIRST_WAIT
                    .saturating_mul(1 << (doubtful_passes - 1).min(16))
                    .min(LAST_WAIT)
                    .min(inner.recovery.interval)
            };
            drop(inner);
            let woken = tokio::select! {
                biased;
                () = signals.stopped() => return,
                () = signals.wake.notified() => true,
                () = env.sleep(jitter(&*env, wait)) => false,
            };
            if woken {
                doubtful_passes = 0;
            }
            match weak.upgrade() {
                Some(inner) => pass(&inner).await,
                None => return,
            }
        }
    }))
}

/// One look at every store, and what follows from it.
///
/// Cancel safety: a pass that is dropped counts as a crash; every step of it can be repeated.
pub(crate) async fn pass(inner: &Inner) {
    let _one = inner.recovery.one_pass_at_a_time.lock().await;
    tokio::select! {
        biased;
        () = inner.recovery.signals.stopped() => {}
        () = whole_pass(inner) => {}
    }
}

async fn whole_pass(inner: &Inner) {
    let mut doubts = Vec::new();
    let silent = Silent::default();
    let mut pass = Pass { inner, silent, undecided: BTreeMap::new() };

    let aborts = unfinished_aborts(&pass).await;
    let unfinished = unfinished(&pass, &mut doubts).await;
    let mut listed = list(&pass, Durably::No, &mut doubts).await;
    let live = inner.live.snapshot();
    pass.undecided = together::conclude_all(&pass, &listed, &live).await;
    let inner = &pass;

    let stores: Vec<_> = std::mem::take(&mut listed).into_iter().collect();
    let finished = stores.into_iter().map(|(store, (registered, branches))| {
        let live = &live;
        async move {
            let mut left = Left { prepared: BTreeSet::new(), doubts: Vec::new() };
            let hung = lock(&inner.recovery.hung).remove(&registered.name);
            for branch in turned(branches, hung) {
                let result = match live.get(&branch.transaction) {
                    Some(Stage::Driven) => {
                        left.prepared.insert(branch);
                        continue;
                    }
                    Some(Stage::Held) => Err(Doubt::Undecided),
                    Some(Stage::Aborted) => end(inner, &registered, &branch, Verdict::Rollback, Decision::Abort).await,
                    None => {
                        let known = ask(inner, &branch).await;
                        let decided = match known {
                            Known::Commit(_) => Decision::Commit,
                            Known::Abort | Known::Hold(_) => Decision::Abort,
                        };
                        end(inner, &registered, &branch, verdict(&branch, &known), decided).await
                    }
                };
                if let Err(why) = result {
                    left.doubts.push(InDoubt {
                        resource: registered.name.clone(),
                        transaction: Some(branch.transaction),
                        branch: Some(branch.clone()),
                        why,
                    });
                    left.prepared.insert(branch);
                }
            }
            (store, left)
        }
    });
    let mut after = After::default();
    for (store, left) in join_all(finished).await {
        doubts.extend(left.doubts);
        after.prepared.insert(store, left.prepared);
    }
    for (decider, record) in unfinished {
        forget_or_report(inner, decider.as_deref(), &record, &after, &mut doubts);
    }
    for record in aborts {
        forget_or_report(inner, None, &record, &after, &mut doubts);
    }
    forget_aborted(inner, &live, &after);
    report(&doubts);
    *lock(&inner.recovery.doubts) = doubts;
}

/// A branch that hung in the last pass comes last in this one: those behind it would never be tried otherwise.
fn turned(mut branches: Vec<BranchId>, hung: Option<BranchId>) -> Vec<BranchId> {
    if let Some(place) = hung.and_then(|hung| branches.iter().position(|branch| *branch == hung)) {
        branches.rotate_left(place + 1);
    }
    branches
}

/// Aborted transactions of which no store lists a branch any more, where every store was asked.
fn forget_aborted(inner: &Inner, live: &BTreeMap<TransactionId, Stage>, after: &After) {
    let all = inner
        .resources
        .values()
        .all(|registered| registered.known_identity().is_some_and(|store| after.prepared.contains_key(store)));
    let listed = |id: TransactionId| after.prepared.values().flatten().any(|branch| branch.transaction == id);
    for (&id, _) in live.iter().filter(|(_, stage)| **stage == Stage::Aborted) {
        if all && !listed(id) {
            inner.live.leave(id);
        }
    }
}

struct Left {
    prepared: BTreeSet<BranchId>,
    doubts: Vec<InDoubt>,
}

/// What is still prepared after a pass, for each store whose list was to be had.
#[derive(Default)]
struct After {
    prepared: BTreeMap<StoreId, BTreeSet<BranchId>>,
}

impl Lists for After {
    fn still_prepared(&self, store: &StoreId) -> Option<&BTreeSet<BranchId>> {
        self.prepared.get(store)
    }
}

/// Who did not answer in this pass, by the resource's name; the log has none. Nobody waits for them a second time: a store with
/// many branches that hangs would otherwise keep the others waiting for each of them (rule 13).
type Silent = Mutex<BTreeSet<Option<String>>>;

/// A pass under way.
struct Pass<'m> {
    inner: &'m Inner,
    silent: Silent,
    /// Transactions that the log has no record of, and may not presume anything of, and why nothing follows for them yet.
    undecided: BTreeMap<TransactionId, HoldReason>,
}

impl std::ops::Deref for Pass<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        self.inner
    }
}

impl Pass<'_> {
    /// The answer of a store, or of the log; an error at once where it was silent before in this pass.
    async fn within<T>(
        &self,
        who: Option<&str>,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let who = who.map(str::to_owned);
        if lock(&self.silent).contains(&who) {
            return Err(StoreError::new("it did not answer before in this pass"));
        }
        let answer = within(self.inner, call).await;
        if is_no_answer(&answer) {
            lock(&self.silent).insert(who);
        }
        answer
    }
}

fn is_no_answer<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Err(error) if error.source().is_some_and(|source| source.is::<NoAnswer>()))
}

/// The limit of time passed.
#[derive(Debug)]
struct NoAnswer(Duration);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {:?}", self.0)
    }
}

impl Error for NoAnswer {}

/// An answer within the limit; a panic and silence are errors.
pub(crate) async fn within<T>(
    inner: &Inner,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let call = AssertUnwindSafe(call).catch_unwind();
    match env::within(&*inner.env, inner.store_wait, call).await {
        Some(answer) => answer.unwrap_or_else(|_panic| Err(StoreError::new("its adapter panicked"))),
        None => Err(StoreError::new(NoAnswer(inner.store_wait))),
    }
}

fn unreachable(registered: &Registered, error: &StoreError) -> InDoubt {
    InDoubt {
        resource: registered.name.clone(),
        transaction: None,
        branch: None,
        why: Doubt::Unreachable(crate::error::chain(error)),
    }
}

type Unfinished = Vec<(Option<Arc<Registered>>, DecisionRecord)>;

/// Decisions that no driver works on and that are not known to be finished; with the store that keeps them, or none for the log.
async fn unfinished(inner: &Pass<'_>, doubts: &mut Vec<InDoubt>) -> Unfinished {
    let mut all = Vec::new();
    match inner.within(None, inner.log.unfinished()).await {
        Ok(records) => all.extend(records.into_iter().map(|record| (None, record))),
        Err(error) => {
            tracing::error!(error = &error as &(dyn std::error::Error + 'static), "the decision log can't be asked")
        }
    }
    // Each of them: one that is no carrier now may have been one.
    let asked = join_all(inner.resources.values().map(|registered| async move {
        let answer = inner.within(Some(&registered.name), registered.resource.unfinished(inner.owner)).await;
        (registered, answer)
    }));
    for (registered, answer) in asked.await {
        match answer {
            Ok(records) => all.extend(records.into_iter().map(|record| (Some(registered.clone()), record))),
            Err(error) => doubts.push(unreachable(registered, &error)),
        }
    }
    // The live table is read after the decisions: what is not in it now was left by its driver before.
    all.retain(|(_, record)| !inner.live.contains(record.transaction));
    all
}

/// Decisions to abort that no driver works on and that are not known to be finished.
async fn unfinished_aborts(inner: &Pass<'_>) -> Vec<DecisionRecord> {
    let aborts = inner.within(None, inner.log.unfinished_aborts()).await;
    // Where the log can't be asked, that is told with the decisions to commit.
    let mut aborts = aborts.unwrap_or_default();
    aborts.retain(|record| !inner.live.contains(record.transaction));
    aborts
}

type Listed = BTreeMap<StoreId, (Arc<Registered>, Vec<BranchId>)>;

/// Whether what is listed must be certain to stay: for a conclusion, and not for what is recorded anyway. Stores that can't say so have no list then.
#[derive(Clone, Copy)]
enum Durably {
    Yes,
    No,
}

async fn list(inner: &Pass<'_>, durably: Durably, doubts: &mut Vec<InDoubt>) -> Listed {
    let has_list = |registered: &&Arc<Registered>| registered.lists_durably || matches!(durably, Durably::No);
    let asked = join_all(inner.resources.values().filter(has_list).map(|registered| async move {
        let answer = inner.within(Some(&registered.name), async {
            let store = registered.identity().await?.clone();
            let list = match durably {
                Durably::Yes => registered.resource.durably_in_doubt(),
                Durably::No => Some(registered.resource.in_doubt()),
            };
            let list = list.ok_or_else(|| StoreError::new("it can't make certain of what it lists"))?;
            Ok((store, list.await?))
        });
        (registered, answer.await)
    }));
    let mut listed = Listed::new();
    for (registered, answer) in asked.await {
        match answer {
            Ok((store, branches)) => match listed.entry(store) {
                Entry::Vacant(place) => {
                    place.insert((registered.clone(), branches));
                }
                // Builder::build refuses it where both answer; one of them was down then.
                Entry::Occupied(other) => doubts.push(InDoubt {
                    resource: registered.name.clone(),
                    transaction: None,
                    branch: None,
                    why: Doubt::SameStore(other.get().0.name.clone()),
                }),
            },
            Err(error) => {
                let doubt = unreachable(registered, &error);
                if !doubts.contains(&doubt) {
                    doubts.push(doubt);
                }
            }
        }
    }
    listed
}

/// What the branch's decider says, asked last (rules 2, 4 and 5).
async fn ask(inner: &Pass<'_>, branch: &BranchId) -> Known {
    let answer = match whom_to_ask(branch, inner.owner) {
        Ask::Nobody(reason) => return Known::Hold(reason),
        Ask::Log => inner.within(None, inner.log.lookup(branch.transaction)).await,
        Ask::Together(_) => match inner.within(None, inner.log.recorded(branch.transaction)).await {
            Ok(Some(known)) => Ok(known),
            Ok(None) => {
                let reason = inner.undecided.get(&branch.transaction);
                return Known::Hold(reason.cloned().unwrap_or(HoldReason::NotRecorded));
            }
            Err(error) => Err(error),
        },
        Ask::Store(store) => {
            let decider = inner.resources.values().find(|registered| registered.known_identity() == Some(store));
            let Some(decider) = decider else {
                // One that was never reached may be it.
                let unreached = inner.resources.values().any(|registered| registered.known_identity().is_none());
                return Known::Hold(match unreached {
                    true => HoldReason::Unreachable,
                    false => HoldReason::UnregisteredDecider(store.clone()),
                });
            };
            let asking = decider.decision(branch.transaction, inner.owner);
            inner.within(Some(&decider.name), asking).await
        }
    };
    answer.unwrap_or_else(|error| {
        tracing::warn!(%branch, error = &error as &(dyn std::error::Error + 'static), "the decider can't be asked");
        Known::Hold(HoldReason::Unreachable)
    })
}

/// Ends a branch as its verdict says, and remembers what is decided of its transaction: a reader is rolled back whatever that is.
async fn end(
    inner: &Pass<'_>,
    registered: &Registered,
    branch: &BranchId,
    verdict: Verdict,
    decided: Decision,
) -> Result<(), Doubt> {
    let who = Some(registered.name.as_str());
    let (done, decision) = match verdict {
        Verdict::Hold(reason) => return Err(Doubt::Held(reason)),
        Verdict::Commit => (
            inner.within(who, async { registered.resource.commit(branch).await.map_err(StoreError::new) }).await,
            Decision::Commit,
        ),
        Verdict::Rollback => (
            inner.within(who, async { registered.resource.rollback(branch).await.map_err(StoreError::new) }).await,
            Decision::Abort,
        ),
    };
    if is_no_answer(&done) {
        lock(&inner.recovery.hung).insert(registered.name.clone(), branch.clone());
    }
    match done {
        Ok(()) => {
            let did = match decision {
                Decision::Commit => "committed",
                Decision::Abort => "rolled back",
            };
            tracing::info!(%branch, resource = %registered.name, "recovery {did} the branch");
            inner.outcomes.recovered(branch.transaction, decided);
            if let Some(observer) = &inner.recovery_observer {
                observer(&Recovered { resource: registered.name.clone(), branch: branch.clone(), decision });
            }
            Ok(())
        }
        Err(error) => Err(Doubt::NotFinished(crate::error::chain(&error))),
    }
}

fn forget_or_report(
    inner: &Inner,
    decider: Option<&Registered>,
    record: &DecisionRecord,
    after: &After,
    doubts: &mut Vec<InDoubt>,
) {
    if is_finished(record, after) {
        match decider {
            None => inner.log.forget(record.transaction),
            Some(carrier) => carrier.resource.forget(record.transaction),
        }
        return;
    }
    // One that was never reached may be the store that its name says; it is in doubt as unreachable already.
    let known = |resource: &str, store: &StoreId| {
        inner.resources.values().any(|registered| match registered.known_identity() {
            Some(identity) => identity == store,
            None => registered.name == resource,
        })
    };
    for participant in &record.participants {
        let Some(store) = &participant.store else { continue };
        if !known(&participant.resource, store) {
            let named = inner.resources.get(&participant.resource).and_then(|named| named.known_identity());
            let why =
                named.map_or(Doubt::Unregistered, |now| Doubt::OtherStore { was: store.clone(), now: now.clone() });
            doubts.push(InDoubt {
                resource: participant.resource.clone(),
                transaction: Some(record.transaction),
                branch: None,
                why,
            });
        }
    }
}

fn report(doubts: &[InDoubt]) {
    for doubt in doubts {
        let transaction = doubt.transaction.map(tracing::field::display);
        let branch = doubt.branch.as_ref().map(tracing::field::display);
        tracing::warn!(resource = %doubt.resource, transaction, branch, "in doubt: {}", doubt.why);
    }
}

#[cfg(test)]
mod tests {
    use unanimous_core::{DeciderId, Incarnation, LogId, Owner};

    use super::*;

    #[test]
    fn a_branch_that_hung_comes_last() {
        let owner = Owner { log: LogId(1), incarnation: Incarnation::new(1, 1) };
        let branch = |n| BranchId { transaction: owner.transaction(n), decider: DeciderId::Log, number: 0 };
        let branches = |order: [u64; 3]| order.map(branch).to_vec();
        assert_eq!(turned(branches([1, 2, 3]), None), branches([1, 2, 3]));
        assert_eq!(turned(branches([1, 2, 3]), Some(branch(1))), branches([2, 3, 1]));
        assert_eq!(turned(branches([1, 2, 3]), Some(branch(3))), branches([1, 2, 3]));
        assert_eq!(turned(branches([1, 2, 3]), Some(branch(9))), branches([1, 2, 3]));
    }
}
