//! Every reachable state of a decision that is a row in one of the databases, with two recoverers; and planted bugs.

use unanimous_model::Violation;
use unanimous_model::row::{Kind, Planted, RowWorld};
use unanimous_model::walk::{reaches, walk};

fn holds(others: usize, kind: Kind, crashes: u8, losses: u8) {
    let seen = walk(&RowWorld::new(others, kind, crashes, losses, Planted::None));
    println!("{kind:?}, {others} others, {crashes} crashes, {losses} losses: {} states", seen.states);
    if let Some((violation, at)) = seen.violations.first() {
        panic!("{violation:?}: {at}");
    }
}

#[test]
fn a_row_in_a_server_in_every_state() {
    holds(1, Kind::Server, 1, 1);
}

#[test]
fn a_row_in_a_file_in_every_state() {
    holds(1, Kind::File, 1, 1);
}

#[track_caller]
fn catches(kind: Kind, planted: Planted, expected: Violation) {
    if let Err(found) = reaches(&RowWorld::new(1, kind, 1, 1, planted), &expected) {
        panic!("{planted:?} does not lead to {expected:?}, but to {found:?}");
    }
}

#[test]
fn planted_bugs_of_a_row_are_caught() {
    use Kind::{File, Server};
    for kind in [Server, File] {
        catches(kind, Planted::NoFence, Violation::Torn);
        catches(kind, Planted::BelieveUnforced, Violation::DecisionChanged);
        catches(kind, Planted::AskTheLog, Violation::Torn);
        catches(kind, Planted::NoFloor, Violation::DecisionChanged);
        catches(kind, Planted::ForgetUnconfirmed, Violation::LeftInDoubt);
    }
    catches(Server, Planted::KeyIsCommit, Violation::Torn);
    catches(Server, Planted::OutcomeFromALook, Violation::Torn);
    catches(Server, Planted::ActBeforeCommit, Violation::Torn);
    catches(Server, Planted::NoRowsLock, Violation::DecisionChanged);
    catches(Server, Planted::FenceLetGoEarly, Violation::Torn);
    catches(Server, Planted::CarrierWithoutRun, Violation::Torn);
}
