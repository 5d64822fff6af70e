//! What the tests of the HTTP layer share: stores that write down every call they get, in one journal with the test's own
//! remarks, and that wait at a step until the test lets them go on.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::watch;
use unanimous::log::MemoryLog;
use unanimous::{
    BoxError, Branch, BranchContext, BranchError, BranchId, Capability, JoinError, Outcome, ResourceManager,
    StoreError, StoreId, TransactionManager, Tx, Work,
};

/// How long a test waits for what must happen before it fails. Never reached when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened, in order.
#[derive(Clone)]
pub(crate) struct Journal(Arc<watch::Sender<Vec<String>>>);

impl Journal {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }

    pub(crate) fn add(&self, entry: impl fmt::Display) {
        self.0.send_modify(|entries| entries.push(entry.to_string()));
    }

    pub(crate) fn entries(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    /// The entries that begin with this word, without it.
    pub(crate) fn of(&self, word: &str) -> Vec<String> {
        let prefix = format!("{word} ");
        self.entries().iter().filter_map(|entry| entry.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// Waits for an entry.
    pub(crate) async fn until(&self, entry: &str) {
        self.until_so(entry, |entries| entries.iter().any(|known| known == entry)).await;
    }

    /// Waits until the entries are so.
    pub(crate) async fn until_so(&self, what: &str, so: impl Fn(&[String]) -> bool) {
        let mut entries = self.0.subscribe();
        let found = tokio::time::timeout(PATIENCE, entries.wait_for(|entries| so(entries))).await.is_ok();
        assert!(found, "{what:?} did not happen; what did is {:#?}", self.entries());
    }

    /// Asserts that the first of two entries is there, and comes before every occurrence of the second, which is there too.
    #[track_caller]
    pub(crate) fn assert_before(&self, first: &str, second: &str) {
        let entries = self.entries();
        let place = |wanted: &str| entries.iter().position(|entry| entry == wanted);
        assert!(place(first).is_some(), "{first:?} is not in {entries:#?}");
        assert!(place(second).is_some(), "{second:?} is not in {entries:#?}");
        assert!(place(first) < place(second), "{first:?} is not before {second:?} in {entries:#?}");
    }
}

/// Writes into the journal when it is dropped: in a task that panics, when the panic has come out.
pub(crate) struct Remark(pub(crate) Journal, pub(crate) &'static str);

impl Drop for Remark {
    fn drop(&mut self) {
        self.0.add(self.1);
    }
}

/// A step of a branch at which a test can interfere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Flush,
    Prepare,
    Commit,
    CommitOnePhase,
    Rollback,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Flush => "flush",
            Step::Prepare => "prepare",
            Step::Commit => "commit",
            Step::CommitOnePhase => "commit_one_phase",
            Step::Rollback => "rollback",
        }
    }
}

type Failure = Box<dyn Fn() -> BranchError + Send>;

struct Inner {
    name: String,
    capability: Capability,
    journal: Journal,
    held: watch::Sender<Vec<Step>>,
    failures: Mutex<BTreeMap<Step, Failure>>,
    actions: Mutex<BTreeMap<Step, Box<dyn Fn() + Send>>>,
    prepared: Mutex<Vec<BranchId>>,
}

/// A store that keeps nothing but its prepared branches, and writes down what it is told.
#[derive(Clone)]
pub(crate) struct Store(Arc<Inner>);

impl Store {
    pub(crate) fn new(name: &str, capability: Capability, journal: &Journal) -> Self {
        Self(Arc::new(Inner {
            name: name.to_owned(),
            capability,
            journal: journal.clone(),
            held: watch::Sender::new(Vec::new()),
            failures: Mutex::new(BTreeMap::new()),
            actions: Mutex::new(BTreeMap::new()),
            prepared: Mutex::new(Vec::new()),
        }))
    }

    /// Lets branches wait at this step, after it was written down, until [`release`](Self::release).
    pub(crate) fn hold(&self, step: Step) {
        self.0.held.send_modify(|held| held.push(step));
    }

    pub(crate) fn release(&self, step: Step) {
        self.0.held.send_modify(|held| held.retain(|&other| other != step));
    }

    /// Waits until a branch has come to this step.
    pub(crate) async fn reached(&self, step: Step) {
        self.0.journal.until(&format!("{} {}", self.0.name, step.name())).await;
    }

    /// Lets this step fail from now on.
    pub(crate) fn fail(&self, step: Step, failure: impl Fn() -> BranchError + Send + 'static) {
        self.0.failures.lock().unwrap().insert(step, Box::new(failure));
    }

    /// Does something at this step.
    pub(crate) fn on(&self, step: Step, action: impl Fn() + Send + 'static) {
        self.0.actions.lock().unwrap().insert(step, Box::new(action));
    }

    /// What this store was told.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.0.journal.of(&self.0.name)
    }

    /// The branches that are prepared now.
    pub(crate) fn prepared(&self) -> Vec<BranchId> {
        self.0.prepared.lock().unwrap().clone()
    }

    fn add(&self, call: &str) {
        self.0.journal.add(format_args!("{} {call}", self.0.name));
    }

    async fn step(&self, step: Step) -> Result<(), BranchError> {
        self.add(step.name());
        if let Some(action) = self.0.actions.lock().unwrap().get(&step) {
            action();
        }
        let mut held = self.0.held.subscribe();
        // The sender lives as long as the store does.
        held.wait_for(|held| !held.contains(&step)).await.unwrap();
        match self.0.failures.lock().unwrap().get(&step) {
            Some(failure) => Err(failure()),
            None => Ok(()),
        }
    }

    fn finish(&self, id: &BranchId) {
        self.0.prepared.lock().unwrap().retain(|known| known != id);
    }
}

