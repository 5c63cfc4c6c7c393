//! bak-link: decides which dumps go off-site, and puts hard links of them into the outboxes.

mod ahead;
mod apply;
mod budget;
mod cli;
mod facts;
mod forecast;
mod output;
mod plan;

use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main(cli::PROGRAM, cli::run)
}
