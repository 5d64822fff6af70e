//! What the owner, the stores and the faults do.

use unanimous_core::protocol::{Event, Protocol};
use unanimous_core::{Decision, FailureKind, Outcome};

use super::{Asker, Carrier, DRIVER, Kind, Live, Planted, Row, RowWorld, Store, Told, Written};
use crate::Violation;
use crate::walk::Step;
use crate::world::Call;

const LOST: Result<(), FailureKind> = Err(FailureKind::Lost);
const NO: Result<(), FailureKind> = Err(FailureKind::Refused);

impl RowWorld {
    fn lost(&self) -> Self {
        self.with(|world| world.losses -= 1)
    }

    pub(super) fn owner_steps(&self, out: &mut Vec<Step<Self>>) {
        let Some(protocol) = self.protocol.as_ref().filter(|protocol| !protocol.is_over()) else { return };
        if self.told.is_none() {
            out.push((("time limit", 0), self.clone().event(Event::GiveUp)));
        }
        if self.waiting {
            out.push((("waited", 0), self.with(|world| world.waiting = false).event(Event::WaitElapsed)));
        }
        let carrier = self.count;
        if self.carrying {
            let answered = self.with(|world| world.carrying = false);
            match self.carrier {
                Carrier::Committed if self.row == Row::Is(Decision::Commit, Written::Durable) => {
                    out.push((("carrier answers", 0), answered.clone().event(Event::OnePhase(carrier, Ok(())))));
                }
                Carrier::Gone => {
                    out.push((("carrier refuses", 0), answered.clone().event(Event::OnePhase(carrier, NO))))
                }
                _ => {}
            }
            if self.losses > 0 {
                out.push((("carrier's answer lost", 0), answered.lost().event(Event::OnePhase(carrier, LOST))));
            }
        }
        if self.is_rolling_back_carrier() {
            let rolled_back = |world: Self| world.event(Event::RolledBack(carrier, Ok(())));
            match self.carrier {
                Carrier::Open | Carrier::Inserted => {
                    out.push((("carrier rolled back", 0), rolled_back(self.with(Self::end_carrier))));
                    if self.sent {
                        // Its connection was lost: what is on its way can still arrive.
                        out.push((("carrier can't be reached", 0), rolled_back(self.clone())));
                    }
                }
                Carrier::Gone | Carrier::Committed => {
                    out.push((("nothing to roll back", 0), rolled_back(self.clone())))
                }
            }
        }
        for i in 0..self.count {
            self.answer_steps(i, out);
        }
        self.driver_hears(protocol, out);
    }

    fn driver_hears(&self, protocol: &Protocol, out: &mut Vec<Step<Self>>) {
        if protocol.stage_name() != "Asking" {
            return;
        }
        let heard = |world: &Self, decision| {
            world.with(|world| world.askers[DRIVER] = Asker::No).event(Event::Resolved(decision))
        };
        match self.askers[DRIVER] {
            Asker::Told { decision, .. } => {
                out.push((("the driver hears", 0), heard(self, Some(decision))));
                if self.losses > 0 {
                    out.push((("the driver's answer lost", 0), heard(&self.lost(), None)));
                }
            }
            // It failed, or nothing may be presumed.
            Asker::No => out.push((("the driver's question failed", 0), heard(self, None))),
            _ => {}
        }
    }

