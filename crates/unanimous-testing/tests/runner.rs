//! One test binary for the crate: every file of this folder is a module here.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking, and may talk")]

mod conformance;
#[cfg(feature = "postgres")]
mod postgres;
mod proxy;
mod proxy_postgres;
