//! `unanimous indoubt` and `recover`, against real servers: what operators see and do after a crash.
//!
//! What a crash leaves is made as a crash leaves it: by a process that is killed, or by what it would have written.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use unanimous::log::FileLog;
use unanimous::postgres::{Postgres, tokio_postgres};
use unanimous::{
    BranchId, Capability, DecisionLog as _, HoldReason, Incarnation, LogId, Owner, Participant, ResourceManager as _,
    TransactionManager,
};
use unanimous_testing::memory::{Call, Journal, MemoryStore};
use unanimous_testing::postgres::{Cluster, Database};
use unanimous_testing::process::Program;

use crate::indoubt_support::{
    Place, branch, database, identity, participants, postgres, prepare, runtime, store, this_process, until, values,
};
use crate::support::{told, unanimous};

const CHILD: &str = "UNANIMOUS_TEST_INDOUBT_CHILD";

/// A client that waits for a table until somebody lets it go.
fn blocked(database: &Database<'_>) -> std::thread::JoinHandle<()> {
    let url = format!("{} application_name=waiter", database.url());
    std::thread::spawn(move || {
        runtime().block_on(async {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute("alter table t add column more text").await.unwrap();
        });
    })
}

/// Prepares in PostgreSQL, and never decides: another store's vote does not come.
async fn never_decides(path: &Path, url: &str) {
    let orders = Postgres::from_url("orders", url).unwrap();
    let slow = MemoryStore::new("slow", Capability::TwoPhase, &Journal::default());
    let _hold = slow.hold_always(Call::Prepare);
    let log = FileLog::open(path).await.unwrap();
    let manager =
        TransactionManager::builder(log).resource(orders.clone()).resource(slow.clone()).build().await.unwrap();
    let tx = manager.begin();
    tx.join(&orders).await.unwrap().batch_execute("insert into t values ('lost')").await.unwrap();
    tx.join(&slow).await.unwrap().put("x").unwrap();
    let _ = tx.commit().await;
}

/// What a process leaves that is killed between prepare and decision: seen while it lives, after its death, and recovered.
#[test]
fn a_process_that_is_killed_before_its_decision() {
    if let Some(child) = std::env::var_os(CHILD) {
        let child = child.into_string().unwrap();
        let (path, url) = child.split_once('|').unwrap();
        return runtime().block_on(never_decides(Path::new(path), url));
    }
    let (place, database) = (Place::new(), database());
    let orders = postgres("orders", &database);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["indoubt::a_process_that_is_killed_before_its_decision", "--exact", "--nocapture"])
        .env(CHILD, format!("{}|{}", place.log().display(), database.url()));
    let mut child = Program::start(&mut command).unwrap();
    let sql = "select gid from pg_prepared_xacts where database = current_database()";
    let gid = until("the prepared branch", || Some(database.psql(sql).unwrap()).filter(|gid| !gid.is_empty()));
    let id: BranchId = gid.parse().unwrap();
    let waiter = blocked(&database);
    let waits = "select pid from pg_stat_activity where application_name = 'waiter' and wait_event_type = 'Lock'";
    let pid = until("the blocked session", || Some(database.psql(waits).unwrap()).filter(|pid| !pid.is_empty()));

    let alive = place.branch(&[&orders], &id);
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap();
    let who = format!("the process {} ({})", child.id(), comm.trim());
    assert_eq!(
        alive,
        [
            "prepared    TIME by the role \"postgres\"".to_owned(),
            "decision    none".to_owned(),
            format!("in doubt    not decided yet: {who} is running, and may still commit it"),
            "holds       public.t RowExclusiveLock".to_owned(),
            format!("blocks      the session {pid} of the role \"postgres\" (waiter), since TIME: alter table t add column more text"),
            "do          leave it to that process; where it stays for minutes, look there what its transaction waits for"
                .to_owned(),
        ]
    );

    child.kill().unwrap();
    let dead = place.branch(&[&orders], &id);
    assert_eq!(
        dead[1..3],
        ["decision    abort", "in doubt    never decided, so that it is aborted: its process has ended"]
    );
    assert_eq!(dead[5], "do          start the application, which recovers at its start, or run `unanimous recover`");

    let expected = format!("rolled back {id} in \"orders\"\nfinished 1, in doubt 0\n");
    assert_eq!(place.run(&["recover"], &[&orders]), (Some(0), expected, String::new()));
    waiter.join().unwrap();
    assert_eq!(values(&database), "");
    let (code, out, err) = place.run(&["indoubt"], &[&orders]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(
        out.ends_with("in doubt 0, decisions that wait for other stores 0, stores that can't be asked 0, not ours 0\n"),
        "{out}"
    );
}

