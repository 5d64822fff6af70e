//! What recovery does, step by step: it lists, reads the live table, asks the decider, acts; and it forgets what is confirmed.
//!
//! Each branch is recovered by itself, which holds every order that a pass over several stores can have.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use unanimous_core::log::{History, Record};
use unanimous_core::recovery::{Ask, Conclusion, Lists, Verdict, conclude, is_finished, verdict, whom_to_ask};
use unanimous_core::xid::{Roster, StoreTag};
use unanimous_core::{
    BranchId, Capability, DeciderId, Decision, DecisionRecord, HoldReason, Incarnation, Known, LogId, Note, Owner,
    Participant, StoreId, TransactionId,
};

use super::{Again, Branch, Call, Deciding, Kept, Live, MOST, Planted, Recovering, Row, Store, World, Written};
use crate::Violation;
use crate::walk::Step;

fn owner() -> Owner {
    Owner { log: LogId(7), incarnation: Incarnation::new(1, 9) }
}

fn transaction() -> TransactionId {
    owner().transaction(1)
}

fn store(i: usize) -> StoreId {
    StoreId::from_random(2 + i as u128)
}

/// The decision with the participants that are in these bits.
fn record(participants: u8) -> DecisionRecord {
    let listed = (0..MOST).filter(|i| participants & 1 << i != 0);
    let participants =
        listed.map(|i| Participant { number: i as u16, resource: i.to_string(), store: Some(store(i)) }).collect();
    DecisionRecord { transaction: transaction(), participants, decided_at: 1, note: Note::default() }
}

/// What a log tells of a transaction, and what of that is recorded.
type Said = (Known, Option<Known>);

/// What the real memory of a log says of this decision with these participants, or of none.
fn history_says(participants: u8, decided: Option<Decision>, kept: Kept) -> Said {
    static ALL: OnceLock<Vec<[Said; 7]>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let says = |participants, decided: Option<(Decision, Kept)>| {
            let mut history = History::new(owner().log);
            let mut apply = |record| history.apply(record).expect("these records follow one another");
            apply(Record::Incarnation { incarnation: owner().incarnation, started_at: 0 });
            if let Some((decision, kept)) = decided {
                apply(match decision {
                    Decision::Commit => Record::Commit(record(participants)),
                    Decision::Abort => Record::Abort(record(participants)),
                });
                if kept != Kept::Unfinished {
                    apply(Record::Finished { transaction: transaction(), at: 2 });
                }
            }
            if decided.is_some_and(|(_, kept)| kept == Kept::Expired) {
                history.retain(10, Duration::from_micros(1), usize::MAX);
            }
            (history.lookup(transaction()), history.recorded(transaction()))
        };
        use Decision::{Abort, Commit};
        let decided = [
            None,
            Some((Commit, Kept::Unfinished)),
            Some((Commit, Kept::Finished)),
            Some((Commit, Kept::Expired)),
            Some((Abort, Kept::Unfinished)),
            Some((Abort, Kept::Finished)),
            Some((Abort, Kept::Expired)),
        ];
        (0..1 << MOST).map(|participants| decided.map(|decided| says(participants, decided))).collect()
    });
    let place = match decided {
        None => 0,
        Some(Decision::Commit) => 1 + kept as usize,
        Some(Decision::Abort) => 4 + kept as usize,
    };
    all[usize::from(participants)][place].clone()
}

/// Which stores have shown that they list nothing.
struct Confirmed<'w>(&'w [Branch]);

impl Lists for Confirmed<'_> {
    fn still_prepared(&self, wanted: &StoreId) -> Option<&BTreeSet<BranchId>> {
        static NONE: BTreeSet<BranchId> = BTreeSet::new();
        let i = (0..self.0.len()).find(|&i| store(i) == *wanted)?;
        self.0[i].confirmed.then_some(&NONE)
    }
}

impl World {
    fn branch_id(&self, i: usize) -> BranchId {
        let decider = match self.branches().iter().position(|branch| branch.carries) {
            Some(carrier) => DeciderId::Store(store(carrier)),
            None if self.early => DeciderId::Together(self.roster()),
            None => DeciderId::Log,
        };
        BranchId { transaction: transaction(), decider, number: i as u16 }
    }

