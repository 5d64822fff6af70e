//! [`Transaction`], the owner that ends a transaction, and [`Tx`], the handle that is shared.
//!
//! A transaction gathers branches; its end hands them to the driver. Must not know the protocol, nor any store.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use unanimous_core::{
    Branch, BranchContext, BranchError, Capability, Outcome, ResourceManager, StoreId, TransactionId,
};

use crate::annotations::{Annotations, Data};
use crate::commit::{Abort, Commit};
use crate::dispatch::{DynBranch, Registered};
use crate::ending::Wish;
use crate::env::{BoxFuture, NoRuntime};
use crate::error::{Cause, CommitError, JoinError};
use crate::hooks::Hooks;
use crate::inline;
use crate::inner::Inner;
use crate::savepoint::Savepoints;
use crate::sync::lock;

/// How a transaction begins.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Aborted when its branches have not all voted by then, counted from begin. Never cuts a decision that is on its way: a log or a
    /// carrier that does not answer is waited for. None: the manager's. On a [thread](crate::thread) it is looked at by whoever uses the
    /// transaction.
    pub time_limit: Option<Duration>,
    /// Names of branches that may take part beside others that write although they are volatile or one-phase (rule 10).
    pub allow: Vec<String>,
    /// A carrier that is the only writer carries a decision of its own, so that an answer that was lost can be asked for.
    /// Costs a row; without it such a loss is an unknown outcome.
    pub ask_single: bool,
}

impl Options {
    /// Sets the time limit.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Opts in to a volatile or one-phase branch of this name beside others that write.
    #[must_use]
    pub fn allow(mut self, name: impl Into<String>) -> Self {
        self.allow.push(name.into());
        self
    }

    /// Lets a carrier that is the only writer carry its own decision.
    #[must_use]
    pub fn ask_single(mut self) -> Self {
        self.ask_single = true;
        self
    }
}

/// Where what is not awaited runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In tasks of the manager's runtime.
    Runtime,
    /// On the thread that waits for it, branches one at a time and in order.
    Thread,
}

/// A branch that has joined.
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) capability: Capability,
    pub(crate) sort_key: String,
    pub(crate) branch: Arc<dyn DynBranch>,
    typed: Arc<dyn Any + Send + Sync>,
    pub(crate) registered: Option<Arc<Registered>>,
    /// Of its id, where it was reserved before it joined; the others get theirs when the end begins.
    pub(crate) number: Option<u16>,
    /// The last savepoint that had begun when it joined.
    pub(crate) savepoint: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Active,
    /// Its owner or its time limit ends it, and hooks run first: it can still be joined.
    Completing,
    Ending,
    TimedOut,
}

impl Status {
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Status::Active | Status::Completing)
    }

    /// Why something that needs an open transaction is refused, and what to do.
    pub(crate) fn why_not(self) -> &'static str {
        match self {
            Status::TimedOut => "its time limit passed; begin another",
            Status::Active | Status::Completing | Status::Ending => "it has ended or is ending; begin another",
        }
    }
}

pub(crate) struct State {
    pub(crate) status: Status,
    pub(crate) doomed: bool,
    pub(crate) slots: Vec<Slot>,
    pub(crate) leases: usize,
    pub(crate) options: Options,
    pub(crate) annotations: Annotations,
    pub(crate) data: Data,
    /// None where nobody has registered one, so that they cost nothing.
    pub(crate) hooks: Option<Box<Hooks>>,
    /// No hook can run any more.
    pub(crate) hooks_closed: bool,
    pub(crate) savepoints: Savepoints,
    after_end: Vec<AfterEnd>,
    /// How it ended, once the callbacks were called.
    ended: Option<Outcome>,
    /// Everything was called that was to be called.
    over: bool,
    /// Dropped when the transaction is not active any more: ends the watch of its time limit.
    pub(crate) watched: Option<oneshot::Sender<()>>,
}

impl State {
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }
}

type AfterEnd = Box<dyn FnOnce(Outcome) + Send>;

impl Slot {
    /// The identity of its store; none where that is not registered, or was never reached.
    pub(crate) fn store(&self) -> Option<&StoreId> {
        self.registered.as_ref().and_then(|registered| registered.known_identity())
    }

