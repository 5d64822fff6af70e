//! What the driver, the stores and the faults do.

use unanimous_core::protocol::{DecisionAnswer, Event, Path, Protocol};
use unanimous_core::{Capability, Decision, FailureKind, Known, Outcome, Work};

use super::{Again, Call, Deciding, Kept, Live, NO, Planted, Recovering, Row, Store, Told, World, Written};
use crate::walk::What;

/// A step: what happens, what has changed by then, and the event that the protocol hears of it.
pub(super) type Take<'t> = dyn FnMut(What, World, Option<Event>) + 't;

const CALLS: [Call; 5] = [Call::Prepare, Call::OnePhase, Call::Carry, Call::Commit, Call::Rollback];

impl Call {
    pub(crate) fn bit(self) -> u8 {
        1 << self as u8
    }

    fn answered(self, i: usize, answer: Result<(), FailureKind>) -> Event {
        match self {
            Call::Flush => Event::Flushed(i, answer.map(|()| Work::Wrote)),
            Call::Prepare => Event::Voted(i, answer),
            Call::OnePhase | Call::Carry => Event::OnePhase(i, answer),
            Call::Commit => Event::Committed(i, answer),
            Call::Rollback => Event::RolledBack(i, answer),
        }
    }
}

impl World {
    /// Every step but recovery's: with the event that the protocol hears.
    pub fn each_step(&self, take: &mut Take<'_>) {
        match &self.protocol {
            Some(protocol) if !protocol.is_over() => self.driver_steps(protocol, take),
            _ => self.log_steps(take),
        }
        for i in 0..self.count {
            self.answer_steps(i, take);
            self.late_steps(i, take);
        }
        self.crash_steps(take);
    }

    fn driver_steps(&self, protocol: &Protocol, take: &mut Take<'_>) {
        if self.branches().iter().all(|branch| branch.out.is_none()) && protocol.path().is_none() && self.told.is_none()
        {
            take(("commit", 0), self.clone(), Some(Event::Commit));
            take(("abort", 0), self.clone(), Some(Event::Abort));
        }
        // The time limit passes at any moment, also when nothing may come of it any more.
        if self.told.is_none() {
            take(("time limit", 0), self.clone(), Some(Event::GiveUp));
        }
        // The same for a log that is given up, or takes no decisions any more.
        if self.told.is_none() && protocol.path() == Some(Path::Early) && protocol.stage_name() == "Voting" {
            take(("log given up", 0), self.clone(), Some(Event::Disowned));
        }
        if self.waiting {
            take(("waited", 0), self.with(|world| world.waiting = false), Some(Event::WaitElapsed));
        }
        self.log_steps(take);
        if self.asking {
            let mut world = self.with(|world| world.asking = false);
            let known = world.ask_row();
            let decision = match known {
                Known::Commit(_) => Some(Decision::Commit),
                Known::Abort => Some(Decision::Abort),
                Known::Hold(_) => None,
            };
            take(("carrier answers", 0), world.clone(), Some(Event::Resolved(decision)));
            if self.faults.losses > 0 {
                let lost = |world: &World| world.with(|world| world.faults.losses -= 1);
                let unasked = self.with(|world| world.asking = false);
                take(("question lost", 0), lost(&unasked), Some(Event::Resolved(None)));
                take(("carrier's answer lost", 0), lost(&world), Some(Event::Resolved(None)));
            }
        }
    }

    /// The log ends a decision that was handed to it, also where nobody hears it any more.
    fn log_steps(&self, take: &mut Take<'_>) {
        if self.deciding == Deciding::Nobody {
            return;
        }
        let hears = self.deciding == Deciding::Driver && self.protocol.is_some();
        for (what, log, answer) in [
            ("synced", Written::Durable, DecisionAnswer::Forced),
            ("decision refused", Written::No, DecisionAnswer::Refused),
            ("sync failed", Written::Cached, DecisionAnswer::Unknown),
        ] {
            let world = self.with(|world| {
                world.deciding = Deciding::Nobody;
                world.log = log;
                world.poisoned = answer == DecisionAnswer::Unknown;
                if log == Written::No {
                    world.entry = Decision::Commit;
                }
            });
            take((what, 0), world, hears.then_some(Event::Decided(answer)));
        }
    }

