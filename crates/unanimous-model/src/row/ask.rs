//! Questions, what follows from their answers, and rows that are let go.

use std::sync::OnceLock;

use unanimous_core::recovery::{Ask, Verdict, verdict, whom_to_ask};
use unanimous_core::{
    BranchId, DeciderId, Decision, DecisionRecord, Incarnation, Known, LogId, Note, Owner, Participant, StoreId,
};

use super::{Asker, Carrier, DRIVER, Kind, Live, MOST, Planted, Row, RowWorld, Store, Written};
use crate::Violation;
use crate::walk::Step;
use crate::world::Call;

/// The branches' ids, and what a decider says of their transaction.
struct Ids {
    owner: Owner,
    branches: Vec<BranchId>,
    commit: Known,
}

fn ids() -> &'static Ids {
    static IDS: OnceLock<Ids> = OnceLock::new();
    IDS.get_or_init(|| {
        let owner = Owner { log: LogId(7), incarnation: Incarnation::new(1, 9) };
        let transaction = owner.transaction(1);
        let decider = DeciderId::Store(StoreId::from_random(1));
        let numbers = 0..MOST as u16;
        let participants = numbers
            .clone()
            .map(|number| Participant { number, resource: number.to_string(), store: Some(StoreId::from_random(2)) })
            .collect();
        Ids {
            owner,
            branches: numbers.map(|number| BranchId { transaction, decider: decider.clone(), number }).collect(),
            commit: Known::Commit(DecisionRecord { transaction, participants, decided_at: 1, note: Note::default() }),
        }
    })
}

impl RowWorld {
    fn at(&self, j: usize, asker: Asker) -> Self {
        self.with(|world| world.askers[j] = asker)
    }

    pub(super) fn asker_steps(&self, out: &mut Vec<Step<Self>>) {
        for j in 0..self.askers.len() {
            self.steps_of(j, out);
        }
    }

    fn steps_of(&self, j: usize, out: &mut Vec<Step<Self>>) {
        let mut go = |what: &'static str, asker: Asker| out.push(((what, j), Ok(self.at(j, asker))));
        match self.askers[j] {
            Asker::No if j == DRIVER => {}
            Asker::No => {
                for (i, other) in self.others().iter().enumerate() {
                    if other.store == Store::Prepared {
                        go("lists a branch", Asker::Listed(i));
                    }
                }
            }
            Asker::Listed(branch) => match self.live {
                Live::Driven | Live::Held => go("finds it live", Asker::No),
                Live::Aborted => go("knows it aborted", Asker::Told { branch, decision: Decision::Abort }),
                Live::No => match whom_to_ask(&ids().branches[branch], ids().owner) {
                    Ask::Store(_) if self.planted != Planted::AskTheLog => go("will ask", Asker::Asks(branch)),
                    _ => go("finds nothing in the log", Asker::Told { branch, decision: Decision::Abort }),
                },
            },
            Asker::Asks(_) if self.kind == Kind::File => self.ask_at_once(j, out),
            Asker::Asks(branch) => {
                let (known, beyond) = match self.planted {
                    // What it remembers of its look is whether there was a row.
                    Planted::OutcomeFromALook => (self.row == Row::None, !self.run || self.floor),
                    _ => (self.run, !self.run || self.floor),
                };
                go("looks", Asker::Looked { branch, known, beyond });
            }
            Asker::Looked { branch, known, beyond } => {
                let waits = self.carrier == Carrier::Inserted && known;
                if !waits && !self.askers.iter().any(|asker| asker.holds_key()) {
                    go("inserts", self.inserted(branch, known, beyond));
                }
            }
            Asker::Holds(branch) => {
                go("reads its fence", Asker::Read { branch, decision: Some(Decision::Abort), holds: true });
            }
            Asker::Met(branch) => {
                let decision = match self.row {
                    Row::Is(decision, _) => Some(decision),
                    Row::None => None,
                };
                go("reads", Asker::Read { branch, decision, holds: false });
            }
            Asker::Read { branch, decision, holds } => self.commit_question(j, branch, decision, holds, out),
            Asker::Told { .. } if j == DRIVER => {}
            Asker::Told { branch, decision } => self.act(j, branch, decision, out),
        }
    }

