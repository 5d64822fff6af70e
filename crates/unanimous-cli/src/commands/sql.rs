//! `unanimous sql`: what the owner of a database must run where the application's own role may not.
//!
//! Must not know what is in the tables.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use unanimous::postgres::schema_sql;

use crate::failure::Failure;
use crate::output::say;

/// Print the SQL that makes the tables which the library keeps in a database
///
/// Needed only where the application's role may not make them: they are made on demand. Can be run again.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Sql {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// For PostgreSQL: the schema `unanimous`, for notifications, for a database that carries decisions, and for a decision log in a database
    Postgres {
        /// Also grant this role what it needs
        #[arg(long, value_name = "NAME")]
        role: Option<String>,
    },
}

impl Sql {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let Command::Postgres { role } = self.command;
        say(schema_sql(role.as_deref()).trim_end());
        Ok(ExitCode::SUCCESS)
    }
}
