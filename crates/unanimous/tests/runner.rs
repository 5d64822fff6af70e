//! The library's tests, in one binary.

mod log_disk;
mod log_faults;
mod log_file;
mod log_power;
mod log_process;
