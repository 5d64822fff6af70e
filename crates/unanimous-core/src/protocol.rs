//! The commit protocol: `handle(event) -> actions`, over plain data.
//!
//! One [`Protocol`] drives one transaction from the call of commit or abort to the last branch's end. It never acts: the driver
//! performs the [`Action`]s that it hands out and feeds the answers back as [`Event`]s. The async driver, a driver on the caller's
//! own thread, and the exhaustive test run this same function, so what the test shows holds for all.
//!
//! The path is chosen by what the branches say at flush (`docs/protocol.md`, "Paths, and what each costs"):
//!
//! ```text
//! flush all ─┬─ none wrote ────────── end all by commit ───────────────────────────────── committed
//!            ├─ one wrote ─────────── end the readers ─ commit it in one phase ────────── committed, unknown
//!            ├─ several, a carrier ── prepare the others ─ carrier commits with the row ─┐
//!            ├─ several, one-phase ── prepare the others ─ commit it ─ force the log ────┤ phase two ─ forget
//!            ├─ several ───────────── prepare all ─ force the log ───────────────────────┤
//!            └─ several, early ────── prepare all ─ answer ─ force the log ──────────────┘
//! any no, any time before: roll back all; early, unless it was a participant's definite no: force the abort first
//! ```
//!
//! Rules kept here: 1 (a `Commit` action exists only after the event that the decision is durable), 2 (the participants are fixed
//! before the first prepare), 5 (`EnterLive` precedes the first action that uses a branch's id), 7 (after the decision there is
//! only commit), 9 (answers), 10 (who may take part beside whom).
//!
//! Must not know: time, I/O, ids, error texts, how often a call was tried.

mod early;
mod inspect;

use crate::branch::{Capability, Work};
use crate::error::FailureKind;
use crate::outcome::{Decision, Outcome};

/// A branch as the protocol sees it before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// What its store can promise.
    pub capability: Capability,
    /// Whether the application opted in to its taking part beside others that write (rule 10); matters for volatile and one-phase only.
    pub allowed: bool,
}

/// What the driver is to do next, in this order. Actions on branches may run at the same time; each is answered by one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Put the transaction into the live table, at once. No event.
    EnterLive,
    /// Take it out again, at once. No event.
    LeaveLive,
    /// Flush; answered by [`Event::Flushed`].
    Flush(usize),
    /// Prepare; answered by [`Event::Voted`].
    Prepare(usize),
    /// Commit without prepare; answered by [`Event::OnePhase`].
    CommitOnePhase(usize),
    /// Commit with the decision's row; answered by [`Event::OnePhase`].
    CommitCarrying(usize),
    /// Ask the carrier's store what became of the decision; answered by [`Event::Resolved`].
    AskCarrier(usize),
    /// Make the decision to commit durable in the log; answered by [`Event::Decided`].
    ForceDecision,
    /// Make the decision to abort durable in the log; answered by [`Event::Decided`]. Only on the early path.
    ForceAbort,
    /// Stage two; answered by [`Event::Committed`]. Given again after a failure: the driver backs off.
    Commit(usize),
    /// Roll back; answered by [`Event::RolledBack`]. Given again after a failure: the driver backs off.
    Rollback(usize),
    /// Start the time that a caller waits for phase two; answered by [`Event::WaitElapsed`].
    StartWait,
    /// Recovery finishes this branch from now on. No event.
    HandOver(usize),
    /// All branches are confirmed: the decision may be forgotten. No event.
    Forget,
    /// Tell the caller. Once for each transaction. No event.
    Answer(Answer),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The application calls commit.
    Commit,
    /// The application calls abort, or the transaction is doomed.
    Abort,
    /// A flush came back.
    Flushed(usize, Result<Work, FailureKind>),
    /// A prepare came back.
    Voted(usize, Result<(), FailureKind>),
    /// A commit without prepare, or with the decision's row, came back.
    OnePhase(usize, Result<(), FailureKind>),
    /// The log answered.
    Decided(DecisionAnswer),
    /// The carrier's store answered; none when it can't be asked now.
    Resolved(Option<Decision>),
    /// A commit of phase two came back.
    Committed(usize, Result<(), FailureKind>),
    /// A rollback came back.
    RolledBack(usize, Result<(), FailureKind>),
    /// A limit of time has passed: votes that are out count as lost. Changes nothing once the decision is on its way.
    GiveUp,
    /// The log was given up, or takes no decisions: nothing may be acknowledged by it any more. Changes nothing but where the early path's
    /// answer is still to come.
    Disowned,
    /// The caller has waited long enough for phase two.
    WaitElapsed,
}

