//! What is printed: records passed on from standard input, annotated, then what was linked, then, with `--explain`,
//! everything else that was considered. One record a dump, with the notes of all destinations.

use anyhow::{Result, anyhow};
use bak_common::args::Session;
use bak_common::jsonl::Writer;
use bak_common::name::DumpId;
use bak_common::record::{Dump, Failed, LinkNote, Record, to_line};
use bak_common::table::{table, width, with_prose};
use bak_common::units::{show_duration, show_size};
use std::collections::{HashMap, HashSet};

use crate::apply::{Decided, Outcome};
use crate::budget::{Left, show_limit};
use crate::plan::Decision;

/// A dump and what all destinations decided.
struct Considered {
    id: DumpId,
    dump: Option<Box<Dump>>,
    notes: Vec<(String, LinkNote)>,
    linked: bool,
    /// Some destination holds it to be good.
    good: bool,
    /// Why it is not, where none does.
    fault: String,
    failed: Option<String>,
}

/// Everything that was considered, in the order in which it is printed.
#[derive(Default)]
pub struct Results {
    considered: Vec<Considered>,
    index: HashMap<DumpId, usize>,
}

impl Results {
    pub fn add(&mut self, dest: &str, decided: Vec<Decided>) {
        for item in decided {
            let at = *self.index.entry(item.id.clone()).or_insert_with(|| {
                let (notes, fault, failed) = (Vec::new(), String::new(), None);
                let (id, dump) = (item.id, None);
                let new = Considered { id, dump, notes, linked: false, good: false, fault, failed };
                self.considered.push(new);
                self.considered.len() - 1
            });
            let known = &mut self.considered[at];
            known.dump = item.dump.or(known.dump.take());
            known.good |= item.decision != Decision::NotGood || item.failed.is_some();
            if item.decision == Decision::NotGood {
                known.fault.clone_from(&item.note.why);
            }
            match item.failed {
                // What was not linked must not say that it was.
                Some(why) => known.failed = Some(why),
                None => {
                    known.linked |= item.decision == Decision::Linked;
                    known.notes.push((dest.to_owned(), item.note));
                }
            }
        }
    }

    pub fn linked(&self) -> usize {
        self.considered.iter().filter(|known| known.linked).count()
    }

    fn find(&self, id: &DumpId) -> Option<&Considered> {
        self.index.get(id).map(|at| &self.considered[*at])
    }

    /// Why nothing could be done with a dump that standard input names; `None` if all is well.
    fn unusable(&self, dump: &Dump) -> Option<String> {
        match self.find(&dump.id) {
            // What another program's dry run would make is not there yet.
            None if dump.planned => None,
            None => Some("there is no such dump in the store".into()),
            Some(known) if !known.good => Some(format!("it is not good: {}", known.fault)),
            Some(_) => None,
        }
    }

    /// Reports the dumps of standard input that are not on disk, or not good there.
    pub fn check(&self, session: &Session, input: &[Record]) {
        for record in input {
            if let Record::Dump(dump) = record
                && let Some(why) = self.unusable(dump)
            {
                session.report.fail(dump.id.as_str(), &anyhow!("cannot be linked: {why}"));
            }
        }
    }

    /// Prints and logs. `input` was read from standard input, and is passed on if `pass_on`.
    pub fn print(&self, session: &Session, input: &[Record], pass_on: bool) -> Result<()> {
        let mut writer = Writer::stdout();
        let silent = session.quiet || session.table;
        let mut piped: HashMap<&DumpId, &Dump> = HashMap::new();
        let mut printed: HashSet<&DumpId> = HashSet::new();
        for record in input {
            if let Record::Dump(dump) = record {
                piped.insert(&dump.id, dump);
                if pass_on {
                    printed.insert(&dump.id);
                }
            }
            if pass_on && !silent {
                writer.record(&self.passed_on(record, session.dry_run))?;
            }
        }
        for known in &self.considered {
            let wanted = known.linked || session.explain;
            let passed = printed.contains(&known.id);
            if !wanted && !passed {
                continue;
            }
            // What vanished meanwhile, which was reported, can't be shown.
            let piped = piped.get(&known.id).copied();
            let Some(record) = self.annotated(known, piped, session.dry_run) else { continue };
            session.report.decided(&to_line(&record));
            if wanted && !silent && !passed {
                writer.record(&record)?;
            }
        }
        Ok(())
    }

    fn passed_on(&self, record: &Record, planned: bool) -> Record {
        match record {
            Record::Guest(guest) => {
                let mut guest = guest.clone();
                guest.planned |= planned;
                Record::Guest(guest)
            }
            Record::Dump(dump) => {
                match self.find(&dump.id).and_then(|known| self.annotated(known, Some(dump), planned)) {
                    Some(record) => record,
                    None => {
                        let mut dump = dump.clone();
                        dump.planned |= planned;
                        let why = self.find(&dump.id).and_then(|known| known.failed.clone()).or(self.unusable(&dump));
                        dump.failed = why.map(|why| Failed { stage: "link".into(), why }).or(dump.failed);
                        Record::Dump(dump)
                    }
                }
            }
        }
    }

