//! `unanimous demo check`: compares the two stores of a demo's data folder, beside a running demo too.
//!
//! What does not agree at the first look may be an order that is just being committed: the row is there before its receipt gets its
//! name. So what does not agree is looked at again, by its number, until it agrees, or nothing is in flight any more, or the time is
//! over. In flight is what has a manifest among the prepared ones: a committed row without its receipt always has one, so that a
//! disagreement that is still there after no manifest was, is one.
//!
//! A decision that is merely not noted as finished yet is not in doubt: what is in doubt is what a store has prepared and not ended.
//!
//! Reads only. Must not use the library's manager or stores: it looks at what is there as another program would.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::desk::{COLUMNS, DECISIONS, ORDERS, RECEIPTS, gone, has_log, order_of};
use super::order::Order;
use crate::failure::{FOUND, Failure};
use crate::operator;
use crate::output::{say, warn};

/// How long what is in flight is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// Another program holds the database's lock for moments only.
const BUSY: Duration = Duration::from_secs(5);
/// Where a folder of files keeps its promises (docs/files-layout.md).
const PREPARED: &str = ".unanimous/prepared";
/// How many mismatches are told one by one.
const TOLD: usize = 20;

pub(crate) fn run(data: &Path) -> Result<ExitCode, Failure> {
    let stores = Stores::open(data)?;
    let mut comparison = stores.compare().map_err(|error| error.into_failure(data))?;
    stores.settle(&mut comparison, Instant::now() + PATIENCE).map_err(|error| error.into_failure(data))?;

    let mismatches: Vec<String> = comparison.pairs.iter().filter_map(|(id, pair)| pair.mismatch(*id)).collect();
    mismatches.iter().take(TOLD).for_each(warn);
    if mismatches.len() > TOLD {
        warn(format!("... and {} more", mismatches.len() - TOLD));
    }
    for name in &comparison.in_doubt {
        warn(format!("in doubt: {}", name.display()));
    }
    if !comparison.in_doubt.is_empty() {
        warn("hint: start the demo on this folder; it finishes what is in doubt");
    }
    heuristics(data)?;
    let orders = comparison.pairs.values().filter(|pair| pair.order.is_some()).count();
    let receipts = comparison.pairs.values().filter(|pair| pair.receipt.is_some()).count();
    let (mismatched, in_doubt) = (mismatches.len(), comparison.in_doubt.len());
    say(format!("orders {orders}, receipts {receipts}, mismatches {mismatched}, in doubt {in_doubt}"));
    Ok(if mismatched + in_doubt == 0 { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// What an operator did against a decision explains a mismatch, and is told also where there is none any more.
fn heuristics(data: &Path) -> Result<(), Failure> {
    let log = data.join(DECISIONS);
    let records = operator::read(&log)
        .map_err(|error| Failure::new(format!("can't read {}", log.join(operator::FILE).display())).because(&error))?;
    for recorded in records.acts.iter().filter(|recorded| recorded.begin.heuristic == Some(true)) {
        warn(format!("operator: {}", recorded.text()));
    }
    Ok(())
}

/// What was seen at the last look at each.
#[derive(Debug, Default)]
struct Comparison {
    pairs: BTreeMap<i64, Pair>,
    /// Manifests that were there at the first look and have been at each since.
    in_doubt: BTreeSet<PathBuf>,
}

/// One order in both stores.
#[derive(Debug, Default)]
struct Pair {
    order: Option<Order>,
    receipt: Option<Receipt>,
}

#[derive(Debug)]
enum Receipt {
    Whole(Box<Order>),
    /// Not what the demo writes; why.
    Broken(String),
}

impl Pair {
    fn mismatch(&self, id: i64) -> Option<String> {
        match (&self.order, &self.receipt) {
            (None, None) => None,
            (Some(_), None) => Some(format!("mismatch: order {id} has no receipt")),
            (None, Some(_)) => Some(format!("mismatch: receipt {id} has no order")),
            (Some(_), Some(Receipt::Broken(why))) => Some(format!("mismatch: receipt {id} can't be read: {why}")),
            (Some(order), Some(Receipt::Whole(receipt))) if *order == **receipt => None,
            (Some(order), Some(Receipt::Whole(receipt))) => {
                Some(format!("mismatch: order {id} is not what its receipt says: {}", order.differences(receipt)))
            }
        }
    }
}

/// A store could not be read.
#[derive(Debug)]
enum ReadError {
    Orders(rusqlite::Error),
    Receipts(PathBuf, io::Error),
}

impl ReadError {
    fn into_failure(self, data: &Path) -> Failure {
        match self {
            ReadError::Orders(error) => {
                Failure::new(format!("can't read the orders in {}", data.join(ORDERS).display()))
                    .because(&error)
                    .hint("if the demo was never ready on this folder, start it once")
            }
            ReadError::Receipts(path, error) => Failure::new(format!("can't read {}", path.display())).because(&error),
        }
    }
}

/// Whether a first start may have left this: nothing, or something that it makes.
fn is_begun(data: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(data) else { return false };
    let own = [DECISIONS, ORDERS, RECEIPTS];
    entries.next().is_none() || own.iter().any(|name| data.join(name).exists())
}

struct Stores {
    orders: Connection,
    receipts: PathBuf,
    prepared: PathBuf,
}

impl Stores {
    fn open(data: &Path) -> Result<Self, Failure> {
        let hint = "give the folder that the demo was started with: --data DIR";
        if !data.is_dir() {
            return Err(Failure::new(format!("there is no data folder {}", data.display())).hint(hint));
        }
        let (database, receipts) = (data.join(ORDERS), data.join(RECEIPTS));
        let prepared = receipts.join(PREPARED);
        let missing =
            [(ORDERS, database.is_file()), (RECEIPTS, prepared.is_dir())].into_iter().find(|(_, there)| !there);
        if let Some((store, _)) = missing {
            return Err(if has_log(data) {
                gone(data, store)
            } else if is_begun(data) {
                Failure::new(format!("the demo was never ready on this folder, {}; start it once", data.display()))
                    .hint(format!("unanimous demo --data {}", data.display()))
            } else {
                let message = format!("{} is not the data folder of a demo: it has no {store}", data.display());
                Failure::new(message).hint(hint)
            });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let orders = Connection::open_with_flags(&database, flags).and_then(|connection| {
            connection.busy_timeout(BUSY)?;
            Ok(connection)
        });
        let orders = orders.map_err(|error| ReadError::Orders(error).into_failure(data))?;
        Ok(Self { orders, prepared, receipts })
    }

    /// The first look, at everything.
    fn compare(&self) -> Result<Comparison, ReadError> {
        let mut comparison = Comparison { in_doubt: self.prepared()?, ..Comparison::default() };
        for id in self.receipt_ids()? {
            comparison.pairs.entry(id).or_default().receipt = self.receipt(id)?;
        }
        let mut select = self.orders.prepare(&format!("SELECT {COLUMNS} FROM orders")).map_err(ReadError::Orders)?;
        let orders = select.query_map([], order_of).map_err(ReadError::Orders)?;
        for order in orders {
            let order = order.map_err(ReadError::Orders)?;
            let pair: &mut Pair = comparison.pairs.entry(order.id).or_default();
            pair.order = Some(order);
        }
        Ok(comparison)
    }

    /// Looks again at what does not agree, or is in doubt, until that is settled.
    fn settle(&self, comparison: &mut Comparison, deadline: Instant) -> Result<(), ReadError> {
        loop {
            let prepared = self.prepared()?;
            comparison.in_doubt.retain(|manifest| prepared.contains(manifest));
            // Read after the manifests: what is committed and has none any more has both of its parts.
            let mut suspects = false;
            for (id, pair) in comparison.pairs.iter_mut().filter(|(id, pair)| pair.mismatch(**id).is_some()) {
                *pair = Pair { order: self.order(*id)?, receipt: self.receipt(*id)? };
                suspects |= pair.mismatch(*id).is_some();
            }
            let in_flight = !prepared.is_empty() && (suspects || !comparison.in_doubt.is_empty());
            if !in_flight || Instant::now() >= deadline {
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
    }

    /// The manifests of branches that are prepared, or decided and not ended.
    fn prepared(&self) -> Result<BTreeSet<PathBuf>, ReadError> {
        let failed = |error| ReadError::Receipts(self.prepared.clone(), error);
        let entries = fs::read_dir(&self.prepared).map_err(failed)?;
        entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
    }

    fn receipt_ids(&self) -> Result<Vec<i64>, ReadError> {
        let failed = |error| ReadError::Receipts(self.receipts.clone(), error);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.receipts).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".json"));
            // Only the name that the demo itself gives: not 007.json.
            let id = stem.and_then(|stem| stem.parse::<i64>().ok().filter(|id| id.to_string() == stem));
            ids.extend(id);
        }
        Ok(ids)
    }

    fn order(&self, id: i64) -> Result<Option<Order>, ReadError> {
        let select = format!("SELECT {COLUMNS} FROM orders WHERE id = ?1");
        self.orders.query_row(&select, [id], order_of).optional().map_err(ReadError::Orders)
    }

    fn receipt(&self, id: i64) -> Result<Option<Receipt>, ReadError> {
        let path = self.receipts.join(format!("{id}.json"));
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(match serde_json::from_slice(&bytes) {
                Ok(order) => Receipt::Whole(Box::new(order)),
                Err(error) => Receipt::Broken(error.to_string()),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ReadError::Receipts(path, error)),
        }
    }
}
