//! One test binary for the crate, with a module for each part: it is linked once.

#[cfg(feature = "sqlite")]
mod sqlite;
