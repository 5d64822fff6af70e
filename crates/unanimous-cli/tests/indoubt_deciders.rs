//! `unanimous indoubt` and `recover`, where something else than a log in files decides: a store that takes part, a node's log in a database.

use unanimous::files::Files;
use unanimous::log::FileLog;
use unanimous::postgres::PostgresLog;
use unanimous::sqlite::{Sqlite, rusqlite};
use unanimous::{
    Branch as _, BranchContext, BranchId, DeciderId, Decision, DecisionLog as _, DecisionRecord, Note,
    ResourceManager as _, Roster, StoreTag,
};

use crate::indoubt_support::{
    Place, branch, database, identity, masked, participants, postgres, prepare, runtime, store, values,
};
use crate::support::{told, unanimous};

/// A branch in files, whose decision a SQLite database carries: there it is asked for, and nowhere else.
#[test]
fn a_branch_in_files_that_a_sqlite_database_decides() {
    let place = Place::new();
    let (root, path) = (place.folder.path().join("receipts"), place.folder.path().join("orders.db"));
    let transaction = place.incarnation().transaction(1);
    let (id, decider) = runtime().block_on(async {
        let sqlite = Sqlite::open("orders", &path).await.unwrap();
        let decider = sqlite.identity().await.unwrap();
        sqlite.close().await.unwrap();
        let files = Files::open("receipts", &root).await.unwrap();
        let id = BranchId { transaction, decider: DeciderId::Store(decider.clone()), number: 0 };
        let work = files.begin(&BranchContext::new(transaction), ()).await.unwrap();
        work.create("7.json", "tea").await.unwrap();
        work.flush().await.unwrap();
        work.prepare(&id).await.unwrap();
        (id, decider)
    });
    let (orders, receipts) =
        (format!("--sqlite=orders={}", path.display()), format!("--files=receipts={}", root.display()));
    let prepared = root.join(format!(".unanimous/prepared/{id}.prepared"));

    let lines = place.branch(&[&receipts], &id);
    assert_eq!(
        lines,
        [
            "prepared    TIME".to_owned(),
            "decision    unknown".to_owned(),
            format!("in doubt    the store {decider} decides it, and was not given"),
            "holds       the file 7.json".to_owned(),
            "do          give that store too (--sqlite, --postgres)".to_owned(),
        ]
    );
    // Under this name it would be the folder's own decision, which nobody else is asked for.
    let decided = prepared.with_extension("decided");
    std::fs::rename(&prepared, &decided).unwrap();
    let lines = place.branch(&[&receipts], &id);
    assert_eq!(
        lines[1..3],
        ["decision    commit, TIME", "in doubt    decided to commit by its own store, which has not completed it"]
    );
    std::fs::rename(&decided, &prepared).unwrap();

    let stores = [receipts.as_str(), orders.as_str()];
    let lines = place.branch(&stores, &id);
    assert_eq!(lines[1], "decision    none");
    assert_eq!(
        lines[2],
        "in doubt    \"orders\" decides it, and has no row of it; never decided, so that it is aborted: its process has ended"
    );

    let database = rusqlite::Connection::open(&path).unwrap();
    let row = "insert into unanimous_decision (transaction_id, log, counter, outcome, decided_at) values (?1, ?2, ?3, 'commit', 1600000000000000)";
    let counter = transaction.incarnation.counter;
    database.execute(row, (transaction.to_string(), transaction.log.to_string(), counter)).unwrap();
    let participant = "insert into unanimous_participant values (?1, 0, 'receipts', ?2)";
    let files = identity(&Files::new("receipts", &root));
    database.execute(participant, (transaction.to_string(), files.as_str())).unwrap();
    drop(database);
    let lines = place.branch(&stores, &id);
    assert_eq!(
        lines[1..3],
        ["decision    commit, TIME", "in doubt    decided to commit, and its store has not finished it"]
    );
    assert!(!root.join("7.json").exists());
    let (code, out, err) = place.run(&["recover"], &stores);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert_eq!(out, format!("committed {id} in \"receipts\"\nfinished 1, in doubt 0\n"));
    assert_eq!(std::fs::read_to_string(root.join("7.json")).unwrap(), "tea");
}

