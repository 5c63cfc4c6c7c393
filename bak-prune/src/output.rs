//! Where decisions go: records, a table, or nowhere.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::jsonl::Writer;
use bak_common::record::{Dump, PruneNote, Record};
use bak_common::table::table;
use bak_common::units::show_size;

use crate::plan::Decision;

pub struct Output<'a> {
    session: &'a Session,
    writer: Writer<std::io::Stdout>,
    rows: Vec<Vec<String>>,
    /// Of those shown.
    removed: (u64, u64),
    /// Of all.
    gone: usize,
    /// Stores for which there was no rule.
    unruled: Vec<String>,
}

impl<'a> Output<'a> {
    pub fn new(session: &'a Session) -> Self {
        Self { session, writer: Writer::stdout(), rows: Vec::new(), removed: (0, 0), gone: 0, unruled: Vec::new() }
    }

    pub fn put(&mut self, decision: Decision, dump: Dump) -> Result<()> {
        if self.session.quiet {
            return Ok(());
        }
        if !self.session.table {
            return self.writer.record(&Record::Dump(Box::new(dump)));
        }
        if decision == Decision::Remove {
            self.removed = (self.removed.0 + 1, self.removed.1.saturating_add(dump.bytes));
        }
        let note = dump.prune.unwrap_or_else(|| PruneNote { decision: String::new(), reasons: Vec::new() });
        let name = dump.name.unwrap_or_default();
        let start = self.session.zone.minute(dump.started);
        self.rows.push(vec![
            dump.id.to_string(),
            name,
            start,
            show_size(dump.bytes),
            note.decision,
            note.reasons.join("; "),
        ]);
        Ok(())
    }

    /// So many more were removed, or would be.
    pub fn removed(&mut self, count: usize) {
        self.gone += count;
    }

    /// No rule says what to keep in this store.
    pub fn unruled(&mut self, store: String) {
        self.unruled.push(store);
    }

    /// Shows the table; how many dumps were removed, or would be.
    pub fn finish(mut self) -> Result<usize> {
        if self.session.quiet || !self.session.table {
            return Ok(self.gone);
        }
        if !self.rows.is_empty() {
            let rows = std::mem::take(&mut self.rows);
            self.writer.line(&table(&["dump", "name", "start", "size", "decision", "reasons"], &[3], rows))?;
        }
        for store in std::mem::take(&mut self.unruled) {
            self.writer.line(&format!(
                "{store}: no rule says what to keep, so everything is kept (see --keep-last and others)"
            ))?;
        }
        let (count, bytes) = self.removed;
        let verb = if self.session.dry_run { "would be removed" } else { "removed" };
        let noun = if count == 1 { "dump" } else { "dumps" };
        self.writer.line(&format!("{count} {noun}, {}, {verb}", show_size(bytes)))?;
        Ok(self.gone)
    }
}
