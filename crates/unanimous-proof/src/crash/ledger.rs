//! What the program said of its transfers, held against what is stored.
//!
//! Must not know processes, servers or files.

use std::collections::{BTreeMap, BTreeSet};

use crate::transfers::{ACCOUNTS, BALANCE, Fate, Kind, Name, journal, parse_line};

const SIDES: [&str; 2] = ["left", "right"];

/// A row of the table `entry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) account: i32,
    pub(crate) amount: i64,
    pub(crate) transaction: String,
}

/// What one database holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Side {
    pub(crate) balances: BTreeMap<i32, i64>,
    pub(crate) entries: BTreeMap<Name, Vec<Entry>>,
}

impl Side {
    /// From lines of `id|balance` and of `transfer|account|amount|transaction`.
    pub(crate) fn parse(accounts: &str, entries: &str) -> Result<Self, String> {
        let mut side = Self::default();
        for line in accounts.lines() {
            let parsed = line.split_once('|').and_then(|(id, balance)| Some((id.parse().ok()?, balance.parse().ok()?)));
            let (id, balance) = parsed.ok_or_else(|| format!("not an account: {line:?}"))?;
            side.balances.insert(id, balance);
        }
        for line in entries.lines() {
            let parts: Vec<&str> = line.split('|').collect();
            let [name, account, amount, transaction] = parts[..] else { return Err(format!("not an entry: {line:?}")) };
            let wrong = |error: std::num::ParseIntError| format!("not an entry: {line:?}: {error}");
            let (account, amount) = (account.parse().map_err(wrong)?, amount.parse().map_err(wrong)?);
            side.entries.entry(name.parse()?).or_default().push(Entry {
                account,
                amount,
                transaction: transaction.into(),
            });
        }
        Ok(side)
    }
}

/// What all stores hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) sides: [Side; 2],
    /// By the path below the journal's folder.
    pub(crate) files: BTreeMap<String, String>,
}

/// What the program said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    fates: BTreeMap<Name, Fate>,
    /// How many transfers each worker of each run has told of: the next one may be stored without.
    told: BTreeMap<(u32, u32), u32>,
    /// Of no answer, and found.
    pub(crate) found: BTreeSet<Name>,
}

impl Ledger {
    /// Adds the output of one run. What it says of the program itself is the answer.
    pub(crate) fn add(&mut self, output: &str) -> Vec<String> {
        let mut violations = Vec::new();
        for line in output.lines() {
            match parse_line(line) {
                None => {}
                Some(Err(wrong)) => violations.push(format!("the program said {line:?}: {wrong}")),
                Some(Ok((name, fate))) => {
                    if let Fate::Wrong(what) = &fate {
                        violations.push(format!("{name}: {what}"));
                    }
                    let told = self.told.entry((name.run, name.worker)).or_default();
                    *told += 1;
                    if *told != name.number || self.fates.insert(name, fate).is_some() {
                        violations.push(format!("the program told of {name} out of its turn"));
                    }
                }
            }
        }
        violations
    }

    /// Committed, aborted, unknown, unreached.
    pub(crate) fn counts(&self) -> [u64; 4] {
        let of = [Fate::Committed, Fate::Aborted, Fate::Unknown, Fate::Unreached];
        of.map(|of| self.fates.values().filter(|fate| **fate == of).count() as u64)
    }

    /// What must not be so.
    pub(crate) fn judge(&mut self, stored: &Stored) -> Vec<String> {
        let mut violations = money(stored);
        let mut found: BTreeSet<Name> = stored.sides.iter().flat_map(|side| side.entries.keys().copied()).collect();
        for path in stored.files.keys() {
            match path.rsplit('/').next().unwrap_or(path).parse::<Name>() {
                Ok(name) if name.file() == *path => drop(found.insert(name)),
                _ => violations.push(format!("the journal has a file {path:?}, which is no transfer's")),
            }
        }
        let mut transactions = BTreeMap::new();
        for &name in &found {
            match whole(name, stored) {
                Ok(transaction) => {
                    if let Some(other) = transactions.insert(transaction.to_owned(), name) {
                        violations.push(format!("{name} and {other} are of one transaction, {transaction}"));
                    }
                }
                Err(why) => violations.push(format!("{name} is not whole: {why}")),
            }
            match self.fates.get(&name) {
                Some(Fate::Aborted | Fate::Unreached) => {
                    violations.push(format!("{name} was reported as aborted, and is stored"))
                }
                Some(_) => {}
                None if self.told.get(&(name.run, name.worker)).copied().unwrap_or_default() + 1 == name.number => {
                    self.found.insert(name);
                }
                None => violations.push(format!("{name} is stored, and nobody can have begun it")),
            }
        }
        for (name, fate) in &self.fates {
            if *fate == Fate::Committed && !found.contains(name) {
                violations.push(format!("{name} was acknowledged, and is lost"));
            }
        }
        violations
    }
}

