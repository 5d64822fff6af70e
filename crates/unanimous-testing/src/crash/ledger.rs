//! What was answered, held against what is stored.
//!
//! Must not know processes or sockets.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Summary;
use super::load::{Fate, Posted};

/// What one store says of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    customer: String,
    item: String,
    quantity: u64,
    transaction: String,
}

/// What the two stores hold, by id.
#[derive(Debug, Default)]
pub(super) struct Stored {
    orders: BTreeMap<u64, Row>,
    receipts: BTreeMap<u64, Row>,
    violations: Vec<String>,
}

impl Stored {
    /// The numbers of the orders.
    #[cfg(feature = "postgres")]
    pub(super) fn ids(&self) -> std::collections::BTreeSet<u64> {
        self.orders.keys().copied().collect()
    }

    /// The array that `GET /orders` gives, newest first.
    pub(super) fn add_orders(&mut self, orders: &Value) -> Result<(), String> {
        let mut before = u64::MAX;
        for order in orders.as_array().ok_or("GET /orders did not give an array")? {
            let (id, row) = row(order)?;
            if id >= before {
                self.violations.push(format!("GET /orders is not newest first: {id} comes after {before}"));
            }
            before = id;
            self.orders.insert(id, row);
        }
        Ok(())
    }

    /// A receipt's file.
    pub(super) fn add_receipt(&mut self, id: u64, text: &str) -> Result<(), String> {
        match serde_json::from_str(text).map_err(|error| error.to_string()).and_then(|json: Value| row(&json)) {
            Ok((inner, row)) if inner == id => drop(self.receipts.insert(id, row)),
            Ok((inner, _)) => self.violations.push(format!("receipt {id} says that it is of order {inner}")),
            Err(error) => self.violations.push(format!("receipt {id} is not whole: {error}: {text:?}")),
        }
        Ok(())
    }
}

fn row(order: &Value) -> Result<(u64, Row), String> {
    let text = |name| order.get(name).and_then(Value::as_str).map(str::to_owned);
    let number = |name| order.get(name).and_then(Value::as_u64);
    let row = (|| {
        let (customer, item) = (text("customer")?, text("item")?);
        Some((number("id")?, Row { customer, item, quantity: number("quantity")?, transaction: text("transaction")? }))
    })();
    row.ok_or_else(|| format!("not an order: {order}"))
}

/// Everything that was posted.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    settled: Vec<Posted>,
    fresh: Vec<Posted>,
    highest_id: u64,
    unanswered_committed: usize,
}

impl Ledger {
    /// Adds what a round posted: how many were acknowledged, aborted, unanswered.
    pub(super) fn add(&mut self, posted: Vec<Posted>, violations: &mut Vec<String>) -> (usize, usize, usize) {
        let counts = counts(&posted);
        for order in &posted {
            if let Fate::Wrong(what) = &order.answer {
                violations.push(format!("order {}: {what}", order.tag));
            }
        }
        self.fresh.extend(posted);
        counts
    }

    /// How many orders were posted since the last look.
    pub(super) fn fresh(&self) -> usize {
        self.fresh.len()
    }

    /// The highest id that was stored at the last look; what is posted later gets a higher one.
    pub(super) fn highest_id(&self) -> u64 {
        self.highest_id
    }

    /// Holds what was posted since the last look against what is stored above [`highest_id`](Self::highest_id).
    pub(super) fn settle(&mut self, stored: &Stored) -> Vec<String> {
        let mut violations = stored.violations.clone();
        let fresh = std::mem::take(&mut self.fresh);
        let above = self.highest_id + 1;
        self.unanswered_committed += compare(&fresh, stored, above, &mut violations);
        self.highest_id = stored.orders.keys().chain(stored.receipts.keys()).copied().fold(self.highest_id, u64::max);
        self.settled.extend(fresh);
        violations
    }

    /// Holds everything that was ever posted against everything that is stored.
    pub(super) fn settle_all(&mut self, stored: &Stored) -> Vec<String> {
        self.settled.append(&mut self.fresh);
        let mut violations = stored.violations.clone();
        self.unanswered_committed = compare(&self.settled, stored, 0, &mut violations);
        violations
    }

    /// Writes the numbers of all rounds into the summary.
    pub(super) fn count(&self, summary: &mut Summary) {
        for list in [&self.settled, &self.fresh] {
            let (acknowledged, aborted, unanswered) = counts(list);
            summary.acknowledged += acknowledged;
            summary.aborted += aborted;
            summary.unanswered += unanswered;
        }
        summary.unanswered_committed = self.unanswered_committed;
    }
}

fn counts(posted: &[Posted]) -> (usize, usize, usize) {
    posted.iter().fold((0, 0, 0), |(acknowledged, aborted, unanswered), order| match order.answer {
        Fate::Acknowledged(_) => (acknowledged + 1, aborted, unanswered),
        Fate::Aborted => (acknowledged, aborted + 1, unanswered),
        Fate::Unanswered | Fate::Wrong(_) => (acknowledged, aborted, unanswered + 1),
    })
}

