//! One pass: the outbox's dumps, one at a time.
//!
//! Order is all that keeps the far side right, as there is no lock and no rename over there: a dump's files, flushed; its
//! sidecar, flushed; a listing that shows all of it; the history here; and only then the links go. A crash after any step
//! is finished by the next pass: what lacks a sidecar is sent on, what has one is looked at and counted.

use anyhow::{Result, anyhow};
use bak_common::args::{Destination, Session};
use bak_common::calendar::Time;
use bak_common::far::{Access, Far, FarFile, LimitReached, Url};
use bak_common::ledger::{self, Ended, Ledger, Line, Pass as Figures};
use bak_common::lock::Lock;
use bak_common::meter::Wire;
use bak_common::name::DumpId;
use bak_common::outbox::{self, Identity, Outbox};
pub use bak_common::pass::{Scratch, attempt, caps, lock};
use bak_common::record::{Dump, Record, Skipped, to_line};
use bak_common::report::{Kind, status};
use bak_common::stop::Stopped;
use bak_common::store::Entry;
use bak_common::units::show_size;
use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

use crate::crossed::Known;
use crate::identity;
use crate::plan;
use crate::progress::Turn;
use crate::share::{self, Budget};
use crate::summary::Tally;
use crate::timetable::Timetable;
use crate::until;

#[derive(Debug)]
pub struct Options {
    pub bwlimit: Timetable,
    pub access: Access,
    /// The first dump of a pass may finish beyond the limits of a pass.
    pub overdraft: bool,
    /// How often a dump is tried again in a pass after the line has dropped.
    pub retries: u32,
    /// When the pass ends.
    pub until: Option<Time>,
}

/// Refuses places that would be one another: what is taken out of one would be gone from the other.
pub fn apart(dest: &Destination, url: &Url, outbox: &Outbox) -> Result<()> {
    if let Some(store) = &dest.store {
        outbox::apart("the outbox", outbox.store.path(), "the store", store)?;
        if let Url::Path(far) = url {
            outbox::apart("the far side", far, "the store", store)?;
        }
    }
    match url {
        Url::Path(far) => outbox::apart("the far side", far, "the outbox", outbox.store.path()),
        Url::Ssh { .. } | Url::Daemon(_) => Ok(()),
    }
}

pub fn url(dest: &Destination) -> Result<Url> {
    let text = dest.url.as_deref();
    Url::parse(text.ok_or_else(|| {
        Kind::Usage.says(format!("the destination {} has no url: --dest {}=URL", dest.name, dest.name))
    })?)
}

/// A destination that --init was run on: where it is, its outbox, and what it must say that it is.
pub fn known(dest: &Destination) -> Result<(Url, Outbox, Identity)> {
    let url = url(dest)?;
    let outbox = Outbox::open(&dest.outbox, &dest.name, dest.ledger.as_deref())?;
    apart(dest, &url, &outbox)?;
    let expected = outbox.identity()?.ok_or_else(|| {
        Kind::Refused.says(format!("the far side of {} has no identity yet: run this once with --init", dest.name))
    })?;
    Ok((url, outbox, expected))
}

/// What a running pass works with.
pub struct Pass<'a> {
    pub session: &'a Session,
    pub dest: &'a Destination,
    pub options: &'a Options,
    pub outbox: &'a Outbox,
    pub far: Far,
    pub scratch: &'a Scratch,
    pub lock: &'a Lock,
    pub ledger: ledger::Writer,
    pub history: Vec<Dump>,
    pub listing: Vec<FarFile>,
    /// A directory over there for hard links to what deltas are made against; this outbox's own.
    pub basis: String,
    pub id: String,
    pub budget: Budget,
    /// The last attempt at the dump in hand did not end in order: its other end may still be there, and write.
    pub unsure: bool,
    /// Dumps that go without deltas made here: one could not be made, or not be applied.
    pub without_deltas: HashSet<DumpId>,
    /// What all of it has cost so far.
    pub sum: Wire,
    /// How fast dumps went so far, in bytes a second.
    pub rate: u64,
    /// For those who watch.
    pub turn: Turn,
}

