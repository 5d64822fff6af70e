//! Runs futures on the calling thread: what a plain thread has instead of a runtime.
//!
//! [`wait`] polls its future, and the tasks that are [spawned](spawn) from within, on the thread that called it. Tasks that have not
//! ended when the future has are given a thread of their own. A job that blocks, and for which the thread would only wait, can be
//! [lent](lend) its time.
//!
//! Must not know transactions, nor any runtime.

use std::cell::RefCell;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use crate::env::{BoxFuture, Env, NoRuntime};

/// A task, and who can run it elsewhere.
struct Task {
    env: Arc<dyn Env>,
    future: BoxFuture<'static, ()>,
}

/// A job that blocks, and who can run it elsewhere.
struct Job {
    env: Arc<dyn Env>,
    run: Box<dyn FnOnce() + Send>,
}

/// What a [`wait`] was given from within and has not begun.
#[derive(Default)]
struct Given {
    tasks: Vec<Task>,
    jobs: Vec<Job>,
}

thread_local! {
    /// For each [`wait`] of this thread; the innermost is the last.
    static GIVEN: RefCell<Vec<Given>> = const { RefCell::new(Vec::new()) };
}

/// Runs a future to its end on this thread, and gives what it gives.
///
/// It needs no runtime and enters none. What is committed, aborted or joined within runs on this thread as well. Calls nest: a hook that
/// runs here may wait too. Within an async task it would block the thread that other tasks need: await there.
///
/// # Panics
///
/// When the future does.
pub fn wait<F: Future>(future: F) -> F::Output {
    wait_around(future, |park| park.park())
}

/// The same, for a thread that holds what others need while it only waits, as an interpreter's lock: it blocks within `around`, which is called
/// each time that there is nothing to do, and must [park](Park::park).
///
/// # Panics
///
/// When the future or `around` does.
pub fn wait_around<F: Future>(future: F, mut around: impl FnMut(Park<'_>)) -> F::Output {
    // Before the future, so that what is spawned when that is dropped finds the list.
    let mut tasks = Tasks::enter();
    let mut future = pin!(future);
    let parker = Arc::new(Parker { thread: std::thread::current(), woken: AtomicBool::new(false) });
    let waker = Waker::from(parker.clone());
    let mut cx = Context::from_waker(&waker);
    loop {
        let polled = future.as_mut().poll(&mut cx);
        tasks.poll(&mut cx);
        if let Poll::Ready(output) = polled {
            return output;
        }
        if !parker.was_woken() || was_lent() {
            around(Park { parker: &parker });
        }
    }
}

/// Lets the thread of a [`wait_around`] block.
#[derive(Debug)]
#[must_use = "the wait goes round in circles until it is parked"]
pub struct Park<'w> {
    parker: &'w Parker,
}

impl Park<'_> {
    /// Blocks until there is something to do. To be called on the thread that waits.
    pub fn park(self) {
        let lent = GIVEN.with_borrow_mut(|all| all.last_mut().map(|given| std::mem::take(&mut given.jobs)));
        let lent = lent.unwrap_or_default();
        if lent.is_empty() {
            self.parker.park();
        }
        for Job { run, .. } in lent {
            // Who waits for a job that panics is told by its guard, as on a thread of its own.
            if std::panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
                tracing::error!("a job panicked on the thread that waits for it");
            }
        }
    }
}

/// Runs a task to its end within the [`wait`] that this thread is in; outside of any, on a thread of its own.
///
/// # Errors
///
/// When it is outside of any, and there is no thread to be had; the task was dropped then.
pub(crate) fn spawn(env: &Arc<dyn Env>, future: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
    let mut task = Some(Task { env: env.clone(), future });
    // Where the thread is ending there is no list any more.
    let _ = GIVEN.try_with(|all| {
        if let Some(given) = all.borrow_mut().last_mut() {
            given.tasks.extend(task.take());
        }
    });
    task.map_or(Ok(()), elsewhere)
}

