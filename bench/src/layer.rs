//! What the HTTP layer costs in process, beside the service that it is around.

use http::Request;
use unanimous_bench::{Inner, request, request_with_extensions};

use crate::cost::{Work, allocations, nanoseconds};
use crate::row::{Row, Target};
use crate::{Error, Options};

/// What was hoped for of a request that joins nothing, over the bare service.
const NANOSECONDS: Target = Target::AtMost(400.0);
const ALLOCATIONS: Target = Target::AtMost(2.0);

pub(crate) fn run(options: &Options) -> Result<Vec<Row>, Error> {
    let inner = Inner::new();
    let mut rows = joins_nothing(options, &inner, "a request", request)?;
    rows.extend(joins_nothing(options, &inner, "a request which has extensions already", request_with_extensions)?);
    rows.extend(joins_two(options, &inner)?);
    Ok(rows)
}

fn joins_nothing(
    options: &Options,
    inner: &Inner,
    what: &str,
    request: fn() -> Request<()>,
) -> Result<Vec<Row>, Error> {
    let (mut bare, mut layered) = (inner.bare(), inner.layered());
    let mut bare = |turns| inner.requests(turns, request, &mut bare);
    let mut layered = |turns| inner.requests(turns, request, &mut layered);
    let names = [format!("{what}, the bare service"), format!("{what}, in the layer, joins nothing")];
    let over = format!("{what}, joins nothing: what the layer adds");

    let counts = [allocations("bare", &mut bare), allocations("layered", &mut layered)];
    let sides: [(&str, Work<'_>); 2] = [(&names[0], &mut bare), (&names[1], &mut layered)];
    let [bare, layered] = nanoseconds(options.rounds(1_000), sides)?;
    Ok(vec![
        bare.row(),
        layered.beside(&bare, None),
        layered.less(&bare, over.as_str()).row().target(NANOSECONDS),
        counts[1].less(&counts[0], format!("{over}: allocations")).row().target(ALLOCATIONS),
    ])
}

fn joins_two(options: &Options, inner: &Inner) -> Result<Vec<Row>, Error> {
    const LAYERED: &str = "a request, in the layer, joins two memory branches";
    const BY_HAND: &str = "a request, the bare service, the same two by begin and commit";
    let (mut layered, mut by_hand) = (inner.layered_with_two(), inner.two_by_hand());
    let mut layered = |turns| inner.requests(turns, request, &mut layered);
    let mut by_hand = |turns| inner.requests(turns, request, &mut by_hand);
    let counts = [
        allocations(&format!("{LAYERED}: allocations"), &mut layered),
        allocations(&format!("{BY_HAND}: allocations"), &mut by_hand),
    ];
    let sides: [(&str, Work<'_>); 2] = [(LAYERED, &mut layered), (BY_HAND, &mut by_hand)];
    let [layered, by_hand] = nanoseconds(options.rounds(500), sides)?;
    Ok(vec![layered.beside(&by_hand, None), by_hand.row(), counts[0].beside(&counts[1], None), counts[1].row()])
}
