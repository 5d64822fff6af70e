//! The futures on one to three stores in memory, whose answers take several polls and some of which fail.
//!
//! Must not know how a transaction is driven.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use unanimous::env::{Env, TokioEnv};
use unanimous::{BoxError, Capability, CommitError, Outcome, Transaction, TransactionManager};
use unanimous_testing::memory::{Call, Fault, LONG, MemoryStore, World};
use unanimous_testing::rng::Rng;

use super::dropping::{MOST_POLLS, Mortal, eager};
use crate::{Found, Options};

/// What is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Commit,
    Abort,
    /// One more join; then the transaction ends so.
    Join(End),
    Savepoint,
    /// The rollback of a savepoint; whether the last store has joined behind it.
    RollbackTo {
        since: bool,
    },
    Run,
    /// The detached task of a commit; who goes on: the same manager, or the next start.
    Driver {
        restart: bool,
    },
    /// The next start, after the task of a commit was dropped at a poll.
    Build {
        died_at: usize,
    },
    /// A pass of recovery of the same manager, after that.
    Recover {
        died_at: usize,
    },
    /// A shutdown while a commit is under way.
    Shutdown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Commit,
    Abort,
    Drop,
}

/// One to three stores, how often each of their calls gives way, and what fails.
#[derive(Clone)]
struct Arrangement {
    stores: &'static [Capability],
    slow: usize,
    fault: Option<(usize, Call, Fault)>,
}

impl fmt::Display for Arrangement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, slow {}", self.stores, self.slow)?;
        match &self.fault {
            Some((store, call, fault)) => write!(f, ", {call:?} of store {store} {fault:?}"),
            None => Ok(()),
        }
    }
}

use Capability::{Carrier, OnePhase, TwoPhase};

const STORES: &[&[Capability]] = &[
    &[TwoPhase],
    &[Carrier],
    &[OnePhase],
    &[TwoPhase, TwoPhase],
    &[TwoPhase, Carrier],
    &[Carrier, TwoPhase],
    &[TwoPhase, TwoPhase, TwoPhase],
    &[TwoPhase, TwoPhase, Carrier],
];

const CALLS: &[Call] =
    &[Call::Flush, Call::Prepare, Call::Commit, Call::Rollback, Call::CommitOnePhase, Call::CommitCarrying];

const FAULTS: &[Fault] = &[Fault::Refused, Fault::Conflict, Fault::Lost, Fault::LostDone, Fault::Panic];

/// The table's keys.
const ROW: &str = "row";
const SECOND: &str = "second";
const LATER: &str = "later";

type Checked<T = ()> = Result<T, String>;

