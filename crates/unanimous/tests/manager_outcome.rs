//! What can be said of a transaction by its id: what this process remembers, what recovery found, what the records of the log and of
//! the carriers say; and never a guess (rule 9).

use std::time::Duration;

use unanimous::KnownOutcome::{Aborted, Committed, InDoubt, NotKnown};
use unanimous::{
    BranchId, Decider, DeciderId, DecisionLog, DecisionRecord, Known, Note, Outcome, Owner, Participant, Transaction,
    TransactionId, TransactionManager, Waiting,
};
use unanimous_testing::memory::LogDisk;

use crate::support::{Call, Fault, MemoryStore, World, aborted, ended, unknown};

async fn wrote<'s>(manager: &TransactionManager, stores: impl IntoIterator<Item = &'s MemoryStore>) -> Transaction {
    let tx = manager.begin();
    for store in stores {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    tx
}

fn record(transaction: TransactionId, stores: &[(&str, &MemoryStore)]) -> DecisionRecord {
    let participants = stores.iter().zip(0..).map(|((name, store), number)| Participant {
        number,
        resource: (*name).to_owned(),
        store: Some(store.identity_now()),
    });
    DecisionRecord { transaction, participants: participants.collect(), decided_at: 0, note: Note::default() }
}

fn of_the_log(transaction: TransactionId) -> BranchId {
    BranchId { transaction, decider: DeciderId::Log, number: 0 }
}

/// An earlier incarnation's transactions.
fn earlier(world: &World) -> Owner {
    world.disk.open().owner()
}

#[tokio::test(start_paused = true)]
async fn what_ended_in_this_process_is_remembered() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;

    let tx = wrote(&manager, [&a, &b]).await;
    let (first, next) = (tx.id(), manager.owner().transaction(tx.id().sequence + 1));
    assert_eq!(manager.outcome(first).await, InDoubt(Waiting::End), "its work is not done");
    assert_eq!(manager.outcome(next).await, NotKnown, "its number was not given out");
    assert_eq!(manager.outcome(manager.owner().transaction(0)).await, NotKnown, "nobody has the number 0");
    ended(tx.commit()).await.unwrap();
    assert_eq!(manager.outcome(first).await, Committed);

    let tx = wrote(&manager, [&a]).await;
    let one_phase = tx.id();
    assert_eq!(one_phase, next);
    ended(tx.commit()).await.unwrap();
    assert_eq!(manager.outcome(one_phase).await, Committed, "without a decision in the log");

    let tx = wrote(&manager, [&a, &b]).await;
    let refused = tx.id();
    b.fail(Call::Prepare, Fault::Refused);
    aborted(ended(tx.commit()).await);
    assert_eq!(manager.outcome(refused).await, Aborted);

    let tx = wrote(&manager, [&a]).await;
    let dropped = tx.id();
    drop(tx);
    let tx = manager.begin();
    let empty = tx.id();
    ended(tx.commit()).await.unwrap();
    assert_eq!(manager.outcome(empty).await, Committed, "nothing had joined it");
    let tx = manager.begin();
    let given_up = tx.id();
    tx.abort().await;
    assert_eq!(manager.outcome(given_up).await, Aborted);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(manager.outcome(dropped).await, Aborted);
}

/// Whoever is called back at a transaction's end may ask at once.
#[tokio::test(start_paused = true)]
async fn it_is_remembered_before_anybody_hears_of_the_end() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = wrote(&manager, [&a, &b]).await;
    let (asked, id) = (manager.clone(), tx.id());
    let (tell, told) = tokio::sync::oneshot::channel();
    tx.after_end(move |outcome| {
        let known = futures_now(asked.outcome(id));
        tell.send((outcome, known)).unwrap();
    });
    ended(tx.commit()).await.unwrap();
    assert_eq!(told.await.unwrap(), (Outcome::Committed, Some(Committed)));
}

/// Hooks are told the outcome, and so is whoever they ask. The same for a transaction that nothing has joined.
#[tokio::test(start_paused = true)]
async fn a_hook_behind_the_end_is_told_the_outcome_that_it_was_called_with() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    for stores in [vec![&a, &b], vec![]] {
        for commit in [true, false] {
            let tx = wrote(&manager, stores.iter().copied()).await;
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            for after_commit in [true, false] {
                let (asked, tell) = (manager.clone(), tell.clone());
                let hook = move |tx: unanimous::Tx| async move {
                    tell.send(futures_now(asked.outcome(tx.id()))).unwrap();
                    Ok(())
                };
                if after_commit {
                    tx.after_commit(move |tx, _| hook(tx)).unwrap();
                } else {
                    tx.after_abort(hook).unwrap();
                }
            }
            let known = if commit {
                ended(tx.commit()).await.unwrap();
                Committed
            } else {
                tx.abort().await;
                Aborted
            };
            assert_eq!(told.recv().await, Some(Some(known)));
        }
    }
}

