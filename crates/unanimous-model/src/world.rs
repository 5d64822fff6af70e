//! The world around one transaction, as small as it can be and as bad as it gets: stores that answer late, lose answers and execute
//! after their client is gone; a log whose unsynced writes a power cut may drop; a process that is killed at any point; recovery in
//! the background and after a restart, step by step.
//!
//! The protocol and the plan of recovery in it are the real ones. What is modelled is only what they act upon.

use unanimous_core::protocol::{Action, Answer, DecisionAnswer, Event, Path, Protocol, Spec};
use unanimous_core::recovery::{Verdict, verdict, whom_to_ask};
use unanimous_core::{
    BranchId, Capability, DeciderId, Decision, DecisionRecord, FailureKind, HoldReason, Incarnation, Known, LogId,
    Note, Outcome, Owner, Participant, StoreId, TransactionId, Work,
};

/// A branch in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Store {
    Active,
    Prepared,
    Committed,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    Flush,
    Prepare,
    OnePhase,
    Carry,
    Commit,
    Rollback,
}

/// One branch's recovery, in the steps that its pass takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Recovering {
    No,
    Listed,
    NotLive,
    Commit,
    Rollback,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    pub capability: Capability,
    pub store: Store,
    pub wrote: bool,
    /// A call that the driver waits for.
    pub out: Option<Call>,
    /// Messages without anybody waiting for their answer, as bits of [`Call`].
    pub late: u8,
    pub recovering: Recovering,
}

/// A decision's way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Written {
    No,
    /// Visible to whoever reads, and lost by a power cut.
    Cached,
    Durable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    None,
    Commit(Written),
    Abort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    Committed,
    Aborted,
    Unknown,
}

/// Bugs to plant: each must be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planted {
    None,
    /// Recovery believes what it reads without forcing it (rule 3).
    BelieveUnforced,
    /// Recovery doesn't look at the live table (rule 5).
    TouchLive,
    /// Recovery reads the decision before the live table (rule 5).
    DecisionBeforeLive,
    /// Recovery finds no row and fences nothing (rule 4).
    NoFence,
    /// Recovery asks the log for a branch whose decider is a store (rule 2).
    AskTheLog,
    /// Recovery presumes while the log is poisoned (rule 12).
    PresumePoisoned,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// None once its process is dead.
    pub protocol: Option<Protocol>,
    pub branches: Vec<Branch>,
    pub log: Written,
    pub poisoned: bool,
    pub row: Row,
    pub deciding: bool,
    pub asking: bool,
    pub live: bool,
    /// The decider that the branches' ids name: the carrier, or the log.
    pub carrier: Option<usize>,
    /// The decision's list, fixed when the first id was made.
    pub participants: u8,
    pub waiting: bool,
    pub told: Option<Told>,
    pub crashes: u8,
    pub losses: u8,
    pub planted: Planted,
}

/// What must never be seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Violation {
    Torn,
    AcknowledgedLost,
    ReportedAbortedCommitted,
    CommitBeforeDecision,
    PrepareNotLive,
    ListChanged,
    LeftInDoubt,
    ToldTwice,
    Misused(String),
}

fn owner() -> Owner {
    Owner { log: LogId(7), incarnation: Incarnation::new(1, 9) }
}

fn transaction() -> TransactionId {
    owner().transaction(1)
}

impl World {
    pub fn new(specs: &[Spec], ask_single: bool, crashes: u8, losses: u8, planted: Planted) -> Self {
        let branch = |spec: &Spec| Branch {
            capability: spec.capability,
            store: Store::Active,
            wrote: true,
            out: None,
            late: 0,
            recovering: Recovering::No,
        };
        Self {
            protocol: Some(Protocol::new(specs.iter().copied(), ask_single)),
            branches: specs.iter().map(branch).collect(),
            log: Written::No,
            poisoned: false,
            row: Row::None,
            deciding: false,
            asking: false,
            live: false,
            carrier: None,
            participants: 0,
            waiting: false,
            told: None,
            crashes,
            losses,
            planted,
        }
    }

