//! The world around one transaction, as small as it can be and as bad as it gets: stores that answer late, lose answers, execute
//! a message after their client is gone and execute it twice; a log whose unsynced writes a power cut may drop; a process that is
//! killed, or whose runtime ends, at any point; recovery in the background and after a restart, step by step.
//!
//! The protocol, the plan of recovery and the log's memory in it are the real ones. What is modelled is only what they act upon, in the
//! order in which the product does:
//!
//! | here | in the product |
//! | --- | --- |
//! | `World::perform`, `World::drop_driver` | `unanimous::driver`: `perform`, `id_of`, `leave_live`, `Drop` |
//! | a decision on its way (`deciding`), poisoned | `unanimous::log`: `writer`, `state` |
//! | opening writes what it read into a new segment | `unanimous::log::file`, `segments` |
//! | a transaction's participants listed again, and what follows forced | `unanimous::recovery::conclude`, before its branches are asked for |
//! | listed, not live, asked, acted; forgotten | `unanimous::recovery::whole_pass`, and `forget_or_report` |
//! | a question to a carrier, its fence | one step here, as a transaction in `unanimous::sqlite::rows::ask`; its steps in [`row`](crate::row) |

mod recover;
mod steps;

use unanimous_core::protocol::{Action, Answer, Event, Path, Protocol};
use unanimous_core::{Capability, Decision, FailureKind};

use crate::Violation;
use crate::walk::{Code, Model, Step};

pub use unanimous_core::protocol::Spec;

/// The most branches.
pub const MOST: usize = 4;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    pub capability: Capability,
    pub store: Store,
    pub wrote: bool,
    /// A call that the driver waits for.
    pub out: Option<Call>,
    /// Messages without anybody waiting for their answer, as bits of [`Call`].
    pub late: u8,
    pub recovering: Recovering,
    /// The decision lists it: fixed when the first id was made.
    pub listed: bool,
    /// It is the decider that the branches' ids name.
    pub carries: bool,
    /// A pass of recovery has found it absent from its store's list.
    pub confirmed: bool,
    /// It is prepared, listed, and neither durable nor acknowledged: its store's failure loses it.
    pub unsure: bool,
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

/// Who has handed a decision to the log, and hears what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deciding {
    Nobody,
    Driver,
    Recovery,
}

/// Recovery lists the participants of a transaction of which the log has no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Again {
    No,
    /// In bits: who was listed, and who of them was prepared.
    Listing {
        listed: u8,
        prepared: u8,
    },
}

/// What becomes of a decision after it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    Unfinished,
    /// Every branch is confirmed, as far as the decider was told.
    Finished,
    /// It was let go, and left a floor.
    Expired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    Committed,
    Aborted,
    Unknown,
}

/// The transaction in the live table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Live {
    No,
    Driven,
    Aborted,
    Held,
}

/// Bugs to plant: each must be caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Planted {
    None,
    /// Opening the log believes what it reads without forcing it, and so does a question to a carrier (rule 3).
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
    /// Recovery doesn't wait for a decision that the log is writing (rule 4).
    DontWaitForTheLog,
    /// Recovery forgets a decision without a look at the stores (rule 11).
    ForgetUnconfirmed,
    /// Recovery reads the stores' lists before the unfinished decisions.
    ListsBeforeDecisions,
    /// What a driver leaves when its runtime ends is taken for aborted (rule 5).
    AbortedWhenDropped,
    /// Recovery presumes abort of a transaction whose ids list its participants.
    PresumeOfAll,
    /// Recovery commits what all participants list, without a record.
    CommitUnrecorded,
    /// Recovery rolls back what one participant does not list, without a record.
    RollBackUnrecorded,
    /// Recovery takes a participant that it has not listed for missing.
    UnlistedIsMissing,
    /// Recovery takes a participant that it has not listed for prepared.
    UnlistedIsPrepared,
    /// Recovery lists the participants before it looks at the live table.
    ListsBeforeLive,
    /// Recovery concludes from a prepare that is listed and not durable (rule 3).
    UnsureIsPrepared,
    /// An abort is forgotten, and no floor is left, once no store lists a branch of it.
    AbortLeavesNoFloor,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Faults {
    /// Crashes of the process, or ends of its runtime.
    pub crashes: u8,
    /// Answers or messages that are lost or late.
    pub losses: u8,
    /// Messages that are executed once more.
    pub repeats: u8,
}