/// A decision that a running process carries out is that process's; once it is gone, recovery's.
#[test]
fn what_is_decided_is_left_to_the_process_and_then_recovered() {
    let (place, one, two) = (Place::new(), database(), database());
    let (orders, billing) = (postgres("orders", &one), postgres("billing", &two));
    let transaction = place.decided(participants(&[("orders", &one), ("billing", &two)]));
    let [first, second] = [0, 1].map(|number| branch(transaction, number));
    prepare(&one, &first);
    prepare(&two, &second);

    let runtime = runtime();
    let log = runtime.block_on(FileLog::open(place.log())).unwrap();
    let lines = place.branch(&[&orders, &billing], &second);
    assert_eq!(
        lines[1..3],
        [
            "decision    commit, TIME, note \"order 7\"".to_owned(),
            "in doubt    decided to commit, and its store has not finished it".to_owned(),
        ]
    );
    let advice = format!(
        "do          {} commits it by itself, at most a minute after its store can do it; where it does not, see what it logs",
        this_process()
    );
    assert_eq!(*lines.last().unwrap(), advice);
    let held = format!(
        "error: the process {} has the decision log {} open, and recovers by itself\n\
         hint: see with `unanimous indoubt` what is in doubt and why; to recover from here, stop that process first\n",
        std::process::id(),
        place.log().display()
    );
    assert_eq!(place.run(&["recover"], &[&orders, &billing]), (Some(2), String::new(), held));
    assert_eq!([values(&one), values(&two)], ["", ""]);
    runtime.block_on(log.close());

    let (code, out, err) = place.run(&["recover"], &[&orders, &billing]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let mut lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.pop(), Some("finished 2, in doubt 0"));
    lines.sort_unstable();
    assert_eq!(lines, [format!("committed {first} in \"orders\""), format!("committed {second} in \"billing\"")]);
    assert_eq!([values(&one), values(&two)], ["0", "1"]);
    let view = unanimous::log::read(place.log()).unwrap();
    assert_eq!(view.unfinished().len(), 0, "the decision is finished");
}

