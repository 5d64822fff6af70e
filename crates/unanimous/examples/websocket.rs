//! A websocket with one transaction for each message: each goes into SQLite and into a file, or into neither, and is answered when it is
//! stored. The request that opens the socket has a transaction too, which ends before the 101.
//!
//! `cargo run -p unanimous --example websocket --features axum,sqlite` says two messages to itself; with `-- --serve` it waits for yours.
#![allow(clippy::print_stdout, reason = "an example talks")]

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use unanimous::files::Files;
use unanimous::http::{Failed, TransactionLayer, default_commit_veto};
use unanimous::log::FileLog;
use unanimous::sqlite::Sqlite;
use unanimous::{BoxError, TransactionManager, Tx};

/// How often a message is tried before its conflict is the client's problem.
const ATTEMPTS: u32 = 5;

#[derive(Clone)]
struct Room {
    manager: TransactionManager,
    messages: Sqlite,
    copies: Files,
}

/// The request's own transaction: it commits before the client gets the 101, and the socket is opened only then.
async fn enter(tx: Tx, socket: WebSocketUpgrade, State(room): State<Room>) -> Result<Response, Failed> {
    tx.join(&room.messages).await?.execute("insert into message (text) values ('somebody came in')", ()).await?;
    // The socket's task runs when the transaction has ended; `tx` would be refused there.
    Ok(socket.on_upgrade(|socket| talk(socket, room)))
}

async fn talk(mut socket: WebSocket, room: Room) {
    while let Some(Ok(message)) = socket.recv().await {
        let Message::Text(text) = message else { continue };
        // A client that goes away here does not undo what has begun to commit.
        let stored = room.manager.run(ATTEMPTS, |tx| keep(tx, room.clone(), text.to_string())).await;
        let answer = match stored {
            Ok(id) => format!("{id}: stored"),
            Err(error) => {
                println!("a message was not stored: {error}");
                "not stored; say it again".to_owned()
            }
        };
        if socket.send(answer.into()).await.is_err() {
            return;
        }
    }
}

/// One message, in its own transaction.
async fn keep(tx: Tx, room: Room, text: String) -> Result<i64, BoxError> {
    let said = text.clone();
    let messages = tx.join(&room.messages).await?;
    let id: i64 =
        messages.query_row("insert into message (text) values (?1) returning id", (said,), |row| row.get(0)).await?;
    tx.join(&room.copies).await?.create(format!("{id}.txt"), text).await?;
    Ok(id)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let data = folder.path();
    let schema = "create table if not exists message (id integer primary key, text text not null)";
    let messages = Sqlite::builder("messages", data.join("messages.db")).init(|conn| conn.execute_batch(schema));
    let messages = messages.open().await?;
    let copies = Files::open("copies", data.join("copies")).await?;
    let manager = TransactionManager::builder(FileLog::open(data.join("decisions")).await?)
        .resource(messages.clone())
        .resource(copies.clone())
        .build()
        .await?;
    let room = Room { manager: manager.clone(), messages, copies };
    let app = Router::new()
        .route("/room", get(enter))
        .with_state(room.clone())
        .layer(TransactionLayer::new(manager).commit_veto(default_commit_veto));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    println!("ws://{address}/room");
    if std::env::args().any(|argument| argument == "--serve") {
        axum::serve(listener, app).await?;
        return Ok(());
    }
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut client = Client::enter(address).await?;
    for text in ["hello", "is anybody here?"] {
        println!("{text} -> {}", client.say(text).await?);
    }
    let written = std::fs::read_dir(room.copies.root())?.filter_map(Result::ok).filter(|entry| entry.path().is_file());
    let written = written.count();
    println!("{written} copies are written");
    if written == 2 { Ok(()) } else { Err("each message should have a copy".into()) }
}

/// As little of a websocket's client as two messages need (RFC 6455).
struct Client(TcpStream);

impl Client {
    async fn enter(address: std::net::SocketAddr) -> Result<Self, BoxError> {
        let mut stream = TcpStream::connect(address).await?;
        let request = "GET /room HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        if head.starts_with(b"HTTP/1.1 101 ") { Ok(Self(stream)) } else { Err(String::from_utf8_lossy(&head).into()) }
    }

    /// Short texts only.
    async fn say(&mut self, text: &str) -> Result<String, BoxError> {
        let mut frame = vec![0x81, 0x80 | u8::try_from(text.len())?, 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        self.0.write_all(&frame).await?;
        let [_text, length] = [self.0.read_u8().await?, self.0.read_u8().await?];
        let mut answer = vec![0; length.into()];
        self.0.read_exact(&mut answer).await?;
        Ok(String::from_utf8(answer)?)
    }
}
