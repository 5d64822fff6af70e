//! What the application does: transactions over some of the stores, with all that an application does wrong.
//!
//! Must not know what goes wrong in the world.

use std::collections::BTreeSet;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use unanimous::{Cause, CommitError, Committed, Options, Outcome, Transaction, TransactionId};

use super::adapter::VolatileBranch;
use super::coverage::Path;
use super::executor::lock;
use super::ledger::Volatile;
use super::net::Net;
use super::process::{Death, Running, path_of};
use super::server::Key;
use super::world::World;

/// The keys of each store; few, so that transactions meet.
pub(super) const KEYS: u64 = 24;

/// A client: one transaction after another, while there are faults.
pub(super) async fn serve(world: Arc<World>, running: Running) {
    for _ in 0..world.plan.transactions {
        if !world.has_faults() {
            break;
        }
        world.sleep(world.some_time(world.plan.think)).await;
        let work = Work { world: world.clone(), running: running.clone() };
        // A join runs in its caller, and so does an adapter's panic in it.
        let transaction = AssertUnwindSafe(work.transaction()).catch_unwind();
        if world.chance(world.plan.cut) {
            let polls = world.between(0, 12);
            if cut(polls, transaction).await.is_none() {
                world.saw(Path::BodyDropped);
            }
        } else {
            drop(transaction.await);
        }
    }
}