    fn roster(&self) -> Roster {
        let listed = (0..self.count).filter(|&i| self.branches[i].listed);
        Roster::new(listed.map(|i| (i as u16, StoreTag::of(&store(i))))).expect("there are participants, each once")
    }

    fn record(&self) -> DecisionRecord {
        let mut record = record(self.participants());
        for participant in &mut record.participants {
            if self.branches[usize::from(participant.number)].capability == Capability::Volatile {
                participant.store = None;
            }
        }
        record
    }

    /// The carrier's store is asked: forces what it finds, fences what it doesn't.
    pub(super) fn ask_row(&mut self) -> Known {
        match self.row {
            Row::Commit(_) if self.kept == Kept::Expired => Known::Hold(HoldReason::BeyondHorizon),
            Row::Commit(_) => {
                if self.planted != Planted::BelieveUnforced {
                    self.row = Row::Commit(Written::Durable);
                }
                Known::Commit(record(self.participants()))
            }
            Row::Abort => Known::Abort,
            Row::None => {
                if self.planted != Planted::NoFence {
                    self.row = Row::Abort;
                }
                Known::Abort
            }
        }
    }

    /// The decider's answer: none when it must be waited for.
    fn ask(&mut self, i: usize) -> Option<Known> {
        let together = self.early;
        let log = match whom_to_ask(&self.branch_id(i), owner()) {
            Ask::Log | Ask::Together(_) => true,
            Ask::Store(_) => self.planted == Planted::AskTheLog,
            Ask::Nobody(_) => unreachable!("the branch is ours"),
        };
        if !log {
            return Some(self.ask_row());
        }
        if self.poisoned && self.planted != Planted::PresumePoisoned {
            return Some(Known::Hold(HoldReason::Poisoned));
        }
        if !self.opened {
            return None;
        }
        let deciding = self.deciding != Deciding::Nobody;
        let decided = match self.log {
            Written::No => false,
            Written::Durable => true,
            // It is being written, or was when the sync failed; or the opening has read it, and not forced it.
            Written::Cached if deciding && self.planted != Planted::DontWaitForTheLog => return None,
            Written::Cached => !deciding && !self.poisoned,
        };
        let (told, recorded) = history_says(self.participants(), decided.then_some(self.entry), self.kept);
        if !together || self.planted == Planted::PresumeOfAll {
            return Some(told);
        }
        if recorded.is_none() {
            self.list_again();
        }
        recorded
    }

    /// Its participants are listed, if they are not already: what follows is recorded then, and found by the next pass.
    fn list_again(&mut self) {
        if self.again == Again::No {
            self.again = Again::Listing { listed: 0, prepared: 0 };
        }
    }

    /// The steps of recovery's lists of a transaction's participants, and what follows from them.
    fn again_steps(&self, out: &mut Vec<Step<World>>) {
        if self.planted == Planted::ListsBeforeLive && self.early && self.again == Again::No {
            out.push((("participants listed early", 0), Ok(self.with(World::list_again))));
        }
        if self.may_be_left() {
            out.push((("left by its driver", 0), Ok(self.with(World::list_again))));
        }
        let Again::Listing { listed, prepared } = self.again else { return };
        for (i, branch) in self.branches().iter().enumerate().filter(|(i, _)| listed & 1 << i == 0) {
            let found = u8::from(branch.store == Store::Prepared) << i;
            let again = Again::Listing { listed: listed | 1 << i, prepared: prepared | found };
            // The list comes when what it holds is durable.
            let sure = !branch.unsure || self.planted == Planted::UnsureIsPrepared;
            if branch.listed && sure {
                out.push((("participant listed again", i), Ok(self.with(|world| world.again = again))));
            }
        }
        let mut world = self.with(|world| world.again = Again::No);
        out.push((("given up for now", 0), Ok(world.clone())));
        let may_conclude = self.opened && !self.poisoned && self.live == Live::No;
        if may_conclude && self.deciding == Deciding::Nobody && self.log == Written::No {
            let follows = world.record_conclusion(listed, prepared);
            out.push((("concluded", 0), follows.map(|()| world)));
        }
    }

