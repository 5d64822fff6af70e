//! The decision log's disk, behind a trait that a simulator can replace.
