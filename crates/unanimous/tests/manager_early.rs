//! Early acknowledgement (docs/protocol.md): the answer comes when all participants are prepared, and what follows is recorded before any of
//! their branches is touched, by the driver and by recovery alike.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use unanimous::env::{BoxFuture, Env, NoRuntime, TokioEnv};
use unanimous::{
    BoxError, BranchId, BuildError, Capability, Cause, CommitError, Decider, DeciderId, DecisionLog, DecisionRecord,
    Doubt, HoldReason, Known, KnownOutcome, Options, Owner, ResourceManager, Roster, StoreError, StoreTag, Transaction,
    TransactionId, TransactionManager, log::MemoryLog,
};
use unanimous_testing::memory::KeptLog;

use crate::support::{Call, Fault, JournalLog, MemoryStore, World, aborted, ended, eventually, unknown};

async fn start(world: &World) -> (TransactionManager, JournalLog<KeptLog>) {
    let (builder, log) = world.builder();
    let manager = builder.early_acknowledgement(true).build().await.unwrap();
    world.journal.clear();
    (manager, log)
}

async fn wrote(manager: &TransactionManager, stores: &[&MemoryStore]) -> Transaction {
    let tx = manager.begin();
    for store in stores {
        tx.join(*store).await.unwrap().put("row").unwrap();
    }
    tx
}

fn tag(store: &MemoryStore) -> StoreTag {
    StoreTag::of(&store.identity_now())
}

/// The ids of a transaction's branches in these stores, each of which lists all.
fn ids(transaction: TransactionId, stores: &[&MemoryStore]) -> Vec<BranchId> {
    let roster = Roster::new((0..).zip(stores.iter().map(|store| tag(store)))).unwrap();
    let decider = DeciderId::Together(roster);
    (0..stores.len() as u16).map(|number| BranchId { transaction, decider: decider.clone(), number }).collect()
}

/// Prepared, answered, recorded, committed, forgotten: one forced write is waited for before the answer, where the ordinary path has two.
#[tokio::test(start_paused = true)]
async fn the_answer_comes_before_the_decision_and_the_commits_after_it() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
    let (manager, log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    tx.join(&c).await.unwrap();
    let id = tx.id();
    world.journal.clear();
    let decision = log.hold();
    let (first, second) = (a.hold(Call::Prepare), b.hold(Call::Prepare));
    let mut commit = tx.commit();
    first.reached().await;
    second.reached().await;
    first.release();
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut commit).await.is_err(), "b has not prepared");
    assert_eq!(manager.outcome(id).await, KnownOutcome::InDoubt(unanimous::Waiting::End));
    second.release();
    let committed = ended(commit).await.unwrap();
    assert_eq!((committed.id, committed.pending), (id, 2));
    assert_eq!(manager.outcome(id).await, KnownOutcome::Committed);
    decision.reached().await;
    let before =
        ["a.flush", "b.flush", "c.flush", "a.prepare!", "b.prepare!", "c.commit-one-phase", "log.decide! [a b]"];
    assert_eq!(world.journal.acts(), before);
    assert_eq!([a.prepared(), b.prepared()].concat(), ids(id, &[&a, &b]), "each id lists both, and not the reader");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.journal.acts(), before, "nothing is committed before it is recorded");
    decision.release();
    eventually("it is forgotten", || world.disk.unfinished().is_empty() && !world.disk.records().is_empty()).await;
    assert_eq!(world.journal.acts()[before.len()..], ["a.commit!", "b.commit!", "log.forget"]);
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
}

