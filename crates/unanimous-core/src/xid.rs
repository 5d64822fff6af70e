//! Who is who: logs and their incarnations, stores, transactions, branches.
//!
//! Every branch's id names its transaction (the log that began it, that log's incarnation, a sequence number), its decider
//! and its place in the transaction, so that recovery knows whom to ask and asks nobody else (rule 2).
//! Ids are compared as parsed values, field by field, never by a prefix of their text: "node1" must not claim "node10"'s branches.
//!
//! Must not know where ids are kept or how random numbers are made: they are handed in.
//!
//! # Text
//!
//! ```text
//! transaction   log . counter . nonce . sequence        at most 62 bytes
//!               26 base32, decimal, 8 base32, decimal
//! branch        decider . number                        at most 47 bytes; decider = "log", a store's id or a roster
//! roster        log . number tag . number tag ...       tag: 8 base32 digits; no "." within a participant
//! both          u1:TRANSACTION:BRANCH                   at most 113 bytes
//! ```
//!
//! So that a transaction's id fits a gtrid and a branch's own part a bqual of X/Open's XID (64 bytes each), and both fit a
//! PostgreSQL transaction identifier (199 bytes).

mod roster;

use std::fmt;
use std::str::FromStr;

pub use roster::{Roster, StoreTag};

/// Lower-case Crockford base32: no i, l, o, u, so that an id can be read out at three in the morning.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The longest sequence number: 15 decimal digits. At a million transactions a second an incarnation reaches it after 31 years.
pub const MAX_SEQUENCE: u64 = 999_999_999_999_999;

fn write_base32(f: &mut fmt::Formatter<'_>, value: u128, digits: u32) -> fmt::Result {
    for digit in (0..digits).rev() {
        let index = (value >> (5 * digit)) & 31;
        f.write_str(char::from(ALPHABET[index as usize]).encode_utf8(&mut [0; 4]))?;
    }
    Ok(())
}

fn parse_base32(text: &str, digits: usize, bits: u32) -> Option<u128> {
    if text.len() != digits {
        return None;
    }
    let mut value: u128 = 0;
    for (place, byte) in text.bytes().enumerate() {
        let digit = ALPHABET.iter().position(|&known| known == byte)? as u128;
        if place == 0 && digit >> (5 - (5 * digits as u32 - bits)) != 0 {
            return None;
        }
        value = (value << 5) | digit;
    }
    Some(value)
}

/// Decimal without sign, leading zeros or white space: one number has one text.
fn parse_decimal(text: &str, most: u64) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|&value| plain && value <= most)
}

/// A text that is not the id that it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseIdError {
    what: &'static str,
    text: String,
}

impl ParseIdError {
    fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(200).collect() }
    }
}

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not {}", self.text, self.what)
    }
}

impl std::error::Error for ParseIdError {}

/// The identity of a decision log, made once, when the log is created: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub u128);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_base32(f, self.0, 26)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LogId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_base32(text, 26, 128).map(Self).ok_or_else(|| ParseIdError::new("a log's id (26 base32 digits)", text))
    }
}

/// One run of a log's owner: a counter that grows with each start, and a random nonce that tells two runs apart which a
/// restored backup gave the same counter. Forced before its first id is used (rule 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation {
    /// 1 at the log's first start.
    pub counter: u32,
    /// 40 random bits; the upper 24 are zero.
    pub nonce: u64,
}

impl Incarnation {
    /// The nonce's width.
    pub const NONCE_BITS: u32 = 40;

    /// An incarnation whose nonce is the low 40 bits of `random`.
    pub fn new(counter: u32, random: u64) -> Self {
        Self { counter, nonce: random & ((1 << Self::NONCE_BITS) - 1) }
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.", self.counter)?;
        write_base32(f, u128::from(self.nonce), 8)
    }
}

/// A log and the incarnation that owns it now: whoever holds it may presume for its own transactions, and for nobody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The log.
    pub log: LogId,
    /// Its current incarnation.
    pub incarnation: Incarnation,
}

impl Owner {
    /// The transaction with this number, begun by this owner.
    pub fn transaction(self, sequence: u64) -> TransactionId {
        TransactionId { log: self.log, incarnation: self.incarnation, sequence }
    }
}

/// A transaction: begun by one incarnation of one log, never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId {
    /// The log of the manager that began it.
    pub log: LogId,
    /// That log's incarnation at the time.
    pub incarnation: Incarnation,
    /// 1 for the incarnation's first transaction, at most [`MAX_SEQUENCE`].
    pub sequence: u64,
}

