//! One list of all calls, in the order in which they started.
//!
//! A line is `WHO.CALL`, with `!` behind a call that forces a write, and `: FAULT` on a line of its own where the call failed. What
//! only looks (listing, asking for decisions) is kept apart from what acts, so that a test can compare the acts alone.
//!
//! Must not know who writes into it.

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use tokio::sync::Notify;

use super::{LONG, lock};

/// The list. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Vec<Line>>,
    grown: Notify,
}

#[derive(Debug)]
struct Line {
    text: String,
    acts: bool,
    thread: ThreadId,
}

impl Journal {
    /// Writes down what acts.
    pub fn act(&self, text: impl Into<String>) {
        self.write(text.into(), true);
    }

    /// Writes down what only looks.
    pub fn look(&self, text: impl Into<String>) {
        self.write(text.into(), false);
    }

    fn write(&self, text: String, acts: bool) {
        lock(&self.shared.lines).push(Line { text, acts, thread: thread::current().id() });
        self.shared.grown.notify_waiters();
    }

    /// What acted, in order.
    pub fn acts(&self) -> Vec<String> {
        lock(&self.shared.lines).iter().filter(|line| line.acts).map(|line| line.text.clone()).collect()
    }

    /// The threads that acted, in the order of [`acts`](Self::acts).
    pub fn threads(&self) -> Vec<ThreadId> {
        lock(&self.shared.lines).iter().filter(|line| line.acts).map(|line| line.thread).collect()
    }

    /// All lines, in order.
    pub fn all(&self) -> Vec<String> {
        lock(&self.shared.lines).iter().map(|line| line.text.clone()).collect()
    }

    /// The acts that force a write, in order.
    pub fn forced(&self) -> Vec<String> {
        self.acts().into_iter().filter(|line| line.contains('!')).collect()
    }

    /// How many lines are exactly this.
    pub fn count(&self, text: &str) -> usize {
        self.all().iter().filter(|line| *line == text).count()
    }

    /// Forgets all lines.
    pub fn clear(&self) {
        lock(&self.shared.lines).clear();
    }

    /// Waits until a line is exactly this.
    ///
    /// # Panics
    ///
    /// After [`LONG`], with what there is.
    pub async fn until(&self, text: &str) {
        let waited = tokio::time::timeout(LONG, async {
            loop {
                let mut grown = std::pin::pin!(self.shared.grown.notified());
                grown.as_mut().enable();
                if self.count(text) > 0 {
                    return;
                }
                grown.await;
            }
        });
        assert!(waited.await.is_ok(), "{text:?} was not journaled within {LONG:?}; there is {:#?}", self.all());
    }
}