/// What does not fit takes its ordinary path: the log decides, or a carrier, before the answer.
#[tokio::test(start_paused = true)]
async fn what_does_not_fit_takes_its_ordinary_path() {
    let mut world = World::new();
    let stores: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(|name| world.two_phase(name)).collect();
    let (f, v) = (world.carrier("f"), world.store("v", Capability::Volatile));
    let (manager, _log) = start(&world).await;
    let two = &stores[..2];
    for (joined, decides) in [
        (stores.iter().collect::<Vec<_>>(), "log.decide! [a b c d e]"),
        (two.iter().chain([&f]).collect(), "f.commit-carrying! [a b]"),
        (two.iter().chain([&v]).collect(), "log.decide! [a b v]"),
    ] {
        world.journal.clear();
        let tx = manager.begin_with(Options::default().allow("v"));
        for store in joined {
            tx.join(store).await.unwrap().put("row").unwrap();
        }
        assert_eq!(ended(tx.commit()).await.unwrap().pending, 0, "{decides}");
        let acts = world.journal.acts();
        let place = |act: &str| acts.iter().position(|other| other == act);
        assert!(place(decides).unwrap() < place("a.commit!").unwrap(), "{acts:?}");
        eventually("it is forgotten", || world.disk.unfinished().is_empty()).await;
    }
    // Four fit.
    let tx = wrote(&manager, &stores[..4].iter().collect::<Vec<_>>()).await;
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 4);
}

/// A store that can't make certain of what it lists takes no part, whatever the others can: everything takes its ordinary path, also where it has only
/// read. What such a store lists all the same, of another version's, is not concluded from.
#[tokio::test(start_paused = true)]
async fn a_store_whose_list_is_not_certain_takes_no_part() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
    let (c, log) = (c.listing_unsurely(), world.disk.open());
    assert!(a.durably_in_doubt().is_some() && c.durably_in_doubt().is_none());
    let held = log.owner().transaction(1);
    for (store, branch) in [&a, &c].into_iter().zip(ids(held, &[&a, &c])) {
        store.plant(&branch, "planted");
    }
    let alone = log.owner().transaction(2);
    a.plant(&ids(alone, &[&a, &c])[0], "alone");
    drop(log);
    let log = JournalLog::new(world.disk.open(), &world.journal);
    let builder = TransactionManager::builder(log).early_acknowledgement(true);
    let manager = builder.resource(a.clone()).resource(b.clone()).resource(c.clone()).build().await.unwrap();
    let why: Vec<_> = manager.in_doubt().into_iter().map(|doubt| doubt.why).collect();
    assert_eq!(why, [(); 3].map(|()| Doubt::Held(HoldReason::Unlisted(tag(&c)))));
    assert!(world.journal.acts().is_empty(), "{:?}", world.journal.acts());
    for stores in [&[&a, &c][..], &[&a, &b, &c]] {
        world.journal.clear();
        let tx = wrote(&manager, stores).await;
        assert_eq!(ended(tx.commit()).await.unwrap().pending, 0);
        let acts = world.journal.acts();
        let place = |act: &str| acts.iter().position(|other| other.starts_with(act)).unwrap();
        assert!(place("log.decide! [") < place("a.commit!"), "{acts:?}");
    }
    let tx = wrote(&manager, &[&a, &b]).await;
    tx.join(&c).await.unwrap();
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 0, "after its commits");
    let tx = wrote(&manager, &[&a, &b]).await;
    assert_eq!(ended(tx.commit()).await.unwrap().pending, 2, "before them");
}

/// Numbers that were reserved are as long as they are, and are what an id lists; three of the longest don't fit, two do.
#[tokio::test(start_paused = true)]
async fn reserved_numbers_are_listed_and_take_their_room() {
    let mut world = World::new();
    let stores: Vec<_> = ["a", "b", "c"].into_iter().map(|name| world.two_phase(name)).collect();
    let (manager, log) = start(&world).await;
    for (joined, pending) in [(&stores[..], 0), (&stores[..2], 2)] {
        let tx = manager.begin();
        for (number, store) in (60_000..).zip(joined) {
            let branch = store.branch();
            branch.put("row").unwrap();
            tx.join_foreign_as(store.name(), store.name(), branch, number).await.unwrap();
        }
        let record = (pending > 0).then(|| log.hold());
        assert_eq!(ended(tx.commit()).await.unwrap().pending, pending);
        if let Some(record) = record {
            record.reached().await;
            let roster = Roster::new([(60_000, tag(&stores[0])), (60_001, tag(&stores[1]))]).unwrap();
            let listed = DeciderId::Together(roster);
            assert!(
                stores[..2].iter().all(|store| store.prepared()[0].decider == listed),
                "{:?}",
                stores[0].prepared()
            );
            record.release();
        }
        eventually("all have committed", || stores.iter().all(|store| store.prepared().is_empty())).await;
    }
}

