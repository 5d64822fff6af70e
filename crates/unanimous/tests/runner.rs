#[cfg(feature = "sqlite")]
mod sqlite;
