//! The task that writes a node's decisions: one transaction for all that wait, repeated until it is known what became of them.
//!
//! A try whose answer is lost (a connection that breaks, a warning that replicas have not confirmed it) is made again: it inserts what is
//! not there yet, while the node is still this process's, writes again what is there, and reads. So each decision ends as durable
//! or as certainly not written, whenever the server can be reached again; nothing is concluded from time that passes.
//!
//! Must not know transactions, nor how a node is opened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use unanimous_core::{DecisionRecord, FailureKind, TransactionId};

use super::branch::Backend;
use super::carrier::finish;
use super::control::{Control, ask, rows};
use super::error::PostgresError;
use super::node::{Node, backend};
use super::rows::{self, By, Decided};
use super::session::Session;
use crate::env::Env;
use crate::log::{Answer, LogError};
use crate::sync::lock;

/// How many decisions one transaction takes at most.
const AT_ONCE: usize = 256;

/// How long finished decisions wait for others, to be marked with them.
const FLUSH_WAIT: Duration = Duration::from_millis(500);

/// The wait between two tries, doubled from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LAST_WAIT: Duration = Duration::from_secs(2);

/// How long decisions of which nothing was sent wait for a connection, before they are refused.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Open,
    /// What is queued is still written.
    Closing,
    Closed,
    /// Nothing can be decided any more: taken over, promoted, without a runtime.
    Ended(LogError),
}

struct Pending {
    record: DecisionRecord,
    /// The writer has it, and says how it ends.
    taken: bool,
    waiters: Vec<oneshot::Sender<Answer>>,
}

struct State {
    phase: Phase,
    queue: VecDeque<TransactionId>,
    /// Queued or being written.
    pending: BTreeMap<TransactionId, Pending>,
    /// Every branch is confirmed, and the rows don't say so yet.
    finished: BTreeSet<TransactionId>,
    /// The last try to connect failed.
    unreachable: Option<LogError>,
    closers: Vec<oneshot::Sender<()>>,
}

/// What the log's handles and its writer share.
pub(super) struct Shared {
    pub(super) control: Control,
    pub(super) node: Node,
    pub(super) guard: String,
    pub(super) horizon: Duration,
    pub(super) lock_timeout: Duration,
    pub(super) env: Arc<dyn Env>,
    state: Mutex<State>,
    wake: Notify,
}

impl Shared {
    pub(super) fn new(
        control: Control,
        node: Node,
        horizon: Duration,
        lock_timeout: Duration,
        env: Arc<dyn Env>,
    ) -> Self {
        let state = State {
            phase: Phase::Open,
            queue: VecDeque::new(),
            pending: BTreeMap::new(),
            finished: BTreeSet::new(),
            unreachable: None,
            closers: Vec::new(),
        };
        let guard = node.guard();
        Self { control, node, guard, horizon, lock_timeout, env, state: Mutex::new(state), wake: Notify::new() }
    }

    /// Whether anything can be asked.
    pub(super) fn usable(&self) -> Result<(), LogError> {
        match &lock(&self.state).phase {
            Phase::Open | Phase::Closing => Ok(()),
            Phase::Closed => Err(LogError::Closed),
            Phase::Ended(why) => Err(why.clone()),
        }
    }

    /// Whether new work may be begun.
    pub(super) fn ready(&self) -> Result<(), LogError> {
        let state = lock(&self.state);
        match (&state.phase, &state.unreachable) {
            (Phase::Open, None) => Ok(()),
            (Phase::Open, Some(why)) | (Phase::Ended(why), _) => Err(why.clone()),
            (Phase::Closing | Phase::Closed, _) => Err(LogError::Closed),
        }
    }

    /// Queues a decision; the receiver is told how it ends.
    pub(super) fn queue(&self, record: DecisionRecord) -> Result<oneshot::Receiver<Answer>, Answer> {
        let transaction = record.transaction;
        let mut state = lock(&self.state);
        let (sender, receiver) = oneshot::channel();
        if let Some(known) = state.pending.get_mut(&transaction) {
            if !known.record.decides_as(&record) {
                return Err(Answer::Unknown(LogError::DecidedTwice(transaction)));
            }
            known.waiters.push(sender);
            return Ok(receiver);
        }
        match &state.phase {
            Phase::Open => {}
            Phase::Closing | Phase::Closed => return Err(Answer::Refused(LogError::Closed)),
            Phase::Ended(why) => return Err(Answer::Refused(why.clone())),
        }
        if transaction.owner() != self.node.owner {
            return Err(Answer::Refused(LogError::NotOwned(transaction)));
        }
        rows::check(&record).map_err(|error| Answer::Refused(because(error)))?;
        state.queue.push_back(transaction);
        state.pending.insert(transaction, Pending { record, taken: false, waiters: vec![sender] });
        self.wake.notify_one();
        Ok(receiver)
    }

