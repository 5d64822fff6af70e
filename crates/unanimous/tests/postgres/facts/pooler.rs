//! PgBouncer between the application and the server (<https://www.pgbouncer.org/features.html>).

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use unanimous::TransactionManager;
use unanimous::postgres::{Postgres, PostgresError};
use unanimous_testing::process::Program;

use super::{PATIENCE, Place, Raw, none, state};

/// A running PgBouncer, which shares one session of the server among its clients.
struct Pooler {
    program: Program,
    port: u32,
    _folder: tempfile::TempDir,
}

impl Pooler {
    async fn start(place: &Place, mode: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // One after another, since a port is free only until somebody else listens there; and not where other processes look first.
        static STARTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _one = STARTING.lock().await;
        // Below those that outgoing connections get.
        let mut ports = (0..12_000).map(|i| 20_000 + (std::process::id() + i) % 12_000);
        let port = ports.find(|port| std::net::TcpListener::bind(format!("127.0.0.1:{port}")).is_ok()).unwrap();
        let users = folder.path().join("users");
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = 1\n",
            place.database.cluster().port(),
            users.display()
        );
        std::fs::write(users, "\"postgres\" \"\"\n").unwrap();
        std::fs::write(folder.path().join("settings.ini"), settings).unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        // Debian has it outside of an ordinary user's search path.
        let installed = "/usr/sbin/pgbouncer";
        let program = if std::path::Path::new(installed).exists() { installed } else { "pgbouncer" };
        let mut command = Command::new(program);
        command.arg(folder.path().join("settings.ini"));
        if rustix::process::geteuid().is_root() {
            // It refuses to run as root.
            let id = |which| {
                let output = Command::new("id").args([which, "nobody"]).output().unwrap();
                String::from_utf8(output.stdout).unwrap().trim_end().parse().unwrap()
            };
            command.uid(id("-u")).gid(id("-g"));
        }
        let program = Program::start(&mut command).expect("pgbouncer is installed (apt-get install pgbouncer)");
        let pooler = Self { program, port, _folder: folder };
        let accepts = tokio::time::timeout(PATIENCE, async {
            while Raw::try_open(&pooler.url(place)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(accepts.await.is_ok(), "pgbouncer does not serve: {:?}", pooler.program);
        pooler
    }

    fn url(&self, place: &Place) -> String {
        place
            .database
            .url()
            .replace(&format!("port={}", place.database.cluster().port()), &format!("port={}", self.port))
    }
}

/// One client prepares, another one commits, through the same session of the server.
#[tokio::test]
async fn in_transaction_mode_a_branch_can_be_finished_by_another_client() {
    let place = Place::new().await;
    let pooler = Pooler::start(&place, "transaction").await;
    let (one, other) = (Raw::open(&pooler.url(&place)).await, Raw::open(&pooler.url(&place)).await);
    let gid = place.database.name();
    assert_eq!(one.says("begin; insert into t values ('a')").await, none());
    assert_eq!(one.says(&format!("prepare transaction '{gid}'")).await, none());
    assert_eq!(other.says(&format!("commit prepared '{gid}'")).await, none());
    assert_eq!(place.rows().await, ["a"]);
}

#[tokio::test]
async fn in_statement_mode_there_are_no_branches() {
    let place = Place::new().await;
    let pooler = Pooler::start(&place, "statement").await;
    let raw = Raw::open(&pooler.url(&place)).await;
    assert_eq!(raw.says("begin").await, state("08P01"));
    assert!(raw.says("begin; insert into t values ('a'); prepare transaction 'x'").await.is_err());
    assert_eq!(place.raw.prepared().await, [""; 0]);
}

/// The sessions' guard is an option of the connection, which a pooler takes from nobody: it says so, instead of leaving others with it.
#[tokio::test]
async fn a_store_that_does_not_know_of_the_pooler_is_refused() {
    let place = Place::new().await;
    let pooler = Pooler::start(&place, "transaction").await;
    let error = Postgres::from_url("a", &pooler.url(&place)).unwrap().check().await.unwrap_err();
    assert!(matches!(error, PostgresError::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn a_store_behind_a_pooler_commits_in_two_phases() {
    let (place, other) = (Place::new().await, Place::new().await);
    let pooler = Pooler::start(&place, "transaction").await;
    let a = Postgres::builder("a", pooler.url(&place).parse::<unanimous::postgres::tokio_postgres::Config>().unwrap());
    let (a, b) = (a.pooler().build(), other.store("b"));
    let builder = TransactionManager::builder(super::disk().open()).resource(a.clone()).resource(b.clone());
    let manager = builder.build().await.unwrap();
    for key in ["1", "2"] {
        let tx = manager.begin();
        // Simple queries: statements that are prepared by the protocol need PgBouncer 1.21.
        for (sql, store) in
            [(format!("insert into t values ('{key}')"), &a), (format!("insert into t values ('{key}')"), &b)]
        {
            tx.join(store).await.unwrap().batch_execute(&sql).await.unwrap();
        }
        assert_eq!(tx.commit().await.unwrap().pending, 0);
    }
    assert_eq!((place.rows().await, other.rows().await), (vec!["1".into(), "2".into()], vec!["1".into(), "2".into()]));
    assert_eq!((place.raw.prepared().await, other.raw.prepared().await), Default::default());
    // Nothing is left set on the session that all share.
    let shared = Raw::open(&pooler.url(&place)).await;
    assert_eq!(shared.value("show default_transaction_read_only").await, "off");
    assert_eq!(shared.says("insert into t values ('3')").await, none());
}