/// Carries what is pending. `done` is called for each dump as it has arrived; with `--explain` for those that stay, too,
/// and in a dry run for all, in order. Returns what came of it; nothing where none was begun.
pub fn pass(
    session: &Session,
    dest: &Destination,
    options: &Options,
    done: &mut dyn FnMut(Dump) -> Result<()>,
) -> Result<Option<Figures>> {
    let (url, outbox, expected) = known(dest)?;
    if session.dry_run {
        let budget = Budget::new(&caps(session, dest, &outbox)?, options.overdraft);
        let waiting = pending(session, &outbox).into_iter().map(|entry| entry.dump).collect();
        return foresee(dest, &outbox, &budget, plan::order(waiting, &dest.name), done).map(|()| None);
    }
    let lock = lock(session, &outbox)?;
    drop(outbox.store.lock(session.wait, &session.report)?);
    let begun = Instant::now();
    let waiting = pending(session, &outbox);
    // Not before the lock: another pass may have used up what was left.
    let mut budget = Budget::new(&caps(session, dest, &outbox)?, options.overdraft);
    if budget.left().is_some_and(|left| left < i128::from(share::LEAST)) {
        return all_wait(session, &outbox, &waits(&budget), waiting, done).map(|()| None);
    }
    if let Some(until) = options.until.filter(|until| session.clock() >= *until) {
        return all_wait(session, &outbox, &too_late(session, until), waiting, done).map(|()| None);
    }
    let mut ledger = ledger::Writer::open(&outbox.ledger(), &session.config.node(), session.clock())?;
    let id = uuid::Uuid::new_v4().to_string();
    // Also where nothing waits: that the far side is gone should not come out only when it is needed.
    let scratch = Scratch::new(&outbox, &lock)?;
    let mut far = Far::open(url, &options.access, scratch.path()).map_err(|error| stays(error, waiting.len()))?;
    keep_pace(session, options, &mut far);
    if let Some(until) = options.until {
        let clock = session.clock_of_its_own();
        far.until(move || clock() >= until);
    }
    far.limit(budget.left());
    let abandoned = outbox.abandoned()?;
    let opened = look(&outbox, &far, &expected, &waiting, &abandoned);
    // What the look cost is noted whether or not it went well.
    let sum = far.take_wire();
    let limited = matches!(&opened, Err(error) if error.is::<LimitReached>());
    let result = match &opened {
        Err(error) if error.is::<Stopped>() => "stopped",
        _ if limited => "cut",
        _ => "done",
    };
    ledger.append(&Line::Attempt(attempt(session, dest, &format!("{id}/look"), None, sum, begun, result)))?;
    budget.spend(sum.both());
    if limited {
        return all_wait(session, &outbox, &waits(&budget), waiting, done).map(|()| None);
    }
    let (history, listing, basis) = opened.map_err(|error| stays(error, waiting.len()))?;
    let (outbox, scratch, lock) = (&outbox, &scratch, &lock);
    let rate = match options.until {
        Some(_) => until::rate(&Ledger::read(&outbox.ledger(), &dest.name)?.attempts),
        None => 0,
    };
    let mut pass = Pass {
        session,
        dest,
        options,
        outbox,
        far,
        scratch,
        lock,
        ledger,
        history,
        listing,
        basis,
        id,
        budget,
        unsure: false,
        without_deltas: HashSet::new(),
        sum,
        rate,
        turn: Turn::default(),
    };
    let mut tally = Tally::default();
    pass.clear(abandoned);
    let ended = pass.all(waiting, &mut tally, done);
    if ended.is_err() {
        tally.ended = Ended::Failed;
    }
    // Whatever ended it, its figures are noted.
    let figures = pass.finish(begun, tally);
    ended.and(figures).map(Some)
}

/// Why a dump is not begun when it is too late.
pub fn too_late(session: &Session, until: Time) -> String {
    format!("it is past {} (until): it stays pending", session.zone.minute(until))
}

/// Has all that goes over there keep to the timetable.
pub fn keep_pace(session: &Session, options: &Options, far: &mut Far) {
    if !options.bwlimit.is_free() {
        let (table, zone, clock) = (options.bwlimit.clone(), session.zone, session.clock_of_its_own());
        far.keep_pace(move || table.at(zone.local(clock())), options.bwlimit.ever_waits());
    }
}

/// What a dump is expected to cost: as bak-link reckoned, or its size.
pub fn cost(dump: &Dump, dest: &str) -> u64 {
    dump.link.get(dest).and_then(|note| note.cost).unwrap_or(dump.bytes)
}

/// A dry run: the dumps in the order in which they would go, if each cost what is expected; and why others would wait.
fn foresee(
    dest: &Destination,
    outbox: &Outbox,
    budget: &Budget,
    order: Vec<Dump>,
    done: &mut dyn FnMut(Dump) -> Result<()>,
) -> Result<()> {
    let (mut budget, begun) = (budget.clone(), Known::new(outbox.ledger(), &dest.name));
    let order = share::arrange(order, &mut budget, |dump| cost(dump, &dest.name));
    let costs: Vec<u64> = order.iter().map(|dump| cost(dump, &dest.name)).collect();
    for (at, mut dump) in order.into_iter().enumerate() {
        let share = budget.share(costs[at], &costs[at + 1..]);
        dump.planned = true;
        begun.note(&mut dump);
        match share {
            Some(share) if share < share::LEAST => dump.skipped = Some(Skipped { why: waits(&budget) }),
            Some(share) if share < costs[at] => {
                let (share, cost) = (show_size(share), show_size(costs[at]));
                let why = format!("cut after {share} of about {cost}: it goes on in the next pass");
                dump.skipped = Some(Skipped { why });
            }
            _ => {}
        }
        if share.is_none_or(|share| share >= share::LEAST) {
            budget.begin();
            budget.spend(costs[at].min(share.unwrap_or(u64::MAX)));
        }
        done(dump)?;
    }
    Ok(())
}