    /// Feeds an event to the protocol and performs what it wants.
    pub fn event(&self, event: Event) -> Result<World, Violation> {
        let mut world = self.clone();
        let mut protocol = world.protocol.take().expect("only a live process has events");
        let mut actions = Vec::new();
        protocol.handle(event, &mut actions).map_err(|error| Violation::Misused(error.to_string()))?;
        for action in actions {
            world.perform(&protocol, action)?;
        }
        world.protocol = Some(protocol);
        Ok(world)
    }

    fn send(&mut self, i: usize, call: Call) -> Result<(), Violation> {
        match self.branches[i].out.replace(call) {
            None => Ok(()),
            Some(other) => Err(Violation::Misused(format!("{call:?} while {other:?} is out"))),
        }
    }

    fn perform(&mut self, protocol: &Protocol, action: Action) -> Result<(), Violation> {
        match action {
            Action::EnterLive => {
                self.live = true;
                self.carrier = match protocol.path() {
                    Some(Path::Carrier(i)) => Some(i),
                    _ => None,
                };
                self.participants = protocol.participants().fold(0, |bits, i| bits | 1 << i);
            }
            Action::LeaveLive => self.live = false,
            Action::Flush(i) => self.send(i, Call::Flush)?,
            Action::Prepare(i) => {
                if !self.live {
                    return Err(Violation::PrepareNotLive);
                }
                if self.participants & 1 << i == 0 {
                    return Err(Violation::ListChanged);
                }
                self.send(i, Call::Prepare)?;
            }
            Action::CommitOnePhase(i) => self.send(i, Call::OnePhase)?,
            Action::CommitCarrying(i) => self.send(i, Call::Carry)?,
            Action::AskCarrier(_) => self.asking = true,
            Action::ForceDecision => {
                if protocol.participants().fold(0, |bits, i| bits | 1 << i) != self.participants {
                    return Err(Violation::ListChanged);
                }
                self.deciding = true;
                self.log = Written::Cached;
            }
            Action::Commit(i) => {
                let durable = match self.carrier {
                    Some(_) => self.row == Row::Commit(Written::Durable),
                    None => self.log == Written::Durable,
                };
                if !durable {
                    return Err(Violation::CommitBeforeDecision);
                }
                self.send(i, Call::Commit)?;
            }
            Action::Rollback(i) => self.send(i, Call::Rollback)?,
            Action::StartWait => self.waiting = true,
            Action::HandOver(_) | Action::Forget => {}
            Action::Answer(answer) => {
                if self.told.is_some() {
                    return Err(Violation::ToldTwice);
                }
                self.told = Some(match answer {
                    Answer::Committed { .. } => Told::Committed,
                    Answer::Aborted(_) => Told::Aborted,
                    Answer::Unknown(_) => Told::Unknown,
                });
            }
        }
        Ok(())
    }

    /// Branches whose atomicity is promised over crashes: volatile and one-phase ones are opted in to be torn (rule 10).
    fn promised(&self) -> impl Iterator<Item = &Branch> {
        self.branches
            .iter()
            .filter(|branch| branch.wrote && matches!(branch.capability, Capability::TwoPhase | Capability::Carrier))
    }

    pub fn check(&self) -> Result<(), Violation> {
        let committed = self.promised().any(|branch| branch.store == Store::Committed);
        let gone = self.promised().any(|branch| branch.store == Store::Gone);
        if committed && gone {
            return Err(Violation::Torn);
        }
        if self.told == Some(Told::Committed) && gone {
            return Err(Violation::AcknowledgedLost);
        }
        if self.told == Some(Told::Aborted) && committed {
            return Err(Violation::ReportedAbortedCommitted);
        }
        Ok(())
    }

    /// Nothing can happen any more: nothing may be left that somebody waits for.
    pub fn check_end(&self) -> Result<(), Violation> {
        let in_doubt = |branch: &Branch| branch.capability == Capability::TwoPhase && branch.store == Store::Prepared;
        // What only the living driver can finish, it must not leave.
        let left = |branch: &Branch| branch.capability == Capability::Volatile && branch.store == Store::Prepared;
        let held = self.protocol.as_ref().is_none_or(Protocol::is_held);
        if self.branches.iter().any(in_doubt) || (!held && self.branches.iter().any(left)) {
            return Err(Violation::LeftInDoubt);
        }
        Ok(())
    }

