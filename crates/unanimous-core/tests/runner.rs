//! One test binary for the crate: every file of this folder is a module here.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking, and may talk")]

mod adapters;
mod exhaustive;
mod exhaustive_row;
mod exhaustive_shared;
mod ids;
mod log_history;
mod log_scan;
mod paths;
mod plan;
mod texts;
mod transitions;
