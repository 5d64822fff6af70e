//! A way to a PostgreSQL server that sees messages: it counts them in each direction, and at a given one cuts, stalls, delays, lets it
//! arrive behind its client's end, or answers in the server's place.
//!
//! ```no_run
//! use unanimous_testing::proxy::postgres::{Act, Direction, Proxy, Spot};
//!
//! # fn main() -> std::io::Result<()> {
//! let proxy = Proxy::start(5432)?;
//! // The fifth message of clients arrives by half.
//! let rule = proxy.at(Direction::ToServer, 4, Act::Cut(Spot::Within));
//! // ... clients connect to proxy.port() ...
//! assert!(rule.met());
//! # Ok(())
//! # }
//! ```
//!
//! A message is a byte for its type, four for the length of the rest, and the rest; what opens a connection has no type, and its answer to a
//! wish for TLS is one byte (PostgreSQL 15, 55.2 and 55.7). What is encrypted is passed on and not counted.
//!
//! Must not know what statements mean.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::{find, lock};

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Questions.
    ToServer,
    /// Answers.
    ToClient,
}

/// Where a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spot {
    /// The message does not arrive.
    Before,
    /// Half of the message arrives.
    Within,
    /// The message arrives, and nothing behind it; what the server answers does not arrive either.
    Behind,
}

/// Whom a stall concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// The message's connection, in both directions.
    Connection,
    /// All connections, also those that are made meanwhile.
    All,
}

/// What happens behind a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Then {
    /// The message's connection is cut, and the message with it.
    Cut,
    /// What waited goes on, the message first.
    GoOn,
}

/// What is done at a message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Act {
    /// Its connection is cut.
    Cut(Spot),
    /// Nothing goes through for so long.
    Stall(Extent, Duration, Then),
    /// It arrives later, and what is behind it; the other direction goes on.
    Delay(Duration),
    /// Its client is cut off, and it arrives at the server when it is [released](Rule::release), behind which that side is cut too.
    Detach,
    /// It arrives at the server, and the client gets these bytes for an answer, behind which its connection is cut.
    Answer(Vec<u8>),
    /// These bytes arrive in front of it.
    Insert(Vec<u8>),
}

#[derive(Clone, Debug)]
enum Which {
    /// The message of this number, over all connections.
    Number(Direction, u64),
    /// The first with this text.
    Text(Direction, Vec<u8>),
}

/// A rule of a [`Proxy`]: acts once.
#[derive(Clone, Debug)]
pub struct Rule {
    state: Arc<RuleState>,
}

#[derive(Debug)]
struct RuleState {
    which: Which,
    act: Act,
    stage: Mutex<Stage>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stage {
    met: bool,
    released: bool,
    over: bool,
}

impl Rule {
    fn new(which: Which, act: Act) -> Self {
        Self { state: Arc::new(RuleState { which, act, stage: Mutex::default(), changed: Condvar::new() }) }
    }

    /// Whether its message came.
    pub fn met(&self) -> bool {
        lock(&self.state.stage).met
    }

    /// Whether it has acted to its end: what it held is gone or on its way.
    pub fn is_over(&self) -> bool {
        lock(&self.state.stage).over
    }

    /// Lets a message that was [detached](Act::Detach) arrive.
    pub fn release(&self) {
        self.change(|stage| stage.released = true);
    }

    /// Waits until its message came; blocks. Whether it did in time.
    pub fn wait_met(&self, patience: Duration) -> bool {
        self.wait(patience, |stage| stage.met)
    }

    /// Waits until it has acted to its end; blocks. Whether it has in time.
    pub fn wait_over(&self, patience: Duration) -> bool {
        self.wait(patience, |stage| stage.over)
    }

    fn change(&self, change: impl FnOnce(&mut Stage)) {
        change(&mut lock(&self.state.stage));
        self.state.changed.notify_all();
    }

    fn wait(&self, patience: Duration, until: impl Fn(Stage) -> bool) -> bool {
        let start = Instant::now();
        let mut stage = lock(&self.state.stage);
        while !until(*stage) {
            let Some(left) = patience.checked_sub(start.elapsed()) else { return false };
            stage = match self.state.changed.wait_timeout(stage, left) {
                Ok((stage, _)) => stage,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }
}

/// A message that went by.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its way.
    pub direction: Direction,
    /// Its connection, counted from 0.
    pub connection: u64,
    /// Its type; none for what opens a connection.
    pub kind: Option<char>,
    /// What can be read of the rest, 200 bytes at most.
    pub text: String,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Direction::ToServer => '>',
            Direction::ToClient => '<',
        };
        write!(f, "{}{way}{} {:?}", self.connection, self.kind.unwrap_or('-'), self.text)
    }
}