    fn answer_steps(&self, i: usize, out: &mut Vec<Step<Self>>) {
        let other = self.others[i];
        let Some(call) = other.out else { return };
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

    fn execute(&mut self, i: usize, call: Call) {
        let store = &mut self.others[i].store;
        *store = match (call, *store) {
            (Call::Prepare, Store::Active) => Store::Prepared,
            (Call::Commit, Store::Prepared) => Store::Committed,
            (Call::Rollback, Store::Active | Store::Prepared) => Store::Gone,
            (_, store) => store,
        };
    }

    pub(super) fn store_steps(&self, out: &mut Vec<Step<Self>>) {
        for (i, other) in self.others().iter().enumerate() {
            for call in [Call::Prepare, Call::Commit, Call::Rollback] {
                if other.late & call.bit() != 0 {
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
            if other.store == Store::Active && other.out.is_none() {
                out.push((("session ends", i), Ok(self.with(|world| world.others[i].store = Store::Gone))));
            }
        }
        match self.carrier {
            Carrier::Open if self.sent => self.insert_step(out),
            Carrier::Inserted => {
                let committed = self.with(|world| {
                    world.carrier = Carrier::Committed;
                    world.row = Row::Is(Decision::Commit, Written::Cached);
                });
                out.push((("carrier commits", 0), Ok(committed)));
            }
            _ => {}
        }
        if matches!(self.carrier, Carrier::Open | Carrier::Inserted) {
            out.push((("carrier's session ends", 0), Ok(self.with(Self::end_carrier))));
        }
        if let Row::Is(decision, Written::Cached) = self.row {
            let mut world = self.clone();
            world.row = Row::Is(decision, Written::Durable);
            // Whoever looks from now on finds it.
            let changed = decision == Decision::Commit && world.decided.replace(decision) == Some(Decision::Abort);
            out.push((("row synced", 0), if changed { Err(Violation::DecisionChanged) } else { Ok(world) }));
        }
    }

    fn end_carrier(&mut self) {
        self.carrier = Carrier::Gone;
        self.sent = false;
    }

    /// The carrier's insert: it waits for a fence that is not committed.
    fn insert_step(&self, out: &mut Vec<Step<Self>>) {
        if self.askers.iter().any(|asker| asker.holds_key()) {
            return;
        }
        let known = self.run || self.kind == Kind::File || self.planted == Planted::CarrierWithoutRun;
        match self.row {
            Row::None if known => {
                let inserted = self.with(|world| (world.carrier, world.sent) = (Carrier::Inserted, false));
                out.push((("carrier inserts", 0), Ok(inserted)));
            }
            _ => out.push((("carrier meets a row, or its run is gone", 0), Ok(self.with(Self::end_carrier)))),
        }
    }

    pub(super) fn crash_steps(&self, out: &mut Vec<Step<Self>>) {
        if self.protocol.is_some() {
            out.push((("runtime ends", 0), Ok(self.undriven())));
        }
        if !self.dead {
            for finished in [self.finished, false] {
                let killed = self.killed().with(|world| world.finished = finished);
                out.push((("owner killed", 0), Ok(killed)));
            }
        }
        for j in 0..self.askers.len() {
            if self.askers[j] != Asker::No {
                out.push((("question fails", j), Ok(self.with(|world| world.askers[j] = Asker::No))));
            }
        }
        if self.crashes > 0 {
            let world = self.with(|world| world.crashes -= 1);
            let world = if self.kind == Kind::File && !self.dead { world.killed() } else { world };
            self.database_crashes(&world, out);
        }
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
        (world.carrying, world.waiting) = (false, false);
        for other in &mut world.others[..self.count] {
            if let Some(call) = other.out.take() {
                other.late |= call.bit();
            }
        }
        world
    }

    fn killed(&self) -> Self {
        let mut world = self.undriven();
        (world.dead, world.live) = (true, Live::No);
        for asker in &mut world.askers {
            if matches!(asker, Asker::Listed(_)) {
                *asker = Asker::No;
            }
        }
        if self.kind == Kind::File && matches!(self.carrier, Carrier::Open | Carrier::Inserted) {
            world.end_carrier();
        }
        world
    }

    /// All of its sessions end; what was not synced is lost, or was on the disk.
    fn database_crashes(&self, world: &Self, out: &mut Vec<Step<Self>>) {
        let mut world = world.clone();
        if matches!(world.carrier, Carrier::Open | Carrier::Inserted) {
            world.end_carrier();
        }
        for asker in &mut world.askers {
            if asker.holds_rows() {
                *asker = Asker::No;
            }
        }
        if let Row::Is(decision, Written::Cached) = self.row {
            let mut lost = world.clone();
            lost.row = Row::None;
            if decision == Decision::Commit {
                lost.carrier = Carrier::Gone;
            }
            out.push((("the database crashes, row lost", 0), Ok(lost)));
        }
        if self.finished {
            out.push((("the database crashes, mark lost", 0), Ok(world.with(|world| world.finished = false))));
        }
        out.push((("the database crashes", 0), Ok(world)));
    }
}
