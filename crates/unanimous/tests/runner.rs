//! One test binary for the crate, linked once: every file of this folder is a module here.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking, and may talk")]

mod conformance;
#[cfg(feature = "files")]
mod files;
#[cfg(feature = "http")]
mod http_admission;
#[cfg(feature = "axum")]
mod http_after_body;
#[cfg(feature = "axum")]
mod http_axum;
#[cfg(all(feature = "axum", feature = "postgres"))]
mod http_conflicts;
#[cfg(all(feature = "axum", feature = "sqlite"))]
mod http_conflicts_sqlite;
#[cfg(feature = "http")]
mod http_deadline;
#[cfg(feature = "axum")]
mod http_disconnect;
#[cfg(feature = "http")]
mod http_ended;
#[cfg(feature = "axum")]
mod http_failed;
#[cfg(all(feature = "axum", feature = "files", feature = "postgres"))]
mod http_faults;
#[cfg(all(feature = "axum", feature = "postgres", feature = "sqlite"))]
mod http_idempotency;
#[cfg(all(feature = "axum", feature = "postgres", feature = "sqlite"))]
mod http_idempotency_doubt;
#[cfg(all(feature = "axum", feature = "postgres", feature = "sqlite"))]
mod http_idempotency_durable;
#[cfg(all(feature = "axum", feature = "postgres", feature = "sqlite"))]
mod http_idempotency_failures;
#[cfg(feature = "axum")]
mod http_idempotency_order;
#[cfg(all(feature = "axum", feature = "postgres", feature = "sqlite"))]
mod http_idempotency_retry;
#[cfg(all(feature = "axum", feature = "postgres", feature = "sqlite"))]
mod http_idempotency_support;
#[cfg(feature = "http")]
mod http_layer;
#[cfg(all(feature = "axum", feature = "postgres"))]
mod http_limits;
#[cfg(feature = "axum")]
mod http_outcome;
#[cfg(feature = "http")]
mod http_requests;
#[cfg(feature = "axum")]
mod http_retry;
#[cfg(feature = "axum")]
mod http_retry_body;
#[cfg(feature = "http")]
mod http_support;
#[cfg(all(feature = "axum", feature = "sqlite"))]
mod http_together;
#[cfg(feature = "axum")]
mod http_upgrade;
#[cfg(feature = "http")]
mod http_veto;
mod log_errors;
mod log_faults;
mod log_file;
mod log_power;
mod log_process;
mod log_thread;
mod manager_annotations;
mod manager_carrier;
mod manager_decision;
mod manager_dropped;
mod manager_early;
mod manager_hooks;
mod manager_logs;
mod manager_outcome;
mod manager_paths;
mod manager_phase_two;
mod manager_recovery;
mod manager_regressions;
mod manager_report;
mod manager_run;
mod manager_savepoints;
mod manager_shutdown;
mod manager_synchronizers;
mod manager_transaction;
mod manager_votes;
mod own_adapter;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
mod support;
mod thread_front;
mod thread_manager;
mod thread_order;
#[cfg(all(feature = "sqlite", feature = "files"))]
mod thread_stores;
mod thread_support;
