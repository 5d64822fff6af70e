//! The groups `postgres` and `row`: commits over 1 to 8 databases beside two-phase commits that are written by hand.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::by_hand::ByHand;
use super::load::{Measured, Plan, Side, turns};
use super::ours::{Decides, Ours};
use super::place::Place;
use super::runtime;
use crate::row::{Row, Target};
use crate::{Error, Options};

/// How many databases take part, and how many clients work at once.
type Size = (usize, usize);

const CLIENTS: [usize; 3] = [1, 16, 64];

/// How many databases a transaction has that can be acknowledged early.
const EARLY: std::ops::RangeInclusive<usize> = 2..=4;

/// Those of a quick run: where targets are, and the ends of the series.
const QUICK: [Size; 4] = [(1, 1), (2, 1), (2, 16), (8, 1)];

/// Decided in the log.
pub(crate) fn postgres(options: &Options) -> Result<Vec<Row>, Error> {
    let sizes: Vec<Size> = match options.quick {
        true => QUICK.to_vec(),
        false => [1, 2, 4, 8].into_iter().flat_map(|databases| CLIENTS.map(|clients| (databases, clients))).collect(),
    };
    measure(options, Decides::Log, &sizes, log_rows)
}

/// Decided by a row in the first of the databases.
pub(crate) fn row(options: &Options) -> Result<Vec<Row>, Error> {
    let sizes: Vec<Size> = match options.quick {
        true => QUICK[1..3].to_vec(),
        false => [2, 4, 8].into_iter().flat_map(|databases| CLIENTS.map(|clients| (databases, clients))).collect(),
    };
    measure(options, Decides::Row, &sizes, row_rows)
}

fn plan(options: &Options, (databases, clients): Size) -> Plan {
    // Where something is promised the spread should be small.
    let (rounds, length) = match (databases, clients) {
        _ if options.quick => (5, 400),
        (2, 16) | (2, 1) | (8, 1) => (15, 1000),
        _ => (7, 700),
    };
    Plan { clients, rounds, length: Duration::from_millis(length) }
}

fn measure(
    options: &Options,
    decides: Decides,
    sizes: &[Size],
    rows: fn(Size, &[Measured]) -> Vec<Row>,
) -> Result<Vec<Row>, Error> {
    let most = |part: fn(&Size) -> usize| sizes.iter().map(part).max().unwrap_or_default();
    let (databases, clients) = (most(|size| size.0), most(|size| size.1));
    let place = Place::start(databases)?;
    let runtime = runtime()?;
    let by_hand = runtime.block_on(ByHand::open(place.urls(databases), clients))?;
    let mut all = Vec::new();
    for &size in sizes {
        let (databases, clients) = size;
        place.checkpoint()?;
        let measured = runtime.block_on(async {
            let ours = Ours::start(place.urls(databases), decides, clients).await?;
            let mut sides = vec![Side::new("ours", {
                let ours = ours.clone();
                move |_| {
                    let ours = ours.clone();
                    async move { ours.once().await }
                }
            })];
            sides.extend(yardsticks(decides, size, &by_hand));
            let early = if decides == Decides::Log && clients == 1 && EARLY.contains(&databases) {
                let early = Ours::start(place.urls(databases), Decides::Early, clients).await?;
                sides.extend(early_sides(&early));
                Some(early)
            } else {
                None
            };
            let measured = turns(plan(options, size), &sides).await?;
            drop(sides);
            ours.end().await?;
            if let Some(early) = early {
                early.end().await?;
            }
            Ok::<_, Error>(measured)
        })?;
        all.extend(rows(size, &measured));
    }
    Ok(all)
}

