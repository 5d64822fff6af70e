//! Recovery, at start and in the background: what earlier incarnations left prepared is committed or rolled back by its own decider's
//! answer (rule 2), held where nobody here may presume (rule 4); a live transaction is never touched (rule 5); a dead store stops
//! nobody (rule 13); a decision is forgotten once every branch is confirmed (rule 11).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use unanimous::{
    BranchId, DeciderId, Decision, DecisionLog, DecisionRecord, Doubt, HoldReason, InDoubt, Incarnation, LogId, Note,
    Owner, Participant, Recovered, StoreId, TransactionId,
};

use crate::support::{Call, Fault, LONG, MemoryStore, World, aborted, ended, eventually};

fn branch(transaction: TransactionId, number: u16) -> BranchId {
    BranchId { transaction, decider: DeciderId::Log, number }
}

fn carried_by(carrier: &MemoryStore, transaction: TransactionId, number: u16) -> BranchId {
    BranchId { transaction, decider: DeciderId::Store(carrier.identity_now()), number }
}

fn record(transaction: TransactionId, participants: &[(u16, &MemoryStore)]) -> DecisionRecord {
    let participants = participants.iter().map(|(number, store)| Participant {
        number: *number,
        resource: store.identity_now().as_str().trim_start_matches("store-").to_owned(),
        store: Some(store.identity_now()),
    });
    DecisionRecord { transaction, participants: participants.collect(), decided_at: 0, note: Note::default() }
}

fn doubts_of(doubts: &[InDoubt]) -> Vec<(String, Option<TransactionId>, Doubt)> {
    doubts.iter().map(|doubt| (doubt.resource.clone(), doubt.transaction, doubt.why.clone())).collect()
}

/// Each branch by the answer of the log: decided is committed, and forgotten then; undecided is rolled back.
#[tokio::test(start_paused = true)]
async fn a_start_finishes_what_earlier_incarnations_left() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (first, second) = (world.disk.open().owner(), world.disk.open().owner());
    let (decided, undecided) = (first.transaction(1), second.transaction(1));
    world.disk.plant(record(decided, &[(0, &a), (1, &b)]));
    a.plant(&branch(decided, 0), "decided");
    b.plant(&branch(decided, 1), "decided");
    a.plant(&branch(undecided, 0), "undecided");
    b.plant(&branch(undecided, 1), "undecided");
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    let mut acts = world.journal.acts();
    assert_eq!(acts.pop().as_deref(), Some("log.forget"), "after the last branch");
    acts.sort();
    assert_eq!(acts, ["a.recovered-commit!", "a.recovered-rollback", "b.recovered-commit!", "b.recovered-rollback"]);
    assert_eq!([a.keys(), b.keys()], [["decided"], ["decided"]]);
    assert!(manager.in_doubt().is_empty());
    assert!(world.disk.unfinished().is_empty());
}

/// It looks at the unfinished decisions, then at the lists, and asks the deciders last: another order could take a transaction for
/// undecided that is decided in between.
#[tokio::test(start_paused = true)]
async fn a_pass_looks_in_the_order_that_the_plan_needs() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let earlier = world.disk.open().owner();
    a.plant(&branch(earlier.transaction(1), 0), "log");
    a.plant(&carried_by(&c, earlier.transaction(2), 0), "carrier");
    let (builder, _log) = world.builder();
    let _manager = builder.build().await.unwrap();
    assert_eq!(
        world.journal.all(),
        [
            "log.unfinished",
            "a.unfinished",
            "c.unfinished",
            "a.identity",
            "a.list",
            "c.identity",
            "c.list",
            "log.lookup",
            "a.recovered-rollback",
            "c.identity",
            "c.decision",
            "c.fence!",
            "a.recovered-rollback",
        ]
    );
}

/// The carrier's row decides, and nobody else is asked; without a row it is fenced before the rollback.
#[tokio::test(start_paused = true)]
async fn a_carriers_row_decides_for_its_branches() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let earlier = world.disk.open().owner();
    let (decided, undecided) = (earlier.transaction(1), earlier.transaction(2));
    c.plant_decision(record(decided, &[(0, &a)]));
    // A record in the log is none of the carrier's business (rule 2).
    world.disk.plant(record(undecided, &[(0, &a)]));
    a.plant(&carried_by(&c, decided, 0), "decided");
    a.plant(&carried_by(&c, undecided, 0), "undecided");
    let (builder, _log) = world.builder();
    let told = Arc::<Mutex<Vec<Recovered>>>::default();
    let seen = told.clone();
    let builder = builder.recovery_observer(move |recovered| seen.lock().unwrap().push(recovered.clone()));
    let manager = builder.build().await.unwrap();
    assert_eq!(
        world.journal.acts(),
        ["a.recovered-commit!", "c.fence!", "a.recovered-rollback", "log.forget", "c.forget"]
    );
    let told: Vec<_> = told.lock().unwrap().iter().map(|told| (told.branch.transaction, told.decision)).collect();
    assert_eq!(told, [(decided, Decision::Commit), (undecided, Decision::Abort)]);
    assert_eq!(a.keys(), ["decided"]);
    assert!(manager.in_doubt().is_empty());
}

