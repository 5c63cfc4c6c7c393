//! A progress bar for one dump, on a terminal only.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::name::printable;
use bak_common::record::Dump;
use bak_common::stop;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

use crate::driver::Progress;

pub fn bar(session: &Session, dump: &Dump) -> ProgressBar {
    if session.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} {msg:8} [{wide_bar}] {percent:>3}% {eta}");
    let bar = ProgressBar::new(1000).with_prefix(printable(dump.id.as_str()));
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Shows on `bar` how far a step has come, and ends it when we are asked to end.
pub fn step(bar: &ProgressBar, what: &'static str) -> impl Fn(Progress) -> Result<()> + Sync {
    move |progress: Progress| {
        stop::check()?;
        bar.set_message(what);
        bar.set_position((progress.done * 1000.0) as u64);
        Ok(())
    }
}
