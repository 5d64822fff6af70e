//! What an observer is told: once for each transaction that had joined something, when its outcome is known.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use unanimous::{Capability, End, Options, Outcome, Report, TransactionManager};

use crate::support::{Call, Fault, World, aborted, ended, unknown};

type Reports = Arc<Mutex<Vec<Report>>>;

async fn observed(world: &World) -> (TransactionManager, Reports) {
    let reports = Reports::default();
    let (builder, _log) = world.builder();
    let seen = reports.clone();
    let manager = builder.observer(move |report| seen.lock().unwrap().push(report.clone())).build().await.unwrap();
    (manager, reports)
}

fn branches(report: &Report) -> Vec<(&str, Capability, End, bool)> {
    let rows = report.branches.iter();
    rows.map(|branch| (branch.resource.as_str(), branch.capability, branch.end, branch.carried)).collect()
}

fn only(reports: &Reports) -> Report {
    let reports = reports.lock().unwrap();
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports[0].clone()
}

/// A commit with a carrier and a reader: who carried, who only read, the annotations, and how long it took.
#[tokio::test(start_paused = true)]
async fn a_commit_is_reported_with_its_branches() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.carrier("c"));
    let (manager, reports) = observed(&world).await;
    let tx = manager.begin();
    let id = tx.id();
    tx.note("POST /orders");
    tx.handle().note("an order of two");
    tx.set_user("ada");
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.join(&b).await.unwrap();
    tx.join(&c).await.unwrap().put("row").unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    ended(tx.commit()).await.unwrap();
    let report = only(&reports);
    assert_eq!((report.id, report.outcome, &report.cause), (id, Outcome::Committed, &None));
    assert_eq!(
        branches(&report),
        [
            ("a", Capability::TwoPhase, End::Committed, false),
            ("b", Capability::TwoPhase, End::ReadOnly, false),
            ("c", Capability::Carrier, End::Committed, true),
        ]
    );
    assert_eq!((report.note.as_str(), report.user.as_str()), ("POST /orders\nan order of two", "ada"));
    assert_eq!(report.took.as_secs(), 2);
    assert!(report.began_at > 1_600_000_000_000_000, "microseconds since 1970");
}

/// A branch that is pending when the caller is answered is reported so.
#[tokio::test(start_paused = true)]
async fn a_pending_branch_is_reported_as_pending() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, reports) = observed(&world).await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    a.fail_always(Call::Commit, Fault::Lost);
    ended(tx.commit()).await.unwrap();
    let report = only(&reports);
    assert_eq!(report.outcome, Outcome::Committed);
    assert_eq!(
        branches(&report),
        [("a", Capability::TwoPhase, End::Pending, false), ("b", Capability::TwoPhase, End::Committed, false)]
    );
}

/// An abort with its cause and all its sources; also of what was doomed, and of what was dropped.
#[tokio::test(start_paused = true)]
async fn an_abort_is_reported_with_its_cause() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, reports) = observed(&world).await;
    let tx = manager.begin();
    for store in [&a, &b] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    b.fail(Call::Prepare, Fault::Conflict);
    aborted(ended(tx.commit()).await);
    let report = only(&reports);
    assert_eq!(report.outcome, Outcome::Aborted);
    assert_eq!(
        report.cause.as_deref(),
        Some("the branch \"b\" failed: the store reported a conflict: b: prepare: conflict")
    );
    assert_eq!(
        branches(&report),
        [("a", Capability::TwoPhase, End::RolledBack, false), ("b", Capability::TwoPhase, End::RolledBack, false)]
    );
    reports.lock().unwrap().clear();

    for how in ["doomed", "dropped"] {
        let tx = manager.begin();
        tx.join(&a).await.unwrap().put("row").unwrap();
        world.journal.clear();
        if how == "doomed" {
            tx.doom();
            aborted(ended(tx.commit()).await);
        } else {
            drop(tx);
            world.journal.until("a.rollback").await;
            tokio::task::yield_now().await;
        }
        let report = only(&reports);
        assert_eq!(report.outcome, Outcome::Aborted, "{how}");
        assert_eq!(branches(&report), [("a", Capability::TwoPhase, End::RolledBack, false)], "{how}");
        reports.lock().unwrap().clear();
    }
}

/// An unknown outcome: the branch that was lost is unknown, the others are pending.
#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_reported_as_unknown() {
    let mut world = World::new();
    let (a, last) = (world.two_phase("a"), world.store("last", Capability::OnePhase));
    let (manager, reports) = observed(&world).await;
    let tx = manager.begin_with(Options::default().allow("last"));
    for store in [&a, &last] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    last.fail(Call::CommitOnePhase, Fault::Lost);
    unknown(ended(tx.commit()).await);
    let report = only(&reports);
    assert_eq!(report.outcome, Outcome::Unknown);
    assert!(report.cause.as_deref().is_some_and(|cause| cause.contains("the branch \"last\" failed")));
    assert_eq!(
        branches(&report),
        [("a", Capability::TwoPhase, End::Pending, false), ("last", Capability::OnePhase, End::Unknown, false)]
    );
}

/// Nothing joined, nothing is reported; and an observer that panics changes nothing.
#[tokio::test(start_paused = true)]
async fn an_observer_changes_nothing() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, reports) = observed(&world).await;
    ended(manager.begin().commit()).await.unwrap();
    ended(manager.begin().abort()).await;
    assert!(reports.lock().unwrap().is_empty());

    let (builder, _log) = world.builder();
    let manager = builder.observer(|_| panic!("the observer panics")).build().await.unwrap();
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    ended(tx.commit()).await.unwrap();
    assert_eq!(a.keys(), ["row"]);
}

/// Each way to give a transaction up has a reason of its own: an operator must not read "doomed" where nobody doomed.
#[tokio::test(start_paused = true)]
async fn each_way_to_give_up_is_named() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, reports) = observed(&world).await;
    let joined = async || {
        let tx = manager.begin();
        tx.join(&a).await.unwrap().put("row").unwrap();
        tx
    };
    let doomed = joined().await;
    doomed.doom();
    aborted(ended(doomed.commit()).await);
    ended(joined().await.abort()).await;
    drop(joined().await);
    manager.shutdown(Duration::from_secs(1)).await.unwrap();
    let causes: Vec<_> = reports.lock().unwrap().iter().map(|report| report.cause.clone().unwrap()).collect();
    let told = |why: &str, cause: &String| assert!(cause.contains(why), "{cause}");
    told("it was doomed", &causes[0]);
    told("its owner gave it up", &causes[1]);
    told("its owner was dropped", &causes[2]);
    assert_eq!(causes.len(), 3);
}
