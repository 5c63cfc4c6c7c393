//! What `check` judges by: the database, the store, and the outboxes with the history of what was sent, in this order.
//!
//! A guest that the database calls CLEAN had its dump in the store by then; one that is dumped and finished between the two
//! looks would otherwise seem to have none. And a dump leaves its outbox only after the history has it.

use anyhow::Result;
use bak_common::args::{Destination, Places, Session};
use bak_common::calendar::{SKEW_S, Time};
use bak_common::name::{DumpId, GuestName};
use bak_common::outbox::History;
use bak_common::record::{Dump, GuestKey};
use bak_common::report::Kind;
use bak_common::select::Subject;
use bak_common::store::{Listing, Unreadable};
use bak_common::units::total;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use crate::check::{Guest, Level, Problem, Sync, What};
use crate::db::{Mode, Step};
use crate::evidence::{destinations, outbox, starts, store};
use crate::format::{Details, Table};
use crate::show::{Chooser, subject};
use crate::status::{Detail, Status};

/// If nobody says: a night, and two hours for the dumps themselves.
const MAX_AGE_S: u64 = 26 * 3600;
const SENT_MAX_AGE_S: u64 = 7 * 86_400;

/// What is on its way to a destination, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    pub dest: String,
    /// In the outbox.
    pub pending: u64,
    /// Newest good dumps that are neither there nor sent.
    pub waiting: u64,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub struct Facts {
    pub guests: Vec<Guest>,
    /// Bytes of the newest good dump, by guest.
    pub sizes: BTreeMap<String, u64>,
    pub totals: Vec<Totals>,
    /// What could not be read.
    pub problems: Vec<Problem>,
}

pub fn gather(session: &Session, path: &Path, chooser: &Chooser, places: &Places) -> Result<Facts> {
    let mut facts = Facts { guests: rows(session, path, chooser)?, ..Facts::default() };
    let store = store(session, places)?;
    let dests = destinations(session, places)?;
    let listing = store.as_ref().map(|store| {
        let listing = store.list();
        facts.unreadable(&store.path().display().to_string(), &listing.unreadable);
        listing
    });
    let ways = dests.iter().map(|dest| Way::look(dest, &mut facts)).collect::<Result<Vec<_>>>()?;
    if let Some(listing) = &listing {
        local(&mut facts, listing, session.now);
    }
    for guest in &mut facts.guests {
        let subject = subject(&guest.vm, guest.detail.as_ref());
        guest.max_age_s = session.config.max_age(&subject).map_or(MAX_AGE_S, |span| span.0);
        guest.sync = ways
            .iter()
            .filter(|way| session.config.syncs(&subject, &way.dest))
            .map(|way| way.sync(session, guest))
            .collect();
    }
    facts.totals = ways.iter().map(|way| way.totals(session, listing.as_ref())).collect();
    Ok(facts)
}

/// What the database says. What it cannot say, or a choice that fits nothing, is an error: nobody must take it for good news.
fn rows(session: &Session, path: &Path, chooser: &Chooser) -> Result<Vec<Guest>> {
    let step = Step::begin(path, session.wait, Mode::Read)?;
    let (statedb, text) = (step.statedb()?, step.details()?);
    let (table, details) = (Table::parse(&statedb), Details::parse(&text));
    for damage in [&table.damage, &details.damage] {
        step.sound(damage)?;
    }
    let chosen = chooser.choose(&table, &details)?;
    let named: HashSet<&str> = chosen.named.iter().chain(&chosen.found).map(String::as_str).collect();
    let absent = named.iter().copied().filter(|vm| table.get(vm).is_none());
    if let Some(missing) = chosen.missing.iter().map(String::as_str).chain(absent).min() {
        return Err(Kind::Usage.says(format!("{missing}: no such guest is in the database")));
    }
    if named.is_empty() {
        let why = if table.rows().next().is_none() { "the database has no guests" } else { "no guest fits" };
        return Err(Kind::Usage.says(why));
    }
    let row = |(vm, status): (Cow<str>, Status)| {
        let vm = vm.as_ref();
        let (mut held, mut claimed_at) = (false, None);
        if status == Status::BackupInProgress {
            let encoded = GuestName::new(vm)?.encoded();
            (held, claimed_at) = (step.held(&encoded)?, step.claimed_at(&encoded)?);
        }
        let (detail, chosen) = (details.get(vm).cloned(), named.contains(vm));
        let vm = vm.to_owned();
        Ok(Guest { vm, status, detail, chosen, held, claimed_at, max_age_s: 0, local: None, sync: Vec::new() })
    };
    table.rows().map(row).collect()
}

impl Facts {
    fn unreadable(&mut self, top: &str, unreadable: &[Unreadable]) {
        self.problems.extend(unreadable.iter().map(|bad| {
            let why = format!("cannot read {top}/{}: {:#}", bad.path(), bad.error);
            Problem::new(Level::Warning, What::Unreadable, why)
        }));
    }
}

