//! The early path: the caller is answered when all participants are prepared, and the decision is forced after that
//! (`docs/protocol.md`, "Early acknowledgement").
//!
//! That all of them are prepared is a commitment then, so that an abort needs a record, unless a participant has refused for good.
//!
//! Must not know what the ids list, nor what recovery concludes.

use super::{Action, Answer, Cause, DecisionAnswer, Event, Path, Protocol, Stage};
use crate::branch::Capability;

impl Protocol {
    /// Where several wrote, all of them two-phase and at most `most`, the caller is answered once all have prepared, and the decision is
    /// forced after that ([`Path::Early`]). Their ids must list all [participants](Self::participants), and the log record aborts.
    #[must_use]
    pub fn acknowledging_early(self, most: usize) -> Self {
        Self { early: most, ..self }
    }

    /// Whether this event brings "committed" before the decision is recorded. Who drives it keeps the log from being given up meanwhile, or says
    /// [`Event::Disowned`] instead: the log's next owner concludes abort of what is not all prepared by then.
    pub fn is_acknowledged_by(&self, event: Event) -> bool {
        matches!(event, Event::Voted(_, Ok(())) | Event::OnePhase(_, Ok(())))
            && self.stage == Stage::Voting
            && self.path == Some(Path::Early)
            && self.members.iter().filter(|member| member.state.is_out()).count() == 1
    }

    /// Whether nothing is recorded of what may be found all prepared: where nobody drives it any more, recovery concludes what becomes of it, also
    /// where no store lists a branch of it.
    pub fn is_unrecorded(&self) -> bool {
        self.path == Some(Path::Early)
            && matches!(self.stage, Stage::Voting | Stage::RecordingAbort(_) | Stage::Deciding | Stage::Left)
    }

    /// Whether its caller may have its answer, and something is still to be done that nobody else was told of.
    pub fn is_unfinished_early(&self) -> bool {
        self.path == Some(Path::Early) && (self.is_unrecorded() || !self.is_over())
    }

    /// Every participant can be listed and finished by others, and a list of them fits their ids.
    pub(super) fn may_be_early(&self, wrote: &[usize]) -> bool {
        wrote.len() <= self.early && wrote.iter().all(|&i| self.members[i].spec.capability == Capability::TwoPhase)
    }

    /// Aborts it; on the early path not before its record is durable, unless a participant can never be prepared: else all of them
    /// may be found prepared after a crash, which is a commitment.
    pub(super) fn give_up(&mut self, cause: Cause, out: &mut Vec<Action>) {
        if self.path == Some(Path::Early) && !self.refused {
            self.stage = Stage::RecordingAbort(cause);
            out.push(Action::ForceAbort);
        } else {
            self.abort(cause, out);
        }
    }

    pub(super) fn abort_recorded(&mut self, cause: Cause, answer: DecisionAnswer, out: &mut Vec<Action>) {
        match answer {
            DecisionAnswer::Forced => self.abort(cause, out),
            _ if self.refused => self.abort(cause, out),
            DecisionAnswer::Refused => self.leave(out),
            DecisionAnswer::Unknown => self.hold(Cause::Log, out),
        }
    }

    /// Without a record only recovery may conclude anything.
    pub(super) fn leave(&mut self, out: &mut Vec<Action>) {
        self.stage = Stage::Left;
        self.hand_over(out);
        self.answer(Answer::Unknown(Cause::Log), out);
    }
}
