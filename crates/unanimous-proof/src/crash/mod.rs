//! The real program and real servers, killed, stopped, cut off and halted at random while money is moved; what must hold once the faults
//! have stopped. A case is a transfer that was not turned away by a store that is down.
//!
//! A block has fresh databases, a fresh folder and one arrangement of the program. In each of its rounds: load under one to three faults,
//! the program started again after each kill of it, sometimes killed once more while it recovers. Then the faults stop: the program
//! is killed and started without load, or told to end its load. All must be at rest within 30 s, and is then looked at.
//!
//! The seed decides the faults, their moments and the transfers, not how the machine schedules them: a failure is likely to come again
//! with its seed, and is not sure to.
//!
//! Must not know how the program keeps its word.

mod faults;
mod ledger;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use unanimous_testing::postgres::{Cluster, Servers};
use unanimous_testing::process::Program;
use unanimous_testing::rng::Rng;

use crate::transfers::{Arrangement, schema};
use crate::{Found, Options, say};
use faults::{Fault, text};
use ledger::{Ledger, Side, Stored};

/// How long after the last fault all must be at rest.
const REST: Duration = Duration::from_secs(30);

/// How long a program may take to say what it is waited for.
const START: Duration = Duration::from_secs(30);

const WORKERS: u32 = 16;

const STEP: Duration = Duration::from_millis(20);

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// No round begins later, counted from the level's start.
    time: Duration,
    blocks: u32,
    /// The longest that something is halted: longer than the program waits for a vote, where there is time.
    halt: Duration,
    /// The longest load before a fault, in milliseconds.
    load: u64,
}

pub(crate) fn run(options: &Options) -> Result<Found, String> {
    let start = Instant::now();
    let extent = if options.quick {
        Extent { time: Duration::from_secs(16), blocks: 1, halt: Duration::from_millis(700), load: 500 }
    } else {
        Extent { time: Duration::from_secs(12 * 60), blocks: 12, halt: Duration::from_secs(4), load: 1500 }
    };
    let failed = |error: io::Error| error.to_string();
    let mut folder = tempfile::Builder::new().prefix("unanimous-crash-").tempdir().map_err(failed)?;
    // The servers may run as another user, who has to find their folders.
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).map_err(failed)?;
    let cluster = |name: &str| Cluster::builder().folder(folder.path().join(name)).start().map_err(text);
    let clusters = [cluster("postgres-1")?, cluster("postgres-2")?];
    let mut servers = Servers::new(clusters, &["left", "right"]).map_err(text)?;
    let program = program()?;

    let mut sum = Sum::default();
    let mut rng = Rng::new(options.seed);
    let ready = start.elapsed();
    for number in 0..extent.blocks {
        let arrangement = Arrangement::ALL[(options.seed % 3 + u64::from(number)) as usize % 3];
        let until = ready + extent.time.saturating_sub(ready) * (number + 1) / extent.blocks;
        for (server, name) in ["left", "right"].iter().enumerate() {
            servers.turn_to(server, &format!("{name}_{number}")).map_err(text)?;
            servers.psql(server, &schema()).map_err(text)?;
        }
        let folder = folder.path().join(format!("block-{number}"));
        fs::create_dir(&folder).map_err(failed)?;
        let mut block = Block {
            program: &program,
            folder,
            arrangement,
            extent,
            rng: rng.split(),
            servers: &mut servers,
            sum: &mut sum,
            ledger: Ledger::default(),
            runs: 0,
            violations: Vec::new(),
        };
        let mut round = 0;
        // At least one, so that each block tries its arrangement.
        while block.violations.is_empty() && (round == 0 || start.elapsed() < until) {
            round += 1;
            let done = block.round()?;
            say(&format!("{arrangement}, round {round}: {done}; violations {}", block.violations.len()));
        }
        let at = format!("seed {}, {arrangement}, block {number}, round {round}", options.seed);
        let Block { ledger, violations, .. } = block;
        sum.add(&ledger, round, violations.into_iter().map(|violation| format!("{at}: {violation}")));
    }
    sum.tell();
    if !sum.found.violations.is_empty() {
        folder.disable_cleanup(true);
        say(&format!("the data is kept in {}", folder.path().display()));
    } else if sum.committed == 0 {
        return Err("no transfer was ever committed".into());
    }
    Ok(sum.found)
}

/// It is built beside this one.
fn program() -> Result<PathBuf, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let program = this.with_file_name("transfers");
    if program.is_file() {
        return Ok(program);
    }
    Err(format!("there is no {}; build it: cargo build --release --package unanimous-proof", program.display()))
}