    /// Whether a driver may have left it without a record, so that its participants are listed although no store lists one. Also after the process
    /// has died, which forgets that: more than the product does.
    fn may_be_left(&self) -> bool {
        let ended = self.protocol.as_ref().is_none_or(|protocol| protocol.is_over());
        let open = self.opened && !self.poisoned && self.live == Live::No && self.again == Again::No;
        self.early && ended && open && self.log == Written::No && self.kept == Kept::Unfinished
    }

    fn record_conclusion(&mut self, listed: u8, prepared: u8) -> Result<(), Violation> {
        let Some(i) = (0..self.count).find(|&i| self.branches[i].listed) else { return Ok(()) };
        let lists: Vec<BTreeSet<BranchId>> = (0..self.count)
            .map(|i| if prepared & 1 << i == 0 { BTreeSet::new() } else { BTreeSet::from([self.branch_id(i)]) })
            .collect();
        let of = |tag| (0..self.count).find(|&i| StoreTag::of(&store(i)) == tag);
        let all = BTreeSet::from_iter((0..self.count).map(|i| self.branch_id(i)));
        let none = BTreeSet::new();
        let follows = conclude(&self.branch_id(i), &self.roster(), |tag| match of(tag)? {
            i if listed & 1 << i != 0 => Some(&lists[i]),
            _ if self.planted == Planted::UnlistedIsMissing => Some(&none),
            _ if self.planted == Planted::UnlistedIsPrepared => Some(&all),
            _ => None,
        });
        let (decision, unrecorded) = match follows {
            Conclusion::Commit => (Decision::Commit, self.planted == Planted::CommitUnrecorded),
            Conclusion::Abort => (Decision::Abort, self.planted == Planted::RollBackUnrecorded),
            Conclusion::Wait(_) => return Ok(()),
        };
        if unrecorded {
            self.decide(decision)?;
            let step = if decision == Decision::Commit { Recovering::Commit } else { Recovering::Rollback };
            for branch in self.branches_mut().iter_mut().filter(|branch| branch.store == Store::Prepared) {
                branch.recovering = step;
            }
            return Ok(());
        }
        self.hand_in(Deciding::Recovery, decision)
    }

    pub(super) fn recovery_steps(&self, out: &mut Vec<Step<World>>) {
        if !self.opened {
            out.push((("log opened", 0), Ok(self.with(World::open))));
        }
        for i in 0..self.count {
            self.recover_steps(i, out);
        }
        self.again_steps(out);
        // Every store was asked, and none lists a branch of it.
        if self.live == Live::Aborted && !self.branches().iter().any(|branch| branch.store == Store::Prepared) {
            out.push((("no branch is left", 0), Ok(self.with(|world| world.live = Live::No))));
        }
        self.forget_steps(out);
    }

    fn open(&mut self) {
        self.opened = true;
        if self.log == Written::Cached && self.planted != Planted::BelieveUnforced {
            self.log = Written::Durable;
        }
    }

    fn recover_steps(&self, i: usize, out: &mut Vec<Step<World>>) {
        let branch = &self.branches[i];
        if branch.capability != Capability::TwoPhase {
            return;
        }
        let at = |step| self.with(|world| world.branches[i].recovering = step);
        match branch.recovering {
            Recovering::No => {
                if branch.store == Store::Prepared {
                    out.push((("listed", i), Ok(at(Recovering::Listed))));
                }
            }
            Recovering::Listed => out.push((("live table read", i), Ok(at(self.after_live())))),
            Recovering::NotLive => {
                let mut world = self.clone();
                let Some(asked) = world.asked(i) else {
                    if world.again != self.again {
                        out.push((
                            ("nothing is recorded", i),
                            Ok(world.with(|world| world.branches[i].recovering = Recovering::No)),
                        ));
                    }
                    return;
                };
                // It goes on after a change, so that what comes of it is seen as well.
                out.extend(asked.err().map(|changed| (("decider asked", i), Err(changed))));
                out.push((("decider asked", i), Ok(world)));
            }
            Recovering::Commit | Recovering::Rollback => {
                if self.planted == Planted::DecisionBeforeLive && self.live == Live::Driven {
                    out.push((("live table read", i), Ok(at(Recovering::No))));
                    return;
                }
                let call = if branch.recovering == Recovering::Commit { Call::Commit } else { Call::Rollback };
                let sent = at(Recovering::No);
                let mut world = sent.clone();
                if branch.store == Store::Prepared {
                    let _looked_at_again = world.execute(i, call);
                }
                if self.faults.repeats > 0 {
                    let again = world.with(|world| {
                        world.faults.repeats -= 1;
                        world.branches[i].late |= call.bit();
                    });
                    out.push((("recovered, to be repeated", i), Ok(again)));
                }
                out.push((("recovered", i), Ok(world)));
                if self.faults.losses > 0 {
                    let late = sent.with(|world| {
                        world.faults.losses -= 1;
                        world.branches[i].late |= call.bit();
                    });
                    out.push((("recovery's message late", i), Ok(late)));
                }
            }
        }
    }

