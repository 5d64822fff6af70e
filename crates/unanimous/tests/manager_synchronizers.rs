//! Synchronizers: told of every transaction's boundaries, in the order of registration, while somebody else keeps them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use unanimous::{BranchError, Cause, CommitError, Options, Outcome, Synchronizer, Tx, scope};

use crate::support::warnings::Warnings;
use crate::support::{Call, Fault, Journal, World, aborted};

type During = Box<dyn FnMut(&Tx) + Send>;

/// Journals what it is told; `before` is called before a completion.
struct Told {
    name: &'static str,
    journal: Journal,
    before: Mutex<Option<During>>,
}

impl Told {
    fn new(world: &World, name: &'static str) -> Arc<Self> {
        Arc::new(Self { name, journal: world.journal.clone(), before: Mutex::default() })
    }

    fn before(&self, during: impl FnMut(&Tx) + Send + 'static) {
        *self.before.lock().unwrap() = Some(Box::new(during));
    }
}

impl Synchronizer for Told {
    fn new_transaction(&self, tx: &Tx) {
        assert_eq!(unanimous::current().map(|current| current.id()), Some(tx.id()));
        self.journal.act(format!("{} new", self.name));
    }

    fn before_completion(&self, tx: &Tx) {
        assert_eq!(unanimous::current().map(|current| current.id()), Some(tx.id()));
        self.journal.act(format!("{} before", self.name));
        if let Some(during) = &mut *self.before.lock().unwrap() {
            during(tx);
        }
    }

    fn after_completion(&self, tx: &Tx, outcome: Outcome) {
        assert!(!tx.is_active());
        self.journal.act(format!("{} after {outcome}", self.name));
    }
}

fn cause(error: &CommitError) -> &Cause {
    match error {
        CommitError::Aborted { source, .. } | CommitError::Unknown { source, .. } => source,
    }
}

/// A hook of each kind that journals itself.
fn hooked(tx: &Tx, journal: &Journal) {
    let add = |word: &'static str| {
        let journal = journal.clone();
        async move |_tx: Tx| {
            journal.act(word);
            Ok(())
        }
    };
    tx.before_commit(add("before-commit")).unwrap();
    tx.before_abort(add("before-abort")).unwrap();
    tx.after_abort(add("after-abort")).unwrap();
    let journal = journal.clone();
    tx.after_commit(async move |_tx, _outcome| {
        journal.act("after-commit");
        Ok(())
    })
    .unwrap();
}

/// The ancestor's order: at a commit between the before-hooks and the branches, and between these and the after-hooks; at an abort
/// after both kinds.
#[tokio::test(start_paused = true)]
async fn synchronizers_are_told_in_order_around_the_branches() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let (one, two) = (Told::new(&world, "1"), Told::new(&world, "2"));
    manager.register_synchronizer(&one);
    manager.register_synchronizer(&two);
    manager.register_synchronizer(&one);
    let tx = manager.begin();
    hooked(&tx, &world.journal);
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        world.journal.acts(),
        [
            "1 new",
            "2 new",
            "a.begin",
            "before-commit",
            "1 before",
            "2 before",
            "a.flush",
            "a.commit-one-phase!",
            "1 after committed",
            "2 after committed",
            "after-commit",
        ]
    );
    world.journal.clear();

    let tx = manager.begin();
    hooked(&tx, &world.journal);
    tx.join(&a).await.unwrap().put("row").unwrap();
    world.journal.clear();
    tx.abort().await;
    assert_eq!(
        world.journal.acts(),
        ["before-abort", "1 before", "2 before", "a.rollback", "after-abort", "1 after aborted", "2 after aborted"]
    );
}

