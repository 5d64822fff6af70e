//! The demo on two PostgreSQL servers under load, with faults of all three, and what must be true after them.
//!
//! Each round: load by parallel clients in one to three spells with a fault in each, then silence. The faults: kill -9 of the demo; an
//! immediate stop and restart of either server, or of both; `pg_terminate_backend` of some or all of the demo's sessions; kill -9 of the
//! demo and its start while a server is down.
//!
//! What must hold, each round: within 30 seconds after the last fault no prepared transaction is left on either server, and `demo check`
//! is clean; it never tells of a mismatch. Then, of each order, what the rounds on SQLite ask for: answered 201, it is there with its
//! content, once; answered as aborted, it is nowhere. And each committed order was notified; `notifications` says what that means.
//!
//! Must not know how the demo keeps its word: it posts, kills, and reads what is there.

mod faults;
mod listener;
mod notifications;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::{Summary, load, other, read, started, stop};
use crate::client::Client;
use crate::demo::{Demo, Place};
use crate::postgres::{Cluster, Servers};
use crate::rng::Rng;
use faults::{DATABASES, Fault, LISTENER};
use listener::Listener;
use notifications::Delivered;

/// How long after the last fault everything must be finished.
const FINISHED: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The binary `unanimous`.
    pub binary: PathBuf,
    /// A folder of this plan's own: the servers' and the demo's data are made in it.
    pub folder: PathBuf,
    /// How many rounds.
    pub rounds: u32,
    /// Decides the faults, their moments, and the orders.
    pub seed: u64,
    /// How many clients post at the same time.
    pub clients: usize,
}

impl Plan {
    /// The servers, and where the demo works with them.
    pub(super) fn start(&self) -> io::Result<(Servers, Place)> {
        let start = |name: &str| Cluster::builder().folder(self.folder.join(name)).start().map_err(other);
        let servers = Servers::new([start("postgres-1")?, start("postgres-2")?], &DATABASES).map_err(other)?;
        let urls = [servers.url(0), servers.url(1)];
        let place = Place::new(&self.binary, self.folder.join("data")).postgres(urls);
        Ok((servers, place))
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct PostgresSummary {
    /// As of the rounds on SQLite.
    pub orders: Summary,
    /// How often each kind of fault was done.
    pub faults: BTreeMap<&'static str, u32>,
    /// Branches that were prepared when the demo was killed while both servers ran: what its next start had to finish.
    pub left: usize,
    /// Orders that a listener has heard of.
    pub heard: usize,
    /// Deliveries that no listener was connected for, or whose listener was cut off before it could hear of them.
    pub unheard: usize,
    /// The longest that it took after a round's last fault until everything was finished.
    pub longest: Duration,
}

/// Does the rounds; a line for each goes to `progress`.
///
/// # Errors
///
/// When servers or demo can't be started at all, or files can't be read. What the demo does wrong is a violation and not an error.
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> io::Result<PostgresSummary> {
    let mut rounds = Rounds::new(plan)?;
    for round in 1..=plan.rounds {
        if !rounds.round(round, &mut progress)? {
            break;
        }
    }
    rounds.end()
}

struct Rounds<'p> {
    plan: &'p Plan,
    rng: Rng,
    place: Place,
    servers: Servers,
    /// None: it did not start, which ends the rounds.
    demo: Option<(Demo, Client)>,
    listener: Listener,
    ledger: Ledger,
    delivered: Delivered,
    summary: PostgresSummary,
}

impl<'p> Rounds<'p> {
    fn new(plan: &'p Plan) -> io::Result<Self> {
        let (servers, place) = plan.start()?;
        let servers = servers.sparing(LISTENER);
        let mut summary = PostgresSummary::default();
        let demo = started(&place, &mut summary.orders)?;
        let mut ledger = Ledger::default();
        if let Some((_, client)) = &demo {
            // The outbox is made with the first order.
            let first = load::post_good(client, format!("s{}-first", plan.seed));
            ledger.add(vec![first], &mut summary.orders.violations);
        }
        let delivered = Delivered::watch(&servers)?;
        let listener = Listener::start(servers.url(0));
        let rng = Rng::new(plan.seed);
        Ok(Self { plan, rng, place, servers, demo, listener, ledger, delivered, summary })
    }

