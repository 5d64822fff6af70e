//! The walk through all states: what a model must offer, the set of states that were seen, and the way to a violation.
//!
//! Must not know what is modelled.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::{Debug, Write as _};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use twox_hash::XxHash3_128;

use crate::Violation;

/// What happens in a step, and to which of those that are alike.
pub type What = (&'static str, usize);

/// One way on: what happens, and the state that follows.
pub type Step<M> = (What, Result<M, Violation>);

/// A world whose states are walked through.
pub trait Model: Clone + Debug {
    /// Writes all that decides how it goes on. Two states with the same code are one, also where they differ in which of two alike things
    /// is which.
    fn encode(&self, code: &mut Code);

    /// Every state that can follow. One that is the same state again may be left out.
    fn next(&self, out: &mut Vec<Step<Self>>);

    /// What must hold in every state.
    ///
    /// # Errors
    ///
    /// What was violated.
    fn check(&self) -> Result<(), Violation>;

    /// What must hold where nothing goes wrong any more: called in each state.
    ///
    /// # Errors
    ///
    /// What was violated.
    fn settle(&self) -> Result<(), Violation>;
}

/// A state as bytes.
#[derive(Debug, Default)]
pub struct Code {
    bytes: Vec<u8>,
    sorted: Vec<u8>,
}

impl Code {
    /// The most parts that can be alike.
    pub const MOST: usize = 4;

    /// Writes a part.
    pub fn put(&mut self, part: impl Hash) {
        part.hash(self);
    }

    /// Writes parts whose order makes no difference: at most [`MOST`](Self::MOST).
    pub fn put_alike(&mut self, count: usize, mut put: impl FnMut(usize, &mut Code)) {
        let begin = self.bytes.len();
        let mut parts = [(0, 0); Self::MOST];
        for (i, part) in parts[..count].iter_mut().enumerate() {
            let from = self.bytes.len();
            put(i, self);
            *part = (from, self.bytes.len());
        }
        let Self { bytes, sorted } = self;
        let bytes_of = |(from, to): (usize, usize)| &bytes[from..to];
        parts[..count].sort_unstable_by(|&one, &other| bytes_of(one).cmp(bytes_of(other)));
        sorted.clear();
        for &part in &parts[..count] {
            sorted.push(u8::try_from(part.1 - part.0).expect("a part has few fields"));
            sorted.extend_from_slice(bytes_of(part));
        }
        bytes.truncate(begin);
        bytes.extend_from_slice(sorted);
    }

    fn hash_and_clear(&mut self) -> u128 {
        let hash = XxHash3_128::oneshot(&self.bytes);
        self.bytes.clear();
        hash
    }
}

/// Collects what a derived `Hash` writes: discriminants, flags and small numbers, all below 256.
impl Hasher for Code {
    fn finish(&self) -> u64 {
        unreachable!("a code is not hashed by parts")
    }

    fn write(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn write_usize(&mut self, number: usize) {
        self.bytes.push(u8::try_from(number).expect("numbers of branches are small"));
    }

    fn write_isize(&mut self, number: isize) {
        self.bytes.push(u8::try_from(number).expect("enums have few variants"));
    }
}

/// The set's keys are hashes already.
#[derive(Debug, Default)]
struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys are numbers of 128 bits")
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

type Seen = HashSet<u128, BuildHasherDefault<Taken>>;

/// What a walk has found.
#[derive(Clone, Debug, Default)]
pub struct Walked {
    /// How many different states there were.
    pub states: u64,
    /// Each kind of violation once, with a way that leads to it.
    pub violations: Vec<(Violation, String)>,
}

/// Walks through every state that can follow.
///
/// Two states are told apart by 128 bits of their hash: of 10^8 states any two are taken for one with a probability of 10^-23.
pub fn walk<M: Model>(start: &M) -> Walked {
    walk_visiting(start, &mut |_| {})
}

/// The same, and shows every state once.
pub fn walk_visiting<M: Model>(start: &M, visit: &mut dyn FnMut(&M)) -> Walked {
    let mut found = Vec::new();
    let states = go(start, visit, &mut |violation| {
        if !found.contains(&violation) {
            found.push(violation);
        }
        true
    });
    let violations = found.into_iter().map(|violation| {
        let way = shortest(start, &violation).unwrap_or_else(|| "a way that is too long to be shown".to_owned());
        (violation, way)
    });
    Walked { states, violations: violations.collect() }
}

/// Walks until this is violated; where it is not, tells what was, each once.
///
/// # Errors
///
/// The other violations.
pub fn reaches<M: Model>(start: &M, wanted: &Violation) -> Result<(), Vec<Violation>> {
    let mut others = Vec::new();
    let mut reached = false;
    go(start, &mut |_| {}, &mut |violation| {
        reached = violation == *wanted;
        if !reached && !others.contains(&violation) {
            others.push(violation);
        }
        !reached
    });
    if reached { Ok(()) } else { Err(others) }
}

/// Goes through every state, as long as whoever hears of a violation wants more; gives how many there were.
fn go<M: Model>(start: &M, visit: &mut dyn FnMut(&M), hear: &mut dyn FnMut(Violation) -> bool) -> u64 {
    let mut code = Code::default();
    let mut key = |state: &M| {
        state.encode(&mut code);
        code.hash_and_clear()
    };
    let mut seen = Seen::default();
    let mut stack = vec![start.clone()];
    let mut next = Vec::new();
    seen.insert(key(start));
    while let Some(state) = stack.pop() {
        visit(&state);
        if let Err(violation) = state.check().and_then(|()| state.settle()) {
            if !hear(violation) {
                break;
            }
            continue;
        }
        state.next(&mut next);
        for (_, following) in next.drain(..) {
            match following {
                Err(violation) => {
                    if !hear(violation) {
                        return seen.len() as u64;
                    }
                }
                Ok(following) => {
                    if seen.insert(key(&following)) {
                        stack.push(following);
                    }
                }
            }
        }
    }
    seen.len() as u64
}

/// How many states are looked at for the shortest way: its memory is far more than the walk's.
const LOOKED_AT: usize = 2_000_000;

/// A shortest way to a violation, for people.
fn shortest<M: Model>(start: &M, wanted: &Violation) -> Option<String> {
    let mut code = Code::default();
    let mut key = |state: &M| {
        state.encode(&mut code);
        code.hash_and_clear()
    };
    let first = key(start);
    let mut came: HashMap<u128, (u128, What)> = HashMap::from([(first, (first, ("", 0)))]);
    let mut queue = VecDeque::from([(first, start.clone())]);
    let mut next = Vec::new();
    while let Some((at, state)) = queue.pop_front() {
        let told = |came: &HashMap<u128, (u128, What)>, last: Option<What>, state: &M| {
            let mut way = Vec::from_iter(last);
            let mut place = at;
            while place != first {
                let (before, what) = came[&place];
                way.push(what);
                place = before;
            }
            let mut text = String::new();
            for (what, i) in way.iter().rev() {
                let _ = write!(text, "{what} {i}; ");
            }
            let _ = write!(text, "after which: {state:?}");
            text
        };
        if state.check().and_then(|()| state.settle()).is_err_and(|violation| violation == *wanted) {
            return Some(told(&came, None, &state));
        }
        state.next(&mut next);
        for (what, following) in next.drain(..) {
            match following {
                Err(violation) if violation == *wanted => return Some(told(&came, Some(what), &state)),
                Err(_) => {}
                Ok(following) => {
                    let place = key(&following);
                    if came.len() < LOOKED_AT
                        && let std::collections::hash_map::Entry::Vacant(entry) = came.entry(place)
                    {
                        entry.insert((at, what));
                        queue.push_back((place, following));
                    }
                }
            }
        }
    }
    None
}
