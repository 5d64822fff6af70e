//! The library's tests, in one binary.

mod log_disk;
mod log_file;
mod log_power;
//! One test binary for the crate, with a module for each part: it is linked once.

#[cfg(feature = "sqlite")]
mod sqlite;
//! The one test binary of this crate: each part's tests are a module.

#[cfg(feature = "files")]
mod files;
#[cfg(feature = "axum")]
mod http_axum;
#[cfg(feature = "axum")]
mod http_disconnect;
#[cfg(feature = "http")]
mod http_layer;
#[cfg(feature = "http")]
mod http_support;
#[cfg(feature = "http")]
mod http_veto;
//! One test binary for the crate: every file of this folder is a module here.

mod manager_paths;
mod support;