/// The log's sync fails after the answer: it stays acknowledged, nothing is committed by this process, and the next start records what
/// all participants list, and commits them after that.
#[tokio::test(start_paused = true)]
async fn acknowledged_and_not_recorded_is_committed_by_the_next_start() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    let id = tx.id();
    log.fail(Fault::Lost);
    ended(tx.commit()).await.unwrap();
    eventually("the sync fails", || world.journal.count("log.decide: lost") == 1).await;
    assert!(!manager.recover().await.is_empty(), "it is held");
    assert_eq!(manager.outcome(id).await, KnownOutcome::Committed);
    assert_eq!([a.prepared().len(), b.prepared().len()], [1, 1]);
    drop((manager, log));
    world.journal.clear();
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    let mut acts = world.journal.acts();
    assert_eq!(acts.remove(0), "log.conclude-commit! [a b]", "before anything is committed, also without the option");
    acts.sort();
    assert_eq!(acts, ["a.recovered-commit!", "b.recovered-commit!"]);
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    assert_eq!(manager.outcome(id).await, KnownOutcome::Committed);
    assert!(manager.recover().await.is_empty());
    assert!(world.disk.unfinished().is_empty());
}

/// The log refuses the record after the answer: recovery of the same process goes on until it takes it.
#[tokio::test(start_paused = true)]
async fn acknowledged_and_refused_by_the_log_is_recorded_by_recovery() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    for _ in 0..3 {
        log.fail(Fault::Refused);
    }
    ended(tx.commit()).await.unwrap();
    eventually("both are committed", || [a.keys(), b.keys()] == [["row"], ["row"]]).await;
    let acts = world.journal.acts();
    let last = acts.iter().rposition(|act| act == "log.conclude-commit! [a b]").unwrap();
    assert_eq!(acts.iter().filter(|act| act.ends_with(": refused")).count(), 3);
    assert!(acts.iter().position(|act| act.ends_with("-commit!")).unwrap() > last, "{acts:?}");
    assert_eq!(manager.readiness().log, None);
}

/// A reader that was found in the middle of its end is rolled back, which says nothing of its transaction.
#[tokio::test(start_paused = true)]
async fn a_readers_rollback_is_not_the_outcome() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
    let id = world.disk.open().owner().transaction(1);
    let branches = ids(id, &[&a, &b]);
    a.plant(&branches[0], "row");
    b.plant(&branches[1], "row");
    c.plant(&BranchId { number: 2, ..branches[0].clone() }, "read");
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert!(c.prepared().is_empty() && c.keys().is_empty());
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    assert_eq!(manager.outcome(id).await, KnownOutcome::Committed);
}

/// What follows for several transactions is handed to the log at the same time, which forces it together.
#[tokio::test(start_paused = true)]
async fn conclusions_are_recorded_together() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let owner = world.disk.open().owner();
    for id in [owner.transaction(1), owner.transaction(2)] {
        for (store, branch) in [&a, &b].into_iter().zip(ids(id, &[&a, &b])) {
            store.plant(&branch, &format!("row {}", id.sequence));
        }
    }
    let (builder, log) = world.builder();
    let record = log.hold();
    let building = tokio::spawn(builder.build());
    record.reached().await;
    eventually("both are handed in", || world.journal.count("log.conclude-commit! [a b]") == 2).await;
    record.release();
    let _manager = ended(building).await.unwrap().unwrap();
    assert_eq!([a.keys(), b.keys()], [["row 1", "row 2"], ["row 1", "row 2"]]);
}

