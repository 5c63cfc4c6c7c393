//! Carries the plan out. The order matters: under a store's lock it is listed, planned and pruned, so that two prunes at
//! once each see what the other has left. An order by name locks and plans all stores before it removes anything.

use anyhow::{Context, Result, anyhow};
use bak_common::args::Session;
use bak_common::config::Keep;
use bak_common::jsonl::{Writer, read_all};
use bak_common::name::{DumpId, GuestName};
use bak_common::record::{Dump, PruneNote, Record, to_line};
use bak_common::report::Kind;
use bak_common::select::Selector;
use bak_common::store::{Entry, Listing, Locked, Store, Unreadable};
use bak_common::table::table;
use bak_common::units::show_size;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{self, Candidate, Decision, Item, SKEW_S, Terms};

/// What a run is asked to do.
#[derive(Debug)]
pub struct Request {
    /// In the order in which they are locked.
    pub places: Vec<Place>,
    /// Remove exactly these, rather than what no rule keeps.
    pub order: Option<Order>,
    pub guests: Selector,
    /// The rules of the command line; else the configuration's hold.
    pub rules: Option<Keep>,
}

/// A store to prune.
#[derive(Debug)]
pub struct Place {
    pub store: Store,
    /// The destination whose copy this is.
    pub dest: Option<String>,
}

#[derive(Debug)]
pub struct Order {
    pub ids: BTreeSet<DumpId>,
    /// More ids come by standard input.
    pub stdin: bool,
}

/// The dumps that were named, each with what the pipe adds to its record.
type Named = BTreeMap<DumpId, Map<String, Value>>;

/// One store, locked (but in a dry run), listed and planned.
struct Job<'a> {
    locked: Option<Locked<'a>>,
    entries: Vec<Entry>,
    items: Vec<Item>,
}

/// Prunes; the exit status.
pub fn run(session: &Session, request: Request) -> Result<u8> {
    let mut output = Output::new(session);
    let mut refused = false;
    match &request.order {
        Some(order) => refused = by_name(session, &request, order, &mut output)?,
        None => {
            for place in &request.places {
                match prepare(session, &request, place, None) {
                    Ok(job) => carry_out(session, job, &Named::new(), &mut output)?,
                    Err(error) => session.report.fail(&place.store.path().display().to_string(), &error),
                }
            }
            for text in request.guests.unmatched() {
                session.report.fail(text, &anyhow!("no guest with a dump here is called so"));
            }
        }
    }
    output.finish()?;
    let status = session.report.finish(|count| match refused {
        true => "nothing was removed".to_owned(),
        false => format!("{count} failed; the others are done"),
    });
    Ok(if refused { Kind::Refused as u8 } else { status })
}

/// Removes exactly what was named, or nothing if any of it must not be; whether that was so.
fn by_name(session: &Session, request: &Request, order: &Order, output: &mut Output) -> Result<bool> {
    let report = &session.report;
    let named = named(session, order)?;
    let mut jobs = Vec::new();
    for place in &request.places {
        jobs.push(prepare(session, request, place, Some(&named))?);
    }
    let items = || jobs.iter().flat_map(|job| &job.items);
    for id in named.keys().filter(|id| !items().any(|item| item.id == **id)) {
        report.fail(id.as_str(), &anyhow!("there is no such dump in {}", stores(&request.places)));
    }
    for item in items().filter(|item| item.decision == Decision::Blocked) {
        report.fail(item.id.as_str(), &anyhow!("not removed: {}", item.reasons.join("; ")));
    }
    let mut refused = false;
    for item in items().filter(|item| item.decision == Decision::Spared) {
        refused = true;
        report.fail(item.id.as_str(), &Kind::Refused.says(format!("must not be removed: {}", item.reasons.join("; "))));
    }
    for mut job in jobs {
        if refused {
            job.items.retain(|item| item.decision != Decision::Remove);
        }
        carry_out(session, job, &named, output)?;
    }
    Ok(refused)
}

fn stores(places: &[Place]) -> String {
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
    let (entries, looks, unreadable) = look(&place.store);
    let blocked = |vm: &GuestName| {
        let bad = unreadable.iter().find(|bad| bad.may_concern(vm))?;
        Some(place.store.path().join(bad.path()).display().to_string())
    };
    let terms = Terms {
        now: session.now,
        zone: session.zone,
        skew_s: SKEW_S,
        select: &|dump| request.guests.matches(dump),
        keep: &|dump| rules(session, request, place, dump),
        blocked: &blocked,
    };
    let candidates: Vec<Candidate> = entries.iter().zip(&looks).map(|(entry, look)| look.candidate(entry)).collect();
    let items = match named {
        Some(named) => plan::by_name(&candidates, &named.keys().cloned().collect(), &terms),
        None => plan::by_policy(&candidates, &terms),
    };
    report_unreadable(session, request, place, &unreadable, &candidates, &items);
    for item in items.iter().filter(|item| item.future && !session.quiet) {
        session.report.warn(item.id.as_str(), "it is dated in the future: not counted, and never removed");
    }
    Ok(Job { locked, entries, items })
}

/// What the rules need to know of a dump's files.
struct Look {
    gone: bool,
    protected: bool,
}

impl Look {
    fn of(store: &Store, entry: &Entry) -> Result<Self> {
        let gone = entry.fault.is_some() && store.is_gone(entry)?;
        Ok(Self { gone, protected: store.is_protected(entry)? })
    }