/// Runs a job that blocks on this thread as soon as the [`wait`] that it is in has nothing else to do: no other thread is woken, and this one need
/// not be. Outside of any wait it is run as [`Env::blocking`] does. Only for what the thread waits for: timers are not heard meanwhile.
///
/// # Errors
///
/// As [`Env::blocking`]; the job was dropped then.
pub(crate) fn lend(env: &Arc<dyn Env>, run: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
    let mut job = Some(Job { env: env.clone(), run });
    let _ = GIVEN.try_with(|all| {
        if let Some(given) = all.borrow_mut().last_mut() {
            given.jobs.extend(job.take());
        }
    });
    job.map_or(Ok(()), |Job { env, run }| env.blocking(run))
}

/// Whether the wait that this thread is in was lent a job. Others may wait for that too: nothing that could block comes before it.
fn was_lent() -> bool {
    GIVEN.with_borrow(|all| all.last().is_some_and(|given| !given.jobs.is_empty()))
}

fn elsewhere(Task { env, future }: Task) -> Result<(), NoRuntime> {
    env.blocking(Box::new(move || wait(future)))
}

/// The tasks of one [`wait`].
struct Tasks {
    tasks: Vec<Task>,
}

impl Tasks {
    fn enter() -> Self {
        GIVEN.with_borrow_mut(|all| all.push(Given::default()));
        Self { tasks: Vec::new() }
    }

    /// Polls all of them once, those included that are spawned meanwhile; up to the first that lends a job.
    fn poll(&mut self, cx: &mut Context<'_>) {
        let mut polled = 0;
        while !was_lent() {
            GIVEN.with_borrow_mut(|all| {
                if let Some(given) = all.last_mut() {
                    self.tasks.append(&mut given.tasks);
                }
            });
            let Some(task) = self.tasks.get_mut(polled) else { return };
            let future = task.future.as_mut();
            // A task that panics ends alone, as on a runtime.
            match std::panic::catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
                Ok(Poll::Pending) => polled += 1,
                Ok(Poll::Ready(())) => drop(self.tasks.remove(polled)),
                Err(_panic) => {
                    tracing::error!("a task panicked on the thread that waits for it");
                    drop(self.tasks.remove(polled));
                }
            }
        }
    }
}

impl Drop for Tasks {
    /// Also where the future panics: what has started is not ended by that.
    fn drop(&mut self) {
        let given = GIVEN.with_borrow_mut(Vec::pop).unwrap_or_default();
        for task in self.tasks.drain(..).chain(given.tasks) {
            if let Err(error) = elsewhere(task) {
                tracing::error!(%error, "a task that its thread did not wait for is dropped");
            }
        }
        for Job { env, run } in given.jobs {
            if let Err(error) = env.blocking(run) {
                tracing::error!(%error, "a job that its thread did not wait for is dropped");
            }
        }
    }
}

/// Wakes the thread that waits.
#[derive(Debug)]
struct Parker {
    thread: Thread,
    woken: AtomicBool,
}

impl Parker {
    /// Takes the wake that has come, if any.
    fn was_woken(&self) -> bool {
        self.woken.swap(false, Ordering::Acquire)
    }