/// Nothing is presumed of another log's branch, of an incarnation that this log never had, of an unregistered carrier's, nor of one
/// that its decision doesn't list. They are held and named, for as long as it takes.
#[tokio::test(start_paused = true)]
async fn what_nobody_here_may_decide_is_held_and_named() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let outside = MemoryStore::new("x", unanimous::Capability::Carrier, &world.journal);
    let earlier = world.disk.open().owner();
    let foreign_log = Owner { log: LogId(77), ..earlier }.transaction(1);
    let foreign_incarnation = Owner { incarnation: Incarnation::new(9, 9), ..earlier }.transaction(1);
    let (unregistered, unlisted) = (earlier.transaction(1), earlier.transaction(2));
    world.disk.plant(record(unlisted, &[(1, &a)]));
    a.plant(&branch(foreign_log, 0), "foreign log");
    a.plant(&branch(foreign_incarnation, 0), "foreign incarnation");
    a.plant(&carried_by(&outside, unregistered, 0), "unregistered carrier");
    a.plant(&branch(unlisted, 0), "unlisted");
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert_eq!(world.journal.count("log.lookup"), 2, "the foreign log's and the carrier's are not asked here (rule 2)");
    let mut doubts = doubts_of(&manager.in_doubt());
    doubts.sort_by_key(|(_, transaction, _)| *transaction);
    let held = |transaction, reason| ("a".to_owned(), Some(transaction), Doubt::Held(reason));
    assert_eq!(
        doubts,
        [
            held(unregistered, HoldReason::UnregisteredDecider(outside.identity_now())),
            held(unlisted, HoldReason::NotListed),
            held(foreign_incarnation, HoldReason::ForeignIncarnation),
            held(foreign_log, HoldReason::ForeignLog),
        ]
    );
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let acts: Vec<_> = world.journal.acts().into_iter().filter(|line| line != "log.forget").collect();
    assert!(acts.is_empty(), "{acts:?}");
    assert_eq!(a.prepared().len(), 4);
}

/// A decision whose branches are all confirmed is forgotten; one with a participant that is down, or registered nowhere, is kept.
#[tokio::test(start_paused = true)]
async fn an_unfinished_decision_is_forgotten_when_every_list_confirms_it() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let outside = MemoryStore::new("x", unanimous::Capability::TwoPhase, &world.journal);
    let earlier = world.disk.open().owner();
    let (done, waits, nowhere, volatile) =
        (earlier.transaction(1), earlier.transaction(2), earlier.transaction(3), earlier.transaction(4));
    world.disk.plant(record(done, &[(0, &a)]));
    world.disk.plant(record(waits, &[(0, &a), (1, &b)]));
    world.disk.plant(record(nowhere, &[(0, &a), (1, &outside)]));
    let mut with_volatile = record(volatile, &[(0, &a)]);
    with_volatile.participants.push(Participant { number: 1, resource: "v".to_owned(), store: None });
    world.disk.plant(with_volatile);
    b.set_down(true);
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert_eq!(world.disk.unfinished(), [waits, nowhere], "a volatile participant died with its process");
    let doubts = doubts_of(&manager.in_doubt());
    assert!(doubts.contains(&("x".to_owned(), Some(nowhere), Doubt::Unregistered)), "{doubts:?}");
    assert!(doubts.iter().any(|(name, _, why)| name == "b" && matches!(why, Doubt::Unreachable(_))), "{doubts:?}");
    b.set_down(false);
    eventually("b's confirmation", || world.disk.unfinished() == [nowhere]).await;
}

/// The name is registered, and the store behind it is another one: to say "register it" would be wrong.
#[tokio::test(start_paused = true)]
async fn a_store_that_another_has_taken_the_name_of_is_named() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let b = world.two_phase("b");
    let earlier = world.disk.open().owner();
    let decided = earlier.transaction(1);
    let mut record = record(decided, &[(0, &a), (1, &b)]);
    let was: StoreId = "store-before".parse().unwrap();
    record.participants[1].store = Some(was.clone());
    world.disk.plant(record);
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    let doubts = manager.in_doubt();
    let why = Doubt::OtherStore { was, now: b.identity_now() };
    assert_eq!(doubts_of(&doubts), [("b".to_owned(), Some(decided), why)]);
    assert_eq!(
        doubts[0].why.to_string(),
        "decided in the store store-before, and what is registered under its name is the store store-b now; \
         bring back the one it was"
    );
    assert_eq!(world.disk.unfinished(), [decided]);
}

