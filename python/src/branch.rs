//! Python data managers as branches of one transaction: called in the ancestors' order, their exceptions kept as they are.
//!
//! ```text
//! flush of the first   tpc_begin of all          rollback of the first   abort of those that have not voted,
//! flush of each        commit                                            then tpc_abort of all
//! prepare of each      tpc_vote                  commit of each          tpc_finish
//! ```
//!
//! Must not know the manager, the log, or when what is called.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use unanimous::{Branch, BranchError, BranchId, Capability, Work};

use crate::resource::Resource;

/// The data managers of one commit.
pub(crate) struct Group {
    transaction: Py<PyAny>,
    members: Vec<Member>,
    state: Mutex<State>,
}

pub(crate) struct Member {
    manager: Py<PyAny>,
    /// Where its branch is, when it can be finished from elsewhere.
    resource: Option<Resource>,
}

#[derive(Default)]
struct State {
    /// `tpc_begin` was called on all.
    begun: bool,
    /// Their commits were started.
    committing: bool,
    /// They were told to give up.
    cleaned: bool,
    /// How far each one has come.
    stages: Vec<Stage>,
    /// What made the commit fail.
    failed: Option<PyErr>,
    /// What the first `tpc_finish` that failed has raised.
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
    /// Nothing is left to be done with it.
    Over,
}

impl Group {
    pub(crate) fn new(transaction: Py<PyAny>, members: Vec<Member>) -> Arc<Self> {
        let stages = vec![Stage::Open; members.len()];
        Arc::new(Self { transaction, members, state: Mutex::new(State { stages, ..State::default() }) })
    }

    /// Never held while Python is called: another thread may want it, and Python's lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    /// The configured resource that this one's branch is in.
    pub(crate) fn resource(&self, index: usize) -> Option<&Resource> {
        self.members[index].resource.as_ref()
    }