    fn park(&self) {
        // The thread's own token may be another's, of a wait outside of this one.
        while !self.was_woken() {
            std::thread::park();
        }
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;
    use crate::thread::Background;

    const LONG: Duration = Duration::from_secs(60);

    /// Says on which thread it was polled last, when it was let go.
    fn task(go: oneshot::Receiver<()>) -> (BoxFuture<'static, ()>, mpsc::Receiver<ThreadId>) {
        let (say, hear) = mpsc::channel();
        let task = Box::pin(async move {
            // Let go by a message, or by an end.
            let _ = go.await;
            let _ = say.send(thread::current().id());
        });
        (task, hear)
    }

    #[test]
    fn a_task_runs_on_the_thread_that_waits() {
        let env = Background::start().unwrap().env();
        let (go, going) = oneshot::channel();
        let (first, heard) = task(going);
        wait(async {
            spawn(&env, first).unwrap();
            let (done, waiting) = oneshot::channel();
            let second = async move {
                go.send(()).unwrap();
                tokio::task::yield_now().await;
                done.send(()).unwrap();
            };
            spawn(&env, Box::pin(second)).unwrap();
            waiting.await.unwrap();
        });
        assert_eq!(heard.recv_timeout(LONG), Ok(thread::current().id()));
    }

    #[test]
    fn a_task_that_panics_ends_alone() {
        let env = Background::start().unwrap().env();
        let (say, hear) = oneshot::channel();
        let heard = wait(async {
            spawn(&env, Box::pin(async { panic!("the task panics") })).unwrap();
            spawn(&env, Box::pin(async move { say.send(7).unwrap() })).unwrap();
            hear.await
        });
        assert_eq!(heard, Ok(7));
    }

    #[test]
    fn what_is_left_goes_on_elsewhere_also_after_a_panic() {
        let env = Background::start().unwrap().env();
        for panics in [false, true] {
            let (go, going) = oneshot::channel();
            let (left, heard) = task(going);
            let waited = std::panic::catch_unwind(AssertUnwindSafe(|| {
                wait(async {
                    spawn(&env, left).unwrap();
                    assert!(!panics, "the future panics");
                });
            }));
            assert_eq!(waited.is_err(), panics);
            go.send(()).unwrap();
            assert_ne!(heard.recv_timeout(LONG).unwrap(), thread::current().id());
        }
    }

    #[test]
    fn outside_of_a_wait_a_task_has_a_thread_of_its_own() {
        let env = Background::start().unwrap().env();
        let (go, going) = oneshot::channel();
        let (alone, heard) = task(going);
        spawn(&env, alone).unwrap();
        go.send(()).unwrap();
        assert_ne!(heard.recv_timeout(LONG).unwrap(), thread::current().id());
    }

    #[test]
    fn a_wake_of_an_outer_wait_is_not_lost_in_an_inner_one() {
        let (say, hear) = oneshot::channel::<ThreadId>();
        let (outer, mut woken) = (thread::current().id(), Some(say));
        let mut hear = pin!(hear);
        let heard = wait(std::future::poll_fn(|cx| {
            let polled = hear.as_mut().poll(cx);
            if let Some(say) = woken.take() {
                // Wakes the outer wait while the inner one parks.
                let (done, waiting) = oneshot::channel();
                let other = thread::spawn(move || {
                    say.send(outer).unwrap();
                    done.send(()).unwrap();
                });
                wait(waiting).unwrap();
                other.join().unwrap();
            }
            polled
        }));
        assert_eq!(heard, Ok(outer));
    }

    /// Says on which thread it ran.
    fn job() -> (Box<dyn FnOnce() + Send>, oneshot::Receiver<ThreadId>) {
        let (say, hear) = oneshot::channel();
        let job = Box::new(move || {
            let _ = say.send(thread::current().id());
        });
        (job, hear)
    }

    #[test]
    fn a_job_that_is_waited_for_runs_on_the_thread_that_waits_within_what_is_around_it() {
        let env = Background::start().unwrap().env();
        let mut parked = 0;
        let waited = wait_around(
            async {
                let (job, ran) = job();
                lend(&env, job).unwrap();
                ran.await.unwrap()
            },
            |park| {
                parked += 1;
                park.park();
            },
        );
        assert_eq!((waited, parked), (thread::current().id(), 1));
    }

    #[test]
    fn a_job_that_nobody_waits_for_runs_elsewhere() {
        let env = Background::start().unwrap().env();
        let (outside, ran) = job();
        lend(&env, outside).unwrap();
        assert_ne!(wait(ran).unwrap(), thread::current().id());
        let (late, ran) = job();
        wait(async { lend(&env, late).unwrap() });
        assert_ne!(wait(ran).unwrap(), thread::current().id(), "the wait that it was lent had ended");
    }

    #[test]
    fn a_job_that_panics_ends_alone() {
        let env = Background::start().unwrap().env();
        wait(async {
            let (told, gone) = oneshot::channel::<()>();
            lend(&env, Box::new(move || panic!("a test's own panic, {}", told.is_closed()))).unwrap();
            assert!(gone.await.is_err());
        });
    }
}
