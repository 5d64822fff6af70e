//! How a transaction ends, around the driver: before-hooks and synchronizers, the branches handed over, after-hooks, the answer.
//!
//! ```text
//! commit, abort, drop,     nothing to call before
//! time limit ─┬──────────────────────────────────────┬─ Driver ─┬─ nothing to call after ─┬─ after_end ─ answer
//!             └─ Completion: before-hooks, synchr. ──┘          └─ Announcement: hooks ───┘
//! ```
//!
//! Completion and Announcement are detached tasks of their own (rule 6), at the transaction's home; dropped with their runtime, they
//! still answer.
//!
//! Must not know the protocol's steps, nor any store.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;

use tracing::Instrument;
use unanimous_core::protocol::{Protocol, Spec};
use unanimous_core::xid::Roster;
use unanimous_core::{BoxError, Capability, Outcome};

use crate::commit::{Answered, Commit, Committed, Reply};
use crate::current::scope;
use crate::driver::Driver;
use crate::env::NoRuntime;
use crate::error::{Cause, CommitError};
use crate::hooks::{self, Moment};
use crate::sync::lock;
use crate::transaction::{Home, Options, Shared, Slot, State, Status, Tx};

/// What its owner, or its time limit, wants of the transaction.
pub(crate) enum Wish {
    Commit,
    Abort(Cause),
}

/// Which of the hooks run after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// The branches were asked.
    Commit,
    /// It was given up before that.
    Abort,
}

/// The branches, taken out of their transaction.
pub(crate) struct Taken {
    slots: Vec<Slot>,
    options: Options,
}

/// How it ended, on the way to its caller.
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) result: Answered,
    pub(crate) reply: Reply,
    pub(crate) after: After,
}

impl Shared {
    /// Ends the active state, once; none where something else has ended it.
    pub(crate) fn end(self: &Arc<Self>, wish: Wish) -> Option<Commit> {
        let mut state = lock(&self.state);
        if state.status != Status::Active {
            return None;
        }
        if state.hooks.is_some() || !self.manager.synchronizers.is_empty() {
            state.status = Status::Completing;
            state.watched = None;
            drop(state);
            return Some(Completion::start(self.clone(), wish));
        }
        let cause = match wish {
            Wish::Commit => self.refusal(&state),
            Wish::Abort(cause) => Some(cause),
        };
        let taken = take(&mut state, cause.as_ref());
        drop(state);
        Some(self.hand_over(taken, cause))
    }

    /// Why it can't be committed.
    fn refusal(&self, state: &State) -> Option<Cause> {
        if let Some(cause) = state.spoiled() {
            Some(cause)
        } else if self.is_late(state) {
            Some(Cause::TimeLimit)
        } else if state.leases > 0 {
            Some(Cause::InUse { guards: state.leases })
        } else if self.manager.is_given_up() {
            Some(Cause::ShuttingDown)
        } else {
            None
        }
    }

    /// To a driver of their own; what is returned may be dropped.
    fn hand_over(self: &Arc<Self>, taken: Taken, cause: Option<Cause>) -> Commit {
        if taken.slots.is_empty() && self.close_hooks(After::of(cause.as_ref())) {
            let (outcome, result) = self.without_branches(cause);
            self.remember(outcome);
            self.run_after_end(outcome);
            return Commit::ready(result);
        }
        let (reply, commit) = Commit::waiting(self.id);
        match self.drive(taken, cause, reply) {
            Ok(()) => commit,
            Err(error) => self.without_runtime(error),
        }
    }

    fn without_runtime(&self, error: NoRuntime) -> Commit {
        Commit::ready(Err(CommitError::Aborted { id: self.id, source: Cause::NoRuntime(error) }))
    }

    fn drive(self: &Arc<Self>, taken: Taken, cause: Option<Cause>, reply: Reply) -> Result<(), NoRuntime> {
        let Taken { mut slots, options } = taken;
        if slots.is_empty() {
            let after = After::of(cause.as_ref());
            let (outcome, result) = self.without_branches(cause);
            self.finish(Ended { outcome, result, reply, after });
            return Ok(());
        }
        // Stable: joins of the same key keep their order.
        slots.sort_by(|a, b| (&a.sort_key, &a.name).cmp(&(&b.sort_key, &b.name)));
        number(&mut slots);
        let specs =
            slots.iter().map(|slot| Spec { capability: slot.capability, allowed: options.allow.contains(&slot.name) });
        let protocol = Protocol::new(specs, options.ask_single).acknowledging_early(self.early_most(&slots));
        let limit = options.time_limit.or(self.manager.time_limit).map(|limit| self.left_of(limit));
        Driver::new(self.clone(), slots, protocol, cause, limit, reply).spawn()
    }