/// What the log said of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecisionAnswer {
    /// It is durable.
    Forced,
    /// It was certainly not written.
    Refused,
    /// A sync failed: it may be durable.
    Unknown,
}

/// What the caller is told (rule 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Durably decided; on the early path, by all participants being prepared.
    Committed {
        /// Branches that are not confirmed yet.
        pending: usize,
    },
    /// Can never commit any more.
    Aborted(Cause),
    /// Nobody knows.
    Unknown(Cause),
}

/// Why a transaction did not (surely) commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The application wanted it.
    Requested,
    /// This branch failed.
    Branch(usize),
    /// The log refused or lost the decision.
    Log,
    /// A limit of time passed before all had voted.
    TimeLimit,
    /// This volatile or one-phase branch wrote, another one too, and there was no opt-in.
    NotAllowed(usize),
    /// Two branches that wrote can't prepare.
    TwoUnprepared(usize, usize),
}

/// How a branch ended, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// It had only read.
    ReadOnly,
    /// Committed and confirmed.
    Committed,
    /// Rolled back, or it can't have survived.
    RolledBack,
    /// Left to recovery.
    Pending,
    /// Nobody knows.
    Unknown,
}

/// The path that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// No branch wrote.
    ReadOnly,
    /// This branch alone wrote.
    OnePhase(usize),
    /// This branch carries the decision.
    Carrier(usize),
    /// This branch can't prepare nor carry; its commit is the decision, on trust.
    LastResource(usize),
    /// The log decides.
    Log,
    /// The log decides, after the caller was answered: that all participants are prepared, and list one another, is a commitment.
    Early,
}

/// An answer that no call is waiting for: a driver's bug. The protocol's state is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexpected(pub Event);

impl std::fmt::Display for Unexpected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the protocol was not waiting for {:?}", self.0)
    }
}

impl std::error::Error for Unexpected {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Joined; the application's work may not have reached the store.
    Joined,
    Flushing,
    Flushed,
    /// A commit without prepare is out: a reader's, the only writer's, the carrier's.
    EndingOnePhase,
    Preparing,
    Prepared,
    Committing,
    /// A rollback is out; whether a failure of it must be repeated, since the branch may be prepared.
    RollingBack {
        prepared: bool,
    },
    Ended(End),
}

