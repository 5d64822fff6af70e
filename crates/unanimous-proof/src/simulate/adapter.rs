//! An adapter for the simulated stores, written as docs/writing-an-adapter.md tells its author: no error code ends a branch, a lost vote is
//! fenced where the store has a fence, phase two goes over connections of its own.
//!
//! Must not know the world's faults.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use unanimous::{
    Branch, BranchContext, BranchError, BranchId, Capability, Decision, DecisionRecord, FailureKind, Known, Owner,
    ResourceManager, SavepointId, StoreError, StoreId, TransactionId, Work,
};

use super::coverage::Path;
use super::executor::lock;
use super::ledger::Volatile;
use super::net::{Line, Net, NoAnswer};
use super::server::{Key, Request, Response};

/// How long a call of the adapter waits for its answer.
const LIMIT: Duration = Duration::from_secs(3);

/// A store as one process sees it.
#[derive(Clone)]
pub(super) struct SimStore {
    net: Net,
}

impl SimStore {
    pub(super) fn new(net: Net) -> Self {
        Self { net }
    }

    pub(super) fn index(&self) -> usize {
        self.net.server.index
    }

    /// As a bug in an adapter does; without the noise of a panic that nobody expects.
    fn panic_sometimes(&self) {
        let world = &self.net.world;
        if !self.net.life.is_dead() && world.fault(world.plan.panic) {
            world.saw(Path::Panicked);
            std::panic::resume_unwind(Box::new("an adapter panics, as it was told to"));
        }
    }

    async fn ask(&self, request: Request) -> Result<Response, StoreError> {
        self.panic_sometimes();
        self.net.ask(request, LIMIT).await.map_err(StoreError::new)
    }

    /// Commits or rolls back by id; absent, it is asked for in the list. Whether it was there.
    async fn finish(&self, id: &BranchId, decision: Decision) -> Result<bool, BranchError> {
        let request = match decision {
            Decision::Commit => Request::CommitPrepared { id: id.clone() },
            Decision::Abort => Request::RollbackPrepared { id: id.clone() },
        };
        self.panic_sometimes();
        let answer = self.net.ask(request, LIMIT).await;
        self.panic_sometimes();
        match answer {
            Ok(Response::Done) => Ok(true),
            // Rule 8: this proves nothing.
            Ok(Response::Absent) => match self.net.ask(Request::List, LIMIT).await {
                Ok(Response::Listed(listed)) if !listed.contains(id) => Ok(false),
                Ok(_) => Err(BranchError::refused("the branch is listed, and could not be finished")),
                Err(error) => Err(no_answer(error)),
            },
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(no_answer(error)),
        }
    }

    /// Whether somebody finished a branch that had voted the other way.
    async fn look_for_heuristic(&self, id: &BranchId, decision: Decision) {
        let (transaction, world) = (id.transaction, &self.net.world);
        loop {
            match self.net.ask(Request::Status { transaction }, LIMIT).await {
                Ok(Response::Status(Some(ended))) if ended != decision => {
                    world.saw(Path::Heuristic);
                    world.note(format_args!("{} reports a heuristic: {id} {ended:?}", self.net.server.name));
                    if let Some(at) = lock(&world.ledger).at(transaction, self.index()) {
                        at.reported = true;
                    }
                    return;
                }
                Ok(_) => return,
                Err(_) => world.sleep(LIMIT).await,
            }
        }
    }
}

fn no_answer(error: NoAnswer) -> BranchError {
    match error {
        NoAnswer::NotSent => BranchError::refused(error),
        NoAnswer::Lost => BranchError::lost(error),
    }
}

fn unexpected(response: &Response) -> BranchError {
    BranchError::lost(format!("an answer to something else: {response:?}"))
}

impl ResourceManager for SimStore {
    type Branch = SimBranch;
    type Options = ();

    fn name(&self) -> &str {
        self.net.server.name
    }

    fn capability(&self) -> Capability {
        self.net.server.capability
    }

    async fn identity(&self) -> Result<StoreId, StoreError> {
        match self.ask(Request::Identity).await? {
            Response::Identity(identity) => Ok(identity),
            other => Err(StoreError::new(unexpected(&other))),
        }
    }

    async fn begin(&self, context: &BranchContext, (): ()) -> Result<SimBranch, BranchError> {
        let line = Arc::new(Line::default());
        let transaction = context.transaction;
        let begun = self.net.send(&line, Request::Begin { transaction }, LIMIT).await;
        match begun {
            Ok(Response::Began(session)) => Ok(SimBranch {
                store: self.clone(),
                line,
                transaction,
                session,
                state: Mutex::new(State { stage: Stage::Open, keys: 0, saved: Vec::new() }),
            }),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(BranchError::refused(error)),
        }
    }

    async fn in_doubt(&self) -> Result<Vec<BranchId>, StoreError> {
        match self.ask(Request::List).await? {
            Response::Listed(listed) => Ok(listed),
            other => Err(StoreError::new(unexpected(&other))),
        }
    }