/// The operator's decision: explained and refused, then done and recorded, and told wherever somebody looks.
#[test]
fn a_heuristic_rollback_is_refused_explained_recorded_and_told() {
    let (place, one, two) = (Place::new(), database(), database());
    let (orders, billing) = (postgres("orders", &one), postgres("billing", &two));
    let transaction = place.decided(participants(&[("orders", &one), ("billing", &two)]));
    let [first, second] = [0, 1].map(|number| branch(transaction, number));
    prepare(&one, &first);
    prepare(&two, &second);
    let stores = [orders.as_str(), billing.as_str()];

    let id = first.to_string();
    let explained = format!(
        "{id} in \"orders\"\n  decision    commit: decided to commit, and its store has not finished it\n  \
         otherwise   start the application, which recovers at its start, or run `unanimous recover`\n  \
         rollback    HEURISTIC: against the decision to commit. The other branches are committed or will be, and nothing undoes that: \
         the transaction would be torn, for good\n"
    );
    let refused = "error: nothing was done, since --yes was not given\n\
         hint: read docs/operating/in-doubt.md first; recovery decides by the log, and needs no operator but where it holds\n";
    assert_eq!(place.run(&["indoubt", "rollback", &id], &stores), (Some(2), explained.clone(), refused.to_owned()));
    let record = place.log().join("operator.jsonl");
    assert!(!record.exists());
    // What can't be recorded is not done.
    let (code, _, err) = place.run(&["indoubt", "rollback", &id, "--yes", "--record=/nowhere/acts"], &stores);
    assert_eq!(code, Some(2));
    assert!(
        err.starts_with(
            "error: nothing was done, since it could not be recorded in /nowhere/acts\ncaused by: No such file"
        ),
        "{err}"
    );
    assert_eq!(place.branch(&stores, &first).len(), 5, "it is there still");

    let done = format!(
        "{explained}rolled back {id} in \"orders\"; it is not listed any more\nrecorded in {}\n\
         HEURISTIC: the transaction is torn now. Repair it by hand, and tell those who use the data: docs/operating/heuristics.md\n",
        record.display()
    );
    assert_eq!(place.run(&["indoubt", "rollback", &id, "--yes"], &stores), (Some(0), done, String::new()));
    let lines: Vec<Value> =
        std::fs::read_to_string(&record).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["kind"], &lines[0]["act"], &lines[0]["branch"]),
        (&"begin".into(), &"rollback".into(), &id.as_str().into())
    );
    assert_eq!((&lines[0]["decision"], &lines[0]["heuristic"]), (&"commit".into(), &true.into()));
    assert_eq!((&lines[1]["kind"], &lines[1]["result"]), (&"end".into(), &"done".into()));

    // Once more: it is not there any more, and nothing is recorded.
    let (code, _, err) = place.run(&["indoubt", "rollback", &id, "--yes"], &stores);
    assert_eq!(code, Some(2));
    assert_eq!(
        err,
        format!(
            "error: no store that was given lists the branch {id}\n\
         hint: it is finished already, or its store is not among those that were given and answer\n"
        )
    );
    let text = format!("TIME rollback of {id} in \"orders\", HEURISTIC, against the decision (commit): done");
    let (_, out, _) = place.run(&["log", "show"], &[]);
    assert!(out.contains(&format!("done by operators: 1\n  {text}\n")), "{out}");
    let (_, out, _) = place.run(&["log", "show", "--json"], &[]);
    assert!(out.contains(r#""kind":"operator""#) && out.contains(r#""heuristic":true"#), "{out}");

    let expected = format!("committed {second} in \"billing\"\nfinished 1, in doubt 0\n");
    assert_eq!(place.run(&["recover"], &stores), (Some(0), expected, String::new()));
    assert_eq!([values(&one), values(&two)], ["", "1"], "torn, as was said");
}

/// Beside a running process there is always something prepared; what has gone half a second later was never stuck.
#[test]
fn what_is_just_being_committed_is_not_in_doubt() {
    let (place, database) = (Place::new(), database());
    let orders = postgres("orders", &database);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let log = runtime.block_on(FileLog::open(place.log())).unwrap();
    let (url, owner) = (database.url(), log.owner());
    // The next one is prepared before the last one is finished.
    let busy = runtime.spawn(async move {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        for sequence in 1.. {
            let [last, next] = [sequence, sequence + 1].map(|sequence| branch(owner.transaction(sequence), 0));
            let sql = format!("begin; insert into t values ('x'); prepare transaction '{next}'");
            client.batch_execute(&sql).await.unwrap();
            if sequence > 1 {
                client.batch_execute(&format!("rollback prepared '{last}'")).await.unwrap();
            }
        }
    });
    let sql = "select count(*) from pg_prepared_xacts where database = current_database()";
    until("the first branch", || (database.psql(sql).unwrap() != "0").then_some(()));
    // A machine that stalls can make one look stuck once, but not each time.
    until("a look without doubts", || (place.run(&["indoubt"], &[&orders]).0 == Some(0)).then_some(()));
    busy.abort();
    assert!(runtime.block_on(busy).unwrap_err().is_cancelled());
    runtime.block_on(log.close());
    let (code, out, err) = place.run(&["recover"], &[&orders]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
}

/// What recovery holds is what operators are for: here a branch whose log is lost.
#[test]
fn a_branch_without_its_log_can_be_finished_by_hand() {
    let (place, database) = (Place::new(), database());
    let orders = postgres("orders", &database);
    let lost = Owner { log: LogId(7), incarnation: Incarnation::new(3, 3) };
    let id = branch(lost.transaction(1), 0);
    prepare(&database, &id);
    let own = place.incarnation();

    let lines = place.branch(&[&orders], &id);
    assert_eq!(
        lines[1..3],
        ["decision    unknown", "in doubt    begun by another decision log; ask the process that owns it"]
    );
    let advice =
        format!("do          leave it to the application whose log is {}; look with that log to see more", lost.log);
    assert_eq!(*lines.last().unwrap(), advice);
    let (code, out, err) = place.run(&["recover"], &[&orders]);
    let held = format!(
        "in doubt: {id} in \"orders\": held: begun by another decision log; ask the process that owns it\nfinished 0, in doubt 1\n"
    );
    assert_eq!((code, out, err), (Some(1), held, String::new()));

    // Without a log there must be a place to record it.
    let text = id.to_string();
    let (code, _, err) = told(&unanimous(["indoubt", "commit", &text, &orders, "--yes"]));
    assert_eq!(code, Some(2));
    assert_eq!(
        err,
        "error: there is no place to record it\nhint: give the log's folder, --log DIR, or a file of your own, --record FILE\n"
    );
    let record = place.folder.path().join("acts.jsonl");
    let to = format!("--record={}", record.display());
    let (code, out, err) = told(&unanimous(["indoubt", "commit", &text, &orders, &to, "--yes"]));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("nobody knows from here what is decided") && out.contains("\ncommitted u1:"), "{out}");
    assert!(std::fs::read_to_string(&record).unwrap().contains(r#""heuristic":null"#));
    assert_eq!(values(&database), "0");
    assert_ne!(own.log, lost.log);
}

/// A store that is down is named, and so is what waits for it; when it is back, its branches and what they hold are there.
#[test]
fn a_server_that_is_down_is_named_and_recovered_when_it_is_back() {
    let mut cluster = Cluster::start().unwrap();
    cluster.create_database("orders").unwrap();
    cluster.psql("orders", "create table t (v text)").unwrap();
    let url = cluster.url("orders");
    let store = Postgres::from_url("orders", &url).unwrap();
    let place = Place::new();
    let participant = Participant { number: 0, resource: "orders".into(), store: Some(identity(&store)) };
    let transaction = place.decided(vec![participant]);
    let id = branch(transaction, 0);
    cluster.psql("orders", &format!("begin; insert into t values ('0'); prepare transaction '{id}'")).unwrap();
    let orders = format!("--postgres=orders={url}");
    cluster.kill().unwrap();

    let (code, out, err) = place.run(&["indoubt"], &[&orders]);
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines[1].starts_with(
            "\"orders\" (postgres) can't be asked: can't connect to PostgreSQL: error connecting to server: "
        ),
        "{out}"
    );
    assert_eq!(
        lines[2..],
        [
            format!("decided to commit at TIME, and it can't be told whether it is finished: {transaction}").as_str(),
            "    waits for   \"orders\" (can't be asked)",
            "in doubt 0, decisions that wait for other stores 1, stores that can't be asked 1, not ours 0",
        ]
    );
    let (code, out, err) = place.run(&["recover"], &[&orders]);
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    assert!(
        out.starts_with("in doubt: \"orders\": the store can't be asked: ")
            && out.ends_with("\nfinished 0, in doubt 1\n"),
        "{out}"
    );
    let (code, out, err) = place.run(&["indoubt", "commit", &id.to_string(), "--yes"], &[&orders]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("\n\"orders\" can't be asked: can't connect to PostgreSQL"), "{err}");

    cluster.restart().unwrap();
    let lines = place.branch(&[&orders], &id);
    assert_eq!(lines[1], "decision    commit, TIME, note \"order 7\"");
    assert_eq!(
        lines[3], "holds       public.t RowExclusiveLock",
        "under another virtual transaction since the restart"
    );
    let expected = format!("committed {id} in \"orders\"\nfinished 1, in doubt 0\n");
    assert_eq!(place.run(&["recover"], &[&orders]), (Some(0), expected, String::new()));
    assert_eq!(cluster.psql("orders", "select v from t").unwrap(), "0");
}

#[test]
fn another_programs_transaction_is_listed_apart_and_never_touched() {
    let (place, database) = (Place::new(), database());
    let orders = postgres("orders", &database);
    place.incarnation();
    let gid = format!("other-{}", database.name());
    database.psql(&format!("begin; insert into t values ('x'); prepare transaction '{gid}'")).unwrap();
    let (code, out, err) = place.run(&["indoubt"], &[&orders]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let line =
        format!("  not ours: {gid:?}, prepared TIME by the role \"postgres\"; leave it to whoever prepared it\n");
    assert!(out.contains(&line), "{out}");
    let (code, out, err) = place.run(&["indoubt", "--json"], &[&orders]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["log", "store", "other", "summary"]);
    assert_eq!((&lines[2]["id"], &lines[0]["open"]), (&gid.as_str().into(), &false.into()));
    assert_eq!(place.run(&["recover"], &[&orders]).1, "finished 0, in doubt 0\n");
    let (code, _, err) = place.run(&["indoubt", "rollback", &gid, "--yes"], &[&orders]);
    assert!(code == Some(2) && err.starts_with("error: that is no branch of ours\n"), "{err}");
    assert_eq!(database.psql(&format!("rollback prepared '{gid}'")).unwrap(), "");
}

/// A log from a backup does not know what was decided after it: presuming would undo commits.
#[test]
fn a_restored_log_presumes_nothing_once_it_is_told() {
    let (place, database) = (Place::new(), database());
    let orders = postgres("orders", &database);
    let before = place.incarnation();
    let id = branch(before.transaction(1), 0);
    prepare(&database, &id);
    let (code, out, err) = place.run(&["log", "restored"], &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let told = format!(
        "log {} in {}: nothing is presumed of what began before the incarnation 2.",
        before.log,
        place.log().display()
    );
    assert!(out.starts_with(&told), "{out}");
    let (code, out, err) = place.run(&["recover"], &[&orders]);
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    let held = format!("in doubt: {id} in \"orders\": held: {}\nfinished 0, in doubt 1\n", HoldReason::BeyondHorizon);
    assert_eq!(out, held);
    let lines = place.branch(&[&orders], &id);
    assert_eq!(
        lines[1..3],
        ["decision    unknown", "in doubt    nothing is presumed of it: older than the decisions that are kept",]
    );
    let (code, _, err) = place.run(&["indoubt", "rollback", &id.to_string(), "--yes"], &[&orders]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(values(&database), "");
}

#[test]
fn no_log_or_a_damaged_one_is_told() {
    let (place, database) = (Place::new(), database());
    let orders = postgres("orders", &database);
    let missing = format!("caused by: there is no decision log in {}\n", place.log().display());
    for (command, failed) in [("indoubt", "can't read"), ("recover", "can't open")] {
        let expected = format!(
            "error: {failed} the decision log\n{missing}hint: give the folder of the application's decision log: --log DIR\n"
        );
        assert_eq!(place.run(&[command], &[&orders]), (Some(2), String::new(), expected));
    }
    assert!(!place.log().exists(), "no log was begun: an empty one would know of nothing");

    let id = branch(place.decided(participants(&[("orders", &database)])), 0);
    prepare(&database, &id);
    // The next incarnation's segment begins with what was known; in it the decision can't be read any more.
    place.incarnation();
    let segment = std::fs::read_dir(place.log()).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let places: Vec<usize> = (0..bytes.len() - 6).filter(|&at| bytes[at..].starts_with(b"orders")).collect();
    for at in &places {
        bytes[*at] ^= 1;
    }
    std::fs::write(&segment, &bytes).unwrap();
    let lines = place.branch(&[&orders], &id);
    assert_ne!(lines[1], "decision    abort", "what can't be read may be its decision");
    runtime().block_on(store("orders", &database).rollback(&id)).unwrap();
}
