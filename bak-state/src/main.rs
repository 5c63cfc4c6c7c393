use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main("bak-state", bak_state::cli::run)
}
