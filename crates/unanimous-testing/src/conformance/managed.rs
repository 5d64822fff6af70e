//! Whole transactions through the manager, beside a store in memory, with answers that are lost and processes that die.
//!
//! Must not know how the manager does it.

use std::collections::BTreeSet;
use std::time::Duration;

use unanimous::{
    Capability, Cause, CommitError, DeciderId, ResourceManager, SavepointError, Transaction, TransactionManager,
};

use super::case::{Case, Checked, Stop, ensure, eventually, must};
use super::{Subject, savepoints};
use crate::disturbed::Disturbed;
use crate::memory::{Call, Fault, Journal, JournalLog, KeptLog, LogDisk, MemoryStore};

/// The other store: two-phase, in memory.
const PEER: &str = "conformance-peer";
/// How long a commit waits for phase two; recovery does the rest in the background.
const PHASE_TWO_WAIT: Duration = Duration::from_millis(200);

/// A case with a log and another store, which outlive the managers.
struct Around<S: Subject> {
    case: Case<S>,
    disk: LogDisk,
    journal: Journal,
    peer: MemoryStore,
}

/// A manager's life.
struct Life<S: Subject> {
    manager: TransactionManager,
    log: JournalLog<KeptLog>,
    subject: Disturbed<S::Resource>,
}

impl<S: Subject> Around<S> {
    fn new(case: Case<S>) -> Self {
        let journal = Journal::default();
        let peer = MemoryStore::new(PEER, Capability::TwoPhase, &journal);
        Self { disk: LogDisk::new(case.owner.log.0), case, journal, peer }
    }

    async fn start(&self) -> Checked<Life<S>> {
        let log = JournalLog::new(self.disk.open(), &self.journal);
        let subject = Disturbed::new(self.case.open().await?);
        let builder = TransactionManager::builder(log.clone()).phase_two_wait(PHASE_TWO_WAIT);
        let built = builder.resource(self.peer.clone()).resource(subject.clone()).build().await;
        Ok(Life { manager: must("building a manager", built)?, log, subject })
    }

    /// As a crash would, as far as one process can play it: nothing more is done in this life's name.
    async fn end(&self, life: Life<S>) {
        // What is not finished is what the next life is for.
        let _ = life.manager.shutdown(Duration::ZERO).await;
    }

    /// A transaction in which the subject wrote.
    async fn wrote(&self, life: &Life<S>, key: &str) -> Checked<Transaction> {
        let tx = life.manager.begin();
        let branch = must("join", tx.join(&life.subject).await)?;
        must("writing", self.case.subject.write(&branch, key).await)?;
        drop(branch);
        Ok(tx)
    }

    /// A transaction in which both wrote; the subject may take part as what it is.
    async fn both_wrote(&self, life: &Life<S>, key: &str) -> Checked<Transaction> {
        let tx = self.wrote(life, key).await?;
        tx.allow(life.subject.name());
        must("join", must("joining the store in memory", tx.join(&self.peer).await)?.put(key))?;
        Ok(tx)
    }

    fn peer_has(&self, key: &str) -> bool {
        self.peer.keys().iter().any(|known| known == key)
    }

    /// Recovery has nothing left to do, and both stores agree with the outcome.
    async fn settles(&self, life: &Life<S>, key: &str, committed: bool) -> Checked {
        eventually!("recovery to leave nothing in doubt", {
            let doubts = life.manager.recover().await;
            let listed = self.case.listed(life.subject.resource()).await?;
            (doubts.is_empty() && listed.is_empty() && self.peer.prepared().is_empty()).then_some(())
        });
        let (subject, peer) = (self.case.looks(key).await?, self.peer_has(key));
        ensure!(
            (subject, peer) == (committed, committed),
            "{key} is there: {subject} in the subject, {peer} beside it, and the transaction {}",
            if committed { "committed" } else { "aborted" }
        );
        Ok(())
    }
}

fn aborted<T: std::fmt::Debug>(what: &str, result: Result<T, CommitError>) -> Checked<Cause> {
    match result {
        Err(CommitError::Aborted { source, .. }) => Ok(source),
        other => Err(Stop::Broken(format!("{what}: aborted was expected, and it is {other:?}"))),
    }
}

