//! Carries an outbox to its destination. `plan` says in which order, `apply` runs the pass, `carry` sends one dump.

mod apply;
mod batch;
mod carry;
mod cli;
mod identity;
mod plan;
mod progress;
mod reconcile;
mod share;
mod slices;
mod timetable;
mod together;
mod turns;
mod way;

fn main() -> std::process::ExitCode {
    bak_common::report::main("bak-sync", cli::run)
}
