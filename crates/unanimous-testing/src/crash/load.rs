//! Parallel clients that post orders, good ones, ones that ask to fail, and bad ones, until they are told to stop.
//!
//! Must not know what is in the stores: it remembers what was posted and what was answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Answer, Client, NoAnswer};
use crate::rng::Rng;

/// The ways to abort an order that the demo offers.
pub(super) const FAILS: &[&str] = &["error", "veto", "panic", "doom", "vote"];

/// One order that was posted.
#[derive(Clone, Debug)]
pub(super) struct Posted {
    /// In the customer's name and in the item: unique, so that the order is found wherever it is.
    pub(super) tag: String,
    pub(super) quantity: u64,
    pub(super) answer: Fate,
}

/// What its client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// 201; the id and the transaction where the body was whole.
    Acknowledged(Option<(u64, String)>),
    /// Aborted, or refused as bad input: it must be nowhere.
    Aborted,
    /// No answer, or the outcome is unknown.
    Unanswered,
    /// An answer that must not be.
    Wrong(String),
}

impl Posted {
    pub(super) fn customer(&self) -> String {
        format!("customer {}", self.tag)
    }

    pub(super) fn item(&self) -> String {
        format!("item <{}> & \"more\" ü", self.tag)
    }
}

/// How long a client waits where it is told to come again.
const PAUSE: Duration = Duration::from_millis(20);

/// What a client does after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoOn,
    /// A store is down or busy.
    Pause,
    /// The server does not answer any more.
    Gone,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Good,
    Fail(&'static str),
    Bad(u64),
}

/// Posts from `clients` threads until `until` has returned; what was posted, and what `until` returned.
pub(super) fn post_until<T>(
    clients: usize,
    client: &Client,
    round: &str,
    rng: &mut Rng,
    until: impl FnOnce() -> T,
) -> (Vec<Posted>, T) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..clients)
            .map(|number| {
                let (mut rng, stop) = (rng.split(), &stop);
                scope.spawn(move || {
                    let mut posted = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let (order, then) = post(client, format!("{round}-c{number}-{}", posted.len()), &mut rng);
                        posted.push(order);
                        match then {
                            Then::GoOn => {}
                            Then::Pause => thread::sleep(PAUSE),
                            // What is posted now only makes the list longer.
                            Then::Gone => break,
                        }
                    }
                    posted
                })
            })
            .collect();
        let result = until();
        stop.store(true, Ordering::Relaxed);
        let posted = workers.into_iter().flat_map(|worker| worker.join().expect("a client does not panic"));
        (posted.collect(), result)
    })
}

/// Posts one good order.
#[cfg(feature = "postgres")]
pub(super) fn post_good(client: &Client, tag: String) -> Posted {
    let mut order = Posted { tag, quantity: 1, answer: Fate::Unanswered };
    order.answer = judge(Kind::Good, send(client, &order, Kind::Good, false));
    order
}

fn post(client: &Client, tag: String, rng: &mut Rng) -> (Posted, Then) {
    let kind = match rng.between(1, 100) {
        1..=60 => Kind::Good,
        61..=90 => Kind::Fail(rng.pick::<&str>(FAILS)),
        _ => Kind::Bad(rng.between(0, 4)),
    };
    let mut order = Posted { tag, quantity: rng.between(1, 1_000_000), answer: Fate::Unanswered };
    let answer = send(client, &order, kind, rng.chance(1, 4));
    let then = match &answer {
        Err(_) => Then::Gone,
        Ok(answer) if answer.header("retry-after").is_some() => Then::Pause,
        Ok(_) => Then::GoOn,
    };
    order.answer = judge(kind, answer);
    (order, then)
}

