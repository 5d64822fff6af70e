//! The demo on PostgreSQL: orders in one database, invoices in another one, receipts in files.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use unanimous_testing::client::{Answer, Client};
use unanimous_testing::demo::{Demo, LIMIT, Place};
use unanimous_testing::postgres::{Cluster, Database};

use crate::support::{binary, told};

/// A demo's two databases on the shared server, and its data folder.
struct Desk {
    orders: Database<'static>,
    invoices: Database<'static>,
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        let database = || Cluster::shared().database().unwrap();
        Self { orders: database(), invoices: database(), folder: tempfile::tempdir().unwrap() }
    }

    fn place(&self) -> Place {
        Place::new(binary(), self.data()).postgres([self.orders.url(), self.invoices.url()])
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What each store has: orders, invoices, receipts, by their numbers.
    fn stored(&self) -> [String; 3] {
        let ids = |database: &Database<'_>, table| {
            database.psql(&format!("select string_agg(id::text, ' ' order by id) from unanimous_demo.{table}")).unwrap()
        };
        let names = std::fs::read_dir(self.data().join("receipts")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut receipts: Vec<String> =
            names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect();
        receipts.sort();
        [ids(&self.orders, "orders"), ids(&self.invoices, "invoices"), receipts.join(" ")]
    }
}

fn post(client: &Client, fail: &str) -> Answer {
    client.post_json("/orders", &json!({"customer": "Ada", "item": "tea", "quantity": 3, "fail": fail})).unwrap()
}

fn placed(client: &Client) -> (String, String) {
    let answer = post(client, "");
    assert_eq!(answer.status, 201, "{}", answer.text());
    let json = answer.json();
    (json["id"].to_string(), json["transaction"].as_str().unwrap().to_owned())
}

fn clean(place: &Place, orders: usize) {
    let expected =
        format!("orders {orders}, invoices {orders}, receipts {orders}, mismatches 0, in doubt 0, unsent 0\n");
    assert_eq!(told(&place.check().unwrap()), (Some(0), expected, String::new()));
}

/// Until `what` is there; by then the rest of the machine has had a minute.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Some(found) => return found,
            None if start.elapsed() > LIMIT => panic!("{what} did not come within {LIMIT:?}"),
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[test]
fn an_order_is_in_all_three_stores_or_in_none() {
    let desk = Desk::new();
    let demo = desk.place().start().unwrap();
    let client = demo.ready().unwrap();
    let (id, transaction) = placed(&client);
    assert_eq!(desk.stored(), [id.clone(), id.clone(), id.clone()]);
    for (fail, status) in [("error", 500), ("veto", 409), ("panic", 500), ("doom", 409), ("vote", 503)] {
        let answer = post(&client, fail);
        assert_eq!((answer.status, answer.json()["outcome"].as_str()), (status, Some("aborted")), "{fail}");
        assert_eq!(desk.stored(), [id.clone(), id.clone(), id.clone()], "{fail}");
    }
    let listed = client.get("/orders").unwrap().json();
    assert_eq!((listed[0]["id"].to_string(), listed[0]["transaction"].as_str()), (id, Some(transaction.as_str())));
    assert!(listed[1].is_null(), "{listed}");
    let invoice = desk.invoices.psql("select customer, item, quantity, transaction_id from unanimous_demo.invoices");
    assert_eq!(invoice.unwrap(), format!("Ada|tea|3|{transaction}"));
    assert!(client.get("/").unwrap().text().contains("two PostgreSQL databases and a folder of files"));
    clean(&desk.place(), 1);
    assert_eq!(demo.stop(Signal::TERM).unwrap().0, Some(0));
    clean(&desk.place(), 1);
}

#[test]
fn what_it_says_can_be_typed() {
    let desk = Desk::new();
    let mut demo = desk.place().start().unwrap();
    demo.ready().unwrap();
    let program = demo.program();
    let check = program.wait_for_line(LIMIT, |line| line.contains(" demo check ").then(|| line.to_owned())).unwrap();
    let output = std::process::Command::new("sh").args(["-c", &check]).output().unwrap();
    let expected = "orders 0, invoices 0, receipts 0, mismatches 0, in doubt 0, unsent 0\n";
    assert_eq!(told(&output), (Some(0), expected.into(), String::new()));

    // A password is not for those who look at the page.
    let secret = format!("{} password=abc123", desk.orders.url());
    let place = Place::new(binary(), desk.folder.path().join("other")).postgres([secret, desk.invoices.url()]);
    let mut other = place.start().unwrap();
    // Its databases are the first one's, so that it does not come to serve; what it prints is looked at all the same.
    other.program().wait(LIMIT).unwrap();
    let printed = other.program().stdout() + &other.program().stderr();
    assert!(printed.contains("of the desk whose decision log is") && !printed.contains("abc123"), "{printed}");
}

