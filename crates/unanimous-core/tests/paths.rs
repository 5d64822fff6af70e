//! The paths: which one is chosen, who takes part in the decision, and rule 10, for every pair of branches that wrote.

use unanimous_core::protocol::{Action, Answer, Cause, End, Event, Path, Protocol, Spec};
use unanimous_core::{Capability, FailureKind, Outcome, Work};

use Capability::{Carrier, OnePhase, TwoPhase, Volatile};

/// Flushes branches of these kinds; those after `|` have only read.
fn flushed(wrote: &[(Capability, bool)], read: &[Capability], ask_single: bool) -> (Protocol, Vec<Action>) {
    let kinds = wrote.iter().copied().chain(read.iter().map(|&capability| (capability, false)));
    let specs = kinds.map(|(capability, allowed)| Spec { capability, allowed });
    let mut protocol = Protocol::new(specs, ask_single);
    let mut actions = Vec::new();
    protocol.handle(Event::Commit, &mut actions).unwrap();
    actions.clear();
    for i in 0..wrote.len() + read.len() {
        let work = if i < wrote.len() { Work::Wrote } else { Work::ReadOnly };
        protocol.handle(Event::Flushed(i, Ok(work)), &mut actions).unwrap();
    }
    (protocol, actions)
}

fn told(actions: &[Action]) -> Vec<Answer> {
    actions.iter().filter_map(|action| if let Action::Answer(answer) = action { Some(*answer) } else { None }).collect()
}

#[test]
fn each_pair_has_its_path() {
    for (pair, path) in [
        ([(TwoPhase, false), (TwoPhase, false)], Path::Log),
        ([(TwoPhase, false), (Carrier, false)], Path::Carrier(1)),
        ([(TwoPhase, false), (OnePhase, true)], Path::LastResource(1)),
        ([(TwoPhase, false), (Volatile, true)], Path::Log),
        ([(Carrier, false), (Volatile, true)], Path::Carrier(0)),
        ([(OnePhase, true), (Volatile, true)], Path::LastResource(0)),
        ([(Volatile, true), (Volatile, true)], Path::Log),
    ] {
        let (protocol, actions) = flushed(&pair, &[Volatile], false);
        assert_eq!(protocol.path(), Some(path), "{pair:?}");
        let last = match path {
            Path::Carrier(i) | Path::LastResource(i) => Some(i),
            _ => None,
        };
        let prepare: Vec<usize> = (0..2).filter(|&i| Some(i) != last).collect();
        assert_eq!(protocol.participants().collect::<Vec<_>>(), prepare, "{pair:?}");
        let mut expected = vec![Action::EnterLive];
        expected.extend(prepare.into_iter().map(Action::Prepare));
        expected.push(Action::CommitOnePhase(2));
        assert_eq!(actions, expected, "{pair:?}");
    }
}

/// Rule 10: a second one that can't prepare, and who was not opted in, are refused, by name.
#[test]
fn less_than_atomic_is_refused() {
    for (pair, cause) in [
        ([(TwoPhase, true), (OnePhase, false)], Cause::NotAllowed(1)),
        ([(TwoPhase, true), (Volatile, false)], Cause::NotAllowed(1)),
        ([(Volatile, false), (Carrier, true)], Cause::NotAllowed(0)),
        ([(OnePhase, false), (OnePhase, true)], Cause::NotAllowed(0)),
        ([(Carrier, true), (Carrier, true)], Cause::TwoUnprepared(0, 1)),
        ([(Carrier, true), (OnePhase, true)], Cause::TwoUnprepared(0, 1)),
        ([(OnePhase, true), (OnePhase, true)], Cause::TwoUnprepared(0, 1)),
    ] {
        let (mut protocol, actions) = flushed(&pair, &[], false);
        assert!(protocol.is_aborting() && protocol.path().is_none(), "{pair:?}");
        assert_eq!(actions, [Action::StartWait, Action::Rollback(0), Action::Rollback(1)], "{pair:?}");
        let mut actions = Vec::new();
        for i in 0..2 {
            protocol.handle(Event::RolledBack(i, Ok(())), &mut actions).unwrap();
        }
        assert_eq!(told(&actions), [Answer::Aborted(cause)], "{pair:?}");
        assert!(protocol.is_over());
    }
}

