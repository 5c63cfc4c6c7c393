//! A progress bar for one dump, on a terminal only: cron mails what it sees.

use bak_common::args::Session;
use bak_common::meter::Wire;
use bak_common::name::printable;
use bak_common::record::Dump;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

pub struct Bar(ProgressBar);

impl Bar {
    pub fn new(session: &Session, dump: &Dump) -> Self {
        let shown = std::io::stderr().is_terminal() && !session.quiet;
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(dump.bytes), target).with_message(printable(dump.id.as_str()));
        if let Ok(style) = ProgressStyle::with_template(
            "{msg} {binary_bytes} of at most {binary_total_bytes}, {binary_bytes_per_sec} {elapsed}",
        ) {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub fn at(&self, wire: Wire) {
        self.0.set_position(wire.out);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
