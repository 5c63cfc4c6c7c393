//! `--forecast`: reads what a plan is made from, and the history besides; runs it forward; prints. Changes nothing and
//! takes no lock, so what it reads may be of two moments: the outbox is read before the history, as for a plan.

use anyhow::{Result, anyhow};
use bak_common::args::{Destination, Session};
use bak_common::calendar::{SKEW_S, Time};
use bak_common::config::Effective;
use bak_common::ledger::{Attempt, Ledger};
use bak_common::name::DumpId;
use bak_common::outbox::{History, Outbox};
use bak_common::record::{Dump, GuestKey};
use bak_common::report::Kind;
use bak_common::store::{Listing, Store};
use bak_common::units::{Span, show_duration};
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::apply::spent;
use crate::cost;
use crate::facts::{Judge, Sources, gather, pasts};
use crate::forecast::{Begun, Carried, Facts, Forecast, Guest, Known, Options, Outlook, forecast, too_often};
use crate::list::List;
use crate::plan;

mod lines;
mod plot;
mod show;

const DAY_S: u64 = 86_400;
/// More would take minutes.
const PASSES_MAX: u64 = 10_000;
/// Beyond this a forecast says nothing that a shorter one doesn't.
const LONGEST_S: u64 = 3660 * DAY_S;
/// How stale a guest may be of which nobody said it.
const TARGET_S: u64 = 7 * DAY_S;
/// From how many of the last passes it is taken what a pass costs beside its dumps.
const RECENT_PASSES: usize = 9;

#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Forecast")]
pub struct Ahead {
    /// Run the same planner forward for so long: when each guest goes, how stale it will be, what waits, and the smallest
    /// limit that is enough. Changes nothing
    #[arg(long, value_name = "DUR", conflicts_with_all = ["input", "only", "force", "all", "tag", "pool", "node", "kind"])]
    pub forecast: Option<Span>,
    /// How stale a guest may be after a pass [default: its stale_after; its sent_max_age where that is 0; else 7d]
    #[arg(long, value_name = "DUR", requires = "forecast")]
    target: Option<Span>,
    /// The time between two passes [default: when the ledger shows them; daily from now on where it shows none]
    #[arg(long, value_name = "DUR", requires = "forecast")]
    passes: Option<Span>,
}

/// How the planner is to be run.
pub struct Rules<'a> {
    pub oversize: bool,
    pub overdraft: bool,
    pub judge: Judge,
    pub list: Option<&'a List>,
}

/// What is said of one guest.
struct Subject {
    key: GuestKey,
    name: Option<String>,
    /// Where its target comes from.
    target: &'static str,
    /// Whether it has anything to do with this destination.
    concerned: bool,
}

/// The forecast for one destination.
struct Told<'a> {
    dest: &'a Destination,
    subjects: Vec<Subject>,
    forecast: Forecast,
}

impl Told<'_> {
    /// The guests that have anything to do with this destination.
    fn concerned(&self) -> impl Iterator<Item = &Outlook> {
        let each = self.subjects.iter().zip(&self.forecast.guests);
        each.filter(|(subject, _)| subject.concerned).map(|(_, outlook)| outlook)
    }
}

pub fn run(ahead: &Ahead, rules: &Rules, session: &Session, store: &Store, dests: &[Destination]) -> Result<u8> {
    let horizon = ahead.horizon()?;
    let listing = store.list();
    listing.report(store, &session.report);
    let mut told = Vec::new();
    for dest in dests {
        match one(ahead, horizon, rules, session, &listing, dest) {
            Ok(one) => told.push(one),
            Err(error) => session.report.fail(&dest.name, &error),
        }
    }
    for told in &told {
        match (session.quiet, session.table) {
            (true, _) => {}
            (false, true) => show::print(session, told)?,
            (false, false) => lines::print(session, told)?,
        }
    }
    Ok(session.report.finish(|failed| match told.is_empty() {
        true => format!("{failed} failed; there is no forecast"),
        false => format!("{failed} failed; the forecast is made without them"),
    }))
}

