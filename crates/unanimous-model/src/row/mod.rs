//! A decision as a row in one of the databases, in the steps that a server makes of it: a carrier whose insert is not committed yet, a fence
//! that holds its key, questions of two recoverers and of the driver, which overlap; and rows that are let go.
//!
//! The protocol and the plan of recovery are the real ones. What is modelled is the database, in the product's order of steps:
//!
//! | here | in the product |
//! | --- | --- |
//! | the carrier inserts, with its run held; commits | `unanimous::postgres::rows::insert`, one message with `COMMIT` behind it |
//! | a question: lock and look, insert, read, commit | `unanimous::postgres::rows::ask`, statement by statement |
//! | ... in one step, and no carrier outlives its process | `unanimous::sqlite::rows::ask` under `BEGIN IMMEDIATE` |
//! | a commit row, a run, a fence go | the three deletions of `unanimous::postgres::rows::finish`; `unanimous::sqlite::rows::expire` |
//! | a run of this log's owner may presume | `unanimous::postgres::carrier::decision` |
//!
//! In the place of listing a branch again while the fence is not committed, the product leaves a floor where a commit row was.
//!
//! What is not here: a server that loses what it had confirmed (a failover); the product presumes nothing then.

mod ask;
mod steps;

use unanimous_core::protocol::{Action, Answer, Event, Protocol, Spec};
use unanimous_core::{Capability, Decision, Work};

use crate::Violation;
use crate::walk::{Code, Model, Step};
use crate::world::{Call, Live, Store, Told, Written};

/// The most branches beside the carrier.
pub const MOST: usize = 3;

/// Which store carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A server: sessions outlive their clients, statements of several sessions overlap.
    Server,
    /// A file: one transaction writes at a time, and ends with its process.
    File,
}

/// The carrier's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    Open,
    /// Its row is inserted and not committed; it holds its run's row.
    Inserted,
    Committed,
    Gone,
}

/// What is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    None,
    Is(Decision, Written),
}

/// A question, or a branch's recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asker {
    No,
    /// Listed its branch.
    Listed(usize),
    /// Not in the live table, or the driver's own question.
    Asks(usize),
    /// Its transaction has begun: whether the run was known, and whether it was beyond the horizon, when its insert began to look.
    Looked {
        branch: usize,
        known: bool,
        beyond: bool,
    },
    /// Its fence is inserted and not committed.
    Holds(usize),
    /// A row was in the way, or nothing may be presumed.
    Met(usize),
    /// It has read, and not committed.
    Read {
        branch: usize,
        decision: Option<Decision>,
        holds: bool,
    },
    /// It was answered.
    Told {
        branch: usize,
        decision: Decision,
    },
}

impl Asker {
    fn branch(self) -> Option<usize> {
        match self {
            Asker::No => None,
            Asker::Listed(branch) | Asker::Asks(branch) | Asker::Holds(branch) | Asker::Met(branch) => Some(branch),
            Asker::Looked { branch, .. } | Asker::Read { branch, .. } | Asker::Told { branch, .. } => Some(branch),
        }
    }

    /// The step, without its branch.
    fn step(self) -> u8 {
        match self {
            Asker::No => 0,
            Asker::Listed(_) => 1,
            Asker::Asks(_) => 2,
            Asker::Holds(_) => 3,
            Asker::Met(_) => 4,
            Asker::Told { decision, .. } => 5 + u8::from(decision == Decision::Commit),
            Asker::Looked { known, beyond, .. } => 7 + u8::from(known) + 2 * u8::from(beyond),
            Asker::Read { decision, holds, .. } => {
                11 + u8::from(holds) + 2 * decision.map_or(0, |decision| 1 + u8::from(decision == Decision::Commit))
            }
        }
    }

    /// Whether its fence is inserted and not committed.
    fn holds_key(self) -> bool {
        matches!(self, Asker::Holds(_) | Asker::Read { holds: true, .. })
    }

