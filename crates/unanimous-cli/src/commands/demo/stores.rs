//! Which stores a demo works with: chosen on the command line, and remembered by its data folder.
//!
//! Must not know what is kept in them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::Path;

use clap::Args;

use super::orders::{postgres, sqlite};
use super::spawned::{Spawned, running};
use crate::failure::Failure;

/// Says which stores a data folder's demo has, where it is not SQLite. Locked by who runs the folder's own servers.
pub(crate) const FILE: &str = "stores";

/// The part of the command line that says which.
#[derive(Debug, Args)]
pub(crate) struct StoresArgs {
    /// Keep orders in PostgreSQL; given twice: the first database takes the orders, the second one their invoices
    #[arg(long, value_name = "URL", global = true)]
    postgres: Vec<String>,
    /// Keep orders in PostgreSQL, in two servers of the data folder's own, which are started and stopped with the demo
    ///
    /// From the installed programs (those that UNANIMOUS_POSTGRES_BIN names, else the newest); as the user `postgres` or `nobody`, when
    /// started by root. They listen on 127.0.0.1 only, and ask for no password.
    #[arg(long, global = true, conflicts_with = "postgres")]
    spawn_postgres: bool,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// A SQLite database in the data folder.
    Sqlite,
    /// Two PostgreSQL databases, by their connection strings: of the orders, and of the invoices.
    Given([String; 2]),
    /// Two servers below the data folder.
    Spawned,
}

/// The stores, as they can be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stores {
    Sqlite,
    Postgres([String; 2]),
}

impl StoresArgs {
    pub(crate) fn chosen(self) -> Result<Chosen, Failure> {
        if self.spawn_postgres {
            return Ok(Chosen::Spawned);
        }
        match <[String; 2]>::try_from(self.postgres) {
            Ok(urls) if urls[0] == urls[1] => Err(Failure::new("both `--postgres` name the same database")
                .hint("one takes the orders, the other one their invoices; make another database: createdb invoices")),
            Ok(urls) => {
                postgres::config("orders", &urls[0])?;
                postgres::config("invoices", &urls[1])?;
                Ok(Chosen::Given(urls))
            }
            Err(none) if none.is_empty() => Ok(Chosen::Sqlite),
            Err(other) => {
                let times = if other.len() == 1 { "once".into() } else { format!("{} times", other.len()) };
                Err(Failure::new(format!("`--postgres` is needed twice, and was given {times}")).hint(
                    "the first database takes the orders, the second one their invoices: --postgres URL --postgres URL",
                ))
            }
        }
    }
}

impl Chosen {
    /// As the data folder remembers it.
    fn name(&self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Given(_) => "postgres",
            Self::Spawned => "spawned postgres",
        }
    }

    /// For a demo that serves: makes the data folder, refuses one whose demo had other stores, starts what is to be started.
    pub(crate) fn open(&self, data: &Path) -> Result<(Stores, Option<Spawned>), Failure> {
        fs::create_dir_all(data).map_err(|error| {
            let hint = "choose another folder with --data, or make room for this one";
            Failure::new(format!("can't make the data folder {}", data.display())).because(&error).hint(hint)
        })?;
        self.must_fit(data)?;
        match self {
            Self::Sqlite => Ok((Stores::Sqlite, None)),
            Self::Given(urls) => {
                self.remember(data)?;
                Ok((Stores::Postgres(urls.clone()), None))
            }
            Self::Spawned => {
                let lock = self.remember(data)?;
                if !locked(&lock, data)? {
                    return Err(held(data));
                }
                let spawned = Spawned::start(data, lock)?;
                Ok((Stores::Postgres(spawned.urls()), Some(spawned)))
            }
        }
    }

    /// For who only looks: servers that a demo runs are used as they are, and started where none does.
    pub(crate) fn look(&self, data: &Path) -> Result<(Stores, Option<Spawned>), Failure> {
        match self {
            Self::Sqlite => Ok((Stores::Sqlite, None)),
            Self::Given(urls) => Ok((Stores::Postgres(urls.clone()), None)),
            Self::Spawned => {
                let file = data.join(FILE);
                let lock = File::open(&file).map_err(|error| {
                    Failure::new(format!("the demo was never started with servers of its own on {}", data.display()))
                        .because(&error)
                        .hint("give the folder that the demo was started with: --data DIR")
                })?;
                if !locked(&lock, data)? {
                    return Ok((Stores::Postgres(running(data)?), None));
                }
                let spawned = Spawned::start(data, lock)?;
                Ok((Stores::Postgres(spawned.urls()), Some(spawned)))
            }
        }
    }

    /// Refuses a data folder whose demo had other stores.
    pub(crate) fn must_fit(&self, data: &Path) -> Result<(), Failure> {
        let had = if data.join(sqlite::FILE).exists() {
            "sqlite".to_owned()
        } else {
            // Nothing, or half a word: a first start that was killed.
            fs::read_to_string(data.join(FILE)).unwrap_or_default().trim_end().to_owned()
        };
        let (words, hint) = match had.as_str() {
            "sqlite" => ("SQLite", "leave --postgres and --spawn-postgres out"),
            "postgres" => ("PostgreSQL", "give its databases: --postgres URL --postgres URL"),
            "spawned postgres" => ("servers of its own", "start them: --spawn-postgres"),
            _ => return Ok(()),
        };
        if had == self.name() {
            return Ok(());
        }
        Err(Failure::new(format!("the data folder {} is that of a demo on {words}", data.display()))
            .hint(format!("{hint}; or give another folder: --data DIR")))
    }

    fn remember(&self, data: &Path) -> Result<File, Failure> {
        let path = data.join(FILE);
        let remembered = || {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            if text.trim_end() != self.name() {
                file.set_len(0)?;
                writeln!(file, "{}", self.name())?;
            }
            Ok(file)
        };
        remembered()
            .map_err(|error: std::io::Error| Failure::new(format!("can't write {}", path.display())).because(&error))
    }

    /// The words of a command line that mean these stores. A connection string with a password is not shown.
    pub(crate) fn words(&self) -> Vec<String> {
        match self {
            Self::Sqlite => Vec::new(),
            Self::Given(urls) => {
                let shown = |url: &String| {
                    let secret = postgres::config("", url).is_ok_and(|config| config.get_password().is_some());
                    if secret { "URL".to_owned() } else { url.clone() }
                };
                urls.iter().flat_map(|url| ["--postgres".to_owned(), shown(url)]).collect()
            }
            Self::Spawned => vec!["--spawn-postgres".into()],
        }
    }
}

/// Whether the lock is ours now, and not another process's.
fn locked(lock: &File, data: &Path) -> Result<bool, Failure> {
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => {
            Err(Failure::new(format!("can't lock {}", data.join(FILE).display())).because(&error))
        }
    }
}

/// The data folder is another process's.
pub(crate) fn held(data: &Path) -> Failure {
    Failure::new(format!("the data folder {} is held by another running demo", data.display()))
        .hint("stop that one (Ctrl-C), or give this one a folder of its own with --data")
}
