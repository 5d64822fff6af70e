//! The command's tests, in one binary: real processes, real sockets, kill -9.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking, and may talk")]

mod check;
mod command_line;
mod crash;
mod http;
mod indoubt;
mod indoubt_deciders;
mod indoubt_support;
mod log;
mod postgres;
mod serve;
mod support;
mod tls;
