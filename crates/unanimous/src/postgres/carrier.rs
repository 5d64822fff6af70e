//! What a database does as the decider of transactions whose work it committed: known incarnations, questions, and what becomes of old rows.
//!
//! Must not know branches.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use unanimous_core::{Capability, DecisionRecord, HoldReason, Known, Owner, TransactionId};

use super::control::{Control, ask, rows};
use super::error::PostgresError;
use super::rows::{self, By, Decided, Question, UNGUARDED};
use super::schema;
use super::session::row;
use super::sql::literal;
use super::store::Store;
use crate::env::{Env, TokioEnv};
use crate::sync::lock;

/// How long finished decisions wait for others, to be marked with them.
const FLUSH_WAIT: Duration = Duration::from_millis(200);

/// How many are marked in one transaction at most.
const AT_ONCE: usize = 500;

/// What a store knows of its decision rows.
pub(super) struct Decisions {
    pub(super) horizon: Duration,
    /// Whose branches it may begin: their incarnations are in the tables.
    registered: tokio::sync::Mutex<BTreeSet<Owner>>,
    /// Whose rows may be let go.
    owner: Mutex<Option<Owner>>,
    /// Every branch is confirmed, and the rows don't say so yet. Only in memory: a crash costs one more listing.
    finished: Mutex<BTreeSet<TransactionId>>,
    /// A task will mark them.
    flushing: AtomicBool,
    env: Arc<dyn Env>,
}

impl Decisions {
    pub(super) fn new(horizon: Duration) -> Self {
        Self {
            horizon,
            registered: tokio::sync::Mutex::default(),
            owner: Mutex::default(),
            finished: Mutex::default(),
            flushing: AtomicBool::new(false),
            env: TokioEnv::shared(),
        }
    }
}

impl Store {
    /// Makes an incarnation known that may decide here, before the first of its branches begins.
    pub(super) async fn register(&self, owner: Owner) -> Result<(), PostgresError> {
        let mut registered = self.decisions.registered.lock().await;
        if registered.contains(&owner) {
            return Ok(());
        }
        schema::ensure_decisions(&self.control).await?;
        register(&self.control, owner, self.decisions.env.wall_clock(), self.lock_timeout).await?;
        registered.insert(owner);
        Ok(())
    }

    /// What the rows say of a transaction. Also where the store is not a carrier (any more): it may have been one.
    pub(super) async fn decision(&self, transaction: TransactionId, owner: Owner) -> Result<Known, PostgresError> {
        if transaction.log != owner.log {
            return Ok(Known::Hold(HoldReason::ForeignLog));
        }
        let (its, present) = (transaction.incarnation, owner.incarnation);
        if its.counter > present.counter || (its.counter == present.counter && its.nonce != present.nonce) {
            return Ok(Known::Hold(HoldReason::ForeignIncarnation));
        }
        if its == present {
            // Where it is not known yet, nothing of it can have been decided here.
            self.register(owner).await?;
        }
        lock(&self.decisions.owner).replace(owner);
        let now = self.decisions.env.wall_clock();
        Ok(question(&self.control, By::Carrier, transaction, now, self.lock_timeout, UNGUARDED).await?.known)
    }

    /// What the row of a transaction says, durably; nothing is written where there is none.
    pub(super) async fn decided(&self, transaction: TransactionId) -> Result<Option<Known>, PostgresError> {
        match decided(&self.control, transaction, self.lock_timeout).await {
            // Without the right to the tables it never was a carrier.
            Err(PostgresError::NoSchema(_)) if self.capability != Capability::Carrier => Ok(None),
            decided => decided,
        }
    }

    /// Whether a transaction has a commit row. Only a look.
    pub(super) async fn has_commit_row(&self, transaction: TransactionId) -> Result<bool, PostgresError> {
        let session = self.control.session().await?;
        let id = literal(&transaction.to_string());
        let query = format!("SELECT outcome FROM unanimous.decision WHERE transaction_id = {id}");
        let answer = ask(&session, "reading the decision row", &rows::look(&query, self.lock_timeout)).await?;
        self.control.give_back(session);
        Ok(row(&answer).and_then(|row| row.get(0)) == Some("commit"))
    }

    /// The transactions of `owner`'s log that committed here and are not known to be finished.
    pub(super) async fn unfinished(self: &Arc<Self>, owner: Owner) -> Result<Vec<DecisionRecord>, PostgresError> {
        lock(&self.decisions.owner).replace(owner);
        self.flush_soon();
        let carries = self.capability == Capability::Carrier;
        let listed = unfinished(&self.control, By::Carrier, owner, self.lock_timeout).await;
        let mut listed = match listed {
            // Without the tables, or the right to them, it never was a carrier.
            Err(PostgresError::NoSchema(_)) if !carries => Vec::new(),
            listed => listed?,
        };
        let finished = lock(&self.decisions.finished);
        listed.retain(|record| !finished.contains(&record.transaction));
        Ok(listed)
    }

    /// Every branch of the transaction is confirmed. Marked in the background, with others.
    pub(super) fn forget(self: &Arc<Self>, transaction: TransactionId) {
        lock(&self.decisions.finished).insert(transaction);
        self.flush_soon();
    }

    pub(super) fn flush_soon(self: &Arc<Self>) {
        let decisions = &self.decisions;
        if lock(&decisions.finished).is_empty() || decisions.flushing.swap(true, Ordering::AcqRel) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            decisions.flushing.store(false, Ordering::Release);
            return;
        };
        let store = self.clone();
        drop(runtime.spawn(async move {
            // Also where the runtime ends in between.
            let _flushing = Flushing(&store.decisions.flushing);
            tokio::time::sleep(FLUSH_WAIT).await;
            if let Err(error) = store.flush().await {
                tracing::debug!(
                    store = store.name,
                    error = &error as &(dyn std::error::Error + 'static),
                    "finished decisions were not marked; the next pass of recovery tries again"
                );
            }
        }));
    }

