//! Python data managers as branches of one transaction: called in the ancestors' order, their exceptions kept as they are.
//!
//! ```text
//! flush of the first   tpc_begin of all          rollback of the first   abort of those that have not voted,
//! flush of each        commit                                            then tpc_abort of all
//! prepare of each      tpc_vote                  commit of each          tpc_finish
//! ```
//!
//! The one that carries the decision has no vote: it commits when the others have voted, before the first `tpc_finish`.
//!
//! A data manager that its resource can finish after a crash is a branch. Of the others, those that follow each other are one together: nothing
//! but this process knows of them, so that between them there is nothing to decide, and the order of all calls stays the ancestors'.
//!
//! Must not know the manager, the log, or when what is called.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::call::PyCallArgs;
use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};
use unanimous::{Branch, BranchError, BranchId, Capability, DecisionRecord, FailureKind, ResourceManager, Work};

use crate::phases::Phases;
use crate::postgres::Decision;
use crate::resource::Resource;

/// Where a data manager's branch is, when it can be finished from elsewhere.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) resource: Resource,
    /// Of the id that was reserved for it.
    pub(crate) number: Option<u16>,
    /// Its commit carries the decision.
    pub(crate) carries: bool,
}

/// The data managers of one commit.
pub(crate) struct Group {
    transaction: Py<PyAny>,
    /// In their order.
    managers: Py<PyList>,
    /// Those that can be finished from elsewhere; empty where none can.
    places: Vec<Option<Place>>,
    /// Branches may vote, and commit, at the same time.
    side_by_side: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `tpc_begin` was called on all.
    begun: bool,
    /// They know that the decision is to commit.
    decided: bool,
    /// Their commits were started.
    committing: bool,
    /// They were told to give up.
    cleaned: bool,
    /// How far each one has come.
    stages: Vec<Stage>,
    /// What made the commit fail.
    failed: Option<PyErr>,
    /// What the first `tpc_finish` that failed has raised, or what ends the program.
    unfinished: Option<PyErr>,
}

#[derive(Clone, Default)]
enum Stage {
    #[default]
    Open,
    Voted,
    /// It may be prepared under this id.
    Asked(BranchId),
    Prepared(BranchId),
    /// Its data manager was told to commit and has given its connection back: what is left is its resource's.
    Told(BranchId),
    /// Nothing is left to be done with it.
    Over,
}

impl Group {
    /// `places` is as long as `managers`, or empty where none has any.
    pub(crate) fn new(
        transaction: Bound<'_, PyAny>,
        managers: Bound<'_, PyList>,
        places: Vec<Option<Place>>,
        side_by_side: bool,
    ) -> Arc<Self> {
        let state = State { stages: vec![Stage::Open; managers.len()], ..State::default() };
        Arc::new(Self {
            transaction: transaction.unbind(),
            managers: managers.unbind(),
            places,
            side_by_side,
            state: Mutex::new(state),
        })
    }

