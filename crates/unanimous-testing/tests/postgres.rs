//! Private PostgreSQL clusters: what they promise, with real servers.

use std::fs;

use unanimous_testing::postgres::{Cluster, ErrorKind};

fn runs(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn prepare(cluster: &Cluster) {
    cluster
        .psql("postgres", "create table t (x int); begin; insert into t values (1); prepare transaction 'left'")
        .unwrap();
}

fn finish_what_was_prepared(cluster: &Cluster) {
    assert_eq!(cluster.psql("postgres", "select gid from pg_prepared_xacts").unwrap(), "left");
    assert_eq!(cluster.psql("postgres", "commit prepared 'left'; select x from t").unwrap(), "1");
}

#[test]
fn a_prepared_transaction_outlives_kill_9() {
    let mut cluster = Cluster::start().unwrap();
    prepare(&cluster);
    let (port, processes) = (cluster.port(), cluster.processes());
    assert!(processes.len() > 3, "a server has children: {processes:?}");
    cluster.kill().unwrap();
    assert_eq!(cluster.pid(), None);
    assert_eq!(
        processes.into_iter().filter(|&id| runs(id)).collect::<Vec<_>>(),
        Vec::<u32>::new(),
        "these outlived the kill"
    );
    assert_eq!(cluster.psql("postgres", "select 1").unwrap_err().kind(), ErrorKind::Sql);
    cluster.restart().unwrap();
    assert_eq!(cluster.port(), port);
    assert!(cluster.log().contains("was not properly shut down"), "{}", cluster.log());
    finish_what_was_prepared(&cluster);
}

#[test]
fn an_immediate_stop_is_a_crash_and_a_fast_one_is_none() {
    let mut cluster = Cluster::start().unwrap();
    prepare(&cluster);
    cluster.stop_immediate().unwrap();
    cluster.restart().unwrap();
    assert!(cluster.log().contains("was not properly shut down"), "{}", cluster.log());
    finish_what_was_prepared(&cluster);
    let log = cluster.log().len();
    cluster.stop_fast().unwrap();
    cluster.restart().unwrap();
    let log = cluster.log().split_off(log);
    assert!(log.contains("database system is shut down") && !log.contains("was not properly"), "{log}");
}
