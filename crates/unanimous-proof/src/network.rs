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

/// At most one message of so many may never come: an arrangement's messages are not quite the same each time.
const MOST_UNMET: u64 = 10;

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
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Done::default()));
    let places = (0..WORKERS).map(|_| Place::new(cluster)).collect::<Result<Vec<_>, _>>()?;
    let work = |mut place: Place<'_>| {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = place.try_case(case);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            let counts = done.counts.entry(case.arrangement).or_default();
            counts.tried += 1;
            match result {
                // It is no case then, whatever became of it.
                Ok((_, false)) => {
                    counts.unmet += 1;
                    done.unmet.push(*case);
                }
                Ok((told, true)) => {
                    done.found.cases += 1;
                    for told in told {
                        *done.told.entry(format!("{}: {told}", case.arrangement)).or_default() += 1;
                    }
                }
                Err(why) => {
                    done.found.cases += 1;
                    if let Err(error) = place.renew() {
                        done.found.violations.push(error);
                        return;
                    }
                    let at = message(&messages[&case.arrangement][case.way], case);
                    done.found.violations.push(format!("{case} ({at}): {why}"));
                }
            }
        }
    };
    thread::scope(|scope| {
        for place in places {
            scope.spawn(move || work(place));
        }
    });
    let Done { mut found, told, counts, unmet } = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (what, count) in told {
        say(&format!("{what} {count}"));
    }
    for case in unmet {
        say(&format!("its message never came: {case}"));
    }
    for (arrangement, Counts { tried, unmet }) in counts {
        say(&format!("{arrangement}: {unmet} of {tried} messages never came"));
        if unmet * MOST_UNMET > tried {
            found
                .violations
                .push(format!("{arrangement}: {unmet} of {tried} messages never came: too little was tried"));
        }
    }
    Ok(found)
}

/// What came of all that was tried.
#[derive(Default)]
struct Done {
    found: Found,
    told: BTreeMap<String, u64>,
    counts: BTreeMap<Arrangement, Counts>,
    /// Those whose message never came.
    unmet: Vec<Case>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    tried: u64,
    unmet: u64,
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
