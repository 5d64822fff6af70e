//! What front ends of other languages stand on: transactions that are nobody's current one, waits around what a thread holds for others, and
//! branches of a registered resource that another driver works on.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use unanimous::thread::{StateError, begin, reserve, wait, wait_around};
use unanimous::{Branch, BranchError, BranchId, Capability, DeciderId, JoinError, KnownOutcome, Options, Work};

use crate::support::{Call, Fault, World};
use crate::thread_support::{Plain, Witness, here};

/// A thread has several, none of them is its current one, and each is committed where its end is waited for.
#[test]
fn a_thread_may_begin_several_transactions_and_has_no_current_one() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let plain = Plain::over(&[&a, &b], world);
    let manager = plain.manager.manager();
    let (first, second) = (begin(manager, Options::default()), begin(manager, Options::default()));
    assert_eq!(plain.manager.get().unwrap_err(), StateError::NoTransaction);
    for (tx, row) in [(&first, "first"), (&second, "second")] {
        for store in [&a, &b] {
            wait(tx.join(store)).unwrap().put(row).unwrap();
        }
    }
    plain.world.journal.clear();
    wait(async move { second.commit().await }).unwrap();
    assert!(plain.world.journal.threads().iter().all(|thread| *thread == here()), "on the thread that waits");
    wait(async move { first.abort().await });
    assert_eq!([a.keys(), b.keys()], [["second"], ["second"]]);
}

/// What the thread holds is given up only where there is nothing to do, and each time that there is not.
#[test]
fn a_wait_blocks_within_what_is_around_it() {
    let mut blocked = 0;
    assert_eq!(wait_around(async { 7 }, |park| park.park()), 7);
    let (say, hear) = oneshot::channel();
    let (held, given_up) = mpsc::channel();
    let other = thread::spawn(move || {
        // Said only when the thread has given up what it holds.
        given_up.recv_timeout(Duration::from_secs(60)).unwrap();
        say.send(8).unwrap();
    });
    let heard = wait_around(hear, |park| {
        blocked += 1;
        held.send(()).unwrap();
        park.park();
    });
    other.join().unwrap();
    assert_eq!((heard, blocked), (Ok(8), 1));
}

/// Several of one resource, under names of their own; the decision lists their resources, whatever they are called.
#[test]
fn branches_of_other_drivers_are_their_resources_branches() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let plain = Plain::over(&[&a, &b], world);
    let tx = begin(plain.manager.manager(), Options::default());
    for (name, store, row) in [("1", &b, "b1"), ("2", &a, "a2"), ("3", &a, "a3")] {
        let branch = store.branch();
        branch.put(row).unwrap();
        wait(tx.join_foreign(store_name(store), name, branch)).unwrap();
    }
    plain.world.journal.clear();
    wait(async move { tx.commit().await }).unwrap();
    assert!(plain.acts().contains(&"log.decide! [b a a]".to_owned()), "{:?}", plain.acts());
    assert_eq!((a.keys(), b.keys()), (vec!["a2".to_owned(), "a3".to_owned()], vec!["b1".to_owned()]));
    assert_eq!(plain.world.disk.unfinished(), []);
}

fn store_name(store: &crate::support::MemoryStore) -> &str {
    unanimous::ResourceManager::name(store)
}

/// What its own driver can't finish is recovery's, through the resource.
#[test]
fn recovery_finishes_what_another_driver_has_left() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let plain = Plain::with(&[&a, &b], world, |builder| builder.phase_two_wait(Duration::from_millis(50)));
    let tx = begin(plain.manager.manager(), Options::default());
    for (name, store) in [("their a", &a), ("their b", &b)] {
        let branch = store.branch();
        branch.put("row").unwrap();
        wait(tx.join_foreign(store_name(store), name, branch)).unwrap();
    }
    a.fail_always(Call::Commit, Fault::Lost);
    a.fail_always(Call::RecoveredCommit, Fault::Refused);
    let committed = wait(async move { tx.commit().await }).unwrap();
    assert_eq!((committed.pending, a.prepared().len(), b.keys()), (1, 1, vec!["row".to_owned()]));
    a.heal(Call::RecoveredCommit);
    plain.manager.recover();
    assert_eq!((a.prepared().len(), a.keys()), (0, vec!["row".to_owned()]));
}

