//! Upgrades: the transaction of the request ends before its 101 goes out, and what runs on the upgraded connection has none; a
//! websocket whose commit fails is never opened. Over real sockets.

#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use unanimous::http::{TransactionLayer, commit_after_body, default_commit_veto};
use unanimous::{BranchError, JoinError, Outcome, Tx};

use crate::http_support::{COMMITTED, Remark, Step, World, work};

/// What the upgraded connection's task finds, told to the client; then each message in a transaction of its own.
async fn chat(mut socket: WebSocket, world: Arc<World>, tx: Tx) {
    world.journal.add("upgraded");
    let _gone = Remark(world.journal.clone(), "connection closed");
    let current = unanimous::current().is_some();
    let joined = matches!(tx.join(&world.a).await, Err(JoinError::NotActive { .. }));
    socket.send(format!("current: {current}, refused: {joined}").into()).await.unwrap();
    while let Some(Ok(Message::Text(text))) = socket.recv().await {
        let (stores, journal) = ((world.a.clone(), world.b.clone()), world.journal.clone());
        let stored = world.manager.run(1, move |tx| {
            let ((a, b), journal) = (stores.clone(), journal.clone());
            async move { Ok(work(&tx, &a, &b, &journal).await?) }
        });
        let answer = if stored.await.is_ok() { "stored" } else { "not stored" };
        socket.send(format!("{text}: {answer}").into()).await.unwrap();
    }
}

async fn upgrade(tx: Tx, upgrade: WebSocketUpgrade, State(world): State<Arc<World>>) -> Response {
    work(&tx, &world.a, &world.b, &world.journal).await.unwrap();
    let failed = world.journal.clone();
    upgrade.on_failed_upgrade(move |_| failed.add("never upgraded")).on_upgrade(move |socket| chat(socket, world, tx))
}

struct Client(TcpStream);

impl Client {
    /// Has asked for a websocket, and waits for the answer.
    async fn asks(world: &Arc<World>) -> Self {
        let app = Router::new()
            .route("/chat", get(upgrade))
            .with_state(world.clone())
            // A 101 has no body to wait for.
            .layer(commit_after_body())
            .layer(TransactionLayer::new(world.manager.clone()).commit_veto(default_commit_veto));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = "GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        Self(stream)
    }

    /// The response's head, byte by byte: what is behind it is the connection's.
    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    /// One text frame of at most 125 bytes, from the server unmasked (RFC 6455, 5.2).
    async fn hears(&mut self) -> String {
        assert_eq!(self.0.read_u8().await.unwrap(), 0x81);
        let length = self.0.read_u8().await.unwrap();
        let mut text = vec![0; length.into()];
        self.0.read_exact(&mut text).await.unwrap();
        String::from_utf8(text).unwrap()
    }

    /// The same from the client: masked, by zeros.
    async fn says(&mut self, text: &str) {
        let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        self.0.write_all(&frame).await.unwrap();
    }
}

#[tokio::test]
async fn the_transaction_ends_before_the_101() {
    let world = Arc::new(World::new().await);
    world.b.hold(Step::Prepare);
    let mut client = Client::asks(&world).await;
    world.b.reached(Step::Prepare).await;
    assert_eq!(client.0.try_read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "answered before the commit");
    world.b.release(Step::Prepare);
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // Not waited for: it is so when the client has the head.
    world.assert_ended(&COMMITTED, Outcome::Committed);

    assert_eq!(client.hears().await, "current: false, refused: true");
    world.journal.assert_before("end committed", "upgraded");
    world.assert_ended(&COMMITTED, Outcome::Committed);
}

/// And each message has one, whose failure is that message's.
#[tokio::test]
async fn each_message_in_a_transaction_of_its_own() {
    let world = Arc::new(World::new().await);
    let mut client = Client::asks(&world).await;
    client.head().await;
    client.hears().await;
    client.says("one").await;
    assert_eq!(client.hears().await, "one: stored");
    world.b.fail(Step::Prepare, || BranchError::refused("no"));
    client.says("two").await;
    assert_eq!(client.hears().await, "two: not stored");
    assert_eq!(world.journal.of("end"), ["committed", "committed", "aborted"]);
    drop(client);
    world.journal.until("connection closed").await;
}

#[tokio::test]
async fn a_commit_that_fails_opens_no_websocket() {
    let world = Arc::new(World::new().await);
    world.b.fail(Step::Prepare, || BranchError::refused("no"));
    let mut client = Client::asks(&world).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(world.journal.of("end"), ["aborted"]);
    assert!(!world.journal.entries().contains(&"upgraded".to_owned()));
}
