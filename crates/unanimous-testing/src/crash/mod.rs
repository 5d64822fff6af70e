//! kill -9 of the demo under load, again and again, and what must be true after it. [`run`]: on SQLite; `postgres`: on two servers;
//! [`repeat`]: clients that repeat their requests by key until they are answered.
//!
//! Each round: some kills during start-up (which is where recovery runs), a start, `demo check`, a look at every order of the round
//! before, then load by parallel clients until a kill -9 at a random moment. At the end a look at everything, a graceful stop, and a
//! check of the data at rest.
//!
//! What must hold: after each start `demo check` is clean; an order that was answered 201 is in both stores with its content, once;
//! an order that was answered as aborted, or refused as bad input, is in neither. An order without an answer may be there or not, but
//! wholly: that is what the check says.
//!
//! The seed decides the moments of the kills and what each client sends, not how the machine schedules them: a failure is likely to
//! come again with its seed, and is not sure to.
//!
//! Must not know how the demo keeps its word: it posts, kills, and reads what is there.

mod ledger;
mod load;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod repeat;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::client::Client;
use crate::demo::{Demo, Place};
use crate::rng::Rng;
use ledger::{Ledger, Stored};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The binary `unanimous`.
    pub binary: PathBuf,
    /// The data folder; must be this plan's own, and is made by the demo.
    pub data: PathBuf,
    /// How many rounds.
    pub rounds: u32,
    /// Decides the moments and the orders.
    pub seed: u64,
    /// How many clients post at the same time.
    pub clients: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Rounds that were done.
    pub rounds: u32,
    /// Kills, those during start-up included.
    pub kills: u32,
    /// Orders answered 201.
    pub acknowledged: usize,
    /// Orders answered as aborted, or refused as bad input.
    pub aborted: usize,
    /// Orders without an answer, or answered as unknown.
    pub unanswered: usize,
    /// Of these, how many were committed all the same.
    pub unanswered_committed: usize,
    /// What must not have been, in words.
    pub violations: Vec<String>,
}

/// Does the rounds; a line for each goes to `progress`.
///
/// # Errors
///
/// When the demo can't be started at all, or files can't be read. What the demo does wrong is a violation and not an error.
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> Result<Summary, io::Error> {
    let place = Place::new(&plan.binary, &plan.data);
    let mut rng = Rng::new(plan.seed);
    let mut summary = Summary::default();
    let mut ledger = Ledger::default();
    for round in 1..=plan.rounds {
        let startup_kills = kill_during_startup(&place, &mut rng)?;
        let Some((mut demo, client)) = started(&place, &mut summary)? else { break };
        must_be_clean(&demo.check().map_err(other)?, &format!("after the restart of round {round}"), &mut summary);
        let fresh = ledger.fresh();
        let stored = read(&plan.data, &client, fresh, ledger.highest_id())?;
        summary.violations.extend(ledger.settle(&stored));

        let moment = Duration::from_millis(rng.between(3, 1500));
        let tag = format!("s{}-r{round}", plan.seed);
        let (posted, fate) = load::post_until(plan.clients, &client, &tag, &mut rng, || {
            let start = Instant::now();
            thread::sleep(moment);
            demo.kill().map(|()| start.elapsed())
        });
        let killed_after = fate?;
        let (acknowledged, aborted, unanswered) = ledger.add(posted, &mut summary.violations);
        summary.rounds = round;
        summary.kills += startup_kills + 1;
        progress(&format!(
            "round {round}/{}: killed after {:4} ms; {acknowledged} acknowledged, {aborted} aborted, {unanswered} unanswered; {startup_kills} kills during start-up; violations so far: {}",
            plan.rounds,
            killed_after.as_millis(),
            summary.violations.len(),
        ));
    }
    if let Some((demo, client)) = started(&place, &mut summary)? {
        must_be_clean(&demo.check().map_err(other)?, "at the end", &mut summary);
        let stored = read(&plan.data, &client, usize::MAX >> 1, 0)?;
        summary.violations.extend(ledger.settle_all(&stored));
        stop(demo, &place, &mut summary)?;
    }
    ledger.count(&mut summary);
    Ok(summary)
}

/// In about half of the rounds: starts the demo and kills it before, while or just after it recovers.
fn kill_during_startup(place: &Place, rng: &mut Rng) -> io::Result<u32> {
    let mut kills = 0;
    while rng.chance(1, 3) && kills < 3 {
        let mut demo = place.start().map_err(other)?;
        thread::sleep(Duration::from_millis(rng.between(1, 80)));
        demo.kill()?;
        kills += 1;
    }
    Ok(kills)
}

/// A demo that serves. That it does not is a violation: a killed one must come up again.
fn started(place: &Place, summary: &mut Summary) -> io::Result<Option<(Demo, Client)>> {
    let demo = place.start().map_err(other)?;
    match demo.ready() {
        Ok(client) => Ok(Some((demo, client))),
        Err(error) => {
            summary.violations.push(format!("the demo did not start again: {error}"));
            Ok(None)
        }
    }
}

/// Ends the demo in order, and looks at its data at rest.
fn stop(demo: Demo, place: &Place, summary: &mut Summary) -> io::Result<()> {
    match demo.stop(Signal::TERM) {
        Ok((Some(0), _)) => {}
        Ok((code, stderr)) => summary.violations.push(format!("SIGTERM: exit code {code:?} instead of 0: {stderr}")),
        Err(error) => summary.violations.push(format!("SIGTERM: {error}")),
    }
    must_be_clean(&place.check().map_err(other)?, "at rest, after SIGTERM", summary);
    Ok(())
}

fn must_be_clean(output: &std::process::Output, when: &str, summary: &mut Summary) {
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        summary.violations.push(format!("demo check {when} ({}): {out}{err}", output.status));
    }
}

/// The newest `limit` orders as the server tells them, and the receipts above `above`, read from the folder itself.
fn read(data: &Path, client: &Client, limit: usize, above: u64) -> io::Result<Stored> {
    let answer = client.get(&format!("/orders?limit={limit}")).map_err(other)?;
    if answer.status != 200 {
        return Err(io::Error::other(format!("GET /orders: {} {}", answer.status, answer.text())));
    }
    let mut stored = Stored::default();
    stored.add_orders(&answer.json()).map_err(io::Error::other)?;
    for (id, path) in receipts(&data.join("receipts"))? {
        if id > above {
            stored.add_receipt(id, &fs::read_to_string(path)?).map_err(io::Error::other)?;
        }
    }
    Ok(stored)
}

fn receipts(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut receipts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        if let (true, Some(id)) = (is_json, path.file_stem().and_then(|stem| stem.to_str()?.parse().ok())) {
            receipts.push((id, path));
        }
    }
    Ok(receipts)
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::other(error)
}
