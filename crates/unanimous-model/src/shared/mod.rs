//! A decision log in a table that several processes share: an owner that decides, may be slow, and does not know that it was taken over;
//! two others that take its node over, fence first, and recover.
//!
//! The protocol and the plan of recovery are the real ones. What is modelled is the table, in the product's order of steps:
//!
//! | here | in the product |
//! | --- | --- |
//! | a try: guard, insert, read, commit; tried again | `unanimous::postgres::rows::decide`, and `writer::decide`, `writer::attempt` |
//! | a guard: the node's row, held while it is relied on | `unanimous::postgres::node::Node::guard` (`FOR KEY SHARE`) |
//! | a take-over: reads, waits for who holds, compares, sets | `unanimous::postgres::node::fence` (`FOR UPDATE`) |
//! | a question: guard, insert, read, commit | `unanimous::postgres::rows::ask`, and `PostgresLog::lookup` |
//! | a run goes, and its fences | `unanimous::postgres::rows::finish` |
//!
//! The advisory lock is left out: it tells an honest second start in time, and nothing is right because of it.

mod recover;
mod steps;

use unanimous_core::protocol::{Action, Answer, Event, Protocol, Spec};
use unanimous_core::{Capability, Decision, Work};

use crate::Violation;
use crate::row::{Other, Row};
use crate::walk::{Code, Model, Step};
use crate::world::{Call, Live, Store, Told, Written};

/// The most branches.
pub const MOST: usize = 3;

/// The owner, and two that can take over. A process has one run, with its own number.
pub const PROCESSES: usize = 3;

/// How often a decision is tried.
pub const TRIES: usize = 2;

/// A try to write the decision, as a session of the database sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Try {
    No,
    Sent,
    /// It has asked for the node's row, and holds it where it is still the owner's.
    Guarded(bool),
    /// Its insert is done: whether the row is its own, not committed.
    Inserted {
        own: bool,
        guarded: bool,
    },
    /// Committed: what it has read.
    Done(Option<Decision>),
}

/// A process that takes the node over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Taker {
    No,
    /// It has read whose the node is.
    Read(usize),
    /// It holds the node's row, and nobody else does.
    Locked,
    /// The node is its own, as far as it knows.
    Owns,
}

/// A process's recovery of one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asker {
    No,
    Listed(usize),
    Asks(usize),
    Guarded {
        branch: usize,
        guarded: bool,
    },
    /// Its insert is done: whether it was a fence of its own, not committed.
    Inserted {
        branch: usize,
        own: bool,
        guarded: bool,
    },
    Told {
        branch: usize,
        decision: Decision,
    },
}

/// Bugs to plant: each must be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planted {
    None,
    /// A decision is written whoever has the node.
    NoGuard,
    /// The guard is looked at and not held: a take-over does not wait for who relies on it.
    GuardNotHeld,
    /// A process recovers another's transactions and takes nothing over: what it does not find it presumes.
    NoTakeOver,
    /// A try whose answer is lost counts as not written.
    LostIsRefused,
    /// A try that finds the row of the one before does not write it again (rule 3).
    AgainWithoutWrite,
    /// A row that was in the way of a decision is taken for its own.
    ConflictIsOurs,
    /// What a question has read is not written again (rule 3).
    BelieveUnforced,
    /// What a question has read is acted upon before its own commit.
    ActBeforeCommit,
    /// The row that was in the way of a fence is taken for a commit.
    KeyIsCommit,
}

#[derive(Clone, Debug)]
pub struct SharedWorld {
    /// None once nobody drives it.
    pub protocol: Option<Protocol>,
    others: [Other; MOST],
    count: usize,
    processes: usize,
    pub tries: [Try; TRIES],
    /// The owner's writer waits for this try.
    pub waits_for: Option<usize>,
    pub deciding: bool,
    /// Whose the node is.
    pub node: usize,
    /// The run of the owner is known; what it could presume is known with it.
    pub run: bool,
    pub row: Row,
    pub takers: [Taker; PROCESSES],
    pub askers: [Asker; PROCESSES],
    /// The owner's process has ended, or knows that it was taken over.
    pub ended: bool,
    pub live: Live,
    pub waiting: bool,
    pub told: Option<Told>,
    pub decided: Option<Decision>,
    /// Crashes of the database.
    pub crashes: u8,
    pub losses: u8,
    pub planted: Planted,
}