/// One participant is missing: the abort is recorded before the rollback, and kept until every list confirms it.
#[tokio::test(start_paused = true)]
async fn one_that_is_missing_is_recorded_as_an_abort_before_anything_is_rolled_back() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let id = world.disk.open().owner().transaction(1);
    let branches = ids(id, &[&a, &b]);
    a.plant(&branches[0], "never");
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert_eq!(world.journal.acts(), ["log.conclude-abort! [a b]", "a.recovered-rollback"]);
    assert_eq!(world.disk.unfinished_aborts(), [id]);
    // Its vote lands late: all would be prepared now, one after the other.
    for (store, branch) in [(&a, &branches[0]), (&b, &branches[1])] {
        store.plant(branch, "late");
    }
    world.journal.clear();
    manager.recover().await;
    let mut acts = world.journal.acts();
    acts.sort();
    assert_eq!(acts, ["a.recovered-rollback", "b.recovered-rollback", "log.forget"]);
    assert_eq!([a.keys(), b.keys()], [Vec::<String>::new(), vec![]]);
    assert!(world.disk.unfinished_aborts().is_empty() && world.disk.records().is_empty());
    assert!(manager.recover().await.is_empty());
}

/// Without a participant's list nothing follows, and the others stay prepared: the price. Nor where it is not registered.
#[tokio::test(start_paused = true)]
async fn a_participant_that_cannot_be_listed_keeps_the_others_prepared() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let owner = world.disk.open().owner();
    let (acknowledged, not) = (owner.transaction(1), owner.transaction(2));
    let branches = ids(acknowledged, &[&a, &b]);
    a.plant(&branches[0], "row");
    b.plant(&branches[1], "row");
    a.plant(&ids(not, &[&a, &b])[0], "never");
    b.set_down(true);
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    let held = |manager: &TransactionManager| {
        let doubts = manager.in_doubt().into_iter().filter(|doubt| doubt.resource == "a");
        doubts.map(|doubt| (doubt.transaction, doubt.why)).collect::<Vec<_>>()
    };
    let why = Doubt::Held(HoldReason::Unlisted(tag(&b)));
    assert_eq!(held(&manager), [(Some(acknowledged), why.clone()), (Some(not), why.clone())]);
    assert!(world.journal.acts().is_empty(), "{:?}", world.journal.acts());
    assert!(matches!(manager.outcome(acknowledged).await, KnownOutcome::InDoubt(_)));
    drop(manager);

    let mut alone = World::new();
    alone.disk = world.disk.clone();
    let log = alone.disk.open();
    let manager = TransactionManager::builder(log).resource(a.clone()).build().await.unwrap();
    assert_eq!(held(&manager), [(Some(acknowledged), why.clone()), (Some(not), why)]);
    drop(manager);

    b.set_down(false);
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    assert!(a.prepared().is_empty() && manager.in_doubt().is_empty());
    assert_eq!(manager.outcome(acknowledged).await, KnownOutcome::Committed);
    assert_eq!(manager.outcome(not).await, KnownOutcome::Aborted);
}

/// One is missing, and another one's store was never reached: the record could not say whom to wait for, so that it waits.
#[tokio::test(start_paused = true)]
async fn an_abort_is_recorded_when_all_its_stores_are_known() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
    let id = world.disk.open().owner().transaction(1);
    let branches = ids(id, &[&a, &b, &c]);
    a.plant(&branches[0], "never");
    b.plant(&branches[1], "never");
    b.set_down(true);
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert!(world.journal.acts().is_empty(), "{:?}", world.journal.acts());
    assert_eq!(a.prepared(), branches[..1]);
    b.set_down(false);
    manager.recover().await;
    assert_eq!(world.journal.acts()[0], "log.conclude-abort! [a b c]");
    assert!(a.prepared().is_empty() && b.prepared().is_empty());
    manager.recover().await;
    assert!(world.disk.unfinished_aborts().is_empty(), "all lists have confirmed it");
    // Known by now, it may be down: the one that is missing is enough.
    let id = world.disk.open().owner().transaction(1);
    a.plant(&ids(id, &[&a, &b, &c])[0], "never");
    b.set_down(true);
    manager.recover().await;
    assert!(a.prepared().is_empty() && a.keys().is_empty());
    assert_eq!(world.disk.unfinished_aborts(), [id], "b's list is still to come");
}