impl Ahead {
    fn horizon(&self) -> Result<i64> {
        if self.passes.is_some_and(|span| span.0 < 60) {
            return Err(Kind::Usage.says("--passes: at least 60s"));
        }
        let horizon = self.forecast.unwrap_or_default().0;
        if self.passes.is_some_and(|span| horizon / span.0 > PASSES_MAX) {
            return Err(Kind::Usage.says(format!("--forecast and --passes: that is more than {PASSES_MAX} passes")));
        }
        match i64::try_from(horizon) {
            Ok(seconds) if (1..=LONGEST_S).contains(&horizon) => Ok(seconds),
            _ => Err(Kind::Usage.says("--forecast: from 1s to 3660d")),
        }
    }
}

fn one<'a>(
    ahead: &Ahead,
    horizon_s: i64,
    rules: &Rules,
    session: &Session,
    store: &Listing,
    dest: &'a Destination,
) -> Result<Told<'a>> {
    let read = Read::new(session, dest)?;
    let effective = |dump: &Dump| session.config.effective(dump);
    let syncs = |dump: &Dump, effective: &Effective| match rules.list {
        Some(list) => list.syncs(dump),
        None => effective.sync.contains(&dest.name),
    };
    let sources = Sources {
        dest: &dest.name,
        store: &|each| store.dumps.iter().for_each(each),
        outbox: &read.outbox,
        history: &read.history.dumps,
        effective: &effective,
        selected: &|_| true,
        syncs: &syncs,
        judge: rules.judge,
        spent: &spent(&read.ledger),
    };
    let mut guests = gather(&sources);
    let mut pasts = pasts(&sources);
    guests.sort_by(|a, b| a.key.cmp(&b.key));
    let mut histories = histories(store, &read, dest);
    let mut subjects = Vec::new();
    let mut facts = read.facts(dest);
    for plan in guests {
        // Every guest is gathered from a dump of one of the three.
        let Some(history) = histories.remove(&plan.key) else { continue };
        let effective = effective(history.newest);
        let sent_max = effective.sent_max_age_s.get(&dest.name).copied();
        let (target_s, target) = match (ahead.target, plan.stale_after_s, sent_max) {
            (Some(span), _, _) => (span.0, "--target"),
            (None, 0, Some(seconds)) => (seconds, "sent_max_age"),
            (None, 0, None) => (TARGET_S, "assumed"),
            (None, seconds, _) => (seconds, "stale_after"),
        };
        let concerned = plan.sync || !plan.pending.is_empty();
        subjects.push(Subject { key: plan.key.clone(), name: history.newest.name.clone(), target, concerned });
        let past = pasts.remove(&plan.key);
        let past = (rules.judge == Judge::History).then(|| (past.unwrap_or_default(), cost::format(history.newest)));
        let GuestHistory { known, wire, begun, .. } = history;
        facts.guests.push(Guest { plan, known, wire, past, begun, target_s });
    }
    let plan = plan::Options {
        now: session.clock(),
        skew_s: SKEW_S,
        force: false,
        oversize: rules.oversize,
        overdraft: rules.overdraft || dest.overdraft,
    };
    let passes_s = ahead.passes.map(|span| i64::try_from(span.0).unwrap_or(i64::MAX));
    let options = Options { plan, zone: session.zone, horizon_s, passes_s };
    if let Some((spacing, passes)) = too_often(&facts, &options, PASSES_MAX as i64) {
        return Err(Kind::Usage.says(format!(
            "passes came every {} so far: to look {passes} passes ahead would take minutes; say how often they will come, as by --passes 1h",
            show_duration(spacing)
        )));
    }
    Ok(Told { dest, subjects, forecast: forecast(&facts, &options) })
}

/// What lies on disk for one destination.
struct Read {
    outbox: Listing,
    history: History,
    ledger: Ledger,
}

impl Read {
    fn new(session: &Session, dest: &Destination) -> Result<Self> {
        let there = dest.outbox.exists();
        let ledger = dest.ledger.as_deref();
        let outbox = if there { Some(Outbox::open(&dest.outbox, &dest.name, ledger)?) } else { None };
        let (pending, history) = match &outbox {
            Some(outbox) => (outbox.store.list(), outbox.history()?),
            None => (Listing::default(), History::default()),
        };
        if let Some(outbox) = &outbox {
            pending.report(&outbox.store, &session.report);
            for bad in &history.unreadable {
                let id = format!("{}: history of what was sent: {}", dest.name, bad.path());
                session.report.fail(&id, &anyhow!("{:#}", bad.error));
            }
        }
        let path = outbox.as_ref().map(Outbox::ledger).or_else(|| dest.ledger.clone());
        let ledger = path.map_or_else(|| Ok(Ledger::default()), |path| Ledger::read(&path, &dest.name))?;
        for damage in &ledger.damaged {
            session.report.fail("ledger", &anyhow!("cannot read {damage}"));
        }
        Ok(Self { outbox: pending, history, ledger })
    }

