//! What a run prints: records or a table on standard output, progress on a terminal.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::jsonl::Writer;
use bak_common::name::printable;
use bak_common::record::{Dump, Guest, Record, to_line};
use bak_common::table::table;
use bak_common::units::{show_duration, show_size};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};

const STEPS: u64 = 1000;

/// Shared by all workers.
pub struct Show<'a> {
    session: &'a Session,
    state: Mutex<State>,
    bars: Option<MultiProgress>,
}

struct State {
    out: Writer<std::io::Stdout>,
    rows: Vec<Vec<String>>,
}

impl<'a> Show<'a> {
    pub fn new(session: &'a Session) -> Self {
        let bars = std::io::stderr().is_terminal() && !session.quiet && !session.dry_run;
        Self {
            session,
            state: Mutex::new(State { out: Writer::stdout(), rows: Vec::new() }),
            bars: bars.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was done, or in a dry run would be.
    pub fn record(&self, record: Record) -> Result<()> {
        let line = to_line(&record);
        if !self.session.dry_run {
            self.session.report.decided(&line);
        }
        self.print(record, &line)
    }

    /// Something was considered.
    pub fn explain(&self, mut guest: Guest) -> Result<()> {
        if !self.session.explain {
            return Ok(());
        }
        guest.planned |= self.session.dry_run;
        let record = Record::Guest(Box::new(guest));
        let line = to_line(&record);
        self.print(record, &line)
    }

    /// What another program did, and sent on to us.
    pub fn pass(&self, mut dump: Dump) -> Result<()> {
        dump.planned |= self.session.dry_run;
        let record = Record::Dump(Box::new(dump));
        let line = to_line(&record);
        self.print(record, &line)
    }

    fn print(&self, record: Record, line: &str) -> Result<()> {
        if self.session.quiet {
            return Ok(());
        }
        let mut state = self.state();
        if self.session.table {
            state.rows.push(row(&record));
            return Ok(());
        }
        self.beside_bars(|| state.out.line(line))
    }

    /// A failure, said without tearing the progress bars apart.
    pub fn fail(&self, id: &str, error: &anyhow::Error) {
        self.beside_bars(|| self.session.report.fail(id, error));
    }

    fn beside_bars<T>(&self, say: impl FnOnce() -> T) -> T {
        match &self.bars {
            Some(bars) => bars.suspend(say),
            None => say(),
        }
    }

    pub fn bar(&self, guest: &Guest) -> Bar {
        Bar(self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{prefix:20!} {bar:30} {percent:>3} % {elapsed} {msg}");
            let bar = ProgressBar::new(STEPS).with_prefix(printable(guest.vm.as_str()));
            bars.add(style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style)))
        }))
    }

    /// Prints the table, if there is one to be printed.
    pub fn end(&self) {
        let state = self.state();
        if !state.rows.is_empty() {
            println!("{}", table(&["what", "guest", "size", "took", "note"], &[2, 3], state.rows.clone()));
        }
    }
}

/// One guest's progress; gone when it is dropped.
pub struct Bar(Option<ProgressBar>);

impl Bar {
    pub fn set(&self, done: f64) {
        if let Some(bar) = &self.0 {
            bar.set_position((done.clamp(0.0, 1.0) * STEPS as f64) as u64);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn row(record: &Record) -> Vec<String> {
    match record {
        Record::Dump(dump) => vec![
            dump.id.to_string(),
            dump.name.clone().unwrap_or_else(|| dump.vm.to_string()),
            show_size(dump.bytes),
            show_duration(dump.finished.since(dump.started)),
            dump.annotation.clone().unwrap_or_default(),
        ],
        Record::Guest(guest) => {
            let failed = guest.failed.as_ref().map(|failed| failed.why.clone());
            let note = failed.or_else(|| guest.skipped.as_ref().map(|skipped| skipped.why.clone()));
            let what = match (&guest.failed, &guest.skipped) {
                (Some(_), _) => "failed",
                (_, Some(_)) => "skipped",
                _ => "would be dumped",
            };
            vec![
                what.to_owned(),
                guest.name.clone().unwrap_or_else(|| guest.vm.to_string()),
                guest.size.map(show_size).unwrap_or_default(),
                String::new(),
                note.unwrap_or_default(),
            ]
        }
    }
}
