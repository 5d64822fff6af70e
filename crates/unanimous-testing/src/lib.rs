//! For tests around unanimous, an adapter's first of all. `docs/writing-an-adapter.md` shows how it is used.
//!
//! - [`conformance`]: what every adapter must do, as checks.
//! - [`disk`]: a disk for a decision log that loses, tears and refuses what it is told to.
//! - [`disturbed`]: any resource, made to fail where it is told to.
//! - [`memory`]: stores and a log in memory that journal every call and can be told to fail anywhere.
//! - [`process`]: a child process that never outlives its test, for kill -9.
//! - [`proxy`]: a way to a server that loses questions, answers, connections.
//! - [`rng`]: a seeded generator, so that a failure can be repeated.
//!
//! Behind the feature `postgres`:
//!
//! - `postgres`: private PostgreSQL servers, to be killed, stopped and started again.
//!
//! Behind the feature `demo`, for the project's own tests:
//!
//! - `client`: a small HTTP client for JSON and forms.
//! - `demo`: the demo as a process: start, wait until it serves, check, stop.
//! - `crash`: kill -9 of the demo under load, again and again, and what must be true after it; with the feature `postgres` too, the same on
//!   two PostgreSQL servers, which fail as well.
//!
//! Must not know the library's inside: it sees what a user sees, which is the public traits, processes, sockets and files.

#[cfg(feature = "demo")]
pub mod client;
pub mod conformance;
#[cfg(feature = "demo")]
pub mod crash;
#[cfg(feature = "demo")]
pub mod demo;
pub mod disk;
pub mod disturbed;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod rng;

/// The README's examples, as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