    fn candidate<'a>(&self, entry: &'a Entry) -> Candidate<'a> {
        let Entry { dump, place, fault, .. } = entry;
        Candidate { dump, place, fault: fault.as_deref(), gone: self.gone, protected: self.protected }
    }
}

/// Lists the store. A dump whose files cannot be looked at is as bad as one whose sidecar cannot be read.
fn look(store: &Store) -> (Vec<Entry>, Vec<Look>, Vec<Unreadable>) {
    let Listing { dumps, mut unreadable } = store.list();
    let (mut entries, mut looks) = (Vec::new(), Vec::new());
    for entry in dumps {
        match Look::of(store, &entry) {
            Ok(look) => {
                entries.push(entry);
                looks.push(look);
            }
            Err(error) => {
                unreadable.push(Unreadable { place: entry.place, stem: Some(entry.dump.stem), error });
            }
        }
    }
    (entries, looks, unreadable)
}

fn rules(session: &Session, request: &Request, place: &Place, dump: &Dump) -> Keep {
    if let Some(rules) = &request.rules {
        return rules.clone();
    }
    let mut effective = session.config.effective(dump);
    let remote = place.dest.as_ref().and_then(|dest| effective.keep_at.remove(dest));
    remote.unwrap_or(effective.keep)
}

/// Reports what could not be read and stands in the way, or may stand in the way of a guest that nobody can name.
fn report_unreadable(
    session: &Session,
    request: &Request,
    place: &Place,
    unreadable: &[Unreadable],
    candidates: &[Candidate],
    items: &[Item],
) {
    for bad in unreadable {
        let concerns = |item: &Item| bad.may_concern(&candidates[item.at].dump.vm);
        let whole = bad.stem.is_none();
        if whole || (request.order.is_none() && request.guests.takes_all()) || items.iter().any(concerns) {
            let what = if whole { "in this store" } else { "of its guest" };
            let path = place.store.path().join(bad.path()).display().to_string();
            session.report.fail(&path, &anyhow!("{:#}; nothing {what} is removed", bad.error));
        }
    }
}

/// Removes what the plan says, and prints it.
fn carry_out(session: &Session, job: Job, named: &Named, output: &mut Output) -> Result<()> {
    let going: Vec<&Item> = job.items.iter().filter(|item| item.decision == Decision::Remove).collect();
    let mut failed = BTreeSet::new();
    if let Some(locked) = &job.locked {
        let entries: Vec<&Entry> = going.iter().map(|item| &job.entries[item.at]).collect();
        for (item, result) in going.iter().zip(locked.remove(&entries)) {
            if let Err(error) = result.context("cannot remove the dump") {
                failed.insert(item.at);
                session.report.fail(item.id.as_str(), &error);
            }
        }
    }
    // The lock is for moments; whoever reads our output may take longer.
    let Job { locked, entries, items } = job;
    drop(locked);
    let mut records = Vec::new();
    for item in items.iter().filter(|item| !failed.contains(&item.at)) {
        let mut dump = entries[item.at].dump.clone();
        dump.prune = Some(item.note());
        dump.planned = session.dry_run;
        if let Some(extra) = named.get(&item.id) {
            dump.extra.extend(extra.clone());
        }
        if item.decision != Decision::Keep {
            session.report.decided(&to_line(&Record::Dump(Box::new(dump.clone()))));
        }
        if item.decision == Decision::Remove || session.explain {
            records.push((item.decision, dump));
        }
    }
    for (decision, dump) in records {
        output.put(decision, dump)?;
    }
    Ok(())
}

/// Where decisions go: records, a table, or nowhere.
struct Output<'a> {
    session: &'a Session,
    writer: Writer<std::io::Stdout>,
    rows: Vec<Vec<String>>,
    removed: (u64, u64),
}

impl<'a> Output<'a> {
    fn new(session: &'a Session) -> Self {
        Self { session, writer: Writer::stdout(), rows: Vec::new(), removed: (0, 0) }
    }

    fn put(&mut self, decision: Decision, dump: Dump) -> Result<()> {
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

    fn finish(mut self) -> Result<()> {
        if self.session.quiet || !self.session.table {
            return Ok(());
        }
        if !self.rows.is_empty() {
            let rows = std::mem::take(&mut self.rows);
            self.writer.line(&table(&["dump", "name", "start", "size", "decision", "reasons"], &[3], rows))?;
        }
        let (count, bytes) = self.removed;
        let verb = if self.session.dry_run { "would be removed" } else { "removed" };
        let noun = if count == 1 { "dump" } else { "dumps" };
        self.writer.line(&format!("{count} {noun}, {}, {verb}", show_size(bytes)))
    }
}

/// Prints what the configuration says for each guest that has a dump here.
pub fn check_config(session: &Session, request: &Request) -> Result<u8> {
    let mut writer = Writer::stdout();
    for place in &request.places {
        let (entries, looks, unreadable) = look(&place.store);
        let candidates: Vec<Candidate> = entries.iter().zip(&looks).map(|(e, look)| look.candidate(e)).collect();
        let terms = Terms {
            now: session.now,
            zone: session.zone,
            skew_s: SKEW_S,
            select: &|_| true,
            keep: &|_| Keep::default(),
            blocked: &|_| None,
        };
        for dump in plan::faces(&candidates, &terms) {
            let effective = session.config.effective(dump);
            writer.line(&serde_json::to_string(&effective).context("cannot describe what holds for a guest")?)?;
        }
        Listing { dumps: Vec::new(), unreadable }.report(&place.store, &session.report);
    }
    Ok(session.report.finish(|count| format!("{count} could not be read")))
}
