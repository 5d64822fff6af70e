//! The driver: performs the protocol's actions on the branches and the log, and feeds the answers back.
//!
//! One detached task for each transaction's end (rule 6). It decides nothing: what happens when is the protocol's. What it adds is
//! time (back-off, waits), the errors' texts, and the guard that takes the transaction out of the live table when the task is
//! dropped or panics (rule 5).
//!
//! At home on a thread, branches are called one at a time, in the order in which the protocol named them: a call that the protocol does
//! not want any more when its turn comes is answered without being made.
//!
//! Must not know stores, or how the log writes.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tracing::Instrument;
use unanimous_core::protocol::{self, Action, Answer, DecisionAnswer, End, Event, Path, Protocol};
use unanimous_core::xid::{Roster, StoreTag};
use unanimous_core::{
    BoxError, BranchError, BranchId, DecideError, DeciderId, Decision, DecisionRecord, FailureKind, Known, Outcome,
    Participant,
};

use crate::commit::{Answered, Committed, Reply};
use crate::ending::{After, Ended};
use crate::env::{BoxFuture, NoRuntime};
use crate::error::{Cause, CommitError};
use crate::inner::Deciding;
use crate::recovery;
use crate::report::{BranchReport, Report};
use crate::transaction::{Home, Shared, Slot};

/// A call's answer, with the error that goes with it.
struct Returned {
    event: Event,
    failure: Option<Failure>,
}

/// A call of a branch that has not begun.
struct Call {
    future: BoxFuture<'static, Returned>,
    /// What is answered in its place where it is not wanted any more when its turn comes: it was certainly not made.
    unmade: Event,
}

enum Failure {
    Branch(usize, BranchError),
    Log(DecideError),
}

