//! Makes the plan for one destination and carries it out.
//!
//! Both happen under the lock of the outbox's store, so that two bak-links give one result, and what the plan saw pending
//! still is when the first link is made. bak-sync marks a dump as begun under the same lock, before it sends anything of it,
//! so nothing that was begun is ever replaced. bak-sync notes in the history that a dump was sent before it takes the links
//! away, so the outbox is read before the history: a dump on its way from one to the other is seen in both, never in
//! neither. Dumps of the source store may vanish or change at any moment: what is linked is read once more, and
//! [`Locked::link`] looks at what it has linked. What can't be linked is copied afterwards, if that was asked for, and
//! without that lock: see [`crate::copy`].

use anyhow::{Context, Result, anyhow, bail, ensure};
use bak_common::args::{Destination, Session};
use bak_common::calendar::{SKEW_S, Time};
use bak_common::config::Effective;
use bak_common::ledger::Ledger;
use bak_common::name::{DumpId, Stem};
use bak_common::outbox::{self, History, Outbox};
use bak_common::period;
use bak_common::record::{Dump, LinkNote};
use bak_common::report::Kind;
use bak_common::store::{Entry, Inode, Listing, Locked, NoLink, Store, Unreadable, Wanted};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::budget::Left;
use crate::copy;
use crate::facts::{Each, Judge, Sources, gather};
use crate::list::List;
use crate::plan::{Decision, Facts, Item, Options, Plan, plan};

/// What is the same for all destinations of a run.
pub struct Run<'a> {
    pub session: &'a Session,
    pub store: &'a Store,
    pub force: bool,
    pub oversize: bool,
    pub overdraft: bool,
    pub judge: Judge,
    /// Which guests are synced, instead of what the configuration says.
    pub list: Option<&'a List>,
    /// Copy what can't be linked, whatever the configuration says.
    pub copy: bool,
    pub selected: &'a dyn Fn(&Dump) -> bool,
    /// Dumps that standard input names: they are shown whatever is decided.
    pub asked: &'a HashSet<DumpId>,
    /// Sidecars of the store that were reported: once is enough for all destinations.
    pub reported: RefCell<HashSet<String>>,
}

/// What was decided for one dump, and what came of it.
pub struct Decided {
    pub id: DumpId,
    /// As it is on disk; absent if it vanished meanwhile, which was reported.
    pub dump: Option<Box<Dump>>,
    pub decision: Decision,
    pub note: LinkNote,
    /// Why it could not be linked, which was reported.
    pub failed: Option<String>,
}

/// What became of one destination.
pub struct Outcome {
    /// What is to be shown, or was asked for by standard input: nobody can keep a hundred thousand.
    pub decided: Vec<Decided>,
    /// How many are over the limit.
    pub over: usize,
    pub left: Vec<Left>,
}

/// Plans and links for one destination.
pub fn destination(run: &Run, dest: &Destination) -> Result<Outcome> {
    let session = run.session;
    let outbox = open(run, dest)?;
    // Else two that copy would each plan without what the other is just making.
    let _copying = match &outbox {
        Some(outbox) if copies(run, dest) && !session.dry_run => Some(copy::lock(session, outbox)?),
        _ => None,
    };
    let locked = match &outbox {
        Some(outbox) if !session.dry_run => Some(outbox.store.lock(session.wait, &session.report)?),
        _ => None,
    };
    let now = session.clock();
    let Read { facts, spots, pending } = read(run, dest, outbox.as_ref(), now)?;
    let options = Options {
        now,
        skew_s: SKEW_S,
        force: run.force,
        oversize: run.oversize,
        overdraft: run.overdraft || dest.overdraft,
    };
    let plan = plan(&facts, &options);
    drop(facts);
    let pending = pending.dumps.iter().chain(pending.good()).map(|entry| (&entry.dump.id, entry)).collect();
    Ok(Destined { run, dest, outbox: outbox.as_ref(), spots, pending, now }.carry_out(locked, plan))
}

/// What lies on disk.
struct Read {
    facts: Facts,
    spots: Spots,
    pending: Listing,
}