/// Why a dump is not begun.
pub fn waits(budget: &Budget) -> String {
    match budget.tightest() {
        Some(limit) => format!("too little is left of {limit}: it stays pending"),
        None => "it stays pending".to_owned(),
    }
}

/// Says why a dump stays pending, which is a decision and no failure.
pub fn tell(session: &Session, mut dump: Dump, why: String, done: &mut dyn FnMut(Dump) -> Result<()>) -> Result<()> {
    dump.skipped = Some(Skipped { why });
    session.report.decided(&to_line(&Record::Dump(Box::new(dump.clone()))));
    done(dump)
}

/// Nothing may cross any more: what waits, waits.
fn all_wait(
    session: &Session,
    outbox: &Outbox,
    why: &str,
    waiting: Vec<Entry>,
    done: &mut dyn FnMut(Dump) -> Result<()>,
) -> Result<()> {
    let begun = Known::new(outbox.ledger(), &outbox.dest);
    waiting.into_iter().map(|entry| entry.dump).try_for_each(|mut dump| {
        begun.note(&mut dump);
        tell(session, dump, why.to_owned(), done)
    })
}

/// `error`, with what it means for those that wait; its exit status is kept.
pub fn stays(error: anyhow::Error, waiting: usize) -> anyhow::Error {
    if waiting == 0 {
        return error;
    }
    if error.is::<Stopped>() {
        return error;
    }
    let plural = if waiting == 1 { "dump stays" } else { "dumps stay" };
    let text = format!("{error:#} ({waiting} {plural} pending)");
    match status(&error) {
        2 => Kind::Usage.says(text),
        4 => Kind::Refused.says(text),
        _ => anyhow!(text),
    }
}

/// The dumps that wait here. What cannot be sent because it is not good is a failure of its own.
fn pending(session: &Session, outbox: &Outbox) -> Vec<Entry> {
    let listing = outbox.store.list();
    listing.report(&outbox.store, &session.report);
    let (own, foreign): (Vec<_>, Vec<_>) =
        listing.dumps.into_iter().partition(|entry| entry.dump.link.contains_key(&outbox.dest));
    for entry in foreign {
        let why = anyhow!("was not put here by bak-link for {}: left alone (is this really its outbox?)", outbox.dest);
        session.report.fail(entry.dump.id.as_str(), &why);
    }
    let (good, bad): (Vec<_>, Vec<_>) = own.into_iter().partition(Entry::is_good);
    for entry in bad {
        let why = entry.fault.unwrap_or_default();
        session.report.fail(
            entry.dump.id.as_str(),
            &anyhow!(
                "cannot be sent: {why}; take it out by: bak-prune {} {}",
                outbox.store.path().display(),
                entry.dump.id
            ),
        );
    }
    good
}

type Looked = (Vec<Dump>, Vec<FarFile>, String);

/// Makes sure that the far side is the right one, and sees what it has of the guests that wait.
fn look(outbox: &Outbox, far: &Far, expected: &Identity, waiting: &[Entry], abandoned: &[Dump]) -> Result<Looked> {
    let basis = format!(".basis-{:08x}", fold(outbox.store.path()));
    let dumps = || waiting.iter().map(|entry| &entry.dump).chain(abandoned);
    let places: HashSet<String> = dumps().map(|dump| Outbox::place(&dump.vm)).collect();
    // The identity too, so that it is noticed when it goes away.
    let places: Vec<String> = places.into_iter().chain([basis.clone(), identity::FILE.to_owned()]).collect();
    let list = || if dumps().next().is_none() { Ok(Vec::new()) } else { far.list(&places) };
    if far.is_limited() {
        // One after the other: two at a time could together go beyond.
        identity::check(far, expected)?;
        return Ok((outbox.history()?.dumps, list()?, basis));
    }
    // Both only look; at the same time, as each costs a round trip.
    let (checked, listing) = std::thread::scope(|scope| {
        let listing = scope.spawn(list);
        (identity::check(far, expected), listing.join())
    });
    checked?;
    let listing = listing.unwrap_or_else(|_| Err(anyhow!("cannot list the far side")))?;
    Ok((outbox.history()?.dumps, listing, basis))
}

/// A short, stable name for an outbox on this node (FNV-1a); nodes that share a far side must not share it.
fn fold(path: &Path) -> u32 {
    let node = bak_common::lock::node_name();
    let bytes = node.bytes().chain([0]).chain(path.as_os_str().as_encoded_bytes().iter().copied());
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