/// A store that is down at start: the manager builds, the others are recovered and used; its own branches follow when it is back,
/// by themselves.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_stops_nobody_and_is_recovered_when_it_is_back() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
    let earlier = world.disk.open().owner();
    let (decided, undecided) = (earlier.transaction(1), earlier.transaction(2));
    world.disk.plant(record(decided, &[(0, &a), (1, &b)]));
    for store in [&a, &b] {
        store.plant(&branch(decided, if std::ptr::eq(store, &a) { 0 } else { 1 }), "decided");
        store.plant(&branch(undecided, 0), "undecided");
    }
    b.set_down(true);
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert_eq!(a.keys(), ["decided"]);
    assert!(a.prepared().is_empty());
    assert_eq!(world.disk.unfinished(), [decided]);
    let doubts = doubts_of(&manager.in_doubt());
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    assert!(matches!(&doubts[0], (name, None, Doubt::Unreachable(why)) if name == "b" && why.contains("b is down")));

    let tx = manager.begin();
    for store in [&a, &c] {
        tx.join(store).await.unwrap().put("new").unwrap();
    }
    ended(tx.commit()).await.unwrap();
    let refused = manager.begin();
    assert!(refused.join(&b).await.is_err());

    tokio::time::sleep(Duration::from_secs(600)).await;
    world.journal.clear();
    b.set_down(false);
    let came_back = Instant::now();
    eventually("b's branches are finished", || b.prepared().is_empty()).await;
    assert!(
        came_back.elapsed() <= Duration::from_secs(15),
        "the longest wait between passes: {:?}",
        came_back.elapsed()
    );
    world.journal.until("log.forget").await;
    assert_eq!(world.journal.acts(), ["b.recovered-commit!", "b.recovered-rollback", "log.forget"]);
    assert_eq!(b.keys(), ["decided"]);
    eventually("nothing is in doubt", || manager.in_doubt().is_empty()).await;
}

/// The same for a carrier: what it decides waits for it, and is not called unregistered.
#[tokio::test(start_paused = true)]
async fn a_carrier_that_is_down_keeps_its_own_branches_waiting_only() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let earlier = world.disk.open().owner();
    let (carried, logged) = (earlier.transaction(1), earlier.transaction(2));
    c.plant_decision(record(carried, &[(0, &a)]));
    a.plant(&carried_by(&c, carried, 0), "carried");
    a.plant(&branch(logged, 0), "logged");
    c.set_down(true);
    let (builder, _log) = world.builder();
    let manager = builder.build().await.unwrap();
    assert_eq!(world.journal.acts(), ["a.recovered-rollback"]);
    let doubts = doubts_of(&manager.in_doubt());
    assert!(doubts.contains(&("a".to_owned(), Some(carried), Doubt::Held(HoldReason::Unreachable))), "{doubts:?}");
    c.set_down(false);
    eventually("the carried branch is committed", || a.keys() == ["carried"]).await;
}

/// A store that panics, that answers nothing, or that is another one now: the same, within `store_wait`.
#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_or_panics_or_is_another_is_not_believed() {
    let mut world = World::new();
    let (a, hangs, panics) = (world.two_phase("a"), world.two_phase("hangs"), world.two_phase("panics"));
    let earlier = world.disk.open().owner();
    for store in [&a, &hangs, &panics] {
        store.plant(&branch(earlier.transaction(1), 0), "undecided");
    }
    let hold = hangs.hold_always(Call::List);
    panics.fail_always(Call::List, Fault::Panic);
    let (builder, _log) = world.builder();
    let began = Instant::now();
    let manager = builder.store_wait(Duration::from_secs(3)).build().await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 3);
    assert!(a.prepared().is_empty());
    let names: Vec<_> = manager.in_doubt().into_iter().map(|doubt| doubt.resource).collect();
    assert_eq!(names, ["hangs", "panics"]);
    hold.release();
    hangs.heal(Call::List);
    panics.heal(Call::List);
    eventually("both are recovered", || hangs.prepared().is_empty() && panics.prepared().is_empty()).await;

    a.plant(&branch(earlier.transaction(2), 0), "undecided");
    a.set_identity("another");
    let doubts = manager.recover().await;
    assert!(
        matches!(&doubts[..], [InDoubt { why: Doubt::Unreachable(why), .. }] if why.contains("put the right one back"))
    );
    assert_eq!(a.prepared().len(), 1);
}

