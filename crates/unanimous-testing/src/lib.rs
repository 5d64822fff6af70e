//! Test tools that more than one package needs: real child processes, real sockets, kill -9.
//!
//! - [`process`]: a child process that never outlives its test.
//! - [`client`]: a small HTTP client for JSON and forms.
//! - [`rng`]: a seeded generator, so that a failure can be repeated.
//! - [`demo`]: the demo as a process: start, wait until it serves, check, stop.
//! - [`crash`]: kill -9 of the demo under load, again and again, and what must be true after it.
//!
//! Must not know the library's inside: it sees what a user sees, which is processes, sockets and files. Nothing here is published.

pub mod client;
pub mod crash;
pub mod demo;
pub mod process;
pub mod rng;

/// The README's examples, as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
