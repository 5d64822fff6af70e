//! Each path of docs/protocol.md, chosen by what the branches did, with the calls in their order and the forced writes of
//! each. A line of the journal with `!` is a forced write; lines of one phase run side by side.

use unanimous::{Capability, Cause, CommitError, Options};

use crate::support::{Call, World, aborted, ended, eventually};

/// Nobody wrote: all end by commit, nothing is forced, no decision is made.
#[tokio::test(start_paused = true)]
async fn none_wrote_all_end_by_commit_and_nothing_is_forced() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap();
    tx.join(&b).await.unwrap();
    world.journal.clear();
    let committed = ended(tx.commit()).await.unwrap();
    assert_eq!(committed.pending, 0);
    assert_eq!(world.journal.acts(), ["a.flush", "b.flush", "a.commit-one-phase", "b.commit-one-phase"]);
    assert!(world.journal.forced().is_empty());
}

/// A transaction that nothing joined commits without a call.
#[tokio::test(start_paused = true)]
async fn nothing_joined_nothing_is_called() {
    let mut world = World::new();
    world.two_phase("a");
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let id = tx.id();
    assert_eq!(ended(tx.commit()).await.unwrap().id, id);
    assert!(world.journal.all().is_empty(), "{:?}", world.journal.all());
}

/// One wrote: the readers end first, then it commits in one phase: one forced write, no log.
#[tokio::test(start_paused = true)]
async fn one_wrote_readers_end_first_and_it_commits_in_one_phase() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap();
    tx.join(&b).await.unwrap().put("row").unwrap();
    tx.join(&c).await.unwrap();
    world.journal.clear();
    let reader = c.hold(Call::CommitOnePhase);
    let commit = tx.commit();
    reader.reached().await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(
        world.journal.acts(),
        ["a.flush", "b.flush", "c.flush", "a.commit-one-phase", "c.commit-one-phase"],
        "the writer waits for the last reader"
    );
    reader.release();
    ended(commit).await.unwrap();
    assert_eq!(world.journal.acts()[5..], ["b.commit-one-phase!"]);
    assert_eq!(world.journal.forced(), ["b.commit-one-phase!"]);
    assert_eq!(b.keys(), ["row"]);
    assert!(world.disk.unfinished().is_empty());
}

/// A reader that fails beside the only writer is a no: the writer rolls back.
#[tokio::test(start_paused = true)]
async fn one_wrote_and_a_reader_says_no() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap();
    tx.join(&b).await.unwrap().put("row").unwrap();
    world.journal.clear();
    a.fail(Call::CommitOnePhase, crate::support::Fault::Conflict);
    let error = aborted(ended(tx.commit()).await);
    assert!(error.is_retryable());
    assert_eq!(
        world.journal.acts(),
        ["a.flush", "b.flush", "a.commit-one-phase", "a.commit-one-phase: conflict", "a.rollback", "b.rollback"]
    );
    assert!(b.keys().is_empty());
}

/// Several wrote, one is a carrier: the others prepare side by side, the carrier commits with the decision row, then phase two.
/// Two forced writes one after another, and one more for phase two; the log is not written.
#[tokio::test(start_paused = true)]
async fn several_with_a_carrier_that_commits_last_with_the_decision_row() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    // The carrier joined first: its place in the order of joining does not matter.
    tx.join(&c).await.unwrap().put("row").unwrap();
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.join(&b).await.unwrap().put("row").unwrap();
    world.journal.clear();
    let (first, second) = (a.hold(Call::Prepare), b.hold(Call::Prepare));
    let commit = tx.commit();
    first.reached().await;
    second.reached().await;
    assert_eq!(world.journal.acts(), ["a.flush", "b.flush", "c.flush", "a.prepare!", "b.prepare!"]);
    first.release();
    second.release();
    assert_eq!(ended(commit).await.unwrap().pending, 0);
    let expected = ["c.commit-carrying! [a b]", "a.commit!", "b.commit!", "c.forget"];
    assert_eq!(world.journal.acts()[5..], expected);
    assert_eq!(
        world.journal.forced(),
        ["a.prepare!", "b.prepare!", "c.commit-carrying! [a b]", "a.commit!", "b.commit!"]
    );
    assert_eq!([a.keys(), b.keys(), c.keys()], [["row"], ["row"], ["row"]]);
}