/// How many of the unanswered ones are stored; the rest of what is found goes to `violations`.
fn compare(posted: &[Posted], stored: &Stored, above: u64, violations: &mut Vec<String>) -> usize {
    let (orders, receipts) = (by_item(&stored.orders, above), by_item(&stored.receipts, above));
    let known: BTreeMap<String, ()> = posted.iter().map(|order| (order.item(), ())).collect();
    let mut unanswered_committed = 0;
    for order in posted {
        let item = order.item();
        for (store, rows) in [("orders", &orders), ("receipts", &receipts)] {
            let found = rows.get(item.as_str()).map_or(&[][..], Vec::as_slice);
            match (&order.answer, found) {
                (Fate::Acknowledged(known), [(id, row)]) => {
                    let right = row.customer == order.customer() && row.quantity == order.quantity;
                    let same = known.as_ref().is_none_or(|(known, by)| known == id && *by == row.transaction);
                    if !right || !same {
                        violations.push(format!("{} in {store} is not what was acknowledged: {id} {row:?}", order.tag));
                    }
                }
                (Fate::Acknowledged(known), found) => violations.push(format!(
                    "{} was answered 201 ({known:?}) and is in {store} {} times",
                    order.tag,
                    found.len()
                )),
                (Fate::Aborted, []) => {}
                (Fate::Aborted, found) => {
                    violations.push(format!("{} was answered as aborted and is in {store}: {found:?}", order.tag));
                }
                (Fate::Unanswered | Fate::Wrong(_), [] | [_]) => {}
                (Fate::Unanswered | Fate::Wrong(_), found) => {
                    violations.push(format!("{} is in {store} {} times", order.tag, found.len()));
                }
            }
        }
        let committed = orders.contains_key(item.as_str());
        if committed != receipts.contains_key(item.as_str()) {
            violations.push(format!("{} is in one store only (orders: {committed})", order.tag));
        }
        unanswered_committed += usize::from(committed && order.answer == Fate::Unanswered);
    }
    for (store, rows) in [("orders", &orders), ("receipts", &receipts)] {
        for item in rows.keys().filter(|item| !known.contains_key(**item)) {
            violations.push(format!("{item:?} is in {store}, and nobody posted it"));
        }
    }
    unanswered_committed
}

fn by_item(rows: &BTreeMap<u64, Row>, above: u64) -> BTreeMap<&str, Vec<(u64, &Row)>> {
    let mut by_item: BTreeMap<&str, Vec<(u64, &Row)>> = BTreeMap::new();
    for (id, row) in rows.range(above..) {
        by_item.entry(row.item.as_str()).or_default().push((*id, row));
    }
    by_item
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn posted(tag: &str, answer: Fate) -> Posted {
        Posted { tag: tag.into(), quantity: 3, answer }
    }

    fn json_of(id: u64, order: &Posted, transaction: &str) -> Value {
        json!({"id": id, "customer": order.customer(), "item": order.item(), "quantity": order.quantity, "transaction": transaction})
    }

    fn judge(posted: &[Posted], orders: &[Value], receipts: &[(u64, Value)]) -> Vec<String> {
        let mut stored = Stored::default();
        stored.add_orders(&Value::Array(orders.to_vec())).unwrap();
        for (id, receipt) in receipts {
            stored.add_receipt(*id, &receipt.to_string()).unwrap();
        }
        let mut ledger = Ledger::default();
        let mut violations = Vec::new();
        ledger.add(posted.to_vec(), &mut violations);
        violations.extend(ledger.settle(&stored));
        violations
    }

    #[test]
    fn what_agrees_is_no_violation() {
        let good = posted("good", Fate::Acknowledged(Some((2, "t".into()))));
        let late = posted("late", Fate::Unanswered);
        let (one, two) = (json_of(1, &late, "s"), json_of(2, &good, "t"));
        let gone = [posted("aborted", Fate::Aborted), posted("never", Fate::Unanswered)];
        let all = [vec![good, late], gone.to_vec()].concat();
        assert_eq!(judge(&all, &[two.clone(), one.clone()], &[(1, one), (2, two)]), Vec::<String>::new());
    }

    #[test]
    fn each_violation_is_seen() {
        let good = posted("good", Fate::Acknowledged(Some((1, "t".into()))));
        let row = json_of(1, &good, "t");
        let both =
            |order: &Value| judge(std::slice::from_ref(&good), std::slice::from_ref(order), &[(1, order.clone())]);
        let only = |violations: Vec<String>, part: &str| {
            assert!(violations.iter().any(|violation| violation.contains(part)), "{part:?} is not in {violations:?}");
        };
        assert!(both(&row).is_empty());
        only(judge(std::slice::from_ref(&good), &[], &[]), "is in orders 0 times");
        only(judge(std::slice::from_ref(&good), std::slice::from_ref(&row), &[]), "is in receipts 0 times");
        only(judge(std::slice::from_ref(&good), std::slice::from_ref(&row), &[]), "in one store only");
        let mut changed = row.clone();
        changed["quantity"] = json!(4);
        only(both(&changed), "not what was acknowledged");
        let mut changed = row.clone();
        changed["transaction"] = json!("another");
        only(both(&changed), "not what was acknowledged");
        let again = json_of(2, &good, "t");
        only(judge(std::slice::from_ref(&good), &[again, row.clone()], &[(1, row.clone())]), "is in orders 2 times");
        only(judge(&[posted("good", Fate::Aborted)], std::slice::from_ref(&row), &[]), "aborted and is in orders");
        only(judge(&[], std::slice::from_ref(&row), &[]), "nobody posted it");
        only(judge(&[], &[], &[(2, row.clone())]), "says that it is of order 1");
        only(judge(&[], &[], &[(1, json!("half"))]), "not whole");
        only(judge(&[], &[row.clone(), json_of(2, &good, "t")], &[]), "newest first");
        only(judge(&[posted("x", Fate::Wrong("what it was".into()))], &[], &[]), "what it was");
    }
}
