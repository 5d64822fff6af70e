//! What happens to processes and stores from outside: kills, power cuts, shutdowns, crashes, restores, operators; and an auditor who asks
//! for decisions again and again.
//!
//! Must not know what follows from it.

use std::sync::Arc;
use std::time::Duration;

use unanimous::log::LogError;
use unanimous::{Capability, Decider as _, DeciderId, Decision, DecisionLog as _, Doubt, Known, TransactionId};

use super::coverage::Path;
use super::executor::lock;
use super::process::{Death, Running};
use super::world::World;

/// Sets everything up that happens in the chaos.
pub(super) fn start(world: &Arc<World>) {
    let plan = &world.plan;
    if plan.down_at_start {
        let server = world.between(0, world.servers().len() as u64 - 1) as usize;
        world.servers()[server].stop(world);
        let back = world.some_time(3_000_000);
        later(world, back, move |world| world.servers()[server].start());
    }
    for _ in 0..plan.kills {
        let (process, death) = (a_process(world), *world.pick(&[Death::Kill, Death::PowerCut]));
        some_time(world, move |world| world.processes()[process].kill(world, death));
    }
    for _ in 0..plan.ended_runtimes {
        let process = a_process(world);
        some_time(world, move |world| world.processes()[process].kill(world, Death::EndOfRuntime));
    }
    for _ in 0..plan.shutdowns {
        let process = a_process(world);
        some_time(world, move |world| shut_down(world, process));
    }
    for _ in 0..plan.store_crashes {
        let server = world.between(0, world.servers().len() as u64 - 1) as usize;
        some_time(world, move |world| crash_store(world, server, false));
    }
    for _ in 0..plan.store_restores {
        let two_phase = world.servers().iter().filter(|server| server.capability == Capability::TwoPhase).count();
        let server = world.between(0, two_phase as u64 - 1) as usize;
        some_time(world, move |world| back_up(world, server, 200));
        some_time(world, move |world| crash_store(world, server, true));
    }
    if plan.log_restores {
        for process in 0..plan.processes {
            some_time(world, move |world| world.processes()[process].back_up());
        }
    }
    for _ in 0..plan.operators {
        some_time(world, operate);
    }
    for _ in 0..plan.disk.full {
        let process = a_process(world);
        some_time(world, move |world| fill_disk(world, process));
    }
    for process in 0..plan.processes {
        let own = world.clone();
        world.executor.spawn(None, async move { supervise(own, process).await });
    }
}

fn a_process(world: &World) -> usize {
    world.between(0, world.plan.processes as u64 - 1) as usize
}

fn later(world: &Arc<World>, after: Duration, act: impl FnOnce(&Arc<World>) + Send + 'static) {
    let own = world.clone();
    world.executor.spawn(None, async move {
        own.sleep(after).await;
        act(&own);
    });
}

fn some_time(world: &Arc<World>, act: impl FnOnce(&Arc<World>) + Send + 'static) {
    let most = world.plan.chaos.as_micros() as u64;
    later(world, world.some_time(most), act);
}

fn shut_down(world: &Arc<World>, process: usize) {
    let Some(running) = world.processes()[process].running() else { return };
    let (own, life) = (world.clone(), running.life.clone());
    world.saw(Path::Shutdown);
    world.note(format_args!("{}.{} shuts down", life.process, life.number));
    let deadline = world.some_time(2_000_000);
    world.executor.spawn(Some(&life.clone()), async move {
        if running.manager.shutdown(deadline).await.is_err() {
            own.saw(Path::Undrained);
        }
        let death = *own.pick(&[Death::Kill, Death::PowerCut, Death::EndOfRuntime]);
        own.processes()[process].die(&own, &life, death);
    });
}

pub(super) fn crash_store(world: &Arc<World>, server: usize, restore: bool) {
    let own = &world.servers()[server];
    if own.boot().is_none() {
        return;
    }
    world.note(format_args!("{} crashes", own.name));
    world.saw(Path::StoreCrash);
    own.stop(world);
    if restore && own.restore(world) {
        world.saw(Path::StoreRestored);
        world.note(format_args!("{} is restored", own.name));
    }
    let down = world.some_time(*world.pick(&[1_000, 200_000, 5_000_000, 15_000_000]));
    later(world, down, move |world| world.servers()[server].start());
}

/// Soon, at a moment when something is prepared; what is so comes back with a restore.
fn back_up(world: &Arc<World>, server: usize, tries: u32) {
    let own = &world.servers()[server];
    if own.prepared().is_empty() && tries > 0 {
        later(world, world.some_time(20_000), move |world| back_up(world, server, tries - 1));
        return;
    }
    world.note(format_args!("{} is backed up", own.name));
    own.back_up();
}

