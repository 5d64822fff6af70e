//! `cargo xtask python`: the Python package as a wheel, its tests, crash rounds and figures.
//!
//! All that it makes is below `target`: a virtual environment with what the tests need (`python/tests/requirements.txt`), the ancestors' source
//! distributions (`ancestors.txt`), the libraries built on them (`libraries.txt`). Nothing of these is ours, and nothing of them is
//! committed.
//!
//! Must not know what a test does, nor what is in the package.

use std::fs;
use std::path::{Path, PathBuf};

use unanimous_testing::postgres::Cluster;

use crate::arguments::Python;
use crate::metadata::{Workspace, workspace};
use crate::run::Run;
use crate::{say, tools};

/// The name of the database that each server has for the tests.
const DATABASE: &str = "unanimous";

pub(crate) fn run(what: &Python) -> Result<(), String> {
    let place = Place::new(&workspace()?)?;
    match what {
        Python::Wheel => place.wheel().map(|wheel| say(&format!("{}", wheel.display()))),
        Python::Test(arguments) => {
            place.prepare()?;
            let mut pytest = vec!["-m", "pytest", "-p", "no:cacheprovider", "-q", "--durations=5"];
            pytest.extend(arguments.iter().map(String::as_str));
            let tests = text(&place.tests)?;
            if !arguments.iter().any(|argument| argument.contains(".py")) {
                pytest.push(tests);
            }
            place.with_servers(&place.python(pytest), 64)
        }
        Python::Crash(arguments) => place.script("crash.py", arguments),
        Python::Bench(name, arguments) => {
            let path = place.tests.with_file_name("benches").join(format!("{name}.py"));
            if !path.is_file() {
                return Err(format!("there is no {}", path.display()));
            }
            place.script(text(&path)?, arguments)
        }
    }
}

/// What the bench needs to run the ancestors' stack: an interpreter with gunicorn and psycopg2, and the ancestors' source distributions.
pub(crate) fn ancestors() -> Result<(PathBuf, PathBuf), String> {
    let place = Place::new(&workspace()?)?;
    place.environment()?;
    Ok((place.interpreter(), place.ancestors()?))
}

/// Where things are.
struct Place {
    /// `python/tests`.
    tests: PathBuf,
    /// `target/python`.
    made: PathBuf,
    wheels: PathBuf,
    manifest: PathBuf,
}

impl Place {
    fn new(workspace: &Workspace) -> Result<Self, String> {
        let python = workspace.root.join("python");
        let made = workspace.target.join("python");
        fs::create_dir_all(&made).map_err(|error| failed(&made, &error))?;
        let wheels = workspace.target.join("wheels");
        Ok(Self { tests: python.join("tests"), made, wheels, manifest: python.join("Cargo.toml") })
    }

    fn interpreter(&self) -> PathBuf {
        self.made.join("venv/bin/python")
    }

    /// The virtual environment's interpreter, with arguments.
    fn python<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Run {
        // Warnings of pip about its own version say nothing about the package.
        let run = Run::new(self.interpreter(), arguments).env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        // What is compiled would be left beside the sources.
        run.env("PYTHONDONTWRITEBYTECODE", "1")
    }

    /// All that a test may want: the environment, the package in it, the ancestors, the libraries.
    fn prepare(&self) -> Result<(), String> {
        let wheel = self.wheel()?;
        self.python(["-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", "--no-index", text(&wheel)?])
            .show()?;
        self.ancestors()?;
        self.once("libraries", "libraries.txt", |folder, list| {
            self.python(["-m", "pip", "install", "--quiet", "--target", folder, "-r", list]).show()
        })
    }

    fn ancestors(&self) -> Result<PathBuf, String> {
        self.once("ancestors", "ancestors.txt", |folder, list| {
            let all = ["--quiet", "--no-deps", "--no-binary", ":all:", "--require-hashes"];
            self.python(["-m", "pip", "download"].into_iter().chain(all).chain(["-d", folder, "-r", list])).show()
        })?;
        Ok(self.made.join("ancestors"))
    }

    fn environment(&self) -> Result<(), String> {
        self.once("venv", "requirements.txt", |folder, list| {
            Run::new(tools::python()?, ["-m", "venv", "--clear", folder]).show()?;
            self.python(["-m", "pip", "install", "--quiet", "-r", list]).show()
        })
    }

    /// Makes a folder as a list says, again when the list has changed.
    fn once(&self, name: &str, list: &str, make: impl FnOnce(&str, &str) -> Result<(), String>) -> Result<(), String> {
        let (folder, list) = (self.made.join(name), self.tests.join(list));
        let wanted = fs::read_to_string(&list).map_err(|error| failed(&list, &error))?;
        let stamp = self.made.join(format!("{name}.stamp"));
        if folder.is_dir() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(());
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| failed(&folder, &error))?;
        }
        make(text(&folder)?, text(&list)?)?;
        fs::write(&stamp, wanted).map_err(|error| failed(&stamp, &error))
    }

    /// Builds the wheel, as the only one of ours in its folder.
    fn wheel(&self) -> Result<PathBuf, String> {
        self.environment()?;
        for old in self.built()? {
            fs::remove_file(&old).map_err(|error| failed(&old, &error))?;
        }
        let manifest = ["--manifest-path", text(&self.manifest)?, "--out", text(&self.wheels)?];
        self.python(
            ["-m", "maturin", "build", "--profile", "wheel", "--locked", "--quiet"].into_iter().chain(manifest),
        )
        .show()?;
        let mut built = self.built()?;
        match (built.pop(), built.pop()) {
            (Some(wheel), None) => Ok(wheel),
            (found, _) => Err(format!("maturin made {} wheels in {}", found.iter().count(), self.wheels.display())),
        }
    }

    fn built(&self) -> Result<Vec<PathBuf>, String> {
        let Ok(entries) = fs::read_dir(&self.wheels) else { return Ok(Vec::new()) };
        let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(|error| failed(&self.wheels, &error)));
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("unanimous_tm-") && name.ends_with(".whl")
        };
        Ok(paths.collect::<Result<Vec<_>, _>>()?.into_iter().filter(ours).collect())
    }

    /// A script of the tests' folder, with everything that a test has.
    fn script(&self, name: &str, arguments: &[String]) -> Result<(), String> {
        self.prepare()?;
        let path = self.tests.join(name);
        let arguments = arguments.iter().map(String::as_str);
        // The ancestors leave many prepared for ever.
        self.with_servers(&self.python([text(&path)?].into_iter().chain(arguments)), 2000)
    }

    /// Runs it beside two servers, each of which can keep so many transactions prepared, and says where all is.
    fn with_servers(&self, run: &Run, prepared: u32) -> Result<(), String> {
        let start = || -> Result<Cluster, unanimous_testing::postgres::Error> {
            let cluster = Cluster::builder()
                .setting("max_connections", 200)
                .setting("max_prepared_transactions", prepared)
                .start()?;
            cluster.create_database(DATABASE)?;
            Ok(cluster)
        };
        let (one, other) = (start().map_err(|error| error.to_string())?, start().map_err(|error| error.to_string())?);
        run.clone()
            .env("UNANIMOUS_TEST_POSTGRES_1", one.url(DATABASE))
            .env("UNANIMOUS_TEST_POSTGRES_2", other.url(DATABASE))
            .env("UNANIMOUS_TEST_ANCESTORS", text(&self.made.join("ancestors"))?)
            .env("UNANIMOUS_TEST_LIBRARIES", text(&self.made.join("libraries"))?)
            .show()
    }
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8, and can't be handed to Python", path.display()))
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
