//! One list of all calls, in the order in which they started.
//!
//! A line is `WHO.CALL`, with `!` behind a call that forces a write, and `: FAULT` on a line of its own where the call failed. What
//! only looks (listing, asking for decisions) is kept apart from what acts, so that a test can compare the acts alone.

use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::LONG;

#[derive(Clone, Default)]
pub(crate) struct Journal {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    lines: Mutex<Vec<Line>>,
    grown: Notify,
}

struct Line {
    text: String,
    acts: bool,
}

impl Journal {
    pub(crate) fn act(&self, text: impl Into<String>) {
        self.write(text.into(), true);
    }

    pub(crate) fn look(&self, text: impl Into<String>) {
        self.write(text.into(), false);
    }

    fn write(&self, text: String, acts: bool) {
        self.shared.lines.lock().unwrap().push(Line { text, acts });
        self.shared.grown.notify_waiters();
    }

    /// What acted, in order.
    pub(crate) fn acts(&self) -> Vec<String> {
        self.shared.lines.lock().unwrap().iter().filter(|line| line.acts).map(|line| line.text.clone()).collect()
    }

    /// All lines, in order.
    pub(crate) fn all(&self) -> Vec<String> {
        self.shared.lines.lock().unwrap().iter().map(|line| line.text.clone()).collect()
    }

    /// The acts that force a write, in order.
    pub(crate) fn forced(&self) -> Vec<String> {
        self.acts().into_iter().filter(|line| line.contains('!')).collect()
    }

    /// How many lines are exactly this.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.all().iter().filter(|line| *line == text).count()
    }

    pub(crate) fn clear(&self) {
        self.shared.lines.lock().unwrap().clear();
    }

    /// Waits until a line is there.
    pub(crate) async fn until(&self, text: &str) {
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
