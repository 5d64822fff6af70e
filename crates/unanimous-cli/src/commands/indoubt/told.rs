//! How a picture of what is in doubt is printed: for people, and as JSON.
//!
//! Must not know how it was made.

use std::fmt::Write as _;

use serde_json::{Value, json};
use unanimous::postgres::{Lock, Waiting};

use super::look::{Listed, Other, Seen};
use super::why::{Decision, Finding, Log, Shared, who};
use super::{Picture, Unfinished};
use crate::output::say;
use crate::time::utc;

pub(super) fn text(picture: &Picture) {
    match (&picture.log, &picture.shared) {
        (Some(log), _) => say(log_text(log)),
        (None, Some(shared)) => say(format!("logs in a database, of the nodes {}", nodes(shared).join(", "))),
        (None, None) => say("no decision log was given: what is decided can't be told"),
    }
    for (seen, findings) in picture.stores.iter().zip(&picture.findings) {
        let content = match &seen.state {
            Ok(content) => content,
            Err(error) => {
                say(format!("{:?} ({}) can't be asked: {error}", seen.name, seen.kind));
                continue;
            }
        };
        say(format!("{:?} ({}, {}): in doubt {}", seen.name, seen.kind, content.store, findings.len()));
        if let Some(error) = &content.locks_unknown {
            say(format!("  what they hold can't be told: {error}"));
        }
        for (listed, finding) in findings {
            say(branch_text(listed, finding));
            let id = listed.branch.to_string();
            picture.records.of(&id).for_each(|recorded| say(format!("    operator    {}", recorded.text())));
        }
        for Other { id, role, since, waiting } in &content.others {
            let waiting = if *waiting == 0 { String::new() } else { format!(", {waiting} sessions wait for it") };
            say(format!(
                "  not ours: {id:?}, prepared {since} by the role {role:?}{waiting}; leave it to whoever prepared it"
            ));
        }
    }
    for Unfinished { record, stores } in &picture.waiting {
        let (id, at) = (record.transaction, utc(record.decided_at));
        say(format!("decided to commit at {at}, and it can't be told whether it is finished: {id}"));
        stores.iter().for_each(|store| say(format!("    waits for   {store}")));
    }
    if picture.records.broken > 0 {
        say(format!("lines of the operators' record that can't be read: {}", picture.records.broken));
    }
    let others: usize =
        picture.stores.iter().filter_map(|seen| seen.state.as_ref().ok()).map(|content| content.others.len()).sum();
    say(format!(
        "in doubt {}, decisions that wait for other stores {}, stores that can't be asked {}, not ours {others}",
        picture.in_doubt(),
        picture.waiting.len(),
        picture.down(),
    ));
}

fn nodes(shared: &Shared) -> Vec<&str> {
    shared.nodes.iter().map(|node| node.node.as_str()).collect()
}

fn log_text(log: &Log) -> String {
    let history = log.view.history();
    let holder = match log.holder {
        Some(holder) => format!("open in {}", who(holder)),
        None => "not open in any process".to_owned(),
    };
    let damaged = if log.view.verify().is_sound() { "" } else { "; DAMAGED: see `unanimous log verify`" };
    format!("log {} in {}, {holder}{damaged}", history.log(), log.view.path().display())
}

/// The last line has no end, as `say` adds one.
fn branch_text(listed: &Listed, finding: &Finding) -> String {
    let Listed { branch, since, role, locks, paths, waiting, .. } = listed;
    let mut text = format!("  {branch}\n    prepared    {since}");
    if let Some(role) = role {
        let _ = write!(text, " by the role {role:?}");
    }
    let _ = write!(text, "\n    decision    {}", finding.decision.word());
    if let Decision::Commit { at, note } = &finding.decision {
        let _ = write!(text, ", {}", utc(*at));
        if !note.is_empty() {
            let _ = write!(text, ", note {note:?}");
        }
    }
    let _ = write!(text, "\n    in doubt    {}", finding.why);
    // Whatever a transaction reads, it has read the catalogs too; that is in nobody's way.
    let catalog = |lock: &&Lock| lock.object.starts_with("pg_catalog.") && lock.mode == "AccessShareLock";
    for lock in locks.iter().filter(|lock| !catalog(lock)) {
        let _ = write!(text, "\n    holds       {} {}", lock.object, lock.mode);
    }
    for path in paths {
        let _ = write!(text, "\n    holds       the file {path}");
    }
    for waiting in waiting {
        let _ = write!(text, "\n    blocks      {}", waiting_text(waiting));
    }
    let _ = write!(text, "\n    do          {}", finding.advice);
    text
}

