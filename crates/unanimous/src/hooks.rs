//! Hooks: what the application wants done before and after a transaction's commit or abort.
//!
//! Here they are registered and called; when is [`ending`](crate::ending)'s. Must not know the protocol, nor any store.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use unanimous_core::{BoxError, Outcome};

use crate::env::BoxFuture;
use crate::error::HookError;
use crate::sync::lock;
use crate::transaction::{State, Tx};

type Done = BoxFuture<'static, Result<(), BoxError>>;
type Hook = Box<dyn FnOnce(Tx) -> Done + Send>;
type OutcomeHook = Box<dyn FnOnce(Tx, Outcome) -> Done + Send>;

/// The hooks that have not run yet, each kind in the order of registration.
#[derive(Default)]
pub(crate) struct Hooks {
    before_commit: VecDeque<Hook>,
    after_commit: VecDeque<OutcomeHook>,
    before_abort: VecDeque<Hook>,
    after_abort: VecDeque<Hook>,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    BeforeCommit,
    AfterCommit(Outcome),
    BeforeAbort,
    AfterAbort,
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Moment::BeforeCommit => "before-commit",
            Moment::AfterCommit(_) => "after-commit",
            Moment::BeforeAbort => "before-abort",
            Moment::AfterAbort => "after-abort",
        }
    }

    fn is_after(self) -> bool {
        matches!(self, Moment::AfterCommit(_) | Moment::AfterAbort)
    }
}

impl State {
    pub(crate) fn next_hook(&mut self, moment: Moment) -> Option<Hook> {
        let hooks = self.hooks.as_mut()?;
        match moment {
            Moment::BeforeCommit => hooks.before_commit.pop_front(),
            Moment::AfterCommit(outcome) => {
                let hook = hooks.after_commit.pop_front()?;
                Some(Box::new(move |tx| hook(tx, outcome)))
            }
            Moment::BeforeAbort => hooks.before_abort.pop_front(),
            Moment::AfterAbort => hooks.after_abort.pop_front(),
        }
    }

    pub(crate) fn has_hook(&self, moment: Moment) -> bool {
        self.hooks.as_ref().is_some_and(|hooks| match moment {
            Moment::BeforeCommit => !hooks.before_commit.is_empty(),
            Moment::AfterCommit(_) => !hooks.after_commit.is_empty(),
            Moment::BeforeAbort => !hooks.before_abort.is_empty(),
            Moment::AfterAbort => !hooks.after_abort.is_empty(),
        })
    }
}

/// Calls a hook; a panic is an error.
pub(crate) async fn call(hook: Hook, tx: Tx) -> Result<(), BoxError> {
    let called = AssertUnwindSafe(async move { hook(tx).await }).catch_unwind().await;
    called.unwrap_or_else(|panic| Err(HookPanicked { message: message(&*panic) }.into()))
}

/// Runs those whose failure changes nothing, also those that they add.
pub(crate) async fn run_all(tx: &Tx, moment: Moment) {
    while let Some(hook) = next(tx, moment) {
        if let Err(error) = call(hook, tx.clone()).await {
            tracing::error!(transaction = %tx.id(), hook = moment.name(), error = &*error as &(dyn Error + 'static),
                "a hook failed; the transaction goes on as if it had not");
        }
    }
}

/// After the last one none is taken any more: a hook that is accepted runs.
fn next(tx: &Tx, moment: Moment) -> Option<Hook> {
    let mut state = lock(&tx.shared.state);
    let hook = state.next_hook(moment);
    if hook.is_none() && moment.is_after() {
        state.hooks_closed = true;
    }
    hook
}

/// What a panicking hook's error is.
#[derive(Debug)]
struct HookPanicked {
    message: String,
}

impl fmt::Display for HookPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it panicked: {}", self.message)
    }
}

impl Error for HookPanicked {}

