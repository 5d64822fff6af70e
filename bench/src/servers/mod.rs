//! The groups on PostgreSQL servers, which the bench starts itself: with fsync on and the default `synchronous_commit`, as in production.
//!
//! - [`place`]: the servers, and the same table in each database.
//! - [`load`]: clients in a closed loop, and sides that take turns.
//! - [`ours`], [`by_hand`]: the same transaction with the library, and without.
//! - The groups: [`commits`] (two of them), [`http`], [`ancestors`], [`in_doubt`].

mod ancestors;
mod by_hand;
mod client;
mod commits;
mod http;
mod in_doubt;
mod load;
mod ours;
mod place;

pub(crate) use ancestors::ancestors;
pub(crate) use commits::{postgres, row};
pub(crate) use http::http;
pub(crate) use in_doubt::in_doubt;

use crate::Error;

/// The runtime that a group runs in: as many threads as the machine has cores.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
