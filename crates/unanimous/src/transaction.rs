//! [`Transaction`], the owner that ends a transaction, and [`Tx`], the handle that is shared.
//!
//! A transaction gathers branches; its end hands them to the driver. Must not know the protocol, nor any store.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use unanimous_core::protocol::{Event, Protocol, Spec};
use unanimous_core::{Branch, BranchContext, BranchError, Capability, Outcome, ResourceManager, TransactionId};

use crate::dispatch::{DynBranch, Registered};
use crate::driver::Driver;
use crate::error::{Cause, CommitError, JoinError};
use crate::manager::Inner;
use crate::sync::lock;

/// How a transaction begins.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Aborted when its branches have not all voted by then, counted from begin. Never cuts a decision that is on its way: a log or a
    /// carrier that does not answer is waited for. None: the manager's.
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

/// A branch that has joined.
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) capability: Capability,
    pub(crate) sort_key: String,
    pub(crate) branch: Arc<dyn DynBranch>,
    typed: Arc<dyn Any + Send + Sync>,
    pub(crate) registered: Option<Arc<Registered>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Active,
    Ending,
    TimedOut,
}

struct State {
    status: Status,
    doomed: bool,
    slots: Vec<Slot>,
    leases: usize,
    options: Options,
    note: String,
    user: String,
    after_end: Vec<AfterEnd>,
    /// How it ended, once the callbacks were called.
    ended: Option<Outcome>,
    /// Dropped when the transaction is not active any more: ends the watch of its time limit.
    watched: Option<oneshot::Sender<()>>,
}

type AfterEnd = Box<dyn FnOnce(Outcome) + Send>;

/// What the owner, its handles, its guards and its driver share.
pub(crate) struct Shared {
    pub(crate) id: TransactionId,
    pub(crate) manager: Arc<Inner>,
    pub(crate) began: Duration,
    pub(crate) began_at: u64,
    state: Mutex<State>,
    /// One join at a time begins a branch, so that two that meet get the same one.
    joining: tokio::sync::Mutex<()>,
}

/// What a transaction says of itself, for reports.
pub(crate) struct Annotations {
    pub(crate) note: String,
    pub(crate) user: String,
}

impl Shared {
    pub(crate) fn annotations(&self) -> Annotations {
        let state = lock(&self.state);
        Annotations { note: state.note.clone(), user: state.user.clone() }
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
    }

    fn call_after_end(&self, callback: AfterEnd, outcome: Outcome) {
        let call = std::panic::AssertUnwindSafe(move || callback(outcome));
        if std::panic::catch_unwind(call).is_err() {
            tracing::error!(transaction = %self.id, "an after-end callback panicked; the outcome stays {outcome}");
        }
    }

    fn not_active(&self, status: Status) -> JoinError {
        let why = match status {
            Status::TimedOut => "its time limit passed; begin another",
            Status::Active | Status::Ending => "it has ended or is ending; begin another",
        };
        JoinError::NotActive { id: self.id, why }
    }

    fn shutting_down(&self) -> JoinError {
        JoinError::NotActive { id: self.id, why: "the transaction manager is shutting down" }
    }

    fn lease(self: &Arc<Self>) -> Result<Lease, JoinError> {
        let mut state = lock(&self.state);
        if state.status != Status::Active {
            return Err(self.not_active(state.status));
        }
        if state.slots.is_empty() && self.manager.is_closing() {
            return Err(self.shutting_down());
        }
        state.leases += 1;
        drop(state);
        Ok(Lease { shared: self.clone() })
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
    ) -> Result<Arc<B>, JoinError> {
        let branch = Arc::new(branch);
        let slot = Slot {
            name: name.to_owned(),
            capability: DynBranch::capability(&*branch),
            sort_key: DynBranch::sort_key(&*branch),
            branch: branch.clone(),
            typed: branch.clone(),
            registered,
        };
        if let Err(error) = self.add_slot(slot) {
            self.discard(name, branch);
            return Err(error);
        }
        Ok(branch)
    }