    /// What the store does on receiving a message, and what it would answer.
    pub(super) fn execute(&mut self, i: usize, call: Call) -> Result<(), FailureKind> {
        let branch = &mut self.branches[i];
        match (call, branch.store) {
            (Call::Prepare, Store::Active) => branch.store = Store::Prepared,
            (Call::OnePhase, Store::Active) => branch.store = Store::Committed,
            (Call::Carry, Store::Active) if self.row == Row::Abort => {
                branch.store = Store::Gone;
                return Err(FailureKind::Refused);
            }
            (Call::Carry, Store::Active) => {
                branch.store = Store::Committed;
                self.row = Row::Commit(Written::Cached);
            }
            (Call::Commit, Store::Prepared) => branch.store = Store::Committed,
            (Call::Commit, Store::Committed) => {}
            (Call::Rollback, Store::Active | Store::Prepared | Store::Gone) => branch.store = Store::Gone,
            _ => return Err(FailureKind::Refused),
        }
        branch.unsure = false;
        Ok(())
    }

    /// A call that the driver waits for comes back.
    fn answer_steps(&self, i: usize, take: &mut Take<'_>) {
        let branch = &self.branches[i];
        let Some(call) = branch.out else { return };
        let returned = self.with(|world| world.branches[i].out = None);
        if call == Call::Flush {
            let read = returned.with(|world| world.branches[i].wrote = false);
            take(("only read", i), read, Some(Event::Flushed(i, Ok(Work::ReadOnly))));
            take(("wrote", i), returned.clone(), Some(Event::Flushed(i, Ok(Work::Wrote))));
            for no in NO {
                take(("flush fails", i), returned.clone(), Some(Event::Flushed(i, Err(no))));
            }
            if self.faults.losses > 0 {
                let lost = returned.with(|world| world.faults.losses -= 1);
                take(("flush lost", i), lost, Some(Event::Flushed(i, Err(FailureKind::Lost))));
            }
            return;
        }
        let lost = |world: &World| world.with(|world| world.faults.losses -= 1);
        let mut done = returned.clone();
        let answer = done.execute(i, call);
        if call == Call::Carry && branch.store == Store::Committed {
            if matches!(self.row, Row::Commit(_)) {
                let synced = returned.with(|world| world.row = Row::Commit(Written::Durable));
                take(("carrier synced", i), synced.clone(), Some(call.answered(i, Ok(()))));
                if self.faults.losses > 0 {
                    take(("its answer lost", i), lost(&synced), Some(call.answered(i, Err(FailureKind::Lost))));
                }
            }
            return;
        }
        if call == Call::Prepare && branch.unsure {
            let sure = returned.with(|world| world.branches[i].unsure = false);
            take(("prepare durable", i), sure, Some(call.answered(i, Ok(()))));
            if self.faults.losses > 0 {
                take(("its answer lost", i), lost(&returned), Some(call.answered(i, Err(FailureKind::Lost))));
            }
            return;
        }
        if call == Call::Prepare && self.early && answer.is_ok() {
            let unsure = done.with(|world| (world.branches[i].unsure, world.branches[i].out) = (true, Some(call)));
            take(("listed, not durable", i), unsure, None);
        }
        if call == Call::Carry && answer.is_ok() {
            // Between the write and its sync: seen by others, lost by a power cut, not yet answered.
            take(("carrier writes", i), done.with(|world| world.branches[i].out = Some(Call::Carry)), None);
        } else {
            take(("done", i), done.clone(), Some(call.answered(i, answer)));
            if self.faults.repeats > 0 {
                let again = done.with(|world| {
                    world.faults.repeats -= 1;
                    world.branches[i].late |= call.bit();
                });
                take(("done, to be repeated", i), again, Some(call.answered(i, answer)));
            }
        }
        if matches!(call, Call::Commit | Call::Rollback) {
            // Not done now, for whatever reason: it is repeated.
            take(("not done now", i), returned.clone(), Some(call.answered(i, Err(FailureKind::Refused))));
        }
        if call == Call::Rollback
            && branch.store == Store::Active
            && branch.late != 0
            && matches!(branch.capability, Capability::TwoPhase | Capability::Carrier)
        {
            // The store doesn't know it (yet), which is taken for an end: what is late can still land.
            take(("nothing to roll back", i), returned.clone(), Some(call.answered(i, Ok(()))));
        }
        if branch.store == Store::Active && matches!(call, Call::Prepare | Call::OnePhase | Call::Carry) {
            // An honest no: the branch is gone, or still open and rolled back later.
            for no in NO {
                let gone = returned.with(|world| world.branches[i].store = Store::Gone);
                take(("no", i), gone, Some(call.answered(i, Err(no))));
            }
        }
        if self.faults.losses > 0 {
            if answer.is_ok() && call != Call::Carry {
                take(("answer lost", i), lost(&done), Some(call.answered(i, Err(FailureKind::Lost))));
            }
            let late = lost(&returned).with(|world| world.branches[i].late |= call.bit());
            take(("late", i), late, Some(call.answered(i, Err(FailureKind::Lost))));
        }
    }

