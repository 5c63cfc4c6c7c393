//! Brings dumps back.

use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main("bak-restore", bak_dump::restore::main)
}
