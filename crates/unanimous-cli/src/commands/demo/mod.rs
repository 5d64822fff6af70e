//! `unanimous demo`: an order desk whose orders are each one transaction over two stores.
//!
//! - [`order`]: what an order is; [`body`]: how it comes in.
//! - [`desk`]: the stores and what is done in them.
//! - [`handlers`], [`answer`], [`page`], [`history`]: what is asked for and what is told.
//! - [`serve`]: the server. [`check`]: the comparison of the stores.

mod answer;
mod body;
mod check;
mod desk;
mod handlers;
mod history;
mod order;
mod page;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::failure::Failure;

/// Serve an order desk, to try kill -9 on
///
/// Each order is one transaction over a SQLite database and a folder of files. The data folder is made where it is missing; it holds
/// decisions/ (the decision log), orders.db and receipts/.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Demo {
    #[command(flatten)]
    serve: Serve,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Serve {
    /// Address and port to serve on; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: String,
    /// The data folder
    #[arg(long, value_name = "DIR", default_value = "./unanimous-demo")]
    data: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(Check),
}

/// Compare the stores: each order has its receipt, each receipt its order, with the same content
///
/// Reads only, and works beside a running demo: what is just being committed is read again, for at most 10 seconds. Prints
/// `orders N, receipts N, mismatches M, in doubt K`. Exits with 0 where M and K are 0, with 1 where one is not, with 2 where the data
/// can't be read.
#[derive(Debug, Args)]
struct Check {
    /// The data folder
    #[arg(long, value_name = "DIR", default_value = "./unanimous-demo")]
    data: PathBuf,
}

impl Demo {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            None => serve::run(&self.serve.listen, &self.serve.data),
            Some(Command::Check(Check { data })) => check::run(&data),
        }
    }
}
