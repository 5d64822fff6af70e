//! Clients over HTTP/1.1 with connections that they keep: just enough of it for a server's own answers, and the same for all servers.
//!
//! Must not know who answers.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::load::Side;
use crate::Error;

type Line = BufReader<TcpStream>;

/// One connection for each client.
struct Clients {
    address: SocketAddr,
    request: String,
    lines: Vec<Mutex<Option<Line>>>,
}

enum Asked {
    /// With the connection, where the server keeps it.
    Answered(Option<Line>),
    /// The server had closed the connection since its last answer.
    Closed,
}

/// Clients that post to this path again and again.
pub(crate) fn posts(name: &str, address: SocketAddr, path: &str, clients: usize) -> Side {
    let request = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n");
    let lines = (0..clients).map(|_| Mutex::default()).collect();
    let clients = Arc::new(Clients { address, request, lines });
    Side::new(name, move |client| {
        let clients = clients.clone();
        async move { clients.once(client).await }
    })
}

impl Clients {
    async fn once(&self, client: usize) -> Result<(), Error> {
        let mut line = self.lines[client].lock().await;
        if let Some(kept) = line.take()
            && let Asked::Answered(kept) = ask(kept, &self.request).await?
        {
            *line = kept;
            return Ok(());
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        match ask(BufReader::new(stream), &self.request).await? {
            Asked::Answered(kept) => *line = kept,
            Asked::Closed => return Err("the server closed a new connection without an answer".into()),
        }
        Ok(())
    }
}

async fn ask(mut line: Line, request: &str) -> Result<Asked, Error> {
    let mut status = String::new();
    // A connection that was idle between two rounds may be closed.
    let sent = line.write_all(request.as_bytes()).await;
    if sent.is_err() || !line.read_line(&mut status).await.is_ok_and(|read| read > 0) {
        return Ok(Asked::Closed);
    }
    let (mut length, mut keep) = (0, true);
    loop {
        let mut header = String::new();
        line.read_line(&mut header).await?;
        let header = header.trim_end().to_ascii_lowercase();
        match header.split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse()?,
            Some(("connection", value)) => keep = value.trim() != "close",
            Some(_) => {}
            None if header.is_empty() => break,
            None => return Err(format!("no header: {header:?}").into()),
        }
    }
    let mut body = vec![0; length];
    line.read_exact(&mut body).await?;
    match status.split(' ').nth(1) {
        Some("200") => Ok(Asked::Answered(keep.then_some(line))),
        _ => Err(format!("{}: {}", status.trim_end(), String::from_utf8_lossy(&body)).into()),
    }
}
