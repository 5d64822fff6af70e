//! Two small things that the standard library leaves to its users: a lock that outlives a panic, and a count that can be waited for.
//!
//! Must not know what is locked or counted.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Locks. State behind these locks is changed in single steps, so a panic elsewhere leaves nothing half done.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many are under way, and a wait for none.
#[derive(Debug)]
pub(crate) struct Gauge {
    count: watch::Sender<usize>,
}

impl Gauge {
    pub(crate) fn new() -> Self {
        Self { count: watch::Sender::new(0) }
    }

    pub(crate) fn add(&self) {
        self.count.send_modify(|count| *count += 1);
    }

    pub(crate) fn remove(&self) {
        self.count.send_modify(|count| *count = count.saturating_sub(1));
    }

    pub(crate) fn count(&self) -> usize {
        *self.count.borrow()
    }

    pub(crate) async fn none(&self) {
        // The sender lives in self, so the wait can't fail.
        let _ = self.count.subscribe().wait_for(|&count| count == 0).await;
    }
}
