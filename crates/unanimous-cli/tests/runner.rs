//! The command's tests, in one binary: real processes, real sockets, kill -9.

mod check;
mod command_line;
mod crash;
mod http;
mod log;
mod serve;
mod support;
