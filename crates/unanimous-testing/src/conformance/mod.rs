//! What every adapter must do, as checks that are run against a real store.
//!
//! An adapter's author writes a [`Subject`]: how to make a store, open it, write something and see whether it is there. [`run`] does
//! the rest, and fails with one paragraph for each duty that was not kept. Which checks apply follows from the
//! [capability](ResourceManager::capability) that the resource states.
//!
//! ```
//! use std::sync::Arc;
//!
//! use unanimous::files::{Files, FilesBranch};
//! use unanimous::BoxError;
//! use unanimous_testing::conformance::{self, Subject};
//!
//! struct FolderOfFiles;
//!
//! impl Subject for FolderOfFiles {
//!     type Resource = Files;
//!     type Place = tempfile::TempDir;
//!
//!     async fn place(&self) -> Result<tempfile::TempDir, BoxError> {
//!         Ok(tempfile::tempdir()?)
//!     }
//!
//!     async fn open(&self, place: &tempfile::TempDir) -> Result<Files, BoxError> {
//!         Ok(Files::open("files", place.path()).await?)
//!     }
//!
//!     async fn write(&self, branch: &FilesBranch, key: &str) -> Result<(), BoxError> {
//!         Ok(branch.create(key, "content").await?)
//!     }
//!
//!     async fn is_there(&self, place: &tempfile::TempDir, key: &str) -> Result<bool, BoxError> {
//!         Ok(place.path().join(key).exists())
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let report = conformance::run(FolderOfFiles).await;
//! assert!(report.passed.contains(&"two_phase::recovery_commits_by_the_id_alone"));
//! # });
//! # Ok::<(), BoxError>(())
//! ```
//!
//! A restart is played by opening the store again while nothing is kept of the handles and branches before. What only a real kill -9
//! shows (that a promise is in the store and not in the process) is a test that each adapter needs besides:
//! [`process`](crate::process) helps with it. Answers are lost around the adapter, not in it: how it calls the errors of a connection is for
//! tests of its own, with [`proxy`](crate::proxy).
//!
//! Must not know any store.

mod branch;
mod cancel;
mod carrier;
mod case;
mod managed;
mod savepoints;
mod two_phase;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use unanimous::{BoxError, Capability, ResourceManager};

use case::{Case, Checked, text_of};

/// How long one check may take before it fails as hanging: 120 s.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The branch of a subject's resource.
pub type BranchOf<S> = <<S as Subject>::Resource as ResourceManager>::Branch;

/// An adapter, as the suite needs it.
///
/// Keys are 4 to 20 of `a-z` and `0-9`; a key that was committed is never written again in the same place.
pub trait Subject: Send + Sync + 'static {
    /// The adapter.
    type Resource: ResourceManager;

    /// A store: a folder, a database, a server of its own. Removed when it is dropped.
    type Place: Send + Sync + 'static;

    /// Makes a new, empty store, which has nothing to do with those made before.
    ///
    /// # Errors
    ///
    /// When it can't; the check that needed it fails.
    fn place(&self) -> impl Future<Output = Result<Self::Place, BoxError>> + Send;

    /// Opens a store as a process does that starts: always under the same name, and without knowing any handle before. Handles that
    /// were opened before may still be there.
    ///
    /// # Errors
    ///
    /// When it can't; the check fails.
    fn open(&self, place: &Self::Place) -> impl Future<Output = Result<Self::Resource, BoxError>> + Send;

    /// Writes something under this key through the branch: nothing that stays unless the branch commits.
    ///
    /// # Errors
    ///
    /// What the adapter says; expected where the branch has ended.
    fn write(&self, branch: &BranchOf<Self>, key: &str) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Whether what was written under this key is committed, as a stranger sees it: not through the adapter where that can be, and
    /// without waiting for branches that have not ended.
    ///
    /// # Errors
    ///
    /// When it can't be looked at; the check fails.
    fn is_there(&self, place: &Self::Place, key: &str) -> impl Future<Output = Result<bool, BoxError>> + Send;

    /// Reads something through the branch, and writes nothing. By default the branch does nothing at all.
    ///
    /// # Errors
    ///
    /// What the adapter says; the check fails.
    fn read(&self, branch: &BranchOf<Self>) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = branch;
        async { Ok(()) }
    }

    /// Writes something under this key that can't be committed, and is noticed when the branch votes or commits only (a deferred constraint,
    /// a name that is taken meanwhile); true. By default false: there is no such thing in this store, and the check is left out.
    ///
    /// [`is_there`](Self::is_there) is never asked about this key, so something else may be under it.
    ///
    /// # Errors
    ///
    /// What the adapter says; the check fails.
    fn write_in_vain(
        &self,
        place: &Self::Place,
        branch: &BranchOf<Self>,
        key: &str,
    ) -> impl Future<Output = Result<bool, BoxError>> + Send {
        let _ = (place, branch, key);
        async { Ok(false) }
    }
}