    /// How many participants may be acknowledged early: those that fit into an id beside each other, where each store can make certain of what it
    /// lists, and be told from all others by what an id holds of it. None on a thread, whose branches are not to be called elsewhere while they can be called
    /// there.
    fn early_most(&self, slots: &[Slot]) -> usize {
        let lists = |slot: &Slot| slot.registered.as_ref().is_some_and(|registered| registered.lists_durably);
        let told = |slot: &Slot| slot.store().is_some_and(|store| self.manager.is_told_by_its_tag(store));
        let known = |slot: &Slot| lists(slot) && told(slot);
        let two_phase = |slot: &&Slot| slot.capability == Capability::TwoPhase;
        let early = self.manager.early && self.home == Home::Runtime && slots.iter().filter(two_phase).all(known);
        // Reserved numbers may be longer than the branches are many.
        let numbers = slots.iter().map(|slot| usize::from(slot.number()) + 1).max();
        if early { Roster::most(numbers.unwrap_or(0)) } else { 0 }
    }

    /// The end of a transaction that nothing has joined.
    fn without_branches(&self, cause: Option<Cause>) -> (Outcome, Answered) {
        match cause {
            None => (Outcome::Committed, Ok(Committed::new(self.id, 0))),
            Some(source) => (Outcome::Aborted, Err(CommitError::Aborted { id: self.id, source })),
        }
    }

    /// Answers the caller, after the hooks and synchronizers that want to be called first.
    pub(crate) fn finish(self: &Arc<Self>, ended: Ended) {
        // Before anybody hears of it: a hook may ask, or tell somebody who does.
        self.remember(ended.outcome);
        if self.close_hooks(ended.after) {
            self.answer(ended);
        } else {
            Announcement::start(self.clone(), ended);
        }
    }

    /// For who asks later. Once for each transaction.
    fn remember(&self, outcome: Outcome) {
        self.manager.outcomes.ended(self.id.sequence, outcome);
    }

    /// From now on no hook comes any more; false where hooks or synchronizers are left to be called after the end.
    fn close_hooks(&self, after: After) -> bool {
        let mut state = lock(&self.state);
        if state.has_hook(after.moment(Outcome::Unknown)) || !self.manager.synchronizers.is_empty() {
            return false;
        }
        state.hooks_closed = true;
        let unused = state.hooks.take();
        drop(state);
        // Those of another kind are dropped outside of the lock: they may own handles.
        drop(unused);
        true
    }

    fn answer(&self, ended: Ended) {
        self.run_after_end(ended.outcome);
        // A caller that went away doesn't change the outcome.
        let _ = ended.reply.send(ended.result);
    }
}

impl After {
    /// Of a commit or an abort.
    pub(crate) fn of(cause: Option<&Cause>) -> Self {
        if cause.is_none() { After::Commit } else { After::Abort }
    }

    fn moment(self, outcome: Outcome) -> Moment {
        match self {
            After::Commit => Moment::AfterCommit(outcome),
            After::Abort => Moment::AfterAbort,
        }
    }
}

impl State {
    /// What leaves nothing but an abort.
    fn spoiled(&self) -> Option<Cause> {
        if self.doomed {
            Some(Cause::Doomed)
        } else {
            self.savepoints.failed.clone().map(|error| Cause::Savepoint(Box::new(error)))
        }
    }
}

/// Gives each branch that has no reserved number the first that is free, in their order.
fn number(slots: &mut [Slot]) {
    let reserved: BTreeSet<u16> = slots.iter().filter_map(|slot| slot.number).collect();
    let mut free = (0..=u16::MAX).filter(|number| !reserved.contains(number));
    for slot in slots.iter_mut().filter(|slot| slot.number.is_none()) {
        slot.number = Some(free.next().expect("a transaction has fewer than 65536 branches"));
    }
}

/// From here on nothing joins.
fn take(state: &mut State, cause: Option<&Cause>) -> Taken {
    state.status = if matches!(cause, Some(Cause::TimeLimit)) { Status::TimedOut } else { Status::Ending };
    state.watched = None;
    if state.leases > 0 {
        // It is aborted with guards in use.
        state.slots.iter().for_each(|slot| slot.branch.revoke());
    }
    Taken { slots: std::mem::take(&mut state.slots), options: state.options.clone() }
}

/// What runs before the branches are handed to their driver.
struct Completion {
    shared: Arc<Shared>,
    /// None once the branches were handed over.
    reply: Option<Reply>,
    /// Whether the synchronizers know that it completes.
    told: bool,
}

impl Completion {
    fn start(shared: Arc<Shared>, wish: Wish) -> Commit {
        let (reply, commit) = Commit::waiting(shared.id);
        let completion = Completion { shared: shared.clone(), reply: Some(reply), told: false };
        let task = completion.run(wish).instrument(tracing::Span::current());
        match shared.spawn(Box::pin(task)) {
            Ok(()) => commit,
            Err(error) => shared.without_runtime(error),
        }
    }

    async fn run(mut self, wish: Wish) {
        let tx = Tx { shared: self.shared.clone() };
        let taken = match wish {
            Wish::Commit => self.before_commit(&tx).await,
            Wish::Abort(cause) => Err(cause),
        };
        let (taken, cause) = match taken {
            Ok(taken) => (taken, None),
            Err(cause) => {
                self.before_abort(&tx).await;
                (take(&mut lock(&self.shared.state), Some(&cause)), Some(cause))
            }
        };
        self.hand_over(taken, cause);
    }