#[derive(Clone, Debug)]
pub struct World {
    /// None once its process is dead, or its runtime has ended.
    pub protocol: Option<Protocol>,
    branches: [Branch; MOST],
    count: usize,
    pub log: Written,
    /// Which decision the log has.
    pub entry: Decision,
    pub poisoned: bool,
    /// Whether the log was read, and what was read is durable, since its process began.
    pub opened: bool,
    pub row: Row,
    pub kept: Kept,
    /// Recovery has found the decision unfinished, and collects who confirms it.
    pub forgetting: bool,
    pub deciding: Deciding,
    pub again: Again,
    pub early: bool,
    pub asking: bool,
    pub live: Live,
    pub waiting: bool,
    pub told: Option<Told>,
    /// What anybody was told by a decider: it never changes.
    pub decided: Option<Decision>,
    pub faults: Faults,
    pub planted: Planted,
}

impl World {
    /// Branches that have joined, and no commit yet.
    ///
    /// # Panics
    ///
    /// Above [`MOST`] branches.
    pub fn new(specs: &[Spec], ask_single: bool, faults: Faults, planted: Planted) -> Self {
        let branch = |capability| Branch {
            capability,
            store: Store::Active,
            wrote: true,
            out: None,
            late: 0,
            recovering: Recovering::No,
            listed: false,
            carries: false,
            confirmed: false,
            unsure: false,
        };
        let mut branches = [branch(Capability::TwoPhase); MOST];
        for (place, spec) in branches[..specs.len()].iter_mut().zip(specs) {
            *place = branch(spec.capability);
        }
        Self {
            protocol: Some(Protocol::new(specs.iter().copied(), ask_single)),
            early: false,
            entry: Decision::Commit,
            again: Again::No,
            branches,
            count: specs.len(),
            log: Written::No,
            poisoned: false,
            opened: true,
            row: Row::None,
            kept: Kept::Unfinished,
            forgetting: false,
            deciding: Deciding::Nobody,
            asking: false,
            live: Live::No,
            waiting: false,
            told: None,
            decided: None,
            faults,
            planted,
        }
    }

    /// The same, acknowledged early where that is possible.
    #[must_use]
    pub fn acknowledging_early(mut self) -> Self {
        self.protocol = self.protocol.map(|protocol| protocol.acknowledging_early(MOST));
        self
    }

    pub fn branches(&self) -> &[Branch] {
        &self.branches[..self.count]
    }

    fn branches_mut(&mut self) -> &mut [Branch] {
        &mut self.branches[..self.count]
    }

    /// The branch that the others' ids name as their decider.
    fn has_carrier(&self) -> bool {
        self.branches().iter().any(|branch| branch.carries)
    }

    /// The decision's list, in bits.
    fn participants(&self) -> u8 {
        self.branches().iter().enumerate().fold(0, |bits, (i, branch)| bits | u8::from(branch.listed) << i)
    }

    /// Whether the decision to commit is on the disk.
    fn is_decided(&self) -> bool {
        match self.has_carrier() {
            true => self.row == Row::Commit(Written::Durable),
            false => self.log == Written::Durable && self.entry == Decision::Commit,
        }
    }

    /// Hands a decision to the log.
    fn hand_in(&mut self, who: Deciding, decision: Decision) -> Result<(), Violation> {
        if self.deciding != Deciding::Nobody || self.log == Written::Durable && self.entry != decision {
            return Err(Violation::DecisionChanged);
        }
        (self.deciding, self.log, self.entry) = (who, Written::Cached, decision);
        Ok(())
    }

    /// Feeds an event to the protocol and performs what it wants.
    ///
    /// # Errors
    ///
    /// What was violated by that.
    pub fn event(mut self, event: Event) -> Result<World, Violation> {
        let mut protocol = self.protocol.take().expect("only a live process has events");
        let mut actions = Vec::new();
        protocol.handle(event, &mut actions).map_err(|error| Violation::Misused(error.to_string()))?;
        for action in actions {
            self.perform(&protocol, action)?;
        }
        if protocol.is_held() {
            // Its driver ends, and leaves it so.
            self.live = Live::Held;
        }
        self.protocol = Some(protocol);
        if let Event::Decided(unanimous_core::protocol::DecisionAnswer::Forced) = event {
            self.decide(self.entry)?;
        }
        Ok(self)
    }