impl SharedWorld {
    /// All have written and were flushed.
    ///
    /// # Panics
    ///
    /// With fewer than two branches, and above [`MOST`]; without anybody who takes over, and above [`PROCESSES`].
    pub fn new(branches: usize, processes: usize, crashes: u8, losses: u8, planted: Planted) -> Self {
        assert!((2..=MOST).contains(&branches) && (2..=PROCESSES).contains(&processes));
        let spec = Spec { capability: Capability::TwoPhase, allowed: true };
        let mut world = Self {
            protocol: Some(Protocol::new(std::iter::repeat_n(spec, branches), false)),
            others: [Other { store: Store::Active, out: None, late: 0 }; MOST],
            count: branches,
            processes,
            tries: [Try::No; TRIES],
            waits_for: None,
            deciding: false,
            node: 0,
            run: true,
            row: Row::None,
            takers: [Taker::Owns, Taker::No, Taker::No],
            askers: [Asker::No; PROCESSES],
            ended: false,
            live: Live::No,
            waiting: false,
            told: None,
            decided: None,
            crashes,
            losses,
            planted,
        };
        for event in [Event::Commit].into_iter().chain((0..branches).map(|i| Event::Flushed(i, Ok(Work::Wrote)))) {
            world = world.event(event).expect("nothing is violated by a flush");
        }
        world
    }

    pub fn branches(&self) -> &[Other] {
        &self.others[..self.count]
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut world = self.clone();
        change(&mut world);
        world
    }

    fn lost(&self) -> Self {
        self.with(|world| world.losses -= 1)
    }

    fn event(mut self, event: Event) -> Result<Self, Violation> {
        let mut protocol = self.protocol.take().expect("only a live process has events");
        let mut actions = Vec::new();
        protocol.handle(event, &mut actions).map_err(|error| Violation::Misused(error.to_string()))?;
        for action in actions {
            self.perform(&protocol, action)?;
        }
        if protocol.is_held() {
            self.live = Live::Held;
        }
        self.protocol = Some(protocol);
        Ok(self)
    }

    fn perform(&mut self, protocol: &Protocol, action: Action) -> Result<(), Violation> {
        match action {
            Action::EnterLive => self.live = Live::Driven,
            Action::LeaveLive => self.live = if protocol.is_aborting() { Live::Aborted } else { Live::No },
            Action::Prepare(i) => self.others[i].out = Some(Call::Prepare),
            Action::ForceDecision => {
                self.deciding = true;
                self.tries[0] = Try::Sent;
                self.waits_for = Some(0);
            }
            Action::Commit(i) => {
                if self.row != Row::Is(Decision::Commit, Written::Durable) {
                    return Err(Violation::CommitBeforeDecision);
                }
                self.others[i].out = Some(Call::Commit);
            }
            Action::Rollback(i) => self.others[i].out = Some(Call::Rollback),
            Action::StartWait => self.waiting = true,
            Action::Answer(answer) => {
                self.told = Some(match answer {
                    Answer::Committed { .. } => Told::Committed,
                    Answer::Aborted(_) => Told::Aborted,
                    Answer::Unknown(_) => Told::Unknown,
                });
            }
            // Decisions are kept here: what becomes of finished ones is the other models'.
            Action::HandOver(_) | Action::Flush(_) | Action::Forget => {}
            Action::CommitOnePhase(_) | Action::CommitCarrying(_) | Action::AskCarrier(_) | Action::ForceAbort => {
                unreachable!("the log decides")
            }
        }
        Ok(())
    }

    /// Somebody has learned the decision.
    fn decide(&mut self, decision: Decision) -> Result<(), Violation> {
        match self.decided.replace(decision) {
            Some(other) if other != decision => Err(Violation::DecisionChanged),
            _ => Ok(()),
        }
    }

