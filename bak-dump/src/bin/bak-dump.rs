use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main("bak-dump", bak_dump::dump::run)
}
