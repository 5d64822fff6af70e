//! The files that a transaction writes: handed over at its commit, in one branch of their folder's.
//!
//! Must not know when a commit begins or ends.

use std::error::Error;

use pyo3::exceptions::{PyFileExistsError, PyFileNotFoundError, PyOSError};
use pyo3::prelude::*;
use pyo3::types::PyList;
use unanimous::files::{Files, FilesError};
use unanimous::{BoxError, Transaction};

use crate::engine::{Engine, told};

/// What one `FileStore` has gathered.
pub(crate) struct Gathered {
    files: Files,
    /// Kind, path and content.
    operations: Vec<(String, String, Vec<u8>)>,
}

/// The data managers that are none of files, and what those have gathered that are.
pub(crate) fn gathered<'py>(
    engine: &Engine,
    managers: Bound<'py, PyList>,
) -> PyResult<(Bound<'py, PyList>, Vec<Gathered>)> {
    if engine.resources.files.is_empty() {
        return Ok((managers, Vec::new()));
    }
    let (others, mut gathered) = (PyList::empty(managers.py()), Vec::new());
    for manager in managers {
        match Gathered::of(engine, &manager)? {
            Some(files) => gathered.push(files),
            None => others.append(manager)?,
        }
    }
    Ok((others, gathered))
}

impl Gathered {
    /// What a data manager has gathered, where it is one of files: it has `unanimous_files`, the name of its resource, and `operations`.
    fn of(engine: &Engine, manager: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let Some(name) = manager.getattr_opt("unanimous_files")? else { return Ok(None) };
        let name: String = name.extract()?;
        let Some(files) = engine.resources.files.get(&name) else {
            return Err(PyOSError::new_err(format!(
                "the folder {name:?} is not configured; name it in configure(resources=...)"
            )));
        };
        Ok(Some(Self { files: files.clone(), operations: manager.getattr("operations")?.extract()? }))
    }

    pub(crate) async fn write(&self, tx: &Transaction) -> Result<(), BoxError> {
        let branch = tx.join(&self.files).await?;
        for (kind, path, content) in &self.operations {
            match kind.as_str() {
                "write" => branch.create(path, content.clone()).await?,
                "replace" => branch.replace(path, content.clone()).await?,
                _ => branch.delete(path).await?,
            }
        }
        Ok(())
    }
}

/// What a folder said, as Python's own exception; none where no folder has said anything.
pub(crate) fn raised(error: &(dyn Error + 'static)) -> Option<PyErr> {
    let mut next = Some(error);
    while let Some(error) = next {
        match error.downcast_ref::<FilesError>() {
            Some(FilesError::Exists { .. }) => return Some(PyFileExistsError::new_err(told(error))),
            Some(FilesError::Missing { .. }) => return Some(PyFileNotFoundError::new_err(told(error))),
            Some(_) => return Some(PyOSError::new_err(told(error))),
            None => next = error.source(),
        }
    }
    None
}
