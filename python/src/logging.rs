//! What the core traces as a warning or worse, to Python's logger `unanimous`.
//!
//! A thread of its own calls Python: whoever traces may hold what a thread waits for that has Python's lock.
//!
//! Must not know what is traced, nor by whom.

use std::fmt::{self, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Subscriber;
use tracing::{Event, Level, Metadata};

enum Message {
    /// A level of Python's, and a text.
    Said(u8, String),
    /// All that came before has been handed over.
    Flush(Sender<()>),
}

/// Where to, and the process whose thread listens there: a forked one has to start its own.
static LISTENER: Mutex<Option<Listener>> = Mutex::new(None);

type Listener = (u32, Sender<Message>);

/// How long an end waits for what was said.
const FLUSH: Duration = Duration::from_secs(1);

/// Python's levels.
const WARNING: u8 = 30;
const ERROR: u8 = 40;

struct ToPython;

impl Subscriber for ToPython {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.is_event()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = if *event.metadata().level() == Level::ERROR { ERROR } else { WARNING };
        send(Message::Said(level, text.finish()));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event on one line: its message, and its fields in brackets.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(self) -> String {
        if self.fields.is_empty() { self.message } else { format!("{} ({})", self.message, self.fields) }
    }
}

impl Visit for Text {
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{}", crate::engine::told(value)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // A string takes whatever is written into it.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            let comma = if self.fields.is_empty() { "" } else { ", " };
            write!(self.fields, "{comma}{}: {value:?}", field.name())
        };
    }
}

/// The lock is held for moments only. A fork in such a moment leaves it locked in the child, which does without what is traced then.
fn listener() -> Option<MutexGuard<'static, Option<Listener>>> {
    for _ in 0..1000 {
        match LISTENER.try_lock() {
            Ok(listener) => return Some(listener),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    }
    None
}

fn send(message: Message) {
    if let Some(listener) = listener()
        && let Some((_, sender)) = listener.as_ref()
    {
        // Nobody listens where the interpreter has ended.
        let _ = sender.send(message);
    }
}

/// From here on what is traced goes to Python's logger; once for each process. Another subscriber that is there stays.
pub(crate) fn start() {
    let Some(mut listener) = listener() else { return };
    let process = std::process::id();
    if listener.as_ref().is_some_and(|(whose, _)| *whose == process) {
        return;
    }
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("unanimous logging".into());
    if thread.spawn(move || listen(&receiver)).is_err() {
        return;
    }
    // The parent's would be told of an end that is not its own.
    if let Some((_, parents)) = listener.replace((process, sender)) {
        std::mem::forget(parents);
    }
    drop(listener);
    // Refused where it was set before the fork.
    let _ = tracing::subscriber::set_global_default(ToPython);
}

fn listen(receiver: &Receiver<Message>) {
    for message in receiver {
        match message {
            Message::Said(level, text) => {
                // What a logging handler raises is nobody's concern.
                let _ = Python::attach(|py| -> PyResult<()> {
                    let log = py.import("logging")?.call_method1("getLogger", ("unanimous",))?;
                    log.call_method1("log", (level, "%s", text)).map(drop)
                });
            }
            Message::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

/// Waits until what was said has been handed over, a second at most.
pub(crate) fn flush() {
    let (done, wait) = mpsc::channel();
    send(Message::Flush(done));
    let _ = wait.recv_timeout(FLUSH);
}
