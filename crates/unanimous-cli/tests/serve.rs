//! Starting, restarting and stopping the demo.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::json;
use unanimous_testing::client::Client;
use unanimous_testing::client::form as form_of;
use unanimous_testing::demo::{Demo, LIMIT};

use crate::support::{Running, binary, clean, told, unanimous};

#[test]
fn it_says_what_to_try_and_what_it_says_works() {
    let mut desk = Running::start();
    let program = desk.demo.program();
    program.wait_for_line(LIMIT, |line| (line == "Ctrl-C stops it.").then_some(())).unwrap();
    let (stdout, id) = (program.stdout(), program.id());
    let lines: Vec<&str> = stdout.lines().map(str::trim).collect();
    assert_eq!(lines[1], format!("listening on http://{}", desk.client.address()), "{stdout}");
    assert!(lines.contains(&format!("kill -9 {id}").as_str()), "{stdout}");
    let curls: Vec<&str> = lines.iter().copied().filter(|line| line.starts_with("curl ")).collect();
    let checks: Vec<&str> = lines.iter().copied().filter(|line| line.contains(" demo check ")).collect();
    assert_eq!((curls.len(), checks.len()), (6, 1), "{stdout}");

    let page = desk.client.get("/").unwrap();
    assert!(
        page.text().contains(&format!("<code>{}</code>", checks[0])),
        "the page has the same line: {}",
        page.text()
    );

    // The lines as a shell takes them, without a need for curl on the machine.
    let words = |line: &str| -> Vec<String> {
        let script = format!("for word in {line}; do printf '%s\\n' \"$word\"; done");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        told(&output).1.lines().map(str::to_owned).collect()
    };
    let first = words(curls[0]);
    assert_eq!(first[0..2], ["curl".to_owned(), format!("http://{}/orders", desk.client.address())]);
    let form: Vec<(&str, &str)> =
        first[2..].iter().filter(|word| *word != "-d").map(|field| field.split_once('=').unwrap()).collect();
    assert_eq!(desk.client.post_form("/orders", &form).unwrap().status, 201);
    let second = words(curls[1]);
    assert_eq!(second[2..5], ["-H", "content-type: application/json", "-d"]);
    assert_eq!(desk.client.post_json("/orders", &serde_json::from_str(&second[5]).unwrap()).unwrap().status, 201);
    for (line, status) in [(curls[2], 200), (curls[3], 200)] {
        let url = &words(line)[1];
        let path = url.strip_prefix(&format!("http://{}", desk.client.address())).unwrap();
        assert_eq!(desk.client.get(path).unwrap().status, status, "{line}");
    }
    let keyed = words(curls[4]);
    assert_eq!(keyed[2..4], ["-H", "Idempotency-Key: \"7a1f\""]);
    let form: Vec<(&str, &str)> =
        keyed[4..].iter().filter(|word| *word != "-d").map(|field| field.split_once('=').unwrap()).collect();
    let headers = [("content-type", "application/x-www-form-urlencoded"), ("idempotency-key", "\"7a1f\"")];
    let sent = || desk.client.post_with("/orders", &headers, form_of(&form).as_bytes()).unwrap();
    let (first, again) = (sent(), sent());
    assert_eq!((first.status, first.text()), (201, again.text()), "{}", again.text());
    let asked = format!("/transactions/{}", first.header("unanimous-transaction").unwrap());
    assert!(stdout.contains(&format!("http://{}/transactions/ID", desk.client.address())), "{stdout}");
    assert_eq!(desk.client.get(&asked).unwrap().json()["outcome"], "committed");
    assert_eq!(desk.client.get("/ready").unwrap().status, 200);
    assert!(curls[5].ends_with("-d fail=vote"), "{}", curls[5]);
    let output = Command::new("sh").args(["-c", checks[0]]).output().unwrap();
    assert_eq!(clean(&output), (3, 3));
}