/// Early acknowledgement: whoever finishes one branch by hand makes recovery abort the rest, which is said before it is done.
#[test]
fn an_early_branch_is_not_to_be_finished_by_hand() {
    let place = Place::new();
    let (one, two) = (database(), database());
    let transaction = place.incarnation().transaction(1);
    let participants = participants(&[("orders", &one), ("billing", &two)]);
    let tags =
        [("orders", &one), ("billing", &two)].map(|(name, database)| StoreTag::of(&identity(&store(name, database))));
    let decider = DeciderId::Together(Roster::new((0..).zip(tags)).unwrap());
    let ids = [0, 1].map(|number| BranchId { transaction, decider: decider.clone(), number });
    prepare(&one, &ids[0]);
    prepare(&two, &ids[1]);
    let stores = [postgres("orders", &one), postgres("billing", &two)];
    let stores = [stores[0].as_str(), stores[1].as_str()];
    let lines = place.branch(&stores, &ids[0]);
    assert!(lines.iter().any(|line| line.ends_with("finish nothing by hand, neither way")), "{lines:?}");
    for (act, says) in [("commit", "tears it"), ("rollback", "loses the transaction")] {
        let (_, out, err) = place.run(&["indoubt", act, &ids[0].to_string()], &stores);
        assert!(out.contains(says) && out.contains("recovery will abort the rest"), "{out}");
        assert!(err.contains("nothing was done"), "{err}");
    }
    let (code, out, err) = place.run(&["recover"], &stores);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert_eq!([values(&one), values(&two)], ["0", "1"]);

    // One whose abort is recorded is said to be decided.
    let transaction = place.incarnation().transaction(1);
    let id = BranchId { transaction, ..ids[0].clone() };
    runtime().block_on(async {
        let log = FileLog::open(place.log()).await.unwrap();
        let record = DecisionRecord { transaction, participants, decided_at: 1, note: Note::default() };
        log.conclude(record, Decision::Abort).await.unwrap();
        log.close().await;
    });
    prepare(&one, &id);
    let lines = place.branch(&stores, &id);
    assert_eq!(lines[1..3], ["decision    abort", "in doubt    decided to abort, and its store has not finished it"]);
    one.psql(&format!("rollback prepared '{id}'")).unwrap();
}

/// A branch that a PostgreSQL database decides, on a server that can't prepare; its rows are asked, and by the role that may.
#[test]
fn a_branch_that_a_postgres_database_decides() {
    let place = Place::new();
    let (one, two) = (database(), database());
    let (carrier, billing) =
        (postgres("orders", &one).replace("--postgres=", "--postgres-carrier="), postgres("billing", &two));
    let made = told(&unanimous(["sql", "postgres", "--role", "postgres"]));
    assert_eq!((made.0, made.2.as_str()), (Some(0), ""), "{}", made.1);
    assert!(made.1.ends_with("ON ALL TABLES IN SCHEMA unanimous TO \"postgres\";\n"), "{}", made.1);
    one.psql(&made.1).unwrap();
    one.psql(&made.1).unwrap();

    let owner = place.incarnation();
    let transaction = owner.transaction(1);
    let id = BranchId { transaction, decider: DeciderId::Store(identity(&store("orders", &one))), number: 1 };
    prepare(&two, &id);
    let stores = [carrier.as_str(), billing.as_str()];
    let lines = place.branch(&stores, &id);
    assert_eq!(
        lines[1..3],
        [
            "decision    none",
            "in doubt    \"orders\" decides it, and has no row of it; never decided, so that it is aborted: its process has ended",
        ]
    );
    let incarnation = transaction.incarnation.to_string();
    let (counter, nonce) = incarnation.split_once('.').unwrap();
    let log = transaction.log;
    let timeline = one.psql("select lower(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))").unwrap();
    let other = identity(&store("billing", &two));
    one.psql(&format!(
        "insert into unanimous.incarnation values ('carrier', '{log}', {counter}, '{nonce}', '{timeline}', 0); \
         insert into unanimous.decision (transaction_id, decider, log, counter, outcome, decided_at) \
         values ('{transaction}', 'carrier', '{log}', {counter}, 'commit', 1600000000000000); \
         insert into unanimous.participant values ('{transaction}', 1, 'billing', '{other}')"
    ))
    .unwrap();
    let lines = place.branch(&stores, &id);
    assert_eq!(
        lines[1..3],
        ["decision    commit, TIME", "in doubt    decided to commit, and its store has not finished it"]
    );
    // Without the store that is prepared, the decision is known to wait for it.
    let (code, out, _) = place.run(&["indoubt"], &[&carrier]);
    assert_eq!(code, Some(1), "{out}");
    assert!(
        out.contains(&format!(
            ": {transaction}\n    waits for   \"billing\" (not given, or another store under its name)\n"
        )),
        "{out}"
    );

    let expected = format!("committed {id} in \"billing\"\nfinished 1, in doubt 0\n");
    assert_eq!(place.run(&["recover"], &stores), (Some(0), expected, String::new()));
    assert_eq!(values(&two), "1");
}

