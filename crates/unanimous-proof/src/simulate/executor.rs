//! The executor: one thread, a clock that is set, and a seeded generator that chooses who goes next.
//!
//! Who is ready is kept in the order of the tasks' numbers, so that the choice does not depend on the order of wake-ups; time passes only
//! when nobody is ready.
//!
//! Must not know what the tasks do.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use unanimous::env::BoxFuture;
use unanimous_testing::rng::Rng;

use super::threads::{Job, Ran, Work};

/// Locks. Never two threads of a world run at once, so nobody waits here.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One run of a process, from its start to its death.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) process: usize,
    pub(super) number: u32,
    dead: AtomicBool,
    no_runtime: AtomicBool,
}

impl Life {
    pub(super) fn new(process: usize, number: u32) -> Arc<Self> {
        Arc::new(Self { process, number, dead: AtomicBool::new(false), no_runtime: AtomicBool::new(false) })
    }

    /// Nothing that it still does reaches the world.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(super) fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Its runtime has ended: what it spawns is refused.
    pub(super) fn has_no_runtime(&self) -> bool {
        self.no_runtime.load(Ordering::Relaxed) || self.is_dead()
    }

    pub(super) fn end_runtime(&self) {
        self.no_runtime.store(true, Ordering::Relaxed);
    }
}

enum What {
    Future(BoxFuture<'static, ()>),
    Job(Job),
    /// It runs just now.
    Out,
}

struct Task {
    /// None: the world's own.
    life: Option<Arc<Life>>,
    what: What,
    waker: Waker,
}

struct State {
    now: Duration,
    next: u64,
    rng: Rng,
    /// One of so many times a task that is ready is kept waiting; 0: never.
    stall: u64,
    tasks: BTreeMap<u64, Task>,
    ready: BTreeSet<u64>,
    timers: BTreeMap<(Duration, u64), Waker>,
}

pub(super) struct Executor {
    state: Mutex<State>,
}

struct TaskWaker {
    task: u64,
    executor: Weak<Executor>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if let Some(executor) = self.executor.upgrade() {
            let mut state = lock(&executor.state);
            if state.tasks.contains_key(&self.task) {
                state.ready.insert(self.task);
            }
        }
    }
}

/// What a step did.
#[derive(Debug)]
pub(super) enum Step {
    Went,
    /// A task panicked; what it said.
    Panicked(String),
    /// Nothing happens before the limit.
    Nothing,
}