    fn durably_in_doubt(&self) -> Option<impl Future<Output = Result<Vec<BranchId>, StoreError>> + Send> {
        (self.capability() == Capability::TwoPhase).then_some(async {
            match self.ask(Request::ListDurably).await? {
                Response::Listed(listed) => Ok(listed),
                other => Err(StoreError::new(unexpected(&other))),
            }
        })
    }

    async fn commit(&self, id: &BranchId) -> Result<(), BranchError> {
        self.finish(id, Decision::Commit).await.map(drop)
    }

    async fn rollback(&self, id: &BranchId) -> Result<(), BranchError> {
        self.finish(id, Decision::Abort).await.map(drop)
    }

    async fn decision(&self, transaction: TransactionId, owner: Owner) -> Result<Known, StoreError> {
        match self.ask(Request::Decision { transaction, owner }).await? {
            Response::Known(known) => Ok(known),
            other => Err(StoreError::new(unexpected(&other))),
        }
    }

    async fn unfinished(&self, owner: Owner) -> Result<Vec<DecisionRecord>, StoreError> {
        if self.capability() != Capability::Carrier {
            return Ok(Vec::new());
        }
        match self.ask(Request::Unfinished { owner }).await? {
            Response::Records(records) => Ok(records),
            other => Err(StoreError::new(unexpected(&other))),
        }
    }

    fn forget(&self, transaction: TransactionId) {
        self.net.tell(&Arc::default(), Request::Forget { transaction });
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// There may be a promise under this id.
    Voting(BranchId),
    Prepared(BranchId),
    /// A commit in one phase was sent.
    Committing,
    Over,
}

struct State {
    stage: Stage,
    /// How much it has written.
    keys: usize,
    saved: Vec<(SavepointId, usize)>,
}

/// A branch: a session of its store.
pub(super) struct SimBranch {
    store: SimStore,
    line: Arc<Line>,
    transaction: TransactionId,
    session: u64,
    state: Mutex<State>,
}

impl SimBranch {
    /// Writes under a lock.
    pub(super) async fn write(&self, key: Key) -> Result<(), BranchError> {
        if self.stage() != Stage::Open {
            return Err(BranchError::refused("the branch votes or has ended"));
        }
        match self.send(Request::Write { session: self.session, key }).await {
            Ok(Response::Done) => {
                lock(&self.state).keys += 1;
                Ok(())
            }
            Ok(Response::Conflict) => Err(BranchError::conflict("locked by another")),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(BranchError::lost(error)),
        }
    }

    pub(super) fn wrote(&self) -> bool {
        lock(&self.state).keys > 0
    }

    fn stage(&self) -> Stage {
        lock(&self.state).stage.clone()
    }

    fn become_(&self, stage: Stage) {
        lock(&self.state).stage = stage;
    }

    /// The connection goes; the server hears it behind what was sent before.
    fn close(&self) {
        self.store.net.tell(&self.line, Request::Close { session: self.session });
    }

    async fn send(&self, request: Request) -> Result<Response, NoAnswer> {
        self.store.net.send(&self.line, request, LIMIT).await
    }

