//! One test binary for the crate: every file of this folder is a module here.

mod manager_carrier;
mod manager_decision;
mod manager_paths;
mod manager_phase_two;
mod manager_votes;
mod support;