/// What a future gives that needs not wait.
fn futures_now<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_on_its_way_is_in_doubt_and_a_decided_one_is_not() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    let tx = wrote(&manager, [&a, &b]).await;
    let id = tx.id();
    let (decision, phase_two) = (log.hold(), b.hold(Call::Commit));
    let commit = tx.commit();
    decision.reached().await;
    assert_eq!(manager.outcome(id).await, InDoubt(Waiting::End));
    decision.release();
    phase_two.reached().await;
    // Its caller is told after `phase_two_wait`, with a branch pending.
    assert_eq!(ended(commit).await.unwrap().pending, 1);
    assert_eq!(manager.outcome(id).await, Committed);
    phase_two.release();
}

/// One writer, whose answer was lost: this process can never find out, and says so; after a restart there is no trace, and the log's
/// presumption is not taken for an answer.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_of_a_single_writer_is_never_guessed() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = wrote(&manager, [&a]).await;
    let id = tx.id();
    a.fail(Call::CommitOnePhase, Fault::LostDone);
    unknown(ended(tx.commit()).await);
    assert_eq!(a.keys(), ["row"], "it did commit");
    manager.recover().await;
    assert_eq!(manager.outcome(id).await, InDoubt(Waiting::Recovery));

    drop(manager);
    let (manager, log) = world.start().await;
    assert_eq!(log.lookup(id).await.unwrap(), Known::Abort, "what the log presumes");
    assert_eq!(manager.outcome(id).await, NotKnown);
}

/// The log's sync failed: nobody in this process can say, of this transaction and of earlier ones. The next start reads what is durable,
/// and recovery proves what it finished.
#[tokio::test(start_paused = true)]
async fn a_lost_decision_is_told_by_the_next_start() {
    for (fault, expected) in [(Fault::Lost, Aborted), (Fault::LostDone, Committed)] {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        let before = earlier(&world);
        let (manager, log) = world.start().await;
        let tx = wrote(&manager, [&a, &b]).await;
        let id = tx.id();
        log.fail(fault);
        unknown(ended(tx.commit()).await);
        assert_eq!(manager.outcome(id).await, InDoubt(Waiting::Recovery));
        assert_eq!(manager.outcome(before.transaction(1)).await, InDoubt(Waiting::Decider(None)));

        drop(manager);
        let (manager, _log) = world.start().await;
        assert_eq!(manager.outcome(id).await, expected);
    }
}

/// Records of earlier incarnations: the log's, kept also when it is finished, and the carriers' rows of either outcome. Where there is no
/// record nothing is said, and asking leaves none.
#[tokio::test(start_paused = true)]
async fn records_of_earlier_incarnations_tell() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let owner = earlier(&world);
    let [logged, carried, fenced, silent] = [1, 2, 3, 4].map(|sequence| owner.transaction(sequence));
    world.disk.plant(record(logged, &[("a", &a)]));
    c.plant_decision(record(carried, &[("a", &a)]));
    // A branch whose carrier never committed: recovery fences it at the start.
    a.plant(&BranchId { transaction: fenced, decider: DeciderId::Store(c.identity_now()), number: 0 }, "fenced");
    let (manager, _log) = world.start().await;
    assert_eq!(manager.outcome(logged).await, Committed);
    assert_eq!(manager.outcome(carried).await, Committed);
    assert_eq!(manager.outcome(fenced).await, Aborted);
    assert_eq!(manager.outcome(silent).await, NotKnown);
    assert_eq!(manager.outcome(LogDisk::new(9).open().owner().transaction(1)).await, NotKnown, "another log's");
    assert_eq!(world.journal.acts(), [""; 0], "asking wrote something");

    // What recovery found is remembered by one process only; the fence's row is there for the next one.
    drop(manager);
    let (manager, _log) = world.start().await;
    assert_eq!(manager.outcome(fenced).await, Aborted);
    assert_eq!(manager.outcome(logged).await, Committed);
}

/// A carrier's row is found also where its own process lost the answer.
#[tokio::test(start_paused = true)]
async fn a_carriers_row_tells_in_the_same_process() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let tx = wrote(&manager, [&a, &c]).await;
    let id = tx.id();
    c.fail(Call::CommitCarrying, Fault::LostDone);
    let _ = ended(tx.commit()).await;
    assert_eq!(manager.outcome(id).await, Committed);
}

