//! What everything in a simulated world shares: clock, generator, trace, counts, and what is known of each transaction.
//!
//! Must not know what any of them does with it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use unanimous::env::{BoxFuture, Env, NoRuntime};
use unanimous_testing::rng::Rng;

use super::coverage::{Coverage, Path};
use super::executor::{Executor, Life, Sleep, lock};
use super::ledger::Ledger;
use super::plan::{PerMille, Plan};
use super::process::Process;
use super::server::Server;
use super::trace::Trace;

/// Microseconds since 1970 at the beginning of every world.
const EPOCH: u64 = 1_700_000_000_000_000;

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) executor: Arc<Executor>,
    pub(super) ledger: Mutex<Ledger>,
    rng: Mutex<Rng>,
    trace: Mutex<Trace>,
    coverage: Mutex<Coverage>,
    violations: Mutex<Vec<String>>,
    faults: AtomicBool,
    servers: OnceLock<Vec<Arc<Server>>>,
    processes: OnceLock<Vec<Process>>,
}

impl World {
    pub(super) fn new(seed: u64, keep: bool) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(&mut rng);
        let world = Arc::new(Self {
            executor: Executor::new(rng.split(), plan.stall),
            plan,
            ledger: Mutex::default(),
            rng: Mutex::new(rng),
            trace: Mutex::new(Trace::new(keep)),
            coverage: Mutex::default(),
            violations: Mutex::default(),
            faults: AtomicBool::new(true),
            servers: OnceLock::new(),
            processes: OnceLock::new(),
        });
        let plan = &world.plan;
        let servers = plan.stores.iter().enumerate().map(|(i, store)| Server::new(i, store, plan.replicates(store)));
        let servers = servers.collect();
        let _ = world.servers.set(servers);
        let _ = world.processes.set((0..world.plan.processes).map(Process::new).collect());
        world
    }

    pub(super) fn servers(&self) -> &[Arc<Server>] {
        self.servers.get().expect("set when the world began")
    }

    pub(super) fn processes(&self) -> &[Process] {
        self.processes.get().expect("set when the world began")
    }

    pub(super) fn note(&self, event: fmt::Arguments<'_>) {
        let now = self.executor.now();
        lock(&self.trace).note(now, event);
    }

    pub(super) fn trace(&self) -> std::sync::MutexGuard<'_, Trace> {
        lock(&self.trace)
    }

    pub(super) fn saw(&self, path: Path) {
        lock(&self.coverage).saw(path);
    }

    pub(super) fn coverage(&self) -> Coverage {
        lock(&self.coverage).clone()
    }

    pub(super) fn violation(&self, text: String) {
        self.note(format_args!("VIOLATION {text}"));
        lock(&self.violations).push(text);
    }

    pub(super) fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.violations))
    }

    /// Whether anything may go wrong (any more).
    pub(super) fn has_faults(&self) -> bool {
        self.faults.load(Ordering::Relaxed)
    }

    pub(super) fn end_faults(&self) {
        self.faults.store(false, Ordering::Relaxed);
    }

    pub(super) fn random(&self) -> u64 {
        lock(&self.rng).next()
    }

    pub(super) fn between(&self, low: u64, high: u64) -> u64 {
        lock(&self.rng).between(low, high)
    }

    /// True so often of a thousand times.
    pub(super) fn chance(&self, part: PerMille) -> bool {
        part > 0 && lock(&self.rng).chance(part, 1000)
    }

    /// A fault that happens so often of a thousand times, while there are faults.
    pub(super) fn fault(&self, part: PerMille) -> bool {
        self.has_faults() && self.chance(part)
    }

    pub(super) fn pick<'a, T>(&self, items: &'a [T]) -> &'a T {
        lock(&self.rng).pick(items)
    }

    pub(super) fn now(&self) -> Duration {
        self.executor.now()
    }

    pub(super) fn sleep(&self, time: Duration) -> Sleep {
        self.executor.sleep(time)
    }

    /// Up to so many microseconds, at least one.
    pub(super) fn some_time(&self, most: u64) -> Duration {
        Duration::from_micros(self.between(1, most.max(1)))
    }

    pub(super) fn wall_clock(&self) -> u64 {
        EPOCH + u64::try_from(self.now().as_micros()).unwrap_or(u64::MAX / 2)
    }
}

/// A process's surroundings.
pub(super) struct SimEnv {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
}

impl Env for SimEnv {
    fn monotonic(&self) -> Duration {
        self.world.now()
    }

    fn wall_clock(&self) -> u64 {
        self.world.wall_clock()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.world.sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        if self.life.has_no_runtime() {
            return Err(NoRuntime);
        }
        self.world.executor.spawn_boxed(&self.life, task);
        Ok(())
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        if self.life.has_no_runtime() {
            return Err(NoRuntime);
        }
        let threaded = self.world.chance(self.world.plan.threaded);
        self.world.executor.spawn_job(&self.life, job, threaded);
        Ok(())
    }

    fn random(&self) -> u64 {
        self.world.random()
    }
}
