//! What people read: errors say what is wrong and what to do, reasons say whom to ask, ids are written as they are read.

use std::error::Error;

use unanimous_core::log::record::EncodeError;
use unanimous_core::log::{Damage, DamageKind, DecodeError, HeaderError, HistoryError};
use unanimous_core::protocol::{Event, Unexpected};
use unanimous_core::xid::StoreTag;
use unanimous_core::{
    BranchError, DecideError, Decision, HoldReason, Incarnation, LogId, Note, Outcome, StoreError, StoreId,
    TransactionId,
};

const ID: &str = "0000000000000000000000001a.2.00000003.7";

fn transaction() -> TransactionId {
    TransactionId { log: LogId(42), incarnation: Incarnation::new(2, 3), sequence: 7 }
}

#[test]
fn ids_are_written_as_they_are_read() {
    assert_eq!(transaction().to_string(), ID);
    assert_eq!(ID.parse::<TransactionId>().unwrap(), transaction());
    assert_eq!(format!("{:?} {:?}", LogId(42), transaction()), format!("0000000000000000000000001a {ID}"));
    let store: StoreId = "store-a".parse().unwrap();
    assert_eq!(format!("{store} {store:?}"), "store-a store-a");
    for wrong in ["", "1a", &ID[1..], &format!("{ID}.1"), &ID.replace('1', "u"), &format!("z{}", &ID[1..])] {
        assert!(wrong.parse::<TransactionId>().is_err(), "{wrong:?}");
    }
}

#[test]
fn reasons_to_hold_say_whom_to_ask() {
    for (reason, text) in [
        (HoldReason::ForeignLog, "begun by another decision log; ask the process that owns it"),
        (
            HoldReason::ForeignIncarnation,
            "begun by an incarnation that this log does not know: a restored or copied log or store",
        ),
        (HoldReason::BeyondHorizon, "older than the decisions that are kept"),
        (HoldReason::Poisoned, "the decision log failed to sync; restart the process to read what is durable"),
        (
            HoldReason::UnregisteredDecider("store-a".parse().unwrap()),
            "decided by the store store-a, which is not registered here; register it",
        ),
        (HoldReason::Unreachable, "its decider can't be asked now; it is asked again"),
        (
            HoldReason::Unlisted(StoreTag::of(&"store-a".parse().unwrap())),
            "it may have been acknowledged, which the list of its participant x472z0ee will show; bring that store back, and register it",
        ),
        (HoldReason::NotRecorded, "the decision log did not take what follows for it; it is tried again"),
        (HoldReason::NotListed, "its transaction committed, but without listing this branch; compare the ids by hand"),
    ] {
        assert_eq!(reason.to_string(), text);
    }
}

#[test]
fn a_decision_that_no_log_can_hold_is_told_why() {
    let long = EncodeError::ResourceTooLong { resource: "orders".into() };
    assert_eq!(long.to_string(), "the resource's name \"orders\"... has more than 255 bytes; give it a shorter one");
    let many = EncodeError::TooManyParticipants { count: 70_000 };
    assert_eq!(many.to_string(), "70000 participants are more than the 65535 that a decision can list");
    let unwritable = HistoryError::Unwritable(long);
    assert_eq!(unwritable.to_string(), "a decision that no log can hold");
    assert!(unwritable.source().unwrap().to_string().contains("255 bytes"));
}

#[test]
fn contradictions_name_what_contradicts() {
    let incarnation = Incarnation::new(2, 3);
    for (error, text) in [
        (
            HistoryError::IncarnationOrder(incarnation),
            "the incarnation 2.00000003 does not follow the one before it".to_owned(),
        ),
        (
            HistoryError::UnknownIncarnation(incarnation),
            "a record of the incarnation 2.00000003, which was never begun".to_owned(),
        ),
        (HistoryError::DecidedTwice(transaction()), format!("the transaction {ID} is decided twice, differently")),
        (HistoryError::ForeignLog(transaction()), format!("the transaction {ID} is of another log")),
    ] {
        assert_eq!(error.to_string(), text);
        assert!(error.source().is_none());
    }
}

#[test]
fn damage_says_where_it_is() {
    let said = |kind| Damage { offset: 128, end: 256, kind }.to_string();
    assert_eq!(said(DamageKind::Cut), "the file ends at byte 128 and should end at byte 256: it was cut");
    assert_eq!(said(DamageKind::Checkpoint), "bytes 128 to 256: the checkpoint is damaged");
    assert_eq!(
        said(DamageKind::Frame),
        "bytes 128 to 256: what stood here is damaged, and what follows proves that it had been synced"
    );
    assert_eq!(
        said(DamageKind::Copy),
        "bytes 128 to 256: one copy of a frame is damaged; the other one is whole and was read"
    );
    assert_eq!(
        said(DamageKind::Records(DecodeError::Malformed { kind: 2 })),
        "bytes 128 to 256: a record of kind 2 that is not one"
    );
    assert_eq!(DecodeError::Length.to_string(), "records that don't fill their frame");
    assert_eq!(HeaderError::NotALog.to_string(), "not a segment of a decision log");
    assert_eq!(HeaderError::Damaged.to_string(), "the segment's header is damaged");
}

#[test]
fn an_unexpected_event_is_named() {
    assert_eq!(Unexpected(Event::WaitElapsed).to_string(), "the protocol was not waiting for WaitElapsed");
}

/// An adapter's error is said by what it means, and the store's own stands behind it.
#[test]
fn failures_say_what_they_mean_and_keep_their_source() {
    let source = |error: &dyn Error| error.source().map(ToString::to_string);
    let why = Some("40001".to_owned());
    for (error, text) in [
        (BranchError::conflict("40001"), "the store reported a conflict"),
        (BranchError::refused("40001"), "the store refused"),
        (BranchError::lost("40001"), "the store's answer was lost"),
    ] {
        assert_eq!((error.to_string(), source(&error)), (text.to_owned(), why.clone()));
    }
    for (error, text) in [
        (DecideError::Refused("40001".into()), "the decision was refused by its log"),
        (DecideError::Unknown("40001".into()), "nobody knows whether the decision became durable"),
    ] {
        assert_eq!((error.to_string(), source(&error)), (text.to_owned(), why.clone()));
    }
    let down = StoreError::new("40001");
    assert_eq!((down.to_string(), source(&down)), ("the store could not be asked".to_owned(), why));
}

#[test]
fn outcomes_and_notes_are_words() {
    assert_eq!([Decision::Commit, Decision::Abort].map(|decision| decision.to_string()), ["commit", "abort"]);
    let outcomes = [Outcome::Committed, Outcome::Aborted, Outcome::Unknown].map(|outcome| outcome.to_string());
    assert_eq!(outcomes, ["committed", "aborted", "unknown"]);
    assert_eq!(Note::new("by ada").to_string(), "by ada");
}
