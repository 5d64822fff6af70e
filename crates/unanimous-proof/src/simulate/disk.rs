//! A process's disk: the test disk, whose operations take time, fail by the generator's choice, and kill the process.
//!
//! What the process of a dead life still does never reaches its disk. Must not know what a log writes.

use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;

use unanimous::env::disk::{Disk, DiskFile, Folder};
use unanimous_testing::disk::{Fault, TestDisk};

use super::coverage::Path;
use super::executor::{Life, lock};
use super::plan::PerMille;
use super::process::Death;
use super::threads::pause;
use super::world::World;

#[derive(Clone)]
pub(super) struct SimDisk {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
    pub(super) disk: TestDisk,
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl SimDisk {
    /// An operation begins; it may be the last one, before or after it was done.
    fn operate<T>(
        &self,
        what: &str,
        fault: (Fault, PerMille, Path),
        done: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let world = &self.world;
        if self.life.is_dead() {
            return Err(dead());
        }
        if world.chance(500) {
            pause(world.some_time(world.plan.disk_time));
            if self.life.is_dead() {
                return Err(dead());
            }
        }
        self.may_die()?;
        let (fault, part, path) = fault;
        if world.fault(part) {
            world.saw(path);
            self.disk.fail(fault);
        }
        let result = done();
        if result.is_err() {
            lock(&world.ledger).troubled.insert((self.life.process, self.life.number));
        }
        let answer = result.as_ref().map_or_else(|error| error.to_string(), |_| "ok".to_owned());
        world.note(format_args!("{}.{} disk {what}: {answer}", self.life.process, self.life.number));
        self.may_die()?;
        result
    }

    fn may_die(&self) -> io::Result<()> {
        if !self.world.fault(self.world.plan.die) {
            return Ok(());
        }
        self.world.saw(Path::DiedAtDisk);
        Death::at_once(&self.world, &self.life);
        Err(dead())
    }

    fn nothing(&self) -> (Fault, PerMille, Path) {
        (Fault::NextSync, 0, Path::FailedSync)
    }

    fn names(&self, fault: Fault) -> (Fault, PerMille, Path) {
        (fault, self.world.plan.disk.names, Path::FailedName)
    }
}

impl Disk for SimDisk {
    fn open_folder(&self, path: &FilePath, create: bool) -> io::Result<Box<dyn Folder>> {
        if self.life.is_dead() {
            return Err(dead());
        }
        Ok(Box::new(SimFolder { on: self.clone(), folder: self.disk.open_folder(path, create)? }))
    }
}

struct SimFolder {
    on: SimDisk,
    folder: Box<dyn Folder>,
}

impl SimFolder {
    fn file(&self, file: io::Result<Box<dyn DiskFile>>, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SimFile { on: self.on.clone(), name: name.to_owned(), file: file? }))
    }
}

impl Folder for SimFolder {
    fn try_lock(&self) -> io::Result<bool> {
        if self.on.life.is_dead() { Err(dead()) } else { self.folder.try_lock() }
    }

    fn is_current(&self) -> io::Result<bool> {
        self.folder.is_current()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.folder.list()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let what = format!("create {name}");
        self.file(self.on.operate(&what, self.on.nothing(), || self.folder.create(name)), name)
    }

    fn open(&self, name: &str, write: bool) -> io::Result<Box<dyn DiskFile>> {
        self.file(self.folder.open(name, write), name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let what = format!("rename {from} {to}");
        if to != "0000000001.log" {
            self.on.world.saw(Path::Rotated);
        }
        self.on.operate(&what, self.on.names(Fault::NextRename), || self.folder.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.on.operate(&format!("remove {name}"), self.on.nothing(), || self.folder.remove(name))
    }

    fn sync(&self) -> io::Result<()> {
        self.on.operate("sync the folder", self.on.names(Fault::NextSyncFolder), || self.folder.sync())
    }
}

struct SimFile {
    on: SimDisk,
    name: String,
    file: Box<dyn DiskFile>,
}

impl DiskFile for SimFile {
    fn read(&self) -> io::Result<Vec<u8>> {
        self.file.read()
    }

    fn preallocate(&self, length: u64) -> io::Result<()> {
        let what = format!("preallocate {} {length}", self.name);
        self.on.operate(&what, self.on.nothing(), || self.file.preallocate(length))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let what = format!("write {} {offset} {}", self.name, bytes.len());
        if offset > 0 && decisions_of(bytes) > 1 {
            self.on.world.saw(Path::GroupCommit);
        }
        let fault = (Fault::NextWrite, self.on.world.plan.disk.write, Path::FailedWrite);
        self.on.operate(&what, fault, || self.file.write_at(offset, bytes))
    }

    fn sync_data(&self) -> io::Result<()> {
        let fault = (Fault::NextSync, self.on.world.plan.disk.sync, Path::FailedSync);
        self.on.operate(&format!("sync {}", self.name), fault, || self.file.sync_data())
    }

    fn sync_all(&self) -> io::Result<()> {
        let fault = (Fault::NextSyncAll, self.on.world.plan.disk.sync, Path::FailedSync);
        self.on.operate(&format!("sync all of {}", self.name), fault, || self.file.sync_all())
    }
}

/// How many decisions a frame has: docs/log-format.md.
fn decisions_of(frame: &[u8]) -> usize {
    const HEADER: usize = 32;
    const PREFIX: usize = 5;
    const DECISIONS: [u8; 2] = [2, 6];
    let number = |at: usize| {
        let bytes = frame.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, |bytes| u32::from_le_bytes(bytes) as usize)
    };
    let (count, mut at, mut decisions) = (number(24), HEADER, 0);
    for _ in 0..count {
        decisions += usize::from(frame.get(at).is_some_and(|kind| DECISIONS.contains(kind)));
        at += PREFIX + number(at + 1);
    }
    decisions
}
