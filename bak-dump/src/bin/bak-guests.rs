use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main("bak-guests", bak_dump::guests::run)
}
