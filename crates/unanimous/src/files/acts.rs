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
    pub(super) script: Option<std::sync::Arc<super::script::Script>>,
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
        let result =
            self.act(doing, at, || rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o666)).map(File::from));
        #[cfg(test)]
        self.note(&result, |script| script.created(folder, name));
        result
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
        if self.script.as_ref().is_some_and(|script| script.has_stopped()) {
            let _ = file.write_all(&bytes[..bytes.len() / 2]);
        }
        let result = self.act(doing, at, || file.write_all(bytes));
        #[cfg(test)]
        self.note(&result, |script| script.written(file));
        result
    }

    /// Makes a file's content, or a folder's entries, survive a power failure.
    pub(super) fn sync(&self, doing: &'static str, file: &File, at: &Path) -> Result<(), FilesError> {
        let result = self.act(doing, at, || file.sync_all());
        #[cfg(test)]
        self.note(&result, |script| script.synced(file));
        result
    }

    /// Renames, over what may be there.
    pub(super) fn rename(
        &self,
        doing: &'static str,
        from: (&File, &str),
        to: (&File, &str),
        at: &Path,
    ) -> Result<(), FilesError> {
        #[cfg(test)]
        let before = self.script.as_ref().map(|script| script.keep(to.0, to.1));
        let result = self.act(doing, at, || rustix::fs::renameat(from.0, from.1, to.0, to.1));
        #[cfg(test)]
        self.note(&result, |script| script.renamed(from, to, before.flatten()));
        result
    }

    /// Gives a file a second name, which must be free.
    pub(super) fn link(
        &self,
        doing: &'static str,
        from: (&File, &str),
        to: (&File, &str),
        at: &Path,
    ) -> Result<(), FilesError> {
        let result = self.act(doing, at, || rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()));
        #[cfg(test)]
        self.note(&result, |script| script.created(to.0, to.1));
        result
    }

    /// Removes a file's name; one that is not there is fine.
    pub(super) fn unlink(&self, doing: &'static str, folder: &File, name: &str, at: &Path) -> Result<(), FilesError> {
        #[cfg(test)]
        let before = self.script.as_ref().map(|script| script.keep(folder, name));
        let result = self.act(doing, at, || match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            other => other,
        });
        #[cfg(test)]
        self.note(&result, |script| script.unlinked(folder, name, before.flatten()));
        result
    }

    /// Makes a folder; one that is there is fine.
    pub(super) fn make_folder(
        &self,
        doing: &'static str,
        folder: &File,
        name: &str,
        at: &Path,
    ) -> Result<(), FilesError> {
        let result = self.act(doing, at, || match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(0o777)) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            other => other,
        });
        #[cfg(test)]
        self.note(&result, |script| script.created(folder, name));
        result
    }

    #[cfg(test)]
    fn note<T>(&self, result: &Result<T, FilesError>, note: impl FnOnce(&super::script::Script)) {
        if let (Ok(_), Some(script)) = (result, &self.script) {
            note(script);
        }
    }
}
