//! Two PostgreSQL databases behind proxies that see messages: at every message of every connection, in both directions, the connection is cut,
//! stalled or delayed, the message arrives behind its client's end, or the process dies with it. A case is an arrangement, a way, a
//! direction, a message's number, and what happens there.
//!
//! Must not know how the manager or the adapter waits.

mod case;
mod place;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use unanimous_testing::postgres::Cluster;
use unanimous_testing::proxy::postgres::{Direction, Seen};
use unanimous_testing::rng::Rng;

use self::case::{ARRANGEMENTS, Arrangement, Case, Fate};
use self::place::Place;
use crate::{Found, Options, say};

/// How many cases are under way at once: most of their time they wait.
const WORKERS: usize = 12;

/// A quick run draws so many.
const QUICK: usize = 250;

pub(crate) fn run(options: &Options) -> Result<Found, String> {
    let cluster = Cluster::builder()
        .setting("fsync", "off")
        .setting("max_connections", 400)
        .setting("max_prepared_transactions", 100)
        .start();
    let cluster = &cluster.map_err(|error| error.to_string())?;
    let mut rng = Rng::new(options.seed);
    let (mut cases, mut messages) = (Vec::new(), BTreeMap::new());
    for arrangement in ARRANGEMENTS {
        let seen = Place::new(cluster)?.without_faults(arrangement)?;
        say(&format!("{arrangement}: {} messages", seen.iter().map(Vec::len).sum::<usize>()));
        for (way, seen) in seen.iter().enumerate() {
            cases.extend(all_cases(arrangement, way, seen));
        }
        messages.insert(arrangement, seen);
    }
    if options.quick {
        shuffle(&mut cases, &mut rng);
        cases.truncate(QUICK);
    }
    let (next, done) = (AtomicUsize::new(0), Mutex::new((Found::default(), BTreeMap::<String, u64>::new())));
    let places = (0..WORKERS).map(|_| Place::new(cluster)).collect::<Result<Vec<_>, _>>()?;
    let work = |mut place: Place<'_>| {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = place.try_case(case);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.0.cases += 1;
            match result {
                Ok(told) => {
                    for told in told {
                        *done.1.entry(format!("{}: {told}", case.arrangement)).or_default() += 1;
                    }
                }
                Err(why) => {
                    if let Err(error) = place.renew() {
                        done.0.violations.push(error);
                        return;
                    }
                    let at = message(&messages[&case.arrangement][case.way], case);
                    done.0.violations.push(format!("{case} ({at}): {why}"));
                }
            }
        }
    };
    thread::scope(|scope| {
        for place in places {
            scope.spawn(move || work(place));
        }
    });
    let (found, told) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (what, count) in told {
        say(&format!("{what} {count}"));
    }
    Ok(found)
}

fn all_cases(arrangement: Arrangement, way: usize, seen: &[Seen]) -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in [Direction::ToServer, Direction::ToClient] {
        let count = seen.iter().filter(|seen| seen.direction == direction).count() as u64;
        for number in 0..count {
            for fate in Fate::all(direction) {
                cases.push(Case { arrangement, way, direction, number, fate });
            }
        }
    }
    cases
}

/// As it was without faults.
fn message(seen: &[Seen], case: &Case) -> String {
    let number = usize::try_from(case.number).unwrap_or(usize::MAX);
    let message = seen.iter().filter(|seen| seen.direction == case.direction).nth(number);
    message.map_or("beyond the end".to_owned(), |message| format!("{message:?}"))
}

fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, usize::try_from(rng.between(0, last as u64)).unwrap_or(last));
    }
}
