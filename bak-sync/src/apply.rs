//! One pass: the outbox's dumps, one at a time.
//!
//! Order is all that keeps the far side right, as there is no lock and no rename over there: a dump's files, flushed; its
//! sidecar, flushed; a listing that shows all of it; the history here; and only then the links go. A crash after any step
//! is finished by the next pass: what lacks a sidecar is sent on, what has one is looked at and counted.

use anyhow::{Context, Result, anyhow};
use bak_common::args::{Destination, Session};
use bak_common::far::{Far, FarFile, Url};
use bak_common::ledger::{self, Attempt, Ledger, Line};
use bak_common::lock::{Hold, Holder, Lock};
use bak_common::meter::Wire;
use bak_common::name::DumpId;
use bak_common::outbox::{self, Outbox};
use bak_common::record::{Dump, SentNote};
use bak_common::report::{Kind, status};
use bak_common::store::{BAK, Entry};
use std::collections::{HashSet, VecDeque};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::carry::Trouble;
use crate::identity;
use crate::plan;
use crate::timetable::Timetable;

/// After so many dumps in a row that failed by the line's fault, the pass ends.
const LINE_FAILURES: u32 = 2;

#[derive(Debug)]
pub struct Options {
    pub bwlimit: Timetable,
    pub ssh: Vec<String>,
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
        Url::Ssh { .. } => Ok(()),
    }
}

/// Takes the lock of a whole pass: one sender a destination.
pub fn lock(session: &Session, outbox: &Outbox) -> Result<Lock> {
    let bak = outbox.store.make_bak()?;
    let lock =
        Lock::take(bak.as_fd(), "pass", Hold::Exclusive, session.wait, &format!("the outbox of {}", outbox.dest))?;
    lock.sign(&Holder::me())?;
    Ok(lock)
}

/// A directory for one pass in the outbox's `.bak`, gone with it; what a crash left of the last one is swept first. Only
/// for who holds the pass's lock.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(outbox: &Outbox, _lock: &Lock) -> Result<Self> {
        let path = outbox.store.path().join(BAK).join("scratch");
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot clear {}", path.display()));
            }
            _ => fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?,
        }
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next pass sweeps it if this fails.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn url(dest: &Destination) -> Result<Url> {
    let text = dest.url.as_deref();
    Url::parse(text.ok_or_else(|| {
        Kind::Usage.says(format!("the destination {} has no url: --dest {}=URL", dest.name, dest.name))
    })?)
}

/// What a running pass works with.
pub struct Pass<'a> {
    pub session: &'a Session,
    pub dest: &'a Destination,
    pub outbox: &'a Outbox,
    pub far: &'a Far,
    pub scratch: &'a Scratch,
    pub lock: &'a Lock,
    pub ledger: ledger::Writer,
    pub history: Vec<Dump>,
    pub listing: Vec<FarFile>,
    /// A directory over there for hard links to what deltas are made against; this outbox's own.
    pub basis: String,
    pub id: String,
}

/// Carries what is pending. `done` is called for each dump as it has arrived; with `--explain` for those that stay, too,
/// and in a dry run for all, in order.
pub fn pass(
    session: &Session,
    dest: &Destination,
    options: &Options,
    done: &mut dyn FnMut(Dump) -> Result<()>,
) -> Result<()> {
    let url = url(dest)?;
    let outbox = Outbox::open(&dest.outbox, &dest.name, dest.ledger.as_deref())?;
    apart(dest, &url, &outbox)?;
    let expected = outbox.identity()?.ok_or_else(|| {
        Kind::Refused.says(format!("the far side has no identity yet: run bak-sync --init {} once", dest.name))
    })?;
    if session.dry_run {
        for mut dump in plan::order(pending(session, &outbox).into_iter().map(|entry| entry.dump).collect(), &dest.name)
        {
            dump.planned = true;
            done(dump)?;
        }
        return Ok(());
    }
    let lock = lock(session, &outbox)?;
    drop(outbox.store.lock(session.wait, &session.report)?);
    let begun = Instant::now();
    let mut ledger = ledger::Writer::open(&outbox.ledger(), &session.config.node(), session.clock())?;
    let id = uuid::Uuid::new_v4().to_string();
    let mut sum = Wire::default();
    let waiting = pending(session, &outbox);
    // Also where nothing waits: that the far side is gone should not come out only when it is needed.
    let scratch = Scratch::new(&outbox, &lock)?;
    let mut far = Far::open(url, &options.ssh, scratch.path()).map_err(|error| stays(error, waiting.len()))?;
    if !options.bwlimit.is_free() {
        let (table, zone, clock) = (options.bwlimit.clone(), session.zone, session.clock_of_its_own());
        far.keep_pace(move || table.at(zone.local(clock())), options.bwlimit.ever_waits());
    }
    let opened = look(&outbox, &far, &expected, &waiting);
    // What the look cost is noted whether or not it went well.
    let wire = far.take_wire();
    ledger.append(&Line::Attempt(attempt(session, dest, &format!("{id}/look"), None, wire, begun, "done")))?;
    sum = sum + wire;
    let (history, listing, basis) = opened.map_err(|error| stays(error, waiting.len()))?;
    let mut pass = Pass {
        session,
        dest,
        outbox: &outbox,
        far: &far,
        scratch: &scratch,
        lock: &lock,
        ledger,
        history,
        listing,
        basis,
        id: id.clone(),
    };
    let (sent, failed) = pass.all(waiting, &mut sum, done)?;
    let mut ledger = pass.ledger;
    let pending = outbox.store.list().dumps.len() as u64;
    let line = ledger::Pass {
        id,
        at: session.clock(),
        dest: dest.name.clone(),
        wire_out: sum.out,
        wire_in: sum.into,
        seconds: begun.elapsed().as_secs(),
        sent,
        failed,
        pending,
    };
    ledger.append(&Line::Pass(line))
}