    /// Every state that can follow.
    pub fn next(&self, out: &mut Vec<Result<World, Violation>>) {
        if let Some(protocol) = &self.protocol {
            self.driver_steps(protocol, out);
        }
        for i in 0..self.branches.len() {
            self.store_steps(i, out);
            self.recovery_steps(i, out);
        }
        self.crash_steps(out);
    }

    fn with(&self, change: impl FnOnce(&mut World)) -> World {
        let mut world = self.clone();
        change(&mut world);
        world
    }

    fn driver_steps(&self, protocol: &Protocol, out: &mut Vec<Result<World, Violation>>) {
        if protocol.is_over() {
            return;
        }
        if self.branches.iter().all(|branch| branch.out.is_none()) && protocol.path().is_none() && self.told.is_none() {
            out.push(self.event(Event::Commit));
            out.push(self.event(Event::Abort));
        }
        // The time limit passes at any moment, also when nothing may come of it any more.
        if self.told.is_none() {
            out.push(self.event(Event::GiveUp));
        }
        if self.waiting {
            out.push(self.with(|world| world.waiting = false).event(Event::WaitElapsed));
        }
        if self.deciding {
            let answered = |log, poisoned| {
                self.with(|world| {
                    world.deciding = false;
                    world.log = log;
                    world.poisoned = poisoned;
                })
            };
            out.push(answered(Written::Durable, false).event(Event::Decided(DecisionAnswer::Forced)));
            out.push(answered(Written::No, false).event(Event::Decided(DecisionAnswer::Refused)));
            out.push(answered(Written::Cached, true).event(Event::Decided(DecisionAnswer::Unknown)));
        }
        if self.asking {
            let mut world = self.with(|world| world.asking = false);
            match world.ask_row() {
                Some(decision) => out.push(world.event(Event::Resolved(Some(decision)))),
                None => unreachable!("the carrier's store answers"),
            }
            if self.losses > 0 {
                out.push(
                    self.with(|world| {
                        world.asking = false;
                        world.losses -= 1;
                    })
                    .event(Event::Resolved(None)),
                );
            }
        }
    }

    /// The carrier's store is asked: forces what it finds, fences what it doesn't.
    fn ask_row(&mut self) -> Option<Decision> {
        match self.row {
            Row::Commit(written) => {
                if self.planted != Planted::BelieveUnforced {
                    self.row = Row::Commit(Written::Durable);
                } else {
                    self.row = Row::Commit(written);
                }
                Some(Decision::Commit)
            }
            Row::Abort => Some(Decision::Abort),
            Row::None => {
                if self.planted != Planted::NoFence {
                    self.row = Row::Abort;
                }
                Some(Decision::Abort)
            }
        }
    }

    /// What the store does on receiving a message, and what it would answer; none when it can only refuse.
    fn execute(&mut self, i: usize, call: Call) -> Result<(), FailureKind> {
        let refused = Err(FailureKind::Refused);
        let branch = &mut self.branches[i];
        match (call, branch.store) {
            (Call::Prepare, Store::Active) => branch.store = Store::Prepared,
            (Call::OnePhase, Store::Active) => branch.store = Store::Committed,
            (Call::Carry, Store::Active) => {
                if self.row == Row::Abort {
                    branch.store = Store::Gone;
                    return refused;
                }
                branch.store = Store::Committed;
                self.row = Row::Commit(Written::Cached);
            }
            (Call::Commit, Store::Prepared) => branch.store = Store::Committed,
            (Call::Commit, Store::Committed) => {}
            (Call::Rollback, Store::Active | Store::Prepared | Store::Gone) => branch.store = Store::Gone,
            _ => return refused,
        }
        Ok(())
    }