pub(super) async fn alone<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    let [committed, aborted, dropped] = [around.case.key(), around.case.key(), around.case.key()];
    must("commit", around.wrote(&life, &committed).await?.commit().await)?;
    around.wrote(&life, &aborted).await?.abort().await;
    drop(around.wrote(&life, &dropped).await?);
    around.case.is_there(&committed).await?;
    for key in [aborted, dropped] {
        around.case.is_absent(&key).await?;
        around.case.writes_again(life.subject.resource(), &key).await?;
    }
    Ok(())
}

pub(super) async fn alone_with_an_answer_that_is_lost<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    for (fault, committed) in [(Fault::Lost, false), (Fault::LostDone, true)] {
        let key = around.case.key();
        life.subject.fail(Call::CommitOnePhase, fault);
        let outcome = around.wrote(&life, &key).await?.commit().await;
        ensure!(matches!(outcome, Err(CommitError::Unknown { .. })), "without an answer the outcome is {outcome:?}");
        eventually!("recovery to leave nothing in doubt", life.manager.recover().await.is_empty().then_some(()));
        case_agrees(&around.case, &life, &key, committed).await?;
    }
    Ok(())
}

/// What is there is what was done, and the store works.
async fn case_agrees<S: Subject>(case: &Case<S>, life: &Life<S>, key: &str, committed: bool) -> Checked {
    case.lists(life.subject.resource(), []).await?;
    match committed {
        true => case.is_there(key).await,
        false => {
            case.is_absent(key).await?;
            case.writes_again(life.subject.resource(), key).await
        }
    }
}

pub(super) async fn beside_one_that_says_no<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    let key = around.case.key();
    around.peer.fail(Call::Prepare, Fault::Refused);
    let tx = around.both_wrote(&life, &key).await?;
    aborted("beside a store that refused", tx.commit().await)?;
    around.settles(&life, &key, false).await?;
    around.case.writes_again(life.subject.resource(), &key).await
}

pub(super) async fn with_a_log<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    let key = around.case.key();
    let committed = must("commit", around.both_wrote(&life, &key).await?.commit().await)?;
    ensure!(committed.pending == 0, "{} branches had not confirmed within {PHASE_TWO_WAIT:?}", committed.pending);
    let ids = life.subject.ids();
    ensure!(
        ids.len() == 1 && ids[0].decider == DeciderId::Log,
        "the subject prepared as {ids:?}, not once with the log"
    );
    around.settles(&life, &key, true).await
}

pub(super) async fn a_vote_whose_answer_is_lost<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    for fault in [Fault::Lost, Fault::LostDone] {
        let key = around.case.key();
        life.subject.fail(Call::Prepare, fault);
        let tx = around.both_wrote(&life, &key).await?;
        aborted("with a lost vote", tx.commit().await)?;
        around.settles(&life, &key, false).await?;
        around.case.writes_again(life.subject.resource(), &key).await?;
    }
    Ok(())
}

pub(super) async fn a_vote_that_lands_late<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    let key = around.case.key();
    // The session is gone: nothing else reaches the branch either.
    life.subject.fail(Call::Prepare, Fault::Late);
    life.subject.fail_always(Call::Rollback, Fault::Lost);
    let tx = around.both_wrote(&life, &key).await?;
    aborted("with a late vote", tx.commit().await)?;
    must("the late prepare", life.subject.land().await)?;
    around.settles(&life, &key, false).await?;
    around.case.writes_again(life.subject.resource(), &key).await
}

pub(super) async fn a_commit_whose_answer_is_lost<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    for fault in [Fault::Lost, Fault::LostDone] {
        let key = around.case.key();
        life.subject.fail(Call::Commit, fault.clone());
        must("commit", around.both_wrote(&life, &key).await?.commit().await)?;
        around.settles(&life, &key, true).await?;

        // The branch's own way is gone for good; recovery's is not.
        let key = around.case.key();
        life.subject.fail_always(Call::Commit, fault);
        must("commit", around.both_wrote(&life, &key).await?.commit().await)?;
        around.settles(&life, &key, true).await?;
        life.subject.heal(Call::Commit);
    }
    Ok(())
}