impl State {
    /// Whether a call on this branch has not come back.
    fn is_out(self) -> bool {
        match self {
            State::Flushing
            | State::EndingOnePhase
            | State::Preparing
            | State::Committing
            | State::RollingBack { .. } => true,
            State::Joined | State::Flushed | State::Prepared | State::Ended(_) => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Member {
    spec: Spec,
    wrote: bool,
    state: State,
    /// Recovery has it as well: failures are not repeated here any more.
    handed_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Active,
    Flushing,
    Voting,
    /// The only writer, the carrier or the last resource commits.
    LastCommit,
    Asking,
    Deciding,
    /// Early: nobody may be told of the abort, and nothing be rolled back, before its record is durable.
    RecordingAbort(Cause),
    PhaseTwo,
    Aborting(Cause),
    /// Early: the log took no record, or was given up, so that recovery concludes from what the participants list.
    Left,
    /// The outcome is unknown and nobody here may act.
    Held,
    Over,
}

/// The state of one transaction's end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Protocol {
    members: Vec<Member>,
    stage: Stage,
    path: Option<Path>,
    /// The only writer commits with a row of its own that can be asked, where it can carry one.
    ask_single: bool,
    /// The most participants that may be acknowledged early; 0: none.
    early: usize,
    /// A participant has said no, for good: it is never prepared, so that its transaction is aborted whatever else is known.
    refused: bool,
    live: bool,
    answered: bool,
    waited: bool,
}

impl Protocol {
    /// The protocol of a transaction with these branches. With `ask_single`, a carrier that is the only writer carries its own
    /// decision, so that a lost answer can be asked for.
    pub fn new(branches: impl IntoIterator<Item = Spec>, ask_single: bool) -> Self {
        let members = branches
            .into_iter()
            .map(|spec| Member { spec, wrote: false, state: State::Joined, handed_over: false })
            .collect();
        Self {
            members,
            stage: Stage::Active,
            path: None,
            ask_single,
            early: 0,
            refused: false,
            live: false,
            answered: false,
            waited: false,
        }
    }

    /// The transition: takes what happened, appends what to do now.
    ///
    /// # Errors
    ///
    /// [`Unexpected`] when nothing waits for this event; nothing has changed then.
    pub fn handle(&mut self, event: Event, out: &mut Vec<Action>) -> Result<(), Unexpected> {
        match event {
            Event::Commit if self.stage == Stage::Active => self.start_commit(out),
            Event::Abort if self.stage == Stage::Active => self.abort(Cause::Requested, out),
            Event::Flushed(i, answer) if self.is(i, State::Flushing) => self.flushed(i, answer, out),
            Event::Voted(i, answer) if self.is(i, State::Preparing) => self.voted(i, answer, out),
            Event::OnePhase(i, answer) if self.is(i, State::EndingOnePhase) => self.one_phase(i, answer, out),
            Event::Decided(answer) if self.stage == Stage::Deciding => self.decided(answer, out),
            Event::Decided(answer) if let Stage::RecordingAbort(cause) = self.stage => {
                self.abort_recorded(cause, answer, out);
            }
            Event::Resolved(answer) if self.stage == Stage::Asking => self.resolved(answer, out),
            Event::Committed(i, answer) if self.is(i, State::Committing) => self.committed(i, answer, out),
            Event::RolledBack(i, answer) if self.is_rolling_back(i) => self.rolled_back(i, answer, out),
            Event::GiveUp => {
                if matches!(self.stage, Stage::Flushing | Stage::Voting) {
                    self.give_up(Cause::TimeLimit, out);
                }
            }
            Event::Disowned => {
                if self.stage == Stage::Voting && self.path == Some(Path::Early) {
                    self.leave(out);
                }
            }
            Event::WaitElapsed => self.wait_elapsed(out),
            _ => return Err(Unexpected(event)),
        }
        Ok(())
    }

    /// Whether everything has ended and no event is waited for.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over | Stage::Held | Stage::Left)
            && !self.members.iter().any(|member| member.state.is_out())
    }

    /// Whether nobody here may act any more: the transaction must stay in the live table, so that recovery holds it too.
    pub fn is_held(&self) -> bool {
        self.stage == Stage::Held
    }

    /// Whether it is being rolled back: recovery need not ask anybody.
    pub fn is_aborting(&self) -> bool {
        matches!(self.stage, Stage::Aborting(_))
    }

    /// Whether it will not commit by its driver any more, also where nobody may be told so yet: what was not begun need not be.
    pub fn is_given_up(&self) -> bool {
        matches!(self.stage, Stage::Aborting(_) | Stage::RecordingAbort(_) | Stage::Left)
    }

    /// Whether the caller was answered and all that is still out is recovery's too: nobody need wait for this driver.
    pub fn is_recoverys(&self) -> bool {
        let mut out = self.members.iter().filter(|member| member.state.is_out());
        self.answered
            && matches!(self.stage, Stage::PhaseTwo | Stage::Aborting(_) | Stage::Left)
            && out.all(|member| member.handed_over)
    }

    /// What can be said where the driver is dropped now and nobody goes on (its runtime ended): recovery presumes abort of what was
    /// never handed to a decider, and finds a decision that was.
    pub fn outcome_if_dropped(&self) -> Outcome {
        match self.stage {
            // All may be prepared, or will be, which recovery takes for a commitment.
            Stage::Voting if self.path == Some(Path::Early) => Outcome::Unknown,
            Stage::Active | Stage::Flushing | Stage::Voting | Stage::Aborting(_) => Outcome::Aborted,
            // Once it is over the answer was given, and nobody asks here any more.
            Stage::LastCommit | Stage::Asking | Stage::Deciding | Stage::Held | Stage::Over => Outcome::Unknown,
            Stage::RecordingAbort(_) | Stage::Left => Outcome::Unknown,
            Stage::PhaseTwo => Outcome::Committed,
        }
    }

    /// The path, once it is chosen.
    pub fn path(&self) -> Option<Path> {
        self.path
    }

    /// Who prepares: the decision's list of participants, fixed before the first prepare (rule 2). Empty before the path is chosen.
    pub fn participants(&self) -> impl Iterator<Item = usize> + '_ {
        let last = match self.path {
            Some(Path::Carrier(i) | Path::LastResource(i) | Path::OnePhase(i)) => Some(i),
            _ => None,
        };
        let chosen = self.path.is_some();
        (0..self.members.len()).filter(move |&i| chosen && self.members[i].wrote && Some(i) != last)
    }