pub(super) fn run(options: &Options) -> Checked<Found> {
    let mut rng = Rng::new(options.seed);
    let mut jobs = Vec::new();
    let slows: &[usize] = if options.quick { &[0, 2] } else { &[0, 1, 2, 3, 5] };
    for &stores in STORES {
        for &slow in slows {
            let plain = Arrangement { stores, slow, fault: None };
            let everything = [What::Commit, What::Abort, What::Savepoint, What::Run, What::Shutdown];
            jobs.extend(everything.map(|what| (what, plain.clone())));
            jobs.extend([End::Commit, End::Abort, End::Drop].map(|end| (What::Join(end), plain.clone())));
            jobs.extend([true, false].map(|since| (What::RollbackTo { since }, plain.clone())));
            let deaths = driven(&plain);
            jobs.extend((0..deaths).map(|died_at| (What::Build { died_at }, plain.clone())));
            jobs.extend((0..deaths).map(|died_at| (What::Recover { died_at }, plain.clone())));
            jobs.extend([true, false].map(|restart| (What::Driver { restart }, plain.clone())));
            for store in 0..stores.len() {
                for &call in CALLS {
                    let late = (call == Call::Prepare).then_some(Fault::Late);
                    for fault in FAULTS.iter().cloned().chain(late) {
                        let arrangement = Arrangement { fault: Some((store, call, fault)), ..plain.clone() };
                        let whats = [
                            What::Commit,
                            What::Abort,
                            What::Run,
                            What::Driver { restart: true },
                            What::Driver { restart: false },
                        ];
                        // A quick run draws some.
                        jobs.extend(
                            whats
                                .into_iter()
                                .filter(|_| !options.quick || rng.chance(1, 4))
                                .map(|what| (what, arrangement.clone())),
                        );
                    }
                }
            }
            for call in [Call::Savepoint, Call::RollbackTo, Call::Begin] {
                for fault in FAULTS {
                    // A join is the caller's own call, and so is its panic.
                    if matches!((call, fault), (Call::Begin, Fault::Panic)) {
                        continue;
                    }
                    let fault = Some((stores.len() - 1, call, fault.clone()));
                    let arrangement = Arrangement { fault, ..plain.clone() };
                    let whats = [What::Savepoint, What::RollbackTo { since: false }, What::Join(End::Commit)];
                    jobs.extend(whats.map(|what| (what, arrangement.clone())));
                }
            }
        }
    }
    // Those that were asked for are many, and a panic that was not is a violation, also where it ends in a task that nobody waits for.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        let text = panicked(info.payload());
        if !is_planted(&text) {
            let at = info.location().map(ToString::to_string).unwrap_or_default();
            strays().push((thread::current().id(), format!("{text}, at {at}")));
        }
    }));
    let mut found = at_every_poll(&jobs);
    std::panic::set_hook(hook);
    found.violations.extend(strays().drain(..).map(|(_, text)| format!("in a thread of no case: {text}")));
    Ok(found)
}

/// Panics that no store was asked for. A case's tasks are in its own thread.
static STRAYS: Mutex<Vec<(ThreadId, String)>> = Mutex::new(Vec::new());

fn strays() -> MutexGuard<'static, Vec<(ThreadId, String)>> {
    STRAYS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether it is a store's, which names itself first.
fn is_planted(text: &str) -> bool {
    text.strip_prefix("a panic: s").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// All jobs, on two threads: a case is the next number of polls of a job.
fn at_every_poll(jobs: &[(What, Arrangement)]) -> Found {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Found::default()));
    let work = || {
        while let Some((what, arrangement)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut here = Found::default();
            for polls in 0..MOST_POLLS {
                here.cases += 1;
                let tried = catch_unwind(AssertUnwindSafe(|| case(*what, arrangement, polls)));
                let mut tried = tried.unwrap_or_else(|panic| Err(panicked(&*panic)));
                let own = thread::current().id();
                for (_, text) in strays().extract_if(.., |(thread, _)| *thread == own) {
                    tried = tried.and(Err(text));
                }
                match tried {
                    Ok(true) => break,
                    Ok(false) if polls + 1 == MOST_POLLS => {
                        here.violations.push(format!("{what:?} did not end within {MOST_POLLS} polls; {arrangement}"));
                    }
                    Ok(false) => {}
                    Err(why) => {
                        let dropped = format!("{what:?} dropped after {polls} polls; {arrangement}");
                        here.violations.push(format!("{dropped}: {why}"));
                        break;
                    }
                }
            }
            found.lock().unwrap_or_else(PoisonError::into_inner).add(here);
        }
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(work);
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// How many polls the detached task of a commit takes here.
fn driven(arrangement: &Arrangement) -> usize {
    let mut polls = 0;
    while matches!(case(What::Driver { restart: true }, arrangement, polls), Ok(false)) && polls < MOST_POLLS {
        polls += 1;
    }
    polls
}

/// Whether the future was ready before it would have been dropped.
fn case(what: What, arrangement: &Arrangement, polls: usize) -> Checked<bool> {
    let place = Place::new(arrangement);
    let first_life = |died_at| in_runtime(place.dies(died_at));
    match what {
        What::Commit => in_runtime(place.commit(polls)),
        What::Abort => in_runtime(place.abort(polls)),
        What::Join(end) => in_runtime(place.join(polls, end)),
        What::Savepoint => in_runtime(place.savepoint(polls)),
        What::RollbackTo { since } => in_runtime(place.rollback_to(polls, since)),
        What::Run => in_runtime(place.run(polls)),
        What::Driver { restart: true } => {
            let Died { outcome, dead, .. } = first_life(polls)?;
            in_runtime(async {
                let manager = place.start().await?;
                place.agrees(&manager, outcome).await?;
                Ok(!dead)
            })
        }
        What::Driver { restart: false } => in_runtime(async {
            let Died { outcome, dead, manager, .. } = place.dies(polls).await?;
            place.agrees(&manager, outcome).await?;
            Ok(!dead)
        }),
        What::Build { died_at } => {
            let Died { outcome, .. } = first_life(died_at)?;
            let built = in_runtime(async { Ok(eager(polls, place.start()).await.transpose()?.is_some()) })?;
            in_runtime(async {
                let manager = place.start().await?;
                place.agrees(&manager, outcome).await?;
                Ok(built)
            })
        }
        What::Recover { died_at } => in_runtime(async {
            let Died { outcome, manager, .. } = place.dies(died_at).await?;
            let recovered = eager(polls, manager.recover()).await.is_some();
            place.agrees(&manager, outcome).await?;
            Ok(recovered)
        }),
        What::Shutdown => {
            let (outcome, ready) = in_runtime(place.shutdown(polls))?;
            in_runtime(async {
                let manager = place.start().await?;
                place.agrees(&manager, outcome).await?;
                Ok(ready)
            })
        }
    }
}

fn in_runtime<T>(future: impl Future<Output = Checked<T>>) -> Checked<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.map_err(|error| error.to_string())?.block_on(future)
}