    async fn vote(&self, id: &BranchId) -> Result<(), BranchError> {
        self.become_(Stage::Voting(id.clone()));
        self.store.panic_sometimes();
        match self.send(Request::Prepare { session: self.session, id: id.clone() }).await {
            Ok(Response::Done) => {
                self.become_(Stage::Prepared(id.clone()));
                Ok(())
            }
            // The server has ended the session with its transaction.
            Ok(Response::Refused) => {
                self.become_(Stage::Over);
                Err(BranchError::refused("a constraint failed"))
            }
            Ok(Response::Conflict) => {
                self.become_(Stage::Over);
                Err(BranchError::conflict("could not serialize"))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(BranchError::lost(error)),
        }
    }

    /// While nobody can be asked how it ends, also where the call panics; a carrier can, but it may take longer than the caller waits.
    fn may_be_unknown(&self, may: bool) {
        if let Some(entry) = lock(&self.store.net.world.ledger).entry(self.transaction) {
            entry.may_be_unknown = may;
        }
    }

    /// A commit that can't be repeated: afterwards it is over, or nobody knows.
    async fn commit_at_once(&self, request: Request) -> Result<(), BranchError> {
        self.become_(Stage::Committing);
        self.may_be_unknown(true);
        let answer = self.send(request).await;
        self.store.panic_sometimes();
        if matches!(answer, Ok(Response::Done | Response::Refused | Response::Conflict)) {
            self.may_be_unknown(false);
        }
        match answer {
            Ok(Response::Done) => {
                self.become_(Stage::Over);
                Ok(())
            }
            Ok(Response::Refused) => {
                self.become_(Stage::Over);
                Err(BranchError::refused("the transaction was fenced"))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => {
                // A connection that lost an answer is not used again, also where its branch is kept.
                self.close();
                Err(BranchError::lost(error))
            }
        }
    }
}

impl Branch for SimBranch {
    fn capability(&self) -> Capability {
        self.store.net.server.capability
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        Ok(if self.wrote() { Work::Wrote } else { Work::ReadOnly })
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        self.vote(id).await
    }

    async fn commit(&self) -> Result<(), BranchError> {
        let id = match self.stage() {
            Stage::Prepared(id) => id,
            Stage::Over => return Ok(()),
            _ => return Err(BranchError::refused("the branch has not voted")),
        };
        if !self.store.finish(&id, Decision::Commit).await? {
            self.store.look_for_heuristic(&id, Decision::Commit).await;
        }
        self.become_(Stage::Over);
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        match self.stage() {
            Stage::Over => return Ok(()),
            Stage::Open | Stage::Committing => {
                if self.send(Request::Close { session: self.session }).await.is_err() {
                    // The server notices that the connection is gone, which its drop closes.
                    return Ok(());
                }
            }
            Stage::Voting(id) => {
                if self.store.net.server.fences {
                    let fence = Request::Terminate { session: self.session };
                    self.store.net.ask(fence, LIMIT).await.map_err(no_answer)?;
                    self.store.net.world.saw(Path::Fenced);
                }
                self.store.finish(&id, Decision::Abort).await?;
                self.close();
            }
            Stage::Prepared(id) => {
                if !self.store.finish(&id, Decision::Abort).await? {
                    self.store.look_for_heuristic(&id, Decision::Abort).await;
                }
            }
        }
        self.become_(Stage::Over);
        Ok(())
    }

    async fn commit_one_phase(&self, id: &BranchId) -> Result<(), BranchError> {
        if self.store.net.server.two_steps && self.capability() == Capability::TwoPhase {
            self.may_be_unknown(true);
            let voted = self.vote(id).await;
            if voted.as_ref().map_or_else(|error| error.kind() != FailureKind::Lost, |()| true) {
                self.may_be_unknown(voted.is_ok());
            }
            voted?;
            self.commit().await.map_err(|error| error.with_kind(FailureKind::Lost))?;
            self.may_be_unknown(false);
            return Ok(());
        }
        self.commit_at_once(Request::CommitOne { session: self.session }).await
    }

    async fn commit_carrying(&self, record: &DecisionRecord) -> Result<(), BranchError> {
        self.commit_at_once(Request::CommitCarrying { session: self.session, record: record.clone() }).await
    }

    fn has_savepoints(&self) -> bool {
        true
    }

    async fn savepoint(&self, id: SavepointId) -> Result<(), BranchError> {
        match self.send(Request::Savepoint { session: self.session, id }).await {
            Ok(Response::Done) => {
                let mut state = lock(&self.state);
                let keys = state.keys;
                state.saved.push((id, keys));
                Ok(())
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(BranchError::lost(error)),
        }
    }

    async fn rollback_to(&self, id: SavepointId) -> Result<(), BranchError> {
        match self.send(Request::RollbackTo { session: self.session, id }).await {
            Ok(Response::Done) => {
                let mut state = lock(&self.state);
                if let Some(keys) = state.saved.iter().find(|(saved, _)| *saved == id).map(|(_, keys)| *keys) {
                    state.keys = keys;
                }
                Ok(())
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(BranchError::lost(error)),
        }
    }
}

impl Drop for SimBranch {
    fn drop(&mut self) {
        let over = matches!(self.stage(), Stage::Over | Stage::Prepared(_));
        if !over {
            self.close();
        }
    }
}

/// A branch that lives in its process only, such as a cache.
pub(super) struct VolatileBranch {
    pub(super) net: Net,
    pub(super) transaction: TransactionId,
}

impl VolatileBranch {
    async fn become_(&self, end: Volatile) -> Result<(), BranchError> {
        let world = &self.net.world;
        world.sleep(world.some_time(2_000)).await;
        if world.fault(100) {
            // Where it is alone, its commit can't be repeated.
            lock(&world.ledger).may_be_unknown(self.transaction);
            return Err(BranchError::refused("not now"));
        }
        if !self.net.life.is_dead()
            && let Some(entry) = lock(&world.ledger).entry(self.transaction)
        {
            entry.volatile = Some(end);
        }
        world.note(format_args!("volatile {} {end:?}", self.transaction));
        Ok(())
    }
}

impl Branch for VolatileBranch {
    async fn prepare(&self, _id: &BranchId) -> Result<(), BranchError> {
        self.net.world.saw(Path::WithVolatile);
        self.become_(Volatile::Prepared).await
    }

    async fn commit(&self) -> Result<(), BranchError> {
        self.become_(Volatile::Committed).await
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        self.become_(Volatile::RolledBack).await
    }
}
