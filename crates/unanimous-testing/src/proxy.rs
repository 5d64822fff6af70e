//! A way to a server that loses what it is told to lose: questions, answers, connections.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//! use unanimous_testing::proxy::{Act, Proxy};
//!
//! # fn main() -> std::io::Result<()> {
//! let server = TcpListener::bind("127.0.0.1:0")?;
//! let proxy = Proxy::start(server.local_addr()?.port())?;
//! let rule = proxy.on("COMMIT", Act::LoseAnswer);
//!
//! let mut client = TcpStream::connect(("127.0.0.1", proxy.port()))?;
//! client.write_all(b"COMMIT")?;
//! let (mut served, _) = server.accept()?;
//! let mut question = [0; 6];
//! served.read_exact(&mut question)?;
//! served.write_all(b"done")?;
//! // It was done, and the client never hears of it.
//! let mut answer = Vec::new();
//! let _closed = client.read_to_end(&mut answer);
//! assert_eq!((&question, answer, rule.met()), (b"COMMIT", vec![], true));
//! # Ok(())
//! # }
//! ```
//!
//! A rule looks for a text in what a client sends, and acts once, on the first that has it. The text must come in one piece, as a short
//! statement does.
//!
//! Must not know any protocol: it sees bytes. [`postgres`] has one that sees PostgreSQL's messages.

pub mod postgres;

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

/// What is done when a client sends a rule's text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// The server gets it, and when it begins to answer the connection is cut: it was done, and the client does not know.
    LoseAnswer,
    /// The connection is cut before the server gets it.
    LoseQuestion,
    /// The server gets it, and the connection is cut at once: the client is gone while it is done, and hears nothing.
    Cut,
    /// The server gets it, and nothing of what it says comes back from then on, while the connection stays.
    Silence,
    /// The server gets this in its place; of the same length, or a protocol with lengths breaks.
    Replace(String),
}

/// A rule of a [`Proxy`].
#[derive(Clone, Debug)]
pub struct Rule {
    state: Arc<RuleState>,
}

#[derive(Debug)]
struct RuleState {
    text: Vec<u8>,
    act: Act,
    met: AtomicBool,
}

impl Rule {
    /// Whether a client has sent its text.
    pub fn met(&self) -> bool {
        self.state.met.load(Ordering::SeqCst)
    }
}

/// A TCP proxy on 127.0.0.1. Dropped, it cuts its connections and takes no more.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: AtomicU16,
    closed: AtomicBool,
    rules: Mutex<Vec<Rule>>,
    /// Those that have not ended.
    links: Mutex<Vec<Weak<Link>>>,
}

/// One client's connection, and the one made for it.
struct Link {
    client: TcpStream,
    server: TcpStream,
    /// The next answer is lost, and the connection with it.
    lose: AtomicBool,
    silent: AtomicBool,
}

impl Link {
    fn cut(&self) {
        // Either side may have gone already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

impl Proxy {
    /// Leads to a port on 127.0.0.1, where nobody needs to listen yet.
    ///
    /// # Errors
    ///
    /// When no port is free.
    pub fn start(target: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            target: AtomicU16::new(target),
            closed: AtomicBool::new(false),
            rules: Mutex::default(),
            links: Mutex::default(),
        });
        thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Ok(Self { port, shared })
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// New connections lead to this port; those that there are stay.
    pub fn lead_to(&self, target: u16) {
        self.shared.target.store(target, Ordering::SeqCst);
    }

    /// A rule, for one client that sends `text`. Of several that match, the oldest acts.
    pub fn on(&self, text: impl Into<Vec<u8>>, act: Act) -> Rule {
        let rule = Rule { state: Arc::new(RuleState { text: text.into(), act, met: AtomicBool::new(false) }) };
        lock(&self.shared.rules).push(rule.clone());
        rule
    }

    /// Cuts all connections that there are; new ones are taken.
    pub fn cut(&self) {
        for link in lock(&self.shared.links).iter().filter_map(Weak::upgrade) {
            link.cut();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the listener, which then looks.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("port", &self.port).field("target", &self.shared.target).finish_non_exhaustive()
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.closed.load(Ordering::SeqCst) {
            return;
        }
        // A client whose server is not there is closed, which is what it would see of one that ends as it connects.
        let Ok(link) = client.and_then(|client| connect(client, shared.target.load(Ordering::SeqCst))) else {
            continue;
        };
        let link = Arc::new(link);
        {
            let mut links = lock(&shared.links);
            links.retain(|link| link.strong_count() > 0);
            links.push(Arc::downgrade(&link));
        }
        if shared.closed.load(Ordering::SeqCst) {
            link.cut();
        }
        thread::spawn({
            let (link, shared) = (link.clone(), shared.clone());
            move || questions(&link, &shared)
        });
        thread::spawn(move || answers(&link));
    }
}

fn connect(client: TcpStream, target: u16) -> io::Result<Link> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok(Link { client, server, lose: AtomicBool::new(false), silent: AtomicBool::new(false) })
}

/// From the client to the server, until either ends.
fn questions(link: &Link, shared: &Shared) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match (&link.client).read(&mut buffer) {
            Ok(length) if length > 0 => length,
            _ => break,
        };
        let mut bytes = buffer[..length].to_vec();
        let mut cut = false;
        if let Some(rule) = shared.meet(&bytes) {
            match &rule.state.act {
                Act::LoseQuestion => break,
                Act::LoseAnswer => link.lose.store(true, Ordering::SeqCst),
                Act::Cut => {
                    // A quick answer could be back before the cut.
                    link.silent.store(true, Ordering::SeqCst);
                    cut = true;
                }
                Act::Silence => link.silent.store(true, Ordering::SeqCst),
                Act::Replace(other) => {
                    let at = find(&bytes, &rule.state.text).expect("the rule was met by its text");
                    bytes.splice(at..at + rule.state.text.len(), other.bytes());
                }
            }
        }
        if (&link.server).write_all(&bytes).is_err() || cut {
            break;
        }
    }
    link.cut();
}

/// From the server to the client, until either ends.
fn answers(link: &Link) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match (&link.server).read(&mut buffer) {
            Ok(length) if length > 0 => length,
            _ => break,
        };
        if link.lose.load(Ordering::SeqCst) {
            break;
        }
        if !link.silent.load(Ordering::SeqCst) && (&link.client).write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    link.cut();
}

impl Shared {
    /// Takes the oldest rule whose text is there.
    fn meet(&self, bytes: &[u8]) -> Option<Rule> {
        let mut rules = lock(&self.rules);
        let at = rules.iter().position(|rule| find(bytes, &rule.state.text).is_some())?;
        let rule = rules.remove(at);
        rule.state.met.store(true, Ordering::SeqCst);
        Some(rule)
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len().max(1)).position(|window| window == text)
}

/// What is locked here is consistent after each statement, so that a panic elsewhere leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