    fn store_steps(&self, i: usize, out: &mut Vec<Result<World, Violation>>) {
        let branch = &self.branches[i];
        if let Some(call) = branch.out {
            let returned = self.with(|world| world.branches[i].out = None);
            if call == Call::Flush {
                let read = returned.with(|world| world.branches[i].wrote = false);
                out.push(read.event(Event::Flushed(i, Ok(Work::ReadOnly))));
                out.push(returned.event(Event::Flushed(i, Ok(Work::Wrote))));
                out.push(returned.event(Event::Flushed(i, Err(FailureKind::Refused))));
                return;
            }
            let answered = |answer| match call {
                Call::Flush => unreachable!("answered above"),
                Call::Prepare => Event::Voted(i, answer),
                Call::OnePhase | Call::Carry => Event::OnePhase(i, answer),
                Call::Commit => Event::Committed(i, answer),
                Call::Rollback => Event::RolledBack(i, answer),
            };
            let mut done = returned.clone();
            let answer = done.execute(i, call);
            if call == Call::Carry && answer.is_ok() {
                // Between the write and its sync: seen by others, lost by a power cut, not yet answered.
                if self.row != Row::Commit(Written::Cached) {
                    out.push(Ok(done.with(|world| world.branches[i].out = Some(Call::Carry))));
                }
            } else if !(call == Call::Carry && self.row == Row::Commit(Written::Cached)) {
                out.push(done.event(answered(answer)));
            }
            if call == Call::Carry && matches!(self.row, Row::Commit(_)) && branch.store == Store::Committed {
                let synced = returned.with(|world| world.row = Row::Commit(Written::Durable));
                out.push(synced.event(answered(Ok(()))));
                if self.losses > 0 {
                    out.push(synced.with(|world| world.losses -= 1).event(answered(Err(FailureKind::Lost))));
                }
                return;
            }
            if matches!(call, Call::Commit | Call::Rollback) {
                // Not done now, for whatever reason: it is repeated.
                out.push(returned.event(answered(Err(FailureKind::Refused))));
            }
            if branch.store == Store::Active && matches!(call, Call::Prepare | Call::OnePhase | Call::Carry) {
                // An honest no: the branch is gone, or still open and rolled back later.
                let no = returned.with(|world| world.branches[i].store = Store::Gone);
                out.push(no.event(answered(Err(FailureKind::Refused))));
            }
            if self.losses > 0 {
                if answer.is_ok() && call != Call::Carry {
                    out.push(done.with(|world| world.losses -= 1).event(answered(Err(FailureKind::Lost))));
                }
                let late = returned.with(|world| {
                    world.losses -= 1;
                    world.branches[i].late |= 1 << call as u8;
                });
                out.push(late.event(answered(Err(FailureKind::Lost))));
            }
        }
        for call in [Call::Prepare, Call::OnePhase, Call::Carry, Call::Commit, Call::Rollback] {
            if branch.late & 1 << call as u8 != 0 {
                // A late message is executed now, or is never; the latter is the same as its staying under way.
                let mut world = self.with(|world| world.branches[i].late &= !(1 << call as u8));
                let _nobody_hears_it = world.execute(i, call);
                out.push(Ok(world));
            }
        }
        let orphaned = self.protocol.is_none() || (branch.out.is_none() && branch.late != 0);
        if branch.store == Store::Active && orphaned {
            out.push(Ok(self.with(|world| world.branches[i].store = Store::Gone)));
        }
    }

    fn branch_id(&self, i: usize) -> BranchId {
        let store = || StoreId::from_random(1);
        let decider = if self.carrier.is_some() { DeciderId::Store(store()) } else { DeciderId::Log };
        BranchId { transaction: transaction(), decider, number: i as u16 }
    }

    fn record(&self) -> DecisionRecord {
        let listed = (0..self.branches.len()).filter(|i| self.participants & 1 << i != 0);
        let participants = listed
            .map(|i| Participant {
                number: i as u16,
                resource: i.to_string(),
                store: Some(StoreId::from_random(2 + i as u128)),
            })
            .collect();
        DecisionRecord { transaction: transaction(), participants, decided_at: 0, note: Note::default() }
    }

    /// The decider's answer: none when it must be waited for.
    fn ask(&mut self, i: usize) -> Option<Known> {
        let id = self.branch_id(i);
        let decided = |committed, record| if committed { Known::Commit(record) } else { Known::Abort };
        let log = match whom_to_ask(&id, owner()) {
            unanimous_core::recovery::Ask::Log => true,
            unanimous_core::recovery::Ask::Store(_) => self.planted == Planted::AskTheLog,
            unanimous_core::recovery::Ask::Nobody(_) => unreachable!("the branch is ours"),
        };
        if !log {
            let decision = self.ask_row()?;
            return Some(decided(decision == Decision::Commit, self.record()));
        }
        if self.poisoned && self.planted != Planted::PresumePoisoned {
            return Some(Known::Hold(HoldReason::Poisoned));
        }
        if self.protocol.is_some() {
            if self.deciding {
                return None;
            }
            return Some(decided(self.log == Written::Durable, self.record()));
        }
        if self.log == Written::Cached && self.planted != Planted::BelieveUnforced {
            self.log = Written::Durable;
        }
        Some(decided(self.log != Written::No, self.record()))
    }

