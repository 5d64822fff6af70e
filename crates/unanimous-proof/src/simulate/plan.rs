//! What a seed stands for: who takes part, how long things take, and what goes wrong how often.
//!
//! Most seeds have few kinds of faults, so that what they break is not hidden behind other faults; some have all.
//!
//! Must not know how a fault is made.

use std::time::Duration;

use unanimous::Capability;
use unanimous_testing::rng::Rng;

/// How often something happens, of a thousand times.
pub(super) type PerMille = u64;

pub(super) struct Plan {
    pub(super) processes: usize,
    pub(super) stores: Vec<StorePlan>,
    pub(super) clients: u64,
    /// How long there are faults.
    pub(super) chaos: Duration,
    pub(super) log_size: u64,
    pub(super) horizon: Duration,
    pub(super) phase_two_wait: Duration,
    pub(super) store_wait: Duration,
    pub(super) recovery_interval: Duration,
    pub(super) time_limit: Option<Duration>,
    /// The longest that a message takes, in microseconds.
    pub(super) delay: u64,
    pub(super) net: Net,
    /// A process dies where it writes to its disk, or sends something.
    pub(super) die: PerMille,
    pub(super) disk: DiskFaults,
    /// How often each happens within the chaos.
    pub(super) kills: u64,
    pub(super) shutdowns: u64,
    pub(super) ended_runtimes: u64,
    pub(super) store_crashes: u64,
    pub(super) store_restores: u64,
    pub(super) log_restores: bool,
    pub(super) operators: u64,
    pub(super) stall: u64,
    /// A job is seen half done.
    pub(super) threaded: PerMille,
    /// The longest that an operation of a disk takes, in microseconds.
    pub(super) disk_time: u64,
    /// A client is dropped.
    pub(super) cut: PerMille,
    /// Where a store is down at the start.
    pub(super) down_at_start: bool,
    /// How many transactions a client has at most.
    pub(super) transactions: u64,
    /// The longest pause between two transactions of a client, in microseconds.
    pub(super) think: u64,
    /// Bytes of notes, so that the log fills.
    pub(super) note: usize,
    pub(super) refuse: PerMille,
    /// An adapter panics, in any of its calls.
    pub(super) panic: PerMille,
}

pub(super) struct StorePlan {
    pub(super) name: &'static str,
    pub(super) capability: Capability,
    /// Whether its adapter ends the session of a lost vote before it rolls back.
    pub(super) fences: bool,
    /// Whether its commit in one phase is a prepare and a commit.
    pub(super) two_steps: bool,
}

/// Of messages.
#[derive(Default)]
pub(super) struct Net {
    pub(super) lost_question: PerMille,
    pub(super) lost_answer: PerMille,
    pub(super) twice: PerMille,
    pub(super) late: PerMille,
    /// The longest that a late one takes, in milliseconds.
    pub(super) lateness: u64,
}

#[derive(Default)]
pub(super) struct DiskFaults {
    pub(super) sync: PerMille,
    pub(super) write: PerMille,
    pub(super) names: PerMille,
    /// How often the disk is full for a while.
    pub(super) full: u64,
}

/// A number that is 0 in some seeds, and up to `most` in others.
fn some(rng: &mut Rng, part: u64, most: u64) -> u64 {
    if rng.chance(part, 100) { rng.between(1, most) } else { 0 }
}

