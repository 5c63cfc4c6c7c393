//! Prints the dumps of any store.

use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main("bak-list", bak_dump::list::main)
}