pub(super) async fn a_crash_after_the_decision<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    let key = around.case.key();
    life.subject.fail_always(Call::Commit, Fault::Lost);
    life.subject.fail_always(Call::RecoveredCommit, Fault::Lost);
    let committed = must("commit", around.both_wrote(&life, &key).await?.commit().await)?;
    ensure!(committed.pending == 1, "{} branches are pending, and the subject's only should be", committed.pending);
    around.case.is_absent(&key).await?;
    around.end(life).await;
    let life = around.start().await?;
    around.settles(&life, &key, true).await?;
    let unfinished = around.disk.unfinished();
    ensure!(unfinished.is_empty(), "the log does not know that {unfinished:?} is finished");
    Ok(())
}

pub(super) async fn a_crash_while_it_is_decided<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    for (fault, written) in [(Fault::Lost, false), (Fault::LostDone, true)] {
        let life = around.start().await?;
        let key = around.case.key();
        life.log.fail(fault);
        let tx = around.both_wrote(&life, &key).await?;
        let outcome = tx.commit().await;
        ensure!(matches!(outcome, Err(CommitError::Unknown { .. })), "without a decision the outcome is {outcome:?}");
        around.case.lists(life.subject.resource(), &life.subject.ids()).await?;
        around.case.is_absent(&key).await?;
        around.end(life).await;
        let life = around.start().await?;
        around.settles(&life, &key, written).await?;
    }
    Ok(())
}

pub(super) async fn ids_are_never_used_again<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let life = around.start().await?;
        for fault in [Fault::Pass, Fault::Refused, Fault::Pass] {
            let key = around.case.key();
            let commits = matches!(fault, Fault::Pass);
            around.peer.fail(Call::Prepare, fault);
            let outcome = around.both_wrote(&life, &key).await?.commit().await;
            ensure!(outcome.is_ok() == commits, "the outcome is {outcome:?}");
            around.settles(&life, &key, commits).await?;
        }
        ids.extend(life.subject.ids());
        around.end(life).await;
    }
    let different: BTreeSet<_> = ids.iter().collect();
    ensure!(different.len() == ids.len() && ids.len() >= 4, "the branches prepared under {ids:?}");
    Ok(())
}

pub(super) async fn carries_for_another<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    let key = around.case.key();
    must("commit", around.both_wrote(&life, &key).await?.commit().await)?;
    around.settles(&life, &key, true).await?;
    let decided = around.disk.records();
    ensure!(decided.is_empty(), "the log decided too: {decided:?}");
    Ok(())
}

pub(super) async fn a_carrier_whose_answer_is_lost<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    for (fault, committed) in [(Fault::Lost, false), (Fault::LostDone, true)] {
        let life = around.start().await?;
        let key = around.case.key();
        life.subject.fail(Call::CommitCarrying, fault);
        let outcome = around.both_wrote(&life, &key).await?.commit().await;
        match (committed, outcome) {
            (true, outcome) => drop(must("commit", outcome)?),
            (false, outcome) => drop(aborted("a carrier that was lost before it committed", outcome)?),
        }
        around.settles(&life, &key, committed).await?;
        around.end(life).await;
        // Whoever comes next is told the same.
        around.settles(&around.start().await?, &key, committed).await?;
    }
    Ok(())
}

pub(super) async fn on_trust_needs_to_be_allowed<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    let key = around.case.key();
    let tx = around.wrote(&life, &key).await?;
    must("join", must("joining the store in memory", tx.join(&around.peer).await)?.put(&key))?;
    let cause = aborted("beside another that wrote, and not allowed", tx.commit().await)?;
    ensure!(matches!(cause, Cause::NotAllowed { .. }), "the cause is {cause:?}, not that it has to be allowed");
    around.settles(&life, &key, false).await?;
    let key = around.case.key();
    must("commit", around.both_wrote(&life, &key).await?.commit().await)?;
    around.settles(&life, &key, true).await
}

