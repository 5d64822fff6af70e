//! `demo check`: sees each kind of disagreement, and none where there is none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::process::Signal;
use serde_json::json;
use unanimous_testing::demo::{Demo, check};

use crate::support::{Running, binary, clean, told, unanimous};

/// A stopped demo's data with three orders.
fn three_orders() -> (tempfile::TempDir, PathBuf) {
    let Running { demo, client, folder } = Running::start();
    for item in ["one", "two", "three"] {
        let answer = client.post_json("/orders", &json!({"customer": "Ada", "item": item, "quantity": 1})).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text());
    }
    assert_eq!(demo.stop(Signal::TERM).unwrap(), (Some(0), String::new()));
    let data = folder.path().join("data");
    (folder, data)
}

fn told_of(data: &Path) -> (Option<i32>, String, String) {
    told(&check(binary(), data).unwrap())
}

/// All files but SQLite's own beside the database: their content by path.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.insert(path.clone(), Vec::new());
            all.extend(files(&path));
        } else if !path.to_str().unwrap().contains("orders.db-") {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn data_at_rest_is_compared_and_not_changed() {
    let (_folder, data) = three_orders();
    let before = files(&data);
    assert_eq!(clean(&check(binary(), &data).unwrap()), (3, 3));
    assert_eq!(files(&data), before);

    let demo = Demo::start(binary(), &data).unwrap();
    assert_eq!(demo.ready().unwrap().get("/receipts/3").unwrap().status, 200, "it starts again after it was looked at");
    assert_eq!(clean(&demo.check().unwrap()), (3, 3));
}

#[test]
fn each_mismatch_is_told() {
    let (_folder, data) = three_orders();
    let receipt = |id: u32| data.join(format!("receipts/{id}.json"));
    let two = fs::read_to_string(receipt(2)).unwrap();

    fs::remove_file(receipt(2)).unwrap();
    let expected = "mismatch: order 2 has no receipt\n";
    assert_eq!(told_of(&data), (Some(1), "orders 3, receipts 2, mismatches 1, in doubt 0\n".into(), expected.into()));

    fs::write(receipt(4), two.replace("\"id\": 2", "\"id\": 4")).unwrap();
    let expected = "mismatch: order 2 has no receipt\nmismatch: receipt 4 has no order\n";
    assert_eq!(told_of(&data), (Some(1), "orders 3, receipts 3, mismatches 2, in doubt 0\n".into(), expected.into()));
    fs::remove_file(receipt(4)).unwrap();

    fs::write(receipt(2), two.replace("two", "three")).unwrap();
    let (code, out, err) = told_of(&data);
    assert_eq!((code, out.as_str()), (Some(1), "orders 3, receipts 3, mismatches 1, in doubt 0\n"));
    let expected = r#"mismatch: order 2 is not what its receipt says: item: "two" in the row, "three" in the receipt"#;
    assert_eq!(err, format!("{expected}\n"));

    fs::write(receipt(2), &two[..two.len() / 2]).unwrap();
    let (code, out, err) = told_of(&data);
    assert_eq!((code, out.as_str()), (Some(1), "orders 3, receipts 3, mismatches 1, in doubt 0\n"));
    assert!(err.starts_with("mismatch: receipt 2 can't be read: EOF"), "{err}");

    fs::write(receipt(2), two).unwrap();
    fs::write(data.join("receipts/notes.txt"), "not a receipt").unwrap();
    assert_eq!(told_of(&data).1, "orders 3, receipts 3, mismatches 0, in doubt 0\n");
}

/// Ten seconds long: that is how long what may be in flight is waited for.
#[test]
fn what_stays_prepared_is_in_doubt() {
    let (_folder, data) = three_orders();
    let manifest = data.join("receipts/.unanimous/prepared/u1:00000000000000000000000001.1.00000001.1:log.0.prepared");
    fs::write(&manifest, "").unwrap();
    let expected = format!(
        "in doubt: {}\nhint: start the demo on this folder; it finishes what is in doubt\n",
        manifest.display()
    );
    assert_eq!(told_of(&data), (Some(1), "orders 3, receipts 3, mismatches 0, in doubt 1\n".into(), expected));
}

/// What an operator did against a decision is told, whether it is still to be seen or not.
#[test]
fn an_operators_heuristic_is_told() {
    let (_folder, data) = three_orders();
    let lines = r#"{"kind":"begin","at":1000000,"act":"rollback","branch":"u1:x","resource":"receipts","store":"s","decision":"commit","heuristic":true}
{"kind":"end","at":1000001,"branch":"u1:x","resource":"receipts","result":"done"}
{"kind":"begin","at":2000000,"act":"rollback","branch":"u1:y","resource":"receipts","store":"s","decision":"abort","heuristic":false}
{"kind":"beg"#;
    fs::write(data.join("decisions/operator.jsonl"), lines).unwrap();
    let told = "operator: 1970-01-01T00:00:01.000Z rollback of u1:x in \"receipts\", HEURISTIC, against the decision (commit): done\n";
    assert_eq!(told_of(&data), (Some(0), "orders 3, receipts 3, mismatches 0, in doubt 0\n".into(), told.into()));
}

#[test]
fn what_is_no_data_folder_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let hint = "hint: give the folder that the demo was started with: --data DIR\n";
    let missing = unanimous(["demo", "check", "--data", &format!("{path}/nothing")]);
    let expected = format!("error: there is no data folder {path}/nothing\n{hint}");
    assert_eq!(told(&missing), (Some(2), String::new(), expected));
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let other = unanimous(["demo", "check", "--data", path]);
    let expected = format!("error: {path} is not the data folder of a demo: it has no orders.db\n{hint}");
    assert_eq!(told(&other), (Some(2), String::new(), expected));
    assert_eq!(fs::read_dir(path).unwrap().count(), 1, "nothing was made there");
}

/// What a first start that was killed may have left.
#[test]
fn a_folder_that_was_never_served_is_told() {
    for made in [&[][..], &["decisions"], &["orders.db"], &["orders.db", "receipts"], &["receipts/.unanimous-new"]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        for name in made {
            match *name {
                "orders.db" => fs::write(folder.path().join(name), "").unwrap(),
                name => fs::create_dir_all(folder.path().join(name)).unwrap(),
            }
        }
        let expected = format!(
            "error: the demo was never ready on this folder, {path}; start it once\nhint: unanimous demo --data {path}\n"
        );
        assert_eq!(told(&unanimous(["demo", "check", "--data", path])), (Some(2), String::new(), expected), "{made:?}");
        let demo = Demo::start(binary(), folder.path()).unwrap();
        demo.ready().unwrap();
        assert_eq!(clean(&demo.check().unwrap()), (0, 0), "{made:?}");
    }
}

/// Tells the clients to stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Beside a server that commits all the time there is always something half done; it must not be taken for a mismatch.
#[test]
fn it_is_clean_beside_a_busy_server() {
    let desk = Running::start();
    let (stop, placed) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in 0..4 {
            let (desk, stop, placed) = (&desk, &stop, &placed);
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let fail = ["", "vote", "error"][number % 3];
                    let order =
                        json!({"customer": "Ada", "item": format!("{client}-{number}"), "quantity": 1, "fail": fail});
                    let status = desk.client.post_json("/orders", &order).unwrap().status;
                    placed.fetch_add(usize::from(status == 201), Ordering::Relaxed);
                }
            });
        }
        // Also when an assertion fails: the scope waits for the clients.
        let _stop = Stop(&stop);
        let mut seen = 0;
        for _ in 0..8 {
            let at_least = placed.load(Ordering::Relaxed);
            let (orders, receipts) = desk.clean_check();
            assert_eq!(orders, receipts);
            assert!(orders >= at_least && orders >= seen, "{orders} orders, and there were {at_least} and {seen}");
            seen = orders;
        }
    });
    let placed = placed.into_inner();
    assert!(placed > 0);
    assert_eq!(desk.clean_check(), (placed, placed));
}
