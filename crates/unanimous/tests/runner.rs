//! One test binary for the crate: every file of this folder is a module here, so that it is linked once.

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
mod log_disk;
mod log_file;
mod log_power;
mod manager_paths;
#[cfg(feature = "sqlite")]
mod sqlite;
mod support;
