//! `cargo xtask coverage`: which lines of what must never be wrong do the tests run.
//!
//! Nothing is installed by it. The figures are those of `cargo llvm-cov`; processes that a test kills leave none.
//!
//! Must not know what a test does.

use std::fs;

use serde_json::Value;
use unanimous_testing::postgres::binaries;

use crate::metadata::workspace;
use crate::run::cargo;
use crate::say;

/// In percent, of each part.
const LEAST: f64 = 95.0;
/// What decides, what remembers, and what acts on it after a crash: folders, or files by the beginning of their path.
const PARTS: [(&str, &str); 3] = [
    ("the core crate", "crates/unanimous-core/src/"),
    ("the log", "crates/unanimous/src/log/"),
    ("recovery", "crates/unanimous/src/recovery"),
];

pub(crate) fn run() -> Result<(), String> {
    if !cargo(["llvm-cov", "--version"]).works() {
        return Err("`cargo llvm-cov` is missing; install it:\n  cargo install --locked cargo-llvm-cov\n  \
                    rustup component add llvm-tools\nWhere rustup hasn't got these tools, set LLVM_COV and LLVM_PROFDATA to the \
                    programs of the LLVM that `rustc -vV` names"
            .into());
    }
    let workspace = workspace()?;
    let report = workspace.target.join("coverage.json");
    let path = report.to_str().ok_or_else(|| format!("{} is not UTF-8", report.display()))?;
    let features: &[&str] = match binaries() {
        Ok(_) => &["--all-features"],
        Err(missing) => {
            say(&format!("without the tests that need PostgreSQL: {missing}"));
            &["--features", "axum,files,sqlite"]
        }
    };
    let command = ["llvm-cov", "test", "--package", "unanimous-core", "--package", "unanimous"];
    let output = ["--json", "--summary-only", "--output-path", path];
    cargo(command.into_iter().chain(features.iter().copied()).chain(output)).show()?;
    let text = fs::read_to_string(&report).map_err(|error| format!("{path}: {error}"))?;
    let json: Value = serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))?;
    let root = format!("{}/", workspace.root.display());
    let mut short = Vec::new();
    for part in PARTS {
        let percent = part_of(&json, &root, part)?;
        if percent < LEAST {
            short.push(part.0);
        }
    }
    if short.is_empty() {
        return Ok(());
    }
    Err(format!(
        "less than {LEAST} % of the lines of {} are run by tests\nto see which lines are not: cargo llvm-cov report --show-missing-lines",
        short.join(" and ")
    ))
}

/// Says the figures of a part's files, and gives its own.
fn part_of(json: &Value, root: &str, (name, place): (&str, &str)) -> Result<f64, String> {
    let files = json["data"][0]["files"].as_array().ok_or("the report has no files")?;
    let (mut run, mut all) = (0, 0);
    for file in files {
        let path = file["filename"].as_str().unwrap_or_default();
        let lines = &file["summary"]["lines"];
        let (Some(covered), Some(count)) = (lines["covered"].as_u64(), lines["count"].as_u64()) else {
            return Err(format!("the report has no lines for {path}"));
        };
        if let Some(path) = path.strip_prefix(root).filter(|path| path.starts_with(place)) {
            say(&format!("  {:6.2} %  {covered:5} of {count:5}  {path}", percent(covered, count)));
            run += covered;
            all += count;
        }
    }
    if all == 0 {
        return Err(format!("the report has no file of {name} ({place})"));
    }
    say(&format!("{:6.2} %  {run} of {all} lines of {name}", percent(run, all)));
    Ok(percent(run, all))
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_part_is_the_sum_of_its_files() {
        let file = |path: &str, covered: u64, count: u64| json!({ "filename": path, "summary": { "lines": { "covered": covered, "count": count } } });
        let files = [
            file("/w/crates/unanimous/src/log/file.rs", 90, 100),
            file("/w/crates/unanimous/src/log/read.rs", 300, 300),
            file("/w/crates/unanimous/src/catalog/read.rs", 0, 300),
            file("/other/crates/unanimous/src/log/read.rs", 0, 300),
        ];
        let report = json!({ "data": [{ "files": files }] });
        assert_eq!(part_of(&report, "/w/", PARTS[1]), Ok(97.5));
        assert!(part_of(&report, "/w/", PARTS[0]).unwrap_err().contains("no file of the core crate"));
        assert!(part_of(&json!({}), "/w/", PARTS[0]).is_err());
    }
}