/// Each refusal says why, and the transaction goes on without the branch.
#[test]
fn a_foreign_branch_that_nobody_could_recover_is_refused() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let plain = Plain::over(&[&a], world);
    let tx = begin(plain.manager.manager(), Options::default());
    let refused = wait(tx.join_foreign("nobody", "1", a.branch())).map(drop).unwrap_err();
    assert!(matches!(&refused, JoinError::NotRegistered { resource } if resource == "nobody"), "{refused}");
    let refused = wait(tx.join_foreign("a", "1", Witness { seen: Default::default() })).map(drop).unwrap_err();
    assert!(matches!(&refused, JoinError::NotTwoPhase { name } if name == "1"), "{refused}");
    assert!(refused.to_string().contains("not two-phase"), "{refused}");
    let branch = a.branch();
    branch.put("row").unwrap();
    drop(wait(tx.join_foreign("a", "1", branch)).unwrap());
    let refused = wait(tx.join_foreign("a", "1", a.branch())).map(drop).unwrap_err();
    assert!(matches!(&refused, JoinError::Duplicate { .. }), "{refused}");
    wait(async move { tx.commit().await }).unwrap();
    assert_eq!(a.keys(), ["row"]);
}

/// It commits last, with the decision's row, wherever it comes in their order; and the others' ids name it.
#[test]
fn a_foreign_branch_of_a_carrier_carries_the_decision() {
    let mut world = World::new();
    let (a, b, c) = (world.two_phase("a"), world.two_phase("b"), world.carrier("c"));
    let plain = Plain::over(&[&a, &b, &c], world);
    let tx = begin(plain.manager.manager(), Options::default());
    for (name, store) in [("1", &c), ("2", &a), ("3", &b)] {
        let branch = store.branch();
        branch.put("row").unwrap();
        wait(tx.join_foreign(store_name(store), name, branch)).unwrap();
    }
    let second = wait(tx.join_foreign("c", "4", c.branch())).map(drop).unwrap_err();
    assert!(
        matches!(&second, JoinError::SecondUnprepared { joined, refused } if joined == "1" && refused == "4"),
        "{second}"
    );
    plain.world.journal.clear();
    wait(async move { tx.commit().await }).unwrap();
    let acts = plain.acts();
    let acts: Vec<_> = acts.iter().map(String::as_str).filter(|act| !act.ends_with(".flush")).collect();
    assert_eq!(acts, ["a.prepare!", "b.prepare!", "c.commit-carrying! [a b]", "a.commit!", "b.commit!", "c.forget"]);
    assert_eq!([a.keys(), b.keys(), c.keys()], [["row"], ["row"], ["row"]]);
}

/// Nobody would ask the rows of a store that is no carrier.
#[test]
fn a_carrying_branch_of_a_resource_that_is_no_carrier_is_refused() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let plain = Plain::over(&[&a, &c], world);
    let tx = begin(plain.manager.manager(), Options::default());
    let refused = wait(tx.join_foreign("a", "1", c.branch())).map(drop).unwrap_err();
    assert!(matches!(&refused, JoinError::NotTwoPhase { name } if name == "1"), "{refused}");
    wait(async move { tx.abort().await });
}

/// Writes down under which ids branches are asked to prepare.
struct Asked(Arc<Mutex<Vec<BranchId>>>);

impl Branch for Asked {
    fn capability(&self) -> Capability {
        Capability::TwoPhase
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        Ok(Work::Wrote)
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        self.0.lock().unwrap().push(id.clone());
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        Ok(())
    }
}

