//! A store's server: sessions, locks, prepared branches, and what is committed. Each request happens at once, when its message arrives.
//!
//! What is durable survives its crash: prepared branches and what is committed; sessions and what they have not prepared don't. Where it replicates, a
//! prepared branch is listed at once, and durable when it is acknowledged.
//!
//! Must not know messages, adapters or managers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use unanimous::{
    BranchId, Capability, DeciderId, Decision, DecisionRecord, Known, Owner, SavepointId, StoreId, TransactionId,
};

use super::coverage::Path;
use super::executor::{Life, lock};
use super::net::Line;
use super::plan::StorePlan;
use super::rows::Rows;
use super::world::World;

pub(super) type Key = u8;

pub(super) struct Server {
    pub(super) index: usize,
    pub(super) name: &'static str,
    pub(super) capability: Capability,
    pub(super) fences: bool,
    pub(super) two_steps: bool,
    /// Whether a replica confirms what it writes, some time later.
    replicates: bool,
    identity: StoreId,
    state: Mutex<State>,
}

struct State {
    up: bool,
    /// How often it was started: a connection belongs to one of them.
    boot: u32,
    next_session: u64,
    sessions: BTreeMap<u64, Session>,
    locks: BTreeMap<Key, TransactionId>,
    durable: Durable,
    backup: Option<Durable>,
    /// How much it has written, in the order of its log, and how much of that its replica has confirmed.
    written: u64,
    confirmed: u64,
    /// Branches that are listed, by the place of their prepare.
    unconfirmed: BTreeMap<u64, BranchId>,
}

struct Session {
    transaction: TransactionId,
    keys: Vec<Key>,
    saved: Vec<(SavepointId, usize)>,
    life: Arc<Life>,
    line: Arc<Line>,
}

#[derive(Clone, Default)]
struct Durable {
    prepared: BTreeMap<BranchId, Vec<Key>>,
    committed: BTreeMap<TransactionId, Vec<Key>>,
    /// How what was prepared has ended, as a server tells it for a transaction's number.
    ended: BTreeMap<TransactionId, Decision>,
    rows: Rows,
}