/// A reader beside them ends in the same step as the prepares, and is no participant.
#[tokio::test(start_paused = true)]
async fn a_reader_beside_several_that_wrote_is_no_participant() {
    let mut world = World::new();
    let (a, b, c, d) = (world.two_phase("a"), world.two_phase("b"), world.two_phase("c"), world.carrier("d"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.join(&b).await.unwrap();
    tx.join(&c).await.unwrap().put("row").unwrap();
    // A carrier that only read carries nothing: the log decides.
    tx.join(&d).await.unwrap();
    world.journal.clear();
    ended(tx.commit()).await.unwrap();
    assert_eq!(
        world.journal.acts(),
        [
            "a.flush",
            "b.flush",
            "c.flush",
            "d.flush",
            "a.prepare!",
            "b.commit-one-phase",
            "c.prepare!",
            "d.commit-one-phase",
            "log.decide! [a c]",
            "a.commit!",
            "c.commit!",
            "log.forget",
        ]
    );
}

/// Several that can all prepare: prepare side by side, the log decides once all have, commit side by side.
#[tokio::test(start_paused = true)]
async fn several_prepare_then_the_log_decides_then_all_commit() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.join(&b).await.unwrap().put("row").unwrap();
    world.journal.clear();
    let (first, second, decision) = (a.hold(Call::Prepare), b.hold(Call::Prepare), log.hold());
    let (one, other) = (a.hold(Call::Commit), b.hold(Call::Commit));
    let commit = tx.commit();
    second.reached().await;
    first.release();
    eventually("the first has prepared", || a.prepared().len() == 1).await;
    assert_eq!(world.journal.acts(), ["a.flush", "b.flush", "a.prepare!", "b.prepare!"], "one vote is out");
    second.release();
    decision.reached().await;
    assert_eq!(world.journal.acts()[4..], ["log.decide! [a b]"], "no commit before the decision is durable (rule 1)");
    decision.release();
    other.reached().await;
    one.reached().await;
    assert_eq!(world.journal.acts()[5..], ["a.commit!", "b.commit!"], "both are out at the same time");
    one.release();
    other.release();
    assert_eq!(ended(commit).await.unwrap().pending, 0);
    assert_eq!(world.journal.acts()[7..], ["log.forget"]);
    assert_eq!(world.journal.forced(), ["a.prepare!", "b.prepare!", "log.decide! [a b]", "a.commit!", "b.commit!"]);
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
    assert!(world.disk.unfinished().is_empty());
}

/// A one-phase branch beside others, opted in: the last resource. It commits after all prepared; the log is told afterwards.
#[tokio::test(start_paused = true)]
async fn a_last_resource_commits_before_the_log_is_told() {
    let mut world = World::new();
    let (a, b, last) = (world.two_phase("a"), world.two_phase("b"), world.store("last", Capability::OnePhase));
    let (manager, _log) = world.start().await;
    let tx = manager.begin_with(Options::default().allow("last"));
    tx.join(&last).await.unwrap().put("row").unwrap();
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.join(&b).await.unwrap().put("row").unwrap();
    world.journal.clear();
    ended(tx.commit()).await.unwrap();
    assert_eq!(
        world.journal.acts(),
        [
            "a.flush",
            "b.flush",
            "last.flush",
            "a.prepare!",
            "b.prepare!",
            "last.commit-one-phase!",
            "log.decide! [a b]",
            "a.commit!",
            "b.commit!",
            "log.forget",
        ]
    );
    assert_eq!([a.keys(), b.keys(), last.keys()], [["row"], ["row"], ["row"]]);
}

/// Without the opt-in it is refused before anything is prepared, and named.
#[tokio::test(start_paused = true)]
async fn without_an_opt_in_a_one_phase_branch_beside_another_aborts() {
    let mut world = World::new();
    let (a, last) = (world.two_phase("a"), world.store("last", Capability::OnePhase));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.join(&last).await.unwrap().put("row").unwrap();
    world.journal.clear();
    let error = aborted(ended(tx.commit()).await);
    assert!(!error.is_retryable());
    assert!(
        matches!(&error, CommitError::Aborted { source: Cause::NotAllowed { resource }, .. } if resource == "last"),
        "{error:?}"
    );
    assert_eq!(world.journal.acts(), ["a.flush", "last.flush", "a.rollback", "last.rollback"]);
}

/// A volatile branch prepares with the others; opted in by the handle, and it may join without being registered.
#[tokio::test(start_paused = true)]
async fn an_allowed_volatile_branch_prepares_with_the_others() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let outside = crate::support::MemoryStore::new("v", Capability::Volatile, &world.journal);
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    tx.allow("v");
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.join_branch("v", outside.branch()).unwrap().put("row").unwrap();
    world.journal.clear();
    ended(tx.commit()).await.unwrap();
    assert_eq!(
        world.journal.acts(),
        ["a.flush", "v.flush", "a.prepare!", "v.prepare", "log.decide! [a v]", "a.commit!", "v.commit!", "log.forget"]
    );
    assert_eq!([a.keys(), outside.keys()], [["row"], ["row"]]);
}