/// Whether nothing says that a dump, by its kind and uid, is of another guest under the same name.
fn is_of(detail: Option<&Detail>, kind: &str, uid: Option<&String>) -> bool {
    let known = |field: fn(&Detail) -> Option<&String>| detail.and_then(field);
    known(|detail| detail.kind.as_ref()).is_none_or(|known| known == kind)
        && known(|detail| detail.uid.as_ref()).zip(uid).is_none_or(|(known, uid)| known == uid)
}

/// Gives each guest its good dumps in the store.
fn local(facts: &mut Facts, listing: &Listing, now: Time) {
    let mut by_vm: HashMap<&str, Vec<&Dump>> = HashMap::new();
    for entry in listing.good() {
        by_vm.entry(entry.dump.vm.as_str()).or_default().push(&entry.dump);
    }
    for guest in &mut facts.guests {
        let all = by_vm.get(guest.vm.as_str()).into_iter().flatten();
        let ours: Vec<&&Dump> =
            all.filter(|dump| is_of(guest.detail.as_ref(), &dump.kind, dump.uid.as_ref())).collect();
        guest.local = Some(ours.iter().map(|dump| dump.started).collect());
        let past = ours.iter().filter(|dump| dump.started <= now.plus(SKEW_S));
        if let Some(newest) = past.max_by_key(|dump| dump.started) {
            facts.sizes.insert(guest.vm.clone(), newest.bytes);
        }
    }
}

/// What is known of the way to one destination.
struct Way {
    dest: String,
    /// By the guest's name, so that its dumps are found whatever is known of its kind and uid.
    sent: HashMap<String, Vec<(GuestKey, Vec<Time>)>>,
    pending: HashMap<DumpId, u64>,
    /// The names of guests of which something is pending.
    waits: HashSet<String>,
}

impl Way {
    /// An outbox that is not there yet is one from which nothing was sent.
    fn look(dest: &Destination, facts: &mut Facts) -> Result<Self> {
        let (mut listing, mut history) = (Listing::default(), History::default());
        if let Some(outbox) = outbox(dest)? {
            listing = outbox.store.list();
            history = outbox.history()?;
            let top = dest.outbox.display();
            facts.unreadable(&top.to_string(), &listing.unreadable);
            facts.unreadable(&format!("{top}/.bak/sent"), &history.unreadable);
        }
        let arrived: HashSet<&DumpId> = history.dumps.iter().map(|dump| &dump.id).collect();
        let pending: Vec<&Dump> =
            listing.good().map(|entry| &entry.dump).filter(|dump| !arrived.contains(&dump.id)).collect();
        let mut sent: HashMap<String, Vec<_>> = HashMap::new();
        for (key, starts) in starts(history.dumps.iter()) {
            sent.entry(key.vm.as_str().to_owned()).or_default().push((key, starts));
        }
        Ok(Self {
            dest: dest.name.clone(),
            sent,
            waits: pending.iter().map(|dump| dump.vm.as_str().to_owned()).collect(),
            pending: pending.into_iter().map(|dump| (dump.id.clone(), dump.bytes)).collect(),
        })
    }

    fn of(&self, vm: &str) -> impl Iterator<Item = &(GuestKey, Vec<Time>)> {
        self.sent.get(vm).into_iter().flatten()
    }

    fn sync(&self, session: &Session, guest: &Guest) -> Sync {
        let subject = subject(&guest.vm, guest.detail.as_ref());
        let max_age_s = session.config.sent_max_age(&subject, &self.dest).map_or(SENT_MAX_AGE_S, |span| span.0);
        let ours = self.of(&guest.vm).filter(|(key, _)| is_of(guest.detail.as_ref(), &key.kind, key.uid.as_ref()));
        let sent = ours.flat_map(|(_, starts)| starts.iter().copied()).collect();
        Sync { dest: self.dest.clone(), max_age_s, sent, pending: self.waits.contains(&guest.vm) }
    }

    fn totals(&self, session: &Session, listing: Option<&Listing>) -> Totals {
        let mut newest = HashMap::new();
        for dump in listing.into_iter().flat_map(Listing::good).map(|entry| &entry.dump) {
            // In the order of their starts: the last one stays.
            if dump.started <= session.now.plus(SKEW_S) {
                newest.insert(dump.key(), dump);
            }
        }
        let waits = |(key, dump): &(GuestKey, &Dump)| {
            let mut sent = self.of(dump.vm.as_str()).filter(|(known, _)| known == key).flat_map(|(_, starts)| starts);
            !sent.any(|sent| *sent >= dump.started)
                && !self.pending.contains_key(&dump.id)
                && session.config.syncs(&Subject::from(*dump), &self.dest)
        };
        let waiting = total(newest.into_iter().filter(waits).map(|(_, dump)| dump.bytes));
        Totals { dest: self.dest.clone(), pending: total(self.pending.values().copied()), waiting }
    }
}
