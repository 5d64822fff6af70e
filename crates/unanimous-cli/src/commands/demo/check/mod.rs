//! `unanimous demo check`: compares the stores of a demo, beside a running demo too.
//!
//! What does not agree at the first look may be an order that is just being committed: the row is there before its receipt gets its
//! name. So what does not agree is looked at again, by its number, until it agrees, or nothing is in flight any more, or the time is
//! over. In flight is what a store has prepared: a manifest among the prepared ones, a prepared transaction of a PostgreSQL database. A part
//! of an order that is not there while another is, is always among them, so that a disagreement that is still there after nothing was
//! prepared, is one.
//!
//! A decision that is merely not noted as finished yet is not in doubt: what is in doubt is what a store has prepared and not ended.
//! What was to be notified is sent behind the commit, and waited for in the same way.
//!
//! Reads only. Must not use the library's manager or stores: it looks at what is there as another program would.

mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::desk::{DECISIONS, RECEIPTS, gone, has_log};
use super::order::Order;
use super::orders::sqlite::FILE as ORDERS;
use super::serve::shell_word;
use super::spawned::Spawned;
use super::stores::{Chosen, FILE as STORES, Stores as Reached};
use crate::failure::{FOUND, Failure};
use crate::operator;
use crate::output::{say, warn};
use rows::{Rows, RowsError};

/// How long what is in flight is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// Where a folder of files keeps its promises (docs/files-layout.md).
const PREPARED: &str = ".unanimous/prepared";
/// How many mismatches are told one by one.
const TOLD: usize = 20;

pub(crate) fn run(data: &Path, chosen: &Chosen) -> Result<ExitCode, Failure> {
    there(data, chosen)?;
    let (reached, spawned) = chosen.look(data)?;
    let checked = compared(data, &reached);
    // Also where the stores could not be compared: that is what is told then.
    let stopped = spawned.map_or(Ok(()), Spawned::stop);
    checked.and_then(|code| stopped.map(|()| code))
}

