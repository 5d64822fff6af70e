//! What happened in a simulated world, as a hash, and where somebody wants to read it as lines.
//!
//! Two runs of a seed have the same trace byte for byte; the hash is how that is compared.
//!
//! Must not know what the events mean.

use std::fmt::{self, Write as _};
use std::time::Duration;

/// FNV-1a: short, and the same on every machine.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

pub(super) struct Trace {
    hash: u64,
    events: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// One that keeps its lines too, or only their hash.
    pub(super) fn new(keep: bool) -> Self {
        Self { hash: OFFSET, events: 0, lines: keep.then(Vec::new) }
    }

    pub(super) fn note(&mut self, now: Duration, event: fmt::Arguments<'_>) {
        self.events += 1;
        let micros = now.as_micros();
        let hashed = writeln!(Hasher(&mut self.hash), "{micros} {event}");
        hashed.expect("a hash takes everything");
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.6} {event}", now.as_secs_f64()));
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }

    pub(super) fn take_lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }
}

struct Hasher<'h>(&'h mut u64);

impl fmt::Write for Hasher<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            *self.0 = (*self.0 ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a_over_the_lines() {
        let mut trace = Trace::new(true);
        assert_eq!(trace.hash(), OFFSET);
        trace.note(Duration::from_micros(7), format_args!("a {}", 1));
        let expected = "7 a 1\n".bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
        assert_eq!((trace.hash(), trace.events()), (expected, 1));
        assert_eq!(trace.take_lines(), ["    0.000007 a 1"]);
    }
}