/// A list that is older than the end of a transaction's driver does not count: it may have missed a prepare that was acknowledged since.
#[tokio::test(start_paused = true)]
async fn a_list_of_before_does_not_count() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
    let (manager, log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    let (prepare, list) = (b.hold(Call::Prepare), c.hold(Call::List));
    let commit = tx.commit();
    prepare.reached().await;
    let pass = tokio::spawn({
        let manager = manager.clone();
        async move { manager.recover().await }
    });
    list.reached().await;
    eventually("a and b are listed", || world.journal.all().iter().any(|call| call == "b.list")).await;
    // It is acknowledged, and leaves the live table, while the pass has lists of before.
    log.fail(Fault::Refused);
    prepare.release();
    ended(commit).await.unwrap();
    eventually("its driver has left it", || world.journal.count("log.decide: refused") == 1).await;
    list.release();
    ended(pass).await.unwrap();
    eventually("both are committed", || [a.keys(), b.keys()] == [["row"], ["row"]]).await;
    assert!(world.disk.unfinished_aborts().is_empty());
}

/// A branch that is listed and not certain to stay (no replica has confirmed it) is not taken for prepared; nor for missing.
#[tokio::test(start_paused = true)]
async fn a_list_that_is_not_durable_does_not_count() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let id = world.disk.open().owner().transaction(1);
    for (store, branch) in [&a, &b].into_iter().zip(ids(id, &[&a, &b])) {
        store.plant(&branch, "row");
    }
    b.fail(Call::DurableList, Fault::Lost);
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert!(world.journal.acts().is_empty(), "{:?}", world.journal.acts());
    let why: Vec<_> = manager.in_doubt().into_iter().map(|doubt| doubt.why).collect();
    assert_eq!(why, [(); 2].map(|()| Doubt::Held(HoldReason::Unlisted(tag(&b)))));
    assert!(manager.recover().await.is_empty());
    assert_eq!(world.journal.acts()[0], "log.conclude-commit! [a b]");
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
}

/// A vote that is lost may be prepared: the abort is recorded before anything is rolled back, and before anybody is told.
#[tokio::test(start_paused = true)]
async fn a_lost_vote_is_recorded_before_it_is_told() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    let id = tx.id();
    world.journal.clear();
    b.fail(Call::Prepare, Fault::Late);
    let record = log.hold();
    let mut commit = tx.commit();
    record.reached().await;
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut commit).await.is_err(), "nobody is told before");
    assert_eq!(world.journal.count("a.rollback") + world.journal.count("b.rollback"), 0);
    record.release();
    assert!(matches!(aborted(ended(commit).await), CommitError::Aborted { source: Cause::Branch { .. }, .. }));
    assert!(world.journal.acts().contains(&"log.conclude-abort! [a b]".to_owned()));
    b.land();
    manager.recover().await;
    manager.recover().await;
    assert!(a.prepared().is_empty() && b.prepared().is_empty());
    assert_eq!(manager.outcome(id).await, KnownOutcome::Aborted);
}

/// A time limit is no refusal either; the log that does not take the abort leaves it to recovery, and its caller without an answer.
#[tokio::test(start_paused = true)]
async fn an_abort_that_is_not_recorded_is_not_told() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = start(&world).await;
    let tx = manager.begin_with(Options::default().time_limit(Duration::from_secs(3)));
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    let id = tx.id();
    let prepare = b.hold(Call::Prepare);
    log.fail(Fault::Refused);
    let error = unknown(ended(tx.commit()).await);
    assert!(!error.is_retryable());
    prepare.release();
    // All are prepared by now, or one is not: recovery says which, and its caller was told neither.
    eventually("recovery has ended it", || a.prepared().is_empty() && b.prepared().is_empty()).await;
    manager.recover().await;
    assert_eq!(a.keys(), b.keys());
    let known = if a.keys().is_empty() { KnownOutcome::Aborted } else { KnownOutcome::Committed };
    assert_eq!(manager.outcome(id).await, known);
}