    /// Never held while Python is called: another thread may want it, and Python's lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.state().stages.len()
    }

    fn place(&self, index: usize) -> Option<&Place> {
        self.places.get(index)?.as_ref()
    }

    /// The configured resource that this one's branch is in.
    fn resource(&self, index: usize) -> Option<&Resource> {
        self.place(index).map(|place| &place.resource)
    }

    fn manager<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        self.managers.bind(py).get_item(index)
    }

    /// Its branches, in their order.
    pub(crate) fn branches(self: &Arc<Self>, py: Python<'_>) -> Vec<ManagerBranch> {
        let all = self.len();
        let branch = |members: Range<usize>| {
            let managers = if members == (0..all) {
                self.managers.clone_ref(py)
            } else {
                self.managers.bind(py).get_slice(members.start, members.end).unbind()
            };
            ManagerBranch { group: self.clone(), managers, members }
        };
        let mut branches = Vec::new();
        let mut start = 0;
        while start < all {
            let alone = self.resource(start).is_some();
            let end = (start + 1..all).find(|&index| alone || self.resource(index).is_some()).unwrap_or(all);
            branches.push(branch(start..end));
            start = end;
        }
        branches
    }

    fn call(&self, py: Python<'_>, index: usize, method: &Bound<'_, PyString>) -> PyResult<()> {
        self.manager(py, index)?.call_method1(method, (&self.transaction,)).map(drop)
    }

    /// Calls a method that a recoverable data manager may have, and need not.
    fn start<'py>(&self, py: Python<'py>, index: usize, method: &str, arguments: impl PyCallArgs<'py>) -> PyResult<()> {
        match self.manager(py, index)?.getattr_opt(method)? {
            Some(method) => method.call1(arguments).map(drop),
            None => Ok(()),
        }
    }

    fn set_stage(&self, index: usize, stage: Stage) {
        self.state().stages[index] = stage;
    }

    /// What made the commit fail; it is kept for the caller.
    fn fail(&self, error: PyErr) {
        self.state().failed.get_or_insert(error);
    }

    /// What made the commit fail, as it was raised.
    pub(crate) fn take_failed(&self) -> Option<PyErr> {
        self.state().failed.take()
    }

    /// What the first `tpc_finish` that failed has raised.
    pub(crate) fn take_unfinished(&self) -> Option<PyErr> {
        self.state().unfinished.take()
    }

    fn begin_all(&self, py: Python<'_>, phases: &Phases) -> PyResult<()> {
        if std::mem::replace(&mut self.state().begun, true) {
            return Ok(());
        }
        phases.begin(py, &self.transaction, &self.managers)
    }

    /// Lets those that want to know it know that they must commit, once and before any of them is told to: whatever comes up from here on, also an
    /// interrupt, an abort of the program's must not roll one of them back (rule 7). Nothing of Python's runs for it.
    fn decide(&self, py: Python<'_>) {
        if std::mem::replace(&mut self.state().decided, true) {
            return;
        }
        let name = intern!(py, "unanimous_decided");
        for index in 0..self.len() {
            let told = self.manager(py, index).and_then(|manager| match manager.getattr_opt(name)? {
                Some(_) => manager.setattr(name, true),
                None => Ok(()),
            });
            if let Err(error) = told {
                self.log(py, "%s can't be told that it must commit", index, error);
            }
        }
    }

    /// Tells all to give up, once: those that have not voted first. Errors are logged, and change nothing.
    pub(crate) fn clean_up(&self, py: Python<'_>) {
        if std::mem::replace(&mut self.state().cleaned, true) {
            return;
        }
        for index in 0..self.len() {
            let open = matches!(self.state().stages[index], Stage::Open | Stage::Asked(_));
            if open && let Err(error) = self.call(py, index, intern!(py, "abort")) {
                self.log(py, "Error in abort() on manager %s", index, error);
            }
        }
        for index in 0..self.len() {
            let stage = self.state().stages[index].clone();
            let (method, done) = match stage {
                Stage::Open | Stage::Voted => ("tpc_abort", self.call(py, index, intern!(py, "tpc_abort"))),
                Stage::Asked(_) | Stage::Prepared(_) => {
                    let rolled_back =
                        self.manager(py, index).and_then(|manager| manager.call_method0("rollback_branch"));
                    ("rollback_branch", rolled_back.map(drop))
                }
                Stage::Told(_) | Stage::Over => continue,
            };
            match done {
                Ok(()) => self.set_stage(index, Stage::Over),
                Err(error) => {
                    self.log(py, &format!("Error in {method}() on manager %s"), index, error);
                    if method == "tpc_abort" {
                        self.set_stage(index, Stage::Over);
                    }
                }
            }
        }
    }

    /// Nobody knows the outcome: recoverable data managers leave their branches to recovery, also when the program aborts now.
    pub(crate) fn forget(&self, py: Python<'_>) {
        for index in 0..self.places.len() {
            if self.resource(index).is_some() {
                self.forget_one(py, index);
            }
        }
    }

    fn forget_one(&self, py: Python<'_>, index: usize) {
        if let Err(error) = self.start(py, index, "forget_branch", ()) {
            self.log(py, "Error in forget_branch() on manager %s", index, error);
        }
    }

    /// To the transaction's own logger. What fails here is nobody's concern.
    fn log(&self, py: Python<'_>, message: &str, index: usize, error: PyErr) {
        let logged = || {
            let keywords = PyDict::new(py);
            keywords.set_item("exc_info", error.value(py))?;
            let log = self.transaction.bind(py).getattr("log")?;
            log.call_method("error", (message, self.manager(py, index)?), Some(&keywords)).map(drop)
        };
        if let Err(error) = logged() {
            error.write_unraisable(py, None);
        }
    }
}

