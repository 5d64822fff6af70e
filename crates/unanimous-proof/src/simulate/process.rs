//! A coordinator's process: it opens its log, builds its manager and serves its clients, dies in several ways, and is started again.
//!
//! Must not know what the clients do, nor what the checks look for.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use unanimous::log::{FileLog, OpenError};
use unanimous::{DeciderId, Decision, Outcome, TransactionManager};
use unanimous_testing::disk::TestDisk;

use super::adapter::SimStore;
use super::client;
use super::coverage::Path;
use super::disk::SimDisk;
use super::executor::{Life, lock};
use super::net::Net;
use super::server::KEEPALIVE;
use super::world::{SimEnv, World};

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// kill -9: what was written stays in the page cache.
    Kill,
    /// The machine loses its power, and what was not synced.
    PowerCut,
    /// Its runtime ends, and the process goes on with another one.
    EndOfRuntime,
}

impl Death {
    /// Now, while the process does something, by the generator's choice of two ways.
    pub(super) fn at_once(world: &World, life: &Arc<Life>) {
        let death = if world.chance(500) { Death::Kill } else { Death::PowerCut };
        world.processes()[life.process].die(world, life, death);
    }
}

/// What one process has, from start to start.
pub(super) struct Process {
    pub(super) index: usize,
    state: Mutex<State>,
}

struct State {
    lives: u32,
    life: Option<Arc<Life>>,
    death: Option<Death>,
    disk: TestDisk,
    backup: Option<TestDisk>,
    /// Its log came from a backup, and was not opened since.
    restored: bool,
    running: Option<Running>,
}

/// A process that serves.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) life: Arc<Life>,
    pub(super) manager: TransactionManager,
    pub(super) log: FileLog,
    pub(super) stores: Vec<SimStore>,
}