/// The log refuses the abort, and nothing is prepared, so that no list names it: what became of it is recorded all the same, and told, after a restart too.
#[tokio::test(start_paused = true)]
async fn what_was_left_with_nothing_prepared_is_recorded_as_an_abort() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    let id = tx.id();
    for store in [&a, &b] {
        store.fail(Call::Prepare, Fault::Lost);
    }
    // Its driver's, and the first one of recovery's.
    log.fail(Fault::Refused);
    log.fail(Fault::Refused);
    let record = log.hold();
    unknown(ended(tx.commit()).await);
    record.reached().await;
    assert_eq!(world.journal.count("log.conclude-abort: refused"), 2);
    assert!(matches!(manager.outcome(id).await, KnownOutcome::InDoubt(_)));
    record.release();
    eventually("it is recorded", || world.disk.unfinished_aborts() == [id]).await;
    assert_eq!(manager.outcome(id).await, KnownOutcome::Aborted);
    let acts = world.journal.acts();
    manager.recover().await;
    assert!(world.disk.unfinished_aborts().is_empty(), "all lists have confirmed it");
    manager.recover().await;
    assert_eq!(world.journal.acts()[acts.len()..], ["log.forget"], "recorded once");
    drop((manager, log));
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert_eq!(manager.outcome(id).await, KnownOutcome::Aborted);
}

/// An abort whose participant's store is not registered any more is named: it is kept until that store confirms it.
#[tokio::test(start_paused = true)]
async fn an_abort_whose_store_is_not_registered_is_named() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let id = world.disk.open().owner().transaction(1);
    a.plant(&ids(id, &[&a, &b])[0], "never");
    let (builder, _log) = world.builder();
    drop(builder.build().await.unwrap());
    assert_eq!(world.disk.unfinished_aborts(), [id], "the next pass would confirm it");
    let manager = TransactionManager::builder(world.disk.open()).resource(a.clone()).build().await.unwrap();
    let named: Vec<_> =
        manager.in_doubt().into_iter().map(|doubt| (doubt.resource, doubt.transaction, doubt.why)).collect();
    assert_eq!(named, [("b".to_owned(), Some(id), Doubt::Unregistered)]);
    assert_eq!(world.disk.unfinished_aborts(), [id]);
    drop(manager);
    let builder = TransactionManager::builder(world.disk.open()).resource(a.clone()).resource(b.clone());
    let manager = builder.build().await.unwrap();
    assert!(manager.in_doubt().is_empty() && world.disk.unfinished_aborts().is_empty());
}

/// A participant's own no needs no record: it can never be prepared.
#[tokio::test(start_paused = true)]
async fn a_participants_no_needs_no_record() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    world.journal.clear();
    b.fail(Call::Prepare, Fault::Conflict);
    assert!(aborted(ended(tx.commit()).await).is_retryable());
    assert!(!world.journal.acts().iter().any(|act| act.starts_with("log.")), "{:?}", world.journal.acts());
    assert!(a.prepared().is_empty() && a.keys().is_empty());
}

/// A reader's failure is no participant's no.
#[tokio::test(start_paused = true)]
async fn a_readers_failure_is_recorded() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
    let (manager, _log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    tx.join(&c).await.unwrap();
    c.fail(Call::CommitOnePhase, Fault::Conflict);
    aborted(ended(tx.commit()).await);
    let acts = world.journal.acts();
    let place = |act: &str| acts.iter().position(|other| other == act).unwrap();
    assert!(
        place("log.conclude-abort! [a b]") < place("a.rollback")
            && place("log.conclude-abort! [a b]") < place("b.rollback"),
        "{acts:?}"
    );
    eventually("it is confirmed", || a.prepared().is_empty() && b.prepared().is_empty()).await;
}