    fn inserted(&self, branch: usize, known: bool, beyond: bool) -> Asker {
        let says = |decision| Asker::Read { branch, decision: Some(decision), holds: false };
        match (self.planted, self.row) {
            (Planted::OutcomeFromALook, Row::Is(..)) if known => says(Decision::Abort),
            (Planted::KeyIsCommit, Row::Is(..)) => says(Decision::Commit),
            (_, Row::Is(..)) => Asker::Met(branch),
            (Planted::NoFence, Row::None) if known => says(Decision::Abort),
            (_, Row::None) if known && !beyond => Asker::Holds(branch),
            (_, Row::None) => Asker::Met(branch),
        }
    }

    /// The question's own commit: what it answers is durable.
    fn commit_question(
        &self,
        j: usize,
        branch: usize,
        decision: Option<Decision>,
        holds: bool,
        out: &mut Vec<Step<Self>>,
    ) {
        let Some(decision) = decision else {
            out.push((("is told to hold", j), Ok(self.at(j, Asker::No))));
            return;
        };
        let told = Asker::Told { branch, decision };
        if self.planted == Planted::ActBeforeCommit {
            return self.tell(j, told, decision, self.clone(), out);
        }
        if self.planted == Planted::BelieveUnforced && !holds {
            return self.tell(j, told, decision, self.clone(), out);
        }
        let mut world = self.clone();
        if holds || matches!(self.row, Row::Is(..)) {
            let kept = match self.row {
                Row::Is(found, _) => found,
                Row::None => decision,
            };
            world.row = Row::Is(kept, Written::Durable);
            if holds {
                // Committed, and the answer does not come, or says that it is not confirmed.
                let cached = self.at(j, Asker::No).with(|world| world.row = Row::Is(decision, Written::Cached));
                out.push((("its answer lost", j), Ok(cached)));
            }
        }
        self.tell(j, told, decision, world, out);
    }

    fn tell(&self, j: usize, told: Asker, decision: Decision, mut world: Self, out: &mut Vec<Step<Self>>) {
        world.askers[j] = told;
        if world.decided.replace(decision).is_some_and(|other| other != decision) {
            // It goes on, so that what comes of it is seen as well.
            out.push((("is told", j), Err(Violation::DecisionChanged)));
        }
        out.push((("is told", j), Ok(world)));
    }

    /// A question to a file: one transaction, behind whoever writes.
    fn ask_at_once(&self, j: usize, out: &mut Vec<Step<Self>>) {
        if self.carrier == Carrier::Inserted {
            return;
        }
        let Some(branch) = self.askers[j].branch() else { return };
        let mut world = self.clone();
        match world.ask_now() {
            Some(decision) => self.tell(j, Asker::Told { branch, decision }, decision, world, out),
            None => out.push((("is told to hold", j), Ok(self.at(j, Asker::No)))),
        }
    }

    /// The whole question; none where nothing may be presumed.
    fn ask_now(&mut self) -> Option<Decision> {
        match self.row {
            Row::Is(decision, written) => {
                let written = if self.planted == Planted::BelieveUnforced { written } else { Written::Durable };
                self.row = Row::Is(decision, written);
                Some(decision)
            }
            Row::None if self.planted == Planted::NoFence => Some(Decision::Abort),
            Row::None if self.run && !self.floor => {
                self.row = Row::Is(Decision::Abort, Written::Durable);
                Some(Decision::Abort)
            }
            Row::None => None,
        }
    }

    fn act(&self, j: usize, branch: usize, decision: Decision, out: &mut Vec<Step<Self>>) {
        let known = if decision == Decision::Commit { &ids().commit } else { &Known::Abort };
        let call = match verdict(&ids().branches[branch], known) {
            Verdict::Commit => Call::Commit,
            Verdict::Rollback => Call::Rollback,
            Verdict::Hold(_) => unreachable!("the decision lists every branch"),
        };
        let sent = self.at(j, Asker::No);
        let acted = sent.with(|world| world.end(branch, call));
        out.push((("recovers a branch", j), Ok(acted)));
        if self.losses > 0 {
            let late = sent.with(|world| {
                world.losses -= 1;
                world.others[branch].late |= call.bit();
            });
            out.push((("recovers it late", j), Ok(late)));
        }
    }

    /// By its id: only what is prepared.
    fn end(&mut self, branch: usize, call: Call) {
        let store = &mut self.others[branch].store;
        if *store == Store::Prepared {
            *store = if call == Call::Commit { Store::Committed } else { Store::Gone };
        }
    }

