//! Carries an outbox to its destination. `plan` says in which order, `apply` does it.

mod apply;
mod cli;
mod identity;
mod plan;
mod progress;

fn main() -> std::process::ExitCode {
    bak_common::report::main("bak-sync", cli::run)
}