/// An id that was given out before the transaction began is what the branch is asked to prepare under, in whatever order branches are called;
/// the others have the numbers that are left.
#[test]
fn a_branch_prepares_under_the_id_that_was_reserved_for_it() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let plain = Plain::over(&[&a, &b], world);
    let mut reserved = reserve(plain.manager.manager());
    let ids: Vec<_> = (0..3).map(|_| reserved.branch().unwrap()).collect();
    assert!(ids.iter().all(|id| id.transaction == reserved.id()));
    let tx = reserved.begin(plain.manager.manager(), Options::default()).unwrap();
    let asked: Arc<Mutex<Vec<BranchId>>> = Arc::default();
    let branch = || Asked(asked.clone());
    // The second id is not used: its branch has left.
    wait(tx.join_foreign_as("a", "1", branch(), ids[2].number)).unwrap();
    wait(tx.join_foreign("b", "2", branch())).unwrap();
    wait(tx.join_foreign_as("a", "3", branch(), ids[0].number)).unwrap();
    let refused = wait(tx.join_foreign_as("b", "4", branch(), ids[0].number)).map(drop).unwrap_err();
    assert!(matches!(&refused, JoinError::Duplicate { .. }), "{refused}");
    wait(async move { tx.commit().await }).unwrap();
    assert_eq!(*asked.lock().unwrap(), [ids[2].clone(), ids[1].clone(), ids[0].clone()]);
}

/// Where the carrier that was expected decides, that is also its whole id.
#[test]
fn a_branch_prepares_under_the_id_that_was_reserved_for_a_carriers_decision() {
    let mut world = World::new();
    let (a, c) = (world.two_phase("a"), world.carrier("c"));
    let plain = Plain::over(&[&a, &c], world);
    let store = wait(unanimous::ResourceManager::identity(&c)).unwrap();
    for expected in [DeciderId::Log, DeciderId::Store(store.clone())] {
        let mut reserved = reserve(plain.manager.manager());
        let id = reserved.branch_decided_by(expected.clone()).unwrap();
        let tx = reserved.begin(plain.manager.manager(), Options::default()).unwrap();
        let asked: Arc<Mutex<Vec<BranchId>>> = Arc::default();
        wait(tx.join_foreign_as("a", "1", Asked(asked.clone()), id.number)).unwrap();
        let branch = c.branch();
        branch.put("row").unwrap();
        wait(tx.join_foreign("c", "2", branch)).unwrap();
        wait(async move { tx.commit().await }).unwrap();
        assert_eq!(*asked.lock().unwrap(), [BranchId { decider: DeciderId::Store(store.clone()), ..id.clone() }]);
        assert_eq!(asked.lock().unwrap()[0] == id, expected != DeciderId::Log);
    }
}

/// Each branch is recovered by the number that its store lists, also where the numbers run against the order of the names.
#[test]
fn the_decision_lists_the_reserved_numbers() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let plain = Plain::with(&[&a, &b], world, |builder| builder.phase_two_wait(Duration::from_millis(50)));
    let mut reserved = reserve(plain.manager.manager());
    let numbers = [reserved.branch().unwrap().number, reserved.branch().unwrap().number];
    let tx = reserved.begin(plain.manager.manager(), Options::default()).unwrap();
    for (name, store, number) in [("1", &a, numbers[1]), ("2", &b, numbers[0])] {
        let branch = store.branch();
        branch.put("row").unwrap();
        wait(tx.join_foreign_as(store_name(store), name, branch, number)).unwrap();
    }
    for store in [&a, &b] {
        store.fail_always(Call::Commit, Fault::Lost);
        store.fail_always(Call::RecoveredCommit, Fault::Refused);
    }
    let committed = wait(async move { tx.commit().await }).unwrap();
    assert_eq!((committed.pending, a.prepared().len(), b.prepared().len()), (2, 1, 1));
    for store in [&a, &b] {
        store.heal(Call::RecoveredCommit);
    }
    plain.manager.recover();
    assert_eq!((a.prepared().len(), b.prepared().len()), (0, 0));
    assert_eq!([a.keys(), b.keys()], [["row"], ["row"]]);
}

/// What was reserved and never begun has ended, and another manager's ids are nobody's here.
#[test]
fn reserved_ids_that_are_not_used_are_aborted() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let plain = Plain::over(&[&a], world);
    let mut other = World::new();
    let b = other.two_phase("b");
    let other = Plain::over(&[&b], other);
    let manager = plain.manager.manager();
    let reserved = reserve(manager);
    let id = reserved.id();
    assert!(matches!(wait(manager.outcome(id)), KnownOutcome::InDoubt(_)));
    assert!(reserved.begin(other.manager.manager(), Options::default()).is_none());
    assert_eq!(wait(manager.outcome(id)), KnownOutcome::Aborted);
}
