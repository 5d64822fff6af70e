//! What must be true of a world when its faults are over and everything had its time: the invariants of the proof.
//!
//! Must not know which faults there were, beyond what excuses something.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use unanimous::{BranchId, Capability, Decision, Doubt, HoldReason, InDoubt, Outcome, TransactionId};

use super::chaos;
use super::client;
use super::coverage::Path;
use super::executor::lock;
use super::ledger::{AtStore, Entry};
use super::process::Running;
use super::server::Key;
use super::world::World;

/// Looks at everything.
pub(super) async fn run(world: Arc<World>) {
    let mut all = Vec::new();
    for process in world.processes() {
        match process.running() {
            Some(running) => all.push(running),
            None => world.violation(format!("the coordinator {} does not serve", process.index)),
        }
    }
    for running in &all {
        recover_thrice(&world, running).await;
    }
    what_is_prepared(&world, &all);
    for running in &all {
        goes_on(&world, running).await;
        decisions_stay(&world, running).await;
    }
    atomicity(&world, &all);
}

fn prepared(world: &World) -> BTreeSet<(usize, BranchId)> {
    let of = |server: &Arc<super::server::Server>| {
        let index = server.index;
        server.prepared().into_iter().map(move |id| (index, id)).collect::<Vec<_>>()
    };
    world.servers().iter().flat_map(of).collect()
}

fn named(doubts: &[InDoubt]) -> BTreeSet<String> {
    doubts
        .iter()
        .map(|doubt| format!("{} {:?} {:?} {}", doubt.resource, doubt.transaction, doubt.branch, doubt.why))
        .collect()
}

/// Recovery run three times is the same as once.
async fn recover_thrice(world: &World, running: &Running) {
    let doubts = named(&running.manager.recover().await);
    let stores = prepared(world);
    for _ in 0..2 {
        let again = named(&running.manager.recover().await);
        if again != doubts || prepared(world) != stores {
            world.violation(format!("recovery that is repeated does more: {doubts:?}, then {again:?}"));
        }
    }
}

/// No doubt stays, except what is held for a stated reason, and reported by its owner.
fn what_is_prepared(world: &World, all: &[Running]) {
    for (store, id) in prepared(world) {
        let name = world.servers()[store].name;
        let doubt_of = |running: &Running| {
            let doubts = running.manager.in_doubt();
            doubts.into_iter().find(|doubt| doubt.branch.as_ref() == Some(&id) && doubt.resource == name)
        };
        let Some(owner) = lock(&world.ledger).entry(id.transaction).map(|entry| entry.process) else {
            world.violation(format!("{id} is prepared in {name}, and nobody began it"));
            continue;
        };
        for other in all.iter().filter(|running| running.life.process != owner) {
            match doubt_of(other).map(|doubt| doubt.why) {
                Some(Doubt::Held(HoldReason::ForeignLog)) => world.saw(Path::OtherOwner),
                why => world.violation(format!("{id} in {name} is another's, and {why:?} is said of it")),
            }
        }
        let Some(running) = all.iter().find(|running| running.life.process == owner) else { continue };
        match doubt_of(running).map(|doubt| doubt.why) {
            Some(Doubt::Held(reason)) if is_excused(world, store, &id, &reason) => world.saw(Path::Held),
            why => world.violation(format!("{id} stays prepared in {name}: {why:?}")),
        }
    }
}