    /// How a branch ended, or [`End::Pending`] where it has not.
    pub fn end(&self, branch: usize) -> End {
        match self.members[branch].state {
            State::Ended(end) => end,
            _ => End::Pending,
        }
    }

    fn is(&self, branch: usize, state: State) -> bool {
        self.members.get(branch).is_some_and(|member| member.state == state)
    }

    fn is_rolling_back(&self, branch: usize) -> bool {
        self.members.get(branch).is_some_and(|member| matches!(member.state, State::RollingBack { .. }))
    }

    fn none_in(&self, state: State) -> bool {
        self.members.iter().all(|member| member.state != state)
    }

    fn start_commit(&mut self, out: &mut Vec<Action>) {
        self.stage = Stage::Flushing;
        for (i, member) in self.members.iter_mut().enumerate() {
            member.state = State::Flushing;
            out.push(Action::Flush(i));
        }
        if self.members.is_empty() {
            self.choose_path(out);
        }
    }

    fn flushed(&mut self, i: usize, answer: Result<Work, FailureKind>, out: &mut Vec<Action>) {
        self.members[i].state = State::Flushed;
        self.members[i].wrote = answer != Ok(Work::ReadOnly);
        match (self.stage, answer) {
            (Stage::Aborting(_), _) => self.roll_back(i, false, out),
            (_, Err(_)) => self.abort(Cause::Branch(i), out),
            (_, Ok(_)) if self.none_in(State::Flushing) => self.choose_path(out),
            (_, Ok(_)) => {}
        }
    }

    fn choose_path(&mut self, out: &mut Vec<Action>) {
        let wrote: Vec<usize> = (0..self.members.len()).filter(|&i| self.members[i].wrote).collect();
        let path = match wrote[..] {
            [] => Path::ReadOnly,
            [only] if self.ask_single && self.members[only].spec.capability == Capability::Carrier => {
                Path::Carrier(only)
            }
            [only] => Path::OnePhase(only),
            _ => match self.path_of_several(&wrote) {
                Ok(path) => path,
                Err(cause) => return self.abort(cause, out),
            },
        };
        self.path = Some(path);
        self.stage = Stage::Voting;
        if !self.members.is_empty() {
            self.live = true;
            out.push(Action::EnterLive);
        }
        let participants: Vec<usize> = self.participants().collect();
        for i in 0..self.members.len() {
            if participants.contains(&i) {
                self.members[i].state = State::Preparing;
                out.push(Action::Prepare(i));
            } else if !self.members[i].wrote {
                self.members[i].state = State::EndingOnePhase;
                out.push(Action::CommitOnePhase(i));
            }
        }
        self.votes_in(out);
    }

    /// Rule 10: at most one that can't prepare, and nobody on trust without an opt-in.
    fn path_of_several(&self, wrote: &[usize]) -> Result<Path, Cause> {
        let mut last = None;
        for &i in wrote {
            let spec = self.members[i].spec;
            if matches!(spec.capability, Capability::OnePhase | Capability::Volatile) && !spec.allowed {
                return Err(Cause::NotAllowed(i));
            }
            if !spec.capability.can_prepare()
                && let Some(first) = last.replace(i)
            {
                return Err(Cause::TwoUnprepared(first, i));
            }
        }
        Ok(match last {
            None if self.may_be_early(wrote) => Path::Early,
            None => Path::Log,
            Some(i) if self.members[i].spec.capability == Capability::Carrier => Path::Carrier(i),
            Some(i) => Path::LastResource(i),
        })
    }