/// Told of every end once: of a failed commit, of a time limit, of a transaction that nothing joined, and of one that was begun before.
#[tokio::test(start_paused = true)]
async fn synchronizers_are_told_of_every_end() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let earlier = manager.begin();
    let one = Told::new(&world, "1");
    manager.register_synchronizer(&one);
    earlier.commit().await.unwrap();
    assert_eq!(world.journal.acts(), ["1 before", "1 after committed"]);

    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    a.fail(Call::CommitOnePhase, Fault::Refused);
    world.journal.clear();
    aborted(tx.commit().await);
    assert_eq!(world.journal.count("1 before"), 1);
    assert_eq!(world.journal.count("1 after aborted"), 1);

    let tx = manager.begin_with(Options::default().time_limit(Duration::from_secs(1)));
    tx.join(&a).await.unwrap();
    world.journal.clear();
    world.journal.until("1 after aborted").await;
    assert_eq!(world.journal.acts(), ["1 before", "a.rollback", "1 after aborted"]);
    drop(tx);

    let tx = manager.begin();
    world.journal.clear();
    drop(tx);
    world.journal.until("1 after aborted").await;
    assert_eq!(world.journal.acts(), ["1 before", "1 after aborted"]);
}

/// Held weakly: gone with its last owner. And what is not registered any more is told nothing.
#[tokio::test(start_paused = true)]
async fn synchronizers_are_held_weakly() {
    let world = World::new();
    let (manager, _log) = world.start().await;
    let (one, two) = (Told::new(&world, "1"), Told::new(&world, "2"));
    assert!(!manager.has_synchronizers());
    manager.register_synchronizer(&one);
    manager.register_synchronizer(&two);
    drop(one);
    manager.begin().commit().await.unwrap();
    assert_eq!(world.journal.acts(), ["2 new", "2 before", "2 after committed"]);
    manager.unregister_synchronizer(&two);
    assert!(!manager.has_synchronizers());
    world.journal.clear();
    manager.begin().commit().await.unwrap();
    assert!(world.journal.acts().is_empty());
    manager.register_synchronizer(&two);
    manager.clear_synchronizers();
    manager.begin().commit().await.unwrap();
    assert!(world.journal.acts().is_empty());
    manager.register_synchronizer(&two);
    drop(two);
    assert!(!manager.has_synchronizers());
}

/// Registered within a transaction of this manager, it is told of that one; not of another manager's, nor of one that has ended.
#[tokio::test(start_paused = true)]
async fn who_registers_within_a_transaction_is_told_of_it() {
    let world = World::new();
    let (manager, _log) = world.start().await;
    let one = Told::new(&world, "1");
    let register = async || manager.register_synchronizer(&one);
    let tx = manager.begin();
    scope(tx.handle(), register()).await;
    assert_eq!(world.journal.acts(), ["1 new"]);
    // It is registered already.
    scope(tx.handle(), register()).await;
    assert_eq!(world.journal.acts(), ["1 new"]);
    tx.abort().await;
    manager.clear_synchronizers();
    world.journal.clear();

    let other = World::new();
    let (foreign, _log) = other.start().await;
    scope(foreign.begin().handle(), register()).await;
    manager.clear_synchronizers();
    let tx = manager.begin();
    let handle = tx.handle();
    tx.abort().await;
    scope(handle, register()).await;
    assert!(world.journal.acts().is_empty());
}

/// Before the completion it may doom, join and add hooks; a panic in it aborts a commit and is reported, and the others are told.
#[tokio::test(start_paused = true)]
async fn before_completion_may_doom_join_and_panic() {
    let warnings = Warnings::collect();
    let mut world = World::new();
    let a = world.two_phase("a");
    let own = world.store("own", unanimous::Capability::Volatile);
    let (manager, _log) = world.start().await;
    let (one, two) = (Told::new(&world, "1"), Told::new(&world, "2"));
    manager.register_synchronizer(&one);
    manager.register_synchronizer(&two);

    let (branch, journal) = (own.clone(), world.journal.clone());
    one.before(move |tx| {
        tx.allow("mine");
        tx.join_branch("mine", branch.branch()).unwrap().put("row").unwrap();
        hooked(tx, &journal);
    });
    let tx = manager.begin();
    world.journal.clear();
    tx.commit().await.unwrap();
    assert_eq!(world.journal.acts()[..4], ["1 before", "2 before", "before-commit", "own.flush"]);
    assert_eq!(own.keys(), ["row"]);

    one.before(|tx| tx.doom());
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    world.journal.clear();
    assert!(matches!(cause(&aborted(tx.commit().await)), Cause::Doomed));
    assert_eq!(world.journal.acts(), ["1 before", "2 before", "a.rollback", "1 after aborted", "2 after aborted"]);

    one.before(|_tx| panic!("it panics"));
    let tx = manager.begin();
    let id = tx.id().to_string();
    tx.join(&a).await.unwrap().put("row").unwrap();
    world.journal.clear();
    let error = aborted(tx.commit().await);
    let Cause::Hook { source, .. } = cause(&error) else { panic!("{error:?}") };
    assert_eq!(source.to_string(), "a synchronizer panicked in before_completion: it panics");
    assert_eq!(world.journal.acts(), ["1 before", "2 before", "a.rollback", "1 after aborted", "2 after aborted"]);
    assert_eq!(warnings.with(&["ERROR", &id, "a synchronizer panicked"]).len(), 1);
    // An abort goes on.
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.abort().await;
    assert!(a.keys().is_empty());
}