/// Alone, or beside some that have only read, each commits in one phase; a carrier that shall be asked carries its own row.
#[test]
fn one_that_wrote_needs_no_decision() {
    for capability in [TwoPhase, Carrier, OnePhase, Volatile] {
        for ask_single in [false, true] {
            let (mut protocol, actions) = flushed(&[(capability, false)], &[TwoPhase, OnePhase], ask_single);
            let carries = ask_single && capability == Carrier;
            assert_eq!(protocol.path(), Some(if carries { Path::Carrier(0) } else { Path::OnePhase(0) }));
            assert_eq!(actions, [Action::EnterLive, Action::CommitOnePhase(1), Action::CommitOnePhase(2)]);
            let mut actions = Vec::new();
            protocol.handle(Event::OnePhase(1, Ok(())), &mut actions).unwrap();
            assert_eq!(actions, [], "the readers end first");
            protocol.handle(Event::OnePhase(2, Ok(())), &mut actions).unwrap();
            assert_eq!(actions, [if carries { Action::CommitCarrying(0) } else { Action::CommitOnePhase(0) }]);
            assert_eq!(protocol.participants().count(), 0);
        }
    }
}

/// What recovery and reports ask of a protocol on its way.
#[test]
fn what_is_said_of_it_on_the_way() {
    let (mut protocol, _) = flushed(&[(TwoPhase, true), (TwoPhase, true)], &[], false);
    let mut actions = Vec::new();
    let mut hear = |protocol: &mut Protocol, event| protocol.handle(event, &mut actions).unwrap();
    assert_eq!((protocol.outcome_if_dropped(), protocol.is_over()), (Outcome::Aborted, false));
    hear(&mut protocol, Event::Voted(0, Ok(())));
    hear(&mut protocol, Event::Voted(1, Ok(())));
    assert_eq!(protocol.outcome_if_dropped(), Outcome::Unknown);
    hear(&mut protocol, Event::Decided(unanimous_core::protocol::DecisionAnswer::Forced));
    assert_eq!((protocol.outcome_if_dropped(), protocol.end(0)), (Outcome::Committed, End::Pending));
    assert!(!protocol.is_recoverys());
    hear(&mut protocol, Event::Committed(0, Ok(())));
    assert_eq!((protocol.end(0), protocol.end(1)), (End::Committed, End::Pending));
    hear(&mut protocol, Event::WaitElapsed);
    assert!(protocol.is_recoverys() && !protocol.is_over() && !protocol.is_aborting() && !protocol.is_held());
    hear(&mut protocol, Event::Committed(1, Err(FailureKind::Refused)));
    assert!(protocol.is_over());
    assert_eq!(protocol.end(1), End::Pending);
    assert_eq!(told(&actions), [Answer::Committed { pending: 1 }]);
    assert!(!actions.contains(&Action::Forget), "recovery forgets it");
}

