//! How often each fault and each path was met, so that a level that tests nothing says so.
//!
//! Must not know how they come about.

macro_rules! paths {
    ($($name:ident = $text:literal,)*) => {
        /// Something that must happen in some seed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Path { $($name,)* }

        const NAMES: &[&str] = &[$($text,)*];
    };
}

paths! {
    Committed = "told: committed",
    Pending = "told: committed, branches pending",
    Aborted = "told: aborted",
    Unknown = "told: unknown",
    NotTold = "nobody was told of a commit",
    CommitDropped = "a commit's future was dropped",
    BodyDropped = "a client was dropped in its work",
    Doomed = "doomed",
    InUse = "committed with a guard in use",
    TimeLimit = "a time limit passed",
    Savepoint = "rolled back to a savepoint",
    Conflict = "a lock was not to be had",
    RefusedVote = "a store voted no",
    NotReady = "the log refused new work",
    ByLog = "decided by the log",
    Early = "committed with early acknowledgement",
    EarlyRecovered = "of those with early acknowledgement, one was committed by recovery",
    ListedDurably = "recovery made certain of a list",
    LostUnconfirmed = "a store lost a branch that it had listed and no replica had confirmed",
    ByCarrier = "decided by a carrier's row",
    InOnePhase = "committed in one phase",
    ByLastResource = "a one-phase store decided beside others",
    WithVolatile = "a volatile branch took part",
    ReadOnly = "a branch only read",
    LostQuestion = "a question was lost",
    LostAnswer = "an answer was lost",
    Twice = "a message was executed twice",
    Late = "a message was executed after its connection was thought dead",
    LatePrepare = "a prepare landed late",
    LateCarrier = "a carrier's late commit met its fence",
    Fenced = "a session was ended to fence its vote",
    Fence = "an abort row was written as a fence",
    StoreCrash = "a store crashed",
    StoreDownAtStart = "a store was down at a start",
    StoreRestored = "a store was restored from a backup",
    CameBack = "a finished branch came back as prepared",
    Kill = "a process was killed",
    PowerCut = "the power was cut",
    DiedAtDisk = "a process died at an operation of its disk",
    DiedAtMessage = "a process died where it sent or heard something",
    DiedInBoot = "a process died in its start",
    RuntimeEnded = "a runtime ended in its process",
    Shutdown = "a shutdown in order",
    Undrained = "a shutdown whose deadline passed",
    FailedSync = "a sync of the log failed",
    FailedWrite = "a write to the log failed",
    FailedName = "a change of names of the log failed",
    DiskFull = "the log's disk was full",
    Poisoned = "a log was poisoned",
    Rotated = "a log began another segment",
    LogRestored = "a log was restored from a backup",
    OperatorCommit = "an operator committed a branch",
    OperatorRollback = "an operator rolled a branch back",
    Heuristic = "a heuristic was reported",
    RecoveredCommit = "recovery committed a branch",
    RecoveredRollback = "recovery rolled a branch back",
    OtherOwner = "a branch of the other coordinator was left alone",
    Held = "a branch was held to the end, and reported",
    LookupAgain = "a decision was looked up again",
    Panicked = "an adapter panicked",
    Hook = "a hook ran before a commit",
    FailedHook = "a hook failed",
    DiedWhenTold = "a process died when its client was told",
    GroupCommit = "one sync covered several decisions",
}

/// Counts.
#[derive(Clone)]
pub(super) struct Coverage(Vec<u64>);

impl Default for Coverage {
    fn default() -> Self {
        Self(vec![0; NAMES.len()])
    }
}

impl Coverage {
    pub(super) fn saw(&mut self, path: Path) {
        self.0[path as usize] += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }

    /// Each with its count.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.iter().copied().zip(self.0.iter().copied())
    }
}