fn read(run: &Run, dest: &Destination, outbox: Option<&Outbox>, now: Time) -> Result<Read> {
    let session = run.session;
    let (pending, history) = match outbox {
        Some(outbox) => (outbox.store.list(), outbox.history()?),
        None => (Listing::default(), History::default()),
    };
    if let Some(outbox) = outbox {
        pending.report(&outbox.store, &session.report);
    }
    for bad in &history.unreadable {
        let id = format!("{}: history of what was sent: {}", dest.name, bad.path());
        session.report.fail(&id, &anyhow!("{:#}", bad.error));
    }
    let ledger = ledger(session, dest, outbox)?;
    let effective = |dump: &Dump| session.config.effective(dump);
    let syncs = |dump: &Dump, effective: &Effective| match run.list {
        Some(list) => list.syncs(dump),
        None => effective.sync.contains(&dest.name),
    };
    let spots = RefCell::new(Spots::default());
    let each = |on: &mut Each| {
        run.store.visit(&mut |seen| match seen {
            Ok(entry) => {
                spots.borrow_mut().add(&entry);
                on(&entry);
            }
            Err(bad) => report_unreadable(run, &bad),
        });
    };
    let sources = Sources {
        dest: &dest.name,
        store: &each,
        outbox: &pending,
        history: &history.dumps,
        effective: &effective,
        selected: run.selected,
        syncs: &syncs,
        judge: run.judge,
        spent: &spent(&ledger),
    };
    let passes = ledger.passes.iter().map(|pass| pass.at).collect();
    let facts =
        Facts { guests: gather(&sources), caps: period::caps(&dest.limits, &ledger, now, session.zone), passes };
    Ok(Read { facts, spots: spots.into_inner(), pending })
}

/// Whether what can't be linked is copied.
fn copies(run: &Run, dest: &Destination) -> bool {
    run.copy || dest.copy
}

/// Where a dump of the store lies, and what its files were when the plan was made.
pub struct Spot {
    place: String,
    stem: Stem,
    bytes: u64,
    inodes: Vec<Inode>,
    good: bool,
}

/// The dumps of the store; where one lies twice, its good copy.
#[derive(Default)]
struct Spots(HashMap<DumpId, Spot>);

impl Spots {
    fn add(&mut self, entry: &Entry) {
        let good = entry.is_good();
        if self.0.get(&entry.dump.id).is_some_and(|known| known.good || !good) {
            return;
        }
        let (place, stem, inodes) = (entry.place.clone(), entry.dump.stem.clone(), entry.inodes.clone());
        self.0.insert(entry.dump.id.clone(), Spot { place, stem, bytes: entry.dump.bytes, inodes, good });
    }
}

/// The dump as it is now, which must be as it was when the plan was made.
pub fn unchanged(store: &Store, id: &DumpId, spot: &Spot) -> Result<Entry> {
    let entry = store.look(&spot.place, &spot.stem)?.context("it was removed meanwhile")?;
    if let Some(fault) = &entry.fault {
        bail!("{fault}");
    }
    let same = entry.dump.id == *id && entry.dump.bytes == spot.bytes && entry.inodes == spot.inodes;
    ensure!(same, "it was replaced meanwhile; the next run takes it as it is now");
    Ok(entry)
}

/// A plan's destination, and what the plan was made from.
struct Destined<'a> {
    run: &'a Run<'a>,
    dest: &'a Destination,
    outbox: Option<&'a Outbox>,
    spots: Spots,
    pending: HashMap<&'a DumpId, &'a Entry>,
    now: Time,
}

/// What came of linking: the dumps, or why not.
type Linked<'i> = HashMap<&'i DumpId, Result<Box<Dump>>>;

/// What has left the outbox for a newer one, or why it could not.
type Gone<'i> = HashMap<&'i DumpId, Result<()>>;