    /// Whether its transaction is open, so that no rows are let go.
    fn holds_rows(self) -> bool {
        matches!(self, Asker::Looked { .. } | Asker::Holds(_) | Asker::Met(_) | Asker::Read { .. })
    }
}

/// The place of the driver's own question among the askers; it is about no branch.
pub const DRIVER: usize = 2;

/// Bugs to plant: each must be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planted {
    None,
    /// Nothing is inserted where no row is found.
    NoFence,
    /// The row that was in the way is taken for a commit.
    KeyIsCommit,
    /// The outcome is concluded from a look before the insert.
    OutcomeFromALook,
    /// What was read is acted upon before the question's own commit.
    ActBeforeCommit,
    /// What was read is not written again (rule 3).
    BelieveUnforced,
    /// The ids don't name the carrier, so that an empty log is asked (rule 2).
    AskTheLog,
    /// Rows are let go while they are asked for.
    NoRowsLock,
    /// A commit row leaves no floor.
    NoFloor,
    /// Fences go while their run is known.
    FenceLetGoEarly,
    /// The carrier doesn't look whether its run is known.
    CarrierWithoutRun,
    /// A decision is forgotten without a look at the stores (rule 11).
    ForgetUnconfirmed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Other {
    pub store: Store,
    pub out: Option<Call>,
    pub late: u8,
}

#[derive(Clone, Debug)]
pub struct RowWorld {
    /// None once nobody drives it.
    pub protocol: Option<Protocol>,
    others: [Other; MOST],
    count: usize,
    pub kind: Kind,
    pub carrier: Carrier,
    /// The carrier's message is on its way, or at the server.
    pub sent: bool,
    /// The driver waits for its answer.
    pub carrying: bool,
    pub row: Row,
    pub finished: bool,
    /// The row of the transaction's run is there.
    pub run: bool,
    pub floor: bool,
    pub askers: [Asker; 3],
    pub live: Live,
    /// Another process owns the log now.
    pub dead: bool,
    pub waiting: bool,
    pub told: Option<Told>,
    pub decided: Option<Decision>,
    /// Crashes of the database.
    pub crashes: u8,
    pub losses: u8,
    pub planted: Planted,
}

impl RowWorld {
    /// All have written and were flushed.
    ///
    /// # Panics
    ///
    /// Above [`MOST`] others.
    pub fn new(others: usize, kind: Kind, crashes: u8, losses: u8, planted: Planted) -> Self {
        assert!(others <= MOST);
        let spec = |capability| Spec { capability, allowed: true };
        let specs = std::iter::repeat_n(spec(Capability::TwoPhase), others).chain([spec(Capability::Carrier)]);
        let mut world = Self {
            protocol: Some(Protocol::new(specs, false)),
            others: [Other { store: Store::Active, out: None, late: 0 }; MOST],
            count: others,
            kind,
            carrier: Carrier::Open,
            sent: false,
            carrying: false,
            row: Row::None,
            finished: false,
            run: true,
            floor: false,
            askers: [Asker::No; 3],
            live: Live::No,
            dead: false,
            waiting: false,
            told: None,
            decided: None,
            crashes,
            losses,
            planted,
        };
        for event in [Event::Commit].into_iter().chain((0..=others).map(|i| Event::Flushed(i, Ok(Work::Wrote)))) {
            world = world.event(event).expect("nothing is violated by a flush");
        }
        world
    }

    pub fn others(&self) -> &[Other] {
        &self.others[..self.count]
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut world = self.clone();
        change(&mut world);
        world
    }

    fn event(mut self, event: Event) -> Result<Self, Violation> {
        let mut protocol = self.protocol.take().expect("only a live process has events");
        let mut actions = Vec::new();
        protocol.handle(event, &mut actions).map_err(|error| Violation::Misused(error.to_string()))?;
        for action in actions {
            self.perform(&protocol, action)?;
        }
        self.protocol = Some(protocol);
        Ok(self)
    }

