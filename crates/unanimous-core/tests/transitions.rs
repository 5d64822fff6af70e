//! The table of the protocol's transitions: each pair of a state and an event that `handle` tells from others is reached by the walk
//! through all states, or is listed below with the reason why it can't be; everything else is refused and changes nothing.

use std::collections::{BTreeSet, HashSet};

use unanimous_core::Capability::TwoPhase;
use unanimous_core::protocol::{DecisionAnswer, Event, Path, Protocol};
use unanimous_core::{Decision, FailureKind, Work};
use unanimous_model::walk::walk_visiting;
use unanimous_model::world::{Faults, Planted, Spec, World};
use unanimous_model::worlds;

/// What `handle` tells from others, and a driver can bring about.
const REACHED: &[&str] = &[
    "Aborting, RollingBack, ours: rolled back, not yet",
    "Aborting, RollingBack, recovery's too: rolled back, not yet",
    "Aborting, RollingBack: rolled back, ok",
    "Aborting, RollingBackPrepared, ours: rolled back, not yet",
    "Aborting, RollingBackPrepared, recovery's too: rolled back, not yet",
    "Aborting, RollingBackPrepared: rolled back, ok",
    "Aborting: flushed, lost",
    "Aborting: flushed, no",
    "Aborting: flushed, only read",
    "Aborting: flushed, wrote",
    "Aborting: reader ended, lost",
    "Aborting: reader ended, no",
    "Aborting: reader ended, ok",
    "Aborting: time limit",
    "Aborting: voted, lost",
    "Aborting: voted, no",
    "Aborting: voted, ok",
    "Aborting: waited",
    "Active: abort",
    "Active: commit",
    "Active: time limit",
    "Asking, in time: resolved, None",
    "Asking, in time: resolved, Some(Abort)",
    "Asking, in time: resolved, Some(Commit)",
    "Asking, waited: resolved, None",
    "Asking, waited: resolved, Some(Abort)",
    "Asking, waited: resolved, Some(Commit)",
    "Asking: time limit",
    "Asking: waited",
    "Deciding, early: decided, Forced",
    "Deciding, early: decided, Refused",
    "Deciding, early: decided, Unknown",
    "Deciding, last resource: decided, Forced",
    "Deciding, last resource: decided, Refused",
    "Deciding, last resource: decided, Unknown",
    "Deciding, log: decided, Forced",
    "Deciding, log: decided, Refused",
    "Deciding, log: decided, Unknown",
    "Deciding: time limit",
    "Flushing: flushed, lost",
    "Flushing: flushed, no",
    "Flushing: flushed, only read",
    "Flushing: flushed, wrote",
    "Flushing: time limit",
    "Held: reader ended, lost",
    "Held: reader ended, no",
    "Held: reader ended, ok",
    "Held: voted, lost",
    "Held: voted, no",
    "Held: voted, ok",
    "LastCommit, carrier: one phase, lost",
    "LastCommit, carrier: one phase, no",
    "LastCommit, carrier: one phase, ok",
    "LastCommit, last resource: one phase, lost",
    "LastCommit, last resource: one phase, no",
    "LastCommit, last resource: one phase, ok",
    "LastCommit, only writer: one phase, lost",
    "LastCommit, only writer: one phase, no",
    "LastCommit, only writer: one phase, ok",
    "LastCommit: time limit",
    "Left: reader ended, lost",
    "Left: reader ended, no",
    "Left: reader ended, ok",
    "Left: voted, lost",
    "Left: voted, no",
    "Left: voted, ok",
    "PhaseTwo, ours: committed, not yet",
    "PhaseTwo, recovery's too: committed, not yet",
    "PhaseTwo: committed, ok",
    "PhaseTwo: time limit",
    "PhaseTwo: waited",
    "RecordingAbort, early: decided, Forced",
    "RecordingAbort, early: decided, Refused",
    "RecordingAbort, early: decided, Unknown",
    "RecordingAbort: reader ended, lost",
    "RecordingAbort: reader ended, no",
    "RecordingAbort: reader ended, ok",
    "RecordingAbort: time limit",
    "RecordingAbort: voted, lost",
    "RecordingAbort: voted, no",
    "RecordingAbort: voted, ok",
    "Voting, early: log given up",
    "Voting: reader ended, lost",
    "Voting: reader ended, no",
    "Voting: reader ended, ok",
    "Voting: time limit",
    "Voting: voted, lost",
    "Voting: voted, no",
    "Voting: voted, ok",
];