    /// Somebody has learned the decision.
    fn decide(&mut self, decision: Decision) -> Result<(), Violation> {
        match self.decided.replace(decision) {
            Some(other) if other != decision => Err(Violation::DecisionChanged),
            _ => Ok(()),
        }
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
                self.live = Live::Driven;
                for i in protocol.participants() {
                    self.branches[i].listed = true;
                }
                if let Some(Path::Carrier(i)) = protocol.path() {
                    self.branches[i].carries = true;
                }
                self.early = protocol.path() == Some(Path::Early);
            }
            Action::LeaveLive => {
                self.live = if protocol.is_aborting() { Live::Aborted } else { Live::No };
            }
            Action::Flush(i) => self.send(i, Call::Flush)?,
            Action::Prepare(i) => {
                if self.live != Live::Driven {
                    return Err(Violation::PrepareNotLive);
                }
                if !self.branches[i].listed {
                    return Err(Violation::ListChanged);
                }
                self.send(i, Call::Prepare)?;
            }
            Action::CommitOnePhase(i) => self.send(i, Call::OnePhase)?,
            Action::CommitCarrying(i) => {
                self.fixed(protocol)?;
                self.send(i, Call::Carry)?;
            }
            Action::AskCarrier(_) => self.asking = true,
            Action::ForceDecision => {
                self.fixed(protocol)?;
                self.hand_in(Deciding::Driver, Decision::Commit)?;
            }
            Action::ForceAbort => {
                self.fixed(protocol)?;
                self.hand_in(Deciding::Driver, Decision::Abort)?;
            }
            Action::Commit(i) => {
                if !self.is_decided() {
                    return Err(Violation::CommitBeforeDecision);
                }
                self.send(i, Call::Commit)?;
            }
            Action::Rollback(i) => {
                if self.is_decided() {
                    return Err(Violation::RollbackAfterDecision);
                }
                self.send(i, Call::Rollback)?;
            }
            Action::StartWait => self.waiting = true,
            Action::HandOver(i) => {
                if self.branches[i].capability != Capability::TwoPhase {
                    return Err(Violation::NobodysBranch);
                }
            }
            Action::Forget => self.kept = Kept::Finished,
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

    /// The list of a decision is what it was when the first id was made (rule 2).
    fn fixed(&self, protocol: &Protocol) -> Result<(), Violation> {
        let now = protocol.participants().fold(0, |bits, i| bits | 1_u8 << i);
        if now == self.participants() { Ok(()) } else { Err(Violation::ListChanged) }
    }

    /// Branches that are atomic now: while the process lives all of them; volatile and one-phase ones are opted in to be torn by a
    /// crash (rule 10).
    fn promised(&self) -> impl Iterator<Item = &Branch> {
        let lives = self.protocol.is_some();
        let survives = |branch: &Branch| matches!(branch.capability, Capability::TwoPhase | Capability::Carrier);
        self.branches().iter().filter(move |branch| branch.wrote && (lives || survives(branch)))
    }

    fn with(&self, change: impl FnOnce(&mut World)) -> World {
        let mut world = self.clone();
        change(&mut world);
        world
    }
}

impl Model for World {
    fn encode(&self, code: &mut Code) {
        let Self {
            protocol,
            branches,
            count,
            log,
            entry,
            again,
            early,
            poisoned,
            opened,
            row,
            kept,
            forgetting,
            deciding,
            asking,
            live,
            waiting,
            told,
            decided,
            faults,
            planted: _,
        } = self;
        code.put((log, poisoned, opened, row, kept, forgetting, deciding, asking));
        code.put((entry, again, early));
        code.put((live, waiting, told, decided, faults, protocol.is_some()));
        if let Some(protocol) = protocol {
            protocol.hash_rest(code);
        }
        code.put_alike(*count, |i, code| {
            code.put(branches[i]);
            if let Some(protocol) = protocol {
                protocol.hash_branch(i, code);
            }
        });
    }

    fn next(&self, out: &mut Vec<Step<World>>) {
        self.each_step(&mut |what, world, event| {
            let next = match event {
                Some(event) => world.event(event),
                None => Ok(world),
            };
            out.push((what, next));
        });
        self.recovery_steps(out);
    }

    fn check(&self) -> Result<(), Violation> {
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

    fn settle(&self) -> Result<(), Violation> {
        self.settled()
    }
}

/// A conflict is to the protocol what a refusal is; both are tried.
const NO: [FailureKind; 2] = [FailureKind::Refused, FailureKind::Conflict];
