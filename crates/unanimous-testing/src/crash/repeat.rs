//! Clients that repeat each request with the same `Idempotency-Key` until it is answered, while the demo is killed again and again: each
//! order is there exactly once.
//!
//! A client goes on over kills and restarts with the order that it had begun. Some orders ask to fail, and are nowhere whatever is
//! repeated; some of their keys come again with the same order that does not, which must be stored then. Some are sent once more when they
//! were answered, at once or after some more orders, kills and restarts: the answer must be the first one, word by word. And some keys
//! come again with another order, which must be refused.
//!
//! What must hold: every order gets its answer within a minute; the answered ones are in all stores once, with the number and the transaction
//! of the answer; nothing else is there.
//!
//! Must not know how the demo keeps its word: it posts, kills, and reads what is there.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ledger::Ledger;
use super::load::{FAILS, Fate, Posted};
use super::{Summary, must_be_clean, other, read, started, stop};
use crate::client::{Answer, Client};
use crate::demo::{Demo, Place};
use crate::rng::Rng;

/// How long an order may be without its answer: kills and restarts included.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries of one order.
const PAUSE: Duration = Duration::from_millis(10);
/// After so many rounds the stores are compared while the demo runs; at the end they are in any case.
const CHECK_EVERY: u32 = 25;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the demo runs; the data folder must be this plan's own.
    pub place: Place,
    /// How many kills under load.
    pub rounds: u32,
    /// Decides the moments and the orders.
    pub seed: u64,
    /// How many clients post at the same time.
    pub clients: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct KeySummary {
    /// As of the other rounds; nothing is unanswered here.
    pub orders: Summary,
    /// Requests that were sent again, since no answer came or one that said to come again.
    pub repeated: usize,
    /// Answers that were the first one's once more.
    pub replayed: usize,
    /// Those among them whose first answer was an earlier one, of before some other orders of the client's.
    pub older: usize,
    /// Orders that were stored under a key whose first request was aborted.
    pub second_go: usize,
    /// Requests that were refused since their key had come with another order.
    pub refused: usize,
}

/// The demo as its clients see it: there, or just being started again.
#[derive(Debug, Default)]
struct Desk {
    client: Mutex<Option<Client>>,
    stop: AtomicBool,
    repeated: AtomicUsize,
    replayed: AtomicUsize,
    older: AtomicUsize,
    second_go: AtomicUsize,
    refused: AtomicUsize,
}

impl Desk {
    fn client(&self) -> Option<Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, client: Option<Client>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }
}

/// Does the rounds; a line for some of them goes to `progress`.
///
/// # Errors
///
/// When the demo can't be started at all, or files can't be read. What the demo does wrong is a violation and not an error.
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> io::Result<KeySummary> {
    let mut rng = Rng::new(plan.seed);
    let mut summary = KeySummary::default();
    let desk = Desk::default();
    let (posted, last) = thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.clients)
            .map(|number| {
                let (mut rng, desk, seed) = (rng.split(), &desk, plan.seed);
                scope.spawn(move || {
                    let (mut posted, mut earlier) = (Vec::new(), Vec::new());
                    while !desk.stop.load(Ordering::Relaxed) {
                        let tag = format!("s{seed}-c{number}-{}", posted.len());
                        order(desk, &tag, &mut rng, &mut posted, &mut earlier);
                    }
                    posted
                })
            })
            .collect();
        let last = kills(plan, &desk, &mut rng, &mut summary.orders, &mut progress);
        desk.stop.store(true, Ordering::Relaxed);
        let posted: Vec<_> =
            workers.into_iter().flat_map(|worker| worker.join().expect("a client does not panic")).collect();
        (posted, last)
    });
    (summary.older, summary.second_go) = (desk.older.into_inner(), desk.second_go.into_inner());
    let (repeated, replayed, refused) = (desk.repeated, desk.replayed, desk.refused);
    (summary.repeated, summary.replayed, summary.refused) =
        (repeated.into_inner(), replayed.into_inner(), refused.into_inner());
    let orders = &mut summary.orders;
    let mut ledger = Ledger::default();
    ledger.add(posted, &mut orders.violations);
    if let Some(demo) = last? {
        let client = demo.ready().map_err(other)?;
        let stored = read(&plan.place.data, &client, usize::MAX >> 1, 0)?;
        orders.violations.extend(ledger.settle_all(&stored));
        stop(demo, &plan.place, orders)?;
    }
    ledger.count(orders);
    Ok(summary)
}