impl Destined<'_> {
    /// Links what the plan says, in its order; without a lock (a dry run) only says so.
    fn carry_out(&self, locked: Option<Locked>, plan: Plan) -> Outcome {
        let planned = locked.is_none();
        let (mut linked, mut gone) = match (locked, self.outbox) {
            (Some(locked), Some(outbox)) => self.link(locked, outbox, &plan),
            _ => (Linked::new(), Gone::new()),
        };
        let mut decided = Vec::new();
        for item in &plan.items {
            let (mut note, mut decision) = (item.note(self.now), item.decision);
            let (dump, error) = match (linked.remove(&item.id), gone.remove(&item.id)) {
                (Some(Ok(dump)), _) => (Some(dump), None),
                (Some(Err(error)), _) | (None, Some(Err(error))) => (None, Some(error)),
                (None, None) if item.decision == Decision::Replaced && !planned => {
                    decision = Decision::Pending;
                    note.why = "waits for bak-sync, as what should replace it could not".into();
                    decision.as_str().clone_into(&mut note.decision);
                    (None, None)
                }
                (None, _) => (None, item.stuck.then(|| anyhow!("{}", item.why))),
            };
            if let Some(error) = &error {
                self.run.session.report.fail(item.id.as_str(), error);
            }
            let shown = item.decision == Decision::Linked || self.run.session.explain;
            if !shown && error.is_none() && !self.run.asked.contains(&item.id) {
                continue;
            }
            let dump = dump.or_else(|| self.read(item));
            let failed = error.map(|error| format!("{error:#}"));
            decided.push(Decided { id: item.id.clone(), dump, decision, note, failed });
        }
        let over = plan.items.iter().filter(|item| item.decision == Decision::OverLimit).count();
        Outcome { decided, over, left: plan.left }
    }

    /// Links what the plan says, and copies what can't be linked if that was asked for. What is replaced leaves the outbox
    /// last, and only if what replaces it is there: in between both are.
    fn link<'i>(&self, locked: Locked, outbox: &Outbox, plan: &'i Plan) -> (Linked<'i>, Gone<'i>) {
        let items: Vec<&Item> = plan.items.iter().filter(|item| item.decision == Decision::Linked).collect();
        let replaced = plan.items.iter().filter(|item| item.decision == Decision::Replaced);
        let older: Vec<(&DumpId, &Item)> =
            replaced.filter_map(|item| Some((item.replaced_by.as_ref()?, item))).collect();
        let (mut linked, mut gone, mut copied) = (Linked::new(), Gone::new(), Vec::new());
        // So many sidecars are kept at a time.
        for items in items.chunks(256) {
            let (mut ids, mut wanted) = (Vec::new(), Vec::new());
            for item in items {
                match self.wanted(item) {
                    Ok(one) => {
                        ids.push(&item.id);
                        wanted.push(one);
                    }
                    Err(error) => _ = linked.insert(&item.id, Err(error)),
                }
            }
            let results = locked.link(self.run.store, &wanted);
            for ((id, one), result) in ids.into_iter().zip(wanted).zip(results) {
                match result {
                    Err(error) if error.is::<NoLink>() && copies(self.run, self.dest) => copied.push((id, one)),
                    result => _ = linked.insert(id, result.map(|()| bare(one.entry))),
                }
            }
        }
        // What a crash left beside its replacement goes, too: that one is not linked now, but there.
        let there = |newer: &DumpId| match linked.get(newer) {
            Some(result) => result.is_ok(),
            None => self.pending.contains_key(newer),
        };
        for (_, old) in older.iter().filter(|(newer, _)| there(newer)) {
            gone.extend(self.leave(&locked, outbox, old).map(|left| (&old.id, left)));
        }
        drop(locked);
        for (id, one) in copied {
            let result = copy::copy(self.run, outbox, &one).context("cannot copy it");
            for (_, old) in older.iter().filter(|(newer, _)| *newer == id && result.is_ok()) {
                let locked = outbox.store.lock(self.run.session.wait, &self.run.session.report);
                let left = locked.map_or_else(|error| Some(Err(error)), |locked| self.leave(&locked, outbox, old));
                gone.extend(left.map(|left| (&old.id, left)));
            }
            linked.insert(id, result.map(|()| bare(one.entry)));
        }
        let into = |result: Result<Box<Dump>>| {
            result.with_context(|| format!("cannot put it into the outbox {}", self.dest.outbox.display()))
        };
        (linked.into_iter().map(|(id, result)| (id, into(result))).collect(), gone)
    }

    /// Takes out of the outbox what a newer dump has replaced there; `None` if bak-sync has begun it meanwhile, as it may
    /// while something is copied. The store keeps its own links.
    fn leave(&self, locked: &Locked, outbox: &Outbox, item: &Item) -> Option<Result<()>> {
        let known = self.pending.get(&item.id)?;
        let now = match outbox.store.look(&known.place, &known.dump.stem) {
            Ok(Some(now)) => now,
            Ok(None) => return Some(Ok(())),
            Err(error) => return Some(Err(error)),
        };
        let note = now.dump.link.get(&self.dest.name);
        if note.is_some_and(|note| note.tries.unwrap_or(0) > 0 || note.error.is_some()) {
            return None;
        }
        let removed = locked.remove(&[&now]).into_iter().collect::<Result<()>>();
        Some(removed.context("was replaced by a newer one, but cannot be taken out of the outbox"))
    }

    fn wanted(&self, item: &Item) -> Result<Wanted> {
        let spot = self.spots.0.get(&item.id).context("it is not in the store")?;
        let entry = unchanged(self.run.store, &item.id, spot)?;
        let mut dump = entry.dump.bare();
        dump.link.insert(self.dest.name.clone(), item.note(self.now));
        // What was found of the files here says nothing of those that will be there.
        dump.verify = None;
        Ok(Wanted { entry, dump })
    }

    /// The dump as it is on disk.
    fn read(&self, item: &Item) -> Option<Box<Dump>> {
        let spot = self.spots.0.get(&item.id);
        let here = spot.and_then(|spot| self.run.store.look(&spot.place, &spot.stem).ok().flatten());
        here.or_else(|| self.pending.get(&item.id).map(|entry| (*entry).clone())).map(bare)
    }
}

