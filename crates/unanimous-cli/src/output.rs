//! Printing: a reader that has gone away (`unanimous log show | head`) is no reason to fail, and none to stop a server.
//!
//! Must not know what is printed.

use std::io::{self, Write};

/// A line on the standard output.
pub(crate) fn say(line: impl AsRef<str>) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{}", line.as_ref()).and_then(|()| stdout.flush());
}

/// A line on the standard error.
pub(crate) fn warn(line: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", line.as_ref());
}
