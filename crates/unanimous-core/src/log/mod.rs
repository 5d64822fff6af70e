//! The decision log as plain data: what its bytes mean, and what its records add up to.
//!
//! - [`record`]: the records and their bytes.
//! - [`frame`]: what one sync covers, in two copies, and the header of a segment.
//! - [`mod@scan`]: reads a segment's bytes, and tells a torn tail from damage.
//! - [`history`]: what the records add up to: who can be presumed what (rules 4 and 11).
//!
//! The bytes, the reasons for them and a walk through each crash are in `docs/log-format.md`.
//!
//! Must not know files, clocks, randomness, or who is waiting for a decision: bytes, times and nonces are handed in.

pub mod frame;
pub mod history;
pub mod record;
pub mod scan;

pub use frame::{Header, HeaderError, SegmentSalt};
pub use history::{History, HistoryError, Retained};
pub use record::{DecodeError, EncodeError, Record};
pub use scan::{Damage, DamageKind, FrameKind, ScannedFrame, ScannedSegment, Tail, scan};