    async fn flush(&self) -> Result<(), PostgresError> {
        let Decisions { horizon, finished, owner, env, .. } = &self.decisions;
        loop {
            let some: Vec<_> = lock(finished).iter().copied().take(AT_ONCE).collect();
            if some.is_empty() {
                return Ok(());
            }
            let owner = *lock(owner);
            finish(&self.control, By::Carrier, &some, owner, env.wall_clock(), *horizon, self.lock_timeout).await?;
            let mut finished = lock(finished);
            for transaction in &some {
                finished.remove(transaction);
            }
        }
    }
}

struct Flushing<'a>(&'a AtomicBool);

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Makes an incarnation known, durably, and with this server.
async fn register(control: &Control, owner: Owner, now: u64, lock_timeout: Duration) -> Result<(), PostgresError> {
    let server = control.server().await?;
    let sql = rows::register(owner, &server, now, lock_timeout);
    let answer = control.forced("registering a run of the decision log", &sql).await.map_err(schema::may_not)?;
    let found = row(&answer).and_then(|row| row.get("server")).unwrap_or_default();
    if found != server {
        return Err(PostgresError::Promoted { expected: found.to_owned(), found: server });
    }
    Ok(())
}

/// What the rows say, and whether the asker could presume.
pub(super) struct Answer {
    pub(super) known: Known,
    pub(super) guarded: bool,
}

/// Asks the rows about a transaction: see [`rows::ask`].
pub(super) async fn question(
    control: &Control,
    by: By,
    transaction: TransactionId,
    now: u64,
    lock_timeout: Duration,
    guard: &str,
) -> Result<Answer, PostgresError> {
    let server = control.server().await?;
    let sql = rows::ask(&Question { by, transaction, server: &server, now, lock_timeout, guard });
    let answer = control.forced("asking for a decision", &sql).await.map_err(schema::may_not)?;
    let says = |name: &str| rows(&answer).any(|row| matches!(row.try_get(name), Ok(Some("t"))));
    let known = match rows::read(rows(&answer)).pop() {
        Some(found) => match found.decided? {
            Decided::Commit(record) => Known::Commit(record),
            Decided::Abort => Known::Abort,
        },
        None if says("beyond") => Known::Hold(HoldReason::BeyondHorizon),
        // Where the run is known, only the guard has kept the fence from being written.
        None => Known::Hold(HoldReason::ForeignIncarnation),
    };
    Ok(Answer { known, guarded: says("guarded") })
}

/// What the row of a transaction says, whichever log's it is, durably. Without one nothing is written and nothing follows.
pub(super) async fn decided(
    control: &Control,
    transaction: TransactionId,
    lock_timeout: Duration,
) -> Result<Option<Known>, PostgresError> {
    let query = rows::select(&format!("d.transaction_id = {}", literal(&transaction.to_string())));
    let session = control.session().await?;
    let mut found = false;
    if schema::has(&session, "decision").await? {
        let look = rows::look(&query, lock_timeout);
        let answer = ask(&session, "looking for a decision row", &look).await.map_err(schema::may_not)?;
        found = rows(&answer).next().is_some();
    }
    control.give_back(session);
    if !found {
        return Ok(None);
    }
    let forced = rows::force(&query, lock_timeout);
    let answer = control.forced("reading a decision row", &forced).await.map_err(schema::may_not)?;
    let Some(found) = rows::read(rows(&answer)).pop() else { return Ok(None) };
    Ok(Some(match found.decided? {
        Decided::Commit(record) => Known::Commit(record),
        Decided::Abort => Known::Abort,
    }))
}

/// The decisions of a log that are not known to be finished, durably. A row that can't be read stays, and is reported each time.
pub(super) async fn unfinished(
    control: &Control,
    by: By,
    owner: Owner,
    lock_timeout: Duration,
) -> Result<Vec<DecisionRecord>, PostgresError> {
    let query = rows::unfinished(by, owner.log);
    // A look without a write first: mostly there is nothing, and then nothing needs to be forced.
    let session = control.session().await?;
    if !schema::has(&session, "decision").await? {
        control.give_back(session);
        return Ok(Vec::new());
    }
    let look = rows::look(&query, lock_timeout);
    let answer = ask(&session, "listing unfinished decisions", &look).await.map_err(schema::may_not)?;
    control.give_back(session);
    if rows(&answer).next().is_none() {
        return Ok(Vec::new());
    }
    let forced = rows::force(&query, lock_timeout);
    let answer = control.forced("listing unfinished decisions", &forced).await.map_err(schema::may_not)?;
    let mut records = Vec::new();
    for found in rows::read(rows(&answer)) {
        match found.decided {
            Ok(Decided::Commit(record)) if record.transaction.log == owner.log => records.push(record),
            Ok(_) => tracing::error!(transaction = found.id, "the decision row's id and its log differ"),
            Err(error) => tracing::error!(%error, "one decision can't be finished; the others are"),
        }
    }
    Ok(records)
}

/// Marks decisions as finished, and lets go what is past the horizon. Not forced.
pub(super) async fn finish(
    control: &Control,
    by: By,
    finished: &[TransactionId],
    owner: Option<Owner>,
    now: u64,
    horizon: Duration,
    lock_timeout: Duration,
) -> Result<(), PostgresError> {
    let session = control.session().await?;
    let sql = rows::finish(by, finished, owner, now, horizon, lock_timeout);
    ask(&session, "marking decisions as finished", &sql).await?;
    control.give_back(session);
    Ok(())
}