/// The same on two PostgreSQL servers, which are started in `folder` and stopped at the end; the demo's data is there, too.
///
/// # Errors
///
/// As [`run`], and when the servers can't be started.
#[cfg(feature = "postgres")]
pub fn run_on_postgres(plan: &super::postgres::Plan, progress: impl FnMut(&str)) -> io::Result<KeySummary> {
    let super::postgres::Plan { rounds, seed, clients, .. } = *plan;
    let (_servers, place) = plan.start()?;
    run(&Plan { place, rounds, seed, clients }, progress)
}

/// Starts, kills and starts again; the last demo runs still. None: it did not start, which ends the rounds.
fn kills(
    plan: &Plan,
    desk: &Desk,
    rng: &mut Rng,
    summary: &mut Summary,
    progress: &mut impl FnMut(&str),
) -> io::Result<Option<Demo>> {
    let start = |summary: &mut Summary| {
        let Some((demo, client)) = started(&plan.place, summary)? else { return Ok(None) };
        desk.set(Some(client));
        Ok::<_, io::Error>(Some(demo))
    };
    let Some(mut demo) = start(summary)? else { return Ok(None) };
    for round in 1..=plan.rounds {
        thread::sleep(Duration::from_millis(rng.between(3, 700)));
        demo.kill()?;
        summary.kills += 1;
        while rng.chance(1, 5) {
            // While it recovers.
            let mut early = plan.place.start().map_err(other)?;
            thread::sleep(Duration::from_millis(rng.between(1, 80)));
            early.kill()?;
            summary.kills += 1;
        }
        match start(summary)? {
            Some(next) => demo = next,
            None => return Ok(None),
        }
        summary.rounds = round;
        if round.is_multiple_of(CHECK_EVERY) {
            must_be_clean(&demo.check().map_err(other)?, &format!("after the restart of round {round}"), summary);
            let repeated = desk.repeated.load(Ordering::Relaxed);
            progress(&format!(
                "round {round}/{}: {repeated} requests were sent again; violations so far: {}",
                plan.rounds,
                summary.violations.len()
            ));
        }
    }
    Ok(Some(demo))
}

/// An order that was answered, to be sent again later.
struct Earlier {
    /// Its place among the client's orders.
    at: usize,
    first: Answer,
}

/// One order, until it is answered, and sometimes what comes after it, or an earlier one again.
fn order(desk: &Desk, tag: &str, rng: &mut Rng, posted: &mut Vec<Posted>, earlier: &mut Vec<Earlier>) {
    let fail = rng.chance(1, 10).then(|| *rng.pick::<&str>(FAILS));
    let mut order = Posted { tag: tag.to_owned(), quantity: rng.between(1, 1_000_000), answer: Fate::Unanswered };
    let mut first = until_answered(desk, tag, &body(&order, fail), fail.is_some());
    let aborted = fail.is_some() && first.as_ref().is_ok_and(|answer| answer.json()["outcome"] == "aborted");
    if aborted && rng.chance(1, 2) {
        // What aborted has kept nothing of the key, so that it is another order's now.
        first = until_answered(desk, tag, &body(&order, None), false);
        desk.second_go.fetch_add(1, Ordering::Relaxed);
        order.answer = first.as_ref().map_or_else(|what| Fate::Wrong(what.clone()), acknowledged);
    } else {
        order.answer = match &first {
            Err(what) => Fate::Wrong(what.clone()),
            Ok(_) if fail.is_some() => Fate::Aborted,
            Ok(answer) => acknowledged(answer),
        };
    }
    let mut more = None;
    if let (Ok(first), Fate::Acknowledged(_)) = (&first, &order.answer) {
        if rng.chance(1, 5) {
            if let Err(what) = once_more(desk, tag, &body(&order, None), first) {
                order.answer = Fate::Wrong(what);
            }
        } else if rng.chance(1, 20) {
            more = Some(another(desk, tag, order.quantity));
        }
    }
    if let (Ok(first), Fate::Acknowledged(_)) = (first, &order.answer) {
        earlier.push(Earlier { at: posted.len(), first });
    }
    posted.push(order);
    posted.extend(more);
    if rng.chance(1, 8) && !earlier.is_empty() {
        let Earlier { at, first } = rng.pick(&earlier[..]);
        let order = &mut posted[*at];
        match once_more(desk, &order.tag, &body(order, None), first) {
            Ok(()) => drop(desk.older.fetch_add(1, Ordering::Relaxed)),
            Err(what) => order.answer = Fate::Wrong(format!("as an earlier one: {what}")),
        }
    }
}

