//! Carries the plan out. The order matters: under a store's lock it is listed, planned and pruned, so that two prunes at
//! once each see what the other has left. What must be refused as a whole (an order by name, a bound on how many may go)
//! locks and plans all stores before it removes anything.

use anyhow::{Context, Result, anyhow};
use bak_common::args::Session;
use bak_common::config::Keep;
use bak_common::jsonl::{Writer, read_all};
use bak_common::name::DumpId;
use bak_common::record::{Dump, Record, to_line};
use bak_common::report::Kind;
use bak_common::store::{Entry, Locked};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

use crate::look::View;
use crate::output::Output;
use crate::plan::{self, Candidate, Decision, Item, Terms};
use crate::request::{Order, Place, Request, Task};

/// The dumps that were named, each with what the pipe adds to its record.
type Named = BTreeMap<DumpId, Map<String, Value>>;

/// One store, locked (but in a dry run), listed and planned.
struct Job<'a> {
    locked: Option<Locked<'a>>,
    view: View,
    items: Vec<Item>,
}

impl Job<'_> {
    fn count(&self, decision: Decision) -> usize {
        self.items.iter().filter(|item| item.decision == decision).count()
    }

    fn id(&self, item: &Item) -> &DumpId {
        &self.view.entries[item.at].dump.id
    }

    fn reasons(&self, session: &Session, item: &Item) -> String {
        item.reasons(&self.view.candidates(), session.zone).join("; ")
    }
}

/// Prunes; the exit status.
pub fn run(session: &Session, request: Request) -> Result<u8> {
    let mut output = Output::new(session);
    let refused = match &request.task {
        Task::Rules => by_rules(session, &request, &mut output)?,
        Task::Named(order) => by_name(session, &request, order, &mut output)?,
    };
    output.finish()?;
    let status = session.report.finish(|count| match refused {
        true => "nothing was removed".to_owned(),
        false => format!("{count} failed; the others are done"),
    });
    Ok(if refused { Kind::Refused as u8 } else { status })
}

/// Removes what no rule keeps, or nothing if that is more than may go; whether that was so.
fn by_rules(session: &Session, request: &Request, output: &mut Output) -> Result<bool> {
    let mut jobs = Vec::new();
    for place in &request.places {
        match prepare(session, request, place, None) {
            Ok(job) if request.max_remove.is_some() => jobs.push(job),
            Ok(job) => carry_out(session, job, &Named::new(), output)?,
            Err(error) => session.report.fail(&place.store.path().display().to_string(), &error),
        }
    }
    let refused = !few_enough(session, request, &jobs);
    for job in jobs {
        carry_out(session, if refused { unharmed(job) } else { job }, &Named::new(), output)?;
    }
    for text in request.guests.unmatched() {
        session.report.fail(text, &anyhow!("no guest with a dump here is called so"));
    }
    Ok(refused)
}

/// Whether no more would go than `--max-remove` allows. Says so if not.
fn few_enough(session: &Session, request: &Request, jobs: &[Job]) -> bool {
    let going: usize = jobs.iter().map(|job| job.count(Decision::Remove)).sum();
    let all: usize = jobs.iter().map(|job| job.items.len()).sum();
    let Some(most) = request.max_remove.filter(|most| !most.allows(going, all)) else { return true };
    let text =
        format!("{going} of {all} dumps would go, more than --max-remove {most} allows (-n without it shows them)");
    session.report.fail("refused", &Kind::Refused.says(text));
    false
}

/// The same without anything that would be removed.
fn unharmed(mut job: Job) -> Job {
    job.items.retain(|item| item.decision != Decision::Remove);
    job
}

/// Removes exactly what was named, or nothing if any of it must not be; whether that was so.
fn by_name(session: &Session, request: &Request, order: &Order, output: &mut Output) -> Result<bool> {
    let report = &session.report;
    let named = named(session, order)?;
    let mut jobs = Vec::new();
    for place in &request.places {
        jobs.push(prepare(session, request, place, Some(&named))?);
    }
    let items = || jobs.iter().flat_map(|job| job.items.iter().map(move |item| (job, item)));
    for id in named.keys().filter(|id| !items().any(|(job, item)| job.id(item) == *id)) {
        report.fail(id.as_str(), &anyhow!("there is no such dump in {}", stores(&request.places)));
    }
    for (job, item) in items().filter(|(_, item)| item.decision == Decision::Blocked) {
        report.fail(job.id(item).as_str(), &anyhow!("not removed: {}", job.reasons(session, item)));
    }
    let mut refused = !few_enough(session, request, &jobs);
    for (job, item) in items().filter(|(_, item)| item.decision == Decision::Spared) {
        refused = true;
        let text = format!("must not be removed: {}", job.reasons(session, item));
        report.fail(job.id(item).as_str(), &Kind::Refused.says(text));
    }
    for job in jobs {
        carry_out(session, if refused { unharmed(job) } else { job }, &named, output)?;
    }
    Ok(refused)
}