    /// Waits with those who wait for this decision, if it is pending.
    pub(super) fn wait(&self, transaction: TransactionId) -> Option<oneshot::Receiver<Answer>> {
        let mut state = lock(&self.state);
        let pending = state.pending.get_mut(&transaction)?;
        let (sender, receiver) = oneshot::channel();
        pending.waiters.push(sender);
        Some(receiver)
    }

    pub(super) fn forget(&self, transaction: TransactionId) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Open | Phase::Closing) {
            let first = state.finished.is_empty();
            state.finished.insert(transaction);
            if first {
                self.wake.notify_one();
            }
        }
    }

    pub(super) fn is_finished(&self, transaction: TransactionId) -> bool {
        lock(&self.state).finished.contains(&transaction)
    }

    /// Refuses what comes from now on; the receiver is told when the log is given up.
    pub(super) fn close(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut state = lock(&self.state);
        match state.phase {
            Phase::Open | Phase::Closing => {
                state.phase = Phase::Closing;
                state.closers.push(sender);
            }
            // Nobody holds anything; dropping the sender says so.
            Phase::Closed | Phase::Ended(_) => {}
        }
        self.wake.notify_one();
        receiver
    }

    /// Nothing is decided here any more. What the writer has not taken is refused.
    pub(super) fn end(&self, why: &LogError) {
        let mut state = lock(&self.state);
        if matches!(state.phase, Phase::Open | Phase::Closing) {
            tracing::error!(
                node = self.node.name,
                error = why as &(dyn std::error::Error + 'static),
                "the node's decision log can't be used any more"
            );
            state.phase = Phase::Ended(why.clone());
        }
        for transaction in std::mem::take(&mut state.queue) {
            if let Some(pending) = state.pending.remove(&transaction) {
                tell(pending.waiters, &Answer::Refused(why.clone()));
            }
        }
        state.finished.clear();
        self.wake.notify_one();
    }

    fn settle(&self, transaction: TransactionId, answer: &Answer) {
        if let Some(pending) = lock(&self.state).pending.remove(&transaction) {
            tell(pending.waiters, answer);
        }
    }
}

/// Who has gone meanwhile has nothing to be told.
fn tell(waiters: Vec<oneshot::Sender<Answer>>, answer: &Answer) {
    for waiter in waiters {
        let _ = waiter.send(answer.clone());
    }
}

pub(super) fn because(error: PostgresError) -> LogError {
    LogError::Database(Arc::new(error))
}

/// The writer's connection, which has the node's lock.
struct Line {
    session: Option<Session>,
    /// A session of before, where something may still run.
    lost: Option<Backend>,
}

impl Line {
    fn lose(&mut self) {
        if let Some(session) = self.session.take() {
            self.lost = Some(backend(&session));
        }
    }

    async fn session(&mut self, shared: &Shared) -> Result<&Session, PostgresError> {
        if self.session.as_ref().is_none_or(|session| session.client().is_closed()) {
            self.lose();
            let session = shared.control.session().await?;
            if let Some(lost) = &self.lost {
                // For the lock, and for not waiting for what runs there; what is right does not depend on it.
                if let Err(error) = shared.control.terminate(lost).await {
                    tracing::debug!(
                        error = &error as &(dyn std::error::Error + 'static),
                        "a lost session was not ended"
                    );
                }
                self.lost = None;
            }
            if !shared.node.try_lock(&session).await? {
                tracing::warn!(node = shared.node.name, "another process has the lock of the node's decision log");
            }
            self.session = Some(session);
        }
        Ok(self.session.as_ref().expect("just set"))
    }
}

/// Tells everybody when the task ends, also with its runtime or by a panic: nobody would otherwise.
struct Running {
    shared: Arc<Shared>,
    /// What a try was made of, and nobody knows.
    sent: Vec<DecisionRecord>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.end(&LogError::NoRuntime);
        for record in &self.sent {
            self.shared.settle(record.transaction, &Answer::Unknown(LogError::NoRuntime));
        }
        let mut state = lock(&self.shared.state);
        for pending in std::mem::take(&mut state.pending).into_values() {
            tell(pending.waiters, &Answer::Refused(LogError::NoRuntime));
        }
        state.closers.clear();
    }
}

