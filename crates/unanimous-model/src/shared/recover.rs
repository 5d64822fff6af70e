//! Taking over, and recovery by whoever has the node.

use std::sync::OnceLock;

use unanimous_core::recovery::{Ask, Verdict, verdict, whom_to_ask};
use unanimous_core::{
    BranchId, DeciderId, Decision, DecisionRecord, Incarnation, Known, LogId, Note, Owner, Participant, StoreId,
};

use super::{Asker, Live, MOST, Planted, Row, SharedWorld, Store, Taker, Try, Written};
use crate::Violation;
use crate::walk::Step;
use crate::world::Call;

/// The branches' ids, and what the log says of their transaction.
struct Ids {
    branches: Vec<BranchId>,
    commit: Known,
}

/// The node's log, in the run of a process.
fn run(process: usize) -> Owner {
    Owner { log: LogId(7), incarnation: Incarnation::new(process as u32 + 1, 9) }
}

fn ids() -> &'static Ids {
    static IDS: OnceLock<Ids> = OnceLock::new();
    IDS.get_or_init(|| {
        let transaction = run(0).transaction(1);
        let numbers = 0..MOST as u16;
        let participants = numbers
            .clone()
            .map(|number| Participant { number, resource: number.to_string(), store: Some(StoreId::from_random(2)) })
            .collect();
        Ids {
            branches: numbers.map(|number| BranchId { transaction, decider: DeciderId::Log, number }).collect(),
            commit: Known::Commit(DecisionRecord { transaction, participants, decided_at: 1, note: Note::default() }),
        }
    })
}

impl SharedWorld {
    pub(super) fn taker_steps(&self, out: &mut Vec<Step<Self>>) {
        for p in 1..self.processes {
            let at = |taker| self.with(|world| world.takers[p] = taker);
            match self.takers[p] {
                Taker::No if self.planted == Planted::NoTakeOver => {
                    out.push((("takes nothing over", p), Ok(at(Taker::Owns))));
                }
                // A run is begun once: a process that has lost its own would begin another.
                Taker::No if self.node != p => {
                    out.push((("reads whose the node is", p), Ok(at(Taker::Read(self.node)))))
                }
                Taker::No | Taker::Owns => {}
                Taker::Read(seen) if seen != self.node => {
                    out.push((("finds it taken", p), Ok(at(Taker::No))));
                }
                Taker::Read(_) if self.node_is_held() || self.node_is_locked() => {}
                Taker::Read(_) => out.push((("locks the node", p), Ok(at(Taker::Locked)))),
                Taker::Locked => {
                    let took = at(Taker::Owns).with(|world| world.node = p);
                    out.push((("has taken over", p), Ok(took)));
                    if self.losses > 0 {
                        // It is its own, and it does not know.
                        let unaware = at(Taker::No).lost().with(|world| world.node = p);
                        out.push((("has taken over, answer lost", p), Ok(unaware)));
                    }
                }
            }
        }
        // The owner's run has ended before the horizon: it goes, and then its fence. No question is under way then.
        let asked = self.askers.iter().any(|asker| matches!(asker, Asker::Guarded { .. } | Asker::Inserted { .. }));
        if self.node != 0 && self.run && !asked && !matches!(self.row, Row::Is(Decision::Commit, _)) {
            out.push((("run goes", 0), Ok(self.with(|world| world.run = false))));
        }
        if !self.run && !asked && matches!(self.row, Row::Is(Decision::Abort, _)) {
            out.push((("fence goes", 0), Ok(self.with(|world| world.row = Row::None))));
        }
        if self.live == Live::Aborted && !self.branches().iter().any(|branch| branch.store == Store::Prepared) {
            out.push((("no branch is left", 0), Ok(self.with(|world| world.live = Live::No))));
        }
    }

    pub(super) fn asker_steps(&self, out: &mut Vec<Step<Self>>) {
        for p in 0..self.askers.len() {
            self.steps_of(p, out);
        }
    }

    fn at(&self, p: usize, asker: Asker) -> Self {
        self.with(|world| world.askers[p] = asker)
    }

    fn steps_of(&self, p: usize, out: &mut Vec<Step<Self>>) {
        let mut go = |what: &'static str, asker: Asker| out.push(((what, p), Ok(self.at(p, asker))));
        match self.askers[p] {
            Asker::No => {
                if self.takers[p] != Taker::Owns || (p == 0 && self.ended) {
                    return;
                }
                for (i, branch) in self.branches().iter().enumerate() {
                    if branch.store == Store::Prepared {
                        go("lists a branch", Asker::Listed(i));
                    }
                }
            }
            Asker::Listed(branch) => {
                let Ask::Log = whom_to_ask(&ids().branches[branch], run(p)) else {
                    unreachable!("the log is the node's, whoever has it")
                };
                match if p == 0 { self.live } else { Live::No } {
                    Live::Driven | Live::Held => go("finds it live", Asker::No),
                    Live::Aborted => go("knows it aborted", Asker::Told { branch, decision: Decision::Abort }),
                    Live::No => go("will ask", Asker::Asks(branch)),
                }
            }
            // What its own writer has under way is waited for.
            Asker::Asks(_) if p == 0 && self.deciding => {}
            Asker::Asks(branch) if self.planted == Planted::NoTakeOver => match self.row {
                Row::Is(decision, _) => go("finds a row", Asker::Told { branch, decision }),
                Row::None => go("finds no row", Asker::Told { branch, decision: Decision::Abort }),
            },
            Asker::Asks(branch) => {
                if !self.node_is_locked() {
                    go("asks for the node", Asker::Guarded { branch, guarded: self.node == p });
                }
            }
            Asker::Guarded { branch, guarded } => {
                let may = guarded && self.run;
                if !(may && self.key_is_held()) {
                    go("inserts", Asker::Inserted { branch, own: may && self.row == Row::None, guarded });
                }
            }
            Asker::Inserted { branch, own, .. } => self.commit_question(p, branch, own, out),
            Asker::Told { branch, decision } => self.act(p, branch, decision, out),
        }
    }