/// `error`, with what it means for those that wait; its exit status is kept.
fn stays(error: anyhow::Error, waiting: usize) -> anyhow::Error {
    if waiting == 0 {
        return error;
    }
    let plural = if waiting == 1 { "dump stays" } else { "dumps stay" };
    let text = format!("{error:#} ({waiting} {plural} pending)");
    match status(&error) {
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
            &anyhow!("cannot be sent: {why}; bak-prune removes it from {}", outbox.store.path().display()),
        );
    }
    good
}

type Looked = (Vec<Dump>, Vec<FarFile>, String);

/// Makes sure that the far side is the right one, and sees what it has of the guests that wait.
fn look(outbox: &Outbox, far: &Far, expected: &bak_common::outbox::Identity, waiting: &[Entry]) -> Result<Looked> {
    let basis = format!(".basis-{:08x}", fold(outbox.store.path()));
    let places: HashSet<String> = waiting.iter().map(|entry| Outbox::place(&entry.dump.vm)).collect();
    let places: Vec<String> = places.into_iter().chain([basis.clone()]).collect();
    // Both only look; at the same time, as each costs a round trip.
    let (checked, listing) = std::thread::scope(|scope| {
        let listing = scope.spawn(|| if waiting.is_empty() { Ok(Vec::new()) } else { far.list(&places) });
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

/// A line of the ledger.
pub fn attempt(
    session: &Session,
    dest: &Destination,
    id: &str,
    dump: Option<&Dump>,
    wire: Wire,
    begun: Instant,
    result: &str,
) -> Attempt {
    Attempt {
        id: id.to_owned(),
        at: session.clock(),
        dest: dest.name.clone(),
        dump: dump.map(|dump| dump.id.clone()),
        wire_out: wire.out,
        wire_in: wire.into,
        seconds: begun.elapsed().as_secs(),
        result: result.to_owned(),
        why: None,
    }
}

impl Pass<'_> {
    /// Sends all that waits; returns how many were sent and how many failed.
    fn all(
        &mut self,
        waiting: Vec<Entry>,
        sum: &mut Wire,
        done: &mut dyn FnMut(Dump) -> Result<()>,
    ) -> Result<(u64, u64)> {
        let mut order: VecDeque<Dump> =
            plan::order(waiting.into_iter().map(|entry| entry.dump).collect(), &self.dest.name).into();
        let mut known: HashSet<DumpId> = order.iter().map(|dump| dump.id.clone()).collect();
        let (mut sent, mut failed, mut in_a_row) = (0, 0, 0);
        while let Some(dump) = order.pop_front() {
            if in_a_row == LINE_FAILURES {
                self.session
                    .report
                    .fail(&self.dest.name, &anyhow!("the line is down: the other {} stay pending", order.len() + 1));
                break;
            }
            match self.one(&dump, sum) {
                Ok(None) => {
                    if let Some(newer) = self.successor(&dump, &known) {
                        known.insert(newer.id.clone());
                        order.push_front(newer);
                    }
                }
                Ok(Some(arrived)) => {
                    (sent, in_a_row) = (sent + 1, 0);
                    self.session.report.decided(&bak_common::record::to_line(&bak_common::record::Record::Dump(
                        Box::new(arrived.clone()),
                    )));
                    done(arrived)?;
                }
                Err(trouble) => {
                    failed += 1;
                    in_a_row = if trouble.line_down { in_a_row + 1 } else { 0 };
                    if let (Some(noted), true) = (self.failed(&dump, trouble.error), self.session.explain) {
                        done(noted)?;
                    }
                }
            }
        }
        Ok((sent, failed))
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
    fn note(&self, dump: &Dump, change: impl FnOnce(&mut bak_common::record::LinkNote)) -> Result<Option<Dump>> {
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

    /// Sends one dump, or finds that it has arrived before; `None` if it left the outbox before anything was sent. Its
    /// traffic is noted whatever happens.
    fn one(&mut self, dump: &Dump, sum: &mut Wire) -> Result<Option<Dump>, Trouble> {
        if let Some(sent) = self.outbox.sent(dump)? {
            if !sent.same(dump) {
                return Err(anyhow!("another dump was sent under its name").into());
            }
            self.unlink(dump)?;
            return Ok(Some(sent));
        }
        let begun = Instant::now();
        if self.note(dump, |note| note.tries = Some(note.tries.unwrap_or(0) + 1))?.is_none() {
            return Ok(None);
        }
        let at = self.session.clock();
        let id = format!("{}/{}", self.id, dump.id);
        let result = self.carry(dump, &id, begun);
        let wire = self.far.take_wire();
        *sum = *sum + wire;
        let mut line = attempt(
            self.session,
            self.dest,
            &id,
            Some(dump),
            wire,
            begun,
            if result.is_ok() { "sent" } else { "failed" },
        );
        line.at = at;
        line.why = result.as_ref().err().map(|trouble| format!("{:#}", trouble.error));
        self.ledger.append(&Line::Attempt(line))?;
        result?;
        let arrived = self.outbox.add_sent(dump, self.sum_up(dump)?)?;
        self.unlink(dump)?;
        self.history.push(arrived.clone());
        Ok(Some(arrived))
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
