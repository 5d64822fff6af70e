//! The identity file, and how a folder becomes a store.
//!
//! Whoever has seen the store's own folder has seen an identity in it: it is made whole under another name and renamed. So a
//! folder without one was never a store, is not mounted, or was tampered with; it is never made up a second time.
//!
//! Must not know branches.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use unanimous_core::StoreId;

use super::acts::Acts;
use super::error::FilesError;
use super::folder::{self, LOCK, OWN, OWN_NEW, PREPARED, STAGE};

const FILE: &str = "identity";
const FIRST_LINE: &str = "unanimous files 1";

/// Reads the identity of an opened own folder.
pub(super) fn read(own: &File, own_path: &Path) -> Result<StoreId, FilesError> {
    let path = own_path.join(FILE);
    let text = match folder::open_file(own, FILE).map_err(io::Error::from).and_then(io::read_to_string) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(FilesError::Gone { file: path, why: "somebody removed a part of the store; restore it" });
        }
        Err(source) => return Err(FilesError::Io { doing: "read", path, source }),
    };
    let damaged = |why: &str| FilesError::Damaged { file: path.clone(), why: why.to_owned() };
    let mut lines = text.lines();
    if lines.next() != Some(FIRST_LINE) {
        return Err(damaged("its first line is not \"unanimous files 1\"; a later version may have written it"));
    }
    let id = lines.next().and_then(|line| line.strip_prefix("store ")).and_then(|id| id.parse().ok());
    match (id, lines.next()) {
        (Some(id), None) if text.ends_with('\n') => Ok(id),
        _ => Err(damaged("its second and last line is not \"store\" and an identity")),
    }
}

/// Makes a folder a store, unless another process is first. Durable when it returns.
pub(super) fn create(path: &Path, id: StoreId, acts: &Acts) -> Result<(), FilesError> {
    make_root(path, acts)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root: File =
        acts.act("open the folder", path, || rustix::fs::open(path, flags, Mode::empty()).map(File::from))?;
    // Among those who make it a store the folder itself is the lock, since nothing else is there yet. Freed with the file.
    acts.act("lock the folder", path, || {
        rustix::io::retry_on_intr(|| rustix::fs::flock(&root, rustix::fs::FlockOperation::LockExclusive))
    })?;
    match folder::open_folder(&root, OWN) {
        Err(Errno::NOENT) => {}
        Ok(_) => return Ok(()),
        Err(error) => {
            return Err(FilesError::Io { doing: "open the folder", path: path.join(OWN), source: error.into() });
        }
    }
    let new_path = path.join(OWN_NEW);
    acts.act("remove an unfinished", &new_path, || match std::fs::remove_dir_all(&new_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    })?;
    acts.make_folder("make the folder", &root, OWN_NEW, &new_path)?;
    let own = acts.act("open the folder", &new_path, || folder::open_folder(&root, OWN_NEW))?;
    acts.make_folder("make the folder", &own, STAGE, &new_path.join(STAGE))?;
    acts.make_folder("make the folder", &own, PREPARED, &new_path.join(PREPARED))?;
    acts.create("create", &own, LOCK, &new_path.join(LOCK))?;
    let file_path = new_path.join(FILE);
    let file = acts.create("create", &own, FILE, &file_path)?;
    acts.write("write", &file, format!("{FIRST_LINE}\nstore {id}\n").as_bytes(), &file_path)?;
    acts.sync("sync", &file, &file_path)?;
    // `create` of a branch is a link: better refused now than after a promise.
    let probe = new_path.join("probe");
    acts.link("try a hard link, which the file system must have,", (&own, FILE), (&own, "probe"), &probe)?;
    acts.unlink("remove", &own, "probe", &probe)?;
    acts.sync("sync the folder", &own, &new_path)?;
    acts.rename("rename the finished", (&root, OWN_NEW), (&root, OWN), &new_path)?;
    acts.sync("sync the folder", &root, path)
}

/// Makes the root and what is missing above it, durably.
fn make_root(path: &Path, acts: &Acts) -> Result<(), FilesError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    for folder in missing.into_iter().rev() {
        acts.act("make the folder", folder, || match std::fs::create_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        })?;
        if let Some(above) = folder.parent() {
            acts.act("sync the folder", above, || File::open(above)?.sync_all())?;
        }
    }
    Ok(())
}