    /// False: the demo does not start any more.
    fn round(&mut self, round: u32, progress: &mut impl FnMut(&str)) -> io::Result<bool> {
        let (mut counts, mut told) = ((0, 0, 0), Vec::new());
        let mut last_fault = Instant::now();
        for spell in 1..=self.rng.between(1, 3) {
            let fault = Fault::choose(&mut self.rng);
            let Some((mut demo, client)) = self.demo.take() else { return Ok(false) };
            let before = Duration::from_millis(self.rng.between(3, 500));
            let after = Duration::from_millis(self.rng.between(0, 300));
            let tag = format!("s{}-r{round}-{spell}", self.plan.seed);
            let mut choices = self.rng.split();
            let servers = &mut self.servers;
            let (posted, done) = load::post_until(self.plan.clients, &client, &tag, &mut self.rng, || {
                thread::sleep(before);
                let done = fault.strike(servers, &mut demo, &mut choices);
                // What is posted to a dead demo says nothing.
                if !fault.kills_the_demo() {
                    thread::sleep(after);
                }
                done
            });
            done?;
            *self.summary.faults.entry(fault.name()).or_default() += 1;
            told.push(fault.name());
            let (acknowledged, aborted, unanswered) = self.ledger.add(posted, &mut self.summary.orders.violations);
            counts = (counts.0 + acknowledged, counts.1 + aborted, counts.2 + unanswered);
            if fault.kills_the_demo() {
                self.summary.orders.kills += 1;
                if !fault.leaves_a_server_down() {
                    self.summary.left += self.servers.prepared().map_err(other)?.len();
                }
                self.demo = started(&self.place, &mut self.summary.orders)?;
            } else {
                self.demo = Some((demo, client));
            }
            // A demo that was started without a server has to do without it for a while.
            thread::sleep(if fault.leaves_a_server_down() { after } else { Duration::ZERO });
            self.servers.restart().map_err(other)?;
            last_fault = Instant::now();
        }
        let Some((_, client)) = &self.demo else { return Ok(false) };
        let took = finished(&self.place, &self.servers, last_fault, round, &mut self.summary.orders.violations)?;
        self.summary.longest = self.summary.longest.max(took);
        let fresh = self.ledger.fresh();
        let stored = read(&self.place.data, client, fresh, self.ledger.highest_id())?;
        self.summary.orders.violations.extend(self.ledger.settle(&stored));
        let told_of = self.listener.catch_up(&self.servers, FINISHED);
        let violations = self.delivered.judge(&self.servers, &self.listener, stored.ids(), told_of)?;
        self.summary.orders.violations.extend(violations);
        self.summary.orders.rounds = round;
        progress(&format!(
            "round {round}/{}: {}; {} acknowledged, {} aborted, {} unanswered; finished after {:.1} s; violations so far: {}",
            self.plan.rounds,
            told.join(", "),
            counts.0,
            counts.1,
            counts.2,
            took.as_secs_f64(),
            self.summary.orders.violations.len(),
        ));
        Ok(true)
    }

    fn end(mut self) -> io::Result<PostgresSummary> {
        let orders = &mut self.summary.orders;
        if let Some((demo, client)) = self.demo.take() {
            let stored = read(&self.place.data, &client, usize::MAX >> 1, 0)?;
            orders.violations.extend(self.ledger.settle_all(&stored));
            orders.violations.extend(self.delivered.judge_all(&stored.ids()));
            stop(demo, &self.place, orders)?;
        }
        self.ledger.count(orders);
        (self.summary.heard, self.summary.unheard) = self.delivered.counts();
        Ok(self.summary)
    }
}

/// Waits until nothing is prepared on either server and the check is clean; how long after the last fault that was.
fn finished(
    place: &Place,
    servers: &Servers,
    last_fault: Instant,
    round: u32,
    violations: &mut Vec<String>,
) -> io::Result<Duration> {
    loop {
        let prepared = servers.prepared().map_err(other)?;
        let late = last_fault.elapsed() > FINISHED;
        if prepared.is_empty() {
            let output = place.check().map_err(other)?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            // What is in doubt or not notified may be on its way; what does not agree then never does.
            let torn = !text.contains("mismatches 0");
            if !output.status.success() && (torn || late) {
                violations.push(format!("demo check in round {round} ({}): {text}", output.status));
            }
            if output.status.success() || torn || late {
                return Ok(last_fault.elapsed());
            }
        } else if late {
            let after = last_fault.elapsed();
            violations.push(format!("round {round}: still prepared {after:?} after the last fault: {prepared:?}"));
            return Ok(after);
        }
        thread::sleep(PAUSE);
    }
}