/// A manager whose tasks were dropped in the middle of a commit.
struct Died {
    manager: TransactionManager,
    /// What the caller was told.
    outcome: Outcome,
    /// Whether anything was dropped.
    dead: bool,
}

/// The stores of a case, and their log.
struct Place {
    world: World,
    stores: Vec<MemoryStore>,
    fault: Option<(usize, Call, Fault)>,
}

impl Place {
    fn new(arrangement: &Arrangement) -> Self {
        let mut world = World::new();
        let named = arrangement.stores.iter().enumerate();
        let stores: Vec<_> = named.map(|(i, &capability)| world.store(&format!("s{i}"), capability)).collect();
        for store in &stores {
            store.set_slow(arrangement.slow);
        }
        Self { world, stores, fault: arrangement.fault.clone() }
    }

    fn builder(&self) -> unanimous::Builder {
        self.world.builder().0
    }

    async fn start(&self) -> Checked<TransactionManager> {
        self.builder().build().await.map_err(|error| format!("no manager: {error}"))
    }

    /// From here on what is to fail does, once.
    fn arm(&self) {
        if let Some((store, call, fault)) = &self.fault {
            self.stores[*store].fail(*call, fault.clone());
        }
    }

    /// A transaction that has joined all stores and written to them.
    async fn written(&self, manager: &TransactionManager) -> Checked<Transaction> {
        let tx = manager.begin();
        self.write(&tx, ROW).await?;
        Ok(tx)
    }

    async fn write(&self, tx: &Transaction, key: &str) -> Checked {
        for store in &self.stores {
            let branch = tx.join(store).await.map_err(|error| format!("a join failed: {error}"))?;
            branch.put(key).map_err(|error| format!("a write failed: {error}"))?;
        }
        Ok(())
    }

    async fn commit(&self, polls: usize) -> Checked<bool> {
        let manager = self.start().await?;
        let tx = self.written(&manager).await?;
        let end = end_of(&tx);
        self.arm();
        let answer = eager(polls, tx.commit()).await;
        let outcome = within("the end of a commit that was dropped", end).await??;
        if let Some(answer) = &answer {
            ensure(told(answer) == outcome, || format!("the caller was told {answer:?}, and it ended {outcome:?}"))?;
        }
        let failed = self.fault.is_some();
        ensure(failed || outcome == Outcome::Committed, || format!("nothing failed, and it ended {outcome:?}"))?;
        self.is_known(outcome)?;
        self.agrees(&manager, outcome).await?;
        Ok(answer.is_some())
    }

