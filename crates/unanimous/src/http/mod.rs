#![doc = include_str!("http.md")]
//!
//! # What this module must not know
//!
//! Any store, the protocol, the log, and how a server reads requests: it sees a manager, a request's head, a response's head, and
//! an error of commit.

#[cfg(feature = "axum")]
mod extract;
mod failure;
mod future;
mod layer;
mod request;
mod service;
mod veto;

pub use failure::{DefaultOnCommitFailure, OnCommitFailure, TRANSACTION_HEADER};
pub use future::ResponseFuture;
pub use layer::TransactionLayer;
pub use request::{NoTransaction, after_end, is_active, transaction};
pub use service::TransactionService;
pub use veto::{VetoContext, default_commit_veto};