/// The dump as it is shown: without the notes of other places.
fn bare(mut entry: Entry) -> Box<Dump> {
    let dir = entry.dump.dir.take();
    let mut dump = Box::new(entry.dump.into_bare());
    dump.dir = dir;
    dump
}

/// Opens the outbox, made if it is not there; a dry run makes nothing. Refused if hard links cannot be made into it and
/// nobody asked for copies.
fn open(run: &Run, dest: &Destination) -> Result<Option<Outbox>> {
    let ledger = dest.ledger.as_deref();
    let elsewhere = || {
        Kind::Refused.says(format!(
            "the outbox {} and the store {} are on different file systems, so that hard links cannot be made: name an \
             outbox on the store's file system by --outbox or in the configuration, or have the dumps copied by --copy",
            dest.outbox.display(),
            run.store.path().display()
        ))
    };
    outbox::apart("the outbox", &dest.outbox, "the store", run.store.path())?;
    if !dest.outbox.exists() {
        // Asked of its parent first, so that nothing is left over there.
        let parent = dest.outbox.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let device = |path: &Path| path.metadata().ok().map(|meta| meta.dev());
        let apart = device(parent).is_some_and(|there| device(run.store.path()).is_some_and(|here| here != there));
        if apart && !copies(run, dest) {
            return Err(elsewhere());
        }
        if run.session.dry_run {
            return Ok(None);
        }
    }
    let outbox = if run.session.dry_run {
        Outbox::open(&dest.outbox, &dest.name, ledger)?
    } else {
        Outbox::create(&dest.outbox, &dest.name, ledger)?
    };
    if !copies(run, dest) && !run.store.same_file_system(&outbox.store)? {
        return Err(elsewhere());
    }
    Ok(Some(outbox))
}

fn ledger(session: &Session, dest: &Destination, outbox: Option<&Outbox>) -> Result<Ledger> {
    let path = outbox.map(Outbox::ledger).or_else(|| dest.ledger.clone());
    let ledger = match path {
        Some(path) => Ledger::read(&path, &dest.name)?,
        None => Ledger::default(),
    };
    for damage in &ledger.damaged {
        session.report.fail("ledger", &anyhow!("cannot read {damage}"));
    }
    Ok(ledger)
}

/// What all attempts at each dump have cost so far.
pub fn spent(ledger: &Ledger) -> HashMap<DumpId, u64> {
    let mut spent: HashMap<DumpId, u64> = HashMap::new();
    for attempt in &ledger.attempts {
        if let Some(dump) = &attempt.dump {
            let sum = spent.entry(dump.clone()).or_default();
            *sum = sum.saturating_add(attempt.wire_out).saturating_add(attempt.wire_in);
        }
    }
    spent
}

fn report_unreadable(run: &Run, bad: &Unreadable) {
    let path = run.store.path().join(bad.path()).display().to_string();
    if run.reported.borrow_mut().insert(path.clone()) {
        run.session.report.fail(&path, &anyhow!("{:#}", bad.error));
    }
}