    /// A message that nobody waits for is executed now; one that is lost is one that stays under way.
    fn late_steps(&self, i: usize, take: &mut Take<'_>) {
        let branch = &self.branches[i];
        for call in CALLS.into_iter().filter(|call| branch.late & call.bit() != 0) {
            let mut world = self.clone();
            let _nobody_hears_it = world.execute(i, call);
            if self.faults.repeats > 0 {
                take(("late one, to be repeated", i), world.with(|world| world.faults.repeats -= 1), None);
            }
            world.branches[i].late &= !call.bit();
            take(("late one executed", i), world, None);
        }
        if branch.unsure {
            if branch.out.is_none() {
                take(("durable after all", i), self.with(|world| world.branches[i].unsure = false), None);
            }
            if self.faults.losses > 0 {
                let failed = self.with(|world| {
                    world.faults.losses -= 1;
                    (world.branches[i].store, world.branches[i].unsure) = (Store::Gone, false);
                });
                take(("store fails, prepare lost", i), failed, None);
            }
        }
        let orphaned = self.protocol.is_none() || (branch.out.is_none() && branch.late != 0);
        if branch.store == Store::Active && orphaned {
            take(("session ends", i), self.with(|world| world.branches[i].store = Store::Gone), None);
        }
    }

    fn crash_steps(&self, take: &mut Take<'_>) {
        // A held transaction ends with a restart only, so that one is always to be had.
        let held = self.live == Live::Held || self.poisoned;
        if self.faults.crashes == 0 && !held {
            return;
        }
        let (killed, dropped) = (self.killed(), self.dropped());
        for world in [killed.clone(), killed.with(|world| world.kept = self.kept.after_a_crash())] {
            if self.log == Written::Cached {
                take(
                    ("power, cache lost", 0),
                    world.with(|world| (world.log, world.entry, world.opened) = (Written::No, Decision::Commit, true)),
                    None,
                );
                take(("power, was on disk", 0), world.with(|world| world.log = Written::Durable), None);
            }
            if self.row == Row::Commit(Written::Cached) {
                // The power fails before the carrier's sync: its commit and its row are lost together.
                let lost = world.with(|world| {
                    world.row = Row::None;
                    for branch in
                        world.branches_mut().iter_mut().filter(|branch| branch.capability == Capability::Carrier)
                    {
                        branch.store = Store::Gone;
                        branch.late = 0;
                    }
                });
                take(("power, carrier's commit lost", 0), lost, None);
            }
            take(("killed", 0), world, None);
            if self.kept != Kept::Finished {
                break;
            }
        }
        if self.protocol.is_some() && self.faults.crashes > 0 {
            take(("runtime ends", 0), dropped, None);
        }
    }

    /// Nobody drives it any more: what the driver can still say then must hold.
    fn undriven(&self) -> World {
        self.with(|world| {
            world.faults.crashes = world.faults.crashes.saturating_sub(1);
            if let (None, Some(protocol)) = (world.told, &self.protocol) {
                world.told = match protocol.outcome_if_dropped() {
                    Outcome::Committed => Some(Told::Committed),
                    Outcome::Aborted => Some(Told::Aborted),
                    Outcome::Unknown => None,
                };
            }
            world.protocol = None;
            world.asking = false;
            world.waiting = false;
            for branch in world.branches_mut() {
                // A flush that nobody waits for any more changes nothing that matters.
                if let Some(call) = branch.out.take().filter(|call| *call != Call::Flush) {
                    branch.late |= call.bit();
                }
                if branch.capability == Capability::Volatile && branch.store != Store::Committed {
                    branch.store = Store::Gone;
                    branch.late = 0;
                }
            }
        })
    }

    /// The process is killed; the next one has not opened the log.
    pub(super) fn killed(&self) -> World {
        let mut world = self.undriven();
        world.poisoned = false;
        world.deciding = Deciding::Nobody;
        world.again = Again::No;
        world.live = Live::No;
        world.forgetting = false;
        world.opened = world.log != Written::Cached;
        for branch in world.branches_mut() {
            branch.recovering = Recovering::No;
            branch.confirmed = false;
        }
        world
    }

    /// The runtime ends, and its process lives: log and recovery go on.
    fn dropped(&self) -> World {
        let mut world = self.undriven();
        let Some(protocol) = &self.protocol else { return world };
        world.live = match (protocol.is_held(), self.live) {
            (true, _) => Live::Held,
            (false, Live::Driven) if protocol.is_aborting() => Live::Aborted,
            (false, Live::Driven) if self.planted == Planted::AbortedWhenDropped => Live::Aborted,
            (false, Live::Driven) => Live::No,
            (false, other) => other,
        };
        world
    }
}

impl Kept {
    /// That it is finished is not forced.
    fn after_a_crash(self) -> Kept {
        match self {
            Kept::Finished => Kept::Unfinished,
            kept => kept,
        }
    }
}
