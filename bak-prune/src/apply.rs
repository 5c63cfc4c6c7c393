//! Carries the plan out. The order matters: under a store's lock it is listed, planned and pruned, so that two prunes at
//! once each see what the other has left. What must be refused as a whole (an order by name, a bound on how many may go)
//! locks and plans all stores before it removes anything.

use anyhow::{Context, Result, anyhow};
use bak_common::args::Session;
use bak_common::config::Keep;
use bak_common::jsonl::{Writer, read_all, read_heads};
use bak_common::name::{DumpId, GuestName};
use bak_common::record::{Dump, Head, Record, to_line};
use bak_common::report::Kind;
use bak_common::store::{Entry, Unreadable};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

use crate::held::{self, Held};
use crate::look::View;
use crate::offsite::{self, OnlySent};
use crate::output::Output;
use crate::plan::{self, Candidate, Decision, Item, Ruling, Terms};
use crate::policy::Hold;
use crate::remote::Outcome;
use crate::request::{At, GoneGuests, Order, Place, Purge, Request, Task};
use crate::{forecast, gone, protect, space};

/// The dumps that were named, each with what the pipe adds to its record.
type Named = BTreeMap<DumpId, Map<String, Value>>;

/// One store, held (but in a dry run), listed and planned.
struct Job<'a> {
    held: Held<'a>,
    view: View,
    items: Vec<Item>,
}

impl Job<'_> {
    fn count(&self, decision: Decision) -> usize {
        self.items.iter().filter(|item| item.decision == decision).count()
    }

    /// Whether there are dumps, and no rule for any of them.
    fn is_unruled(&self) -> bool {
        let by_none = |item: &Item| matches!(item.ruling, Ruling::Keep(Hold::NoRule));
        self.items.iter().any(by_none) && self.items.iter().all(|item| by_none(item) || item.ruling == Ruling::Nothing)
    }

    fn id(&self, item: &Item) -> &DumpId {
        &self.view.entries[item.at].dump.id
    }

    fn reasons(&self, session: &Session, item: &Item) -> String {
        item.reasons(&self.view.candidates(), session.zone).join("; ")
    }
}

/// What a run works with.
struct Run<'a> {
    session: &'a Session,
    request: &'a Request,
    /// Guests that are gone.
    gone: Vec<Head>,
}