/// What `handle` would hear, and no driver says: the timer of the wait is not started before there is something to wait for, and a driver
/// ends with its transaction.
const UNREACHED: &[(&str, &str)] = &[
    ("Active: waited", "nothing has started the wait"),
    ("Deciding: waited", "nothing has started the wait"),
    ("Flushing: waited", "nothing has started the wait"),
    ("Held: time limit", "its caller was answered"),
    ("Held: waited", "nothing has started the wait"),
    ("LastCommit: waited", "nothing has started the wait"),
    ("Left: time limit", "its caller was answered"),
    ("Left: waited", "nothing has started the wait"),
    ("Over: time limit", "its driver has ended"),
    ("Over: waited", "its driver has ended"),
    ("RecordingAbort: waited", "nothing has started the wait"),
    ("Voting: waited", "nothing has started the wait"),
    ("elsewhere: log given up", "it changes nothing there"),
];

/// Every event that a driver of so many branches could hand in.
fn events(count: usize) -> Vec<Event> {
    let mut events = vec![Event::Commit, Event::Abort, Event::GiveUp, Event::Disowned, Event::WaitElapsed];
    events.extend([DecisionAnswer::Forced, DecisionAnswer::Refused, DecisionAnswer::Unknown].map(Event::Decided));
    events.extend([Some(Decision::Commit), Some(Decision::Abort), None].map(Event::Resolved));
    // One branch too many: there is no such branch.
    for i in 0..=count {
        let no = [FailureKind::Conflict, FailureKind::Refused, FailureKind::Lost];
        events.extend([Work::ReadOnly, Work::Wrote].map(|work| Event::Flushed(i, Ok(work))));
        events.extend(no.map(|no| Event::Flushed(i, Err(no))));
        for event in [Event::Voted, Event::OnePhase, Event::Committed, Event::RolledBack] {
            events.push(event(i, Ok(())));
            events.extend(no.map(|no| event(i, Err(no))));
        }
    }
    events
}

/// Whether somebody who knows the table would say that the protocol waits for it.
fn is_waited_for(protocol: &Protocol, count: usize, event: Event) -> bool {
    let stage = protocol.stage_name();
    let is = |i: usize, state: &str| i < count && protocol.state_name(i).0 == state;
    match event {
        Event::Commit | Event::Abort => stage == "Active",
        Event::Flushed(i, _) => is(i, "Flushing"),
        Event::Voted(i, _) => is(i, "Preparing"),
        Event::OnePhase(i, _) => is(i, "EndingOnePhase"),
        Event::Decided(_) => matches!(stage, "Deciding" | "RecordingAbort"),
        Event::Resolved(_) => stage == "Asking",
        Event::Committed(i, _) => is(i, "Committing"),
        Event::RolledBack(i, _) => is(i, "RollingBack") || is(i, "RollingBackPrepared"),
        Event::GiveUp | Event::Disowned | Event::WaitElapsed => true,
    }
}

