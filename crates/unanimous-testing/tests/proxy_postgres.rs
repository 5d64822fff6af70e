//! The proxy that sees PostgreSQL's messages: each act, between a client and a server that answers every message with two.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use unanimous_testing::proxy::postgres::{Act, Direction, Extent, Proxy, Spot, Then};

const PATIENCE: Duration = Duration::from_secs(60);

fn message(kind: char, text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len() + 4).unwrap();
    [&[kind as u8][..], &length.to_be_bytes(), text.as_bytes()].concat()
}

fn start() -> Vec<u8> {
    let rest = [&196_608_u32.to_be_bytes()[..], b"user\0me\0\0"].concat();
    [&u32::try_from(rest.len() + 4).unwrap().to_be_bytes()[..], &rest].concat()
}

/// A message's text, where one comes whole.
fn read(stream: &mut TcpStream, typed: bool) -> Option<String> {
    let mut head = vec![0; if typed { 5 } else { 4 }];
    stream.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes(head[head.len() - 4..].try_into().unwrap()) as usize;
    let mut rest = vec![0; length - 4];
    stream.read_exact(&mut rest).ok()?;
    Some(String::from_utf8_lossy(&rest).into_owned())
}

/// Gives what the server was asked; `end` where a connection ended.
fn server() -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, questions) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, asked) = (stream.unwrap(), asked.clone());
            thread::spawn(move || {
                let mut typed = false;
                while let Some(question) = read(&mut stream, typed) {
                    if typed {
                        let _ = asked.send(question.clone());
                    }
                    typed = true;
                    for part in ["one", "two"] {
                        let _ = stream.write_all(&message('A', &format!("{part} {question}")));
                    }
                }
                let _ = asked.send("end".to_owned());
            });
        }
    });
    (port, questions)
}

/// A client that has started.
struct Client(TcpStream);

impl Client {
    fn new(proxy: &Proxy) -> Self {
        let mut client = Self(TcpStream::connect(("127.0.0.1", proxy.port())).unwrap());
        client.0.write_all(&start()).unwrap();
        assert!(client.hears().unwrap().starts_with("one"));
        assert!(client.hears().unwrap().starts_with("two"));
        client
    }

    fn says(&mut self, text: &str) {
        self.0.write_all(&message('Q', text)).unwrap();
    }

    fn hears(&mut self) -> Option<String> {
        read(&mut self.0, true)
    }
}

fn next(questions: &Receiver<String>) -> String {
    questions.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn messages_are_counted_and_written_down() {
    let (port, _questions) = server();
    let proxy = Proxy::start(port).unwrap();
    proxy.record();
    let mut client = Client::new(&proxy);
    // Two in one write are two, and one in two writes is one.
    client.0.write_all(&[message('Q', "a"), message('P', "b")].concat()).unwrap();
    for part in ["one a", "two a", "one b", "two b"] {
        assert_eq!(client.hears().as_deref(), Some(part));
    }
    let whole = message('Q', "c");
    client.0.write_all(&whole[..3]).unwrap();
    client.0.write_all(&whole[3..]).unwrap();
    assert_eq!(client.hears().as_deref(), Some("one c"));
    assert_eq!(proxy.count(Direction::ToServer), 4);
    let seen = proxy.recorded();
    let asked: Vec<_> = seen.iter().filter(|seen| seen.direction == Direction::ToServer).collect();
    let kinds: Vec<_> = asked.iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds, [None, Some('Q'), Some('P'), Some('Q')]);
    assert_eq!(asked[1].text, "a");
}