fn compared(data: &Path, reached: &Reached) -> Result<ExitCode, Failure> {
    let stores = Stores::open(data, reached)?;
    let mut comparison = stores.compare().map_err(|error| error.into_failure(data))?;
    stores.settle(&mut comparison, Instant::now() + PATIENCE).map_err(|error| error.into_failure(data))?;

    let invoiced = stores.rows.has_invoices();
    let mismatches: Vec<String> =
        comparison.pairs.iter().flat_map(|(id, parts)| parts.mismatches(*id, invoiced)).collect();
    told(mismatches.iter().cloned());
    told(comparison.in_doubt.iter().map(|what| format!("in doubt: {what}")));
    told(comparison.unsent.iter().map(|what| format!("not notified yet: {what}")));
    if !comparison.in_doubt.is_empty() || !comparison.unsent.is_empty() {
        warn("hint: start the demo on this folder; it finishes what is in doubt");
    }
    heuristics(data)?;
    let count = |is_there: fn(&Parts) -> bool| comparison.pairs.values().filter(|parts| is_there(parts)).count();
    let orders = count(|parts| parts.order.is_some());
    let receipts = count(|parts| parts.receipt.is_some());
    let (mismatched, in_doubt, unsent) = (mismatches.len(), comparison.in_doubt.len(), comparison.unsent.len());
    if invoiced {
        let invoices = count(|parts| parts.invoice.is_some());
        say(format!(
            "orders {orders}, invoices {invoices}, receipts {receipts}, mismatches {mismatched}, in doubt {in_doubt}, unsent {unsent}"
        ));
    } else {
        say(format!("orders {orders}, receipts {receipts}, mismatches {mismatched}, in doubt {in_doubt}"));
    }
    Ok(if mismatched + in_doubt + unsent == 0 { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
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

fn told(lines: impl ExactSizeIterator<Item = String>) {
    let more = lines.len().saturating_sub(TOLD);
    lines.take(TOLD).for_each(warn);
    if more > 0 {
        warn(format!("... and {more} more"));
    }
}

/// What was seen at the last look at each.
#[derive(Debug, Default)]
struct Comparison {
    pairs: BTreeMap<i64, Parts>,
    /// What was prepared at the first look and has been at each since.
    in_doubt: BTreeSet<String>,
    /// What was to be notified at the first look and has been at each since.
    unsent: BTreeSet<String>,
}

/// One order in all stores.
#[derive(Debug, Default)]
struct Parts {
    order: Option<Order>,
    invoice: Option<Order>,
    receipt: Option<Receipt>,
}

#[derive(Debug)]
enum Receipt {
    Whole(Box<Order>),
    /// Not what the demo writes; why.
    Broken(String),
}

impl Parts {
    fn mismatches(&self, id: i64, invoiced: bool) -> Vec<String> {
        let mut all = Vec::new();
        let Some(order) = &self.order else {
            all.extend(self.invoice.as_ref().map(|_| format!("mismatch: invoice {id} has no order")));
            all.extend(self.receipt.as_ref().map(|_| format!("mismatch: receipt {id} has no order")));
            return all;
        };
        let differs = |what: &str, other: &Order| {
            format!("mismatch: order {id} is not what its {what} says: {}", order.differences(what, other))
        };
        match &self.invoice {
            None if invoiced => all.push(format!("mismatch: order {id} has no invoice")),
            Some(invoice) if invoice != order => all.push(differs("invoice", invoice)),
            _ => {}
        }
        match &self.receipt {
            None => all.push(format!("mismatch: order {id} has no receipt")),
            Some(Receipt::Broken(why)) => all.push(format!("mismatch: receipt {id} can't be read: {why}")),
            Some(Receipt::Whole(receipt)) if **receipt != *order => all.push(differs("receipt", receipt)),
            Some(Receipt::Whole(_)) => {}
        }
        all
    }
}

/// A store could not be read.
#[derive(Debug)]
enum ReadError {
    Rows(RowsError),
    Receipts(PathBuf, io::Error),
}

impl From<RowsError> for ReadError {
    fn from(error: RowsError) -> Self {
        Self::Rows(error)
    }
}

impl ReadError {
    fn into_failure(self, data: &Path) -> Failure {
        match self {
            ReadError::Rows(error @ RowsError::Postgres(..)) => Failure::new("can't read the orders").because(&error),
            ReadError::Rows(error) => Failure::new(format!("can't read the orders in {}", data.join(ORDERS).display()))
                .because(&error)
                .hint("if the demo was never ready on this folder, start it once"),
            ReadError::Receipts(path, error) => Failure::new(format!("can't read {}", path.display())).because(&error),
        }
    }
}

/// Whether a first start may have left this: nothing, or something that it makes.
fn is_begun(data: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(data) else { return false };
    let own = [DECISIONS, ORDERS, RECEIPTS, STORES];
    entries.next().is_none() || own.iter().any(|name| data.join(name).exists())
}

/// Whether a demo has ever been ready on this folder, and what it had is still there.
fn there(data: &Path, chosen: &Chosen) -> Result<(), Failure> {
    let hint = "give the folder that the demo was started with: --data DIR";
    if !data.is_dir() {
        return Err(Failure::new(format!("there is no data folder {}", data.display())).hint(hint));
    }
    chosen.must_fit(data)?;
    let orders_there = *chosen != Chosen::Sqlite || data.join(ORDERS).is_file();
    let receipts_there = data.join(RECEIPTS).join(PREPARED).is_dir();
    let missing = [(ORDERS, orders_there), (RECEIPTS, receipts_there)].into_iter().find(|(_, there)| !there);
    let Some((store, _)) = missing else { return Ok(()) };
    Err(if has_log(data) {
        gone(data, store)
    } else if is_begun(data) {
        let words: String = chosen.words().iter().map(|word| format!(" {}", shell_word(word))).collect();
        Failure::new(format!("the demo was never ready on this folder, {}; start it once", data.display()))
            .hint(format!("unanimous demo --data {}{words}", data.display()))
    } else {
        Failure::new(format!("{} is not the data folder of a demo: it has no {store}", data.display())).hint(hint)
    })
}

struct Stores {
    rows: Rows,
    receipts: PathBuf,
    prepared: PathBuf,
}

impl Stores {
    fn open(data: &Path, reached: &Reached) -> Result<Self, Failure> {
        let rows = match reached {
            Reached::Sqlite => Rows::sqlite(data).map_err(|error| ReadError::Rows(error).into_failure(data))?,
            Reached::Postgres(urls) => Rows::postgres(urls)?,
        };
        let receipts = data.join(RECEIPTS);
        Ok(Self { rows, prepared: receipts.join(PREPARED), receipts })
    }

    /// The first look, at everything.
    fn compare(&self) -> Result<Comparison, ReadError> {
        let mut comparison =
            Comparison { in_doubt: self.prepared()?, unsent: self.rows.unsent()?, ..Comparison::default() };
        let pairs = &mut comparison.pairs;
        for id in self.receipt_ids()? {
            pairs.entry(id).or_default().receipt = self.receipt(id)?;
        }
        for order in self.rows.orders()? {
            let id = order.id;
            pairs.entry(id).or_default().order = Some(order);
        }
        for invoice in self.rows.invoices()? {
            let id = invoice.id;
            pairs.entry(id).or_default().invoice = Some(invoice);
        }
        Ok(comparison)
    }

    /// Looks again at what does not agree, is in doubt or unsent, until that is settled.
    fn settle(&self, comparison: &mut Comparison, deadline: Instant) -> Result<(), ReadError> {
        let invoiced = self.rows.has_invoices();
        loop {
            let (prepared, unsent) = (self.prepared()?, self.rows.unsent()?);
            comparison.in_doubt.retain(|what| prepared.contains(what));
            comparison.unsent.retain(|what| unsent.contains(what));
            // Read after what is prepared: what is committed and is not prepared any more has all of its parts.
            let mut suspects = false;
            let pairs = comparison.pairs.iter_mut();
            for (id, parts) in pairs.filter(|(id, parts)| !parts.mismatches(**id, invoiced).is_empty()) {
                let (order, invoice) = (self.rows.order(*id)?, self.rows.invoice(*id)?);
                *parts = Parts { order, invoice, receipt: self.receipt(*id)? };
                suspects |= !parts.mismatches(*id, invoiced).is_empty();
            }
            let unsettled = suspects || !comparison.in_doubt.is_empty();
            let in_flight = (!prepared.is_empty() && unsettled) || !comparison.unsent.is_empty();
            if !in_flight || Instant::now() >= deadline {
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
    }

    /// The branches that are prepared, or decided and not ended, in words.
    fn prepared(&self) -> Result<BTreeSet<String>, ReadError> {
        let failed = |error| ReadError::Receipts(self.prepared.clone(), error);
        let mut prepared = self.rows.prepared()?;
        for entry in fs::read_dir(&self.prepared).map_err(failed)? {
            prepared.insert(entry.map_err(failed)?.path().display().to_string());
        }
        Ok(prepared)
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