/// A branch that recovery can't finish leaves its transaction in doubt; when it is rolled back, that is the proof, where the log alone would
/// not be.
#[tokio::test(start_paused = true)]
async fn a_branch_that_recovery_rolled_back_proves_the_abort() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let id = earlier(&world).transaction(1);
    a.plant(&of_the_log(id), "undecided");
    a.fail_always(Call::RecoveredRollback, Fault::Refused);
    let (manager, _log) = world.start().await;
    assert_eq!(manager.outcome(id).await, InDoubt(Waiting::Recovery));
    a.heal(Call::RecoveredRollback);
    manager.recover().await;
    assert_eq!(manager.outcome(id).await, Aborted);
}

/// A store that can't be asked may have a row or a prepared branch.
#[tokio::test(start_paused = true)]
async fn who_cannot_be_asked_is_named() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let id = earlier(&world).transaction(1);
    a.plant(&of_the_log(id), "undecided");
    a.set_down(true);
    let (manager, _log) = world.start().await;
    assert_eq!(manager.outcome(id).await, InDoubt(Waiting::Decider(Some("a".to_owned()))));
    // It can be asked again, and recovery has not listed it yet.
    a.fail_always(Call::List, Fault::Refused);
    a.set_down(false);
    manager.recover().await;
    assert_eq!(manager.outcome(id).await, InDoubt(Waiting::Decider(Some("a".to_owned()))));
    a.heal(Call::List);
    manager.recover().await;
    assert_eq!(manager.outcome(id).await, Aborted);
}

/// Recovery has left nothing in doubt, and the rows can't be read now.
#[tokio::test(start_paused = true)]
async fn a_carrier_whose_rows_cannot_be_read_is_named() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let owner = earlier(&world);
    let [carried, logged] = [1, 2].map(|sequence| owner.transaction(sequence));
    c.plant_decision(record(carried, &[("a", &a)]));
    world.disk.plant(record(logged, &[("a", &a)]));
    let (manager, _log) = world.start().await;
    c.fail_always(Call::Decision, Fault::Refused);
    assert_eq!(manager.in_doubt(), []);
    assert_eq!(manager.outcome(carried).await, InDoubt(Waiting::Decider(Some("c".to_owned()))));
    assert_eq!(manager.outcome(logged).await, Committed, "who could say has said it");
    c.heal(Call::Decision);
    assert_eq!(manager.outcome(carried).await, Committed);
}

/// Older than what is remembered, and of this process all the same: as for an earlier incarnation, only records tell.
#[tokio::test(start_paused = true)]
async fn what_was_overwritten_is_told_by_records_only() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (builder, _log) = world.builder();
    let manager = builder.remember_outcomes(1).build().await.unwrap();
    let one = wrote(&manager, [&a]).await;
    let two = wrote(&manager, [&a, &b]).await;
    let slow = manager.begin();
    let [one_phase, decided, under_way] = [one.id(), two.id(), slow.id()];
    ended(one.commit()).await.unwrap();
    ended(two.commit()).await.unwrap();
    for _ in 0..1024 {
        ended(manager.begin().commit()).await.unwrap();
    }
    assert_eq!(manager.outcome(one_phase).await, NotKnown);
    assert_eq!(manager.outcome(decided).await, Committed);
    assert_eq!(manager.outcome(under_way).await, InDoubt(Waiting::End));
    slow.abort().await;
    assert_eq!(manager.outcome(under_way).await, Aborted);
}

#[tokio::test(start_paused = true)]
async fn readiness_tells_what_stops_new_work_and_lists_what_does_not() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let id = earlier(&world).transaction(1);
    a.plant(&of_the_log(id), "undecided");
    a.fail_always(Call::RecoveredRollback, Fault::Refused);
    let (manager, log) = world.start().await;
    let ready = manager.readiness();
    assert!(ready.is_ready());
    assert_eq!((ready.in_doubt, ready.unreachable), (1, Vec::new()));

    a.set_down(true);
    manager.recover().await;
    let ready = manager.readiness();
    assert!(ready.is_ready(), "one dead store stops nobody else (rule 13)");
    assert_eq!((ready.in_doubt, ready.unreachable), (0, vec!["a".to_owned()]));

    log.set_full(true);
    assert!(!manager.readiness().is_ready());
    assert_eq!(manager.readiness().log.as_deref(), Some("the log is full"));
    log.set_full(false);
    assert!(manager.readiness().is_ready());

    // From the moment when the shutdown begins, not when it has drained.
    let tx = manager.begin();
    tx.join(&b).await.unwrap();
    let closing = tokio::spawn({
        let manager = manager.clone();
        async move { manager.shutdown(Duration::from_secs(60)).await }
    });
    tokio::task::yield_now().await;
    assert!(manager.readiness().closing && !manager.readiness().is_ready());
    tx.abort().await;
    ended(closing).await.unwrap().unwrap();
    assert_eq!(manager.outcome(id).await, InDoubt(Waiting::Decider(None)), "the log is given up");
}