/// A synchronizer that panics when it is told of a begin or an end is reported, and changes nothing.
#[tokio::test(start_paused = true)]
async fn a_panic_of_a_synchronizer_is_reported() {
    struct Panics;
    impl Synchronizer for Panics {
        fn new_transaction(&self, _tx: &Tx) {
            panic!("at the begin");
        }
        fn after_completion(&self, _tx: &Tx, _outcome: Outcome) {
            panic!("at the end");
        }
    }
    let warnings = Warnings::collect();
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let (panics, two) = (Arc::new(Panics), Told::new(&world, "2"));
    manager.register_synchronizer(&panics);
    manager.register_synchronizer(&two);
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.commit().await.unwrap();
    assert_eq!(a.keys(), ["row"]);
    assert_eq!(world.journal.count("2 new"), 1);
    assert_eq!(world.journal.count("2 after committed"), 1);
    for text in ["panicked in new_transaction: at the begin", "panicked in after_completion: at the end"] {
        assert_eq!(warnings.with(&["ERROR", text]).len(), 1, "{text}");
    }
}

/// Each attempt of `run` is a transaction of its own.
#[tokio::test(start_paused = true)]
async fn synchronizers_are_told_of_each_attempt() {
    let world = World::new();
    let (manager, _log) = world.start().await;
    let one = Told::new(&world, "1");
    manager.register_synchronizer(&one);
    let failed = manager.run(2, async |_tx: Tx| Err::<(), _>(BranchError::conflict("always").into())).await;
    failed.unwrap_err();
    let attempt = ["1 new", "1 before", "1 after aborted"];
    assert_eq!(world.journal.acts(), [attempt, attempt].concat());
}

/// A request's transaction that begins lazily: told when it begins, with its annotations, and the synchronizer may ask for the current one.
#[cfg(feature = "http")]
#[tokio::test(start_paused = true)]
async fn synchronizers_are_told_of_a_lazy_transaction_when_it_begins() {
    use http::Request;
    use tower::{Layer, ServiceExt, service_fn};
    use unanimous::http::TransactionLayer;

    use crate::http_support::{answer, post};

    struct Notes(Mutex<Vec<String>>, unanimous::TransactionManager, Arc<Told>);
    impl Synchronizer for Notes {
        fn new_transaction(&self, tx: &Tx) {
            self.0.lock().unwrap().push(tx.description());
            self.1.register_synchronizer(&self.2);
        }
    }
    let world = World::new();
    let (manager, _log) = world.start().await;
    let notes = Arc::new(Notes(Mutex::default(), manager.clone(), Told::new(&world, "1")));
    manager.register_synchronizer(&notes);
    let service = TransactionLayer::new(manager).layer(service_fn(async |request: Request<String>| {
        if request.uri().path() == "/asks" {
            unanimous::current().expect("a transaction");
            unanimous::current().expect("the same");
        }
        answer(200)
    }));
    for path in ["/idle", "/asks"] {
        service.clone().oneshot(post(path)).await.unwrap();
    }
    assert_eq!(*notes.0.lock().unwrap(), ["POST /asks"]);
    assert_eq!(world.journal.acts(), ["1 new", "1 before", "1 after committed"]);
}