/// The one data manager that a resource can finish, or several that nobody else could.
pub(crate) struct ManagerBranch {
    pub(crate) group: Arc<Group>,
    managers: Py<PyList>,
    /// Their places; not empty.
    members: Range<usize>,
}

impl ManagerBranch {
    /// Where the member that is a branch by itself is prepared.
    pub(crate) fn place(&self) -> Option<&Place> {
        self.group.place(self.members.start)
    }

    fn resource(&self) -> Option<&Resource> {
        self.group.resource(self.members.start)
    }

    fn manager<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.group.manager(py, self.members.start)
    }

    fn stage(&self) -> Stage {
        self.group.state().stages[self.members.start].clone()
    }

    /// Those behind this one that can be called side by side with it: they wait for their servers too, up to the next that is called here and
    /// may use their connections. The one that carries the decision is called by itself.
    fn neighbours(&self) -> Vec<usize> {
        let start = self.members.start;
        if !self.group.side_by_side {
            return Vec::new();
        }
        let places = (start + 1..self.group.len()).map_while(|index| Some((index, self.group.place(index)?)));
        places.filter(|(_, place)| !place.carries).map(|(index, _)| index).collect()
    }

    /// Lets this one and its neighbours vote at the same time, where there are several and their ids are known; they are asked for the answers in
    /// their order.
    fn start_prepares(&self, py: Python<'_>, id: &BranchId) -> PyResult<()> {
        // Its own is called here, which needs no thread.
        let neighbours = self.neighbours();
        if neighbours.is_empty() || matches!(self.stage(), Stage::Asked(_)) {
            return Ok(());
        }
        let number = |index| self.group.place(index).and_then(|place| place.number);
        let Some(numbers) = neighbours.iter().map(|&index| number(index)).collect::<Option<Vec<_>>>() else {
            return Ok(());
        };
        for (index, number) in neighbours.into_iter().zip(numbers) {
            let id = BranchId { number, ..id.clone() };
            self.group.set_stage(index, Stage::Asked(id.clone()));
            self.group.start(py, index, "start_prepare", (id.to_string(),))?;
        }
        Ok(())
    }

    /// The same for their commits, once for all. What can't be started is done in its turn.
    fn start_commits(&self, py: Python<'_>) {
        let neighbours = self.neighbours();
        if neighbours.is_empty() || std::mem::replace(&mut self.group.state().committing, true) {
            return;
        }
        for index in neighbours {
            if let Err(error) = self.group.start(py, index, "start_commit", ()) {
                self.group.log(py, "start_commit() of %s failed", index, error);
            }
        }
    }

    /// Whether the data manager has committed its branch. What ends a program, it does so behind the commit.
    fn commit_branch(&self, py: Python<'_>) -> bool {
        self.start_commits(py);
        let Err(error) = self.manager(py).and_then(|manager| manager.call_method0("commit_branch")) else {
            return true;
        };
        if !error.is_instance_of::<PyException>(py) {
            self.group.state().unfinished.get_or_insert(error.clone_ref(py));
        }
        let message = "commit_branch() of %s failed; its resource commits the branch";
        self.group.log(py, message, self.members.start, error);
        false
    }

    /// Commits without a vote, with a decision where it carries one. What raises that the data manager does not call refused has perhaps come behind
    /// the commit.
    fn commit_alone(&self, decision: Option<Decision>) -> Result<(), BranchError> {
        let (group, index) = (&self.group, self.members.start);
        let raised = Python::attach(|py| -> Result<(), (PyErr, bool)> {
            let manager = self.manager(py).map_err(|error| (error, true))?;
            let committed = manager.call_method1(intern!(py, "commit_alone"), (decision,));
            committed.map(drop).map_err(|error| {
                let refused = manager.getattr(intern!(py, "unanimous_refused")).and_then(|refused| refused.extract());
                // What ends a program, it does so also where the transaction turns out to have committed.
                if !error.is_instance_of::<PyException>(py) {
                    group.state().unfinished.get_or_insert(error.clone_ref(py));
                }
                (error, refused.unwrap_or(false))
            })
        });
        match raised {
            Ok(()) => group.set_stage(index, Stage::Over),
            // It is rolled back, as one that has not voted.
            Err((error, true)) => return Err(BranchError::refused(self.no(error))),
            Err((error, false)) => {
                group.set_stage(index, Stage::Over);
                return Err(BranchError::lost(self.no(error)));
            }
        }
        Ok(())
    }

    /// Keeps what was raised for the caller.
    fn no(&self, error: PyErr) -> Raised {
        let raised = Raised(error.to_string());
        self.group.fail(error);
        raised
    }
}