    /// Whether somebody holds the node's row as it is, so that a take-over waits.
    fn node_is_held(&self) -> bool {
        let by_try = |a_try: &Try| matches!(a_try, Try::Guarded(true) | Try::Inserted { guarded: true, .. });
        let by_asker = |asker: &Asker| {
            matches!(asker, Asker::Guarded { guarded: true, .. } | Asker::Inserted { guarded: true, .. })
        };
        self.planted != Planted::GuardNotHeld && (self.tries.iter().any(by_try) || self.askers.iter().any(by_asker))
    }

    /// Whether a take-over holds the node's row alone.
    fn node_is_locked(&self) -> bool {
        self.takers.contains(&Taker::Locked)
    }

    /// Whether a row of the transaction is inserted and not committed.
    fn key_is_held(&self) -> bool {
        let by_try = |a_try: &Try| matches!(a_try, Try::Inserted { own: true, .. });
        let by_asker = |asker: &Asker| matches!(asker, Asker::Inserted { own: true, .. });
        self.tries.iter().any(by_try) || self.askers.iter().any(by_asker)
    }
}

impl Asker {
    fn branch(self) -> Option<usize> {
        match self {
            Asker::No => None,
            Asker::Listed(branch) | Asker::Asks(branch) => Some(branch),
            Asker::Guarded { branch, .. } | Asker::Inserted { branch, .. } | Asker::Told { branch, .. } => Some(branch),
        }
    }

    /// The step, without its branch.
    fn step(self) -> u8 {
        match self {
            Asker::No => 0,
            Asker::Listed(_) => 1,
            Asker::Asks(_) => 2,
            Asker::Guarded { guarded, .. } => 3 + u8::from(guarded),
            Asker::Inserted { own, guarded, .. } => 5 + u8::from(guarded) + 2 * u8::from(own),
            Asker::Told { decision, .. } => 9 + u8::from(decision == Decision::Commit),
        }
    }
}

impl Model for SharedWorld {
    fn encode(&self, code: &mut Code) {
        let Self {
            protocol,
            others,
            count,
            processes: _,
            tries,
            waits_for,
            deciding,
            node,
            run,
            row,
            takers,
            askers,
            ended,
            live,
            waiting,
            told,
            decided,
            crashes,
            losses,
            planted: _,
        } = self;
        code.put((tries, waits_for, deciding, run, row));
        code.put((ended, live, waiting, told, decided, crashes, losses, protocol.is_some()));
        if let Some(protocol) = protocol {
            protocol.hash_rest(code);
        }
        // Those that take over are alike, and so are the branches: what each asks about goes with the branch.
        let place = |p: usize| {
            let read = matches!(takers[p], Taker::Read(seen) if seen == 0);
            let taker = match takers[p] {
                Taker::No => 0,
                Taker::Read(_) => 1,
                Taker::Locked => 2,
                Taker::Owns => 3_u8,
            };
            (askers[p].step(), taker, read, matches!(takers[p], Taker::Read(seen) if seen == p), *node == p)
        };
        let order = if place(1) <= place(2) { [0, 1, 2] } else { [0, 2, 1] };
        for p in order {
            code.put(place(p));
        }
        code.put_alike(*count, |i, code| {
            code.put(others[i]);
            for p in order {
                code.put(askers[p].branch() == Some(i));
            }
            if let Some(protocol) = protocol {
                protocol.hash_branch(i, code);
            }
        });
    }

    fn next(&self, out: &mut Vec<Step<Self>>) {
        self.owner_steps(out);
        self.store_steps(out);
        self.try_steps(out);
        self.taker_steps(out);
        self.asker_steps(out);
        self.crash_steps(out);
    }

    fn check(&self) -> Result<(), Violation> {
        let is = |store: Store| self.branches().iter().any(|branch| branch.store == store);
        if is(Store::Committed) && is(Store::Gone) {
            return Err(Violation::Torn);
        }
        if self.told == Some(Told::Committed) && is(Store::Gone) {
            return Err(Violation::AcknowledgedLost);
        }
        if self.told == Some(Told::Aborted) && is(Store::Committed) {
            return Err(Violation::ReportedAbortedCommitted);
        }
        Ok(())
    }

    fn settle(&self) -> Result<(), Violation> {
        self.settled()
    }
}