    /// Takes the branches when nothing is left to run before the commit.
    async fn before_commit(&mut self, tx: &Tx) -> Result<Taken, Cause> {
        let (shared, told) = (&self.shared, &mut self.told);
        let all = async {
            loop {
                let hook = {
                    let mut state = lock(&shared.state);
                    if let Some(cause) = state.spoiled() {
                        return Err(cause);
                    }
                    match state.next_hook(Moment::BeforeCommit) {
                        Some(hook) => Some(hook),
                        None if !*told => None,
                        // Under the same lock, so that no hook comes in between.
                        None => return shared.refusal(&state).map_or_else(|| Ok(take(&mut state, None)), Err),
                    }
                };
                let done = match hook {
                    Some(hook) => scope(tx.clone(), hooks::call(hook, tx.clone())).await,
                    None => {
                        *told = true;
                        shared.manager.synchronizers.before_completion(tx).map_err(BoxError::from)
                    }
                };
                if let Err(source) = done {
                    return Err(Cause::Hook { retryable: tx.is_retryable(&*source), source });
                }
            }
        };
        let limit = shared.time_limit();
        let out_of_time = async {
            match limit {
                Some(limit) => shared.manager.env.sleep(shared.left_of(limit)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            taken = all => taken,
            () = out_of_time => {
                tracing::warn!(transaction = %shared.id, ?limit, "aborting: its time limit passed in a before-commit hook");
                Err(Cause::TimeLimit)
            }
        }
    }

    async fn before_abort(&mut self, tx: &Tx) {
        let wait = self.shared.manager.phase_two_wait;
        tokio::select! {
            biased;
            () = scope(tx.clone(), hooks::run_all(tx, Moment::BeforeAbort)) => {}
            () = self.shared.manager.env.sleep(wait) => {
                tracing::error!(transaction = %tx.id(), ?wait, "the before-abort hooks took too long; rolling back without them");
            }
        }
        if !std::mem::replace(&mut self.told, true) {
            // Its panics are reported, and nothing keeps an abort.
            let _ = self.shared.manager.synchronizers.before_completion(tx);
        }
    }

    fn hand_over(&mut self, taken: Taken, cause: Option<Cause>) {
        let Some(reply) = self.reply.take() else { return };
        if let Err(error) = self.shared.drive(taken, cause, reply) {
            tracing::error!(transaction = %self.shared.id, error = &error as &(dyn Error + 'static), "aborted without a runtime");
        }
    }
}

impl Drop for Completion {
    /// Dropped with its runtime, or a bug: nothing was asked of the branches, so it can only be aborted.
    fn drop(&mut self) {
        if self.reply.is_some() {
            tracing::error!(transaction = %self.shared.id, "the end of the transaction was interrupted before its branches were asked");
            let cause = Cause::Interrupted;
            let taken = take(&mut lock(&self.shared.state), Some(&cause));
            self.hand_over(taken, Some(cause));
        }
    }
}

/// What runs after the outcome is known, before the caller is answered.
struct Announcement {
    shared: Arc<Shared>,
    /// None once the caller was answered.
    ended: Option<Ended>,
}

impl Announcement {
    fn start(shared: Arc<Shared>, ended: Ended) {
        // A shutdown waits for the hooks too.
        shared.manager.open.add();
        let moment = ended.after.moment(ended.outcome);
        let announcement = Announcement { shared: shared.clone(), ended: Some(ended) };
        let task = announcement.run(moment).instrument(tracing::Span::current());
        // Where there is no runtime it is dropped, and says so.
        let _ = shared.spawn(Box::pin(task));
    }

    async fn run(mut self, moment: Moment) {
        let tx = Tx { shared: self.shared.clone() };
        let after = after(&tx, moment);
        let wait = self.shared.manager.phase_two_wait;
        let waited = self.shared.manager.env.sleep(wait);
        let mut after = std::pin::pin!(after);
        let done = tokio::select! {
            biased;
            () = &mut after => true,
            () = waited => false,
        };
        if !done {
            tracing::warn!(transaction = %self.shared.id, ?wait, "answering although the hooks have not ended yet");
            self.answer();
            after.await;
        }
        self.answer();
    }

    fn answer(&mut self) {
        if let Some(ended) = self.ended.take() {
            self.shared.answer(ended);
        }
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        let unused = {
            let mut state = lock(&self.shared.state);
            state.hooks_closed = true;
            state.hooks.take()
        };
        drop(unused);
        if self.ended.is_some() {
            tracing::error!(transaction = %self.shared.id, "the runtime ended before its hooks had run");
            self.answer();
        }
        self.shared.manager.open.remove();
    }
}

async fn after(tx: &Tx, moment: Moment) {
    let synchronizers = &tx.shared.manager.synchronizers;
    if let Moment::AfterCommit(outcome) = moment {
        synchronizers.after_completion(tx, outcome);
    }
    hooks::run_all(tx, moment).await;
    if moment == Moment::AfterAbort {
        synchronizers.after_completion(tx, Outcome::Aborted);
    }
}