/// What the suite found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// The checks that passed.
    pub passed: Vec<&'static str>,
    /// Those that failed.
    pub failed: Vec<Failure>,
    /// Those that don't apply, and why.
    pub left_out: Vec<(&'static str, &'static str)>,
}

/// A duty that was not kept.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The check's name: its module and function in the suite's source.
    pub check: &'static str,
    /// The duty.
    pub duty: &'static str,
    /// What happened instead.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  duty: {}\n  seen: {}", self.check, self.duty, self.what)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, passed) = (self.failed.len(), self.passed.len());
        writeln!(f, "{failed} of {} checks failed, {} don't apply", failed + passed, self.left_out.len())?;
        if failed > 1 && self.failed.iter().any(|failure| failure.check == FIRST) {
            writeln!(f, "\nmend {FIRST} first: the other checks build on what it looks at")?;
        }
        for failure in &self.failed {
            writeln!(f, "\n{failure}")?;
        }
        for (check, why) in &self.left_out {
            writeln!(f, "\n{check}\n  left out: {why}")?;
        }
        Ok(())
    }
}

/// Runs all checks that apply.
///
/// # Panics
///
/// When one fails, after all were run, with every failure's text; and outside of a tokio runtime with time.
pub async fn run<S: Subject>(subject: S) -> Report {
    let report = report(subject).await;
    assert!(report.failed.is_empty(), "the adapter does not conform: {report}");
    report
}

/// The same, without a panic: for those who want to look.
///
/// # Panics
///
/// Outside of a tokio runtime with time.
pub async fn report<S: Subject>(subject: S) -> Report {
    let subject = Arc::new(subject);
    let mut report = Report::default();
    let capability = match capability(&*subject).await {
        Ok(capability) => capability,
        Err(error) => {
            let duty = "a place can be made and opened";
            report.failed.push(Failure { check: "place", duty, what: text_of(&*error) });
            return report;
        }
    };
    for Check { name, duty, applies, left_out, run } in checks::<S>() {
        if !applies(capability) {
            report.left_out.push((name, left_out));
            continue;
        }
        let subject = subject.clone();
        // A task of its own: a panic in the adapter is a failure of this check, and of no other.
        let mut task = tokio::spawn(async move { run(Case::new(subject).await?).await });
        let what = match tokio::time::timeout(LIMIT, &mut task).await {
            Ok(Ok(Ok(()))) => {
                report.passed.push(name);
                continue;
            }
            Ok(Ok(Err(case::Stop::LeftOut(why)))) => {
                report.left_out.push((name, why));
                continue;
            }
            Ok(Ok(Err(case::Stop::Broken(what)))) => what,
            Ok(Err(panic)) => format!("it panicked: {}", panic_text(panic)),
            Err(_elapsed) => {
                task.abort();
                format!("it did not end within {LIMIT:?}")
            }
        };
        report.failed.push(Failure { check: name, duty, what });
    }
    report
}

async fn capability<S: Subject>(subject: &S) -> Result<Capability, BoxError> {
    let place = subject.place().await?;
    Ok(subject.open(&place).await?.capability())
}

fn panic_text(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text").to_owned()
        }
        Err(error) => error.to_string(),
    }
}

/// Made first; where it fails, so do most others, and say less.
const FIRST: &str = "branch::what_wrote_says_so_and_is_not_seen";

