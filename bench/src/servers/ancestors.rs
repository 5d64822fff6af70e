//! The group `ancestors`: the two-database request of the stack that people use today, beside ours, under the same load.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::client::posts;
use super::http::{CLIENTS, plan, serve, two_databases};
use super::load::turns;
use super::ours::{Decides, Ours};
use super::place::{Place, ROWS};
use super::runtime;
use crate::row::{Row, Target};
use crate::{Error, Options};

/// The interpreter of an environment with gunicorn and psycopg2.
const PYTHON: &str = "UNANIMOUS_BENCH_PYTHON";
/// The folder of the ancestors' source distributions.
const SOURCES: &str = "UNANIMOUS_TEST_ANCESTORS";

/// How long gunicorn may take to answer.
const START: Duration = Duration::from_secs(30);

pub(crate) fn ancestors(options: &Options) -> Result<Vec<Row>, Error> {
    let variable = |name: &str| {
        std::env::var(name).map_err(|_| {
            format!("it needs the ancestors' packages: run it by `cargo xtask bench --group ancestors`, which gets them and sets {name}")
        })
    };
    let (python, _) = (variable(PYTHON)?, variable(SOURCES)?);
    let place = Place::start(2)?;
    let (server, clients) = (runtime()?, runtime()?);
    let ours = server.block_on(Ours::start(place.urls(2), Decides::Log, CLIENTS))?;
    let address = server.block_on(serve(two_databases(&ours)))?;
    let theirs = Gunicorn::start(&python, place.urls(2))?;
    let sides = {
        let _on = clients.enter();
        [posts("ours", address, "/", CLIENTS), posts("the ancestors' stack", theirs.address, "/", CLIENTS)]
    };
    place.checkpoint()?;
    let measured = clients.block_on(turns(plan(options, true), &sides))?;
    let named =
        |what: &str, row: Row| Row { name: format!("ancestors, two databases, {CLIENTS} clients: {what}"), ..row };
    let target = Some(Target::RatioAtLeast(2.3));
    Ok(vec![
        named("requests", measured[0].per_second.beside(&measured[1].per_second, target)),
        named("p50", measured[0].p50.beside(&measured[1].p50, None)),
    ])
}

/// gunicorn with 2 workers of 8 threads.
struct Gunicorn {
    master: Child,
    address: SocketAddr,
}

impl Gunicorn {
    fn start(python: &str, urls: &[String]) -> Result<Self, Error> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python/benches");
        let mut command = Command::new(python);
        command
            .args(["-m", "gunicorn", "--workers", "2", "--threads", "8", "--worker-class", "gthread"])
            // Loaded once, before the workers are made.
            .args(["--preload", "--log-level", "error", "--bind", &address.to_string()])
            .arg("--chdir")
            .arg(folder)
            .arg("two_databases_app")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("BENCH_ROWS", ROWS.to_string())
            .stdin(Stdio::null());
        for (number, url) in urls.iter().enumerate() {
            command.env(format!("BENCH_POSTGRES_{}", number + 1), url);
        }
        let master = command.spawn().map_err(|error| format!("{python}: {error}"))?;
        let mut started = Self { master, address };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = started.master.try_wait()? {
                return Err(format!("gunicorn ended: {status}").into());
            }
            if begun.elapsed() > START {
                return Err(format!("gunicorn did not listen within {START:?}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(started)
    }
}

impl Drop for Gunicorn {
    /// In order, so that it takes its workers along.
    fn drop(&mut self) {
        let asked = Command::new("kill").arg(self.master.id().to_string()).status();
        if !asked.is_ok_and(|status| status.success()) {
            let _ = self.master.kill();
        }
        let _ = self.master.wait();
    }
}
