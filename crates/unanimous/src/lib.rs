//! A transaction manager: work spread over several real data stores commits in all of them or in none.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod dispatch;
mod driver;
pub mod env;
pub mod error;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "http")]
pub mod http;
pub mod log;
pub mod manager;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod transaction;

pub use error::{CommitError, JoinError, RunError};
pub use manager::{Builder, TransactionManager, current};
pub use transaction::{Commit, Committed, Joined, Options, Transaction, Tx};
pub use unanimous_core::*;
