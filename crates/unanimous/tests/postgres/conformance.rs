//! The kit's conformance suite on the adapter.

use unanimous::BoxError;
use unanimous::postgres::deadpool_postgres::{Manager, Pool};
use unanimous::postgres::tokio_postgres::{Config, NoTls};
use unanimous::postgres::{Postgres, PostgresBranch};
use unanimous_testing::conformance::{self, Subject};
use unanimous_testing::postgres::{Cluster, Database};

/// A database that prepares, the same on a pool of the application's, or one that is named a carrier.
enum Kind {
    TwoPhase,
    Pooled,
    Carrier,
}

const TABLES: &str = "create table t (key text primary key); create table parent (key text primary key); \
    create table child (key text references parent deferrable initially deferred)";

impl Subject for Kind {
    type Resource = Postgres;
    type Place = Database<'static>;

    async fn place(&self) -> Result<Database<'static>, BoxError> {
        let database = Cluster::shared().database()?;
        database.psql(TABLES)?;
        Ok(database)
    }

    async fn open(&self, place: &Database<'static>) -> Result<Postgres, BoxError> {
        let config = place.url().parse::<Config>()?;
        if matches!(self, Kind::Pooled) {
            return Ok(Postgres::new("database", Pool::builder(Manager::new(config, NoTls)).max_size(4).build()?));
        }
        let builder = Postgres::builder("database", config);
        Ok(match self {
            Kind::TwoPhase | Kind::Pooled => builder.build(),
            Kind::Carrier => builder.carrier().build(),
        })
    }

    async fn write(&self, branch: &PostgresBranch, key: &str) -> Result<(), BoxError> {
        branch.execute("insert into t values ($1)", &[&key]).await?;
        Ok(())
    }

    async fn is_there(&self, place: &Database<'static>, key: &str) -> Result<bool, BoxError> {
        Ok(place.psql(&format!("select count(*) from t where key = '{key}'"))? == "1")
    }

    async fn read(&self, branch: &PostgresBranch) -> Result<(), BoxError> {
        branch.query("select * from t", &[]).await?;
        Ok(())
    }

    /// A foreign key that is checked at the vote.
    async fn write_in_vain(&self, _: &Database<'static>, branch: &PostgresBranch, key: &str) -> Result<bool, BoxError> {
        branch.execute("insert into child values ($1)", &[&key]).await?;
        Ok(true)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_two_phase_database_conforms() {
    let report = conformance::run(Kind::TwoPhase).await;
    println!("{report}");
    assert!(report.passed.contains(&"managed::a_vote_that_lands_late"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_on_a_pool_of_the_applications_conforms() {
    let report = conformance::run(Kind::Pooled).await;
    println!("{report}");
    assert!(report.passed.contains(&"managed::a_vote_that_lands_late"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carrier_database_conforms() {
    let report = conformance::run(Kind::Carrier).await;
    println!("{report}");
    assert!(report.passed.contains(&"carrier::a_fence_keeps_the_late_one_out"), "{report}");
}
