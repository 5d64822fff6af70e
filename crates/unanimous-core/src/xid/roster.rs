//! The list of participants in a branch's id, of a transaction that may be acknowledged before its decision is recorded.
//!
//! With it each branch says who else must be prepared, so that recovery knows whom to list where the log has no record.
//!
//! Must not know what follows from it.

use std::fmt;
use std::str::FromStr;

use twox_hash::XxHash3_64;

use super::{ParseIdError, StoreId, parse_base32, parse_decimal, write_base32};

/// 40 bits of a store's identity, hashed: what of it fits into an id beside those of others. Two stores of one manager with the same tag can't
/// be told apart by a [`Roster`]; it is looked at before one is made, and before one is believed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreTag(u64);

impl StoreTag {
    const BITS: u32 = 40;
    const DIGITS: u32 = 8;

    /// The tag of a store.
    pub fn of(store: &StoreId) -> Self {
        Self(XxHash3_64::oneshot(store.as_str().as_bytes()) & ((1 << Self::BITS) - 1))
    }
}

impl fmt::Display for StoreTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base32(f, u128::from(self.0), Self::DIGITS)
    }
}

impl fmt::Debug for StoreTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Every participant of a transaction, by its branch's number and its store's tag: fixed before the first prepare (rule 2).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Roster(Vec<(u16, StoreTag)>);

impl Roster {
    /// The longest text of a branch's own part that a roster may lead to, in bytes: what any other id may have too.
    const MOST_BYTES: usize = 47;

    /// How many participants a roster holds at most, in a transaction of `branches` branches: 4 of up to ten, and fewer of more.
    pub fn most(branches: usize) -> usize {
        let digits = branches.saturating_sub(1).max(1).ilog10() as usize + 1;
        let fixed = Self::LOG.len() + 1 + digits;
        let each = 1 + digits + StoreTag::DIGITS as usize;
        Self::MOST_BYTES.saturating_sub(fixed) / each
    }

    const LOG: &'static str = "log";

    /// The roster of these participants, in the order of their numbers; none where there are none, or a number comes twice.
    pub fn new(participants: impl IntoIterator<Item = (u16, StoreTag)>) -> Option<Self> {
        let mut listed: Vec<_> = participants.into_iter().collect();
        listed.sort_unstable();
        let twice = listed.windows(2).any(|pair| pair[0].0 == pair[1].0);
        (!listed.is_empty() && !twice).then_some(Self(listed))
    }

    /// The participants: each one's branch number, and its store's tag.
    pub fn iter(&self) -> impl Iterator<Item = (u16, StoreTag)> + '_ {
        self.0.iter().copied()
    }

    /// Whether it lists a branch of this number.
    pub fn lists(&self, number: u16) -> bool {
        self.0.iter().any(|&(listed, _)| listed == number)
    }

    /// The roster in a decider's text; none where the text is not that of a roster.
    pub(super) fn parse(text: &str) -> Option<Result<Self, ParseIdError>> {
        let rest = text.strip_prefix(Self::LOG)?.strip_prefix('.')?;
        let entry = |part: &str| {
            let (number, tag) = part.split_at_checked(part.len().checked_sub(StoreTag::DIGITS as usize)?)?;
            let tag = parse_base32(tag, StoreTag::DIGITS as usize, StoreTag::BITS)?;
            Some((parse_decimal(number, u64::from(u16::MAX))? as u16, StoreTag(tag as u64)))
        };
        let listed: Option<Vec<_>> = rest.split('.').map(entry).collect();
        // One roster has one text: in the order of its numbers, each once.
        let read = listed.filter(|listed| listed.is_sorted_by(|a, b| a.0 < b.0)).map(Self);
        Some(read.ok_or_else(|| ParseIdError::new("a list of participants (log.NUMBER TAG ...)", text)))
    }
}

impl fmt::Display for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::LOG)?;
        self.0.iter().try_for_each(|(number, tag)| write!(f, ".{number}{tag}"))
    }
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Roster {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        Self::parse(text).unwrap_or_else(|| Err(ParseIdError::new("a list of participants (log.NUMBER TAG ...)", text)))
    }
}
