//! Keeps the application's work inside its transaction: the vote must not lie.
//!
//! SQLite lets any statement end the transaction that it runs in, and goes on in autocommit mode. Three hooks that
//! SQLite calls see to it that this can't go unnoticed while the application's work runs:
//!
//! - the authorizer refuses BEGIN, COMMIT and ROLLBACK when they are compiled, and so harms nothing;
//! - the rollback hook sees what no statement announces: `INSERT OR ROLLBACK`, `RAISE(ROLLBACK)`, a full disk;
//! - the commit hook turns what runs after that, each statement on its own, into a rollback.
//!
//! The application's work has the connection and could replace the hooks. Each is a closure that owns a [`Seal`]:
//! replaced, it is dropped, and the seal says so.
//!
//! Must not know the protocol or our tables' meaning, only their names.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization, TransactionOperation};
use rusqlite::{Connection, InterruptHandle};

use super::error::{Broken, Ended};
use super::rows::is_ours;
use super::savepoint;
use crate::sync::lock;

/// How often a running statement looks whether it should stop, in SQLite's virtual machine instructions: well under a
/// millisecond.
const PROGRESS_STEPS: i32 = 1000;

/// One branch, as its handle and its thread share it.
#[derive(Default)]
pub(super) struct Life {
    stop: AtomicBool,
    /// There while the application's work runs, and only then: our own COMMIT is never interrupted.
    running: Mutex<Option<InterruptHandle>>,
    end: Mutex<Option<Ended>>,
}

impl Life {
    /// From now on the branch can only be rolled back; work that runs is interrupted at its next statement, if it
    /// issues any.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(handle) = &*lock(&self.running) {
            handle.interrupt();
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// How the branch has ended, if its thread has said so.
    pub(super) fn ended(&self) -> Option<Ended> {
        *lock(&self.end)
    }

    /// The first end counts.
    pub(super) fn end(&self, how: Ended) {
        lock(&self.end).get_or_insert(how);
    }
}

/// What the hooks of one connection have seen since the branch began.
#[derive(Default)]
struct Seen {
    /// Whether the application's work is running; our own statements are nobody's business.
    working: bool,
    broken: Option<Broken>,
    forbidden: Option<&'static str>,
    /// Something that changes no rows and is durable all the same was compiled: DDL, `PRAGMA user_version`.
    changed_otherwise: bool,
    /// The connection is not as it was: temporary tables, settings. It must not be given to the next branch.
    altered: bool,
    life: Arc<Life>,
}

/// The guard of one connection.
#[derive(Clone, Default)]
pub(super) struct Guard {
    seen: Arc<Mutex<Seen>>,
    unsealed: Arc<AtomicBool>,
}

/// What one piece of work did, apart from its result.
pub(super) struct Verdict {
    pub(super) broken: Option<Broken>,
    pub(super) forbidden: Option<&'static str>,
}

