//! What front ends of other languages stand on: transactions that are nobody's current one, waits around what a thread holds for others, and
//! branches of a registered resource that another driver works on.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use unanimous::thread::{StateError, begin, wait, wait_around};
use unanimous::{JoinError, Options};

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