type Run<S> = fn(Case<S>) -> Pin<Box<dyn Future<Output = Checked> + Send>>;

struct Check<S: Subject> {
    name: &'static str,
    duty: &'static str,
    applies: fn(Capability) -> bool,
    left_out: &'static str,
    run: Run<S>,
}

fn any(_: Capability) -> bool {
    true
}

fn says_what_it_did(capability: Capability) -> bool {
    capability != Capability::Volatile
}

fn two_phase(capability: Capability) -> bool {
    capability == Capability::TwoPhase
}

fn carrier(capability: Capability) -> bool {
    capability == Capability::Carrier
}

fn on_trust(capability: Capability) -> bool {
    matches!(capability, Capability::OnePhase | Capability::Volatile)
}

fn checks<S: Subject>() -> Vec<Check<S>> {
    macro_rules! checks {
        ($($applies:path, $left_out:literal: { $($module:ident::$name:ident: $duty:literal;)* })*) => {
            vec![$($(Check {
                name: concat!(stringify!($module), "::", stringify!($name)),
                duty: $duty,
                applies: $applies,
                left_out: $left_out,
                run: |case| Box::pin($module::$name(case)),
            },)*)*]
        };
    }
    checks! {
        any, "": {
            branch::what_wrote_says_so_and_is_not_seen: "flush says Wrote where something was written, and nobody sees it before the commit";
            branch::the_store_keeps_its_identity: "identity is read from the store itself: the same for every handle and after a restart, another for another store";
            branch::a_branch_can_what_its_resource_says: "ResourceManager::capability is the same as Branch::capability of each branch";
            branch::rollback_leaves_nothing: "rollback gives a branch up in whatever state short of committed it is, and is idempotent";
            branch::nothing_works_after_the_end: "after rollback or a commit was called, work through the branch fails and never runs outside of the transaction";
            branch::a_dropped_branch_leaves_nothing: "a branch that is dropped without an end and has not prepared leaves nothing, and no locks";
            branch::a_branch_alone_commits_in_one_phase: "commit_one_phase commits a branch that has not prepared";
            branch::a_no_leaves_nothing: "a definite no at the vote or the commit: the branch can never commit any more, rolls back, and leaves nothing";
            managed::alone: "a transaction with this branch only commits, and aborts";
            managed::alone_with_an_answer_that_is_lost: "a one-phase commit whose answer was lost happened or not, and nothing of it stays in doubt";
            managed::beside_one_that_says_no: "where another branch says no, nothing of this one is left";
            savepoints::what_came_after_is_undone: "rollback_to undoes what was done since the savepoint and keeps what was done before; then the branch works, votes and commits as ever";
            savepoints::what_was_undone_can_be_done_again: "what was undone stands in the way of nothing: the same work can be done again";
            savepoints::it_can_be_rolled_back_to_again: "a savepoint stays when it was rolled back to, and can be rolled back to again";
            savepoints::they_nest: "rollback_to an inner savepoint keeps what was done since the outer one; to the outer one undoes both";
            savepoints::later_ones_are_forgotten: "rollback_to forgets the savepoints that were made later: a rollback to one of them is an error";
            savepoints::one_that_is_never_used_changes_nothing: "a savepoint that is not rolled back to changes neither commit nor rollback";
            savepoints::all_undone_is_nothing: "a branch of which all was undone votes and commits, and leaves nothing";
            managed::a_savepoint_undoes_in_all_branches: "a savepoint over this branch and another is rolled back in both";
            managed::a_savepoint_over_one_without_is_optimistic: "beside a branch without savepoints only an optimistic savepoint can be made; its rollback fails the transaction";
            managed::a_rollback_past_the_join_unjoins: "a branch that joined after a savepoint is rolled back with it: its guards are dead, and the store can be joined anew";
            cancel::savepoint: "a savepoint that was dropped at any poll leaves the branch as it was: it works, commits, and rolls back to an earlier one";
            cancel::rollback_to: "after a rollback_to that was dropped at any poll the branch can be rolled back";
            cancel::begin: "a begin that was dropped at any poll leaves nothing, and no locks";
            cancel::flush: "a flush that was dropped at any poll can be rolled back";
            cancel::rollback: "a rollback that was dropped at any poll can be repeated, or finished by recovery";
            cancel::commit_one_phase: "a one-phase commit that was dropped at any poll happened whole or not at all";
        }
        says_what_it_did, "a volatile branch may say that it always wrote": {
            branch::what_only_read_says_so: "flush says ReadOnly for a branch that wrote nothing";
        }
        Capability::can_prepare, "for branches that can prepare": {
            branch::a_prepared_branch_commits: "what has prepared is not seen, commits, and commit is idempotent";
            branch::a_prepared_branch_rolls_back: "what has prepared is rolled back, and rollback is idempotent";
            cancel::prepare: "a prepare that was dropped at any poll is rolled back, by the branch or by recovery";
            cancel::commit: "a commit that was dropped at any poll is repeated, by the branch or by recovery";
        }
        two_phase, "for two-phase stores": {
            two_phase::a_prepared_branch_is_listed_by_its_id: "in_doubt gives each prepared branch with exactly the id that it prepared under, from any handle, after a restart too";
            two_phase::what_has_not_prepared_is_not_listed: "in_doubt lists prepared branches only";
            two_phase::recovery_commits_by_the_id_alone: "ResourceManager::commit finishes a prepared branch from another handle; repeated, it is Ok";
            two_phase::recovery_rolls_back_by_the_id_alone: "ResourceManager::rollback finishes a prepared branch from another handle; repeated, it is Ok";
            two_phase::branch_and_recovery_may_both_finish: "phase two is idempotent over branch and resource together";
            two_phase::nothing_follows_from_an_id_that_is_not_prepared: "finishing an id that is not prepared (any more) changes nothing";
            two_phase::transactions_are_apart: "ids are compared whole: finishing one branch leaves all others prepared";
            two_phase::a_promise_holds: "commit after a successful prepare does not fail for what prepare could have seen, whatever others do meanwhile";
            two_phase::recovery_does_not_wait_for_branches: "phase two and recovery have connections of their own (rule 14)";
            managed::with_a_log: "beside another two-phase store, the log decides and both commit";
            managed::a_vote_whose_answer_is_lost: "a prepare whose answer was lost, done or not, is rolled back";
            managed::a_vote_that_lands_late: "a prepare that lands after its transaction has aborted is found by the listing and rolled back";
            managed::a_commit_whose_answer_is_lost: "a commit whose answer was lost, done or not, is repeated until it is confirmed";
            managed::a_crash_after_the_decision: "after a restart recovery commits what was decided";
            managed::a_crash_while_it_is_decided: "after a restart recovery asks the log: commits what was decided, and rolls back the rest";
            managed::ids_are_never_used_again: "no two branches ever prepare under one id, over restarts too";
        }
        carrier, "for carriers": {
            carrier::the_decision_comes_with_the_work: "commit_carrying makes work and decision durable together; decision gives the record, from any handle; its note may be left out";
            carrier::a_fence_keeps_the_late_one_out: "where decision finds no row it fences: Abort stays, and a carrier that comes later is refused";
            carrier::rolled_back_it_decides_nothing: "a carrier that was rolled back has no decision";
            carrier::another_log_is_not_answered_for: "nothing is presumed of another log's transactions, and unfinished gives one log's only";
            carrier::who_only_asks_changes_nothing: "decided tells what a row says, of any log's transaction; without a row it writes none";
            carrier::what_is_forgotten_is_not_listed: "unfinished lists a decision until it is forgotten; its row still answers";
            managed::carries_for_another: "beside a two-phase store the carrier's commit is the decision, and both commit";
            managed::a_carrier_whose_answer_is_lost: "where the carrier's answer was lost its row is asked, and the outcome is known";
            cancel::commit_carrying: "a commit_carrying that was dropped at any poll: decision and work agree";
        }
        on_trust, "for one-phase and volatile branches": {
            managed::on_trust_needs_to_be_allowed: "beside another that writes it is refused unless it is allowed by name (rule 10)";
        }
    }
}