    /// It reads, and commits: what it answers is durable.
    fn commit_question(&self, p: usize, branch: usize, own: bool, out: &mut Vec<Step<Self>>) {
        let decision = match self.row {
            Row::Is(_, _) if self.planted == Planted::KeyIsCommit => Decision::Commit,
            Row::Is(decision, _) => decision,
            Row::None if own => Decision::Abort,
            // Another has the node, or the run is not known: nothing is presumed.
            Row::None => {
                let mut world = self.at(p, Asker::No);
                if p == 0 && self.node != 0 {
                    world.ended = true;
                }
                out.push((("is told to hold", p), Ok(world)));
                return;
            }
        };
        let mut world = self.at(p, Asker::Told { branch, decision });
        world.row = match self.row {
            row @ Row::Is(..) if self.planted == Planted::BelieveUnforced => row,
            Row::Is(found, _) => Row::Is(found, Written::Durable),
            Row::None if self.planted == Planted::ActBeforeCommit => Row::None,
            Row::None => Row::Is(decision, Written::Durable),
        };
        if own {
            let unheard = self.at(p, Asker::No).with(|world| world.row = Row::Is(decision, Written::Cached));
            out.push((("its answer lost", p), Ok(unheard)));
        }
        // It goes on after a change, so that what comes of it is seen as well.
        let changed = world.decide(decision);
        out.extend(changed.err().map(|changed| (("is told", p), Err(changed))));
        out.push((("is told", p), Ok(world)));
    }

    fn act(&self, p: usize, branch: usize, decision: Decision, out: &mut Vec<Step<Self>>) {
        let known = if decision == Decision::Commit { &ids().commit } else { &Known::Abort };
        let call = match verdict(&ids().branches[branch], known) {
            Verdict::Commit => Call::Commit,
            Verdict::Rollback => Call::Rollback,
            Verdict::Hold(_) => unreachable!("the decision lists every branch"),
        };
        let sent = self.at(p, Asker::No);
        out.push((("recovers a branch", p), Ok(sent.with(|world| world.end(branch, call)))));
        if self.losses > 0 {
            let late = sent.lost().with(|world| world.others[branch].late |= call.bit());
            out.push((("recovers it late", p), Ok(late)));
        }
    }

    /// By its id: only what is prepared.
    fn end(&mut self, branch: usize, call: Call) {
        if self.others[branch].store == Store::Prepared {
            self.execute(branch, call);
        }
    }

    /// When nothing is under way but recovery, and nothing goes wrong any more: three passes of who has the node, or takes it over where
    /// its owner has ended, leave nothing in doubt, and the second and third of them change nothing.
    pub(super) fn settled(&self) -> Result<(), Violation> {
        let over = self.protocol.as_ref().is_none_or(|protocol| protocol.is_over());
        let busy = self.deciding
            || self.tries.iter().any(|a_try| *a_try != Try::No)
            || self.askers.iter().any(|asker| *asker != Asker::No)
            || self.takers.iter().any(|taker| matches!(taker, Taker::Read(_) | Taker::Locked));
        if !over || busy || self.branches().iter().any(|branch| branch.out.is_some()) {
            return Ok(());
        }
        let mut world = self.clone();
        // Also one that has the node and does not know begins another run.
        let taken_over = world.ended || world.node != 0 || world.live == Live::Held;
        world.pass(taken_over);
        crate::walk::Model::check(&world)?;
        let once = (world.others, world.row, world.live);
        for _ in 0..2 {
            world.pass(taken_over);
        }
        if once != (world.others, world.row, world.live) {
            return Err(Violation::NotTheSameAgain);
        }
        let prepared = world.branches().iter().any(|branch| branch.store == Store::Prepared);
        // What landed when its run had been let go is held and reported (rule 11); nothing that committed is among it.
        let held = !self.run && self.decided != Some(Decision::Commit);
        if prepared && !held {
            return Err(Violation::LeftInDoubt);
        }
        Ok(())
    }

    fn pass(&mut self, taken_over: bool) {
        for i in 0..self.count {
            if self.others[i].store != Store::Prepared {
                continue;
            }
            let aborted = !taken_over && self.live == Live::Aborted;
            let decision = match self.row {
                _ if aborted => Decision::Abort,
                Row::Is(decision, _) => {
                    self.row = Row::Is(decision, Written::Durable);
                    decision
                }
                Row::None if self.run => {
                    self.row = Row::Is(Decision::Abort, Written::Durable);
                    Decision::Abort
                }
                Row::None => continue,
            };
            self.end(i, if decision == Decision::Commit { Call::Commit } else { Call::Rollback });
        }
        if self.live == Live::Aborted {
            self.live = Live::No;
        }
    }
}