impl Plan {
    pub(super) fn new(rng: &mut Rng) -> Self {
        let all = rng.chance(1, 8);
        let part = |part| if all { 90 } else { part };
        let two_phase = rng.between(2, 3) as usize;
        let mut stores: Vec<StorePlan> = ["orders", "billing", "ledger"][..two_phase]
            .iter()
            .map(|name| StorePlan {
                name,
                capability: Capability::TwoPhase,
                fences: rng.chance(2, 3),
                two_steps: rng.chance(1, 3),
            })
            .collect();
        if rng.chance(1, 3) {
            stores.push(StorePlan { name: "carrier", capability: Capability::Carrier, fences: true, two_steps: false });
        }
        if rng.chance(1, 5) {
            stores.push(StorePlan { name: "mailer", capability: Capability::OnePhase, fences: true, two_steps: false });
        }
        let messy = rng.chance(part(60), 100);
        let net = if messy {
            Net {
                lost_question: some(rng, 60, 60),
                lost_answer: some(rng, 60, 60),
                twice: some(rng, 50, 100),
                late: some(rng, 50, 50),
                lateness: rng.between(200, 12_000),
            }
        } else {
            Net::default()
        };
        let disk = if rng.chance(part(25), 100) {
            DiskFaults {
                sync: some(rng, 60, 40),
                write: some(rng, 40, 30),
                names: some(rng, 30, 60),
                full: some(rng, 40, 2),
            }
        } else {
            DiskFaults::default()
        };
        let small = rng.chance(1, 3);
        // Many decisions at once on a slow disk.
        let busy = rng.chance(1, 10);
        Self {
            processes: if rng.chance(1, 2) { 2 } else { 1 },
            clients: if busy { 6 } else { rng.between(1, 3) },
            chaos: Duration::from_millis(rng.between(2_000, 15_000)),
            log_size: if small { 48 << 10 } else { 192 << 10 },
            horizon: if rng.chance(1, 3) {
                Duration::from_millis(rng.between(1_000, 6_000))
            } else {
                Duration::from_secs(3600)
            },
            phase_two_wait: Duration::from_millis(*rng.pick(&[50, 500, 3_000])),
            store_wait: Duration::from_millis(*rng.pick(&[500, 2_000, 8_000])),
            recovery_interval: Duration::from_millis(*rng.pick(&[2_000, 6_000, 20_000])),
            time_limit: rng.chance(1, 5).then(|| Duration::from_millis(rng.between(20, 800))),
            delay: *rng.pick(&[300, 2_000, 20_000]),
            net,
            die: some(rng, part(50), 12),
            disk,
            kills: some(rng, part(40), 3),
            shutdowns: some(rng, part(25), 2),
            ended_runtimes: some(rng, part(20), 2),
            store_crashes: some(rng, part(35), 4),
            store_restores: some(rng, part(12), 2),
            log_restores: rng.chance(part(15), 100),
            operators: some(rng, part(15), 4),
            stall: *rng.pick(&[0, 0, 50, 300]),
            threaded: if busy { 1000 } else { *rng.pick(&[50, 300]) },
            disk_time: if busy { 40_000 } else { 3_000 },
            cut: some(rng, 50, 300),
            down_at_start: rng.chance(part(15), 100),
            transactions: if rng.chance(1, 20) { 60 } else { rng.between(3, 14) },
            think: if busy { 5_000 } else { *rng.pick(&[20_000, 400_000, 2_000_000]) },
            note: if small { *rng.pick(&[0, 40, 500]) } else { 0 },
            refuse: some(rng, 50, 60),
            panic: some(rng, 20, 15),
            stores,
        }
    }
    /// Whether commits are acknowledged early. Not where its price would be paid: an operator's rollback and a restored store lose what was
    /// acknowledged. No draw of its own, so that other seeds stay what they are.
    pub(super) fn early(&self) -> bool {
        self.delay == 2_000 && self.operators == 0 && self.store_restores == 0 && !self.log_restores
    }

    /// Whether this store lists a branch before its replica has confirmed it, and loses it where it crashes in between. No draw of its own either.
    pub(super) fn replicates(&self, store: &StorePlan) -> bool {
        self.early() && store.capability == Capability::TwoPhase && !store.two_steps
    }

    /// Whether the log may refuse a decision after all have voted.
    pub(super) fn log_may_refuse(&self) -> bool {
        let DiskFaults { sync, write, names, full } = self.disk;
        self.log_size < 100_000 || self.shutdowns > 0 || sync + write + names + full > 0
    }
}
