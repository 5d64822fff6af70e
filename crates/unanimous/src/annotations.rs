//! What a transaction says of itself, for people, and what its users keep with it.
//!
//! Annotations are in the tracing span of the transaction's end and in its [`Report`](crate::Report); user and note are also in the
//! record of its decision, where there is room.
//!
//! Must not know what the texts mean, nor what the data is.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::sync::Arc;

use unanimous_core::Note;

use crate::sync::lock;
use crate::transaction::{Shared, Tx};

/// What a transaction says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Annotations {
    pub(crate) note: String,
    pub(crate) user: String,
    pub(crate) extended_info: BTreeMap<String, String>,
}

impl Annotations {
    /// What the record of the decision says: `by USER: NOTE`, as much of it as there is.
    ///
    /// The user comes first, so that a long note does not cut it off.
    pub(crate) fn decision_note(&self) -> Note {
        let Self { note, user, extended_info: _ } = self;
        match (user.is_empty(), note.is_empty()) {
            (true, _) => Note::new(note.as_str()),
            (false, true) => Note::new(format!("by {user}")),
            (false, false) => Note::new(format!("by {user}: {note}")),
        }
    }
}

impl Shared {
    pub(crate) fn annotations(&self) -> Annotations {
        lock(&self.state).annotations.clone()
    }

    /// What the record of the decision says.
    pub(crate) fn decision_note(&self) -> Note {
        lock(&self.state).annotations.decision_note()
    }

    /// A span for the transaction's end; only what was said is in it. Nothing is copied where nobody listens.
    pub(crate) fn span(&self) -> tracing::Span {
        let said = |text: fn(&Annotations) -> &String| {
            let text = text(&lock(&self.state).annotations).clone();
            (!text.is_empty()).then(|| tracing::field::display(text))
        };
        let extended_info = || {
            let info = lock(&self.state).annotations.extended_info.clone();
            (!info.is_empty()).then(|| tracing::field::debug(info))
        };
        tracing::info_span!("transaction", id = %self.id, user = said(|said| &said.user), note = said(|said| &said.note),
            extended_info = extended_info())
    }
}

/// Values of any type, by type and key.
pub(crate) type Data = BTreeMap<(TypeId, String), Arc<dyn Any + Send + Sync>>;

/// # Annotations
///
/// Texts for people, in the tracing span of the transaction's end and in its [`Report`](crate::Report); set until then, what comes later
/// is not reported.
///
/// Where a decision log decides, its record says `by USER: NOTE`, cut after 512 bytes ([`Note`]), and left out where the log is nearly full:
/// it is kept on the disk as long as the decision, and shown by `unanimous log show`. Otherwise they are kept in memory only.
impl Tx {
    /// Adds a line to the transaction's note, which is also its [description](Self::description). White space around it is left out.
    pub fn note(&self, text: &str) {
        let text = text.trim();
        let mut state = lock(&self.shared.state);
        let note = &mut state.annotations.note;
        if !note.is_empty() && !text.is_empty() {
            note.push('\n');
        }
        note.push_str(text);
    }

    /// The note's lines.
    pub fn description(&self) -> String {
        lock(&self.shared.state).annotations.note.clone()
    }

    /// Replaces the note.
    pub fn set_description(&self, text: &str) {
        lock(&self.shared.state).annotations.note = text.to_owned();
    }

    /// Sets the user on whose behalf it runs.
    pub fn set_user(&self, user: &str) {
        lock(&self.shared.state).annotations.user = user.to_owned();
    }

    /// Sets the user with the path that the name belongs to, as `PATH NAME`: the ancestor's `setUser`, whose path is `/` by default.
    pub fn set_user_at(&self, path: &str, name: &str) {
        self.set_user(&format!("{path} {name}"));
    }

    /// The user; empty where none was set.
    pub fn user(&self) -> String {
        lock(&self.shared.state).annotations.user.clone()
    }

    /// Sets a text by its name; the last one of a name counts.
    pub fn set_extended_info(&self, name: impl Into<String>, value: impl Into<String>) {
        lock(&self.shared.state).annotations.extended_info.insert(name.into(), value.into());
    }

    /// The texts by their names.
    pub fn extended_info(&self) -> BTreeMap<String, String> {
        lock(&self.shared.state).annotations.extended_info.clone()
    }
}

/// # Data
///
/// Values that are kept with the transaction for whoever takes part in it, such as a cache or what a hook needs. The key is the type and a
/// name, so that two users with types of their own never meet. They are dropped when the transaction has ended, after its
/// [`after_end`](Self::after_end) callbacks; from then on there are none, and none are kept.
impl Tx {
    /// Keeps a value; gives back the one that was there.
    pub fn set_data<T: Send + Sync + 'static>(&self, key: &str, value: T) -> Option<Arc<T>> {
        let value: Arc<dyn Any + Send + Sync> = Arc::new(value);
        let mut state = lock(&self.shared.state);
        if state.is_over() {
            drop(state);
            // Outside of the lock: values do things when they are dropped.
            drop(value);
            return None;
        }
        state.data.insert(key_of::<T>(key), value).and_then(|old| old.downcast().ok())
    }

    /// The value of this type and key.
    pub fn data<T: Send + Sync + 'static>(&self, key: &str) -> Option<Arc<T>> {
        lock(&self.shared.state).data.get(&key_of::<T>(key)).cloned().and_then(|value| value.downcast().ok())
    }
}

fn key_of<T: 'static>(key: &str) -> (TypeId, String) {
    (TypeId::of::<T>(), key.to_owned())
}