impl Executor {
    pub(super) fn new(rng: Rng, stall: u64) -> Arc<Self> {
        let state = State {
            now: Duration::ZERO,
            next: 0,
            rng,
            stall,
            tasks: BTreeMap::new(),
            ready: BTreeSet::new(),
            timers: BTreeMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    pub(super) fn now(&self) -> Duration {
        lock(&self.state).now
    }

    pub(super) fn spawn(self: &Arc<Self>, life: Option<&Arc<Life>>, future: impl Future<Output = ()> + Send + 'static) {
        self.add(life, What::Future(Box::pin(future)));
    }

    pub(super) fn spawn_boxed(self: &Arc<Self>, life: &Arc<Life>, future: BoxFuture<'static, ()>) {
        self.add(Some(life), What::Future(future));
    }

    /// With `threaded`, it can be seen half done.
    pub(super) fn spawn_job(self: &Arc<Self>, life: &Arc<Life>, work: Work, threaded: bool) {
        self.add(Some(life), What::Job(if threaded { Job::Waiting(work) } else { Job::Whole(work) }));
    }

    fn add(self: &Arc<Self>, life: Option<&Arc<Life>>, what: What) {
        let mut state = lock(&self.state);
        let id = state.next;
        state.next += 1;
        let waker = Waker::from(Arc::new(TaskWaker { task: id, executor: Arc::downgrade(self) }));
        state.tasks.insert(id, Task { life: life.cloned(), what, waker });
        state.ready.insert(id);
    }

    pub(super) fn sleep(self: &Arc<Self>, time: Duration) -> Sleep {
        let deadline = self.now().saturating_add(time);
        Sleep { executor: self.clone(), deadline, key: None }
    }

    fn set_timer(&self, at: Duration, waker: Waker) -> (Duration, u64) {
        let mut state = lock(&self.state);
        let key = (at, state.next);
        state.next += 1;
        state.timers.insert(key, waker);
        key
    }

    /// Lets one task go on, or time pass to the next timer, at most to the limit.
    pub(super) fn step(self: &Arc<Self>, limit: Duration) -> Step {
        let Some((id, mut what, waker)) = self.pick(limit) else { return Step::Nothing };
        let mut context = Context::from_waker(&waker);
        let ran = match &mut what {
            What::Future(future) => {
                catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context))).map(|poll| match poll {
                    Poll::Ready(()) => Some(Ran::Done),
                    Poll::Pending => None,
                })
            }
            What::Job(job) => Ok(Some(job.run())),
            What::Out => Ok(None),
        };
        match ran {
            Ok(Some(Ran::Done)) => self.remove(id, what),
            Ok(None) => self.put_back(id, what),
            Ok(Some(Ran::Paused(time))) => {
                let at = self.now().saturating_add(time);
                self.put_back(id, what);
                self.set_timer(at, waker);
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                self.remove(id, what);
                return Step::Panicked(text.unwrap_or_default());
            }
        }
        Step::Went
    }

    fn pick(&self, limit: Duration) -> Option<(u64, What, Waker)> {
        let mut state = lock(&self.state);
        loop {
            let ready = state.ready.len() as u64;
            if ready > 0 {
                let choice = if ready == 1 { 0 } else { state.rng.between(0, ready - 1) };
                let id = *state.ready.iter().nth(choice as usize).expect("chosen among those that are ready");
                state.ready.remove(&id);
                let stall = state.stall;
                if stall > 0 && state.rng.chance(1, stall) {
                    let at = state.now + Duration::from_micros(state.rng.between(1, 60_000));
                    let key = (at, state.next);
                    state.next += 1;
                    let waker = state.tasks[&id].waker.clone();
                    state.timers.insert(key, waker);
                    continue;
                }
                let task = state.tasks.get_mut(&id).expect("who is ready is a task");
                return Some((id, std::mem::replace(&mut task.what, What::Out), task.waker.clone()));
            }
            let (&(at, number), _) = state.timers.first_key_value()?;
            if at > limit {
                state.now = state.now.max(limit);
                return None;
            }
            let waker = state.timers.remove(&(at, number)).expect("it was there");
            state.now = state.now.max(at);
            drop(state);
            waker.wake();
            state = lock(&self.state);
        }
    }

    fn put_back(&self, id: u64, what: What) {
        let mut state = lock(&self.state);
        match state.tasks.get_mut(&id) {
            Some(task) => task.what = what,
            // It was ended by what it did itself.
            None => {
                drop(state);
                drop(what);
            }
        }
    }

    fn remove(&self, id: u64, what: What) {
        let task = {
            let mut state = lock(&self.state);
            state.ready.remove(&id);
            state.tasks.remove(&id)
        };
        drop((task, what));
    }

    /// Drops the tasks of a life, in the order of their numbers. Jobs that have begun run to their end, as they would on their threads,
    /// except that the disk of a dead process does nothing; with `jobs` false they are left to go on.
    pub(super) fn drop_tasks(&self, life: &Arc<Life>, jobs: bool) {
        let of_it = |task: &Task| task.life.as_ref().is_some_and(|its| Arc::ptr_eq(its, life));
        let doomed: Vec<u64> = lock(&self.state)
            .tasks
            .iter()
            .filter(|(_, task)| of_it(task) && (jobs || !matches!(task.what, What::Job(_))))
            .map(|(id, _)| *id)
            .collect();
        for id in doomed {
            let task = {
                let mut state = lock(&self.state);
                state.ready.remove(&id);
                state.tasks.remove(&id)
            };
            if let Some(Task { what: What::Job(mut job), .. }) = task {
                while job.has_begun() && job.run() != Ran::Done {}
            }
        }
    }

    /// Ends the world: nothing of it runs any more.
    pub(super) fn drop_all(&self) {
        loop {
            let task = {
                let mut state = lock(&self.state);
                state.ready.clear();
                state.tasks.pop_first()
            };
            match task {
                Some((_, Task { what: What::Job(mut job), .. })) => while job.has_begun() && job.run() != Ran::Done {},
                Some(_) => {}
                None => break,
            }
        }
        let timers = std::mem::take(&mut lock(&self.state).timers);
        drop(timers);
    }
}

/// A wait.
pub(super) struct Sleep {
    executor: Arc<Executor>,
    deadline: Duration,
    key: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.executor.now() >= self.deadline {
            return Poll::Ready(());
        }
        let waker = context.waker().clone();
        match self.key {
            Some(key) => drop(lock(&self.executor.state).timers.insert(key, waker)),
            None => self.key = Some(self.executor.set_timer(self.deadline, waker)),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = lock(&self.executor.state).timers.remove(&key);
            drop(waker);
        }
    }
}
