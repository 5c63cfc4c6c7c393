//! What bak-scan prints: a record for each dump that was adopted, at once; with `--explain` also one of the type `scan.file`
//! for each file that was left alone. On a terminal a table at the end.

use anyhow::Result;
use bak_common::args::Session;
use bak_common::jsonl::Writer;
use bak_common::record::{Dump, Record, to_line};
use bak_common::store::Store;
use bak_common::table::{table, with_prose};
use bak_common::units::show_size;
use serde_json::json;

use super::look::{Left, join};

pub struct Output<'a> {
    session: &'a Session,
    store: &'a Store,
    out: Writer<std::io::Stdout>,
    /// For the table, where there is one.
    adopted: Vec<Dump>,
    left: Vec<Left>,
    /// How many were left alone, and how many got SHA-256.
    alone: usize,
    summed: usize,
}

impl<'a> Output<'a> {
    pub fn new(session: &'a Session, store: &'a Store) -> Self {
        Self { session, store, out: Writer::stdout(), adopted: Vec::new(), left: Vec::new(), alone: 0, summed: 0 }
    }

    /// A dump that was adopted before and got SHA-256, or would.
    pub fn summed(&mut self, place: String, dump: Dump) -> Result<()> {
        self.summed += 1;
        self.adopted(place, dump)
    }

    /// A dump that was adopted, or would be.
    pub fn adopted(&mut self, place: String, mut dump: Dump) -> Result<()> {
        if self.session.quiet && !self.session.report.is_logged() {
            return Ok(());
        }
        dump.dir = Some(self.store.path().join(place).to_string_lossy().into_owned());
        dump.planned = self.session.dry_run;
        let record = Record::Dump(Box::new(dump));
        let line = to_line(&record);
        self.session.report.decided(&line);
        if self.session.quiet {
            return Ok(());
        }
        if !self.session.table {
            return self.out.line(&line);
        }
        if let Record::Dump(dump) = record {
            self.adopted.push(*dump);
        }
        Ok(())
    }

    /// Files that are no dumps.
    pub fn left(&mut self, left: Vec<Left>) {
        self.alone += left.len();
        if self.session.explain {
            self.left.extend(left);
        }
    }

    pub fn end(mut self) -> Result<()> {
        self.left.sort_by(|a, b| (&a.place, &a.file).cmp(&(&b.place, &b.file)));
        if self.session.table {
            return self.table();
        }
        for Left { place, file, why } in &self.left {
            let dir = self.store.path().join(place).to_string_lossy().into_owned();
            let mut line =
                json!({"v": 1, "type": "scan.file", "dir": dir, "file": file, "decision": "left", "why": why});
            if self.session.dry_run {
                line["planned"] = true.into();
            }
            self.out.line(&line.to_string())?;
        }
        Ok(())
    }

    fn table(&mut self) -> Result<()> {
        let proof = |dump: &Dump| {
            let words = dump.extra.get("adopted").and_then(|note| note["proof"].as_array());
            let words = words.into_iter().flatten().filter_map(|word| word.as_str());
            words.collect::<Vec<_>>().join(", ")
        };
        if !self.adopted.is_empty() {
            let row = |dump: &Dump| {
                let name = dump.name.clone().unwrap_or_default();
                vec![dump.id.to_string(), name, show_size(dump.bytes), proof(dump)]
            };
            let text = table(&["dump", "name", "size", "proof"], &[2], self.adopted.iter().map(row));
            self.out.line(&text)?;
        }
        if !self.left.is_empty() {
            let row = |left: &Left| vec![join(&left.place, &left.file), left.why.clone()];
            let text = with_prose(&["left alone", "why"], &[], self.left.iter().map(row));
            self.out.line(&text)?;
        }
        if self.session.quiet {
            return Ok(());
        }
        let (adopted, summed) = match self.session.dry_run {
            true => ("would be adopted", "would get SHA-256"),
            false => ("adopted", "got SHA-256"),
        };
        let mut said = match self.adopted.len() - self.summed {
            0 if self.summed == 0 => "Nothing to adopt.".into(),
            0 => String::new(),
            count => format!("{count} {adopted}."),
        };
        if self.summed > 0 {
            said += &format!(" {} {summed}.", self.summed);
        }
        if self.alone > 0 && !self.session.explain {
            said += &format!(" {} left alone (--explain says why).", self.alone);
        }
        self.out.line(said.trim())
    }
}