pub(crate) struct StoreBranch {
    store: Store,
    id: Mutex<Option<BranchId>>,
}

impl StoreBranch {
    fn finish(&self) {
        if let Some(id) = &*self.id.lock().unwrap() {
            self.store.finish(id);
        }
    }
}

impl Branch for StoreBranch {
    fn capability(&self) -> Capability {
        self.store.0.capability
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        self.store.step(Step::Flush).await?;
        Ok(Work::Wrote)
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        self.store.step(Step::Prepare).await?;
        *self.id.lock().unwrap() = Some(id.clone());
        self.store.0.prepared.lock().unwrap().push(id.clone());
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        self.store.step(Step::Commit).await?;
        self.finish();
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        self.store.step(Step::Rollback).await?;
        self.finish();
        Ok(())
    }

    async fn commit_one_phase(&self, _id: &BranchId) -> Result<(), BranchError> {
        self.store.step(Step::CommitOnePhase).await
    }
}

impl ResourceManager for Store {
    type Branch = StoreBranch;
    type Options = ();

    fn name(&self) -> &str {
        &self.0.name
    }

    fn capability(&self) -> Capability {
        self.0.capability
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        format!("test-store-{}", self.0.name).parse().map_err(StoreError::new)
    }

    async fn begin(&self, _context: &BranchContext, (): ()) -> Result<StoreBranch, BranchError> {
        self.add("begin");
        Ok(StoreBranch { store: self.clone(), id: Mutex::new(None) })
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        Ok(self.prepared())
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        self.add("recovery's commit");
        self.finish(id);
        Ok(())
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        self.add("recovery's rollback");
        self.finish(id);
        Ok(())
    }
}

/// Two stores that can prepare, a manager that knows both, and the journal.
pub(crate) struct World {
    pub(crate) journal: Journal,
    pub(crate) a: Store,
    pub(crate) b: Store,
    pub(crate) manager: TransactionManager,
    /// The last report's cause.
    pub(crate) cause: Arc<Mutex<Option<String>>>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Capability::TwoPhase).await
    }

    /// The same, where the second store can only do what is said.
    pub(crate) async fn with(second: Capability) -> Self {
        let journal = Journal::new();
        let a = Store::new("a", Capability::TwoPhase, &journal);
        let b = Store::new("b", second, &journal);
        let cause = Arc::<Mutex<Option<String>>>::default();
        let manager = TransactionManager::builder(MemoryLog::new())
            .resource(a.clone())
            .resource(b.clone())
            .observer({
                let (journal, cause) = (journal.clone(), cause.clone());
                move |report| {
                    journal.add(format_args!("report {} {:?} {:?}", report.outcome, report.note, report.user));
                    cause.lock().unwrap().clone_from(&report.cause);
                }
            })
            .build()
            .await
            .unwrap();
        Self { journal, a, b, manager, cause }
    }
}

impl World {
    #[track_caller]
    pub(crate) fn assert_cause(&self, why: &str) {
        assert_eq!(self.cause.lock().unwrap().as_deref(), Some(why));
    }
}

/// What an ordinary handler does: works in both stores, and wants to know how it ends.
pub(crate) async fn work(tx: &Tx, a: &Store, b: &Store, journal: &Journal) -> Result<(), JoinError> {
    tx.join(a).await?;
    tx.join(b).await?;
    let ended = journal.clone();
    tx.after_end(move |outcome| ended.add(format_args!("end {outcome}")));
    journal.add("worked");
    Ok(())
}

/// A handler for tower's `service_fn` that works in both stores of the world and then does what `then` says.
pub(crate) fn handler<F, Fut, R>(
    world: &World,
    then: F,
) -> impl Fn(Request<String>) -> BoxFuture<R> + Clone + Send + Sync + 'static
where
    F: Fn(Tx) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = R> + Send + 'static,
    R: 'static,
{
    let (a, b, journal) = (world.a.clone(), world.b.clone(), world.journal.clone());
    move |request: Request<String>| {
        let (a, b, journal, then) = (a.clone(), b.clone(), journal.clone(), then.clone());
        Box::pin(async move {
            let tx = unanimous::http::transaction(request.extensions()).unwrap();
            work(&tx, &a, &b, &journal).await.unwrap();
            then(tx).await
        })
    }
}

pub(crate) type BoxFuture<R> = std::pin::Pin<Box<dyn Future<Output = R> + Send>>;

pub(crate) type Answer = Result<Response<String>, BoxError>;

/// The response of a handler with nothing special to say.
pub(crate) fn answer(status: u16) -> Answer {
    Ok(Response::builder().status(status).body("the handler's own".to_owned()).unwrap())
}

pub(crate) fn post(path: &str) -> Request<String> {
    Request::builder().method("POST").uri(path).body(String::new()).unwrap()
}

/// What both stores were told in a transaction that committed.
pub(crate) const COMMITTED: [&str; 4] = ["begin", "flush", "prepare", "commit"];

/// What both stores were told in a transaction that was given up before commit began.
pub(crate) const ABORTED: [&str; 2] = ["begin", "rollback"];

impl World {
    /// Asserts what both stores were told, and how the transaction ended, once.
    #[track_caller]
    pub(crate) fn assert_ended(&self, calls: &[&str], outcome: Outcome) {
        assert_eq!(self.a.calls(), calls, "the store a, in {:#?}", self.journal.entries());
        assert_eq!(self.b.calls(), calls, "the store b, in {:#?}", self.journal.entries());
        assert_eq!(self.journal.of("end"), [outcome.to_string()], "in {:#?}", self.journal.entries());
        assert_eq!(self.a.prepared(), []);
        assert_eq!(self.b.prepared(), []);
    }
}