/// What `handle` tells from others, in words.
fn pair(protocol: &Protocol, event: Event) -> String {
    let stage = protocol.stage_name();
    let path = match protocol.path() {
        None => "no path",
        Some(Path::ReadOnly) => "read only",
        Some(Path::OnePhase(_)) => "only writer",
        Some(Path::Carrier(_)) => "carrier",
        Some(Path::LastResource(_)) => "last resource",
        Some(Path::Log) => "log",
        Some(Path::Early) => "early",
    };
    let waited = if protocol.has_waited() { "waited" } else { "in time" };
    let also = |i: usize| if protocol.state_name(i).1 { "recovery's too" } else { "ours" };
    let ended = |answer: Result<(), FailureKind>| match answer {
        Ok(()) => "ok",
        Err(FailureKind::Lost) => "lost",
        Err(FailureKind::Conflict | FailureKind::Refused) => "no",
    };
    match event {
        Event::Commit => format!("{stage}: commit"),
        Event::Abort => format!("{stage}: abort"),
        Event::Flushed(_, Ok(Work::ReadOnly)) => format!("{stage}: flushed, only read"),
        Event::Flushed(_, Ok(Work::Wrote)) => format!("{stage}: flushed, wrote"),
        Event::Flushed(_, Err(kind)) => format!("{stage}: flushed, {}", ended(Err(kind))),
        Event::Voted(_, answer) => format!("{stage}: voted, {}", ended(answer)),
        Event::OnePhase(_, answer) if stage == "LastCommit" => format!("{stage}, {path}: one phase, {}", ended(answer)),
        Event::OnePhase(_, answer) => format!("{stage}: reader ended, {}", ended(answer)),
        Event::Decided(answer) => format!("{stage}, {path}: decided, {answer:?}"),
        Event::Resolved(answer) => format!("{stage}, {waited}: resolved, {answer:?}"),
        Event::Committed(_, Ok(())) => format!("{stage}: committed, ok"),
        Event::Committed(i, Err(_)) => format!("{stage}, {}: committed, not yet", also(i)),
        Event::RolledBack(i, Ok(())) => format!("{stage}, {}: rolled back, ok", protocol.state_name(i).0),
        Event::RolledBack(i, Err(_)) => {
            format!("{stage}, {}, {}: rolled back, not yet", protocol.state_name(i).0, also(i))
        }
        Event::GiveUp => format!("{stage}: time limit"),
        // No driver says it but where it is about to answer early; elsewhere it changes nothing.
        Event::Disowned if (stage, path) == ("Voting", "early") => "Voting, early: log given up".to_owned(),
        Event::Disowned => "elsewhere: log given up".to_owned(),
        Event::WaitElapsed => format!("{stage}: waited"),
    }
}

#[test]
fn every_transition_is_reached_and_nothing_else_is_heard() {
    let (mut reached, mut heard) = (BTreeSet::new(), BTreeSet::new());
    for (count, losses) in [(0, 0), (1, 3), (2, 2)] {
        let faults = Faults { crashes: 0, losses, repeats: 0 };
        let early = worlds(count, faults).into_iter().map(World::acknowledging_early);
        let three = World::new(&[Spec { capability: TwoPhase, allowed: true }; 3], false, faults, Planted::None);
        let early = early.chain((count == 2).then(|| three.acknowledging_early()));
        for start in worlds(count, faults).into_iter().chain(early) {
            let mut seen = HashSet::new();
            walk_visiting(&start, &mut |world| {
                let Some(protocol) = &world.protocol else { return };
                world.each_step(&mut |_, _, event| reached.extend(event.map(|event| pair(protocol, event))));
                if !seen.insert(protocol.clone()) {
                    return;
                }
                for event in events(world.branches().len()) {
                    let mut after = protocol.clone();
                    let mut actions = Vec::new();
                    let answer = after.handle(event, &mut actions);
                    assert_eq!(
                        answer.is_ok(),
                        is_waited_for(protocol, world.branches().len(), event),
                        "{event:?} at {protocol:?}"
                    );
                    match answer {
                        Ok(()) => drop(heard.insert(pair(protocol, event))),
                        Err(unexpected) => {
                            assert_eq!((unexpected.0, &after, actions.len()), (event, protocol, 0));
                        }
                    }
                }
            });
        }
    }
    let expected: BTreeSet<_> = REACHED.iter().map(|&pair| pair.to_owned()).collect();
    assert_eq!(reached, expected, "what the walk has reached, and what it should");
    let unreached: Vec<_> = heard.difference(&reached).map(String::as_str).collect();
    assert_eq!(unreached, UNREACHED.iter().map(|(pair, _)| *pair).collect::<Vec<_>>(), "what can't be reached");
    assert!(reached.is_subset(&heard), "what the walk reaches is heard");
}
