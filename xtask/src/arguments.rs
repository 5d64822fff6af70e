//! The command line, parsed by hand: a few commands don't need more.
//!
//! Must not know what the commands do.

use std::str::FromStr;

pub(crate) const USAGE: &str = "\
usage: cargo xtask test [STEP]
       cargo xtask crash demo|postgres --rounds N [--seed S] [--clients C] [--keys] [--keep]
       cargo xtask prove [--quick] [--level NAME] [--seed N] [--mutant NAME]
       cargo xtask bench [--quick] [--group NAME]
       cargo xtask coverage
       cargo xtask fuzz [--executions N] [--target NAME]
       cargo xtask python wheel
       cargo xtask python test [ARGUMENT ...]
       cargo xtask python crash --rounds N [--seed S] [--carrier | --ancestors]
       cargo xtask python bench NAME [ARGUMENT ...]

test         format, runners, clippy, documentation, features, tests, dependencies, packages, a few crash rounds;
             installs what is missing where it may, and says what to install where it may not;
             with a STEP (the beginning of its name, such as clippy or packages) that one alone
crash demo   kill -9 of the demo under load, N times; exits 1 when anything was violated
crash postgres
             the same on two PostgreSQL servers, with kill -9 of the demo, immediate stops of the servers and ended sessions, mixed
             --seed S     the faults, moments and orders of an earlier run (by default another one each time; it is printed)
             --clients C  parallel clients, 16 by default
             --keys       clients repeat each request with the same Idempotency-Key over kill -9 of the demo until it is answered
             --keep       keep the data folder also when nothing was violated
prove        all levels of the proof (docs/proof.md), about an hour; the last line are its figures as JSON; exits 1 on any violation
             --quick      at most 3 minutes
             --level NAME that one alone
             --seed N     the choices of an earlier run (by default the same ones each time)
             --mutant NAME of the level `mutants` the planted bugs whose names begin so, and nothing else
bench        what the library costs, beside the machine's own yardsticks; writes docs/performance.md, unless it is asked for less than all;
             the last line are its rows as JSON
             --quick      at most 5 minutes
             --group NAME that one alone
coverage     which lines of the core crate, the log and recovery the tests run; exits 1 below 95 % of any. Needs cargo-llvm-cov
fuzz         the fuzz targets of fuzz/ (docs/proof.md). Needs a nightly toolchain and cargo-fuzz
             --executions N  of each target, 10,000,000 by default
             --target NAME   that one alone
python wheel builds the Python package into target/wheels
python test  builds it, and runs its own tests and the ancestors' on two PostgreSQL servers; arguments are pytest's
python crash kill -9 of a gunicorn with 2 workers of 8 threads under load over two servers, N times; exits 1 when anything was violated
             --carrier    one of the databases carries the decisions
             --ancestors  the ancestors' packages instead, for comparison: what is violated is counted only
python bench the figures of python/benches/NAME.py, against the ancestors in the same run";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    /// All steps, or those whose names begin like this.
    Test(Option<String>),
    Crash(Crash),
    Prove(Prove),
    Bench(Bench),
    Coverage,
    Fuzz(Fuzz),
    Python(Python),
}

/// A run of the benches.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bench {
    pub(crate) quick: bool,
    /// None: all of them.
    pub(crate) group: Option<String>,
}

/// A run of the fuzz targets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fuzz {
    pub(crate) executions: u64,
    /// None: all of them.
    pub(crate) target: Option<String>,
}

/// What is done with the Python package.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Python {
    Wheel,
    /// With arguments of pytest's.
    Test(Vec<String>),
    /// With the rounds' own arguments, which they check themselves.
    Crash(Vec<String>),
    /// A bench's name, and its own arguments.
    Bench(String, Vec<String>),
}

/// A run of the proof.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Prove {
    pub(crate) quick: bool,
    /// None: all of them.
    pub(crate) level: Option<String>,
    pub(crate) seed: u64,
    /// The beginning of a planted bug's name; it is the level `mutants` then.
    pub(crate) mutant: Option<String>,
}

/// On which stores the demo is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stores {
    Sqlite,
    Postgres,
}

