//! The rows for people and for programs: docs/performance.md from its template, and one line of JSON.
//!
//! Must not know how anything is measured.

use std::path::Path;

use serde_json::{Value, json};

use crate::Error;
use crate::row::{Row, number};

/// What is said around the tables. A line `{{NAME}}` becomes the table of that group.
const TEMPLATE: &str = include_str!("../performance.md");

/// All rows, for programs. A figure without a yardstick or a target has null there.
pub(crate) fn json(groups: &[(&str, Vec<Row>)]) -> Value {
    let rows: Vec<Value> = groups.iter().flat_map(|(_, rows)| rows).map(row).collect();
    json!({ "rows": rows })
}

fn row(row: &Row) -> Value {
    let beside = row.beside.as_ref();
    json!({
        "name": row.name,
        "value": row.value,
        "unit": row.unit,
        "spread": row.spread,
        "yardstick": beside.map(|beside| &beside.yardstick),
        "ratio": beside.map(|beside| beside.ratio),
        "ratio_spread": beside.map(|beside| beside.spread),
        "target": row.target.map(|target| target.to_string()),
        "reached": row.reached(),
    })
}

/// Writes docs/performance.md anew. A group that was not run has no table in it.
///
/// # Errors
///
/// When the file can't be written, or a group has no place in the template.
pub(crate) fn write(path: &Path, groups: &[(&str, Vec<Row>)]) -> Result<(), Error> {
    let mut text = TEMPLATE.to_owned();
    for (name, rows) in groups {
        let place = format!("{{{{{name}}}}}");
        if !text.contains(&place) {
            return Err(format!("bench/performance.md has no line {place}").into());
        }
        text = text.replace(&place, table(rows).trim_end());
    }
    let text: Vec<&str> = text.lines().map(|line| if line.starts_with("{{") { "(not run)" } else { line }).collect();
    std::fs::write(path, text.join("\n") + "\n").map_err(|error| format!("{}: {error}", path.display()).into())
}

fn table(rows: &[Row]) -> String {
    let mut text =
        String::from("| what | median (p10 to p90) | beside | ratio (p10 to p90) | target |\n|---|---|---|---|---|\n");
    for row in rows {
        let [low, high] = row.spread.map(number);
        let (yardstick, ratio) = match &row.beside {
            None => (String::new(), String::new()),
            Some(beside) => {
                let [low, high] = beside.spread;
                (beside.yardstick.clone(), format!("{:.2} ({low:.2} to {high:.2})", beside.ratio))
            }
        };
        let target = match (row.target, row.reached()) {
            (Some(target), Some(true)) => format!("{target}: reached"),
            (Some(target), _) => format!("{target}: **not reached**"),
            _ => String::new(),
        };
        let value = format!("{} {} ({low} to {high})", number(row.value), row.unit);
        text.push_str(&format!("| {} | {value} | {yardstick} | {ratio} | {target} |\n", row.name));
    }
    text
}