    /// Its branch's number in the transaction's end.
    pub(crate) fn number(&self) -> u16 {
        self.number.expect("branches are numbered when their end begins")
    }
}

/// What the owner, its handles, its guards and its driver share.
pub(crate) struct Shared {
    pub(crate) id: TransactionId,
    pub(crate) manager: Arc<Inner>,
    pub(crate) home: Home,
    pub(crate) began: Duration,
    pub(crate) began_at: u64,
    pub(crate) state: Mutex<State>,
    /// One join at a time begins a branch, so that two that meet get the same one; and no savepoint meets a join.
    pub(crate) joining: tokio::sync::Mutex<()>,
}

impl Shared {
    /// Runs a part of the transaction's end, whoever goes away meanwhile.
    pub(crate) fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        match self.home {
            Home::Runtime => self.manager.env.spawn(task),
            Home::Thread => inline::spawn(&self.manager.env, task),
        }
    }

    /// Runs the callbacks, outside of any lock; one that panics is reported and changes nothing.
    pub(crate) fn run_after_end(&self, outcome: Outcome) {
        let callbacks = {
            let mut state = lock(&self.state);
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(outcome);
            std::mem::take(&mut state.after_end)
        };
        for callback in callbacks {
            self.call_after_end(callback, outcome);
        }
        let data = {
            let mut state = lock(&self.state);
            state.over = true;
            std::mem::take(&mut state.data)
        };
        // Outside of the lock: values do things when they are dropped.
        drop(data);
    }

    fn call_after_end(&self, callback: AfterEnd, outcome: Outcome) {
        let call = std::panic::AssertUnwindSafe(move || callback(outcome));
        if std::panic::catch_unwind(call).is_err() {
            tracing::error!(transaction = %self.id, "an after-end callback panicked; the outcome stays {outcome}");
        }
    }

    fn check_open(&self, state: &State) -> Result<(), JoinError> {
        if state.savepoints.failed.is_some() {
            Err(JoinError::Failed { id: self.id })
        } else if let Some(why) = self.why_not_open(state) {
            Err(JoinError::NotActive { id: self.id, why })
        } else {
            Ok(())
        }
    }

    /// What it is instead of open, and what to do.
    pub(crate) fn why_not_open(&self, state: &State) -> Option<&'static str> {
        let status = if self.is_late(state) { Status::TimedOut } else { state.status };
        (!status.is_open()).then(|| status.why_not())
    }

    /// Whether its time limit passed on a thread where nobody watches it: whoever uses it next finds out.
    pub(crate) fn is_late(&self, state: &State) -> bool {
        let limit = state.options.time_limit.or(self.manager.time_limit);
        self.home == Home::Thread && limit.is_some_and(|limit| self.left_of(limit).is_zero())
    }

    fn shutting_down(&self) -> JoinError {
        JoinError::NotActive { id: self.id, why: "the transaction manager is shutting down" }
    }

    fn lease(self: &Arc<Self>) -> Result<Lease, JoinError> {
        let mut state = lock(&self.state);
        self.check_open(&state)?;
        if state.slots.is_empty() && self.manager.is_closing() {
            return Err(self.shutting_down());
        }
        Ok(self.count_lease(&mut state))
    }

    pub(crate) fn count_lease(self: &Arc<Self>, state: &mut State) -> Lease {
        state.leases += 1;
        Lease { shared: self.clone() }
    }

    fn joined<B: Branch>(&self, name: &str) -> Result<Option<Arc<B>>, JoinError> {
        let state = lock(&self.state);
        let Some(slot) = state.slots.iter().find(|slot| slot.name == name) else { return Ok(None) };
        match slot.typed.clone().downcast() {
            Ok(branch) => Ok(Some(branch)),
            Err(_) => Err(JoinError::Duplicate { resource: name.to_owned() }),
        }
    }

    /// Before the branch begins, so that a refusal costs nothing.
    fn check_second(&self, name: &str, capability: Capability) -> Result<(), JoinError> {
        check_second(&lock(&self.state).slots, name, capability)
    }

    fn add<B: Branch>(
        self: &Arc<Self>,
        name: &str,
        branch: B,
        registered: Option<Arc<Registered>>,
        number: Option<u16>,
    ) -> Result<Arc<B>, JoinError> {
        let branch = Arc::new(branch);
        let slot = Slot {
            name: name.to_owned(),
            capability: DynBranch::capability(&*branch),
            sort_key: DynBranch::sort_key(&*branch),
            branch: branch.clone(),
            typed: branch.clone(),
            registered,
            number,
            savepoint: 0,
        };
        if let Err(error) = self.add_slot(slot) {
            self.discard(name, branch);
            return Err(error);
        }
        Ok(branch)
    }

    /// What was checked when the join began is checked again: it may have changed while the branch began.
    fn add_slot(self: &Arc<Self>, mut slot: Slot) -> Result<(), JoinError> {
        let mut state = lock(&self.state);
        self.check_open(&state)?;
        let taken = |other: &Slot| other.name == slot.name || (slot.number.is_some() && other.number == slot.number);
        if state.slots.iter().any(taken) {
            return Err(JoinError::Duplicate { resource: slot.name });
        }
        check_second(&state.slots, &slot.name, slot.capability)?;
        let first = state.slots.is_empty();
        if first {
            // Counted before the look, as a shutdown is announced before it counts: one of the two sees the other.
            self.manager.open.add();
            if self.manager.is_closing() {
                self.manager.open.remove();
                return Err(self.shutting_down());
            }
        }
        slot.savepoint = state.savepoints.last;
        state.slots.push(slot);
        if let (true, Home::Runtime, Some(limit)) =
            (first, self.home, state.options.time_limit.or(self.manager.time_limit))
        {
            state.watched = Some(self.watch(limit));
        }
        Ok(())
    }

    /// Rolls back a branch that began and could not join any more, in the background.
    fn discard(&self, name: &str, branch: Arc<dyn DynBranch>) {
        let (id, name) = (self.id, name.to_owned());
        let task = async move {
            if let Err(error) = branch.rollback().await {
                tracing::warn!(transaction = %id, branch = %name, error = &error as &(dyn Error + 'static),
                    "a branch that came too late to join was not rolled back; it ends with its session");
            }
        };
        if let Err(error) = self.spawn(Box::pin(task)) {
            tracing::warn!(transaction = %self.id, %error, "a branch that came too late to join ends with its session");
        }
    }

    /// Aborts the transaction when its time limit passes before commit is called; from then on the driver watches.
    fn watch(self: &Arc<Self>, limit: Duration) -> oneshot::Sender<()> {
        let watched = Arc::downgrade(self);
        let sleep = self.manager.env.sleep(self.left_of(limit));
        let (active, ended) = oneshot::channel::<()>();
        let task = async move {
            tokio::select! {
                biased;
                _ = ended => return,
                () = sleep => {}
            }
            let Some(shared) = watched.upgrade() else { return };
            let Some(abort) = shared.end(Wish::Abort(Cause::TimeLimit)) else { return };
            tracing::warn!(transaction = %shared.id, ?limit, "aborting: its time limit passed before commit");
            // Nobody waits for it: the owner learns it when it commits.
            drop(abort);
        };
        if let Err(error) = self.manager.env.spawn(Box::pin(task)) {
            tracing::warn!(transaction = %self.id, %error, "its time limit is not watched before commit");
        }
        active
    }

    pub(crate) fn time_limit(&self) -> Option<Duration> {
        lock(&self.state).options.time_limit.or(self.manager.time_limit)
    }

    pub(crate) fn left_of(&self, limit: Duration) -> Duration {
        limit.saturating_sub(self.manager.env.monotonic().saturating_sub(self.began))
    }
}