/// A shutdown waits for the record and for phase two of what was acknowledged.
#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_what_was_acknowledged() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    let record = log.hold();
    ended(tx.commit()).await.unwrap();
    record.reached().await;
    let stopping = tokio::spawn({
        let manager = manager.clone();
        async move { manager.shutdown(Duration::from_secs(30)).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.journal.count("log.close"), 0);
    record.release();
    ended(stopping).await.unwrap().unwrap();
    let acts = world.journal.acts();
    assert_eq!(acts[acts.len() - 4..], ["a.commit!", "b.commit!", "log.forget", "log.close"]);
}

/// A vote that outlives the shutdown's deadline: the log is another's by then, which has concluded abort of what was not all prepared.
#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_by_a_log_that_was_given_up() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    let id = tx.id();
    let prepare = b.hold(Call::Prepare);
    let commit = tx.commit();
    prepare.reached().await;
    eventually("a is prepared", || a.prepared().len() == 1).await;
    manager.shutdown(Duration::from_secs(1)).await.unwrap_err();
    let (builder, _log_of_the_next) = world.builder();
    let next = builder.build().await.unwrap();
    assert_eq!(world.disk.unfinished_aborts(), [id], "b is missing");
    prepare.release();
    assert!(!unknown(ended(commit).await).is_retryable());
    eventually("b is prepared", || b.prepared().len() == 1).await;
    next.recover().await;
    assert!(a.keys().is_empty() && b.keys().is_empty() && b.prepared().is_empty());
    assert_eq!(next.outcome(id).await, KnownOutcome::Aborted);
}

/// Nor by one that takes no decisions any more: what all participants list is left to the next start.
#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_by_a_poisoned_log() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    let id = tx.id();
    let prepare = b.hold(Call::Prepare);
    let commit = tx.commit();
    prepare.reached().await;
    let other = manager.begin();
    other.join(&a).await.unwrap().put("other").unwrap();
    other.join(&b).await.unwrap().put("other").unwrap();
    log.fail(Fault::Lost);
    ended(other.commit()).await.unwrap();
    eventually("the log is poisoned", || manager.readiness().log.is_some()).await;
    prepare.release();
    unknown(ended(commit).await);
    assert!(matches!(manager.outcome(id).await, KnownOutcome::InDoubt(_)));
    drop((manager, log));
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert_eq!(manager.outcome(id).await, KnownOutcome::Committed);
    assert_eq!([a.keys(), b.keys()], [["other", "row"], ["other", "row"]]);
}

/// Two stores that an id can't tell apart: who writes there takes the ordinary path, and recovery takes neither for a participant.
#[tokio::test(start_paused = true)]
async fn two_stores_of_one_tag_are_not_told_apart() {
    let mut world = World::new();
    // The hashes of `store-241491` and `store-313038` agree in the 40 bits that an id holds.
    let (a, one, two) = (world.two_phase("a"), world.two_phase("241491"), world.two_phase("313038"));
    assert_eq!(tag(&one), tag(&two));
    let id = world.disk.open().owner().transaction(1);
    for (store, branch) in [&a, &two].into_iter().zip(ids(id, &[&a, &two])) {
        store.plant(&branch, "planted");
    }
    let (manager, _log) = start(&world).await;
    let why: Vec<_> = manager.in_doubt().into_iter().map(|doubt| doubt.why).collect();
    assert_eq!(why, [(); 2].map(|()| Doubt::Held(HoldReason::Unlisted(tag(&two)))));
    assert!(world.disk.unfinished_aborts().is_empty());
    for store in [&one, &two] {
        let tx = wrote(&manager, &[&a, store]).await;
        assert_eq!(ended(tx.commit()).await.unwrap().pending, 0, "after its commits");
    }
}

