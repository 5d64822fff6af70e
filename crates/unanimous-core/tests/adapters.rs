//! What an adapter need not write: the traits' own methods, as a branch and a store without anything else have them.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use unanimous_core::{
    Branch, BranchContext, BranchError, BranchId, Capability, DeciderId, DecisionRecord, FailureKind, Incarnation,
    LogId, Note, Owner, ResourceManager, SavepointId, StoreError, StoreId, TransactionId, Work,
};

/// Nothing here waits.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

/// A branch of which only what must be there is there, and which refuses one of the calls.
struct Least {
    refuses: &'static str,
}

impl Least {
    fn answer(&self, call: &str) -> Result<(), BranchError> {
        if self.refuses == call { Err(BranchError::refused("as it was told")) } else { Ok(()) }
    }
}

impl Branch for Least {
    async fn prepare(&self, _: &BranchId) -> Result<(), BranchError> {
        self.answer("prepare")
    }

    async fn commit(&self) -> Result<(), BranchError> {
        self.answer("commit")
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        self.answer("rollback")
    }
}

struct Store;

impl ResourceManager for Store {
    type Branch = Least;
    type Options = ();

    fn name(&self) -> &str {
        "orders"
    }

    fn capability(&self) -> Capability {
        Capability::Volatile
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        Ok(store())
    }

    async fn begin(&self, _: &BranchContext, (): ()) -> Result<Least, BranchError> {
        Ok(Least { refuses: "" })
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        Ok(Vec::new())
    }

    async fn commit(&self, _: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }

    async fn rollback(&self, _: &BranchId) -> Result<(), BranchError> {
        Ok(())
    }
}

fn store() -> StoreId {
    "store-a".parse().unwrap()
}

fn transaction() -> TransactionId {
    TransactionId { log: LogId(42), incarnation: Incarnation::new(2, 3), sequence: 7 }
}

fn branch() -> BranchId {
    BranchId { transaction: transaction(), decider: DeciderId::Log, number: 1 }
}

/// It prepares, always wrote, and has nothing more: a one-phase commit is a prepare and a commit, where a no to the first is a no, and
/// whatever the second says, nobody knows.
#[test]
fn a_branch_of_three_methods() {
    let whole = Least { refuses: "" };
    assert_eq!(whole.capability(), Capability::Volatile);
    assert!(whole.capability().can_prepare() && !Capability::OnePhase.can_prepare());
    assert_eq!(whole.sort_key(), "");
    assert_eq!(now(whole.flush()).unwrap(), Work::Wrote);
    now(whole.commit_one_phase(&branch())).unwrap();
    for (refuses, kind) in [("prepare", FailureKind::Refused), ("commit", FailureKind::Lost)] {
        assert_eq!(now(Least { refuses }.commit_one_phase(&branch())).unwrap_err().kind(), kind, "{refuses}");
    }
    whole.revoke();
    assert!(!whole.is_retryable(&std::io::Error::other("any")));
}

/// What it has not got, it refuses by name, should it be asked.
#[test]
fn what_a_branch_has_not_got_is_refused() {
    let branch = Least { refuses: "" };
    let record =
        DecisionRecord { transaction: transaction(), participants: vec![], decided_at: 0, note: Note::default() };
    assert!(!branch.has_savepoints());
    for (refused, part) in [
        (now(branch.commit_carrying(&record)), format!("the branch of {} cannot carry a decision", transaction())),
        (now(branch.savepoint(SavepointId(3))), "the branch has no savepoints, and was asked for number 3".into()),
        (now(branch.rollback_to(SavepointId(4))), "the branch has no savepoints, and number 4 was asked for".into()),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), FailureKind::Refused);
        assert_eq!(refused.into_source().to_string(), part);
    }
}

/// A store that carries no decisions has none to tell, and never says abort.
#[test]
fn a_store_without_decisions_presumes_nothing() {
    let owner = Owner { log: LogId(42), incarnation: Incarnation::new(2, 3) };
    let error = now(Store.decision(transaction(), owner)).unwrap_err();
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(why, format!("orders keeps no decisions; {} names it as its decider by mistake", transaction()));
    assert_eq!(now(ResourceManager::unfinished(&Store, owner)).unwrap(), []);
    ResourceManager::forget(&Store, transaction());
}

/// X/Open's two parts of an id lead back to it.
#[test]
fn the_parts_of_a_branchs_id() {
    for decider in [DeciderId::Log, DeciderId::Store(store())] {
        let id = BranchId { decider, ..branch() };
        assert_eq!(id.gtrid(), transaction().to_string());
        assert_eq!(BranchId::from_parts(&id.gtrid(), &id.bqual()).unwrap(), id);
    }
}