#[test]
fn each_mismatch_is_told() {
    let desk = Desk::new();
    let demo = desk.place().start().unwrap();
    let client = demo.ready().unwrap();
    let ids: Vec<String> = (0..5).map(|_| placed(&client).0).collect();
    assert_eq!(demo.stop(Signal::TERM).unwrap(), (Some(0), String::new()));
    let [invoice_gone, order_gone, receipt_gone, changed, whole] = <[String; 5]>::try_from(ids).unwrap();
    desk.invoices.psql(&format!("delete from unanimous_demo.invoices where id = {invoice_gone}")).unwrap();
    desk.orders.psql(&format!("delete from unanimous_demo.orders where id = {order_gone}")).unwrap();
    std::fs::remove_file(desk.data().join(format!("receipts/{receipt_gone}.json"))).unwrap();
    desk.invoices.psql(&format!("update unanimous_demo.invoices set quantity = 4 where id = {changed}")).unwrap();
    let expected = format!(
        "mismatch: order {invoice_gone} has no invoice\n\
         mismatch: invoice {order_gone} has no order\nmismatch: receipt {order_gone} has no order\n\
         mismatch: order {receipt_gone} has no receipt\n\
         mismatch: order {changed} is not what its invoice says: quantity: 3 in the row, 4 in the invoice\n"
    );
    let counts = "orders 4, invoices 4, receipts 4, mismatches 5, in doubt 0, unsent 0\n";
    assert_eq!(told(&desk.place().check().unwrap()), (Some(1), counts.into(), expected));
    assert!(desk.stored().iter().all(|ids| ids.contains(&whole)));
}

/// Ten seconds long: that is how long what may be in flight is waited for.
#[test]
fn what_stays_prepared_is_in_doubt() {
    let desk = Desk::new();
    let demo = desk.place().start().unwrap();
    placed(&demo.ready().unwrap());
    drop(demo);
    let gid = "u1:00000000000000000000000001.1.00000001.1:log.0";
    let prepare = format!("begin; delete from unanimous_demo.invoices; prepare transaction '{gid}'");
    desk.invoices.psql(&prepare).unwrap();
    let expected = format!(
        "in doubt: {gid} in the database of the invoices\nhint: start the demo on this folder; it finishes what is in doubt\n"
    );
    let counts = "orders 1, invoices 1, receipts 1, mismatches 0, in doubt 1, unsent 0\n";
    assert_eq!(told(&desk.place().check().unwrap()), (Some(1), counts.into(), expected));
    desk.invoices.psql(&format!("rollback prepared '{gid}'")).unwrap();
}

/// A server that is down stops neither the start nor what does not need it; what it holds is finished when it is back.
#[test]
fn it_starts_without_a_server_and_finishes_its_branches_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = Cluster::start().unwrap();
    server.create_database("orders").unwrap();
    let invoices = Cluster::shared().database().unwrap();
    let place = Place::new(binary(), &data).postgres([server.url("orders"), invoices.url()]);

    server.stop_fast().unwrap();
    let demo = place.start().unwrap();
    let client = demo.ready().unwrap();
    let page = client.get("/").unwrap();
    assert_eq!(page.status, 200);
    assert!(page.text().contains("can't be used now"), "{}", page.text());
    let refused = post(&client, "");
    assert_eq!((refused.status, refused.json()["outcome"].as_str()), (503, Some("aborted")), "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    // The receipts need no server.
    assert_eq!(client.get("/receipts/1").unwrap().status, 404);

    server.restart().unwrap();
    let (_, transaction) = wait_for("an order", || {
        let answer = post(&client, "");
        (answer.status == 201).then(|| (answer.json()["id"].to_string(), answer.json()["transaction"].to_string()))
    });
    drop(demo);

    // A branch that the killed demo has left behind, undecided, in a server that is down at the next start.
    let transaction = transaction.trim_matches('"');
    let (owner, _) = transaction.rsplit_once('.').unwrap();
    let gid = format!("u1:{owner}.1000:log.0");
    let prepare = format!("begin; delete from unanimous_demo.orders; prepare transaction '{gid}'");
    server.psql("orders", &prepare).unwrap();
    server.stop_immediate().unwrap();
    let demo = place.start().unwrap();
    let client = demo.ready().unwrap();
    assert_eq!(post(&client, "").status, 503);
    server.restart().unwrap();
    let prepared = || server.psql("orders", "select gid from pg_prepared_xacts").unwrap();
    wait_for("the end of what was prepared", || prepared().is_empty().then_some(()));
    wait_for("an order", || (post(&client, "").status == 201).then_some(()));
    clean(&place, 2);
}