fn is_excused(world: &World, store: usize, id: &BranchId, reason: &HoldReason) -> bool {
    let mut ledger = lock(&world.ledger);
    let Some(entry) = ledger.entry(id.transaction) else { return false };
    let (process, began) = (entry.process, entry.began);
    // A decision to commit does not age before all of its branches are confirmed.
    let decided = entry.told == Some(Outcome::Committed)
        || entry.looked_up == Some(Decision::Commit)
        || entry.stores.iter().any(|(store, at)| is_atomic(world, *store) && at.commits > 0);
    let came_back = entry.stores.values().any(|at| at.came_back);
    // A branch that only read can be prepared for a moment, and is in no decision.
    let read = entry.wrote.as_ref().is_some_and(|wrote| !wrote.contains(&store));
    let restored = ledger.log_restores.get(&process).is_some_and(|at| began <= *at);
    match reason {
        HoldReason::ForeignIncarnation => restored,
        HoldReason::BeyondHorizon => {
            let old = world.now().saturating_sub(began) >= world.plan.horizon;
            // One that was acknowledged and not recorded ages as one that was never decided.
            restored || (came_back || !decided || world.plan.early()) && (old || world.plan.log_size < 100_000)
        }
        HoldReason::NotListed => came_back && read,
        _ => false,
    }
}

fn is_atomic(world: &World, store: usize) -> bool {
    matches!(world.servers()[store].capability, Capability::TwoPhase | Capability::Carrier)
}

/// Work goes on, and no lock is left.
async fn goes_on(world: &Arc<World>, running: &Running) {
    let mut held = BTreeSet::new();
    for server in world.servers() {
        let prepared: BTreeSet<TransactionId> = server.prepared().iter().map(|id| id.transaction).collect();
        for (key, transaction) in server.locks() {
            held.insert(key);
            if !prepared.contains(&transaction) {
                world.violation(format!("{transaction} left a lock in {}", server.name));
            }
        }
    }
    let free: Vec<Key> = (0..client::KEYS as Key).filter(|key| !held.contains(key)).take(2).collect();
    if free.is_empty() {
        world.violation("every key is locked, so that nothing shows that work goes on".to_owned());
    }
    for key in free {
        let mut failed = None;
        for _ in 0..3 {
            failed = client::probe(world, running, key).await.err();
            if failed.is_none() {
                break;
            }
            world.sleep(Duration::from_secs(3)).await;
        }
        if let Some(failed) = failed {
            world.violation(format!("the coordinator {} does not go on: {failed}", running.life.process));
        }
    }
}

async fn decisions_stay(world: &World, running: &Running) {
    let known: Vec<TransactionId> = {
        let ledger = lock(&world.ledger);
        let looked_up = ledger.transactions.iter();
        let own = looked_up.filter(|(_, e)| e.process == running.life.process && (e.looked_up.is_some() || e.by_log));
        own.map(|(id, _)| *id).collect()
    };
    for id in known {
        chaos::look_up(world, running, id).await;
    }
}

fn atomicity(world: &World, all: &[Running]) {
    let ledger = lock(&world.ledger);
    let mut wrong = Vec::new();
    for (id, entry) in &ledger.transactions {
        if entry.wrote.is_some() && entry.told.is_none() && entry.reported.is_none() {
            world.saw(Path::NotTold);
        }
        let troubled = ledger.troubled.contains(&(entry.process, entry.life));
        Judge { world, id: *id, entry, troubled, all, wrong: &mut wrong }.judge();
    }
    drop(ledger);
    for text in wrong {
        world.violation(text);
    }
}

struct Judge<'w> {
    world: &'w World,
    id: TransactionId,
    entry: &'w Entry,
    troubled: bool,
    all: &'w [Running],
    wrong: &'w mut Vec<String>,
}

