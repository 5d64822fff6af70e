//! `unanimous log`: what it prints of a log with decisions, of a damaged one, and of none.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use unanimous::log::FileLog;
use unanimous::{Decider as _, DecisionLog as _, DecisionRecord, Note, Participant, StoreId, TransactionId};

use crate::support::{Running, told, unanimous};

/// A closed log with a finished decision with a note and one that is neither, and their transactions.
fn two_decisions(path: &Path) -> [TransactionId; 2] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let log = FileLog::open(path).await.unwrap();
        let transactions = [1, 2].map(|sequence| log.owner().transaction(sequence));
        for transaction in transactions {
            let store = Some("store-1".parse::<StoreId>().unwrap());
            let participants = vec![Participant { number: 0, resource: "receipts".into(), store }];
            let note =
                if transaction.sequence == 1 { Note::new("by / ada: order\n\u{1b}[31m17") } else { Note::default() };
            log.decide(DecisionRecord { transaction, participants, decided_at: 1_000_000, note }).await.unwrap();
        }
        log.forget(transactions[0]);
        log.close().await;
        transactions
    })
}

fn segment(path: &Path) -> PathBuf {
    let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

#[test]
fn a_log_is_shown_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decisions");
    let [first, second] = two_decisions(&path);
    let before = fs::read(segment(&path)).unwrap();

    let (code, out, err) = told(&unanimous(["log", "show", "--log", path.to_str().unwrap()]));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], format!("log {}, segment 1 in {}", first.log, segment(&path).display()));
    let records: Vec<&str> = lines[2..].iter().take_while(|line| !line.starts_with("not ")).copied().collect();
    let order: Vec<usize> = [
        format!("opened by the incarnation {} at 20", first.incarnation),
        format!(
            "commit {first} at 1970-01-01T00:00:01.000Z, branch 0 in \"receipts\" (store-1), \
             note \"by / ada: order\\n\\u{{1b}}[31m17\""
        ),
        format!("commit {second} at 1970-01-01T00:00:01.000Z, branch 0 in \"receipts\" (store-1)"),
        format!("finished {first} at 20"),
    ]
    .iter()
    .map(|part| records.iter().position(|line| line.contains(part)).unwrap_or_else(|| panic!("{part:?}: {out}")))
    .collect();
    assert!(order.is_sorted() && order.len() == records.len(), "{order:?}: {out}");
    let end = [
        "not finished: 1".to_owned(),
        format!("  {second} at 1970-01-01T00:00:01.000Z, branch 0 in \"receipts\" (store-1)"),
    ];
    assert_eq!(lines[lines.len() - 3..lines.len() - 1], end);
    let carried = lines[lines.len() - 1];
    assert!(carried.starts_with("not in this log: ") && carried.contains("unanimous_decision"), "{carried}");

    let (code, out, err) = told(&unanimous(["log", "show", "--json", "--log", path.to_str().unwrap()]));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["unfinished"], serde_json::json!([second.to_string()]));
    assert_eq!(lines[0]["sound"], true);
    let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["log", "incarnation", "commit", "commit", "finished"]);
    assert_eq!(lines[2]["transaction"], first.to_string());
    assert_eq!((&lines[2]["note"], &lines[3]["note"]), (&"by / ada: order\n\u{1b}[31m17".into(), &Value::Null));
    assert_eq!(lines[2]["participants"][0]["store"], "store-1");

    let (code, out, err) = told(&unanimous(["log", "verify", "--log", path.to_str().unwrap()]));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("decisions not finished 1, finished 1\n") && out.ends_with("\nsound\n"), "{out}");
    assert_eq!(fs::read(segment(&path)).unwrap(), before, "readers change nothing");
}

#[test]
fn damage_is_told_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decisions");
    let [first, _] = two_decisions(&path);
    let mut bytes = fs::read(segment(&path)).unwrap();
    // Both copies of the first decision: its resource's name stands in them, and again in the second decision's.
    let name = b"receipts";
    let places: Vec<usize> = (0..bytes.len() - name.len()).filter(|&at| bytes[at..].starts_with(name)).collect();
    for place in &places[..2] {
        bytes[*place] ^= 1;
    }
    fs::write(segment(&path), &bytes).unwrap();

    let (code, out, err) = told(&unanimous(["log", "verify", "--log", path.to_str().unwrap()]));
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    assert!(out.contains("\ndamage: bytes ") && out.contains("\nNOT SOUND: "), "{out}");
    let (code, out, err) = told(&unanimous(["log", "show", "--log", path.to_str().unwrap()]));
    assert_eq!(code, Some(1), "{out}");
    assert!(err.starts_with("damage: bytes "), "{err}");
    assert!(!out.contains(&format!("commit {first}")), "what is damaged is not shown as if it were known: {out}");
}

/// Nothing of a log without its header can be read; that is found by the check, not something that hinders it.
#[test]
fn a_damaged_or_cut_header_is_not_sound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decisions");
    two_decisions(&path);
    let segment = segment(&path);
    let whole = fs::read(&segment).unwrap();
    let mut flipped = whole.clone();
    flipped[20] ^= 1;
    for bytes in [&flipped[..], &whole[..10], &whole[..0], b"something else, and nothing of a log at all"] {
        fs::write(&segment, bytes).unwrap();
        let damage = format!("damage: {}: ", segment.display());
        let (code, out, err) = told(&unanimous(["log", "verify", "--log", path.to_str().unwrap()]));
        assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
        assert!(out.starts_with(&damage) && out.contains("\nNOT SOUND: ") && !out.contains("\nsound"), "{out}");
        let (code, out, err) = told(&unanimous(["log", "show", "--log", path.to_str().unwrap()]));
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(err.starts_with(&damage), "{err}");
    }
    let (code, _, err) =
        told(&unanimous(["demo", "--listen", "127.0.0.1:0", "--data", folder.path().to_str().unwrap()]));
    assert_eq!(code, Some(2));
    assert!(err.contains("bring the file back from a mirror") && err.contains("TransactionManager::in_doubt"), "{err}");
}

#[test]
fn no_log_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["show", "verify"] {
        let path = folder.path().display().to_string();
        let expected = format!(
            "error: can't read the decision log\ncaused by: there is no decision log in {path}\n\
             hint: give the folder of a decision log; that of the demo is ./unanimous-demo/decisions\n"
        );
        assert_eq!(told(&unanimous(["log", command, "--log", &path])), (Some(2), String::new(), expected));
    }
}

#[test]
fn the_log_of_a_running_demo_can_be_read() {
    let desk = Running::start();
    let path = desk.data().join("decisions").display().to_string();
    let (code, out, err) = told(&unanimous(["log", "verify", "--log", &path]));
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.ends_with("\nsound\n"), "{out}");
    let (code, out, _) = told(&unanimous(["log", "show", "--log", &path]));
    assert!(code == Some(0) && out.contains("opened by the incarnation 1."), "{out}");
    assert_eq!(desk.client.get("/").unwrap().status, 200);
}