fn waiting_text(waiting: &Waiting) -> String {
    let Waiting { pid, role, application, since, query, behind, .. } = waiting;
    let mut text = format!("the session {pid} of the role {role:?}");
    if !application.is_empty() {
        let _ = write!(text, " ({application})");
    }
    if !since.is_empty() {
        let _ = write!(text, ", since {since}");
    }
    if let Some(behind) = behind {
        let _ = write!(text, ", behind {behind}");
    }
    // On one line, and not the whole of a long statement.
    let words: Vec<&str> = query.split_whitespace().collect();
    let query: String = words.join(" ").chars().take(80).collect();
    if !query.is_empty() {
        let _ = write!(text, ": {query}");
    }
    text
}

pub(super) fn json(picture: &Picture) {
    if let Some(log) = &picture.log {
        say(json!({
            "kind": "log",
            "log": log.view.history().log().to_string(),
            "path": log.view.path().display().to_string(),
            "open": log.holder.is_some(),
            "pid": log.holder.and_then(|holder| holder.pid),
            "sound": log.view.verify().is_sound(),
        })
        .to_string());
    }
    if let Some(shared) = &picture.shared {
        say(json!({ "kind": "log", "nodes": nodes(shared) }).to_string());
    }
    for (seen, findings) in picture.stores.iter().zip(&picture.findings) {
        say(store_json(seen).to_string());
        let Ok(content) = &seen.state else { continue };
        findings.iter().for_each(|(listed, finding)| say(branch_json(&seen.name, listed, finding).to_string()));
        for Other { id, role, since, waiting } in &content.others {
            let other = json!({
                "kind": "other", "resource": seen.name, "id": id, "role": role, "since": since, "waiting": waiting,
            });
            say(other.to_string());
        }
    }
    for Unfinished { record, stores } in &picture.waiting {
        let decision = json!({
            "kind": "decision", "transaction": record.transaction.to_string(), "decided_at": record.decided_at, "waits_for": stores,
        });
        say(decision.to_string());
    }
    picture.records.acts.iter().for_each(|recorded| say(recorded.json().to_string()));
    say(json!({
        "kind": "summary",
        "in_doubt": picture.in_doubt(),
        "waiting": picture.waiting.len(),
        "down": picture.down(),
        "broken_records": picture.records.broken,
    })
    .to_string());
}

fn store_json(seen: &Seen) -> Value {
    let (store, error, locks_unknown) = match &seen.state {
        Ok(content) => (Some(content.store.to_string()), None, content.locks_unknown.as_ref()),
        Err(error) => (None, Some(error), None),
    };
    json!({
        "kind": "store", "resource": seen.name, "type": seen.kind, "store": store, "error": error, "locks_unknown": locks_unknown,
    })
}

fn branch_json(resource: &str, listed: &Listed, finding: &Finding) -> Value {
    let Listed { branch, since, role, locks, paths, waiting, .. } = listed;
    let (decided_at, note) = match &finding.decision {
        Decision::Commit { at, note } => (Some(at), Some(note).filter(|note| !note.is_empty())),
        _ => (None, None),
    };
    json!({
        "kind": "branch",
        "resource": resource,
        "branch": branch.to_string(),
        "transaction": branch.transaction.to_string(),
        "decider": branch.decider.to_string(),
        "number": branch.number,
        "since": since,
        "role": role,
        "decision": finding.decision.word(),
        "decided_at": decided_at,
        "note": note,
        "why": finding.why,
        "advice": finding.advice,
        "locks": locks.iter().map(|lock| json!({"object": lock.object, "mode": lock.mode})).collect::<Vec<_>>(),
        "paths": paths,
        "waiting": waiting.iter().map(waiting_json).collect::<Vec<_>>(),
    })
}

fn waiting_json(waiting: &Waiting) -> Value {
    let Waiting { pid, role, application, since, query, behind, .. } = waiting;
    json!({"pid": pid, "role": role, "application": application, "since": since, "query": query, "behind": behind})
}
