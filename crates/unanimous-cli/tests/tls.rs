//! TLS, against a server that lets a role in with it only: what every command makes of `sslmode`.

use std::path::Path;
use std::process::Command;

use unanimous_testing::postgres::Cluster;

use crate::support::{binary, told};

/// The library's: for 127.0.0.1, with a root of its own.
const CERTIFICATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../unanimous/tests/postgres/tls");

/// Runs it on a machine that trusts this root only.
fn run(root: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let root = Path::new(CERTIFICATES).join(root);
    let mut command = Command::new(binary());
    command.args(arguments).env("SSL_CERT_FILE", root).env("SSL_CERT_DIR", "").env("RUST_BACKTRACE", "0");
    told(&command.output().unwrap())
}

#[test]
fn a_store_and_a_log_are_reached_with_tls_and_the_server_must_be_who_it_says() {
    let mut cluster = Cluster::start().unwrap();
    let read = |name: &str| std::fs::read(Path::new(CERTIFICATES).join(name)).unwrap();
    cluster.require_tls("secured", &read("server.pem"), &read("server.key")).unwrap();
    let url = |mode: &str| format!("{} sslmode={mode}", cluster.url_as("secured", "postgres"));
    let look = |root: &str, mode: &str| {
        let (code, out, err) = run(root, &["indoubt", &format!("--postgres=orders={}", url(mode))]);
        assert_eq!(err, "");
        (code, out)
    };

    for mode in ["require", "prefer"] {
        let (code, out) = look("root.pem", mode);
        assert!(code == Some(0) && out.contains("\"orders\" (postgres, pg-"), "{mode}: {out}");
    }
    let (code, out) = look("other-root.pem", "require");
    assert!(code == Some(1) && out.contains("\"orders\" (postgres) can't be asked: "), "{out}");
    assert!(out.contains("UnknownIssuer"), "{out}");
    let (code, out) = look("root.pem", "disable");
    assert!(code == Some(1) && out.contains("no encryption"), "{out}");

    // The logs that are in a database too: that there is none there is known to who came in.
    let files = tempfile::tempdir().unwrap();
    let files = format!("--files=receipts={}", files.path().display());
    let log = format!("--log-postgres={}", url("require"));
    for command in [&["indoubt", &log, &files][..], &["recover", &log, "--node=web-1", &files]] {
        let (code, _, err) = run("root.pem", command);
        assert!(code == Some(2) && err.starts_with("error: there is no "), "{command:?}: {err}");
        let (code, _, err) = run("other-root.pem", command);
        assert!(code == Some(2) && err.contains("UnknownIssuer"), "{command:?}: {err}");
    }
}