/// A volatile branch that wrote beside another without an opt-in aborts; beside readers only it needs none.
#[tokio::test(start_paused = true)]
async fn a_volatile_branch_needs_an_opt_in_beside_a_writer_only() {
    let mut world = World::new();
    let (a, v) = (world.two_phase("a"), world.store("v", Capability::Volatile));
    let (manager, _log) = world.start().await;
    for (a_writes, commits) in [(false, true), (true, false)] {
        let tx = manager.begin();
        let branch = tx.join(&a).await.unwrap();
        if a_writes {
            branch.put("row").unwrap();
        }
        drop(branch);
        tx.join(&v).await.unwrap().put("row").unwrap();
        let result = ended(tx.commit()).await;
        assert_eq!(result.is_ok(), commits, "{result:?}");
    }
    assert!(a.keys().is_empty());
    assert_eq!(v.keys(), ["row"]);
}

/// A carrier alone: one phase by default; with `ask_single` it carries a row of its own, still one forced write.
#[tokio::test(start_paused = true)]
async fn a_carrier_alone_carries_its_own_row_only_when_asked_for() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let (manager, _log) = world.start().await;
    for (options, last) in [
        (Options::default(), vec!["c.commit-one-phase!"]),
        (Options::default().ask_single(), vec!["c.commit-carrying! []", "c.forget"]),
    ] {
        let tx = manager.begin_with(options);
        tx.join(&a).await.unwrap();
        tx.join(&c).await.unwrap().put("row").unwrap();
        world.journal.clear();
        ended(tx.commit()).await.unwrap();
        assert_eq!(world.journal.acts()[..3], ["a.flush", "c.flush", "a.commit-one-phase"]);
        assert_eq!(world.journal.acts()[3..], last);
        assert_eq!(world.journal.forced().len(), 1, "{:?}", world.journal.forced());
    }
}

/// Sort keys come first, then names; the order in which they joined doesn't matter.
#[tokio::test(start_paused = true)]
async fn branches_are_called_in_the_order_of_sort_key_then_name() {
    let mut world = World::new();
    let names = ["a", "b", "c"].map(|name| world.two_phase(name));
    let (builder, _log) = {
        let log = crate::support::JournalLog::new(world.disk.open(), &world.journal);
        (unanimous::TransactionManager::builder(log.clone()), log)
    };
    let stores = [names[0].sorted("2"), names[1].sorted("1"), names[2].sorted("1")];
    let manager = stores.iter().fold(builder, |builder, store| builder.resource(store.clone())).build().await.unwrap();
    let tx = manager.begin();
    for store in [&stores[0], &stores[2], &stores[1]] {
        tx.join(store).await.unwrap().put("row").unwrap();
    }
    world.journal.clear();
    ended(tx.commit()).await.unwrap();
    assert_eq!(
        world.journal.acts(),
        [
            "b.flush",
            "c.flush",
            "a.flush",
            "b.prepare!",
            "c.prepare!",
            "a.prepare!",
            "log.decide! [b c a]",
            "b.commit!",
            "c.commit!",
            "a.commit!",
            "log.forget",
        ]
    );
}
