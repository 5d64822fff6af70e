//! `unanimous_tm._phases`: the calls on several data managers.
//!
//! Must not know when they are made.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyList;

pub(crate) struct Phases {
    begin: Py<PyAny>,
    flush: Py<PyAny>,
    vote: Py<PyAny>,
    finish: Py<PyAny>,
}

static PHASES: PyOnceLock<Phases> = PyOnceLock::new();

impl Phases {
    pub(crate) fn get(py: Python<'_>) -> PyResult<&Self> {
        PHASES.get_or_try_init(py, || {
            let module = py.import("unanimous_tm._phases")?;
            let function = |name| Ok::<_, PyErr>(module.getattr(name)?.unbind());
            Ok(Self {
                begin: function("begin")?,
                flush: function("flush")?,
                vote: function("vote")?,
                finish: function("finish")?,
            })
        })
    }

    pub(crate) fn begin(&self, py: Python<'_>, transaction: &Py<PyAny>, managers: &Py<PyList>) -> PyResult<()> {
        self.begin.call1(py, (transaction, managers)).map(drop)
    }

    pub(crate) fn flush(&self, py: Python<'_>, transaction: &Py<PyAny>, managers: &Py<PyList>) -> PyResult<()> {
        self.flush.call1(py, (transaction, managers)).map(drop)
    }

    /// How many have voted, and what the next one raised.
    pub(crate) fn vote(
        &self,
        py: Python<'_>,
        transaction: &Py<PyAny>,
        managers: &Py<PyList>,
    ) -> Result<(), (usize, PyErr)> {
        let voted = self.vote.call1(py, (transaction, managers)).map_err(|error| (0, error))?;
        if voted.is_none(py) {
            return Ok(());
        }
        let (count, error): (usize, Bound<'_, PyAny>) = voted.extract(py).map_err(|error| (0, error))?;
        Err((count, PyErr::from_value(error)))
    }

    /// All were called; what the first that failed has raised.
    pub(crate) fn finish(&self, py: Python<'_>, transaction: &Py<PyAny>, managers: &Py<PyList>) -> PyResult<()> {
        let failed = self.finish.call1(py, (transaction, managers))?;
        if failed.is_none(py) { Ok(()) } else { Err(PyErr::from_value(failed.into_bound(py))) }
    }
}
