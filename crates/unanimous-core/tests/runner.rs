//! One test binary for the crate: every file of this folder is a module here.

mod exhaustive;
mod log_history;
mod log_scan;
mod world;
