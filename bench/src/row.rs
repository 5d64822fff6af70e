//! A row: what was measured, beside what, and what was hoped for.
//!
//! Must not know how anything is measured.

use std::fmt;

/// A figure.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Unique among all rows, and stable: what other runs are compared by.
    pub(crate) name: String,
    /// The median of the rounds.
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// The tenth and the ninetieth hundredth of the rounds.
    pub(crate) spread: [f64; 2],
    pub(crate) beside: Option<Beside>,
    pub(crate) target: Option<Target>,
}

/// What it stands beside.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    /// The name of the row, or of the thing, that it is compared with.
    pub(crate) yardstick: String,
    /// The median over the rounds of value / yardstick's value, each of the same round.
    pub(crate) ratio: f64,
    /// The tenth and the ninetieth hundredth of it.
    pub(crate) spread: [f64; 2],
}

/// What was hoped for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// Of the ratio.
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// Of the value, in its unit.
    AtMost(f64),
}

impl Row {
    /// With what is hoped for of it.
    pub(crate) fn target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    /// None where nothing was hoped for.
    pub(crate) fn reached(&self) -> Option<bool> {
        let ratio = self.beside.as_ref().map(|beside| beside.ratio);
        Some(match self.target? {
            Target::RatioAtLeast(least) => ratio? >= least,
            Target::RatioAtMost(most) => ratio? <= most,
            Target::AtMost(most) => self.value <= most,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtLeast(least) => write!(f, "at least {least} times"),
            Self::RatioAtMost(most) => write!(f, "at most {most} times"),
            Self::AtMost(most) => write!(f, "at most {}", number(*most)),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.spread.map(number);
        write!(f, "{}: {} {} ({low} to {high})", self.name, number(self.value), self.unit)?;
        if let Some(Beside { yardstick, ratio, spread: [low, high] }) = &self.beside {
            write!(f, "; {ratio:.2} times {yardstick} ({low:.2} to {high:.2})")?;
        }
        match (self.target, self.reached()) {
            (Some(target), Some(reached)) => {
                write!(f, "; target: {target}: {}", if reached { "reached" } else { "NOT reached" })
            }
            _ => Ok(()),
        }
    }
}

/// Three digits that say something.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}
