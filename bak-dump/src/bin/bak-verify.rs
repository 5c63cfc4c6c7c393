//! Proves dumps.

use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main("bak-verify", bak_dump::verify::main)
}