/// A TCP proxy on 127.0.0.1 for PostgreSQL's protocol. Dropped, it cuts its connections, and takes no more.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    target: u16,
    closed: AtomicBool,
    refusing: AtomicBool,
    state: Mutex<State>,
    /// Closed while nothing goes through.
    gate: Gate,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    counts: [u64; 2],
    recorded: Option<Vec<Seen>>,
    connections: u64,
    links: Vec<Weak<Link>>,
}

/// Lets messages through or not.
#[derive(Default)]
struct Gate {
    closed: Mutex<usize>,
    opened: Condvar,
}

impl Gate {
    fn close(&self) {
        *lock(&self.closed) += 1;
    }

    fn open(&self) {
        *lock(&self.closed) -= 1;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut closed = lock(&self.closed);
        while *closed > 0 {
            closed = self.opened.wait(closed).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

/// One client's connection, and the one made for it.
struct Link {
    number: u64,
    client: TcpStream,
    server: TcpStream,
    gate: Gate,
    /// What the server says goes nowhere any more.
    mute: AtomicBool,
    /// The server's side stays although the client is gone.
    detached: AtomicBool,
    /// A wish for TLS was sent, and is answered by one byte.
    wishes: Mutex<bool>,
    encrypted: AtomicBool,
}

impl Link {
    fn cut(&self) {
        // Either side may have gone already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }

    fn target(&self, direction: Direction) -> &TcpStream {
        match direction {
            Direction::ToServer => &self.server,
            Direction::ToClient => &self.client,
        }
    }

    fn source(&self, direction: Direction) -> &TcpStream {
        match direction {
            Direction::ToServer => &self.client,
            Direction::ToClient => &self.server,
        }
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
            target,
            closed: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            state: Mutex::default(),
            gate: Gate::default(),
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

    /// A rule for the message of this number, counted from 0 in its direction over all connections. Of several that match, the oldest acts.
    pub fn at(&self, direction: Direction, number: u64, act: Act) -> Rule {
        self.rule(Which::Number(direction, number), act)
    }

    /// A rule for the first message that has this text.
    pub fn on(&self, direction: Direction, text: impl Into<Vec<u8>>, act: Act) -> Rule {
        self.rule(Which::Text(direction, text.into()), act)
    }

    fn rule(&self, which: Which, act: Act) -> Rule {
        let rule = Rule::new(which, act);
        lock(&self.shared.state).rules.push(rule.clone());
        rule
    }

    /// How many messages came by in a direction.
    pub fn count(&self, direction: Direction) -> u64 {
        lock(&self.shared.state).counts[direction as usize]
    }

    /// Writes messages down from now on.
    pub fn record(&self) {
        lock(&self.shared.state).recorded = Some(Vec::new());
    }

    /// What was written down.
    pub fn recorded(&self) -> Vec<Seen> {
        lock(&self.shared.state).recorded.clone().unwrap_or_default()
    }

    /// While it refuses, connections are closed as they come, as by a server that is down. Those that there are stay.
    pub fn refuse(&self, refusing: bool) {
        self.shared.refusing.store(refusing, Ordering::SeqCst);
    }

    /// Cuts all connections that there are; new ones are taken.
    pub fn cut(&self) {
        for link in self.shared.links() {
            link.cut();
        }
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.shared.links().len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let rules = std::mem::take(&mut lock(&self.shared.state).rules);
        for rule in rules {
            rule.release();
        }
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

impl Shared {
    fn links(&self) -> Vec<Arc<Link>> {
        lock(&self.state).links.iter().filter_map(Weak::upgrade).collect()
    }

    /// Counts a message, and gives the rule that it meets.
    fn see(&self, link: &Link, direction: Direction, message: &Message) -> Option<Rule> {
        let mut state = lock(&self.state);
        let number = state.counts[direction as usize];
        state.counts[direction as usize] += 1;
        if let Some(recorded) = &mut state.recorded {
            recorded.push(message.seen(link.number, direction));
        }
        let is_it = |which: &Which| match which {
            Which::Number(way, wanted) => *way == direction && *wanted == number,
            Which::Text(way, text) => *way == direction && find(&message.bytes, text).is_some(),
        };
        let met = state.rules.iter().position(|rule| is_it(&rule.state.which))?;
        Some(state.rules.remove(met))
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.closed.load(Ordering::SeqCst) {
            return;
        }
        if shared.refusing.load(Ordering::SeqCst) {
            continue;
        }
        // A client whose server is not there is closed, which is what it would see of one that ends as it connects.
        let Ok(client) = client else { continue };
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.target)) else { continue };
        if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
            continue;
        }
        let link = {
            let mut state = lock(&shared.state);
            let link = Arc::new(Link {
                number: state.connections,
                client,
                server,
                gate: Gate::default(),
                mute: AtomicBool::new(false),
                detached: AtomicBool::new(false),
                wishes: Mutex::default(),
                encrypted: AtomicBool::new(false),
            });
            state.connections += 1;
            state.links.retain(|link| link.strong_count() > 0);
            state.links.push(Arc::downgrade(&link));
            link
        };
        if shared.closed.load(Ordering::SeqCst) {
            link.cut();
        }
        for direction in [Direction::ToServer, Direction::ToClient] {
            let (link, shared) = (link.clone(), shared.clone());
            thread::spawn(move || {
                // Whatever ends it, the connection ends with it.
                let _ended = pump(&link, &shared, direction);
                if !(direction == Direction::ToClient && link.detached.load(Ordering::SeqCst)) {
                    link.cut();
                }
            });
        }
    }
}

/// Why a pump ended.
enum End {
    Gone,
    Cut,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        End::Gone
    }
}

/// Message by message, until either side ends.
fn pump(link: &Link, shared: &Shared, direction: Direction) -> Result<(), End> {
    let mut opening = direction == Direction::ToServer;
    loop {
        let message = read(link, direction, &mut opening)?;
        if link.encrypted.load(Ordering::SeqCst) {
            link.target(direction).write_all(&message.bytes)?;
            continue;
        }
        let rule = shared.see(link, direction, &message);
        match &rule {
            Some(rule) => {
                rule.change(|stage| stage.met = true);
                let acted = act(rule, link, shared, direction, &message);
                rule.change(|stage| stage.over = true);
                acted?;
            }
            None => pass(link, shared, direction, &message.bytes)?,
        }
    }
}

/// On its way, when nothing stalls.
fn pass(link: &Link, shared: &Shared, direction: Direction, bytes: &[u8]) -> io::Result<()> {
    shared.gate.pass();
    link.gate.pass();
    if direction == Direction::ToClient && link.mute.load(Ordering::SeqCst) {
        return Ok(());
    }
    link.target(direction).write_all(bytes)
}

fn act(rule: &Rule, link: &Link, shared: &Shared, direction: Direction, message: &Message) -> Result<(), End> {
    let bytes = &message.bytes;
    match &rule.state.act {
        Act::Cut(spot) => {
            if direction == Direction::ToServer {
                // A quick answer could be back before the cut.
                link.mute.store(true, Ordering::SeqCst);
            }
            let arrives = match spot {
                Spot::Before => 0,
                Spot::Within => bytes.len() / 2,
                Spot::Behind => bytes.len(),
            };
            pass(link, shared, direction, &bytes[..arrives])?;
            Err(End::Cut)
        }
        Act::Stall(extent, lasting, then) => {
            let gate = match extent {
                Extent::Connection => &link.gate,
                Extent::All => &shared.gate,
            };
            gate.close();
            thread::sleep(*lasting);
            if *then == Then::Cut {
                link.cut();
            }
            gate.open();
            match then {
                Then::Cut => Err(End::Cut),
                Then::GoOn => Ok(pass(link, shared, direction, bytes)?),
            }
        }
        Act::Delay(lasting) => {
            thread::sleep(*lasting);
            Ok(pass(link, shared, direction, bytes)?)
        }
        Act::Detach => {
            link.detached.store(true, Ordering::SeqCst);
            let _ = link.client.shutdown(Shutdown::Both);
            // The proxy's end releases too.
            rule.wait(Duration::from_secs(600), |stage| stage.released);
            link.target(direction).write_all(bytes)?;
            Err(End::Cut)
        }
        Act::Insert(more) => {
            pass(link, shared, direction, more)?;
            Ok(pass(link, shared, direction, bytes)?)
        }
        Act::Answer(answer) => {
            link.mute.store(true, Ordering::SeqCst);
            (&link.server).write_all(bytes)?;
            (&link.client).write_all(answer)?;
            // The client reads it before it sees the end.
            let _ = link.client.shutdown(Shutdown::Write);
            let mut rest = [0; 1024];
            while matches!((&link.client).read(&mut rest), Ok(1..)) {}
            Err(End::Cut)
        }
    }
}

struct Message {
    /// Of one that has a type.
    kind: Option<u8>,
    bytes: Vec<u8>,
}

impl Message {
    fn seen(&self, connection: u64, direction: Direction) -> Seen {
        let rest = &self.bytes[self.bytes.len().min(if self.kind.is_some() { 5 } else { 4 })..];
        let readable = |&byte: &u8| if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '·' };
        let text = rest.iter().take(200).map(readable).collect();
        Seen { direction, connection, kind: self.kind.map(char::from), text }
    }
}

/// Codes of what opens a connection, where it is no start: wishes for TLS and for GSSAPI.
const WISHES: [u32; 2] = [80_877_103, 80_877_104];

/// Longer than what any test sends; what says that it is longer is no message.
const LONGEST: usize = 1 << 30;

fn read(link: &Link, direction: Direction, opening: &mut bool) -> Result<Message, End> {
    let mut source = link.source(direction);
    let mut byte = [0; 1];
    if link.encrypted.load(Ordering::SeqCst) {
        let mut bytes = vec![0; 1 << 14];
        let length = source.read(&mut bytes)?;
        bytes.truncate(length);
        return if length == 0 { Err(End::Gone) } else { Ok(Message { kind: None, bytes }) };
    }
    let mut bytes = Vec::new();
    let mut kind = None;
    if !*opening {
        source.read_exact(&mut byte)?;
        bytes.extend(byte);
        if direction == Direction::ToClient && std::mem::take(&mut *lock(&link.wishes)) {
            link.encrypted.store(byte != *b"N", Ordering::SeqCst);
            return Ok(Message { kind: Some(byte[0]), bytes });
        }
        kind = Some(byte[0]);
    }
    let mut length = [0; 4];
    source.read_exact(&mut length)?;
    bytes.extend(length);
    let length = u32::from_be_bytes(length) as usize;
    if !(4..LONGEST).contains(&length) {
        return Err(End::Gone);
    }
    let head = bytes.len();
    bytes.resize(head + length - 4, 0);
    source.read_exact(&mut bytes[head..])?;
    if *opening {
        let code = bytes.get(4..8).and_then(|code| Some(u32::from_be_bytes(code.try_into().ok()?)));
        match code.is_some_and(|code| WISHES.contains(&code)) {
            true => *lock(&link.wishes) = true,
            false => *opening = false,
        }
    }
    Ok(Message { kind, bytes })
}

/// An error as a server says it (PostgreSQL 15, 55.7 and 55.8).
pub fn error(said: &Said<'_>) -> Vec<u8> {
    said.message(b'E')
}

/// A notice, likewise.
pub fn notice(said: &Said<'_>) -> Vec<u8> {
    said.message(b'N')
}

/// The fields of an error or a notice.
#[derive(Clone, Copy, Debug)]
pub struct Said<'s> {
    /// Its severity in the server's language.
    pub translated: &'s str,
    /// Its severity.
    pub severity: &'s str,
    /// Its SQLSTATE.
    pub code: &'s str,
    /// Its text.
    pub text: &'s str,
    /// The function of the server that says it.
    pub routine: &'s str,
}

impl Said<'_> {
    fn message(&self, kind: u8) -> Vec<u8> {
        let Self { translated, severity, code, text, routine } = *self;
        let mut rest = Vec::new();
        for (field, value) in [(b'S', translated), (b'V', severity), (b'C', code), (b'M', text), (b'R', routine)] {
            rest.push(field);
            rest.extend(value.bytes());
            rest.push(0);
        }
        rest.push(0);
        let length = u32::try_from(rest.len() + 4).expect("a test says little");
        [&[kind][..], &length.to_be_bytes(), &rest].concat()
    }
}
