//! Money that is moved between accounts in two databases, and how that is written down: what the program `transfers` does, and what the
//! level `crash` looks for.
//!
//! Each database has accounts, and an entry for every change of one. A transfer between the databases has one entry in each of them and a
//! file in the journal; one within a database has two entries there.
//!
//! Must not know who kills whom.

mod program;

use std::fmt;
use std::str::FromStr;

pub use program::run;

/// Accounts in each database.
pub(crate) const ACCOUNTS: i32 = 12;

/// What is on each at the beginning.
pub(crate) const BALANCE: i64 = 10_000;

/// The tables of one database, and its accounts. The trigger says no at the end of a transaction: where that is prepared, in the vote.
pub(crate) fn schema() -> String {
    format!(
        "create table account (id int primary key, balance bigint not null check (balance >= 0));
         insert into account select id, {BALANCE} from generate_series(1, {ACCOUNTS}) id;
         create table entry (
             transfer text not null, account int not null, amount bigint not null, transaction text not null, refused bool not null
         );
         create function refuse() returns trigger language plpgsql as
             $$ begin raise exception 'this entry is to be refused'; end $$;
         create constraint trigger refused after insert on entry deferrable initially deferred
             for each row when (new.refused) execute function refuse()"
    )
}

/// How the program is arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrangement {
    /// A log in files decides; both databases prepare.
    FileLog,
    /// The right database carries the decision.
    Carrier,
    /// A log in the left database decides; both databases prepare.
    PostgresLog,
}

impl Arrangement {
    pub(crate) const ALL: [Self; 3] = [Self::FileLog, Self::Carrier, Self::PostgresLog];
}

impl fmt::Display for Arrangement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FileLog => "file-log",
            Self::Carrier => "carrier",
            Self::PostgresLog => "postgres-log",
        })
    }
}

impl FromStr for Arrangement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|arrangement| arrangement.to_string() == text);
        known.ok_or_else(|| format!("there is no arrangement {text:?}"))
    }
}

/// Between which accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// From one database to the other.
    Both,
    /// Within one, by its number: 0 is the left one.
    Within(usize),
}

/// What a transfer is called: no other one ever is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    /// Which start of the program.
    pub(crate) run: u32,
    /// Which of its workers.
    pub(crate) worker: u32,
    /// Counted by the worker, from 1.
    pub(crate) number: u32,
    pub(crate) kind: Kind,
}

impl Name {
    /// Where its journal file is, below the journal's folder.
    pub(crate) fn file(&self) -> String {
        format!("{}/{self}", self.run)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, worker, number, kind } = self;
        let kind = match kind {
            Kind::Both => "both",
            Kind::Within(0) => "left",
            Kind::Within(_) => "right",
        };
        write!(f, "{run}-{worker}-{number}-{kind}")
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let mut parts = text.split('-');
            let mut number = || parts.next()?.parse().ok();
            let (run, worker, number) = (number()?, number()?, number()?);
            let kind = match parts.next()? {
                "both" => Kind::Both,
                "left" => Kind::Within(0),
                "right" => Kind::Within(1),
                _ => return None,
            };
            parts.next().is_none().then_some(Self { run, worker, number, kind })
        };
        parsed().ok_or_else(|| format!("{text:?} is no transfer's name"))
    }
}

/// What a transfer's caller was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Committed,
    Aborted,
    /// Aborted as well, since a store could not be worked with.
    Unreached,
    /// The outcome is unknown, or nobody waited for it.
    Unknown,
    /// An answer that must not be.
    Wrong(String),
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Committed => f.write_str("committed"),
            Self::Aborted => f.write_str("aborted"),
            Self::Unreached => f.write_str("unreached"),
            Self::Unknown => f.write_str("unknown"),
            Self::Wrong(what) => write!(f, "wrong {}", what.replace('\n', " ")),
        }
    }
}

/// A line of the program's output: a transfer has ended.
pub(crate) fn line(name: &Name, fate: &Fate) -> String {
    format!("transfer {name} {fate}")
}

/// None: a line of another kind.
pub(crate) fn parse_line(line: &str) -> Option<Result<(Name, Fate), String>> {
    let (name, fate) = line.strip_prefix("transfer ")?.split_once(' ')?;
    let fate = match fate {
        "committed" => Fate::Committed,
        "aborted" => Fate::Aborted,
        "unreached" => Fate::Unreached,
        "unknown" => Fate::Unknown,
        other => Fate::Wrong(other.strip_prefix("wrong ").unwrap_or(other).to_owned()),
    };
    Some(name.parse().map(|name| (name, fate)))
}

/// What a journal file says. The sides are those of the databases, left first.
pub(crate) fn journal(name: &Name, transaction: &str, legs: [(i32, i64); 2]) -> String {
    let [(left, from), (right, to)] = legs;
    format!("{name} {transaction} {left} {from} {right} {to}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let name = Name { run: 3, worker: 15, number: 9, kind: Kind::Within(1) };
        assert_eq!((name.to_string().as_str(), name.to_string().parse()), ("3-15-9-right", Ok(name)));
        for kind in [Kind::Both, Kind::Within(0), Kind::Within(1)] {
            for fate in [Fate::Committed, Fate::Aborted, Fate::Unreached, Fate::Unknown, Fate::Wrong("that".into())] {
                let name = Name { kind, ..name };
                assert_eq!(parse_line(&line(&name, &fate)), Some(Ok((name, fate))));
            }
        }
        assert_eq!(parse_line("ready"), None);
        assert!("3-15-9".parse::<Name>().is_err() && "3-15-9-left-".parse::<Name>().is_err());
        assert!(Arrangement::ALL.iter().all(|one| one.to_string().parse() == Ok(*one)));
    }
}