/// Crash rounds of the demo.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Crash {
    pub(crate) stores: Stores,
    pub(crate) rounds: u32,
    /// None: another one each time.
    pub(crate) seed: Option<u64>,
    pub(crate) clients: usize,
    /// Requests are repeated by their keys.
    pub(crate) keys: bool,
    pub(crate) keep: bool,
}

pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut arguments = arguments.into_iter();
    let command = match arguments.next().as_deref() {
        Some("test") => Command::Test(arguments.next()),
        Some("crash") => match arguments.next().as_deref() {
            Some("demo") => return crash(Stores::Sqlite, arguments).map(Command::Crash),
            Some("postgres") => return crash(Stores::Postgres, arguments).map(Command::Crash),
            Some(other) => {
                return Err(format!(
                    "error: `crash` does not know {other:?}; there are `crash demo` and `crash postgres`"
                ));
            }
            None => return Err("error: crash what? there are `crash demo` and `crash postgres`".into()),
        },
        Some("prove") => return prove(arguments).map(Command::Prove),
        Some("bench") => return bench(arguments).map(Command::Bench),
        Some("coverage") => Command::Coverage,
        Some("fuzz") => return fuzz(arguments).map(Command::Fuzz),
        Some("python") => return python(arguments).map(Command::Python),
        Some("help" | "--help" | "-h") => Command::Help,
        Some(other) => return Err(format!("error: there is no command {other:?}")),
        None => return Err("error: which command?".into()),
    };
    match arguments.next() {
        None => Ok(command),
        Some(extra) => Err(format!("error: unexpected argument {extra:?}")),
    }
}

fn crash(stores: Stores, mut arguments: impl Iterator<Item = String>) -> Result<Crash, String> {
    let mut plan = Crash { stores, rounds: 0, seed: None, clients: 16, keys: false, keep: false };
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("error: {name} needs a number"));
        match name.as_str() {
            "--rounds" => plan.rounds = number(&name, &value()?)?,
            "--seed" => plan.seed = Some(number(&name, &value()?)?),
            "--clients" => plan.clients = number(&name, &value()?)?,
            "--keys" => plan.keys = true,
            "--keep" => plan.keep = true,
            _ => return Err(format!("error: unexpected argument {name:?}")),
        }
    }
    if plan.rounds == 0 || plan.clients == 0 {
        return Err("error: --rounds N is needed; N and the number of clients must be at least 1".into());
    }
    Ok(plan)
}

fn prove(mut arguments: impl Iterator<Item = String>) -> Result<Prove, String> {
    let mut plan = Prove { quick: false, level: None, seed: 1, mutant: None };
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--quick" => plan.quick = true,
            "--level" => plan.level = Some(arguments.next().ok_or("error: --level needs a name")?),
            "--seed" => plan.seed = number(&name, &arguments.next().ok_or("error: --seed needs a number")?)?,
            "--mutant" => plan.mutant = Some(arguments.next().ok_or("error: --mutant needs a name")?),
            _ => return Err(format!("error: unexpected argument {name:?}")),
        }
    }
    if plan.mutant.is_some() && plan.level.get_or_insert_with(|| "mutants".into()) != "mutants" {
        return Err("error: --mutant is of the level mutants only".into());
    }
    Ok(plan)
}

fn bench(mut arguments: impl Iterator<Item = String>) -> Result<Bench, String> {
    let mut plan = Bench { quick: false, group: None };
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--quick" => plan.quick = true,
            "--group" => plan.group = Some(arguments.next().ok_or("error: --group needs a name")?),
            _ => return Err(format!("error: unexpected argument {name:?}")),
        }
    }
    Ok(plan)
}

fn fuzz(mut arguments: impl Iterator<Item = String>) -> Result<Fuzz, String> {
    let mut plan = Fuzz { executions: 10_000_000, target: None };
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--executions" => {
                plan.executions = number(&name, &arguments.next().ok_or("error: --executions needs a number")?)?;
            }
            "--target" => plan.target = Some(arguments.next().ok_or("error: --target needs a name")?),
            _ => return Err(format!("error: unexpected argument {name:?}")),
        }
    }
    Ok(plan)
}

