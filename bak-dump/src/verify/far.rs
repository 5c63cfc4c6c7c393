//! Verdicts on dumps of a far side: by sums made over there, or by fetching.

use anyhow::{Result, anyhow};
use bak_common::far::LimitReached;
use bak_common::store::Entry;
use bak_common::units::show_size;
use std::collections::{HashMap, HashSet};

use super::judge::{Depth, judge};
use super::{Outcome, Subject, Verifier};
use crate::bar::{bar, step};
use crate::check::Compared;
use crate::fetch::name_of;
use crate::place::Place;

/// So much is hashed over there in one run, at most: what a broken line costs, and what one waits for the first verdict.
const AT_ONCE: u64 = 64 << 30;
const MANY: usize = 500;

/// Sums that were made over there.
#[derive(Default)]
pub struct Sums {
    /// By name.
    sums: HashMap<String, String>,
    /// The sidecars of the dumps that were asked for.
    asked: HashSet<String>,
}

impl Verifier<'_> {
    /// The verdict on the first of `subjects`; the others come next.
    pub fn judge_far(&mut self, subjects: &[Subject]) -> Result<Outcome> {
        let entry = subjects[0].entry;
        if let Some(why) = &entry.unfit {
            return Ok(Outcome::Verdict(crate::driver::Decision::Bad, why.clone()));
        }
        if self.depth() == Depth::Sizes {
            // The listing has shown them.
            let (decision, why) = judge(Depth::Sizes, &Compared::Same { unhashed: Vec::new() }, &[]);
            return Ok(Outcome::Verdict(decision, why));
        }
        if let Some(compared) = self.by_sums(subjects)? {
            let (decision, why) = judge(Depth::Hashes, &compared, &[]);
            let there = if matches!(compared, Compared::Same { .. }) { ", made over there" } else { "" };
            return Ok(Outcome::Verdict(decision, why + there));
        }
        self.mark_there();
        let bar = bar(self.session, &entry.dump);
        let Place::There(source) = &mut self.place else { return Err(anyhow!("it is no far side")) };
        let more = match subjects.len() - 1 {
            0 => String::new(),
            more => format!("; {more} more to be looked at"),
        };
        if source.is_spent() {
            let why = format!("too little is left of the limits: it is not fetched{more}");
            return Ok(Outcome::Skipped(why));
        }
        let copy = match source.fetch(entry, &step(&bar, "fetching")) {
            Err(error) if error.is::<LimitReached>() => {
                let (lacks, all) = (show_size(source.lacks(entry)), show_size(entry.dump.bytes));
                let why = format!(
                    "the limit is reached: {lacks} of {all} are still to come; what has come is kept, and the next run goes on{more}"
                );
                return Ok(Outcome::Skipped(why));
            }
            copy => copy?,
        };
        let formats = self.formats(&copy.store, &copy.entry, &copy.compared, &step(&bar, "checking"));
        copy.remove();
        bar.finish_and_clear();
        let (decision, why) = judge(self.depth(), &copy.compared, &formats?);
        Ok(Outcome::Verdict(decision, why))
    }

    /// What sums made over there say of the first of `subjects`; nothing where there are none, or the record has none.
    fn by_sums(&mut self, subjects: &[Subject]) -> Result<Option<Compared>> {
        let entry = subjects[0].entry;
        if !has_sums(entry) {
            return Ok(None);
        }
        let name = name_of(entry, &entry.dump.stem.sidecar());
        if !self.sums.asked.contains(&name) {
            // Of those that come next, too. What was found so far is written down first.
            self.mark_there();
            let mut bytes = 0_u64;
            let next =
                subjects.iter().map(|subject| subject.entry).filter(|entry| entry.unfit.is_none() && has_sums(entry));
            let batch: Vec<&Entry> = next
                .take(MANY)
                .take_while(|entry| {
                    let first = bytes == 0;
                    bytes = bytes.saturating_add(entry.dump.bytes);
                    first || bytes <= AT_ONCE
                })
                .collect();
            let Place::There(source) = &mut self.place else { return Ok(None) };
            let Some(sums) = source.sums(&batch)? else { return Ok(None) };
            self.sums.sums = sums;
            self.sums.asked = batch.iter().map(|entry| name_of(entry, &entry.dump.stem.sidecar())).collect();
        }
        for file in &entry.dump.files {
            // What could not be read over there is fetched, and then tells why.
            let Some(found) = self.sums.sums.get(&name_of(entry, &file.name)) else { return Ok(None) };
            if let Some(expected) = file.sha256.as_ref().filter(|expected| *expected != found) {
                let why = format!("{} is damaged: its SHA-256 is {found} instead of {expected}", file.name);
                return Ok(Some(Compared::Differs(why)));
            }
        }
        Ok(Some(Compared::Same { unhashed: Vec::new() }))
    }

    /// Writes over there what was found since the last time.
    pub fn mark_there(&mut self) {
        let verdicts = std::mem::take(&mut self.unmarked);
        let Place::There(source) = &mut self.place else { return };
        if let Err(error) = source.mark(&verdicts) {
            self.session.report.fail(source.shown(), &error);
        }
    }
}

fn has_sums(entry: &Entry) -> bool {
    entry.dump.files.iter().all(|file| file.sha256.is_some())
}