/// Each amount was applied exactly once, and none has come or gone.
fn money(stored: &Stored) -> Vec<String> {
    let mut violations = Vec::new();
    for (side, name) in stored.sides.iter().zip(SIDES) {
        for account in 1..=ACCOUNTS {
            let entries = side.entries.values().flatten().filter(|entry| entry.account == account);
            let expected = BALANCE + entries.map(|entry| entry.amount).sum::<i64>();
            let balance = side.balances.get(&account);
            if balance != Some(&expected) {
                violations.push(format!("{name}: on account {account} is {balance:?}, and by its entries {expected}"));
            }
        }
    }
    let all: i64 = stored.sides.iter().flat_map(|side| side.balances.values()).sum();
    let expected = 2 * i64::from(ACCOUNTS) * BALANCE;
    if all != expected {
        violations.push(format!("there is {all} on all accounts together, and was {expected}"));
    }
    violations
}

/// The transaction of a transfer that is stored wholly.
fn whole(name: Name, stored: &Stored) -> Result<&str, String> {
    let entries = stored.sides.each_ref().map(|side| side.entries.get(&name).map_or(&[][..], Vec::as_slice));
    let file = stored.files.get(&name.file());
    let (one, other) = match (name.kind, entries) {
        (Kind::Both, [[one], [other]]) => (one, other),
        (Kind::Within(0), [[one, other], []]) | (Kind::Within(1), [[], [one, other]]) => (one, other),
        (_, [left, right]) => {
            return Err(format!("left {left:?}, right {right:?}, journal {file:?}"));
        }
    };
    if one.amount + other.amount != 0 || one.transaction != other.transaction {
        return Err(format!("{one:?} and {other:?} are not of one transfer"));
    }
    let legs = [(one.account, one.amount), (other.account, other.amount)];
    let expected = (name.kind == Kind::Both).then(|| journal(&name, &one.transaction, legs));
    if file != expected.as_ref() {
        return Err(format!("the journal says {file:?}, and the databases {expected:?}"));
    }
    Ok(&one.transaction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfers::line;

    const KIND: [Kind; 3] = [Kind::Both, Kind::Within(0), Kind::Within(1)];

    /// Transfers of one worker, numbered from 1, each of 5 from account 1 to account 2.
    fn stored(names: &[Name]) -> Stored {
        let mut stored = Stored::default();
        for side in &mut stored.sides {
            side.balances = (1..=ACCOUNTS).map(|account| (account, BALANCE)).collect();
        }
        for name in names {
            let transaction = format!("t{}", name.number);
            let databases = match name.kind {
                Kind::Both => [0, 1],
                Kind::Within(database) => [database; 2],
            };
            for (database, (account, amount)) in databases.into_iter().zip([(1, -5), (2, 5)]) {
                let side = &mut stored.sides[database];
                let entry = Entry { account, amount, transaction: transaction.clone() };
                side.entries.entry(*name).or_default().push(entry);
                *side.balances.get_mut(&account).unwrap() += amount;
            }
            if name.kind == Kind::Both {
                stored.files.insert(name.file(), journal(name, &transaction, [(1, -5), (2, 5)]));
            }
        }
        stored
    }

    fn name(number: u32) -> Name {
        Name { run: 1, worker: 0, number, kind: KIND[number as usize % 3] }
    }

    fn judge(fates: &[Fate], stored: &Stored) -> Vec<String> {
        let mut ledger = Ledger::default();
        let output: Vec<_> = fates.iter().zip(1..).map(|(fate, number)| line(&name(number), fate)).collect();
        let mut violations = ledger.add(&output.join("\n"));
        violations.extend(ledger.judge(stored));
        violations
    }

    use Fate::{Aborted, Committed, Unknown, Unreached};

    #[test]
    fn what_agrees_is_no_violation() {
        let all = [1, 2, 3, 5].map(name);
        let fates = [Committed, Committed, Unknown, Aborted, Unknown, Unreached];
        assert_eq!(judge(&fates, &stored(&all)), Vec::<String>::new());
        // The program was killed before it could tell of the last one.
        assert_eq!(judge(&fates[..4], &stored(&all)), Vec::<String>::new());
    }

    #[test]
    fn each_violation_is_seen() {
        let all = [1, 2, 3].map(name);
        let told = [Committed, Committed, Committed];
        let only = |violations: Vec<String>, part: &str| {
            assert!(violations.iter().any(|violation| violation.contains(part)), "{part:?} is not in {violations:?}");
        };
        let changed = |change: &dyn Fn(&mut Stored)| {
            let mut stored = stored(&all);
            change(&mut stored);
            judge(&told, &stored)
        };
        assert!(changed(&|_| {}).is_empty());
        only(judge(&told, &stored(&all[..2])), "was acknowledged, and is lost");
        only(judge(&[Committed, Committed, Aborted], &stored(&all)), "reported as aborted, and is stored");
        only(judge(&[Committed, Committed, Unreached], &stored(&all)), "reported as aborted, and is stored");
        only(judge(&told[..1], &stored(&all)), "nobody can have begun it");
        only(judge(&[Fate::Wrong("Doom, and committed".into())], &stored(&[])), "Doom, and committed");
        // 3 is the one between the databases.
        only(changed(&|stored| drop(stored.sides[1].entries.remove(&all[2]))), "is not whole");
        only(changed(&|stored| drop(stored.sides[0].entries.remove(&all[0]))), "was acknowledged, and is lost");
        only(changed(&|stored| drop(stored.files.remove(&all[2].file()))), "the journal says None");
        only(changed(&|stored| drop(stored.files.insert(all[0].file(), "x".into()))), "the journal says Some");
        only(changed(&|stored| drop(stored.files.insert("1/x".into(), "x".into()))), "no transfer's");
        only(changed(&|stored| *stored.sides[0].balances.get_mut(&7).unwrap() += 1), "on account 7");
        only(changed(&|stored| *stored.sides[0].balances.get_mut(&7).unwrap() += 1), "on all accounts together");
        let twice = |stored: &mut Stored| {
            let entry = stored.sides[1].entries[&all[2]][0].clone();
            stored.sides[1].entries.get_mut(&all[2]).unwrap().push(entry);
        };
        only(changed(&twice), "is not whole");
        only(changed(&|stored| stored.sides[1].entries.get_mut(&all[2]).unwrap()[0].amount = 6), "not of one transfer");
        let reused = |stored: &mut Stored| {
            for entry in stored.sides[1].entries.get_mut(&all[0]).into_iter().flatten() {
                entry.transaction = "t2".into();
            }
            for entry in stored.sides[0].entries.get_mut(&all[0]).into_iter().flatten() {
                entry.transaction = "t2".into();
            }
        };
        only(changed(&reused), "are of one transaction, t2");
        let mut ledger = Ledger::default();
        only(ledger.add(&line(&name(2), &Committed)), "out of its turn");
    }

    #[test]
    fn rows_are_read() {
        let side = Side::parse("1|10\n2|20", "1-0-3-both|2|-5|t\n1-0-3-both|1|5|t").unwrap();
        assert_eq!(side.balances, BTreeMap::from([(1, 10), (2, 20)]));
        let entry = |account, amount| Entry { account, amount, transaction: "t".into() };
        assert_eq!(side.entries[&name(3)], [entry(2, -5), entry(1, 5)]);
        assert!(Side::parse("1", "").is_err() && Side::parse("", "1-0-3|2|5|t").is_err());
    }
}