    fn voted(&mut self, i: usize, answer: Result<(), FailureKind>, out: &mut Vec<Action>) {
        // A definite no can never be prepared any more; a lost answer may be.
        let refused = is_definite(answer);
        self.members[i].state = if refused { State::Flushed } else { State::Prepared };
        self.refused |= refused && self.path == Some(Path::Early);
        match (self.stage, answer) {
            (Stage::Aborting(_), _) => self.roll_back(i, !refused, out),
            (Stage::RecordingAbort(_), _) => {}
            (Stage::Left | Stage::Held, _) => self.members[i].state = State::Ended(End::Pending),
            (_, Err(_)) => self.give_up(Cause::Branch(i), out),
            (_, Ok(())) => self.votes_in(out),
        }
    }

    /// All readers ended and all others prepared: the last step before the decision.
    fn votes_in(&mut self, out: &mut Vec<Action>) {
        if self.members.iter().any(|member| member.state.is_out()) {
            return;
        }
        match self.path.expect("the path is chosen before the votes are counted") {
            Path::ReadOnly => {
                self.answer(Answer::Committed { pending: 0 }, out);
                self.finish(out);
            }
            Path::OnePhase(i) | Path::LastResource(i) => {
                self.stage = Stage::LastCommit;
                self.members[i].state = State::EndingOnePhase;
                out.push(Action::CommitOnePhase(i));
            }
            Path::Carrier(i) => {
                self.stage = Stage::LastCommit;
                self.members[i].state = State::EndingOnePhase;
                out.push(Action::CommitCarrying(i));
            }
            Path::Log => {
                self.stage = Stage::Deciding;
                out.push(Action::ForceDecision);
            }
            Path::Early => {
                self.stage = Stage::Deciding;
                let pending = self.participants().count();
                self.answer(Answer::Committed { pending }, out);
                out.push(Action::ForceDecision);
            }
        }
    }

    fn one_phase(&mut self, i: usize, answer: Result<(), FailureKind>, out: &mut Vec<Action>) {
        match self.stage {
            Stage::LastCommit => self.last_committed(i, answer, out),
            _ => self.reader_ended(i, answer, out),
        }
    }

    fn reader_ended(&mut self, i: usize, answer: Result<(), FailureKind>, out: &mut Vec<Action>) {
        self.members[i].state = State::Ended(End::ReadOnly);
        if answer.is_err() {
            // Nothing was written, so a lost answer hides nothing; the branch's session may still be open.
            self.members[i].state = State::Flushed;
        }
        match (self.stage, answer) {
            (Stage::Aborting(_), Err(_)) => self.roll_back(i, false, out),
            (Stage::Aborting(_), Ok(())) => self.rolled_back_all(out),
            (Stage::RecordingAbort(_) | Stage::Left | Stage::Held, _) => {}
            // Not a participant's no: those may all be prepared.
            (_, Err(_)) => self.give_up(Cause::Branch(i), out),
            (_, Ok(())) => self.votes_in(out),
        }
    }