#[test]
fn a_data_folder_keeps_to_its_stores() {
    let desk = Desk::new();
    let sqlite = Place::new(binary(), desk.folder.path().join("sqlite"));
    drop(started(&sqlite));
    let on_postgres = Place { data: sqlite.data.clone(), ..desk.place() };
    refused(&on_postgres, "is that of a demo on SQLite");
    drop(started(&desk.place()));
    refused(&Place::new(binary(), desk.data()), "is that of a demo on PostgreSQL");
    let spawned = Place { stores: vec!["--spawn-postgres".into()], ..desk.place() };
    refused(&spawned, "is that of a demo on PostgreSQL");
}

#[test]
fn databases_belong_to_one_desk_and_have_an_order() {
    let desk = Desk::new();
    drop(started(&desk.place()));
    let swapped = Place::new(binary(), desk.data()).postgres([desk.invoices.url(), desk.orders.url()]);
    refused(&swapped, "the database that was given for the orders has the invoices of the desk");
    let elsewhere = Place { data: desk.folder.path().join("elsewhere"), ..desk.place() };
    refused(&elsewhere, "the database that was given for the orders has the orders of the desk");
    clean(&desk.place(), 0);
}

fn started(place: &Place) -> Demo {
    let demo = place.start().unwrap();
    demo.ready().unwrap();
    demo
}

/// It does not come to serve, and says why.
fn refused(place: &Place, why: &str) {
    let mut demo = place.start().unwrap();
    let status = demo.program().wait(LIMIT).unwrap();
    let stderr = demo.program().stderr();
    assert_eq!(status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains(why) && stderr.contains("\nhint: "), "{stderr}");
}

/// kill -9 of the demo takes its servers along, and the next one starts them again with all that they had.
#[test]
fn servers_of_its_own_end_with_it_and_come_back_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let place = Place { stores: vec!["--spawn-postgres".into()], ..Place::new(binary(), &data) };
    let mut demo = place.start().unwrap();
    placed(&demo.ready().unwrap());
    clean(&place, 1);
    let first = servers(&data);
    refused(&place, "is held by another running demo");
    demo.kill().unwrap();
    wait_for("the end of the servers", || first.iter().all(|&id| !runs(id)).then_some(()));

    // At rest they are started for the look, and stopped again.
    clean(&place, 1);
    assert_eq!(servers(&data), Vec::<u32>::new());

    let demo = place.start().unwrap();
    placed(&demo.ready().unwrap());
    clean(&place, 2);
    let second = servers(&data);
    assert_eq!(second.len(), 2);
    let (code, stderr) = demo.stop(Signal::TERM).unwrap();
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(second.iter().all(|&id| !runs(id)), "the servers are stopped before the demo ends");
    assert_eq!(servers(&data), Vec::<u32>::new());
}

/// The servers that say that they run on this data.
fn servers(data: &Path) -> Vec<u32> {
    let file = |name: &str| std::fs::read_to_string(data.join(name).join("data/postmaster.pid")).ok();
    let texts = ["postgres-1", "postgres-2"].into_iter().filter_map(file);
    texts.map(|text| text.lines().next().unwrap().parse().unwrap()).collect()
}

fn runs(id: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn orders_that_meet_are_repeated_until_they_are_stored() {
    let desk = Desk::new();
    let demo = desk.place().serving("--conflict").start().unwrap();
    let client = demo.ready().unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10).for_each(|_| drop(placed(&client))));
        }
    });
    let counted = desk.orders.psql("select orders from unanimous_demo.counted").unwrap();
    assert_eq!(counted, "80", "each order has counted itself once");
    let page = client.get("/").unwrap();
    assert!(page.text().contains("POST /orders, attempt 2"), "the page tells of repeated orders");
    assert!(page.text().contains("another order was in the way"), "and of why");
    let (code, out, err) = told(&demo.check().unwrap());
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
}
