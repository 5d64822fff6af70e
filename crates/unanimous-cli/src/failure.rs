//! What a command could not do: told with its causes, a hint what to do, and an exit code.
//!
//! Exit codes: 0 all is well; 1 a check found something wrong; 2 the command could not be done (clap's code for a wrong command line).
//!
//! Must not know any command.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// A check found something wrong; what it was is printed already.
pub(crate) const FOUND: u8 = 1;
const NOT_DONE: u8 = 2;

/// Why a command ends without success.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// The command could not be done.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), hint: None }
    }

    /// Adds an error and its sources, except what is said already.
    #[must_use]
    pub(crate) fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Says what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code.
    pub(crate) fn code() -> ExitCode {
        ExitCode::from(NOT_DONE)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, "\ncaused by: {cause}"))?;
        self.hint.iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_its_causes_once_and_what_to_do() {
        let inner = std::io::Error::other("no space");
        let failure = Failure::new("can't write").because(&inner).hint("make room");
        assert_eq!(failure.to_string(), "error: can't write\ncaused by: no space\nhint: make room");
    }
}
