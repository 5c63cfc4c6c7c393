//! The turns of a pass: who is next, with how much of the budget, and what became of it. Who gets how much is decided in
//! [`crate::share`].

use anyhow::{Context, Result, anyhow};
use bak_common::calendar::Time;
use bak_common::ledger::{Attempt, Ended, Ledger, Line};
use bak_common::name::DumpId;
use bak_common::outbox::Outbox;
use bak_common::record::{Dump, LinkNote, Record, SentNote, to_line};
use bak_common::report::status;
use bak_common::stop;
use bak_common::store::Entry;
use bak_common::units::Limit;
use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use crate::apply::{Pass, attempt, caps, cost, stays, tell, too_late, waits};
use crate::carry::{Stop, Trouble, Try};
use crate::crossed::Known;
use crate::progress::Turn;
use crate::summary::Tally;
use crate::{plan, share};

/// After so many dumps in a row that failed by the line's fault, the pass ends.
const LINE_FAILURES: u32 = 2;

/// In the note of a dump: an attempt was begun, and has not ended in order.
pub const OPEN: &str = "open";

/// Whether the last attempt at a dump did not end in order.
pub fn open(dump: &Dump, dest: &str) -> bool {
    dump.link.get(dest).is_some_and(|note| note.extra.contains_key(OPEN))
}

/// What became of one dump.
pub enum Fate {
    Sent(Box<Dump>),
    /// It left the outbox before anything of it was sent.
    Gone,
    /// Too little is left of the limits to begin it.
    Waits,
    /// It was ended in order, by this; it goes on in the next pass.
    Cut(Box<Dump>, Ended),
    /// It has not arrived with others: it is next, alone, or with others again.
    Alone,
    Again,
}

