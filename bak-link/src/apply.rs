//! Makes the plan for one destination and carries it out.
//!
//! Both happen under the lock of the outbox's store, so that two bak-links give one result, and what the plan saw pending
//! still is when the first link is made. bak-sync notes in the history that a dump was sent before it takes the links
//! away, so the outbox is read before the history: a dump on its way from one to the other is seen in both, never in
//! neither. Dumps of the source store may vanish at any moment; [`Work::link`](bak_common::store::Work::link) finds out.

use anyhow::{Context, Result, anyhow};
use bak_common::args::{Destination, Session};
use bak_common::calendar::{SKEW_S, Time};
use bak_common::ledger::Ledger;
use bak_common::name::DumpId;
use bak_common::outbox::{self, History, Outbox};
use bak_common::period;
use bak_common::record::{Dump, LinkNote};
use bak_common::report::Kind;
use bak_common::store::{Entry, Listing, Locked, Store};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::budget::{Cap, Left};
use crate::facts::{Sources, gather};
use crate::plan::{Decision, Facts, Options, Plan, plan};

/// What is the same for all destinations of a run.
pub struct Run<'a> {
    pub session: &'a Session,
    pub store: &'a Store,
    pub force: bool,
    pub oversize: bool,
    pub overdraft: bool,
    pub selected: &'a dyn Fn(&Dump) -> bool,
    /// Sidecars of the store that were reported: once is enough for all destinations.
    pub reported: RefCell<HashSet<String>>,
}

/// What was decided for one dump, and what came of it.
pub struct Decided {
    pub dump: Dump,
    pub decision: Decision,
    pub note: LinkNote,
    /// Why it could not be linked, which was reported.
    pub failed: Option<String>,
}

/// What became of one destination.
pub struct Outcome {
    pub decided: Vec<Decided>,
    pub left: Vec<Left>,
}

/// Plans and links for one destination.
pub fn destination(run: &Run, dest: &Destination) -> Result<Outcome> {
    let session = run.session;
    let outbox = open(run, dest)?;
    let locked = match &outbox {
        Some(outbox) if !session.dry_run => Some(outbox.store.lock(session.wait, &session.report)?),
        _ => None,
    };
    let now = session.clock();
    let store = run.store.list();
    report_store(run, &store);
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
    let effective = |dump: &Dump| session.config.effective(dump);
    let sources = Sources {
        dest: &dest.name,
        store: &store,
        outbox: &pending,
        history: &history.dumps,
        effective: &effective,
        selected: run.selected,
    };
    let (caps, passes) = ledger(session, dest, outbox.as_ref(), now)?;
    let facts = Facts { guests: gather(&sources), caps, passes };
    let options = Options {
        now,
        skew_s: SKEW_S,
        force: run.force,
        oversize: run.oversize,
        overdraft: run.overdraft || dest.overdraft,
    };
    let plan = plan(&facts, &options);
    let found = Found { store: by_id(&store), outbox: by_id(&pending) };
    Ok(carry_out(run, dest, locked.as_ref(), plan, &found, now))
}

/// What the listings hold, by id; where a dump lies twice, its good copy.
struct Found<'a> {
    store: HashMap<&'a DumpId, &'a Entry>,
    outbox: HashMap<&'a DumpId, &'a Entry>,
}

fn by_id(listing: &Listing) -> HashMap<&DumpId, &Entry> {
    listing.dumps.iter().chain(listing.good()).map(|entry| (&entry.dump.id, entry)).collect()
}

/// Links what the plan says, in its order; without a lock (a dry run) only says so.
fn carry_out(run: &Run, dest: &Destination, locked: Option<&Locked>, plan: Plan, found: &Found, now: Time) -> Outcome {
    let mut decided = Vec::new();
    for item in &plan.items {
        // Every item of the plan stands for a dump of one of the listings that it was made from.
        let Some(entry) = found.store.get(&item.id).or_else(|| found.outbox.get(&item.id)) else { continue };
        let note = item.note(now);
        let failed = match (item.decision, locked) {
            (Decision::Linked, Some(locked)) => link(run.store, locked, dest, entry, &note).err(),
            _ if item.stuck => Some(anyhow!("{}", item.why)),
            _ => None,
        };
        if let Some(error) = &failed {
            run.session.report.fail(item.id.as_str(), error);
        }
        let failed = failed.map(|error| format!("{error:#}"));
        let mut dump = entry.dump.bare();
        dump.dir.clone_from(&entry.dump.dir);
        decided.push(Decided { dump, decision: item.decision, note, failed });
    }
    Outcome { decided, left: plan.left }
}

fn link(store: &Store, locked: &Locked, dest: &Destination, entry: &Entry, note: &LinkNote) -> Result<()> {
    let mut dump = entry.dump.bare();
    dump.link.insert(dest.name.clone(), note.clone());
    let linked = locked.begin(&dump.stem, &Outbox::place(&dump.vm)).and_then(|work| {
        work.link(store, entry)?;
        locked.publish(work, &dump)
    });
    linked.map(|_| ()).with_context(|| format!("cannot link it into {}", dest.outbox.display()))
}

/// Opens the outbox, made if it is not there; a dry run makes nothing. Refused if hard links cannot be made into it.
fn open(run: &Run, dest: &Destination) -> Result<Option<Outbox>> {
    let ledger = dest.ledger.as_deref();
    let elsewhere = || {
        Kind::Refused.says(format!(
            "the outbox {} and the store {} are on different file systems, so that hard links cannot be made: name an \
             outbox on the store's file system by --outbox or in the configuration",
            dest.outbox.display(),
            run.store.path().display()
        ))
    };
    outbox::apart("the outbox", &dest.outbox, "the store", run.store.path())?;
    if !dest.outbox.exists() {
        // Asked of its parent first, so that nothing is left over there.
        let parent = dest.outbox.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let device = |path: &Path| path.metadata().ok().map(|meta| meta.dev());
        if device(parent).is_some_and(|there| device(run.store.path()).is_some_and(|here| here != there)) {
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
    if !run.store.same_file_system(&outbox.store)? {
        return Err(elsewhere());
    }
    Ok(Some(outbox))
}

/// The limits with what was used of them, and when passes were finished.
fn ledger(session: &Session, dest: &Destination, outbox: Option<&Outbox>, now: Time) -> Result<(Vec<Cap>, Vec<Time>)> {
    let path = outbox.map(Outbox::ledger).or_else(|| dest.ledger.clone());
    let ledger = match path {
        Some(path) => Ledger::read(&path, &dest.name)?,
        None => Ledger::default(),
    };
    for damage in &ledger.damaged {
        session.report.fail("ledger", &anyhow!("cannot read {damage}"));
    }
    let caps = period::caps(&dest.limits, &ledger, now, session.zone);
    Ok((caps, ledger.passes.iter().map(|pass| pass.at).collect()))
}

fn report_store(run: &Run, store: &Listing) {
    for bad in &store.unreadable {
        let path = run.store.path().join(bad.path()).display().to_string();
        if run.reported.borrow_mut().insert(path.clone()) {
            run.session.report.fail(&path, &anyhow!("{:#}", bad.error));
        }
    }
}