/// The check is left out where the subject's branches have no savepoints.
async fn savepoints_needed<S: Subject>(life: &Life<S>) -> Checked {
    let tx = life.manager.begin();
    let needed = savepoints::needed(&*must("join", tx.join(&life.subject).await)?).await;
    tx.abort().await;
    needed
}

/// Writes in both.
async fn both_write<S: Subject>(around: &Around<S>, life: &Life<S>, tx: &Transaction, key: &str) -> Checked {
    let branch = must("join", tx.join(&life.subject).await)?;
    must(&format!("writing {key}"), around.case.subject.write(&branch, key).await)?;
    must("join", must("joining the store in memory", tx.join(&around.peer).await)?.put(key))
}

pub(super) async fn a_savepoint_undoes_in_all_branches<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    savepoints_needed(&life).await?;
    let [before, undone, after] = [around.case.key(), around.case.key(), around.case.key()];
    let tx = around.both_wrote(&life, &before).await?;
    let savepoint = must("savepoint", tx.savepoint().await)?;
    both_write(&around, &life, &tx, &undone).await?;
    must("rollback of a savepoint", savepoint.rollback().await)?;
    both_write(&around, &life, &tx, &after).await?;
    drop(savepoint);
    must("commit", tx.commit().await)?;
    around.settles(&life, &before, true).await?;
    around.settles(&life, &after, true).await?;
    around.settles(&life, &undone, false).await?;
    around.case.writes_again(life.subject.resource(), &undone).await
}

pub(super) async fn a_savepoint_over_one_without_is_optimistic<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    around.peer.set_savepoints(false);
    let life = around.start().await?;
    savepoints_needed(&life).await?;
    for rolls_back in [false, true] {
        let [before, after] = [around.case.key(), around.case.key()];
        let tx = around.both_wrote(&life, &before).await?;
        match tx.savepoint().await {
            Err(SavepointError::Unsupported { resources }) if resources == [PEER] => {}
            other => return Err(Stop::Broken(format!("beside a branch without savepoints, a savepoint is {other:?}"))),
        }
        let savepoint = must("an optimistic savepoint", tx.savepoint_optimistic().await)?;
        both_write(&around, &life, &tx, &after).await?;
        if rolls_back {
            let rolled_back = savepoint.rollback().await;
            ensure!(
                matches!(rolled_back, Err(SavepointError::Unsupported { .. })),
                "beside a branch without savepoints, the rollback is {rolled_back:?}"
            );
            drop(savepoint);
            let cause = aborted("after a rollback that failed", tx.commit().await)?;
            ensure!(matches!(cause, Cause::Savepoint(_)), "the cause is {cause:?}, not the rollback that failed");
        } else {
            drop(savepoint);
            must("commit", tx.commit().await)?;
        }
        for key in [before, after] {
            around.settles(&life, &key, !rolls_back).await?;
            if rolls_back {
                around.case.writes_again(life.subject.resource(), &key).await?;
            }
        }
    }
    Ok(())
}

pub(super) async fn a_rollback_past_the_join_unjoins<S: Subject>(case: Case<S>) -> Checked {
    let around = Around::new(case);
    let life = around.start().await?;
    savepoints_needed(&life).await?;
    let [undone, dead, after] = [around.case.key(), around.case.key(), around.case.key()];
    let tx = life.manager.begin();
    tx.allow(life.subject.name());
    let savepoint = must("savepoint", tx.savepoint().await)?;
    let left = must("join", tx.join(&life.subject).await)?;
    must("writing", around.case.subject.write(&left, &undone).await)?;
    must("rollback of a savepoint", savepoint.rollback().await)?;
    let worked = around.case.subject.write(&left, &dead).await;
    ensure!(worked.is_err(), "work through the guard of a branch that has left was Ok");
    drop(left);
    both_write(&around, &life, &tx, &after).await?;
    drop(savepoint);
    must("commit", tx.commit().await)?;
    around.settles(&life, &after, true).await?;
    for key in [undone, dead] {
        around.settles(&life, &key, false).await?;
        around.case.writes_again(life.subject.resource(), &key).await?;
    }
    Ok(())
}