/// Polls a future so many times, and drops it then.
async fn cut<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = Some(Box::pin(future));
    let mut left = polls;
    std::future::poll_fn(move |context: &mut Context<'_>| {
        let Some(running) = &mut future else { return Poll::Ready(None) };
        if left == 0 {
            future = None;
            return Poll::Ready(None);
        }
        left -= 1;
        match Pin::as_mut(running).poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

struct Work {
    world: Arc<World>,
    running: Running,
}

impl Work {
    async fn transaction(&self) {
        let world = &self.world;
        let mut options = Options::default().allow("mailer").allow("cache");
        if world.chance(300) {
            options = options.ask_single();
        }
        if world.chance(100) {
            options = options.time_limit(world.some_time(200_000));
        }
        let tx = self.running.manager.begin_with(options);
        let life = &self.running.life;
        world.note(format_args!("{}.{} begins {}", life.process, life.number, tx.id()));
        if !lock(&world.ledger).begin(tx.id(), life.process, life.number, world.now()) {
            world.violation(format!("the id {} was given out twice", tx.id()));
        }
        let Some(wrote) = self.work(&tx).await else {
            // Its work failed: dropped, or ended in order.
            if world.chance(500) {
                tx.abort().await;
            }
            return;
        };
        if world.chance(60) {
            self.hook(&tx);
        }
        if world.chance(30) {
            world.saw(Path::Doomed);
            tx.doom();
        }
        match world.between(0, 99) {
            0..4 => drop(tx),
            4..8 => tx.abort().await,
            8..11 => self.commit_in_use(tx, wrote).await,
            _ => self.commit(tx, wrote).await,
        }
    }

    /// The stores that it has written to; none where something failed.
    async fn work(&self, tx: &Transaction) -> Option<BTreeSet<usize>> {
        let world = &self.world;
        let mut wrote = BTreeSet::new();
        let mut left: Vec<usize> = (0..self.running.stores.len()).collect();
        let count = world.between(1, left.len() as u64).max(world.between(1, left.len() as u64));
        for _ in 0..count {
            let store = left.remove(world.between(0, left.len() as u64 - 1) as usize);
            let store = &self.running.stores[store];
            let savepoint = if world.chance(80) { Some(tx.savepoint().await.ok()?) } else { None };
            let branch = match tx.join(store).await {
                Ok(branch) => branch,
                // It can do with one that can't prepare.
                Err(unanimous::JoinError::SecondUnprepared { .. }) => continue,
                Err(_) => return None,
            };
            let writes = if world.chance(150) { 0 } else { world.between(1, 2) };
            for _ in 0..writes {
                branch.write(world.between(0, KEYS - 1) as Key).await.ok()?;
            }
            let has_written = branch.wrote();
            drop(branch);
            match savepoint {
                Some(savepoint) if world.chance(500) => {
                    world.saw(Path::Savepoint);
                    savepoint.rollback().await.ok()?;
                }
                _ if has_written => drop(wrote.insert(store.index())),
                _ => world.saw(Path::ReadOnly),
            }
        }
        if world.chance(60) {
            let net = Net { world: world.clone(), life: self.running.life.clone(), server: world.servers()[0].clone() };
            if let Some(entry) = lock(&world.ledger).entry(tx.id()) {
                entry.volatile = Some(Volatile::Open);
            }
            tx.join_branch("cache", VolatileBranch { net, transaction: tx.id() }).ok()?;
        }
        if world.plan.note > 0 {
            tx.note(&"n".repeat(world.plan.note));
        }
        Some(wrote)
    }

    async fn commit(&self, tx: Transaction, wrote: BTreeSet<usize>) {
        let world = &self.world;
        let id = tx.id();
        if let Some(entry) = lock(&world.ledger).entry(id) {
            entry.wrote = Some(wrote);
        }
        world.note(format_args!("{}.{} commits {id}", self.running.life.process, self.running.life.number));
        let commit = tx.commit();
        let answer = match world.between(0, 19) {
            0 => cut(world.between(0, 1), commit).await,
            1 => {
                let patience = world.some_time(50_000);
                tokio::select! {
                    biased;
                    answer = commit => Some(answer),
                    () = world.sleep(patience) => None,
                }
            }
            _ => Some(commit.await),
        };
        match answer {
            Some(answer) => self.told(answer),
            None => world.saw(Path::CommitDropped),
        }
    }

    fn hook(&self, tx: &Transaction) {
        let (world, fails) = (self.world.clone(), self.world.chance(200));
        let before = tx.before_commit(move |_| async move {
            world.saw(Path::Hook);
            world.sleep(world.some_time(5_000)).await;
            if fails {
                world.saw(Path::FailedHook);
                return Err("the hook fails".into());
            }
            Ok(())
        });
        let world = self.world.clone();
        let after = tx.after_commit(move |_, _| async move {
            world.sleep(world.some_time(5_000)).await;
            Ok(())
        });
        // Its time limit may have passed meanwhile.
        let _ = before.and(after);
    }

    /// A guard is in use meanwhile.
    async fn commit_in_use(&self, tx: Transaction, wrote: BTreeSet<usize>) {
        let handle = (*tx).clone();
        let Ok(guard) = handle.join(&self.running.stores[0]).await else { return };
        self.world.saw(Path::InUse);
        self.commit(tx, wrote).await;
        drop(guard);
    }

    fn told(&self, answer: Result<Committed, CommitError>) {
        let (world, life) = (&self.world, &self.running.life);
        if life.is_dead() {
            return;
        }
        let (id, outcome) = match &answer {
            Ok(committed) => {
                if committed.pending > 0 {
                    world.saw(Path::Pending);
                }
                (committed.id, Outcome::Committed)
            }
            Err(error @ CommitError::Aborted { .. }) => (error.id(), Outcome::Aborted),
            Err(error @ CommitError::Unknown { .. }) => (error.id(), Outcome::Unknown),
        };
        match answer.as_ref().err().map(CommitError::cause) {
            Some(Cause::TimeLimit) => world.saw(Path::TimeLimit),
            Some(Cause::Branch { source, .. }) if says_not_ready(source) => world.saw(Path::NotReady),
            _ => {}
        }
        world.saw(path_of(outcome));
        let pending = answer.as_ref().map_or(0, |committed| committed.pending);
        if outcome == Outcome::Committed && pending == 0 {
            self.all_is_confirmed(id);
        }
        let why = answer.err().map(|error| format!("{:?}", error.cause()));
        world.note(format_args!("{}.{} told {id}: {outcome} {why:?}", life.process, life.number));
        if let Some(entry) = lock(&world.ledger).entry(id) {
            entry.told = Some(outcome);
            entry.pending = pending;
        }
        if world.fault(world.plan.die * 4) {
            world.saw(Path::DiedWhenTold);
            Death::at_once(world, life);
        }
    }

    /// Who was told that nothing is pending must find nothing prepared.
    fn all_is_confirmed(&self, id: TransactionId) {
        for server in self.world.servers() {
            let came_back = lock(&self.world.ledger).at(id, server.index).is_some_and(|at| at.came_back);
            if !came_back && server.prepared().iter().any(|branch| branch.transaction == id) {
                self.world.violation(format!("{id} is said to be finished, and is prepared in {}", server.name));
            }
        }
    }
}

fn says_not_ready(error: &unanimous::BranchError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<unanimous::log::LogError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// A transaction over all stores, when the faults are over: whether it committed within a generous time.
pub(super) async fn probe(world: &Arc<World>, running: &Running, key: Key) -> Result<(), String> {
    let tx = running.manager.begin_with(Options::default().allow("mailer").time_limit(Duration::from_secs(60)));
    lock(&world.ledger).begin(tx.id(), running.life.process, running.life.number, world.now());
    let mut wrote = BTreeSet::new();
    for store in &running.stores {
        let branch = match tx.join(store).await {
            Ok(branch) => branch,
            Err(unanimous::JoinError::SecondUnprepared { .. }) => continue,
            Err(error) => return Err(format!("a join failed: {error:?}")),
        };
        branch.write(key).await.map_err(|error| format!("a write failed: {error:?}"))?;
        wrote.insert(store.index());
    }
    let id = tx.id();
    if let Some(entry) = lock(&world.ledger).entry(id) {
        entry.wrote = Some(wrote);
    }
    let answer = tokio::select! {
        biased;
        answer = tx.commit() => answer,
        () = world.sleep(Duration::from_secs(30)) => return Err("a commit did not end".to_owned()),
    };
    match answer {
        Ok(_) => {
            if let Some(entry) = lock(&world.ledger).entry(id) {
                entry.told = Some(Outcome::Committed);
            }
            Ok(())
        }
        Err(error) => Err(format!("a commit failed: {:?}", error.cause())),
    }
}