/// What came of all blocks.
#[derive(Debug, Default)]
struct Sum {
    found: Found,
    rounds: u32,
    kills: u64,
    kills_in_start: u64,
    kills_of_servers: u64,
    faults: BTreeMap<&'static str, u32>,
    committed: u64,
    aborted: u64,
    unknown: u64,
    unreached: u64,
    untold: u64,
    /// What was in doubt when the program was killed while both servers ran: what its next start had to finish.
    left: usize,
    longest: Duration,
}

impl Sum {
    fn add(&mut self, ledger: &Ledger, rounds: u32, violations: impl Iterator<Item = String>) {
        let [committed, aborted, unknown, unreached] = ledger.counts();
        self.rounds += rounds;
        self.committed += committed;
        self.aborted += aborted;
        self.unknown += unknown;
        self.unreached += unreached;
        self.untold += ledger.found.len() as u64;
        self.found.cases += committed + aborted + unknown + ledger.found.len() as u64;
        self.found.violations.extend(violations);
    }

    fn tell(&self) {
        for (fault, count) in &self.faults {
            say(&format!("{count:5} times: {fault}"));
        }
        let Self { rounds, kills, kills_in_start, kills_of_servers, left, longest, .. } = self;
        say(&format!(
            "{rounds} rounds; {kills} kills of the program, {kills_in_start} more while it started, {kills_of_servers} of servers; \
             {left} branches were in doubt then, and finished by the next start; at rest after {:.1} s at the latest",
            longest.as_secs_f64()
        ));
        let Self { committed, aborted, unknown, untold, unreached, .. } = self;
        say(&format!(
            "transfers: {committed} committed, {aborted} aborted, {unknown} unknown, {untold} committed that nobody could be told of; \
             besides {unreached} that a store which was down turned away"
        ));
    }
}

struct Block<'a> {
    program: &'a Path,
    folder: PathBuf,
    arrangement: Arrangement,
    extent: Extent,
    rng: Rng,
    servers: &'a mut Servers,
    sum: &'a mut Sum,
    ledger: Ledger,
    runs: u32,
    violations: Vec<String>,
}

