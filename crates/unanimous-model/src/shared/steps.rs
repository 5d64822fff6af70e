//! What the owner, its writer, the stores and the faults do.

use unanimous_core::protocol::{DecisionAnswer, Event};
use unanimous_core::{Decision, FailureKind, Outcome};

use super::{Asker, Live, Planted, Row, SharedWorld, Store, TRIES, Taker, Told, Try, Written};
use crate::walk::Step;
use crate::world::Call;

const LOST: Result<(), FailureKind> = Err(FailureKind::Lost);
const NO: Result<(), FailureKind> = Err(FailureKind::Refused);

impl SharedWorld {
    pub(super) fn owner_steps(&self, out: &mut Vec<Step<Self>>) {
        self.writer_steps(out);
        let Some(_) = self.protocol.as_ref().filter(|protocol| !protocol.is_over()) else { return };
        if self.told.is_none() {
            out.push((("time limit", 0), self.clone().event(Event::GiveUp)));
        }
        if self.waiting {
            out.push((("waited", 0), self.with(|world| world.waiting = false).event(Event::WaitElapsed)));
        }
        for i in 0..self.count {
            self.answer_steps(i, out);
        }
    }

    /// The decision has ended, as far as the writer knows; nobody may be there to hear it.
    fn answered(mut self, answer: DecisionAnswer) -> Result<Self, crate::Violation> {
        self.deciding = false;
        self.waits_for = None;
        if answer == DecisionAnswer::Forced {
            self.decide(Decision::Commit)?;
        }
        match &self.protocol {
            Some(protocol) if protocol.stage_name() == "Deciding" => self.event(Event::Decided(answer)),
            _ => Ok(self),
        }
    }

    /// What the owner's writer makes of its try.
    fn writer_steps(&self, out: &mut Vec<Step<Self>>) {
        let Some(at) = self.waits_for else { return };
        match self.tries[at] {
            // The connection was never there, or the statement failed.
            Try::Sent if at == 0 => {
                let unsent = self.with(|world| world.tries[at] = Try::No);
                out.push((("decision refused", 0), unsent.answered(DecisionAnswer::Refused)));
            }
            Try::Done(found) => {
                let heard = self.with(|world| world.tries[at] = Try::No);
                let durable = matches!(self.row, Row::Is(_, Written::Durable));
                match found {
                    Some(Decision::Commit) if durable || (at > 0 && self.planted == Planted::AgainWithoutWrite) => {
                        out.push((("decided", 0), heard.clone().answered(DecisionAnswer::Forced)));
                    }
                    // A warning: it is there, and not confirmed.
                    Some(Decision::Commit) => {}
                    Some(Decision::Abort) => out.push((("fenced", 0), heard.clone().answered(DecisionAnswer::Refused))),
                    None => {
                        let ended = heard.with(|world| world.ended = true);
                        out.push((("taken over", 0), ended.answered(DecisionAnswer::Refused)));
                    }
                }
            }
            _ => {}
        }
        if self.losses > 0 {
            if self.planted == Planted::LostIsRefused {
                out.push((("try lost", at), self.lost().answered(DecisionAnswer::Refused)));
            } else if at + 1 < TRIES {
                let again = self.lost().with(|world| {
                    world.tries[at + 1] = Try::Sent;
                    world.waits_for = Some(at + 1);
                });
                out.push((("try lost, and tried again", at), Ok(again)));
            }
        }
    }

