//! The command `unanimous`: a demo that survives kill -9, readers for its decision log, and what operators need.
//!
//! Must not know the protocol: whatever it does, a user of the library could do.

mod commands;
mod failure;
mod operator;
mod output;
mod stores;
mod time;

use std::process::ExitCode;

use clap::Parser as _;
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = commands::Cli::parse();
    // What the library reports goes to the standard error; RUST_LOG says how much of it.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(cli.reports()));
    // Its complaint about a standard error that nobody reads any more would be a panic in whoever had reported something.
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false).init();
    cli.run().unwrap_or_else(|failure| {
        output::warn(failure.to_string());
        Failure::code()
    })
}

/// For commands that do one thing after another.
fn runtime() -> Result<Runtime, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new("can't start").because(&error))
}