/// Writes until the log is closed, or ended.
pub(super) async fn run(shared: Arc<Shared>, session: Session) {
    let mut line = Line { session: Some(session), lost: None };
    let mut running = Running { shared: shared.clone(), sent: Vec::new() };
    let mut flush_at = None;
    loop {
        let (batch, some_finished, unreachable) = {
            let mut state = lock(&shared.state);
            if matches!(state.phase, Phase::Ended(_)) {
                return;
            }
            let most = state.queue.len().min(AT_ONCE);
            let taken: Vec<_> = state.queue.drain(..most).collect();
            let take = |transaction| {
                let pending = state.pending.get_mut(transaction).expect("what is queued is pending");
                pending.taken = true;
                pending.record.clone()
            };
            let batch: Vec<_> = taken.iter().map(take).collect();
            (batch, !state.finished.is_empty(), state.unreachable.is_some())
        };
        if !batch.is_empty() {
            decide(&shared, &mut line, batch, &mut running.sent).await;
            continue;
        }
        let closing = matches!(lock(&shared.state).phase, Phase::Closing);
        let now = shared.env.monotonic();
        let due = some_finished.then(|| *flush_at.get_or_insert(now + FLUSH_WAIT));
        if some_finished && (closing || due.is_some_and(|at| at <= now)) {
            flush_at = None;
            let flushed = flush(&shared).await;
            if closing && flushed.is_err() {
                // They are listed once more by the next run.
                lock(&shared.state).finished.clear();
            }
            continue;
        }
        if closing {
            // The lock goes with the session, which is waited for: another process may open the log when this one says that it has closed.
            if let Some(session) = line.session.take() {
                let _ = ask(&session, "giving the node's log up", "SELECT pg_catalog.pg_advisory_unlock_all()").await;
            }
            let mut state = lock(&shared.state);
            state.phase = Phase::Closed;
            for closer in std::mem::take(&mut state.closers) {
                let _ = closer.send(());
            }
            return;
        }
        if unreachable {
            let again = line.session(&shared).await.map(drop);
            lock(&shared.state).unreachable = again.err().map(because);
        }
        let wait = match (due, unreachable) {
            (_, true) => Some(LAST_WAIT),
            (Some(at), false) => Some(at.saturating_sub(now)),
            (None, false) => None,
        };
        match wait.map(|wait| shared.env.sleep(wait)) {
            None => shared.wake.notified().await,
            Some(timer) => tokio::select! {
                biased;
                () = shared.wake.notified() => {}
                () = timer => {}
            },
        }
    }
}

/// What a try came to.
enum Tried {
    Done,
    /// It may have been written, or be written yet. The session is not used again, but where the server has answered.
    Lost {
        error: PostgresError,
        answered: bool,
    },
    /// Certainly not written by this try; worth another.
    Conflict(PostgresError),
    /// Certainly not written by this try.
    Refused(PostgresError),
    /// Only another process could go on.
    Over(PostgresError),
}