/// Rule 10: a second branch that can't prepare is refused when it joins, both named.
fn check_second(slots: &[Slot], name: &str, capability: Capability) -> Result<(), JoinError> {
    if capability.can_prepare() {
        return Ok(());
    }
    match slots.iter().find(|slot| !slot.capability.can_prepare()) {
        None => Ok(()),
        Some(first) => Err(JoinError::SecondUnprepared { joined: first.name.clone(), refused: name.to_owned() }),
    }
}

/// Keeps commit from starting while a guard is in use.
pub(crate) struct Lease {
    shared: Arc<Shared>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.shared.state).leases -= 1;
    }
}

/// The owner of a transaction: not `Clone`, and what ends it. It can do all that its handle [`Tx`] can.
///
/// Dropped without an end, the transaction is aborted in the background, with a warning that names it.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is aborted"]
pub struct Transaction {
    tx: Tx,
}

impl Transaction {
    pub(crate) fn new(manager: Arc<Inner>, id: TransactionId, options: Options, home: Home) -> Self {
        let began = manager.env.monotonic();
        let began_at = manager.env.wall_clock();
        let state = State {
            status: Status::Active,
            doomed: false,
            slots: Vec::new(),
            leases: 0,
            options,
            annotations: Annotations::default(),
            data: Data::default(),
            hooks: None,
            hooks_closed: false,
            savepoints: Savepoints::default(),
            after_end: Vec::new(),
            ended: None,
            over: false,
            watched: None,
        };
        let joining = tokio::sync::Mutex::new(());
        let shared = Shared { id, manager, home, began, began_at, state: Mutex::new(state), joining };
        Self { tx: Tx { shared: Arc::new(shared) } }
    }