/// Nothing is prepared for a log that could not record it.
#[tokio::test(start_paused = true)]
async fn nothing_is_prepared_for_a_full_log() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = start(&world).await;
    let tx = wrote(&manager, &[&a, &b]).await;
    log.set_full(true);
    aborted(ended(tx.commit()).await);
    assert_eq!(world.journal.count("a.prepare!") + world.journal.count("b.prepare!"), 0);
}

/// Runs tasks as tokio does, and keeps the last one's handle, to end it.
struct Ending(Arc<dyn Env>, Mutex<Option<tokio::task::AbortHandle>>);

impl Env for Ending {
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn wall_clock(&self) -> u64 {
        self.0.wall_clock()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) -> Result<(), NoRuntime> {
        *self.1.lock().unwrap() = Some(tokio::spawn(task).abort_handle());
        Ok(())
    }

    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> Result<(), NoRuntime> {
        self.0.blocking(job)
    }

    fn random(&self) -> u64 {
        self.0.random()
    }
}

/// A driver that ends after its answer, at the record or at a commit, wakes recovery, which does not wait for its next round.
#[tokio::test(start_paused = true)]
async fn a_driver_that_ends_after_its_answer_wakes_recovery() {
    for recorded in [false, true] {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        let (builder, log) = world.builder();
        let env = Arc::new(Ending(TokioEnv::shared(), Mutex::default()));
        let interval = Duration::from_secs(3600);
        let builder = builder.early_acknowledgement(true).env(env.clone()).recovery_interval(interval);
        let manager = builder.build().await.unwrap();
        let tx = wrote(&manager, &[&a, &b]).await;
        let hold = if recorded { a.hold(Call::Commit) } else { log.hold() };
        ended(tx.commit()).await.unwrap();
        hold.reached().await;
        let began = tokio::time::Instant::now();
        env.1.lock().unwrap().take().unwrap().abort();
        eventually("both are committed", || [a.keys(), b.keys()] == [["row"], ["row"]]).await;
        assert!(began.elapsed() < interval / 2, "{recorded} {:?}", began.elapsed());
    }
}

/// A log that does not record aborts.
struct Plain(KeptLog);

impl Decider for Plain {
    async fn lookup(&self, transaction: TransactionId) -> Result<Known, StoreError> {
        self.0.lookup(transaction).await
    }

    async fn unfinished(&self) -> Result<Vec<DecisionRecord>, StoreError> {
        self.0.unfinished().await
    }

    fn forget(&self, transaction: TransactionId) {
        self.0.forget(transaction);
    }
}

impl DecisionLog for Plain {
    fn owner(&self) -> Owner {
        self.0.owner()
    }

    fn take(&self) -> bool {
        self.0.take()
    }

    fn ready(&self) -> Result<(), BoxError> {
        self.0.ready()
    }

    async fn decide(&self, record: DecisionRecord) -> Result<(), unanimous::DecideError> {
        self.0.decide(record).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

/// It is refused by name where the log can't, and what such a log finds of another's is held.
#[tokio::test(start_paused = true)]
async fn a_log_that_records_no_aborts_is_refused() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let builder = TransactionManager::builder(Plain(world.disk.open())).early_acknowledgement(true);
    let error = builder.build().await.map(drop).unwrap_err();
    assert!(matches!(error, BuildError::NoEarlyAcknowledgement), "{error}");
    let owner = world.disk.open().owner();
    for (store, branch) in [&a, &b].into_iter().zip(ids(owner.transaction(1), &[&a, &b])) {
        store.plant(&branch, "row");
    }
    let builder = TransactionManager::builder(Plain(world.disk.open())).resource(a.clone()).resource(b.clone());
    let manager = builder.build().await.unwrap();
    let why: Vec<_> = manager.in_doubt().into_iter().map(|doubt| doubt.why).collect();
    assert_eq!(why, [Doubt::Held(HoldReason::Unreachable), Doubt::Held(HoldReason::Unreachable)]);
    assert!(TransactionManager::builder(MemoryLog::new()).early_acknowledgement(true).build().await.is_ok());
}