    /// What follows for a listed branch from the live table.
    fn after_live(&self) -> Recovering {
        match (self.planted, self.live) {
            (Planted::TouchLive | Planted::DecisionBeforeLive, _) => Recovering::NotLive,
            (Planted::PresumePoisoned, Live::Held) if self.poisoned => Recovering::NotLive,
            (_, Live::Driven | Live::Held) => Recovering::No,
            (_, Live::Aborted) => Recovering::Rollback,
            (_, Live::No) => Recovering::NotLive,
        }
    }

    /// Asks the branch's decider, and notes what follows; none where it must be waited for.
    fn asked(&mut self, i: usize) -> Option<Result<(), Violation>> {
        let known = self.ask(i)?;
        let said = match known {
            Known::Commit(_) => self.decide(Decision::Commit),
            Known::Abort => self.decide(Decision::Abort),
            Known::Hold(_) => Ok(()),
        };
        self.branches[i].recovering = match verdict(&self.branch_id(i), &known) {
            Verdict::Commit => Recovering::Commit,
            Verdict::Rollback => Recovering::Rollback,
            Verdict::Hold(_) => Recovering::No,
        };
        Some(said)
    }

    /// Whether the decider lists the decision as unfinished, now that nobody drives it.
    fn is_unfinished(&self) -> bool {
        let decided = match self.has_carrier() {
            true => matches!(self.row, Row::Commit(_)),
            false => self.opened && !self.poisoned && self.log == Written::Durable,
        };
        decided && self.kept == Kept::Unfinished && self.live == Live::No
    }

    fn forget_steps(&self, out: &mut Vec<Step<World>>) {
        if self.is_unfinished() && !self.forgetting {
            let begun = self.with(|world| {
                world.forgetting = true;
                // What is listed as unfinished is durable then.
                if world.row == Row::Commit(Written::Cached) {
                    world.row = Row::Commit(Written::Durable);
                }
            });
            out.push((("decision unfinished", 0), Ok(begun)));
        }
        if self.forgetting || self.planted == Planted::ListsBeforeDecisions {
            for (i, branch) in self.branches().iter().enumerate() {
                if branch.listed && !branch.confirmed && branch.store != Store::Prepared {
                    out.push((("absent from its list", i), Ok(self.with(|world| world.branches[i].confirmed = true))));
                }
            }
        }
        if self.forgetting && self.may_forget() {
            out.push((("forgotten", 0), Ok(self.with(World::forget))));
        }
        if self.kept == Kept::Finished {
            let without_a_trace = self.planted == Planted::AbortLeavesNoFloor && self.entry == Decision::Abort;
            let expired = self.with(|world| match without_a_trace {
                true => (world.log, world.entry, world.kept) = (Written::No, Decision::Commit, Kept::Unfinished),
                false => world.kept = Kept::Expired,
            });
            out.push((("horizon passes", 0), Ok(expired)));
        }
    }

