//! A scratch copy of the workspace, in which bugs are planted and taken out again.
//!
//! A file is written only where its content differs, and always with a new time, so that cargo builds what has changed and nothing else.
//!
//! Must not know what a bug is.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The copy.
#[derive(Debug)]
pub(super) struct Tree {
    folder: PathBuf,
}

impl Tree {
    /// Makes `folder` a copy of what git knows of `root`, and of what it would let one add.
    pub(super) fn copy(root: &Path, folder: &Path) -> Result<Self, String> {
        let files = files(root)?;
        let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        for path in &files {
            let (from, to) = (root.join(path), folder.join(path));
            copy_file(&from, &to).map_err(|error| failed(&from, error))?;
        }
        remove_others(folder, Path::new(""), &files).map_err(|error| failed(folder, error))?;
        Ok(Self { folder: folder.to_owned() })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Applies a patch, does `work`, and takes the patch out again. The inner error: it does not apply.
    pub(super) fn with<T>(
        &self,
        patch: &Path,
        changes: &BTreeSet<String>,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<Result<T, String>, String> {
        let before: Vec<_> = changes.iter().map(|path| (path, fs::read(self.folder.join(path)).ok())).collect();
        let applied = self.apply(patch);
        let done = applied.map(|()| work());
        for (path, content) in before {
            let path = self.folder.join(path);
            let restored = match content {
                Some(content) => write_if_other(&path, &content),
                None if path.exists() => fs::remove_file(&path),
                None => Ok(()),
            };
            restored.map_err(|error| format!("{}: {error}", path.display()))?;
        }
        match done {
            Ok(done) => done.map(Ok),
            Err(refused) => Ok(Err(refused)),
        }
    }

    fn apply(&self, patch: &Path) -> Result<(), String> {
        let mut command = Command::new("git");
        command.args(["apply", "--recount"]).arg(patch).current_dir(&self.folder).stdin(Stdio::null());
        // Below a checkout git would leave out, silently, what is not in its subfolder.
        command.env("GIT_CEILING_DIRECTORIES", self.folder.parent().unwrap_or(&self.folder));
        let output = command.output().map_err(|error| format!("can't run git: {error}"))?;
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(text) }
    }
}

/// What git tracks, and what is new and not ignored; without what was deleted.
fn files(root: &Path) -> Result<BTreeSet<PathBuf>, String> {
    let mut command = Command::new("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("can't run git: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "bugs are planted in a copy of a git checkout, and {} is none: {}",
            root.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    let paths = output.stdout.split(|&byte| byte == 0).filter(|path| !path.is_empty());
    let paths = paths.map(|path| PathBuf::from(String::from_utf8_lossy(path).into_owned()));
    Ok(paths.filter(|path| root.join(path).is_file()).collect())
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let content = fs::read(from)?;
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    write_if_other(to, &content)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())
}

fn write_if_other(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == content) { Ok(()) } else { fs::write(path, content) }
}

fn remove_others(root: &Path, folder: &Path, files: &BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            remove_others(root, &path, files)?;
        } else if !files.contains(&path) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_has_what_git_would_take_and_writes_only_what_differs() {
        let place = tempfile::tempdir().unwrap();
        let (root, copy) = (place.path().join("root"), place.path().join("root/target/copy"));
        fs::create_dir_all(root.join("src")).unwrap();
        for (path, text) in [(".gitignore", "/target\n"), ("src/a.rs", "a"), ("src/b.rs", "b")] {
            fs::write(root.join(path), text).unwrap();
        }
        assert!(Tree::copy(&root, &copy).unwrap_err().contains("is none"));
        assert!(Command::new("git").args(["init", "--quiet"]).current_dir(&root).status().unwrap().success());
        let tree = Tree::copy(&root, &copy).unwrap();
        let time = |path: &str| fs::metadata(copy.join(path)).unwrap().modified().unwrap();
        let (a, b) = (time("src/a.rs"), time("src/b.rs"));
        fs::write(root.join("src/b.rs"), "bb").unwrap();
        fs::write(copy.join("src/left.rs"), "of an earlier patch").unwrap();
        Tree::copy(&root, &copy).unwrap();
        assert_eq!(fs::read_to_string(copy.join("src/b.rs")).unwrap(), "bb");
        assert!(time("src/a.rs") == a && time("src/b.rs") > b && !copy.join("src/left.rs").exists());

        let patch = place.path().join("x.patch");
        fs::write(
            &patch,
            "What: it\n\n--- a/src/a.rs\n+++ b/src/a.rs\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+c\n",
        )
        .unwrap();
        let changes = BTreeSet::from(["src/a.rs".to_owned()]);
        let seen = tree.with(&patch, &changes, || Ok(fs::read_to_string(copy.join("src/a.rs")).unwrap()));
        assert_eq!(seen, Ok(Ok("c\n".into())));
        assert_eq!(fs::read_to_string(copy.join("src/a.rs")).unwrap(), "a");
        assert!(time("src/a.rs") > a, "cargo would take the planted build for the restored file's");
        fs::write(copy.join("src/a.rs"), "other").unwrap();
        let refused = tree.with(&patch, &changes, || Ok(())).unwrap().unwrap_err();
        assert!(refused.contains("src/a.rs"), "{refused}");
    }
}