    /// What the ledger tells; no guests yet.
    fn facts(&self, dest: &Destination) -> Facts {
        let begun = |at: Time, seconds: u64| at.plus(-i64::try_from(seconds).unwrap_or(0));
        let passes = self.ledger.passes.iter().map(|pass| (begun(pass.at, pass.seconds), pass.at)).collect();
        let both = |out: u64, into: u64| out.saturating_add(into);
        let traffic = self.ledger.attempts.iter().map(|one| (one.at, both(one.wire_out, one.wire_in))).collect();
        // By pass, whose id begins that of the attempt; ids are random, so the newest are found by time.
        let mut beside: Vec<(Time, &str, u64)> = Vec::new();
        // What was brought back or verified is no pass's.
        let of_passes = |one: &&Attempt| one.dump.is_none() && !one.is_fetch();
        for one in self.ledger.attempts.iter().filter(of_passes) {
            let pass = one.id.split('/').next().unwrap_or(&one.id);
            let bytes = both(one.wire_out, one.wire_in);
            match beside.last_mut().filter(|last| last.1 == pass) {
                Some(last) => last.2 = last.2.saturating_add(bytes),
                None => beside.push((one.at, pass, bytes)),
            }
        }
        let mut recent: Vec<u64> = beside.iter().rev().take(RECENT_PASSES).map(|one| one.2).collect();
        recent.sort_unstable();
        let overhead = recent.get(recent.len() / 2).copied().unwrap_or(0);
        Facts { guests: Vec::new(), limits: dest.limits.clone(), passes, traffic, overhead }
    }
}

/// What is known of one guest beside what a plan asks for.
struct GuestHistory<'a> {
    newest: &'a Dump,
    known: Vec<Known>,
    wire: Vec<Carried>,
    begun: HashMap<DumpId, Begun>,
}

fn histories<'a>(store: &'a Listing, read: &'a Read, dest: &Destination) -> BTreeMap<GuestKey, GuestHistory<'a>> {
    let mut found: BTreeMap<GuestKey, GuestHistory> = BTreeMap::new();
    let listed = |listing: &'a Listing| listing.dumps.iter().map(|entry| (&entry.dump, entry.is_good()));
    let sent: HashSet<&DumpId> = read.history.dumps.iter().map(|dump| &dump.id).collect();
    let history = read.history.dumps.iter().map(|dump| (dump, true));
    for (dump, good) in listed(store).chain(listed(&read.outbox)).chain(history) {
        let one = || GuestHistory { newest: dump, known: Vec::new(), wire: Vec::new(), begun: HashMap::new() };
        let guest = found.entry(dump.key()).or_insert_with(one);
        if guest.newest.started < dump.started {
            guest.newest = dump;
        }
        let (id, started, finished, bytes) = (dump.id.clone(), dump.started, dump.finished, dump.bytes);
        guest.known.push(Known { id, started, finished, bytes, good });
    }
    for dump in &read.history.dumps {
        if let (Some(guest), Some(note)) = (found.get_mut(&dump.key()), dump.sent.get(&dest.name)) {
            let wire = note.wire_out.saturating_add(note.wire_in);
            guest.wire.push(Carried { started: dump.started, bytes: dump.bytes, wire });
        }
    }
    let mut carried: HashMap<&DumpId, u64> = HashMap::new();
    for attempt in &read.ledger.attempts {
        if let Some(id) = &attempt.dump {
            *carried.entry(id).or_default() += attempt.wire_out.saturating_add(attempt.wire_in);
        }
    }
    for entry in read.outbox.good().filter(|entry| !sent.contains(&entry.dump.id)) {
        if let (Some(guest), Some(note)) = (found.get_mut(&entry.dump.key()), entry.dump.link.get(&dest.name)) {
            let carried = carried.get(&entry.dump.id).copied().unwrap_or(0);
            let begun = Begun { linked: note.at, rank: note.rank.unwrap_or(0), carried };
            guest.begun.insert(entry.dump.id.clone(), begun);
        }
    }
    found
}