/// The same request again: the first answer again.
fn once_more(desk: &Desk, key: &str, body: &Value, first: &Answer) -> Result<(), String> {
    let again = until_answered(desk, key, body, false)?;
    if (again.status, again.json()) != (first.status, first.json()) {
        return Err(format!(
            "answered {} {}, and repeated {} {}",
            first.status,
            first.text(),
            again.status,
            again.text()
        ));
    }
    match again.header("idempotent-replayed") {
        Some("true") => {
            desk.replayed.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        other => Err(format!("a repeated answer is marked {other:?}")),
    }
}

/// Another order with a key that was used: it is refused, and is nowhere.
fn another(desk: &Desk, key: &str, quantity: u64) -> Posted {
    let mut order = Posted { tag: format!("{key}-another"), quantity, answer: Fate::Aborted };
    match until_answered(desk, key, &body(&order, None), false) {
        Ok(answer) if answer.status == 422 => {
            desk.refused.fetch_add(1, Ordering::Relaxed);
        }
        Ok(answer) => {
            order.answer = Fate::Wrong(format!("a used key was answered {}: {}", answer.status, answer.text()));
        }
        Err(what) => order.answer = Fate::Wrong(what),
    }
    order
}

fn body(order: &Posted, fail: Option<&str>) -> Value {
    let mut body = json!({"customer": order.customer(), "item": order.item(), "quantity": order.quantity});
    if let Some(fail) = fail {
        body["fail"] = fail.into();
    }
    body
}

/// Sends it until the answer is final: what says that it may be repeated is, and so is what says nothing.
fn until_answered(desk: &Desk, key: &str, body: &Value, fails: bool) -> Result<Answer, String> {
    let (start, key, body) = (Instant::now(), format!("\"{key}\""), body.to_string());
    let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
    let mut last = "no server".to_owned();
    let mut tries = 0;
    while start.elapsed() < PATIENCE {
        let Some(client) = desk.client() else {
            thread::sleep(PAUSE);
            continue;
        };
        if tries > 0 {
            desk.repeated.fetch_add(1, Ordering::Relaxed);
        }
        tries += 1;
        match client.post_with("/orders", &headers, body.as_bytes()) {
            Ok(answer) if is_final(&answer, fails) => return Ok(answer),
            Ok(answer) => last = format!("{} {}", answer.status, answer.text()),
            Err(error) => last = error.to_string(),
        }
        thread::sleep(PAUSE);
    }
    Err(format!("no answer in {PATIENCE:?} and {tries} tries; the last one: {last}"))
}

/// Whether nothing else will be answered: stored, refused as it is, or aborted as it was asked to be.
fn is_final(answer: &Answer, fails: bool) -> bool {
    if answer.body.is_none() {
        return false;
    }
    match answer.status {
        201 | 400 | 413 | 415 | 422 => true,
        _ => fails && answer.json()["outcome"] == "aborted",
    }
}

fn acknowledged(answer: &Answer) -> Fate {
    let body = answer.json();
    let known = body["id"].as_u64().zip(body["transaction"].as_str().map(str::to_owned));
    match (answer.status, known) {
        (201, Some(known)) => Fate::Acknowledged(Some(known)),
        (status, _) => Fate::Wrong(format!("a good order was answered {status}: {}", answer.text())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: Option<&str>) -> Answer {
        Answer { status, headers: Vec::new(), body: body.map(str::to_owned) }
    }

    #[test]
    fn only_what_can_not_change_any_more_is_final() {
        assert!(is_final(&answered(201, Some("{}")), false));
        assert!(is_final(&answered(422, Some("{}")), false));
        assert!(!is_final(&answered(201, None), false), "a body that was cut off names no order");
        for status in [409, 500, 503] {
            let aborted = answered(status, Some(r#"{"outcome": "aborted"}"#));
            assert!(!is_final(&aborted, false), "{status}: an order that should be stored is not yet");
            assert!(is_final(&aborted, true), "{status}: as it was asked to");
            assert!(!is_final(&answered(status, Some(r#"{"outcome": "unknown"}"#)), true), "{status}");
        }
    }
}