impl Guard {
    /// Puts the hooks on a connection. Whatever hooks were there are gone.
    pub(super) fn install(conn: &Connection) -> rusqlite::Result<Self> {
        let guard = Self::default();
        let seal = guard.seal();
        conn.authorizer(Some(move |context: AuthContext<'_>| seal.guard.authorize(&context.action)))?;
        let seal = guard.seal();
        conn.commit_hook(Some(move || seal.guard.refuses_commit()))?;
        let seal = guard.seal();
        conn.rollback_hook(Some(move || seal.guard.rolled_back()))?;
        // This one may be replaced: then a rollback waits for the statement that runs, unless the interrupt hits it.
        let own = guard.clone();
        conn.progress_handler(PROGRESS_STEPS, Some(move || own.should_stop()))?;
        Ok(guard)
    }

    /// A new branch begins on the connection.
    pub(super) fn begin(&self, life: Arc<Life>) {
        *self.seen() = Seen { life, ..Seen::default() };
    }

    /// The application's work begins.
    ///
    /// # Errors
    ///
    /// When the branch is being rolled back: the work must not run.
    pub(super) fn enter(&self, conn: &Connection) -> Result<(), Ended> {
        let mut seen = self.seen();
        let life = Arc::clone(&seen.life);
        let mut running = lock(&life.running);
        if life.is_stopped() {
            return Err(Ended::RolledBack);
        }
        *running = Some(conn.get_interrupt_handle());
        seen.working = true;
        Ok(())
    }

    /// The application's work has ended.
    pub(super) fn leave(&self) -> Verdict {
        let mut seen = self.seen();
        *lock(&seen.life.running) = None;
        seen.working = false;
        if self.unsealed.load(Ordering::SeqCst) {
            seen.broken = Some(Broken::HooksReplaced);
        }
        Verdict { broken: seen.broken.clone(), forbidden: seen.forbidden.take() }
    }

    /// Whether something durable was compiled that changes no rows. Conservative: it may not have run, or changed
    /// nothing.
    pub(super) fn changed_otherwise(&self) -> bool {
        self.seen().changed_otherwise
    }

    /// Whether the next branch would find the connection as a new one.
    pub(super) fn is_unaltered(&self) -> bool {
        !self.seen().altered && !self.unsealed.load(Ordering::SeqCst)
    }

    fn seal(&self) -> Seal {
        Seal { guard: self.clone() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    fn authorize(&self, action: &AuthAction<'_>) -> Authorization {
        let mut seen = self.seen();
        if !seen.working {
            return Authorization::Allow;
        }
        if seen.life.is_stopped() {
            return Authorization::Deny;
        }
        match judge(action) {
            Judgement::Harmless => Authorization::Allow,
            Judgement::Changes => {
                seen.changed_otherwise = true;
                // A compiled statement of this kind could be cached and run again without being judged, so its
                // connection goes.
                seen.altered = true;
                Authorization::Allow
            }
            Judgement::Forbidden(what) => {
                seen.forbidden = Some(what);
                Authorization::Deny
            }
            Judgement::Ends(statement) => {
                seen.broken.get_or_insert(Broken::TransactionStatement { statement });
                Authorization::Deny
            }
        }
    }

    /// The commit hook: true turns the commit into a rollback.
    fn refuses_commit(&self) -> bool {
        let mut seen = self.seen();
        if seen.working {
            seen.broken.get_or_insert(Broken::RanOutside);
        }
        seen.working
    }

    fn rolled_back(&self) {
        let mut seen = self.seen();
        if seen.working {
            seen.broken.get_or_insert(Broken::RolledBack);
        }
    }

    fn should_stop(&self) -> bool {
        let seen = self.seen();
        seen.working && seen.life.is_stopped()
    }
}

/// Owned by each hook's closure: dropped when the hook is replaced (or the connection closed).
struct Seal {
    guard: Guard,
}

impl Drop for Seal {
    fn drop(&mut self) {
        self.guard.unsealed.store(true, Ordering::SeqCst);
    }
}

/// What compiling a statement means for the branch.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// It reads, or changes rows, which SQLite counts.
    Harmless,
    /// It may change what SQLite does not count.
    Changes,
    /// It must not run within a branch.
    Forbidden(&'static str),
    /// It would end the transaction or begin another.
    Ends(&'static str),
}

fn judge(action: &AuthAction<'_>) -> Judgement {
    match *action {
        AuthAction::Transaction { operation } => Judgement::Ends(match operation {
            TransactionOperation::Begin => "BEGIN",
            TransactionOperation::Rollback => "ROLLBACK",
            _ => "COMMIT",
        }),
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => Judgement::Forbidden(
            "ATTACH and DETACH, since a commit over two files is not atomic in a crash; open each file as a store of its own",
        ),
        AuthAction::Pragma { pragma_name, pragma_value } => judge_pragma(pragma_name, pragma_value.is_some()),
        AuthAction::Insert { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Delete { table_name }
        | AuthAction::DropTable { table_name }
        | AuthAction::AlterTable { table_name, .. }
        | AuthAction::CreateTrigger { table_name, .. }
        | AuthAction::CreateTempTrigger { table_name, .. }
        | AuthAction::DropIndex { table_name, .. }
            if is_ours(table_name) =>
        {
            Judgement::Forbidden("changing the tables of unanimous, which decide what has committed")
        }
        AuthAction::Savepoint { savepoint_name, .. } if savepoint::is_ours(savepoint_name) => {
            Judgement::Forbidden("savepoints named unanimous_savepoint_..., which are the transaction's own")
        }
        AuthAction::Insert { .. }
        | AuthAction::Update { .. }
        | AuthAction::Delete { .. }
        | AuthAction::Read { .. }
        | AuthAction::Select
        | AuthAction::Function { .. }
        | AuthAction::Recursive
        | AuthAction::Savepoint { .. } => Judgement::Harmless,
        _ => Judgement::Changes,
    }
}

fn judge_pragma(name: &str, has_value: bool) -> Judgement {
    let is = |names: &[&str]| names.iter().any(|known| name.eq_ignore_ascii_case(known));
    let durability =
        ["journal_mode", "synchronous", "locking_mode", "query_only", "fullfsync", "checkpoint_fullfsync"].as_slice();
    // These take what they ask about as their value.
    let questions = [
        "table_info",
        "table_xinfo",
        "table_list",
        "index_info",
        "index_xinfo",
        "index_list",
        "foreign_key_list",
        "foreign_key_check",
        "integrity_check",
        "quick_check",
    ]
    .as_slice();
    if has_value && is(durability) {
        Judgement::Forbidden(
            "settings that the commit's durability rests on (journal_mode, synchronous and their like)",
        )
    } else if (has_value && !is(questions)) || is(&["incremental_vacuum", "optimize"]) {
        Judgement::Changes
    } else {
        Judgement::Harmless
    }
}