    fn call(&self, py: Python<'_>, index: usize, method: &str) -> PyResult<()> {
        self.members[index].manager.call_method1(py, method, (&self.transaction,)).map(drop)
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

    fn begin_all(&self, py: Python<'_>) -> PyResult<()> {
        if std::mem::replace(&mut self.state().begun, true) {
            return Ok(());
        }
        (0..self.members.len()).try_for_each(|index| self.call(py, index, "tpc_begin"))
    }

    /// Tells all to give up, once: those that have not voted first. Errors are logged, and change nothing.
    pub(crate) fn clean_up(&self, py: Python<'_>) {
        if std::mem::replace(&mut self.state().cleaned, true) {
            return;
        }
        for index in 0..self.members.len() {
            let open = matches!(self.state().stages[index], Stage::Open | Stage::Asked(_));
            if open && let Err(error) = self.call(py, index, "abort") {
                self.log(py, "Error in abort() on manager %s", index, error);
            }
        }
        for index in 0..self.members.len() {
            let stage = self.state().stages[index].clone();
            let (method, done) = match stage {
                Stage::Open | Stage::Voted => ("tpc_abort", self.call(py, index, "tpc_abort")),
                Stage::Asked(_) | Stage::Prepared(_) => {
                    let manager = &self.members[index].manager;
                    ("rollback_branch", manager.call_method0(py, "rollback_branch").map(drop))
                }
                Stage::Over => continue,
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

    /// To the transaction's own logger. What fails here is nobody's concern.
    fn log(&self, py: Python<'_>, message: &str, index: usize, error: PyErr) {
        let logged = || {
            let keywords = PyDict::new(py);
            keywords.set_item("exc_info", error.value(py))?;
            let log = self.transaction.bind(py).getattr("log")?;
            log.call_method("error", (message, &self.members[index].manager), Some(&keywords)).map(drop)
        };
        if let Err(error) = logged() {
            error.write_unraisable(py, None);
        }
    }

    fn finish(&self, py: Python<'_>, index: usize) {
        let finished = self.call(py, index, "tpc_finish");
        self.set_stage(index, Stage::Over);
        let Err(error) = finished else { return };
        let again = {
            let mut state = self.state();
            match state.unfinished {
                Some(_) => Some(error),
                None => {
                    state.unfinished = Some(error);
                    None
                }
            }
        };
        if let Some(error) = again {
            self.log(py, "Error in tpc_finish() on manager %s", index, error);
        }
    }
}

impl Member {
    pub(crate) fn new(manager: Py<PyAny>, resource: Option<Resource>) -> Self {
        Self { manager, resource }
    }

    /// Calls a method that a recoverable data manager may have, and need not.
    fn start<'py>(&self, py: Python<'py>, method: &str, arguments: impl PyCallArgs<'py>) -> PyResult<()> {
        match self.manager.bind(py).getattr_opt(method)? {
            Some(method) => method.call1(arguments).map(drop),
            None => Ok(()),
        }
    }
}

/// A data manager of a group.
pub(crate) struct ManagerBranch {
    pub(crate) group: Arc<Group>,
    pub(crate) index: usize,
}

impl ManagerBranch {
    fn resource(&self) -> Option<&Resource> {
        self.group.resource(self.index)
    }

    /// Those behind this one that wait for their servers too, up to the next that is called here and may use their connections.
    fn neighbours(&self) -> std::ops::Range<usize> {
        let last = (self.index..self.group.len()).find(|&index| self.group.resource(index).is_none());
        self.index..last.unwrap_or(self.group.len())
    }

    /// Lets this one and its neighbours vote at the same time, where there are several; they are asked for the answers in their order.
    fn start_prepares(&self, py: Python<'_>, id: &BranchId) -> PyResult<()> {
        let neighbours = self.neighbours();
        if neighbours.len() < 2 || matches!(self.group.state().stages[self.index], Stage::Asked(_)) {
            return Ok(());
        }
        for index in neighbours {
            let number = id.number + u16::try_from(index - self.index).expect("a branch's number is its place");
            let id = BranchId { number, ..id.clone() };
            self.group.set_stage(index, Stage::Asked(id.clone()));
            self.group.members[index].start(py, "start_prepare", (id.to_string(),))?;
        }
        Ok(())
    }

    /// The same for their commits. What can't be started is done in its turn.
    fn start_commits(&self, py: Python<'_>) {
        let neighbours = self.neighbours();
        if neighbours.len() < 2 || std::mem::replace(&mut self.group.state().committing, true) {
            return;
        }
        for index in neighbours {
            if let Err(error) = self.group.members[index].start(py, "start_commit", ()) {
                self.group.log(py, "start_commit() of %s failed", index, error);
            }
        }
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
        if self.resource().is_some() { Capability::TwoPhase } else { Capability::Volatile }
    }

    async fn flush(&self) -> Result<Work, BranchError> {
        let group = &self.group;
        Python::attach(|py| {
            group.begin_all(py)?;
            group.call(py, self.index, "commit")
        })
        .map_err(|error| BranchError::refused(self.no(error)))?;
        Ok(Work::Wrote)
    }

    async fn prepare(&self, id: &BranchId) -> Result<(), BranchError> {
        let group = &self.group;
        if self.resource().is_none() {
            let voted = Python::attach(|py| group.call(py, self.index, "tpc_vote"));
            voted.map_err(|error| BranchError::refused(self.no(error)))?;
            group.set_stage(self.index, Stage::Voted);
            return Ok(());
        }
        let prepared = Python::attach(|py| {
            self.start_prepares(py, id)?;
            group.set_stage(self.index, Stage::Asked(id.clone()));
            group.members[self.index].manager.call_method1(py, "prepare_branch", (id.to_string(),)).map(drop)
        });
        // Its connection may have been lost behind the question: only the store knows whether it is prepared.
        prepared.map_err(|error| BranchError::lost(self.no(error)))?;
        group.set_stage(self.index, Stage::Prepared(id.clone()));
        Ok(())
    }

    async fn commit(&self) -> Result<(), BranchError> {
        let group = &self.group;
        let stage = group.state().stages[self.index].clone();
        let (Some(resource), Stage::Prepared(id)) = (self.resource(), stage) else {
            Python::attach(|py| group.finish(py, self.index));
            return Ok(());
        };
        let manager = &group.members[self.index].manager;
        let finished = Python::attach(|py| {
            self.start_commits(py);
            manager.call_method0(py, "commit_branch").map(drop).map_err(|error| {
                let raised = error.to_string();
                group.log(py, "commit_branch() of %s failed; its resource commits the branch", self.index, error);
                raised
            })
        });
        if finished.is_err() {
            resource.commit(&id).await?;
        }
        group.set_stage(self.index, Stage::Over);
        Ok(())
    }

    async fn rollback(&self) -> Result<(), BranchError> {
        Python::attach(|py| self.group.clean_up(py));
        let stage = self.group.state().stages[self.index].clone();
        if let (Some(resource), Stage::Asked(id) | Stage::Prepared(id)) = (self.resource(), stage) {
            resource.rollback(&id).await?;
            self.group.set_stage(self.index, Stage::Over);
        }
        Ok(())
    }
}