    fn last_committed(&mut self, i: usize, answer: Result<(), FailureKind>, out: &mut Vec<Action>) {
        let path = self.path.expect("the path is chosen before the last commit");
        match (path, answer) {
            (_, Err(FailureKind::Conflict | FailureKind::Refused)) => {
                self.members[i].state = State::Flushed;
                self.abort(Cause::Branch(i), out);
            }
            (Path::Carrier(_), Err(FailureKind::Lost)) => {
                self.members[i].state = State::Ended(End::Unknown);
                self.stage = Stage::Asking;
                out.push(Action::StartWait);
                out.push(Action::AskCarrier(i));
            }
            (Path::LastResource(_), Err(FailureKind::Lost)) => {
                // Nobody can be asked, so nobody may act: the others stay prepared, and live, so that recovery holds them.
                self.members[i].state = State::Ended(End::Unknown);
                self.hold(Cause::Branch(i), out);
            }
            (_, Err(FailureKind::Lost)) => {
                self.members[i].state = State::Ended(End::Unknown);
                self.answer(Answer::Unknown(Cause::Branch(i)), out);
                self.finish(out);
            }
            (Path::LastResource(_), Ok(())) => {
                // Its commit was the decision; the log is told for recovery's sake.
                self.members[i].state = State::Ended(End::Committed);
                self.stage = Stage::Deciding;
                out.push(Action::ForceDecision);
            }
            (Path::Carrier(_), Ok(())) => {
                self.members[i].state = State::Ended(End::Committed);
                self.start_phase_two(out);
            }
            (_, Ok(())) => {
                self.members[i].state = State::Ended(End::Committed);
                self.answer(Answer::Committed { pending: 0 }, out);
                self.finish(out);
            }
        }
    }

    fn resolved(&mut self, answer: Option<Decision>, out: &mut Vec<Action>) {
        let Some(Path::Carrier(i)) = self.path else { return };
        match answer {
            Some(Decision::Commit) => {
                self.members[i].state = State::Ended(End::Committed);
                self.start_phase_two(out);
            }
            Some(Decision::Abort) => {
                self.members[i].state = State::Flushed;
                self.abort(Cause::Branch(i), out);
            }
            None if self.waited => self.stop_asking(i, out),
            None => out.push(Action::AskCarrier(i)),
        }
    }

    /// The caller is told "unknown", and recovery goes on asking; so does the driver where a branch is prepared that only this
    /// process can finish.
    fn stop_asking(&mut self, carrier: usize, out: &mut Vec<Action>) {
        self.hand_over(out);
        self.answer(Answer::Unknown(Cause::Branch(carrier)), out);
        if self.none_in(State::Prepared) {
            self.finish(out);
        } else {
            out.push(Action::AskCarrier(carrier));
        }
    }

    fn decided(&mut self, answer: DecisionAnswer, out: &mut Vec<Action>) {
        match answer {
            DecisionAnswer::Forced => self.start_phase_two(out),
            // The last resource has committed, and without a durable decision the others must not be told to (rule 1): a crash
            // would then tear them from each other too. They are held; being torn from the last one is what was opted in to.
            _ if matches!(self.path, Some(Path::LastResource(_))) => self.hold(Cause::Log, out),
            // It was acknowledged: recovery forces it, by what the participants list.
            DecisionAnswer::Refused if self.path == Some(Path::Early) => self.leave(out),
            DecisionAnswer::Refused => self.abort(Cause::Log, out),
            DecisionAnswer::Unknown => self.hold(Cause::Log, out),
        }
    }

    /// Rule 12: nothing is presumed before the next start, so the transaction stays in the live table.
    fn hold(&mut self, cause: Cause, out: &mut Vec<Action>) {
        self.answer(Answer::Unknown(cause), out);
        self.stage = Stage::Held;
    }

    fn start_phase_two(&mut self, out: &mut Vec<Action>) {
        self.stage = Stage::PhaseTwo;
        let mut sent = false;
        for (i, member) in self.members.iter_mut().enumerate() {
            if member.state == State::Prepared {
                member.state = State::Committing;
                out.push(Action::Commit(i));
                sent = true;
            }
        }
        if self.waited {
            self.hand_over(out);
        } else if sent {
            out.push(Action::StartWait);
        }
        self.committed_all(out);
    }

    fn committed(&mut self, i: usize, answer: Result<(), FailureKind>, out: &mut Vec<Action>) {
        match answer {
            Ok(()) => self.members[i].state = State::Ended(End::Committed),
            Err(_) if self.members[i].handed_over => self.members[i].state = State::Ended(End::Pending),
            Err(_) => return out.push(Action::Commit(i)),
        }
        self.committed_all(out);
    }

