//! Jobs that block, as tasks of the executor: each runs on a thread of its own, which goes on only while the executor waits for it, so that
//! never two of a world's threads run at once.
//!
//! Must not know what the jobs do.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

pub(super) type Work = Box<dyn FnOnce() + Send>;

/// How far a job came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ran {
    Done,
    /// It waits for its disk, for so long.
    Paused(Duration),
}

enum Order {
    Begin(Work),
    GoOn,
}

/// A thread that works for the executor which owns this.
struct Worker {
    orders: Sender<Order>,
    said: Receiver<Ran>,
}

/// A worker's side.
struct Side {
    orders: Receiver<Order>,
    say: Sender<Ran>,
}

thread_local! {
    /// Of the executor's thread: workers that have nothing to do.
    static IDLE: RefCell<Vec<Worker>> = const { RefCell::new(Vec::new()) };
    /// Of a worker's thread: its side.
    static SIDE: RefCell<Option<Side>> = const { RefCell::new(None) };
}

impl Worker {
    fn new() -> Self {
        let (orders, ordered) = channel();
        let (say, said) = channel();
        let side = Side { orders: ordered, say };
        std::thread::Builder::new()
            .name("simulated".into())
            .spawn(move || serve(side))
            .expect("the system gives the simulator a few threads");
        Self { orders, said }
    }
}

fn serve(side: Side) {
    SIDE.set(Some(side));
    let next = || SIDE.with_borrow(|side| side.as_ref().and_then(|side| side.orders.recv().ok()));
    while let Some(order) = next() {
        let Order::Begin(work) = order else { continue };
        // The job's own guard tells those who wait for it.
        let _ = catch_unwind(AssertUnwindSafe(work));
        say(Ran::Done);
    }
}

fn say(ran: Ran) {
    SIDE.with_borrow(|side| {
        if let Some(side) = side {
            // An executor that has gone does not listen.
            let _ = side.say.send(ran);
        }
    });
}

/// Lets everybody else go on for this long; at once where the caller is not a job with a thread of its own.
pub(super) fn pause(time: Duration) {
    say(Ran::Paused(time));
    SIDE.with_borrow(|side| side.as_ref().map(|side| side.orders.recv()));
}

/// A job that has begun or not.
pub(super) enum Job {
    /// Runs at once, where the executor is: nobody sees it half done.
    Whole(Work),
    /// Gets a thread when it is run first.
    Waiting(Work),
    #[allow(private_interfaces, reason = "made by run only")]
    Begun(Worker),
    Over,
}

impl Job {
    /// Runs it until it pauses or ends.
    pub(super) fn run(&mut self) -> Ran {
        match std::mem::replace(self, Job::Over) {
            Job::Over => Ran::Done,
            Job::Whole(work) => {
                let _ = catch_unwind(AssertUnwindSafe(work));
                Ran::Done
            }
            Job::Waiting(work) => {
                let worker = IDLE.with_borrow_mut(Vec::pop).unwrap_or_else(Worker::new);
                self.order(worker, Order::Begin(work))
            }
            Job::Begun(worker) => self.order(worker, Order::GoOn),
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        matches!(self, Job::Begun(_))
    }

    fn order(&mut self, worker: Worker, order: Order) -> Ran {
        worker.orders.send(order).expect("a worker waits for orders");
        let ran = worker.said.recv().expect("a worker says how far it came");
        match ran {
            Ran::Done => IDLE.with_borrow_mut(|idle| idle.push(worker)),
            Ran::Paused(_) => *self = Job::Begun(worker),
        }
        ran
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_job_goes_on_only_when_it_is_told() {
        let said: Arc<Mutex<Vec<u32>>> = Arc::default();
        let log = said.clone();
        let mut job = Job::Waiting(Box::new(move || {
            log.lock().unwrap().push(1);
            pause(Duration::from_secs(5));
            log.lock().unwrap().push(2);
        }));
        assert!(said.lock().unwrap().is_empty());
        assert_eq!(job.run(), Ran::Paused(Duration::from_secs(5)));
        assert_eq!(*said.lock().unwrap(), [1]);
        assert_eq!(job.run(), Ran::Done);
        assert_eq!(*said.lock().unwrap(), [1, 2]);
    }

    #[test]
    fn a_job_that_panics_is_over() {
        let mut job = Job::Waiting(Box::new(|| std::panic::resume_unwind(Box::new("on purpose"))));
        assert_eq!(job.run(), Ran::Done);
    }
}