pub(crate) fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// # Hooks
///
/// Hooks run once, in the order of registration, on the transaction's own detached task, or on its [thread](crate::thread); those that a running hook adds run too, after
/// the others of their kind. They belong to one transaction; for every transaction see [`Synchronizer`](crate::Synchronizer). A
/// savepoint calls none, and a rollback to one takes none back.
///
/// | the transaction | runs |
/// | --- | --- |
/// | is committed, or a branch, the log or the time limit stops its commit | `before_commit`, then the commit, then `after_commit` with the outcome |
/// | is aborted, dropped, doomed, past its time limit before its commit, has a guard in use at its commit, or a savepoint or a `before_commit` hook of it failed | `before_abort`, then the branches are rolled back, then `after_abort` |
///
/// So each transaction runs the after-hooks of one kind only. As with the ancestor, a commit that fails at its branches runs no abort hooks:
/// `after_commit` is told.
impl Tx {
    /// Runs before the commit asks anything of the branches: it may work, join, doom the transaction and add hooks. The transaction is
    /// the [`current`](crate::current) one meanwhile.
    ///
    /// When it fails or panics, the transaction is aborted, and the commit's error says [`Cause::Hook`](crate::Cause::Hook); the
    /// hooks behind it don't run, nor behind one that dooms. The transaction's time limit bounds it; without one, nothing does.
    ///
    /// # Errors
    ///
    /// [`HookError`] when the commit or abort has begun.
    pub fn before_commit<F, Fut>(&self, hook: F) -> Result<(), HookError>
    where
        F: FnOnce(Tx) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.add_hook(Moment::BeforeCommit, |hooks| hooks.before_commit.push_back(Box::new(|tx| Box::pin(hook(tx)))))
    }

    /// Runs after the commit, whether it succeeded or not, before the caller of commit is answered: with [`Outcome::Committed`],
    /// [`Outcome::Aborted`] or [`Outcome::Unknown`].
    ///
    /// It can't join any more, nor change the outcome: that it fails or panics is reported. The caller of commit waits for all of these
    /// hooks together at most the manager's `phase_two_wait`; then they go on behind its back.
    ///
    /// # Errors
    ///
    /// [`HookError`] when those hooks have run.
    pub fn after_commit<F, Fut>(&self, hook: F) -> Result<(), HookError>
    where
        F: FnOnce(Tx, Outcome) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.add_hook(Moment::AfterCommit(Outcome::Unknown), |hooks| {
            hooks.after_commit.push_back(Box::new(|tx, outcome| Box::pin(hook(tx, outcome))));
        })
    }

    /// Runs before the branches of a transaction that is given up are rolled back: it may still read and work, for nothing.
    ///
    /// That it fails or panics is reported and changes nothing. All of these hooks together have the manager's `phase_two_wait`; then the
    /// one that runs is dropped with those behind it, since the branches hold locks.
    ///
    /// # Errors
    ///
    /// [`HookError`] when the commit or abort has begun.
    pub fn before_abort<F, Fut>(&self, hook: F) -> Result<(), HookError>
    where
        F: FnOnce(Tx) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.add_hook(Moment::BeforeAbort, |hooks| hooks.before_abort.push_back(Box::new(|tx| Box::pin(hook(tx)))))
    }

    /// Runs when the branches of a transaction that was given up are rolled back. As [`after_commit`](Self::after_commit) otherwise.
    ///
    /// # Errors
    ///
    /// [`HookError`] when those hooks have run.
    pub fn after_abort<F, Fut>(&self, hook: F) -> Result<(), HookError>
    where
        F: FnOnce(Tx) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.add_hook(Moment::AfterAbort, |hooks| hooks.after_abort.push_back(Box::new(|tx| Box::pin(hook(tx)))))
    }

    fn add_hook(&self, moment: Moment, add: impl FnOnce(&mut Hooks)) -> Result<(), HookError> {
        let mut state = lock(&self.shared.state);
        let open = if moment.is_after() { !state.hooks_closed } else { state.status.is_open() };
        if !open {
            return Err(HookError { id: self.shared.id, hook: moment.name() });
        }
        add(state.hooks.get_or_insert_default());
        Ok(())
    }
}