#[test]
fn signals_stop_it_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let desk = Running::start();
        let answer =
            desk.client.post_json("/orders", &json!({"customer": "Ada", "item": "tea", "quantity": 1})).unwrap();
        assert_eq!(answer.status, 201);
        // A connection that is open and silent, and one whose request never ends, don't hold it up for ever.
        let _silent = TcpStream::connect(desk.client.address()).unwrap();
        let data = desk.data();
        let (code, stderr) = desk.demo.stop(signal).unwrap();
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{signal:?}");
        let check = unanimous(["demo", "check", "--data", data.to_str().unwrap()]);
        assert_eq!(clean(&check), (1, 1), "{signal:?}");
    }
}

/// The client is answered although the signal came while its request was being read.
#[test]
fn a_request_under_way_is_finished_before_it_stops() {
    let mut desk = Running::start();
    let mut stream = TcpStream::connect(desk.client.address()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let body = "customer=Ada&item=late&quantity=1";
    let head = format!(
        "POST /orders HTTP/1.1\r\nhost: desk\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The server asks for the body: the handler runs.
    let mut answer = [0; 25];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer[..21], b"HTTP/1.1 100 Continue");
    desk.demo.program().signal(Signal::TERM).unwrap();
    desk.demo.program().wait_for_line(LIMIT, |line| line.starts_with("stopping").then_some(())).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let data = desk.data();
    assert_eq!(desk.demo.program().wait(LIMIT).unwrap().code(), Some(0));
    assert_eq!(clean(&unanimous(["demo", "check", "--data", data.to_str().unwrap()])), (1, 1));
}

#[test]
fn a_second_demo_on_the_same_data_is_refused() {
    let desk = Running::start();
    let data = desk.data();
    let second = unanimous(["demo", "--listen", "127.0.0.1:0", "--data", data.to_str().unwrap()]);
    let expected = format!(
        "error: the data folder {} is held by another running demo\n\
         hint: stop that one (Ctrl-C), or give this one a folder of its own with --data\n",
        data.display()
    );
    assert_eq!(told(&second), (Some(2), String::new(), expected));
    assert_eq!(desk.client.get("/orders").unwrap().status, 200, "the first one goes on");
}

#[test]
fn a_port_that_is_taken_is_told_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = unanimous(["demo", "--listen", &address, "--data", data.to_str().unwrap()]);
    let expected = format!(
        "error: the address {address} is taken by another program\n\
         hint: stop that one (it may be another demo), or choose another port: --listen 127.0.0.1:8081\n"
    );
    assert_eq!(told(&refused), (Some(2), String::new(), expected));
    assert!(!data.exists());
}

#[test]
fn a_data_folder_that_can_not_be_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = unanimous(["demo", "--listen", "127.0.0.1:0", "--data", file.join("data").to_str().unwrap()]);
    let (code, out, err) = told(&refused);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.starts_with("error: can't make the data folder "), "{err}");
    assert!(err.contains("\ncaused by: ") && err.contains("\nhint: "), "{err}");
}

/// kill -9 of one that is idle, and of one that has an order open: what was acknowledged is there, what was not is not.
#[test]
fn it_comes_up_again_after_a_kill() {
    let mut desk = Running::start();
    let order = json!({"customer": "Ada", "item": "tea", "quantity": 1});
    assert_eq!(desk.client.post_json("/orders", &order).unwrap().status, 201);
    desk.demo.kill().unwrap();
    for restart in 1..=3 {
        let demo = Demo::start(binary(), &desk.data()).unwrap();
        let client = demo.ready().unwrap();
        assert_eq!(clean(&demo.check().unwrap()), (restart, restart));
        assert_eq!(client.post_json("/orders", &order).unwrap().json()["id"], restart + 1);
        desk.demo = demo;
        desk.demo.kill().unwrap();
    }
}

