//! TLS, against a server that lets a role in with it only: `sslmode`, whose certificates are believed, and what is said where there is none.
//!
//! The server's certificate in `tls/` is for 127.0.0.1 and lasts a hundred years; the key of its root was thrown away.

#[cfg(not(feature = "postgres-rustls"))]
#[test]
fn what_asks_for_tls_is_told_that_there_is_none() {
    use unanimous::postgres::{Postgres, PostgresError};

    let refused = Postgres::from_url("orders", "host=127.0.0.1 user=app sslmode=require").unwrap_err();
    assert!(matches!(refused, PostgresError::Tls(_)), "{refused:?}");
    assert!(refused.to_string().contains("postgres-rustls"), "{refused}");
    assert!(Postgres::from_url("orders", "host=127.0.0.1 user=app sslmode=prefer").is_ok());
}

#[cfg(feature = "postgres-rustls")]
mod rustls {
    use std::error::Error;
    use std::path::Path;
    use std::process::Command;

    use unanimous::TransactionManager;
    use unanimous::log::MemoryLog;
    use unanimous::postgres::tokio_postgres::{self, Config, NoTls};
    use unanimous::postgres::{JoinPostgres, Postgres, PostgresError};
    use unanimous_testing::postgres::Cluster;

    /// Names the server to a process of this program that has roots of its own.
    const CHILD: &str = "UNANIMOUS_TEST_TLS_URL";

    /// A server with the certificate, and a string for a role that it lets in with TLS only.
    fn cluster() -> (Cluster, String) {
        let mut cluster = Cluster::start().unwrap();
        let (certificate, key) = (include_bytes!("tls/server.pem"), include_bytes!("tls/server.key"));
        cluster.require_tls("secured", certificate, key).unwrap();
        let url = cluster.url_as("secured", "postgres");
        (cluster, url)
    }

    /// Recovery's connections and branches' are let in.
    async fn works(store: Postgres) {
        store.check().await.unwrap();
        let manager = TransactionManager::builder(MemoryLog::new()).resource(store.clone()).build().await.unwrap();
        let tx = manager.begin();
        tx.join(&store).await.unwrap().batch_execute("create table t (v int); drop table t").await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn who_is_believed() {
        let (cluster, url) = cluster();
        let plain = tokio_postgres::connect(&url, NoTls).await.err().unwrap();
        assert_eq!(plain.code().unwrap().code(), "28000", "without TLS it is not let in");

        // To prefer it is to use it, whoever answers.
        works(Postgres::from_url("orders", &url).unwrap()).await;
        works(Postgres::builder("orders", url.parse::<Config>().unwrap()).build()).await;
        let disabled = Postgres::from_url("orders", &format!("{url} sslmode=disable")).unwrap();
        assert!(matches!(disabled.check().await, Err(PostgresError::Connect(_))));
        // Where the server has none, it does without.
        let none = Cluster::shared().database().unwrap();
        Postgres::from_url("orders", &none.url()).unwrap().check().await.unwrap();

        // To require it is to believe the machine's roots, or those that are given.
        let by = |pem: &[u8]| Postgres::builder("orders", url.parse::<Config>().unwrap()).root_certificates(pem);
        works(by(include_bytes!("tls/root.pem")).unwrap().build()).await;
        let stranger = by(include_bytes!("tls/other-root.pem")).unwrap().build().check().await.unwrap_err();
        assert!(format!("{stranger:?}").contains("UnknownIssuer"), "{stranger:?}");
        let name = url.replace("127.0.0.1", "localhost");
        assert_ne!(name, url);
        let name = Postgres::builder("orders", name.parse::<Config>().unwrap());
        let name = name.root_certificates(include_bytes!("tls/root.pem")).unwrap().build().check().await.unwrap_err();
        assert!(format!("{name:?}").contains("NotValidForName"), "another host's certificate: {name:?}");
        for nothing in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let refused = by(nothing.as_bytes()).unwrap_err();
            assert!(matches!(refused, PostgresError::Tls(_)), "{refused:?}");
        }

        // What a server without TLS is told that must have it.
        let none = format!("{} sslmode=require", none.url());
        let none = Postgres::builder("orders", none.parse::<Config>().unwrap());
        let none = none.root_certificates(include_bytes!("tls/root.pem")).unwrap().build().check().await.unwrap_err();
        assert!(none.source().unwrap().to_string().contains("TLS"), "{none:?}");

        let required = format!("{url} sslmode=require");
        for (roots, message) in
            [("root.pem", "it works"), ("other-root.pem", "UnknownIssuer"), ("none", "SSL_CERT_FILE")]
        {
            let said = with_roots_of_the_machine(roots, &required);
            assert!(said.contains(message), "{roots}: {said}");
        }
        drop(cluster);
    }

    /// What a process says whose machine has these roots.
    fn with_roots_of_the_machine(file: &str, url: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/postgres/tls");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["postgres::tls::rustls::a_process_with_roots_of_its_own", "--exact", "--nocapture"])
            .env(CHILD, url)
            .env("SSL_CERT_FILE", folder.join(file))
            .env("SSL_CERT_DIR", "")
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Does nothing by itself: it is what the test above runs.
    #[tokio::test]
    async fn a_process_with_roots_of_its_own() {
        let Ok(url) = std::env::var(CHILD) else { return };
        let store = match Postgres::from_url("orders", &url) {
            Ok(store) => store,
            Err(error) => return println!("{error}"),
        };
        if let Err(error) = store.check().await {
            return println!("{error:?}");
        }
        works(store).await;
        // By a connection string, too.
        let store = Postgres::from_url("orders", &url).unwrap();
        let manager = TransactionManager::builder(MemoryLog::new()).resource(store).build().await.unwrap();
        let tx = manager.begin();
        tx.join_url(&url).await.unwrap().batch_execute("select 1").await.unwrap();
        tx.commit().await.unwrap();
        println!("it works");
    }
}