impl Pass<'_> {
    /// Carries all that waits, as far as the budget goes.
    pub fn all(
        &mut self,
        waiting: Vec<Entry>,
        tally: &mut Tally,
        done: &mut dyn FnMut(Dump) -> Result<()>,
    ) -> Result<()> {
        let waiting = waiting.into_iter().map(|entry| entry.dump).collect();
        let name = self.dest.name.clone();
        let order = share::arrange(plan::order(waiting, &name), &mut self.budget, |dump| cost(dump, &name));
        let mut order: VecDeque<Dump> = order.into();
        let mut known: HashSet<DumpId> = order.iter().map(|dump| dump.id.clone()).collect();
        let mut in_a_row = 0;
        let mut held: VecDeque<Dump> = VecDeque::new();
        let mut alone: HashSet<DumpId> = HashSet::new();
        while let Some(dump) = order.pop_front() {
            if let Some((ended, why)) = self.over() {
                tally.ended = ended;
                order.push_front(dump);
                order.append(&mut held);
                let begun = self.begun();
                return order.into_iter().try_for_each(|dump| self.tell(dump, why.clone(), &begun, done));
            }
            if in_a_row == LINE_FAILURES {
                let left = order.len() + held.len() + 1;
                self.session.report.fail(&name, &anyhow!("the line is down: the other {left} stay pending"));
                tally.ended = Ended::Failed;
                return Ok(());
            }
            let next: Vec<&Dump> = std::iter::once(&dump).chain(&order).collect();
            let count = self.batch(&next, &alone);
            let fates = if count > 1 {
                let with = order.drain(..count - 1);
                let dumps: Vec<Dump> = std::iter::once(dump).chain(with).collect();
                self.turn.nth += dumps.len();
                self.together(dumps)?
            } else {
                let after: Vec<u64> = order.iter().map(|dump| cost(dump, &name)).collect();
                self.turn = self.turn(&after);
                let fate = self.one(&dump, &after);
                vec![(dump, fate)]
            };
            let (mut back, begun) = (Vec::new(), self.begun());
            for (dump, fate) in fates {
                match fate {
                    Ok(Fate::Alone) => {
                        alone.insert(dump.id.clone());
                        back.push(dump);
                    }
                    Ok(Fate::Again) => back.push(dump),
                    Ok(Fate::Gone) => {
                        if let Some(newer) = self.successor(&dump, &known) {
                            known.insert(newer.id.clone());
                            order.push_front(newer);
                        }
                    }
                    Ok(Fate::Sent(arrived)) => {
                        (tally.sent, in_a_row) = (tally.sent + 1, 0);
                        tally.bytes += arrived.bytes;
                        self.session.report.decided(&to_line(&Record::Dump(arrived.clone())));
                        // What was kept for one that needed less is there for the others.
                        if self.budget.is_oversized(cost(&dump, &name)) {
                            order.append(&mut held);
                        }
                        done(*arrived)?;
                    }
                    Ok(Fate::Waits) => held.push_back(dump),
                    Ok(Fate::Cut(dump, ended)) => {
                        (tally.ended, tally.cut, in_a_row) = (ended, tally.cut + 1, 0);
                        let why = format!("cut in order, {}: it goes on in the next pass", self.why_cut(ended));
                        self.tell(*dump, why, &begun, done)?;
                    }
                    // Not the far side that it was: nothing more goes there.
                    Err(trouble) if status(&trouble.error) == 4 => {
                        return Err(stays(trouble.error, order.len() + held.len() + back.len() + 1));
                    }
                    Err(trouble) => {
                        tally.failed += 1;
                        in_a_row = if trouble.line_down { in_a_row + 1 } else { 0 };
                        if let (Some(noted), true) = (self.failed(&dump, trouble.error), self.session.explain) {
                            done(noted)?;
                        }
                    }
                }
            }
            back.into_iter().rev().for_each(|dump| order.push_front(dump));
        }
        if !held.is_empty() && tally.ended == Ended::Done {
            tally.ended = Ended::Limit;
        }
        let begun = self.begun();
        held.into_iter().try_for_each(|dump| self.tell(dump, waits(&self.budget), &begun, done))
    }

    /// What the ledger tells now of dumps that were begun.
    fn begun(&self) -> Known {
        Known::new(self.outbox.ledger(), &self.dest.name)
    }

    /// Says why a dump stays pending, and what of it has crossed so far.
    fn tell(&self, mut dump: Dump, why: String, begun: &Known, done: &mut dyn FnMut(Dump) -> Result<()>) -> Result<()> {
        begun.note(&mut dump);
        tell(self.session, dump, why, done)
    }

    /// Where the pass stands when the next dump begins, and these come after it.
    fn turn(&self, after: &[u64]) -> Turn {
        let nth = self.turn.nth + 1;
        let used = |(limit, left): &(Limit, i128)| {
            (*limit, u64::try_from((i128::from(limit.bytes) - left).max(0)).unwrap_or(u64::MAX))
        };
        Turn {
            dest: self.dest.name.clone(),
            nth,
            of: nth + after.len(),
            later: after.iter().fold(0, |sum, cost| sum.saturating_add(*cost)),
            spent: self.sum.both(),
            limit: self.budget.lines().iter().min_by_key(|(_, left)| *left).map(used),
            until: self.options.until,
        }
    }

    /// Whether no more dumps are begun: how that ends the pass, and what it means for those that wait.
    pub fn over(&self) -> Option<(Ended, String)> {
        if let Some(stopped) = stop::caught() {
            return Some((Ended::Stopped, format!("{stopped}: it stays pending")));
        }
        let until = self.options.until.filter(|_| self.far.time_is_up())?;
        Some((Ended::Until, too_late(self.session, until)))
    }

    /// Why a dump was cut.
    pub fn why_cut(&self, ended: Ended) -> String {
        match (ended, self.options.until, stop::caught()) {
            (Ended::Until, Some(until), _) => format!("it is past {} (until)", self.session.zone.minute(until)),
            (Ended::Stopped, _, Some(stopped)) => stopped.to_string(),
            _ => format!("the limit of {} is reached", self.budget.tightest().unwrap_or_default()),
        }
    }

    /// Reports a failure and notes it in the outbox.
    fn failed(&self, dump: &Dump, error: anyhow::Error) -> Option<Dump> {
        let report = &self.session.report;
        let noted = self.note(dump, |note| note.error = Some(format!("{error:#}")));
        report.fail(dump.id.as_str(), &error.context("stays pending"));
        noted.unwrap_or_else(|error| {
            report.fail(dump.id.as_str(), &error.context("cannot note that it failed"));
            None
        })
    }

    /// What bak-link has put in the place of a dump that left the outbox since this pass began; none if it was taken out
    /// by hand.
    fn successor(&self, dump: &Dump, known: &HashSet<DumpId>) -> Option<Dump> {
        let listing = self.outbox.store.list();
        let of_guest = listing.good().map(|entry| &entry.dump).filter(|there| there.key() == dump.key());
        let ours = of_guest.filter(|there| there.link.contains_key(&self.dest.name) && !known.contains(&there.id));
        ours.max_by_key(|there| (there.started, &there.id)).cloned()
    }

    /// Changes the note of this destination in the outbox's sidecar; `None` if the dump has left the outbox. Under the
    /// store's lock, as bak-link replaces what has no `tries` yet: what has is ours.
    pub fn note(&self, dump: &Dump, change: impl FnOnce(&mut LinkNote)) -> Result<Option<Dump>> {
        let locked = self.outbox.store.lock(self.session.wait, &self.session.report)?;
        let place = Outbox::place(&dump.vm);
        let Some(entry) = self.outbox.store.look(&place, &dump.stem)? else { return Ok(None) };
        let mut noted = entry.dump.clone();
        if let Some(note) = noted.link.get_mut(&self.dest.name) {
            change(note);
        }
        locked.annotate(&entry, &noted)?;
        Ok(Some(noted))
    }

    /// Sends one dump, or as much of it as it may, or finds that it has arrived before. Its traffic is noted whatever
    /// happens. `after` are the costs of those that come after it.
    fn one(&mut self, dump: &Dump, after: &[u64]) -> Result<Fate, Trouble> {
        if let Some(sent) = self.outbox.sent(dump)? {
            if !sent.same(dump) {
                return Err(anyhow!("another dump was sent under its name").into());
            }
            self.unlink(dump)?;
            return Ok(Fate::Sent(Box::new(sent)));
        }
        if self.budget.shared() {
            self.budget.refresh(&caps(self.session, self.dest, self.outbox)?);
        }
        let share = self.budget.share(cost(dump, &self.dest.name), after);
        self.far.limit(self.budget.left());
        let Some(journey) = self.journey(dump, share) else { return Ok(Fate::Waits) };
        let begun = Instant::now();
        let begin = |note: &mut LinkNote| {
            note.tries = Some(note.tries.unwrap_or(0).saturating_add(1));
            note.extra.insert(OPEN.to_owned(), true.into());
        };
        if self.note(dump, begin)?.is_none() {
            return Ok(Fate::Gone);
        }
        self.unsure = open(dump, &self.dest.name);
        self.outbox.note_begun(dump)?;
        self.budget.begin();
        let at = self.session.clock();
        let id = format!("{}/{}", self.id, dump.id);
        let stop = self.carry_on(Try { dump, id: &id, begun }, journey).err();
        let wire = self.far.take_wire();
        self.sum = self.sum + wire;
        self.budget.spend(wire.both());
        let (result, why) = match &stop {
            None => ("sent", None),
            Some(Stop::Limit) => ("cut", None),
            Some(Stop::Time) => ("cut", Some(self.why_cut(Ended::Until))),
            Some(Stop::Signal(stopped)) => ("stopped", Some(stopped.to_string())),
            Some(Stop::Trouble(trouble)) => ("failed", Some(format!("{:#}", trouble.error))),
        };
        let line = attempt(self.session, self.dest, &id, Some(dump), wire, begun, result);
        self.ledger.append(&Line::Attempt(Attempt { at, why, ..line }))?;
        let ended = match stop {
            None => None,
            Some(Stop::Trouble(trouble)) => return Err(trouble),
            Some(Stop::Limit) => Some(Ended::Limit),
            Some(Stop::Time) => Some(Ended::Until),
            Some(Stop::Signal(_)) => Some(Ended::Stopped),
        };
        if let Some(ended) = ended {
            // What a limit ends the far side has brought to an end, too; for a signal it is not waited for long.
            let sure = !self.unsure && ended == Ended::Limit;
            let noted = self.note(dump, |note| {
                // That it failed before counts no more: it goes on in its turn.
                note.error = None;
                if sure {
                    note.extra.shift_remove(OPEN);
                }
            })?;
            return Ok(Fate::Cut(Box::new(noted.unwrap_or_else(|| dump.clone())), ended));
        }
        let ledger = Ledger::read(&self.outbox.ledger(), &self.dest.name)?;
        let attempts: Vec<&Attempt> =
            ledger.attempts.iter().filter(|attempt| attempt.dump.as_ref() == Some(&dump.id)).collect();
        let arrived = self.outbox.add_sent(dump, sum_up(self.session.clock(), &attempts))?;
        self.unlink(dump)?;
        self.outbox.forget_begun(dump)?;
        self.history.push(arrived.clone());
        Ok(Fate::Sent(Box::new(arrived)))
    }

    /// Takes a dump that has arrived out of the outbox. The local store keeps its own links.
    fn unlink(&self, dump: &Dump) -> Result<()> {
        let locked = self.outbox.store.lock(self.session.wait, &self.session.report)?;
        let Some(entry) = self.outbox.store.look(&Outbox::place(&dump.vm), &dump.stem)? else { return Ok(()) };
        locked
            .remove(&[&entry])
            .into_iter()
            .collect::<Result<()>>()
            .context("has arrived, but cannot be taken out of the outbox")
    }
}

/// What all attempts at a dump have cost.
pub fn sum_up(at: Time, attempts: &[&Attempt]) -> SentNote {
    let sum = |count: fn(&Attempt) -> u64| attempts.iter().map(|one| count(one)).fold(0, u64::saturating_add);
    SentNote {
        at,
        wire_out: sum(|attempt| attempt.wire_out),
        wire_in: sum(|attempt| attempt.wire_in),
        seconds: sum(|attempt| attempt.seconds),
        passes: attempts.len() as u64,
        pruned: None,
        extra: Default::default(),
    }
}
