//! Private PostgreSQL clusters: what they promise, with real servers.
//!
//! A test whose process is to be killed starts this test binary again with its own name; an environment variable tells it that it is the
//! child.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use unanimous_testing::postgres::{Cluster, ErrorKind};
use unanimous_testing::process::Program;

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const CHILD: &str = "UNANIMOUS_TEST_CLUSTER_CHILD";

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Those that run; a zombie does not, it waits for somebody to ask how it ended.
fn running(processes: &[u32]) -> Vec<u32> {
    let state = |id: u32| fs::read_to_string(format!("/proc/{id}/stat")).ok()?.rsplit_once(") ")?.1.chars().next();
    processes.iter().copied().filter(|&id| state(id).is_some_and(|state| state != 'Z')).collect()
}

fn assert_ended(processes: &[u32]) {
    let left = running(processes);
    assert!(left.is_empty(), "of {processes:?}, these still run: {left:?}");
}

/// The System V segments of the machine that can be found; one that was removed while somebody uses it has lost its key.
fn segments() -> Vec<String> {
    let text = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let lines = text.lines().filter_map(|line| line.split_whitespace().next().zip(line.split_whitespace().nth(1)));
    lines.filter(|&(key, _)| key != "0").map(|(_, id)| id.to_owned()).collect()
}

fn segment(cluster: &Cluster) -> String {
    let text = fs::read_to_string(cluster.data().join("postmaster.pid")).unwrap();
    text.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

/// A folder that another user can reach, since the servers of root are another's.
fn reachable() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

fn prepare(cluster: &Cluster) {
    let sql = "create table t (x int); begin; insert into t values (1); prepare transaction 'left'";
    cluster.psql("postgres", sql).unwrap();
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
    assert_ended(&processes);
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

/// A session that computes does not see that the postmaster has gone, and would hold the data against a restart.
#[test]
fn a_busy_session_does_not_outlive_kill_9() {
    let mut cluster = Cluster::start().unwrap();
    let (url, psql) = (cluster.url("postgres"), unanimous_testing::postgres::binaries().unwrap().join("psql"));
    let busy = "do $$ begin loop end loop; end $$";
    let mut client = Program::start(Command::new(psql).args(["-X", "-d", &url, "-c", busy])).unwrap();
    let is_busy = "select count(*) from pg_stat_activity where query like 'do %' and state = 'active'";
    wait_until("the busy session", || cluster.psql("postgres", is_busy).unwrap() == "1");
    let processes = cluster.processes();
    cluster.kill().unwrap();
    assert_ended(&processes);
    assert!(!client.wait(PATIENCE).unwrap().success());
    cluster.restart().unwrap();
}

#[test]
fn nothing_is_left_of_a_dropped_cluster() {
    let cluster = Cluster::start().unwrap();
    let (processes, folder, shared) = (cluster.processes(), cluster.data(), segment(&cluster));
    assert!(running(&processes) == processes && folder.exists() && segments().contains(&shared));
    drop(cluster);
    assert_ended(&processes);
    assert!(!folder.parent().unwrap().exists(), "{} is still there", folder.display());
    assert!(!segments().contains(&shared));
}

#[test]
fn nothing_is_left_of_a_cluster_that_was_killed_and_dropped() {
    let mut cluster = Cluster::start().unwrap();
    let (folder, shared) = (cluster.data(), segment(&cluster));
    cluster.kill().unwrap();
    assert!(segments().contains(&shared), "a killed server leaves its segment");
    drop(cluster);
    assert!(!folder.parent().unwrap().exists(), "{} is still there", folder.display());
    assert!(!segments().contains(&shared));
}

/// A server that is halted does not hear that it should end.
#[test]
fn a_halted_cluster_is_dropped_all_the_same() {
    let mut cluster = Cluster::start().unwrap();
    let processes = cluster.processes();
    cluster.signal(rustix::process::Signal::STOP).unwrap();
    drop(cluster);
    assert_ended(&processes);
}

#[test]
fn nothing_is_left_of_the_clusters_of_a_killed_process() {
    if std::env::var_os(CHILD).is_some() {
        // Started by a thread that ends, which must not end the server.
        let cluster = thread::spawn(|| Cluster::start().unwrap()).join().unwrap();
        assert_eq!(cluster.psql("postgres", "select 1").unwrap(), "1");
        println!("> {:?} {}", cluster.processes(), cluster.data().display());
        loop {
            thread::park();
        }
    }
    let test = "postgres::nothing_is_left_of_the_clusters_of_a_killed_process";
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = Program::start(command.args([test, "--exact", "--nocapture"]).env(CHILD, "1")).unwrap();
    let said = child.wait_for_line(PATIENCE, |line| line.strip_prefix("> [").map(str::to_owned)).unwrap();
    let (ids, data) = said.split_once("] ").unwrap();
    let processes: Vec<u32> = ids.split(", ").map(|id| id.parse().unwrap()).collect();
    assert_eq!(running(&processes), processes);
    child.kill().unwrap();
    wait_until("the end of the server", || running(&processes).is_empty());
    wait_until("the end of its folder", || !Path::new(data).parent().unwrap().exists());
}

#[test]
fn it_runs_as_another_user_only_for_root() {
    let cluster = Cluster::start().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.pid().unwrap())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().split_whitespace();
    let user: u32 = field("Uid:").next().unwrap().parse().unwrap();
    let ours = rustix::process::geteuid();
    if ours.is_root() {
        assert_ne!(user, 0);
        assert!(!field("Groups:").any(|group| group == "0"), "root's groups came along: {status}");
    } else {
        assert_eq!(user, ours.as_raw());
    }
    let data = fs::metadata(cluster.data()).unwrap();
    assert_eq!((data.uid(), data.mode() & 0o777), (user, 0o700));
    assert_eq!(cluster.psql("postgres", "show fsync; show listen_addresses").unwrap(), "on\n127.0.0.1");
}

#[test]
fn a_folder_that_its_user_cant_reach_is_named() {
    if !rustix::process::geteuid().is_root() {
        // For an ordinary user there is no other user: what it may not reach is a folder that it may not write.
        let error = Cluster::builder().folder("/proc/unanimous").start().unwrap_err();
        assert!(error.kind() == ErrorKind::Setup && error.to_string().contains("/proc/unanimous"), "{error}");
        return;
    }
    let closed = tempfile::tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = Cluster::builder().folder(closed.path().join("inside")).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Setup);
    assert!(error.to_string().contains("chmod o+x"), "{error}");
}