    async fn abort(&self, polls: usize) -> Checked<bool> {
        let manager = self.start().await?;
        let tx = self.written(&manager).await?;
        let end = end_of(&tx);
        self.arm();
        let ready = eager(polls, tx.abort()).await.is_some();
        let outcome = within("the end of an abort that was dropped", end).await??;
        ensure(outcome == Outcome::Aborted, || format!("an abort ended {outcome:?}"))?;
        self.agrees(&manager, outcome).await?;
        Ok(ready)
    }

    /// The last store's join is dropped.
    async fn join(&self, polls: usize, end: End) -> Checked<bool> {
        let manager = self.start().await?;
        let tx = manager.begin();
        let (last, before) = self.stores.split_last().expect("an arrangement has a store");
        for store in before {
            let branch = tx.join(store).await.map_err(|error| error.to_string())?;
            branch.put(ROW).map_err(|error| error.to_string())?;
        }
        self.arm();
        let joined = eager(polls, tx.join(last)).await.map(drop);
        let outcome = match end {
            End::Commit => {
                // What failed was the join's to tell, dropped or not.
                self.heal();
                self.write(&tx, ROW).await?;
                told(&within("a commit behind a join that was dropped", tx.commit()).await?)
            }
            End::Abort => {
                within("an abort behind a join that was dropped", tx.abort()).await?;
                Outcome::Aborted
            }
            End::Drop => {
                drop(tx);
                Outcome::Aborted
            }
        };
        let expected = if end == End::Commit { Outcome::Committed } else { Outcome::Aborted };
        ensure(outcome == expected, || format!("it ended {outcome:?}"))?;
        self.agrees(&manager, outcome).await?;
        Ok(joined.is_some())
    }

    async fn savepoint(&self, polls: usize) -> Checked<bool> {
        let manager = self.start().await?;
        let tx = self.written(&manager).await?;
        self.arm();
        let saved = eager(polls, tx.savepoint()).await;
        let outcome = match &saved {
            Some(Err(_)) => {
                ensure(self.fault.is_some(), || format!("a savepoint failed: {saved:?}"))?;
                told(&within("a commit", tx.commit()).await?)
            }
            Some(Ok(savepoint)) => {
                self.write(&tx, SECOND).await?;
                let undone = within("a rollback to the savepoint", savepoint.rollback()).await?;
                undone.or_else(|error| if self.fault.is_some() { Ok(()) } else { Err(error.to_string()) })?;
                told(&within("a commit", tx.commit()).await?)
            }
            None => {
                // The transaction goes on, and commits all of its work.
                self.heal();
                self.write(&tx, SECOND).await?;
                let outcome = told(&within("a commit behind a savepoint that was dropped", tx.commit()).await?);
                ensure(outcome == Outcome::Committed, || format!("it ended {outcome:?}"))?;
                self.all_or_none(SECOND, outcome)?;
                outcome
            }
        };
        self.is_known(outcome)?;
        if saved.is_some() {
            self.all_or_none(SECOND, Outcome::Aborted)?;
        }
        self.agrees(&manager, outcome).await?;
        Ok(saved.is_some())
    }