/// One transaction's end.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    slots: Vec<Slot>,
    protocol: Protocol,
    /// Why it is aborted, where the protocol does not know.
    cause: Option<Cause>,
    /// What is left of the time limit.
    limit: Option<Duration>,
    reply: Option<Reply>,
    after: After,
    failures: Vec<Option<BranchError>>,
    log_failure: Option<DecideError>,
    tries: Vec<u32>,
    handed_over: Vec<Arc<AtomicBool>>,
    asked: u32,
    record: Option<DecisionRecord>,
    /// All participants, where each one's id lists them.
    roster: Option<Roster>,
    live: bool,
    /// Whether a shutdown waits for it.
    counted: bool,
    /// Calls of branches that have not begun.
    waiting: VecDeque<Call>,
    /// At home on a thread: whether a call of a branch is out.
    busy: bool,
    /// What is out.
    calls: FuturesUnordered<BoxFuture<'static, Returned>>,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        slots: Vec<Slot>,
        protocol: Protocol,
        cause: Option<Cause>,
        limit: Option<Duration>,
        reply: Reply,
    ) -> Self {
        let count = slots.len();
        Self {
            shared,
            slots,
            protocol,
            limit,
            reply: Some(reply),
            after: After::of(cause.as_ref()),
            cause,
            failures: (0..count).map(|_| None).collect(),
            log_failure: None,
            tries: vec![0; count],
            handed_over: (0..count).map(|_| Arc::default()).collect(),
            asked: 0,
            record: None,
            roster: None,
            live: false,
            counted: true,
            waiting: VecDeque::new(),
            busy: false,
            calls: FuturesUnordered::new(),
        }
    }

    /// Starts the driver's task, in a span of its own within the caller's, which says what the transaction says of itself.
    pub(crate) fn spawn(self) -> Result<(), NoRuntime> {
        let event = match self.after {
            After::Commit => Event::Commit,
            After::Abort => Event::Abort,
        };
        let shared = self.shared.clone();
        let span = shared.span();
        shared.spawn(Box::pin(self.run(event).instrument(span)))
    }

    async fn run(mut self, first: Event) {
        if let (Some(limit), Event::Commit) = (self.limit, first) {
            self.after(limit, Event::GiveUp);
        }
        let late_at = self.limit.map(|limit| self.shared.manager.env.monotonic() + limit);
        let mut next = Some(Returned { event: first, failure: None });
        while let Some(returned) = next {
            self.busy &= !is_of_a_branch(returned.event);
            match returned.failure {
                Some(Failure::Branch(i, error)) => {
                    tracing::debug!(transaction = %self.shared.id, branch = %self.slots[i].name, event = ?returned.event,
                        error = &error as &(dyn std::error::Error + 'static), "a branch failed");
                    self.failures[i] = Some(error);
                }
                Some(Failure::Log(error)) => {
                    if self.reply.is_none() {
                        tracing::error!(transaction = %self.shared.id, error = &error as &(dyn std::error::Error + 'static),
                            "the decision log did not take the decision of a transaction that was acknowledged early; \
                             recovery records it, or the next start does");
                    }
                    self.log_failure = Some(error);
                }
                None => {}
            }
            // A branch that blocks its thread keeps the timer from being heard.
            if self.in_order() && late_at.is_some_and(|late_at| self.shared.manager.env.monotonic() >= late_at) {
                self.handle(Event::GiveUp);
            }
            self.handle(returned.event);
            if self.protocol.is_over() {
                break;
            }
            if self.protocol.is_recoverys() {
                self.count_out();
            }
            next = match self.begin_calls() {
                Some(unmade) => Some(unmade),
                None => self.calls.next().await,
            };
        }
    }

    fn handle(&mut self, event: Event) {
        let _deciding = self.protocol.is_acknowledged_by(event).then(|| self.acknowledging());
        self.feed(event);
    }

    /// For an answer that comes before the decision is recorded: while it is there the log is not given up. Where it was, its next owner may have
    /// concluded abort already; and one that takes no decisions leaves what was acknowledged in doubt for as long.
    fn acknowledging(&mut self) -> Option<Deciding> {
        let manager = self.shared.manager.clone();
        let deciding = manager.deciding().map_err(BoxError::from);
        match deciding.and_then(|deciding| manager.log.ready().map(|()| deciding)) {
            Ok(deciding) => Some(deciding),
            Err(error) => {
                self.log_failure = Some(DecideError::Refused(error));
                self.feed(Event::Disowned);
                None
            }
        }
    }

    fn feed(&mut self, event: Event) {
        let mut actions = Vec::new();
        if let Err(error) = self.protocol.handle(event, &mut actions) {
            tracing::error!(transaction = %self.shared.id, %error, "a bug in the driver; the event is ignored");
        }
        for action in actions {
            self.perform(action);
        }
    }

    fn at_home_on_a_thread(&self) -> bool {
        self.shared.home == Home::Thread
    }

    /// Until the caller was answered: who hangs then must not keep the others from being finished (rule 7).
    fn in_order(&self) -> bool {
        self.at_home_on_a_thread() && self.reply.is_some()
    }

    /// Begins all calls that wait, or in order the first of them. Gives the answer of one that is not wanted any more.
    fn begin_calls(&mut self) -> Option<Returned> {
        while !(self.busy && self.in_order())
            && let Some(Call { future, unmade }) = self.waiting.pop_front()
        {
            if self.at_home_on_a_thread() && !self.is_wanted(unmade) {
                return Some(Returned { event: unmade, failure: None });
            }
            self.busy = self.in_order();
            self.calls.push(future);
        }
        None
    }

    /// Whether a call with this answer is still to be made.
    fn is_wanted(&self, answer: Event) -> bool {
        match answer {
            Event::Flushed(..) | Event::Voted(..) | Event::OnePhase(..) => !self.protocol.is_given_up(),
            Event::Committed(i, _) => !self.handed_over[i].load(Ordering::Acquire),
            _ => true,
        }
    }

    fn after(&self, wait: Duration, event: Event) {
        let sleep = self.shared.manager.env.sleep(wait);
        self.calls.push(Box::pin(async move {
            sleep.await;
            Returned { event, failure: None }
        }));
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::EnterLive => {
                self.live = true;
                self.shared.manager.live.enter(self.shared.id);
            }
            Action::LeaveLive => self.leave_live(),
            Action::Flush(i) => {
                let branch = self.slots[i].branch.clone();
                self.call(i, Event::Flushed, async move { branch.flush().await });
            }
            Action::Prepare(i) => {
                let branch = self.slots[i].branch.clone();
                let id = self.id_of(i);
                // No branch is prepared for a decision that the log could not take.
                let ready = match self.protocol.path() {
                    Some(Path::Log | Path::Early | Path::LastResource(_)) => {
                        self.shared.manager.log.ready().map_err(BranchError::refused)
                    }
                    _ => Ok(()),
                };
                self.call(i, Event::Voted, async move {
                    ready?;
                    branch.prepare(&id).await
                });
            }
            Action::CommitOnePhase(i) => {
                let branch = self.slots[i].branch.clone();
                let id = self.id_of(i);
                let decides = self.protocol.path() == Some(Path::LastResource(i));
                let manager = self.shared.manager.clone();
                self.call(i, Event::OnePhase, async move {
                    let _deciding = if decides { Some(manager.deciding()?) } else { None };
                    branch.commit_one_phase(&id).await
                });
            }
            Action::CommitCarrying(i) => {
                let branch = self.slots[i].branch.clone();
                let record = self.decision();
                let manager = self.shared.manager.clone();
                self.call(i, Event::OnePhase, async move {
                    let _deciding = manager.deciding()?;
                    branch.commit_carrying(&record).await
                });
            }
            Action::AskCarrier(i) => self.ask_carrier(i),
            Action::ForceDecision => self.force(Decision::Commit),
            Action::ForceAbort => self.force(Decision::Abort),
            Action::Commit(i) => {
                let branch = self.slots[i].branch.clone();
                let wait = self.back_off(i);
                self.call(i, Event::Committed, async move {
                    wait.await?;
                    branch.commit().await
                });
            }
            Action::Rollback(i) => {
                let branch = self.slots[i].branch.clone();
                let wait = self.back_off(i);
                self.call(i, Event::RolledBack, async move {
                    wait.await?;
                    branch.rollback().await
                });
            }
            Action::StartWait => self.after(self.shared.manager.phase_two_wait, Event::WaitElapsed),
            Action::HandOver(i) => {
                self.handed_over[i].store(true, Ordering::Release);
                let error = self.failures[i].as_ref().map(|error| error as &(dyn std::error::Error + 'static));
                tracing::warn!(transaction = %self.shared.id, branch = %self.slots[i].name, error,
                    "the branch is not finished yet; recovery goes on with it");
                self.shared.manager.recovery.wake();
            }
            Action::Forget => self.forget(),
            Action::Answer(answer) => self.answer(answer),
        }
    }

    /// Calls a branch; a panic is a lost answer.
    fn call<T: Send + 'static>(
        &mut self,
        i: usize,
        event: fn(usize, Result<T, FailureKind>) -> Event,
        call: impl Future<Output = Result<T, BranchError>> + Send + 'static,
    ) {
        let unmade = event(i, Err(FailureKind::Refused));
        let future = Box::pin(async move {
            let result = AssertUnwindSafe(call).catch_unwind().await;
            let result = result.unwrap_or_else(|_panic| Err(BranchError::lost("the branch panicked")));
            match result {
                Ok(value) => Returned { event: event(i, Ok(value)), failure: None },
                Err(error) => Returned { event: event(i, Err(error.kind())), failure: Some(Failure::Branch(i, error)) },
            }
        });
        self.waiting.push_back(Call { future, unmade });
    }

    /// A wait that grows with each try of the same branch; none before the first. An error where recovery has taken the branch over
    /// meanwhile: then it is not tried here any more.
    fn back_off(&mut self, i: usize) -> BoxFuture<'static, Result<(), BranchError>> {
        let tries = self.tries[i];
        self.tries[i] += 1;
        if tries == 0 {
            return Box::pin(std::future::ready(Ok(())));
        }
        let sleep = self.shared.manager.env.sleep(self.shared.manager.retry_wait(tries));
        let handed_over = self.handed_over[i].clone();
        Box::pin(async move {
            sleep.await;
            match handed_over.load(Ordering::Acquire) {
                true => Err(BranchError::lost("recovery has taken the branch over")),
                false => Ok(()),
            }
        })
    }

    fn id_of(&mut self, i: usize) -> BranchId {
        let decider = match self.protocol.path() {
            Some(Path::Carrier(carrier)) => {
                let store = self.slots[carrier].registered.as_ref().and_then(|registered| registered.known_identity());
                DeciderId::Store(store.expect("a carrier is registered, and its identity was read at its join").clone())
            }
            Some(Path::Early) => DeciderId::Together(self.roster().clone()),
            _ => DeciderId::Log,
        };
        BranchId { transaction: self.shared.id, decider, number: self.slots[i].number() }
    }

    fn roster(&mut self) -> &Roster {
        let Self { roster, protocol, slots, .. } = self;
        roster.get_or_insert_with(|| {
            let tag = |i: usize| slots[i].store().map(StoreTag::of).expect("early needs the identities of all stores");
            let listed = protocol.participants().map(|i| (slots[i].number(), tag(i)));
            Roster::new(listed).expect("there are participants, and each has a number of its own")
        })
    }

    /// One of its branches, where its participants list one another, and nothing is recorded.
    fn unrecorded(&self) -> Option<BranchId> {
        let roster = self.roster.clone().filter(|_| self.protocol.is_unrecorded())?;
        let (number, _) = roster.iter().next()?;
        Some(BranchId { transaction: self.shared.id, decider: DeciderId::Together(roster), number })
    }

    fn decision(&mut self) -> DecisionRecord {
        let participants = self.protocol.participants().map(|i| Participant {
            number: self.slots[i].number(),
            // Recovery looks for the store, whatever a foreign branch is called.
            resource: self.slots[i]
                .registered
                .as_ref()
                .map_or(&self.slots[i].name, |registered| &registered.name)
                .clone(),
            store: self.slots[i].store().cloned(),
        });
        let record = DecisionRecord {
            transaction: self.shared.id,
            participants: participants.collect(),
            decided_at: self.shared.manager.env.wall_clock(),
            note: self.shared.decision_note(),
        };
        self.record = Some(record.clone());
        record
    }

    fn force(&mut self, decision: Decision) {
        let record = self.decision();
        let log = self.shared.manager.log.clone();
        self.calls.push(Box::pin(async move {
            let write = async move {
                match decision {
                    Decision::Commit => log.decide(record).await,
                    Decision::Abort => log.conclude(record, decision).await,
                }
            };
            let result = AssertUnwindSafe(write).catch_unwind().await;
            let result = result.unwrap_or_else(|_panic| Err(DecideError::Unknown("the log panicked".into())));
            let answer = match &result {
                Ok(()) => DecisionAnswer::Forced,
                Err(DecideError::Refused(_)) => DecisionAnswer::Refused,
                Err(_) => DecisionAnswer::Unknown,
            };
            Returned { event: Event::Decided(answer), failure: result.err().map(Failure::Log) }
        }));
    }

    fn ask_carrier(&mut self, i: usize) {
        let Some(registered) = self.slots[i].registered.clone() else { return };
        let manager = self.shared.manager.clone();
        let id = self.shared.id;
        let asked = self.asked;
        self.asked += 1;
        self.calls.push(Box::pin(async move {
            if asked > 0 {
                manager.env.sleep(manager.retry_wait(asked)).await;
            }
            // A question that never comes back must not keep recovery away from the others.
            let known = recovery::within(&manager, registered.decision(id, manager.owner)).await;
            let decision = match known {
                Ok(Known::Commit(_)) => Some(Decision::Commit),
                Ok(Known::Abort) => Some(Decision::Abort),
                Ok(Known::Hold(reason)) => {
                    tracing::warn!(transaction = %id, carrier = %registered.name, %reason, "the decision can't be told");
                    None
                }
                Err(error) => {
                    tracing::warn!(transaction = %id, carrier = %registered.name,
                        error = &error as &(dyn std::error::Error + 'static), "asking again for the decision");
                    None
                }
            };
            Returned { event: Event::Resolved(decision), failure: None }
        }));
    }

    fn forget(&self) {
        match self.protocol.path() {
            Some(Path::Carrier(i)) => {
                if let Some(registered) = &self.slots[i].registered {
                    registered.resource.forget(self.shared.id);
                }
            }
            _ => self.shared.manager.log.forget(self.shared.id),
        }
    }

    fn answer(&mut self, answer: Answer) {
        let id = self.shared.id;
        let (outcome, result) = match answer {
            Answer::Committed { pending } => (Outcome::Committed, Ok(Committed::new(id, pending))),
            Answer::Aborted(cause) => {
                (Outcome::Aborted, Err(CommitError::Aborted { id, source: self.cause_of(cause) }))
            }
            Answer::Unknown(cause) => {
                let source = self.cause_of(cause);
                tracing::error!(transaction = %id, error = &source as &(dyn std::error::Error + 'static),
                    "the outcome is unknown");
                (Outcome::Unknown, Err(CommitError::Unknown { id, source }))
            }
        };
        self.tell(outcome, result);
    }

    /// Says what can still be said.
    fn interrupted(&mut self) {
        let id = self.shared.id;
        let outcome = self.protocol.outcome_if_dropped();
        let result = match outcome {
            Outcome::Committed => {
                let pending = (0..self.slots.len()).filter(|&i| self.protocol.end(i) == End::Pending).count();
                Ok(Committed::new(id, pending))
            }
            Outcome::Aborted => Err(CommitError::Aborted { id, source: Cause::Interrupted }),
            Outcome::Unknown => Err(CommitError::Unknown { id, source: Cause::Interrupted }),
        };
        self.tell(outcome, result);
    }

    fn tell(&mut self, outcome: Outcome, result: Answered) {
        let Some(reply) = self.reply.take() else { return };
        self.report(outcome, &result);
        self.shared.finish(Ended { outcome, result, reply, after: self.after });
    }

    fn cause_of(&mut self, cause: protocol::Cause) -> Cause {
        match cause {
            protocol::Cause::Requested => self.cause.take().unwrap_or(Cause::GivenUp),
            protocol::Cause::TimeLimit => Cause::TimeLimit,
            protocol::Cause::Branch(i) => Cause::Branch {
                resource: self.slots[i].name.clone(),
                source: self.failures[i].take().unwrap_or_else(|| BranchError::lost("the branch did not answer")),
            },
            protocol::Cause::Log => Cause::Log(
                self.log_failure.take().unwrap_or_else(|| DecideError::Unknown("the log did not answer".into())),
            ),
            protocol::Cause::NotAllowed(i) => Cause::NotAllowed { resource: self.slots[i].name.clone() },
            protocol::Cause::TwoUnprepared(i, j) => {
                Cause::TwoUnprepared { resources: [self.slots[i].name.clone(), self.slots[j].name.clone()] }
            }
        }
    }

    fn report(&self, outcome: Outcome, result: &Answered) {
        let Some(observer) = &self.shared.manager.observer else { return };
        let manager = &self.shared.manager;
        let carrier = match self.protocol.path() {
            Some(Path::Carrier(i)) => Some(i),
            _ => None,
        };
        let branches = self.slots.iter().enumerate().map(|(i, slot)| BranchReport {
            resource: slot.name.clone(),
            capability: slot.capability,
            end: self.protocol.end(i),
            carried: carrier == Some(i),
        });
        let annotations = self.shared.annotations();
        let report = Report {
            id: self.shared.id,
            outcome,
            cause: result.as_ref().err().map(|error| crate::error::chain(error.cause())),
            branches: branches.collect(),
            note: annotations.note,
            user: annotations.user,
            extended_info: annotations.extended_info,
            began_at: self.shared.began_at,
            took: manager.env.monotonic().saturating_sub(self.shared.began),
        };
        if std::panic::catch_unwind(AssertUnwindSafe(|| observer(&report))).is_err() {
            tracing::error!(transaction = %self.shared.id, "the observer panicked");
        }
    }

    /// A shutdown need not wait any more.
    fn count_out(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.shared.manager.open.remove();
        }
    }

    fn leave_live(&mut self) {
        if self.live {
            self.live = false;
            match self.protocol.is_aborting() {
                true => self.shared.manager.live.abort(self.shared.id),
                false => self.shared.manager.live.leave(self.shared.id),
            }
        }
    }
}

impl Drop for Driver {
    /// Rule 5: also when the task is dropped with its runtime or unwinds. What it had in doubt is recovery's then: a decision that
    /// the log is writing is waited for by its lookup, and a carrier that is late is fenced by its store.
    fn drop(&mut self) {
        // What is out goes first: nothing of it may begin to act once recovery may.
        self.waiting.clear();
        self.calls.clear();
        if self.protocol.is_held() {
            self.shared.manager.live.hold(self.shared.id);
        } else {
            self.leave_live();
        }
        if let Some(branch) = self.unrecorded() {
            self.shared.manager.recovery.leave(branch);
        }
        if self.reply.is_some() {
            tracing::error!(transaction = %self.shared.id, "the driver was dropped before it had answered");
            self.interrupted();
            self.shared.manager.recovery.wake();
        } else if self.protocol.is_unfinished_early() {
            self.shared.manager.recovery.wake();
        }
        self.count_out();
    }
}

/// Whether it answers a call of a branch.
fn is_of_a_branch(event: Event) -> bool {
    use Event::{Committed, Flushed, OnePhase, RolledBack, Voted};
    matches!(event, Flushed(..) | Voted(..) | OnePhase(..) | Committed(..) | RolledBack(..))
}