/// Which dumps are decided upon.
#[derive(Clone, Copy)]
enum Pick<'a> {
    Rules,
    Named(&'a Named),
    Purge(&'a GuestName),
}

/// Prunes; the exit status.
pub fn run(session: &Session, request: Request) -> Result<u8> {
    let mut output = Output::new(session);
    let gone = match request.gone {
        GoneGuests::No => Vec::new(),
        GoneGuests::Too | GoneGuests::Only => read_heads(&session.report, session.dry_run)?,
    };
    let run = Run { session, request: &request, gone };
    let mut refused = false;
    match &request.task {
        Task::Rules => refused = run.by_rules(&mut output)?,
        Task::Named(order) => refused = run.by_name(order, &mut output)?,
        Task::Purge(purge) => refused = run.purge(purge, &mut output)?,
        Task::Simulate(simulate) => return forecast::run(session, &request, simulate),
        Task::Protect(marks) => protect::run(session, &request, marks, &mut output)?,
    }
    let removed = output.finish()?;
    let status = session.report.finish(|count| match removed {
        _ if matches!(request.task, Task::Protect(_)) => format!("{count} failed; the others are done"),
        _ if refused => "nothing was removed".to_owned(),
        _ if session.dry_run => format!("{count} failed; the plan is made without them"),
        0 => format!("{count} failed; nothing was removed"),
        1 => format!("{count} failed; 1 dump was removed"),
        _ => format!("{count} failed; {removed} dumps were removed"),
    });
    Ok(if refused { Kind::Refused as u8 } else { status })
}

impl<'a> Run<'a> {
    /// Removes what no rule keeps, or nothing if that is more than may go; whether that was so.
    fn by_rules(&self, output: &mut Output) -> Result<bool> {
        let mut jobs = Vec::new();
        for place in &self.request.places {
            let prepared = self.prepare(place, Pick::Rules);
            if prepared.as_ref().is_ok_and(Job::is_unruled) {
                output.unruled(place.name());
            }
            match prepared {
                Ok(job) if self.request.max_remove.is_some() => jobs.push(job),
                Ok(job) => carry_out(self.session, job, &Named::new(), output)?,
                Err(error) => self.session.report.fail(&place.name(), &error),
            }
        }
        let refused = !self.few_enough(&jobs);
        self.all(jobs, refused, &Named::new(), output)?;
        for text in self.request.guests.unmatched() {
            self.session.report.fail(text, &anyhow!("no guest with a dump here is called so"));
        }
        Ok(refused)
    }

    /// Removes exactly what was named, or nothing if any of it must not be; whether that was so.
    fn by_name(&self, order: &Order, output: &mut Output) -> Result<bool> {
        let named = named(self.session, order)?;
        let jobs = self.prepare_all(Pick::Named(&named))?;
        let found = |id: &DumpId| jobs.iter().any(|job| job.items.iter().any(|item| job.id(item) == id));
        for id in named.keys().filter(|id| !found(id)) {
            let text = anyhow!("there is no such dump in {}", stores(&self.request.places));
            self.session.report.fail(id.as_str(), &text);
        }
        let refused = !self.few_enough(&jobs) | self.spared(&jobs);
        self.all(jobs, refused, &named, output)?;
        Ok(refused)
    }

    /// Removes all of a guest's dumps, or nothing if that was not said twice or one is protected; whether that was so.
    fn purge(&self, purge: &Purge, output: &mut Output) -> Result<bool> {
        let jobs = self.prepare_all(Pick::Purge(&purge.vm))?;
        let count: usize = jobs.iter().map(|job| job.items.len()).sum();
        let vm = purge.vm.as_str();
        let report = &self.session.report;
        if count == 0 {
            report.fail(vm, &anyhow!("there is no dump of it in {}", stores(&self.request.places)));
        }
        let unsure = count > 0 && !purge.confirmed && !self.session.dry_run;
        if unsure {
            let text =
                format!("all its {count} dumps would go, the last good one too: add --yes-purge {vm}, or -n to see");
            report.fail(vm, &Kind::Refused.says(text));
        }
        let refused = unsure | !self.few_enough(&jobs) | self.spared(&jobs);
        self.all(jobs, refused, &Named::new(), output)?;
        Ok(refused)
    }

    fn prepare_all(&self, pick: Pick) -> Result<Vec<Job<'a>>> {
        self.request.places.iter().map(|place| self.prepare(place, pick)).collect()
    }

    /// Carries out all jobs, without what they would remove if that is refused.
    fn all(&self, jobs: Vec<Job>, refused: bool, named: &Named, output: &mut Output) -> Result<()> {
        for mut job in jobs {
            if refused {
                job.items.retain(|item| item.decision != Decision::Remove);
            }
            carry_out(self.session, job, named, output)?;
        }
        Ok(())
    }

    /// Whether no more would go than `--max-remove` allows. Says so if not.
    fn few_enough(&self, jobs: &[Job]) -> bool {
        let going: usize = jobs.iter().map(|job| job.count(Decision::Remove)).sum();
        let all: usize = jobs.iter().map(|job| job.items.len()).sum();
        let Some(most) = self.request.max_remove.filter(|most| !most.allows(going, all)) else { return true };
        let text = format!("{going} of {all} dumps would go, more than {most} (-n without --max-remove shows them)");
        self.session.report.fail("--max-remove", &Kind::Refused.says(text));
        false
    }

    /// Whether an explicit order names what must stay. Says so.
    fn spared(&self, jobs: &[Job]) -> bool {
        let report = &self.session.report;
        let items = || jobs.iter().flat_map(|job| job.items.iter().map(move |item| (job, item)));
        for (job, item) in items().filter(|(_, item)| item.decision == Decision::Blocked) {
            report.fail(job.id(item).as_str(), &anyhow!("not removed: {}", job.reasons(self.session, item)));
        }
        let mut spared = false;
        for (job, item) in items().filter(|(_, item)| item.decision == Decision::Spared) {
            spared = true;
            let text = format!("must not be removed: {}", job.reasons(self.session, item));
            report.fail(job.id(item).as_str(), &Kind::Refused.says(text));
        }
        spared
    }

    /// Lists and plans one store, under its lock.
    fn prepare(&self, place: &'a Place, pick: Pick) -> Result<Job<'a>> {
        let Run { session, request, .. } = self;
        let waits = |wanted: &OnlySent| Ok::<_, anyhow::Error>((wanted.clone(), wanted.sightings(session, place)?));
        let waits = request.only_sent.as_ref().map(waits).transpose()?;
        let (held, view) = held::open(session, place, !session.dry_run)?;
        let bases = offsite::bases(place, &view)?;
        let dump = |at: usize| &view.entries[at].dump;
        let unsent = |at: usize| {
            let (wanted, sightings) = waits.as_ref()?;
            wanted.wait(sightings, dump(at), &session.config, session.now, request.skew_s)
        };
        let is_gone = |dump: &Candidate| self.gone.iter().any(|gone| gone::is(gone, dump.vm, dump.kind, dump.uid));
        let candidates = view.candidates();
        let terms = Terms {
            skew_s: request.skew_s,
            select: &|at| self.selects(dump(at), is_gone(&candidates[at])),
            keep: &|at| rules(session, request, place, dump(at)),
            blocked: &|vm| view.blocked(vm),
            is_gone: &is_gone,
            unsent: &unsent,
            basis: &|id| bases.get(id).cloned(),
            force: request.force,
            ..Terms::at(session.now, session.zone)
        };
        let mut items = match pick {
            Pick::Named(named) => plan::by_name(&candidates, &named.keys().cloned().collect(), &terms),
            Pick::Purge(vm) => plan::purge(&candidates, vm, &terms),
            Pick::Rules => {
                not_all_gone(&candidates, &terms)?;
                plan::by_policy(&candidates, &terms)
            }
        };
        if let Some(target) = request.free {
            space::make_room(session, place, &view, &mut items, target, &terms)?;
        }
        let purged = |bad: &Unreadable| matches!(pick, Pick::Purge(vm) if bad.may_concern(vm));
        let everyone = matches!(pick, Pick::Rules) && request.guests.takes_all() && request.gone != GoneGuests::Only;
        view.report(session, |bad| {
            everyone || purged(bad) || items.iter().any(|item| bad.may_concern(candidates[item.at].vm))
        });
        warn(session, request, place, &candidates, &items);
        Ok(Job { held, items, view })
    }

    fn selects(&self, dump: &Dump, gone: bool) -> bool {
        match self.request.gone {
            GoneGuests::Only => gone,
            GoneGuests::Too | GoneGuests::No => self.request.guests.matches(dump),
        }
    }
}

/// Refuses to believe that all guests of a store are gone: it is rather who looks after them that is.
fn not_all_gone(candidates: &[Candidate], terms: &Terms) -> Result<()> {
    let faces = plan::faces(candidates, terms);
    let gone = faces.iter().filter(|at| (terms.is_gone)(&candidates[**at])).count();
    if gone > 1 && gone == faces.len() {
        return Err(Kind::Refused.says(format!(
            "all {gone} guests here are said to be gone: does bak-state observe still run? (--purge removes a guest's dumps)"
        )));
    }
    Ok(())
}

pub fn stores(places: &[Place]) -> String {
    places.iter().map(Place::name).collect::<Vec<_>>().join(" or ")
}

fn named(session: &Session, order: &Order) -> Result<Named> {
    let mut named: Named = order.ids.iter().map(|id| (id.clone(), Map::new())).collect();
    if order.stdin {
        for record in read_all(&session.report, session.dry_run)? {
            match record {
                Record::Dump(dump) => named.entry(dump.id).or_default().extend(dump.extra),
                Record::Guest(guest) => {
                    session.report.fail(guest.vm.as_str(), &anyhow!("this is a guest; only dumps can be removed"));
                }
            }
        }
    }
    Ok(named)
}

/// Says which dumps have dates that cannot be right.
fn warn(session: &Session, request: &Request, place: &Place, candidates: &[Candidate], items: &[Item]) {
    if session.quiet {
        return;
    }
    let latest = session.now.plus(request.skew_s);
    let dumps = || items.iter().filter(|item| item.misdated).map(|item| &candidates[item.at]);
    for dump in dumps().filter(|dump| dump.started > latest) {
        session.report.warn(dump.id.as_str(), "it is dated in the future: not counted; its id with --force removes it");
    }
    let odd: Vec<&Candidate> = dumps().filter(|dump| dump.started <= latest).collect();
    if let Some(first) = odd.first() {
        let text = format!(
            "{} dated oddly, as {}: files much newer than their dumps are not counted (were they copied without their \
             times?); ids with --force remove them",
            if odd.len() == 1 { "a dump is".to_owned() } else { format!("{} dumps are", odd.len()) },
            first.id
        );
        session.report.warn(&place.name(), &text);
    }
}

/// The rules for the guest that `dump` stands for.
pub fn rules(session: &Session, request: &Request, place: &Place, dump: &Dump) -> Keep {
    let mut keep = match &request.rules {
        Some(rules) => rules.clone(),
        None => {
            let mut effective = session.config.effective(dump);
            match (place.dest_name(), &place.at) {
                // What holds for the store here says nothing about a copy elsewhere.
                (Some(dest), _) => effective.keep_at.remove(dest).unwrap_or_default(),
                (None, At::There(_)) => Keep::default(),
                (None, At::Here(_)) => effective.keep,
            }
        }
    };
    keep.failed = request.keep_failed.or(keep.failed);
    keep
}

/// Removes what the plan says, and prints it.
fn carry_out(session: &Session, job: Job, named: &Named, output: &mut Output) -> Result<()> {
    let mut failed = BTreeSet::new();
    let Job { mut held, view, items } = job;
    let going: Vec<&Item> = items.iter().filter(|item| item.decision == Decision::Remove).collect();
    let entries: Vec<&Entry> = going.iter().map(|item| &view.entries[item.at]).collect();
    let outcomes = if session.dry_run { Vec::new() } else { held.remove(&entries) };
    for (item, outcome) in going.iter().zip(outcomes) {
        match outcome {
            Outcome::Removed => continue,
            Outcome::Failed(error) => {
                let id = &view.entries[item.at].dump.id;
                session.report.fail(id.as_str(), &error.context("cannot remove the dump"));
            }
            Outcome::NotDone => {}
        }
        failed.insert(item.at);
    }
    output.removed(going.len() - failed.len());
    // The lock is for moments; whoever reads our output may take longer.
    drop(held);
    let candidates = view.candidates();
    let done = |item: &&Item| !failed.contains(&item.at) && (item.decision != Decision::Keep || session.explain);
    let record = |item: &Item| {
        let mut dump = view.entries[item.at].dump.clone();
        dump.prune = Some(item.note(&candidates, session.zone));
        dump.planned = session.dry_run;
        if let Some(extra) = named.get(&dump.id) {
            dump.extra.extend(extra.clone());
        }
        dump
    };
    // All of it goes into the log, also where the reader of our output has gone.
    let logged = |item: &&Item| session.report.is_logged() && item.decision != Decision::Keep;
    for item in items.iter().filter(done).filter(logged) {
        session.report.decided(&to_line(&Record::Dump(Box::new(record(item)))));
    }
    let shown = |item: &&Item| !session.quiet && (item.decision == Decision::Remove || session.explain);
    for item in items.iter().filter(done).filter(shown) {
        output.put(item.decision, record(item))?;
    }
    Ok(())
}

/// Prints what the configuration says for each guest that has a dump here.
pub fn check_config(session: &Session, request: &Request) -> Result<u8> {
    let mut writer = Writer::stdout();
    for place in &request.places {
        let (_, view) = held::open(session, place, false)?;
        for at in plan::faces(&view.candidates(), &Terms::at(session.now, session.zone)) {
            let effective = session.config.effective(&view.entries[at].dump);
            writer.line(&serde_json::to_string(&effective).context("cannot describe what holds for a guest")?)?;
        }
        view.report(session, |_| true);
    }
    Ok(session.report.finish(|count| format!("{count} could not be read")))
}
