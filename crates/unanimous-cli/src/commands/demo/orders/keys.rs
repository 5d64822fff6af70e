//! Where the keys of orders that are sent again are kept: in the store of the orders themselves.
//!
//! Must not know requests.

use unanimous::http::{Found, KeyStore, Lifetime, RequestKey, StoredResponse};
use unanimous::postgres::{IsolationLevel, PostgresKeys, PostgresOptions};
use unanimous::sqlite::SqliteKeys;
use unanimous::{BoxError, Tx};

use super::Orders;

/// The store of keys. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Keys {
    Sqlite(SqliteKeys),
    // Larger than the other.
    Postgres(Box<PostgresKeys>),
}

impl Orders {
    /// Where keys are kept.
    pub(crate) fn keys(&self) -> Keys {
        match self {
            Self::Sqlite(orders) => Keys::Sqlite(SqliteKeys::new(orders)),
            Self::Postgres(databases) => {
                let keys = PostgresKeys::new(&databases.orders.store);
                // The key is looked up before the order joins: whoever is first says how.
                let serializable = PostgresOptions::new().isolation(IsolationLevel::Serializable);
                Keys::Postgres(Box::new(if databases.conflict { keys.options(serializable) } else { keys }))
            }
        }
    }
}

impl KeyStore for Keys {
    async fn begin(&self, tx: &Tx, key: &RequestKey, lifetime: Lifetime) -> Result<Found, BoxError> {
        match self {
            Self::Sqlite(keys) => keys.begin(tx, key, lifetime).await,
            Self::Postgres(keys) => keys.begin(tx, key, lifetime).await,
        }
    }

    async fn keep(
        &self,
        tx: &Tx,
        key: &RequestKey,
        response: &StoredResponse,
        lifetime: Lifetime,
    ) -> Result<(), BoxError> {
        match self {
            Self::Sqlite(keys) => keys.keep(tx, key, response, lifetime).await,
            Self::Postgres(keys) => keys.keep(tx, key, response, lifetime).await,
        }
    }
}
