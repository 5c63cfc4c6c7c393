use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main("bak-prune", bak_prune::cli::run)
}
