//! No notification of a committed order is missing, and none is of an order that is not.
//!
//! PostgreSQL loses what it says while nobody listens, so "heard" can't be asked of every order. What is asked:
//!
//! - Each committed order was taken out of the outbox by a transaction that committed. A trigger of ours writes that down, in the
//!   same transaction, numbered in the order of the commits (it takes a lock that is held until then, as NOTIFY itself does).
//! - A listener that was connected at that time has heard of it: a session hears all deliveries behind the number at which it surely
//!   listened, without a gap, up to the last one that it has heard; and up to the last of all, where it has heard what was said after
//!   that one. So only what was committed in the last moment before the listener's own server went down is not asked for.
//! - Whatever was heard is the number of a committed order.
//!
//! Must not know how the demo notifies, but for the outbox's name.

use std::collections::BTreeSet;
use std::io;

use super::listener::{Listener, Session};
use crate::crash::other;
use crate::postgres::Servers;

/// The deliveries, and the trigger that writes them down.
const WATCH: &str = "
    create schema crash;
    create table crash.delivered (n bigint generated always as identity primary key, payload text not null);
    create function crash.deliver() returns trigger language plpgsql as $$
    begin
        perform pg_advisory_xact_lock(7077);
        insert into crash.delivered (payload) values (old.payload);
        return null;
    end $$;
    create trigger deliver after delete on unanimous.outbox for each row execute function crash.deliver();";

/// The deliveries so far.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    /// In the order of their commits.
    all: Vec<(i64, String)>,
    /// The listener's sessions before this one are judged and done with.
    judged: usize,
    /// All that sessions which are done with have heard.
    heard: BTreeSet<String>,
    unheard: usize,
    /// The orders that were looked at, and the first ones: they were delivered before anybody watched.
    seen: BTreeSet<u64>,
}

impl Delivered {
    /// Begins to watch. The outbox must be there.
    pub(super) fn watch(servers: &Servers) -> io::Result<Self> {
        servers.psql(0, WATCH).map_err(other)?;
        let ids = servers.psql(0, "select id from unanimous_demo.orders").map_err(other)?;
        Ok(Self { seen: ids.lines().filter_map(|id| id.parse().ok()).collect(), ..Self::default() })
    }

    /// Looks at what was delivered and heard since the last look; `orders`: the committed ones since then; `caught_up`: the last
    /// session has heard what was said after all of it.
    pub(super) fn judge(
        &mut self,
        servers: &Servers,
        listener: &Listener,
        orders: BTreeSet<u64>,
        caught_up: bool,
    ) -> io::Result<Vec<String>> {
        let last = self.all.last().map_or(0, |(n, _)| *n);
        let fresh = servers
            .psql(0, &format!("select n, payload from crash.delivered where n > {last} order by n"))
            .map_err(other)?;
        for line in fresh.lines() {
            let (n, payload) = line.split_once('|').unwrap_or_default();
            self.all.push((n.parse().map_err(io::Error::other)?, payload.to_owned()));
        }
        let kept: BTreeSet<String> = servers
            .psql(0, "select payload from unanimous.outbox")
            .map_err(other)?
            .lines()
            .map(str::to_owned)
            .collect();
        let mut violations = Vec::new();
        if !caught_up {
            violations.push("the listener heard nothing of what was said to it".to_owned());
        }
        let delivered: BTreeSet<&str> = self.all.iter().map(|(_, payload)| payload.as_str()).collect();
        for order in orders.difference(&self.seen).map(u64::to_string) {
            if !delivered.contains(order.as_str()) && !kept.contains(&order) {
                violations
                    .push(format!("the order {order} is committed, and its notification is neither sent nor kept"));
            }
        }
        self.seen.extend(orders);
        let sessions = listener.sessions();
        let alive = sessions.len().saturating_sub(1);
        for (number, session) in sessions.iter().enumerate().skip(self.judged) {
            // One that was cut before it listened has no time of its own.
            let mut later = sessions.iter().skip(number + 1).map(|next| next.after);
            let until = later.find(|&after| after != i64::MAX).unwrap_or(i64::MAX);
            let whole = number == alive && caught_up;
            let (missing, unheard) = gaps(&self.all, session, until, whole);
            let tell = |order| {
                format!("the listener did not hear of the order {order}, and of a later one in the same session")
            };
            violations.extend(missing.into_iter().map(tell));
            if number < alive {
                self.heard.extend(session.heard.iter().cloned());
                self.unheard += unheard;
            }
        }
        self.judged = alive;
        if let Some(session) = sessions.last() {
            self.heard.extend(session.heard.iter().cloned());
        }
        Ok(violations)
    }

    /// What was heard, held against all committed orders.
    pub(super) fn judge_all(&self, orders: &BTreeSet<u64>) -> Vec<String> {
        let numbers = self.heard.iter().filter_map(|payload| payload.parse::<u64>().ok());
        let strangers = numbers.filter(|order| !orders.contains(order));
        strangers.map(|order| format!("the listener heard of the order {order}, which is not committed")).collect()
    }

    /// How many orders were heard of, and how many deliveries nobody could hear.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.heard.iter().filter(|payload| payload.parse::<u64>().is_ok()).count(), self.unheard)
    }
}

/// Of the deliveries in a session's time, those that it must have heard and has not; and how many it may have missed.
fn gaps(all: &[(i64, String)], session: &Session, until: i64, whole: bool) -> (Vec<String>, usize) {
    let heard: BTreeSet<&str> = session.heard.iter().map(String::as_str).collect();
    let begin = all.partition_point(|(n, _)| *n <= session.after);
    let end = all.partition_point(|(n, _)| *n <= until);
    let mine = all.get(begin..end).unwrap_or_default();
    let has = |(_, payload): &(i64, String)| heard.contains(payload.as_str());
    let surely = if whole { mine.len() } else { mine.iter().rposition(has).map_or(0, |last| last + 1) };
    let missing = mine[..surely].iter().filter(|delivery| !has(delivery));
    (missing.map(|(_, payload)| payload.clone()).collect(), mine.len() - surely)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_seen_and_an_end_is_not_one() {
        let all: Vec<(i64, String)> = (1..=6).map(|n| (n, (n * 10).to_string())).collect();
        let session = |after, heard: &[&str]| Session { after, heard: heard.iter().map(|&h| h.to_owned()).collect() };
        let missing = |session: &Session, until, whole| gaps(&all, session, until, whole);
        assert_eq!(missing(&session(0, &["10", "20"]), i64::MAX, false), (vec![], 4), "it was cut then");
        assert_eq!(missing(&session(0, &["10", "30"]), i64::MAX, false), (vec!["20".to_owned()], 3));
        let caught_up = session(4, &["50"]);
        assert_eq!(
            missing(&caught_up, i64::MAX, true),
            (vec!["60".to_owned()], 0),
            "it lives, and has heard later ones"
        );
        assert_eq!(missing(&caught_up, 5, true), (vec![], 0), "the next one answers for the rest");
        assert_eq!(missing(&session(i64::MAX, &[]), i64::MAX, false), (vec![], 0), "it never came to listen");
    }
}