    fn recovery_steps(&self, i: usize, out: &mut Vec<Result<World, Violation>>) {
        let branch = &self.branches[i];
        if branch.capability != Capability::TwoPhase {
            return;
        }
        let at = |step| self.with(|world| world.branches[i].recovering = step);
        match branch.recovering {
            Recovering::No => {
                if branch.store == Store::Prepared {
                    out.push(Ok(at(Recovering::Listed)));
                }
            }
            Recovering::Listed => {
                let believed = match self.planted {
                    Planted::TouchLive | Planted::DecisionBeforeLive => false,
                    Planted::PresumePoisoned => self.live && !self.poisoned,
                    _ => self.live,
                };
                if believed {
                    out.push(Ok(at(Recovering::No)));
                } else {
                    out.push(Ok(at(Recovering::NotLive)));
                }
            }
            Recovering::NotLive => {
                let mut world = self.clone();
                let Some(known) = world.ask(i) else { return };
                world.branches[i].recovering = match verdict(&self.branch_id(i), &known) {
                    Verdict::Commit => Recovering::Commit,
                    Verdict::Rollback => Recovering::Rollback,
                    Verdict::Hold(_) => Recovering::No,
                };
                out.push(Ok(world));
            }
            Recovering::Commit | Recovering::Rollback => {
                if self.planted == Planted::DecisionBeforeLive && self.live {
                    out.push(Ok(at(Recovering::No)));
                    return;
                }
                let call = if branch.recovering == Recovering::Commit { Call::Commit } else { Call::Rollback };
                let mut world = at(Recovering::No);
                if branch.store == Store::Prepared {
                    let _looked_at_again = world.execute(i, call);
                }
                out.push(Ok(world));
            }
        }
    }

    fn crash_steps(&self, out: &mut Vec<Result<World, Violation>>) {
        // A held transaction ends with a restart only, so that one is always to be had.
        let held = self.protocol.as_ref().is_some_and(Protocol::is_held);
        if self.crashes == 0 && !held {
            return;
        }
        let crashed = self.with(|world| {
            world.crashes = world.crashes.saturating_sub(1);
            if let (None, Some(protocol)) = (world.told, &self.protocol) {
                // Its runtime may end without its process: what the driver can still say then must hold.
                world.told = match protocol.outcome_if_dropped() {
                    Outcome::Committed => Some(Told::Committed),
                    Outcome::Aborted => Some(Told::Aborted),
                    Outcome::Unknown => None,
                };
            }
            world.protocol = None;
            world.poisoned = false;
            world.deciding = false;
            world.asking = false;
            world.live = false;
            world.waiting = false;
            for branch in &mut world.branches {
                // A flush that nobody waits for any more changes nothing that matters.
                if let Some(call) = branch.out.take().filter(|call| *call != Call::Flush) {
                    branch.late |= 1 << call as u8;
                }
                branch.recovering = Recovering::No;
                if branch.capability == Capability::Volatile && branch.store != Store::Committed {
                    branch.store = Store::Gone;
                    branch.late = 0;
                }
            }
        });
        if self.log == Written::Cached {
            out.push(Ok(crashed.with(|world| world.log = Written::No)));
            out.push(Ok(crashed.with(|world| world.log = Written::Durable)));
        }
        if self.row == Row::Commit(Written::Cached) {
            // The power fails before the carrier's sync: its commit and its row are lost together.
            out.push(Ok(crashed.with(|world| {
                world.row = Row::None;
                for branch in world.branches.iter_mut().filter(|branch| branch.capability == Capability::Carrier) {
                    branch.store = Store::Gone;
                    branch.late = 0;
                }
            })));
        }
        out.push(Ok(crashed));
    }
}
