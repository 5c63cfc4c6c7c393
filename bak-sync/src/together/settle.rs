//! What is noted of dumps that went together: their shares of what it has cost, the history, and their links.

use anyhow::{Context, Result, anyhow};
use bak_common::ledger::{Attempt, Ended, Ledger, Line};
use bak_common::name::DumpId;
use bak_common::record::{Dump, SentNote};
use bak_common::store::Entry;
use std::collections::HashMap;

use super::{Came, One};
use crate::apply::Pass;
use crate::batch::divide;
use crate::carry::Trouble;
use crate::turns::{Fate, sum_up};

impl Pass<'_> {
    /// Notes in the ledger what each of them has cost. The line that ran meanwhile counts no more.
    pub(super) fn charge(&mut self, all: &[One], id: &str, sum: Attempt) -> Result<()> {
        if all.is_empty() && sum.wire_out + sum.wire_in == 0 {
            return Ok(());
        }
        let weights: Vec<u64> = all.iter().map(|one| one.weight).collect();
        let parts = [sum.wire_out, sum.wire_in, sum.seconds].map(|sum| divide(sum, &weights));
        let line = |(at, one): (usize, &One)| {
            let (result, why) = match one.came {
                Came::Along => ("sent", None),
                Came::Cut(Ended::Stopped) => ("stopped", sum.why.clone()),
                Came::Cut(_) => ("cut", sum.why.clone()),
                Came::Again | Came::Alone => ("failed", sum.why.clone()),
            };
            Line::Attempt(Attempt {
                id: format!("{id}/{}", one.dump.id),
                dump: Some(one.dump.id.clone()),
                wire_out: parts[0][at],
                wire_in: parts[1][at],
                seconds: parts[2][at],
                result: result.to_owned(),
                why,
                ..sum.clone()
            })
        };
        let mut lines: Vec<Line> = all.iter().enumerate().map(line).collect();
        let none = if all.is_empty() { sum } else { Attempt { wire_out: 0, wire_in: 0, seconds: 0, why: None, ..sum } };
        lines.push(Line::Attempt(none));
        self.ledger.append_all(&lines)
    }

    /// The history of those that have arrived, and their links; what became of each.
    pub(super) fn settle(&mut self, all: Vec<One>) -> HashMap<DumpId, Result<Fate, Trouble>> {
        let mut fates = HashMap::new();
        let mut arrived = Vec::new();
        for one in all {
            let fate = match one.came {
                Came::Along => {
                    arrived.push(one);
                    continue;
                }
                Came::Again => Fate::Again,
                Came::Alone => Fate::Alone,
                Came::Cut(ended) => {
                    // In case it is taken out of the outbox before it goes on.
                    let noted = self.outbox.note_begun(&one.dump);
                    self.warn_all("cannot note what was begun", noted);
                    Fate::Cut(Box::new(self.excused(one.dump.clone())), ended)
                }
            };
            fates.insert(one.dump.id, Ok(fate));
        }
        let gone = self.note_sent(&arrived);
        fates.extend(arrived.into_iter().zip(gone).map(|(one, gone)| {
            let fate = gone.map(|dump| Fate::Sent(Box::new(dump))).map_err(Trouble::from);
            (one.dump.id, fate)
        }));
        fates
    }

    /// That it failed before counts no more: it goes on in its turn.
    fn excused(&self, dump: Dump) -> Dump {
        if dump.link.get(&self.dest.name).is_none_or(|note| note.error.is_none()) {
            return dump;
        }
        self.note(&dump, |note| note.error = None).ok().flatten().unwrap_or(dump)
    }

    fn note_sent(&mut self, arrived: &[One]) -> Vec<Result<Dump>> {
        if arrived.is_empty() {
            return Vec::new();
        }
        let noted = Ledger::read(&self.outbox.ledger(), &self.dest.name).map(|ledger| {
            let attempts = ledger.by_dump();
            let at = self.session.clock();
            let of = |one: &One| attempts.get(&one.dump.id).map_or(&[][..], |attempts| attempts);
            let notes: Vec<(&Dump, SentNote)> = arrived.iter().map(|one| (&one.dump, sum_up(at, of(one)))).collect();
            self.outbox.add_all_sent(notes)
        });
        let noted = match noted {
            Ok(noted) => noted,
            Err(error) => return arrived.iter().map(|_| Err(anyhow!("{error:#}"))).collect(),
        };
        let unlinked = self.unlink_all(arrived.iter().zip(&noted).map(|(one, noted)| (&one.entry, noted.is_ok())));
        let both = |(noted, unlinked): (Result<Dump>, Result<()>)| noted.and_then(|dump| unlinked.map(|()| dump));
        for one in arrived.iter().filter(|one| one.resumed) {
            let forgotten = self.outbox.forget_begun(&one.dump);
            self.warn_all("cannot note what has arrived", forgotten);
        }
        let results: Vec<Result<Dump>> = noted.into_iter().zip(unlinked).map(both).collect();
        self.history.extend(results.iter().flatten().cloned());
        results
    }

    /// Takes those out of the outbox that have come into the history.
    fn unlink_all<'a>(&self, entries: impl Iterator<Item = (&'a Entry, bool)> + Clone) -> Vec<Result<()>> {
        let leaving: Vec<&Entry> = entries.clone().filter(|(_, noted)| *noted).map(|(entry, _)| entry).collect();
        let removed = match self.outbox.store.lock(self.session.wait, &self.session.report) {
            Ok(locked) => locked.remove(&leaving),
            Err(error) => leaving.iter().map(|_| Err(anyhow!("{error:#}"))).collect(),
        };
        let mut removed = removed.into_iter();
        let one = |(_, noted): (&Entry, bool)| {
            let removed = if noted { removed.next().unwrap_or(Ok(())) } else { Ok(()) };
            removed.context("has arrived, but cannot be taken out of the outbox")
        };
        entries.map(one).collect()
    }
}