    async fn rollback_to(&self, polls: usize, since: bool) -> Checked<bool> {
        let manager = self.start().await?;
        let tx = manager.begin();
        let before = self.stores.len() - usize::from(since);
        for store in &self.stores[..before] {
            tx.join(store).await.map_err(text)?.put(ROW).map_err(text)?;
        }
        let savepoint = tx.savepoint().await.map_err(text)?;
        self.write(&tx, SECOND).await?;
        self.arm();
        let undone = eager(polls, savepoint.rollback()).await;
        let outcome = told(&within("a commit", tx.commit()).await?);
        let failed = self.fault.is_some();
        self.is_known(outcome)?;
        match &undone {
            Some(Ok(())) => {
                ensure(failed || outcome == Outcome::Committed, || format!("it ended {outcome:?}"))?;
                self.all_or_none(SECOND, Outcome::Aborted)?;
            }
            Some(Err(error)) => {
                ensure(failed, || format!("the rollback failed: {error}"))?;
                ensure(outcome == Outcome::Aborted, || format!("a rollback failed, and it ended {outcome:?}"))?;
                self.all_or_none(SECOND, outcome)?;
            }
            None if polls == 0 => {
                ensure(outcome == Outcome::Committed, || format!("nothing was asked, and it ended {outcome:?}"))?;
                self.all_or_none(SECOND, outcome)?;
            }
            // Nobody knows what was undone.
            None => {
                ensure(outcome == Outcome::Aborted, || format!("undone halfway, and it ended {outcome:?}"))?;
                self.all_or_none(SECOND, outcome)?;
            }
        }
        if outcome == Outcome::Committed {
            let rows = self.stores[..before].iter().all(|store| store.keys().iter().any(|key| key == ROW));
            ensure(rows, || "what was written before the savepoint is not there".to_owned())?;
            self.works(&manager).await?;
        } else {
            self.agrees(&manager, outcome).await?;
        }
        Ok(undone.is_some())
    }

    async fn run(&self, polls: usize) -> Checked<bool> {
        let manager = self.start().await?;
        self.arm();
        let stores = &self.stores;
        let work = |tx: unanimous::Tx| async move {
            for store in stores {
                tx.join(store).await?.put(ROW)?;
            }
            Ok::<_, BoxError>(())
        };
        let ran = eager(polls, manager.run(3, work)).await;
        // What is detached has ended by then.
        tokio::time::sleep(LONG).await;
        let failed = self.fault.is_some();
        ensure(failed || !matches!(ran, Some(Err(_))), || format!("nothing failed, and `run` ended {ran:?}"))?;
        let outcome = match &ran {
            Some(Ok(())) => Outcome::Committed,
            Some(Err(unanimous::RunError::Commit { source, .. })) => told_error(source),
            Some(Err(_)) => Outcome::Aborted,
            None => Outcome::Unknown,
        };
        if ran.is_some() {
            self.is_known(outcome)?;
        }
        self.agrees(&manager, outcome).await?;
        Ok(ran.is_some())
    }

    /// A commit whose tasks are dropped, and those of recovery with them.
    async fn dies(&self, polls: usize) -> Checked<Died> {
        let mortal = Arc::new(Mortal::new(Arc::new(TokioEnv::current()) as Arc<dyn Env>, usize::MAX));
        let manager = self.builder().env(mortal.clone()).build().await.map_err(|error| error.to_string())?;
        let tx = self.written(&manager).await?;
        self.arm();
        mortal.set(polls);
        let answer = within("the answer of a commit", tx.commit()).await?;
        let dead = mortal.is_dead();
        // What goes on has tasks again; those that were dropped don't come back.
        mortal.set(usize::MAX);
        let expected = dead || self.fault.is_some() || answer.is_ok();
        ensure(expected, || format!("nothing failed or was dropped, and the answer is {answer:?}"))?;
        let outcome = told(&answer);
        if !dead {
            self.is_known(outcome)?;
        }
        Ok(Died { manager, outcome, dead })
    }

    async fn shutdown(&self, polls: usize) -> Checked<(Outcome, bool)> {
        let manager = self.start().await?;
        let tx = self.written(&manager).await?;
        let commit = tx.commit();
        let first = eager(polls, manager.shutdown(LONG)).await;
        let outcome = told(&within("the answer of a commit", commit).await?);
        ensure(outcome == Outcome::Committed, || format!("a commit that is drained ended {outcome:?}"))?;
        if let Some(first) = &first {
            ensure(first.is_ok(), || format!("shutdown: {first:?}"))?;
        } else if polls > 0 {
            let late = manager.begin();
            let refused = late.join(&self.stores[0]).await.is_err();
            ensure(refused, || "a manager that is shutting down takes new work".to_owned())?;
        }
        let again = within("a second shutdown", manager.shutdown(LONG)).await?;
        ensure(again.is_ok(), || format!("a second shutdown: {again:?}"))?;
        Ok((outcome, first.is_some()))
    }

