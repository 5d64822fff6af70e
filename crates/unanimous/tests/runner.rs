//! The one test binary of this crate: each part's tests are a module.

#[cfg(feature = "files")]
mod files;