#[test]
fn a_connection_is_cut_before_within_or_behind_a_message() {
    let (port, questions) = server();
    let proxy = Proxy::start(port).unwrap();
    // The first is the start, and the second is met.
    // However quick the server's answer is.
    let behind = std::iter::repeat_n((Spot::Behind, true), 100);
    for (spot, arrives) in [(Spot::Before, false), (Spot::Within, false)].into_iter().chain(behind) {
        let rule = proxy.at(Direction::ToServer, proxy.count(Direction::ToServer) + 1, Act::Cut(spot));
        let mut client = Client::new(&proxy);
        client.says("question");
        if arrives {
            assert_eq!(next(&questions), "question");
        }
        assert_eq!(client.hears(), None);
        assert_eq!(next(&questions), "end");
        assert!(rule.wait_over(PATIENCE));
    }
    for (spot, heard) in [(Spot::Before, None), (Spot::Within, None), (Spot::Behind, Some("one question"))] {
        proxy.on(Direction::ToClient, "one question", Act::Cut(spot));
        let mut client = Client::new(&proxy);
        client.says("question");
        assert_eq!(client.hears().as_deref(), heard);
        assert_eq!(client.hears(), None);
    }
}

#[test]
fn a_stall_holds_a_connection_or_all_and_then_cuts_or_goes_on() {
    let (port, questions) = server();
    let proxy = Proxy::start(port).unwrap();
    let lasting = Duration::from_millis(300);
    let (mut first, mut second) = (Client::new(&proxy), Client::new(&proxy));

    proxy.on(Direction::ToServer, "a", Act::Stall(Extent::Connection, lasting, Then::GoOn));
    let start = Instant::now();
    first.says("a");
    second.says("b");
    assert_eq!(next(&questions), "b", "the other connection goes on");
    assert_eq!(next(&questions), "a");
    assert!(start.elapsed() >= lasting);
    assert_eq!(first.hears().as_deref(), Some("one a"));
    assert_eq!(second.hears().as_deref(), Some("one b"));

    let rule = proxy.on(Direction::ToServer, "c", Act::Stall(Extent::All, lasting, Then::Cut));
    let start = Instant::now();
    first.says("c");
    assert!(rule.wait_met(PATIENCE));
    second.says("d");
    let mut heard = Vec::new();
    while !heard.contains(&"d".to_owned()) || !heard.contains(&"end".to_owned()) {
        heard.push(next(&questions));
    }
    assert!(start.elapsed() >= lasting, "the other connection waits too");
    assert!(!heard.contains(&"c".to_owned()), "{heard:?}");
}

#[test]
fn a_message_arrives_behind_its_clients_end() {
    let (port, questions) = server();
    let proxy = Proxy::start(port).unwrap();
    let mut client = Client::new(&proxy);
    let rule = proxy.on(Direction::ToServer, "late", Act::Detach);
    client.says("late");
    assert_eq!(client.hears(), None, "the client is cut off");
    assert!(rule.wait_met(PATIENCE) && !rule.is_over());
    let mut other = Client::new(&proxy);
    other.says("other");
    assert_eq!(next(&questions), "other", "nothing has arrived, and nothing has ended");
    rule.release();
    assert_eq!([next(&questions), next(&questions)], ["late", "end"]);
    assert!(rule.wait_over(PATIENCE));
}

#[test]
fn a_message_is_delayed_answered_by_the_proxy_or_follows_another() {
    let (port, questions) = server();
    let proxy = Proxy::start(port).unwrap();
    let mut client = Client::new(&proxy);
    let lasting = Duration::from_millis(200);
    proxy.on(Direction::ToClient, "two a", Act::Delay(lasting));
    let start = Instant::now();
    client.says("a");
    assert_eq!(client.hears().as_deref(), Some("one a"));
    assert_eq!(client.hears().as_deref(), Some("two a"));
    assert!(start.elapsed() >= lasting);

    proxy.on(Direction::ToClient, "two b", Act::Insert(message('N', "between")));
    client.says("b");
    let heard: Vec<_> = (0..3).map(|_| client.hears().unwrap()).collect();
    assert_eq!(heard, ["one b", "between", "two b"]);

    proxy.on(Direction::ToServer, "c", Act::Answer(message('E', "no")));
    client.says("c");
    assert_eq!((client.hears().as_deref(), client.hears()), (Some("no"), None));
    drop(client);
    let asked: Vec<_> = (0..4).map(|_| next(&questions)).collect();
    assert_eq!(asked, ["a", "b", "c", "end"], "it arrived all the same");
}