/// A store that is gone is not made anew beside a log that knows of it: it would pass for one in which nothing was ever written.
#[test]
fn a_store_that_is_gone_is_told_and_not_made_anew() {
    let mut desk = Running::start();
    let order = json!({"customer": "Ada", "item": "tea", "quantity": 1});
    assert_eq!(desk.client.post_json("/orders", &order).unwrap().status, 201);
    desk.demo.kill().unwrap();
    let data = desk.data();
    let path = data.to_str().unwrap();
    let hint = "hint: bring it back, from its disk or a backup; or start with a new data folder: --data DIR\n";
    let told_gone = |store: &str| {
        let expected = format!("error: {path}/{store} is gone, and {path}/decisions knows of it\n");
        let (code, out, err) = told(&unanimous(["demo", "check", "--data", path]));
        assert_eq!((code, out.as_str(), err), (Some(2), "", format!("{expected}{hint}")));
        // It must not serve; its last words are in the error.
        let mut demo = Demo::start(binary(), &data).unwrap();
        let error = demo.ready().expect_err("it serves without its store").to_string();
        assert!(error.contains(&expected) && error.contains(hint.trim_end()), "{error}");
        assert_eq!(demo.program().wait(LIMIT).unwrap().code(), Some(2));
    };
    let away = desk.folder.path().join("away");

    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::rename(data.join(format!("orders.db{suffix}")), format!("{}{suffix}", away.display()));
    }
    told_gone("orders.db");
    assert!(!data.join("orders.db").exists());
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::rename(format!("{}{suffix}", away.display()), data.join(format!("orders.db{suffix}")));
    }

    std::fs::rename(data.join("receipts"), &away).unwrap();
    told_gone("receipts");
    assert!(!data.join("receipts").exists());
    // A mount point whose disk is not there.
    std::fs::create_dir(data.join("receipts")).unwrap();
    told_gone("receipts");
    assert_eq!(desk.receipts(), Vec::<String>::new());
    std::fs::remove_dir(data.join("receipts")).unwrap();
    std::fs::rename(&away, data.join("receipts")).unwrap();

    let demo = Demo::start(binary(), &data).unwrap();
    demo.ready().unwrap();
    assert_eq!(clean(&demo.check().unwrap()), (1, 1), "it is all there again");
}

/// A first start that is killed at whatever it has just made comes up again; until then the check says what to do.
#[test]
fn a_first_start_that_was_killed_comes_up_again() {
    for made in ["", "orders.db", "receipts", "receipts/.unanimous", "decisions", "decisions/*"] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let there = || match made.strip_suffix("/*") {
            Some(parent) => std::fs::read_dir(data.join(parent)).is_ok_and(|mut entries| entries.next().is_some()),
            None => data.join(made).exists(),
        };
        let mut killed = Demo::start(binary(), &data).unwrap();
        let begun = std::time::Instant::now();
        while !there() {
            assert!(begun.elapsed() < LIMIT, "{made:?} was not made");
            std::thread::yield_now();
        }
        killed.kill().unwrap();
        let demo = Demo::start(binary(), &data).unwrap();
        let client = demo.ready().unwrap_or_else(|error| panic!("killed when {made:?} was there: {error}"));
        let order = json!({"customer": "Ada", "item": "tea", "quantity": 1});
        assert_eq!(client.post_json("/orders", &order).unwrap().status, 201, "{made:?}");
        assert_eq!(clean(&demo.check().unwrap()), (1, 1), "{made:?}");
    }
}

/// What a killed run had put in the way of an order is cleared away, and nothing else is.
#[test]
fn leftovers_of_a_killed_run_are_cleared() {
    let mut desk = Running::start();
    desk.demo.kill().unwrap();
    let receipts = desk.data().join("receipts");
    std::fs::write(receipts.join("in-the-way-7"), "").unwrap();
    std::fs::write(receipts.join("mine.txt"), "").unwrap();
    let demo = Demo::start(binary(), &desk.data()).unwrap();
    demo.ready().unwrap();
    assert_eq!(desk.receipts(), ["mine.txt"]);
}

/// A reader that closes its end of the pipe does not stop the server.
#[test]
fn output_that_nobody_reads_does_not_stop_it() {
    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.args(["demo", "--listen", "127.0.0.1:0", "--data"]).arg(folder.path().join("data"));
    let mut child = Killed(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let address = lines.find_map(|line| Some(line.unwrap().strip_prefix("listening on http://")?.to_owned())).unwrap();
    drop((lines, child.0.stderr.take()));
    let client = Client::new(address);
    let order = json!({"customer": "Ada", "item": "tea", "quantity": 1, "fail": "vote"});
    assert_eq!(client.post_json("/orders", &order).unwrap().status, 503, "with a warning that goes nowhere");
    assert_eq!(client.get("/orders").unwrap().status, 200);
}
