//! What those who walk through all states of a [`Protocol`] must see of it: which branches are alike, and in which state it is.
//!
//! Must not change anything.

use std::hash::{Hash, Hasher};

use super::{Path, Protocol, Stage, State};

/// For the proof only; not part of what is promised.
#[doc(hidden)]
impl Protocol {
    /// Hashes what is known of one branch, without its number: branches with equal hashes are interchangeable.
    pub fn hash_branch(&self, branch: usize, state: &mut impl Hasher) {
        self.members[branch].hash(state);
        let last =
            matches!(self.path, Some(Path::OnePhase(i) | Path::Carrier(i) | Path::LastResource(i)) if i == branch);
        last.hash(state);
    }

    /// Hashes all but the branches. Causes are left out: they are told, and nothing is decided by them.
    pub fn hash_rest(&self, state: &mut impl Hasher) {
        std::mem::discriminant(&self.stage).hash(state);
        self.path.map(|path| std::mem::discriminant(&path)).hash(state);
        (self.ask_single, self.early, self.refused, self.live, self.answered, self.waited).hash(state);
    }

    /// The stage, by name.
    pub fn stage_name(&self) -> &'static str {
        match self.stage {
            Stage::Active => "Active",
            Stage::Flushing => "Flushing",
            Stage::Voting => "Voting",
            Stage::LastCommit => "LastCommit",
            Stage::Asking => "Asking",
            Stage::Deciding => "Deciding",
            Stage::RecordingAbort(_) => "RecordingAbort",
            Stage::PhaseTwo => "PhaseTwo",
            Stage::Aborting(_) => "Aborting",
            Stage::Left => "Left",
            Stage::Held => "Held",
            Stage::Over => "Over",
        }
    }

    /// A branch's state, by name, and whether recovery has it as well.
    pub fn state_name(&self, branch: usize) -> (&'static str, bool) {
        let member = &self.members[branch];
        let name = match member.state {
            State::Joined => "Joined",
            State::Flushing => "Flushing",
            State::Flushed => "Flushed",
            State::EndingOnePhase => "EndingOnePhase",
            State::Preparing => "Preparing",
            State::Prepared => "Prepared",
            State::Committing => "Committing",
            State::RollingBack { prepared: false } => "RollingBack",
            State::RollingBack { prepared: true } => "RollingBackPrepared",
            State::Ended(_) => "Ended",
        };
        (name, member.handed_over)
    }

    /// Whether the caller has waited long enough.
    pub fn has_waited(&self) -> bool {
        self.waited
    }
}