    /// The dump as it is on disk, with what `piped` carries besides, and with our notes; `None` if it isn't there any more.
    fn annotated(&self, known: &Considered, piped: Option<&Dump>, planned: bool) -> Option<Record> {
        let mut dump = known.dump.clone()?;
        dump.planned = planned;
        if let Some(piped) = piped {
            dump.link.clone_from(&piped.link);
            dump.sent.clone_from(&piped.sent);
            dump.prune.clone_from(&piped.prune);
            dump.failed.clone_from(&piped.failed);
            dump.skipped.clone_from(&piped.skipped);
            dump.extra.extend(piped.extra.clone());
        }
        dump.link.extend(known.notes.clone());
        if let Some(why) = &known.failed {
            dump.failed = Some(Failed { stage: "link".into(), why: why.clone() });
        }
        Some(Record::Dump(dump))
    }
}

/// On a terminal narrower than this there is no room for everything.
const WIDE: usize = 110;

/// What a person sees on a terminal: a row for each dump and destination, and what is left of the limits.
pub fn show(session: &Session, outcomes: &[(String, Outcome)]) -> Result<()> {
    let mut writer = Writer::stdout();
    let wanted = |decided: &&Decided| decided.decision == Decision::Linked || session.explain;
    let layout = Layout { wide: width().is_none_or(|width| width >= WIDE), several: outcomes.len() > 1 };
    let rows = outcomes.iter().flat_map(|(dest, outcome)| {
        outcome.decided.iter().filter(wanted).map(move |decided| layout.row(dest, decided))
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if !rows.is_empty() {
        writer.line(&with_prose(&layout.headings(), &layout.right(), rows))?;
    }
    for (dest, outcome) in outcomes.iter().filter(|_| !session.explain) {
        let linked = outcome.decided.iter().filter(|decided| decided.decision == Decision::Linked).count();
        let over = outcome.over;
        if linked == 0 || over > 0 {
            writer.line(&format!("{dest}: {linked} linked, {over} over the limit (--explain says why)"))?;
        }
    }
    let limits = outcomes.iter().filter(|_| session.explain);
    let limits: Vec<Vec<String>> =
        limits.flat_map(|(dest, outcome)| outcome.left.iter().map(|left| limit_row(dest, left))).collect();
    if !limits.is_empty() {
        writer.line("")?;
        writer.line(&table(&["destination", "limit", "used", "pending", "linked", "left"], &[2, 3, 4, 5], limits))?;
    }
    Ok(())
}

fn limit_row(dest: &str, left: &Left) -> Vec<String> {
    let shown = |bytes: i64| {
        let sign = if bytes < 0 { "-" } else { "" };
        format!("{sign}{}", show_size(bytes.unsigned_abs()))
    };
    let whole = i64::try_from(left.limit.bytes).unwrap_or(i64::MAX);
    let linked = whole.saturating_sub(left.used).saturating_sub(left.pending).saturating_sub(left.bytes);
    let mut row = vec![dest.to_owned(), show_limit(left.limit)];
    row.extend([left.used, left.pending, linked, left.bytes].map(shown));
    row
}

/// Which columns there are.
#[derive(Clone, Copy)]
struct Layout {
    wide: bool,
    several: bool,
}

impl Layout {
    /// Those columns of `all` that this layout has. In the order of the headings.
    fn choose<T>(self, all: [T; 8]) -> Vec<T> {
        let there = [self.several, true, self.wide, true, self.wide, self.wide, true, true];
        all.into_iter().zip(there).filter(|(_, there)| *there).map(|(cell, _)| cell).collect()
    }

    fn headings(self) -> Vec<&'static str> {
        self.choose(["destination", "dump", "name", "size", "cost", "stale by", "decision", "why"])
    }

    /// The columns of numbers.
    fn right(self) -> Vec<usize> {
        let numbers = self.choose([false, false, false, true, true, true, false, false]);
        numbers.into_iter().enumerate().filter(|(_, number)| *number).map(|(at, _)| at).collect()
    }

    fn row(self, dest: &str, decided: &Decided) -> Vec<String> {
        let decision = if decided.failed.is_some() { "failed" } else { decided.decision.as_str() };
        self.choose([
            dest.to_owned(),
            decided.id.to_string(),
            decided.dump.as_ref().and_then(|dump| dump.name.clone()).unwrap_or_default(),
            decided.dump.as_ref().map_or_else(String::new, |dump| show_size(dump.bytes)),
            decided.note.cost.map_or_else(String::new, show_size),
            decided.note.staleness_s.map_or_else(String::new, show_duration),
            decision.to_owned(),
            decided.failed.clone().unwrap_or_else(|| decided.note.why.clone()),
        ])
    }
}
