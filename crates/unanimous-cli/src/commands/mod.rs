//! The commands, a file or folder for each.
//!
//! Must not know what a command does: only its name.

mod demo;
mod indoubt;
mod log;
mod recover;
mod sql;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;

/// A transaction manager: work spread over several real data stores commits in all of them or in none
///
/// Exit codes: 0 all is well; 1 a check found something wrong; 2 the command could not be done.
#[derive(Debug, Parser)]
#[command(name = "unanimous", version, arg_required_else_help = true, subcommand_required = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Demo),
    #[command(name = "indoubt")]
    InDoubt(indoubt::InDoubt),
    Log(log::Log),
    Recover(recover::Recover),
    Sql(sql::Sql),
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Demo(demo) => demo.run(),
            Command::InDoubt(indoubt) => indoubt.run(),
            Command::Log(log) => log.run(),
            Command::Recover(recover) => recover.run(),
            Command::Sql(sql) => sql.run(),
        }
    }

    /// How much of what the library reports is told, where RUST_LOG does not say: these commands tell the same themselves.
    pub(crate) fn reports(&self) -> &'static str {
        match self.command {
            Command::InDoubt(_) | Command::Recover(_) => "error",
            Command::Demo(_) | Command::Log(_) | Command::Sql(_) => "warn",
        }
    }
}

/// An error with its sources, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        next = source.source();
    }
    text
}
