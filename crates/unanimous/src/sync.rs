//! Two small things that the standard library leaves to its users: a lock that outlives a panic, and a count that can be waited for.
//!
//! Must not know what is locked or counted.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Locks. State behind these locks is changed in single steps, so a panic elsewhere leaves nothing half done.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many are under way, and a wait for none.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    count: AtomicUsize,
    none: Notify,
}

impl Gauge {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Whoever adds and looks at something then, and whoever changes that and counts then: one of the two sees the other.
    pub(crate) fn add(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn remove(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none.notify_waiters();
        }
    }

    pub(crate) fn count(&self) -> usize {
        fence(Ordering::SeqCst);
        self.count.load(Ordering::Acquire)
    }

    pub(crate) async fn none(&self) {
        loop {
            // Before the look, so that a last one that leaves between the two is heard.
            let mut none = std::pin::pin!(self.none.notified());
            none.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }
}