    /// All participants are listed again, and what follows is recorded, where nothing goes wrong.
    fn conclude_at_once(&mut self) {
        if std::mem::replace(&mut self.again, Again::No) == Again::No {
            return;
        }
        let prepared = self.branches().iter().enumerate();
        let prepared = prepared.fold(0, |bits, (i, branch)| bits | u8::from(branch.store == Store::Prepared) << i);
        if self.record_conclusion(u8::MAX, prepared).is_ok() && self.deciding == Deciding::Recovery {
            (self.deciding, self.log) = (Deciding::Nobody, Written::Durable);
        }
    }

    fn may_forget(&self) -> bool {
        self.planted == Planted::ForgetUnconfirmed || is_finished(&self.record(), &Confirmed(self.branches()))
    }

    fn forget(&mut self) {
        self.kept = Kept::Finished;
        self.forgetting = false;
        self.branches_mut().iter_mut().for_each(|branch| branch.confirmed = false);
    }

    /// When nothing is under way but recovery, and nothing goes wrong any more: three passes leave nothing in doubt, and the second and
    /// third of them change nothing. What is late counts as lost.
    pub(super) fn settled(&self) -> Result<(), Violation> {
        let over = self.protocol.as_ref().is_none_or(|protocol| protocol.is_over()) && self.again == Again::No;
        let quiet = |branch: &Branch| branch.out.is_none() && !branch.unsure && branch.recovering == Recovering::No;
        if !over || self.deciding != Deciding::Nobody || self.forgetting || !self.branches().iter().all(quiet) {
            return Ok(());
        }
        let held = self.poisoned || self.live == Live::Held;
        let left = |branch: &Branch| branch.capability == Capability::Volatile && branch.store == Store::Prepared;
        if !held && self.branches().iter().any(left) {
            // What only the living driver can finish, it must not leave.
            return Err(Violation::LeftInDoubt);
        }
        let mut world = if held { self.killed() } else { self.clone() };
        if !world.opened {
            world.open();
        }
        let before = (world.log, world.live);
        world.pass();
        if world.early && before != (world.log, world.live) {
            // A decision to abort that this pass has recorded, or has seen left by its driver, the next one finds confirmed.
            world.pass();
        }
        let once = (world.branches, world.log, world.row, world.kept, world.live);
        for _ in 0..2 {
            world.pass();
        }
        crate::walk::Model::check(&world)?;
        if once != (world.branches, world.log, world.row, world.kept, world.live) {
            return Err(Violation::NotTheSameAgain);
        }
        let in_doubt = |branch: &Branch| branch.capability == Capability::TwoPhase && branch.store == Store::Prepared;
        // A vote that lands when an abort's record has gone is held, and named (rule 11).
        let beyond = world.kept == Kept::Expired && world.entry == Decision::Abort;
        if !beyond && world.branches().iter().any(in_doubt) || world.is_unfinished() {
            return Err(Violation::LeftInDoubt);
        }
        Ok(())
    }

    /// A whole pass, as `unanimous::recovery::whole_pass`.
    fn pass(&mut self) {
        let unfinished = self.is_unfinished();
        for i in 0..self.count {
            if self.branches[i].store != Store::Prepared || self.branches[i].capability != Capability::TwoPhase {
                continue;
            }
            self.branches[i].recovering = self.after_live();
            if self.branches[i].recovering == Recovering::NotLive {
                // A decision that changes is reported where its steps are walked through.
                if self.asked(i).is_none() {
                    self.branches[i].recovering = Recovering::No;
                    self.conclude_at_once();
                    let _recorded_now = self.asked(i);
                }
            }
            let call = match std::mem::replace(&mut self.branches[i].recovering, Recovering::No) {
                Recovering::Commit => Call::Commit,
                Recovering::Rollback => Call::Rollback,
                _ => continue,
            };
            let _listed_just_now = self.execute(i, call);
        }
        let prepared = self.branches().iter().any(|branch| branch.store == Store::Prepared);
        if self.live == Live::Aborted && !prepared {
            self.live = Live::No;
        }
        for branch in self.branches_mut() {
            branch.confirmed = branch.store != Store::Prepared;
        }
        if unfinished && self.may_forget() {
            self.kept = Kept::Finished;
        }
        self.branches_mut().iter_mut().for_each(|branch| branch.confirmed = false);
    }
}
