//! Carries an outbox to its destination. `plan` says in which order, `apply` runs the pass, `carry` sends one dump.

mod abandoned;
mod apply;
mod batch;
mod carry;
mod cli;
mod crossed;
mod deltas;
mod identity;
mod plan;
mod progress;
mod reconcile;
mod share;
mod show;
mod slices;
mod summary;
mod timetable;
mod together;
mod turns;
mod until;
mod way;

fn main() -> std::process::ExitCode {
    bak_common::report::main("bak-sync", cli::run)
}