/// A store with many branches that hangs when it is to finish them is waited for once in a pass, not once for each.
#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_waited_for_once_in_a_pass() {
    let mut world = World::new();
    let (a, slow) = (world.two_phase("a"), world.two_phase("slow"));
    let earlier = world.disk.open().owner();
    for sequence in 1..=50 {
        a.plant(&branch(earlier.transaction(sequence), 0), "undecided");
        slow.plant(&branch(earlier.transaction(sequence), 1), "undecided");
    }
    let _hold = slow.hold_always(Call::RecoveredRollback);
    let (builder, _log) = world.builder();
    let began = Instant::now();
    let manager = builder.store_wait(Duration::from_secs(3)).build().await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 3);
    assert!(a.prepared().is_empty());
    assert_eq!(manager.in_doubt().len(), 50);
    assert_eq!(slow.prepared().len(), 50);
}

/// Recovery at every stage of a transaction that is live: nothing of it is touched, and it commits.
#[tokio::test(start_paused = true)]
async fn a_live_transaction_is_never_touched() {
    for stage in ["one has prepared", "the log decides", "phase two"] {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        let (manager, log) = world.start().await;
        let tx = manager.begin();
        for store in [&a, &b] {
            tx.join(store).await.unwrap().put("row").unwrap();
        }
        let hold = match stage {
            "one has prepared" => b.hold(Call::Prepare),
            "the log decides" => log.hold(),
            _ => b.hold(Call::Commit),
        };
        let commit = tx.commit();
        hold.reached().await;
        assert!(!(a.prepared().is_empty() && a.keys().is_empty()), "{stage}");
        assert!(manager.recover().await.is_empty(), "{stage}");
        let recovered: Vec<_> = world.journal.acts().into_iter().filter(|line| line.contains("recovered")).collect();
        assert!(recovered.is_empty(), "{stage}: {recovered:?}");
        assert_eq!(world.journal.count("log.forget"), 0, "{stage}");
        hold.release();
        assert_eq!(ended(commit).await.unwrap().pending, 0, "{stage}");
        assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    }
}

/// A branch can hide behind its session (traps, MariaDB): while its driver works on it its absence from a list confirms nothing, and
/// the decision is kept.
#[tokio::test(start_paused = true)]
async fn the_decision_of_a_live_transaction_is_kept_though_no_list_shows_its_branch() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let id = tx.id();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    b.set_hiding(true);
    let hold = b.hold(Call::Commit);
    let commit = tx.commit();
    hold.reached().await;
    manager.recover().await;
    assert_eq!(world.journal.count("log.forget"), 0);
    assert_eq!(world.disk.unfinished(), [id]);
    hold.release();
    assert_eq!(ended(commit).await.unwrap().pending, 0);
    assert_eq!(world.journal.count("log.forget"), 1);
}

/// The same while a carrier commits: it is not fenced behind its back.
#[tokio::test(start_paused = true)]
async fn a_live_carrier_is_never_fenced() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    for store in [&a, &c] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    let hold = c.hold(Call::CommitCarrying);
    let commit = tx.commit();
    hold.reached().await;
    assert!(manager.recover().await.is_empty());
    assert_eq!(world.journal.count("c.fence!"), 0);
    hold.release();
    ended(commit).await.unwrap();
    assert_eq!([a.keys(), c.keys()], [["row"], ["row"]]);
}

/// A pass has listed a branch as prepared and is slow with another store; meanwhile its transaction commits and is not live any more.
/// The deciders are asked after that, so it is found committed, and never rolled back.
#[tokio::test(start_paused = true)]
async fn a_transaction_that_commits_during_a_pass_is_not_rolled_back() {
    let mut world = World::new();
    let (a, b, slow) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("slow"));
    let (manager, log) = world.start().await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    let (decision, listing) = (log.hold(), slow.hold(Call::List));
    let commit = tx.commit();
    decision.reached().await;
    let recovering = tokio::spawn({
        let manager = manager.clone();
        async move { manager.recover().await }
    });
    listing.reached().await;
    assert_eq!((a.prepared().len(), b.prepared().len()), (1, 1), "listed as prepared");
    decision.release();
    ended(commit).await.unwrap();
    listing.release();
    tokio::time::timeout(LONG, recovering).await.unwrap().unwrap();
    assert_eq!(world.journal.count("a.recovered-rollback") + world.journal.count("b.recovered-rollback"), 0);
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    assert!(world.disk.unfinished().is_empty());
}

/// An abort that recovery meets in the middle stays one: rolled back once by its driver, and never committed.
#[tokio::test(start_paused = true)]
async fn a_transaction_that_aborts_during_a_pass_stays_aborted() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    b.fail(Call::Prepare, Fault::Refused);
    let hold = a.hold(Call::Rollback);
    let commit = tx.commit();
    hold.reached().await;
    assert!(manager.recover().await.is_empty());
    hold.release();
    aborted(ended(commit).await);
    assert_eq!(world.journal.count("a.recovered-rollback"), 0);
    assert!(a.prepared().is_empty() && a.keys().is_empty());
}