impl Judge<'_> {
    fn wrong(&mut self, what: &str) {
        let Entry { told, reported, wrote, stores, looked_up, .. } = self.entry;
        let stores: Vec<_> =
            stores.iter().map(|(store, at)| format!("{}: {at:?}", self.world.servers()[*store].name)).collect();
        let wrote: Vec<_> = wrote.iter().flatten().map(|store| self.world.servers()[*store].name).collect();
        self.wrong.push(format!(
            "{what}: {} told {told:?} reported {reported:?} decision {looked_up:?} wrote {wrote:?}; {}",
            self.id,
            stores.join("; ")
        ));
    }

    fn is_atomic(&self, store: usize) -> bool {
        is_atomic(self.world, store)
    }

    fn judge(&mut self) {
        let nothing = AtStore::default();
        let entry = self.entry;
        let by_manager = |at: &AtStore| at.committed && at.operator.is_none();
        let committed =
            entry.stores.iter().any(|(store, at)| self.is_atomic(*store) && (by_manager(at) || at.commits > 0));
        let anywhere = entry.stores.values().any(|at| by_manager(at) || at.commits > 0);
        // A single store's work comes and goes with its backup, whatever steps its commit had.
        let alone = entry.wrote.as_ref().is_some_and(|wrote| wrote.len() == 1);
        if alone && entry.stores.values().any(|at| at.came_back) {
            return;
        }
        let wrote = entry.wrote.iter().flatten().map(|store| (*store, entry.stores.get(store).unwrap_or(&nothing)));
        let gone = |at: &AtStore| !at.committed && !at.prepared && at.operator.is_none() && !at.lost;
        let missing = wrote.clone().filter(|(store, at)| self.is_atomic(*store) && gone(at)).count();
        let missing_anywhere = wrote.clone().filter(|(_, at)| gone(at)).count();
        let said = [entry.told, entry.reported];

        if committed && missing > 0 {
            self.wrong("torn");
        }
        if said.contains(&Some(Outcome::Committed)) && missing_anywhere > 0 {
            self.wrong("acknowledged and lost");
        }
        if said.contains(&Some(Outcome::Aborted)) && anywhere {
            self.wrong("reported aborted and committed");
        }
        if entry.wrote.is_none() && anywhere {
            self.wrong("never told to commit and committed");
        }
        if let (Some(told), Some(reported)) = (entry.told, entry.reported)
            && told != reported
        {
            self.wrong("told one thing and reported another");
        }
        if entry.looked_up == Some(Decision::Commit) && missing > 0 {
            self.wrong("decided to commit and lost");
        }
        for at in entry.stores.values() {
            if at.commits > 1 && !at.came_back {
                self.wrong("committed twice");
            }
            if at.came_back && at.rolled_back && (committed || entry.looked_up == Some(Decision::Commit)) {
                self.wrong("came back and was rolled back although it is committed");
            }
            // A restore loses what the store knew of it.
            let confirmed =
                self.world.plan.store_restores == 0 && entry.told == Some(Outcome::Committed) && entry.pending == 0;
            if confirmed && at.operator == Some(Decision::Abort) && !at.reported {
                self.wrong("a heuristic was not reported");
            }
        }
        if said.contains(&Some(Outcome::Unknown)) && !self.may_be_unknown() {
            self.wrong("unknown without a reason");
        }
        if self.runs() && entry.reported.is_none() && entry.wrote.as_ref().is_some_and(|wrote| !wrote.is_empty()) {
            self.wrong("its commit never ended");
        }
        self.volatile();
    }

    /// Whether its process still runs.
    fn runs(&self) -> bool {
        let own = (self.entry.process, self.entry.life);
        self.all.iter().any(|running| (running.life.process, running.life.number) == own)
    }

    /// Nobody may know the outcome only where a one-phase commit was not answered, the log's disk failed, or the runtime ended.
    fn may_be_unknown(&self) -> bool {
        let last_resource = self.entry.wrote.iter().flatten().any(|store| !self.is_atomic(*store));
        // Early, an abort is not told before it is recorded.
        let unrecorded = self.world.plan.early() && self.world.plan.log_may_refuse();
        self.entry.may_be_unknown || self.troubled || last_resource || unrecorded
    }

    /// In the process that still runs, a volatile branch ends as the others do.
    fn volatile(&mut self) {
        use super::ledger::Volatile;
        let runs = self.runs();
        let end = self.entry.volatile;
        if runs && self.entry.told == Some(Outcome::Committed) && end.is_some_and(|end| end != Volatile::Committed) {
            self.wrong(&format!("acknowledged and its volatile branch is {end:?}"));
        }
        if self.entry.told == Some(Outcome::Aborted) && end == Some(Volatile::Committed) {
            self.wrong("reported aborted and its volatile branch is committed");
        }
    }
}