    /// Nothing fails any more, and what was late is there.
    fn heal(&self) {
        if let Some((store, call, _)) = &self.fault {
            self.stores[*store].heal(*call);
        }
        for store in &self.stores {
            store.land();
        }
    }

    /// Nothing stays in doubt, the rows are as the outcome says, and what comes later works.
    async fn agrees(&self, manager: &TransactionManager, outcome: Outcome) -> Checked {
        self.settles(manager).await?;
        self.all_or_none(ROW, outcome)?;
        // Recovery again is the same as once.
        for _ in 0..2 {
            manager.recover().await;
        }
        self.all_or_none(ROW, outcome)?;
        self.works(manager).await
    }

    async fn settles(&self, manager: &TransactionManager) -> Checked {
        self.heal();
        // What is detached ends, or is left to recovery.
        tokio::time::sleep(Duration::from_secs(30)).await;
        let mut last = String::new();
        for _ in 0..50 {
            let doubts = manager.recover().await;
            let prepared: Vec<_> = self.stores.iter().flat_map(MemoryStore::prepared).collect();
            let unfinished = self.world.disk.unfinished();
            if doubts.is_empty() && prepared.is_empty() && unfinished.is_empty() {
                return Ok(());
            }
            last = format!("{doubts:?}, prepared {prepared:?}, unfinished {unfinished:?}");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        Err(format!("it stays in doubt: {last}"))
    }

    /// Another transaction commits, and nothing keeps the manager from its end.
    async fn works(&self, manager: &TransactionManager) -> Checked {
        self.settles(manager).await?;
        let tx = manager.begin();
        self.write(&tx, LATER).await?;
        let later = within("a later commit", tx.commit()).await?;
        ensure(later.is_ok(), || format!("a later commit: {later:?}"))?;
        self.all_or_none(LATER, Outcome::Committed)?;
        let end = within("the shutdown", manager.shutdown(Duration::from_secs(20))).await?;
        ensure(end.is_ok(), || format!("something keeps the manager from its end: {end:?}"))
    }

    /// Nobody may know it only where no answer came to a commit that decides.
    fn is_known(&self, outcome: Outcome) -> Checked {
        use {Call::CommitCarrying, Call::CommitOnePhase};
        let unanswered = matches!(
            self.fault,
            Some((_, CommitOnePhase | CommitCarrying, Fault::Lost | Fault::LostDone | Fault::Panic))
        );
        let known = outcome != Outcome::Unknown || unanswered;
        ensure(known, || "the outcome is unknown, and every commit that decides was answered".to_owned())
    }

    fn all_or_none(&self, key: &str, outcome: Outcome) -> Checked {
        let there: Vec<bool> = self.stores.iter().map(|store| store.keys().iter().any(|found| found == key)).collect();
        let as_told = match outcome {
            Outcome::Committed => there.iter().all(|&there| there),
            Outcome::Aborted => !there.contains(&true),
            Outcome::Unknown => there.iter().all(|&one| one == there[0]),
        };
        ensure(as_told, || format!("outcome {outcome:?}, and {key:?} is there: {there:?}"))
    }
}

/// How a transaction ends, when it does.
fn end_of(tx: &Transaction) -> impl Future<Output = Checked<Outcome>> + use<> {
    let (ended, end) = tokio::sync::oneshot::channel();
    tx.after_end(move |outcome| {
        let _ = ended.send(outcome);
    });
    async move { end.await.map_err(|_| "the transaction was forgotten without an end".to_owned()) }
}

fn told<T>(answer: &Result<T, CommitError>) -> Outcome {
    answer.as_ref().map_or_else(told_error, |_| Outcome::Committed)
}

fn told_error(error: &CommitError) -> Outcome {
    match error {
        CommitError::Aborted { .. } => Outcome::Aborted,
        _ => Outcome::Unknown,
    }
}

async fn within<F: Future>(what: &str, future: F) -> Checked<F::Output> {
    tokio::time::timeout(LONG, future).await.map_err(|_| format!("{what} did not come within {LONG:?}"))
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(why()) }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a panic: {}", text.unwrap_or("without a text"))
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}
