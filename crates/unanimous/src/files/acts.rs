//! Everything that changes a folder goes through [`Acts`], one named step at a time, so that tests can stop the world after each
//! of them, let one fail, and read in which order they came.
//!
//! Must not know what the steps are for.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::error::FilesError;

/// Runs steps. In a release nothing but the calls themselves is left of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Acts {
    #[cfg(test)]
    pub(super) script: Option<std::sync::Arc<script::Script>>,
}

impl Acts {
    /// Does one thing. `doing` reads on after "could not".
    pub(super) fn act<T, E: Into<io::Error>>(
        &self,
        doing: &'static str,
        at: &Path,
        run: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, FilesError> {
        #[cfg(test)]
        if let Some(script) = &self.script {
            script.step(doing).map_err(|source| FilesError::Io { doing, path: at.to_owned(), source })?;
        }
        run().map_err(|error| FilesError::Io { doing, path: at.to_owned(), source: error.into() })
    }

    /// Creates a file that must not exist.
    pub(super) fn create(&self, doing: &'static str, folder: &File, name: &str, at: &Path) -> Result<File, FilesError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The process's umask takes away what it does not want.
        self.act(doing, at, || rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o666)).map(File::from))
    }

    /// Writes all of `bytes`. A crash in the middle leaves some of them.
    pub(super) fn write(
        &self,
        doing: &'static str,
        mut file: &File,
        bytes: &[u8],
        at: &Path,
    ) -> Result<(), FilesError> {
        #[cfg(test)]
        if self.script.as_ref().is_some_and(|script| script.is_last()) {
            let _ = file.write_all(&bytes[..bytes.len() / 2]);
        }
        self.act(doing, at, || file.write_all(bytes))
    }

    /// Makes a file's content, or a folder's entries, survive a power failure.
    pub(super) fn sync(&self, doing: &'static str, file: &File, at: &Path) -> Result<(), FilesError> {
        self.act(doing, at, || file.sync_all())
    }

    /// Renames, over what may be there.
    pub(super) fn rename(
        &self,
        doing: &'static str,
        from: (&File, &str),
        to: (&File, &str),
        at: &Path,
    ) -> Result<(), FilesError> {
        self.act(doing, at, || rustix::fs::renameat(from.0, from.1, to.0, to.1))
    }

    /// Gives a file a second name, which must be free.
    pub(super) fn link(
        &self,
        doing: &'static str,
        from: (&File, &str),
        to: (&File, &str),
        at: &Path,
    ) -> Result<(), FilesError> {
        self.act(doing, at, || rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()))
    }

    /// Removes a file's name; one that is not there is fine.
    pub(super) fn unlink(&self, doing: &'static str, folder: &File, name: &str, at: &Path) -> Result<(), FilesError> {
        self.act(doing, at, || match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            other => other,
        })
    }

    /// Makes a folder; one that is there is fine.
    pub(super) fn make_folder(
        &self,
        doing: &'static str,
        folder: &File,
        name: &str,
        at: &Path,
    ) -> Result<(), FilesError> {
        self.act(doing, at, || match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o777)) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            other => other,
        })
    }
}

#[cfg(test)]
pub(super) mod script {
    //! Steps under a test's control.

    use std::io;
    use std::sync::Mutex;

    /// What happens at which step.
    #[derive(Debug, Default)]
    pub(crate) struct Script {
        inner: Mutex<Inner>,
    }

    #[derive(Debug, Default)]
    struct Inner {
        done: Vec<&'static str>,
        stop_after: Option<usize>,
        fail_at: Option<usize>,
    }

    impl Script {
        /// All steps after the first `steps` are refused, as if the process had died: nothing is cleaned up either.
        pub(crate) fn stop_after(steps: usize) -> Self {
            Self { inner: Mutex::new(Inner { stop_after: Some(steps), ..Inner::default() }) }
        }

        /// The step at this place (from 0) fails, the others don't.
        pub(crate) fn fail_at(place: usize) -> Self {
            Self { inner: Mutex::new(Inner { fail_at: Some(place), ..Inner::default() }) }
        }

        /// The steps that were tried so far, without the one that was refused for a stop.
        pub(crate) fn done(&self) -> Vec<&'static str> {
            self.inner.lock().unwrap().done.clone()
        }

        /// Whether the next step is the one that is stopped at.
        pub(crate) fn is_last(&self) -> bool {
            let inner = self.inner.lock().unwrap();
            inner.stop_after == Some(inner.done.len())
        }

        pub(crate) fn step(&self, doing: &'static str) -> io::Result<()> {
            let mut inner = self.inner.lock().unwrap();
            if inner.stop_after.is_some_and(|most| inner.done.len() >= most) {
                return Err(io::Error::other("the test stopped the world here"));
            }
            inner.done.push(doing);
            if inner.fail_at == Some(inner.done.len() - 1) {
                return Err(io::Error::other("the test let this step fail"));
            }
            Ok(())
        }
    }
}
