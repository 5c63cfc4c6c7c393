//! bak-link: decides which dumps go off-site, and puts hard links of them into the outboxes.

mod ahead;
mod apply;
mod budget;
mod cli;
mod copy;
mod cost;
mod facts;
mod forecast;
mod list;
mod output;
mod plan;
mod progress;

use std::process::ExitCode;

fn main() -> ExitCode {
    bak_common::report::main(cli::PROGRAM, cli::run)
}
