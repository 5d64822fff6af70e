//! Clients on real sockets: HTTP/1.1 byte by byte, HTTP/2 by the h2 crate. They tell what a client saw, which is all that it can conclude from.
//! They must not know what the server does with a request.

use std::fmt;
use std::net::{Shutdown, SocketAddr};

use axum::body::Bytes;
use axum::http::{Request, Version};
use h2::client::{self, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// What a client saw of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not even a head: the connection or the stream ended before one, from whichever side.
    Nothing,
    /// A head with this status, and a body that never came to its end.
    Broken(u16),
    /// All of it.
    Whole(u16),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Nothing => f.write_str("no answer"),
            Verdict::Broken(status) => write!(f, "{status}, cut off"),
            Verdict::Whole(status) => write!(f, "{status}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A request's body, and what is sent of it at first where it is sent in pieces.
const BODY: &str = "all of it";
const HALF: &str = "all";

/// How much of the request's body is sent at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Half,
    Whole,
}

/// One connection.
pub(super) enum Client {
    Http1(Http1),
    Http2(Http2),
}

impl Client {
    pub(super) async fn connect(protocol: Protocol, server: SocketAddr) -> Self {
        let socket = TcpStream::connect(server).await.unwrap();
        // Whoever drops it resets it.
        socket.set_zero_linger().unwrap();
        match protocol {
            Protocol::Http1 => Client::Http1(Http1 { socket: Some(socket), seen: Vec::new() }),
            Protocol::Http2 => Client::Http2(Http2::over(socket).await),
        }
    }

    pub(super) async fn post(&mut self, path: &str, sent: Sent) {
        match self {
            Client::Http1(client) => client.post(path, sent).await,
            Client::Http2(client) => client.post(path, sent).await,
        }
    }

    /// Reads the head and a piece of the body, and no more.
    pub(super) async fn begin_to_read(&mut self) {
        match self {
            Client::Http1(client) => client.begin_to_read().await,
            Client::Http2(client) => client.begin_to_read().await,
        }
    }

    /// Takes the request back: resets HTTP/1.1's connection, or HTTP/2's stream with CANCEL.
    pub(super) fn reset(&mut self) -> Verdict {
        match self {
            Client::Http1(client) => client.reset(),
            Client::Http2(client) => client.cancel(),
        }
    }

    /// Says that nothing more will be sent, and goes on reading.
    pub(super) async fn half_close(&mut self) {
        match self {
            Client::Http1(client) => client.socket().shutdown().await.unwrap(),
            Client::Http2(client) => client.socket.shutdown(Shutdown::Write).unwrap(),
        }
    }

    /// Reads until the answer or the connection ends.
    pub(super) async fn verdict(&mut self) -> Verdict {
        match self {
            Client::Http1(client) => client.verdict().await,
            Client::Http2(client) => client.verdict().await,
        }
    }

    /// Whether another request over the same connection is answered.
    pub(super) async fn is_alive(&mut self) -> bool {
        match self {
            Client::Http1(client) => {
                let sent = client.write("GET /alive HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
                sent && client.verdict().await == Verdict::Whole(200)
            }
            Client::Http2(client) => client.is_alive().await,
        }
    }
}

pub(super) struct Http1 {
    /// None once it is reset.
    socket: Option<TcpStream>,
    seen: Vec<u8>,
}

impl Http1 {
    pub(super) async fn connect(server: SocketAddr) -> Self {
        let Client::Http1(client) = Client::connect(Protocol::Http1, server).await else { unreachable!() };
        client
    }

    fn socket(&mut self) -> &mut TcpStream {
        self.socket.as_mut().expect("nothing is sent after a reset")
    }

    /// False when the connection is gone.
    pub(super) async fn write(&mut self, text: &str) -> bool {
        self.socket().write_all(text.as_bytes()).await.is_ok()
    }

    async fn post(&mut self, path: &str, sent: Sent) {
        let (length, now) = (BODY.len(), if sent == Sent::Whole { BODY } else { HALF });
        let request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{now}");
        assert!(self.write(&request).await);
    }

    pub(super) fn reset(&mut self) -> Verdict {
        self.socket = None;
        self.broken()
    }

    fn broken(&self) -> Verdict {
        self.head().map_or(Verdict::Nothing, |(status, _)| Verdict::Broken(status))
    }

    /// Takes the next answer out, the interim ones (1xx) too.
    pub(super) async fn verdict(&mut self) -> Verdict {
        loop {
            if let Some((status, Some(end))) = self.head() {
                self.seen.drain(..end);
                return Verdict::Whole(status);
            }
            if !self.read().await {
                return self.broken();
            }
        }
    }

    /// Reads a piece. False at the end, and when the connection is reset.
    async fn read(&mut self) -> bool {
        let Self { socket: Some(socket), seen } = self else { return false };
        socket.read_buf(seen).await.is_ok_and(|read| read > 0)
    }

    async fn begin_to_read(&mut self) {
        while self.head().is_none() {
            assert!(self.read().await, "no head came");
        }
        assert!(self.read().await, "no body came");
    }

    /// The status of the first answer that is not taken out yet, and where the answer ends if it does.
    fn head(&self) -> Option<(u16, Option<usize>)> {
        let seen = &self.seen;
        let head = find(seen, "\r\n\r\n")? + 4;
        let text = std::str::from_utf8(&seen[..head]).unwrap().to_ascii_lowercase();
        let status = text["http/1.1 ".len()..][..3].parse().unwrap();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
        let end = match (field("content-length:"), field("transfer-encoding:")) {
            (Some(length), _) => Some(head + length.parse::<usize>().unwrap()),
            (None, Some("chunked")) => end_of_chunks(seen, head),
            _ => Some(head),
        };
        Some((status, end.filter(|&end| end <= seen.len())))
    }
}

pub(super) struct Http2 {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
    /// The connection's own, beside h2, which has no half-close.
    socket: std::net::TcpStream,
    exchange: Option<(client::ResponseFuture, SendStream<Bytes>)>,
    head: Option<(u16, RecvStream)>,
}

impl Http2 {
    async fn over(socket: TcpStream) -> Self {
        let socket = socket.into_std().unwrap();
        let io = TcpStream::from_std(socket.try_clone().unwrap()).unwrap();
        let (requests, connection) = client::handshake(io).await.unwrap();
        // Its error is each stream's too.
        let connection = tokio::spawn(async move { drop(connection.await) });
        Self { requests, connection, socket, exchange: None, head: None }
    }

    async fn request(&mut self, request: Request<()>, body: Option<(&'static str, bool)>) -> Result<(), h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut stream) = requests.send_request(request, body.is_none())?;
        if let Some((body, end)) = body {
            stream.send_data(Bytes::from_static(body.as_bytes()), end)?;
        }
        self.exchange = Some((response, stream));
        Ok(())
    }

    async fn post(&mut self, path: &str, sent: Sent) {
        let request = Request::post(format!("http://localhost{path}")).version(Version::HTTP_2);
        let request = request.header("content-length", BODY.len()).body(()).unwrap();
        let all = sent == Sent::Whole;
        self.request(request, Some((if all { BODY } else { HALF }, all))).await.unwrap();
    }

    /// Waits for the head. False if there will be none.
    async fn read_head(&mut self) -> bool {
        if self.head.is_none() {
            let (response, _) = self.exchange.as_mut().expect("a request was sent");
            let Ok(response) = response.await else { return false };
            self.head = Some((response.status().as_u16(), response.into_body()));
        }
        true
    }

    async fn begin_to_read(&mut self) {
        assert!(self.read_head().await);
        let (_, body) = self.head.as_mut().unwrap();
        // Its window is not given back.
        body.data().await.unwrap().unwrap();
    }

    fn broken(&self) -> Verdict {
        self.head.as_ref().map_or(Verdict::Nothing, |(status, _)| Verdict::Broken(*status))
    }

    fn cancel(&mut self) -> Verdict {
        let (_, stream) = self.exchange.as_mut().expect("a request was sent");
        stream.send_reset(Reason::CANCEL);
        self.broken()
    }

    /// Resets the connection under all streams.
    pub(super) async fn reset(self) -> Verdict {
        self.connection.abort();
        drop(self.connection.await);
        drop(self.socket);
        self.head.map_or(Verdict::Nothing, |(status, _)| Verdict::Broken(status))
    }

    /// Ends the body where it is, which is shorter than was announced.
    pub(super) fn end_early(&mut self) {
        let (_, stream) = self.exchange.as_mut().expect("a request was sent");
        stream.send_data(Bytes::new(), true).unwrap();
    }

    async fn verdict(&mut self) -> Verdict {
        if !self.read_head().await {
            return Verdict::Nothing;
        }
        let (status, mut body) = self.head.take().unwrap();
        while let Some(data) = body.data().await {
            let Ok(data) = data else { return Verdict::Broken(status) };
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        Verdict::Whole(status)
    }

    async fn is_alive(&mut self) -> bool {
        let request = Request::get("http://localhost/alive").version(Version::HTTP_2).body(()).unwrap();
        self.head = None;
        self.request(request, None).await.is_ok() && self.verdict().await == Verdict::Whole(200)
    }
}

fn find(bytes: &[u8], what: &str) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what.as_bytes())
}

fn end_of_chunks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let line = at + find(bytes.get(at..)?, "\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..line]).unwrap(), 16).unwrap();
        at = line + 2 + size + 2;
        if size == 0 {
            return Some(at);
        }
    }
}
