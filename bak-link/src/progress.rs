//! A progress bar for one dump that is copied, on a terminal only: cron mails what it sees.

use bak_common::args::Session;
use bak_common::name::printable;
use bak_common::record::Dump;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

pub struct Bar(ProgressBar);

impl Bar {
    pub fn new(session: &Session, dump: &Dump) -> Self {
        let shown = std::io::stderr().is_terminal() && !session.quiet;
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        // Each byte is copied, and read back.
        let bar = ProgressBar::with_draw_target(Some(dump.bytes.saturating_mul(2)), target);
        bar.set_message(printable(dump.id.as_str()));
        if let Ok(style) = ProgressStyle::with_template("{msg} copied and checked {percent} %, {elapsed}, {eta} left") {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
