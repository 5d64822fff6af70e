//! The order desk over real sockets: what is taken, what is refused, and what is left of it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};
use unanimous_testing::client::Answer;

use crate::support::Running;

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

fn order(customer: &str, item: &str, quantity: u64) -> Value {
    json!({"customer": customer, "item": item, "quantity": quantity})
}

fn orders(desk: &Running, path: &str) -> Vec<Value> {
    let answer = desk.client.get(path).unwrap();
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{}", answer.text());
    answer.json().as_array().unwrap().clone()
}

#[test]
fn an_order_is_in_both_stores() {
    let desk = Running::start();
    let answer = desk.client.post_json("/orders", &order(" Ada ", "tea <&> \"ü\"", 3)).unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().keys().collect::<Vec<_>>(), ["id", "transaction"]);
    assert_eq!(body["id"], 1);
    assert_eq!(answer.header("location"), Some("/receipts/1"));

    let form = [("customer", "Grace"), ("item", "a lamp"), ("quantity", "1000000"), ("fail", "")];
    let second = desk.client.post_form("/orders", &form).unwrap();
    assert_eq!((second.status, &second.json()["id"]), (201, &json!(2)), "{}", second.text());

    let listed = orders(&desk, "/orders");
    let of = |order: &Value, name: &str| order[name].clone();
    assert_eq!(listed.iter().map(|order| of(order, "id")).collect::<Vec<_>>(), [2, 1], "newest first");
    assert_eq!(
        ["customer", "item", "quantity", "transaction"].map(|name| of(&listed[1], name)),
        [json!("Ada"), json!("tea <&> \"ü\""), json!(3), body["transaction"].clone()]
    );
    assert_eq!(of(&listed[0], "quantity"), 1_000_000);
    for order in &listed {
        let receipt = desk.client.get(&format!("/receipts/{}", order["id"])).unwrap();
        assert_eq!((receipt.status, receipt.header("content-type")), (200, Some("application/json")));
        assert_eq!(receipt.json(), *order);
        let file = std::fs::read_to_string(desk.data().join(format!("receipts/{}.json", order["id"]))).unwrap();
        assert_eq!(receipt.text(), file);
    }
    assert_eq!(desk.clean_check(), (2, 2));
}

#[test]
fn an_order_that_is_sent_again_with_its_key_is_stored_once() {
    let desk = Running::start();
    let asked = order("Ada", "tea", 3).to_string();
    let send = |key: &str, body: &str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        desk.client.post_with("/orders", &headers, body.as_bytes()).unwrap()
    };
    let first = send("\"7a1f\"", &asked);
    assert_eq!((first.status, first.header("idempotent-replayed")), (201, None), "{}", first.text());
    let again = send("\"7a1f\"", &asked);
    assert_eq!((again.status, again.header("idempotent-replayed")), (201, Some("true")), "{}", again.text());
    assert_eq!(again.text(), first.text());
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(again.header("unanimous-transaction"), first.json()["transaction"].as_str());
    let other = send("\"7a1f\"", &order("Ada", "coffee", 1).to_string());
    assert_eq!(other.status, 422, "{}", other.text());
    assert_eq!(send("\"7a1f", &asked).status, 400, "a key that is not closed");
    // What was aborted has stored no key either: it may be sent again, and is executed.
    let mut failing = order("Ada", "nothing", 1);
    failing["fail"] = json!("vote");
    let failed = [send("k", &failing.to_string()), send("k", &failing.to_string())];
    assert_eq!(failed.each_ref().map(|answer| answer.status), [503, 503], "{failed:?}");
    assert_ne!(failed[0].json()["transaction"], failed[1].json()["transaction"]);
    assert_eq!(send("k", &order("Ada", "lamp", 1).to_string()).status, 201);
    assert_eq!(desk.clean_check(), (2, 2));
}

#[test]
fn each_way_to_abort_leaves_nothing() {
    let desk = Running::start();
    let kept = desk.client.post_json("/orders", &order("Ada", "kept", 1)).unwrap();
    assert_eq!(kept.status, 201);
    for (fail, status) in [("error", 500), ("veto", 409), ("panic", 500), ("doom", 409), ("vote", 503)] {
        let mut asked = order("Ada", &format!("gone-{fail}"), 2);
        asked["fail"] = json!(fail);
        for answer in [
            desk.client.post_json("/orders", &asked).unwrap(),
            desk.client
                .post_form("/orders", &[("customer", "Ada"), ("item", "gone"), ("quantity", "2"), ("fail", fail)])
                .unwrap(),
        ] {
            let body = answer.json();
            assert_eq!((answer.status, &body["outcome"]), (status, &json!("aborted")), "{fail}: {}", answer.text());
            let transaction = body["transaction"].as_str().unwrap();
            assert_ne!(Some(transaction), kept.json()["transaction"].as_str());
            assert!(body["error"].as_str().unwrap().contains("nothing is stored"), "{fail}: {body}");
            assert_eq!(answer.header("x-tm"), (fail == "veto").then_some("abort"), "{fail}");
            assert_eq!(orders(&desk, "/orders").len(), 1, "{fail} left a row");
            assert_eq!(desk.receipts(), ["1.json"], "{fail} left a file");
            assert_eq!(desk.unfinished(), Vec::<std::path::PathBuf>::new(), "{fail} left something prepared");
        }
    }
    let next = desk.client.post_json("/orders", &order("Ada", "after", 1)).unwrap();
    assert_eq!((next.status, &next.json()["id"]), (201, &json!(2)), "the desk goes on: {}", next.text());
    assert_eq!(desk.clean_check(), (2, 2));
}

