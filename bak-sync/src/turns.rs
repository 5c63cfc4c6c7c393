//! The turns of a pass: who is next, with how much of the budget, and what became of it. Who gets how much is decided in
//! [`crate::share`].

use anyhow::{Context, Result, anyhow};
use bak_common::ledger::{self, Attempt, Ledger, Line};
use bak_common::name::DumpId;
use bak_common::outbox::Outbox;
use bak_common::record::{Dump, LinkNote, Record, SentNote, to_line};
use bak_common::store::Entry;
use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use crate::apply::{Pass, Tally, attempt, caps, cost, tell, waits};
use crate::carry::{Stop, Trouble};
use crate::{plan, share};

/// After so many dumps in a row that failed by the line's fault, the pass ends.
const LINE_FAILURES: u32 = 2;

/// What became of one dump.
enum Fate {
    Sent(Box<Dump>),
    /// It left the outbox before anything of it was sent.
    Gone,
    /// Too little is left of the limits to begin it.
    Waits,
    /// The limit ended it in order; it goes on in the next pass.
    Cut(Box<Dump>),
}

impl Pass<'_> {
    /// Carries all that waits, as far as the budget goes.
    pub fn all(&mut self, waiting: Vec<Entry>, done: &mut dyn FnMut(Dump) -> Result<()>) -> Result<Tally> {
        let waiting = waiting.into_iter().map(|entry| entry.dump).collect();
        let name = self.dest.name.clone();
        let order = share::arrange(plan::order(waiting, &name), &mut self.budget, |dump| cost(dump, &name));
        let mut order: VecDeque<Dump> = order.into();
        let mut known: HashSet<DumpId> = order.iter().map(|dump| dump.id.clone()).collect();
        let (mut tally, mut in_a_row) = (Tally::default(), 0);
        let mut held: VecDeque<Dump> = VecDeque::new();
        while let Some(dump) = order.pop_front() {
            if in_a_row == LINE_FAILURES {
                let left = order.len() + held.len() + 1;
                self.session.report.fail(&name, &anyhow!("the line is down: the other {left} stay pending"));
                return Ok(tally);
            }
            let after: Vec<u64> = order.iter().map(|dump| cost(dump, &name)).collect();
            match self.one(&dump, &after) {
                Ok(Fate::Gone) => {
                    if let Some(newer) = self.successor(&dump, &known) {
                        known.insert(newer.id.clone());
                        order.push_front(newer);
                    }
                }
                Ok(Fate::Sent(arrived)) => {
                    (tally.sent, in_a_row) = (tally.sent + 1, 0);
                    self.session.report.decided(&to_line(&Record::Dump(arrived.clone())));
                    // What was kept for one that needed less is there for the others.
                    if self.budget.is_oversized(cost(&dump, &name)) {
                        order.append(&mut held);
                    }
                    done(*arrived)?;
                }
                Ok(Fate::Waits) => held.push_back(dump),
                Ok(Fate::Cut(dump)) => {
                    (tally.limited, in_a_row) = (true, 0);
                    let limit = self.budget.tightest().unwrap_or_default();
                    let why = format!("cut in order, the limit of {limit} is reached: it goes on in the next pass");
                    tell(self.session, *dump, why, done)?;
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
        tally.limited |= !held.is_empty();
        for dump in held {
            tell(self.session, dump, waits(&self.budget), done)?;
        }
        Ok(tally)
    }

    /// Notes the pass in the ledger.
    pub fn finish(mut self, begun: Instant, tally: Tally) -> Result<()> {
        let line = ledger::Pass {
            id: self.id,
            at: self.session.clock(),
            dest: self.dest.name.clone(),
            wire_out: self.sum.out,
            wire_in: self.sum.into,
            seconds: begun.elapsed().as_secs(),
            sent: tally.sent,
            failed: tally.failed,
            pending: self.outbox.store.list().dumps.len() as u64,
            limited: tally.limited,
        };
        self.ledger.append(&Line::Pass(line))
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
    fn note(&self, dump: &Dump, change: impl FnOnce(&mut LinkNote)) -> Result<Option<Dump>> {
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
        if self.note(dump, |note| note.tries = Some(note.tries.unwrap_or(0).saturating_add(1)))?.is_none() {
            return Ok(Fate::Gone);
        }
        self.budget.begin();
        let at = self.session.clock();
        let id = format!("{}/{}", self.id, dump.id);
        let stop = self.carry_on(dump, journey, &id, begun).err();
        let wire = self.far.take_wire();
        self.sum = self.sum + wire;
        self.budget.spend(wire.both());
        let (result, why) = match &stop {
            None => ("sent", None),
            Some(Stop::Limit) => ("cut", None),
            Some(Stop::Trouble(trouble)) => ("failed", Some(format!("{:#}", trouble.error))),
        };
        let line = attempt(self.session, self.dest, &id, Some(dump), wire, begun, result);
        self.ledger.append(&Line::Attempt(Attempt { at, why, ..line }))?;
        match stop {
            Some(Stop::Trouble(trouble)) => return Err(trouble),
            Some(Stop::Limit) => {
                // That it failed before counts no more: it goes on in its turn.
                let noted = self.note(dump, |note| note.error = None)?;
                return Ok(Fate::Cut(Box::new(noted.unwrap_or_else(|| dump.clone()))));
            }
            None => {}
        }
        let arrived = self.outbox.add_sent(dump, self.sum_up(dump)?)?;
        self.unlink(dump)?;
        self.history.push(arrived.clone());
        Ok(Fate::Sent(Box::new(arrived)))
    }

    /// What all attempts at this dump have cost, from the ledger.
    fn sum_up(&self, dump: &Dump) -> Result<SentNote> {
        let ledger = Ledger::read(&self.outbox.ledger(), &self.dest.name)?;
        let of_it = || ledger.attempts.iter().filter(|attempt| attempt.dump.as_ref() == Some(&dump.id));
        let sum = |count: fn(&Attempt) -> u64| of_it().map(count).fold(0, u64::saturating_add);
        Ok(SentNote {
            at: self.session.clock(),
            wire_out: sum(|attempt| attempt.wire_out),
            wire_in: sum(|attempt| attempt.wire_in),
            seconds: sum(|attempt| attempt.seconds),
            passes: of_it().count() as u64,
            pruned: None,
            extra: Default::default(),
        })
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
