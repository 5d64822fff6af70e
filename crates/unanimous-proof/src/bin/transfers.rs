//! The program that the level `crash` kills. See `unanimous_proof::transfers`.
//!
//! Must not know anything: the library has it all.

use std::process::ExitCode;

fn main() -> ExitCode {
    match unanimous_proof::transfers::run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr().lock(), "error: {error}");
            ExitCode::from(2)
        }
    }
}