pub fn stores(places: &[Place]) -> String {
    places.iter().map(|place| place.store.path().display().to_string()).collect::<Vec<_>>().join(" or ")
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

fn prepare<'a>(session: &Session, request: &Request, place: &'a Place, named: Option<&Named>) -> Result<Job<'a>> {
    let locked = match session.dry_run {
        true => None,
        false => Some(place.store.lock(session.wait, &session.report)?),
    };
    let view = View::of(&place.store);
    let dump = |at: usize| &view.entries[at].dump;
    let terms = Terms {
        skew_s: request.skew_s,
        select: &|at| request.guests.matches(dump(at)),
        keep: &|at| rules(session, request, place, dump(at)),
        blocked: &|vm| view.blocked(&place.store, vm),
        force: request.force,
        ..Terms::at(session.now, session.zone)
    };
    let candidates = view.candidates();
    let items = match named {
        Some(named) => plan::by_name(&candidates, &named.keys().cloned().collect(), &terms),
        None => plan::by_policy(&candidates, &terms),
    };
    let everyone = named.is_none() && request.guests.takes_all();
    view.report(session, &place.store, |bad| {
        everyone || items.iter().any(|item| bad.may_concern(candidates[item.at].vm))
    });
    warn(session, request, place, &candidates, &items);
    Ok(Job { locked, items, view })
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
        session.report.warn(&place.store.path().display().to_string(), &text);
    }
}

/// The rules for the guest that `dump` stands for.
fn rules(session: &Session, request: &Request, place: &Place, dump: &Dump) -> Keep {
    let mut keep = match &request.rules {
        Some(rules) => rules.clone(),
        None => {
            let mut effective = session.config.effective(dump);
            let remote = place.dest.as_ref().and_then(|dest| effective.keep_at.remove(dest));
            remote.unwrap_or(effective.keep)
        }
    };
    keep.failed = request.keep_failed.or(keep.failed);
    keep
}

/// Removes what the plan says, and prints it.
fn carry_out(session: &Session, job: Job, named: &Named, output: &mut Output) -> Result<()> {
    let going: Vec<&Item> = job.items.iter().filter(|item| item.decision == Decision::Remove).collect();
    let mut failed = BTreeSet::new();
    if let Some(locked) = &job.locked {
        let entries: Vec<&Entry> = going.iter().map(|item| &job.view.entries[item.at]).collect();
        for (item, result) in going.iter().zip(locked.remove(&entries)) {
            if let Err(error) = result.context("cannot remove the dump") {
                failed.insert(item.at);
                session.report.fail(job.id(item).as_str(), &error);
            }
        }
    }
    // The lock is for moments; whoever reads our output may take longer.
    let Job { locked, view, items, .. } = job;
    drop(locked);
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
    for item in items.iter().filter(done).filter(|item| item.decision != Decision::Keep) {
        session.report.decided(&to_line(&Record::Dump(Box::new(record(item)))));
    }
    for item in items.iter().filter(done).filter(|item| item.decision == Decision::Remove || session.explain) {
        output.put(item.decision, record(item))?;
    }
    Ok(())
}

/// Prints what the configuration says for each guest that has a dump here.
pub fn check_config(session: &Session, request: &Request) -> Result<u8> {
    let mut writer = Writer::stdout();
    for place in &request.places {
        let view = View::of(&place.store);
        for at in plan::faces(&view.candidates(), &Terms::at(session.now, session.zone)) {
            let effective = session.config.effective(&view.entries[at].dump);
            writer.line(&serde_json::to_string(&effective).context("cannot describe what holds for a guest")?)?;
        }
        view.report(session, &place.store, |_| true);
    }
    Ok(session.report.finish(|count| format!("{count} could not be read")))
}
