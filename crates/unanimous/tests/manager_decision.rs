//! The log's answer decides: refused is an abort; lost is unknown, and then nobody in this process touches anything, until the next
//! start has read what became durable (rule 12).

use std::time::Duration;

use unanimous::{Cause, CommitError, DecideError, Transaction, TransactionManager};

use crate::support::{Call, Fault, MemoryStore, World, aborted, ended, unknown};

async fn both_wrote(manager: &TransactionManager, stores: [&MemoryStore; 2]) -> Transaction {
    let tx = manager.begin();
    for store in stores {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    tx
}

/// Certainly not written: all roll back, and the cause is the log's.
#[tokio::test(start_paused = true)]
async fn a_refused_decision_aborts() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &b]).await;
    world.journal.clear();
    log.fail(Fault::Refused);
    let error = aborted(ended(tx.commit()).await);
    assert!(matches!(&error, CommitError::Aborted { source: Cause::Log(DecideError::Refused(_)), .. }), "{error:?}");
    assert!(!error.is_retryable());
    assert_eq!(
        world.journal.acts()[2..],
        ["a.prepare!", "b.prepare!", "log.decide! [a b]", "log.decide: refused", "a.rollback", "b.rollback"]
    );
    assert!(a.prepared().is_empty() && b.prepared().is_empty());
}

/// A log that could take no decision is noticed before the first prepare; what needs no decision goes on.
#[tokio::test(start_paused = true)]
async fn a_full_log_stops_work_before_anybody_prepares() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    log.set_full(true);
    let tx = both_wrote(&manager, [&a, &b]).await;
    world.journal.clear();
    aborted(ended(tx.commit()).await);
    assert_eq!(world.journal.acts(), ["a.flush", "b.flush", "a.rollback", "b.rollback"]);
    let alone = manager.begin();
    alone.join(&a).await.unwrap().put("alone").unwrap();
    ended(alone.commit()).await.unwrap();
    assert_eq!(a.keys(), ["alone"]);
}

/// The sync failed: unknown; both branches stay prepared, whatever recovery of this process does and however long it lives. The next
/// start finds the decision, or does not, and finishes both accordingly.
#[tokio::test(start_paused = true)]
async fn a_lost_decision_holds_everything_until_the_next_start() {
    for (fault, committed) in [(Fault::Lost, false), (Fault::LostDone, true), (Fault::Panic, false)] {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        let (manager, log) = world.start().await;
        let tx = both_wrote(&manager, [&a, &b]).await;
        let id = tx.id();
        log.fail(fault);
        let error = unknown(ended(tx.commit()).await);
        assert_eq!(error.id(), id);
        assert!(!error.is_retryable());
        world.journal.clear();
        manager.recover().await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(world.journal.acts().is_empty(), "held, and touched: {:?}", world.journal.acts());
        assert_eq!((a.prepared().len(), b.prepared().len()), (1, 1));

        drop(manager);
        let (builder, _log) = world.builder();
        world.journal.clear();
        let _manager = builder.build().await.unwrap();
        let expected = match committed {
            true => vec!["a.recovered-commit!", "b.recovered-commit!", "log.forget"],
            false => vec!["a.recovered-rollback", "b.recovered-rollback"],
        };
        assert_eq!(world.journal.acts(), expected);
        let rows: &[&str] = if committed { &["row"] } else { &[] };
        assert_eq!((a.keys(), b.keys()), (rows.iter().map(|row| row.to_string()).collect(), a.keys()));
        assert!(a.prepared().is_empty() && b.prepared().is_empty());
    }
}

/// An operator sees what is held.
#[tokio::test(start_paused = true)]
async fn a_held_transaction_is_in_doubt_by_name() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &b]).await;
    let id = tx.id();
    log.fail(Fault::Lost);
    unknown(ended(tx.commit()).await);
    let doubts = manager.recover().await;
    let named: Vec<_> = doubts.iter().map(|doubt| (doubt.resource.as_str(), doubt.transaction)).collect();
    assert_eq!(named, [("a", Some(id)), ("b", Some(id))], "{doubts:?}");
}

/// A poisoned log takes no further decision: the next transaction aborts before anybody prepares.
#[tokio::test(start_paused = true)]
async fn after_a_lost_decision_the_log_takes_no_other() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    log.fail(Fault::Lost);
    let tx = both_wrote(&manager, [&a, &b]).await;
    unknown(ended(tx.commit()).await);
    let next = both_wrote(&manager, [&a, &b]).await;
    world.journal.clear();
    aborted(ended(next.commit()).await);
    assert_eq!(world.journal.acts(), ["a.flush", "b.flush", "a.rollback", "b.rollback"]);
}

/// The last resource committed, and the log refuses or loses its record: unknown, and the others are held, since rule 1 forbids to
/// commit them and their rollback would certainly tear.
#[tokio::test(start_paused = true)]
async fn a_last_resource_whose_record_is_not_written_holds_the_others() {
    for fault in [Fault::Refused, Fault::Lost] {
        let mut world = World::new();
        let (a, last) = (world.two_phase("a"), world.store("last", unanimous::Capability::OnePhase));
        let (manager, log) = world.start().await;
        let tx = both_wrote(&manager, [&a, &last]).await;
        tx.allow("last");
        log.fail(fault);
        unknown(ended(tx.commit()).await);
        world.journal.clear();
        manager.recover().await;
        assert!(world.journal.acts().is_empty(), "{:?}", world.journal.acts());
        assert_eq!(a.prepared().len(), 1);
        assert_eq!(last.keys(), ["row"]);
    }
}

/// The last resource's own answer is lost: nobody can be asked, so the others are held.
#[tokio::test(start_paused = true)]
async fn a_last_resource_that_is_lost_holds_the_others() {
    let mut world = World::new();
    let (a, last) = (world.two_phase("a"), world.store("last", unanimous::Capability::OnePhase));
    let (manager, _log) = world.start().await;
    let tx = both_wrote(&manager, [&a, &last]).await;
    tx.allow("last");
    last.fail(Call::CommitOnePhase, Fault::LostDone);
    unknown(ended(tx.commit()).await);
    world.journal.clear();
    manager.recover().await;
    assert!(world.journal.acts().is_empty(), "{:?}", world.journal.acts());
    assert_eq!(a.prepared().len(), 1);
}