    /// What the database does with a try.
    pub(super) fn try_steps(&self, out: &mut Vec<Step<Self>>) {
        for at in 0..TRIES {
            let mut go = |what: &'static str, next: Try, change: &dyn Fn(&mut Self)| {
                let world = self.with(|world| {
                    world.tries[at] = next;
                    change(world);
                });
                out.push(((what, at), Ok(world)));
            };
            match self.tries[at] {
                Try::Sent if !self.node_is_locked() => {
                    let guarded = self.node == 0 || self.planted == Planted::NoGuard;
                    go("asks for the node", Try::Guarded(guarded), &|_| {});
                }
                Try::Guarded(guarded) if !(guarded && self.key_is_held()) => {
                    let own = guarded && self.row == Row::None;
                    go("inserts the decision", Try::Inserted { own, guarded }, &|_| {});
                }
                Try::Inserted { own: true, .. } => {
                    let done = Try::Done(Some(Decision::Commit));
                    go("commits the decision", done, &|world| {
                        world.row = Row::Is(Decision::Commit, Written::Cached);
                    });
                }
                Try::Inserted { own: false, .. } => {
                    let found = match self.row {
                        Row::Is(_, _) if self.planted == Planted::ConflictIsOurs => Some(Decision::Commit),
                        Row::Is(decision, _) => Some(decision),
                        Row::None => None,
                    };
                    let writes = at > 0 && self.planted != Planted::AgainWithoutWrite;
                    go("reads what is there", Try::Done(found), &|world| {
                        if let (true, Row::Is(decision, _)) = (writes, world.row) {
                            world.row = Row::Is(decision, Written::Durable);
                        }
                    });
                }
                // Nobody hears of it any more.
                Try::Done(_) if self.waits_for != Some(at) => go("ends unheard", Try::No, &|_| {}),
                _ => {}
            }
            if self.tries[at] != Try::No && self.waits_for != Some(at) && !matches!(self.tries[at], Try::Done(_)) {
                out.push((("its session ends", at), Ok(self.with(|world| world.tries[at] = Try::No))));
            }
        }
        if let Row::Is(decision, Written::Cached) = self.row {
            out.push((("row synced", 0), Ok(self.with(|world| world.row = Row::Is(decision, Written::Durable)))));
        }
    }

    fn answer_steps(&self, i: usize, out: &mut Vec<Step<Self>>) {
        let Some(call) = self.others[i].out else { return };
        let event = |answer| match call {
            Call::Prepare => Event::Voted(i, answer),
            Call::Commit => Event::Committed(i, answer),
            _ => Event::RolledBack(i, answer),
        };
        let returned = self.with(|world| world.others[i].out = None);
        let done = returned.with(|world| world.execute(i, call));
        let answer = if call == Call::Prepare && done.others[i].store != Store::Prepared { NO } else { Ok(()) };
        out.push((("done", i), done.clone().event(event(answer))));
        if call == Call::Prepare {
            out.push((("no", i), returned.with(|world| world.others[i].store = Store::Gone).event(event(NO))));
        } else {
            out.push((("not done now", i), returned.clone().event(event(NO))));
        }
        if self.losses > 0 {
            out.push((("answer lost", i), done.lost().event(event(LOST))));
            let again = done.lost().with(|world| world.others[i].late |= call.bit());
            out.push((("done, to be repeated", i), again.event(event(answer))));
            let late = returned.lost().with(|world| world.others[i].late |= call.bit());
            out.push((("late", i), late.event(event(LOST))));
        }
    }

    pub(super) fn execute(&mut self, i: usize, call: Call) {
        let store = &mut self.others[i].store;
        *store = match (call, *store) {
            (Call::Prepare, Store::Active) => Store::Prepared,
            (Call::Commit, Store::Prepared) => Store::Committed,
            (Call::Rollback, Store::Active | Store::Prepared) => Store::Gone,
            (_, store) => store,
        };
    }

    pub(super) fn store_steps(&self, out: &mut Vec<Step<Self>>) {
        for (i, branch) in self.branches().iter().enumerate() {
            for call in [Call::Prepare, Call::Commit, Call::Rollback] {
                if branch.late & call.bit() != 0 {
                    let late = self.with(|world| {
                        world.others[i].late &= !call.bit();
                        world.execute(i, call);
                    });
                    if self.losses > 0 {
                        let again = late.lost().with(|world| world.others[i].late |= call.bit());
                        out.push((("late one executed, to be repeated", i), Ok(again)));
                    }
                    out.push((("late one executed", i), Ok(late)));
                }
            }
            if branch.store == Store::Active && branch.out.is_none() {
                out.push((("session ends", i), Ok(self.with(|world| world.others[i].store = Store::Gone))));
            }
        }
    }

    pub(super) fn crash_steps(&self, out: &mut Vec<Step<Self>>) {
        if self.protocol.is_some() {
            // Its task ends alone: the log goes on, and recovery waits for what it is writing.
            out.push((("driver dropped", 0), Ok(self.undriven())));
        }
        if !self.ended || self.waits_for.is_some() {
            let killed = self.undriven().with(|world| {
                (world.ended, world.live) = (true, Live::No);
                (world.deciding, world.waits_for) = (false, None);
                if matches!(world.askers[0], Asker::Listed(_) | Asker::Told { .. }) {
                    world.askers[0] = Asker::No;
                }
            });
            out.push((("owner killed", 0), Ok(killed)));
        }
        for p in 0..self.askers.len() {
            if self.askers[p] != Asker::No {
                out.push((("recovery fails", p), Ok(self.with(|world| world.askers[p] = Asker::No))));
            }
        }
        if self.crashes > 0 {
            self.database_crashes(out);
        }
    }

    /// All of its sessions end; what was not synced is lost, or was on the disk.
    fn database_crashes(&self, out: &mut Vec<Step<Self>>) {
        let mut world = self.with(|world| world.crashes -= 1);
        for (at, a_try) in world.tries.iter_mut().enumerate() {
            // The writer tries again what it waits for.
            *a_try = if self.waits_for == Some(at) { Try::Sent } else { Try::No };
        }
        if self.waits_for == Some(0) {
            // What was sent is not known to be not written: only the try behind it may say so.
            (world.tries[0], world.tries[1], world.waits_for) = (Try::No, Try::Sent, Some(1));
        }
        for asker in &mut world.askers {
            if matches!(asker, Asker::Guarded { .. } | Asker::Inserted { .. }) {
                *asker = Asker::No;
            }
        }
        for taker in &mut world.takers {
            if *taker == Taker::Locked {
                *taker = Taker::No;
            }
        }
        if let Row::Is(_, Written::Cached) = self.row {
            out.push((("the database crashes, row lost", 0), Ok(world.with(|world| world.row = Row::None))));
        }
        out.push((("the database crashes", 0), Ok(world)));
    }

    /// Nobody drives it any more: what the driver can still say then must hold.
    fn undriven(&self) -> Self {
        let mut world = self.clone();
        let Some(protocol) = world.protocol.take() else { return world };
        if world.told.is_none() {
            world.told = match protocol.outcome_if_dropped() {
                Outcome::Committed => Some(Told::Committed),
                Outcome::Aborted => Some(Told::Aborted),
                Outcome::Unknown => None,
            };
        }
        if world.live == Live::Driven {
            world.live = if protocol.is_aborting() { Live::Aborted } else { Live::No };
        }
        world.waiting = false;
        for branch in &mut world.others[..self.count] {
            if let Some(call) = branch.out.take() {
                branch.late |= call.bit();
            }
        }
        world
    }
}
