//! Running other programs, with what to type to do the same by hand.
//!
//! Must not know what it runs.

use std::ffi::OsString;
use std::process::{Command, Output, Stdio};

/// A program with its arguments and what is added to its environment.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    program: OsString,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

/// The cargo that runs this.
pub(crate) fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Run {
    Run::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), arguments)
}

impl Run {
    pub(crate) fn new<'a>(program: impl Into<OsString>, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        Self { program: program.into(), arguments, environment: Vec::new() }
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Its output goes where this program's goes.
    pub(crate) fn show(&self) -> Result<(), String> {
        let status = self.command().status().map_err(|error| format!("can't run `{self}`: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("`{self}` failed ({status})")) }
    }

    /// Gives its output.
    pub(crate) fn output(&self) -> Result<Output, String> {
        let output = self.command().stdin(Stdio::null()).output();
        output.map_err(|error| format!("can't run `{self}`: {error}"))
    }

    /// Whether it runs and succeeds.
    pub(crate) fn works(&self) -> bool {
        self.output().is_ok_and(|output| output.status.success())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// The line that does the same in a shell.
impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in &self.environment {
            write!(f, "{name}={} ", quoted(value))?;
        }
        let program = std::path::Path::new(&self.program);
        f.write_str(&program.file_name().unwrap_or_default().to_string_lossy())?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {}", quoted(argument)))
    }
}

fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_can_be_typed() {
        let run = Run::new("/usr/bin/cargo", ["doc", "a b"]).env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(run.to_string(), "RUSTDOCFLAGS='-D warnings' cargo doc 'a b'");
    }
}