fn send(client: &Client, order: &Posted, kind: Kind, form: bool) -> Result<Answer, NoAnswer> {
    let (customer, item, quantity) = (order.customer(), order.item(), order.quantity.to_string());
    let fail = if let Kind::Fail(mode) = kind { mode } else { "" };
    match kind {
        Kind::Good | Kind::Fail(_) if form => client
            .post_form("/orders", &[("customer", &customer), ("item", &item), ("quantity", &quantity), ("fail", fail)]),
        Kind::Good => {
            client.post_json("/orders", &json!({"customer": customer, "item": item, "quantity": order.quantity}))
        }
        Kind::Fail(mode) => client.post_json(
            "/orders",
            &json!({"customer": customer, "item": item, "quantity": order.quantity, "fail": mode}),
        ),
        Kind::Bad(0) => client.post_json("/orders", &json!({"customer": customer, "quantity": order.quantity})),
        Kind::Bad(1) => client.post_json("/orders", &json!({"customer": customer, "item": item, "quantity": 0})),
        Kind::Bad(2) => client.post_json("/orders", &json!({"customer": customer, "item": item, "quantity": "three"})),
        Kind::Bad(3) => client.post_with("/orders", &[("content-type", "application/json")], item.as_bytes()),
        Kind::Bad(_) => client.post_form("/orders", &[("customer", &customer), ("item", " "), ("quantity", &quantity)]),
    }
}

/// What an answer means for the order, and whether it is one that may be given.
fn judge(kind: Kind, answer: Result<Answer, NoAnswer>) -> Fate {
    let answer = match answer {
        Ok(answer) => answer,
        // A killed server closes its connections at once; one that hangs is a failure of its own.
        Err(error) if error.is_timeout() => return Fate::Wrong(format!("{kind:?}: {error} in time")),
        Err(_) => return Fate::Unanswered,
    };
    let body = answer.json();
    let outcome = body.get("outcome").and_then(Value::as_str).unwrap_or_default();
    let cut = answer.body.is_none();
    match (kind, answer.status) {
        (Kind::Good, 201) => {
            let id = body.get("id").and_then(Value::as_u64);
            let transaction = body.get("transaction").and_then(Value::as_str).map(str::to_owned);
            match (id.zip(transaction), cut) {
                (None, false) => Fate::Wrong(format!("201 without id and transaction: {}", answer.text())),
                (known, _) => Fate::Acknowledged(known),
            }
        }
        (Kind::Bad(_), 400..=499) => Fate::Aborted,
        (Kind::Good | Kind::Fail(_), 400..=599) if outcome == "aborted" => Fate::Aborted,
        (_, 500) if outcome == "unknown" => Fate::Unanswered,
        // The head of an error came and its body was cut off by the kill: it may say unknown.
        (_, 400..=599) if cut => Fate::Unanswered,
        (_, status) => Fate::Wrong(format!("{kind:?} was answered {status}: {}", answer.text())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: Option<&str>) -> Result<Answer, NoAnswer> {
        Ok(Answer { status, headers: Vec::new(), body: body.map(str::to_owned) })
    }

    #[test]
    fn answers_are_judged() {
        let whole = r#"{"id": 7, "transaction": "t"}"#;
        assert_eq!(judge(Kind::Good, answered(201, Some(whole))), Fate::Acknowledged(Some((7, "t".into()))));
        assert_eq!(judge(Kind::Good, answered(201, None)), Fate::Acknowledged(None));
        assert!(matches!(judge(Kind::Good, answered(201, Some("{}"))), Fate::Wrong(_)));
        assert_eq!(judge(Kind::Good, answered(503, Some(r#"{"outcome": "aborted"}"#))), Fate::Aborted);
        assert_eq!(judge(Kind::Good, answered(500, Some(r#"{"outcome": "unknown"}"#))), Fate::Unanswered);
        assert!(matches!(judge(Kind::Good, answered(500, Some("{}"))), Fate::Wrong(_)));
        assert!(matches!(judge(Kind::Fail("doom"), answered(201, Some(whole))), Fate::Wrong(_)));
        assert_eq!(judge(Kind::Fail("doom"), answered(409, Some(r#"{"outcome": "aborted"}"#))), Fate::Aborted);
        assert!(matches!(judge(Kind::Bad(1), answered(201, Some(whole))), Fate::Wrong(_)));
        assert!(matches!(judge(Kind::Bad(1), answered(500, Some("{}"))), Fate::Wrong(_)));
        assert_eq!(judge(Kind::Bad(1), answered(422, Some("{}"))), Fate::Aborted);
    }
}
