//! The commands, a file or folder for each.
//!
//! Must not know what a command does: only its name.

mod demo;
mod log;

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
    Log(log::Log),
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Demo(demo) => demo.run(),
            Command::Log(log) => log.run(),
        }
    }
}