/// After ours, in the order in which the rows are made of them.
fn yardsticks(decides: Decides, (databases, clients): Size, by_hand: &Arc<ByHand>) -> Vec<Side> {
    let side = |name: &str, once: fn(Arc<ByHand>, usize, usize) -> Once| {
        let by_hand = by_hand.clone();
        Side::new(name, move |client| once(by_hand.clone(), client, databases))
    };
    let parallel = || {
        side("by hand, parallel", |hand, client, k| Box::pin(async move { hand.parallel(client, k).await.map(drop) }))
    };
    match (decides, databases) {
        (_, 1) => vec![side("by hand", |hand, client, _| Box::pin(async move { hand.one(client).await }))],
        (Decides::Log | Decides::Early, _) => {
            let mut sides = vec![
                parallel(),
                side("by hand, sequential", |hand, client, k| {
                    Box::pin(async move { hand.sequential(client, k).await })
                }),
            ];
            if clients == 1 {
                let by_hand = by_hand.clone();
                sides.push(Side::until_answered("by hand, parallel, until all have prepared", move |client| {
                    let by_hand = by_hand.clone();
                    async move { by_hand.parallel(client, databases).await }
                }));
            }
            sides
        }
        (Decides::Row, _) => vec![
            parallel(),
            side("by hand, decision row", |hand, client, k| Box::pin(async move { hand.row(client, k).await })),
        ],
    }
}

/// Answered before the decision is recorded: with the rest done before the next transaction begins, and beside it.
fn early_sides(early: &Arc<Ours>) -> [Side; 2] {
    let (to_its_end, at_once) = (early.clone(), early.clone());
    [
        Side::until_answered("ours, early", move |_| {
            let early = to_its_end.clone();
            async move { early.once_to_its_end().await }
        }),
        Side::new("ours, early, one after the other", move |_| {
            let early = at_once.clone();
            async move { early.once().await }
        }),
    ]
}

type Once = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

fn log_rows(size: Size, measured: &[Measured]) -> Vec<Row> {
    let (ours, by_hand) = (&measured[0], &measured[1]);
    let throughput = (size == (2, 16)).then_some(Target::RatioAtLeast(0.95));
    let p50 = (size == (8, 1)).then_some(Target::RatioAtMost(1.15));
    let mut rows = vec![
        named("postgres", size, "transactions", ours.per_second.beside(&by_hand.per_second, throughput)),
        named("postgres", size, "p50", ours.p50.beside(&by_hand.p50, p50)),
    ];
    if let Some(sequential) = measured.get(2) {
        let beside = ours.per_second.beside(&sequential.per_second, None);
        rows.push(named("postgres", size, "transactions, beside sequential ones", beside));
    }
    if let Some(prepared) = measured.get(3) {
        rows.push(named(
            "postgres",
            size,
            "p50, beside an answer when all have prepared",
            ours.p50.beside(&prepared.p50, None),
        ));
    }
    if let [_, _, _, prepared, early, at_once] = measured {
        let p50 = (size == (2, 1)).then_some(Target::RatioAtMost(1.25));
        rows.push(named("postgres", size, "p50, answered early", early.p50.beside(&prepared.p50, p50)));
        let p50 = at_once.p50.beside(&prepared.p50, None);
        rows.push(named("postgres", size, "p50, answered early, the next one at once", p50));
    }
    rows
}

fn row_rows(size: Size, measured: &[Measured]) -> Vec<Row> {
    let [ours, by_hand, bare] = measured else { return Vec::new() };
    let at = |place: Size, target| (size == place).then_some(target);
    vec![
        named(
            "row",
            size,
            "transactions",
            ours.per_second.beside(&by_hand.per_second, at((2, 16), Target::RatioAtLeast(1.15))),
        ),
        named(
            "row",
            size,
            "transactions, beside a bare row",
            ours.per_second.beside(&bare.per_second, at((2, 16), Target::RatioAtLeast(0.92))),
        ),
        named("row", size, "p50, beside a bare row", ours.p50.beside(&bare.p50, at((2, 1), Target::RatioAtMost(1.1)))),
    ]
}

/// Under a name that no other row has.
fn named(group: &str, (databases, clients): Size, what: &str, row: Row) -> Row {
    let databases = if databases == 1 { "1 database".to_owned() } else { format!("{databases} databases") };
    let clients = if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") };
    Row { name: format!("{group}, {databases}, {clients}: {what}"), ..row }
}