fn operate(world: &Arc<World>) {
    let mut listed = Vec::new();
    for server in world.servers() {
        listed.extend(server.prepared().into_iter().map(|id| (server, id)));
    }
    if listed.is_empty() {
        let again = world.clone();
        if world.has_faults() {
            // What is prepared is so for a moment only, mostly.
            later(&again, world.some_time(20_000), operate);
        }
        return;
    }
    let (server, id) = world.pick(&listed).clone();
    let decision = *world.pick(&[Decision::Commit, Decision::Abort]);
    world.note(format_args!("an operator ends {id} in {}: {decision:?}", server.name));
    if server.by_hand(world, &id, decision) {
        world.saw(match decision {
            Decision::Commit => Path::OperatorCommit,
            Decision::Abort => Path::OperatorRollback,
        });
    }
}

fn fill_disk(world: &Arc<World>, process: usize) {
    world.saw(Path::DiskFull);
    world.note(format_args!("the disk of {process} is full"));
    let disk = world.processes()[process].disk();
    disk.limit(Some(disk.used() + world.between(0, 4_000)));
    let full = world.some_time(4_000_000);
    later(world, full, move |world| world.processes()[process].disk().limit(None));
}

/// Restarts a process that says it must be, and asks for decisions.
async fn supervise(world: Arc<World>, process: usize) {
    loop {
        world.sleep(Duration::from_millis(700)).await;
        let Some(running) = world.processes()[process].running() else { continue };
        let poisoned = matches!(running.log.ready(), Err(error) if error.downcast_ref::<LogError>().is_some_and(
            |error| matches!(error, LogError::Poisoned(_))));
        let undecided = running.manager.in_doubt().iter().any(|doubt| doubt.why == Doubt::Undecided);
        if poisoned || undecided {
            world.saw(Path::Poisoned);
            world.note(format_args!("{process} is restarted by its supervisor"));
            let death = *world.pick(&[Death::Kill, Death::PowerCut]);
            world.processes()[process].die(&world, &running.life, death);
            continue;
        }
        let life = running.life.clone();
        world.executor.spawn(Some(&life), audit(world.clone(), running));
    }
}

/// Looks some decisions up: of earlier lives, and of what its client was told the end of.
async fn audit(world: Arc<World>, running: Running) {
    nothing_is_forgotten(&world, &running).await;
    let process = running.life.process;
    let mut known: Vec<TransactionId> = Vec::new();
    {
        let ledger = lock(&world.ledger);
        let settled = ledger.transactions.iter().filter(|(id, entry)| {
            entry.process == process
                && id.log == running.log.owner().log
                && (entry.life < running.life.number || entry.told.is_some())
        });
        known.extend(settled.map(|(id, _)| *id));
    }
    if known.is_empty() {
        return;
    }
    for _ in 0..3 {
        let id = *world.pick(&known);
        look_up(&world, &running, id).await;
    }
}

/// A decision of which a branch is still prepared counts as unfinished.
async fn nothing_is_forgotten(world: &World, running: &Running) {
    let own = running.log.owner().log;
    for (server, id) in
        world.servers().iter().flat_map(|server| server.prepared().into_iter().map(move |id| (server, id)))
    {
        if id.transaction.log != own || matches!(id.decider, DeciderId::Store(_)) {
            continue;
        }
        let Ok(Known::Commit(record)) = running.log.lookup(id.transaction).await else { continue };
        let listed = record.participants.iter().any(|participant| participant.number == id.number);
        let Ok(unfinished) = running.log.unfinished().await else { continue };
        let forgotten = unfinished.iter().all(|record| record.transaction != id.transaction);
        let came_back = lock(&world.ledger).at(id.transaction, server.index).is_some_and(|at| at.came_back);
        if listed && forgotten && !came_back && server.prepared().contains(&id) {
            world.violation(format!("the decision of {id} is forgotten, and it is prepared in {}", server.name));
        }
    }
}

/// Asks the log, and compares with what it said before.
pub(super) async fn look_up(world: &World, running: &Running, id: TransactionId) {
    // Of one that may have been acknowledged early the log presumes nothing, and nobody else may.
    let known = match world.plan.early() {
        true => running.log.recorded(id).await,
        false => running.log.lookup(id).await.map(Some),
    };
    let Ok(Some(known)) = known else { return };
    let (decision, record) = match known {
        Known::Commit(record) => (Decision::Commit, Some(record)),
        Known::Abort => (Decision::Abort, None),
        Known::Hold(_) => return,
    };
    let mut changed = None;
    if let Some(entry) = lock(&world.ledger).entry(id) {
        if entry.by_log && decision == Decision::Abort {
            changed = Some(Decision::Commit);
        }
        match entry.looked_up {
            Some(before) if before != decision => changed = Some(before),
            Some(_) => world.saw(Path::LookupAgain),
            None => {}
        }
        if entry.record.is_some() && record.is_some() && entry.record != record {
            changed = Some(Decision::Commit);
        }
        entry.looked_up = Some(decision);
        entry.record = record.or(entry.record.take());
    }
    if let Some(before) = changed {
        world.violation(format!("the decision of {id} changed from {before:?} to {decision:?}"));
    }
}
