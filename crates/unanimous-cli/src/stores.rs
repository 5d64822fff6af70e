//! The stores that a command is given: their names and where they are.
//!
//! Must not know what a command does with them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use unanimous::postgres::tokio_postgres::Config;
use unanimous::postgres::{Postgres, PostgresError};

use crate::failure::Failure;

/// Each under the name that the application gives it.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// A PostgreSQL database, under the application's name for it; NAME=env:VARIABLE takes the connection string, which may hold a
    /// password, from the environment
    #[arg(long, value_name = "NAME=URL")]
    postgres: Vec<Named>,
    /// A PostgreSQL database that carries decisions, on a server that may not be able to prepare; --postgres where it can
    #[arg(long, value_name = "NAME=URL")]
    postgres_carrier: Vec<Named>,
    /// A SQLite database
    #[arg(long, value_name = "NAME=PATH")]
    sqlite: Vec<Named>,
    /// A folder of files
    #[arg(long, value_name = "NAME=DIR")]
    files: Vec<Named>,
}

/// A value with a name before it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    name: String,
    value: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            // Without a name the first word of a connection string would be taken for one.
            Some((name, value)) if !name.is_empty() && !value.is_empty() && !name.contains([':', '/', ' ']) => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("give a name and what it stands for: orders=...".to_owned()),
        }
    }
}

/// A store that a command is given.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) name: String,
    pub(crate) store: Store,
}

#[derive(Clone, Debug)]
pub(crate) enum Store {
    Postgres(Postgres),
    Sqlite(PathBuf),
    Files(PathBuf),
}

impl Store {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Store::Postgres(_) => "postgres",
            Store::Sqlite(_) => "sqlite",
            Store::Files(_) => "files",
        }
    }
}

impl StoreArgs {
    pub(crate) fn is_empty(&self) -> bool {
        self.postgres.is_empty() && self.postgres_carrier.is_empty() && self.sqlite.is_empty() && self.files.is_empty()
    }

    /// The stores; nothing is opened yet.
    pub(crate) fn given(self) -> Result<Vec<Given>, Failure> {
        let mut all = Vec::new();
        let prepare = self.postgres.into_iter().map(|named| (named, false));
        let carry = self.postgres_carrier.into_iter().map(|named| (named, true));
        for (Named { name, value }, carrier) in prepare.chain(carry) {
            let store = Store::Postgres(postgres(&name, &value, carrier)?);
            all.push(Given { name, store });
        }
        all.extend(
            self.sqlite.into_iter().map(|Named { name, value }| Given { name, store: Store::Sqlite(value.into()) }),
        );
        all.extend(
            self.files.into_iter().map(|Named { name, value }| Given { name, store: Store::Files(value.into()) }),
        );
        let mut names = BTreeSet::new();
        match all.iter().find(|given| !names.insert(&given.name)) {
            Some(Given { name, .. }) => Err(Failure::new(format!("two stores are named {name:?}"))
                .hint("give each store once, under the name that the application has for it")),
            None => Ok(all),
        }
    }
}

fn postgres(name: &str, value: &str, carrier: bool) -> Result<Postgres, Failure> {
    let url = connection_string(value, &format!("{name:?}"))?;
    let config = url.parse::<Config>().map_err(PostgresError::Config).map_err(|error| {
        let failure = Failure::new(format!("can't understand the connection string for {name:?}")).because(&error);
        failure.hint("give a name first: --postgres 'orders=host=127.0.0.1 user=app dbname=orders'")
    })?;
    let builder = Postgres::builder(name, config);
    Ok(if carrier { builder.carrier().build() } else { builder.build() })
}

/// The database that a decision log is in.
pub(crate) fn decisions(url: &str) -> Result<Postgres, Failure> {
    let config = url
        .parse::<Config>()
        .map_err(PostgresError::Config)
        .map_err(|error| Failure::new("can't understand the connection string of the decision log").because(&error))?;
    // It is used as a carrier's is: nothing is prepared there.
    Ok(Postgres::builder("the decision log", config).carrier().build())
}

/// As it was given, or, for `env:VARIABLE`, what that has.
pub(crate) fn connection_string(value: &str, whose: &str) -> Result<String, Failure> {
    let Some(variable) = value.strip_prefix("env:") else { return Ok(value.to_owned()) };
    std::env::var(variable).map_err(|error| {
        Failure::new(format!("the environment variable {variable:?} has no connection string for {whose}"))
            .because(&error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_a_name() {
        let named = |text: &str| text.parse::<Named>().map(|named| (named.name, named.value));
        let both = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(named("orders=host=127.0.0.1 user=app"), both("orders", "host=127.0.0.1 user=app"));
        assert_eq!(named("billing=postgresql://app@db/x?a=b"), both("billing", "postgresql://app@db/x?a=b"));
        for wrong in ["", "orders", "=x", "orders=", "postgresql://app@db/x?a=b", "a b=c"] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
    }
}