impl Block<'_> {
    /// What it did, in words. A program that does not come up, or not to rest, is a violation; the round ends there.
    fn round(&mut self) -> Result<String, String> {
        let mut told = Vec::new();
        let Some(mut program) = self.start(WORKERS)? else { return Ok(told.join(", ")) };
        for _ in 0..self.rng.between(1, 3) {
            let fault = Fault::choose(&mut self.rng);
            self.sleep(20, self.extent.load);
            fault.strike(self.servers, &mut program, self.extent.halt, &mut self.rng)?;
            *self.sum.faults.entry(fault.name()).or_default() += 1;
            self.sum.kills_of_servers += fault.kills_of_servers();
            told.push(fault.name());
            if !fault.kills_the_program() {
                self.sleep(0, 300);
                continue;
            }
            self.sum.kills += 1;
            self.hear(program)?;
            match self.start(WORKERS)? {
                Some(started) => program = started,
                None => return Ok(told.join(", ")),
            }
        }
        let begun = Instant::now();
        let resting = if self.rng.chance(1, 2) {
            self.kill(program)?;
            self.start(0)?
        } else {
            program.signal(Signal::TERM).map_err(|error| error.to_string())?;
            Some(program)
        };
        let Some(program) = resting else { return Ok(told.join(", ")) };
        if let Err(error) = program.wait_for_line(START, |line| (line == "quiet").then_some(())) {
            self.violations.push(format!("the load did not end: {error}"));
            return Ok(told.join(", "));
        }
        let rest = self.rest(begun)?;
        if self.rng.chance(1, 2) {
            self.stop(program)?;
        } else {
            self.kill(program)?;
        }
        let stored = self.read()?;
        self.violations.extend(self.ledger.judge(&stored));
        let [committed, aborted, unknown, _] = self.ledger.counts();
        Ok(format!(
            "{}; at rest after {:.1} s; so far {committed} committed, {aborted} aborted, {unknown} unknown",
            told.join(", "),
            rest.as_secs_f64()
        ))
    }

    /// Starts the program, now and then after a start that was killed on its way. None: it does not come up.
    fn start(&mut self, workers: u32) -> Result<Option<Program>, String> {
        let mut kills = 0;
        while kills < 3 && self.rng.chance(1, 3) {
            let program = self.launch(workers)?;
            self.sleep(1, 120);
            self.sum.kills_in_start += 1;
            self.finish_off(program)?;
            kills += 1;
        }
        let program = self.launch(workers)?;
        // It may have to do without one for a while.
        self.sleep(0, 200);
        self.servers.restart().map_err(text)?;
        match program.wait_for_line(START, |line| (line == "ready").then_some(())) {
            Ok(()) => Ok(Some(program)),
            Err(error) => {
                self.violations.push(format!("the program did not start again: {error}"));
                Ok(None)
            }
        }
    }

    fn launch(&mut self, workers: u32) -> Result<Program, String> {
        self.runs += 1;
        let mut command = Command::new(self.program);
        command.arg(self.arrangement.to_string()).arg(&self.folder).args([self.servers.url(0), self.servers.url(1)]);
        command.args([u64::from(self.runs), self.rng.next(), u64::from(workers)].map(|number| number.to_string()));
        Program::start(&mut command).map_err(|error| format!("{}: {error}", self.program.display()))
    }

    fn kill(&mut self, program: Program) -> Result<(), String> {
        self.sum.kills += 1;
        self.finish_off(program)?;
        self.sum.left += self.in_doubt()?;
        Ok(())
    }

    fn finish_off(&mut self, mut program: Program) -> Result<(), String> {
        program.kill().map_err(|error| error.to_string())?;
        self.hear(program)
    }

    /// Takes the output of a program that was killed.
    fn hear(&mut self, mut program: Program) -> Result<(), String> {
        program.wait(START).map_err(|error| error.to_string())?;
        self.violations.extend(self.ledger.add(&program.stdout()));
        Ok(())
    }

    /// The program's own end.
    fn stop(&mut self, mut program: Program) -> Result<(), String> {
        program.signal(Signal::TERM).map_err(|error| error.to_string())?;
        match program.wait(START) {
            Ok(status) if status.success() => {}
            Ok(status) => self.violations.push(format!("SIGTERM at rest: {status}: {}", program.stderr())),
            Err(error) => self.violations.push(format!("SIGTERM at rest: {error}")),
        }
        self.violations.extend(self.ledger.add(&program.stdout()));
        Ok(())
    }

    /// Waits until nothing is in doubt and nobody works any more but the present program; how long after `begun` that was.
    fn rest(&mut self, begun: Instant) -> Result<Duration, String> {
        loop {
            let (in_doubt, working) = (self.in_doubt()?, self.left_sessions()?);
            let took = begun.elapsed();
            // Too late is too late, also where it has come to rest in the meantime.
            if took > REST {
                let prepared = self.servers.prepared().map_err(text)?;
                self.violations.push(format!(
                    "{took:?} after the last fault {in_doubt} branches are in doubt, in the databases {prepared:?}, \
                     and {working} sessions of killed programs work"
                ));
                return Ok(took);
            }
            if in_doubt == 0 && working == 0 {
                self.sum.longest = self.sum.longest.max(took);
                return Ok(took);
            }
            thread::sleep(STEP);
        }
    }

    /// Branches that are prepared, in databases and folder.
    fn in_doubt(&self) -> Result<usize, String> {
        let prepared = self.folder.join("journal/.unanimous/prepared");
        let manifests = match fs::read_dir(&prepared) {
            Ok(entries) => entries.count(),
            // No run has come as far as making it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(format!("{}: {error}", prepared.display())),
        };
        Ok(self.servers.prepared().map_err(text)?.len() + manifests)
    }

    /// Sessions of programs that were killed: what they do may still become a prepared branch.
    fn left_sessions(&self) -> Result<usize, String> {
        let sql = format!(
            "select count(*) from pg_stat_activity where datname = current_database() and backend_type = 'client backend' \
             and pid <> pg_backend_pid() and application_name <> 'run-{}'",
            self.runs
        );
        let mut all = 0;
        for server in 0..2 {
            all +=
                self.servers.psql(server, &sql).map_err(text)?.parse::<usize>().map_err(|error| error.to_string())?;
        }
        Ok(all)
    }

    fn read(&self) -> Result<Stored, String> {
        let side = |server| {
            let accounts = self.servers.psql(server, "select id, balance from account").map_err(text)?;
            let entries = self.servers.psql(server, "select transfer, account, amount, transaction from entry");
            Side::parse(&accounts, &entries.map_err(text)?)
        };
        let mut stored = Stored { sides: [side(0)?, side(1)?], files: BTreeMap::new() };
        let journal = self.folder.join("journal");
        for folder in entries(&journal)?.into_iter().filter(|path| !path.ends_with(".unanimous")) {
            for path in entries(&folder)? {
                let name = path.strip_prefix(&journal).unwrap_or(&path).to_string_lossy().into_owned();
                let content = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                stored.files.insert(name, content);
            }
        }
        Ok(stored)
    }

    fn sleep(&mut self, least: u64, most: u64) {
        thread::sleep(Duration::from_millis(self.rng.between(least, most)));
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: io::Error| format!("{}: {error}", folder.display());
    fs::read_dir(folder).map_err(failed)?.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}
