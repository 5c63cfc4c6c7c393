//! Adopts dumps that others made.

use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main("bak-scan", bak_dump::scan::main)
}