fn python(mut arguments: impl Iterator<Item = String>) -> Result<Python, String> {
    const WHICH: &str = "there are `python wheel`, `python test`, `python crash` and `python bench`";
    match arguments.next().as_deref() {
        Some("wheel") => match arguments.next() {
            None => Ok(Python::Wheel),
            Some(extra) => Err(format!("error: unexpected argument {extra:?}")),
        },
        Some("test") => Ok(Python::Test(arguments.collect())),
        Some("crash") => Ok(Python::Crash(arguments.collect())),
        Some("bench") => match arguments.next() {
            Some(name) => Ok(Python::Bench(name, arguments.collect())),
            None => Err("error: which bench? python/benches has them".into()),
        },
        Some(other) => Err(format!("error: `python` does not know {other:?}; {WHICH}")),
        None => Err(format!("error: what of python? {WHICH}")),
    }
}

fn number<T: FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("error: {name} needs a whole number, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn commands_are_parsed() {
        assert_eq!(parsed("test"), Ok(Command::Test(None)));
        assert_eq!(parsed("test clippy"), Ok(Command::Test(Some("clippy".into()))));
        let crash = Crash { stores: Stores::Sqlite, rounds: 7, seed: Some(9), clients: 16, keys: false, keep: true };
        assert_eq!(parsed("crash demo --rounds 7 --seed 9 --keep"), Ok(Command::Crash(crash)));
        let crash = Crash { stores: Stores::Postgres, rounds: 300, seed: None, clients: 4, keys: true, keep: false };
        assert_eq!(parsed("crash postgres --rounds 300 --keys --clients 4"), Ok(Command::Crash(crash)));
        let prove = Prove { quick: true, level: Some("log".into()), seed: 7, mutant: None };
        assert_eq!(parsed("prove --quick --seed 7 --level log"), Ok(Command::Prove(prove)));
        let bench = Bench { quick: true, group: Some("log".into()) };
        assert_eq!(parsed("bench --quick --group log"), Ok(Command::Bench(bench)));
        assert_eq!(parsed("coverage"), Ok(Command::Coverage));
        let fuzz = Fuzz { executions: 7, target: Some("log_open".into()) };
        assert_eq!(parsed("fuzz --executions 7 --target log_open"), Ok(Command::Fuzz(fuzz)));
        let prove = Prove { quick: false, level: Some("mutants".into()), seed: 1, mutant: Some("early".into()) };
        assert_eq!(parsed("prove --mutant early"), Ok(Command::Prove(prove)));
        assert_eq!(parsed("python wheel"), Ok(Command::Python(Python::Wheel)));
        assert_eq!(parsed("python test -k wsgi"), Ok(Command::Python(Python::Test(vec!["-k".into(), "wsgi".into()]))));
        let bench = Python::Bench("wsgi".into(), vec!["--quick".into()]);
        assert_eq!(parsed("python bench wsgi --quick"), Ok(Command::Python(bench)));
    }

    #[test]
    fn wrong_command_lines_say_what_is_wrong() {
        for (line, part) in [
            ("", "which command"),
            ("tset", "\"tset\""),
            ("test clippy now", "\"now\""),
            ("crash", "crash demo"),
            ("crash demo", "--rounds N is needed"),
            ("crash demo --rounds", "needs a number"),
            ("crash demo --rounds many", "\"many\""),
            ("crash demo --rounds 1 --sed 2", "\"--sed\""),
            ("prove --level", "needs a name"),
            ("prove quick", "\"quick\""),
            ("bench log", "\"log\""),
            ("bench --group", "needs a name"),
            ("coverage now", "\"now\""),
            ("fuzz --executions", "needs a number"),
            ("prove --mutant", "needs a name"),
            ("prove --level log --mutant early", "level mutants only"),
            ("python", "python wheel"),
            ("python wheels", "\"wheels\""),
            ("python wheel now", "\"now\""),
            ("python bench", "which bench"),
        ] {
            let wrong = parsed(line).unwrap_err();
            assert!(wrong.contains(part), "{line:?}: {wrong:?}");
        }
    }
}