#[test]
fn data_in_a_given_folder_are_there_again() {
    let folder = reachable();
    let inside = folder.path().join("cluster");
    // What a kill while data are made would leave is not taken for data.
    fs::create_dir_all(inside.join("data.new")).unwrap();
    fs::write(inside.join("data.new/PG_VERSION"), "").unwrap();
    let first = Cluster::builder().folder(&inside).start().unwrap();
    prepare(&first);
    drop(first);
    let second = Cluster::builder().folder(&inside).start().unwrap();
    finish_what_was_prepared(&second);
}

#[test]
fn a_folder_in_use_is_left_alone() {
    let folder = reachable();
    let first = Cluster::builder().folder(folder.path()).start().unwrap();
    let shared = segment(&first);
    let error = Cluster::builder().folder(folder.path()).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Start);
    assert!(error.to_string().contains("lock file \"postmaster.pid\" already exists"), "{error}");
    assert!(segments().contains(&shared), "the shared memory of the one that runs was removed");
    assert_eq!(first.psql("postgres", "select 1").unwrap(), "1");
}

#[test]
fn a_restart_waits_for_its_port() {
    let mut cluster = Cluster::start().unwrap();
    cluster.stop_fast().unwrap();
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, cluster.port())).unwrap();
    let data = cluster.data();
    thread::scope(|scope| {
        scope.spawn(move || {
            // It has tried, and given up once.
            let log = data.parent().unwrap().join("server.log");
            wait_until("a failing start", || fs::read_to_string(&log).unwrap().contains("Address already in use"));
            drop(holder);
        });
        cluster.restart().unwrap();
    });
    assert_eq!(cluster.psql("postgres", "show port").unwrap(), cluster.port().to_string());
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let error = Cluster::builder().setting("max_connections", "it's many").start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Start);
    assert!(error.to_string().contains("invalid value for parameter \"max_connections\": \"it's many\""), "{error}");
}