    fn committed_all(&mut self, out: &mut Vec<Action>) {
        if self.members.iter().any(|member| member.state.is_out()) {
            return;
        }
        let pending = self.members.iter().filter(|member| member.state == State::Ended(End::Pending)).count();
        self.answer(Answer::Committed { pending }, out);
        // Once anything was handed over the decision is recovery's, which forgets it when a list confirms it.
        if !self.members.iter().any(|member| member.handed_over) {
            out.push(Action::Forget);
        }
        self.finish(out);
    }

    fn abort(&mut self, cause: Cause, out: &mut Vec<Action>) {
        self.stage = Stage::Aborting(cause);
        if !self.waited {
            out.push(Action::StartWait);
        }
        for i in 0..self.members.len() {
            match self.members[i].state {
                State::Joined | State::Flushed => self.roll_back(i, false, out),
                State::Prepared => self.roll_back(i, true, out),
                _ => {}
            }
        }
        if self.waited {
            self.hand_over(out);
        }
        self.rolled_back_all(out);
    }

    fn roll_back(&mut self, i: usize, prepared: bool, out: &mut Vec<Action>) {
        self.members[i].state = State::RollingBack { prepared };
        out.push(Action::Rollback(i));
    }

    fn rolled_back(&mut self, i: usize, answer: Result<(), FailureKind>, out: &mut Vec<Action>) {
        let member = &mut self.members[i];
        let prepared = member.state == State::RollingBack { prepared: true };
        match answer {
            Ok(()) => member.state = State::Ended(End::RolledBack),
            // It was never prepared: it ends with its session.
            Err(_) if !prepared => member.state = State::Ended(End::RolledBack),
            Err(_) if member.handed_over => member.state = State::Ended(End::Pending),
            Err(_) => return out.push(Action::Rollback(i)),
        }
        self.rolled_back_all(out);
    }

    fn rolled_back_all(&mut self, out: &mut Vec<Action>) {
        let Stage::Aborting(cause) = self.stage else { return };
        if self.members.iter().any(|member| member.state.is_out()) {
            return;
        }
        self.answer(Answer::Aborted(cause), out);
        self.finish(out);
    }

    fn wait_elapsed(&mut self, out: &mut Vec<Action>) {
        self.waited = true;
        match self.stage {
            Stage::Aborting(cause) => {
                self.hand_over(out);
                self.answer(Answer::Aborted(cause), out);
            }
            Stage::PhaseTwo => {
                let pending = self.members.iter().filter(|member| member.state == State::Committing).count();
                self.hand_over(out);
                self.answer(Answer::Committed { pending }, out);
            }
            // The answer to a question that is out decides what is said, unless it is late as well.
            Stage::Asking => {
                if let Some(Path::Carrier(i)) = self.path {
                    self.answer(Answer::Unknown(Cause::Branch(i)), out);
                }
            }
            _ => {}
        }
    }

    /// Recovery can finish what its stores list: branches that prepare and survive. A volatile branch is repeated here for ever,
    /// since nobody else could finish it. The live table is left first, so that a pass that this wakes finds them, and all of it comes
    /// before the answer: a caller that hears of something pending may ask recovery at once.
    fn hand_over(&mut self, out: &mut Vec<Action>) {
        self.leave_live(out);
        for (i, member) in self.members.iter_mut().enumerate() {
            let may_be_prepared = matches!(
                member.state,
                State::Preparing | State::Prepared | State::Committing | State::RollingBack { prepared: true }
            );
            if may_be_prepared && member.spec.capability == Capability::TwoPhase && !member.handed_over {
                member.handed_over = true;
                out.push(Action::HandOver(i));
                if member.state == State::Prepared {
                    member.state = State::Ended(End::Pending);
                }
            }
        }
    }

    fn answer(&mut self, answer: Answer, out: &mut Vec<Action>) {
        if !self.answered {
            self.answered = true;
            out.push(Action::Answer(answer));
        }
    }

    fn leave_live(&mut self, out: &mut Vec<Action>) {
        if self.live {
            self.live = false;
            out.push(Action::LeaveLive);
        }
    }

    fn finish(&mut self, out: &mut Vec<Action>) {
        self.stage = Stage::Over;
        self.leave_live(out);
    }
}

fn is_definite(vote: Result<(), FailureKind>) -> bool {
    matches!(vote, Err(FailureKind::Conflict | FailureKind::Refused))
}