    /// Commits. It starts at the call, not at the first poll, and runs detached to its end: dropping the future changes nothing.
    ///
    /// # Errors
    ///
    /// [`CommitError::Aborted`]: surely not committed, anywhere. [`CommitError::Unknown`]: nobody can say yet, and it must not be
    /// repeated blindly. A doomed transaction, one past its time limit, and one with a guard in use are aborted.
    pub fn commit(self) -> Commit {
        let shared = &self.tx.shared;
        // Only the time limit ends it behind its owner's back.
        let timed_out = || Commit::ready(Err(CommitError::Aborted { id: shared.id, source: Cause::TimeLimit }));
        shared.end(Wish::Commit).unwrap_or_else(timed_out)
    }

    /// Gives the transaction up. Starts at the call, detached; the future ends when its branches are rolled back, or after the
    /// manager's `phase_two_wait`, when the rest is left to the background. It can't fail: nothing will commit.
    pub fn abort(self) -> Abort {
        self.abort_for(Cause::GivenUp)
    }

    /// The same, for a reason that is told in the report.
    pub(crate) fn abort_for(self, cause: Cause) -> Abort {
        Abort::new(self.tx.shared.end(Wish::Abort(cause)))
    }

    /// A handle to share. It can do everything but end the transaction.
    pub fn handle(&self) -> Tx {
        self.tx.clone()
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let had_branches = self.tx.has_branches();
        let Some(abort) = self.tx.shared.end(Wish::Abort(Cause::Dropped)) else { return };
        if had_branches {
            tracing::warn!(transaction = %self.tx.id(), "dropped without commit or abort; aborting in the background");
        }
        // Nobody waits for it.
        drop(abort);
    }
}

impl Deref for Transaction {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

/// A handle of a transaction, for handlers, extractors and everything else that takes part: it joins, dooms and annotates, but
/// does not end it.
#[derive(Clone)]
pub struct Tx {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

impl Tx {
    /// The transaction's id.
    pub fn id(&self) -> TransactionId {
        self.shared.id
    }

    /// Joins a registered resource: its branch begins, or is given again where it had joined before.
    ///
    /// The guard borrows this handle. A commit that starts while a guard is in use aborts.
    ///
    /// Cancel safety: a join that is dropped has joined or not; a branch that had begun is rolled back.
    ///
    /// # Errors
    ///
    /// [`JoinError`]; the transaction goes on without that branch.
    pub async fn join<'t, R: ResourceManager>(&'t self, resource: &R) -> Result<Joined<'t, R::Branch>, JoinError> {
        self.join_with(resource, R::Options::default()).await
    }