    /// What was checked when the join began is checked again: it may have changed while the branch began.
    fn add_slot(self: &Arc<Self>, slot: Slot) -> Result<(), JoinError> {
        let mut state = lock(&self.state);
        if state.status != Status::Active {
            return Err(self.not_active(state.status));
        }
        if state.slots.iter().any(|other| other.name == slot.name) {
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
        state.slots.push(slot);
        if let (true, Some(limit)) = (first, state.options.time_limit.or(self.manager.time_limit)) {
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
        if let Err(error) = self.manager.env.spawn(Box::pin(task)) {
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
            let Some(end) = shared.take(Status::TimedOut) else { return };
            tracing::warn!(transaction = %shared.id, ?limit, "aborting: its time limit passed before commit");
            // Nobody waits for it: the owner learns it when it commits.
            drop(shared.drive(end, Event::Abort, Some(Cause::TimeLimit)));
        };
        if let Err(error) = self.manager.env.spawn(Box::pin(task)) {
            tracing::warn!(transaction = %self.id, %error, "its time limit is not watched before commit");
        }
        active
    }

    fn left_of(&self, limit: Duration) -> Duration {
        limit.saturating_sub(self.manager.env.monotonic().saturating_sub(self.began))
    }

    /// Ends the active state, once; none where something else has ended it.
    fn take(&self, status: Status) -> Option<Taken> {
        let mut state = lock(&self.state);
        if state.status != Status::Active {
            return None;
        }
        state.status = status;
        state.watched = None;
        Some(Taken {
            slots: std::mem::take(&mut state.slots),
            leases: state.leases,
            doomed: state.doomed,
            options: state.options.clone(),
        })
    }

    /// Hands the branches to a driver of their own; what is returned may be dropped.
    fn drive(self: &Arc<Self>, taken: Taken, event: Event, cause: Option<Cause>) -> Commit {
        let Taken { mut slots, options, .. } = taken;
        if slots.is_empty() {
            let outcome = if event == Event::Commit { Outcome::Committed } else { Outcome::Aborted };
            self.run_after_end(outcome);
            return Commit::ready(match cause {
                None if event == Event::Commit => Ok(Committed { id: self.id, pending: 0 }),
                cause => Err(CommitError::Aborted { id: self.id, source: cause.unwrap_or(Cause::GivenUp) }),
            });
        }
        // Stable: joins of the same key keep their order.
        slots.sort_by(|a, b| (&a.sort_key, &a.name).cmp(&(&b.sort_key, &b.name)));
        let specs =
            slots.iter().map(|slot| Spec { capability: slot.capability, allowed: options.allow.contains(&slot.name) });
        let protocol = Protocol::new(specs, options.ask_single);
        let limit = options.time_limit.or(self.manager.time_limit).map(|limit| self.left_of(limit));
        let (reply, answer) = oneshot::channel();
        let driver = Driver::new(self.clone(), slots, protocol, cause, limit, reply);
        match driver.spawn(event) {
            Ok(()) => Commit { id: self.id, answer: Answer::Waiting(answer) },
            Err(error) => {
                self.run_after_end(Outcome::Aborted);
                Commit::ready(Err(CommitError::Aborted { id: self.id, source: Cause::NoRuntime(error) }))
            }
        }
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

struct Taken {
    slots: Vec<Slot>,
    leases: usize,
    doomed: bool,
    options: Options,
}

/// Keeps commit from starting while a guard is in use.
struct Lease {
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
    pub(crate) fn new(manager: Arc<Inner>, id: TransactionId, options: Options) -> Self {
        let began = manager.env.monotonic();
        let began_at = manager.env.wall_clock();
        let state = State {
            status: Status::Active,
            doomed: false,
            slots: Vec::new(),
            leases: 0,
            options,
            note: String::new(),
            user: String::new(),
            after_end: Vec::new(),
            ended: None,
            watched: None,
        };
        let shared =
            Shared { id, manager, began, began_at, state: Mutex::new(state), joining: tokio::sync::Mutex::new(()) };
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
        let Some(taken) = shared.take(Status::Ending) else {
            // Only the time limit ends it behind its owner's back.
            return Commit::ready(Err(CommitError::Aborted { id: shared.id, source: Cause::TimeLimit }));
        };
        if taken.doomed {
            return shared.drive(taken, Event::Abort, Some(Cause::Doomed));
        }
        if taken.leases > 0 {
            let guards = taken.leases;
            return shared.drive(taken, Event::Abort, Some(Cause::InUse { guards }));
        }
        if shared.manager.is_given_up() {
            return shared.drive(taken, Event::Abort, Some(Cause::ShuttingDown));
        }
        shared.drive(taken, Event::Commit, None)
    }

    /// Gives the transaction up. Starts at the call, detached; the future ends when its branches are rolled back, or after the
    /// manager's `phase_two_wait`, when the rest is left to the background. It can't fail: nothing will commit.
    pub fn abort(self) -> Abort {
        self.abort_for(Cause::GivenUp)
    }

    /// The same, for a reason that is told in the report.
    pub(crate) fn abort_for(self, cause: Cause) -> Abort {
        let shared = &self.tx.shared;
        Abort { commit: shared.take(Status::Ending).map(|taken| shared.drive(taken, Event::Abort, Some(cause))) }
    }

    /// A handle to share. It can do everything but end the transaction.
    pub fn handle(&self) -> Tx {
        self.tx.clone()
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let shared = &self.tx.shared;
        let Some(taken) = shared.take(Status::Ending) else { return };
        if !taken.slots.is_empty() {
            tracing::warn!(transaction = %shared.id, "dropped without commit or abort; aborting in the background");
        }
        // Nobody waits for it.
        drop(shared.drive(taken, Event::Abort, Some(Cause::Dropped)));
    }
}

impl Deref for Transaction {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

enum Answer {
    Ready(Option<Result<Committed, CommitError>>),
    Waiting(oneshot::Receiver<Result<Committed, CommitError>>),
}

/// A commit under way. Dropping it changes nothing; awaiting it gives the outcome.
#[must_use = "the outcome is known only to those who wait for it"]
pub struct Commit {
    id: TransactionId,
    answer: Answer,
}

impl Commit {
    fn ready(result: Result<Committed, CommitError>) -> Self {
        let id = match &result {
            Ok(committed) => committed.id,
            Err(error) => error.id(),
        };
        Self { id, answer: Answer::Ready(Some(result)) }
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Future for Commit {
    type Output = Result<Committed, CommitError>;

    /// # Panics
    ///
    /// When polled again after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = self.id;
        match &mut self.answer {
            Answer::Ready(result) => Poll::Ready(result.take().expect("a commit is not polled after it was ready")),
            Answer::Waiting(receiver) => Pin::new(receiver).poll(cx).map(|answer| {
                // The driver answers before it ends; it was dropped with its runtime.
                answer.unwrap_or_else(|_| Err(CommitError::Unknown { id, source: Cause::Interrupted }))
            }),
        }
    }
}

/// An abort under way. Dropping it changes nothing.
#[derive(Debug)]
#[must_use = "await it to know that the branches are rolled back"]
pub struct Abort {
    commit: Option<Commit>,
}

impl Future for Abort {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.commit {
            None => Poll::Ready(()),
            Some(commit) => Pin::new(commit).poll(cx).map(|_aborted| ()),
        }
    }
}

/// The transaction has committed: the decision is durable, and every branch has committed or will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The transaction.
    pub id: TransactionId,
    /// Branches that had not confirmed within `phase_two_wait`; they are committed in the background, or after a restart.
    pub pending: usize,
}

impl Committed {
    pub(crate) fn new(id: TransactionId, pending: usize) -> Self {
        Self { id, pending }
    }
}

/// A handle of a transaction, for handlers, extractors and everything else that takes part: it joins, dooms and annotates, but
/// does not end it.
#[derive(Clone)]
pub struct Tx {
    shared: Arc<Shared>,
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
        let branch = shared.add(name, branch, Some(registered))?;
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
        let branch = shared.add(name, branch, None)?;
        Ok(Joined { branch, lease, tx: self })
    }

    /// From now on it can only be aborted; commit will say so.
    pub fn doom(&self) {
        lock(&self.shared.state).doomed = true;
    }

    /// Whether somebody has doomed it. One that is past its time limit was not doomed, but is not [active](Self::is_active) any more.
    pub fn is_doomed(&self) -> bool {
        lock(&self.shared.state).doomed
    }

    /// Whether it can still be joined.
    pub fn is_active(&self) -> bool {
        lock(&self.shared.state).status == Status::Active
    }

    /// Whether something has joined.
    pub fn has_branches(&self) -> bool {
        !lock(&self.shared.state).slots.is_empty()
    }

    /// Adds a line to the transaction's note.
    pub fn note(&self, text: &str) {
        let mut state = lock(&self.shared.state);
        if !state.note.is_empty() {
            state.note.push('\n');
        }
        state.note.push_str(text);
    }

    /// Sets the user on whose behalf it runs.
    pub fn set_user(&self, user: &str) {
        lock(&self.shared.state).user = user.to_owned();
    }

    /// Lets the branch of this name take part beside others that write although it is volatile or one-phase: a crash between
    /// them may tear it from the others (rule 10).
    pub fn allow(&self, name: &str) {
        lock(&self.shared.state).options.allow.push(name.to_owned());
    }

    /// Called once when the transaction has ended: committed, aborted, or with an unknown outcome; at once where it has ended already.
    /// Runs on the driver's task, in the order of registration, must not block; a panic in it is reported and changes nothing.
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
