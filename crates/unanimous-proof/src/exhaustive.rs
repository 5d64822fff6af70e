//! Every reachable state of the protocol, recovery's plan and the deciders. A case is a state.
//!
//! Must not know how states follow one another: the model does.

use unanimous_model::explore_all;

use crate::{Found, Options, say};

pub(crate) fn run(options: &Options) -> Result<Found, String> {
    let mut found = Found::default();
    let walks: &[(usize, u8, u8)] =
        if options.quick { &[(1, 2, 3), (2, 2, 2)] } else { &[(1, 2, 3), (2, 2, 2), (3, 1, 1)] };
    for &(count, crashes, losses) in walks {
        let seen = explore_all(count, crashes, losses);
        say(&format!("{count} branches, {crashes} crashes, {losses} lost answers: {} states", seen.states));
        found.cases += seen.states as u64;
        found.violations.extend(seen.violations.iter().map(|(violation, at)| format!("{violation:?}: {at}")));
    }
    Ok(found)
}