/// Writes a batch until it is known what became of each decision in it. `sent` is what a crash would leave unknown.
async fn decide(shared: &Shared, line: &mut Line, batch: Vec<DecisionRecord>, sent: &mut Vec<DecisionRecord>) {
    let mut batches = VecDeque::from([batch]);
    while let Some(batch) = batches.pop_front() {
        sent.clear();
        let begun = shared.env.monotonic();
        let mut wait = FIRST_WAIT;
        loop {
            let again = !sent.is_empty();
            let tried = match line.session(shared).await {
                Err(error) if is_over(&error) => Tried::Over(error),
                Err(error) => Tried::Conflict(error),
                Ok(session) => {
                    sent.clone_from(&batch);
                    attempt(shared, session, &batch, again).await
                }
            };
            let (error, lost) = match tried {
                Tried::Done => break,
                Tried::Over(error) => {
                    let why = because(error);
                    shared.end(&why);
                    for record in &batch {
                        let why = why.clone();
                        let answer = if again { Answer::Unknown(why) } else { Answer::Refused(why) };
                        shared.settle(record.transaction, &answer);
                    }
                    for record in std::mem::take(&mut batches).iter().flatten() {
                        shared.settle(record.transaction, &Answer::Refused(why.clone()));
                    }
                    break;
                }
                Tried::Lost { error, answered } => {
                    if !answered {
                        line.lose();
                    }
                    (error, true)
                }
                Tried::Conflict(error) => (error, again),
                Tried::Refused(error) if again => (error, true),
                Tried::Refused(_) if batch.len() > 1 => {
                    // One of them may be to blame.
                    batches.extend(batch.iter().map(|record| vec![record.clone()]));
                    break;
                }
                Tried::Refused(error) => {
                    shared.settle(batch[0].transaction, &Answer::Refused(because(error)));
                    break;
                }
            };
            tracing::warn!(
                node = shared.node.name,
                error = &error as &(dyn std::error::Error + 'static),
                "decisions are tried again"
            );
            let error = because(error);
            lock(&shared.state).unreachable = Some(error.clone());
            if !lost {
                sent.clear();
                if shared.env.monotonic().saturating_sub(begun) >= PATIENCE {
                    let answer = Answer::Refused(error);
                    batch.iter().for_each(|record| shared.settle(record.transaction, &answer));
                    break;
                }
            }
            shared.env.sleep(wait).await;
            wait = (wait * 2).min(LAST_WAIT);
        }
        sent.clear();
    }
}

/// Errors that no try can overcome.
fn is_over(error: &PostgresError) -> bool {
    matches!(error, PostgresError::OtherStore { .. } | PostgresError::OtherRole { .. } | PostgresError::Promoted { .. })
}

async fn attempt(shared: &Shared, session: &Session, batch: &[DecisionRecord], again: bool) -> Tried {
    session.take_warning();
    let sql = rows::decide(batch, shared.node.owner, &shared.guard, again, shared.lock_timeout);
    let answer = match ask(session, "writing decisions", &sql).await {
        Ok(answer) => answer,
        Err(error) => {
            let kind = error.kind();
            if kind != FailureKind::Lost && ask(session, "rolling back", "ROLLBACK").await.is_err() {
                return Tried::Lost { error, answered: false };
            }
            return match kind {
                FailureKind::Lost => Tried::Lost { error, answered: false },
                FailureKind::Conflict => Tried::Conflict(error),
                FailureKind::Refused => Tried::Refused(error),
            };
        }
    };
    if let Some(warning) = session.take_warning() {
        return Tried::Lost { error: PostgresError::NotReplicated(warning), answered: true };
    }
    lock(&shared.state).unreachable = None;
    let mut found: BTreeMap<String, _> =
        rows::read(rows(&answer)).into_iter().map(|found| (found.id, found.decided)).collect();
    let mut taken_over = false;
    for record in batch {
        let transaction = record.transaction;
        // The rows come in the order of their numbers.
        let mut record = record.clone();
        record.participants.sort_by_key(|participant| participant.number);
        let answer = match found.remove(&transaction.to_string()) {
            Some(Ok(Decided::Commit(row))) if row.decides_as(&record) => Answer::Durable,
            Some(Ok(Decided::Commit(_))) => Answer::Unknown(LogError::DecidedTwice(transaction)),
            Some(Ok(Decided::Abort)) => Answer::Refused(because(PostgresError::Fenced)),
            Some(Err(damaged)) => Answer::Unknown(because(damaged)),
            // The node's row is another's: it can't come any more.
            None => {
                taken_over = true;
                Answer::Refused(because(PostgresError::TakenOver { node: shared.node.name.clone() }))
            }
        };
        shared.settle(transaction, &answer);
    }
    if taken_over { Tried::Over(PostgresError::TakenOver { node: shared.node.name.clone() }) } else { Tried::Done }
}

/// Marks what is finished. What fails is tried with the next.
async fn flush(shared: &Shared) -> Result<(), PostgresError> {
    let some: Vec<_> = lock(&shared.state).finished.iter().copied().take(AT_ONCE).collect();
    let now = shared.env.wall_clock();
    let owner = Some(shared.node.owner);
    finish(&shared.control, By::Log, &some, owner, now, shared.horizon, shared.lock_timeout).await.inspect_err(
        |error| {
            tracing::debug!(
                node = shared.node.name,
                error = error as &(dyn std::error::Error + 'static),
                "finished decisions were not marked; they are tried again"
            );
        },
    )?;
    let mut state = lock(&shared.state);
    for transaction in &some {
        state.finished.remove(transaction);
    }
    Ok(())
}