#[derive(Clone, Debug)]
pub(super) enum Request {
    Begin {
        transaction: TransactionId,
    },
    Write {
        session: u64,
        key: Key,
    },
    Savepoint {
        session: u64,
        id: SavepointId,
    },
    RollbackTo {
        session: u64,
        id: SavepointId,
    },
    Prepare {
        session: u64,
        id: BranchId,
    },
    CommitOne {
        session: u64,
    },
    CommitCarrying {
        session: u64,
        record: DecisionRecord,
    },
    Close {
        session: u64,
    },
    /// From elsewhere: the session is gone when this is answered.
    Terminate {
        session: u64,
    },
    CommitPrepared {
        id: BranchId,
    },
    RollbackPrepared {
        id: BranchId,
    },
    List,
    /// The same, and a write behind it.
    ListDurably,
    Identity,
    /// How a prepared transaction ended.
    Status {
        transaction: TransactionId,
    },
    Decision {
        transaction: TransactionId,
        owner: Owner,
    },
    Unfinished {
        owner: Owner,
    },
    Forget {
        transaction: TransactionId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Response {
    Done,
    Began(u64),
    /// No such session.
    Gone,
    /// No such prepared branch.
    Absent,
    Conflict,
    Refused,
    Listed(Vec<BranchId>),
    Identity(StoreId),
    Status(Option<Decision>),
    Known(Known),
    Records(Vec<DecisionRecord>),
}

impl Server {
    pub(super) fn new(index: usize, plan: &StorePlan, replicates: bool) -> Arc<Self> {
        let state = State {
            up: true,
            boot: 1,
            next_session: 1,
            sessions: BTreeMap::new(),
            locks: BTreeMap::new(),
            durable: Durable::default(),
            backup: None,
            written: 0,
            confirmed: 0,
            unconfirmed: BTreeMap::new(),
        };
        Arc::new(Self {
            index,
            name: plan.name,
            capability: plan.capability,
            fences: plan.fences,
            two_steps: plan.two_steps,
            replicates,
            identity: format!("store-{}", plan.name).parse().expect("the names of the plan are letters"),
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The run of the server that can be reached now.
    pub(super) fn boot(&self) -> Option<u32> {
        let state = self.state();
        state.up.then_some(state.boot)
    }

    /// It fails, and loses the last part of what its replica has not confirmed.
    pub(super) fn stop(&self, world: &World) {
        let mut state = self.state();
        state.up = false;
        state.sessions.clear();
        if state.confirmed < state.written {
            let kept = world.between(state.confirmed, state.written);
            for id in state.unconfirmed.split_off(&(kept + 1)).into_values() {
                world.saw(Path::LostUnconfirmed);
                world.note(format_args!("{} loses {id}, which no replica has confirmed", self.name));
                state.durable.prepared.remove(&id);
                if let Some(at) = lock(&world.ledger).at(id.transaction, self.index) {
                    at.prepared = false;
                }
            }
            state.confirm_all();
        }
        state.lock_again();
    }

    /// The place of what this request has just written and must not be answered before the replica confirms it.
    pub(super) fn place_of(&self, request: &Request, response: &Response) -> Option<u64> {
        let writes = match (request, response) {
            (Request::Prepare { .. }, Response::Done) | (Request::ListDurably, _) => self.replicates,
            _ => false,
        };
        writes.then(|| self.state().written)
    }

    /// The replica has everything up to this place.
    pub(super) fn confirm(&self, place: u64) {
        let mut state = self.state();
        state.confirmed = state.confirmed.max(place);
        state.unconfirmed = state.unconfirmed.split_off(&(place + 1));
    }

    pub(super) fn start(&self) {
        let mut state = self.state();
        if !state.up {
            state.up = true;
            state.boot += 1;
        }
    }

    /// Keeps what is durable now, to be restored from later.
    pub(super) fn back_up(&self) {
        let mut state = self.state();
        state.backup = Some(state.durable.clone());
    }

    /// Goes back to the backup; what came after it is lost. The server must be down.
    pub(super) fn restore(&self, world: &World) -> bool {
        let mut state = self.state();
        let Some(backup) = state.backup.clone() else { return false };
        let now = std::mem::replace(&mut state.durable, backup);
        state.lock_again();
        let mut ledger = lock(&world.ledger);
        let lost = |id: &TransactionId, state: &State| {
            !state.durable.committed.contains_key(id)
                && !state.durable.prepared.keys().any(|branch| branch.transaction == *id)
        };
        let prepared = now.prepared.keys().map(|branch| branch.transaction);
        for id in now.committed.keys().copied().chain(prepared) {
            if let Some(at) = ledger.at(id, self.index) {
                at.lost |= lost(&id, &state);
                at.committed &= state.durable.committed.contains_key(&id);
                at.prepared = false;
            }
        }
        for branch in state.durable.prepared.keys() {
            if let Some(at) = ledger.at(branch.transaction, self.index) {
                at.prepared = true;
                if !now.prepared.contains_key(branch) {
                    at.came_back = true;
                    at.operator = None;
                    world.saw(Path::CameBack);
                }
            }
        }
        true
    }

    pub(super) fn prepared(&self) -> Vec<BranchId> {
        self.state().durable.prepared.keys().cloned().collect()
    }

    /// The sessions of a life, with the lines to them.
    pub(super) fn sessions_of(&self, life: &Arc<Life>) -> Vec<(u64, Arc<Line>)> {
        let state = self.state();
        let of_it = state.sessions.iter().filter(|(_, session)| Arc::ptr_eq(&session.life, life));
        of_it.map(|(id, session)| (*id, session.line.clone())).collect()
    }

    /// What is locked, and by whom.
    pub(super) fn locks(&self) -> BTreeMap<Key, TransactionId> {
        self.state().locks.clone()
    }

    /// An operator finishes a branch by hand.
    pub(super) fn by_hand(&self, world: &World, id: &BranchId, decision: Decision) -> bool {
        let mut state = self.state();
        let Some(keys) = state.durable.prepared.remove(id) else { return false };
        state.end_prepared(self, world, id, keys, decision);
        if let Some(at) = lock(&world.ledger).at(id.transaction, self.index) {
            at.operator = Some(decision);
            // Counted are the managers' own.
            at.commits -= u32::from(decision == Decision::Commit && at.commits > 0);
        }
        true
    }

    /// What a request does and answers.
    pub(super) fn execute(&self, world: &World, life: &Arc<Life>, line: &Arc<Line>, request: &Request) -> Response {
        let response = self.answer(world, life, line, request);
        let (name, process, number) = (self.name, life.process, life.number);
        world.note(format_args!("{name} < {process}.{number} {request:?}: {response:?}"));
        response
    }

    fn answer(&self, world: &World, life: &Arc<Life>, line: &Arc<Line>, request: &Request) -> Response {
        let state = &mut *self.state();
        match request {
            Request::Begin { transaction } => {
                let id = state.next_session;
                state.next_session += 1;
                let session = Session {
                    transaction: *transaction,
                    keys: Vec::new(),
                    saved: Vec::new(),
                    life: life.clone(),
                    line: line.clone(),
                };
                state.sessions.insert(id, session);
                Response::Began(id)
            }
            Request::Write { session, key } => state.write(world, *session, *key),
            Request::Savepoint { session, id } => match state.sessions.get_mut(session) {
                Some(session) => {
                    session.saved.push((*id, session.keys.len()));
                    Response::Done
                }
                None => Response::Gone,
            },
            Request::RollbackTo { session, id } => state.rollback_to(*session, *id),
            Request::Prepare { session, id } => state.prepare(self, world, life, *session, id),
            Request::CommitOne { session } => match state.sessions.remove(session) {
                Some(session) => {
                    if self.capability == Capability::OnePhase {
                        world.saw(Path::ByLastResource);
                    }
                    world.saw(Path::InOnePhase);
                    state.commit(self, world, session.transaction, session.keys);
                    Response::Done
                }
                None => Response::Gone,
            },
            Request::CommitCarrying { session, record } => {
                let Some(session) = state.sessions.remove(session) else { return Response::Gone };
                if state.durable.rows.carry(record) {
                    world.saw(Path::ByCarrier);
                    state.commit(self, world, session.transaction, session.keys);
                    Response::Done
                } else {
                    world.saw(Path::LateCarrier);
                    state.unlock(session.transaction, &session.keys);
                    Response::Refused
                }
            }
            Request::Close { session } | Request::Terminate { session } => match state.sessions.remove(session) {
                Some(session) => {
                    state.unlock(session.transaction, &session.keys);
                    Response::Done
                }
                None => Response::Gone,
            },
            Request::CommitPrepared { id } => self.finish(state, world, life, id, Decision::Commit),
            Request::RollbackPrepared { id } => self.finish(state, world, life, id, Decision::Abort),
            Request::ListDurably => {
                world.saw(Path::ListedDurably);
                state.written += 1;
                Response::Listed(state.durable.prepared.keys().cloned().collect())
            }
            Request::List => Response::Listed(state.durable.prepared.keys().cloned().collect()),
            Request::Identity => Response::Identity(self.identity.clone()),
            Request::Status { transaction } => Response::Status(state.durable.ended.get(transaction).copied()),
            Request::Decision { transaction, owner } => {
                let (known, fenced) = state.durable.rows.ask(*transaction, *owner);
                if fenced {
                    world.saw(Path::Fence);
                }
                Response::Known(known)
            }
            Request::Unfinished { owner } => Response::Records(state.durable.rows.unfinished(*owner)),
            Request::Forget { transaction } => {
                state.durable.rows.finish(*transaction, world.now(), world.plan.horizon);
                Response::Done
            }
        }
    }

    fn finish(
        &self,
        state: &mut State,
        world: &World,
        life: &Arc<Life>,
        id: &BranchId,
        decision: Decision,
    ) -> Response {
        let Some(keys) = state.durable.prepared.remove(id) else { return Response::Absent };
        let owner = lock(&world.ledger).entry(id.transaction).map(|entry| entry.process);
        if owner.is_some_and(|owner| owner != life.process) {
            world.violation(format!("the coordinator {} finished {id}, which is another's", life.process));
        }
        state.end_prepared(self, world, id, keys, decision);
        if let (Decision::Commit, DeciderId::Log | DeciderId::Together(_)) = (decision, &id.decider) {
            world.saw(if id.decider == DeciderId::Log { Path::ByLog } else { Path::Early });
            if let Some(entry) = lock(&world.ledger).entry(id.transaction) {
                // One that writes alone may prepare too, and is decided by nobody but itself.
                let together = entry.wrote.as_ref().is_some_and(|wrote| wrote.len() > 1 && wrote.contains(&self.index));
                entry.by_log |= together;
            }
        }
        if decision == Decision::Abort
            && let Some(at) = lock(&world.ledger).at(id.transaction, self.index)
        {
            at.rolled_back = true;
        }
        Response::Done
    }
}

impl State {
    fn lock_again(&mut self) {
        self.locks.clear();
        let held = self.durable.prepared.iter().flat_map(|(id, keys)| keys.iter().map(|key| (*key, id.transaction)));
        self.locks.extend(held);
        for session in self.sessions.values() {
            self.locks.extend(session.keys.iter().map(|key| (*key, session.transaction)));
        }
    }

    fn unlock(&mut self, transaction: TransactionId, keys: &[Key]) {
        for key in keys {
            if self.locks.get(key) == Some(&transaction) {
                self.locks.remove(key);
            }
        }
    }

    fn write(&mut self, world: &World, session: u64, key: Key) -> Response {
        let Some(session) = self.sessions.get_mut(&session) else { return Response::Gone };
        let holder = *self.locks.entry(key).or_insert(session.transaction);
        if holder != session.transaction {
            world.saw(Path::Conflict);
            return Response::Conflict;
        }
        session.keys.push(key);
        Response::Done
    }

    fn rollback_to(&mut self, session: u64, id: SavepointId) -> Response {
        let Some(open) = self.sessions.get_mut(&session) else { return Response::Gone };
        let Some(place) = open.saved.iter().position(|(saved, _)| *saved == id) else { return Response::Refused };
        let length = open.saved[place].1;
        open.saved.truncate(place + 1);
        open.keys.truncate(length);
        self.lock_again();
        Response::Done
    }

    fn prepare(&mut self, server: &Server, world: &World, life: &Life, session: u64, id: &BranchId) -> Response {
        let Some(session) = self.sessions.remove(&session) else { return Response::Gone };
        if world.fault(world.plan.refuse) {
            world.saw(Path::RefusedVote);
            self.unlock(session.transaction, &session.keys);
            return if world.chance(500) { Response::Refused } else { Response::Conflict };
        }
        if self.durable.prepared.insert(id.clone(), session.keys).is_some() {
            world.violation(format!("the id {id} was used twice in {}", server.name));
        }
        if self.durable.ended.contains_key(&id.transaction) {
            world.violation(format!("the id {id} was used again in {}", server.name));
        }
        if server.replicates {
            self.written += 1;
            self.unconfirmed.insert(self.written, id.clone());
        }
        if life.is_dead() {
            world.saw(Path::LatePrepare);
        }
        if let Some(at) = lock(&world.ledger).at(id.transaction, server.index) {
            at.prepared = true;
        }
        Response::Done
    }

    fn confirm_all(&mut self) {
        self.confirmed = self.written;
        self.unconfirmed.clear();
    }

    fn commit(&mut self, server: &Server, world: &World, transaction: TransactionId, keys: Vec<Key>) {
        self.unlock(transaction, &keys);
        if keys.is_empty() {
            return;
        }
        self.confirm_all();
        self.durable.committed.insert(transaction, keys);
        if let Some(at) = lock(&world.ledger).at(transaction, server.index) {
            at.committed = true;
            at.prepared = false;
            at.commits += 1;
        }
    }

    fn end_prepared(&mut self, server: &Server, world: &World, id: &BranchId, keys: Vec<Key>, decision: Decision) {
        self.durable.ended.insert(id.transaction, decision);
        // An end is durable at once, and so is what was written before it.
        self.confirm_all();
        match decision {
            Decision::Commit => self.commit(server, world, id.transaction, keys),
            Decision::Abort => self.unlock(id.transaction, &keys),
        }
        if let Some(at) = lock(&world.ledger).at(id.transaction, server.index) {
            at.prepared = false;
        }
    }
}

/// For who asks how long something took.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(20);