impl Process {
    pub(super) fn new(index: usize) -> Self {
        let state = State {
            lives: 0,
            life: None,
            death: None,
            disk: TestDisk::default(),
            backup: None,
            restored: false,
            running: None,
        };
        Self { index, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The manager that serves, where one does.
    pub(super) fn running(&self) -> Option<Running> {
        self.state().running.clone()
    }

    pub(super) fn disk(&self) -> TestDisk {
        self.state().disk.clone()
    }

    /// Keeps the log as it is now, to be restored from later.
    pub(super) fn back_up(&self) {
        let mut state = self.state();
        // Where there is a log: an empty folder is no backup of it.
        if state.running.is_some() {
            state.backup = Some(state.disk.after_kill());
        }
    }

    /// Kills what runs now, if something does.
    pub(super) fn kill(&self, world: &World, death: Death) {
        let life = self.state().life.clone();
        if let Some(life) = life {
            self.die(world, &life, death);
        }
    }

    /// From this moment on nothing of the life reaches the world; it is buried when the executor gets to it.
    pub(super) fn die(&self, world: &World, life: &Arc<Life>, death: Death) {
        let mut state = self.state();
        let current = state.life.as_ref().is_some_and(|its| Arc::ptr_eq(its, life));
        if life.is_dead() || !current || state.death.is_some() {
            return;
        }
        world.note(format_args!("{}.{} dies: {death:?}", life.process, life.number));
        match death {
            Death::EndOfRuntime => {
                life.end_runtime();
                lock(&world.ledger).troubled.insert((life.process, life.number));
            }
            Death::Kill | Death::PowerCut => life.die(),
        }
        if state.running.is_none() {
            world.saw(Path::DiedInBoot);
        }
        state.death = Some(death);
    }

    /// Buries who died, and starts the next life some time later.
    pub(super) fn bury(&self, world: &Arc<World>) {
        let (death, life, running) = {
            let mut state = self.state();
            let Some(death) = state.death.take() else { return };
            (death, state.life.take().expect("only who lives dies"), state.running.take())
        };
        world.executor.drop_tasks(&life, death != Death::EndOfRuntime);
        drop(running);
        let noticed = match death {
            Death::Kill => world.some_time(20_000),
            Death::PowerCut => KEEPALIVE,
            Death::EndOfRuntime => Duration::ZERO,
        };
        if death != Death::EndOfRuntime {
            for server in world.servers() {
                Net::closes(world, &life, server, noticed);
            }
        }
        let seed = world.random();
        let mut restored = false;
        {
            let mut state = self.state();
            match death {
                Death::Kill => {
                    world.saw(Path::Kill);
                    state.disk = state.disk.after_kill();
                }
                Death::PowerCut => {
                    world.saw(Path::PowerCut);
                    state.disk = state.disk.after_power_cut(seed);
                }
                Death::EndOfRuntime => world.saw(Path::RuntimeEnded),
            }
            if death != Death::EndOfRuntime
                && world.plan.log_restores
                && world.fault(600)
                && let Some(backup) = &state.backup
            {
                world.saw(Path::LogRestored);
                world.note(format_args!("{} gets its log from a backup", self.index));
                state.disk = backup.after_kill();
                state.restored = true;
                restored = true;
            }
            if world.plan.disk.full > 0 && !world.has_faults() {
                state.disk.limit(None);
            }
        }
        if restored {
            lock(&world.ledger).log_restores.insert(self.index, world.now());
        }
        let pause = world.some_time(*world.pick(&[10_000, 1_000_000, 4_000_000]));
        let (own, index) = (world.clone(), self.index);
        world.executor.spawn(None, async move {
            own.sleep(pause).await;
            own.processes()[index].start(&own);
        });
    }

    /// Starts a life.
    pub(super) fn start(&self, world: &Arc<World>) {
        let (life, disk, restored) = {
            let mut state = self.state();
            state.lives += 1;
            let life = Life::new(self.index, state.lives);
            state.life = Some(life.clone());
            (life, state.disk.clone(), state.restored)
        };
        world.note(format_args!("{}.{} starts", self.index, life.number));
        let boot = Boot { world: world.clone(), life: life.clone(), disk, restored };
        world.executor.spawn(Some(&life), boot.run());
    }

    /// Its log was opened, and is its own from now on.
    fn opened(&self) {
        self.state().restored = false;
    }

    fn serves(&self, running: Running) {
        self.state().running = Some(running);
    }

    /// Ends what is left when the world ends.
    pub(super) fn clear(&self) {
        let mut state = self.state();
        if let Some(life) = &state.life {
            life.die();
        }
        let running = state.running.take();
        drop(state);
        drop(running);
    }
}

struct Boot {
    world: Arc<World>,
    life: Arc<Life>,
    disk: TestDisk,
    restored: bool,
}

impl Boot {
    async fn run(self) {
        let log = self.open().await;
        let Self { world, life, .. } = &self;
        world.processes()[life.process].opened();
        let down = world.servers().iter().any(|server| server.boot().is_none());
        if down {
            world.saw(Path::StoreDownAtStart);
        }
        let (owner, number) = (unanimous::DecisionLog::owner(&log), life.number);
        world.note(format_args!("{}.{number} owns {}.{}", life.process, owner.log, owner.incarnation));
        let stores: Vec<SimStore> = world
            .servers()
            .iter()
            .map(|server| SimStore::new(Net { world: world.clone(), life: life.clone(), server: server.clone() }))
            .collect();
        let plan = &world.plan;
        let mut builder = TransactionManager::builder(log.clone())
            .env(Arc::new(SimEnv { world: world.clone(), life: life.clone() }))
            .phase_two_wait(plan.phase_two_wait)
            .store_wait(plan.store_wait)
            .recovery_interval(plan.recovery_interval)
            .early_acknowledgement(plan.early());
        if let Some(limit) = plan.time_limit {
            builder = builder.time_limit(limit);
        }
        for store in &stores {
            builder = builder.resource(store.clone());
        }
        let (own, its) = (world.clone(), life.clone());
        builder = builder.observer(move |report| {
            if its.is_dead() {
                return;
            }
            own.note(format_args!("{}.{} reports {} {}", its.process, its.number, report.id, report.outcome));
            if let Some(entry) = lock(&own.ledger).entry(report.id) {
                entry.reported = Some(report.outcome);
            }
        });
        let (own, its) = (world.clone(), life.clone());
        builder = builder.recovery_observer(move |recovered| {
            if !its.is_dead() {
                own.saw(match recovered.decision {
                    Decision::Commit => Path::RecoveredCommit,
                    Decision::Abort => Path::RecoveredRollback,
                });
                if let (Decision::Commit, DeciderId::Together(_)) = (recovered.decision, &recovered.branch.decider) {
                    own.saw(Path::EarlyRecovered);
                }
            }
        });
        let manager = match builder.build().await {
            Ok(manager) => manager,
            Err(error) => return world.violation(format!("a manager could not be built: {error}")),
        };
        world.note(format_args!("{}.{number} serves", life.process));
        let running = Running { life: life.clone(), manager, log, stores };
        world.processes()[life.process].serves(running.clone());
        for _ in 0..plan.clients {
            world.executor.spawn(Some(life), client::serve(world.clone(), running.clone()));
        }
    }

    async fn open(&self) -> FileLog {
        let Self { world, life, disk, restored } = self;
        loop {
            let options = FileLog::options()
                .max_size(world.plan.log_size)
                .horizon(world.plan.horizon)
                .restored_from_backup(*restored)
                .env(Arc::new(SimEnv { world: world.clone(), life: life.clone() }))
                .disk(Arc::new(SimDisk { world: world.clone(), life: life.clone(), disk: disk.clone() }));
            match options.open("log").await {
                Ok(log) => return log,
                // Its disk fails, or is full: somebody starts it again.
                Err(error @ (OpenError::Io { .. } | OpenError::Held { .. })) => {
                    world.note(format_args!("{}.{} can't open its log: {error}", life.process, life.number));
                }
                Err(error) => world.violation(format!("a log that nobody damaged can't be opened: {error}")),
            }
            world.sleep(Duration::from_secs(1)).await;
        }
    }
}

/// What is said of an outcome.
pub(super) fn path_of(outcome: Outcome) -> Path {
    match outcome {
        Outcome::Committed => Path::Committed,
        Outcome::Aborted => Path::Aborted,
        Outcome::Unknown => Path::Unknown,
    }
}
