//! The proxy: each way of losing something, between a client and a server that answers every question with `ok`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use unanimous_testing::proxy::{Act, Proxy};

/// Gives what the server was asked, question by question.
fn server() -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, questions) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, asked) = (stream.unwrap(), asked.clone());
            thread::spawn(move || {
                let mut buffer = [0; 100];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let question = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    if asked.send(question).is_err() || stream.write_all(b"ok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    (port, questions)
}

fn ask(client: &mut TcpStream, question: &str) -> Option<String> {
    client.write_all(question.as_bytes()).ok()?;
    let mut buffer = [0; 2];
    client.read_exact(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer).into_owned())
}

#[test]
fn each_act_does_what_it_says_once() {
    let (port, questions) = server();
    let proxy = Proxy::start(port).unwrap();
    let connect = || TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    let next = || questions.recv().unwrap();
    let (lost, unasked) = (proxy.on("two", Act::LoseAnswer), proxy.on("three", Act::LoseQuestion));

    let mut client = connect();
    assert_eq!(ask(&mut client, "one").as_deref(), Some("ok"));
    assert_eq!((next().as_str(), lost.met()), ("one", false));
    assert_eq!(ask(&mut client, "one two"), None);
    assert_eq!((next().as_str(), lost.met(), unasked.met()), ("one two", true, false));

    assert_eq!(ask(&mut connect(), "three"), None);
    assert!(unasked.met());
    // Once only; and the server was not asked the one before.
    assert_eq!(ask(&mut connect(), "two three").as_deref(), Some("ok"));
    assert_eq!(next(), "two three");

    // However quick the server's answer is.
    for _ in 0..100 {
        proxy.on("four", Act::Cut);
        assert_eq!(ask(&mut connect(), "four"), None);
        assert_eq!(next(), "four");
    }

    proxy.on("five", Act::Replace("vier".into()));
    assert_eq!(ask(&mut connect(), "a five!").as_deref(), Some("ok"));
    assert_eq!(next(), "a vier!");

    proxy.on("six", Act::Silence);
    let mut client = connect();
    client.write_all(b"six").unwrap();
    assert_eq!(next(), "six");
    client.write_all(b"seven").unwrap();
    assert_eq!(next(), "seven");
    proxy.cut();
    let mut heard = Vec::new();
    let _closed = client.read_to_end(&mut heard);
    assert_eq!(heard, b"");
}

#[test]
fn it_can_lead_elsewhere_and_ends_with_its_connections() {
    let ((one, at_one), (other, at_other)) = (server(), server());
    let proxy = Proxy::start(one).unwrap();
    let mut first = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    assert_eq!(ask(&mut first, "a").as_deref(), Some("ok"));
    proxy.lead_to(other);
    let mut second = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    assert_eq!(ask(&mut second, "b").as_deref(), Some("ok"));
    assert_eq!(ask(&mut first, "c").as_deref(), Some("ok"));
    assert_eq!(at_one.try_iter().collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(at_other.try_iter().collect::<Vec<_>>(), ["b"]);
    drop(proxy);
    assert_eq!((ask(&mut first, "d"), ask(&mut second, "e")), (None, None));
}