    /// The same, with the resource's own options; they count where the branch begins now.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    pub async fn join_with<'t, R: ResourceManager>(
        &'t self,
        resource: &R,
        options: R::Options,
    ) -> Result<Joined<'t, R::Branch>, JoinError> {
        let shared = &self.shared;
        let name = resource.name();
        let lease = shared.lease()?;
        if let Some(branch) = shared.joined(name)? {
            return Ok(Joined { branch, lease, tx: self });
        }
        let _one_at_a_time = shared.joining.lock().await;
        if let Some(branch) = shared.joined(name)? {
            return Ok(Joined { branch, lease, tx: self });
        }
        let not_registered = || JoinError::NotRegistered { resource: name.to_owned() };
        let registered = shared.manager.registered(name).ok_or_else(not_registered)?;
        let resource = registered.typed::<R>().ok_or_else(not_registered)?;
        shared.check_second(name, registered.capability)?;
        let store = |source: BranchError| JoinError::Store { resource: name.to_owned(), source };
        if registered.known_identity().is_none() {
            // The store was down when the manager was built; its identity is part of every decision.
            registered.identity().await.map_err(|error| store(BranchError::refused(error)))?;
        }
        let branch = resource.begin(&BranchContext::new(shared.id), options).await.map_err(store)?;
        let branch = shared.add(name, branch, Some(registered), None)?;
        Ok(Joined { branch, lease, tx: self })
    }

    /// Joins a branch that no registered resource stands behind: a volatile or one-phase one, under a name of its own.
    ///
    /// # Errors
    ///
    /// [`JoinError`]; the transaction goes on without that branch.
    pub fn join_branch<B: Branch>(&self, name: &str, branch: B) -> Result<Joined<'_, B>, JoinError> {
        let shared = &self.shared;
        let lease = shared.lease()?;
        let capability = DynBranch::capability(&branch);
        if matches!(capability, Capability::TwoPhase | Capability::Carrier) {
            return Err(JoinError::Unrecoverable { resource: name.to_owned() });
        }
        if lock(&shared.state).slots.iter().any(|slot| slot.name == name) {
            return Err(JoinError::Duplicate { resource: name.to_owned() });
        }
        shared.check_second(name, capability)?;
        let branch = shared.add(name, branch, None, None)?;
        Ok(Joined { branch, lease, tx: self })
    }

    /// Joins a branch of a registered resource that somebody else works on: another driver, another language. The branch prepares in the resource's
    /// store, by the id that it is given; so the resource lists it, and recovery finishes what a crash leaves of it. Several
    /// can join, each under a name of its own. Where the resource is a carrier, its branch may say that it [is one](Capability::Carrier): then
    /// it commits with the decision's row, as the resource's own would.
    ///
    /// Where the branch's own connection can't finish it, its `commit` and `rollback` may ask the
    /// [registered](Self::registered) resource's, by the id.
    ///
    /// Cancel safety: a join that is dropped has joined or not; the branch is dropped then.
    ///
    /// # Errors
    ///
    /// [`JoinError::NotRegistered`]; [`JoinError::NotTwoPhase`]; [`JoinError::SecondUnprepared`];
    /// [`JoinError::Store`] where the store, which was down until now, can't say who it is; [`JoinError::Duplicate`]. The transaction
    /// goes on without that branch.
    pub async fn join_foreign<B: Branch>(
        &self,
        resource: &str,
        name: &str,
        branch: B,
    ) -> Result<Joined<'_, B>, JoinError> {
        self.join_foreign_numbered(resource, name, branch, None).await
    }

    /// The same for a branch whose id was [reserved](crate::thread::Reserved::branch) before: it has this number. The id that the branch is
    /// asked to prepare under is another one all the same where another decides than the one that was [named](crate::thread::Reserved::branch_decided_by)
    /// then, and with [early acknowledgement](crate::Builder::early_acknowledgement), since it lists the participants.
    ///
    /// Cancel safety: as [`join_foreign`](Self::join_foreign).
    ///
    /// # Errors
    ///
    /// As [`join_foreign`](Self::join_foreign); [`JoinError::Duplicate`] also where another branch has this number.
    pub async fn join_foreign_as<B: Branch>(
        &self,
        resource: &str,
        name: &str,
        branch: B,
        number: u16,
    ) -> Result<Joined<'_, B>, JoinError> {
        self.join_foreign_numbered(resource, name, branch, Some(number)).await
    }

    async fn join_foreign_numbered<B: Branch>(
        &self,
        resource: &str,
        name: &str,
        branch: B,
        number: Option<u16>,
    ) -> Result<Joined<'_, B>, JoinError> {
        let shared = &self.shared;
        let lease = shared.lease()?;
        let capability = DynBranch::capability(&branch);
        if !matches!(capability, Capability::TwoPhase | Capability::Carrier) {
            return Err(JoinError::NotTwoPhase { name: name.to_owned() });
        }
        let not_registered = || JoinError::NotRegistered { resource: resource.to_owned() };
        let registered = shared.manager.registered(resource).ok_or_else(not_registered)?;
        // Whose rows are asked after a crash is the resource's to say, not the branch's.
        if capability == Capability::Carrier && registered.capability != Capability::Carrier {
            return Err(JoinError::NotTwoPhase { name: name.to_owned() });
        }
        if registered.known_identity().is_none() {
            let store = |error| JoinError::Store { resource: resource.to_owned(), source: BranchError::refused(error) };
            registered.identity().await.map_err(store)?;
        }
        let branch = shared.add(name, branch, Some(registered), number)?;
        Ok(Joined { branch, lease, tx: self })
    }

    /// The registered resources of this type, by their names: for adapters that are given a connection, and must find the resource that it
    /// belongs to.
    pub fn registered<R: ResourceManager>(&self) -> Vec<Arc<R>> {
        self.shared.manager.all_registered().filter_map(|registered| registered.typed()).collect()
    }

    /// Whether a resource of this name is registered.
    #[cfg(feature = "postgres")]
    pub(crate) fn is_registered(&self, name: &str) -> bool {
        self.shared.manager.registered(name).is_some()
    }

    /// The branch of this name, where one has joined.
    #[cfg(feature = "postgres")]
    pub(crate) fn joined<B: Branch>(&self, name: &str) -> Result<Option<Joined<'_, B>>, JoinError> {
        let lease = self.shared.lease()?;
        Ok(self.shared.joined(name)?.map(|branch| Joined { branch, lease, tx: self }))
    }

    /// Tells the synchronizers that it has begun.
    pub(crate) fn announce(&self) {
        self.shared.manager.synchronizers.new_transaction(self);
    }

    /// From now on it can only be aborted; commit will say so.
    pub fn doom(&self) {
        lock(&self.shared.state).doomed = true;
    }

    /// Whether somebody has doomed it. One that is past its time limit was not doomed, but is not [active](Self::is_active) any more.
    pub fn is_doomed(&self) -> bool {
        lock(&self.shared.state).doomed
    }

    /// Whether it can still be joined: until its commit has started, or while its hooks run before that.
    pub fn is_active(&self) -> bool {
        self.shared.why_not_open(&lock(&self.shared.state)).is_none()
    }

    /// Whether something has joined.
    pub fn has_branches(&self) -> bool {
        !lock(&self.shared.state).slots.is_empty()
    }

    /// Lets the branch of this name take part beside others that write although it is volatile or one-phase: a crash between
    /// them may tear it from the others (rule 10).
    pub fn allow(&self, name: &str) {
        lock(&self.shared.state).options.allow.push(name.to_owned());
    }

    /// Called once when the transaction has ended: committed, aborted, or with an unknown outcome; at once where it has ended already.
    /// Runs where the transaction ends, in the order of registration, must not block; a panic in it is reported and changes nothing.
    pub fn after_end(&self, callback: impl FnOnce(Outcome) + Send + 'static) {
        let mut state = lock(&self.shared.state);
        match state.ended {
            None => state.after_end.push(Box::new(callback)),
            Some(outcome) => {
                drop(state);
                self.shared.call_after_end(Box::new(callback), outcome);
            }
        }
    }

    /// Whether an error of the work is worth repeating the transaction for: a conflict among its sources, or one that a joined
    /// branch recognizes as its store's. Never for an unknown outcome.
    pub fn is_retryable(&self, error: &(dyn Error + 'static)) -> bool {
        let branches: Vec<_> = lock(&self.shared.state).slots.iter().map(|slot| slot.branch.clone()).collect();
        let conflict = crate::error::is_conflict(error) || branches.iter().any(|branch| branch.is_retryable(error));
        conflict && !crate::error::is_unknown(error)
    }
}

/// A branch in use: dereferences to the branch's own methods.
pub struct Joined<'t, B: Branch> {
    branch: Arc<B>,
    lease: Lease,
    tx: &'t Tx,
}

impl<B: Branch> fmt::Debug for Joined<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").field("transaction", &self.lease.shared.id).finish_non_exhaustive()
    }
}

impl<'t, B: Branch> Joined<'t, B> {
    /// The handle that it was joined through.
    pub fn tx(&self) -> &'t Tx {
        self.tx
    }
}

impl<B: Branch> Deref for Joined<'_, B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.branch
    }
}
