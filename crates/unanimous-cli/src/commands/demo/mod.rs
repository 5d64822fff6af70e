//! `unanimous demo`: an order desk whose orders are each one transaction over two stores, or three.
//!
//! - [`order`]: what an order is; [`body`]: how it comes in.
//! - [`desk`]: the stores and what is done in them; [`orders`]: where orders are kept; [`stores`]: which stores were chosen;
//!   [`spawned`]: servers of the demo's own.
//! - [`handlers`], [`answer`], [`page`], [`history`]: what is asked for and what is told.
//! - [`serve`]: the server. [`check`]: the comparison of the stores.
//!
//! Must not know stores or HTTP: only the command line.

mod answer;
mod body;
mod check;
mod desk;
mod handlers;
mod history;
mod order;
mod orders;
mod page;
mod serve;
mod spawned;
mod stores;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use stores::{Chosen, StoresArgs};

use crate::failure::Failure;

/// Serve an order desk, to try kill -9 on
///
/// Each order is one transaction over a SQLite database and a folder of files; with --postgres or --spawn-postgres over two PostgreSQL
/// databases and a folder of files: the order, its invoice, its receipt. The data folder is made where it is missing; it holds decisions/
/// (the decision log), receipts/, and orders.db or the servers postgres-1/ and postgres-2/.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    serve: Serve,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Serve {
    /// Address and port to serve on; port 0 lets the system choose [default: 127.0.0.1:8080]
    // Without clap's default: one that was given must be told from it.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// The data folder
    #[arg(long, value_name = "DIR", default_value = "./unanimous-demo", global = true)]
    data: PathBuf,
    #[command(flatten)]
    stores: StoresArgs,
    /// Let every order also count itself in one row, under SERIALIZABLE, so that orders that meet conflict and are repeated; on PostgreSQL
    #[arg(long)]
    conflict: bool,
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
struct Check {}

const LISTEN: &str = "127.0.0.1:8080";

impl Demo {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let Serve { listen, data, stores, conflict } = self.serve;
        let chosen = stores.chosen()?;
        if conflict && chosen == Chosen::Sqlite {
            let failure =
                Failure::new("`--conflict` needs stores whose transactions can meet: SQLite has one writer at a time");
            return Err(failure.hint("add --spawn-postgres, or --postgres URL --postgres URL"));
        }
        match self.command {
            None => serve::run(listen.as_deref().unwrap_or(LISTEN), &data, &chosen, conflict),
            Some(Command::Check(Check {})) => {
                let serving = [("--listen", listen.is_some()), ("--conflict", conflict)];
                let Some((option, _)) = serving.into_iter().find(|(_, given)| *given) else {
                    return check::run(&data, &chosen);
                };
                let failure =
                    Failure::new(format!("`{option}` is for a demo that serves; `check` reads the data folder only"));
                Err(failure.hint(format!("unanimous demo check --data {}", data.display())))
            }
        }
    }
}