    fn is_unfinished(&self) -> bool {
        self.live == Live::No && matches!(self.row, Row::Is(Decision::Commit, _)) && !self.finished
    }

    pub(super) fn row_steps(&self, out: &mut Vec<Step<Self>>) {
        let prepared = self.others().iter().any(|other| other.store == Store::Prepared);
        if self.live == Live::Aborted && !prepared {
            out.push((("no branch is left", 0), Ok(self.with(|world| world.live = Live::No))));
        }
        if self.is_unfinished() && (!prepared || self.planted == Planted::ForgetUnconfirmed) {
            // What is listed as unfinished is durable then.
            let forgotten = self.with(|world| {
                world.finished = true;
                world.row = Row::Is(Decision::Commit, Written::Durable);
                world.decided = Some(Decision::Commit);
            });
            out.push((("forgotten", 0), Ok(forgotten)));
        }
        let unasked = !self.askers.iter().any(|asker| asker.holds_rows()) || self.planted == Planted::NoRowsLock;
        if !unasked {
            return;
        }
        match self.row {
            Row::Is(Decision::Commit, Written::Durable) if self.finished => {
                let floor = self.planted != Planted::NoFloor;
                out.push((
                    ("commit row goes", 0),
                    Ok(self.with(|world| (world.row, world.floor) = (Row::None, floor))),
                ));
            }
            Row::Is(Decision::Abort, _) if self.dead && self.kind == Kind::File => {
                out.push((("fence goes", 0), Ok(self.with(|world| (world.row, world.floor) = (Row::None, true)))));
            }
            Row::Is(Decision::Abort, _) if self.dead && (!self.run || self.planted == Planted::FenceLetGoEarly) => {
                out.push((("fence goes", 0), Ok(self.with(|world| world.row = Row::None))));
            }
            _ => {}
        }
        // Also where a commit row is there: it may have been committed since the look for such rows.
        if self.kind == Kind::Server && self.dead && self.run && self.carrier != Carrier::Inserted {
            out.push((("run goes", 0), Ok(self.with(|world| (world.run, world.floor) = (false, false)))));
        }
    }

    /// When nothing is under way but recovery, and nothing goes wrong any more: three passes leave nothing in doubt, and the second and
    /// third of them change nothing. What is on its way counts as lost.
    pub(super) fn settled(&self) -> Result<(), Violation> {
        let over = self.protocol.as_ref().is_none_or(|protocol| protocol.is_over());
        let asked = self.askers.iter().any(|asker| *asker != Asker::No);
        if !over || asked || self.others().iter().any(|other| other.out.is_some()) {
            return Ok(());
        }
        let mut world = self.clone();
        if matches!(world.carrier, Carrier::Open | Carrier::Inserted) {
            world.carrier = Carrier::Gone;
        }
        world.pass();
        crate::walk::Model::check(&world)?;
        let once = (world.others, world.row, world.finished, world.live);
        for _ in 0..2 {
            world.pass();
        }
        if once != (world.others, world.row, world.finished, world.live) {
            return Err(Violation::NotTheSameAgain);
        }
        // What landed when its run had been let go is held and reported (rule 11); nothing that committed is among it.
        let held = self.dead && self.decided != Some(Decision::Commit) && (!self.run || self.floor);
        let prepared = world.others().iter().any(|other| other.store == Store::Prepared);
        if (prepared && !held) || world.is_unfinished() {
            return Err(Violation::LeftInDoubt);
        }
        Ok(())
    }

    fn pass(&mut self) {
        let unfinished = self.is_unfinished();
        for i in 0..self.count {
            if self.others[i].store != Store::Prepared {
                continue;
            }
            let decision = match self.live {
                Live::Aborted => Some(Decision::Abort),
                Live::No => self.ask_now(),
                Live::Driven | Live::Held => None,
            };
            match decision {
                Some(Decision::Commit) => self.end(i, Call::Commit),
                Some(Decision::Abort) => self.end(i, Call::Rollback),
                None => {}
            }
        }
        let prepared = self.others().iter().any(|other| other.store == Store::Prepared);
        if self.live == Live::Aborted && !prepared {
            self.live = Live::No;
        }
        if unfinished && !prepared {
            self.finished = true;
        }
    }
}