/// Early acknowledgement: two-phase branches that fit into an id only; the answer comes before the decision is forced, and the commits after it.
#[test]
fn early_the_answer_comes_before_the_decision() {
    use unanimous_core::protocol::DecisionAnswer::{Forced, Refused, Unknown};
    let early = |kinds: &[Capability], most| {
        let specs = kinds.iter().map(|&capability| Spec { capability, allowed: true });
        let mut protocol = Protocol::new(specs, false).acknowledging_early(most);
        let mut actions = Vec::new();
        protocol.handle(Event::Commit, &mut actions).unwrap();
        for i in 0..kinds.len() {
            protocol.handle(Event::Flushed(i, Ok(Work::Wrote)), &mut actions).unwrap();
        }
        protocol
    };
    for (kinds, most, path) in [
        (&[TwoPhase, TwoPhase, TwoPhase][..], 4, Path::Early),
        (&[TwoPhase, TwoPhase, TwoPhase], 2, Path::Log),
        (&[TwoPhase, Volatile], 4, Path::Log),
        (&[TwoPhase, Carrier], 4, Path::Carrier(1)),
        (&[TwoPhase], 4, Path::OnePhase(0)),
        (&[TwoPhase, TwoPhase], 0, Path::Log),
    ] {
        assert_eq!(early(kinds, most).path(), Some(path), "{kinds:?}");
    }
    let after = |protocol: &mut Protocol, event| {
        let mut actions = Vec::new();
        protocol.handle(event, &mut actions).unwrap();
        actions
    };
    let mut protocol = early(&[TwoPhase, TwoPhase], 2);
    assert_eq!(protocol.outcome_if_dropped(), Outcome::Unknown, "all may be prepared, or will be");
    assert_eq!(after(&mut protocol, Event::Voted(1, Ok(()))), []);
    let answered = Action::Answer(Answer::Committed { pending: 2 });
    assert_eq!(after(&mut protocol, Event::Voted(0, Ok(()))), [answered, Action::ForceDecision]);
    let mut refused = protocol.clone();
    assert_eq!(after(&mut protocol, Event::Decided(Forced)), [Action::Commit(0), Action::Commit(1), Action::StartWait]);
    // Acknowledged, and not recorded: recovery does it.
    let handed = [Action::LeaveLive, Action::HandOver(0), Action::HandOver(1)];
    assert_eq!(after(&mut refused, Event::Decided(Refused)), handed);
    assert!(refused.is_over() && !refused.is_held() && !refused.is_aborting());

    // A lost vote may be prepared: nothing is told, and nothing rolled back, before the abort is recorded.
    let mut protocol = early(&[TwoPhase, TwoPhase], 2);
    assert_eq!(after(&mut protocol, Event::Voted(0, Err(FailureKind::Lost))), [Action::ForceAbort]);
    assert!(protocol.is_given_up() && !protocol.is_aborting());
    assert_eq!(protocol.outcome_if_dropped(), Outcome::Unknown);
    assert_eq!(after(&mut protocol, Event::Voted(1, Ok(()))), []);
    let (mut refused, mut unknown) = (protocol.clone(), protocol.clone());
    let rolled_back = [Action::StartWait, Action::Rollback(0), Action::Rollback(1)];
    assert_eq!(after(&mut protocol, Event::Decided(Forced)), rolled_back);
    let told = Action::Answer(Answer::Unknown(Cause::Log));
    assert_eq!(after(&mut refused, Event::Decided(Refused)), [&handed[..], &[told]].concat());
    assert_eq!(after(&mut unknown, Event::Decided(Unknown)), [told]);
    assert!(refused.is_over() && !refused.is_held() && unknown.is_held());

    // A participant's definite no is enough, also where the log then takes nothing.
    let mut protocol = early(&[TwoPhase, TwoPhase], 2);
    let mut late = protocol.clone();
    let aborts = [Action::StartWait, Action::Rollback(1)];
    assert_eq!(after(&mut protocol, Event::Voted(1, Err(FailureKind::Refused))), aborts);
    assert_eq!(after(&mut late, Event::GiveUp), [Action::ForceAbort]);
    assert_eq!(after(&mut late, Event::Voted(1, Err(FailureKind::Conflict))), []);
    assert_eq!(after(&mut late, Event::Decided(Refused)), aborts);
    assert_eq!(after(&mut late, Event::Voted(0, Ok(()))), [Action::Rollback(0)]);
}

/// A last resource that committed leaves the others held where the log then refuses; so does one of which nobody knows.
#[test]
fn who_is_held_is_held() {
    for (answer, decided) in [(Ok(()), true), (Err(FailureKind::Lost), false)] {
        let (mut protocol, _) = flushed(&[(TwoPhase, true), (OnePhase, true)], &[], false);
        let mut actions = Vec::new();
        protocol.handle(Event::Voted(0, Ok(())), &mut actions).unwrap();
        protocol.handle(Event::OnePhase(1, answer), &mut actions).unwrap();
        if decided {
            let refused = unanimous_core::protocol::DecisionAnswer::Refused;
            protocol.handle(Event::Decided(refused), &mut actions).unwrap();
        }
        assert!(protocol.is_held() && protocol.is_over() && !protocol.is_recoverys());
        assert_eq!(protocol.outcome_if_dropped(), Outcome::Unknown);
        assert_eq!(protocol.end(1), if decided { End::Committed } else { End::Unknown });
        assert!(matches!(told(&actions)[..], [Answer::Unknown(_)]));
        assert!(!actions.contains(&Action::LeaveLive), "it stays in the live table");
    }
}