#[test]
fn psql_runs_statements_one_by_one_and_tells_the_sqlstate() {
    let cluster = Cluster::shared();
    // Neither is allowed in a block, which several statements in one message are.
    let sql = "create database one_by_one; drop database one_by_one; select 1, 'a b'; select 2";
    assert_eq!(cluster.psql("postgres", sql).unwrap(), "1|a b\n2");
    let error = cluster.psql("postgres", "select 1; select 1/0; select 3").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Sql);
    assert!(error.to_string().contains("22012"), "{error}");
}

#[test]
fn names_may_be_odd() {
    let cluster = Cluster::shared();
    let name = r#"it's a "\ name"#;
    cluster.create_database(name).unwrap();
    assert_eq!(cluster.psql(name, "select current_database()").unwrap(), name);
    assert_eq!(cluster.url_as("app", "x"), format!("host=127.0.0.1 port={} user=app dbname=x", cluster.port()));
}

#[test]
fn tests_share_a_cluster_and_no_database() {
    let (one, other) = (Cluster::shared().database().unwrap(), Cluster::shared().database().unwrap());
    one.psql("create table t (); create role test_role").unwrap();
    assert_eq!(other.psql("select to_regclass('t') is null").unwrap(), "t");
    assert_eq!(one.url(), Cluster::shared().url(one.name()));
    assert_eq!(one.cluster().pid(), other.cluster().pid());
}

#[test]
fn a_setting_is_in_force_when_set_returns() {
    let mut cluster = Cluster::builder().setting("lock_timeout", "3s").start().unwrap();
    assert_eq!(cluster.psql("postgres", "show lock_timeout").unwrap(), "3s");
    cluster.set("lock_timeout", "5s").unwrap();
    assert_eq!(cluster.psql("postgres", "show lock_timeout").unwrap(), "5s");
    cluster.set("max_prepared_transactions", 7).unwrap();
    cluster.restart().unwrap();
    assert_eq!(cluster.psql("postgres", "show max_prepared_transactions; show lock_timeout").unwrap(), "7\n5s");
}

#[test]
fn a_replica_streams_waits_and_is_promoted() {
    let mut primary = Cluster::builder().setting("max_prepared_transactions", 9).start().unwrap();
    primary.psql("postgres", "create table t (x int)").unwrap();
    let mut replica = primary.replica("second").start().unwrap();
    assert_eq!(primary.psql("postgres", "select pg_is_in_recovery()").unwrap(), "f");
    assert_eq!(replica.psql("postgres", "select pg_is_in_recovery(); show max_prepared_transactions").unwrap(), "t\n9");
    assert_ne!(primary.port(), replica.port());

    primary.set("synchronous_standby_names", "second").unwrap();
    let state = "select sync_state from pg_stat_replication where application_name = 'second'";
    wait_until("a synchronous replica", || primary.psql("postgres", state).unwrap() == "sync");
    primary.psql("postgres", "set synchronous_commit = remote_apply; insert into t values (1)").unwrap();
    assert_eq!(replica.psql("postgres", "select x from t").unwrap(), "1");

    // Another one that was made now, and promoted, would wait for itself if it had this setting too.
    let third = primary.replica("third").start().unwrap();
    assert_eq!(third.psql("postgres", "show synchronous_standby_names").unwrap(), "");
    drop(third);

    // A replica that comes back goes on where it was.
    replica.kill().unwrap();
    primary.psql("postgres", "set synchronous_commit = local; insert into t values (2)").unwrap();
    replica.restart().unwrap();
    primary.psql("postgres", "set synchronous_commit = remote_apply; insert into t values (3)").unwrap();
    assert_eq!(replica.psql("postgres", "select x from t order by x").unwrap(), "1\n2\n3");

    primary.kill().unwrap();
    replica.promote().unwrap();
    replica.psql("postgres", "insert into t values (4)").unwrap();
    assert_eq!(replica.psql("postgres", "select pg_is_in_recovery(), count(*) from t").unwrap(), "f|4");
}