/// What the core is told of an exception, which itself goes to the caller.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Raised {}

impl Branch for ManagerBranch {
    fn capability(&self) -> Capability {
        match self.place() {
            Some(place) if place.carries => Capability::Carrier,
            Some(_) => Capability::TwoPhase,
            None => Capability::Volatile,
        }
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        let group = &self.group;
        let flushed = Python::attach(|py| {
            let phases = Phases::get(py)?;
            group.begin_all(py, phases)?;
            phases.flush(py, &group.transaction, &self.managers)
        });
        flushed.map_err(|error| BranchError::refused(self.no(error)))?;
        Ok(Work::Wrote)
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        let group = &self.group;
        let Some(resource) = self.resource() else {
            let voted = Python::attach(|py| {
                let phases = Phases::get(py).map_err(|error| (0, error))?;
                phases.vote(py, &group.transaction, &self.managers)
            });
            let count = voted.as_ref().map_or_else(|(count, _)| *count, |()| self.members.len());
            group.state().stages[self.members.clone()][..count].fill(Stage::Voted);
            return voted.map_err(|(_, error)| BranchError::refused(self.no(error)));
        };
        resource.note_decider(&id.decider);
        let prepared = Python::attach(|py| {
            self.start_prepares(py, id)?;
            group.set_stage(self.members.start, Stage::Asked(id.clone()));
            self.manager(py)?.call_method1("prepare_branch", (id.to_string(),)).map(drop)
        });
        // Its connection may have been lost behind the question: only the store knows whether it is prepared.
        prepared.map_err(|error| BranchError::lost(self.no(error)))?;
        group.set_stage(self.members.start, Stage::Prepared(id.clone()));
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        let group = &self.group;
        Python::attach(|py| group.decide(py));
        let (resource, id, told) = match (self.resource(), self.stage()) {
            (Some(resource), Stage::Prepared(id)) => (resource, id, false),
            (Some(resource), Stage::Told(id)) => (resource, id, true),
            _ => {
                let finished = Python::attach(|py| Phases::get(py)?.finish(py, &group.transaction, &self.managers));
                if let Err(error) = finished {
                    group.state().unfinished.get_or_insert(error);
                }
                return Ok(());
            }
        };
        if !told {
            group.set_stage(self.members.start, Stage::Told(id.clone()));
            if Python::attach(|py| self.commit_branch(py)) {
                group.set_stage(self.members.start, Stage::Over);
                return Ok(());
            }
        }
        ResourceManager::commit(resource, &id).await?;
        group.set_stage(self.members.start, Stage::Over);
        Ok(())
    }

    async fn commit_carrying(&self, record: &DecisionRecord) -> Result<(), BranchError> {
        self.commit_alone(Some(Decision(record.clone())))
    }

    async fn commit_one_phase(&self, id: &BranchId) -> Result<(), BranchError> {
        if self.place().is_some_and(|place| place.carries) {
            return self.commit_alone(None);
        }
        if let Err(error) = self.prepare(id).await {
            // Nothing could commit it any more, whatever became of the question: a prepare that lands late is rolled back by recovery.
            if let Err(error) = self.rollback().await {
                let error: &dyn Error = &error;
                tracing::warn!(branch = %id, error, "a branch that was not prepared is left to recovery");
            }
            return Err(error.with_kind(FailureKind::Refused));
        }
        self.commit().await.map_err(|error| error.with_kind(FailureKind::Lost))
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        Python::attach(|py| self.group.clean_up(py));
        if let (Some(resource), Stage::Asked(id) | Stage::Prepared(id)) = (self.resource(), self.stage()) {
            // Its data manager could not: the program's own abort would only fail with the same.
            Python::attach(|py| self.group.forget_one(py, self.members.start));
            ResourceManager::rollback(resource, &id).await?;
            self.group.set_stage(self.members.start, Stage::Over);
        }
        Ok(())
    }
}