/// What a node left whose machine is gone: decided in the database that all nodes share, and taken over there.
#[test]
fn a_node_that_does_not_come_back_is_taken_over() {
    let (decisions, database) = (database(), database());
    let (orders, shared) = (postgres("orders", &database), postgres("decisions", &decisions));
    let participants = participants(&[("orders", &database)]);
    let (decided, undecided) = runtime().block_on(async {
        let log = PostgresLog::open(&decisions.url(), "web-1").await.unwrap();
        let [decided, undecided] = [1, 2].map(|sequence| log.owner().transaction(sequence));
        let note = Note::new("order 7");
        log.decide(DecisionRecord { transaction: decided, participants, decided_at: 1_600_000_000_000_000, note })
            .await
            .unwrap();
        log.close().await;
        (decided, undecided)
    });
    let [first, second] = [decided, undecided].map(|transaction| branch(transaction, 0));
    prepare(&database, &first);
    prepare(&database, &second);

    let (code, out, err) = told(&unanimous(["indoubt", &orders, &shared]));
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    let lines: Vec<String> = masked(&out).lines().map(|line| line.trim().to_owned()).collect();
    let at = lines.iter().position(|line| *line == first.to_string()).unwrap();
    assert_eq!(
        lines[at + 2..at + 4],
        [
            "decision    commit, TIME, note \"order 7\"",
            "in doubt    decided to commit, in a decision log in one of these databases, and its store has not finished it",
        ]
    );

    let url = format!("--log-postgres={}", decisions.url());
    // The log's database need not be one of the stores.
    let (code, out, err) = told(&unanimous(["indoubt", &url, &orders]));
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    let lines: Vec<String> = masked(&out).lines().map(|line| line.trim().to_owned()).collect();
    assert_eq!(lines[0], "logs in a database, of the nodes web-1");
    let told_of = |branch: &BranchId| {
        let at = lines.iter().position(|line| *line == branch.to_string()).unwrap();
        [lines[at + 2].clone(), lines[at + 3].clone()]
    };
    assert_eq!(
        told_of(&first),
        [
            "decision    commit, TIME, note \"order 7\"",
            "in doubt    decided to commit by the node \"web-1\", and its store has not finished it",
        ]
    );
    assert_eq!(
        told_of(&second),
        [
            "decision    none",
            "in doubt    the node \"web-1\" has not decided it: it may still do so where its process lives",
        ]
    );
    let (code, out, _) = told(&unanimous(["indoubt", "--json", &url, &orders]));
    assert!(code == Some(1) && out.lines().any(|line| line == r#"{"kind":"log","nodes":["web-1"]}"#), "{out}");
    let (code, _, err) = told(&unanimous(["indoubt", &format!("--log-postgres={}", database.url()), &orders]));
    assert!(code == Some(2) && err.starts_with("error: there is no decision log in that database\nhint: "), "{err}");

    let wrong = told(&unanimous(["recover", &url, "--take-over=web-2", &orders]));
    let expected = "error: there is no node \"web-2\" in that database\nhint: the nodes that there are: web-1\n";
    assert_eq!(wrong, (Some(2), String::new(), expected.to_owned()));

    let runtime = runtime();
    let alive = runtime.block_on(PostgresLog::open(&decisions.url(), "web-1")).unwrap();
    let (code, out, err) = told(&unanimous(["recover", &url, "--node=web-1", &orders]));
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.starts_with("error: can't open the decision log of the node \"web-1\"\ncaused by: "), "{err}");
    assert!(
        err.ends_with(
            "hint: that process recovers by itself; where it does not come back, and only then: --take-over\n"
        ),
        "{err}"
    );

    let (code, out, err) = told(&unanimous(["recover", &url, "--take-over=web-1", &orders]));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let mut lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.pop(), Some("finished 2, in doubt 0"));
    lines.sort_unstable();
    assert_eq!(lines, [format!("committed {first} in \"orders\""), format!("rolled back {second} in \"orders\"")]);
    let record = DecisionRecord {
        transaction: alive.owner().transaction(1),
        participants: Vec::new(),
        decided_at: 0,
        note: Note::default(),
    };
    assert!(runtime.block_on(alive.decide(record)).is_err(), "who was taken over can't decide any more");
    runtime.block_on(alive.close());
}