    fn perform(&mut self, protocol: &Protocol, action: Action) -> Result<(), Violation> {
        let carrier = self.count;
        match action {
            Action::EnterLive => self.live = Live::Driven,
            Action::LeaveLive => self.live = if protocol.is_aborting() { Live::Aborted } else { Live::No },
            Action::Prepare(i) => self.others[i].out = Some(Call::Prepare),
            Action::CommitCarrying(_) => (self.sent, self.carrying) = (true, true),
            Action::AskCarrier(_) => self.askers[DRIVER] = Asker::Asks(0),
            Action::Commit(i) => {
                if self.row != Row::Is(Decision::Commit, Written::Durable) {
                    return Err(Violation::CommitBeforeDecision);
                }
                self.others[i].out = Some(Call::Commit);
            }
            // The carrier's own rollback ends its session, at the latest when its late message has met the fence.
            Action::Rollback(i) if i == carrier => {}
            Action::Rollback(i) => self.others[i].out = Some(Call::Rollback),
            Action::StartWait => self.waiting = true,
            Action::Forget => self.finished = true,
            Action::Answer(answer) => {
                self.told = Some(match answer {
                    Answer::Committed { .. } => Told::Committed,
                    Answer::Aborted(_) => Told::Aborted,
                    Answer::Unknown(_) => Told::Unknown,
                });
            }
            Action::HandOver(_) | Action::Flush(_) => {}
            Action::CommitOnePhase(_) | Action::ForceDecision | Action::ForceAbort => {
                unreachable!("the carrier decides")
            }
        }
        Ok(())
    }

    /// Whether the protocol waits for the answer to the carrier's rollback: any time, and whatever its session does.
    fn is_rolling_back_carrier(&self) -> bool {
        let rolling = |protocol: &Protocol| protocol.state_name(self.count).0 == "RollingBack";
        self.protocol.as_ref().is_some_and(rolling)
    }
}

impl Model for RowWorld {
    fn encode(&self, code: &mut Code) {
        let Self {
            protocol,
            others,
            count,
            kind: _,
            carrier,
            sent,
            carrying,
            row,
            finished,
            run,
            floor,
            askers,
            live,
            dead,
            waiting,
            told,
            decided,
            crashes,
            losses,
            planted: _,
        } = self;
        code.put((carrier, sent, carrying, row, finished, run, floor));
        code.put((live, dead, waiting, told, decided, crashes, losses));
        if let Some(protocol) = protocol {
            protocol.hash_rest(code);
            protocol.hash_branch(*count, code);
        }
        code.put(askers[DRIVER]);
        // The branches are alike, and so are the two recoverers: what each asks about goes with the branch.
        let step = |asker: Asker, i: usize| if asker.branch() == Some(i) { 1 + asker.step() } else { 0 };
        let (mut one, mut other) = (askers[0], askers[1]);
        if one.step() > other.step() {
            std::mem::swap(&mut one, &mut other);
        }
        code.put((one.step(), other.step()));
        code.put_alike(*count, |i, code| {
            code.put((others[i], step(one, i), step(other, i)));
            if let Some(protocol) = protocol {
                protocol.hash_branch(i, code);
            }
        });
    }

    fn next(&self, out: &mut Vec<Step<Self>>) {
        self.owner_steps(out);
        self.store_steps(out);
        self.asker_steps(out);
        self.row_steps(out);
        self.crash_steps(out);
    }

    fn check(&self) -> Result<(), Violation> {
        let is = |store: Store| self.others().iter().any(|other| other.store == store);
        let committed = is(Store::Committed) || self.carrier == Carrier::Committed;
        let gone = is(Store::Gone) || self.carrier == Carrier::Gone;
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

    fn settle(&self) -> Result<(), Violation> {
        self.settled()
    }
}