impl TransactionId {
    /// Who began it.
    pub fn owner(self) -> Owner {
        Owner { log: self.log, incarnation: self.incarnation }
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.log, self.incarnation, self.sequence)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TransactionId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError::new("a transaction's id (LOG.COUNTER.NONCE.SEQUENCE)", text);
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or_else(wrong);
        let log = next()?.parse().map_err(|_| wrong())?;
        let counter = parse_decimal(next()?, u64::from(u32::MAX)).ok_or_else(wrong)? as u32;
        let nonce = parse_base32(next()?, 8, Incarnation::NONCE_BITS).ok_or_else(wrong)? as u64;
        let sequence = parse_decimal(next()?, MAX_SEQUENCE).ok_or_else(wrong)?;
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self { log, incarnation: Incarnation { counter, nonce }, sequence })
    }
}

/// The identity of a store, kept inside the store itself, so that a renamed, replaced or unmounted one is noticed:
/// 1 to 40 characters of `a-z`, `0-9` and `-`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreId(String);

impl StoreId {
    /// The longest identity, in bytes.
    pub const MAX_LENGTH: usize = 40;

    /// An identity of 128 random bits, for stores that have none of their own.
    pub fn from_random(random: u128) -> Self {
        Self(LogId(random).to_string())
    }

    /// The identity's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for StoreId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if plain && !text.is_empty() && text.len() <= Self::MAX_LENGTH && text != DeciderId::LOG {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseIdError::new("a store's identity (1 to 40 of a-z, 0-9 and -)", text))
        }
    }
}

/// Who makes a transaction's decision durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeciderId {
    /// The log that the transaction's id names.
    Log,
    /// A store that takes part: its own commit carries the decision as a row.
    Store(StoreId),
    /// The log that the transaction's id names; and as long as it has no record, all of these participants together: once each has promised
    /// to commit, the application may have been told so (early acknowledgement, `docs/protocol.md`). Nothing is presumed of such a
    /// transaction, and recovery may conclude from what all of them list.
    Together(Roster),
}

impl DeciderId {
    const LOG: &'static str = "log";
}

impl fmt::Display for DeciderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeciderId::Log => f.write_str(Self::LOG),
            DeciderId::Store(store) => store.fmt(f),
            DeciderId::Together(roster) => roster.fmt(f),
        }
    }
}

impl FromStr for DeciderId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match Roster::parse(text) {
            Some(roster) => roster.map(Self::Together),
            None if text == Self::LOG => Ok(Self::Log),
            None => text.parse().map(Self::Store),
        }
    }
}

/// A branch, as its store lists it: its transaction, who decides, and its number in the transaction.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchId {
    /// The transaction.
    pub transaction: TransactionId,
    /// The one who is asked for the decision.
    pub decider: DeciderId,
    /// The branch's place in the transaction, from 0.
    pub number: u16,
}

impl BranchId {
    /// X/Open's gtrid: the transaction's id, at most 62 bytes.
    pub fn gtrid(&self) -> String {
        self.transaction.to_string()
    }

    /// X/Open's bqual: decider and number, at most 47 bytes.
    pub fn bqual(&self) -> String {
        format!("{}.{}", self.decider, self.number)
    }

    /// The id from its two X/Open parts.
    ///
    /// # Errors
    ///
    /// When either is not what [`gtrid`](Self::gtrid) and [`bqual`](Self::bqual) give: it is somebody else's branch.
    pub fn from_parts(gtrid: &str, bqual: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError::new("a branch's own part (DECIDER.NUMBER)", bqual);
        let (decider, number) = bqual.rsplit_once('.').ok_or_else(wrong)?;
        Ok(Self {
            transaction: gtrid.parse()?,
            decider: decider.parse()?,
            number: parse_decimal(number, u64::from(u16::MAX)).ok_or_else(wrong)? as u16,
        })
    }
}

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "u1:{}:{}.{}", self.transaction, self.decider, self.number)
    }
}

impl fmt::Debug for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BranchId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let wrong = || ParseIdError::new("a branch's id (u1:TRANSACTION:BRANCH)", text);
        let (gtrid, bqual) = text.strip_prefix("u1:").and_then(|rest| rest.split_once(':')).ok_or_else(wrong)?;
        Self::from_parts(gtrid, bqual)
    }
}
