//! What a case is: who decides, where the fault is, and which it is.
//!
//! Must not know how it is tried.

use std::fmt;
use std::time::Duration;

use unanimous_testing::proxy::postgres::{Act, Direction, Extent, Spot, Then};

/// How long flush, vote and commit wait.
pub(super) const VOTE_TIMEOUT: Duration = Duration::from_millis(300);

/// Longer than that.
const STALL: Duration = Duration::from_millis(450);

/// Shorter than that.
const DELAY: Duration = Duration::from_millis(200);

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Arrangement {
    /// Both databases prepare; a log in files.
    FileLog,
    /// The first prepares, the second carries the decision.
    Carrier,
    /// The first alone writes, in one phase.
    OnePhase,
    /// Both prepare; a log in a third database.
    PostgresLog,
}

pub(super) const ARRANGEMENTS: [Arrangement; 4] =
    [Arrangement::FileLog, Arrangement::Carrier, Arrangement::OnePhase, Arrangement::PostgresLog];

impl Arrangement {
    /// How many databases there are.
    pub(super) fn ways(self) -> usize {
        if self == Arrangement::PostgresLog { 3 } else { 2 }
    }

    /// The way whose commit is the decision: there alone an answer that is lost may leave it unknown.
    pub(super) fn decides(self) -> Option<usize> {
        match self {
            Arrangement::FileLog | Arrangement::PostgresLog => None,
            Arrangement::Carrier => Some(1),
            Arrangement::OnePhase => Some(0),
        }
    }
}

impl fmt::Display for Arrangement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arrangement::FileLog => "file-log",
            Arrangement::Carrier => "carrier",
            Arrangement::OnePhase => "one-phase",
            Arrangement::PostgresLog => "postgres-log",
        })
    }
}

/// What happens at the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    Cut(Spot),
    Stall(Extent, Then),
    Delay,
    /// It arrives when the manager has reconnected and listed.
    Detach,
    /// The process dies; the message has arrived, or has not.
    Die(Spot),
    /// The process dies, and the message arrives when the next one has listed.
    DieDetached,
}

impl Fate {
    pub(super) fn all(direction: Direction) -> Vec<Self> {
        let mut all = vec![
            Self::Cut(Spot::Before),
            Self::Cut(Spot::Within),
            Self::Cut(Spot::Behind),
            Self::Stall(Extent::Connection, Then::Cut),
            Self::Stall(Extent::Connection, Then::GoOn),
            Self::Stall(Extent::All, Then::Cut),
            Self::Stall(Extent::All, Then::GoOn),
            Self::Delay,
        ];
        if direction == Direction::ToServer {
            all.extend([Self::Detach, Self::Die(Spot::Before), Self::Die(Spot::Behind), Self::DieDetached]);
        }
        all
    }

    pub(super) fn act(self) -> Act {
        match self {
            Self::Cut(spot) | Self::Die(spot) => Act::Cut(spot),
            Self::Stall(extent, then) => Act::Stall(extent, STALL, then),
            Self::Delay => Act::Delay(DELAY),
            Self::Detach | Self::DieDetached => Act::Detach,
        }
    }

    pub(super) fn dies(self) -> bool {
        matches!(self, Self::Die(_) | Self::DieDetached)
    }
}

/// A case: what repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) arrangement: Arrangement,
    pub(super) way: usize,
    pub(super) direction: Direction,
    pub(super) number: u64,
    pub(super) fate: Fate,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { arrangement, way, direction, number, fate } = self;
        write!(f, "{arrangement}, database {way}, {direction:?} {number}, {fate:?}")
    }
}
