//! Recovery's plan: whom to ask, what follows from the answer, and when a decision is finished.

use std::collections::{BTreeMap, BTreeSet};

use unanimous_core::recovery::{Ask, Conclusion, Lists, Verdict, conclude, is_finished, verdict, whom_to_ask};
use unanimous_core::xid::{Roster, StoreTag};
use unanimous_core::{
    BranchId, DeciderId, DecisionRecord, HoldReason, Incarnation, Known, LogId, Note, Owner, Participant, StoreId,
};

fn owner() -> Owner {
    Owner { log: LogId(7), incarnation: Incarnation::new(2, 5) }
}

fn store(name: &str) -> StoreId {
    name.parse().unwrap()
}

fn branch(decider: DeciderId, number: u16) -> BranchId {
    BranchId { transaction: owner().transaction(1), decider, number }
}

fn record(participants: &[(u16, Option<&str>)]) -> DecisionRecord {
    let participant = |&(number, of): &(u16, Option<&str>)| Participant {
        number,
        resource: format!("resource {number}"),
        store: of.map(store),
    };
    DecisionRecord {
        transaction: owner().transaction(1),
        participants: participants.iter().map(participant).collect(),
        decided_at: 1,
        note: Note::default(),
    }
}

/// Rule 2: the one that the id names, for transactions of the own log in whichever incarnation, and nobody for another's.
#[test]
fn the_decider_that_the_id_names_is_asked() {
    let by_store = branch(DeciderId::Store(store("orders")), 0);
    assert_eq!(whom_to_ask(&branch(DeciderId::Log, 0), owner()), Ask::Log);
    assert_eq!(whom_to_ask(&by_store, owner()), Ask::Store(&store("orders")));
    let earlier = Owner { incarnation: Incarnation::new(1, 77), ..owner() };
    let of_an_earlier_run = BranchId { transaction: earlier.transaction(9), ..by_store.clone() };
    assert_eq!(whom_to_ask(&of_an_earlier_run, owner()), Ask::Store(&store("orders")));
    let foreign = Owner { log: LogId(8), ..owner() };
    for id in [by_store, branch(DeciderId::Log, 0)] {
        let id = BranchId { transaction: foreign.transaction(1), ..id };
        assert_eq!(whom_to_ask(&id, owner()), Ask::Nobody(HoldReason::ForeignLog));
    }
}

/// A Commit commits who it lists, and nobody else.
#[test]
fn a_decision_commits_whom_it_lists() {
    let known = Known::Commit(record(&[(0, Some("orders")), (2, None)]));
    let says = |number, known| verdict(&branch(DeciderId::Log, number), known);
    assert_eq!(says(0, &known), Verdict::Commit);
    assert_eq!(says(2, &known), Verdict::Commit);
    assert_eq!(says(1, &known), Verdict::Hold(HoldReason::NotListed));
    assert_eq!(says(0, &Known::Abort), Verdict::Rollback);
    assert_eq!(says(0, &Known::Hold(HoldReason::Poisoned)), Verdict::Hold(HoldReason::Poisoned));
}

/// Early acknowledgement: all prepared is a commitment, one that is missing excludes it, and without a list nothing follows.
#[test]
fn what_all_participants_list_says_how_it_ends() {
    let stores = ["orders", "billing", "archive"].map(store);
    let roster = Roster::new([0, 2, 5].into_iter().zip(stores.iter().map(StoreTag::of))).unwrap();
    let id = |number| branch(DeciderId::Together(roster.clone()), number);
    assert_eq!(whom_to_ask(&id(2), owner()), Ask::Together(&roster));
    let earlier = Owner { incarnation: Incarnation::new(1, 77), ..owner() };
    let foreign = BranchId { transaction: Owner { log: LogId(8), ..earlier }.transaction(1), ..id(2) };
    assert_eq!(whom_to_ask(&foreign, owner()), Ask::Nobody(HoldReason::ForeignLog));
    // A reader that ends in two steps may be found in the middle: it is no participant, and ends as one that wrote nothing.
    let committed = Known::Commit(record(&[(0, Some("orders")), (2, Some("billing")), (5, Some("archive"))]));
    assert_eq!([0, 2, 5, 1].map(|number| verdict(&id(number), &committed)), {
        [Verdict::Commit, Verdict::Commit, Verdict::Commit, Verdict::Rollback]
    });
    assert_eq!(verdict(&id(0), &Known::Commit(record(&[]))), Verdict::Hold(HoldReason::NotListed));
    let prepared = |number| Some(BTreeSet::from([id(number)]));
    let other = |number| Some(BTreeSet::from([BranchId { transaction: owner().transaction(2), ..id(number) }]));
    let waits = |i: usize| Conclusion::Wait(StoreTag::of(&stores[i]));
    for (lists, follows) in [
        ([prepared(0), prepared(2), prepared(5)], Conclusion::Commit),
        ([prepared(0), Some(BTreeSet::new()), prepared(5)], Conclusion::Abort),
        ([prepared(0), other(2), prepared(5)], Conclusion::Abort),
        ([prepared(0), prepared(0), prepared(5)], Conclusion::Abort),
        ([prepared(0), Some(BTreeSet::from([branch(DeciderId::Log, 2)])), prepared(5)], Conclusion::Abort),
        ([prepared(0), prepared(2), None], waits(2)),
        ([None, prepared(2), None], waits(0)),
        ([None, prepared(2), Some(BTreeSet::new())], Conclusion::Abort),
    ] {
        let list = |tag| lists.iter().zip(&stores).find(|(_, store)| StoreTag::of(store) == tag)?.0.as_ref();
        assert_eq!(conclude(&id(2), &roster, list), follows, "{lists:?}");
    }
}

struct Stores(BTreeMap<StoreId, BTreeSet<BranchId>>);

impl Lists for Stores {
    fn still_prepared(&self, store: &StoreId) -> Option<&BTreeSet<BranchId>> {
        self.0.get(store)
    }
}

/// Rules 8 and 11: finished when every participant's store was asked and lists none of its branches; a store that could not be asked
/// confirms nothing, one without a store is waited for by nobody.
#[test]
fn a_decision_is_finished_when_every_list_confirms_it() {
    let decision = record(&[(0, Some("orders")), (1, Some("invoices")), (2, None)]);
    let stores = |lists: &[(&str, &[BranchId])]| {
        Stores(lists.iter().map(|(name, listed)| (store(name), listed.iter().cloned().collect())).collect())
    };
    let own = branch(DeciderId::Log, 1);
    let other = BranchId { transaction: owner().transaction(2), ..own.clone() };
    let unlisted = branch(DeciderId::Log, 9);
    assert!(is_finished(&decision, &stores(&[("orders", &[]), ("invoices", &[])])));
    assert!(is_finished(&decision, &stores(&[("orders", &[unlisted]), ("invoices", &[other])])));
    assert!(!is_finished(&decision, &stores(&[("orders", &[]), ("invoices", std::slice::from_ref(&own))])));
    assert!(!is_finished(&decision, &stores(&[("orders", &[])])), "a store that was not asked confirms nothing");
    assert!(!is_finished(&decision, &stores(&[])));
    assert!(is_finished(&record(&[(2, None)]), &stores(&[])));
}