#[test]
fn bad_input_says_what_is_wrong_and_leaves_nothing() {
    let desk = Running::start();
    let json = ("content-type", "application/json");
    let post =
        |headers: &[(&str, &str)], body: &str| desk.client.post_with("/orders", headers, body.as_bytes()).unwrap();
    let wrong = |answer: Answer, status: u16, part: &str| {
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(
            answer.status == status && error.contains(part),
            "{status} {part:?}: {} {}",
            answer.status,
            answer.text()
        );
    };
    wrong(post(&[json], r#"{"customer": "Ada", "quantity": 1}"#), 422, "item: is missing");
    wrong(post(&[json], r#"{"customer": "Ada", "item": "", "quantity": 1}"#), 422, "item: must not be empty");
    wrong(
        post(&[json], r#"{"customer": "Ada", "item": "tea", "quantity": 0}"#),
        422,
        "quantity: must be a whole number",
    );
    wrong(post(&[json], r#"{"customer": "Ada", "item": "tea", "quantity": "three"}"#), 422, "\"three\"");
    wrong(post(&[json], r#"{"customer": "Ada", "item": "tea", "quantity": 1, "fail": "perhaps"}"#), 422, "\"perhaps\"");
    wrong(post(&[json], "customer, item, quantity"), 400, "not a JSON object");
    wrong(post(&[json], ""), 400, "not a JSON object");
    wrong(post(&[FORM], "customer=Ada&item=tea&quantity=three"), 422, "quantity: must be a whole number");
    wrong(post(&[FORM], "customer=Ada&item=+&quantity=1"), 422, "item: must not be empty");
    wrong(post(&[FORM], r#"{"customer": "Ada"}"#), 400, "content-type: application/json");
    wrong(post(&[("content-type", "text/plain")], "tea"), 415, "text/plain");
    wrong(post(&[("content-type", "multipart/form-data; boundary=x")], "--x--"), 415, "multipart/form-data");
    let huge = format!(r#"{{"customer": "Ada", "item": "{}", "quantity": 1}}"#, "x".repeat(10 << 20));
    wrong(post(&[json], &huge), 413, "larger than 65536 bytes");
    wrong(post(&[json], &huge[..65_537]), 413, "larger than 65536 bytes");
    wrong(desk.client.get("/orders?limit=many").unwrap(), 400, "limit: must be a whole number");
    wrong(desk.client.get("/orders?limit=-1").unwrap(), 400, "limit: must be a whole number");
    wrong(desk.client.get("/orders?limit=1&limit=2").unwrap(), 400, "limit: must be a whole number, given once");
    wrong(desk.client.get("/orders?limit=%ff").unwrap(), 400, "limit: must be a whole number, given once");
    for id in ["1", "none", "-1", "-0", "+1", "1.json", "..%2Forders.db", "99999999999999999999", "%ff"] {
        wrong(desk.client.get(&format!("/receipts/{id}")).unwrap(), 404, "no such receipt");
    }
    wrong(desk.client.get("/nothing").unwrap(), 404, "nothing here");
    wrong(desk.client.post_json("/receipts/1", &json!({})).unwrap(), 405, "method");
    assert_eq!(desk.receipts(), Vec::<String>::new());
    assert_eq!(desk.clean_check(), (0, 0));
}

/// A client that asks before it sends (curl does, with a large body) is told no before it has sent anything.
#[test]
fn a_large_body_is_refused_before_it_is_sent() {
    let desk = Running::start();
    let mut stream = TcpStream::connect(desk.client.address()).unwrap();
    let head = "POST /orders HTTP/1.1\r\nhost: desk\r\ncontent-type: application/json\r\ncontent-length: 10485760\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(unanimous_testing::demo::LIMIT)).unwrap();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 413 Pay");
}

#[test]
fn the_list_has_a_default_limit_and_no_upper_bound() {
    let desk = Running::start();
    for number in 1..=105 {
        let answer = desk.client.post_json("/orders", &order("Ada", &format!("item {number}"), number)).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text());
    }
    let quantities = |path: &str| -> Vec<u64> {
        orders(&desk, path).iter().map(|order| order["quantity"].as_u64().unwrap()).collect()
    };
    assert_eq!(quantities("/orders"), (6..=105).rev().collect::<Vec<_>>());
    assert_eq!(quantities("/orders?limit=3"), [105, 104, 103]);
    assert_eq!(quantities("/orders?limit=0"), Vec::<u64>::new());
    assert_eq!(quantities("/orders?limit=1000000"), (1..=105).rev().collect::<Vec<_>>());
    assert_eq!(quantities("/orders?limit=99999999999999999999999").len(), 105);
}

/// What the library says of a broken request is for the server's log.
#[test]
fn a_body_that_breaks_off_is_told_in_our_own_words() {
    let desk = Running::start();
    let mut stream = TcpStream::connect(desk.client.address()).unwrap();
    let head = "POST /orders HTTP/1.1\r\nhost: desk\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(unanimous_testing::demo::LIMIT)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let expected = r#"{"error":"the body can't be read: it broke off, or is not what its headers say"}"#;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with(&format!("{expected}\n")), "{answer}");
    drop(stream);
    let (_, stderr) = desk.demo.stop(rustix::process::Signal::TERM).unwrap();
    assert!(stderr.contains("a request's body can't be read"), "the reason is in the log: {stderr}");
}

/// What only looks is no transaction that anybody wants to see, also where there is nothing to be seen.
#[test]
fn looking_leaves_no_trace_among_the_last_transactions() {
    let desk = Running::start();
    assert_eq!(desk.client.post_json("/orders", &order("Ada", "tea", 1)).unwrap().status, 201);
    for (path, status) in [
        ("/receipts/1", 200),
        ("/receipts/01", 404),
        ("/receipts/99", 404),
        ("/orders", 200),
        ("/orders?limit=many", 400),
        ("/nothing", 404),
    ] {
        assert_eq!(desk.client.get(path).unwrap().status, status, "{path}");
    }
    let page = desk.client.get("/").unwrap().text().to_owned();
    let (_, transactions) = page.split_once(r#"<h2 id="transactions">"#).unwrap();
    assert_eq!(transactions.matches("<span class=\"badge\">").count(), 1, "{transactions}");
    assert!(transactions.contains("POST /orders"), "{transactions}");
}

#[test]
fn a_browser_gets_the_page() {
    let desk = Running::start();
    let nasty = r#"<script>alert("1")</script>"#;
    let post = |fail: &str, quantity: &str| {
        let form = [("customer", nasty), ("item", nasty), ("quantity", quantity), ("fail", fail)];
        desk.client.post_with("/orders", &[FORM, BROWSER], unanimous_testing::client::form(&form).as_bytes()).unwrap()
    };
    let placed = post("", "3");
    assert_eq!((placed.status, placed.header("location")), (303, Some("/?placed=1")), "{}", placed.text());

    let page = desk.client.get_with("/?placed=1", &[BROWSER]).unwrap();
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.text().contains("Order 1 is in all stores."), "{}", page.text());
    assert!(page.text().contains("committed, carrying the decision"), "{}", page.text());
    assert!(page.text().contains(r#"<a href="/receipts/1">"#), "{}", page.text());

    for (fail, status) in [("error", 500), ("veto", 409), ("panic", 500), ("doom", 409), ("vote", 503)] {
        let failed = post(fail, "3");
        assert_eq!(
            (failed.status, failed.header("content-type")),
            (status, Some("text/html; charset=utf-8")),
            "{fail}"
        );
        assert!(failed.text().contains(r#"class="card told aborted""#), "{fail}: {}", failed.text());
        assert!(failed.text().contains("nothing is stored"), "{fail}: {}", failed.text());
        assert!(failed.text().contains("rolled back"), "{fail}: {}", failed.text());
        assert!(failed.text().contains(&format!(", fail={fail}, ")), "the page says which: {fail}: {}", failed.text());
    }
    let refused = post("", "0");
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("quantity: must be a whole number from 1 to 1000000, not 0"), "{}", refused.text());

    let again = ["customer", "item"]
        .map(|name| format!(r#"name="{name}" value="&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;""#));
    for field in again.iter().map(String::as_str).chain([r#"max="1000000" value="0""#]) {
        assert!(refused.text().contains(field), "what was entered is there again: {field}: {}", refused.text());
    }
    let nowhere = desk.client.get_with("/nothing", &[BROWSER]).unwrap();
    assert_eq!((nowhere.status, nowhere.header("content-type")), (404, Some("text/html; charset=utf-8")));
    assert!(nowhere.text().contains("not found") && nowhere.text().contains("nothing here"), "{}", nowhere.text());

    let page = desk.client.get("/").unwrap();
    assert_eq!(page.text().matches(r#"<td class="aborted">"#).count(), 5, "{}", page.text());
    assert_eq!(page.text().matches(r#"<td class="committed">"#).count(), 1, "{}", page.text());
    assert!(!page.text().contains("<script"), "{}", page.text());
    let shown = page.text().matches("&lt;script&gt;").count();
    assert_eq!(shown, 2 + 6, "customer and item, and the user of six transactions: {}", page.text());
    assert!(desk.client.get("/?placed=none").unwrap().status == 200);
    assert_eq!(desk.clean_check(), (1, 1));
}
